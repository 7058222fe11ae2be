"""What of an update a diagonal can express: known answers, a dense least-squares reference, and every odd tensor."""

import dataclasses
import weakref

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from least_squares import dense_share, gaussian_pair
from safetensors.torch import save_file
from weights import HOSTILE, weight

from lowrank_ldu import ldu
from lowrank_ldu.analysis import CompareOptions, SurveyOptions, compare_checkpoints
from lowrank_ldu.analysis.comparison.matrix import compare_matrices
from lowrank_ldu.errors import NothingToCompareError, OptionError

sizes = st.tuples(st.integers(2, 12), st.integers(2, 12), st.integers(0, 2**32 - 1))


OPTIONS = CompareOptions(ranks=(2,), threads=1)


def test_basis_of_singular_vectors_and_lora():
    base, update = gaussian_pair((8, 6, 3))
    left, _, right = np.linalg.svd(base.numpy(), full_matrices=False)
    coefficients = np.diag(left.T @ update.numpy() @ right.T)
    values = np.linalg.svd(update.numpy(), compute_uv=False)
    result = compare_matrices(base, update, OPTIONS)
    total = np.sum(update.numpy() ** 2)
    assert result.svd.explained == pytest.approx({r: np.sum(coefficients[:r] ** 2) / total for r in (2, 6)})
    assert result.spectrum.energy == pytest.approx({r: np.sum(values[:r] ** 2) / total for r in (1, 2, 6)})
    assert result.spectrum.largest == pytest.approx(values[0])
    assert result.lora_curve[0] == pytest.approx(result.spectrum.energy[1])
    assert result.relative_norm == pytest.approx(np.sqrt(total) / np.linalg.norm(base.numpy()))
    assert result.random(6) == 6 / 48
    assert result.least_lora == 14


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_numbers_at_the_ends_of_the_range(scale):
    base, update = gaussian_pair((6, 5, 1))
    expected = compare_matrices(base, update, OPTIONS)
    result = compare_matrices(base * scale, update * scale, OPTIONS)
    assert result.ldu["partial"].explained == pytest.approx(expected.ldu["partial"].explained)
    assert result.svd.explained == pytest.approx(expected.svd.explained)
    assert result.relative_norm == pytest.approx(expected.relative_norm)


def test_zero_base_has_figures_without_warnings():
    result = compare_matrices(torch.zeros(3, 4), torch.eye(4)[:3], OPTIONS)
    assert result.relative_norm == float("inf")
    assert result.ldu["partial"].explained[3] == pytest.approx(1)


COMPARED = {"tall", "half", "convolution", HOSTILE}


def test_every_tensor_has_a_comparison_or_a_reason(checkpoints):
    comparison = compare_checkpoints(*checkpoints, OPTIONS)
    assert {tensor.name for tensor, _ in comparison.matrices} == COMPARED
    others = {tensor.name: (tensor.status, tensor.reason) for tensor in comparison.others}
    assert others == {
        "unchanged": ("unchanged", "equal in every entry"),
        "bias": ("not compared", "1-D: no matrix to factor"),
        "reshaped": ("not compared", "its shape is 4x6 in the base and 6x4 in the tuned checkpoint"),
        "renamed": ("only in the base", "the tuned checkpoint has no such name; it has 'model.renamed'"),
        "model.renamed": ("only in the tuned checkpoint", "the base has no such name; it has 'renamed'"),
        "missing": ("only in the base", "the tuned checkpoint has no such name"),
        "extra": ("only in the tuned checkpoint", "the base has no such name"),
        "quantized": ("not compared", "in the tuned checkpoint: int8: integers are not factored"),
        "bad": ("not compared", others["bad"][1]),
        "overflow": ("not compared", others["overflow"][1]),
    }
    assert others["bad"][1].startswith("the tuned tensor holds 1 entries that are not finite, the first at (1, 2): nan")
    assert others["overflow"][1].startswith("the update holds 4 entries that are not finite")
    (half,) = (tensor for tensor in comparison.results if tensor.name == "half")
    assert (half.base_dtype, half.tuned_dtype) == ("bfloat16", "float32")
    assert [tensor.name for tensor in comparison.unchanged] == ["unchanged"]


