"""Give the speeds of CPUs and GPUs.

The planner's cost model needs them. A CPU's are measured on it (`lowrank_ldu.kernels.measured`), where that is not
switched off; a GPU's are of a table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lowrank_ldu.kernels.measured import DTYPES, Figures, present_figures
from lowrank_ldu.kernels.torch_modes import constant_result


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
    region : float
        Seconds that the threads take to begin a product or pass and to meet at its end.
    narrow : float
        Share of the rates that triangular products by blocks reach.
    threads : int
        That share a product.
    """

    rates: dict[torch.dtype, float]
    bandwidth: float
    call: float
    operator: float
    region: float = 0.0
    narrow: float = 1.0
    threads: int = 1

    @classmethod
    def of(cls, device: torch.device) -> Machine:
        """Return the figures of a device.

        Only their ratios matter.

        Notes
        -----
        The CPU's are of one core, measured, times torch's threads. With `LOWRANK_LDU_MEASURE=0` in the environment,
        and while torch records a graph, they are those of an AMD EPYC (AVX2); float16 and bfloat16 are what oneDNN
        reached there. A GPU's are of its architecture, A100, H100 and B200, in proportion to its number of
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
        figures = _figures() or _EPYC
        return _of_threads(figures, _threads())


# Of one core of an AMD EPYC (AVX2).
_EPYC = Figures((48e9, 24e9, 48e9, 24e9), narrow=48e9, bandwidth=16e9, call=3e-6)
# Products of a layer follow upon other work, on memory that is not in the cache, where the measured ones follow each
# other: a call takes twice as long, a byte too. An operator of this package takes as long as twenty such calls.
_COLD, _OPERATOR_CALLS = 2, 20
# Cores after the fourth add little to what the memory delivers.
_MEMORY_THREADS = 4
# Threads that are all there meet within microseconds; a thread that another process keeps from its core is waited for
# much longer. More than the former, so that of two plans that are equally fast the one of fewer products is taken.
_REGION = 1e-5


def _of_threads(figures: Figures, threads: int) -> Machine:
    """Return the speeds of several threads from those of one."""
    return Machine(
        {dtype: rate * threads for dtype, rate in zip(DTYPES, figures.rates, strict=True)},
        figures.bandwidth / _COLD * min(threads, _MEMORY_THREADS),
        call=figures.call * _COLD,
        operator=figures.call * _OPERATOR_CALLS,
        region=_REGION if threads > 1 else 0.0,
        narrow=figures.narrow / figures.rates[0],
        threads=threads,
    )


# Multiply-adds a second in half, single and double precision, bytes a second, multiprocessors: some two thirds of the
# data sheets' figures, and not measured by this project.
_GPUS = {
    8: (1.1e14, 0.9e13, 0.9e13, 1.6e12, 108),
    9: (2.5e14, 2.5e13, 2.5e13, 2.8e12, 132),
    10: (6.0e14, 3.5e13, 1.8e13, 6.5e12, 148),
}


def _figures() -> Figures | None:
    return None if torch.compiler.is_compiling() else present_figures()


# torch.compile takes these for what they are, constants of the process.
@constant_result
def _threads() -> int:
    return torch.get_num_threads()


@constant_result
def _gpu(device: torch.device) -> tuple[int, int]:
    """Return the key of `_GPUS` and the number of multiprocessors."""
    properties = torch.cuda.get_device_properties(device)
    architecture = 9 if torch.version.hip is not None else min(max(properties.major, 8), 10)
    return architecture, properties.multi_processor_count
