"""Adapters and bases that are damaged, or made to do damage: one line, in bounded time, and a model as it was."""

import hashlib
import json
import os
import time
import zipfile
from contextlib import suppress
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from lowrank_ldu.adapters import (
    AdapterError,
    export_delta,
    export_lora,
    export_merged,
    import_published,
    load_adapter,
    read_adapter,
    save_adapter,
)
from lowrank_ldu.adapters.exports.base import BaseModel
from lowrank_ldu.adapters.format import sealed
from lowrank_ldu.checkpoints import CheckpointError, open_checkpoint
from lowrank_ldu.nn import inject, lowrank_layers
from lowrank_ldu.patterns import PatternError, Patterns, matches_end
from lowrank_ldu.peft import LolduConfig

HUGE = 40 * 2**30


def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 6))


def refused(folder, message=""):
    model = base()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(AdapterError, match=message) as raised:
        load_adapter(model, folder)
    assert len(str(raised.value).splitlines()) == 1
    assert list(lowrank_layers(model)) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.fixture
def native(tmp_path):
    model = base()
    inject(model, ["0"], rank=5)
    with torch.no_grad():
        model[0].offset.normal_()
    return save_adapter(model, tmp_path / "native", modules_to_save=["2"])


@pytest.fixture
def of_peft(tmp_path):
    config = LolduConfig(r=5, target_modules=["0"], modules_to_save=["2"], init_weights=False)
    get_peft_model(base(), config).save_pretrained(tmp_path / "peft")
    return tmp_path / "peft"


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def hole(path):
    os.truncate(path, HUGE)


