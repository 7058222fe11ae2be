"""Each kind of layer: the update is that of the changed weight, merging is exact, the LoRA pair is PEFT's."""

import copy
import itertools

import peft
import pytest
import torch
from half_precision import assert_as_near, assert_within, gamma, references, roundings, without_signs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from lowrank_ldu.nn import PARAMETRIZATIONS, LDULayer, inject, merge, unload, unmerge
from lowrank_ldu.nn.basis import WEIGHT_BASES
from lowrank_ldu.nn.kinds import KINDS, kind_of, supports
from lowrank_ldu.nn.update import updated_output

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


class ScaledEmbedding(nn.Embedding):
    """As in models that scale what they look up."""

    embed_scale = 1.75

    def forward(self, x):
        return super().forward(x) * self.embed_scale


LAYERS = {
    "linear": lambda: (nn.Linear(7, 5), torch.randn(4, 7)),
    "Conv1D": lambda: (Conv1D(5, 7), torch.randn(4, 3, 7)),
    "conv1d": lambda: (nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2), torch.randn(4, 4, 11)),
    "conv2d": lambda: (nn.Conv2d(4, 6, (3, 1), groups=2, padding="same"), torch.randn(4, 4, 6, 5)),
    "conv3d": lambda: (nn.Conv3d(2, 4, 2, padding=1, padding_mode="replicate"), torch.randn(4, 2, 3, 4, 3)),
    "depthwise": lambda: (nn.Conv2d(4, 4, 3, groups=4), torch.randn(4, 4, 5, 5)),
    "embedding": lambda: (nn.Embedding(11, 6, padding_idx=2), torch.randint(0, 11, (4, 5))),
    "scaled embedding": lambda: (ScaledEmbedding(11, 6), torch.randint(0, 11, (4, 5))),
}


# Inputs without a batch, or with nothing in it.
SINGLE = {
    "linear, one row": lambda: (nn.Linear(7, 5), torch.randn(7)),
    "linear, no rows": lambda: (nn.Linear(7, 5), torch.randn(0, 7)),
    "Conv1D, one row": lambda: (Conv1D(5, 7), torch.randn(7)),
    "conv2d, one image": lambda: (nn.Conv2d(4, 6, 3, padding="same"), torch.randn(4, 6, 5)),
    "embedding, one token": lambda: (nn.Embedding(11, 6), torch.tensor(3)),
    "embedding, no tokens": lambda: (nn.Embedding(11, 6), torch.zeros(2, 0, dtype=torch.int64)),
}


@pytest.fixture(params=LAYERS)
def layer_and_input(request):
    return LAYERS[request.param]()


def to(x, dtype):
    return x.to(dtype) if x.is_floating_point() else x


def trained(layer, size=0.1):
    with torch.no_grad():
        layer.offset.normal_(std=size)
        layer.sigma.mul_(0.8)
    return layer


def with_weight_changed(layer):
    """A copy of the base layer with W + P L diag(delta) U for its weight."""
    changed = copy.deepcopy(layer.base_layer)
    with torch.no_grad():
        matrix = layer.kind.as_matrix(changed.weight) + layer.delta_weight()
        changed.weight.copy_(layer.kind.as_weight(matrix, changed.weight))
    return changed


def assert_same_output(layer, x):
    # Each side is off by its roundings of what it sums up, whatever the order of the sums.
    allowed = 2 * gamma(roundings(layer), x.dtype if x.is_floating_point() else layer.delta.dtype)
    assert_within(layer(x), with_weight_changed(layer)(x), allowed * without_signs(layer, x))


def test_update_is_that_of_the_changed_weight_for_every_kind_basis_and_parametrization(layer_and_input):
    base, x = layer_and_input
    base, x = base.double(), to(x, torch.float64)
    for basis, parametrization in itertools.product(WEIGHT_BASES, PARAMETRIZATIONS):
        layer = trained(LDULayer(base, 3, basis=basis, parametrization=parametrization))
        assert_same_output(layer, x)
        assert not torch.equal(layer(x), base(x))


@pytest.mark.parametrize("name", SINGLE)
def test_inputs_without_a_batch(name):
    base, x = SINGLE[name]()
    base, x = base.double(), to(x, torch.float64)
    for rank in (1, 3):
        layer = trained(LDULayer(base, rank))
        assert layer(x).shape == base(x).shape
        assert_same_output(layer, x)


