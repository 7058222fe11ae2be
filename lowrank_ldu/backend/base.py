"""The interface that every array library is brought to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import TypeVar
else:
    from typing import TypeVar

# numpy.ndarray, torch.Tensor, jax.Array or cupy.ndarray: they share the array API standard, but no static type.
Array: TypeAlias = Any


class AnyArray(Protocol):
    """Name what the static types of arrays have in common."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of its sides."""
        ...

    @property
    def ndim(self) -> int:
        """How many sides it has."""
        ...

    @property
    def dtype(self) -> Any:
        """The library's own type of the entries."""
        ...

    def __getitem__(self, key: Any, /) -> Any:
        """Return some of its entries."""
        ...


# The type of the caller's arrays, for results that hold arrays of the same library. Defaults come with Python 3.13.
if TYPE_CHECKING:
    ArrayType = TypeVar("ArrayType", bound=AnyArray, default=Any)
else:
    ArrayType = TypeVar("ArrayType")


class Backend(Protocol):
    """Primitives beyond the array API standard. Every argument is a finite floating array of the backend's library."""

    name: str
    """The library's name; backends of one name are the same, whoever made them."""

    xp: Any
    """The library's namespace as array-api-compat presents it."""

    in_place: bool
    """Whether arrays can be written to. If not, loops over single pivots run on the host, in NumPy."""

    def lu(self, matrix: Array) -> tuple[Array, Array]:
        """Return the packed factors (..., m, r) and the row permutation (..., m) of LU with partial pivoting.

        `matrix` is (..., m, r) with m >= r. `matrix[permutation] = tril(packed, -1) + I  @  triu(packed)`. A column
        without a nonzero pivot is skipped, as LAPACK does, and leaves a zero on the diagonal. The packed factors are
        the caller's to write over. SubnormalPivotError is raised where a pivot is subnormal.
        """
        ...

    def solve_triangular(self, triangle: Array, rhs: Array, *, lower: bool, unit_diagonal: bool) -> Array:
        """Solve triangle (..., r, r) @ x = rhs (..., r, n), which may be written over.

        The other half of `triangle` is not read.
        """
        ...

    def subtract_outer(self, matrix: Array, column: Array, row: Array) -> None:
        """Overwrite matrix (m, n), contiguous in one of the two orders, by matrix - column (m,) row (n,)."""
        ...

    def from_numpy(self, array: np.ndarray[Any, Any], like: Array) -> Array:
        """Bring a host array to the device of `like`; the dtype stays."""
        ...

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        """Bring an array to the host; the dtype stays."""
        ...

    def detach(self, array: Array) -> Array:
        """Drop whatever records gradients; factors are constants of the weight they come from."""
        ...

    def has_float64(self, like: Array) -> bool:
        """Whether float64 is to be had on the device of `like`."""
        ...

    def power_of_two(self, exponent: Array) -> Array:
        """Return 2 ** exponent, exact, for whole numbers in a floating dtype whose normal numbers hold the result."""
        ...

    def is_traced(self, array: Array) -> bool:
        """Whether the array only stands for values, while a function is compiled, so that none can be looked at."""
        ...

    def rounded(self, array: Array, dtype: str) -> Array | None:
        """Round float32 numbers to "float16" or "bfloat16", ties to even, in the array's dtype; None if it cannot."""
        ...
