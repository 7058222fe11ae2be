"""Exports: names of the base, dtypes, files around the weights, and what is found out before they are whole."""

import copy
import json
import os
import warnings

import pytest
import torch
from half_precision import assert_as_near, references
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from lowrank_ldu.adapters import (
    AdapterError,
    export_delta,
    export_lora,
    export_merged,
    read_adapter,
    save_adapter,
)
from lowrank_ldu.adapters.exports import delta, lora, merged
from lowrank_ldu.checkpoints import CheckpointError, open_checkpoint
from lowrank_ldu.nn import LDULayer, inject, lowrank_layers
from lowrank_ldu.peft import LolduConfig


class Net(nn.Module):
    """Two parts whose tensors' names end alike."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        self.head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x):
        return self.head(self.backbone(x))


def adapted(model, layers, folder, **options):
    inject(model, layers, 4)
    with torch.no_grad():
        for _, layer in lowrank_layers(model):
            layer.offset.normal_(std=0.1)
    save_adapter(model, folder, **options)
    return {f"{name}.weight": layer.delta_weight().detach() for name, layer in lowrank_layers(model)}


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def export(tmp_path, base="base.safetensors", write=export_merged, **options):
    write(read_adapter(tmp_path / "adapter"), open_checkpoint(tmp_path / base), tmp_path / "out", **options)
    return {
        name: tensor for file in sorted((tmp_path / "out").glob("*.safe*s")) for name, tensor in load_file(file).items()
    }


# --- names ---


@pytest.mark.parametrize(
    ("rename", "layers", "keep"),
    [
        (lambda name: name, ["backbone.0", "head.2"], ""),
        (lambda name: f"model.net.{name}", ["backbone.0", "head.2"], ""),
        (lambda name: name.removeprefix("backbone."), ["backbone.0", "backbone.2"], "backbone"),
        # One prefix for another, in two places: only the samples can tell.
        (lambda name: name.replace("backbone.", "trunk.body.").replace("head.", "top."), ["backbone.0", "head.2"], ""),
    ],
    ids=["same", "longer", "shorter", "other"],
)
def test_one_prefix_maps_all_names(tmp_path, rename, layers, keep):
    model = Net()
    base = {name: tensor for name, tensor in state_of(model).items() if keep in name}
    save_file({rename(name): tensor for name, tensor in base.items()}, tmp_path / "base.safetensors")
    updates = adapted(model, layers, tmp_path / "adapter")
    written = export(tmp_path)
    assert set(written) == {rename(name) for name in base}
    for name, tensor in base.items():
        assert_as_near(written[rename(name)], tensor.double() + updates.get(name, 0), tensor, tensor)
        assert torch.equal(written[rename(name)], tensor) == (name not in updates)


def test_names_that_only_end_alike_are_not_written_over(tmp_path):
    model = Net()
    base = state_of(model.backbone)
    save_file(base, tmp_path / "base.safetensors")
    updates = adapted(model, ["backbone.2"], tmp_path / "adapter", modules_to_save=["head"])
    with pytest.warns(
        UserWarning, match=r"without the prefix 'backbone\.' .* \('head\..*', 4 tensors in all\) is written"
    ):
        written = export(tmp_path)
    assert all(torch.equal(written[name], base[name]) for name in ("0.weight", "0.bias", "2.bias"))
    weight = base["2.weight"]
    assert_as_near(written["2.weight"], weight.double() + updates["backbone.2.weight"], weight, weight)
    assert {name for name in written if name not in base} == {f"head.{name}" for name in model.head.state_dict()}


def test_a_module_that_would_fall_on_another_tensor_is_refused(tmp_path):
    """The adapted model has a module `0` beside its backbone, and the base of the backbone alone has another `0`."""

    class Collision(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
            self.add_module("0", nn.Linear(16, 16))
            self.add_module("1", nn.Linear(16, 16))

    model = Collision()
    save_file(state_of(model.backbone), tmp_path / "base.safetensors")
    adapted(model, ["backbone.1"], tmp_path / "adapter", modules_to_save=["0"])
    with pytest.raises(AdapterError, match=r"module tensor '0\..*has another tensor of its name"):
        export(tmp_path)


@pytest.mark.parametrize("same", [False, True])
def test_two_copies_of_a_model_are_told_by_their_numbers(tmp_path, same):
    model = Net()
    other = {name: tensor if same else tensor * 0.9 for name, tensor in state_of(model).items()}
    base = {f"model.{name}": tensor for name, tensor in state_of(model).items()}
    base |= {f"ema.{name}": tensor.clone() for name, tensor in other.items()}
    save_file(base, tmp_path / "base.safetensors")
    updates = adapted(model, ["head.0"], tmp_path / "adapter")
    if same:
        with pytest.raises(AdapterError, match="nothing tells which it is"):
            export(tmp_path)
        return
    written = export(tmp_path)
    assert [name for name in base if not torch.equal(written[name], base[name])] == ["model.head.0.weight"]
    weight = base["model.head.0.weight"]
    assert_as_near(written["model.head.0.weight"], weight.double() + updates["head.0.weight"], weight, weight)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    model = Net()
    base = state_of(model)
    (tmp_path / "base").mkdir()
    for shard in ("a.safetensors", "b.safetensors"):
        save_file(base, tmp_path / "base" / shard)
    index = {"weight_map": dict(zip(base, ["a.safetensors", "b.safetensors"] * 4, strict=True))}
    (tmp_path / "base" / "model.safetensors.index.json").write_text(json.dumps(index))
    adapted(model, ["head.0"], tmp_path / "adapter")
    with pytest.raises(
        CheckpointError, match=r"is in a\.safetensors and in b\.safetensors; accepted: each tensor once"
    ):
        export(tmp_path, "base")


def test_tied_tensors_of_a_plain_file_are_refused(tmp_path):
    """`save_model` writes one of two shared tensors, and the name of the other beside it."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
            self.second.weight = self.first.weight

    model = Tied()
    save_model(model, str(tmp_path / "base.safetensors"))
    kept = next(name for name in load_file(tmp_path / "base.safetensors") if name.endswith("weight"))
    adapted(model, [kept.removesuffix(".weight")], tmp_path / "adapter")
    with pytest.raises(AdapterError, match=rf"tensor '{kept}' is tied to '.*\.weight', as the base's file says"):
        export(tmp_path)


