"""Say what an analysis was computed on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowrank_ldu.analysis.comparison.result import CheckpointComparison
    from lowrank_ldu.analysis.result import Analysis


def computed_on(analysis: Analysis | CheckpointComparison) -> str:
    """Return on what matrices were computed, and how many on the CPU in place of a device."""
    device, model = analysis.options.device, analysis.environment.device
    count = sum(tensor.device == "cpu" for tensor, _ in analysis.matrices)
    if device == "cpu" or not count:
        return model
    # Apple's has no float64.
    lack = "memory, or no float64," if device == "mps" else "memory"
    some = f"{count} of {len(analysis.matrices)} matrices"
    return f"{model}, and {some} on the CPU, since that has too little {lack} for them"


def timed_on(analysis: Analysis) -> str:
    """Return on what methods were timed."""
    device, model = analysis.options.device, analysis.environment.device
    if device == "cpu":
        return "the CPU"
    others = ", but for SVD, PiSSA and float64, which are the CPU's" if device == "mps" else ""
    return f"{model}, until it had done its work{others}"
