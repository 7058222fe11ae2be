"""Sums of gradients and of inputs: autograd's own, whatever the model is made of, and the model is left as it was."""

import copy

import pytest
import torch
from fitted_models import batches, gradients, loss, model
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from lowrank_ldu.fitting import input_moments, loss_gradients, target_layers
from lowrank_ldu.nn import LDULayer, inject

# Sums of some tens of products of numbers of size 1.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 3e-2}


def collected(network, data, function=loss, targets="all-linear", **options):
    layers = target_layers(network, targets)
    return {layer.name: total for layer, total in loss_gradients(network, layers, data, function, **options)}


def check(found, expected, dtype=torch.float32):
    for name, total in found.items():
        reference = expected[f"{name}.weight"].to(total.dtype)
        assert total.shape == reference.shape
        assert (total - reference).norm() <= TOLERANCE[dtype] * reference.norm()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_sums_are_autograds_gradients(dtype):
    network, data = model(dtype), batches(dtype=dtype)
    found = collected(network, data)
    assert list(found) == ["first", "second", "third"]
    assert all(total.dtype == torch.promote_types(dtype, torch.float32) for total in found.values())
    check(found, gradients(network, data, loss), dtype)


@given(count=st.integers(1, 6), limit=st.integers(1, 800), seed=st.integers(0, 99))
def test_sums_depend_neither_on_memory_nor_on_what_is_frozen(count, limit, seed):
    network, data = model(), batches(count, seed=seed)
    expected = collected(network, data)
    for parameter in network.parameters():
        parameter.requires_grad = False
    limited = collected(network, iter(data), max_bytes=limit, batches=count)
    assert all(torch.equal(limited[name], total) for name, total in expected.items())


def test_only_so_many_batches_are_taken():
    data = iter(batches(5))
    found = collected(model(), data, batches=2)
    assert len(list(data)) == 3
    check(found, gradients(model(), batches(5)[:2], loss))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_checkpointed_calls_count_once(reentrant, frozen):
    network, data = model(), batches()
    inner = network.second

    def checkpointed(network, batch):
        x = torch.tanh(network.first(batch[0]))
        x = torch.tanh(network.first(x))
        x = checkpoint(lambda x: torch.relu_(inner(x)), x, use_reentrant=reentrant)
        return nn.functional.mse_loss(network.third(x), batch[1])

    for parameter in network.parameters():
        parameter.requires_grad = not frozen
    found = collected(network, data, checkpointed)
    check(found, gradients(model(), data, loss))


def test_a_frozen_model_of_reentrant_blocks_is_reached_by_its_embeddings():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.inner, self.head = nn.Embedding(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)

        def get_input_embeddings(self):
            return self.embedding

        def forward(self, ids):
            return self.head(checkpoint(lambda x: self.inner(x).tanh(), self.embedding(ids), use_reentrant=True))

    data = [(torch.tensor([[0, 1], [3, 4]]), torch.randn(2, 2, 4))]
    torch.manual_seed(0)
    network = Tokens()
    expected = gradients(network, data, loss)
    network.requires_grad_(requires_grad=False)
    check(collected(network, data), expected)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_callers_context_has_no_say(around):
    network, data = model(), batches()
    expected = collected(network, data)
    with around():
        found = collected(network, data)
    assert all(torch.equal(found[name], total) for name, total in expected.items())


def test_batches_of_inference_mode_are_differentiated_through():
    expected = collected(model(), batches())
    with torch.inference_mode():
        data = batches()
    found = collected(model(), data)
    assert all(torch.equal(found[name], total) for name, total in expected.items())


@pytest.mark.parametrize("around", [torch.enable_grad, torch.inference_mode])
def test_a_model_of_inference_mode_is_refused_or_as_it_was(around):
    data = [(x,) for x, _ in batches()]
    network = model()
    expected = [total for _, total in input_moments(network, target_layers(network, "all-linear"), data)]
    with torch.inference_mode():
        network = model()
    network.first.bias.requires_grad = False
    trained = [parameter.requires_grad for parameter in network.parameters()]
    with around():
        with pytest.raises(ValueError, match="parameter 'first.weight' was made in torch.inference_mode.*; accepted: "):
            collected(network, batches())
        moments = [total for _, total in input_moments(network, target_layers(network, "all-linear"), data)]
    assert all(map(torch.equal, moments, expected))
    assert [parameter.requires_grad for parameter in network.parameters()] == trained
    collected(copy.deepcopy(network), batches())


def test_conv1d_is_read_as_its_transpose():
    torch.manual_seed(0)
    network = nn.Sequential(Conv1D(7, 6), nn.GELU(), Conv1D(4, 7))
    data = batches()
    found = collected(network, data)
    check(found, {name: total.mT for name, total in gradients(network, data, loss).items() if total.ndim == 2})


