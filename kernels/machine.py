"""Estimate rough speeds of CPUs and GPUs.

The planner's cost model needs them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Machine:
    """Hold the speeds of a device, which make a plan's time.

    Attributes
    ----------
    rates : dict
        Multiply-adds a second of large products, by dtype.
    bandwidth : float
        Bytes a second.
    call : float
        Seconds that a call takes before it computes.
    operator : float
        Seconds that one of this package's operators takes beyond its calls, forward and backward together.
    """

    rates: dict[torch.dtype, float]
    bandwidth: float
    call: float
    operator: float

    @classmethod
    def of(cls, device: torch.device) -> Machine:
        """Return rough figures of a device.

        Only their ratios matter, and the plans are not that close.

        Notes
        -----
        The CPU's are of one core of an AMD EPYC (AVX2), times torch's threads, as measured; float16 and bfloat16 are
        what oneDNN reaches there. A GPU's are of its architecture, A100, H100 and B200, in proportion to its number of
        multiprocessors.
        """
        if device.type == "cuda":
            architecture, multiprocessors = _gpu(device)
            half, single, double, bandwidth, full = _GPUS[architecture]
            fast = torch.get_float32_matmul_precision() != "highest"
            share = min(1.0, multiprocessors / full)
            rates = {
                torch.float16: half * share,
                torch.bfloat16: half * share,
                torch.float32: (half / 2 if fast else single) * share,
                torch.float64: double * share,
            }
            # Launches are queued while others run: what is left is the gap between two.
            return cls(rates, bandwidth * share, call=2e-6, operator=1e-5)
        threads = _threads()
        rates = {
            torch.float32: 48e9 * threads,
            torch.float64: 24e9 * threads,
            torch.bfloat16: 48e9 * threads,
            torch.float16: 24e9 * threads,
        }
        return cls(rates, 8e9 * min(threads, 4), call=6e-6, operator=6e-5)


# Multiply-adds a second in half, single and double precision, bytes a second, multiprocessors: some two thirds of the
# data sheets' figures, and not measured by this project.
_GPUS = {
    8: (1.1e14, 0.9e13, 0.9e13, 1.6e12, 108),
    9: (2.5e14, 2.5e13, 2.5e13, 2.8e12, 132),
    10: (6.0e14, 3.5e13, 1.8e13, 6.5e12, 148),
}


# torch.compile takes these for what they are, constants of the process.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _threads() -> int:
    return torch.get_num_threads()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _gpu(device: torch.device) -> tuple[int, int]:
    """Return the key of `_GPUS` and the number of multiprocessors."""
    properties = torch.cuda.get_device_properties(device)
    architecture = 9 if torch.version.hip is not None else min(max(properties.major, 8), 10)
    return architecture, properties.multi_processor_count
