"""Readers of files that shrink, that say too much of themselves, and of adapters that changed their base."""

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from weights import weight

from lowrank_ldu import untrusted
from lowrank_ldu.adapters import AdapterError, import_published
from lowrank_ldu.checkpoints import CheckpointError, open_checkpoint, open_weights

gguf = pytest.importorskip("gguf")
h5py = pytest.importorskip("h5py")
onnx = pytest.importorskip("onnx")


def write_gguf(path, order=gguf.GGUFEndian.LITTLE, **kinds):
    writer = gguf.GGUFWriter(path, "llama", endianess=order)
    for name in "ab":
        writer.add_tensor(name, weight(64, 32).numpy())
    for name, kind in kinds.items():
        writer.add_tensor(name, gguf.quantize(weight(64, 32).numpy(), kind), raw_dtype=kind)
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


def test_gguf_of_the_other_byte_order(tmp_path):
    """Blocks and bfloat16 may be in either order: the library's writer leaves them, and its converter turns them."""
    kinds = gguf.GGMLQuantizationType
    write_gguf(tmp_path / "a.gguf", gguf.GGUFEndian.BIG, half=kinds.F16, brain=kinds.BF16, blocks=kinds.Q8_0)
    with open_checkpoint(tmp_path / "a.gguf") as reader:
        assert [info.name for info in reader.tensors] == ["a", "b", "half"]
        assert torch.equal(reader.load("a"), weight(64, 32))
        assert torch.equal(reader.load("half"), weight(64, 32).half())
        assert list(reader.ignored) == ["brain", "blocks"]
        assert reader.ignored["blocks"].startswith("Q8_0 tensor in a file of the other byte order; accepted: F16")


def write_holes(path):
    """Two arrays of 4 MiB, of which the first one was not written."""
    values = torch.ones(1024, 1024)
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["a"], file["b"] = values.numpy(), values.numpy()
            start = file["a"].id.get_offset()
    elif path.suffix == ".pt":
        torch.save({"a": values, "b": values + 1}, path)
        start = path.read_bytes().index(b"\0\0\x80?" * 100)
    elif path.suffix == ".npz":
        np.savez(path, a=values.numpy(), b=values.numpy())
        start = path.read_bytes().index(b"\0\0\x80?" * 100)
    else:
        np.save(path, torch.cat([values, values[:10]]).numpy())
        start = 128
    content = path.read_bytes()
    with path.open("wb") as file:
        file.write(content[:start])
        file.seek(start + 2**22)
        file.write(content[start + 2**22 :])


@pytest.mark.skipif(not hasattr(os, "SEEK_DATA"), reason="holes cannot be told")
@pytest.mark.parametrize("ending", ["h5", "pt", "npz", "npy"])
def test_values_that_were_not_written(tmp_path, monkeypatch, ending):
    path = tmp_path / f"a.{ending}"
    write_holes(path)
    monkeypatch.setattr(untrusted, "_SPARSE_FROM", 2**20)
    with open_checkpoint(path) as reader:
        with pytest.raises(CheckpointError, match="mostly holes"):
            reader.load("a")
        if ending != "npy":
            assert reader.load("b").shape == (1024, 1024)