def test_a_lora_configuration_takes_no_other_layer(tmp_path):
    """PEFT's lists match the ends of names: "0" would stand for "head.0" as well."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    base = state_of(model)
    save_file(base, tmp_path / "base.safetensors")
    model[0] = LDULayer(model[0], rank=4)
    with torch.no_grad():
        model[0].offset.normal_(std=0.1)
    save_adapter(model, tmp_path / "adapter")
    export(tmp_path, write=export_lora)
    plain = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    plain.load_state_dict(base)
    same = copy.deepcopy(plain)
    loaded = PeftModel.from_pretrained(plain, tmp_path / "out").eval()
    assert [name for name, module in loaded.named_modules() if hasattr(module, "lora_A")] == ["base_model.model.0"]
    x = torch.randn(3, 8)
    assert_as_near(loaded(x), *references(model, same, x))


class Scaled(nn.Linear):
    """A linear layer with a forward of its own."""

    def forward(self, x):
        return 3 * super().forward(x)


class Subclassed(nn.Conv1d):
    """A convolution whose forward may do anything."""

    def forward(self, x):
        return super().forward(x)


OBSTACLES = {
    "scaled": (lambda: Scaled(8, 8), "Scaled with a forward of its own"),
    "grouped": (lambda: nn.Conv1d(8, 8, 3, padding=1, groups=2), "Conv1d with groups 2"),
    "dilated": (lambda: nn.Conv1d(8, 8, 3, padding=2, dilation=2), r"Conv1d with dilation \(2,\)"),
    "circular": (
        lambda: nn.Conv2d(1, 8, 3, padding=1, padding_mode="circular"),
        "Conv2d with padding_mode 'circular'",
    ),
    "subclassed": (lambda: Subclassed(8, 8, 3), "Subclassed with a forward of its own"),
}


@pytest.mark.parametrize("saved", ["native", "peft", "second"])
@pytest.mark.parametrize("case", OBSTACLES)
def test_a_pair_that_peft_would_use_otherwise_is_not_written(tmp_path, case, saved):
    """PEFT adds the pair's product to the output of whatever forward, and copies of a convolution its size alone."""
    make, message = OBSTACLES[case]
    model = nn.Sequential(make(), nn.Identity())
    save_file(state_of(model), tmp_path / "base.safetensors")
    if saved == "native":
        adapted(model, ["0"], tmp_path / "adapter")
    else:
        first, second = (LolduConfig(r=2, target_modules=["0"], init_weights=False) for _ in range(2))
        peft_model = get_peft_model(model, first)
        peft_model.add_adapter("second", second)
        peft_model.save_pretrained(tmp_path / "saved")
        (tmp_path / "saved" / ("second" if saved == "second" else "")).rename(tmp_path / "adapter")
    with pytest.raises(AdapterError, match=rf"layer '0' is a {message}, of which PEFT computes something else"):
        export(tmp_path, write=export_lora)
    assert not (tmp_path / "out").exists()
    assert set(export(tmp_path)) == {"0.weight", "0.bias"}


