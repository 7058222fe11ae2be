"""Files made to do harm: nothing is run, nothing is written elsewhere, memory stays bounded, the rest is analyzed."""

import collections
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from weights import weight

from lowrank_ldu.analysis import SurveyOptions, analyze_checkpoint
from lowrank_ldu.analysis.engine.survey import survey
from lowrank_ldu.checkpoints import CheckpointError, open_checkpoint
from lowrank_ldu.checkpoints.weights import open_weights
from lowrank_ldu.errors import NothingToAnalyzeError

gguf = pytest.importorskip("gguf")
h5py = pytest.importorskip("h5py")
onnx = pytest.importorskip("onnx")

COMMAND = "from lowrank_ldu.cli import main; main()"
KEPT = weight(6, 4)
OPTIONS = SurveyOptions(ranks=(2,), threads=1)
# Reads every tensor within a gibibyte above what the libraries take, and says what came of it.
BOUNDED = """
import resource, sys, warnings
warnings.simplefilter("ignore")
import torch, gguf, h5py, onnx
from lowrank_ldu.checkpoints import CheckpointError
from lowrank_ldu.checkpoints.weights import open_weights
torch.set_num_threads(1)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
try:
    with open_weights(sys.argv[1]) as reader:
        for name, what in reader.ignored.items():
            print("ignored", name, what)
        for info in reader.tensors:
            try:
                reader.load(info.name)
                print("read", info.name)
            except CheckpointError as error:
                print("refused", info.name, error)
            except MemoryError as error:
                print("too large", info.name, error)
except CheckpointError as error:
    print("refused", error)
"""


