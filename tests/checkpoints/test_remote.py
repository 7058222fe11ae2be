"""Safetensors on web servers and in object stores: what is asked for, and what is said where it is not given."""

import json
import logging
import struct
import sys
import traceback
from pathlib import Path

import numpy as np
import packers
import pytest
import torch
from range_server import PROXIES, RangeServer
from safetensors.torch import save
from weights import weight

from lowrank_ldu.checkpoints import CheckpointError, open_checkpoint, open_weights
from lowrank_ldu.checkpoints.file_states import file_states
from lowrank_ldu.checkpoints.remote.faults import PAUSES
from lowrank_ldu.errors import RemoteError

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

PATH = "/models/one/model.safetensors"


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The pauses that would have been made."""
    made = []
    monkeypatch.setattr("lowrank_ldu.checkpoints.remote.faults.sleep", made.append)
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.fixture
def server():
    server = RangeServer({PATH: save(TENSORS)})
    yield server
    server.stop()


TENSORS = {"a": weight(40, 30), "attn.in_proj_weight": weight(12, 4, seed=1), "b": weight(7).bfloat16()}


def content_range(size, tensor):
    """Where a tensor's bytes are in a file of `TENSORS`."""
    content = save(TENSORS)
    length = struct.unpack("<Q", content[:8])[0]
    start, end = json.loads(content[8 : 8 + length])[tensor]["data_offsets"]
    assert size == len(content)
    return 8 + length + start, 8 + length + end - 1


def load_all(url):
    with open_checkpoint(url) as reader:
        return {info.name: reader.load(info.name) for info in reader.tensors}


def refused(url, message, *, kind=RemoteError):
    """Open a checkpoint and load what is in it, which fails; return what is said."""
    with pytest.raises(kind, match=message) as caught:
        load_all(url)
    said = str(caught.value)
    assert "\n" not in said
    assert "hush" not in "".join(traceback.format_exception(caught.value))
    return said


