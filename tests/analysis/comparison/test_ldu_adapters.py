"""LoLDU adapters as the tuned side: their updates are those of the merged model, or are refused with the reason."""

import copy
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D
from typer.testing import CliRunner

from lowrank_ldu.adapters import load_adapter, open_updates, save_adapter
from lowrank_ldu.analysis import analyze, compare, comparison_headlines, write_comparison
from lowrank_ldu.checkpoints import open_checkpoint
from lowrank_ldu.checkpoints.adapter_folder import is_adapter_folder
from lowrank_ldu.cli.app import app
from lowrank_ldu.errors import AdapterError, CheckpointError, JournalError, NothingToCompareError, OptionError
from lowrank_ldu.nn import inject, lowrank_layers, unload
from lowrank_ldu.peft import LolduConfig

OPTIONS = {"ranks": (3,), "pivoting": ("partial", "complete"), "threads": 1}
TARGETS = ["embed", "first", "second", "conv"]


class Mixed(nn.Module):
    """Every kind of layer, a head that is trained whole, and a layer that nobody trains."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 12)
        self.first = nn.Linear(12, 16)
        self.second = nn.Linear(16, 12)
        self.conv = nn.Conv2d(2, 6, 3)
        self.head = nn.Linear(6, 3)
        self.idle = nn.Linear(6, 6)


def saved_base(folder, model):
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def train(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for _, layer in lowrank_layers(model):
            layer.offset.normal_()


def native_adapter(model, folder, targets=TARGETS, **options):
    model = copy.deepcopy(model)
    inject(model, targets, **{"rank": 5, "pivoting": "complete", **options})
    train(model)
    save_adapter(model, folder)
    return folder


def peft_adapter(model, folder, **options):
    config = LolduConfig(r=5, target_modules=TARGETS, init_weights=False, **options)
    get_peft_model(copy.deepcopy(model), config).save_pretrained(folder)
    return folder


def merged(model, folder):
    model = copy.deepcopy(model)
    load_adapter(model, folder)
    unload(model)
    return model.state_dict()


def assert_is_update_of_merged(found, base, state, count):
    expected = compare(base, state, **OPTIONS)
    assert [tensor.name for tensor, _ in found.matrices] == [tensor.name for tensor, _ in expected.matrices]
    assert len(found.matrices) == count
    # A merged weight is rounded to float32, an update is not: updates are about as large as their weights here, and
    # the sums of thousands of squares differ by less than 1e-5 of them.
    for (_, one), (_, other) in zip(found.matrices, expected.matrices, strict=True):
        assert one.update_norm == pytest.approx(other.update_norm, rel=1e-5)
        assert one.base_norm == other.base_norm
    assert found.figures["explained"].tolist() == pytest.approx(expected.figures["explained"].tolist(), abs=1e-4)
    assert found.updates


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"basis": "svd"},
        {"core": "dense", "parametrization": "gram"},
        {"init": "normal_zmean_zstd", "pivoting": "partial"},
    ],
    ids=str,
)
def test_updates_of_a_saved_adapter_are_those_of_the_merged_model(tmp_path, options):
    model = Mixed()
    base, folder = saved_base(tmp_path / "base", model), native_adapter(model, tmp_path / "adapter", **options)
    found = compare(base, open_updates(folder), **OPTIONS)
    assert_is_update_of_merged(found, base, merged(model, folder), len(TARGETS))
    assert {tensor.name for tensor in found.unchanged} >= {"head.weight", "idle.weight"}
    # The diagonal of the base's own terms is what was trained.
    if not options:
        for _, matrix in found.matrices:
            assert matrix.ldu["complete"].explained[matrix.full_rank] == pytest.approx(1.0, abs=1e-6)
    assert found.results[0].tuned_dtype.startswith("LoLDU of rank") or found.results[0].tuned_dtype == ""


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_updates_of_pefts_adapter_are_those_of_the_merged_model(tmp_path, prefix):
    model = Mixed()
    state = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
    folder = peft_adapter(model, tmp_path / "adapter", modules_to_save=["head"])
    found = compare(state, open_updates(folder), **OPTIONS)
    expected = {f"{prefix}{name}": tensor for name, tensor in merged(model, folder).items()}
    assert_is_update_of_merged(found, state, expected, len(TARGETS))
    assert found.prefixes.base == prefix
    (head,) = (tensor for tensor in found.results if tensor.name == f"{prefix}head.weight")
    assert head.status == "not compared"
    assert "'head.weight', which is not measured" in head.reason
    write_comparison(found, tmp_path)
    assert "tuned (adapter)" in (tmp_path / "compare.html").read_text(encoding="utf-8")


class Fused(nn.Module):
    """GPT-2's names and layout: queries, keys and values in one matrix, stored as (in, out)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.ModuleDict(
            {
                "attn": nn.ModuleDict({"c_attn": Conv1D(24, 8), "c_proj": Conv1D(8, 8)}),
                "mlp": nn.ModuleDict({"c_fc": Conv1D(32, 8), "c_proj": Conv1D(8, 32)}),
            }
        )
        self.h = nn.ModuleList([layer])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_updates_of_fused_weights_are_taken_apart(tmp_path, dtype):
    model = Fused().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    base = saved_base(tmp_path / "base", model)
    folder = native_adapter(model, tmp_path / "adapter", ["h.0.attn.c_attn", "h.0.mlp.c_fc"])
    found = compare(base, open_updates(folder), **OPTIONS)
    names = [f"h.0.attn.c_attn.weight[{part}]" for part in "qkv"] + ["h.0.mlp.c_fc.weight"]
    assert [tensor.name for tensor, _ in found.matrices] == names
    with open_updates(folder) as updates:
        whole = updates.update_of("h.0.attn.c_attn", model.h[0].attn.c_attn.weight.T).matrix
    if dtype is torch.float32:
        assert_is_update_of_merged(found, base, merged(model, folder), len(names))
    for place, (_, matrix) in enumerate(found.matrices[:3]):
        rows = whole[8 * place : 8 * place + 8].double()
        assert matrix.update_norm == pytest.approx(float(rows.norm()), rel=1e-6)


