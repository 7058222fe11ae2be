"""Merging changes what the model computes from then on, or is refused before anything is changed."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune

from lowrank_ldu.adapters import load_adapter, save_adapter
from lowrank_ldu.nn import LDULayer, inject, merge, unload, unmerge
from lowrank_ldu.peft import LolduConfig

GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape, **options):
    return torch.randn(*shape, generator=GENERATOR, **options)


class Symmetric(nn.Module):
    def forward(self, weight):
        return (weight + weight.mT) / 2


def parametrized():
    layer = nn.Linear(6, 6)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


def pruned():
    layer = nn.Conv2d(4, 6, 3, padding=1)
    prune.ln_structured(layer, "weight", amount=0.5, n=2, dim=0)
    return layer


class Clamped(nn.Linear):
    """A weight that is a property of its class."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.raw = nn.Parameter(self._parameters.pop("weight").detach())

    @property
    def weight(self):
        return self.raw.clamp(-0.2, 0.2)

    def __setattr__(self, name, value):
        if name == "weight":  # of nn.Linear's constructor
            self._parameters[name] = value
        else:
            super().__setattr__(name, value)


ROWS, IMAGES = randn(4, 6), randn(2, 4, 5, 5)
COMPUTED = {
    "symmetric": (parametrized, ROWS, "parametrized"),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(6, 5)), ROWS, "parametrized"),
    "weight-normed convolution": (
        lambda: parametrizations.weight_norm(nn.Conv2d(4, 6, 3), dim=2),
        IMAGES,
        "parametriz",
    ),
    "spectral norm, a hook": (lambda: nn.utils.spectral_norm(nn.Conv2d(4, 6, 3)), IMAGES, r"\(SpectralNorm\)"),
    "pruned channels": (pruned, IMAGES, r"at each call \(LnStructured\)"),
    "normed embedding": (lambda: parametrizations.weight_norm(nn.Embedding(8, 6)), torch.arange(8), "parametrized"),
    "property": (lambda: Clamped(6, 5), ROWS, "computed at each call"),
}


def trained(model, size=0.2):
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, LDULayer):
                layer.offset.normal_(std=size)
    return model


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("name", COMPUTED)
def test_a_weight_that_is_computed_takes_an_adapter_and_no_merge(name):
    make, x, reason = COMPUTED[name]
    model = nn.Sequential(make()).eval()
    with torch.no_grad():
        expected = model(x)
        inject(model, ["0"], rank=3)
        assert torch.equal(model(x), expected)
        adapted = trained(model)(x)
        assert not torch.allclose(adapted, expected)
        state = copy.deepcopy(model.state_dict())
        for refused in (merge, unload, lambda model: model[0].merge()):
            with pytest.raises(
                TypeError, match=f"{reason}.*, which would undo the merge; accepted: the adapter unmerged"
            ):
                refused(model)
        with pytest.raises(TypeError, match="layer '0': "):
            merge(model)
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
        assert torch.equal(model(x), adapted)
        unload(model, merged=False)
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("name", COMPUTED)
def test_the_same_under_peft(name):
    make, x, reason = COMPUTED[name]
    # The plain layer comes first: nothing is merged when another one is refused.
    model = nn.ModuleDict({"plain": nn.Linear(6, 6), "computed": make()}).eval()
    model = get_peft_model(model, LolduConfig(r=3, target_modules=["plain", "computed"], init_weights=False)).eval()
    layers = model.base_model.model
    weight = layers["plain"].weight.detach().clone()
    with torch.no_grad():
        adapted = layers["computed"](x)
        for refused in (model.merge_adapter, model.merge_and_unload, layers["computed"].merge):
            with pytest.raises(ValueError, match=f"layer 'computed': .*{reason}"):
                refused()
        assert torch.equal(layers["plain"].weight, weight)
        assert torch.equal(layers["computed"](x), adapted)


def test_what_made_the_weight_removed_first():
    base = parametrizations.weight_norm(nn.Linear(6, 5))
    parametrize.remove_parametrizations(base, "weight")
    model = nn.Sequential(base)
    inject(model, ["0"], rank=3)
    adapted = trained(model)(ROWS)
    merge(model)
    torch.testing.assert_close(model(ROWS), adapted)


def test_a_weight_that_is_as_of_the_last_call_is_computed_before_it_is_factored():
    """A state dict that is loaded into a pruned layer shows in its weight after the next call only."""
    layer, other = pruned(), pruned()
    layer.load_state_dict(other.state_dict())
    adapter = LDULayer(layer, rank=3)
    torch.testing.assert_close(adapter.factors.sample, LDULayer(other, rank=3).factors.sample)
    assert torch.equal(adapter(IMAGES), other(IMAGES))


def overwritten(layer):
    """A weight that a hook copies from elsewhere before each call, as some quantizers do."""
    source = layer.weight.detach().clone()

    def write(module, _):
        module.weight.data.copy_(source)

    layer.register_forward_pre_hook(write)
    return layer