def header_of_a_hole(path):
    """A file as long as its header says, of which nothing but the header is on disk."""
    header = json.dumps({"0.offset": {"dtype": "U8", "shape": [HUGE], "data_offsets": [0, HUGE]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + HUGE)


def folder_instead(path):
    path.unlink()
    path.mkdir()


def loop(path):
    path.unlink()
    path.symlink_to(path)


DAMAGES = [
    pipe, hole, header_of_a_hole, folder_instead, loop,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"[" * 300_000),
    lambda path: path.write_bytes(b'{"a":' * 100_000),
    lambda path: path.write_bytes(b"\xff" * 100),
    lambda path: path.write_bytes((2**63).to_bytes(8, "little") + b"{}"),
    lambda path: path.write_bytes(b"1" * 10_000),
]  # fmt: skip
NAMES = [
    "pipe", "hole", "header of a hole", "folder", "loop", "empty", "nested lists", "nested objects", "no text",
    "endless header", "a number",
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=NAMES)
@pytest.mark.parametrize("file", ["adapter.json", "adapter.safetensors"])
def test_files_of_save_adapter(native, file, damage):
    damage(native / file)
    refused(native, file)


@pytest.mark.parametrize("damage", DAMAGES, ids=NAMES)
@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_files_of_peft(of_peft, file, damage):
    damage(of_peft / file)
    refused(of_peft, file.split(".", maxsplit=1)[0])


@pytest.mark.parametrize("damage", DAMAGES, ids=NAMES)
@pytest.mark.parametrize("file", ["model.safetensors", "model.safetensors.index.json"])
def test_files_of_a_base(tmp_path, file, damage):
    save_file(base().state_dict(), tmp_path / "model.safetensors")
    if file.endswith(".json"):
        names = dict.fromkeys(base().state_dict(), "model.safetensors")
        (tmp_path / file).write_text(json.dumps({"weight_map": names}))
    damage(tmp_path / file)
    # A pipe or a folder is no file of weights.
    with pytest.raises(CheckpointError, match=r"model\.safetensors|no checkpoint among its") as raised:
        BaseModel(open_checkpoint(tmp_path))
    assert len(str(raised.value).splitlines()) == 1


def test_a_tensor_without_values_whose_sides_torch_cannot_count(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [0, 2**40, 2**40], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="tensor 'a' cannot be read"):
        open_checkpoint(tmp_path).load("a")


@pytest.mark.parametrize("export", [export_delta, export_lora, export_merged])
@pytest.mark.parametrize("place", ["0.weight", "other"])
def test_sides_beyond_what_torch_counts(tmp_path, export, place):
    """Without values they take no room in a file, so that the library has nothing against them."""
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    values = model[0].weight.detach().numpy().tobytes()
    inject(model, ["0"], 4)
    save_adapter(model, tmp_path / "adapter")
    entries = {"0.weight": {"dtype": "F32", "shape": [8, 8], "data_offsets": [0, 256]}}
    entries[place] = {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0 if place == "0.weight" else 256] * 2}
    text = json.dumps(entries).encode()
    data = len(text).to_bytes(8, "little") + text + values[: 0 if place == "0.weight" else 256]
    (tmp_path / "base.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=f"tensor '{place}' has shape .*; accepted: at most"):
        export(read_adapter(tmp_path / "adapter"), open_checkpoint(tmp_path / "base.safetensors"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["n" * 300, "a\0b", "a/" * 3000])
def test_names_that_no_file_can_have(name):
    reads = {open_checkpoint: CheckpointError, read_adapter: AdapterError}
    for read, error in {**reads, lambda path: load_adapter(base(), path): AdapterError}.items():
        with pytest.raises(error) as raised:
            read(name)
        assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_states_of_the_published_code(tmp_path, ending):
    path = tmp_path / f"state.{ending}"
    os.mkfifo(path)
    with pytest.raises(AdapterError, match="is no regular file"):
        import_published(base(), path)


def test_an_archive_of_the_published_code_that_would_fill_the_memory(tmp_path):
    path = tmp_path / "state.pt"
    torch.save({"0.parametrizations.weight.0.vector_z": torch.zeros(2**24)}, path)
    with (
        zipfile.ZipFile(path) as whole,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for member in whole.infolist():
            archive.writestr(member.filename, whole.read(member))
    with pytest.raises(AdapterError, match="said to hold 6710.* accepted: up to 20 times that"):
        import_published(base(), tmp_path / "small.pt")


# --- numbers ---


def changed(folder, tensors=None, **fields):
    """The adapter of someone who mended its checksums."""
    held = load_file(folder / "adapter.safetensors") | (tensors or {})
    save_file(held, folder / "adapter.safetensors")
    config = json.loads((folder / "adapter.json").read_text())
    del config["config_sha256"]
    config["weights_sha256"] = hashlib.sha256((folder / "adapter.safetensors").read_bytes()).hexdigest()
    config["layers"]["0"].update(fields)
    (folder / "adapter.json").write_bytes(sealed(config))


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("0.offset", torch.full((5,), 1e300, dtype=torch.float64), "offset overflows float32"),
        ("0.sigma", torch.full((1,), -1e39, dtype=torch.float64), "sigma overflows float32"),
        ("0.initial_sigma", torch.full((1,), 1e39, dtype=torch.float64), "initial_sigma overflows float32"),
        ("0.offset", torch.full((5,), torch.nan).to(torch.float8_e5m2), "offset holds entries that are not finite"),
        ("0.offset", torch.full((5,), torch.nan, dtype=torch.bfloat16), "offset holds entries that are not finite"),
        ("0.offset", torch.zeros(5, dtype=torch.complex64), "offset is complex64; accepted: floating"),
        ("0.offset", torch.zeros(5, dtype=torch.uint8).view(torch.float8_e8m0fnu), "F8_E8M0"),
        ("2.weight", torch.full((6, 20), torch.nan), "'2.weight' is not finite in float32"),
        ("2.weight", torch.full((6, 20), 1e300, dtype=torch.float64), "'2.weight' is not finite in float32"),
        ("2.bias", torch.full((6,), -torch.inf, dtype=torch.float16), "'2.bias' is not finite in float32"),
    ],
)
def test_numbers_that_the_model_cannot_hold(native, of_peft, name, tensor, message):
    changed(native, {name: tensor})
    refused(native, message)
    file = of_peft / "adapter_model.safetensors"
    theirs = name.replace("0.", "0.loldu_adapter.") if name.startswith("0.") else name
    save_file(load_file(file) | {f"base_model.model.{theirs}": tensor}, file)
    refused(of_peft, message)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e5m2])
