"""Load the templates of the pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from lowrank_ldu.formatting import duration, figure, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from jinja2 import Template


def page_template(name: str, **filters: Callable[..., str]) -> Template:
    """Return a template of the pages.

    Values are escaped unless they are markup; a missing variable is an error.

    Parameters
    ----------
    name : str
        Of a file in `templates`.
    **filters : callable
        Of this page, beside those of all.
    """
    environment = Environment(
        loader=PackageLoader("lowrank_ldu.analysis.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "figure": figure, "printable": printable, **filters}
    return environment.get_template(name)
