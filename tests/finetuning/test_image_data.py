"""Data of image tasks: every place they can come from, how they are split, and what is said of what does not fit."""

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_images import LABELS, picture, processor, save_images, save_vit, separate_cache
from tiny_text_models import offline

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning import Choice, load_recipe
from lowrank_ldu.finetuning.configuration import configure
from lowrank_ldu.finetuning.tasks import get_kind

_offline = pytest.fixture(offline, scope="module", autouse=True)


@pytest.fixture(scope="module", autouse=True)
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    patch = separate_cache(folder / "cache")
    yield save_vit(folder / "vit")
    patch.undo()


def loaded(model, data, task="images", recipe="images", **settings):
    config = configure(
        load_recipe(recipe), task, Choice(model=str(model), data=data and str(data), settings=settings), seed=0
    )
    return get_kind(config.kind).load(config)


def rows_of(names=LABELS, number=12, side=16, **features):
    """A split in memory, as the hub gives one."""
    images = [picture(LABELS[each % 3], each, side) for each in range(number)]
    columns = {"image": images, "label": [each % len(names) for each in range(number)]}
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
    return datasets.Dataset.from_dict(columns, datasets.Features(kinds | features))


def saved(folder, **splits):
    datasets.DatasetDict(splits).save_to_disk(folder)
    return folder


def same(first, second):
    return len(first) == len(second) and all(
        np.array_equal(a["pixel_values"], b["pixel_values"]) and a["labels"] == b["labels"]
        for a, b in zip(*([rows[place] for place in range(len(rows))] for rows in (first, second)), strict=True)
    )


def test_folders_of_images_and_saved_sets_give_the_same_rows(model, tmp_path):
    folder = loaded(model, save_images(tmp_path / "folder", train=12, validation=6, test=6))
    assert (len(folder.train), len(folder.validation), len(folder.others["test"])) == (12, 6, 6)
    assert folder.head == ["classifier"]
    assert folder.model.config.id2label == dict(enumerate(LABELS))
    opened = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "folder"))
    opened.save_to_disk(tmp_path / "saved")
    disk = loaded(model, tmp_path / "saved")
    for first, second in ((folder.train, disk.train), (folder.others["test"], disk.others["test"])):
        assert same(first, second)
    assert folder.data_digest == disk.data_digest
    # As the image processor itself makes them, without anything at random.
    path = tmp_path / "folder" / "train" / "red" / "002.png"
    pixels = processor()(Image.open(path), return_tensors="np")["pixel_values"][0]
    assert any(np.array_equal(folder.train[place]["pixel_values"], pixels) for place in range(12))
    path.write_bytes((tmp_path / "folder" / "train" / "red" / "005.png").read_bytes())
    assert loaded(model, tmp_path / "folder").data_digest != folder.data_digest


def test_sets_of_the_hub_are_found_by_their_columns_and_splits(model, monkeypatch):
    names = [f"label {place}" for place in range(100)]
    fine = rows_of(names, 100).rename_columns({"image": "img", "label": "fine_label"})
    fine = fine.add_column("coarse_label", [place % 20 for place in range(100)])
    asked = []

    def load_dataset(*given):
        asked.append(given)
        return datasets.DatasetDict({"train": fine, "test": fine})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = loaded(model, None, "cifar100", "image-classification")
    assert asked == [("uoft-cs/cifar100", None)]
    assert task.model.config.num_labels == 100
    # A tenth of the training images, and all others are trained on.
    assert (len(task.train), len(task.validation), len(task.others["test"])) == (90, 10, 100)
    labels = [rows[place]["labels"] for rows in (task.train, task.validation) for place in range(len(rows))]
    assert sorted(labels) == list(range(100))
    again = loaded(model, None, "cifar100", "image-classification")
    assert same(task.validation, again.validation)
    assert again.data_digest == task.data_digest
    with pytest.raises(OptionError, match=r"the data have 20 labels \(0, 1, .*\); accepted for cifar100: 100"):
        loaded(model, None, "cifar100", "image-classification", label_column="coarse_label")


