"""Exports: what plain PEFT, plain safetensors and plain PyTorch make of them."""

import copy
import json
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from half_precision import assert_as_near, assert_within, gamma, references
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from range_server import PROXIES, RangeServer
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from lowrank_ldu.adapters import (
    AdapterError,
    export_delta,
    export_lora,
    export_merged,
    load_adapter,
    read_adapter,
    save_adapter,
)
from lowrank_ldu.adapters.exports.base import BaseModel
from lowrank_ldu.adapters.exports.low_rank import compress
from lowrank_ldu.checkpoints import CheckpointError, open_checkpoint
from lowrank_ldu.checkpoints.formats.safetensors_file import DTYPES, SafetensorsReader
from lowrank_ldu.checkpoints.writer import computed, same_bytes, stored, write_tensors
from lowrank_ldu.checkpoints.writer import given as in_memory
from lowrank_ldu.decomposition import ldu
from lowrank_ldu.nn import inject, lowrank_layers
from lowrank_ldu.nn.update import updated_matrix
from lowrank_ldu.peft import LolduConfig

TOKENS = torch.arange(12).reshape(3, 4)


class Mixed(nn.Module):
    """Every kind of layer that has a LoRA counterpart, and a head that is trained whole."""

    def __init__(self, linear=nn.Linear):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 12)
        self.first = linear(12, 16)
        self.second = linear(16, 12)
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.head = nn.Linear(6, 2)

    def forward(self, tokens):
        hidden = self.second(torch.relu(self.first(self.embed(tokens))))
        return self.head(self.conv(hidden[:, None]).mean((2, 3)))


class Transposed(Mixed):
    def __init__(self):
        super().__init__(linear=lambda n, m: Conv1D(m, n))


TARGETS = ["embed", "first", "second", "conv"]


def peft_adapter(model, folder, **options):
    """A trained adapter of PEFT's making, and what its model computes, with the merged one beside."""
    options = {"r": 5, "target_modules": TARGETS, "init_weights": False, "modules_to_save": ["head"], **options}
    config = LolduConfig(**options)
    adapted = get_peft_model(model, config).eval()
    with torch.no_grad():
        adapted.base_model.model.head.modules_to_save["default"].weight.normal_()
    adapted.save_pretrained(folder)
    near = references(adapted, copy.deepcopy(adapted).merge_and_unload(), TOKENS)
    with torch.no_grad():
        assert_as_near(adapted(TOKENS), *near)
    return near


@pytest.fixture
def base(tmp_path):
    (tmp_path / "base").mkdir()
    save_file(Mixed().state_dict(), tmp_path / "base" / "model.safetensors")
    return tmp_path / "base"


@pytest.mark.parametrize("kind", [Mixed, Transposed])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank_pattern": {"conv": 3}, "alpha": 2.0, "parametrization": "gram"},
        {"core": "dense", "parametrization": "gram", "rank_pattern": {"conv": 3}},
        {"core": "block", "block_size": 2, "r": 6, "pivoting": "rook"},
    ],
    ids=str,
)
def test_lora_in_plain_peft_gives_the_same_outputs(tmp_path, kind, options):
    save_file(kind().state_dict(), tmp_path / "model.safetensors")
    expected = peft_adapter(kind(), tmp_path / "adapter", **options)
    (tmp_path / "lora").mkdir()
    result = export_lora(
        read_adapter(tmp_path / "adapter"), open_checkpoint(tmp_path / "model.safetensors"), tmp_path / "lora"
    )
    assert set(result.errors.values()) == {0.0}
    assert set(result.ranks) == set(TARGETS)
    plain = PeftModel.from_pretrained(kind(), tmp_path / "lora").eval()
    assert type(plain.peft_config["default"]) is LoraConfig
    assert_as_near(plain(TOKENS), *expected)


