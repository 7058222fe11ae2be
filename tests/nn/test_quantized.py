"""Quantised bases, by the real libraries: factored as the numbers they stand for, and never written to."""

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.nn.functional import linear

from lowrank_ldu.nn import LoLDULayer, inject, merge
from lowrank_ldu.nn.host import weight_matrix
from lowrank_ldu.nn.quantized import dense_weight, is_quantized
from lowrank_ldu.peft import LolduConfig

pytestmark = [
    # What the libraries say of themselves when they are first used.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def plain():
    torch.manual_seed(0)
    return nn.Linear(64, 32)


def eight_bits():
    import bitsandbytes

    layer = bitsandbytes.nn.Linear8bitLt(64, 32, has_fp16_weights=False)
    layer.load_state_dict(plain().state_dict())
    return layer.to("cpu")


def four_bits(**options):
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(64, 32, compute_dtype=torch.float32, **options)
    layer.load_state_dict(plain().state_dict())
    return layer.to("cpu")


def torchao_int8():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = nn.Sequential(plain())
    quantize_(model, Int8WeightOnlyConfig())
    return model[0]


class HQQLinear(nn.Module):
    """Stands in for the class of that name: HQQ has no build to test with here. It is told by its name alone."""

    def __init__(self):
        super().__init__()
        layer = plain()
        self.in_features, self.out_features, self.bias = 64, 32, layer.bias
        self.scale = layer.weight.detach().abs().max() / 127
        self.W_q = nn.Parameter((layer.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)

    @property
    def weight(self):
        return self.W_q

    def dequantize(self):
        return self.W_q.float() * self.scale

    def forward(self, x):
        return linear(x, self.dequantize(), self.bias)


HQQLinear.__module__ = "hqq.core.quantize"

# The step between neighbouring numbers, in units of the largest of a row or block: 1/127 (by way of float16 with
# bitsandbytes),
# and the gaps of 4 bits.
KINDS = [
    pytest.param(eight_bits, 0.55 / 127, id="bitsandbytes 8 bits"),
    pytest.param(lambda: four_bits(quant_type="nf4"), 0.16, id="bitsandbytes nf4"),
    pytest.param(lambda: four_bits(quant_type="fp4"), 0.17, id="bitsandbytes fp4"),
    pytest.param(lambda: four_bits(quant_type="nf4", compress_statistics=True), 0.17, id="bitsandbytes double"),
    pytest.param(torchao_int8, 0.5 / 127, id="torchao int8"),
    pytest.param(HQQLinear, 0.5 / 127, id="HQQ stand-in"),
]


@pytest.mark.parametrize(("make", "step"), KINDS)
def test_the_dense_weight_is_what_the_layer_multiplies_by(make, step):
    layer = make()
    assert is_quantized(layer)
    dense = dense_weight(layer)
    original = plain().weight.detach()
    assert dense.shape == original.shape
    # bitsandbytes' 8 bits quantise the input, too; float32 sums otherwise.
    x = torch.eye(64) * 127.0
    products = (layer(x).float() - layer.bias).T
    torch.testing.assert_close(products, dense.float() * 127.0, atol=0.05, rtol=0.01)
    assert (dense - original).abs().max() <= step * original.abs().max() * 1.01


@pytest.mark.parametrize(("make", "step"), KINDS)
def test_a_layer_leaves_the_base_quantised(make, step):
    del step
    base = make()
    x = torch.randn(5, 64)
    before, stored = base(x), dense_weight(base).clone()
    layer = LoLDULayer(base, 8)
    assert torch.equal(layer(x), before)
    with torch.no_grad():
        layer.offset.normal_(std=0.1)
    factors = layer.factors
    update = (factors.left.double() * (layer.delta * factors.scale).double()) @ factors.right.double()
    expected = before.double() + x.double() @ update.T
    torch.testing.assert_close(layer(x).double(), expected, atol=1e-4, rtol=1e-4)
    assert is_quantized(base)
    assert torch.equal(dense_weight(base), stored)
    with pytest.raises(TypeError, match="the base layer is a quantised .*, which would lose the update in rounding"):
        layer.merge()


@pytest.mark.parametrize(("make", "step"), KINDS[:-1])
def test_under_peft(make, step):
    del step
    base = nn.Sequential(make(), nn.ReLU())
    x = torch.randn(5, 64)
    before = base(x)
    model = get_peft_model(base, LolduConfig(r=8, target_modules=["0"]))
    assert torch.equal(model(x), before)
    model(x).square().mean().backward()
    adapter = model.base_model.model[0].adapter("default")
    assert adapter.offset.dtype == torch.float32
    assert adapter.offset.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="layer '0' is a quantised"):
        model.merge_and_unload()
    assert torch.equal(model.unload()(x), before)


def test_a_model_with_quantised_layers_is_not_merged():
    model = nn.Sequential(eight_bits())
    inject(model, "all-linear", 4)
    with pytest.raises(TypeError, match="layer '0': the base layer is a quantised Linear8bitLt"):
        merge(model)


def test_not_yet_quantised_is_a_floating_weight():
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(8, 8)
    assert not is_quantized(layer)
    assert torch.equal(weight_matrix(layer), layer.weight)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_bare_integers_and_bytes_are_refused(dtype):
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.ones(4, 4).to(dtype), requires_grad=False)
    with pytest.raises(TypeError, match=f"the weight of a Linear is {str(dtype).removeprefix('torch.')}, which says"):
        LoLDULayer(layer, 2)
