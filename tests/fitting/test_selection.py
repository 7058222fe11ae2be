"""The choice of rows and columns: at least a textbook's greedy one, and pivots that can be eliminated with."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowrank_ldu.decomposition import ldu_at_pivots
from lowrank_ldu.fitting.cores import CoreShape
from lowrank_ldu.fitting.energy import GradientEnergy, MomentEnergy
from lowrank_ldu.fitting.selection import columns_for, columns_for_moment, usable_pivots


def problem(m, n, k, seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((m, n), (m, k)))


def held_by_columns(W, B, columns):
    return float(((np.linalg.qr(W[:, columns])[0].T @ B) ** 2).sum()) if columns else 0.0


def textbook_columns(W, B, count):
    """Take the column that adds most, each tried out by a QR decomposition of its own."""
    W, B = W.numpy(), B.numpy()
    chosen = []
    for _ in range(count):
        others = [j for j in range(W.shape[1]) if j not in chosen]
        chosen.append(max(others, key=lambda j: held_by_columns(W, B, [*chosen, j])))
    return chosen


sizes = st.integers(1, 9)
seeds = st.integers(0, 2**20)


@given(m=sizes, n=sizes, k=sizes, seed=seeds, data=st.data())
def test_columns_are_the_textbooks(m, n, k, seed, data):
    W, B = problem(m, n, k, seed)
    count = data.draw(st.integers(1, min(m, n)))
    chosen = columns_for(W, B, count)
    reference = textbook_columns(W, B, count)
    for rank in range(1, count + 1):
        ours, theirs = (
            held_by_columns(W.numpy(), B.numpy(), list(each[:rank])) for each in (chosen.indices, reference)
        )
        assert ours >= theirs * (1 - 1e-9)
    basis = chosen.basis
    assert torch.allclose(basis.T @ basis, torch.eye(count).double(), atol=1e-10)
    assert torch.allclose(basis @ (basis.T @ W[:, chosen.indices]), W[:, chosen.indices], atol=1e-9)
    by_moment = columns_for_moment(W, B @ B.T, count).indices
    ours, theirs = (held_by_columns(W.numpy(), B.numpy(), each) for each in (by_moment, reference))
    assert ours >= theirs * (1 - 1e-9)


@given(m=sizes, n=sizes, seed=seeds)
def test_dependent_columns_are_not_chosen(m, n, seed):
    W, B = problem(m, n, 3, seed)
    doubled = torch.cat([W, W, torch.zeros(m, 1).double(), 1e-12 * W], dim=1)
    chosen = columns_for(doubled, B, 3 * n)
    assert len(chosen.indices) == min(m, n)
    assert np.linalg.matrix_rank(doubled[:, chosen.indices].numpy()) == min(m, n)


@pytest.mark.parametrize("smallest", [1e-2, 1e-3, 1e-4])
def test_a_weight_that_is_nearly_singular_has_its_full_rank(smallest):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(40, 40, generator=generator)).Q for _ in range(2))
    W = left @ torch.diag(torch.logspace(0, math.log10(smallest), 40)) @ right
    G = torch.randn(40, 40, generator=generator)
    energy = GradientEnergy(G)
    rows, columns = energy.rows(W, 40), energy.columns(W, 40)
    for each in (rows, columns):
        assert sorted(each.indices) == list(range(40))
        assert torch.allclose(each.basis.T @ each.basis, torch.eye(40), atol=1e-5)
    factors = ldu_at_pivots(W, *usable_pivots(W, rows.indices, columns.indices))
    assert float(factors.residual(W).norm()) <= 1e-4 * float(W.norm())


def held_by_pivots(W, G, rows, columns):
    left, right = np.linalg.qr(W[:, columns])[0], np.linalg.qr(W[rows].T)[0]
    return float(((left.T @ G @ right) ** 2).sum() / (G**2).sum())


@given(m=st.integers(2, 8), n=st.integers(2, 8), seed=seeds, data=st.data())
def test_alternation_holds_what_separate_greedy_choices_do(m, n, seed, data):
    """Not in every instance, since greedy choices are no optima: but within a small share of the gradient's energy."""
    W, _ = problem(m, n, 1, seed)
    G, _ = problem(m, n, 1, seed + 1)
    rank = data.draw(st.integers(1, min(m, n)))
    energy = GradientEnergy(G.clone())
    rows = energy.rows(W, rank)
    columns = energy.columns(W, rank, rows.basis)
    given_rows = held_by_pivots(W.numpy(), G.numpy(), rows.indices, columns.indices)
    textbook = [textbook_columns(W.T, G.T, rank), textbook_columns(W, G @ rows.basis, rank)]
    assert given_rows >= held_by_pivots(W.numpy(), G.numpy(), *textbook) * (1 - 1e-9)
    best_rows = energy.rows(W, rank, columns.basis)
    reference = textbook_columns(W.T, G.T @ columns.basis, rank)
    ours, theirs = (held_by_pivots(W.numpy(), G.numpy(), r, columns.indices) for r in (best_rows.indices, reference))
    assert ours >= theirs * (1 - 1e-9)