@pytest.mark.parametrize("export", [export_lora, partial(export_merged, keep_module_dtype=True)])
def test_numbers_that_are_none_are_not_exported(native, tmp_path, export, dtype):
    changed(native, {"2.weight": torch.full((6, 20), torch.nan).to(dtype)})
    save_file(base().state_dict(), tmp_path / "base.safetensors")
    with pytest.raises(AdapterError, match="module tensor '2.weight' holds entries that are not finite"):
        export(read_adapter(native), open_checkpoint(tmp_path / "base.safetensors"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("alpha", [1e308, 3e38 * 5, 1e-320])
def test_alpha_that_the_layer_cannot_hold(native, alpha):
    changed(native, alpha=alpha)
    model = base()
    with suppress(AdapterError):
        load_adapter(model, native)
    assert bool(model(torch.ones(2, 24)).isfinite().all())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"core": "full"}, "layer '0': core is 'full'; accepted: 'diagonal', 'block', 'dense'"),
        ({"core": ["dense"]}, r"layer '0': core is \['dense'\]; accepted"),
        ({"core": "dense"}, r"offset has shape \(5,\); accepted: \(1, 5, 5\)"),
        ({"core": "block"}, "layer '0': block_size is None with core 'block'; accepted"),
        ({"core": "block", "block_size": "5"}, "layer '0': block_size is '5'; accepted: an integer from 1 on"),
        ({"core": "block", "block_size": 0}, "layer '0': block_size is 0; accepted: an integer from 1 on"),
        ({"core": "block", "block_size": 2}, "layer '0': block_size is 2 at rank 5; accepted: a divisor of it, 1, 5"),
        ({"core": "block", "block_size": 7, "rank": 10**18}, "block_size is 7 at rank 1000.*; accepted: a divisor"),
        ({"core": "dense", "rank": 10**9}, r"offset has shape \(5,\); accepted: \(1, 1000000000, 1000000000\)"),
        ({"block_size": 5}, "layer '0': block_size is 5 with core 'diagonal'; accepted: None, or core 'block'"),
        ({"pivoting": "chosen"}, "the adapter holds no pivot_columns"),
        ({"basis": "fitted"}, "layer '0': basis_digest is None with basis 'fitted'; accepted: the digest"),
        ({"basis_digest": "ab"}, "layer '0': basis_digest is 'ab' with basis 'ldu'; accepted"),
        ({"basis": "fitted", "basis_digest": 3}, "layer '0': basis_digest is 3; accepted: a string, or None"),
        ({"basis": "fitted", "basis_digest": "a\nb"}, "layer '0': basis_digest is .*; accepted: up to 128 letters"),
        ({"basis": "fitted", "basis_digest": "a" * 10**6}, "layer '0': basis_digest is .*; accepted: up to 128"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_options_of_cores_and_bases(native, of_peft, fields, message):
    start = time.process_time()
    changed(native, **fields)
    refused(native, message)
    path = of_peft / "adapter_config.json"
    fields = {"r" if key == "rank" else key: value for key, value in fields.items()}
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    refused(of_peft, message)
    assert time.process_time() - start < 10


def test_a_basis_that_no_file_has(native, of_peft, tmp_path, monkeypatch):
    unknown = {"basis": "fitted", "basis_digest": "ab"}
    held = load_file(native / "adapter.safetensors")
    del held["0.pivot_rows"]
    save_file(held, native / "adapter.safetensors")
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "list").write_bytes(b"[" * 10_000)
    for named in ("pipe", "list", "/dev/zero", "a\0b", "n" * 10_000, "..", "", "no\nfile", None):
        changed(native, **unknown)
        config = json.loads((native / "adapter.json").read_text())
        del config["config_sha256"]
        (native / "adapter.json").write_bytes(sealed(config | {"basis_file": named}))
        refused(native, "fitted basis ab, which is not known.*; accepted: its file")
    (native / "adapter.json").write_bytes(sealed(config | {"basis_file": ["x"]}))
    refused(native, r"adapter.json: basis_file is \['x'\]; accepted: a path, or null")
    path = of_peft / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"basis_file": 3}))
    refused(of_peft, "adapter_config.json: basis_file is 3; accepted: a path, or null")