def test_figures_are_those_of_the_two_matrices(checkpoints):
    comparison = compare_checkpoints(*checkpoints, OPTIONS)
    (result,) = (matrix for tensor, matrix in comparison.matrices if tensor.name == "convolution")
    base = weight(6, 3, 2, 2, seed=2, dtype=torch.float64).reshape(6, 12)
    update = 0.01 * weight(6, 3, 2, 2, seed=9).double().reshape(6, 12)
    assert result.relative_norm == pytest.approx(float(update.norm() / base.norm()))
    for pivoting in ("partial", "complete"):
        factors = ldu(base, pivoting=pivoting)
        expected = {rank: dense_share(update, factors, rank)[0] for rank in (2, 6)}
        assert result.ldu[pivoting].explained == pytest.approx(expected, rel=1e-6)


def test_no_option_is_ignored(checkpoints):
    with pytest.raises(TypeError, match=r"CompareOptions\(\) got an unexpected keyword argument 'mode'"):
        CompareOptions(mode="cheap")
    with pytest.raises(OptionError, match="options is a SurveyOptions; accepted: CompareOptions"):
        compare_checkpoints(*checkpoints, SurveyOptions(mode="cheap"))


def test_formats_may_differ(tmp_path):
    base, update = weight(6, 5), 0.1 * weight(6, 5, seed=1)
    torch.save({"a": base, "epoch": 1, "b": 2}, tmp_path / "base.pt")
    tuned = tmp_path / "tuned.safetensors"
    save_file({"a": base + update, "b": weight(3, 3)}, tuned)
    comparison = compare_checkpoints(tmp_path / "base.pt", tuned, OPTIONS)
    assert [tensor.name for tensor, _ in comparison.matrices] == ["a"]
    assert {tensor.name: tensor.reason for tensor in comparison.others} == {
        "epoch": "not a plain tensor",
        "b": "it is not a plain tensor (int) in the base",
    }
    turned = compare_checkpoints(tuned, tmp_path / "base.pt", OPTIONS)
    assert {tensor.name: tensor.reason for tensor in turned.others} == {
        "epoch": "not a plain tensor",
        "b": "it is not a plain tensor (int) in the tuned checkpoint",
    }


def test_names_select_and_exclude(checkpoints):
    options = dataclasses.replace(OPTIONS, select="^(tall|half|extra)$", exclude="alf")
    comparison = compare_checkpoints(*checkpoints, options)
    assert {tensor.name for tensor, _ in comparison.matrices} == {"tall"}
    reasons = {tensor.name: tensor.reason for tensor in comparison.others}
    assert reasons["half"] == "its name is excluded"
    assert reasons["extra"] == "the base has no such name"
    assert reasons["missing"] == "its name does not match the selection"


def test_the_same_checkpoint_twice_has_nothing_to_compare(checkpoints):
    with pytest.raises(NothingToCompareError, match=r"no matrix is in both and changed; 11 x unchanged"):
        compare_checkpoints(checkpoints[0], checkpoints[0], OPTIONS)


@pytest.mark.parametrize("threads", [1, 2])
def test_each_tensor_is_read_once_and_no_more_pairs_are_alive_than_threads(checkpoints, monkeypatch, threads):
    from lowrank_ldu.checkpoints.formats.safetensors_file import SafetensorsReader

    alive, most, read = weakref.WeakSet(), [], []
    load = SafetensorsReader.load

    def watched(reader, name):
        tensor = load(reader, name)
        alive.add(tensor)
        most.append(len(alive))
        read.append((reader.path, name))
        return tensor

    monkeypatch.setattr(SafetensorsReader, "load", watched)
    compare_checkpoints(*checkpoints, dataclasses.replace(OPTIONS, threads=threads))
    assert len(read) == len(set(read)) == 2 * (len(COMPARED) + 3)
    assert max(most) <= 2 * threads


def test_failures_are_reasons(checkpoints, monkeypatch):
    def fail(*_):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr("lowrank_ldu.analysis.comparison.work.compare_matrices", fail)
    with pytest.raises(NothingToCompareError, match="4 x not compared: error: did not converge"):
        compare_checkpoints(*checkpoints, OPTIONS)
