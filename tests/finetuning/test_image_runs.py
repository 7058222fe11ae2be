"""Runs on images: they learn, and what they leave is loaded, merged and exported with the same predictions."""

import json

import datasets
import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from tiny_images import LABELS, picture, pretrain_briefly, processor, save_images, save_vit, separate_cache
from tiny_text_models import offline
from transformers import AutoModelForImageClassification

import lowrank_ldu.peft  # noqa: F401  # so that PEFT knows LoLDU
from lowrank_ldu.adapters import export_lora, export_merged, read_adapter
from lowrank_ldu.checkpoints import open_checkpoint
from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning import Choice, digits, load_recipe, run_recipe
from lowrank_ldu.finetuning.digits import base as digits_base
from lowrank_ldu.finetuning.tasks.image_rows import ImageRows

_offline = pytest.fixture(offline, scope="module", autouse=True)
SETTINGS = {
    "num_train_epochs": 6,
    "per_device_train_batch_size": 8,
    "learning_rate": 3e-2,
    "warmup_ratio": 0.1,
    "bf16": False,
    "logging_steps": 3,
}
OPTIONS = {
    "lora": {"r": 4},
    "loldu": {"r": 16, "alpha": 16},
    "ldu-pivots": {"fit_rank": 4},
    "ldu-basis": {"fit_rank": 4},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    patch = separate_cache(folder / "cache")
    save_vit(folder / "model", hidden_dropout_prob=0.0)
    save_images(folder / "data")
    yield folder
    patch.undo()


def run(base, out, method="lora", **settings):
    choice = Choice(
        method=method,
        model=str(base / "model"),
        data=str(base / "data"),
        settings={**SETTINGS, **OPTIONS.get(method, {}), **settings},
    )
    return run_recipe(load_recipe("images"), out, choice, seeds=[0])[0]


def losses(result):
    lines = [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def pictures(folder, split="test"):
    """Paths and labels in an order that is that of no loader."""
    return [(path, LABELS.index(path.parent.name)) for path in sorted((folder / "data" / split).rglob("*.png"))]


def logits(model, folder):
    """What a model says of the test images, prepared as its user would."""
    images = [Image.open(path) for path, _ in pictures(folder)]
    with torch.no_grad():
        return model.eval()(**processor()(images, return_tensors="pt")).logits


def plain(folder):
    return AutoModelForImageClassification.from_pretrained(folder, num_labels=3)


def accuracy(found, folder):
    return float((found.argmax(1) == torch.tensor([label for _, label in pictures(folder)])).double().mean())


@pytest.mark.parametrize("method", OPTIONS)
def test_a_run_learns_and_its_adapter_predicts_the_same_wherever_it_is_loaded(base, tmp_path, method):
    result = run(base, tmp_path / "out", method)
    first, *_ = found = losses(result)
    assert found[-1] < 0.7 * first
    assert result.score >= 0.75
    assert set(result.metrics) == {"validation", "test"}

    adapter = result.folder / "adapter"
    model = PeftModel.from_pretrained(plain(base / "model"), adapter)
    expected = logits(model, base)
    assert accuracy(expected, base) == result.metrics["test"]["accuracy"]
    loss = torch.nn.functional.cross_entropy(expected, torch.tensor([label for _, label in pictures(base)])).item()
    assert loss == pytest.approx(result.metrics["test"]["loss"], rel=1e-5)
    torch.testing.assert_close(logits(model.merge_and_unload(), base), expected, rtol=0, atol=1e-4)
    if method == "lora":
        return
    source, checkpoint = read_adapter(adapter), open_checkpoint(base / "model")
    export_lora(source, checkpoint, tmp_path / "lora")
    exported = PeftModel.from_pretrained(plain(base / "model"), tmp_path / "lora")
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_bytes())["peft_type"] == "LORA"
    torch.testing.assert_close(logits(exported, base), expected, rtol=0, atol=1e-4)
    export_merged(source, checkpoint, tmp_path / "merged")
    merged = AutoModelForImageClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged, base), expected, rtol=0, atol=1e-4)


def test_a_head_is_trained_whole_beside_a_method(base, tmp_path):
    result = run(base, tmp_path, "loldu", num_train_epochs=1, target_modules=["q_proj", "v_proj"])
    # Sixteen entries of the diagonal and sigma in query and value of two layers; 16 x 3 and 3 of the head.
    assert (result.numbers, result.record["numbers_trained_whole"]) == (2 * 2 * 17, 51)


def test_half_precision_of_the_recipe_is_computed_on_any_machine(base, tmp_path):
    result = run(base, tmp_path, bf16=True)
    assert losses(result)[-1] < 0.8 * losses(result)[0]
    # What is trained is kept in single precision.
    numbers = load_file(result.folder / "adapter" / "adapter_model.safetensors")
    assert {each.dtype for each in numbers.values()} == {torch.float32}


