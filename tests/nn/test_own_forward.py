"""Layers whose class, instance or hooks do more than the formula of their kind: the update is in what they compute."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import get_peft_model
from torch import nn
from torch.nn import functional
from transformers.models.bart.modeling_bart import BartLearnedPositionalEmbedding, BartScaledWordEmbedding
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.models.m2m_100.modeling_m2m_100 import M2M100ScaledWordEmbedding
from transformers.models.opt.modeling_opt import OPTLearnedPositionalEmbedding

from lowrank_ldu.nn import LDULayer, inject, merge, unmerge
from lowrank_ldu.nn.kinds.own_forward import own_forward
from lowrank_ldu.peft import LolduConfig

GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape, **options):
    return torch.randn(*shape, generator=GENERATOR, **options)


class Positive(nn.Linear):
    """Multiplies by a function of its weight."""

    def forward(self, x):
        return functional.linear(x, functional.softplus(self.weight), self.bias)


class Pair(nn.Linear):
    """Returns more than one tensor, as the routers of mixtures of experts do."""

    def forward(self, x):
        y = super().forward(x)
        return y, y.softmax(-1)


class NormedKernel(nn.Conv1d):
    """Changes the weight in the method that convolutions leave their work to."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, functional.normalize(weight, dim=1), bias)


class Summed(nn.Conv3d):
    def __call__(self, x):
        return super().__call__(x) + x.mean()


class Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return 2 * x @ weight.T

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return 2 * gradient @ weight, 2 * gradient.flatten(0, -2).T @ x.flatten(0, -2)


class ByFunction(nn.Linear):
    """Hands its weight to a function with a backward of its own, as low-precision layers do."""

    def forward(self, x):
        return Multiply.apply(x, self.weight)


class Padded(nn.Embedding):
    """Zeros where there is padding, and a position's own number added."""

    def forward(self, ids):
        return super().forward(ids + 1).masked_fill((ids == 3)[..., None], 0.0)


def on_instance():
    layer = nn.Linear(6, 5)
    own = layer.forward
    layer.forward = lambda x: own(x).tanh()
    return layer


IDS = torch.tensor([[0, 1, 2, 3, 4], [4, 3, 3, 1, 0]])
OWN = {
    "positive linear": (lambda: Positive(6, 5), randn(4, 6)),
    "router": (lambda: Pair(6, 5), randn(2, 4, 6)),
    "normed kernel": (lambda: NormedKernel(4, 6, 3, padding="same"), randn(3, 4, 8)),
    "call of its own": (lambda: Summed(2, 4, 2), randn(2, 2, 3, 3, 3)),
    "function with a backward": (lambda: ByFunction(6, 5), randn(4, 6)),
    "padded embedding": (lambda: Padded(8, 5), IDS),
    "forward on the instance": (on_instance, randn(4, 6)),
    "OPT's positions": (lambda: OPTLearnedPositionalEmbedding(8, 5), torch.ones(2, 6, dtype=torch.int64)),
    "BART's positions": (lambda: BartLearnedPositionalEmbedding(8, 5), IDS),
}
# They have a forward of their own, whose update is known.
KNOWN = {
    "BART's words": (lambda: BartScaledWordEmbedding(8, 5, 0, embed_scale=3.0), IDS),
    "Gemma 3's words": (lambda: Gemma3TextScaledWordEmbedding(8, 5, 0, embed_scale=2.2361), IDS),
    "M2M100's words": (lambda: M2M100ScaledWordEmbedding(8, 5, 1, embed_scale=3.0), IDS),
    "Falcon's linear": (lambda: FalconLinear(6, 5), randn(2, 4, 6)),
}


def double(make):
    layer = make()
    # `to` leaves the closure of a forward on the instance as it is: the parameter is the same.
    return layer.double()


def floating(x):
    return x.double() if x.is_floating_point() else x


def trained(layer):
    with torch.no_grad():
        layer.offset.normal_(std=0.2)
    return layer


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def summed(layer, x):
    """The output of the base layer with W + P L diag(delta) U for its weight, which is put back."""
    weight, base = layer.base_layer.weight, layer.base_layer
    held = weight.detach().clone()
    with torch.no_grad():
        weight.copy_(layer.kind.as_weight(layer.kind.as_matrix(held) + layer.delta_weight(), held))
        y = base(x)
        weight.copy_(held)
    return y


