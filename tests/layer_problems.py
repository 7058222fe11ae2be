"""Random problems of the layer, and what float64 makes of them."""

from typing import NamedTuple

import torch

from lowrank_ldu.kernels import ldu_linear, ldu_linear_multi

# Where there is a GPU the kernels run on it; elsewhere Triton interprets them.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

USES = ("one", "rows", "mixed")


class Layer(NamedTuple):
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    left: torch.Tensor
    right: torch.Tensor
    deltas: torch.Tensor
    index: torch.Tensor | None
    scales: torch.Tensor | None

    def to(self, dtype):
        """The layer's tensors in another dtype; the trained numbers in theirs, but for float64."""
        wide = dtype if dtype == torch.float64 else torch.float32
        return Layer(
            *(None if tensor is None else tensor.detach().to(dtype) for tensor in self[:5]),
            self.deltas.detach().to(wide),
            self.index,
            None if self.scales is None else self.scales.detach().to(wide),
        )


def problem(tokens, m, n, r, *, uses="one", dtype=torch.float32, bias=True, adapters=5, seed=0, device=DEVICE):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return (torch.randn(*shape, generator=generator) / 2).to(device)

    index = scales = None
    if uses == "rows":
        index = torch.randint(0, adapters, (tokens,), generator=generator).to(device)
    elif uses == "mixed":
        index = torch.randint(0, adapters, (tokens, 3), generator=generator).to(device)
        scales = draw(tokens, 3)
    layer = Layer(
        draw(tokens, n),
        draw(m, n),
        draw(m) if bias else None,
        draw(m, r),
        draw(r, n).triu(),
        draw(r) if uses == "one" else draw(adapters, r),
        index,
        scales,
    )
    return layer.to(dtype)


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


def assert_close(results, expected, layer, dtype):
    """Every result within rounding of the oracle's.

    Each sum of N products of magnitude s is off by some sqrt(N) eps s at most where products and sums are rounded to
    eps, and float16 and bfloat16 round the projection and the output once more: 8 eps of the largest entry, times the
    root of the longest sum, covers all of it.
    """
    eps = torch.finfo(dtype).eps
    longest = max(*layer.weight.shape, layer.left.shape[1], len(layer.x), 1)
    for name, value in results.items():
        wanted = expected[name]
        assert value.shape == wanted.shape, name
        if not wanted.numel():
            continue
        error = float((value.double() - wanted).abs().max())
        limit = 8 * eps * longest**0.5 * max(float(wanted.abs().max()), 1.0)
        assert error <= limit, f"{name}: {error:.2e} > {limit:.2e}"
