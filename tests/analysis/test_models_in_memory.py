"""What is in memory is analyzed as its file would be, and never changed; what cannot be read is refused by name."""

import dataclasses
import inspect
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors.torch import save_file
from torch import nn
from weights import weight

from lowrank_ldu.analysis import SurveyOptions, analyze, analyze_checkpoint, compare, examine_claims
from lowrank_ldu.analysis.source import open_source
from lowrank_ldu.errors import CheckpointError, NothingToAnalyzeError, OptionError

MATRICES = npst.arrays(
    np.float32,
    npst.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=6),
    elements=st.floats(-100, 100, width=32),
)
OPTIONS = {"ranks": (2,), "pivoting": "partial", "threads": 1}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 5, bias=False), nn.Linear(5, 6)])
        self.head = nn.Linear(5, 6, bias=False)
        self.head.weight = self.layers[1].weight
        self.register_buffer("steps", torch.tensor(3))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Tied()


def plain(analysis):
    """The results without what depends on the clock."""

    def strip(value):
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if "seconds" not in str(key)}
        return [strip(item) for item in value] if isinstance(value, list | tuple) else value

    return [strip(dataclasses.asdict(result)) for result in analysis.results]


def reasons(source, **options):
    return {result.name: result.reason for result in analyze(source, **OPTIONS, **options).results}


def test_a_module_is_analyzed_as_its_file(model, tmp_path):
    state = {name: value for name, value in model.state_dict().items() if name != "head.weight"}
    save_file(state, tmp_path / "model.safetensors")
    # The file is in the order of its format.
    in_file = plain(analyze(tmp_path / "model.safetensors", **OPTIONS))
    in_memory = plain(analyze(model, **OPTIONS))
    tied = in_memory.pop([result["name"] for result in in_memory].index("head.weight"))
    assert tied["reason"] == "the same tensor as 'layers.1.weight'"
    assert sorted(in_memory, key=str) == sorted(in_file, key=str)
    assert plain(analyze(state, **OPTIONS)) == [each for each in in_memory if each["name"] in state]


def test_the_defaults_are_those_of_the_options(model):
    analysis = analyze(model)
    assert analysis.options == SurveyOptions()
    assert analysis.checkpoint == "Tied in memory"
    shown = inspect.signature(analyze).parameters
    assert {field.name for field in dataclasses.fields(SurveyOptions)} <= shown.keys()


def test_options_are_given_once(model):
    options = SurveyOptions(**OPTIONS)
    assert analyze(model, options=options).options == analyze(model, **OPTIONS).options == options
    with pytest.raises(TypeError, match="options is given beside ranks; accepted: options, or its fields by keyword"):
        analyze(model, options=options, ranks=8)
    with pytest.raises(TypeError, match="accepted: SurveyOptions, or its fields by keyword"):
        analyze(model, options={"ranks": 8})
    with pytest.raises(TypeError, match="unexpected keyword argument 'rank': it is ranks here"):
        analyze(model, rank=8)
    with pytest.raises(OptionError, match="mode is 'quick'"):
        analyze(model, mode="quick")


@settings(max_examples=15, deadline=None)
@given(values=MATRICES, layout=st.sampled_from(["plain", "turned", "part"]))
def test_tensors_are_never_changed(values, layout):
    tensor = torch.from_numpy(values.copy())
    whole = tensor.T if layout == "turned" else torch.cat([tensor, tensor])
    given = {"plain": tensor, "turned": whole, "part": whole[: len(tensor)]}[layout]
    parameter = nn.Parameter(given)
    before, versions = given.clone(), (given._version, parameter._version)
    analyze({"w": parameter}, **OPTIONS)
    assert torch.equal(given, before)
    assert (given._version, parameter._version) == versions
    assert parameter.requires_grad
    assert parameter.grad is None


def test_nothing_is_copied_on_the_cpu(model):
    with open_source(model) as reader:
        assert reader.load("layers.0.weight").data_ptr() == model.layers[0].weight.data_ptr()


