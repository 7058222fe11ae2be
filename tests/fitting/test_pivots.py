"""Pivots of a model: what they hold, ranks and budgets, and their file."""

import copy
import hashlib
import json
import os
import pickle

import numpy as np
import pytest
import torch
from fitted_models import batches, gradients, loss, model
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from lowrank_ldu.decomposition import ldu_at_pivots
from lowrank_ldu.errors import FittingError
from lowrank_ldu.fitting import SOURCES, LayerPivots, Pivots, choose_pivots, fit_basis
from lowrank_ldu.fitting.allocation import allocate
from lowrank_ldu.nn import inject, trainable_parameters
from lowrank_ldu.peft import LolduConfig


def weights(network):
    return {name: getattr(network, name).weight.detach() for name in ("first", "second", "third")}


def held(W, G, pivots):
    rows, columns = map(list, pivots)
    left, right = np.linalg.qr(W[:, columns].numpy())[0], np.linalg.qr(W[rows].T.numpy())[0]
    return float(((left.T @ G.numpy() @ right) ** 2).sum() / (G**2).sum())


@pytest.mark.parametrize("method", ["alternating", "separate"])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("core", "size"), [("dense", None), ("block", 2), ("diagonal", None)])
def test_every_choice_can_be_eliminated_with_and_trained(method, source, core, size):
    network, data = model(), batches()
    pivots = choose_pivots(
        network, data, loss, rank=4, core=core, block_size=size, source=source, method=method, batches=None
    )
    assert pivots.rank_pattern == {"first": 4, "second": 4, "third": 4}
    for name, W in weights(network).items():
        assert not bool(ldu_at_pivots(W, *pivots[name]).zero_pivots.any())
        assert 0 < pivots.held[name] <= 1 + 1e-6
    inject(network, "all-linear", pivots=pivots, core=core, block_size=size)
    assert trainable_parameters(network).adapter == pivots.numbers + 3
    loss(network, data[0]).backward()


@pytest.mark.parametrize("method", ["alternating", "separate"])
def test_the_energy_held_is_that_of_the_scaled_gradient(method):
    network, data = model(), batches()
    total = gradients(network, data, loss)
    pivots = choose_pivots(network, data, loss, rank=2, source="scaled_gradient", method=method)
    assert pivots.source == "scaled_gradient"
    for name, W in weights(network).items():
        G = total[f"{name}.weight"].double()
        scaled = G / G.square().mean(1, keepdim=True).sqrt() / G.square().mean(0, keepdim=True).sqrt()
        assert pivots.held[name] == pytest.approx(held(W, scaled.float().nan_to_num(0.0), pivots[name]), rel=1e-4)


def test_the_energy_held_is_that_of_the_gradient():
    network, data = model(), batches()
    total = gradients(network, data, loss)
    pivots = choose_pivots(network, data, loss, rank=2)
    separate = choose_pivots(network, data, loss, rank=2, method="separate")
    for name, W in weights(network).items():
        assert pivots.held[name] == pytest.approx(held(W, total[f"{name}.weight"], pivots[name]), rel=1e-4)
        assert separate.held[name] == pytest.approx(held(W, total[f"{name}.weight"], separate[name]), rel=1e-4)
    assert sum(pivots.held.values()) >= sum(separate.held.values())


def test_a_full_core_holds_everything():
    pivots = choose_pivots(model(), batches(), loss, targets=["first"], rank=6)
    assert pivots.held["first"] == pytest.approx(1, abs=1e-5)
    assert sorted(pivots["first"].rows) == sorted(pivots["first"].columns) == list(range(6))


@pytest.mark.parametrize(("core", "size"), [("dense", None), ("block", 2), ("diagonal", None)])
@pytest.mark.parametrize("limit", [None, 1, 200])
def test_a_budget_is_shared_out_whatever_the_memory(core, size, limit):
    network = model()
    options = {"core": core, "block_size": size, "budget": 30}
    pivots = choose_pivots(network, iter(batches()), loss, max_bytes=limit, **options)
    assert pivots == choose_pivots(network, batches(), loss, **options)
    assert pivots.numbers <= 30
    assert pivots.budget == 30
    again = choose_pivots(network, batches(), loss, rank=pivots.rank_pattern, core=core, block_size=size)
    assert again.rank_pattern == pivots.rank_pattern
    edited = pivots.rank_pattern | {"first": 2}
    assert choose_pivots(network, batches(), loss, rank=edited, core=core, block_size=size).rank_pattern == edited


