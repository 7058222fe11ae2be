"""Names on the hub: what is read and fetched of a repository, and what is said when it cannot be.

The hub is a server on the loopback.
"""

import os
import subprocess
import sys
import traceback
from types import SimpleNamespace

import pytest
import torch
from range_server import PROXIES, RangeServer
from safetensors.torch import save, save_file
from weights import weight

from lowrank_ldu.checkpoints import CheckpointError, open_checkpoint

hub = pytest.importorskip("huggingface_hub")

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def online(monkeypatch):
    """As without HF_HUB_OFFLINE, which tests of PEFT in the same process set."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def server(monkeypatch, online):  # noqa: ARG001
    """The hub's own server."""
    server = RangeServer()
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("lowrank_ldu.checkpoints.remote.faults.sleep", lambda _: None)
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_hush")
    yield server
    server.stop()


@pytest.fixture
def repository(tmp_path, monkeypatch, server):
    """A repository of given files; returns what was asked for."""
    asked = {}

    def serve(*files):
        monkeypatch.setattr(
            hub.HfApi,
            "model_info",
            lambda _, name, revision=None: (
                asked.update(name=name, revision=revision)
                or SimpleNamespace(sha=SHA, siblings=[SimpleNamespace(rfilename=file) for file in files])
            ),
        )

        def download(name, *, revision, allow_patterns):
            asked.update(downloaded=name, commit=revision, files=allow_patterns)
            folder = tmp_path / revision
            folder.mkdir()
            for file in allow_patterns:
                if file.endswith(".bin"):
                    torch.save({"w": weight(3, 4)}, folder / file)
            return str(folder)

        monkeypatch.setattr(hub, "snapshot_download", download)
        for file in files:
            if file.endswith(".safetensors"):
                server.files[f"/owner/name/resolve/{SHA}/{file}"] = save({"w": weight(3, 4)})
        return asked

    return serve


def test_safetensors_are_preferred_and_not_fetched(repository, server):
    asked = repository("README.md", "model.safetensors", "pytorch_model.bin", "tf_model.h5")
    with open_checkpoint("hf://owner/name@v1.0") as reader:
        assert torch.equal(reader.load("w"), weight(3, 4))
        assert str(reader.path) == f"hf://owner/name@{SHA}"
    assert asked == {"name": "owner/name", "revision": "v1.0"}
    assert {path for path, _ in server.requests} == {f"/owner/name/resolve/{SHA}/model.safetensors"}


def test_the_token_is_sent_to_the_hub_alone(repository, server):
    """Bytes come from another host, by a redirect that is signed."""
    repository("model.safetensors")
    other = RangeServer({"/bytes": server.files.pop(f"/owner/name/resolve/{SHA}/model.safetensors")})
    server.needs = lambda request: request.headers.get("Authorization") == "Bearer hf_hush"
    other.needs = lambda request: "Authorization" not in request.headers
    server.misbehave = lambda path, start: (f"{other.url}/bytes?signature=hush",)
    try:
        with open_checkpoint("hf://owner/name") as reader:
            assert torch.equal(reader.load("w"), weight(3, 4))
        other.misbehave = lambda path, start: 403
        with pytest.raises(CheckpointError, match=r"safetensors: the server refuses access \(403\); accept") as caught:
            open_checkpoint("hf://owner/name")
        assert str(caught.value).startswith(f"hf://owner/name@{SHA}/model.safetensors: ")
        assert "hush" not in "".join(traceback.format_exception(caught.value))
    finally:
        other.stop()


def test_one_file(repository, server):
    repository("one/a.safetensors", "b.safetensors", "c.bin")
    for name in ("hf://owner/name/one/a.safetensors", "hf://owner/name@refs/pr/1/one/a.safetensors"):
        with open_checkpoint(name) as reader:
            assert str(reader.path) == f"hf://owner/name@{SHA}/one/a.safetensors"
    assert {path for path, _ in server.requests} == {f"/owner/name/resolve/{SHA}/one/a.safetensors"}
    with pytest.raises(CheckpointError, match="there is no file 'd.safetensors' among its 3 files"):
        open_checkpoint("hf://owner/name@main/d.safetensors")


def test_a_folder_of_folders(repository):
    repository("model_index.json", "unet/a.safetensors", "vae/a.safetensors")
    with open_checkpoint("hf://owner/name") as reader:
        assert [info.name for info in reader.tensors] == ["unet/w", "vae/w"]
        assert torch.equal(reader.load("vae/w"), weight(3, 4))


