"""Hold a matrix that factorizations are measured against."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from lowrank_ldu.backend import backend_of, full_precision
from lowrank_ldu.decomposition import Factorization
from lowrank_ldu.decomposition.elimination import in_host_memory
from lowrank_ldu.decomposition.gram import blocks_of_rows, wide
from lowrank_ldu.decomposition.powers import scaled_by
from lowrank_ldu.diagnostics.measures import frobenius_norm, largest_eigenvalue, spectral_norm
from lowrank_ldu.diagnostics.record import times_power_of_two
from lowrank_ldu.validation import check_matrix, type_name

if TYPE_CHECKING:
    from lowrank_ldu.backend import Array

# Squares of entries in this range, and sums of them, are normal numbers of float64, or of float32.
_MODERATE, _MODERATE_SINGLE = (1e-100, 1e100), (1e-12, 1e12)
# Entries up to which W is kept in float64, 128 MB: each factorization is measured against it.
_KEPT = 2**24


class Target:
    """Hold a matrix W and its own figures.

    Several factorizations can be measured without measuring W itself each time.

    Parameters
    ----------
    W : array, shape (m, n)
        As for `ldu`.
    singular_values : array, shape (k,), optional
        Of W, not increasing, where they are known already; they are the costliest part.
    leading_values : array, shape (l,) with l <= k, optional
        Lower bounds of the leading singular values, not increasing, such as those of a randomized SVD. What the best
        approximation leaves is then an upper bound, from them and the norm of W, and ranks may be no larger than l.
        Spectral norms are not measured: W is taken in blocks of rows, so that figures take little memory beside it,
        and the first of these stands for its spectral norm.

    Raises
    ------
    TypeError, ValueError
        W as for `ldu`, or a stack; the values are not as many as they may be, or not of W's library; both are given.

    Notes
    -----
    Figures are many small steps. So arrays in the host's memory are measured by NumPy, whose steps cost the least, and
    those of a library that cannot write to them, JAX's, are brought there: it would compile each step for each shape.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_ldu import diagnose, ldu, svd
    >>> target = Target(np.array([[4.0, 0.0], [0.0, 3.0]]))
    >>> [diagnose(target, factors, [1])[0].frobenius_error for factors in (ldu(target.W), svd(target.W))]
    [0.6, 0.6]
    """

    def __init__(self, W: Array, *, singular_values: Array | None = None, leading_values: Array | None = None) -> None:
        self.W, self.library = check_matrix(W)
        if self.W.ndim != 2:
            raise ValueError(f"W has shape {tuple(self.W.shape)}; accepted: a single matrix (m, n)")
        if not self.library.in_place or in_host_memory(self.W):
            self.W = np.asarray(self.library.to_numpy(self.W))
        self.backend = backend_of(self.W)
        self.full_rank = min(int(size) for size in self.W.shape)
        self.spectral = leading_values is None
        if singular_values is not None and leading_values is not None:
            raise ValueError("singular_values and leading_values are both given; accepted: one of them")
        self._values: Array | None = None
        if singular_values is not None:
            self._values = self._checked(singular_values, "singular_values", self.full_rank)
        if leading_values is not None:
            self._values = self._checked(leading_values, "leading_values", 1)

    def _checked(self, values: Array, name: str, least: int) -> Array:
        if (
            backend_of(values, name).name != self.library.name
            or values.ndim != 1
            or not least <= int(values.shape[0]) <= self.full_rank
        ):
            count = f"all {self.full_rank}" if least == self.full_rank else f"1 to {self.full_rank}"
            raise ValueError(
                f"{name} has shape {tuple(values.shape)}; accepted: {count} of W, in an array of its library"
            )
        if self.backend.name != self.library.name:
            values = np.asarray(self.library.to_numpy(values))
        return wide(values, self.backend)

    def matching(self, factors: Factorization) -> Factorization:
        """Return factors that fit W, or raise an error.

        They are brought to the host where W is measured there.

        Raises
        ------
        TypeError, ValueError
            `factors` is no factorization, of another library, or of another shape.
        """
        if not isinstance(factors, Factorization):
            raise TypeError(f"factors is a {type(factors).__name__}; accepted: what ldu, svd or pissa returned")
        library = backend_of(factors.left).name
        if library not in {self.library.name, self.backend.name}:
            raise TypeError(
                f"W is of another library than the factors; accepted: a {type_name(factors.left)}, as the factors"
            )
        if tuple(self.W.shape) != factors.shape:
            raise ValueError(
                f"W has shape {tuple(self.W.shape)}; accepted: {factors.shape}, the shape that was factored"
            )
        if self.backend.name == library:
            return factors
        arrays = {
            field.name: np.asarray(self.library.to_numpy(value))
            for field in fields(factors)
            if hasattr(value := getattr(factors, field.name), "shape")
        }
        return replace(factors, **arrays)

    @cached_property
    def largest(self) -> float:
        """Largest magnitude of the entries of W."""
        xp = self.backend.xp
        return float(xp.max(xp.abs(self.W)))

    @cached_property
    def exponent(self) -> int:
        """Exponent e of the unit 2 ** e of the figures.

        0 where squares stay in range, or else W's size.
        """
        smallest, largest = _MODERATE if self.backend.has_float64(self.W) else _MODERATE_SINGLE
        ordinary = self.largest == 0.0 or smallest < self.largest < largest
        return 0 if ordinary else math.frexp(self.largest)[1]

    def unscaled(self, figure: float) -> float:
        """Return a figure of the scaled matrix in W's own unit.

        inf if that is beyond the largest number.
        """
        return times_power_of_two(figure, self.exponent)

    def _scaled(self, array: Array) -> Array:
        array = wide(array, self.backend)
        return scaled_by(array, -self.exponent)

    @property
    def wide(self) -> Array:
        """W in float64 where the device has it, scaled."""
        return self._kept if math.prod(self.W.shape) <= _KEPT else self._scaled(self.W)

    @cached_property
    def _kept(self) -> Array:
        return self._scaled(self.W)

    def block(self, rows: slice) -> Array:
        """Return some rows of `wide`."""
        return self._kept[rows, :] if math.prod(self.W.shape) <= _KEPT else self._scaled(self.W[rows, :])

    @cached_property
    @full_precision()
    def scaled_values(self) -> Array:
        """Singular values of the scaled W.

        All of them, or lower bounds of the leading ones.
        """
        return self.backend.xp.linalg.svdvals(self.wide) if self._values is None else self._scaled(self._values)

    @property
    def values(self) -> Array:
        """Singular values of W: all, or lower bounds of the leading ones."""
        return scaled_by(self.scaled_values, self.exponent) if self._values is None else self._values

    @property
    def in_range(self) -> bool:
        """Return whether W is not zero, and measured in float64."""
        return self.backend.has_float64(self.W) and self.largest > 0.0

    @cached_property
    @full_precision()
    def energy(self) -> float:
        """Sum of the squares of the scaled W."""
        xp, energy = self.backend.xp, 0.0
        for rows in blocks_of_rows(self.W.shape):
            block = self.block(rows)
            energy += float(xp.sum(block * block))
        return energy

    @cached_property
    @full_precision()
    def gram(self) -> Array:
        """W W^T or W^T W of the scaled W, whichever is smaller."""
        whole = self.wide
        return whole @ whole.T if whole.shape[0] <= whole.shape[1] else whole.T @ whole

    @cached_property
    @full_precision()
    def scaled_frobenius_norm(self) -> float:
        """Frobenius norm of the scaled W."""
        return float(np.sqrt(self.energy)) if self.in_range else frobenius_norm(self.wide, self.backend)

    @property
    def frobenius_norm(self) -> float:
        """Frobenius norm of W; inf beyond the largest number."""
        return self.unscaled(self.scaled_frobenius_norm)

    @cached_property
    @full_precision()
    def scaled_spectral_norm(self) -> float:
        """Spectral norm of the scaled W.

        Measured if spectral norms are, or else the largest of the singular values.
        """
        if not self.spectral:
            return float(self.scaled_values[0])
        if self.in_range:
            return float(np.sqrt(max(largest_eigenvalue(self.gram, self.backend), 0.0)))
        return spectral_norm(self.wide, self.backend)
