"""Readers of files that shrink, that say too much of themselves, and of adapters that changed their base."""

import io
import json
import os
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from weights import weight

from lowrank_ldu.analysis.readers import CheckpointError, open_checkpoint

gguf = pytest.importorskip("gguf")


def write_gguf(path):
    writer = gguf.GGUFWriter(path, "llama")
    for name in "ab":
        writer.add_tensor(name, weight(64, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("ending", ["pt", "gguf", "safetensors", "npy"])
def test_a_file_that_becomes_shorter_is_an_error(tmp_path, ending):
    """Not the end of the process, as with a mapped file."""
    path = tmp_path / f"a.{ending}"
    if ending == "pt":
        torch.save({"a": weight(64, 32), "b": weight(64, 32)}, path)
    elif ending == "gguf":
        write_gguf(path)
    elif ending == "npy":
        np.save(path, weight(64, 32).numpy())
    else:
        save_file({"a": weight(64, 32), "b": weight(64, 32)}, path)
    with open_checkpoint(path) as reader:
        os.truncate(path, 600)
        for info in reader.tensors:
            with pytest.raises(CheckpointError, match=r"changed since it was opened") as raised:
                reader.load(info.name)
            assert len(str(raised.value).splitlines()) == 1


def text(value):
    return struct.pack("<Q", len(value)) + value


@pytest.mark.parametrize(
    ("tensors", "entries", "rest"),
    [
        (0, 2**40, b""),
        (2**40, 0, b""),
        (0, 1, struct.pack("<Q", 2**63)),
        (0, 1, text(b"k") + struct.pack("<IIQ", 9, 8, 2**50)),
        (0, 1, text(b"k") + struct.pack("<IIQ", 9, 9, 1) * 5000),
        (0, 1, text(b"k") + struct.pack("<I", 99)),
        (1, 0, text(b"w") + struct.pack("<I", 2**31)),
    ],
    ids=["entries", "tensors", "a long key", "an array of texts", "arrays of arrays", "a type", "dimensions"],
)
def test_gguf_headers_that_say_too_much(tmp_path, tensors, entries, rest):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, entries) + rest)
    with pytest.raises(CheckpointError, match="not a readable GGUF file"):
        open_checkpoint(path)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga", "loftq", "True", "gaussian"])
def test_starts_of_lora_that_change_the_base_are_no_updates(tmp_path, start):
    state = {"base_model.model.a.lora_A.weight": weight(2, 5), "base_model.model.a.lora_B.weight": weight(4, 2)}
    save_file(state, tmp_path / "adapter_model.safetensors")
    value = True if start == "True" else start
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "init_lora_weights": value}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with open_checkpoint(tmp_path) as reader:
        if start in {"True", "gaussian"}:
            assert [info.name for info in reader.tensors] == ["a"]
        else:
            assert reader.tensors == []
            assert all("is no update of the published weights" in reason for reason in reader.ignored.values())


def npy(shape):
    content = io.BytesIO()
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    content.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(96))
    return content.getvalue()


@pytest.mark.parametrize("shape", ["(-6, -4)", "(24, -1)", "(6, 4", "(6, 4), 'more': 1", "(10**9, 10**9)", "('a', 4)"])
def test_a_damaged_member_takes_no_other_with_it(tmp_path, shape):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("bad.npy", npy(shape))
        archive.writestr("good.npy", npy("(6, 4)"))
    with open_checkpoint(tmp_path / "a.npz") as reader:
        assert [info.name for info in reader.tensors] == ["good"]
        assert reader.load("good").shape == (6, 4)
        assert reader.ignored["bad"].startswith("array that cannot be read")