def test_splits_are_named_or_found(model, tmp_path):
    parts = {"train": rows_of(), "val": rows_of(number=6), "test": rows_of(number=9), "extra": rows_of(number=3)}
    data = saved(tmp_path / "data", **parts)
    found = loaded(model, data)
    assert (len(found.train), len(found.validation), {name: len(each) for name, each in found.others.items()}) == (
        12,
        6,
        {"test": 9},
    )
    named = loaded(model, data, train_split="extra", validation_split="train", test_split="val")
    assert (len(named.train), len(named.validation), len(named.others["test"])) == (3, 12, 6)
    # What the best state is chosen on is no test.
    assert not loaded(model, data, validation_split="test").others
    limited = loaded(model, data, max_train_samples=5, max_eval_samples=2, max_predict_samples=3)
    assert (len(limited.train), len(limited.validation), len(limited.others["test"])) == (5, 2, 3)
    only = loaded(model, saved(tmp_path / "only", train=rows_of()), validation_fraction=0.25)
    assert (len(only.train), len(only.validation), dict(only.others)) == (9, 3, {})


def test_labels_are_numbered_by_their_names(model, tmp_path):
    turned = rows_of(LABELS[::-1])
    strings = rows_of().cast_column("label", datasets.Value("string"))
    strings = strings.map(lambda row: {"label": LABELS[int(row["label"])]})
    numbers = rows_of().cast_column("label", datasets.Value("int64")).map(lambda row: {"label": 10 * row["label"] + 1})
    for name, train in (("strings", strings), ("numbers", numbers)):
        task = loaded(model, saved(tmp_path / name, train=train, validation=train))
        assert [task.train[place]["labels"] for place in range(4)] == [0, 1, 2, 0]
    assert task.model.config.id2label == {0: "1", 1: "11", 2: "21"}
    # Red is 2 in one split and 0 in the other.
    task = loaded(model, saved(tmp_path / "turned", train=rows_of(), validation=turned))
    assert [task.validation[place]["labels"] for place in range(3)] == [2, 1, 0]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_images_of_other_modes_become_what_the_model_takes(model, tmp_path, mode):
    rows = rows_of()
    path = tmp_path / f"0.{'tiff' if mode == 'CMYK' else 'png'}"
    picture("red", 0).convert(mode).save(path)
    rows = rows.remove_columns("image").add_column("image", [str(path)] * 12).cast_column("image", datasets.Image())
    task = loaded(model, saved(tmp_path / "data", train=rows))
    assert task.train[0]["pixel_values"].shape == (3, 16, 16)
    expected = processor()(Image.open(path).convert("RGB"), return_tensors="np")["pixel_values"][0]
    assert np.array_equal(task.train[0]["pixel_values"], expected)


def test_a_model_of_gray_images_takes_any(tmp_path):
    gray = save_vit(tmp_path / "gray", channels=1)
    made = processor()
    made.image_mean, made.image_std = [0.5], [0.5]
    made.save_pretrained(gray)
    task = loaded(gray, saved(tmp_path / "data", train=rows_of()))
    assert task.train[0]["pixel_values"].shape == (1, 16, 16)


def broken(content):
    def make(folder):
        path = save_images(folder, "jpg", train=6, validation=3, test=3) / "train" / "red" / "002.jpg"
        path.write_bytes(content(path.read_bytes()))

    return make


def deep(folder):
    save_images(folder, train=6)
    path = folder / "train" / "red" / "002.png"
    Image.fromarray(np.full((16, 16), 40_000, dtype=np.uint16)).save(path)


def nulled(column):
    rows = rows_of()
    return rows.map(lambda row, place: {column: None if place == 2 else row[column]}, with_indices=True)


