"""Find the leading directions of a matrix from few products with it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg import solve_triangular

from lowrank_ldu.backend.pivots import SubnormalPivotError, index_vector, order_from
from lowrank_ldu.decomposition.blocks import restore_rows, take_rows, unit_lower
from lowrank_ldu.decomposition.elimination import in_host_memory
from lowrank_ldu.decomposition.gram import blocks_of_rows
from lowrank_ldu.decomposition.powers import exponents_of_extremes, largest_exponent
from lowrank_ldu.decomposition.rescaled import DividingBackend
from lowrank_ldu.validation import check_count

if TYPE_CHECKING:
    from lowrank_ldu.backend import Array, Backend

    _Host = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sketch:
    """Say how a range is looked for: power iterations, extra columns, seed."""

    niter: int = 2
    oversampling: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            check_count(getattr(self, field.name), field.name)

    def spanning_rank(self, k: int) -> int:
        """Return the smallest rank whose range is the whole space of dimension k.

        From there on what is found is the best approximation.
        """
        return max(1, -(-k // (self.niter + 1)) - self.oversampling)


class _ExtremeNumbersError(ArithmeticError):
    """Numbers are so near an end of the range that W has to be scaled first."""


def find_range(W: Array, width: int, niter: int, seed: int, backend: Backend) -> tuple[Array, Array, int]:
    """Return a basis (m, w) of the leading range of W (m, n), basis^T W, and 0.

    The second is (w, n), with w = min((niter + 1) width, m, n). It costs 2 niter + 1 products of W with `width`
    columns. Where W has extreme numbers the second is basis^T W * 2 ** -e, and the third e.

    The range is that of the block Krylov matrix (Omega, (W W^T) Omega, ..., (W W^T)^niter Omega) with Omega Gaussian
    (Musco and Musco, arXiv 1504.05477): power iteration that keeps what it has passed. No product is repeated, since
    each step needs what basis^T W has of the block before. Between products, LU with partial pivoting keeps the columns
    independent, as in Li et al., "Algorithm 971" (ACM TOMS 43, 2017). The basis is the L of all blocks together, unit
    lower trapezoidal for some order of the rows: well conditioned, also where W has a lower rank.

    The range does not depend on the pivots, so that a rounding that changes them changes only the basis.

    Omega is drawn by NumPy from `seed`, so that it is the same for every array library and device.
    """
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        try:
            return *_block_krylov(W, width, niter, seed, backend, refuse_extremes=True), 0
        except (SubnormalPivotError, _ExtremeNumbersError):
            exponent = int(exponents_of_extremes(W, backend))
            host = np.ldexp(np.asarray(backend.to_numpy(W)).astype(np.float64), -exponent)
            found = _block_krylov(host, width, niter, seed, DividingBackend())
            dtype = np.asarray(backend.to_numpy(W[:1, :1])).dtype
            basis, image = (backend.from_numpy(part.astype(dtype), W) for part in found)
            return basis, image, exponent


def _block_krylov(
    W: Array, width: int, niter: int, seed: int, backend: Backend, *, refuse_extremes: bool = False
) -> tuple[Array, Array]:
    xp = backend.xp
    transpose = xp.matrix_transpose
    most = min(int(size) for size in W.shape)
    shape = (int(W.shape[0]), min(width, most))
    gaussian = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    block = xp.astype(backend.from_numpy(gaussian, W), W.dtype)
    bases: list[Array] = []
    images: list[Array] = []
    pivots = np.empty(0, dtype=np.int64)
    for step in range(niter + 1):
        basis = xp.concat(bases, axis=1) if bases else None
        part, pivots = _independent_part(block[:, : most - len(pivots)], basis, pivots, backend)
        bases.append(part)
        images.append(transpose(part) @ W)
        if refuse_extremes and step == 0:
            # It tells the size of W at a fraction of the cost.
            size = float(xp.max(xp.abs(images[0])))
            reach = 2.0 ** (largest_exponent(xp, W.dtype) // 2 - 4)
            if not 1 / reach <= size <= reach:
                raise _ExtremeNumbersError
        if step == niter or len(pivots) == most:
            break
        directions, _ = _independent_part(transpose(images[-1]), None, pivots[:0], backend)
        block = W @ directions
    return xp.concat(bases, axis=1), xp.concat(images, axis=0)


def _independent_part(block: Array, basis: Array | None, pivots: _Host, backend: Backend) -> tuple[Array, _Host]:
    """Return the columns that continue the L of `basis`, and all pivot rows.

    LU of `block` (m, s), from which the steps that gave basis (m, c) at the rows `pivots` (c,) are eliminated.
    """
    if basis is None:
        packed, permutation = backend.lu(block)
        part = restore_rows(unit_lower(packed, backend), permutation, backend)
        return part, backend.to_numpy(permutation)[: int(block.shape[1])]
    done, size = len(pivots), int(block.shape[0])
    rows = index_vector(pivots, block, backend)
    steps = backend.solve_triangular(
        take_rows(basis, rows, backend), take_rows(block, rows, backend), lower=True, unit_diagonal=True
    )
    order = order_from(pivots, size)
    left = index_vector(order[done:], block, backend)
    packed, local = backend.lu(take_rows(block, left, backend) - take_rows(basis, left, backend) @ steps)
    order[done:] = order[done:][backend.to_numpy(local)]
    lower = backend.xp.concat([backend.xp.zeros_like(block[:done, :]), unit_lower(packed, backend)])
    part = restore_rows(lower, index_vector(order, block, backend), backend)
    return part, order[: done + int(block.shape[1])]


def leading_directions(basis: Array, image: Array, rank: int, backend: Backend) -> tuple[_Host, _Host]:
    """Return coefficients (w, rank) and singular values (w,), on the host.

    `basis @ coefficients` has orthonormal columns, the leading left singular vectors of W projected onto the range of
    `basis` (m, w), where basis^T W is `image` (w, n). The values are all singular values of that projection, not
    increasing, in float64.

    float32 is solved by Gram matrices in float64, whose rounding is below that of the numbers themselves; float64 by
    QR, which squares nothing.
    """
    if not backend.has_float64(basis):
        basis, image = (np.asarray(backend.to_numpy(part)) for part in (basis, image))
        backend = DividingBackend()
    xp = backend.xp
    if basis.dtype == xp.float32:
        wide = [xp.astype(part, xp.float64) for part in (xp.matrix_transpose(basis), image)]
        of_basis, of_image = (np.asarray(backend.to_numpy(part @ xp.matrix_transpose(part))) for part in wide)
        try:
            triangle = np.linalg.cholesky(of_basis).T
        except np.linalg.LinAlgError:
            basis, image = xp.matrix_transpose(wide[0]), wide[1]
        else:
            whitened = _solve_transposed(triangle, _solve_transposed(triangle, of_image).T)
            squares, vectors = np.linalg.eigh((whitened + whitened.T) / 2)
            values = np.sqrt(np.maximum(squares[::-1], 0.0))
            return solve_triangular(triangle, vectors[:, ::-1][:, :rank]), values
    triangle, of_image = (
        np.asarray(backend.to_numpy(xp.linalg.qr(part)[1])) for part in (basis, xp.matrix_transpose(image))
    )
    vectors, values, _ = np.linalg.svd(_solve_transposed(triangle, of_image.T), full_matrices=False)
    return solve_triangular(triangle, vectors[:, :rank]), values


def gram_is_enough(W: Array, backend: Backend) -> bool:
    """Say whether singular vectors of W (m, n) may come from its Gram matrix.

    That squares the numbers: in float64 those of float32 keep all their digits, and neither overflow nor vanish.
    Products with W itself may, of extreme ones.
    """
    xp = backend.xp
    if W.dtype != xp.float32 or not backend.has_float64(W):
        return False
    largest = float(xp.max(xp.abs(W)))
    reach = 2.0 ** (largest_exponent(xp, W.dtype) // 2 - 4)
    return largest == 0.0 or 1 / reach <= largest <= reach


def gram_directions(W: Array, backend: Backend) -> tuple[_Host, _Host]:
    """Return all singular values (k,) and the vectors (k, k) of the shorter side of W (m, n).

    On the host, in float64, the values not increasing, the vectors in columns. Of float32, by the eigenvectors of the
    smaller Gram matrix: values below about 1e-7 of the largest are rounding, as they are in the matrix itself.
    """
    xp = backend.xp
    long = W if W.shape[0] > W.shape[1] else xp.matrix_transpose(W)
    gram = sum(_square(xp.astype(long[rows, :], xp.float64), backend) for rows in blocks_of_rows(long.shape))
    if isinstance(gram, np.ndarray):
        squares, vectors = np.linalg.eigh(gram)
    else:
        squares, vectors = (np.asarray(backend.to_numpy(part)) for part in xp.linalg.eigh(gram))
    return np.sqrt(np.maximum(squares[::-1], 0.0)), np.ascontiguousarray(vectors[:, ::-1])


def _square(block: Array, backend: Backend) -> Array:
    """Return block^T block, on the device of a block that arrays can be written to on, or else on the host.

    What is in the host's memory is multiplied by NumPy, whose product of a matrix with itself takes half the
    operations.
    """
    if in_host_memory(block):
        block = backend.to_numpy(block)
        return block.T @ block
    product = backend.xp.matrix_transpose(block) @ block
    return product if backend.in_place else np.asarray(backend.to_numpy(product))


def _solve_transposed(triangle: _Host, rhs: _Host) -> _Host:
    """Solve triangle^T x = rhs for an upper triangle."""
    solution: _Host = solve_triangular(triangle, rhs, trans="T")
    return solution