@pytest.fixture(scope="module")
def digits_cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    patch = pytest.MonkeyPatch()
    patch.setattr(digits_base, "cache_folder", lambda: folder)
    yield folder
    patch.undo()


@pytest.mark.longer
def test_digits_need_no_download_and_their_network_is_kept(digits_cache, tmp_path, monkeypatch):
    choice = Choice(settings={"num_train_epochs": 6})
    (result,) = run_recipe(load_recipe("digits"), tmp_path / "out", choice, seeds=[0])
    found = losses(result)
    assert found[-1] < 0.75 * found[0]
    # Upside down and inverted, one in ten is right at first.
    assert result.metrics["test"]["accuracy"] > 0.4
    assert result.numbers == 2 * 4 * 97
    # A folder of the network is a base for exports.
    network, _ = digits.pretrained_digits_vit()
    pixels = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    network.save_pretrained(tmp_path / "vit")
    adapted = PeftModel.from_pretrained(network, result.folder / "adapter").eval()
    export_lora(read_adapter(result.folder / "adapter"), open_checkpoint(tmp_path / "vit"), tmp_path / "lora")
    exported = AutoModelForImageClassification.from_pretrained(tmp_path / "vit")
    exported = PeftModel.from_pretrained(exported, tmp_path / "lora").eval()
    with torch.no_grad():
        torch.testing.assert_close(exported(pixels).logits, adapted(pixels).logits, rtol=1e-4, atol=1e-4)

    (kept,) = digits_cache.glob("*.safetensors")
    before = digits.pretrained_digits_vit()[0].state_dict()

    def refuse(*_, **__):
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(digits_base, "pretrain", refuse)
        again = digits.pretrained_digits_vit()[0].state_dict()
        assert all(torch.equal(again[name], value) for name, value in before.items())
        content = kept.read_bytes()
        for damaged in (content[: len(content) // 2], content[:-8] + bytes(8), b""):
            kept.write_bytes(damaged)
            with pytest.raises(AssertionError):
                digits.pretrained_digits_vit()
    kept.write_bytes(content)


def test_images_have_no_length_to_be_grouped_by(base, tmp_path):
    settings = {**SETTINGS, "train_sampling_strategy": "group_by_length"}
    choice = Choice(method="full", model=str(base / "model"), data=str(base / "data"), settings=settings)
    with pytest.raises(OptionError, match="is 'group_by_length', and the training rows are no texts; accepted"):
        run_recipe(load_recipe("images"), tmp_path, choice, seeds=[0])


def test_the_pixels_of_digits_are_those_of_the_pretraining():
    from lowrank_ldu.finetuning.digits.data import load_digits_split

    split = load_digits_split()
    rows = digits.digits_splits()
    assert {name: len(each) for name, each in rows.items()} == {"train": 300, "validation": 150, "test": 747}
    for part, name in ((split.training, "train"), (split.test, "test")):
        encoded = rows[name].cast_column("image", datasets.Image(decode=False))
        made = ImageRows(name, encoded, digits_base._processor(), 1)
        assert all(np.array_equal(made[place]["pixel_values"], pixels) for place, pixels in enumerate(part.pixels))
        assert [made[place]["labels"] for place in range(len(made))] == part.labels.tolist()


def test_other_images_on_the_network_of_digits_and_digits_on_another(base, tmp_path, monkeypatch):
    pretrain_briefly(monkeypatch, tmp_path / "cache")
    choice = Choice(model="digits-vit", data=str(base / "data"), settings={"bf16": False, "r": 32})
    with pytest.raises(OptionError, match="'digits-vit', whose head has 10 outputs; accepted for images with 3 labels"):
        run_recipe(load_recipe("images"), tmp_path, choice, seeds=[0])
    for digit in range(10):
        for split in ("train", "test"):
            path = tmp_path / "ten" / split / str(digit) / "0.png"
            path.parent.mkdir(parents=True)
            picture("red", digit).save(path)
    settings = {**SETTINGS, "num_train_epochs": 1, "r": 2}
    choice = Choice(method="lora", model="digits-vit", data=str(tmp_path / "ten"), settings=settings)
    assert run_recipe(load_recipe("images"), tmp_path / "a", choice, seeds=[0])[0].numbers == 2 * 4 * 2 * 192
    choice = Choice(method="lora", model=str(base / "model"), settings={"num_train_epochs": 1})
    assert run_recipe(load_recipe("digits"), tmp_path / "b", choice, seeds=[0])[0].numbers == 2 * 2 * 8 * 32