def test_a_layer_in_several_places_is_updated_in_each(tmp_path):
    model = nn.ModuleDict({"one": nn.Linear(6, 5, bias=False)})
    model["two"] = model["one"]
    folder = native_adapter(model, tmp_path / "adapter", ["one", "two"])
    weight = model["one"].weight.detach()
    found = compare({"one.weight": weight, "two.weight": weight.clone()}, open_updates(folder), **OPTIONS)
    norms = [matrix.update_norm for _, matrix in found.matrices]
    assert len(norms) == 2
    assert norms[0] == norms[1] > 0


def test_another_base_is_refused_layer_by_layer(tmp_path):
    model = Mixed()
    folder = native_adapter(model, tmp_path / "adapter")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["first.weight"] += 0.01
    state["second.weight"] = torch.randn(16, 12)
    found = compare(state, open_updates(folder), **OPTIONS)
    reasons = {tensor.name: tensor.reason for tensor in found.others}
    assert "the weight is not the one that the adapter was trained on" in reasons["first.weight"]
    assert "its shape is 16x12 in the base and 12x16 in the tuned checkpoint" in reasons["second.weight"]
    assert [tensor.name for tensor, _ in found.matrices] == ["embed.weight", "conv.weight"]


def test_another_base_is_accepted_and_said_so(tmp_path):
    model = Mixed()
    folder, journal = native_adapter(model, tmp_path / "adapter"), tmp_path / "journal"
    rounded = copy.deepcopy(model).bfloat16()
    base = saved_base(tmp_path / "base", rounded)
    with pytest.raises(NothingToCompareError) as refused:
        compare(base, open_updates(folder), journal=journal, **OPTIONS)
    assert str(refused.value).count("; accepted: ") == 1
    assert str(refused.value).endswith("(--accept-other-base) for a rounded copy of it")
    # What was refused is not finished.
    accepting = open_updates(folder, accept_other_base=True)
    found = compare(base, accepting, journal=journal, resume=True, **OPTIONS)
    assert [tensor.name.split(".")[0] for tensor, _ in found.matrices] == sorted(TARGETS)
    with pytest.warns(UserWarning, match="is not the one that the adapter was trained on"):
        load_adapter(rounded, folder, accept_other_base=True)
    for tensor, matrix in found.matrices:
        assert tensor.reason.startswith("the weight is not the one that the adapter was trained on: it differs, by 0.")
        layer = dict(lowrank_layers(rounded))[tensor.name.split(".")[0]]
        assert matrix.update_norm == pytest.approx(float(layer.delta_weight().detach().norm()), rel=1e-5)
    (sentence,) = (each for each in comparison_headlines(found) if "which was accepted" in each)
    assert sentence.startswith("4 updates are of weights other than those of training")
    assert f"The first is conv.weight: {found.matrices[0][0].reason}." in sentence
    # A strict comparison does not go on from what was accepted.
    with pytest.raises(JournalError, match=r"weight' for a base that is not the one.*--accept-other-base"):
        compare(base, open_updates(folder), journal=journal, resume=True, **OPTIONS)
    assert found.tensors["reason"].notna().sum() >= len(TARGETS)
    # The base of training deviates in nothing.
    own = compare(model, open_updates(folder, accept_other_base=True), **OPTIONS)
    assert all(tensor.reason is None for tensor, _ in own.matrices)
    assert not any("accepted" in headline for headline in comparison_headlines(own))


@pytest.mark.parametrize("adapter", [native_adapter, peft_adapter])
def test_layers_that_the_base_lacks_are_listed(tmp_path, adapter):
    model = Mixed()
    folder = adapter(model, tmp_path / "adapter")
    state = model.state_dict()
    del state["conv.weight"]
    found = compare(state, open_updates(folder), **OPTIONS)
    (missing,) = (tensor for tensor in found.results if tensor.status == "only in the tuned checkpoint")
    assert missing.name == "conv.weight"
    # PEFT's files say nothing of shapes.
    assert missing.tuned_shape == ((6, 18) if adapter is native_adapter else None)
    with pytest.raises(NothingToCompareError, match="only in the base"):
        compare({"w": torch.eye(4)}, open_updates(folder), **OPTIONS)