def test_layers_with_adapters_have_the_gradient_of_the_base():
    network, data = model(), batches()
    inject(network, ["first", "third"], rank=2)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, LDULayer):
                layer.adapter.offset += 0.1
    bases = {"first": network.first, "second": network.second, "third": network.third}
    plain = model()
    for name, layer in bases.items():
        weight = layer.base_layer.weight + layer.delta_weight() if isinstance(layer, LDULayer) else layer.weight
        getattr(plain, name).weight.data = weight.detach().clone()
    check(collected(network, data), gradients(plain, data, loss))
    assert [layer.name for layer in target_layers(network, ["first"])] == ["first"]


def test_layers_inside_of_pefts_are_found():
    network, data = model(), batches()
    expected = gradients(model(), data, loss)
    wrapped = get_peft_model(network, LoraConfig(target_modules=["first", "third"], r=2))
    found = collected(wrapped, data)
    # By the names of the model that PEFT was given, which inject and LolduConfig take.
    assert list(found) == ["first", "second", "third"]
    check(found, expected)


def test_input_moments_need_no_labels():
    network = model()
    data = [batch[0] for batch in batches()]
    layers = target_layers(network, ["first", "third"])
    seen = []
    handle = network.first.register_forward_hook(lambda module, args, y: seen.append(args[0].reshape(-1, 6)))
    found = {layer.name: total for layer, total in input_moments(network, layers, data)}
    handle.remove()
    x = torch.cat(seen)
    assert torch.allclose(found["first"], x.T @ x, rtol=1e-5, atol=1e-5)
    assert found["third"].shape == (9, 9)
    keyed = {layer.name: total for layer, total in input_moments(network, layers, [{"x": each} for each in data])}
    listed = {layer.name: total for layer, total in input_moments(network, layers, [(each,) for each in data])}
    assert all(torch.equal(found[name], other[name]) for name in found for other in (keyed, listed))


class Interrupt(BaseException):
    pass


def state_of(network):
    return (
        [(module, module.training, dict(module._forward_hooks)) for module in network.modules()],
        [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in network.parameters()],
        torch.get_rng_state().clone(),
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize("error", [None, ValueError, Interrupt])
@pytest.mark.parametrize("source", ["gradient", "activation"])
def test_a_model_is_left_as_it_was(error, source):
    network, data = model(), batches()
    network.train()
    network.second.eval()
    network.first.bias.requires_grad = False
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = state_of(network)

    def failing(network, batch):
        torch.rand(3)
        value = loss(network, batch)
        if error is not None and batch is not data[0] and batch[0].equal(data[1][0]):
            raise error
        return value

    sums = loss_gradients if source == "gradient" else input_moments
    if error is None:
        list(sums(network, target_layers(network, "all-linear"), data, failing))
    else:
        with pytest.raises(error):
            list(sums(network, target_layers(network, "all-linear"), data, failing))
    after = state_of(network)
    assert after[0] == before[0]
    assert [flag for flag, _ in after[1]] == [flag for flag, _ in before[1]]
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(after[1], before[1], strict=True))
    assert torch.equal(after[2], before[2])
    assert after[3] == before[3]


def test_a_change_of_an_input_in_place_is_an_error():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x):
            x = x * 1
            y = self.layer(x)
            x += 1
            return y

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        collected(InPlace(), batches())


def with_extra(network):
    network.unused = nn.Linear(3, 3)
    return network


