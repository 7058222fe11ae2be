"""List the block sizes to try for each kernel.

Which of them fit a chip is told too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton

if TYPE_CHECKING:
    from collections.abc import Mapping

# Bytes of shared memory that one program may have, for chips that are compiled for without being there.
SHARED_MEMORY = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}


def _config(warps: int, stages: int, **blocks: int) -> triton.Config:
    return triton.Config(blocks, num_warps=warps, num_stages=stages)


PROJECT = [
    _config(4, 4, BLOCK_T=64, BLOCK_K=64),
    _config(4, 3, BLOCK_T=128, BLOCK_K=64),
    _config(8, 3, BLOCK_T=128, BLOCK_K=128),
    _config(4, 2, BLOCK_T=64, BLOCK_K=32),
    _config(4, 4, BLOCK_T=32, BLOCK_K=128),
]
EXPAND = [
    _config(8, 3, BLOCK_T=128, BLOCK_M=256, BLOCK_K=64, GROUP=8),
    _config(8, 4, BLOCK_T=256, BLOCK_M=128, BLOCK_K=64, GROUP=8),
    _config(8, 3, BLOCK_T=128, BLOCK_M=128, BLOCK_K=64, GROUP=8),
    _config(4, 4, BLOCK_T=128, BLOCK_M=128, BLOCK_K=32, GROUP=8),
    _config(4, 4, BLOCK_T=64, BLOCK_M=128, BLOCK_K=64, GROUP=8),
    _config(4, 2, BLOCK_T=64, BLOCK_M=64, BLOCK_K=32, GROUP=8),
]
DECODE = [
    _config(4, 4, BLOCK_M=16, BLOCK_K=128),
    _config(4, 3, BLOCK_M=32, BLOCK_K=128),
    _config(4, 4, BLOCK_M=64, BLOCK_K=64),
    _config(2, 2, BLOCK_M=16, BLOCK_K=64),
]
# Few rows a program: it goes over all columns of its rows, and there are to be as many programs as a chip takes.
SKELETON = [
    _config(4, 3, BLOCK_T=64, BLOCK_M=128),
    _config(4, 3, BLOCK_T=32, BLOCK_M=128),
    _config(4, 2, BLOCK_T=32, BLOCK_M=64),
    _config(4, 2, BLOCK_T=16, BLOCK_M=128),
]
SEGMENT: dict[str, Any] = {"BLOCK_T": 64, "num_warps": 4}
OUTER: dict[str, Any] = {"BLOCK_T": 32, "num_warps": 4}
CORE: dict[str, Any] = {"num_warps": 4}
# Of kernels that are not tuned.
FIXED = {"segment": SEGMENT, "outer": OUTER, "core": CORE}

# Bytes that a chip's pipelines need beside their buffers.
_BARRIERS = 1024

# Small ones that odd shapes fill with many blocks, for the interpreter.
INTERPRETED = {
    "project": {"BLOCK_T": 32, "BLOCK_K": 32},
    "expand": {"BLOCK_T": 32, "BLOCK_M": 32, "BLOCK_K": 32, "GROUP": 2},
    "decode": {"BLOCK_M": 16, "BLOCK_K": 32},
    "segment": {"BLOCK_T": 16},
    "skeleton": {"BLOCK_T": 16, "BLOCK_M": 32},
    "outer": {"BLOCK_T": 16},
    "core": {},
}

# Rows that one launch of the decoding kernel takes, and its largest rank: programs each read all of right.
DECODE_ROWS, DECODE_RANK = 16, 128

# The largest rank of the skeleton kernel, whose programs hold two (r, r) matrices in float32; and the largest block of
# a core that a program takes at a time.
SKELETON_RANK, LARGEST_CORE_BLOCK = 64, 64


def term_block(rank: int, largest: int) -> int:
    """Return the block of terms for a rank.

    It is a power of two from 16, which matrix instructions start at.
    """
    return int(min(largest, max(16, triton.next_power_of_2(rank))))


def shared_bytes(config: triton.Config, blocks: Mapping[str, int], itemsize: int) -> int:
    """Return the shared memory that a config's buffers take at most.

    They are each stage's blocks of both factors.

    Parameters
    ----------
    config : triton.Config
    blocks : mapping
        Block sizes that the launch sets, beside the config's.
    itemsize : int
        Bytes of an entry.
    """
    size = {**blocks, **config.kwargs}
    if "BLOCK_K" not in size:  # the skeleton's: its own products in float32, and a loop over columns
        rank, rows = size["BLOCK_R"], size["BLOCK_T"]
        wide = 4 * (2 * rank * rank + 2 * rows * rank)
        narrow = itemsize * (rows * rank + config.num_stages * (rank + rows) * size["BLOCK_M"])
        return int(wide + narrow) + _BARRIERS
    if "GROUP" in size:  # the expansion: a loop over K, and one of two stages over the terms
        entries = (size["BLOCK_T"] + size["BLOCK_M"]) * max(config.num_stages * size["BLOCK_K"], 2 * size["BLOCK_R"])
    else:
        outer = size["BLOCK_T"] + size["BLOCK_R"] + size.get("BLOCK_M", 0)
        entries = config.num_stages * outer * size["BLOCK_K"]
    return int(entries * itemsize) + _BARRIERS


def fitting(configs: list[triton.Config], blocks: Mapping[str, int], itemsize: int, limit: int) -> list[triton.Config]:
    """Return configs whose buffers fit a chip's shared memory.

    At least one config is returned.
    """
    fits = [config for config in configs if shared_bytes(config, blocks, itemsize) <= limit]
    return fits or [min(configs, key=lambda config: shared_bytes(config, blocks, itemsize))]