def bounded(path):
    result = subprocess.run(
        [sys.executable, "-P", "-c", BOUNDED, str(path)], capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


class Rebuilt:
    """Pickled as a tensor of whatever is said of it."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (*self.arguments, False, collections.OrderedDict())


def save_rebuilt(path, size, stride, *, legacy=False, offset=0):
    storage = torch.arange(4.0)._typed_storage()
    content = {"huge": Rebuilt(storage, offset, size, stride), "kept": KEPT}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def compress(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, size in members.items():
            with archive.open(name, "w", force_zip64=True) as member:
                for _ in range(size // 2**20):
                    member.write(bytes(2**20))
                member.write(bytes(size % 2**20))


@pytest.mark.longer
class TestBombs:
    pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")

    def test_torch_archive_that_inflates(self, tmp_path):
        path = tmp_path / "a.pt"
        torch.save({"w": torch.zeros(4)}, path)
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        compress(path, {next(name for name in members if name.endswith("data/0")): 2**30})
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                if not name.endswith("data/0"):
                    archive.writestr(name, data)
        assert path.stat().st_size < 2**23
        assert "accepted: up to 20 times that" in bounded(path)

    @pytest.mark.parametrize("legacy", [False, True])
    def test_torch_tensor_beyond_its_storage(self, tmp_path, legacy):
        save_rebuilt(tmp_path / "a.pt", (2**17, 2**17), (2**17, 1), legacy=legacy)
        assert "refused" in bounded(tmp_path / "a.pt")

    def test_torch_tensor_of_one_number_repeated(self, tmp_path):
        """It takes no memory as it is stored, and a tebibyte if it were copied."""
        save_rebuilt(tmp_path / "a.pt", (2**19, 2**19), (0, 0))
        assert "read kept" in bounded(tmp_path / "a.pt")
        analysis = analyze_checkpoint(tmp_path / "a.pt", OPTIONS)
        assert [tensor.name for tensor, _ in analysis.matrices] == ["kept"]
        assert "too large" in analysis.skipped[0].reason

    def test_numpy_archive_that_inflates(self, tmp_path):
        path = tmp_path / "a.npz"
        np.savez_compressed(path, kept=KEPT.numpy(), bomb=np.zeros(2**24, dtype=np.float64))
        said = bounded(path)
        assert "read kept" in said
        assert "read bomb" in said  # of a size that is no harm

    def test_npy_of_a_hole(self, tmp_path):
        path = tmp_path / "a.npy"
        np.lib.format.open_memmap(path, "w+", np.float32, (2**16, 2**16))
        assert "cannot be read" in bounded(path) or "too large" in bounded(path)

    def test_hdf5_that_is_not_written(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["kept"] = KEPT.numpy()
            file.create_dataset("bomb", (2**17, 2**17), "f8", chunks=(2**10, 2**10), compression="gzip")
        said = bounded(tmp_path / "a.h5")
        assert "read kept" in said
        assert "ignored bomb" in said

    def test_onnx_that_declares_what_is_not_there(self, tmp_path):
        huge = onnx.TensorProto(name="huge", data_type=onnx.TensorProto.FLOAT, dims=[2**31, 2**31], raw_data=b"1234")
        kept = onnx.numpy_helper.from_array(KEPT.numpy(), "kept")
        graph = onnx.helper.make_graph([], "graph", [], [], initializer=[huge, kept])
        (tmp_path / "a.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
        said = bounded(tmp_path / "a.onnx")
        assert "refused huge" in said
        assert "read kept" in said

    def test_index_that_is_larger_than_any(self, tmp_path):
        path = tmp_path / "model.safetensors.index.json"
        path.touch()
        os.truncate(path, 2**35)
        assert "larger than" in bounded(tmp_path)

    def test_quantized_weights_that_declare_more(self, tmp_path):
        description = {"shape": [2**30, 2**30], "blocksize": 2**30, "quant_type": "nf4"}
        state = {
            "a": torch.zeros(64, 1, dtype=torch.uint8),
            "a.absmax": torch.ones(2),
            "a.quant_map": torch.ones(16),
            "a.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(description).encode())).byte(),
            "b.weight_packed": torch.ones(4, 8, dtype=torch.int32),
            "b.weight_scale": torch.ones(4, 2),
            "b.weight_shape": torch.tensor([4, 2**62]),
            "kept": KEPT,
        }
        save_file(state, tmp_path / "a.safetensors")
        assert "read kept" in bounded(tmp_path)
        analysis = analyze_checkpoint(tmp_path, OPTIONS)
        reasons = {tensor.name: tensor.reason for tensor in analysis.skipped}
        assert "hold no 1152921504606846976 numbers" in reasons["a"]
        assert "does not say the two sizes" in reasons["b.weight_packed"] or "words" in reasons["b.weight_packed"]


class Payload:
    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch {self.sentinel}",)


class TestCode:
    """A canary that nothing touches."""

    @pytest.fixture
    def canary(self, tmp_path):
        yield (canary := tmp_path / "canary")
        assert not canary.exists()

    def test_in_arrays_of_objects(self, tmp_path, canary):
        np.savez(tmp_path / "a.npz", kept=KEPT.numpy(), bad=np.array([Payload(canary)], dtype=object))
        analysis = analyze_checkpoint(tmp_path / "a.npz", OPTIONS)
        assert [tensor.name for tensor in analysis.skipped] == ["bad"]
        np.save(tmp_path / "b.npy", np.array([Payload(canary)], dtype=object))
        with pytest.raises(NothingToAnalyzeError, match="may hold weights: object array"):
            analyze_checkpoint(tmp_path / "b.npy", OPTIONS)

    @pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model.bin"])
    def test_in_a_folder(self, tmp_path, canary, name):
        folder = tmp_path / "adapter"
        folder.mkdir()
        torch.save({"x.lora_A.weight": weight(2, 4), "y": Payload(canary)}, folder / name)
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        with pytest.raises(CheckpointError, match="wants to run code"):
            open_weights(folder)

    @pytest.mark.parametrize(
        "config",
        [
            '{"auto_map": {"AutoModel": "evil.Model"}, "model_type": "phi3"}',
            '{"quantization_config": {"quant_method": "__import__(\'os\')"}}',
        ],
    )
    def test_in_configurations(self, tmp_path, canary, config):
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')")
        (folder / "config.json").write_text(config)
        save_file({"kept": KEPT}, folder / "model.safetensors")
        assert len(analyze_checkpoint(folder, OPTIONS).matrices) == 1


class TestPlaces:
    """What leads out of the folder."""

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
    def test_pipes_are_not_waited_for(self, tmp_path):
        for name in ("config.json", "quantize_config.json", "adapter_config.json", "b.safetensors"):
            os.mkfifo(tmp_path / name)
        save_file({"kept": KEPT}, tmp_path / "a.safetensors")
        assert len(analyze_checkpoint(tmp_path, OPTIONS).matrices) == 1

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
    def test_pipe_beside_an_onnx_model(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        stored = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[6, 4])
        stored.data_location = onnx.TensorProto.EXTERNAL
        stored.external_data.add(key="location", value="pipe")
        graph = onnx.helper.make_graph([], "graph", [], [], initializer=[stored])
        (tmp_path / "a.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
        with open_weights(tmp_path / "a.onnx") as reader, pytest.raises(CheckpointError, match="'w' cannot be read"):
            reader.load("w")

    def test_links_in_a_circle(self, tmp_path):
        (tmp_path / "a.safetensors").symlink_to("b.safetensors")
        (tmp_path / "b.safetensors").symlink_to("a.safetensors")
        (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "a.safetensors"}}')
        with pytest.raises(CheckpointError, match="missing 1 of 1 shards"):
            open_checkpoint(tmp_path)

    @pytest.mark.parametrize("shard", ["/etc/passwd", "../a.safetensors", "x/../../a.safetensors", "C:\\a", "\\\\h\\a"])
    def test_shards_elsewhere(self, tmp_path, shard):
        folder = tmp_path / "model"
        folder.mkdir()
        save_file({"w": KEPT}, tmp_path / "a.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
        with pytest.raises(CheckpointError, match="not a file inside the folder"):
            open_checkpoint(folder)

    def test_nothing_is_written_but_the_report(self, tmp_path):
        names = [
            "../../up",
            "/abs",
            "a\nb",
            "\x1b[2J",
            "<img src=x onerror=alert(1)>",
            "{{ 7 * 7 }}",
            "%s%n",
            "a\0b",
            " ",
        ]
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "a.safetensors").write_bytes(save({name: KEPT.clone() for name in names}))
        before = set(tmp_path.rglob("*"))
        result = subprocess.run(
            [sys.executable, "-P", "-c", COMMAND, "analyze", str(folder), "--rank", "2", "--out", "report"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert "\x1b[2J" not in result.stdout + result.stderr
        written = set(tmp_path.rglob("*")) - before
        assert all(path.is_relative_to(tmp_path / "report") for path in written)
        page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
        assert "<img src=x" not in page
        assert "{{ 7 * 7 }}" in page
        assert "\x1b" not in page


class TestNames:
    def test_twice_in_a_header(self, tmp_path):
        entry = '{"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}'
        header = f'{{"w": {entry}, "w": {entry}}}'.encode()
        (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
        try:
            with open_checkpoint(tmp_path / "a.safetensors") as reader:
                assert [info.name for info in reader.tensors] == ["w"]
        except CheckpointError:
            pass

    @pytest.mark.parametrize(
        "offsets", [([0, 16], [8, 24]), ([0, 16], [0, 16]), ([0, 16], [32, 48]), ([16, 0], [0, 16])]
    )
    def test_values_that_overlap(self, tmp_path, offsets):
        header = json.dumps(
            {
                name: {"dtype": "F32", "shape": [2, 2], "data_offsets": place}
                for name, place in zip("ab", offsets, strict=True)
            }
        ).encode()
        (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(48))
        with pytest.raises(CheckpointError, match="not a readable safetensors file"):
            open_checkpoint(tmp_path / "a.safetensors")

    def test_twice_in_an_archive(self, tmp_path):
        np.save(tmp_path / "b.npy", KEPT.numpy())
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.write(tmp_path / "b.npy", "w.npy")
            with pytest.warns(UserWarning, match="Duplicate name"):
                archive.write(tmp_path / "b.npy", "w.npy")
        with open_checkpoint(tmp_path / "a.npz") as reader:
            assert reader.tensors == []
            assert reader.ignored == {"w": "array whose name two members have"}

    def test_twice_in_a_gguf_file(self, tmp_path):
        writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
        for name in ("w0", "w1"):
            writer.add_tensor(name, KEPT.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        content = (tmp_path / "a.gguf").read_bytes()
        (tmp_path / "a.gguf").write_bytes(content.replace(b"w1", b"w0"))
        with pytest.raises(CheckpointError, match="GGUF"):
            open_checkpoint(tmp_path / "a.gguf")


LORA = ["base_model.model.a.lora_A.weight", "base_model.model.a.lora_B.weight", "base_model.model.a.lora_embedding_A"]


@settings(max_examples=60, deadline=None)
@given(
    tensors=st.dictionaries(
        st.sampled_from([*LORA, "x"]),
        st.tuples(
            st.lists(st.integers(0, 3), max_size=5).map(tuple), st.sampled_from([torch.float32, torch.int8, torch.bool])
        ),
        min_size=1,
    ),
    config=st.dictionaries(
        st.sampled_from(["lora_alpha", "alpha_pattern", "use_rslora", "r"]),
        st.integers()
        | st.floats()
        | st.text(max_size=3)
        | st.none()
        | st.dictionaries(st.text(max_size=3), st.integers()),
    ),
)
def test_any_adapter(tmp_path_factory, tensors, config):
    folder = tmp_path_factory.mktemp("adapter")
    save_file({name: torch.ones(shape).to(dtype) for name, (shape, dtype) in tensors.items()}, folder / "a.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "LORA"}))
    try:
        with open_weights(folder) as reader:
            results = list(survey(reader, OPTIONS))
            assert len(results) == len(reader.tensors) + len(reader.ignored)
    except CheckpointError as error:
        assert "lora_alpha or alpha_pattern" in str(error) or "is no finite number" in str(error)  # noqa: PT017