def test_views_that_differ_are_not_tied():
    whole = weight(6, 4)
    found = reasons({"whole": whole, "top": whole[:3], "turned": whole.T, "again": whole.detach(), "copy": whole + 0})
    assert found == {
        "whole": None, "top": None, "turned": None, "again": "the same tensor as 'whole'", "copy": None,
    }  # fmt: skip


class Wrapped(torch.Tensor):
    """Stands for tensors of other libraries, whose storage says nothing of their numbers."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        raise NotImplementedError(operation)


class Quantized(Wrapped):
    def dequantize(self):
        return self.inner * 2


def freed():
    tensor = weight(4, 4)
    tensor.untyped_storage().resize_(0)
    return tensor


def test_views_of_opposite_sign_have_their_own_numbers():
    # Torch keeps such a view as the same numbers and a mark.
    numbers = torch.complex(weight(6, 5), weight(6, 5, seed=1))
    weights = {"a": numbers.imag, "b": numbers.conj().imag}
    assert weights["b"].is_neg()
    with open_source(weights) as reader:
        assert torch.equal(reader.load("b"), -weight(6, 5, seed=1))
    assert reasons(weights) == {"a": None, "b": None}


def test_what_cannot_be_read_is_refused_by_name():
    packed = nn.Parameter(torch.ones(8, 2, dtype=torch.bfloat16))
    packed.quant_state = SimpleNamespace()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its sparse and nested tensors experimental
        sparse = weight(4, 4).to_sparse_csr()
        nested = torch.nested.nested_tensor([weight(2, 3), weight(4, 3)])
    found = reasons({
        "good": weight(4, 4), "meta": torch.empty(3, 3, device="meta"), "wrapped": Wrapped(weight(3, 3)),
        "freed": freed(), "packed": packed, "sparse": sparse, "nested": nested, "epoch": 3,
        "lazy": nn.UninitializedParameter(), "int": torch.ones(3, 3, dtype=torch.int8),
        "bad": torch.full((2, 2), torch.nan),
    })  # fmt: skip
    assert found.pop("good") is None
    assert {
        name: (reason or "").partition(";")[0].partition(" torch.float32")[0] for name, reason in found.items()
    } == {
        "meta": "it is on the meta device and has no numbers",
        "wrapped": "it is of type Wrapped",
        "freed": "its storage was resized to 0 bytes, as of a module that is sharded or offloaded",
        "packed": "it is packed by bitsandbytes",
        "sparse": "not read, and may hold weights:",
        "nested": "not read, and may hold weights:",
        "epoch": "not a plain tensor",
        "lazy": "not a plain tensor",
        "int": "int8: integers are not factored",
        "bad": "it holds 4 entries that are not finite, the first at (0, 0): nan",
    }


def test_a_module_without_numbers_is_refused():
    with torch.device("meta"):
        model = nn.Linear(4, 4)
    with pytest.raises(NothingToAnalyzeError, match=r"Linear in memory: .* 'weight'.*meta device"):
        analyze(model)


def test_what_can_be_dequantized_is():
    matrix = weight(6, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch moves its own quantization to another package
        quantized = torch.quantize_per_tensor(matrix, 0.01, 0, torch.qint32)
    source = {"own": Quantized(matrix), "qint": quantized}
    with open_source(source) as reader:
        assert torch.equal(reader.load("own"), matrix * 2)
        assert torch.equal(reader.load("qint"), quantized.dequantize())
    dtypes = {result.name: result.dtype for result in analyze(source, **OPTIONS).results}
    assert dtypes == {"own": "Quantized as float32", "qint": "qint32 as float32"}


@pytest.mark.parametrize("kind", ["Linear4bit", "Linear8bitLt"])
def test_modules_that_bitsandbytes_quantized_are_dequantized(kind):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    matrix = weight(64, 32)
    options = {"has_fp16_weights": False} if kind == "Linear8bitLt" else {"quant_type": "nf4"}
    layer = getattr(bitsandbytes.nn, kind)(32, 64, bias=False, **options)
    layer.weight.data.copy_(matrix)
    model = nn.Sequential(layer).to("cpu")  # which quantizes it
    (result,) = (result for result in analyze(model, **OPTIONS).results if result.analysis is not None)
    assert (result.name, result.shape) == ("0.weight", (64, 32))
    with open_source(model) as reader:
        error = torch.linalg.norm(reader.load("0.weight") - matrix) / torch.linalg.norm(matrix)
    assert 0 < error < {"Linear4bit": 0.15, "Linear8bitLt": 0.02}[kind]  # of 4 and of 8 bits a number


def test_configurations_are_the_models_own(tmp_path, monkeypatch):
    """A file in the working folder is none, and a model's own tells what its file would."""
    monkeypatch.chdir(tmp_path)
    config = {"model_type": "phi3", "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    (tmp_path / "config.json").write_text(str(config).replace("'", '"'))
    model = nn.ModuleDict({"self_attn": nn.ModuleDict({"qkv_proj": nn.Linear(8, 16, bias=False)})})
    assert list(reasons(model)) == ["self_attn.qkv_proj.weight"]
    model.config = SimpleNamespace(to_dict=lambda: config)
    assert list(reasons(model)) == [f"self_attn.qkv_proj.weight[{part}]" for part in "qkv"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, r"source is a int; accepted: a path, hf://OWNER/NAME or another URL, a torch.nn.Module, or a state dict"),
        (None, "source is a NoneType"),
        (weight(3, 3), r"source is a Tensor; accepted: .*, \{'weight': tensor\} say"),
        (b"model.safetensors", "source is a bytes"),
        ([("w", weight(3, 3))], "source is a list"),
        ({1: weight(3, 3)}, "source has the key 1; accepted: "),
        ({"w": np.eye(3)}, r"source\['w'\] is a ndarray; accepted: "),
        ({"model": {"w": weight(3, 3)}}, r"source\['model'\] is a dict; accepted: "),
        (nn.Linear, "source is a type"),
    ],
)
def test_wrong_sources_are_named(source, message):
    with pytest.raises(TypeError, match=message):
        analyze(source)


