"""Coordinates of the diagonal: unit terms, an orthonormal frame, what they buy, and how models carry them."""

import copy
import warnings

import pytest
import torch
from half_precision import assert_as_near, assert_within, gamma, references
from hypothesis import given
from hypothesis import strategies as st
from minilm import checkpoint
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint as gradient_checkpoint

from lowrank_ldu.decomposition import PIVOTING
from lowrank_ldu.decomposition.gram import gram_matrix
from lowrank_ldu.nn import PARAMETRIZATIONS, LDULayer, inject, lowrank_layers, project_
from lowrank_ldu.nn.basis import WEIGHT_BASES
from lowrank_ldu.nn.coordinates import coordinates_of, from_core, to_core

EPS = torch.finfo(torch.float64).eps
parametrized = pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)


def float64_layer(m, n, rank=None, **options):
    return LDULayer(nn.Linear(n, m, bias=False).double(), rank, **options)


def trained(layer, size=0.1):
    with torch.no_grad():
        layer.offset.normal_(std=size)
        layer.sigma.mul_(0.8)
    return layer


@torch.no_grad()
def rounding_of_diagonal(layer):
    """Return how far z = z_start + T w may be off that was solved for w, and formed again; entry by entry.

    The solve of a triangular system is exact for one whose entries are off by gamma_r, and the product rounds as often:
    Higham, theorem 8.5 and section 3.5. Four more: differences and sums with the start, on the way there and back.
    """
    frame, w = layer.factors.frame, layer.offset.abs()
    moved = w if frame is None else frame.abs() * w if frame.ndim == 1 else frame.abs() @ w
    return 2 * gamma(layer.rank + 4, layer.offset.dtype) * (moved + layer.adapter.initial_diagonal.abs())


def unscaled_gram(layer):
    factors = layer.factors
    return gram_matrix(factors.left, factors.right * factors.scale[:, None])


def wilkinson(n):
    """Elimination of it grows as 2^n, and its terms are dependent to rounding for n beyond 50."""
    weight = torch.eye(n, dtype=torch.float64) - torch.ones(n, n, dtype=torch.float64).tril(-1)
    weight[:, -1] = 1
    return weight


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(PIVOTING), st.sampled_from(WEIGHT_BASES), st.data())
def test_the_gram_frame_is_orthonormal_and_an_isometry(m, n, pivoting, basis, data):
    rank = data.draw(st.integers(1, min(m, n)))
    layer = float64_layer(m, n, rank, pivoting=pivoting, basis=basis, parametrization="gram")
    gram, frame = unscaled_gram(layer), layer.factors.frame
    # Cholesky and the triangular solve lose the condition number; twice that for the product of both sides.
    tolerance = 20 * rank * EPS * torch.linalg.cond(gram).item()
    torch.testing.assert_close(frame.T @ gram @ frame, torch.eye(rank).double(), atol=tolerance, rtol=0)
    assert torch.equal(frame, frame.triu())
    w = torch.randn(rank, dtype=torch.float64)
    with torch.no_grad():
        layer.offset.copy_(w)
    torch.testing.assert_close(layer.delta_weight().norm(), w.norm(), atol=0, rtol=max(tolerance, 1e-13))
    # sigma scales the change; sigma_0 z_ref is taken off once more, and so sigma stays where it was here.
    changed = float64_layer(m, n, rank, alpha=rank / 4, parametrization="gram", basis=basis, pivoting=pivoting)
    with torch.no_grad():
        changed.offset.copy_(w)
    torch.testing.assert_close(changed.delta_weight().norm(), w.norm() / 4, atol=0, rtol=1e-8)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(PIVOTING))
def test_the_gradient_in_gram_coordinates_is_the_natural_gradient(m, n, pivoting):
    """A step of -g_w moves z by -G^-1 g_z: steepest descent in the metric of the weight."""
    base = nn.Linear(n, m, bias=False).double()
    x, target = torch.randn(20, n, dtype=torch.float64), torch.randn(20, m, dtype=torch.float64)
    gradients = {}
    for parametrization in ("diagonal", "gram"):
        layer = LDULayer(base, parametrization=parametrization, pivoting=pivoting)
        nn.functional.mse_loss(layer(x), target).backward()
        gradients[parametrization] = layer.offset.grad
    natural = torch.linalg.solve(unscaled_gram(layer), gradients["diagonal"])
    moved = to_core(gradients["gram"], layer.factors.frame)
    tolerance = 100 * EPS * torch.linalg.cond(unscaled_gram(layer)).item()
    torch.testing.assert_close(moved, natural, atol=tolerance * natural.norm().item(), rtol=0)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(PIVOTING), st.sampled_from(WEIGHT_BASES))
