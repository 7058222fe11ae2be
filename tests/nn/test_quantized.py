"""Quantized bases, by the real libraries: factored as the numbers they stand for, and never written to."""

import subprocess
import sys

import pytest
import torch
from half_precision import assert_within, gamma, without_signs
from peft import get_peft_model
from torch import nn
from torch.nn.functional import linear

from lowrank_ldu.nn import LDULayer, inject, merge, set_plan
from lowrank_ldu.nn.quantized import dense_weight, is_quantized
from lowrank_ldu.nn.weights import weight_matrix
from lowrank_ldu.peft import LolduConfig


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


def torchao(config):
    from torchao.quantization import quantize_

    model = nn.Sequential(plain()).eval()
    quantize_(model, config)
    return model[0]


def torchao_int8():
    from torchao.quantization import Int8WeightOnlyConfig

    return torchao(Int8WeightOnlyConfig())


def torchao_int4():
    from torchao.quantization import IntxWeightOnlyConfig

    return torchao(IntxWeightOnlyConfig(weight_dtype=torch.int4))


def torchao_float8():
    from torchao.quantization import Float8WeightOnlyConfig

    return torchao(Float8WeightOnlyConfig())


def torchao_opaque():
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    return torchao(PrototypeInt4WeightOnlyConfig(group_size=32))


def torchao_nf4():
    from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import linear_nf4, to_nf4

    class Linear(nn.Linear):  # NF4Tensor is no weight for nn.Linear's own forward
        def forward(self, x):
            return linear_nf4(x, self.weight) + self.bias

    layer = Linear(64, 32)
    layer.load_state_dict(plain().state_dict())
    layer.weight = nn.Parameter(to_nf4(layer.weight.detach(), 64, 32), requires_grad=False)
    return layer