class TestWhatIsRead:
    def test_a_file_is_as_it_is_here(self, server):
        with open_checkpoint(server.url + PATH) as reader:
            assert {info.name: info.shape for info in reader.tensors} == {k: tuple(v.shape) for k, v in TENSORS.items()}
            for name, values in TENSORS.items():
                assert torch.equal(reader.load(name), values)
                reader.load(name).zero_()  # it is the caller's

    def test_header_and_one_tensor_of_a_large_file(self, server):
        large = save({"large": torch.zeros(2**20), "small": weight(3, 2)})
        server.files[PATH] = large
        header = 8 + struct.unpack("<Q", large[:8])[0]
        with open_checkpoint(server.url + PATH) as reader:
            assert server.sent == header
            assert torch.equal(reader.load("small"), weight(3, 2))
        assert server.sent == header + 24
        assert server.ranges(PATH)[:2] == [(0, 7), (8, header - 1)]
        assert len(server.requests) == 3

    def test_one_request_for_a_tensor_in_any_order(self, server):
        """Shards are opened again and again, their headers are not read again."""
        shards = {f"model-0000{n}-of-00003.safetensors": {f"a{n}": weight(4, 3), f"b{n}": weight(4, 3)} for n in (1, 2)}
        shards["c d.safetensors"] = {"a3": weight(4, 3)}
        for file, state in shards.items():
            server.files[f"/m/{file}"] = save(state)
        weight_map = {name: file for file, state in shards.items() for name in state}
        server.files["/m/model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
        for url in ("/m/model.safetensors.index.json", "/m", "/m/?signature=hush"):
            with open_weights(server.url + url) as reader:
                server.requests.clear()
                for name in ("a1", "a2", "a3", "b1", "b2"):
                    assert torch.equal(reader.load(name), weight(4, 3))
                assert len(server.requests) == 5
                assert ("?signature=hush" in server.requests[-1][0]) == ("hush" in url)
                assert "hush" not in repr((reader.tensors, str(reader.path), file_states(reader)))

    def test_a_whole_file_of_the_folder(self, server):
        with open_checkpoint(server.url + "/models/one") as reader:
            assert len(reader.tensors) == 3

    def test_an_adapter_of_the_folder(self, server):
        server.files["/lora/adapter_config.json"] = b'{"peft_type": "LORA", "lora_alpha": 4}'
        server.files["/lora/adapter_model.safetensors"] = save(
            {"a.lora_A.weight": weight(2, 5), "a.lora_B.weight": weight(4, 2)}
        )
        with open_checkpoint(server.url + "/lora") as reader:
            torch.testing.assert_close(reader.load("a"), 2 * weight(4, 2) @ weight(2, 5))

    def test_an_adapter_whose_tensors_are_no_weights(self, server):
        server.files["/a/adapter_model.safetensors"] = save({"w.hada_w1_a": weight(4, 2)})
        for method, message in (
            ("LOHA", "the method 'LOHA', whose tensors are no weights"),
            ("LOLDU", "LoLDU adapter, .*, and is read from this machine only; accepted: a copy here as TUNED"),
        ):
            server.files["/a/adapter_config.json"] = json.dumps({"peft_type": method}).encode()
            with pytest.raises(CheckpointError, match=message):
                open_weights(server.url + "/a/")
        with pytest.raises(CheckpointError, match="which are no weights, .*; accepted: its folder"):
            open_weights(server.url + "/a/adapter_model.safetensors")
        server.files["/own/adapter.safetensors"] = save({"w.diagonal": weight(4)})
        with pytest.raises(CheckpointError, match="a LoLDU adapter is read from this machine only"):
            open_weights(server.url + "/own/")

    def test_the_configuration_beside_the_file(self, server):
        server.files["/models/one/config.json"] = json.dumps({"model_type": "mpt", "d_model": 4, "n_heads": 2}).encode()
        server.files[PATH] = save({"attn.Wqkv.weight": weight(12, 4)})
        with open_weights(server.url + PATH) as reader:
            assert [info.name[-3:] for info in reader.tensors] == ["[q]", "[k]", "[v]"]
            assert torch.equal(reader.load("attn.Wqkv.weight[v]"), weight(12, 4)[8:])
            assert sorted(file_states(reader)) == [server.url + "/models/one/config.json", server.url + PATH]

    def test_quantized_weights(self, server, tmp_path):
        """Of several tensors, and as they are here."""
        rng = np.random.default_rng(0)
        packed = packers.gptq(
            rng.integers(0, 16, (32, 64)), rng.integers(1, 16, (2, 32)), rng.standard_normal((2, 32)), bits=4
        )
        stored = {f"layer.{name}": values for name, values in packed.items()}
        stored |= {"b.weight": torch.ones(4, 3, dtype=torch.int8), "b.SCB": weight(4)}
        config = b'{"quantization_config": {"quant_method": "gptq", "checkpoint_format": "gptq"}}'
        for name, content in (("model.safetensors", save(stored)), ("config.json", config)):
            server.files[f"/q/{name}"] = content
            (tmp_path / name).write_bytes(content)
        with open_weights(f"{server.url}/q") as there, open_weights(tmp_path) as here:
            names = [info.name for info in there.tensors]
            assert sorted(names) == ["b.weight", "layer.weight"]
            assert names == [info.name for info in here.tensors]
            for name in names:
                assert torch.equal(there.load(name), here.load(name))

    def test_sizes_at_the_edges(self, server):
        server.files[PATH] = save({"none": torch.zeros(0, 3), "one": torch.ones(1, dtype=torch.int8)})
        with open_checkpoint(server.url + PATH) as reader:
            assert reader.load("none").shape == (0, 3)
            assert reader.load("one").tolist() == [1]

    def test_redirects_to_another_host(self, server):
        other = RangeServer({"/bytes": save(TENSORS)})
        server.misbehave = lambda path, start: (
            (f"{other.url}/bytes?signature=hush",) if path.endswith("tensors") else None
        )
        try:
            other.needs = lambda request: "Authorization" not in request.headers
            with open_checkpoint(f"http://me:hush@{server.host}{PATH}?hush") as reader:
                assert torch.equal(reader.load("a"), TENSORS["a"])
                assert {info.file for info in reader.tensors} == {server.url + PATH}
            other.misbehave = lambda path, start: 500
            refused(server.url + PATH, rf"^{server.url}{PATH}: the server fails \(500\), asked 4 times")
        finally:
            other.stop()

    def test_passwords_of_the_url(self, server):
        server.needs = lambda request: request.headers.get("Authorization") == "Basic bWU6aHVzaA=="
        with open_checkpoint(f"http://me:hush@{server.host}{PATH}?also=hush#hush") as reader:
            assert str(reader.path) == server.url + PATH
            assert torch.equal(reader.load("a"), TENSORS["a"])
        server.needs = lambda request: False
        refused(f"http://me:hush@{server.host}{PATH}?also=hush#hush", rf"{PATH}: the server wants credentials \(401\)")

    def test_passwords_of_netrc(self, server, tmp_path, monkeypatch):
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hush\n")
        (tmp_path / "netrc").chmod(0o600)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        server.needs = lambda request: request.headers.get("Authorization") == "Basic bWU6aHVzaA=="
        open_checkpoint(server.url + PATH).close()

    def test_nothing_is_logged(self, server, caplog):
        with caplog.at_level(logging.DEBUG), open_checkpoint(f"http://me:hush@{server.host}{PATH}?a=hush") as reader:
            reader.load("a")
        assert "hush" not in caplog.text


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("status", "message"),
        [
            (401, r"wants credentials \(401\); sign the URL anew, or put user and password"),
            (403, r"refuses access \(403\); sign the URL anew"),
            (404, r"no such file"),
            (410, r"no such file"),
            (418, r"answers with status 418; check the address"),
        ],
    )
    def test_statuses(self, server, pauses, status, message):
        server.misbehave = lambda path, start: status
        said = refused(f"{server.url}{PATH}?signature=hush", message)
        assert said.startswith(server.url + PATH)
        assert pauses == []

    @pytest.mark.parametrize("fault", [408, 429, 500, 502, 503, 504, "cut", "brief"])
    def test_what_may_pass_is_asked_for_again(self, server, pauses, fault):
        left = [fault, fault]
        server.misbehave = lambda path, start: left.pop() if start > 8 and left else None
        with open_checkpoint(server.url + PATH) as reader:
            server.requests.clear()
            assert torch.equal(reader.load("a"), TENSORS["a"])
        assert server.ranges(PATH) == [content_range(len(save(TENSORS)), "a")] * 3
        assert pauses == list(PAUSES[:2])

    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            (503, r"fails \(503\)"),
            ("cut", "the connection ended within the answer"),
            ("brief", "the answer ended too early"),
        ],
    )
    def test_what_does_not_pass(self, server, pauses, fault, message):
        server.misbehave = lambda path, start: fault if start > 8 else None
        refused(server.url + PATH + "?hush", f"{PATH}: .*{message}, asked 4 times; try again later")
        assert pauses == list(PAUSES)
        assert list(PAUSES) == sorted(PAUSES)

    @pytest.mark.parametrize("from_start", [True, False])
    def test_a_whole_file_is_not_taken(self, server, pauses, from_start):
        server.files[PATH] = save({"a": torch.zeros(2**24)})
        server.misbehave = lambda path, start: "whole" if from_start or start > 8 else None
        refused(server.url + PATH, r"does not give ranges \(it answers with the whole file\).*download the file")
        assert server.sent < 2**25  # what fits into the buffers of the system, of 64 MiB
        assert pauses == []

    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            ("shifted", r"gives bytes \d+ to \d+ of \d+ for \d+ to \d+; download the file"),
            ("no range", "does not say which bytes it gives"),
            ("no size", r"does not say which bytes it gives, of how many \(Content-Range is 'bytes"),
            ("longer", r"answers \d+ bytes with a length of \d+; download"),
            ("endless", "gives more bytes than it says"),
            ("compressed", "compresses its answers unasked"),
        ],
    )
    @pytest.mark.parametrize("from_start", [True, False])
    def test_other_bytes_than_asked_for(self, server, pauses, fault, message, from_start):
        server.misbehave = lambda path, start: fault if from_start or start > 8 else None
        refused(server.url + PATH + "?hush", message)
        assert pauses == []

    @pytest.mark.parametrize("size", ["other", "same"])
    @pytest.mark.parametrize("mark", ["ETag", "Last-Modified"])
    def test_a_file_that_was_changed(self, server, size, mark):
        server.etags = mark == "ETag"
        server.modified = "Mon, 02 Jan 2023 00:00:00 GMT"
        with open_checkpoint(server.url + PATH) as reader:
            reader.load("a")
            server.modified = "Tue, 03 Jan 2023 00:00:00 GMT"
            changed = {name: values + 1 for name, values in TENSORS.items()}
            server.files[PATH] = save(changed) if size == "same" else save(changed | {"c": weight(3)})
            with pytest.raises(
                RemoteError, match="has been changed on the server since it was opened; accepted: begin"
            ):
                reader.load("b")

    def test_a_file_that_became_shorter(self, server):
        with open_checkpoint(server.url + PATH) as reader:
            server.files[PATH] = server.files[PATH][:100]
            with pytest.raises(RemoteError, match=r"ends before the range .*\(416\); it has been changed"):
                reader.load("b")

    def test_a_server_that_says_nothing(self, server, monkeypatch, pauses):
        monkeypatch.setattr("lowrank_ldu.checkpoints.remote.web_files._SILENCE", 0.05)
        server.misbehave = lambda path, start: "silence"
        refused(server.url + PATH, "does not answer in time, asked 4 times")
        server.release.set()
        assert len(pauses) == 3

    def test_no_server(self, server):
        server.stop()
        refused(f"http://me:hush@{server.host}{PATH}?hush", rf"^{server.url}{PATH}: the server cannot be reached \(")

    @pytest.mark.parametrize("place", ["ftp://me:hush@host/m", "http://[hush/m"])
    def test_redirects_to_what_is_no_web_server(self, server, pauses, place):
        server.misbehave = lambda path, start: (place,)
        refused(server.url + PATH, r"the server cannot be trusted or named \(.*\); check the address")
        assert pauses == []

    def test_redirects_without_end(self, server):
        server.misbehave = lambda path, start: (f"{server.url}{PATH}?hush",)
        refused(server.url + PATH, "redirects without end")

    def test_missing_shards(self, server):
        server.files["/m/a.safetensors"] = save({"a": weight(2, 2)})
        server.files["/m/model.safetensors.index.json"] = (
            b'{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}'
        )
        refused(server.url + "/m", "missing 1 of 2 shards: b.safetensors", kind=CheckpointError)

    @pytest.mark.parametrize("shard", ["../a.safetensors", "/etc/a.safetensors", "//other/a.safetensors"])
    def test_shards_elsewhere(self, server, shard):
        server.files["/m/x.safetensors.index.json"] = json.dumps({"weight_map": {"a": shard}}).encode()
        refused(server.url + "/m/x.safetensors.index.json", "is not a file inside the folder", kind=CheckpointError)

    @pytest.mark.parametrize(
        "shard", ["a?b.safetensors", "a#b.safetensors", "%2e%2e%2fa.safetensors", "http:a.safetensors"]
    )
    def test_shards_with_the_marks_of_urls(self, server, shard):
        server.files["/m/x.safetensors.index.json"] = json.dumps({"weight_map": {"a": shard}}).encode()
        server.files[f"/m/{shard}"] = save({"a": weight(2, 2)})
        with open_checkpoint(server.url + "/m/x.safetensors.index.json") as reader:
            assert torch.equal(reader.load("a"), weight(2, 2))

    @pytest.mark.parametrize(
        "name", ["model.bin", "model.gguf", "model.pt", "model.npz", "pytorch_model.bin.index.json", "a.zip"]
    )
    def test_other_formats(self, server, name):
        server.files[f"/m/{name}"] = b'{"weight_map": {"a": "a.bin"}}'
        server.files["/m/a.bin"] = b"0123456789"
        refused(
            f"{server.url}/m/{name}?hush", "only safetensors can be read on a server, by ranges", kind=CheckpointError
        )

    def test_folders_that_cannot_be_listed(self, server):
        said = refused(server.url + "/m?hush", "no checkpoint", kind=CheckpointError)
        assert "a web server lists no files" in said

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "it is empty"),
            (b"1234", "truncated, damaged"),
            (b"<!doctype html><html></html>", "begins like a web page"),
            (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
            (struct.pack("<Q", 2**40) + b"{}", "header larger than"),
            (struct.pack("<Q", 200) + b"{}", "truncated, damaged"),
            (save(TENSORS)[:-1], "not a readable safetensors file"),
            (save(TENSORS) + b"0", "not a readable safetensors file"),
            (
                struct.pack("<Q", 66) + b'{"a":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}',
                "not a readable",
            ),
            (struct.pack("<Q", 2) + b"[]", "not a readable"),
        ],
    )
    def test_headers(self, server, content, message):
        server.files[PATH] = content
        refused(server.url + PATH, message, kind=CheckpointError)

    def test_headers_with_equal_keys(self, server):
        one = b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
        header = b"{" + one + b"," + one + b"}"
        server.files[PATH] = struct.pack("<Q", len(header)) + header + b"0"
        refused(server.url + PATH, "the key 'a' is there twice", kind=CheckpointError)

    def test_a_configuration_that_fails_is_not_a_missing_one(self, server):
        server.misbehave = lambda path, start: 503 if "config" in path else None
        with pytest.raises(RemoteError, match=r"config.json: the server fails \(503\)"):
            open_weights(server.url + PATH)
        server.misbehave = lambda path, start: 403 if "config" in path else None
        with open_weights(server.url + PATH) as reader:
            assert list(file_states(reader)) == [server.url + PATH]

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("file:///m/model.safetensors", "accepted: the path itself, without file://"),
            ("ftp://me:hush@host/model.safetensors", "is a ftp:// URL; accepted: https://HOST/FILE"),
            ("http:///m.safetensors?hush", "cannot be taken apart"),
            ("https://me:hush/hush@host/m.safetensors", "cannot be taken apart"),
            ("https://host:1234567/m.safetensors?hush", "cannot be taken apart"),
            ("https://[hush/m.safetensors", "cannot be taken apart"),
            ("https://host/a b\n.safetensors?hush", "cannot be taken apart"),
            ("s3://key:hush@bucket/m.safetensors", "s3://bucket/m.safetensors: has a query, .*in the environment"),
            ("gs://bucket/m.safetensors?token=hush", "gs://bucket/m.safetensors: has a query"),
            ("hf://me:hush@owner/name", "hf://owner/name: has a query"),
        ],
    )
    def test_urls(self, url, message):
        refused(url, message, kind=CheckpointError)

    @pytest.mark.parametrize("start", ["", " ", "'"])
    @pytest.mark.parametrize("kind", [str, Path])
    def test_urls_that_are_not_written_as_one(self, start, kind):
        url = f"{start}HTTPS:/me:hush@host/m.safetensors?token={'hush' * 99}"
        refused(kind(url), "is a https:// URL that is not written as one .*; accepted: a str", kind=CheckpointError)

    def test_libraries_that_are_missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "aiohttp", None)
        refused(
            "https://host/m.safetensors?hush",
            r"needs aiohttp: pip install 'lowrank-ldu\[remote\]'",
            kind=CheckpointError,
        )


