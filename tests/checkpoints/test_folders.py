"""Folders: pipelines of several models, and LoRA adapters, whose updates are PEFT's."""

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import save_file
from weights import weight

from lowrank_ldu.checkpoints import CheckpointError, open_checkpoint, open_weights


def write_pipeline(folder):
    for name in ("unet", "vae", "scheduler", ".cache"):
        (folder / name).mkdir()
    (folder / "model_index.json").write_text("{}")
    save_file({"conv.weight": weight(4, 3, 2, 2)}, folder / "unet" / "diffusion_pytorch_model.safetensors")
    save_file({"conv.weight": weight(2, 2, seed=1)}, folder / "vae" / "a-00001-of-00001.safetensors")
    (folder / "vae" / "a.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"conv.weight": "a-00001-of-00001.safetensors"}})
    )
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    save_file({"hidden": weight(2, 2)}, folder / ".cache" / "a.safetensors")


def test_pipeline(tmp_path):
    write_pipeline(tmp_path)
    with open_checkpoint(tmp_path) as reader:
        loaded = {info.name: reader.load(info.name) for info in reader.tensors}
    assert list(loaded) == ["unet/conv.weight", "vae/conv.weight"]
    assert torch.equal(loaded["unet/conv.weight"], weight(4, 3, 2, 2))
    assert torch.equal(loaded["vae/conv.weight"], weight(2, 2, seed=1))


def test_files_of_the_folder_itself_come_first(tmp_path):
    write_pipeline(tmp_path)
    save_file({"whole": weight(2, 2)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as reader:
        assert [info.name for info in reader.tensors] == ["whole"]


def test_folders_without_any(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no checkpoint among its 1 files and folders; .*and for folders with"):
        open_checkpoint(tmp_path)


class TestLora:
    @pytest.fixture
    def saved(self, tmp_path):
        """An adapter that PEFT saved, and the updates that PEFT says it makes."""
        peft = pytest.importorskip("peft")

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding = torch.nn.Embedding(11, 6)
                self.first = torch.nn.Linear(6, 5)
                self.second = torch.nn.Linear(5, 7)
                self.conv = torch.nn.Conv2d(3, 4, 2)

        config = peft.LoraConfig(
            r=3,
            lora_alpha=5,
            target_modules=["embedding", "first", "second", "conv"],
            rank_pattern={"second": 2},
            alpha_pattern={"second": 9},
            init_lora_weights=False,
        )
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a model that is no transformer
            model = peft.get_peft_model(Model(), config)
            model.save_pretrained(tmp_path, save_embedding_layers=False)
        layers = {name: getattr(model.base_model.model, name) for name in ("embedding", "first", "second", "conv")}
        return tmp_path, {name: layer.get_delta_weight("default").detach() for name, layer in layers.items()}

    def test_updates_are_pefts(self, saved):
        folder, updates = saved
        with open_checkpoint(folder) as reader:
            assert sorted(info.name for info in reader.tensors) == sorted(updates)
            assert reader.ignored == {}
            for info in reader.tensors:
                assert info.shape == updates[info.name].shape
                torch.testing.assert_close(reader.load(info.name), updates[info.name])

    def test_rank_stabilized(self, saved):
        folder, updates = saved
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": True}))
        with open_checkpoint(folder) as reader:
            torch.testing.assert_close(reader.load("first"), updates["first"] * 3**0.5)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "not a readable JSON file"),
            ("[]", "holds a list; accepted: an object"),
            ('{"peft_type": "LORA", "lora_alpha": "a"}', "lora_alpha or alpha_pattern is not what PEFT accepts"),
            ('{"peft_type": "LORA", "alpha_pattern": {"(": 1}}', "lora_alpha or alpha_pattern is not what"),
            ('{"peft_type": "LORA", "alpha_pattern": 3}', "lora_alpha or alpha_pattern is not what"),
        ],
    )
    def test_damaged_configurations(self, saved, content, message):
        folder, _ = saved
        (folder / "adapter_config.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(folder)

    def test_other_methods_are_listed_as_they_are(self, saved):
        folder, _ = saved
        (folder / "adapter_config.json").write_text('{"peft_type": "LOLDU"}')
        with open_checkpoint(folder) as reader:
            assert len(reader.tensors) == 8
        with pytest.raises(CheckpointError, match=r"holds a LoLDU adapter.*; accepted: this folder as TUNED"):
            open_weights(folder)

    @pytest.mark.parametrize("method", ["LOHA", "LOKR", "ADALORA", "IA3", "a new one"])
    def test_tensors_of_other_methods_are_no_weights(self, tmp_path, method):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": method}))
        save_file({"base_model.model.a.hada_w1_a": weight(4, 2)}, tmp_path / "adapter_model.safetensors")
        message = rf"an adapter of the method '{method}', whose tensors are no weights.*; accepted: .*merge_and_unload"
        with pytest.raises(CheckpointError, match=message) as caught:
            open_weights(tmp_path)
        assert "\n" not in str(caught.value)
        with pytest.raises(CheckpointError, match=r"by the adapter_config\.json beside it; accepted: its folder"):
            open_weights(tmp_path / "adapter_model.safetensors")
        with open_checkpoint(tmp_path) as reader:  # what is stored, whatever it is
            assert [info.name for info in reader.tensors] == ["base_model.model.a.hada_w1_a"]
        # A folder with such folders has no weights of theirs either.
        parent = tmp_path / "run"
        for name in ("first", "second"):
            shutil.copytree(tmp_path, parent / name, ignore=shutil.ignore_patterns("run"))
        (parent / "unet").mkdir()
        save_file({"b": weight(4, 2)}, parent / "unet" / "model.safetensors")
        with open_weights(parent) as reader:
            assert [info.name for info in reader.tensors] == ["unet/b"]
            assert list(reader.ignored) == ["first/", "second/"]
            assert all("open it alone" in what for what in reader.ignored.values())

    @pytest.mark.parametrize("name", ["model.safetensors", "model-1.safetensors", "weights.safetensors"])
    def test_weights_beside_the_configuration_of_another_method(self, tmp_path, name):
        (tmp_path / "adapter_config.json").write_text('{"peft_type": "LOHA"}')
        save_file({"a": weight(4, 2)}, tmp_path / name)
        with open_weights(tmp_path) as reader:
            assert [info.name for info in reader.tensors] == ["a"]

    def test_what_is_no_update(self, tmp_path):
        state = {
            "a.lora_A.weight": weight(2, 5),
            "b.lora_A.weight": weight(2, 5),
            "b.lora_B.weight": weight(4, 3),
            "c.lora_A.weight": weight(2, 5),
            "c.lora_B.weight": weight(4, 2),
            "c.lora_magnitude_vector": weight(4),
            "head.weight": weight(4, 4),
            "d.lora_A.weight": weight(2, 5),
            "d.lora_B.weight": weight(4, 2),
        }
        save_file({f"base_model.model.{name}": values for name, values in state.items()}, tmp_path / "a.safetensors")
        (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 4}')
        with open_checkpoint(tmp_path) as reader:
            assert [info.name for info in reader.tensors] == ["d"]
            torch.testing.assert_close(
                reader.load("d"), 2 * (state["d.lora_B.weight"] @ state["d.lora_A.weight"]).float()
            )
            reasons = {name.removeprefix("base_model.model."): reason for name, reason in reader.ignored.items()}
        assert "without the other" in reasons["a.lora_A.weight"]
        assert "does not fit" in reasons["b.lora_B.weight"]
        assert "DoRA" in reasons["c.lora_A.weight"]
        assert "no factor of an update, as of a module that was trained whole" in reasons["head.weight"]