@given(m=sizes, n=sizes, seed=seeds, data=st.data(), scale=st.sampled_from([1.0, 1e-30, 1e30]))
def test_pivots_can_be_eliminated_with_in_their_order(m, n, seed, data, scale):
    W, B = problem(m, n, 2, seed)
    W = W.float()
    rank = data.draw(st.integers(1, min(m, n)))
    kind = data.draw(st.sampled_from(["random", "zeros", "repeated rows"]))
    rows = data.draw(st.permutations(range(m)))[:rank]
    columns = columns_for(W, B.float(), rank).indices
    if kind == "zeros":  # a block without a pivot, in a matrix of full rank
        W[rows] *= torch.where(torch.isin(torch.arange(n), torch.tensor(columns)), 0.0, 1.0)
    elif kind == "repeated rows":
        W[rows[-1]] = W[rows[0]]
    independent = np.linalg.matrix_rank(W[:, columns].double().numpy(), tol=1e-3) == rank
    if not independent:
        return
    found_rows, found_columns = usable_pivots(W, list(rows), columns)
    assert sorted(found_columns) == sorted(columns)
    assert len(set(found_rows)) == rank
    factors = ldu_at_pivots(W * scale, found_rows, found_columns)
    assert not bool(factors.zero_pivots.any())
    if kind == "random" and np.linalg.cond(W[rows][:, columns].double().numpy()) < 100:
        assert sorted(found_rows) == sorted(rows)


def test_a_weight_of_lower_rank_is_refused():
    W = torch.ones(4, 4)
    W[:, 1] = 2
    with pytest.raises(ValueError, match="rank is 2; accepted: at most 1, the rank of the weight"):
        usable_pivots(W, [0, 1], [0, 1])


def span_energy(left, right, G, pairs):
    """Least squares over the terms, one by one."""
    terms = np.stack([np.outer(left[:, i], right[j]).ravel() for i, j in pairs], axis=1)
    q = np.linalg.qr(terms)[0]
    return float(((q.T @ G.ravel()) ** 2).sum() / (G**2).sum())


@pytest.mark.parametrize(("core", "size"), [("dense", None), ("block", 2), ("diagonal", None)])
@given(m=st.integers(4, 7), n=st.integers(4, 7), seed=seeds)
def test_held_energy_is_that_of_least_squares(core, size, m, n, seed):
    rank = 4
    (left, G), (right, _) = problem(m, rank, n, seed), problem(rank, n, 1, seed + 1)
    shape = CoreShape.checked(core, size)
    held = shape.held_by_rank(left, right, GradientEnergy(G.clone()))
    block = {"dense": rank, "block": 2, "diagonal": 1}[core]
    for r in range(1, rank + 1):
        pairs = [(i, j) for i, j in itertools.product(range(r), range(r)) if i // block == j // block]
        assert held[r - 1] == pytest.approx(span_energy(left.numpy(), right.numpy(), G.numpy(), pairs), abs=1e-7)


@pytest.mark.parametrize("core", ["dense", "diagonal"])
def test_energy_of_moments_is_the_mean_of_that_of_gradients(core):
    """Gradients with independent directions of outputs and inputs, of which the moments are known exactly."""
    (A, _), (B, _) = problem(5, 5, 1, 0), problem(4, 4, 1, 1)
    (left, _), (right, _) = problem(5, 3, 1, 2), problem(3, 4, 1, 3)
    shape = CoreShape.checked(core, None)
    energy = MomentEnergy(A @ A.T, B @ B.T)
    # The sum over all pairs of a column of A with a column of B is the mean's numerator.
    pairs = [torch.outer(a, b) for a in A.T for b in B.T]
    sizes = torch.tensor([float((pair**2).sum()) for pair in pairs])
    shares = torch.stack([shape.held_by_rank(left, right, GradientEnergy(pair.clone())) for pair in pairs])
    expected = (sizes.double()[:, None] * shares).sum(dim=0) / sizes.double().sum()
    assert torch.allclose(shape.held_by_rank(left, right, energy), expected, rtol=1e-6)
