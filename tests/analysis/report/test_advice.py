"""What a report recommends never takes more numbers than the weight."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowrank_ldu import ldu, ldu_lowrank
from lowrank_ldu.analysis import NeededRank, SurveyOptions, analyze
from lowrank_ldu.analysis.measures.matrix import analyze_matrix
from lowrank_ldu.analysis.measures.recommendation import recommend
from lowrank_ldu.analysis.report.advice import advice_of, by_method, verdict


def weight(m, n, decay, seed=0):
    generator = np.random.default_rng(seed)
    k = min(m, n)
    left, right = (np.linalg.qr(generator.standard_normal((size, k)))[0] for size in (m, n))
    return torch.from_numpy((left * decay ** np.arange(k)) @ right.T)


def analyzed(W, **options):
    return analyze_matrix(W, SurveyOptions(**{"ranks": (2, 4), "targets": 0.5, "mode": "exact", **options}))


@given(st.integers(8, 24), st.integers(8, 24), st.floats(0.3, 1.0), st.sampled_from(["exact", "cheap", "fast"]))
def test_what_is_recommended_is_smaller_than_the_weight_and_reaches_the_target(m, n, decay, mode):
    W = weight(m, n, decay)
    matrix = analyzed(W, mode=mode)
    advice = advice_of(matrix)
    values = np.linalg.svdvals(W.numpy())
    left = np.sqrt(np.append(np.cumsum(values[::-1] ** 2)[::-1], 0.0) / np.sum(values**2))
    least = int(np.flatnonzero(left <= 0.5)[0])
    if advice.method is None:
        assert (advice.share, advice.rank) == (1.0, None)
        if mode == "exact":
            # Neither packed factors of that rank with their pivots nor both factors of the SVD are smaller.
            assert min(least * (m + n - least + 2), least * (m + n + 1)) >= m * n
        return
    assert advice.share * m * n == pytest.approx(numbers(advice.method, m, n, advice.rank))
    assert advice.share < 1
    assert advice.rank >= least
    best = matrix.recommendation
    assert (best.method, best.rank, best.numbers) == (advice.method, advice.rank, round(advice.share * m * n))
    # Nothing that is known to be enough is smaller.
    for item in matrix.needed:
        if item.error == 0.5 and item.rank is not None:
            assert best.numbers <= item.numbers == numbers(item.method, m, n, item.rank)
    if advice.method == "ldu":
        factors = ldu(W, pivoting=best.pivoting).truncate(best.rank).refit(W)
        assert np.linalg.norm(factors.residual(W)) <= 0.5 * np.linalg.norm(W) * (1 + 1e-9)
    else:
        # A sketch as wide as the matrix finds the best approximation, as all singular vectors do in fast mode.
        factors = ldu_lowrank(W, advice.rank, oversampling=24)
        assert np.linalg.norm(factors.residual(W)) <= 0.5 * np.linalg.norm(W) * (1 + 1e-9)


def numbers(method, m, n, rank):
    """Count what a file of the factors would have, entry by entry."""
    below, above = np.tril(np.ones((m, rank)), -1).sum(), np.triu(np.ones((rank, n))).sum()
    packed = below + above + 2 * rank  # with the rows and columns of the pivots
    return {"svd": rank * m + rank + rank * n, "ldu_core": packed + rank**2}.get(method, packed)


def test_texts():
    kept = advice_of(analyzed(weight(12, 12, 1.0)))
    assert (kept.short, kept.text) == ("keep", "keep the weight: no factors that are enough are smaller")
    low = advice_of(analyzed(weight(40, 30, 0.9)))
    assert (low.method, low.short) == ("ldu_lowrank", f"near-best, {low.rank}")
    assert low.text == (
        f"near-best LDU at rank {low.rank}, factors stored in float64: {low.share:.0%} of the weight's numbers"
    )
    diagonal = torch.diag(torch.tensor([8.0, 4.0, 1.0, 0.5, 0.2, 0.1, 0.1, 0.1], dtype=torch.float64))
    advice = advice_of(analyzed(diagonal, pivoting="complete"))
    assert (advice.method, advice.rank, advice.short) == ("ldu", 1, "LDU complete, 1")
    assert advice.text.endswith("27% of the weight's numbers")


def needed(method, rank, *, bound=False, m=60, n=60):
    count = None if rank is None else int(numbers(method, m, n, rank))
    pivoting = "partial" if method in {"ldu", "ldu_core"} else None
    return NeededRank(method, pivoting, method == "ldu", 0.5, rank, bound, count, 60)


@pytest.mark.parametrize(
    ("ranks", "method"),
    [
        ({"ldu": 9, "ldu_lowrank": 9, "ldu_core": 9, "svd": 9}, "ldu"),
        ({"ldu": 20, "ldu_lowrank": 9, "ldu_core": 12, "svd": 9}, "ldu_lowrank"),
        # Of the near-best LDU no rank is known, or one more: packing saves less than a rank takes.
        ({"ldu": None, "ldu_lowrank": None, "ldu_core": 12, "svd": None}, "ldu_core"),
        ({"ldu": 20, "ldu_lowrank": 4, "ldu_core": 5, "svd": 3}, "svd"),
        ({"ldu": 60, "ldu_lowrank": 59, "ldu_core": 60, "svd": 31}, None),
        ({"ldu": None, "ldu_lowrank": None, "ldu_core": None, "svd": None}, None),
    ],
)
def test_what_takes_the_fewest_numbers_is_recommended(ranks, method):
    figures = analyzed(weight(60, 60, 0.9), pivoting="partial").at("ldu", 4, "partial").diagnostics
    best = recommend([needed(name, rank) for name, rank in ranks.items()], [figures], 0.5)
    assert best.method == method
    assert best.rank == (None if method is None else ranks[method])
    assert best.numbers == (3600 if method is None else numbers(method, 60, 60, best.rank))


def test_a_bound_is_said_to_be_one():
    matrix = analyzed(weight(60, 60, 0.7), mode="cheap")
    assert [item.bound for item in matrix.needed if item.method == "svd"] == [True]
    found = [needed("ldu", None), needed("ldu_lowrank", 4), needed("ldu_core", 5), needed("svd", 3, bound=True)]
    best = recommend(found, [matrix.at("ldu", 4, "partial").diagnostics], 0.5)
    advice = advice_of(dataclasses.replace(matrix, needed=found, recommendation=best))
    assert advice.short == "SVD, ≤ 3"
    assert advice.text == ("SVD at rank at most 3, factors stored in float64: at most 10% of the weight's numbers")
    assert best.reason.endswith(
        "4 by the near-best LDU and 3 or less by the SVD; at rank 4 partial pivoting with a "
        f"refitted diagonal leaves {matrix.at('ldu', 4, 'partial').diagnostics.refit_frobenius_error:.3g}"
    )


def test_the_verdict_counts_and_sums():
    matrices = [analyzed(weight(size, size, decay)) for size, decay in ((40, 0.5), (12, 1.0))]
    sentence = verdict(matrices, 0.5)
    assert "1 of 2 matrices get smaller" in sentence
    share = advice_of(matrices[0]).share
    assert f"all together to {(share * 1600 + 144) / 1744:.0%}: 1 by near-best LDU." in sentence
    assert "keep the weights" in verdict([matrices[1]], 0.5)


def test_ranks_that_were_not_looked_at_are_not_said_to_save_nothing():
    W = weight(60, 60, 1.0)
    W[:, 30:] *= 0.1  # half of the values are enough, which cheap mode does not look at
    matrix = analyzed(W, mode="cheap")
    advice = advice_of(matrix)
    assert (advice.method, advice.share, advice.short) == (None, 1.0, "keep; none up to 4")
    assert "up to rank 4 nothing is known to be enough" in advice.text
    assert "as far as is known. For 1 of 1 no rank that was looked at is known to be enough." in verdict([matrix], 0.5)
    both = verdict([matrix, analyzed(weight(60, 60, 0.3), mode="cheap")], 0.5)
    assert "1 of 2 matrices get smaller" in both
    assert both.endswith("LDU. For 1 of 2 no rank that was looked at is known to be enough.")


def test_the_first_headline_and_the_first_columns_answer_the_question():
    from lowrank_ldu.analysis import headlines
    from lowrank_ldu.analysis.report.columns import columns

    analysis = analyze({"a.weight": weight(40, 30, 0.9), "b.weight": weight(30, 30, 1.0)}, ranks=4, threads=1)
    matrices = [matrix for _, matrix in analysis.matrices]
    assert headlines(analysis)[:2] == [verdict(matrices, 0.5), by_method(matrices, 0.5)]
    listed = columns(analysis.options, 4)
    of_target = [f"{name} for 0.5" for name in ("LDU", "near-best", "core", "SVD")]
    assert [column.label for column in listed[:6]] == ["recommended", "size left", *of_target]
    shown = [column.cell(matrices[0]).text for column in listed[2:6]]
    svd = next(item for item in matrices[0].needed if item.method == "svd" and item.error == 0.5)
    assert shown == [
        "> 4",
        f"{svd.rank} (\N{MINUS SIGN}{1 - svd.rank * (72 - svd.rank) / 1200:.0%})",
        "> 4",
        f"{svd.rank} (\N{MINUS SIGN}{1 - svd.rank * 71 / 1200:.0%})",
    ]


def test_what_was_not_looked_at_is_not_said_to_be_all_that_can_be_saved():
    """At rank 8 of a flat spectrum nothing is known of an error of a half, which larger ranks have."""
    W = weight(60, 60, 0.97)
    fast, exact = (by_method([analyzed(W, mode=mode, ranks=(8,))], 0.5) for mode in ("cheap", "exact"))
    assert "near-best LDU at most 100% (at least 0)" in fast
    assert "SVD at most" in fast
    # The near-best LDU's rank is one that is enough; the SVD's is the smallest.
    assert "SVD at most" not in exact


def test_each_method_alone_is_summed_over_all_matrices():
    matrices = [analyzed(weight(size, size, decay)) for size, decay in ((40, 0.5), (12, 1.0))]
    sentence = by_method(matrices, 0.5)
    low = next(item for item in matrices[0].needed if item.method == "ldu_lowrank")
    left = (numbers("ldu_lowrank", 40, 40, low.rank) + 144) / 1744
    assert f"near-best LDU {left:.0%} (1), LDU core" in sentence
    assert "of 2 matrices" in sentence