def test_gradients_of_every_kind(layer_and_input):
    base, x = layer_and_input
    layer = trained(LDULayer(base.double(), 3))
    x = to(x, torch.float64)

    def output(offset, sigma):
        return torch.func.functional_call(layer, {"adapter.offset": offset, "adapter.sigma": sigma}, (x,))

    assert torch.autograd.gradcheck(output, (layer.offset, layer.sigma))


@st.composite
def convolutions(draw):
    """A convolution of any options, and an input that is large enough for it, batched or not."""
    dimensions = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    padding = draw(st.sampled_from(["same", "valid", 0, 1, 2]))
    # torch warns that it copies the input where "same" needs more padding at one end.
    sizes = st.sampled_from([1, 3]) if padding == "same" else st.integers(1, 3)
    kernel = draw(st.tuples(*[sizes] * dimensions))
    dilation = draw(st.integers(1, 2))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    layer = CONVOLUTIONS[dimensions](
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        kernel,
        stride=1 if padding == "same" else draw(st.integers(1, 2)),
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
    )
    batch = draw(st.sampled_from([(), (1,), (3,)]))
    # Five at least: as far as the widest kernel reaches, and more than any padding, which reflection needs.
    return layer.double(), torch.randn(*batch, layer.in_channels, *(draw(st.integers(5, 6)),) * dimensions).double()


@settings(max_examples=60)
@given(convolutions(), st.data())
def test_any_convolution(convolution, data):
    base, x = convolution
    assert base(x).isfinite().all()
    rank = data.draw(st.integers(1, min(kind_of(base).as_matrix(base.weight).shape)))
    assert_same_output(trained(LDULayer(base, rank)), x)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 3), st.data())
def test_any_transposed_linear_layer_and_embedding(m, n, dimensions, data):
    rank = data.draw(st.integers(1, min(m, n)))
    x = torch.randn(*(2,) * dimensions, n, dtype=torch.float64)
    assert_same_output(trained(LDULayer(Conv1D(m, n).double(), rank)), x)
    tokens = torch.randint(0, m, (2,) * dimensions)
    assert_same_output(trained(LDULayer(nn.Embedding(m, n).double(), rank)), tokens)