def test_a_convolution_with_a_stride_is_written_as_a_pair(tmp_path):
    """What PEFT's copy of a convolution has, too, is no obstacle."""
    model = nn.Sequential(nn.Conv1d(4, 8, 3, padding=1, stride=2), nn.Conv1d(8, 4, 1))
    base = state_of(model)
    save_file(base, tmp_path / "base.safetensors")
    adapted(model, ["0", "1"], tmp_path / "adapter")
    assert '"lora_obstacle"' not in (tmp_path / "adapter" / "adapter.json").read_text()
    export(tmp_path, write=export_lora)
    plain = nn.Sequential(nn.Conv1d(4, 8, 3, padding=1, stride=2), nn.Conv1d(8, 4, 1))
    plain.load_state_dict(base)
    same = copy.deepcopy(plain)
    x = torch.randn(2, 4, 9)
    assert_as_near(PeftModel.from_pretrained(plain, tmp_path / "out").eval()(x), *references(model, same, x))


# --- dtypes ---


def half_base(tmp_path):
    half = Net().bfloat16()
    save_file(state_of(half), tmp_path / "base.safetensors")
    model = Net()
    model.load_state_dict({name: tensor.float() for name, tensor in half.state_dict().items()})
    return model


def test_modules_are_written_in_the_dtype_of_the_base(tmp_path):
    model = half_base(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the base is a rounded copy
        adapted(model, ["backbone.0"], tmp_path / "adapter", modules_to_save=["head"])
        assert {tensor.dtype for tensor in export(tmp_path, accept_other_base=True).values()} == {torch.bfloat16}
        kept = export(tmp_path, accept_other_base=True, overwrite=True, keep_module_dtype=True)
    assert {name for name, tensor in kept.items() if tensor.dtype == torch.float32} == {
        f"head.{name}" for name in model.head.state_dict()
    }
    assert torch.equal(kept["head.0.weight"], model.head[0].weight)


def test_a_new_module_is_written_in_the_dtype_that_the_base_has(tmp_path):
    model = Net().half()
    save_file(
        {name: tensor for name, tensor in state_of(model).items() if "backbone" in name}, tmp_path / "base.safetensors"
    )
    model.head.float()
    adapted(model, ["backbone.0"], tmp_path / "adapter", modules_to_save=["head"])
    assert {tensor.dtype for tensor in export(tmp_path).values()} == {torch.float16}
    with torch.no_grad():
        model.head[0].weight[0, 0] = 1e5
    save_adapter(model, tmp_path / "adapter", modules_to_save=["head"])
    with pytest.raises(AdapterError, match=r"'head.0.weight' overflows float16, the base's; accepted: smaller numbers"):
        export(tmp_path, overwrite=True)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_quantized_copy_of_the_base_is_refused(tmp_path, dtype):
    model = Net()
    base = state_of(model)
    base["head.0.weight"] = base["head.0.weight"].to(dtype)
    save_file(base, tmp_path / "base.safetensors")
    adapted(model, ["backbone.0"], tmp_path / "adapter", modules_to_save=["head"])
    with pytest.raises(
        AdapterError, match=r"'head.0.weight' is float32, and .* in the base; accepted: .* not a quantized"
    ):
        export(tmp_path)
    adapted(Net(), ["head.0"], tmp_path / "adapter")
    for write in (export_merged, export_lora, export_delta):
        with pytest.raises(AdapterError, match="layer 'head.0'"):
            export(tmp_path, write=write, accept_other_base=True)
    assert not (tmp_path / "out").exists()


def test_shards_in_folders_below_the_index(tmp_path):
    """Which shards an index may name is one rule for analysis and exports."""
    model, base = Net(), tmp_path / "base"
    (base / "part").mkdir(parents=True)
    save_file(state_of(model), base / "part" / "a.safetensors")
    index = {"weight_map": dict.fromkeys(state_of(model), "part/a.safetensors")}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    adapted(model, ["head.0"], tmp_path / "adapter")
    export(tmp_path, "base")
    before, after = (load_file(folder / "part" / "a.safetensors") for folder in (base, tmp_path / "out"))
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["head.0.weight"]


# --- files ---


def test_what_is_copied_beside_the_weights(tmp_path):
    """Shards by their names, whatever those end in; folders of a model, and no weights in other formats."""
    model = Net()
    base = tmp_path / "base"
    (base / "1_Pooling").mkdir(parents=True)
    (base / ".cache").mkdir()
    (base / "onnx").mkdir()
    (base / "2_Dense").mkdir()
    (base / "earlier").mkdir()
    (base / "modules.json").write_text('[{"idx": 0, "path": ""}, {"idx": 2, "path": "2_Dense"}]')
    save_file(state_of(model), base / "weights.st")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(model.state_dict(), "weights.st")}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("tokenizer.json", "1_Pooling/config.json", "README.md", "2_Dense/model.safetensors"):
        (base / name).write_text("{}")
    for name in (
        "pytorch_model.bin",
        "onnx/model.onnx",
        "onnx/model.onnx_data",
        "earlier/adapter_config.json",
        "earlier/README.md",
        ".cache/x.json",
        "adapter_config.json",
    ):
        (base / name).write_text("not this")
    os.mkfifo(base / "pipe")
    (base / "nowhere").symlink_to(base / "missing")
    (base / "again").symlink_to(base)
    updates = adapted(model, ["head.0"], tmp_path / "adapter")
    export(tmp_path, "base")
    out = tmp_path / "out"
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
        "1_Pooling/config.json", "2_Dense/model.safetensors", "README.md", "model.safetensors.index.json",
        "modules.json", "tokenizer.json", "weights.st",
    ]  # fmt: skip
    written = load_file(out / "weights.st")
    weight = Net().head[0].weight.detach()
    assert_as_near(written["head.0.weight"], weight.double() + updates["head.0.weight"], weight, weight)
    assert json.loads((out / "model.safetensors.index.json").read_text())["metadata"]["total_size"] == sum(
        tensor.nbytes for tensor in written.values()
    )


