"""What a report recommends never takes more numbers than the weight."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowrank_ldu.analysis import SurveyOptions, analyze
from lowrank_ldu.analysis.measures.matrix import analyze_matrix
from lowrank_ldu.analysis.report.advice import advice_of, verdict


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
    if advice.choice == "keep":
        assert (advice.share, advice.rank) == (1.0, None)
        if mode == "exact":
            values = np.linalg.svdvals(W.numpy())
            left = np.sqrt(np.append(np.cumsum(values[::-1] ** 2)[::-1], 0.0) / np.sum(values**2))
            needed = int(np.flatnonzero(left <= 0.5)[0])
            # Two factors and a diagonal of that rank are no smaller.
            assert needed * (m + n + 1) >= m * n
        return
    assert advice.share == pytest.approx(advice.rank * (m + n + 1) / (m * n))
    assert advice.share < 1
    best = matrix.recommendation
    if advice.choice == "ldu":
        assert (advice.rank, best.pays) == (best.rank, True)
    else:
        u, s, v = np.linalg.svd(W.numpy())
        error = W.numpy() - (u[:, : advice.rank] * s[: advice.rank]) @ v[: advice.rank]
        assert np.linalg.norm(error) <= 0.5 * np.linalg.norm(W.numpy()) * (1 + 1e-9)


def test_texts():
    kept = advice_of(analyzed(weight(12, 12, 1.0)))
    assert kept.short == "keep"
    assert kept.text.startswith("keep the weight: the SVD needs 9, which saves nothing; LDU of the weight itself needs")
    low = advice_of(analyzed(weight(40, 30, 0.9)))
    assert low.short.startswith("SVD, ")
    assert "of the weight's numbers" in low.text
    diagonal = torch.diag(torch.tensor([8.0, 4.0, 1.0, 0.5, 0.2, 0.1, 0.1, 0.1], dtype=torch.float64))
    ldu = advice_of(analyzed(diagonal, pivoting="complete"))
    assert (ldu.choice, ldu.rank, ldu.short) == ("ldu", 1, "LDU complete, 1")
    assert ldu.text.endswith("27% of the weight's numbers")


def test_the_verdict_counts_and_sums():
    matrices = [analyzed(weight(40, 40, decay)) for decay in (0.5, 1.0)]
    sentence = verdict(matrices, 0.5)
    assert "1 of 2 matrices get smaller" in sentence
    share = advice_of(matrices[0]).share
    assert f"all together to {(share + 1) / 2:.0%}" in sentence
    assert "keep the weights" in verdict([matrices[1]], 0.5)


def test_ranks_that_were_not_looked_at_are_not_said_to_save_nothing():
    W = weight(60, 60, 1.0)
    W[:, 30:] *= 0.1  # half of the values are enough, which cheap mode does not look at
    matrix = analyzed(W, mode="cheap")
    advice = advice_of(matrix)
    assert (advice.choice, advice.share, advice.short) == ("keep", 1.0, "keep; none up to 4")
    assert "saves nothing" not in advice.text
    assert "no rank up to 4 is known to be enough" in advice.text
    assert "as far as is known. For 1 of 1 no rank that was looked at is known to be enough." in verdict([matrix], 0.5)
    both = verdict([matrix, analyzed(weight(60, 60, 0.3), mode="cheap")], 0.5)
    assert "1 of 2 matrices get smaller" in both
    assert both.endswith("alone. For 1 of 2 no rank that was looked at is known to be enough.")


def test_the_first_headline_and_the_first_columns_answer_the_question():
    from lowrank_ldu.analysis import headlines
    from lowrank_ldu.analysis.report.columns import columns

    analysis = analyze({"a.weight": weight(40, 30, 0.9), "b.weight": weight(30, 30, 1.0)}, ranks=4, threads=1)
    assert headlines(analysis)[0] == verdict([matrix for _, matrix in analysis.matrices], 0.5)
    labels = [column.label for column in columns(analysis.options, 4)]
    of_target = [f"{name} rank for 0.5" for name in ("SVD", "partial", "complete")]
    assert labels[:5] == ["recommended", "size left", *of_target]