def test_folders_are_told_apart(tmp_path):
    model = Mixed()
    base, native = saved_base(tmp_path / "base", model), native_adapter(model, tmp_path / "native")
    peft = peft_adapter(model, tmp_path / "peft")
    assert is_adapter_folder(native)
    assert is_adapter_folder(str(peft))
    for other in (base, base / "model.safetensors", tmp_path / "none", "a\0b", model, {}):
        assert not is_adapter_folder(other)
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"a": torch.ones(2)}, tmp_path / "lora" / "adapter_model.safetensors")
    assert not is_adapter_folder(tmp_path / "lora")
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(native / "adapter.json", half)
    assert is_adapter_folder(half)
    with pytest.raises(AdapterError, match=r"adapter\.safetensors"):
        open_updates(half)
    # A model with an adapter beside it is a model.
    save_file(model.state_dict(), native / "model.safetensors")
    assert not is_adapter_folder(native)


def test_a_path_is_refused_with_what_opens_it_and_so_is_an_adapter_as_base(tmp_path):
    model = Mixed()
    folder = native_adapter(model, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"accepted: lowrank_ldu\.adapters\.open_updates"):
        compare(model, folder, **OPTIONS)
    for stored in (folder, peft_adapter(model, tmp_path / "peft")):
        with pytest.raises(CheckpointError, match="holds a LoLDU adapter, .*; accepted: this folder as TUNED"):
            analyze(stored, **OPTIONS)
    for base in (folder, open_updates(folder)):
        with pytest.raises(CheckpointError, match="given as the base"):
            compare(base, model, **OPTIONS)
    with (
        open_updates(folder) as updates,
        pytest.raises(OptionError, match="updates of a LoLDU adapter, which"),
    ):
        compare(folder, updates, engine=SimpleNamespace(executor=None), **OPTIONS)
    with open_updates(folder) as updates, pytest.raises(CheckpointError, match=r"accepted: update_of"):
        updates.load("first")
    with pytest.raises(CheckpointError, match="is closed"):
        updates.update_of("first", model.first.weight)
    (folder / "adapter.safetensors").write_bytes(b"no tensors")
    with pytest.raises(AdapterError, match="not a safetensors file"):
        open_updates(folder)


def test_a_journal_belongs_to_both_files_of_the_adapter(tmp_path):
    model = Mixed()
    base, folder = saved_base(tmp_path / "base", model), native_adapter(model, tmp_path / "adapter")
    journal = tmp_path / "journal"
    first = compare(base, open_updates(folder), journal=journal, **OPTIONS)
    again = compare(base, open_updates(folder), journal=journal, resume=True, **OPTIONS)
    assert again.figures.equals(first.figures)
    (folder / "adapter.json").touch()
    with pytest.raises(JournalError, match=r"adapter\.json has been changed since"):
        compare(base, open_updates(folder), journal=journal, resume=True, **OPTIONS)


def test_the_command_takes_the_folder(tmp_path):
    model = Mixed()
    base, folder = saved_base(tmp_path / "base", model), native_adapter(model, tmp_path / "adapter")
    arguments = ["compare", str(base), str(folder), "--rank", "3", "--threads", "1", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "4 matrices were changed" in result.stdout
    assert "The tuned side is an adapter" in result.stdout
    content = json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))
    assert content["updates"] is True
    refused = CliRunner().invoke(app, ["compare", str(folder), str(base), "--out", str(tmp_path / "other")])
    assert refused.exit_code == 2
    assert "given as the base" in refused.stderr
    assert load_file(folder / "adapter.safetensors")
    with open_checkpoint(folder) as stored:  # the numbers of the adapter, as before
        assert not stored.holds_updates


def test_the_command_takes_a_rounded_base_and_says_so(tmp_path):
    model = Mixed()
    base = saved_base(tmp_path / "base", copy.deepcopy(model).half())
    folder = native_adapter(model, tmp_path / "adapter")

    def run(tuned, *options):
        command = ["compare", str(base), str(tuned), "--rank", "3", "--threads", "1", "--out", str(tmp_path / "out")]
        return CliRunner().invoke(app, [*command, *options])

    assert "(--accept-other-base) for a rounded copy of it" in run(folder).stderr
    accepted = run(folder, "--accept-other-base")
    assert accepted.exit_code == 0, accepted.output
    assert "4 updates are of weights other than those of training" in " ".join(accepted.stdout.split())
    dask = CliRunner().invoke(app, ["compare", str(base), str(folder), "--engine", "dask", "--scheduler", "tcp://a:1"])
    assert dask.exit_code == 2
    assert "whose updates workers cannot make; accepted: --engine local" in dask.stderr
    for option in (["--accept-other-base"], ["--basis", "basis.safetensors"]):
        refused = run(base, *option)
        assert refused.exit_code == 2
        assert f"{option[0]} is given, and" in refused.stderr
        assert "accepted: with one as TUNED" in refused.stderr