def test_what_is_in_the_cache_is_read_there(repository, server, tmp_path, monkeypatch):
    repository("model.safetensors", "config.json")
    cached = {}
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda _, file, revision: cached.get((file, revision)))
    with open_checkpoint("hf://owner/name") as reader:
        assert str(reader.path).startswith("hf://")
    for file in ("model.safetensors", "config.json"):
        cached[file, SHA] = str(tmp_path / file)
        (tmp_path / file).write_bytes(server.files.get(f"/owner/name/resolve/{SHA}/{file}", b"{}"))
    with open_checkpoint("hf://owner/name") as reader:
        assert reader.path == tmp_path


def test_torch_files_where_there_are_no_others(repository):
    asked = repository("pytorch_model.bin", "config.json")
    with open_checkpoint("hf://owner/name") as reader:
        assert [info.name for info in reader.tensors] == ["w"]
    assert asked["files"] == ["pytorch_model.bin", "config.json"]
    assert (asked["downloaded"], asked["commit"]) == ("owner/name", SHA)


def test_names_that_are_patterns(repository):
    asked = repository("model[1].bin", "*.bin")
    open_checkpoint("hf://owner/name").close()
    assert asked["files"] == ["model[[]1].bin", "[*].bin"]


def test_adapters_come_with_their_configuration(repository, server):
    repository("adapter_config.json", "adapter_model.safetensors", "tokenizer.json")
    folder = f"/owner/name/resolve/{SHA}"
    server.files[f"{folder}/adapter_config.json"] = b'{"peft_type": "LORA", "lora_alpha": 4}'
    server.files[f"{folder}/adapter_model.safetensors"] = save(
        {"a.lora_A.weight": weight(2, 5), "a.lora_B.weight": weight(4, 2)}
    )
    with open_checkpoint("hf://owner/name") as reader:
        torch.testing.assert_close(reader.load("a"), 2 * weight(4, 2) @ weight(2, 5))


def test_no_weights(repository):
    repository("README.md", "model.onnx")
    with pytest.raises(CheckpointError, match="no weights that can be read among its 2 files"):
        open_checkpoint("hf://owner/name")


@pytest.mark.parametrize(
    "name", ["hf://bert", "hf://", "hf://a/b/c", "hf://a/../b", "hf://a/b@", "hf://a b/c", "hf://a/b/c.bin"]
)
def test_names(name):
    with pytest.raises(CheckpointError, match="not a name on the hub; accepted: hf://OWNER/NAME"):
        open_checkpoint(name)


@pytest.mark.parametrize("kind", [OSError, type("TransportError", (Exception,), {})])
@pytest.mark.usefixtures("online")
def test_what_cannot_be_fetched(monkeypatch, kind):
    def unreachable(*_, **__):
        raise kind("no route\nto the hub")

    monkeypatch.setattr(hub.HfApi, "model_info", unreachable)
    with pytest.raises(CheckpointError, match=r"hf://owner/name: cannot be fetched \(no route to the hub\)"):
        open_checkpoint("hf://owner/name")


def test_from_the_cache_without_a_network(tmp_path):
    repository = tmp_path / "hub" / "models--owner--name"
    folder = repository / "snapshots" / SHA
    folder.mkdir(parents=True)
    save_file({"w": weight(3, 4)}, folder / "model.safetensors")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(SHA)
    code = (
        "import sys; from lowrank_ldu.checkpoints import CheckpointError, open_checkpoint\n"
        "print(open_checkpoint('hf://owner/name').path.name)\n"
        "try:\n    open_checkpoint('hf://owner/other')\nexcept CheckpointError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    shown = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout.splitlines()
    assert shown[0] == SHA
    assert shown[1].startswith("hf://owner/other: cannot be fetched (")


def test_passwords_of_a_mirror_are_not_shown(online, monkeypatch):  # noqa: ARG001
    server = RangeServer()
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://me:hush@{server.host}")
    server.misbehave = lambda path, start: 404
    try:
        with pytest.raises(CheckpointError, match=rf"404.*http://{server.host}/api/models/a/b") as caught:
            open_checkpoint("hf://a/b")
    finally:
        server.stop()
    assert "hush" not in "".join(traceback.format_exception(caught.value))
