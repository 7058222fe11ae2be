"""Bring array libraries to one interface.

It holds the few primitives that the array API standard lacks, and says which library an array belongs to. Everything
else in the decomposition is written against the standard itself, through array-api-compat. A library is imported only
when an array of it has been handed in, so none is ever imported that the caller did not bring.
"""

from lowrank_ldu.backend.base import Array, ArrayType, Backend
from lowrank_ldu.backend.precision import full_precision
from lowrank_ldu.backend.select import backend_of

__all__ = ["Array", "ArrayType", "Backend", "backend_of", "full_precision"]


def __dir__() -> list[str]:
    return __all__
