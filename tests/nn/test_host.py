"""What every host of adapters does alike: the standalone layer, and the layer under PEFT."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.nn.utils import prune

from lowrank_ldu.nn import inject
from lowrank_ldu.nn.host import AdapterHost, hosts
from lowrank_ldu.nn.kinds import LinearKind
from lowrank_ldu.peft import LolduConfig

MEMBERS = {name: lambda self: iter(()) for name in AdapterHost.__abstractmethods__}
# What each of them raises where the other raises it, too, and what the message begins with.
STANDALONE = {"type": TypeError, "state": RuntimeError, "range": OverflowError, "prefix": "^"}
UNDER_PEFT = {"type": ValueError, "state": ValueError, "range": ValueError, "prefix": "layer '0': "}


def standalone(*modules):
    model = nn.Sequential(*modules)
    inject(model, ["0"], 4)
    return model[0], STANDALONE


def under_peft(*modules):
    model = get_peft_model(nn.Sequential(*modules), LolduConfig(r=4, target_modules=["0"]))
    return model.base_model.model[0], UNDER_PEFT


both = pytest.mark.parametrize("make", [standalone, under_peft])


def trained(host, size=0.3):
    torch.manual_seed(1)
    for diagonal in host.held_adapters():
        with torch.no_grad():
            diagonal.adapter.offset.add_(size * torch.randn_like(diagonal.adapter.offset))
    return host


def refused(kind, expected, message):
    return pytest.raises(expected[kind], match=expected["prefix"] + message)


@pytest.mark.parametrize("missing", sorted(MEMBERS))
def test_a_host_has_all_abstract_members(missing):
    members = {name: member for name, member in MEMBERS.items() if name != missing}
    with pytest.raises(TypeError, match=f"abstract.*{missing}"):
        type("Host", (AdapterHost,), members)(nn.Linear(3, 2))
    with pytest.raises(TypeError, match="abstract"):
        AdapterHost(nn.Linear(3, 2))


def test_abstract_members_are_all_that_a_host_lacks():
    base = nn.Linear(3, 2)
    host = type("Host", (AdapterHost,), MEMBERS)(base)
    assert set(MEMBERS) == {"held_adapters", "merge", "unmerge"}
    assert host.base_layer is base
    assert host.kind is LinearKind
    assert not host.merged
    assert dict(hosts(nn.Sequential(host))) == {"0": host}


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_merging_is_what_the_layer_computes_and_unmerging_is_bit_for_bit(make, dtype):
    base = nn.Linear(12, 10).to(dtype)
    weight, x = base.weight.detach().clone(), torch.randn(5, 12, dtype=dtype)
    step_0 = base(x)
    host, _ = make(base)
    assert host.base_layer is base
    assert host.kind is LinearKind
    assert torch.equal(host(x), step_0)
    adapted = trained(host)(x)
    assert torch.equal(base.weight, weight)
    for _ in range(2):
        host.merge()
        assert host.merged
        tolerance = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(host(x), adapted, **tolerance)
        assert not torch.equal(base.weight, weight)
        # Whatever becomes of the numbers meanwhile.
        trained(copy.deepcopy(host), 7.0).unmerge()
        host.unmerge()
        assert not host.merged
        assert torch.equal(base.weight, weight)
        assert torch.equal(host(x), adapted)


@both
def test_a_copy_of_a_merged_host_comes_back_by_itself(make):
    host = trained(make(nn.Linear(12, 10))[0])
    weight = host.base_layer.weight.detach().clone()
    host.merge()
    merged, other = host.base_layer.weight.detach().clone(), copy.deepcopy(host)
    other.unmerge()
    assert torch.equal(other.base_layer.weight, weight)
    assert torch.equal(host.base_layer.weight, merged)
    host.unmerge()
    assert torch.equal(host.base_layer.weight, weight)


@both
def test_a_tied_weight_is_not_merged_into(make):
    base, other = nn.Linear(8, 8), nn.Linear(8, 8)
    other.weight = base.weight
    host, expected = make(base, other)
    weight = base.weight.detach().clone()
    message = "the weight is tied to that of a Linear, which merging would change; accepted: weights of their own"
    for refuse in (host.merge, host.check_mergeable):
        with refused("state", expected, message):
            refuse()
    assert not host.merged
    assert torch.equal(base.weight, weight)
    other.weight = nn.Parameter(weight.clone())
    trained(host).merge()
    assert torch.equal(other.weight, weight)


@both
def test_a_quantized_weight_is_not_merged_into(make):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    base = bitsandbytes.nn.Linear8bitLt(16, 12, has_fp16_weights=False)
    base.load_state_dict(nn.Linear(16, 12).state_dict())
    host, expected = make(base.to("cpu"))
    codes = base.weight.detach().clone()
    message = "the base layer is a quantized Linear8bitLt, which would lose the update in rounding; accepted"
    with refused("type", expected, message):
        trained(host).merge()
    assert not host.merged
    assert torch.equal(base.weight, codes)


@both
def test_a_weight_that_is_computed_is_not_merged_into(make):
    base = nn.Linear(6, 6)
    prune.l1_unstructured(base, "weight", 0.3)
    host, expected = make(base)
    for refuse in (host.merge, host.check_mergeable):
        with refused("type", expected, "the weight of the .* is .*, which would undo the merge; accepted"):
            refuse()
    assert not host.merged


@both
def test_a_merge_that_overflows_is_refused_and_changes_nothing(make):
    base = nn.Linear(8, 8).half()
    weight = base.weight.detach().clone()
    host, expected = make(base)
    for diagonal in host.held_adapters():
        with torch.no_grad():
            diagonal.adapter.offset.fill_(1e6)
    with pytest.raises(expected["range"], match="the merged weight overflows float16"):
        host.merge()
    assert torch.equal(base.weight, weight)
    assert not host.merged


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.data.add_(1),
        lambda weight: weight.data.view(-1)[3:4].mul_(1.5),
        lambda weight: weight.data.copy_(weight.data.flip(0)),
        lambda weight: weight.data.copy_(weight.data.flip(1)),
    ],
    ids=["all", "one entry", "rows exchanged", "columns exchanged"],
)
def test_a_merged_weight_that_was_changed_is_not_unmerged(make, dtype, change):
    """What was written into it would be lost; by whatever way it was written."""
    host, expected = make(nn.Linear(12, 10).to(dtype))
    trained(host).merge()
    change(host.base_layer.weight)
    changed = host.base_layer.weight.detach().clone()
    message = "the merged weight has been changed since it was merged, which putting the base back would"
    with refused("state", expected, message):
        host.unmerge()
    assert host.merged
    assert torch.equal(host.base_layer.weight, changed)


@both
def test_a_weight_of_inference_mode_is_merged_into_and_comes_back(make):
    with torch.inference_mode():
        base = nn.Linear(12, 10)
    weight = base.weight.clone()
    host = trained(make(base)[0])
    host.merge()
    assert not torch.equal(base.weight, weight)
    host.unmerge()
    assert torch.equal(base.weight, weight)


@both
def test_autograd_notices_a_merge_before_the_backward_pass(make):
    """It would differentiate by the merged weight."""
    host = trained(make(nn.Conv1d(12, 10, 3))[0])
    y = host(torch.randn(5, 12, 7, requires_grad=True))
    host.merge()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