@pytest.mark.parametrize("name", [*OWN, *KNOWN])
def test_the_output_is_that_of_the_summed_weight_before_merging_and_after(name):
    make, x = {**OWN, **KNOWN}[name]
    base, x = double(make), floating(x)
    assert own_forward(base) is (name in OWN)
    expected = base(x)
    layer = LDULayer(base, rank=3)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)  # step 0, bit for bit
    weight = base.weight.detach().clone()
    trained(layer)
    adapted = layer(x)
    assert_same(adapted, summed(layer, x))
    assert torch.equal(base.weight, weight)
    layer.merge()
    assert_same(layer(x), adapted)
    layer.unmerge()
    assert torch.equal(base.weight, weight)
    assert_same(layer(x), adapted)


@pytest.mark.parametrize("name", [*OWN, *KNOWN])
def test_gradients_reach_the_diagonal_and_sigma(name):
    make, x = {**OWN, **KNOWN}[name]
    layer, x = trained(LDULayer(double(make), rank=3)), floating(x)

    def output(offset, sigma):
        y = torch.func.functional_call(layer, {"adapter.offset": offset, "adapter.sigma": sigma}, (x,))
        return y[0] if isinstance(y, tuple) else y

    numbers = [number.detach().clone().requires_grad_() for number in (layer.offset, layer.sigma)]
    assert torch.autograd.gradcheck(output, numbers)


