"""Checkpoint readers: every format gives the same tensors, and no file makes them fail in another way than said."""

import contextlib
import errno
import json
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors.torch import save, save_file  # noqa: E402

from lowrank_ldu.checkpoints import CheckpointError, TensorInfo, multi_file, open_checkpoint  # noqa: E402

STATE = {
    "layer.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "layer.bias": torch.tensor([0.5, -1.25], dtype=torch.float16),
    "norm": torch.tensor([[1.5], [3.0]], dtype=torch.bfloat16),
    "steps": torch.tensor(2**40 + 1, dtype=torch.int64),
    "empty": torch.zeros(0, 4),
}
FIRST = ["layer.weight", "steps"]


def half(*, first):
    return {name: value for name, value in STATE.items() if (name in FIRST) == first}


def write_index(path, suffix, write):
    shards = {True: f"a-00001-of-00002{suffix}", False: f"a-00002-of-00002{suffix}"}
    for first, shard in shards.items():
        write(half(first=first), path.parent / shard)
    path.write_text(json.dumps({"metadata": {}, "weight_map": {name: shards[name in FIRST] for name in STATE}}))
    return path


def write_compressed(state, path):
    torch.save(state, path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def write_legacy(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


def write_directory(path, suffix, write):
    for first in (True, False):
        write(half(first=first), path / f"part-{first}{suffix}")
    return path


def write_one(state, path, write):
    write(state, path)
    return path


FORMATS = {
    "safetensors": lambda d: write_one(STATE, d / "a.safetensors", save_file),
    "torch": lambda d: write_one(STATE, d / "a.pt", torch.save),
    "torch-legacy": lambda d: write_one(STATE, d / "a.bin", write_legacy),
    "torch-compressed": lambda d: write_one(STATE, d / "a.pth", write_compressed),
    "safetensors-index": lambda d: write_index(d / "a.safetensors.index.json", ".safetensors", save_file),
    "torch-index": lambda d: write_index(d / "a.bin.index.json", ".bin", torch.save),
    "safetensors-directory": lambda d: write_directory(d, ".safetensors", save_file),
    "torch-directory": lambda d: write_directory(d, ".pt", torch.save),
}
FILES = [name for name in FORMATS if not name.endswith("directory")]


def names(reader):
    return [info.name for info in reader.tensors]


def refused(path):
    """Return the message with which a checkpoint is refused."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


# What every format gives


@pytest.mark.parametrize("kind", FORMATS)
def test_round_trip(kind, tmp_path):
    path = FORMATS[kind](tmp_path)
    with open_checkpoint(os.fspath(path)) as reader:
        assert reader.path == path
        assert reader.ignored == {}
        assert sorted(names(reader)) == sorted(STATE)
        for info in reader.tensors:
            expected = STATE[info.name]
            assert info.shape == tuple(expected.shape)
            assert info.dtype == str(expected.dtype).removeprefix("torch.")
            assert info.nbytes == expected.nbytes
            assert Path(info.file).is_file()
            loaded = reader.load(info.name)
            assert loaded.dtype == expected.dtype
            assert loaded.device.type == "cpu"
            assert torch.equal(loaded, expected)


@pytest.mark.parametrize("kind", FORMATS)
def test_loaded_tensors_outlive_the_reader(kind, tmp_path):
    with open_checkpoint(FORMATS[kind](tmp_path)) as reader:
        loaded = {name: reader.load(name) for name in STATE}
    assert all(torch.equal(loaded[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("kind", FORMATS)
def test_closed_reader_refuses_to_load(kind, tmp_path):
    reader = open_checkpoint(FORMATS[kind](tmp_path))
    reader.load("norm")
    reader.close()
    reader.close()
    with pytest.raises(CheckpointError, match="closed"):
        reader.load("norm")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("kind", FORMATS)
def test_no_file_is_left_open(kind, tmp_path):
    def open_files():
        targets = []
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                targets.append(str(entry.readlink()))
        return [target for target in targets if target.startswith(str(tmp_path))]

    with open_checkpoint(FORMATS[kind](tmp_path)) as reader:
        for name in STATE:
            reader.load(name)
    assert open_files() == []


@pytest.mark.parametrize("kind", FORMATS)
def test_unknown_name_gives_close_ones(kind, tmp_path):
    with open_checkpoint(FORMATS[kind](tmp_path)) as reader:
        with pytest.raises(CheckpointError, match=r"'layer\.wieght'.*'layer\.weight'"):
            reader.load("layer.wieght")
        with pytest.raises(CheckpointError, match="no tensor 'zzz'; it has 5 tensors"):
            reader.load("zzz")


def test_analysis_does_not_import_torch():
    code = "import sys, lowrank_ldu.analysis; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


# What is not a checkpoint


def test_missing_path(tmp_path):
    assert "no such file" in refused(tmp_path / "a.safetensors")


def test_path_that_cannot_exist(tmp_path):
    refused(tmp_path / ("a" * 5000 + ".pt"))


def test_unknown_suffix_names_the_accepted_ones(tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"x")
    message = refused(path)
    for accepted in (".safetensors", ".pt", ".pth", ".bin", ".safetensors.index.json", ".bin.index.json", "directory"):
        assert accepted in message


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a.bin.index.json"])
def test_pipe_is_refused_without_waiting(name, tmp_path):
    os.mkfifo(tmp_path / name)
    assert "not a regular file" in refused(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
        (b"<!doctype html><title>404</title>", "web page"),
        (b"no checkpoint at all", "truncated, damaged"),
    ],
)
@pytest.mark.parametrize("name", ["a.safetensors", "a.safetensors.index.json", "a.bin.index.json"])
def test_likely_cause(name, content, cause, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert cause in refused(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no checkpoint", pickle.dumps({"a": 1}), b"\x80\x02K\x01."])
def test_what_is_not_a_torch_file(content, tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    message = refused(path)
    assert "truncated, damaged" in message or "is empty" in message or "only plain tensors" in message
    assert "weights_only" not in message


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_truncated_file(kind, keep, tmp_path):
    path = FORMATS[kind](tmp_path)
    os.truncate(path, int(path.stat().st_size * keep))
    refused(path)


# safetensors


def write_header(path, header, size):
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded)
    try:
        os.truncate(path, 8 + len(encoded) + size)
    except OSError as error:
        if error.errno not in {errno.EFBIG, errno.ENOSPC, errno.EINVAL}:
            raise
        pytest.skip("the file system has no sparse files of this size")


def test_safetensors_larger_than_memory_is_listed_and_read(tmp_path):
    size = 2**40
    path = tmp_path / "a.safetensors"
    header = {
        "huge": {"dtype": "F32", "shape": [2**19, 2**19], "data_offsets": [0, size]},
        "small": {"dtype": "BF16", "shape": [3], "data_offsets": [size, size + 6]},
    }
    write_header(path, header, size + 6)
    with open_checkpoint(path) as reader:
        assert reader.tensors == [
            TensorInfo("huge", (2**19, 2**19), "float32", str(path), size),
            TensorInfo("small", (3,), "bfloat16", str(path), 6),
        ]
        assert torch.equal(reader.load("small"), torch.zeros(3, dtype=torch.bfloat16))
    path.unlink()


def test_safetensors_are_listed_in_file_order(tmp_path):
    path = tmp_path / "a.safetensors"
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [2, 3]},
        "__metadata__": {"format": "pt"},
        "b": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
    }
    write_header(path, header, 3)
    with open_checkpoint(path) as reader:
        assert names(reader) == ["b", "a"]


def test_safetensors_every_dtype_is_named_and_read_as_the_library_does(tmp_path):
    path = tmp_path / "a.safetensors"
    dtypes = [
        *(torch.float64, torch.complex64, torch.uint8, torch.int8, torch.int16, torch.int32, torch.bool),
        *(torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2),
        *(torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    ]
    state = {str(dtype): torch.tensor([0, 1, 1, 0]).to(dtype) for dtype in dtypes}
    save_file(state, path)
    with open_checkpoint(path) as reader:
        for info in reader.tensors:
            assert f"torch.{info.dtype}" == info.name
            loaded = reader.load(info.name)
            assert loaded.dtype == state[info.name].dtype
            assert torch.equal(loaded.view(torch.uint8), state[info.name].view(torch.uint8))


def test_safetensors_dtype_without_torch_tensors_is_listed_but_not_loaded(tmp_path):
    path = tmp_path / "a.safetensors"
    write_header(path, {"a": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}, 3)
    with open_checkpoint(path) as reader:
        assert reader.tensors == [TensorInfo("a", (4,), "F6_E2M3", str(path), 3)]
        with pytest.raises(CheckpointError, match=r"'a' is stored as F6_E2M3.*accepted: .*float32"):
            reader.load("a")


@pytest.mark.parametrize("change", [lambda path: os.truncate(path, path.stat().st_size - 1), Path.unlink])
def test_safetensors_that_changes_while_it_is_open(change, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(3)}, path)
    with open_checkpoint(path) as reader:
        change(path)
        with pytest.raises(CheckpointError, match="'a'"):
            reader.load("a")


# torch files


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch {self.sentinel}",)


class EvalPayload(Payload):
    def __reduce__(self):
        return eval, (f"open({str(self.sentinel)!r}, 'w').close()",)


@pytest.mark.parametrize("payload", [Payload, EvalPayload])
@pytest.mark.parametrize("write", [torch.save, write_legacy, write_compressed])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_pickle_that_runs_code_is_refused(payload, write, suffix, tmp_path):
    sentinel = tmp_path / "sentinel"
    path = tmp_path / f"a{suffix}"
    write({"weight": torch.ones(2), "payload": payload(sentinel)}, path)
    message = refused(path)
    assert "wants to run code" in message
    assert ("system" if payload is Payload else "eval") in message
    assert "only plain tensors" in message
    assert "safetensors" in message
    assert "weights_only" not in message
    assert not sentinel.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickle_that_runs_code_is_refused(protocol, tmp_path):
    sentinel = tmp_path / "sentinel"
    path = tmp_path / "a.pt"
    path.write_bytes(pickle.dumps(Payload(sentinel), protocol=protocol))
    assert "run code" in refused(path)
    assert not sentinel.exists()


def test_code_in_a_shard_is_refused(tmp_path):
    sentinel = tmp_path / "sentinel"
    torch.save({"a": torch.ones(2), "b": Payload(sentinel)}, tmp_path / "a.bin")
    path = tmp_path / "a.bin.index.json"
    path.write_text(json.dumps({"weight_map": {"a": "a.bin"}}))
    with pytest.raises(CheckpointError, match="wants to run code"):
        open_checkpoint(path)
    assert not sentinel.exists()


def test_whole_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    assert "torch.nn.modules.linear.Linear" in refused(tmp_path / "a.pt")


def test_torchscript_is_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "a.pt")
    assert "TorchScript" in refused(tmp_path / "a.pt")


def test_nested_containers_are_flattened(tmp_path):
    path = tmp_path / "a.pt"
    weight = torch.nn.Parameter(torch.ones(2))
    content = {
        "state_dict": {"model": {"weight": weight}},
        "parts": [torch.zeros(1), (torch.zeros(2), "text")],
        7: torch.zeros(3),
        "epoch": 3,
        "sparse": torch.eye(2).to_sparse(),
        "meta": torch.zeros(2, device="meta"),
    }
    torch.save(content, path)
    with open_checkpoint(path) as reader:
        assert names(reader) == ["state_dict.model.weight", "parts.0", "parts.1.0", "7"]
        assert list(reader.ignored) == ["parts.1.1", "epoch", "sparse", "meta"]
        assert reader.ignored["epoch"] == "int"
        assert "sparse" in reader.ignored["sparse"]
        assert "meta" in reader.ignored["meta"]
        loaded = reader.load("state_dict.model.weight")
        assert type(loaded) is torch.Tensor
        assert not loaded.requires_grad


@pytest.mark.parametrize("content", [[torch.ones(1), torch.zeros(2)], (torch.ones(1), torch.zeros(2))])
def test_sequences_are_numbered(content, tmp_path):
    torch.save(content, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as reader:
        assert [(info.name, info.shape) for info in reader.tensors] == [("0", (1,)), ("1", (2,))]


def test_bare_tensor(tmp_path):
    torch.save(torch.ones(3), tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as reader:
        assert names(reader) == ["tensor"]
        assert torch.equal(reader.load("tensor"), torch.ones(3))


def test_other_objects_are_refused(tmp_path):
    torch.save("text", tmp_path / "a.pt")
    assert "type str" in refused(tmp_path / "a.pt")


def test_names_that_clash_once_flattened(tmp_path):
    torch.save({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, tmp_path / "a.pt")
    assert "'a.b'" in refused(tmp_path / "a.pt")


def test_container_that_holds_itself(tmp_path):
    content = {"a": torch.ones(1)}
    content["self"] = content
    torch.save(content, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as reader:
        assert names(reader) == ["a"]
        assert list(reader.ignored) == ["self"]


def test_containers_shared_exponentially_often(tmp_path):
    content = {"a": torch.ones(1)}
    for _ in range(30):
        content = {"x": content, "y": content}
    torch.save(content, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as reader:
        assert len(reader.tensors) == 1
        assert len(reader.ignored) == 30


def test_containers_nested_too_deeply(tmp_path):
    content = torch.ones(1)
    for _ in range(100):
        content = [content]
    torch.save(content, tmp_path / "a.pt")
    assert "deeper than 32" in refused(tmp_path / "a.pt")


# Indexes


def index_of(tmp_path, weight_map):
    path = tmp_path / "a.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": weight_map}))
    return path


@pytest.mark.parametrize(
    "shard",
    [
        "../secret.safetensors",
        "x/../../secret.safetensors",
        "..\\secret.safetensors",
        "C:\\s.safetensors",
        "",
        ".",
        "//h/s",
    ],
)
def test_shard_outside_the_folder_is_refused(shard, tmp_path):
    (tmp_path / "model").mkdir()
    save_file({"w": torch.ones(1)}, tmp_path / "secret.safetensors")
    message = refused(index_of(tmp_path / "model", {"w": shard}))
    assert repr(shard) in message
    assert "inside the folder" in message


def test_absolute_shard_is_refused(tmp_path):
    save_file({"w": torch.ones(1)}, tmp_path / "a.safetensors")
    assert "inside the folder" in refused(index_of(tmp_path, {"w": str(tmp_path / "a.safetensors")}))


def test_shards_in_subfolders_and_behind_links(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "model" / "sub").mkdir(parents=True)
    save_file({"w": torch.ones(1)}, tmp_path / "blobs" / "0123")
    try:
        (tmp_path / "model" / "sub" / "a.safetensors").symlink_to("../../blobs/0123")
    except OSError:
        pytest.skip("no symbolic links here")
    with open_checkpoint(index_of(tmp_path / "model", {"w": "sub/a.safetensors"})) as reader:
        assert torch.equal(reader.load("w"), torch.ones(1))


def test_all_missing_shards_are_named(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "1.safetensors")
    message = refused(index_of(tmp_path, {"a": "1.safetensors", "b": "2.safetensors", "c": "3.safetensors"}))
    assert "missing 2 of 3 shards: 2.safetensors, 3.safetensors" in message


@pytest.mark.parametrize("shard", ["n" * 5000, "a\0b"])
def test_shard_that_cannot_exist(shard, tmp_path):
    assert "shard" in refused(index_of(tmp_path, {"a": shard}))


def test_tensor_that_the_shard_lacks(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "1.safetensors")
    save_file({"b": torch.ones(1)}, tmp_path / "2.safetensors")
    message = refused(index_of(tmp_path, {"a": "2.safetensors", "b": "2.safetensors"}))
    assert "'a' in 2.safetensors" in message
    many = refused(index_of(tmp_path, {f"t{i}": "1.safetensors" for i in range(9)}))
    assert "'t4' in 1.safetensors, and 4 more" in many


def test_only_what_the_index_lists_is_read(tmp_path):
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "1.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "2.safetensors")
    with open_checkpoint(index_of(tmp_path, {"b": "1.safetensors", "a": "2.safetensors"})) as reader:
        assert names(reader) == ["b", "a"]
        assert torch.equal(reader.load("a"), torch.zeros(1))


@pytest.mark.parametrize(
    "content",
    [
        *("[]", "{}", "null", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": null}}'),
        *("1" * 5000, "[" * 10**5),
    ],
    ids=range(8),
)
def test_json_that_is_no_index(content, tmp_path):
    path = tmp_path / "a.safetensors.index.json"
    path.write_text(content)
    message = refused(path)
    assert "weight_map" in message or "not a readable JSON" in message


def test_index_that_lists_an_index(tmp_path):
    path = index_of(tmp_path, {"a": "a.safetensors.index.json"})
    with pytest.raises(CheckpointError, match=r"unknown suffix '\.json'"):
        open_checkpoint(path)


def test_at_most_one_shard_is_open(tmp_path, monkeypatch):
    opened = []
    original = multi_file.open_file

    def recording(path, *suffix):
        assert all(reader._closed for reader in opened)
        opened.append(original(path, *suffix))
        return opened[-1]

    monkeypatch.setattr(multi_file, "open_file", recording)
    with open_checkpoint(FORMATS["torch-index"](tmp_path)) as reader:
        listing = len(opened)
        for name in [*STATE, *STATE]:
            reader.load(name)
        in_order = len(opened)
        for info in reader.tensors:
            reader.load(info.name)
    assert listing == 2
    assert len(opened) - in_order <= 2
    assert all(reader._closed for reader in opened)


# Directories


def test_directory_order_of_preference(tmp_path):
    def first_name():
        with open_checkpoint(tmp_path) as reader:
            return reader.tensors[0].name

    torch.save({"from-pt": torch.ones(1)}, tmp_path / "b.pt")
    assert first_name() == "from-pt"
    torch.save({"from-bin-index": torch.ones(1), "unlisted": torch.ones(1)}, tmp_path / "shard.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"from-bin-index": "shard.bin"}}')
    assert first_name() == "from-bin-index"
    save_file({"from-safetensors": torch.ones(1), "unlisted": torch.ones(1)}, tmp_path / "c.safetensors")
    assert first_name() == "from-safetensors"
    other = tmp_path / "other.safetensors.index.json"
    save_file({"from-index": torch.ones(1)}, tmp_path / "d.safetensors")
    other.write_text('{"weight_map": {"from-index": "d.safetensors"}}')
    assert first_name() == "from-index"
    (tmp_path / "second.safetensors.index.json").write_text('{"weight_map": {}}')
    assert first_name() == "from-safetensors"
    save_file({"from-model": torch.ones(1)}, tmp_path / "z.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"from-model": "z.safetensors"}}')
    assert first_name() == "from-model"


def test_directory_skips_what_is_no_model(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "scaler.pt", "._model.bin"):
        (tmp_path / name).write_bytes(b"not a model")
    (tmp_path / "sub.pt").mkdir()
    with open_checkpoint(tmp_path) as reader:
        assert names(reader) == ["w"]


def test_directory_names_that_clash_get_the_file_name(tmp_path):
    save_file({"w": torch.ones(1)}, tmp_path / "a.safetensors")
    save_file({"w": torch.zeros(1), "v": torch.zeros(1)}, tmp_path / "b.safetensors")
    with open_checkpoint(tmp_path) as reader:
        assert sorted(names(reader)) == ["a.safetensors:w", "b.safetensors:v", "b.safetensors:w"]
        assert torch.equal(reader.load("a.safetensors:w"), torch.ones(1))
        assert torch.equal(reader.load("b.safetensors:w"), torch.zeros(1))


@pytest.mark.parametrize("content", [[], ["optimizer.pt", "config.json", "model.ckpt"]])
def test_directory_without_a_checkpoint(content, tmp_path):
    for name in content:
        (tmp_path / name).write_bytes(b"")
    message = refused(tmp_path)
    assert f"{len(content)} files" in message
    for looked_for in ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth", "optimizer.*"):
        assert looked_for in message


# Damage


@pytest.fixture(scope="module", params=FILES)
def damaged_file(request, tmp_path_factory):
    path = FORMATS[request.param](tmp_path_factory.mktemp(request.param))
    return path, path.read_bytes()


@settings(deadline=None, max_examples=150, database=None)
@given(data=st.data())
def test_damage_is_refused_or_survived(damaged_file, data):
    path, content = damaged_file
    damaged = bytearray(content)
    for position, byte in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4), label="changes"
    ):
        damaged[position] = byte
    path.write_bytes(damaged[: data.draw(st.none() | st.integers(0, len(content)), label="length")])
    with contextlib.suppress(CheckpointError), open_checkpoint(path) as reader:
        for info in reader.tensors:
            with contextlib.suppress(CheckpointError):
                assert tuple(reader.load(info.name).shape) == info.shape


@given(content=st.binary(max_size=200), suffix=st.sampled_from([".safetensors", ".pt", ".safetensors.index.json"]))
@settings(deadline=None, max_examples=150, database=None)
def test_any_bytes_are_refused_or_read(tmp_path_factory, content, suffix):
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError), open_checkpoint(path) as reader:
        assert reader.tensors == []


@settings(deadline=None, max_examples=50, database=None)
@given(
    shapes=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda s: s != "__metadata__"),
        st.lists(st.integers(0, 3), max_size=4),
        max_size=5,
    )
)
def test_any_names_and_shapes_round_trip(tmp_path_factory, shapes):
    path = tmp_path_factory.getbasetemp() / "names.safetensors"
    path.write_bytes(save({name: torch.ones(shape) for name, shape in shapes.items()}))
    with open_checkpoint(path) as reader:
        assert {info.name: list(info.shape) for info in reader.tensors} == shapes
        assert all(reader.load(name).shape == torch.Size(shape) for name, shape in shapes.items())


def test_the_package_shows_its_public_names_alone():
    import lowrank_ldu.checkpoints as face

    assert dir(face) == sorted(face.__all__)
    assert all(getattr(face, name).__doc__ for name in dir(face))