def test_normalized_terms_have_unit_norm(m, n, pivoting, basis):
    layer = float64_layer(m, n, pivoting=pivoting, basis=basis, parametrization="normalized")
    for i in range(layer.rank):
        with torch.no_grad():
            layer.offset.zero_()[i] = 1
        torch.testing.assert_close(layer.delta_weight().norm().item(), 1.0, rtol=1e-12, atol=0)


@given(st.integers(1, 9), st.sampled_from(PARAMETRIZATIONS), st.sampled_from(PIVOTING))
def test_from_core_inverts_to_core(rank, parametrization, pivoting):
    layer = float64_layer(10, 9, rank, parametrization=parametrization, pivoting=pivoting)
    frame = layer.factors.frame
    w = torch.randn(rank, dtype=torch.float64)
    condition = 1.0 if frame is None or frame.ndim == 1 else torch.linalg.cond(frame).item()
    offset = to_core(w, frame)
    torch.testing.assert_close(from_core(offset, frame), w, atol=10 * EPS * condition * w.norm().item(), rtol=0)
    stacked = to_core(torch.stack([w, 2 * w]), frame)
    torch.testing.assert_close(stacked, torch.stack([offset, 2 * offset]))


@parametrized
@pytest.mark.parametrize("basis", WEIGHT_BASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_set_z_and_set_delta_are_read_back(parametrization, basis, dtype):
    layer = LDULayer(nn.Linear(12, 10).to(dtype), 6, alpha=3, basis=basis, parametrization=parametrization)
    trained(layer)
    z = torch.randn(6).to(layer.offset.dtype)
    layer.adapter.set_z(z, layer.factors)
    assert_within(layer.z, z, rounding_of_diagonal(layer))
    delta = torch.randn(6).to(layer.offset.dtype)
    layer.adapter.set_delta(delta, layer.factors)
    # delta is sigma_0 times the difference of two diagonals.
    assert_within(layer.delta, delta, 2 * layer.sigma * rounding_of_diagonal(layer))
    assert layer.sigma.item() == 0.5


@parametrized
@pytest.mark.parametrize("basis", WEIGHT_BASES)
def test_projection_in_every_parametrization(parametrization, basis):
    layer = LDULayer(nn.Linear(12, 10), 6, basis=basis, parametrization=parametrization)
    trained(layer, 2.0)
    z = layer.z.detach().clone()
    project_(layer, 2 * z.norm().item())
    assert torch.equal(layer.z, z)
    limit = z.norm().item() / 3
    project_(layer, limit)
    # The norm that z was divided by is off by its roundings, and so is the one that is compared here.
    allowed = rounding_of_diagonal(layer) + gamma(layer.rank + 2, z.dtype) * z.abs() / 3
    assert_within(layer.z, z / 3, allowed)
    assert layer.z.norm().item() <= limit * (1 + gamma(layer.rank + 2, z.dtype)) + allowed.norm().item()


def test_dependent_terms_are_reported_and_the_frame_stays_finite():
    left, right = torch.randn(6, 2).double().repeat(1, 2), torch.randn(2, 5).double().repeat(2, 1)
    with pytest.warns(UserWarning, match=r"the 4 rank-one terms are linearly dependent to rounding: .* was added"):
        frame, jitter = coordinates_of(left, right, "gram")
    assert 0 < jitter < 1e-10
    assert frame.isfinite().all()
    base = nn.Linear(80, 80, bias=False).double()
    base.weight.data.copy_(wilkinson(80))
    with pytest.warns(UserWarning, match="a smaller rank, or parametrization 'normalized' or 'diagonal', avoids it"):
        layer = LDULayer(base, parametrization="gram")
    assert 0 < layer.factors.jitter < 1e-10
    with torch.no_grad():
        layer.offset.normal_()
    # The jitter is part of the metric: the change of the weight is no larger than w, and no noise.
    assert 0.1 < (layer.delta_weight().norm() / layer.offset.norm()).item() < 1.001
    assert all(buffer.isfinite().all() for buffer in layer.buffers())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert LDULayer(base, parametrization="normalized").factors.jitter == 0


@parametrized
@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(5, 4),
        torch.ones(5, 4),
        torch.randn(5, 4) * torch.tensor([1.0, 0, 1, 0])[:, None].repeat(2, 1)[:5],
        torch.randn(3, 4).repeat(2, 1),
        torch.randn(4, 5) * 1e-42,
        torch.randn(4, 5) * 1e37,
        torch.tensor([[0.0, 1.0], [0.0, 0.0]]),
    ],
    ids=["zero", "constant", "zero rows", "repeated rows", "subnormal", "huge", "no unit triangular factor"],
)
def test_weights_that_lack_terms(weight, parametrization):
    """Zero terms count with norm 1, so that no coordinate is infinite; a step along one changes nothing."""
    base = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    base.weight.data.copy_(weight)
    layer = LDULayer(base, parametrization=parametrization)
    assert all(buffer.isfinite().all() for buffer in layer.buffers())
    assert layer.factors.jitter == 0
    x = torch.eye(weight.shape[1])
    layer(x).sum().backward()
    assert layer.offset.grad.isfinite().all()
    scale = weight.abs().max().item()
    with torch.no_grad():
        layer.offset.fill_(0.1 * min(scale, 1.0))
    assert layer(x).isfinite().all()
    layer.adapter.set_z(layer.adapter.initial_diagonal, layer.factors)
    assert torch.equal(layer(x), base(x))