curve = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=6).map(np.cumsum)


@given(curves=st.lists(curve, min_size=1, max_size=3), more=st.integers(0, 40), dense=st.booleans())
def test_an_allocation_is_within_one_step_of_the_best(curves, more, dense):
    cost = (lambda rank: rank * rank) if dense else (lambda rank: rank)
    named = {str(i): each.tolist() for i, each in enumerate(curves)}
    ranks = allocate(named, cost, len(curves) + more)
    spent = sum(map(cost, ranks.values()))
    assert spent <= len(curves) + more
    energy = sum(named[name][rank - 1] for name, rank in ranks.items())
    best = {0: 0.0}
    for each in curves:
        following = {}
        for numbers, value in best.items():
            for rank in range(1, len(each) + 1):
                total = numbers + cost(rank)
                if total <= len(curves) + more:
                    following[total] = max(following.get(total, 0.0), value + each[rank - 1])
        best = following
    largest_step = max(float(each[-1] - each[0]) for each in curves)
    assert energy >= max(best.values()) - largest_step - 1e-9


def test_scales_of_gradients_do_not_matter():
    network, data = model(), batches()
    expected = choose_pivots(network, data, loss, budget=20)
    for scale in (1e-25, 1e15):
        found = choose_pivots(network, data, lambda m, b, scale=scale: loss(m, b) * scale, budget=20)
        assert dict(found) == dict(expected)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "rank is None and budget is None; accepted: one of them, the other None$"),
        ({"rank": 2, "budget": 3}, ValueError, "rank is 2 and budget is 3; accepted: one of them"),
        ({"rank": 7}, ValueError, "layer 'first': rank is 7; accepted: an integer from 1 to 6$"),
        ({"rank": 0}, ValueError, "layer 'first': rank is 0; accepted: an integer from 1 to 6$"),
        ({"rank": "2"}, TypeError, "layer 'first': rank is '2'; accepted: an integer from 1 to 6$"),
        ({"rank": {"first": 2}}, ValueError, "rank: layer 'second' has no rank; accepted: a rank for each target"),
        ({"rank": {"x": 2}}, ValueError, "rank: layer 'x' is no target; accepted"),
        (
            {"rank": 3, "core": "block", "block_size": 2},
            ValueError,
            "layer 'first': block_size is 2 at rank 3; accepted",
        ),
        ({"rank": 2, "core": "block"}, TypeError, "block_size is None; accepted: an integer from 1 on"),
        ({"rank": 2, "block_size": 2}, ValueError, "block_size is 2 with core 'dense'; accepted: None$"),
        ({"rank": 2, "core": "full"}, ValueError, "core is 'full'; accepted: "),
        (
            {"rank": 2, "source": "inputs"},
            ValueError,
            "source is 'inputs'; accepted: 'gradient', 'scaled_gradient', 'activation'$",
        ),
        ({"rank": 2, "method": "svd"}, ValueError, "method is 'svd'; accepted: 'alternating', 'separate'$"),
        ({"budget": 2}, ValueError, "budget is 2; accepted: at least 3, the least rank for each of 3 layers, or fewer"),
        ({"budget": 1.5}, TypeError, "budget is 1.5; accepted: an integer from 1 on$"),
        (
            {"budget": 90, "core": "block", "block_size": 5},
            ValueError,
            "layer 'third': block_size is 5; accepted: up to 4$",
        ),
    ],
)
def test_ranks_and_budgets_that_are_none(options, error, message):
    with pytest.raises(error, match=message) as raised:
        choose_pivots(model(), batches(), loss, **options)
    assert len(str(raised.value).splitlines()) == 1


