"""The templates of the pages, with everything that comes from a checkpoint escaped."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from lowrank_ldu.analysis.printable import printable
from lowrank_ldu.analysis.report.formatting import duration


def page_templates() -> Environment:
    """Return the environment that pages are rendered in: HTML is escaped, a missing variable is an error.

    Examples
    --------
    >>> page_templates().from_string("{{ name | printable }}").render(name="<b>")
    '&lt;b&gt;'
    """
    environment = Environment(
        loader=PackageLoader("lowrank_ldu.analysis.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "printable": printable}
    return environment