class HQQLinear(nn.Module):
    """Stands in for the class of that name, told by its name and library. Like that, it has no `weight`."""

    def __init__(self):
        super().__init__()
        layer = plain()
        self.in_features, self.out_features, self.bias = 64, 32, layer.bias
        self.scale = layer.weight.detach().abs().max() / 127
        self.W_q = nn.Parameter((layer.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)

    def dequantize(self):
        return self.W_q.float() * self.scale

    def forward(self, x):
        return linear(x, self.dequantize(), self.bias)


HQQLinear.__module__ = "hqq.core.quantize"

# The step between neighboring numbers, in units of the largest of a row or block: 1/127 (by way of float16 with
# bitsandbytes),
# and the gaps of 4 bits.
KINDS = [
    pytest.param(eight_bits, 0.55 / 127, id="bitsandbytes 8 bits"),
    pytest.param(lambda: four_bits(quant_type="nf4"), 0.16, id="bitsandbytes nf4"),
    pytest.param(lambda: four_bits(quant_type="fp4"), 0.17, id="bitsandbytes fp4"),
    pytest.param(lambda: four_bits(quant_type="nf4", compress_statistics=True), 0.17, id="bitsandbytes double"),
    pytest.param(lambda: four_bits(quant_storage=torch.bfloat16), 0.17, id="bitsandbytes stored as bfloat16"),
    pytest.param(torchao_int8, 0.5 / 127, id="torchao int8"),
    pytest.param(torchao_int4, 0.5 / 7, id="torchao int4"),
    pytest.param(torchao_opaque, 0.5 / 7, id="torchao int4 in a kernel's order"),
    pytest.param(torchao_float8, 1 / 16, id="torchao float8"),
    pytest.param(torchao_nf4, 0.17, id="torchao nf4"),
    pytest.param(HQQLinear, 0.5 / 127, id="HQQ stand-in"),
]

# Scales are rounded to bfloat16, once, and multiply codes in float32, on both sides.
ROUNDED_SCALES = gamma(1, torch.bfloat16) + 2 * gamma(1, torch.float32)
# A code, its scale and 1/127: two products on both sides.
OTHER_ORDER = 2 * gamma(2, torch.float32)


@pytest.mark.parametrize(("make", "step"), KINDS)
def test_the_dense_weight_is_what_the_layer_multiplies_by(make, step):
    layer = make()
    assert is_quantized(layer)
    dense = dense_weight(layer)
    original = plain().weight.detach()
    assert dense.shape == original.shape
    # bitsandbytes' 8 bits quantize the input, too, by way of float16, where 127 is exact.
    x = torch.eye(64) * 127.0
    products = (layer(x).float() - layer.bias).T
    expected = dense.float() * 127.0
    # Sums of one number each: two products by scales and one by 127, the bias added and taken off, and the product of
    # the other side. bitsandbytes may do its own in float16.
    allowed = gamma(6, torch.float16 if make is eight_bits else torch.float32)
    assert_within(products, expected, allowed * (expected.abs() + layer.bias.detach().abs()[:, None]))
    assert (dense - original).abs().max() <= step * original.abs().max() * 1.01


@pytest.mark.parametrize(("make", "step"), KINDS)
def test_a_layer_leaves_the_base_quantized(make, step):
    del step
    base = make()
    x = torch.randn(5, 64)
    before, stored = base(x), dense_weight(base).clone()
    layer = LDULayer(base, 8)
    assert torch.equal(layer(x), before)
    with torch.no_grad():
        layer.offset.normal_(std=0.1)
    factors = layer.factors
    update = (factors.left.double() * (layer.delta * factors.scale).double()) @ factors.right.double()
    expected = before.double() + x.double() @ update.T
    # What the base gives is the same on both sides; the update is off by its roundings, and so is the sum with it.
    summed = before.abs() + x.abs() @ (factors.left.abs() * (layer.delta * factors.scale).abs() @ factors.right.abs()).T
    assert_within(layer(x), expected, gamma(x.shape[1] + layer.rank + 4, before.dtype) * summed)
    assert is_quantized(base)
    assert torch.equal(dense_weight(base), stored)
    with pytest.raises(TypeError, match="the base layer is a quantized .*, which would lose the update in rounding"):
        layer.merge()


@pytest.mark.parametrize("core", ["diagonal", "dense"])
# Without 8 bits of bitsandbytes, which quantize the input, too, and what has no gradient of x.
@pytest.mark.parametrize(
    "make", [each.values[0] for each in KINDS if each.values[0] not in {eight_bits, torchao_opaque}]
)
def test_the_projection_is_gathered_from_the_quantized_layers_output(make, core):
    layer = LDULayer(make(), 8, core=core, parametrization="gram", pivoting="complete")
    with torch.no_grad():
        layer.offset.normal_(std=0.1)
    x = torch.randn(5, 64, requires_grad=True)
    expected = layer(x)
    parameters = [x, layer.offset]
    gradients = torch.autograd.grad(expected.float().square().sum(), parameters)
    set_plan(layer, "skeleton")
    y = layer(x)
    amplification = layer.factors.quantized_skeleton(layer.base_layer).amplification
    # Entries of y are rounded to its dtype, and of sums of 64 products, before they are enlarged.
    allowed = gamma(x.shape[1] + 8, y.dtype) * amplification
    scale = expected.detach().float().norm()
    assert (y - expected).detach().float().norm() <= allowed * scale
    for one, other in zip(torch.autograd.grad(y.float().square().sum(), parameters), gradients, strict=True):
        assert (one - other).norm() <= 4 * allowed * other.norm()


def test_a_quantized_layer_without_a_skeleton_says_so():
    layer = LDULayer(four_bits(quant_type="nf4"), 8, basis="svd")
    set_plan(layer, "skeleton")
    with pytest.raises(RuntimeError, match="plan 'skeleton' cannot run here: there is no skeleton of this weight"):
        layer(torch.randn(5, 64))


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
    with pytest.raises(ValueError, match="layer '0': the base layer is a quantized"):
        model.merge_and_unload()
    assert torch.equal(model.unload()(x), before)


def test_a_quantized_layer_whose_output_is_not_its_product_is_refused():
    import bitsandbytes

    class Tripled(bitsandbytes.nn.Linear4bit):
        def forward(self, x):
            return 3 * super().forward(x)

    layer = Tripled(64, 32, compute_dtype=torch.float32)
    layer.load_state_dict(plain().state_dict())
    model = nn.Sequential(layer.to("cpu"))
    with pytest.raises(
        ValueError, match="layer '0': .* a quantized weight, whose output is not their product; accepted"
    ):
        inject(model, ["0"], rank=4)
    assert model[0] is layer


@pytest.mark.parametrize("make", [four_bits, torchao_int8])
def test_hooks_of_a_quantized_layer_see_the_update(make):
    base = make()
    x = torch.randn(3, 64)
    plain_layer = LDULayer(make(), rank=4)
    base.register_forward_hook(lambda module, args, y: 3 * y)
    layer = LDULayer(base, rank=4)
    with torch.no_grad():
        layer.offset.normal_()
        plain_layer.offset.copy_(layer.offset)
        dense = plain()
        dense.weight.copy_(dense_weight(plain_layer.base_layer))
        allowed = 2 * gamma(64 + 4 + 7, x.dtype) * 3 * without_signs(plain_layer, x, dense)
        assert_within(layer(x), 3 * plain_layer(x), allowed)


def test_a_model_with_quantized_layers_is_not_merged():
    model = nn.Sequential(eight_bits())
    inject(model, "all-linear", 4)
    with pytest.raises(TypeError, match="layer '0': the base layer is a quantized Linear8bitLt"):
        merge(model)


def test_not_yet_quantized_is_a_floating_weight():
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(8, 8)
    assert not is_quantized(layer)
    assert torch.equal(weight_matrix(layer), layer.weight)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_bare_integers_and_bytes_are_refused(dtype):
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.ones(4, 4).to(dtype), requires_grad=False)
    with pytest.raises(TypeError, match=f"the weight of a Linear is {str(dtype).removeprefix('torch.')}, which says"):
        LDULayer(layer, 2)