def test_a_weight_of_low_rank_is_named():
    network = model()
    with torch.no_grad():
        network.second.weight[:, 1:] = network.second.weight[:, :1]
    options = {"targets": ["second"], "batches": 1}
    with pytest.raises(
        ValueError, match="layer 'second': the weight has dependent rows .*; accepted: an integer from 1"
    ):
        choose_pivots(network, batches(), loss, rank=3, **options)
    assert choose_pivots(network, batches(), loss, budget=30, **options).rank_pattern == {"second": 1}
    network.second.weight.data.zero_()
    with pytest.raises(ValueError, match="layer 'second': the weight is zero or not finite; accepted"):
        choose_pivots(network, batches(), loss, rank=1, **options)


@pytest.fixture
def pivots():
    return choose_pivots(model(), batches(), loss, budget=20)


def test_a_record_cannot_be_changed(pivots):
    with pytest.raises(AttributeError):
        pivots.core = "diagonal"
    for mapping in (pivots.layers, pivots.held, pivots.shapes):
        with pytest.raises(TypeError):
            mapping["first"] = None
    pattern = pivots.rank_pattern
    pattern["first"] = 1000
    assert pivots.rank_pattern != pattern
    assert pickle.loads(pickle.dumps(pivots)) == pivots  # noqa: S301
    assert len({pivots, pickle.loads(pickle.dumps(pivots))}) == 1  # noqa: S301


def test_the_table_has_a_line_for_each_layer(pivots):
    lines = str(pivots).splitlines()
    assert len(lines) == 5
    assert lines[0].split() == ["layer", "m", "x", "n", "rank", "numbers", "energy", "held,", "%"]
    assert lines[1].split()[:4] == ["first", "6", "x", "6"]
    assert lines[-1] == f"3 layers, {pivots.numbers} numbers in dense cores, by gradient"


def test_a_file_holds_small_integers_and_everything(pivots, tmp_path):
    path = pivots.save(tmp_path / "task.safetensors")
    read = Pivots.load(str(path))
    assert read == pivots
    assert (dict(read), read.held, read.shapes) == (dict(pivots), pivots.held, pivots.shapes)
    assert (read.core, read.block_size, read.source, read.budget) == ("dense", None, "gradient", 20)
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.uint8}
    assert path.stat().st_size < 4096
    assert list(tmp_path.iterdir()) == [path]
    wide = Pivots(
        {"a": LayerPivots((300, 2), (70_000, 1))},
        {"a": (400, 80_000)},
        {"a": 0.5},
        "diagonal",
        None,
        "activation",
        None,
    )
    wide.save(path)
    assert Pivots.load(path) == wide
    assert {str(tensor.dtype) for tensor in load_file(path).values()} == {"torch.int16", "torch.int32"}


def test_a_digest_is_that_of_the_content(pivots):
    moved = Pivots(
        dict(reversed(pivots.layers.items())), pivots.shapes, pivots.held, "dense", None, "gradient", pivots.budget
    )
    assert moved.digest == pivots.digest
    other = Pivots(pivots.layers, pivots.shapes, pivots.held, "dense", None, "gradient", None)
    assert other.digest != pivots.digest


def rewritten(path, change):
    """The file with another record or other tensors, as somebody would write it who knows the format."""
    tensors = load_file(path)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    record = json.loads(json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]["record"])
    change(record, tensors)
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    save_file(tensors, path, {"record": text, "sha256": hashlib.sha256(text.encode()).hexdigest()})


