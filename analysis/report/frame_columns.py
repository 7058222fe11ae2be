"""Define the columns of frames, which tables on disk have too."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, get_type_hints

from lowrank_ldu.diagnostics import Diagnostics
from lowrank_ldu.validation import check_choice

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["analysis", "comparison", "claims"]


@dataclass(frozen=True)
class FrameColumn:
    """Hold what a column of a frame is.

    Attributes
    ----------
    name : str
    dtype : str
        Of pandas: "string", "Int64" and "boolean" where a value may be missing, "int64" and "bool" where none is;
        "float64" for all figures, where a missing one is NaN.
    unit : str
        Empty for ratios, counts and texts; "weight" is the unit of the weight's entries.
    """

    name: str
    dtype: str
    unit: str = ""


# Of every method: the others are of a factorization into L, z and U, and SVD has no record of those.
_WHOLE = {"m", "n", "rank"}
_UNITS = {
    "seconds": "s", "frobenius_norm": "weight", "spectral_norm": "weight", "smallest_pivot": "weight",
    "largest_pivot": "weight", "factor_bytes": "bytes", "dense_bytes": "bytes", "factor_flops": "operations",
    "apply_flops": "operations", "dense_apply_flops": "operations", "pivot": "weight",
    "base_norm": "weight", "update_norm": "weight",
    "largest_singular_value": "weight", "smallest_singular_value": "weight", "svd_seconds": "s",
    "spectral_entropy": "nats",
}  # fmt: skip
# What the SVD's rows have: all else of them is missing.
OF_THE_MATRIX = (
    "m", "n", "dtype", "frobenius_norm", "spectral_norm", "zero_frobenius_error", "zero_spectral_error",
    "svd_frobenius_error", "svd_spectral_error", "dense_apply_flops", "dense_bytes",
)  # fmt: skip
_KEYS = {"tensor": "string", "layer": "Int64", "module": "string", "method": "string", "pivoting": "string"}


def _columns(dtypes: Mapping[str, str]) -> tuple[FrameColumn, ...]:
    return tuple(FrameColumn(name, dtype, _UNITS.get(name, "")) for name, dtype in dtypes.items())


def _diagnostics() -> dict[str, str]:
    """Return the dtypes of the fields of `Diagnostics`."""
    hints = get_type_hints(Diagnostics)
    dtypes = {}
    for field in fields(Diagnostics):
        held = hints[field.name]
        kind = next(kind for kind in (str, int, float) if held in {kind, kind | None})
        whole = "int64" if field.name in _WHOLE else "Int64"
        dtypes[field.name] = {str: "string", int: whole, float: "float64"}[kind]
    return dtypes


_OF_ANALYSIS = {
    "tensors": _columns({
        "tensor": "string", "layer": "Int64", "module": "string", "shape": "string", "dtype": "string",
        "analyzed": "bool", "reason": "string", "seconds": "float64", "device": "string", "m": "Int64", "n": "Int64",
        "largest_singular_value": "float64", "smallest_singular_value": "float64", "stable_rank": "float64",
        "effective_rank": "float64", "spectral_entropy": "float64", "svd_seconds": "float64", "svd_niter": "Int64",
        "recommended_method": "string", "recommended_rank": "Int64", "recommended_pivoting": "string",
        "recommended_storage": "string", "recommended_numbers": "Int64", "size_left": "float64",
        "recommendation": "string",
    }),
    "figures": _columns(
        _KEYS | {"rank": "int64", "seconds": "float64"} | _diagnostics()
        | {"svd_is_bound": "bool", "energy": "float64", "energy_bound": "float64"}
    ),
    "curves": _columns({
        "tensor": "string", "method": "string", "pivoting": "string", "rank": "int64", "error": "float64",
        "refit_error": "float64", "pivot": "float64",
    }),
    "targets": _columns({
        "tensor": "string", "method": "string", "pivoting": "string", "refit": "bool", "target": "float64",
        "rank": "Int64", "rank_is_bound": "bool", "numbers": "Int64", "saved": "float64", "looked_at": "int64",
    }),
}  # fmt: skip
_OF_COMPARISON = {
    "tensors": _columns({
        "tensor": "string", "layer": "Int64", "module": "string", "status": "string", "reason": "string",
        "base_shape": "string", "tuned_shape": "string", "base_dtype": "string", "tuned_dtype": "string",
        "device": "string", "m": "Int64", "n": "Int64", "base_norm": "float64", "update_norm": "float64",
        "relative_norm": "float64", "stable_rank": "float64", "effective_rank": "float64",
        "largest_singular_value": "float64",
    }),
    "figures": _columns(
        _KEYS | {
            "rank": "int64", "explained": "float64", "random_expected": "float64", "independent_terms": "Int64",
            "trained_numbers": "int64",
        }
    ),
}  # fmt: skip
_OF_CLAIMS = {
    "findings": _columns({
        "claim": "string", "test": "string", "rank": "Int64", "matrices": "int64", "held": "int64",
        "verdict": "string", "measured": "string",
    }),
    "figures": _columns({
        "claim": "string", "test": "string", "full_rank": "bool", "rank": "int64", "tensor": "string", "holds": "bool",
        "figure": "string", "value": "float64",
    }),
}  # fmt: skip
FRAME_COLUMNS: dict[Kind, dict[str, tuple[FrameColumn, ...]]] = {
    "analysis": _OF_ANALYSIS,
    "comparison": _OF_COMPARISON,
    "claims": _OF_CLAIMS,
}


def frame_columns(name: str, of: Kind = "analysis") -> tuple[FrameColumn, ...]:
    """Return the columns of a frame.

    Parameters
    ----------
    name : str
        "tensors", "figures", "curves" or "targets" of an analysis; "tensors" or "figures" of a comparison; "findings"
        or "figures" of claims.
    of : {"analysis", "comparison", "claims"}
        What has the frame.

    Raises
    ------
    ValueError
        There is no such frame.

    Examples
    --------
    >>> [(column.name, column.dtype, column.unit) for column in frame_columns("curves")][3:]
    [('rank', 'int64', ''), ('error', 'float64', ''), ('refit_error', 'float64', ''), ('pivot', 'float64', 'weight')]
    """
    check_choice(of, "of", FRAME_COLUMNS)
    check_choice(name, "name", FRAME_COLUMNS[of])
    return FRAME_COLUMNS[of][name]