@pytest.mark.parametrize("options", [{"quant_type": "nf4"}, {"quant_type": "fp4"}, {"compress_statistics": True}])
def test_codes_reordered_for_a_cpu_are_read_in_their_order(options):
    from bitsandbytes.functional import _convert_weight_packed_for_cpu

    layer = four_bits(**options)
    before = dense_weight(layer)
    # What the first inference does on a CPU with AVX512-BF16, scales in bfloat16 included.
    state = layer.weight.quant_state
    layer.weight.data, _ = _convert_weight_packed_for_cpu(layer.weight.data, state)
    codes, scales = layer.weight.data.clone(), state.absmax.clone()
    dense = dense_weight(layer)
    assert dense.dtype == before.dtype
    assert_within(dense, before, ROUNDED_SCALES * before.abs())
    assert state.packing_format_for_cpu
    assert torch.equal(layer.weight.data, codes)
    assert torch.equal(state.absmax, scales)


def test_an_inference_changes_no_dense_weight_beyond_bfloat16():
    layer = four_bits(quant_type="nf4").eval()
    before = dense_weight(layer)
    with torch.no_grad():
        layer(torch.randn(3, 64))
    assert_within(dense_weight(layer), before, ROUNDED_SCALES * before.abs())


def test_the_dense_weight_is_the_librarys_own():
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant

    layer = four_bits(quant_type="nf4")
    assert torch.equal(dense_weight(layer), dequantize_4bit(layer.weight.data, layer.weight.quant_state))
    layer = eight_bits()
    own = int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)
    assert_within(dense_weight(layer), own, OTHER_ORDER * own.abs())
    layer(torch.randn(2, 64))
    assert layer.weight.SCB is None  # moved to the state
    assert_within(dense_weight(layer), own, OTHER_ORDER * own.abs())


@pytest.mark.parametrize("name", ["Embedding8bit", "EmbeddingNF4", "EmbeddingFP4"])
def test_embeddings(name):
    import bitsandbytes

    layer = getattr(bitsandbytes.nn, name)(10, 64)
    layer.load_state_dict(nn.Embedding(10, 64).state_dict())
    layer = layer.to("cpu")
    assert is_quantized(layer)
    own = layer(torch.arange(10))
    assert_within(dense_weight(layer), own, OTHER_ORDER * own.abs())


def test_a_quant_state_that_only_the_layer_has_left():
    layer = four_bits()
    dense = dense_weight(layer)
    layer.weight.quant_state = None
    assert torch.equal(dense_weight(layer), dense)
    layer.quant_state = None
    assert is_quantized(layer)
    with pytest.raises(TypeError, match="the 4-bit weight of a Linear4bit has no quant_state; accepted"):
        dense_weight(layer)


def test_eight_bits_without_scales_are_refused():
    layer = eight_bits()
    layer.weight.SCB = None
    with pytest.raises(TypeError, match="the 8-bit weight of a Linear8bitLt has no scales; accepted"):
        dense_weight(layer)


class WrappedTensor(torch.Tensor):
    """As quanto's: floating to look at, with its storage elsewhere."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=torch.float32)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        raise NotImplementedError(f"{cls.__name__}: {function}")


class TorchAOBaseTensor(WrappedTensor):
    """Stands in for torchao's formats of which no operation runs on this machine."""


TorchAOBaseTensor.__module__ = "torchao.utils"


def test_a_tensor_class_that_is_not_known_is_refused():
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(WrappedTensor(torch.ones(4, 4, dtype=torch.int8)), requires_grad=False)
    assert not is_quantized(layer)
    with pytest.raises(TypeError, match=r"the weight of a Linear is a .*WrappedTensor, whose storage is not known"):
        dense_weight(layer)


def test_a_torchao_format_that_cannot_be_read_is_refused():
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(TorchAOBaseTensor(torch.ones(4, 4, dtype=torch.int8)), requires_grad=False)
    assert is_quantized(layer)
    with pytest.raises(TypeError, match=r"a torchao\.utils\.TorchAOBaseTensor, which can neither be dequantized nor"):
        dense_weight(layer)


def test_a_layer_without_a_weight_is_refused():
    assert not is_quantized(nn.Identity())
    with pytest.raises(TypeError, match="the weight of a Identity is of type NoneType; accepted"):
        dense_weight(nn.Identity())


def test_a_class_that_is_only_named_so_is_not_hqq():
    other = type("HQQLinear", (nn.Linear,), {"__module__": "mine"})(4, 4)
    assert not is_quantized(other)
    assert dense_weight(other).data_ptr() == other.weight.data_ptr()
    assert not dense_weight(other).requires_grad


def test_no_library_is_imported_for_a_plain_layer():
    code = (
        "import sys, torch; from lowrank_ldu.nn.quantized import dense_weight; dense_weight(torch.nn.Linear(2, 2)); "
        "assert not {'bitsandbytes', 'torchao', 'hqq'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
