"""The claims of the mathematics on real weights: all-MiniLM-L6-v2."""

import pytest
import torch
from minilm import checkpoint
from safetensors import safe_open

from lowrank_ldu import diagnose, ldu, svd
from lowrank_ldu.decomposition import PIVOTING


@pytest.fixture(scope="module")
def weights():
    with safe_open(checkpoint(), "pt") as file:
        return {
            name: file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118 (not a mapping)
            if name.startswith("encoder.layer.") and len(file.get_slice(name).get_shape()) == 2
        }


@pytest.mark.parametrize("pivoting", PIVOTING)
def test_every_matrix_is_exact_at_full_rank(weights, pivoting):
    for name, W in weights.items():
        error = torch.linalg.norm(ldu(W, pivoting=pivoting).residual(W)) / torch.linalg.norm(W)
        # k roundings of float32 and a growth factor of up to about 4.
        assert error < 1e-5, name


def test_truncated_equals_lapacks_full_factorization(weights):
    for name, W in weights.items():
        P, L, R = torch.linalg.lu(W.double())
        z = torch.diagonal(R)
        factors = ldu(W, 64)
        for ours, reference in [
            (factors.left, P @ L[:, :64]),
            (factors.diagonal, z[:64]),
            (factors.right, (R / z[:, None])[:64]),
        ]:
            assert torch.linalg.norm(ours - reference) <= 1e-5 * torch.linalg.norm(reference), name


def test_float32_figures_agree_with_float64(weights):
    for name, W in list(weights.items())[:4]:
        single = diagnose(W, ldu(W), [64])[0]
        double = diagnose(W.double(), ldu(W.double()), [64])[0]
        fields = ("frobenius_error", "refit_frobenius_error", "svd_frobenius_error", "growth_factor", "condition_left")
        for field in fields:
            assert getattr(single, field) == pytest.approx(getattr(double, field), rel=1e-3), (name, field)


def test_leading_terms_are_worse_than_nothing_and_refit_mends_little(weights):
    """What the paper calls the essential structure: at 64 of 384 the leading terms overshoot in every matrix."""
    for name, W in weights.items():
        values = svd(W).diagonal
        partial = diagnose(W, ldu(W, 64), singular_values=values)[0]
        complete = diagnose(W, ldu(W, 64, pivoting="complete"), singular_values=values)[0]
        assert 1.0 < complete.frobenius_error < partial.frobenius_error, name
        assert partial.svd_frobenius_error < partial.refit_frobenius_error < 1.0, name
        assert partial.orthogonality_left > 1.0, name
        assert complete.condition_gram < 1e4, name
