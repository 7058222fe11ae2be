"""Define the interface of array libraries."""

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
        """Return the lengths of the sides."""
        ...

    @property
    def ndim(self) -> int:
        """Return the number of sides."""
        ...

    @property
    def dtype(self) -> Any:
        """Return the library's own type of the entries."""
        ...

    def __getitem__(self, key: Any, /) -> Any:
        """Return some of the entries."""
        ...


# The type of the caller's arrays, for results that hold arrays of the same library. Defaults come with Python 3.13.
if TYPE_CHECKING:
    ArrayType = TypeVar("ArrayType", bound=AnyArray, default=Any)
else:
    ArrayType = TypeVar("ArrayType")


class Backend(Protocol):
    """Offer the primitives that the array API standard lacks.

    Every argument is a finite floating array of the backend's library.
    """

    name: str
    """The library's name; backends of one name are the same, whoever made them."""

    xp: Any
    """The library's namespace as array-api-compat presents it."""

    in_place: bool
    """Whether arrays can be written to. If not, loops over single pivots run on the host, in NumPy."""

    def lu(self, matrix: Array) -> tuple[Array, Array]:
        """Return packed factors and row permutation of partial LU.

        Shapes (..., m, r) and (..., m). `matrix` is (..., m, r) with m >= r. `matrix[permutation] = tril(packed, -1) +
        I  @  triu(packed)`. A column without a nonzero pivot is skipped, as LAPACK does, and leaves a zero on the
        diagonal. The packed factors are the caller's to write over. SubnormalPivotError is raised where a pivot is
        subnormal.
        """
        ...

    def solve_triangular(self, triangle: Array, rhs: Array, *, lower: bool, unit_diagonal: bool) -> Array:
        """Solve triangle (..., r, r) @ x = rhs (..., r, n).

        The right-hand side may be written over. The other half of `triangle` is not read.
        """
        ...

    def subtract_outer(self, matrix: Array, column: Array, row: Array) -> None:
        """Subtract column (m,) times row (n,) from matrix (m, n).

        It is written over, and contiguous in one of the two orders.
        """
        ...

    def from_numpy(self, array: np.ndarray[Any, Any], like: Array) -> Array:
        """Bring a host array to the device of `like`.

        The dtype stays.
        """
        ...

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        """Bring an array to the host; the dtype stays."""
        ...

    def detach(self, array: Array) -> Array:
        """Drop whatever records gradients.

        Factors are constants of the weight they come from.
        """
        ...

    def has_float64(self, like: Array) -> bool:
        """Say whether the device of `like` has float64."""
        ...

    def power_of_two(self, exponent: Array) -> Array:
        """Return 2 ** exponent, exactly.

        The exponents are whole numbers in a floating dtype whose normal numbers hold the result.
        """
        ...

    def is_traced(self, array: Array) -> bool:
        """Say whether an array only stands for values.

        While a function is compiled none can be looked at.
        """
        ...

    def rounded(self, array: Array, dtype: str) -> Array | None:
        """Round float32 numbers to "float16" or "bfloat16".

        Ties go to even, and the dtype stays. None if the library cannot.
        """
        ...