def test_modules_beside_a_transformer_are_taken_from_the_adapter(tmp_path):
    """sentence-transformers saves them beside it, trained or not; a native adapter has no place for them."""
    base, model = tmp_path / "base", Net()
    for place in (base, tmp_path / "adapter"):
        (place / "2_Dense").mkdir(parents=True)
    save_file(state_of(model), base / "model.safetensors")
    (base / "modules.json").write_text('[{"idx": 0, "path": ""}, {"idx": 2, "path": "2_Dense"}]')
    (base / "2_Dense" / "model.safetensors").write_text("base")
    adapted(model, ["backbone.0"], tmp_path / "adapter")
    (tmp_path / "adapter" / "2_Dense" / "model.safetensors").write_text("trained")
    merged.export_merged(read_adapter(tmp_path / "adapter"), open_checkpoint(base), tmp_path / "out")
    assert (tmp_path / "out" / "2_Dense" / "model.safetensors").read_text() == "trained"
    model.new = nn.Linear(4, 4)
    save_adapter(model, tmp_path / "more", modules_to_save=["new"])
    with pytest.raises(AdapterError, match=r"'new.(weight|bias)' is not in .* folders of their own \(2_Dense\)"):
        export_merged(read_adapter(tmp_path / "more"), open_checkpoint(base), tmp_path / "second")