@pytest.mark.parametrize("parametrization", ["normalized", "gram"])
def test_a_zero_term_counts_with_norm_1(parametrization):
    left, right = torch.randn(5, 3, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    right[1] = 0
    frame, jitter = coordinates_of(left, right, parametrization)
    assert jitter == 0
    frame = frame.diag() if frame.ndim == 1 else frame
    assert frame[1].tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(("left_size", "right_size"), [(1e200, 1e-200), (1e100, 1.0), (1e-170, 1.0), (1e160, 1e100)])
def test_squares_that_overflow_float64(left_size, right_size):
    left, right = torch.randn(6, 3, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    expected, _ = coordinates_of(left, right, "gram")
    frame, jitter = coordinates_of(left * left_size, right * right_size, "gram")
    assert jitter == 0
    torch.testing.assert_close(frame * left_size * right_size, expected, rtol=1e-9, atol=1e-12)


def query_weights():
    tensors = load_file(checkpoint())
    return [tensors[name].double() for name in tensors if name.endswith("attention.self.query.weight")][:2]


def query_layer(parametrization, rank):
    base = nn.Linear(384, 384, bias=False).double()
    base.weight.data.copy_(query_weights()[0])
    return LDULayer(base, rank, parametrization=parametrization, train_sigma=False)


def test_gram_coordinates_train_in_one_step_where_the_diagonal_takes_hundreds():
    """Fit the layer's update to the next layer's weight by gradient descent, at the best fixed step of each.

    The best step is 2 / (largest + smallest curvature); the error then shrinks by (cond - 1) / (cond + 1) a step. The
    condition numbers are 64, 27 and 1 at this rank.
    """
    target = query_weights()[1] - query_weights()[0]
    updates = {}
    for parametrization in PARAMETRIZATIONS:
        layer = query_layer(parametrization, 64)
        frame = layer.factors.frame
        frame = torch.eye(64).double() if frame is None else frame.diag() if frame.ndim == 1 else frame
        hessian = frame.T @ unscaled_gram(layer) @ frame
        curvature = torch.linalg.eigvalsh(hessian)
        optimizer = torch.optim.SGD([layer.offset], lr=(2 / (curvature[0] + curvature[-1])).item())
        losses = []
        while len(losses) < 301:
            loss = (layer.delta_weight() - target).square().sum() / 2
            (layer.offset.grad,) = torch.autograd.grad(loss, layer.offset)
            # The part of the loss that the layer can still take away: the loss is quadratic.
            losses.append((layer.offset.grad @ torch.linalg.solve(hessian, layer.offset.grad)).item())
            if losses[-1] < 1e-6 * losses[0]:
                break
            optimizer.step()
        updates[parametrization] = len(losses) - 1
    assert updates["gram"] == 1
    assert 50 < updates["normalized"] < 150 < updates["diagonal"] < 300


class Net(nn.Module):
    """Layers of several kinds, in every parametrization."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.linear = nn.Linear(8, 8)
        self.conv = nn.Conv1d(5, 4, 3, padding=1)

    def forward(self, tokens):
        return self.conv(torch.tanh(self.linear(self.embedding(tokens))))


@pytest.fixture(params=PARAMETRIZATIONS)
def net(request):
    model = Net()
    for i, name in enumerate(["embedding", "linear", "conv"]):
        inject(model, [name], 3, parametrization=request.param, basis=WEIGHT_BASES[i % len(WEIGHT_BASES)])
    return model


def train(model):
    for _, layer in lowrank_layers(model):
        trained(layer)
    return model


tokens = torch.arange(10).reshape(2, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_that_is_cast(net, dtype):
    base = Net()
    for name, layer in lowrank_layers(net):
        base.get_submodule(name).load_state_dict(layer.base_layer.state_dict())
    net.to(dtype)
    assert torch.equal(net(tokens), base.to(dtype)(tokens))
    expected = train(net)(tokens)
    assert expected.dtype == dtype
    assert not torch.equal(expected, base(tokens))
    assert torch.equal(copy.deepcopy(net)(tokens), expected)
    # And back: the wider of the two is the oracle of the other.
    plain = base(tokens)
    results, plains = (expected, net.float()(tokens)), (plain, base.float()(tokens))
    if dtype == torch.float64:
        results, plains = results[::-1], plains[::-1]
    assert_as_near(*results, *plains)


def test_a_whole_model_that_is_copied_and_saved(net, tmp_path):
    expected = train(net)(tokens)
    torch.save(net, tmp_path / "net.pt")
    loaded = torch.load(tmp_path / "net.pt", weights_only=False)
    for model in (copy.deepcopy(net), loaded):
        assert torch.equal(model(tokens), expected)
        # Independent of the original, and as trainable.
        model.get_submodule("linear").offset.data.zero_()
        assert not torch.equal(model(tokens), expected)
        assert torch.equal(net(tokens), expected)
        assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in net.parameters()]
    near = references(net, base_of(net), tokens)
    torch.save(net.state_dict(), tmp_path / "state.pt")
    net.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    # The factors were made again.
    assert_as_near(net(tokens), *near)


def test_compile_without_a_break(net):
    train(net)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens), net(tokens))
    compiled(tokens).square().mean().backward()
    gradient = net.linear.offset.grad.clone()
    net.zero_grad()
    net(tokens).square().mean().backward()
    torch.testing.assert_close(net.linear.offset.grad, gradient)


def test_functional_call_and_gradients_of_many_rows_at_once(net):
    train(net)
    parameters = {name: parameter.detach() for name, parameter in net.named_parameters() if "adapter" in name}

    def loss(parameters, tokens):
        return torch.func.functional_call(net, parameters, (tokens,)).square().mean()

    gradients = torch.func.grad(loss)(parameters, tokens)
    net(tokens).square().mean().backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, net.get_parameter(name).grad)
    # One gradient for each row of the batch.
    rows = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, tokens[:, None])
    for name, gradient in gradients.items():
        torch.testing.assert_close(rows[name].mean(0), gradient, atol=1e-6, rtol=1e-5)


def test_autocast_to_bfloat16(net):
    train(net)
    expected = net(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = net(tokens)
        plain = base_of(net)(tokens)
    assert output.dtype == torch.bfloat16
    assert_as_near(output, expected, plain, base_of(net)(tokens))
    output.float().square().mean().backward()
    assert net.linear.offset.grad.dtype == torch.float32
    assert net.linear.offset.grad.isfinite().all()


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(net, reentrant):
    train(net)
    x = torch.randn(2, 5, 8, requires_grad=True)
    net.linear(x).square().mean().backward()
    expected = net.linear.offset.grad.clone(), x.grad.clone()
    net.zero_grad()
    x.grad = None
    gradient_checkpoint(net.linear, x, use_reentrant=reentrant).square().mean().backward()
    assert torch.equal(net.linear.offset.grad, expected[0])
    assert torch.equal(x.grad, expected[1])


def base_of(net):
    base = copy.deepcopy(net)
    for _, layer in lowrank_layers(base):
        layer.forward = layer.base_layer.forward
    return base


def test_step_0_survives_autocast(net):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net(tokens), base_of(net)(tokens))
