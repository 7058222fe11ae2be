"""An adapter on another machine: other pivot searches, other libraries, another rounding of the base."""

import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save
from torch import nn

from lowrank_ldu import ldu, ldu_at_pivots
from lowrank_ldu.adapters import AdapterError, load_adapter, read_adapter, save_adapter
from lowrank_ldu.decomposition.factorization import Factorization
from lowrank_ldu.nn import PARAMETRIZATIONS, AdapterOptions, LDULayer, inject, lowrank_layers
from lowrank_ldu.nn.base_identity import update_sketch
from lowrank_ldu.nn.basis import WEIGHT_BASES
from lowrank_ldu.nn.factors import Factors
from lowrank_ldu.nn.update import updated_matrix


def trained(layer, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.offset.copy_(torch.randn(layer.rank, generator=generator) * layer.z.abs().mean() * 0.1)
        layer.sigma.mul_(0.9)
    return layer


def linear(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


@given(st.integers(0, 2**32), st.sampled_from(["partial", "complete", "rook", "randomized"]))
def test_ties_do_not_matter_once_the_pivots_are_known(seed, pivoting):
    """A weight of -1, 0 and 1: libraries choose different pivots, and any of them rebuilds what another one chose."""
    generator = np.random.default_rng(seed)
    W = generator.integers(-1, 2, (24, 18)).astype(np.float32)
    found = ldu(W, 8, pivoting=pivoting)  # NumPy, OpenBLAS
    columns = None if found.column_permutation is None else found.column_permutation[:8].tolist()
    again = ldu_at_pivots(torch.from_numpy(W), found.permutation[:8].tolist(), columns, pivoting=pivoting)  # torch, MKL
    delta = generator.standard_normal(8).astype(np.float32)
    ours = (found.left * delta) @ found.right
    theirs = ((again.left * torch.from_numpy(delta)) @ again.right).numpy()
    # Entries of L and U grow as the elimination of small integers lets them; rounding goes with their products.
    size = np.abs(found.left) @ np.diag(np.abs(delta)) @ np.abs(found.right)
    growth = max(1.0, np.abs(found.left).max() ** 2)
    np.testing.assert_allclose(theirs, ours, atol=1e-5 * growth * max(1.0, size.max()), rtol=0)


def test_a_file_of_another_search_is_followed_not_searched_again(tmp_path):
    """Two equal rows: the search takes the first, the file says the second, and the second it is."""
    torch.manual_seed(0)
    weight = torch.randn(6, 5)
    weight[3] = weight[weight[:, 0].abs().argmax()]
    first = int(weight[:, 0].abs().argmax())
    other = ldu_at_pivots(weight, [3, *[row for row in range(6) if row not in {3, first}][:2]])
    model = nn.Sequential(linear(weight))
    model[0] = trained(LDULayer(model[0], factors=other))
    save_adapter(model, tmp_path)
    reloaded = nn.Sequential(linear(weight))
    load_adapter(reloaded, tmp_path)
    assert reloaded[0].adapter.pivot_rows[0] == 3
    torch.testing.assert_close(reloaded[0].delta_weight(), model[0].delta_weight(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rank", [8, 256])
def test_a_bfloat16_copy_of_the_base(tmp_path, rank):
    """Refused; accepted, the update is off by the rounding, where a new search would be off by all of it."""
    torch.manual_seed(1)
    weight = torch.randn(256, 256)
    model = nn.Sequential(linear(weight))
    inject(model, ["0"], rank)
    update = trained(model[0]).delta_weight()
    save_adapter(model, tmp_path)
    copy = nn.Sequential(linear(weight).bfloat16())
    with pytest.raises(
        AdapterError, match=r"layer '0': the weight .* differs, by 0\.\d+ % .*, and is bfloat16 for float32"
    ):
        load_adapter(copy, tmp_path)
    assert type(copy[0]) is nn.Linear
    with pytest.warns(UserWarning, match="layer '0': the weight is not the one"):
        load_adapter(copy, tmp_path, accept_other_base=True)
    change = relative(copy[0].delta_weight(), update)
    # bfloat16 rounds to 0.2 % on average, and a triangular solve of this size makes a few per cent of it at most.
    assert change < 0.05
    searched = nn.Sequential(linear(weight).bfloat16())
    inject(searched, ["0"], rank)
    with torch.no_grad():
        searched[0].offset.copy_(copy[0].offset)
        searched[0].sigma.copy_(copy[0].sigma)
    if rank == 256:
        assert not torch.equal(searched[0].adapter.pivot_rows, copy[0].adapter.pivot_rows)
        assert relative(searched[0].delta_weight(), update) > max(0.3, 10 * change)


def relative(ours, reference):
    return float((ours - reference).detach().norm() / reference.detach().norm())


def test_one_warning_names_the_worst_of_several_layers(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(24, 24) for _ in range(3)))
    copy = nn.Sequential(*(linear(layer.weight.detach()) for layer in model))
    with torch.no_grad():
        copy[0].weight.mul_(1.002)
        copy[1].weight.mul_(1.01)
    inject(model, ["0", "1", "2"], 6)
    for layer in model:
        trained(layer)
    save_adapter(model, tmp_path)
    with pytest.raises(UserWarning, match="layer '1'"):  # an error in these tests, and then the model is as it was
        load_adapter(copy, tmp_path, accept_other_base=True)
    assert {type(layer) for layer in copy} == {nn.Linear}
    assert all(parameter.requires_grad for parameter in copy.parameters())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        load_adapter(copy, tmp_path, accept_other_base=True)
    (warning,) = seen
    assert re.match(
        r"layer '1': the weight is not the one .* differs, by 1 % where it was sampled; the update .* about "
        r"0\.\d+ % off \(and 1 more layer, by no more than that\)",
        str(warning.message),
    )
    assert warning.filename == __file__


@given(st.integers(0, 2**32), st.sampled_from(["partial", "complete", "rook", "randomized"]), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_written_on_one_library_is_read_on_the_other(tmp_path_factory, seed, pivoting, repeat):
    """Factors of NumPy are saved, with its choice among tied pivots, and torch rebuilds the update that they give."""
    generator = np.random.default_rng(seed)
    W = generator.integers(-1, 2, (24, 18)).astype(np.float32)
    if repeat:
        W[12:] = W[:12]
    found = ldu(W, 6, pivoting=pivoting)
    assume(np.abs(found.diagonal).min() > 1e-3)
    columns = None if found.column_permutation is None else found.column_permutation[:6].tolist()
    weight = torch.from_numpy(W)
    there = ldu_at_pivots(weight, found.permutation[:6].tolist(), columns, pivoting=pivoting)
    folder = tmp_path_factory.mktemp("adapter")
    model = nn.Sequential(linear(weight))
    model[0] = trained(LDULayer(model[0], factors=there), seed % 2**31)
    save_adapter(model, folder)
    here = nn.Sequential(linear(weight))
    load_adapter(here, folder)
    delta = model[0].delta.detach().numpy().astype(np.float64)
    expected = (found.left.astype(np.float64) * delta) @ found.right
    error = np.linalg.norm(here[0].delta_weight().detach().numpy() - expected)
    # Six elimination steps on small integers, each of some units in the last place of its largest number.
    growth = np.abs(found.left).max() * np.abs(found.right).max()
    assert error <= 1e-5 * growth * max(np.linalg.norm(expected), 1e-6)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("basis", WEIGHT_BASES)
def test_every_basis_and_parametrization_is_reloaded(tmp_path, basis, parametrization):
    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(30, 20), nn.Conv2d(4, 6, 3), nn.Embedding(50, 16))

    first = model()
    for index, layer in enumerate(first):
        first[index] = trained(LDULayer(layer, 6, basis=basis, parametrization=parametrization, seed=3))
    save_adapter(first, tmp_path)
    second = model()
    load_adapter(second, tmp_path)
    for (_, ours), (_, theirs) in zip(lowrank_layers(first), lowrank_layers(second), strict=True):
        assert torch.equal(ours.offset, theirs.offset)
        assert ours.options == theirs.options
        update = ours.delta_weight().detach()
        torch.testing.assert_close(
            theirs.delta_weight().detach(), update, atol=1e-5 * float(update.abs().max()), rtol=1e-4
        )


def test_singular_vectors_that_come_out_turned_are_noticed(tmp_path, monkeypatch):
    """Equal singular values: any rotation of their vectors is a decomposition, and the diagonal is of one of them."""
    torch.manual_seed(0)
    orthogonal = torch.linalg.qr(torch.randn(16, 16))[0]
    model = nn.Sequential(linear(orthogonal))
    inject(model, ["0"], 4, basis="svd")
    trained(model[0])
    save_adapter(model, tmp_path)
    stored = read_adapter(tmp_path).layers["0"]
    stored.bind(orthogonal)
    turn = torch.linalg.qr(torch.randn(16, 16))[0]

    def elsewhere(_, rank):
        left, right = orthogonal @ turn, turn.T
        return Factorization(left[:, :rank], torch.ones(rank), right[:rank])

    monkeypatch.setattr("lowrank_ldu.nn.basis.svd", elsewhere)
    np.testing.assert_allclose(elsewhere(None, 16).reconstruct(), orthogonal, atol=1e-5)
    with pytest.raises(AdapterError, match="layer '0': the update comes out about .* % off: its singular vectors"):
        stored.bind(orthogonal)
    reloaded = nn.Sequential(linear(orthogonal))
    with pytest.raises(AdapterError, match="layer '0': .* its singular vectors come out different here"):
        load_adapter(reloaded, tmp_path)
    assert type(reloaded[0]) is nn.Linear
    with pytest.warns(UserWarning, match="layer '0': the update comes out about .* % off"):
        load_adapter(reloaded, tmp_path, accept_other_base=True)


@pytest.mark.parametrize("rank", [12, 40])
def test_terms_that_are_rounding_errors_are_refused(tmp_path, rank):
    """A base of rank 12: its first 12 terms can be rebuilt, and those beyond are different on every machine."""
    torch.manual_seed(0)
    weight = torch.randn(40, 12) @ torch.randn(12, 40)
    model = nn.Sequential(linear(weight))
    inject(model, ["0"], rank)
    trained(model[0])
    if rank == 12:
        save_adapter(model, tmp_path)
        load_adapter(nn.Sequential(linear(weight)), tmp_path)
        return
    with pytest.warns(UserWarning, match="saved, but load_adapter will refuse it: layer '0': the update comes out"):
        save_adapter(model, tmp_path)
    with pytest.raises(AdapterError, match="layer '0': .* does not determine all of its 40 terms"):
        load_adapter(nn.Sequential(linear(weight)), tmp_path)


def test_a_base_that_was_changed_under_its_adapter_is_noticed(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16))
    inject(model, ["0"], 8)
    trained(model[0])
    with torch.no_grad():
        model[0].base_layer.weight.add_(torch.randn(16, 16))
    save_adapter(model, tmp_path)
    with pytest.raises(AdapterError, match="layer '0': .* or it was changed after the adapter was put on it"):
        load_adapter(nn.Sequential(model[0].base_layer), tmp_path)


@given(st.integers(1, 30), st.integers(1, 30), st.data())
def test_sketches_estimate_the_relative_error_of_an_update(m, n, data):
    """Unbiased in the square: the mean of (a^T X b)^2 over random signs is the squared Frobenius norm of X."""
    r = data.draw(st.integers(1, min(m, n)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    factors = Factors(torch.randn(m, n, generator=generator), AdapterOptions(rank=r))
    delta = torch.randn(r, generator=generator)
    change = 1e-3 * torch.randn(r, generator=generator)
    first, second = update_sketch(factors, delta), update_sketch(factors, delta + change)
    # Linear in the update, so that its error's sketch is the difference of the two.
    torch.testing.assert_close(
        second - first, update_sketch(factors, change), atol=1e-4 * float(first.abs().max()) + 1e-6, rtol=0
    )
    size = float(updated_matrix(factors, delta).norm())
    estimate = float(first.square().mean().sqrt())
    # 32 probes, whose square has at most (excess) variance 8 |X|^4: within a factor of 4 but for one in many thousands.
    assert size / 4 < estimate < size * 4


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.value = nn.Linear(768, 768), nn.Linear(768, 768)


def test_size_for_query_and_value_of_twelve_layers_at_full_rank(tmp_path):
    model = nn.Sequential(*(Block() for _ in range(12)))
    lora = get_peft_model(model, LoraConfig(r=8, target_modules=["query", "value"]))
    lora_size = len(save(get_peft_model_state_dict(lora)))
    model = lora.unload()
    inject(model, ["query", "value"])
    assert all(layer.rank == 768 for _, layer in lowrank_layers(model))
    save_adapter(model, tmp_path)
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert size < 150_000
    assert lora_size > 8 * size


def test_numbers_of_half_precision_keep_their_start(tmp_path):
    """alpha / r that no half-precision number equals: the offset of sigma from its start is what is reloaded."""
    from lowrank_ldu.peft import LolduConfig

    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(16, 12)).bfloat16()
    model = get_peft_model(
        nn.Sequential(*base), LolduConfig(r=3, alpha=1.0, target_modules=["0"]), autocast_adapter_dtype=False
    )
    x = torch.randn(4, 16).bfloat16()
    expected = model(x)
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_adapter(base, tmp_path)
    assert torch.equal(base(x), expected)