def test_lora_needs_no_lowrank_ldu(tmp_path, base):
    """In a process that cannot import this package."""
    expected = peft_adapter(Mixed(), tmp_path / "adapter")
    (tmp_path / "lora").mkdir()
    export_lora(read_adapter(tmp_path / "adapter"), open_checkpoint(base), tmp_path / "lora")
    script = (
        'import sys; sys.modules["lowrank_ldu"] = None\n'
        "import torch, warnings; warnings.simplefilter('ignore')\n"
        "from peft import PeftModel\nfrom torch import nn\n"
        "class Model(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.embed, self.first, self.second = nn.Embedding(20, 12), nn.Linear(12, 16), nn.Linear(16, 12)\n"
        "        self.conv, self.head = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(6, 2)\n"
        "    def forward(self, tokens):\n"
        "        hidden = self.second(torch.relu(self.first(self.embed(tokens))))\n"
        "        return self.head(self.conv(hidden[:, None]).mean((2, 3)))\n"
        "from safetensors.torch import load_file\n"
        "model = Model(); model.load_state_dict(load_file(sys.argv[1]))\n"
        "model = PeftModel.from_pretrained(model, sys.argv[2]).eval()\n"
        "print(model(torch.arange(12).reshape(3, 4)).tolist())\n"
    )
    arguments = [sys.executable, "-P", "-c", script, base / "model.safetensors", tmp_path / "lora"]
    out = subprocess.run(arguments, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert_as_near(torch.tensor(json.loads(out)), *expected)


@given(st.integers(1, 6), st.integers(1, 7), st.integers(1, 5), st.data())
def test_compression_is_the_truncated_svd(m, n, r, data):
    rank = data.draw(st.integers(1, min(m, n, r)))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    left, right = (torch.from_numpy(generator.standard_normal(shape)) for shape in ((m, r), (r, n)))
    B, A, error = compress(left, right, rank)
    product = (left @ right).numpy()
    u, s, vt = np.linalg.svd(product)
    best = (u[:, :rank] * s[:rank]) @ vt[:rank]
    # Products of well-scaled float64 numbers; ties of singular values are never drawn.
    np.testing.assert_allclose((B @ A).numpy(), best, atol=1e-9 * s[0])
    np.testing.assert_allclose(error, np.linalg.norm(product - best) / np.linalg.norm(product), atol=1e-9)


def test_a_compressed_export_says_its_error(tmp_path, base):
    peft_adapter(Mixed(), tmp_path / "adapter")
    (tmp_path / "lora").mkdir()
    result = export_lora(read_adapter(tmp_path / "adapter"), open_checkpoint(base), tmp_path / "lora", rank=2)
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert set(result.ranks.values()) == {2}
    exact = read_adapter(tmp_path / "adapter").layers["first"].bind(Mixed().first.weight.detach())
    update = updated_matrix(exact.factors, exact.delta.detach())
    kept = tensors["base_model.model.first.lora_B.weight"] @ tensors["base_model.model.first.lora_A.weight"]
    assert result.errors["first"] == pytest.approx(float((update - kept).norm() / update.norm()), rel=1e-4)


@pytest.mark.parametrize(
    ("shards", "options"), [(1, {}), (3, {}), (3, {"core": "dense", "parametrization": "normalized"})], ids=str
)
def test_a_merged_model_gives_the_same_outputs(tmp_path, shards, options):
    state = Mixed().state_dict()
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_text("the unmerged weights in another format")
    if shards == 1:
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    else:
        names = {name: f"model-{index % shards}.safetensors" for index, name in enumerate(state)}
        for file in set(names.values()):
            save_file({name: state[name] for name in state if names[name] == file}, folder / file, {"format": "pt"})
        index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": names}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    expected = peft_adapter(Mixed(), tmp_path / "adapter", **options)
    (tmp_path / "out").mkdir()
    changed = export_merged(read_adapter(tmp_path / "adapter"), open_checkpoint(folder), tmp_path / "out")
    assert changed == sorted([*(f"{name}.weight" for name in TARGETS), "head.bias", "head.weight"])
    merged = Mixed()
    for file in (tmp_path / "out").glob("*.safetensors"):
        merged.load_state_dict(load_file(file), strict=False)
    assert_as_near(merged(TOKENS), *expected)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {path.name for path in folder.iterdir()} - {"pytorch_model.bin"}
    # What is not adapted is the same bytes.
    assert torch.equal(merged.conv.bias, state["conv.bias"])


def test_a_half_precision_merge_rounds_once(tmp_path):
    """float32 sum, one rounding: at most half a unit in the last place from the float64 sum."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 24)).bfloat16()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    weight = model[0].weight.detach().clone()
    inject(model, ["0"], 8)
    with torch.no_grad():
        model[0].offset.normal_(std=0.01)
    save_adapter(model, tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    export_merged(read_adapter(tmp_path / "adapter"), open_checkpoint(tmp_path / "model.safetensors"), tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")["0.weight"]
    assert merged.dtype == torch.bfloat16
    # The factors of a bfloat16 base are bfloat16, and rebuilt ones may round differently: those that were merged count.
    _, adapter, factors = read_adapter(tmp_path / "adapter").layers["0"].bind(weight)
    exact = weight.double() + updated_matrix(factors, adapter.delta(factors).detach()).double()
    # Once to bfloat16, and the sum of both before, in float32.
    assert_within(merged, exact, gamma(1, torch.bfloat16) * exact.abs() + 2 * gamma(1, torch.float32) * weight.abs())


def test_dense_updates(tmp_path, base):
    model = Mixed()
    inject(model, TARGETS, 4)
    for _, layer in lowrank_layers(model):
        with torch.no_grad():
            layer.offset.normal_(std=0.1)
    save_adapter(model, tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    names = export_delta(read_adapter(tmp_path / "adapter"), open_checkpoint(base), tmp_path / "out")
    updates = load_file(tmp_path / "out" / "delta.safetensors")
    assert sorted(updates) == sorted(names) == sorted(f"{name}.weight" for name in TARGETS)
    for name, layer in lowrank_layers(model):
        # Factors may have been rebuilt by another order of the sums than those that the layer has.
        exact = ldu(layer.kind.as_matrix(layer.base_layer.weight).double(), 4)
        exact = (exact.left * layer.delta.double()) @ exact.right
        update = layer.delta_weight()
        assert_as_near(updates[f"{name}.weight"].reshape(exact.shape), exact, update, exact)


def test_native_and_peft_folders_of_gpt2_with_its_prefix(tmp_path):
    """A checkpoint saved under other prefixes than the model that was adapted has; tied weights are saved once."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2)).eval()
    model.transformer.save_pretrained(tmp_path / "base")  # names without "transformer."
    adapted = get_peft_model(model, LolduConfig(r=4, target_modules=["c_attn", "c_fc"], init_weights=False)).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    expected = references(adapted, copy.deepcopy(adapted).merge_and_unload(), TOKENS)
    (tmp_path / "out").mkdir()
    export_merged(read_adapter(tmp_path / "adapter"), open_checkpoint(tmp_path / "base"), tmp_path / "out")
    merged = type(model.transformer).from_pretrained(tmp_path / "out").eval()
    hidden = merged(TOKENS).last_hidden_state
    assert_as_near(adapted.base_model.model.lm_head(hidden), *expected)


def test_a_peft_folder_loads_into_the_standalone_layer(tmp_path):
    expected = peft_adapter(Mixed(), tmp_path / "adapter")
    model = Mixed()
    assert sorted(load_adapter(model, tmp_path / "adapter")) == sorted(TARGETS)
    assert_as_near(model(TOKENS), *expected)


def test_another_base_and_what_force_lets_pass(tmp_path):
    peft_adapter(Mixed(), tmp_path / "adapter")
    other = {
        name: tensor * 1.003 if name == "first.weight" else tensor for name, tensor in Mixed().state_dict().items()
    }
    save_file(other, tmp_path / "other.safetensors")
    (tmp_path / "out").mkdir()
    arguments = read_adapter(tmp_path / "adapter"), open_checkpoint(tmp_path / "other.safetensors"), tmp_path / "out"
    with pytest.raises(AdapterError, match=r"layer 'first': the weight is not the one .* differs, by 0\.3 %"):
        export_merged(*arguments)
    assert list((tmp_path / "out").iterdir()) == []
    save_file({name: tensor.half() for name, tensor in Mixed().state_dict().items()}, tmp_path / "half.safetensors")
    for base, message in (
        ("other.safetensors", r"layer 'first': the weight is not the one"),
        # Several layers are one warning, of the worst of them.
        ("half.safetensors", r"the weight is not the one .* \(and \d more layers, by no more than that\)"),
    ):
        for write in (export_merged, export_lora, export_delta):
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always", UserWarning)
                write(
                    arguments[0],
                    open_checkpoint(tmp_path / base),
                    tmp_path / f"{write.__name__} {base}",
                    accept_other_base=True,
                )
            (text,) = [text for each in warned if "trained whole" not in (text := str(each.message))]
            assert re.search(message, text)
    del other["first.weight"]
    save_file(other, tmp_path / "other.safetensors")
    arguments = read_adapter(tmp_path / "adapter"), open_checkpoint(tmp_path / "other.safetensors"), tmp_path / "out"
    with pytest.raises(AdapterError, match="layer 'first': .* has no 'first.weight'"):
        export_lora(*arguments, accept_other_base=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "none", "no such file or directory"),
        (
            lambda path: torch.save({"a": torch.ones(2)}, path / "x.bin") or path / "x.bin",
            "accepted: a .safetensors file",
        ),
        (
            lambda path: (path / "x.safetensors").write_text("junk") and path / "x.safetensors",
            "not a readable safetensors file",
        ),
        (lambda path: path, "no checkpoint among its 0 files and folders; looked for \\*.safetensors"),
        (
            lambda path: torch.save({"a": torch.ones(2)}, path / "x.bin") or path,
            "a folder with one safetensors file or one index of them; found: none",
        ),
        (
            lambda path: [save_file({"a": torch.ones(2)}, path / f"{name}.safetensors") for name in "xy"] and path,
            "a folder with one safetensors file or one index of them; found: x.safetensors, y.safetensors",
        ),
        (
            lambda path: (
                (path / "m.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}') and path
            ),
            "shard '../x.safetensors' is not a file inside the folder of the index",
        ),
        (
            lambda path: (path / "m.safetensors.index.json").write_text("[]") and path,
            "not an index of shards",
        ),
    ],
)
def test_bases_that_are_none(tmp_path, make, message):
    with pytest.raises(CheckpointError, match=message):
        BaseModel(open_checkpoint(make(tmp_path)))