def test_modules_whose_names_others_end_with_are_no_lora_adapter(tmp_path):
    model = nn.ModuleDict({"h": nn.Linear(8, 8), "a": nn.ModuleDict({"h": nn.Linear(8, 8), "q": nn.Linear(8, 8)})})
    save_file(state_of(model), tmp_path / "base.safetensors")
    adapted(model, ["a.q"], tmp_path / "adapter", modules_to_save=["h"])
    with pytest.raises(AdapterError, match="module 'h' was trained whole, and PEFT would take 'a.h' for it, too"):
        export(tmp_path, write=export_lora)
    assert "h.weight" in export(tmp_path)


@pytest.mark.parametrize("left", ["tokenizer.json", "vocab.txt", "config.json", "modeling.py", "chat_template.jinja"])
def test_files_of_another_model_do_not_stay_beside_the_new_one(tmp_path, left):
    model, base = Net(), tmp_path / "base"
    base.mkdir()
    save_file(state_of(model), base / "model.safetensors")
    adapted(model, ["head.0"], tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    for name in (left, "notes.txt"):
        (tmp_path / "out" / name).write_text("{}")
    with pytest.raises(AdapterError, match=rf"holds {left}, which the base has not"):
        export(tmp_path, "base", overwrite=True)
    (base / left).write_text("{ }")
    export(tmp_path, "base", overwrite=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {left, "notes.txt", "model.safetensors"}
    assert (tmp_path / "out" / left).read_text() == "{ }"


@pytest.mark.parametrize("case", ["base", "base by a link", "adapter", "adapter by a link", "above", "link to a file"])
def test_what_is_read_is_never_written_over(tmp_path, case):
    base = tmp_path / "all" / "base"
    base.mkdir(parents=True)
    model = Net()
    save_file(state_of(model), base / "model.safetensors")
    adapted(model, ["head.0"], tmp_path / "adapter")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "model.safetensors").symlink_to(base / "model.safetensors")
    (tmp_path / "link").symlink_to(base)
    (tmp_path / "other").symlink_to(tmp_path / "adapter")
    source, target = {
        "base": (base, base),
        "base by a link": (base, tmp_path / "link"),
        "adapter": (base, tmp_path / "adapter"),
        "adapter by a link": (base, tmp_path / "other"),
        "above": (base, tmp_path / "all"),
        "link to a file": (tmp_path / "links", base),
    }[case]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for write in (export_merged, export_lora, export_delta):
        with pytest.raises(AdapterError, match=r"holds the (base model|adapter); accepted: another folder"):
            write(read_adapter(tmp_path / "adapter"), open_checkpoint(source), target, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_merged_model_may_lie_in_the_folder_of_its_base(tmp_path):
    model = Net()
    (tmp_path / "base").mkdir()
    save_file(state_of(model), tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text("{}")
    adapted(model, ["head.0"], tmp_path / "adapter")
    arguments = read_adapter(tmp_path / "adapter"), open_checkpoint(tmp_path / "base"), tmp_path / "base" / "merged"
    for overwrite in (False, True):
        export_merged(*arguments, overwrite=overwrite)
        assert sorted(path.name for path in (tmp_path / "base" / "merged").iterdir()) == [
            "config.json", "model.safetensors",
        ]  # fmt: skip


@pytest.mark.parametrize(
    "left", ["model.safetensors", "model.safetensors.index.json", "adapter_config.json", "old.bin"]
)
@pytest.mark.parametrize("write", [export_merged, export_lora, export_delta])
def test_weights_of_an_earlier_export_do_not_stay_beside_the_new(tmp_path, write, left):
    model = Net()
    save_file(state_of(model), tmp_path / "base.safetensors")
    adapted(model, ["head.0"], tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / left).write_text("old")
    if write is export_lora and left == "adapter_config.json":
        export(tmp_path, write=write, overwrite=True)
        return
    with pytest.raises(AdapterError, match=f"holds {left}, which would be loaded beside what is written"):
        export(tmp_path, write=write, overwrite=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [left]


# --- what is written is read again ---


def wrong_sum(weight, kind, updates):
    del kind, updates
    return weight.clone()


def wrong_pair(factors, delta):
    return factors.left.float() * (1.001 * delta * factors.scale), factors.right.float()


def wrong_update(factors, delta):
    left, right = wrong_pair(factors, delta)
    return left @ right


@pytest.mark.parametrize(
    ("write", "module", "name", "wrong"),
    [
        (export_merged, merged, "merged_weight", wrong_sum),
        (export_merged, merged, "updated_matrix", wrong_update),
        (export_lora, lora, "update_pair", wrong_pair),
        (export_delta, delta, "updated_matrix", wrong_update),
    ],
    ids=["merged is base", "merged", "lora", "delta"],
)
def test_a_wrong_update_is_found_before_the_folder_is_there(tmp_path, monkeypatch, write, module, name, wrong):
    model = Net()
    save_file(state_of(model), tmp_path / "base.safetensors")
    adapted(model, ["head.0"], tmp_path / "adapter")
    export(tmp_path, write=write)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(AdapterError, match="export failed its check: tensor '.*head.0"):
        export(tmp_path, write=write, overwrite=True)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors: tensors["head.2.bias"].add_(1), "tensor 'head.2.bias' is not what was to be written"),
        (lambda tensors: tensors.pop("head.2.bias"), "tensor 'head.2.bias' is missing, or is one too many"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "tensor 'more' is missing, or is one too many"),
        (
            lambda tensors: tensors.update({"head.2.bias": tensors["head.2.bias"].double()}),
            "tensor 'head.2.bias' is not what was to be written",
        ),
    ],
    ids=["numbers", "missing", "more", "dtype"],
)
def test_damage_to_what_is_not_adapted_is_found(tmp_path, monkeypatch, damage, message):
    model = Net()
    save_file(state_of(model), tmp_path / "base.safetensors")
    adapted(model, ["head.0"], tmp_path / "adapter")
    write_tensors = merged.write_tensors

    def damaged(path, entries, metadata=None):
        write_tensors(path, entries, metadata)
        tensors = load_file(path)
        damage(tensors)
        save_file(tensors, path)

    monkeypatch.setattr(merged, "write_tensors", damaged)
    with pytest.raises(AdapterError, match=f"export failed its check: {message}"):
        export(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base.safetensors"]


def test_an_error_that_compression_did_not_have_is_found(tmp_path, monkeypatch):
    model = Net()
    save_file(state_of(model), tmp_path / "base.safetensors")
    adapted(model, ["head.0"], tmp_path / "adapter")
    monkeypatch.setattr(lora, "compress", lambda left, right, rank: (left[:, :rank], right[:rank], 0.01))
    with pytest.raises(AdapterError, match=r"export failed its check: layer 'head.0' is off by .*, not 0\.01"):
        export(tmp_path, write=export_lora, rank=2)
