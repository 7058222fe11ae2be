"""Readers of GGUF, ONNX, Keras and numpy files: the values that were written, and no file that breaks them."""

import gc
import importlib
import os
import struct
import warnings
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowrank_ldu.analysis import SurveyOptions
from lowrank_ldu.analysis.engine.survey import survey
from lowrank_ldu.analysis.selection import as_matrix, matrix_shape
from lowrank_ldu.checkpoints import CheckpointError, open_checkpoint

gguf = pytest.importorskip("gguf")
h5py = pytest.importorskip("h5py")
onnx = pytest.importorskip("onnx")

GENERATOR = np.random.default_rng(0)
DENSE = GENERATOR.standard_normal((6, 32)).astype(np.float32)
HALF = GENERATOR.standard_normal((3, 4)).astype(np.float16)
COUNTS = np.arange(6, dtype=np.int64).reshape(2, 3)
STATE = {"dense/kernel": DENSE, "half": HALF, "counts": COUNTS}


def write_npz(path, state=STATE, save=np.savez):
    save(path, **state)
    return path


def write_npy(path):
    np.save(path, DENSE)
    return path


def write_h5(path, state=STATE):
    with h5py.File(path, "w") as file:
        for name, values in state.items():
            file.create_dataset(name, data=values)
    return path


def write_gguf(path, state=STATE):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_array("tokenizer.tokens", ["a", "bc"])
    for name, values in state.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def onnx_model(initializers, nodes=()):
    graph = onnx.helper.make_graph(list(nodes), "graph", [], [], initializer=list(initializers))
    return onnx.helper.make_model(graph)


def write_onnx(path, state=STATE):
    onnx.save(onnx_model(onnx.numpy_helper.from_array(values, name) for name, values in state.items()), path)
    return path


def write_onnx_beside(path):
    (path.parent / "weights.bin").unlink(missing_ok=True)  # it would be appended to
    model = onnx_model(onnx.numpy_helper.from_array(values, name) for name, values in STATE.items())
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


FORMATS = {
    "npz": lambda folder: write_npz(folder / "a.npz"),
    "npz-compressed": lambda folder: write_npz(folder / "a.npz", save=np.savez_compressed),
    "h5": lambda folder: write_h5(folder / "a.weights.h5"),
    "gguf": lambda folder: write_gguf(folder / "a.gguf"),
    "onnx": lambda folder: write_onnx(folder / "a.onnx"),
    "onnx-beside": lambda folder: write_onnx_beside(folder / "a.onnx"),
}


def read_all(path):
    with open_checkpoint(path) as reader:
        return {info.name: reader.load(info.name) for info in reader.tensors}


def refused(path):
    with pytest.raises(CheckpointError) as caught:
        read_all(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", FORMATS)
def test_round_trip(kind, tmp_path):
    path = FORMATS[kind](tmp_path)
    with open_checkpoint(path) as reader:
        assert reader.ignored == {}
        assert sorted(info.name for info in reader.tensors) == sorted(STATE)
        loaded = {info.name: reader.load(info.name) for info in reader.tensors}
        for info in reader.tensors:
            expected = torch.from_numpy(STATE[info.name])
            assert info.shape == expected.shape
            assert info.dtype == str(expected.dtype).removeprefix("torch.")
            assert info.nbytes == expected.nbytes
            assert info.stored_as == ""
    del reader
    gc.collect()
    for name, values in STATE.items():  # valid after the file is closed
        assert torch.equal(loaded[name], torch.from_numpy(values))
        loaded[name].add_(1)  # and writable


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("keep", [0.0, 0.2, 0.6, 0.97])
def test_truncated(kind, keep, tmp_path):
    path = FORMATS[kind](tmp_path)
    if kind == "onnx-beside" and keep > 0.2:
        path = tmp_path / "weights.bin"
    os.truncate(path, int(path.stat().st_size * keep))
    refused(tmp_path / path.name if path.suffix != ".bin" else tmp_path / "a.onnx")


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".h5", ".gguf", ".onnx"])
@pytest.mark.parametrize("content", [b"", b"<!doctype html>", b"version https://git-lfs.github.com/spec/v1\n"])
def test_what_is_something_else(suffix, content, tmp_path):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    message = refused(path)
    assert any(cause in message for cause in ("it is empty", "web page", "Git LFS"))


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_refused_or_read(kind, tmp_path, data):
    """Bytes changed anywhere: an error of the one kind, or values, and nothing else."""
    path = FORMATS[kind](tmp_path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(content) - 1, 600)) | st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with open_checkpoint(path) as reader:
                for info in reader.tensors:
                    try:
                        values = reader.load(info.name)
                    except CheckpointError:
                        continue
                    assert tuple(values.shape) == info.shape
                    assert str(values.dtype) == f"torch.{info.dtype}"
        except CheckpointError:
            pass