@pytest.fixture
def _own_graphs():
    """Graphs of layers of other tests do not count towards torch's limit, nor these towards theirs."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_own_graphs")
@pytest.mark.parametrize("name", ["positive linear", "normed kernel", "padded embedding", "Gemma 3's words"])
def test_compiled_without_a_break(name):
    make, x = {**OWN, **KNOWN}[name]
    layer = trained(LDULayer(make(), rank=3))
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    assert bool(layer.offset.grad.any())


def test_half_precision_computes_with_the_weight_that_is_merged():
    layer = trained(LDULayer(Positive(16, 12).bfloat16(), rank=6))
    x = randn(5, 16, dtype=torch.bfloat16)
    adapted = layer(x)
    layer.merge()
    assert torch.equal(layer(x), adapted)
    layer.unmerge()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), adapted)


@pytest.mark.parametrize("make", [lambda: Positive(6, 5), lambda: hooked(lambda *_: None)])
def test_threads_that_share_a_base(make):
    """No thread sees the weight or the forward that another one has put in for its call."""
    base = make()
    layers = [trained(LDULayer(base, rank=3, seed=seed)) for seed in range(4)]
    x = randn(4, 6)
    with torch.no_grad():
        expected = [layer(x) for layer in layers]
        with ThreadPoolExecutor(4) as pool:
            for _ in range(50):
                for y, right in zip(pool.map(lambda layer: layer(x), layers), expected, strict=True):
                    torch.testing.assert_close(y, right)
    assert type(base.weight) is nn.Parameter
    assert ("forward" in vars(base)) is False


def hooked(hook=None, pre_hook=None):
    layer = nn.Linear(6, 5)
    if hook is not None:
        layer.register_forward_hook(hook)
    if pre_hook is not None:
        layer.register_forward_pre_hook(pre_hook)
    return layer


HOOKED = {
    "output scaled": lambda: hooked(lambda module, args, y: 3 * y),
    "output normed": lambda: hooked(lambda module, args, y: functional.normalize(y, dim=-1)),
    "input clipped": lambda: hooked(pre_hook=lambda module, args: (args[0].clamp(-0.5, 0.5),)),
    "both": lambda: hooked(lambda module, args, y: y.tanh(), lambda module, args: (args[0].cos(),)),
    "looked at": lambda: hooked(lambda module, args, y: None),
}


@pytest.mark.parametrize("name", HOOKED)
def test_what_hooks_change_they_change_of_the_update_too(name):
    x = randn(4, 6, dtype=torch.float64)
    layer = trained(LDULayer(HOOKED[name]().double(), rank=3))
    adapted = layer(x)
    assert_same(adapted, summed(layer, x))
    adapted.sum().backward()
    assert bool(layer.offset.grad.any())
    layer.merge()
    assert_same(layer(x), adapted)
    under_peft = get_peft_model(
        nn.Sequential(HOOKED[name]().double()), LolduConfig(r=3, target_modules=["0"], init_weights=False)
    )
    adapted = under_peft(x)
    assert_same(adapted, summed_under_peft(under_peft, x))
    assert_same(under_peft.merge_and_unload()(x), adapted)


def summed_under_peft(model, x):
    layer = model.base_model.model[0]
    base = copy.deepcopy(layer.base_layer)
    with torch.no_grad():
        base.weight += layer.get_delta_weight("default")
        return base(x)


def test_a_hook_sees_the_adapted_output_and_the_base_layer():
    seen = []
    base = hooked(lambda module, args, y: seen.append((module, y)))
    layer = trained(LDULayer(base, rank=3))
    y = layer(randn(4, 6))
    ((module, output),) = seen
    assert module is base
    assert output is y


class Writer(nn.Linear):
    def forward(self, x):
        with torch.no_grad():
            self.weight.clamp_(-0.1, 0.1)
        return super().forward(x)


class Swapper(nn.Linear):
    def forward(self, x):
        self.weight = nn.Parameter(self.weight.detach() / 2)
        return super().forward(x)


@pytest.mark.parametrize("kind", [Writer, Swapper])
def test_a_forward_that_writes_to_its_weight_is_refused_and_leaves_the_base(kind):
    layer = LDULayer(kind(6, 5), rank=3)
    weight = layer.base_layer.weight
    before = weight.detach().clone()
    with pytest.raises(RuntimeError, match="which writes to its weight; accepted: a layer whose weight is constant"):
        layer(randn(2, 6))
    assert layer.base_layer.weight is weight
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.utils.parametrizations.weight_norm(Positive(6, 5)), "and a weight that is parametrized"),
        (lambda: nn.utils.spectral_norm(Positive(6, 5)), r"computed at each call \(SpectralNorm\); accepted: one of"),
        (lambda: Padded(8, 5, sparse=True), "sparse=True; accepted: sparse=False"),
        (lambda: Padded(8, 5, scale_grad_by_freq=True), "accepted: scale_grad_by_freq=False"),
    ],
)
def test_what_cannot_be_called_with_another_weight_is_refused_when_it_is_adapted(make, message):
    model = nn.Sequential(make())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"layer '0': .*{message}"):
        inject(model, ["0"], rank=3)
    with pytest.raises(ValueError, match=f"'0': .*{message}"):
        get_peft_model(model, LolduConfig(r=3, target_modules=["0"]))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["positive linear", "normed kernel", "padded embedding", "BART's positions"])
def test_rows_of_a_mixed_batch(name):
    make, x = OWN[name]
    model = get_peft_model(nn.Sequential(make()), LolduConfig(r=3, target_modules=["0"], init_weights=False))
    model.add_adapter("second", LolduConfig(r=2, target_modules=["0"], init_weights=False))
    model.eval()
    layer = model.base_model.model[0]
    names = (["default", "second", "__base__", "default"] * 2)[: len(x)]
    y = layer(x, adapter_names=names)
    with model.disable_adapter():
        expected = {"__base__": layer(x)}
    for adapter in ("default", "second"):
        model.set_adapter(adapter)
        expected[adapter] = layer(x)
    assert not torch.allclose(expected["default"], expected["second"])
    for row, adapter in enumerate(names):
        torch.testing.assert_close(y[row], expected[adapter][row])


def test_rows_that_cannot_be_told_apart():
    model = get_peft_model(nn.Sequential(Pair(6, 5)), LolduConfig(r=3, target_modules=["0"], init_weights=False)).eval()
    with pytest.raises(RuntimeError, match="output has not one row for each of the 2 rows of the batch"):
        model.base_model.model[0](randn(2, 6), adapter_names=["default", "__base__"])


def test_an_attribute_of_a_plain_embedding_is_not_taken_for_its_scale():
    embedding = nn.Embedding(8, 5)
    embedding.embed_scale = 7.0  # which the model multiplies by, not the layer
    layer = trained(LDULayer(embedding, rank=3))
    torch.testing.assert_close(layer(IDS), summed(layer, IDS))


def test_a_model_of_them_is_merged_and_comes_back():
    model = nn.Sequential(Positive(6, 6), HOOKED["both"](), nn.Linear(5, 6), on_instance())
    x = randn(4, 6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = inject(model, ["0", "1", "2", "3"], rank=3)
    for name in names:
        trained(model.get_submodule(name))
    adapted = model(x)
    merge(model)
    torch.testing.assert_close(model(x), adapted)
    unmerge(model)
    after = {name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.usefixtures("_own_graphs")
@pytest.mark.parametrize("name", ["output scaled", "both", "looked at"])
def test_hooks_and_keywords_compiled_without_a_break(name):
    layer = trained(LDULayer(HOOKED[name](), rank=3))
    x = randn(4, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(input=x), layer(x))


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 5), lambda: Positive(6, 5), on_instance])
def test_hooks_of_accelerate_are_no_forward_of_its_own(make):
    base = make()
    own, x = own_forward(base), randn(4, 6)
    layer = trained(LDULayer(base, rank=3))
    adapted = layer(x)
    add_hook_to_module(base, AlignDevicesHook(io_same_device=True))
    assert own_forward(base) is own
    torch.testing.assert_close(layer(x), adapted)
    layer.merge()
    torch.testing.assert_close(layer(x), adapted)
