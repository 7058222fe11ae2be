"""Tables as Parquet: typed columns, infinite figures as they are, missing ones null."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from pyarrow import parquet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

Kind = Literal["text", "whole", "real", "truth"]

_TYPES: dict[Kind, Any] = {"text": pa.string(), "whole": pa.int64(), "real": pa.float64(), "truth": pa.bool_()}
_HELD: dict[Kind, type] = {"text": str, "whole": int, "real": float, "truth": bool}


def kind_of(annotation: Any) -> Kind:
    """Return the kind of column for a field of a dataclass.

    Examples
    --------
    >>> kind_of(int | None), kind_of(float), kind_of(str | None)
    ('whole', 'real', 'text')
    """
    return next(kind for kind, held in _HELD.items() if annotation in {held, held | None})


def write_parquet(path: Path, columns: Mapping[str, Kind], rows: Sequence[Mapping[str, object]]) -> None:
    """Write a table; a column that a row lacks is null there."""
    schema = pa.schema([(name, _TYPES[kind]) for name, kind in columns.items()])
    table = pa.table({name: [_storable(row.get(name)) for row in rows] for name in columns}, schema=schema)
    # Not the path, which the library takes for UTF-8.
    with path.open("wb") as file:
        parquet.write_table(table, file)


def _storable(value: object) -> object:
    # A name out of a pickle may hold half of a surrogate pair, which UTF-8 has no place for.
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
