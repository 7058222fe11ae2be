"""Layers whose weight is read without calling them: refused where the source shows it, named in a warning elsewhere."""

import copy
from functools import partial

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.nn import functional
from transformers import DebertaConfig, DebertaModel, Mamba2Config, Mamba2Model, WavLMConfig, WavLMModel

from lowrank_ldu.adapters import AdapterError, load_adapter, save_adapter
from lowrank_ldu.nn import inject, merge, unload
from lowrank_ldu.nn.calls import never_called
from lowrank_ldu.nn.weight_reads import occasional_reader_of, reader_of, weight_reads
from lowrank_ldu.peft import LolduConfig

GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape, **options):
    return torch.randn(*shape, generator=GENERATOR, **options)


X = randn(3, 8)


class Block(nn.Module):
    """Reads the weights of two layers, calls two others, and looks at what is no value of a weight."""

    def __init__(self):
        super().__init__()
        self.kernel, self.moved, self.called, self.wide = (nn.Linear(8, 8) for _ in range(4))
        self.inner = nn.ModuleDict({"far": nn.Linear(8, 8)})

    def forward(self, x):
        x = self.called(x.to(self.called.weight.dtype))
        if self.wide.weight is not None and isinstance(self.wide.weight, torch.Tensor):
            x = self.wide(x)[..., : self.wide.weight.shape[0]]
        return self._rest(x)

    def _rest(self, x):
        weight = self.kernel.weight.mT
        return functional.linear(x @ weight, self.moved.weight, self.moved.bias)

    def penalty(self):
        """No part of the forward."""
        return self.called.weight.square().sum()


class Derived(Block):
    """Calls what the class above reads, and reads more, further down."""

    def forward(self, x):
        return super().forward(x) @ self.inner.far.weight


class OnOnePath(nn.Module):
    """Calls its layer, and reads its weight where a setting asks for it."""

    slow = False

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(8, 8)

    def forward(self, x):
        return x @ self.dense.weight.mT if self.slow else self.dense(x)


def test_what_a_class_reads():
    assert {read.path: read.method for read in weight_reads(Block)} == {
        ("kernel",): "Block._rest",
        ("moved",): "Block._rest",
    }
    assert {read.path for read in weight_reads(Derived)} == {("kernel",), ("moved",), ("inner", "far")}
    assert weight_reads(nn.TransformerEncoder) == ()
    assert reader_of(nn.Sequential(Derived()), "0.inner.far") == "Derived.forward"
    assert reader_of(nn.Sequential(OnOnePath()), "0.dense") is None
    assert occasional_reader_of(nn.Sequential(OnOnePath()), "0.dense") == "OnOnePath.forward"
    assert occasional_reader_of(nn.Sequential(Derived()), "0.kernel") is None


@pytest.mark.parametrize("target", ["kernel", "moved", "inner.far"])
def test_they_are_refused_wherever_an_adapter_is_made(target, tmp_path):
    model = nn.ModuleDict({"block": Derived()})
    message = r"Derived\.\w+ reads (its weight )?.*without calling"
    with pytest.raises(TypeError, match=message):
        inject(model, [target], rank=4)
    with pytest.raises(
        ValueError, match=f"'block.{target}': {message}.*accepted: to leave it out with exclude_modules"
    ):
        get_peft_model(model, LolduConfig(r=4, target_modules=[target]))
    other = nn.ModuleDict({"block": nn.ModuleDict({"kernel": nn.Linear(8, 8), "moved": nn.Linear(8, 8)})})
    other["block"]["inner"] = nn.ModuleDict({"far": nn.Linear(8, 8)})
    inject(other, [target], rank=4)
    save_adapter(other, tmp_path)
    with pytest.raises(AdapterError, match=f"layer 'block.{target}': {message}"):
        load_adapter(model, tmp_path)


