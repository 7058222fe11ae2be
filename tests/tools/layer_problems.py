"""Random problems of the layer, and what float64 makes of them."""

from typing import NamedTuple

import torch
from half_precision import assert_within, gamma

from lowrank_ldu import ldu
from lowrank_ldu.kernels import PLANS, Skeleton, ldu_linear, ldu_linear_multi, skeleton_of

# Where there is a GPU the kernels run on it; elsewhere Triton interprets them.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

USES = ("one", "rows", "mixed")
# Of cores: diagonals, dense, and blocks, which the rank has to allow.
CORES = ("diagonal", "dense", "blocks")

# Those that compute any layer on the CPU.
TORCH_PLANS = [plan for plan in PLANS if plan not in {"packed", "skeleton", "triton"}]


class Layer(NamedTuple):
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    left: torch.Tensor
    right: torch.Tensor
    deltas: torch.Tensor
    index: torch.Tensor | None
    scales: torch.Tensor | None

    def without_signs(self):
        """The layer with the magnitudes of all numbers."""
        return Layer(
            *(None if tensor is None else tensor.detach().abs() for tensor in self[:6]),
            self.index,
            None if self.scales is None else self.scales.detach().abs(),
        )

    def to(self, dtype):
        """The layer's tensors in another dtype; the trained numbers in theirs, but for float64."""
        wide = dtype if dtype == torch.float64 else torch.float32
        return Layer(
            *(None if tensor is None else tensor.detach().to(dtype) for tensor in self[:5]),
            self.deltas.detach().to(wide),
            self.index,
            None if self.scales is None else self.scales.detach().to(wide),
        )


def problem(
    tokens, m, n, r, *, uses="one", dtype=torch.float32, bias=True, adapters=5, seed=0, device=DEVICE, core="diagonal"
):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return (torch.randn(*shape, generator=generator) / 2).to(device)

    index = scales = None
    if uses == "rows":
        index = torch.randint(0, adapters, (tokens,), generator=generator).to(device)
    elif uses == "mixed":
        index = torch.randint(0, adapters, (tokens, 3), generator=generator).to(device)
        scales = draw(tokens, 3)
    size = next(size for size in (3, 2, 1) if r % size == 0 and size < max(r, 2))
    shape = {"diagonal": (r,), "dense": (r, r), "blocks": (r // size, size, size)}[core]
    layer = Layer(
        draw(tokens, n),
        draw(m, n),
        draw(m) if bias else None,
        draw(m, r),
        draw(r, n).triu(),
        draw(*shape) if uses == "one" else draw(adapters, *shape),
        index,
        scales,
    )
    return layer.to(dtype)


def skeleton_problem(tokens, m, n, r, *, dtype=torch.float32, device=DEVICE, columns=True, **options):
    """A random problem with the factors of its weight's LDU, and their skeleton."""
    layer = problem(tokens, m, n, r, dtype=torch.float64, device=torch.device("cpu"), **options)
    factors = ldu(layer.weight.to(dtype).double(), r)
    layer = layer._replace(left=factors.left, right=factors.right).to(dtype)
    sides = (layer.left, torch.arange(r)) if columns else ()
    skeleton = skeleton_of(layer.weight, layer.right, factors.permutation[:r], *sides)
    moved = Layer(*(None if tensor is None else tensor.to(device) for tensor in layer))
    return moved, Skeleton(*(part.to(device) if isinstance(part, torch.Tensor) else part for part in skeleton))


def call(layer, **options):
    if layer.index is None:
        return ldu_linear(*layer[:6], **options)
    return ldu_linear_multi(*layer[:7], scales=layer.scales, **options)


def values_and_gradients(layer, gradient, **options):
    """y and the gradients of x, of the deltas, of the bias and of the scales, as far as there are any."""
    trained = {"x": layer.x, "deltas": layer.deltas, "bias": layer.bias, "scales": layer.scales}
    trained = {name: tensor.detach().clone().requires_grad_() for name, tensor in trained.items() if tensor is not None}
    y = call(layer._replace(**trained), **options)
    gradients = torch.autograd.grad(y, list(trained.values()), gradient.to(y))
    return {"y": y.detach(), **dict(zip(trained, gradients, strict=True))}


def oracle(layer, gradient):
    """The same by the definition, in float64."""
    return values_and_gradients(layer.to(torch.float64), gradient.double(), plan="reference")


def assert_close(results, layer, gradient, dtype, unsigned=None):
    """Assert that every result is within rounding of the definition in float64.

    Each is a sum of products: its error is that of some roundings, in proportion to the same sum without signs. In half
    precision sums are accumulated in float32, and a number is rounded ten times at most on its way: under autocast both
    factors of three products, and each product; the diagonal and its scale; the sum with the base.

    `unsigned` are the sums without signs where a plan has others.
    """
    expected = oracle(layer, gradient)
    unsigned = oracle(layer.without_signs(), gradient.abs()) if unsigned is None else unsigned
    half = dtype in {torch.float16, torch.bfloat16}
    # Whatever is summed up: over inputs, outputs, terms and rows, and a few roundings beside.
    relative = gamma(
        sum(layer.weight.shape) + 2 * layer.left.shape[1] + len(layer.x) + 10, torch.float32 if half else dtype
    )
    relative += gamma(10, dtype) if half else 0
    for name, value in results.items():
        allowed = relative * unsigned[name] + torch.finfo(dtype).tiny  # for what underflows
        assert_within(value, expected[name], allowed)