class TestObjectStores:
    @pytest.fixture
    def store(self, monkeypatch):
        """An S3 of this process."""

        class Store(fsspec.AbstractFileSystem):
            protocol = "s3"
            files = {}  # noqa: RUF012  # of all instances
            reads = []  # noqa: RUF012
            fails = []  # noqa: RUF012

            def info(self, path):
                if path not in self.files:
                    raise FileNotFoundError(path)
                content = self.files[path]
                return {"name": path, "type": "file", "size": len(content), "ETag": hash(content), "VersionId": None}

            def ls(self, path, detail):
                assert detail
                below = [name for name in self.files if name.startswith(f"{path.rstrip('/')}/")]
                if not below:
                    raise FileNotFoundError(path)
                folders = {name[: name.index("/", len(path) + 1)] for name in below if "/" in name[len(path) + 1 :]}
                return [self.info(name) for name in below if "/" not in name[len(path) + 1 :]] + [
                    {"name": name, "type": "directory", "size": 0} for name in (*folders, path)
                ]

            def cat_file(self, path, start, end):
                self.reads.append((path, start, end))
                found = self.fails.pop() if self.fails else self.files[path][start:end]
                if isinstance(found, Exception):
                    raise found
                return found

        monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "s3", Store)
        return Store

    def test_a_file(self, store):
        store.files["bucket/a b/m.safetensors"] = save(TENSORS)
        with open_checkpoint("s3://bucket/a b/m.safetensors") as reader:
            assert str(reader.path) == "s3://bucket/a b/m.safetensors"
            store.reads.clear()
            for name, values in TENSORS.items():
                assert torch.equal(reader.load(name), values)
            assert len(store.reads) == len(TENSORS)
            assert list(file_states(reader)) == ["s3://bucket/a b/m.safetensors"]

    def test_folders_are_listed(self, store):
        store.files |= {
            "bucket/m/one-1.safetensors": save({"a": weight(2, 2)}),
            "bucket/m/one-2.safetensors": save({"b": weight(2, 2)}),
            "bucket/m/config.json": b"{}",
            "bucket/m/pytorch_model.bin": b"never read",
            "bucket/p/model_index.json": b"{}",
            "bucket/p/unet/a.safetensors": save({"c": weight(2, 2)}),
            "bucket/t/model.bin": b"never read",
        }
        for folder, names in (("m", ["a", "b"]), ("m/", ["a", "b"]), ("p", ["unet/c"])):
            with open_weights(f"s3://bucket/{folder}") as reader:
                assert [info.name for info in reader.tensors] == names
                assert torch.equal(reader.load(names[-1]), weight(2, 2))
                assert len(file_states(reader)) == (3 if folder.startswith("m") else 1)
        refused("s3://bucket/t", "s3://bucket/t/model.bin: only safetensors can be read", kind=CheckpointError)
        refused("s3://bucket/other", "s3://bucket/other: there is no such file or folder")
        refused("s3://bucket/m/other.safetensors", "other.safetensors: the server has no such file")

    @pytest.mark.parametrize(
        ("error", "message", "times"),
        [
            (PermissionError("hush"), r"refuses access \(403\); set AWS_ACCESS_KEY_ID", 1),
            (
                type("NoCredentialsError", (Exception,), {})("hush"),
                "no credentials for it .*; set AWS_ACCESS_KEY_ID",
                1,
            ),
            (OSError("Forbidden: hush"), r"refuses access \(403\)", 1),
            (OSError("hush"), r"cannot be read \(OSError\), asked 4 times", 4),
            (type("ConnectTimeoutError", (Exception,), {})("hush"), "ConnectTimeoutError.*asked 4 times", 4),
            (type("HttpError", (Exception,), {"code": 403})("hush"), r"refuses access \(403\)", 1),
            (type("HttpError", (Exception,), {"code": 503})("hush"), r"fails \(503\), asked 4 times", 4),
            (ValueError("hush"), r"cannot be read \(ValueError\)", 1),
            (b"brief", "ended too early, asked 4 times", 4),
            (bytes(10**5), "more than the range", 1),
        ],
    )
    def test_faults(self, store, pauses, error, message, times):
        store.files["bucket/m.safetensors"] = save(TENSORS)
        with open_checkpoint("s3://bucket/m.safetensors") as reader:
            store.fails += [error] * times
            with pytest.raises(RemoteError, match=f"^s3://bucket/m.safetensors: .*{message}") as caught:
                reader.load("a")
            assert "hush" not in "".join(traceback.format_exception(caught.value))
            assert len(pauses) == times - 1
            assert torch.equal(reader.load("a"), TENSORS["a"])

    def test_a_file_that_was_changed(self, store):
        store.files["bucket/m.safetensors"] = save(TENSORS)
        with open_checkpoint("s3://bucket/m.safetensors") as reader:
            store.files["bucket/m.safetensors"] = save({name: values + 1 for name, values in TENSORS.items()})
            with pytest.raises(RemoteError, match="has been changed on the server"):
                reader.load("a")

    @pytest.mark.parametrize(
        ("url", "name"), [("s3://bucket/m.safetensors", "s3fs"), ("gs://b/m.safetensors", "gcsfs")]
    )
    def test_libraries_that_are_missing(self, monkeypatch, url, name):
        monkeypatch.setitem(sys.modules, name, None)
        refused(url, f"needs {name}: pip install {name}", kind=CheckpointError)