@pytest.mark.parametrize(("suffix", "module"), [(".gguf", "gguf"), (".onnx", "onnx"), (".h5", "h5py")])
def test_missing_libraries_are_named(suffix, module, tmp_path, monkeypatch):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"x")

    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    assert f"needs {module}: pip install 'lowrank-ldu[formats]'" in refused(path)


class TestNumpy:
    def test_one_array(self, tmp_path):
        with open_checkpoint(write_npy(tmp_path / "kernel.npy")) as reader:
            assert torch.equal(reader.load("kernel"), torch.from_numpy(DENSE))

    def test_order_and_byte_order(self, tmp_path):
        state = {"fortran": np.asfortranarray(DENSE), "big": DENSE.astype(">f8")}
        with open_checkpoint(write_npz(tmp_path / "a.npz", state)) as reader:
            assert torch.equal(reader.load("fortran"), torch.from_numpy(DENSE))
            assert torch.equal(reader.load("big"), torch.from_numpy(DENSE).double())

    def test_pickles_and_texts_are_listed_and_not_read(self, tmp_path):
        state = {"kept": DENSE, "objects": np.array([{}, print], dtype=object), "text": np.array(["a"])}
        with open_checkpoint(write_npz(tmp_path / "a.npz", state)) as reader:
            assert [info.name for info in reader.tensors] == ["kept"]
            assert reader.ignored == {"objects": "object array", "text": "<U1 array"}

    def test_a_bomb_is_listed_and_not_read(self, tmp_path):
        """A member that says of itself that it is a terabyte of zeros."""
        path = tmp_path / "a.npz"
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (262144, 1048576), }"
        head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("bomb.npy", head)
            archive.writestr("kept.npy", (tmp_path / write_npy(tmp_path / "kept.npy")).read_bytes())
        content = path.read_bytes()
        # The directory at the end says how large members are; what is in the file stays small.
        place = content.index(b"PK\x01\x02") + 24
        path.write_bytes(content[:place] + struct.pack("<I", 2**32 - 2) + content[place + 4 :])
        with open_checkpoint(path) as reader:
            assert [info.name for info in reader.tensors] == ["kept"]
            assert "said to have" in reader.ignored["bomb"]

    def test_a_shape_beyond_the_file(self, tmp_path):
        path = write_npy(tmp_path / "a.npy")
        path.write_bytes(path.read_bytes().replace(b"(6, 32)", b"(6, 99)"))
        assert "'a' is said to have 2376 bytes, and has 768" in refused(path)


class TestKeras:
    def test_order(self, tmp_path):
        kernel, convolution = GENERATOR.standard_normal((5, 4)), GENERATOR.standard_normal((3, 2, 4, 6))
        state = {
            "layers/dense/vars/0": kernel,
            "layers/conv2d/vars/0": convolution,
            "layers/conv2d_transpose/vars/0": convolution,
            "layers/embedding/vars/0": kernel,
            "layers/dense/vars/1": kernel[0],
        }
        with open_checkpoint(write_h5(tmp_path / "a.weights.h5", state)) as reader:
            kernels = [info for info in reader.tensors if len(info.shape) > 1]
            matrices = {info.name: as_matrix(reader.load(info.name), info.order).numpy() for info in kernels}
            shapes = {info.name: matrix_shape(info.shape, info.order) for info in kernels}
        assert np.array_equal(matrices["layers/dense/vars/0"], kernel.T)
        assert np.array_equal(matrices["layers/conv2d/vars/0"], convolution.transpose(3, 2, 0, 1).reshape(6, -1))
        assert np.array_equal(
            matrices["layers/conv2d_transpose/vars/0"], convolution.transpose(2, 3, 0, 1).reshape(4, -1)
        )
        assert np.array_equal(matrices["layers/embedding/vars/0"], kernel)
        assert shapes["layers/conv2d/vars/0"] == (6, 24)

    def test_bfloat16(self, tmp_path):
        values = torch.from_numpy(DENSE).bfloat16()
        with h5py.File(tmp_path / "a.h5", "w") as file:
            stored = file.create_dataset("kernel", data=values.view(torch.int16).numpy().view("V2"))
            stored.attrs["dtype"] = "bfloat16"
            file.create_dataset("unnamed", data=values.view(torch.int16).numpy().view("V2"))
        with open_checkpoint(tmp_path / "a.h5") as reader:
            assert torch.equal(reader.load("kernel"), values)
            assert list(reader.ignored) == ["unnamed"]

    def test_nothing_leads_out_of_the_file(self, tmp_path):
        write_h5(tmp_path / "secret.h5")
        (tmp_path / "raw").write_bytes(bytes(768))
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["kept"] = DENSE
            file["external"] = h5py.ExternalLink("secret.h5", "half")
            file["soft"] = h5py.SoftLink("/kept")
            file["again"] = file["kept"]
            file["loop"] = file["/"]
            file.create_dataset("raw", (6, 32), "f4", external=[(str(tmp_path / "raw"), 0, 768)])
            layout = h5py.VirtualLayout((3, 4), "f2")
            layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "half", (3, 4))
            file.create_virtual_dataset("virtual", layout)
            file["text"] = "words"
            file.create_dataset("unwritten", (2**20, 2**20), "f4", chunks=(1024, 1024))
        with open_checkpoint(tmp_path / "a.h5") as reader:
            (info,) = reader.tensors
            assert info.name in {"kept", "again"}
            assert set(reader.ignored) >= {"external", "soft", "raw", "virtual", "text", "unwritten"}
            assert "of which the file has 0" in reader.ignored["unwritten"]


