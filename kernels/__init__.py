"""The computation at the heart of the layer, in torch: imports torch and, where a kernel needs it, triton only."""

from lowrank_ldu.kernels.reference import ldu_update

__all__ = ["ldu_update"]
