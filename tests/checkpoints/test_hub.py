"""Names on the hub: what is fetched of a repository, and what is said when it cannot be. Nothing is reached."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from weights import weight

from lowrank_ldu.checkpoints import CheckpointError, open_checkpoint

hub = pytest.importorskip("huggingface_hub")

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def online(monkeypatch):
    """As without HF_HUB_OFFLINE, which tests of PEFT in the same process set."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def repository(tmp_path, monkeypatch, online):  # noqa: ARG001
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
                if file.endswith(".safetensors"):
                    save_file({"w": weight(3, 4)}, folder / file)
                elif file.endswith(".bin"):
                    torch.save({"w": weight(3, 4)}, folder / file)
            return str(folder)

        monkeypatch.setattr(hub, "snapshot_download", download)
        return asked

    return serve


def test_safetensors_are_preferred(repository):
    asked = repository("README.md", "model.safetensors", "pytorch_model.bin", "tf_model.h5")
    with open_checkpoint("hf://owner/name@v1.0") as reader:
        assert torch.equal(reader.load("w"), weight(3, 4))
        assert reader.path.name == SHA
    assert (asked["name"], asked["revision"], asked["commit"]) == ("owner/name", "v1.0", SHA)
    assert asked["files"] == ["model.safetensors"]


def test_torch_files_where_there_are_no_others(repository):
    asked = repository("pytorch_model.bin", "config.json")
    with open_checkpoint("hf://owner/name") as reader:
        assert [info.name for info in reader.tensors] == ["w"]
    assert asked["files"] == ["pytorch_model.bin", "config.json"]


def test_names_that_are_patterns(repository):
    asked = repository("model[1].safetensors", "*.safetensors")
    open_checkpoint("hf://owner/name").close()
    assert asked["files"] == ["model[[]1].safetensors", "[*].safetensors"]


def test_adapters_come_with_their_configuration(repository):
    asked = repository("adapter_config.json", "adapter_model.safetensors", "tokenizer.json")
    open_checkpoint("hf://owner/name").close()
    assert asked["files"] == ["adapter_model.safetensors", "adapter_config.json"]


def test_no_weights(repository):
    repository("README.md", "model.onnx")
    with pytest.raises(CheckpointError, match="no weights that can be read among its 2 files"):
        open_checkpoint("hf://owner/name")


@pytest.mark.parametrize("name", ["hf://bert", "hf://", "hf://a/b/c", "hf://a/../b", "hf://a/b@", "hf://a b/c"])
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
