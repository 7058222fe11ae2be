"""Matrices that are too large for this machine are skipped, and the others analyzed."""

import json
import os
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from weights import weight

from lowrank_ldu.analysis import SurveyOptions, analyze_checkpoint
from lowrank_ldu.analysis.engine.resources import size_reason
from lowrank_ldu.checkpoints import TensorInfo


@given(
    m=st.integers(1, 2**40), n=st.integers(1, 2**40), per_entry=st.integers(1, 200), memory=st.integers(2**20, 2**50)
)
def test_half_of_the_memory(m, n, per_entry, memory):
    reason = size_reason(TensorInfo("w", (m, n), "float32", "a", 0), per_entry, memory)
    assert (reason is None) == (m * n * per_entry <= memory / 2)


def test_convolutions_count_as_matrices():
    info = TensorInfo("w", (4, 4, 8, 16), "float32", "a", 0, order=(3, 2, 0, 1))
    assert size_reason(info, 1, 4096) is None
    assert "16 x 128: too large" in size_reason(info, 1, 4095)


def test_survey_goes_on(tmp_path):
    """A file with a hole where a matrix of a tebibyte should be."""
    path = tmp_path / "a.safetensors"
    small = weight(6, 4)
    content = save({"small": small})
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    size = 2**40
    header["huge"] = {"dtype": "F32", "shape": [2**19, 2**19], "data_offsets": [96, 96 + size]}
    encoded = json.dumps(header).encode()
    values = small.numpy().tobytes()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + values)
    try:
        os.truncate(path, 8 + len(encoded) + len(values) + size)
    except OSError:
        pytest.skip("the file system has no sparse files of this size")
    analysis = analyze_checkpoint(path, SurveyOptions(ranks=(2,), threads=1))
    path.unlink()
    assert [tensor.name for tensor, _ in analysis.matrices] == ["small"]
    (skipped,) = analysis.skipped
    assert skipped.name == "huge"
    assert "524288 x 524288: too large" in skipped.reason
    assert torch.equal(small, weight(6, 4))