def detached(network, batch):
    network.first(batch[0])
    hidden = network.second(network.first(batch[0])).detach()
    return nn.functional.mse_loss(network.third(hidden), batch[1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: collected(model(), [], loss), ValueError, "data holds no batch; accepted: at least one$"),
        (lambda: collected(model(), batches()[0][0]), TypeError, "data is a Tensor; accepted: an iterable of batches"),
        (lambda: collected(model(), {"x": 1}), TypeError, "data is a dict; accepted: an iterable of batches"),
        (lambda: collected(model(), batches(), batches=0), ValueError, "batches is 0; accepted: an integer from 1 on$"),
        (lambda: collected(model(), batches(), max_bytes=0), ValueError, "max_bytes is 0; accepted: an integer from"),
        (
            lambda: collected(model(), batches(), None),
            TypeError,
            "loss is None and a batch is a tuple; accepted: batch",
        ),
        (
            lambda: collected(model(), [{"x": batches()[0][0]}], None),
            ValueError,
            r"loss is None and model\(\*\*batch\) returned no loss; accepted: batches with",
        ),
        (
            lambda: collected(model(), batches(), lambda m, b: m(b[0])),
            TypeError,
            r"loss returned a tensor of torch.float32 \(5, 2, 4\); accepted: a tensor of one floating number$",
        ),
        (
            lambda: collected(model(), batches(), lambda m, b: 1.0),
            TypeError,
            "loss returned .*float.*; accepted: a tens",
        ),
        (
            lambda: collected(model(), batches(), lambda m, b: loss(m, b) * float("nan")),
            ValueError,
            "loss returned nan; accepted: a finite number$",
        ),
        (
            lambda: collected(with_extra(model()), batches()),
            ValueError,
            "layer 'unused' is never called in 3 batches; accepted: layers that the batches reach$",
        ),
        (
            lambda: collected(model(), batches(1), detached),
            ValueError,
            "layer 'first' is called, but its output has no effect on the loss in 1 batch; accepted",
        ),
        (
            lambda: collected(model(), batches(), lambda m, b: torch.tensor(1.0)),
            ValueError,
            r"loss does not depend on the layers \('first', 'second', 'third'\); accepted",
        ),
        (
            lambda: collected(model(), batches(), lambda m, b: 0 * loss(m, b)),
            ValueError,
            "layer 'first': the gradient is zero in 3 batches; accepted",
        ),
        (
            lambda: collected(model(), batches(), lambda m, b: (m(b[0]) * 1e38).tanh().mean() * 1e38),
            ValueError,
            "layer '.*': the gradient is (not finite|zero) in 3 batches; accepted",
        ),
    ],
)
def test_what_gives_no_gradient_is_named(call, error, message):
    with pytest.raises(error, match=message) as raised:
        call()
    assert len(str(raised.value).splitlines()) == 1


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("network", "targets", "error", "message"),
    [
        (model(), ["fourth"], ValueError, "target 'fourth' matches no module; layers of this model that .* end with: "),
        (model(), [], ValueError, "targets is empty; accepted: a sequence of module names"),
        (model(), 3, TypeError, "targets is 3; accepted: a sequence of module names"),
        (model(), "(", ValueError, "targets is '\\(', not a regular expression"),
        (
            nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1)),
            ["1"],
            TypeError,
            "matches '1', which is a Conv1d; accepted",
        ),
        (nn.Sequential(nn.ReLU()), "all-linear", ValueError, "holds no linear layer that is called; accepted"),
        (nn.Sequential(Scaled(2, 2)), ["0"], ValueError, "layer '0': it is a Scaled with a forward of its own"),
        (
            nn.ModuleList([nn.MultiheadAttention(4, 2), nn.Linear(2, 2)]),
            ["out_proj"],
            TypeError,
            "'0.out_proj', whose weight MultiheadAttention.forward reads without calling the layer; accepted",
        ),
        ("model", "all-linear", TypeError, "model is a str; accepted: a torch.nn.Module$"),
    ],
)
def test_targets_that_have_no_gradient_are_refused(network, targets, error, message):
    with pytest.raises(error, match=message):
        target_layers(network, targets)


def test_a_layer_of_several_names_is_one():
    network = model()
    network.again = network.first
    assert [layer.name for layer in target_layers(network, "all-linear")] == ["first", "second", "third"]
    assert [layer.name for layer in target_layers(network, r"sec.*|third")] == ["second", "third"]
    assert copy.deepcopy(network) is not network


def quantized(kind):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
    layer = bitsandbytes.nn.Linear4bit(64, 64) if kind == "4 bits" else bitsandbytes.nn.Linear8bitLt(
        64, 64, has_fp16_weights=False
    )  # fmt: skip
    layer.load_state_dict(network[2].state_dict())
    network[2] = layer
    return network.to("cpu")


@pytest.mark.parametrize("kind", ["4 bits", "8 bits"])
def test_a_quantized_layer_has_the_gradient_of_what_its_numbers_stand_for(kind):
    network = quantized(kind)
    plain = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
    plain.load_state_dict({name: value for name, value in network.state_dict().items() if name[0] == "0"}, strict=False)
    generator = torch.Generator().manual_seed(1)
    data = [tuple(torch.randn(8, 64, generator=generator) for _ in range(2)) for _ in range(2)]
    layers = {layer.name: layer for layer in target_layers(network, "all-linear")}
    with torch.no_grad():
        plain[2].weight.copy_(layers["2"].weight())
        plain[2].bias.copy_(network[2].bias)
    expected = gradients(plain, data, loss)
    for name, total in collected(network, data).items():
        reference = expected[f"{name}.weight"]
        # The libraries' products are in 16 bits, or of inputs in 8 bits.
        assert (total - reference).norm() <= 0.05 * reference.norm()