def masked():
    masks = rows_of().select_columns(["image"]).rename_column("image", "mask")
    return datasets.concatenate_datasets([rows_of(), masks], axis=1)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda f: saved(f, train=rows_of()), {"train_split": "training"}, "has no split 'training', but 'train'"),
        (lambda f: saved(f, train=rows_of(), test=rows_of()), {"test_split": "tests"}, "has no split 'tests', but"),
        (
            lambda f: saved(f, train=rows_of()),
            {"validation_split": "train"},
            "train_split 'train', validation_split 'train': a split is there twice",
        ),
        (lambda f: saved(f, train=rows_of(), val=rows_of(number=0)), {}, "split 'val' is empty; accepted: one row"),
        (
            lambda f: saved(f, train=rows_of().rename_column("label", "kind")),
            {},
            "split 'train' has no column label, but image, kind; accepted: label_column with one of these",
        ),
        (lambda f: saved(f, train=rows_of()), {"image_column": "img"}, "has no column img, but image, label"),
        (
            lambda f: saved(f, train=rows_of().add_column("n", list(range(12)))),
            {"image_column": "n"},
            "split 'train': column n holds no images",
        ),
        (
            lambda f: saved(f, train=rows_of().remove_columns("image").add_column("n", list(range(12)))),
            {},
            "split 'train' has no column of images, but label, n; accepted: image_column with one of these",
        ),
        (
            lambda f: saved(f, train=masked()),
            {},
            "split 'train' has 2 columns of images, but image, label, mask; accepted: image_column",
        ),
        (lambda f: saved(f, train=rows_of(["one"])), {}, r"the data have 1 label \('one'\); accepted: two at least"),
        (
            lambda f: saved(f, train=rows_of(), test=rows_of([*LABELS, "violet"])),
            {},
            "the test images have labels 3; accepted: 'blue', 'green', 'red'",
        ),
        (lambda f: saved(f, train=rows_of(number=1)), {}, "validation_fraction is 0.1 of 1 training images"),
        (
            broken(lambda content: content[: len(content) // 2]),
            {},
            r"image \d of the train images .*002.jpg\) cannot be",
        ),
        (broken(lambda _: b"no image"), {}, r"002.jpg\) cannot be used \(of no format that PIL knows\)"),
        (deep, {}, r"002.png\) cannot be used \(mode I;16\); accepted: whole image files of 8 bits"),
        (lambda f: save_images(f, labels=("one",), train=3), {}, "split 'train' has no column label, but image"),
        (
            lambda f: saved(f, train=nulled("image")),
            {},
            r"image \d of the train images cannot be used \(it is null\)",
        ),
        (lambda f: saved(f, train=nulled("label")), {}, "the train images have labels None; accepted: 'blue', 'green'"),
        (
            lambda f: saved(f, train=rows_of().remove_columns("label").add_column("label", [[0]] * 12)),
            {},
            r"split 'train' has labels \[0\]; accepted: integers or strings",
        ),
        (lambda f: f.mkdir(), {}, "cannot be read as images .*; accepted: SPLIT/LABEL/IMAGE"),
        (lambda f: f.write_bytes(b""), {}, "data, a file; accepted: a folder"),
        (lambda _: None, {}, "neither a folder nor a set that the hub gives"),
        (lambda f: saved(f, train=rows_of()), {"rendering": "negative"}, "rendering is 'negative' with task 'images'"),
    ],
)
def test_data_that_do_not_fit(model, tmp_path, make, options, message):
    make(tmp_path / "data")
    with pytest.raises(OptionError, match=message) as raised:
        loaded(model, tmp_path / "data", **options)
    assert len(str(raised.value).splitlines()) == 1


def test_models_that_do_not_fit(model, tmp_path):
    data = saved(tmp_path / "data", train=rows_of())
    with pytest.raises(OptionError, match="model is 'nobody/nothing', which transformers cannot load"):
        loaded("nobody/nothing", data)
    with pytest.raises(OptionError, match="whose head is not one of 3 outputs; accepted for images: a model without"):
        loaded(save_vit(tmp_path / "five", num_labels=5), data)
    with pytest.raises(OptionError, match=r"does not take images of \(3, 20, 20\), as its image processor makes them"):
        loaded(save_vit(tmp_path / "larger", side=20), data)
    with pytest.raises(OptionError, match="the model takes images of 2 channels; accepted: 1 or 3"):
        loaded(save_vit(tmp_path / "two", channels=2), data)
    with pytest.raises(OptionError, match="data is not given; accepted: --data with a folder or an id on the hub"):
        loaded(model, None)
    with pytest.raises(OptionError, match="data is '.*'; accepted for digits: none, they come with scikit-learn"):
        loaded(model, data, "digits", "digits")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0; accepted: a number between 0 and 1"),
        ({"max_train_samples": 0}, "max_train_samples is 0; accepted: an integer from 1 on"),
        ({"label_column": 3}, "label_column is 3; accepted: a name"),
        ({"rendering": "upright"}, "rendering is 'upright'; accepted: negative, quarter-turn, half-turn-negative"),
    ],
)
def test_options_that_cannot_be(model, options, message):
    with pytest.raises(OptionError, match=message):
        loaded(model, None, "digits", "digits", **options)


def test_images_are_decoded_when_they_are_asked_for(model, tmp_path):
    """Of a set in memory nothing but the encoded images is held."""
    data = saved(tmp_path / "data", train=rows_of(side=200))
    task = loaded(model, data)
    encoded = io.BytesIO()
    picture("blue", 0, 200).save(encoded, "png")
    assert task.train._rows[0]["image"]["bytes"][:8] == encoded.getvalue()[:8]
    batch = task.collator([task.train[0], task.train[1]])
    assert batch["pixel_values"].dtype == torch.float32
    assert (tuple(batch["pixel_values"].shape), batch["labels"].dtype) == ((2, 3, 16, 16), torch.int64)