def set_entry(*keys, value):
    def change(record, _):
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_entry("format", value="another"), "not a lowrank-ldu pivots file; accepted: format"),
        (set_entry("version", value=2), "format version 2; accepted: 1$"),
        (set_entry("version", value=True), "format version True; accepted: 1$"),
        (set_entry("core", value="full"), "core is 'full'; accepted"),
        (set_entry("core", value=[1]), r"core is \[1\]; accepted"),
        (set_entry("block_size", value=2), "block_size is 2 with core 'dense'; accepted: None"),
        (set_entry("source", value=None), "source is None; accepted"),
        (set_entry("budget", value="20"), "budget is '20'; accepted: an integer, or None"),
        (set_entry("extra", value=1), "the record has fields .*extra.*; accepted"),
        (set_entry("layers", value={}), "the record has no layers; accepted: at least one"),
        (set_entry("layers", "first", value=3), "layer 'first' is 3; accepted"),
        (set_entry("layers", "first", "shape", value=[6, -1]), "layer 'first' is .*; accepted: a shape"),
        (
            set_entry("layers", "first", "shape", value=[1, 6]),
            "layer 'first' has rows from 0 to .; accepted: different",
        ),
        (set_entry("layers", "first", "held", value="x"), "layer 'first' has held 'x'; accepted: a number"),
        (set_entry("tensors", value=None), "its record lists no tensors; accepted"),
        (set_entry("tensors", "first.rows", "sha256", value="0" * 64), "tensor 'first.rows' is not the one that was"),
        (set_entry("tensors", "first.rows", "shape", value=[2, 2]), "tensor 'first.rows' is uint8 .*; accepted: uint8"),
        (lambda record, tensors: tensors.pop("first.rows"), "tensor 'first.rows' is in the record alone; the file was"),
        (
            lambda record, tensors: tensors.__setitem__("other", torch.zeros(1)),
            "tensor 'other' is not in the record; the file was changed",
        ),
        (
            lambda record, tensors: tensors["first.rows"].__setitem__(0, 5),
            "tensor 'first.rows' is not the one that was written; the file was changed",
        ),
    ],
)
def test_changed_files_are_refused(change, message, pivots, tmp_path):
    path = pivots.save(tmp_path / "task.safetensors")
    rewritten(path, change)
    with pytest.raises(FittingError, match=message) as raised:
        Pivots.load(path)
    assert str(raised.value).startswith(str(path))
    assert len(str(raised.value).splitlines()) == 1


@given(data=st.data())
def test_no_damage_passes(data, pivots_file):
    content, expected, path = pivots_file
    if data.draw(st.booleans()):
        damaged = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        damaged = content[:place] + bytes([content[place] ^ (1 << data.draw(st.integers(0, 7)))]) + content[place + 1 :]
    path.write_bytes(damaged)
    try:
        found = Pivots.load(path)
    except FittingError:
        return
    # Only what is no part of the content, such as white space.
    assert found == expected


@pytest.fixture(scope="module")
def pivots_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("pivots") / "task.safetensors"
    found = choose_pivots(model(), batches(), loss, budget=20)
    found.save(path)
    return path.read_bytes(), found, path


def test_files_that_are_none(tmp_path):
    (tmp_path / "text").write_text("no header")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "json.safetensors", {"record": "{"})
    unsealed = {"record": '{"format": "lowrank-ldu pivots", "version": 1}'}
    save_file({"a": torch.zeros(1)}, tmp_path / "unsealed.safetensors", unsealed)
    for name, message in (
        ("none", "No such file or directory; accepted: a lowrank-ldu pivots file"),
        ("folder", "is no regular file; accepted"),
        ("pipe", "is no regular file; accepted"),
        ("text", "not a readable safetensors file"),
        ("other.safetensors", "a safetensors file without a record; accepted"),
        ("json.safetensors", "its record cannot be read"),
        ("unsealed.safetensors", "its record is not the one that was written; the file was changed"),
    ):
        with pytest.raises(FittingError, match=message):
            Pivots.load(tmp_path / name)
    with pytest.raises(TypeError, match="path is a int; accepted: a path"):
        Pivots.load(3)
    with pytest.raises(FittingError, match="null characters"):
        Pivots.load("a\0b")


def test_what_cannot_be_written_is_said(pivots, tmp_path):
    with pytest.raises(FittingError, match="cannot be written"):
        pivots.save(tmp_path / "none" / "task.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FittingError, match="cannot be written"):
        pivots.save(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_layers_of_a_module_list_keep_their_names():
    torch.manual_seed(0)
    network = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 4)])})

    def of_list(network, batch):
        return nn.functional.mse_loss(network["blocks"][1](network["blocks"][0](batch[0])), batch[1])

    assert list(choose_pivots(network, batches(), of_list, rank=2)) == ["blocks.0", "blocks.1"]