class TestGguf:
    @pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q5_1", "BF16"])
    def test_quantized(self, kind, tmp_path):
        kind = getattr(gguf.GGMLQuantizationType, kind)
        path = tmp_path / "a.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tensor("blk.0.attn_q.weight", gguf.quantize(DENSE, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with open_checkpoint(path) as reader:
            (info,) = reader.tensors
            assert info.shape == (6, 32)
            if kind.name == "BF16":
                assert (info.dtype, info.stored_as) == ("bfloat16", "")
                assert torch.equal(reader.load(info.name), torch.from_numpy(DENSE).bfloat16())
                return
            assert (info.dtype, info.stored_as) == ("float32", kind.name)
            values = reader.load(info.name)
            assert values.dtype == torch.float32
            # Steps of a block's largest entry: a fifteenth with 4 bits at most.
            assert float((values - torch.from_numpy(DENSE)).abs().max()) <= float(np.abs(DENSE).max()) / 7
            (result,) = survey(reader, SurveyOptions(ranks=(2,), threads=1))
            assert result.dtype == f"{kind.name} as float32"
            assert result.analysis is not None

    def test_counts_that_are_not_there(self, tmp_path):
        path = write_gguf(tmp_path / "a.gguf")
        content = path.read_bytes()
        for place in (8, 16):  # of tensors, of keys
            path.write_bytes(content[:place] + struct.pack("<Q", 2**62) + content[place + 8 :])
            refused(path)


class TestOnnx:
    def test_order(self, tmp_path):
        make = onnx.helper.make_node
        weights = {name: GENERATOR.standard_normal((5, 4)) for name in ("matmul", "gemm", "transposed", "gathered")}
        weights["up"] = GENERATOR.standard_normal((5, 4, 2, 2))
        nodes = [
            make("MatMul", ["x", "matmul"], ["a"]),
            make("Gemm", ["x", "gemm"], ["b"]),
            make("Gemm", ["x", "transposed"], ["c"], transB=1),
            make("Gather", ["gathered", "x"], ["d"]),
            make("ConvTranspose", ["x", "up"], ["e"]),
        ]
        model = onnx_model((onnx.numpy_helper.from_array(value, name) for name, value in weights.items()), nodes)
        onnx.save(model, tmp_path / "a.onnx")
        with open_checkpoint(tmp_path / "a.onnx") as reader:
            matrices = {info.name: as_matrix(reader.load(info.name), info.order).numpy() for info in reader.tensors}
        for name in ("matmul", "gemm"):
            assert np.array_equal(matrices[name], weights[name].T)
        for name in ("transposed", "gathered"):
            assert np.array_equal(matrices[name], weights[name])
        assert np.array_equal(matrices["up"], weights["up"].transpose(1, 0, 2, 3).reshape(4, -1))

    def test_bfloat16_and_types_that_torch_lacks(self, tmp_path):
        values = torch.from_numpy(DENSE).bfloat16()
        stored = onnx.TensorProto(name="b", data_type=onnx.TensorProto.BFLOAT16, dims=[6, 32])
        stored.raw_data = values.view(torch.int16).numpy().tobytes()
        text = onnx.helper.make_tensor("text", onnx.TensorProto.STRING, [1], [b"a"])
        onnx.save(onnx_model([stored, text]), tmp_path / "a.onnx")
        with open_checkpoint(tmp_path / "a.onnx") as reader:
            assert torch.equal(reader.load("b"), values)
            assert reader.ignored == {"text": "STRING tensor of dimensions [1]"}

    @pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "link.bin", "long" * 2000])
    def test_files_outside_the_folder_are_not_read(self, location, tmp_path):
        (tmp_path / "secret.bin").write_bytes(DENSE.tobytes())
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
        stored = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[6, 32])
        stored.data_location = onnx.TensorProto.EXTERNAL
        stored.external_data.add(key="location", value=location)
        path = folder / "a.onnx"
        path.write_bytes(onnx_model([stored]).SerializeToString())
        assert "'w' cannot be read" in refused(path)

    def test_huge_declared_shapes(self, tmp_path):
        stored = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2**20, 2**20])
        stored.raw_data = DENSE.tobytes()
        path = tmp_path / "a.onnx"
        path.write_bytes(onnx_model([stored]).SerializeToString())
        assert "'w' cannot be read" in refused(path)
