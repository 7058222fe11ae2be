"""How far rounding may carry results: a multiple of what the computation without an adapter is off here.

Products are rounded as the processor's instructions and the library's blocks have it, most of all in bfloat16 and
float16, so that an absolute bound fits one machine. The error of the plain computation, against a wider dtype, is
measured beside. Where there is no wider dtype, or no plain computation, the roundings of what is summed are counted.
"""

import copy
from types import SimpleNamespace

import torch

from lowrank_ldu.nn.update import updated_output

# The output of a plain layer is rounded once, however its sum was accumulated. An adapted one is the rounded sum of two
# rounded outputs, and on the way to the second the projection and its multiple by the diagonal are rounded: five
# roundings, each of about the same size while the update is no larger than the output. A merged weight makes two. The
# sixth is for chance: of both errors it is the largest entry that counts, of some ten numbers in the smallest tests.
# Measured on layers of 7 x 5, 24 x 18 and 64 x 64 in float32, float16 and bfloat16, a hundred seeds of each: twice the
# plain error at most, and 4.3 times where one rounding of the largest entry does not count as the least.
MULTIPLE = 6


def wider(dtype):
    """The dtype of an oracle."""
    return torch.float64 if dtype == torch.float32 else torch.float32


def error(result, oracle):
    """The largest error of a result."""
    return float((result.detach().double() - oracle.detach().double()).abs().max())


def assert_as_near(result, oracle, plain, plain_oracle):
    """Assert that a result is off by no more than a multiple of what the plain computation is off.

    Parameters
    ----------
    result, oracle : Tensor
        What is tested, and what it would be without rounding.
    plain, plain_oracle : Tensor
        The same of the computation without an adapter. Where it happens to be exact one rounding of the largest entry
        counts.
    """
    assert result.shape == oracle.shape
    rounding = torch.finfo(plain.dtype).eps * float(plain_oracle.detach().abs().max())
    allowed = MULTIPLE * max(error(plain, plain_oracle), rounding)
    assert error(result, oracle) <= allowed, f"{error(result, oracle):.2e} > {allowed:.2e}"


@torch.no_grad()
def references(adapted, base, *inputs):
    """Return the oracle of an adapted model, its base's output and the oracle of that.

    Parameters
    ----------
    adapted, base : nn.Module
        Of one dtype; neither is changed. The base is the merged model where its numbers are larger by far.
    inputs : Tensor
        Widened for the oracles where they are floating.
    """

    def output(model, wide=None):
        converted = (x.to(wide) if wide is not None and x.is_floating_point() else x for x in inputs)
        y = (model if wide is None else copy.deepcopy(model).to(wide))(*converted)
        return getattr(y, "logits", y)

    plain = output(base)
    wide = wider(plain.dtype)
    return output(adapted, wide), plain, output(base, wide)


def assert_reloaded(reloaded, model, exact, x):
    """Assert that a model in float32 came back from a file or state, but for what its factors are rounded otherwise.

    Parameters
    ----------
    reloaded, model : nn.Module
    exact : nn.Module
        The like of them in float64. By the model's state it gets factors of its own: what the model is off from there,
        by as much as elimination makes of roundings, the reloaded one may be off as well.
    x : Tensor
    """
    exact.load_state_dict(model.state_dict())
    oracle = exact(x.double())
    assert_as_near(reloaded(x), oracle, model(x), oracle)


def gamma(roundings, dtype):
    """Return the largest relative error after as many roundings; Higham, lemma 3.1."""
    total = roundings * torch.finfo(dtype).eps / 2
    return total / (1 - total)


def assert_within(result, expected, allowed):
    """Assert that no entry is off by more than is allowed for it."""
    assert result.shape == expected.shape
    errors = (result.detach().double() - expected.detach().double()).abs()
    assert (errors <= allowed).all(), f"{float(errors.max()):.2e}, allowed up to {float(allowed.detach().max()):.2e}"


@torch.no_grad()
def without_signs(layer, x, base=None):
    """Return what a layer's output is the sum of, all signs taken off: what the errors of its roundings scale with.

    A base of plain numbers may stand for one that is stored quantized.
    """
    base = copy.deepcopy(layer.base_layer if base is None else base)
    for parameter in base.parameters():
        parameter.abs_()
    x, factors = x.abs(), layer.factors
    unsigned = SimpleNamespace(left=factors.left.abs(), right=factors.right.abs(), scale=factors.scale.abs())
    return updated_output(base, layer.kind, x, base(x), unsigned, layer.delta.abs())


def roundings(layer):
    """Return how often a number of a layer's output was rounded, at most, of whichever way of two it comes.

    A weight of m x n and r terms: a projection (n), its multiple by the diagonal (2, with the scale), an expansion (r),
    the product with the weight or with the merged one (n and 2), the bias, the sum and a factor of the layer's own.
    """
    matrix = layer.kind.as_matrix(layer.base_layer.weight)
    return max(matrix.shape) + layer.rank + 7