def test_a_model_in_float64_and_one_under_peft_are_taken_by_plain_names():
    torch.manual_seed(0)
    plain, inputs = (
        nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)).double(),
        [torch.randn(8, 12).double()],
    )

    def squares(model, batch):
        return model(batch).square().sum()

    with pytest.raises(TypeError, match="loss is 'ce'; accepted: a function of the model and a batch, or None"):
        choose_pivots(plain, inputs, "ce", rank=2)
    for source in SOURCES:
        assert set(choose_pivots(plain, inputs, squares, rank=2, source=source)) == {"0", "2"}
    adapted = get_peft_model(plain, LolduConfig(r=2, target_modules=["0"]))
    pivots = choose_pivots(adapted, inputs, squares, rank=2)
    assert set(pivots) == {"0", "2"}
    basis = fit_basis(adapted, inputs, squares, rank=2)
    assert set(basis.layers) == {"0", "2"}
    copied = copy.deepcopy(basis)
    assert copied.digest == basis.digest
    assert torch.equal(copied.factors("0").left, basis.factors("0").left)


@pytest.mark.parametrize(
    ("layer", "core", "message"),
    [
        (LayerPivots((0, 0), (1, 2)), ("dense", None), "layer 'a' has rows from 0 to 0; accepted: different indices"),
        (LayerPivots((0, 4), (1, 2)), ("dense", None), "layer 'a' has rows from 0 to 4; accepted: .* from 0 to 3"),
        (LayerPivots((0, 1), (1,)), ("dense", None), "has 2 rows and 1 columns; accepted: as many of each"),
        (LayerPivots((), ()), ("dense", None), "has 0 rows and 0 columns; accepted: .* at least one"),
        (LayerPivots((0, 1, 2), (1, 2, 3)), ("block", 2), "layer 'a': .* 3"),
        (LayerPivots((0,), (1,)), ("sparse", None), "core is 'sparse'; accepted: "),
    ],
)
def test_pivots_that_cannot_be_are_refused_when_they_are_made(layer, core, message):
    with pytest.raises(FittingError, match=message):
        Pivots({"a": layer}, {"a": (4, 4)}, {"a": 0.5}, *core, "gradient", None)
    with pytest.raises(FittingError, match="layer 'a' has no shape, or no energy held"):
        Pivots({"a": LayerPivots((0,), (0,))}, {}, {"a": 0.5}, "dense", None, "gradient", None)


@pytest.mark.parametrize(("core", "size"), [("dense", None), ("block", 2), ("diagonal", None)])
def test_an_adapter_has_the_core_that_its_pivots_were_chosen_for(core, size, tmp_path):
    pivots = choose_pivots(model(), batches(), loss, rank=4, core=core, block_size=size)
    path = pivots.save(tmp_path / "pivots.safetensors")
    network = model()
    inject(network, pivots=pivots)
    assert trainable_parameters(network).adapter == pivots.numbers + 3
    assert (network.first.options.core, network.first.options.block_size) == (core, size)
    config = LolduConfig(pivots_file=str(path))
    assert (config.core, config.block_size) == (core, size)
    adapted = get_peft_model(model(), config)
    trained = sum(each.numel() for each in adapted.parameters() if each.requires_grad)
    assert trained == pivots.numbers + 3
    # Another core that is asked for is taken.
    network = model()
    inject(network, pivots=pivots, core="diagonal")
    assert trainable_parameters(network).adapter == 3 * (4 + 1)
    assert LolduConfig(pivots_file=str(path), core="diagonal").core == "diagonal"


def test_a_shared_layer_has_its_first_name_whichever_matches():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 6)
            self.b = self.a

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    def squares(network, batch):
        return network(batch).square().sum()

    torch.manual_seed(0)
    network, inputs = Shared(), [torch.randn(8, 6)]
    pivots = choose_pivots(network, inputs, squares, targets=["b"], rank=2)
    assert list(pivots) == ["a"]
    assert inject(network, ["b"], pivots=pivots) == ["a", "b"]
    basis = fit_basis(Shared(), inputs, squares, targets=["b"], rank=2)
    assert list(basis.layers) == ["a"]


def test_modules_that_peft_trains_whole_are_no_targets():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    adapted = get_peft_model(plain, LoraConfig(r=1, target_modules=["0"], modules_to_save=["2"]))

    def squares(network, batch):
        return network(batch).square().sum()

    assert list(choose_pivots(adapted, [torch.randn(8, 6)], squares, rank=1)) == ["0"]
    with pytest.raises(TypeError, match="target '2' matches '2', which is a ModulesToSaveWrapper; accepted: nn.Linear"):
        choose_pivots(adapted, [torch.randn(8, 6)], squares, targets=["2"], rank=1)
