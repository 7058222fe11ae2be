"""Factor model weights by pivoted LDU, and fine-tune by it.

`W[p] = L diag(z) U`, the factorization that LoLDU (arXiv 2410.13618) fine-tunes the diagonal of. Importing this
package imports NumPy and SciPy only; the layer is in `lowrank_ldu.nn`, the analysis of checkpoints in
`lowrank_ldu.analysis`.
"""

from lowrank_ldu.decomposition import (
    LDU,
    SVD,
    ErrorEstimate,
    Factorization,
    PiSSA,
    estimate_error,
    gram_matrix,
    ldu,
    ldu_at_pivots,
    ldu_lowrank,
    ldu_of_product,
    pissa,
    svd,
)
from lowrank_ldu.diagnostics import Diagnostics, diagnose

__version__ = "0.1.0"

__all__ = [
    "LDU",
    "SVD",
    "Diagnostics",
    "ErrorEstimate",
    "Factorization",
    "PiSSA",
    "diagnose",
    "estimate_error",
    "gram_matrix",
    "ldu",
    "ldu_at_pivots",
    "ldu_lowrank",
    "ldu_of_product",
    "pissa",
    "svd",
]

# Packages that users name. They come with an import of their own, since most need an extra.
_PACKAGES = ["adapters", "analysis", "checkpoints", "decomposition", "diagnostics", "errors", "kernels", "nn", "peft"]


def __dir__() -> list[str]:
    return [*__all__, *_PACKAGES, "__version__"]
