"""How far off results in half precision may be: a multiple of what the computation without an adapter is off here.

Products in bfloat16 and float16 are rounded as the processor's instructions and the library's blocks have it, so that
an absolute bound fits one machine. The error of the plain computation, against float32 or float64, is measured beside.
"""

import torch

# An adapter adds to each layer a projection, an expansion and a sum, or the rounding of a merged weight: as many
# roundings as the layer has, each of the same size. Their sum in other orders stays within this.
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
        In half precision, and what it would be without rounding.
    plain, plain_oracle : Tensor
        The same of the computation without an adapter. Where it happens to be exact one rounding of the largest entry
        counts.
    """
    rounding = torch.finfo(plain.dtype).eps * float(plain_oracle.detach().abs().max())
    allowed = MULTIPLE * max(error(plain, plain_oracle), rounding)
    assert error(result, oracle) <= allowed, f"{error(result, oracle):.2e} > {allowed:.2e}"