class Cached(nn.Linear):
    """Keeps what it computed of a weight by its address, and is not told that the weight has changed."""

    def forward(self, x):
        kept = self.__dict__.setdefault("kept", {})
        if self.weight.data_ptr() not in kept:
            kept[self.weight.data_ptr()] = self.weight.detach().abs()
        return functional.linear(x, kept[self.weight.data_ptr()], self.bias)


@pytest.mark.parametrize("make", [lambda: overwritten(nn.Linear(6, 5)), lambda: overwritten(nn.Linear(6, 5).half())])
def test_a_hook_that_undoes_a_merge_is_found_by_trying(make):
    layer = LDULayer(make(), rank=3)
    x = ROWS.to(layer.weight.dtype)
    adapted, weight = trained(layer)(x), layer.weight.detach().clone()
    with pytest.raises(
        RuntimeError, match="a hook of the layer writes to its weight before each call, so that merging"
    ):
        layer.merge()
    assert not layer.merged
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer(x), adapted)


def test_a_merge_that_does_not_show_in_the_output_is_found_by_trying():
    layer = LDULayer(Cached(6, 5), rank=3)
    with torch.no_grad():
        trained(layer)(ROWS)
        weight = layer.weight.detach().clone()
        with pytest.raises(RuntimeError, match="the merged layer's output is not the adapted layer's, so that merging"):
            layer.merge(keep_base=False)
        assert torch.equal(layer.weight, weight)
        assert not layer.merged


class CachedPair(Cached):
    def forward(self, x):
        y = super().forward(x)
        return y, y.argmax(-1)


def test_every_output_is_compared():
    layer = trained(LDULayer(CachedPair(6, 5), rank=3))
    with torch.no_grad():
        layer(ROWS)
        with pytest.raises(RuntimeError, match="output is not the adapted layer's"):
            layer.merge()


def test_a_refused_layer_leaves_those_before_it_unmerged():
    model = nn.Sequential(nn.Linear(6, 6), overwritten(nn.Linear(6, 6)))
    inject(model, ["0", "1"], rank=3)
    adapted, weight = trained(model)(ROWS), model[0].weight.detach().clone()
    with pytest.raises(RuntimeError, match="layer '1': a hook of the layer writes to its weight"):
        merge(model)
    assert not model[0].merged
    assert torch.equal(model[0].weight, weight)
    assert torch.equal(model(ROWS), adapted)


def test_peft_refuses_what_undoes_a_merge():
    model = nn.Sequential(overwritten(nn.Linear(6, 5)))
    model = get_peft_model(model, LolduConfig(r=3, target_modules=["0"], init_weights=False)).eval()
    adapted = model(ROWS)
    with pytest.raises(ValueError, match="layer '0': a hook of the layer writes to its weight"):
        model.merge_adapter()
    assert torch.equal(model(ROWS), adapted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0.0, 1e-3, 0.2])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(48, 40),
        lambda: nn.Conv2d(6, 8, 3, padding=2, padding_mode="reflect", dilation=2),
        lambda: nn.Conv1d(6, 6, 5, groups=3, stride=2),
        lambda: nn.Embedding(30, 12),
    ],
)
def test_no_layer_is_refused_for_its_rounding(make, size, dtype):
    base = make().to(dtype)
    base.register_forward_hook(lambda module, args, y: y * 1.5)
    layer = trained(LDULayer(base, rank=6), size)
    layer.merge()
    assert layer.merged


def test_trying_out_changes_nothing():
    """Neither the random numbers, nor modes, nor buffers; and a layer that takes other inputs is merged untried."""

    class Counting(nn.Linear):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls += 1
            return functional.dropout(super().forward(x), 0.5, self.training)

    class TwoInputs(nn.Linear):
        def forward(self, x, y):
            return super().forward(x) * y

    layer = trained(LDULayer(Counting(6, 5), rank=3))
    torch.manual_seed(3)
    layer.merge()
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    assert layer.base_layer.training
    assert layer.base_layer.calls == 0
    layer = trained(LDULayer(TwoInputs(6, 5), rank=3))
    y = randn(4, 5)
    adapted = layer(ROWS, y)
    layer.merge()
    torch.testing.assert_close(layer(ROWS, y), adapted)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids):
        return self.head(self.words(ids))


def test_a_tied_weight_is_not_merged_by_its_layer_alone(tmp_path):
    model = Tied()
    inject(model, ["head"], rank=3)
    weight = model.words.weight.detach().clone()
    save_adapter(model, tmp_path)
    loaded = Tied()
    loaded.load_state_dict({"words.weight": weight, "head.weight": weight})
    load_adapter(loaded, tmp_path)
    peft_model = get_peft_model(Tied(), LolduConfig(r=3, target_modules=["words"], init_weights=False))
    for refused, error in (
        (model.head, RuntimeError),
        (copy.deepcopy(model).head, RuntimeError),
        (loaded.head, RuntimeError),
        (peft_model.base_model.model.words, ValueError),
    ):
        with pytest.raises(
            error, match="the weight is tied to that of a (Embedding|Linear), which merging would change"
        ):
            refused.merge()
    assert torch.equal(model.words.weight, weight)
    model.words.weight = nn.Parameter(weight.clone())
    model.head.merge()
    assert torch.equal(model.words.weight, weight)
    unmerge(model)
