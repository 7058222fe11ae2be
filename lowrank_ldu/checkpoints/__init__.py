"""Read checkpoints on disk one tensor at a time.

There is one interface for several formats, shards and folders.
"""

from lowrank_ldu.checkpoints.opening import open_checkpoint
from lowrank_ldu.checkpoints.reader import CheckpointReader, TensorInfo
from lowrank_ldu.checkpoints.weights import open_weights
from lowrank_ldu.errors import CheckpointError

__all__ = ["CheckpointError", "CheckpointReader", "TensorInfo", "open_checkpoint", "open_weights"]


def __dir__() -> list[str]:
    return __all__
