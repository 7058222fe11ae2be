"""Hold the figures of one factorization at one rank."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Diagnostics:
    r"""Hold the figures of a factorization W ~ L diag(z) U.

    L = left (m, r), z = diagonal (r,), U = right (r, n).

    Plain Python numbers, so that a list of these is a table. All are computed in float64 where the device has it,
    whatever the factors are stored in. Errors are relative to the norm of W: 1 is what the zero matrix gives, and
    more than 1 is worse than nothing.

    Attributes
    ----------
    method : str
        "ldu", "svd" or "pissa"; "ldu_lowrank" or "ldu_of_product" for an LDU that is not of W itself.
    pivoting : str or None
        Pivoting strategy of an LDU factorization of W itself.
    m, n, rank : int
        Shape of W, and the number r of terms measured.
    dtype : str
        Of the factors.
    frobenius_norm, spectral_norm : float
        Of W, in W's own unit; inf where that is beyond the largest number of float64.
    frobenius_error, spectral_error : float, float or None
        \|W - L diag(z) U\| / \|W\| in either norm; 0 if W is zero. Spectral errors are None if not asked for.
    refit_frobenius_error, refit_spectral_error : float, float or None
        The same with the diagonal that is best for these L and U in the Frobenius norm (`Factorization.refit`).
    core_frobenius_error : float or None
        The same in the Frobenius norm with the best r x r matrix between L and U in place of a diagonal, L K U: what
        their columns and rows can give at all. At full rank it is the error with the best diagonal. None if not asked
        for.
    zero_frobenius_error, zero_spectral_error : float
        Yardstick: the same for the zero matrix. 1, or 0 if W is zero.
    svd_frobenius_error, svd_spectral_error : float, float or None
        Yardstick: the least error of any matrix of rank r, from the singular values of W. Where only
        the leading ones are known (lower bounds, of a randomized SVD), the first is an upper bound, the second None.

    growth_factor : float or None
        LDU only. max(\|W\|, \|D U\|) / max \|W\| over the entries and the first r steps: how much elimination let
        them grow; at least 1.
    condition_left, condition_right : float
        Ratio of the extreme singular values of L and of U; inf if the factor has not full rank.
    condition_gram : float
        Condition number of G = (L^T L) * (U U^T), the metric of the diagonal: how stretched the space of z is for an
        optimizer; inf if the terms depend on each other. At most about 1e16 can be told from inf.
    orthogonality_left, orthogonality_right : float
        \|C^T C - I\|_F / sqrt(r) for the columns of L, or the rows of U, scaled to unit length: 0 if orthogonal.
    smallest_pivot, largest_pivot : float or None
        LDU only. Extreme magnitudes of the pivots, in W's unit; inf where that is beyond the largest number.
    zero_pivots : int or None
        LDU only. Steps without a usable pivot (`LDU.zero_pivots`).
    closest_runner_up : float or None
        LDU only. Largest ratio, over the steps, of a competitor's magnitude to the pivot's: 1 is a tie. Competitors
        are what the strategy compared: the rest of the column (partial; randomized within its block), of the row and
        column (rook), of the whole remaining matrix (complete). Zero pivots are not counted.
    near_ties : int or None
        LDU only. Steps whose runner-up is within r eps of the pivot (eps of the factors' dtype): another library or
        device may round them the other way round and choose differently.
    near_ties_bfloat16 : int or None
        LDU only. Steps whose runner-up is within 2**-8: rounding W to bfloat16 may exchange the two.
    storage_error_float16, storage_error_bfloat16 : float
        \|L diag(z) U - L' diag(z) U'\|_F / \|W\|_F, L' and U' rounded to that dtype; inf if an entry overflows it.
    factor_flops : int
        Additions and multiplications to compute the factors, leading order (`lowrank_ldu.diagnostics.cost`).
    apply_flops, dense_apply_flops : int
        Additions and multiplications per input vector, L (z * (U x)) and W x.
    factor_bytes, dense_bytes : int
        Bytes of L, z and U, and of W, in the factors' dtype.
    """

    method: str
    pivoting: str | None
    m: int
    n: int
    rank: int
    dtype: str
    frobenius_norm: float
    spectral_norm: float
    frobenius_error: float
    spectral_error: float | None
    refit_frobenius_error: float
    refit_spectral_error: float | None
    core_frobenius_error: float | None
    zero_frobenius_error: float
    zero_spectral_error: float
    svd_frobenius_error: float
    svd_spectral_error: float | None
    growth_factor: float | None
    condition_left: float
    condition_right: float
    condition_gram: float
    orthogonality_left: float
    orthogonality_right: float
    smallest_pivot: float | None
    largest_pivot: float | None
    zero_pivots: int | None
    closest_runner_up: float | None
    near_ties: int | None
    near_ties_bfloat16: int | None
    storage_error_float16: float
    storage_error_bfloat16: float
    factor_flops: int
    apply_flops: int
    dense_apply_flops: int
    factor_bytes: int
    dense_bytes: int

    def scaled(self, exponent: int) -> Diagnostics:
        """Return the figures of the matrix times 2 ** exponent.

        Factored by the same factors but for the diagonal.
        """

        def pivot(value: float | None) -> float | None:
            return None if value is None else times_power_of_two(value, exponent)

        return replace(
            self,
            frobenius_norm=times_power_of_two(self.frobenius_norm, exponent),
            spectral_norm=times_power_of_two(self.spectral_norm, exponent),
            smallest_pivot=pivot(self.smallest_pivot),
            largest_pivot=pivot(self.largest_pivot),
        )


def times_power_of_two(figure: float, exponent: int) -> float:
    """Return figure * 2 ** exponent.

    inf if that is beyond the largest number.

    Examples
    --------
    >>> times_power_of_two(3.0, 2), times_power_of_two(1.0, 1024)
    (12.0, inf)
    """
    try:
        return math.ldexp(figure, exponent)
    except OverflowError:
        return math.copysign(math.inf, figure)
