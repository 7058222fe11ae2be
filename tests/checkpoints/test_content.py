"""Files of names that tell nothing: read by what is in them, or refused."""

import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lowrank_ldu.checkpoints import open_checkpoint
from lowrank_ldu.errors import CheckpointError

STATE = {"a": torch.arange(6.0).reshape(2, 3)}


def write_h5(path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file["a"] = STATE["a"].numpy()


def write_gguf(path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "test")
    writer.add_tensor("a", STATE["a"].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_numpy(path, write, **arrays):
    with path.open("wb") as file:
        write(file, **arrays)


WRITERS = {
    "torch": lambda path: torch.save(STATE, path),
    "torch, legacy": lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False),
    "lightning": lambda path: torch.save({"state_dict": STATE, "epoch": 3}, path),
    "safetensors": lambda path: save_file(STATE, path),
    "npz": lambda path: write_numpy(path, np.savez, a=STATE["a"].numpy()),
    "npy": lambda path: write_numpy(path, np.save, arr=STATE["a"].numpy()),
    "h5": write_h5,
    "gguf": write_gguf,
}


@pytest.mark.parametrize("name", ["epoch=3.ckpt", "model", "a.weights.th", ".model"])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_is_read_by_its_content(tmp_path, kind, name):
    WRITERS[kind](tmp_path / "written")
    path = shutil.move(tmp_path / "written", tmp_path / name)
    with open_checkpoint(path) as reader:
        (info,) = [info for info in reader.tensors if len(info.shape) == 2]
        assert torch.equal(reader.load(info.name), STATE["a"])


def write_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")


REFUSED = {
    "text": lambda path: path.write_text("hello, this is no checkpoint", encoding="utf-8"),
    "empty": lambda path: path.write_bytes(b""),
    "archive of other things": write_zip,
    "a length and a brace": lambda path: path.write_bytes((2**40).to_bytes(8, "little") + b"{"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_content_is_refused(tmp_path, kind):
    path = tmp_path / "model.ckpt"
    REFUSED[kind](path)
    with pytest.raises(CheckpointError, match=r"unknown suffix '\.ckpt', and its first bytes are of no format"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("torch", "begins as a zip archive does"),
        ("npz", "begins as a zip"),
        ("safetensors", "not a readable safetensors"),
    ],
)
def test_a_file_that_was_cut_off_is_said_to_be(tmp_path, kind, message):
    path = tmp_path / "model.ckpt"
    WRITERS[kind](path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


class Code:
    def __reduce__(self):
        return print, ("run",)


def test_nothing_is_run(tmp_path, capsys):
    path = tmp_path / "model.ckpt"
    path.write_bytes(pickle.dumps(Code(), protocol=2))
    with pytest.raises(CheckpointError):
        open_checkpoint(path)
    torch.save({"a": STATE["a"], "hyper_parameters": Code()}, path)
    with pytest.raises(CheckpointError, match="wants to run code"):
        open_checkpoint(path)
    assert capsys.readouterr().out == ""