def test_a_diagonal_for_each_row_is_each_row_with_its_own(layer_and_input):
    base, x = layer_and_input
    base, x = base.double(), to(x, torch.float64)
    layer = LDULayer(base, 3)
    deltas = torch.randn(len(x), 3, dtype=torch.float64)
    y = base(x)
    together = updated_output(base, layer.kind, x, y, layer.factors, deltas)
    rows = [
        updated_output(base, layer.kind, x[i : i + 1], y[i : i + 1], layer.factors, delta)
        for i, delta in enumerate(deltas)
    ]
    torch.testing.assert_close(together, torch.cat(rows), atol=1e-10, rtol=1e-10)
    assert not torch.allclose(together, updated_output(base, layer.kind, x, y, layer.factors, deltas[0]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_step_0_and_unmerge_bit_for_bit(name, dtype):
    base, x = LAYERS[name]()
    base, x = base.to(dtype), to(x, dtype)
    weight, before = base.weight.detach().clone(), base(x)
    layer = LDULayer(base, 3)
    assert torch.equal(layer(x), before)
    trained(layer, 0.01)
    output = layer(x)
    if dtype == torch.float64:
        allowed = 2 * gamma(roundings(layer), dtype) * without_signs(layer, x)
    else:
        near = references(layer, base, x)
        assert_as_near(output, *near)
    layer.merge()
    assert not torch.equal(base.weight, weight)
    if dtype == torch.float64:
        assert_within(layer(x), output, allowed)
    else:
        assert_as_near(layer(x), *near)
    layer.unmerge()
    assert torch.equal(base.weight, weight)
    assert torch.equal(layer(x), output)


def test_as_weight_inverts_as_matrix(layer_and_input):
    base, _ = layer_and_input
    kind, weight = kind_of(base), base.weight.detach()
    matrix = kind.as_matrix(weight)
    assert matrix.ndim == 2
    assert torch.equal(kind.as_weight(matrix, weight), weight)
    assert torch.equal(kind.as_matrix(kind.as_weight(matrix + 1, weight)), weight.new_ones(()) + matrix)


def test_which_layers_are_of_a_kind(layer_and_input):
    base, _ = layer_and_input
    assert supports(base)
    assert KINDS[kind_of(base).name] is kind_of(base)
    for other in (
        nn.LayerNorm(3),
        nn.ConvTranspose2d(3, 3, 2),
        nn.Bilinear(2, 2, 2),
        nn.EmbeddingBag(4, 3),
        nn.MultiheadAttention(4, 1),
    ):
        assert not supports(other)
        with pytest.raises(TypeError, match=f"the layer is a {type(other).__name__}; accepted: nn.Linear"):
            kind_of(other)


def test_an_embedding_that_changes_its_own_weight_is_refused():
    base = nn.Embedding(5, 4, max_norm=1.0)
    with pytest.raises(ValueError, match=r"max_norm 1\.0 and changes its weight in use; accepted: max_norm None"):
        LDULayer(base, 2)
    assert base.weight.requires_grad


def test_padding_tokens_take_the_update_and_give_no_gradient_to_a_frozen_base():
    layer = trained(LDULayer(nn.Embedding(6, 4, padding_idx=1).double(), 2))
    tokens = torch.tensor([1, 3])
    changed = with_weight_changed(layer)
    torch.testing.assert_close(layer(tokens), changed.weight[tokens], atol=1e-12, rtol=1e-12)
    layer(tokens).sum().backward()
    assert layer.base_layer.weight.grad is None
    assert layer.offset.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["linear", "Conv1D", "embedding", "conv2d plain"])
def test_lora_pair_is_the_lora_layer_of_peft(name):
    """PEFT's own LoRA layer with our pair for A and B gives our output and merges to our weight."""
    layers = LAYERS | {"conv2d plain": lambda: (nn.Conv2d(4, 6, (3, 2), padding=1), torch.randn(4, 4, 6, 5))}
    base, x = layers[name]()
    base, x = base.double(), to(x, torch.float64)
    layer = trained(LDULayer(copy.deepcopy(base), 3))
    config = peft.LoraConfig(
        r=3, lora_alpha=3, target_modules=["0"], fan_in_fan_out=name == "Conv1D", init_lora_weights=False
    )
    model = peft.get_peft_model(nn.Sequential(base), config).double()
    lora = model.base_model.model[0]
    left = layer.factors.left * (layer.delta * layer.factors.scale)
    pair = [part.detach() for part in layer.kind.lora_pair(left, layer.factors.right)]
    if isinstance(base, nn.Embedding):
        places = [lora.lora_embedding_A["default"], lora.lora_embedding_B["default"]]
    else:
        places = [lora.lora_A["default"].weight, lora.lora_B["default"].weight]
    with torch.no_grad():
        for place, part in zip(places, pair, strict=True):
            place.copy_(part.reshape(place.shape))
    torch.testing.assert_close(model(x), layer(x), atol=1e-10, rtol=1e-10)
    expected = layer.kind.as_weight(layer.delta_weight(), base.weight)
    torch.testing.assert_close(lora.get_delta_weight("default"), expected, atol=1e-10, rtol=1e-10)


def test_a_model_of_every_kind_is_injected_merged_and_unloaded():
    model = nn.Sequential(nn.Embedding(9, 8), Conv1D(6, 8), nn.Conv1d(5, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    tokens = torch.randint(0, 9, (2, 5))
    start, base = copy.deepcopy(model), model(tokens)
    assert inject(copy.deepcopy(model), "all-linear", 2) == ["1", "4"]
    names = inject(model, ["0", "1", "2", "4"], 2)
    assert torch.equal(model(tokens), base)
    for name in names:
        trained(model.get_submodule(name))
    output, near = model(tokens), references(model, start, tokens)
    assert_as_near(output, *near)
    merge(model)
    assert_as_near(model(tokens), *near)
    unmerge(model)
    assert torch.equal(model(tokens), output)
    unload(model, merged=False)
    assert [type(module).__name__ for module in model] == ["Embedding", "Conv1D", "Conv1d", "Flatten", "Linear"]
    assert torch.equal(model(tokens), base)