# Dtypes that the library writes and, as of now, does not read.
WRITTEN_ONLY = {torch.float4_e2m1fn_x2, torch.float8_e8m0fnu}


def every_dtype():
    """Every dtype of torch's that safetensors can store, and the format's name of it."""
    codes = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, of dtypes that are experimental or old
        for dtype in sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str):
            try:
                text = save({"tensor": torch.empty(0, dtype=dtype)})[8:].decode()
            except (KeyError, ValueError, RuntimeError, SafetensorError):
                continue
            codes[dtype] = json.JSONDecoder().raw_decode(text)[0]["tensor"]["dtype"]
    assert len(codes) >= 17
    assert set(codes) > WRITTEN_ONLY
    return codes


def test_the_table_has_every_dtype_of_a_whole_number_of_bytes():
    codes = every_dtype()
    assert codes.pop(torch.float4_e2m1fn_x2) == "F4"  # two in one entry of torch's
    assert {code: str(dtype).removeprefix("torch.") for dtype, code in codes.items()} == DTYPES


def entries(path):
    reader = SafetensorsReader(path)
    return {info.name: stored(reader, info.name) for info in reader.tensors}


def some(dtype):
    """Six numbers of a dtype, of bytes that are nothing in particular."""
    generator = torch.Generator().manual_seed(0)
    count = 6 * dtype.itemsize
    raw = torch.randint(0, 2 if dtype == torch.bool else 128, (count,), generator=generator, dtype=torch.uint8)
    return raw.view(dtype).reshape(2, 3)