def test_names_on_the_hub_are_not_guessed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"a name on the hub begins so: hf://someone/model"):
        analyze("someone/model")
    with pytest.raises(CheckpointError, match="no such file"):
        analyze("model.safetensors")
    with pytest.raises(NothingToAnalyzeError, match="state dict in memory: holds no tensors at all"):
        analyze({})


def test_journals_and_engines_are_for_files(model, tmp_path):
    with pytest.raises(OptionError, match="journal is given with a module in memory; accepted: journal=None, or"):
        analyze(model, journal=tmp_path / "journal")
    with pytest.raises(OptionError, match="engine is given with a state dict in memory"):
        analyze({"w": weight(3, 3)}, engine=object())
    with pytest.raises(OptionError, match="resume is True without a journal"):
        analyze(model, resume=True)
    state, path = {"w": weight(3, 3)}, tmp_path / "tuned.safetensors"
    save_file(state, path)
    for sides in ((state, path), (path, state)):
        with pytest.raises(OptionError, match="journal is given with a state dict in memory; accepted: journal=None"):
            compare(*sides, journal=tmp_path / "journal")
    with pytest.raises(OptionError, match="resume is True without a journal"):
        compare(path, path, resume=True)
    with pytest.raises(OptionError, match="journal is given with a module in memory"):
        examine_claims(model, journal=tmp_path / "journal")


def test_nothing_is_written_unless_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"w": weight(5, 4)}, "model.safetensors")
    seen = []
    analyze("model.safetensors", **OPTIONS, progress=seen.append)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert [step.finished for step in seen] == [0, 1]
    analyze("model.safetensors", **OPTIONS, journal="journal")
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "journal"}
    again = analyze("model.safetensors", **OPTIONS, journal="journal", resume=True)
    assert again.matrices
    assert plain(again) == plain(analyze_checkpoint("model.safetensors", SurveyOptions(**OPTIONS)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_on_a_gpu_give_the_same_figures(model):
    state = model.state_dict()
    on_gpu = {name: value.cuda() for name, value in state.items() if name != "head.weight"}
    assert plain(analyze(on_gpu, **OPTIONS)) == plain(analyze({name: state[name] for name in on_gpu}, **OPTIONS))
    assert all(value.is_cuda for value in on_gpu.values())