def test_products_that_overflow(native):
    changed(native, {"0.offset": torch.full((5,), 3e38), "0.sigma": torch.full((1,), 3e38)})
    refused(native, "layer '0'")


# --- patterns ---


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*c", "(.*a){30}c", "(a|aa)+$c", "((a*)*)*c"])
@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_patterns_that_would_take_for_ever(tmp_path, key, pattern):
    layer = "a" * 60

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module(layer, nn.Linear(8, 8))

        def forward(self, x):
            return getattr(self, layer)(x)

    get_peft_model(Model(), LolduConfig(r=5, target_modules=[layer])).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {key: {pattern: 3}}))
    start = time.process_time()
    with suppress(AdapterError):  # what is bounded is the time, and a match that takes less is as good
        read_adapter(tmp_path)
    assert time.process_time() - start < 10


@given(st.text(alphabet="ab.0", max_size=12), st.text(alphabet="ab.0", max_size=8))
def test_plain_patterns_match_as_peft_matches_them(name, pattern):
    import re

    assert matches_end(pattern, name) == bool(re.match(rf"(.*\.)?({pattern})$", name))


@given(
    st.text(alphabet="ab.0", max_size=12),
    st.lists(st.sampled_from(["a", "b", r"\.", ".", "[0b]", "a?", "(a|b)", "b*", r"\d", "^"]), max_size=5).map("".join),
)
def test_other_patterns_match_as_peft_matches_them(name, pattern):
    import re

    assert matches_end(pattern, name) == bool(re.match(rf"(.*\.)?({pattern})$", name))


@pytest.mark.parametrize("pattern", ["(", "a{2", "[", "a" * 1001, "*", "\\", 3, None])
def test_what_is_no_pattern(pattern):
    import re

    try:
        re.compile(rf"(.*\.)?({pattern})$")
    except re.error:
        valid = False
    else:
        valid = isinstance(pattern, str) and len(pattern) <= 1000
    if valid:
        assert matches_end(pattern, "x") is False
    else:
        with pytest.raises(PatternError):
            matches_end(pattern, "x")


@pytest.mark.parametrize(
    "pattern", ["a{2147483647}", "a{0,20000000}", "(?:(?:a{999}){999}){999}", "(?R)", "(?1)", "(?:a{1,40}){e<=20}z"]
)
def test_patterns_that_would_fill_the_memory_as_they_are_compiled(pattern):
    start = time.process_time()
    with pytest.raises(PatternError):
        matches_end(pattern, "x")
    assert time.process_time() - start < 0.5


def test_many_patterns_that_each_take_less_than_the_limit(monkeypatch):
    monkeypatch.setattr("lowrank_ldu.patterns._SECONDS_TOGETHER", 0.2)
    patterns = Patterns({f"(?:a?){{{60 + number}}}{'a' * 18}c": 1 for number in range(100_000)})
    start = time.process_time()
    with pytest.raises(PatternError, match="with the other patterns"):
        patterns.value_for("a" * 18, 1)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern", "layer_kinds", "lora_obstacles"])
@pytest.mark.parametrize("value", [[], "", 0, False])
def test_what_is_no_object(of_peft, key, value):
    path = of_peft / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    refused(of_peft, f"{key} is .*; accepted: an object")