def test_written_tensors_are_those_that_safetensors_writes(tmp_path):
    tensors = {str(dtype): some(dtype) for dtype in every_dtype() if dtype not in WRITTEN_ONLY}
    tensors["empty"], tensors["scalar"] = torch.zeros(0, 3), torch.tensor(3.0)
    write_tensors(tmp_path / "ours", [in_memory(*item) for item in tensors.items()], {"format": "pt"})
    read = load_file(tmp_path / "ours")
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert same_bytes(in_memory(name, read[name]), in_memory(name, tensor))
    write_tensors(
        tmp_path / "copied", entries(tmp_path / "ours").values(), SafetensorsReader(tmp_path / "ours").metadata
    )
    assert (tmp_path / "copied").read_bytes() == (tmp_path / "ours").read_bytes()
    wrong = computed("a", torch.float32, (3,), lambda: torch.zeros(2))
    with pytest.raises(ValueError, match="tensor 'a' is torch.float32"):
        write_tensors(tmp_path / "bad", [wrong])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copied", "ours"]


@pytest.mark.parametrize("sharded", [False, True])
def test_a_base_of_every_dtype_is_merged_without_a_change_elsewhere(tmp_path, sharded):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10))
    tensors = {"0.weight": model[0].weight.detach().clone(), "0.bias": model[0].bias.detach().clone()}
    tensors |= {f"kept.{dtype}": some(dtype) for dtype in every_dtype()}
    tensors |= {"kept.empty": torch.zeros(0, 3), "kept.scalar": torch.tensor(3.0)}
    base = tmp_path / "base"
    base.mkdir()
    names = list(tensors)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]} if sharded else {"model.safetensors": names}
    for file, held in files.items():
        save_file({name: tensors[name] for name in held}, base / file, {"format": "pt"})
    raw = b"\x12\x34\x56"
    header = json.dumps({"kept.six": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}).encode()
    if sharded:
        # What torch has no dtype of, and safetensors does not write.
        (base / "c.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + raw)
        files["c.safetensors"] = ["kept.six"]
        weight_map = {name: file for file, held in files.items() for name in held}
        (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    inject(model, ["0"], 4)
    with torch.no_grad():
        model[0].offset.normal_()
    model.new = nn.Linear(3, 3)  # in the dtype of the base's floating numbers, if there is one
    save_adapter(model, tmp_path / "adapter", modules_to_save=["new"])
    export_merged(read_adapter(tmp_path / "adapter"), open_checkpoint(base), tmp_path / "merged")
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == sorted(path.name for path in base.iterdir())
    for file, held in files.items():
        before, after = entries(base / file), entries(tmp_path / "merged" / file)
        assert set(after) - set(before) <= {"new.weight", "new.bias"}
        assert set(before) == set(held)
        assert [name for name in held if not same_bytes(before[name], after[name])] == [
            name for name in held if name == "0.weight"
        ]
        assert all(b"".join(before[name].chunks()) == b"".join(after[name].chunks()) for name in held[2:])
        assert SafetensorsReader(tmp_path / "merged" / file).metadata == SafetensorsReader(base / file).metadata
    with open_checkpoint(tmp_path / "merged") as written:
        expected = {name for held in files.values() for name in held} | {"new.weight", "new.bias"}
        assert {info.name for info in written.tensors} == expected
        for name, tensor in tensors.items():
            if name.startswith("kept.") and tensor.dtype != torch.float4_e2m1fn_x2:
                loaded = written.load(name)
                assert (loaded.dtype, loaded.shape) == (tensor.dtype, tensor.shape)


MERGE = """
import resource, sys
from pathlib import Path
import numpy
import scipy.linalg
import torch
from lowrank_ldu.adapters import export_merged, read_adapter
from lowrank_ldu.checkpoints import open_checkpoint

def mebibytes(of):
    return int(next(line for line in open("/proc/self/status") if line.startswith(of)).split()[1]) / 1024

torch.set_num_threads(1)
folder, base, most = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
adapter = read_adapter(folder / "adapter")
# What libraries set up once: torch's, NumPy's and SciPy's linear algebra have buffers of their own.
torch.linalg.lu_factor(torch.eye(64))
numpy.linalg.eigvalsh(numpy.ones((512, 512)) @ numpy.ones((512, 512)))
scipy.linalg.cholesky(numpy.eye(512))
used = mebibytes("VmData:")
limit = int((used + most) * 2**20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
export_merged(adapter, open_checkpoint(folder / base), folder / "merged")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="private memory is counted on Linux")
@pytest.mark.parametrize("base", ["base", "base/one.safetensors"])
def test_memory_is_a_small_multiple_of_the_largest_tensor(tmp_path, base):
    """128 MiB in tensors of 1 MiB: the check in float64 takes most of it. Files mapped as private memory count, too."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(128)))
    (tmp_path / "base").mkdir()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if base == "base":
        halves = {file: list(state)[start::2] for start, file in enumerate(("a.safetensors", "b.safetensors"))}
        for file, names in halves.items():
            save_file({name: state[name] for name in names}, tmp_path / "base" / file)
        weight_map = {name: file for file, names in halves.items() for name in names}
        (tmp_path / "base" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        save_file(state, tmp_path / base)
    inject(model, ["3"], 4)
    with torch.no_grad():
        model[3].offset.normal_()
    save_adapter(model, tmp_path / "adapter")
    subprocess.run([sys.executable, "-c", MERGE, tmp_path, base, "48"], check=True, cwd=tmp_path)
    with open_checkpoint(tmp_path / "merged") as merged:
        assert [name for name in state if not torch.equal(merged.load(name), state[name])] == ["3.weight"]


def test_trained_biases_go_into_a_merged_model_and_not_into_lora(tmp_path, base):
    config = LolduConfig(r=4, target_modules=["first"], bias="loldu_only", init_weights=False)
    adapted = get_peft_model(Mixed(), config).eval()
    with torch.no_grad():
        adapted.base_model.model.first.base_layer.bias.normal_()
    adapted.save_pretrained(tmp_path / "adapter")
    expected = references(adapted, copy.deepcopy(adapted).merge_and_unload(), TOKENS)
    (tmp_path / "out").mkdir()
    with pytest.raises(AdapterError, match="the adapter trained 'first.bias' beside its layers"):
        export_lora(read_adapter(tmp_path / "adapter"), open_checkpoint(base), tmp_path / "out")
    export_merged(read_adapter(tmp_path / "adapter"), open_checkpoint(base), tmp_path / "out")
    merged = Mixed()
    merged.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    assert_as_near(merged(TOKENS), *expected)


@pytest.mark.parametrize("export", [export_lora, export_merged, export_delta])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"adapter": "folder"}, "adapter is a str; accepted: an AdapterFile, what read_adapter returns"),
        ({"base": "folder"}, "base is a str; accepted: a CheckpointReader, what open_checkpoint returns"),
        ({"folder": None}, "folder is a NoneType; accepted: a path"),
        ({"progress": None}, "progress is a NoneType; accepted: a function of a name"),
        ({"overwrite": "no"}, "overwrite is 'no'; accepted: True or False"),
        ({"accept_other_base": "no"}, "accept_other_base is 'no'; accepted: True or False"),
    ],
)
def test_arguments_of_other_types(base, tmp_path, export, wrong, message):
    peft_adapter(Mixed(), tmp_path / "adapter")
    adapter = read_adapter(tmp_path / "adapter")
    with pytest.raises(TypeError, match=message):
        export(**{"adapter": adapter, "base": open_checkpoint(base), "folder": tmp_path / "new", **wrong})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("export", [export_lora, export_merged, export_delta])
def test_a_folder_whose_name_the_library_does_not_take(base, tmp_path, export):
    peft_adapter(Mixed(), tmp_path / "adapter")
    with pytest.raises(AdapterError, match="folder is .*; accepted: a path in UTF-8"):
        export(read_adapter(tmp_path / "adapter"), open_checkpoint(base), tmp_path / "z\udcff")
    assert not (tmp_path / "z\udcff").exists()


def test_tensors_that_a_base_has_not(base):
    with pytest.raises(CheckpointError, match=r"no tensor 'other'; it has \d+ tensors"):
        open_checkpoint(base).load("other")


def test_bases_on_a_server_are_refused(monkeypatch):
    pytest.importorskip("aiohttp")
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    server = RangeServer({"/m/model.safetensors": save({"a": torch.ones(2, 2)})})
    try:
        for url in (f"{server.url}/m/model.safetensors", f"{server.url}/m"):
            with (
                open_checkpoint(url) as reader,
                pytest.raises(CheckpointError, match="is on a server; accepted: a base model on this machine"),
            ):
                BaseModel(reader)
    finally:
        server.stop()
