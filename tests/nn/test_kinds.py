"""Every kind of layer against the one definition: the base layer with W + P L diag(delta) U for a weight."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from lowrank_ldu.nn import LoLDULayer
from lowrank_ldu.nn.functional import updated_output
from lowrank_ldu.nn.kinds import KINDS, kind_of


class ScaledEmbedding(nn.Embedding):
    """As some models of transformers have it."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.embed_scale = 3.0

    def forward(self, tokens):
        return super().forward(tokens) * self.embed_scale


def tokens(*shape):
    return torch.randint(0, 20, shape)


LAYERS = {
    "linear": (lambda: nn.Linear(12, 10), lambda: torch.randn(5, 12)),
    "linear, one row": (lambda: nn.Linear(12, 10), lambda: torch.randn(12)),
    "linear, no rows": (lambda: nn.Linear(12, 10), lambda: torch.randn(0, 12)),
    "linear, sequences": (lambda: nn.Linear(12, 10, bias=False), lambda: torch.randn(3, 4, 12)),
    "Conv1D": (lambda: Conv1D(10, 12), lambda: torch.randn(3, 4, 12)),
    "Conv1d": (lambda: nn.Conv1d(4, 10, 3, stride=2, padding=1), lambda: torch.randn(3, 4, 9)),
    "Conv2d": (lambda: nn.Conv2d(3, 10, (2, 3), stride=2, padding=1, dilation=2), lambda: torch.randn(3, 3, 9, 8)),
    "Conv2d, one image": (lambda: nn.Conv2d(3, 10, 3, padding="same"), lambda: torch.randn(3, 7, 8)),
    "Conv2d, reflected": (
        lambda: nn.Conv2d(3, 10, 3, padding=1, padding_mode="reflect"),
        lambda: torch.randn(2, 3, 7, 8),
    ),
    "Conv2d, groups": (lambda: nn.Conv2d(8, 10, 3, groups=2), lambda: torch.randn(2, 8, 7, 8)),
    "Conv2d, as many groups": (lambda: nn.Conv2d(8, 8, 3, groups=8), lambda: torch.randn(2, 8, 7, 8)),
    "Conv3d": (lambda: nn.Conv3d(2, 10, 2), lambda: torch.randn(2, 2, 4, 5, 3)),
    "embedding": (lambda: nn.Embedding(20, 12), lambda: tokens(3, 5)),
    "embedding, padded": (lambda: nn.Embedding(20, 12, padding_idx=0), lambda: tokens(4)),
    "embedding, scaled": (lambda: ScaledEmbedding(20, 12), lambda: tokens(3, 5)),
}
layers = pytest.mark.parametrize(("make", "inputs"), LAYERS.values(), ids=LAYERS)


def trained(layer):
    with torch.no_grad():
        layer.offset.normal_()
        layer.sigma.mul_(0.7)
    return layer


def with_update(layer):
    """The base layer with the update in its weight."""
    plain = copy.deepcopy(layer.base_layer)
    with torch.no_grad():
        plain.weight += layer.kind.as_weight(layer.delta_weight(), plain.weight)
    return plain


@layers
@pytest.mark.parametrize("rank", [1, 6])
def test_the_update_is_that_of_the_weight(make, inputs, rank):
    """float64: what is left is rounding of sums of at most a few dozen products."""
    layer = trained(LoLDULayer(make().double(), rank))
    x = inputs()
    x = x.double() if x.is_floating_point() else x
    torch.testing.assert_close(layer(x), with_update(layer)(x), atol=1e-11, rtol=1e-11)


@layers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_step_0_is_the_base_layer_and_unmerging_restores_its_weight(make, inputs, dtype):
    base = make().to(dtype)
    x = inputs()
    x = x.to(dtype) if x.is_floating_point() else x
    layer = LoLDULayer(base, 4)
    assert torch.equal(layer(x), base(x))
    weight = base.weight.detach().clone()
    trained(layer)
    unmerged = layer(x)
    layer.merge()
    if dtype == torch.float32:
        size = max(1.0, float(unmerged.detach().abs().max())) if unmerged.numel() else 1.0
        torch.testing.assert_close(layer(x), unmerged, atol=1e-5 * size, rtol=1e-5)
    layer.unmerge()
    assert torch.equal(base.weight, weight)


@layers
def test_a_diagonal_for_each_row_is_each_row_with_its_own(make, inputs):
    x = inputs()
    if x.ndim in {1, 3} and "one" in next(name for name, value in LAYERS.items() if value[0] is make):
        return  # a single example has no rows
    layer = LoLDULayer(make(), 5)
    deltas = torch.randn(len(x), 5)
    y = layer.base_layer(x)
    together = updated_output(layer.base_layer, layer.kind, x, y, layer.factors, deltas)
    for row in range(len(x)):
        alone = slice(row, row + 1)
        expected = updated_output(layer.base_layer, layer.kind, x[alone], y[alone], layer.factors, deltas[row])
        torch.testing.assert_close(together[alone], expected, atol=1e-4, rtol=1e-5)


@layers
def test_gradients_of_the_update(make, inputs):
    layer = trained(LoLDULayer(make().double(), 4))
    x = inputs()
    x = x.double() if x.is_floating_point() else x

    def output(offset, sigma):
        return torch.func.functional_call(layer, {"adapter.offset": offset, "adapter.sigma": sigma}, (x,))

    assert torch.autograd.gradcheck(output, (layer.offset, layer.sigma))


@given(st.sampled_from(sorted(KINDS)), st.integers(1, 5), st.integers(1, 5), st.integers(1, 3))
def test_weights_and_matrices_are_each_others_inverse(name, out, inner, kernel):
    kind = KINDS[name]
    shape = {"convolution": (out, inner, kernel, kernel), "transposed linear": (inner, out)}.get(name, (out, inner))
    weight = torch.randn(shape)
    matrix = kind.as_matrix(weight)
    assert matrix.ndim == 2
    assert torch.equal(kind.as_weight(matrix, weight), weight)


# Not the dilated convolution: PEFT's LoRA leaves dilation out.
@pytest.mark.parametrize("name", ["linear", "Conv1D", "Conv1d", "Conv2d, one image", "embedding"])
def test_the_lora_pair_is_what_peft_would_need(name):
    make, inputs = LAYERS[name]
    torch.manual_seed(0)
    layer = trained(LoLDULayer(make(), 4))
    x = inputs()
    expected = layer(x)
    model = nn.Sequential(layer.base_layer)
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["0"], fan_in_fan_out=name == "Conv1D")
    lora = get_peft_model(model, config).base_model.model[0]
    factors = layer.factors
    A, B = layer.kind.lora_pair(factors.left * (layer.delta * factors.scale), factors.right)
    with torch.no_grad():
        if name == "embedding":
            lora.lora_embedding_A["default"].copy_(A)
            lora.lora_embedding_B["default"].copy_(B)
        else:
            for half, pair in ((lora.lora_A, A), (lora.lora_B, B)):
                half["default"].weight.copy_(pair.reshape(half["default"].weight.shape))
    torch.testing.assert_close(lora(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (nn.Embedding(8, 4, max_norm=1.0), ValueError, r"max_norm 1\.0 and changes its weight in use"),
        (nn.ConvTranspose2d(2, 3, 2), TypeError, "the layer is a ConvTranspose2d; accepted: nn.Linear"),
        (nn.Bilinear(2, 3, 4), TypeError, "the layer is a Bilinear"),
        (nn.MultiheadAttention(4, 1), TypeError, "the layer is a MultiheadAttention"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_layers_are_refused(layer, error, message):
    with pytest.raises(error, match=message):
        kind_of(layer)