def test_every_linear_layer_is_every_one_that_is_called():
    model = nn.Sequential(Derived(), nn.Linear(8, 8), OnOnePath())
    assert inject(model, "all-linear", rank=4) == ["0.called", "0.wide", "1", "2.dense"]


def test_published_models():
    """Where a layer is read on one path and called on another, the class of Mamba is told from that of DeBERTa."""
    mamba = Mamba2Model(
        Mamba2Config(
            vocab_size=32, hidden_size=16, num_hidden_layers=1, state_size=4, num_heads=4, head_dim=8, n_groups=1
        )
    )
    assert reader_of(mamba, "layers.0.mixer.conv1d") == "Mamba2Mixer.forward"
    assert reader_of(mamba, "layers.0.mixer.out_proj") == "Mamba2Mixer.forward"
    assert reader_of(mamba, "layers.0.mixer.in_proj") is None
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    deberta = DebertaModel(DebertaConfig(vocab_size=32, **sizes))
    assert reader_of(deberta, "encoder.layer.0.attention.self.in_proj") is None
    wavlm = WavLMModel(
        WavLMConfig(**sizes, conv_dim=(8,), conv_stride=(2,), conv_kernel=(2,), num_feat_extract_layers=1)
    )
    read = {name.rpartition(".")[2] for name, module in wavlm.named_modules() if name and reader_of(wavlm, name)}
    assert read == {"q_proj", "k_proj", "v_proj", "out_proj"}


def multiply(layer, x):
    return x @ layer.weight.mT


class Hidden(nn.Module):
    """Hands a layer to a function, which reads its weight: nothing in this class's source shows it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x, expert=0):
        return self.experts[expert](multiply(self.b, self.a(x)))


NAMED = "no forward of the model has called 'b', 'experts.1', of 4 adapted layers, so that their adapters had no effect"


def hidden():
    model = Hidden()
    inject(model, "all-linear", rank=4)
    return model


@pytest.mark.parametrize("end", [merge, unload, "save"])
def test_layers_that_are_never_called_are_named_once(end, tmp_path):
    model = hidden()
    # Half a forward is none.
    with pytest.raises(IndexError):
        model(X, expert=2)
    assert never_called(model) == []
    model(X)
    assert never_called(model) == ["b", "experts.1"]
    with pytest.warns(UserWarning, match=NAMED):
        save_adapter(model, tmp_path) if end == "save" else end(model)
    if end != "save":
        return
    save_adapter(model, tmp_path)
    model(X, expert=1)
    assert never_called(model) == ["b"]
    unload(model)
    assert not model._forward_hooks


def test_no_forward_no_word():
    model = hidden()
    model.a(X)
    merge(model)


def test_the_same_under_peft(tmp_path):
    base = Hidden()
    model = get_peft_model(copy.deepcopy(base), LolduConfig(r=4, target_modules="all-linear"))
    model.save_pretrained(tmp_path)
    model(X)
    with pytest.warns(UserWarning, match=NAMED):
        model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base, tmp_path)
    loaded(X)
    with pytest.warns(UserWarning, match=NAMED):
        merged = loaded.merge_and_unload()
    assert not merged._forward_hooks


@pytest.mark.parametrize("under_peft", [False, True])
def test_a_layer_that_is_read_on_one_path(under_peft, tmp_path):
    model = nn.Sequential(OnOnePath())
    if under_peft:
        model = get_peft_model(model, LolduConfig(r=4, target_modules=["dense"]))
    else:
        inject(model, ["dense"], rank=4)
    end = model.save_pretrained if under_peft else partial(save_adapter, model)
    model(X)
    end(tmp_path)
    inner = model.base_model.model if under_peft else model
    inner[0].slow = True
    model(X)
    with pytest.warns(UserWarning, match="OnOnePath.forward may have read the weight of '0.dense' without calling"):
        end(tmp_path)
    end(tmp_path)


def test_compiled_calls_are_seen():
    torch.compiler.reset()
    model = hidden()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    compiled(X)
    assert never_called(model) == ["b", "experts.1"]