@pytest.mark.skipif(not hasattr(os, "SEEK_DATA"), reason="holes cannot be told")
def test_a_file_of_before_torch_1_6_that_is_a_hole(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(2**21)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    with path.open("wb") as file:
        file.write(content[:4096])
        file.truncate(len(content))
    monkeypatch.setattr(untrusted, "_SPARSE_FROM", 2**20)
    with pytest.raises(CheckpointError, match="mostly holes"):
        open_checkpoint(path)


def test_hdf5_groups_that_are_too_deep(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = weight(6, 4).numpy()
        file["/".join("g" * 3000) + "/deep"] = weight(6, 4).numpy()
        file["z"] = weight(6, 4).numpy()
    with open_checkpoint(tmp_path / "a.h5") as reader:
        assert [info.name for info in reader.tensors] == ["a", "z"]
        assert list(reader.ignored.values()) == ["group in more than 64 others"]


def test_a_damaged_member_of_hdf5_takes_no_other_with_it(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for name in "abc":
            file[name] = weight(6, 4).numpy()
        place = h5py.h5o.get_info(file["b"].id).addr
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"\xff" * 16)
    with open_checkpoint(path) as reader:
        assert [info.name for info in reader.tensors] == ["a", "c"]
        assert reader.ignored["b"].startswith("member that cannot be read (")


def test_an_hdf5_filter_without_its_options_takes_no_other_with_it(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["a"] = weight(6, 4).numpy()
        options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        options.set_chunk((6, 4))
        options.set_filter(h5py.h5z.FILTER_DEFLATE, h5py.h5z.FLAG_OPTIONAL, ())
        h5py.h5d.create(file.id, b"b", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((6, 4)), options)
    with open_checkpoint(path) as reader:
        assert [info.name for info in reader.tensors] == ["a"]
        assert "IndexError" in reader.ignored["b"] or "out of range" in reader.ignored["b"]


def no_entry(monkeypatch, folder):
    """As if the system did not let this user into a folder; a test may run as root, who gets everywhere."""
    stat, iterdir = Path.stat, Path.iterdir

    def closed(path):
        if folder in path.parents:
            raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", lambda path, **options: closed(path) or stat(path, **options))
    monkeypatch.setattr(Path, "iterdir", lambda path: closed(path / "any") or iterdir(path))


def test_folders_that_may_not_be_entered(tmp_path, monkeypatch):
    for name in ("open", "shut"):
        (tmp_path / name).mkdir()
        save_file({"w": weight(6, 4)}, tmp_path / name / "model.safetensors")
    no_entry(monkeypatch, tmp_path / "shut")
    with open_checkpoint(tmp_path) as reader:
        assert [info.name for info in reader.tensors] == ["open/w"]
        assert reader.ignored["shut/"].startswith("folder that cannot be read (")
    for path in ("shut", "shut/model.safetensors"):
        with pytest.raises(CheckpointError, match=r"shut.* cannot be .*Permission denied") as raised:
            open_checkpoint(tmp_path / path)
        assert len(str(raised.value).splitlines()) == 1
    (tmp_path / "open" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 folders cannot be read, shut/ among them"):
        open_checkpoint(tmp_path)


def write_onnx(folder):
    made = [onnx.numpy_helper.from_array(weight(64, 32).numpy(), name) for name in "ab"]
    node = onnx.helper.make_node("MatMul", ["x", "a"], ["y"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "graph", [], [], initializer=made))
    onnx.save(model, folder / "a.onnx", save_as_external_data=True, location="a.bin", size_threshold=0)


def test_onnx_values_apart_that_become_fewer(tmp_path):
    write_onnx(tmp_path)
    with open_checkpoint(tmp_path / "a.onnx") as reader:
        os.truncate(tmp_path / "a.bin", 9000)
        assert reader.load("a").shape == (64, 32)
        with pytest.raises(CheckpointError, match="tensor 'b' cannot be read") as raised:
            reader.load("b")
        assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("length", [None, "0", "9000", "-1", "many"])
def test_onnx_values_apart_of_another_length(tmp_path, length):
    """Without a length it would be all of the file."""
    write_onnx(tmp_path)
    os.truncate(tmp_path / "a.bin", 2**40)
    model = onnx.load(tmp_path / "a.onnx", load_external_data=False)
    for entry in list(model.graph.initializer[0].external_data):
        if entry.key == "length":
            model.graph.initializer[0].external_data.remove(entry)
    if length is not None:
        model.graph.initializer[0].external_data.add(key="length", value=length)
    onnx.save(model, tmp_path / "a.onnx")
    with open_checkpoint(tmp_path / "a.onnx") as reader:
        if length is None:
            assert torch.equal(reader.load("a"), weight(64, 32))
        else:
            with pytest.raises(CheckpointError, match=f"has 8192 bytes, and is said to have '{length}'"):
                reader.load("a")
        assert reader.load("b").shape == (64, 32)


@pytest.mark.parametrize("shape", [(2**40, 0, 8), (2**40, 8, 8)])
def test_stacks_of_more_experts_than_any_model_has(tmp_path, shape):
    """A file of some bytes says so, and naming each would take all of the memory."""
    if 0 in shape:
        header = json.dumps({"mlp.experts.w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
        path = tmp_path / "a.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header)
    else:
        path = tmp_path / "a.pt"
        torch.save({"mlp.experts.w": torch.ones(1).expand(shape)}, path)
    with open_weights(path) as reader:
        assert [(info.name, info.shape) for info in reader.tensors] == [("mlp.experts.w", shape)]


@pytest.mark.parametrize("ending", ["safetensors", "npy"])
def test_tensors_without_values_whose_sides_torch_cannot_count(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    if ending == "npy":
        path.write_bytes(npy("(0, 2**40, 2**40)".replace("2**40", str(2**40)))[:-96])
    else:
        header = json.dumps({"a": {"dtype": "F32", "shape": [0, 2**40, 2**40], "data_offsets": [0, 0]}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header)
    with open_checkpoint(path) as reader:
        assert reader.tensors[0].shape == (0, 2**40, 2**40)
        with pytest.raises(CheckpointError, match="tensor 'a' cannot be read") as raised:
            reader.load("a")
        assert len(str(raised.value).splitlines()) == 1


def test_factors_of_rank_0(tmp_path):
    state = {"base_model.model.a.lora_A.weight": weight(0, 5), "base_model.model.a.lora_B.weight": weight(4, 0)}
    save_file(state, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 0, "lora_alpha": 2}))
    with open_checkpoint(tmp_path) as reader:
        assert reader.tensors == []
        assert set(reader.ignored.values()) == {"factor of rank 0"}


def test_headers_of_more_values_than_memory_is_for(tmp_path, monkeypatch):
    save_file({"a": weight(6, 4)}, tmp_path / "a.safetensors")
    monkeypatch.setattr(untrusted, "HEADER", untrusted.Limit(2**27, 5))
    with pytest.raises(CheckpointError, match=r"not a readable safetensors file \(more than 5 values\)"):
        open_checkpoint(tmp_path / "a.safetensors")


class Reserved:
    """Unpickled, a call with a size."""

    def __init__(self, kind, argument):
        self._call = (kind, (argument,))

    def __reduce__(self):
        return self._call


def write_pickle(path, content, *, legacy):
    data = pickle.dumps(content, 2)
    if legacy:
        head = (torch.serialization.MAGIC_NUMBER, 1001, {"protocol_version": 1001, "little_endian": True})
        path.write_bytes(b"".join(pickle.dumps(each, 2) for each in head) + data + pickle.dumps([], 2))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", data)
            archive.writestr("a/version", "3\n")
            archive.writestr("a/byteorder", "little")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", [bytearray, torch.Tensor, torch.FloatTensor, torch.UntypedStorage])
def test_pickles_that_reserve_memory_are_not_read(tmp_path, kind, legacy):
    path = tmp_path / "a.pt"
    write_pickle(path, {"x": [1, Reserved(kind, 10**5)]}, legacy=legacy)
    with pytest.raises(CheckpointError, match="and was refused"):
        open_checkpoint(path)
    with pytest.raises(AdapterError, match="reserves memory"):
        import_published(torch.nn.Linear(2, 2), path)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_that_name_a_class_are_read(tmp_path, legacy):
    path = tmp_path / "a.pt"
    content = {"class": torch.Tensor, "w": torch.nn.Parameter(torch.ones(2, 2)), "again": [torch.Tensor, b"x"]}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with open_checkpoint(path) as reader:
        assert [info.name for info in reader.tensors] == ["w"]


def npy_with(descr, data):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (4, 4), }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def npy_of(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_arrays_that_cannot_be_loaded_take_no_other_with_them(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("nested.npy", npy_with("('<f4', (3,))", b"\0" * 192))
        for value in (1.0, 2.0):
            archive.writestr("twice.npy", npy_of(np.full((3, 3), value)))
        archive.writestr("good.npy", npy_of(np.eye(3)))
    with open_checkpoint(path) as reader:
        assert [info.name for info in reader.tensors] == ["good"]
        assert torch.equal(reader.load("good"), torch.eye(3, dtype=torch.float64))
        assert reader.ignored == {
            "nested": "('<f4', (3,)) array",
            "twice": "array whose name two members have",
        }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("header", ["(4, 0x4for 1)", "(4L, 4L)", "('\\d', 4)"])
def test_no_warning_of_a_header(tmp_path, header):
    path = tmp_path / "a.npy"
    content = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {header}, }}\n".encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(content)) + content + b"\0" * 64)
    said = ""
    try:
        open_checkpoint(path).close()
    except CheckpointError as error:
        said = str(error)
    assert " at 0x" not in said


@pytest.mark.filterwarnings("error")
def test_no_warning_of_scales_that_are_not_finite(tmp_path):
    path = tmp_path / "a.gguf"
    write_gguf(path, q=gguf.GGMLQuantizationType.Q8_0)
    with open_checkpoint(path) as reader:
        start = reader._stored["q"].start
        data = bytearray(path.read_bytes())
        data[start : start + 2] = np.float16(np.inf).tobytes()
        data[start + 2] = 0  # infinity times zero
        path.write_bytes(data)
        assert not reader.load("q").isfinite().all()


def test_a_header_that_has_a_name_twice(tmp_path):
    path = tmp_path / "a.safetensors"
    entries = ",".join(f'"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,32]}}' for shape in ("[2,4]", "[4,2]"))
    header = f"{{{entries}}}".encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 32)
    with pytest.raises(CheckpointError, match="the key 'a' is there twice"):
        open_checkpoint(path)
    with pytest.raises(AdapterError, match="the key 'a' is there twice"):
        import_published(nn.Linear(2, 4), path)
