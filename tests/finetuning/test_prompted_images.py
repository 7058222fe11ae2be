"""Images and their prompts: what is read, and what is refused."""

import json

import datasets
import numpy as np
import pytest
from PIL import Image

from lowrank_ldu.errors import MissingExtraError, OptionError
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.finetuning.tasks.prompted_images import images_digest, read_images


def read(folder, prompt="a dog"):
    return read_images(str(folder), prompt, data_name="data", prompt_name="instance_prompt")


def save(file, color, mode="RGB", size=(6, 4), **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(file, **options)


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    save(tmp_path / "b.jpg", (255, 0, 0))
    save(tmp_path / "a.PNG", (0, 0, 255, 255), "RGBA")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    found = read(tmp_path)
    assert [each.prompt for each in found] == ["a dog", "a dog"]
    assert [each.image.mode for each in found] == ["RGB", "RGB"]
    assert found[0].image.getpixel((0, 0)) == (0, 0, 255)


def test_texts_of_a_file_of_metadata_are_the_prompts(tmp_path):
    for name in ("one.png", "deep/two.png", "three.png"):
        save(tmp_path / name, 7, "L")
    rows = [{"file_name": "deep/two.png", "text": "a cat"}, {"file_name": "one.png"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert [each.prompt for each in read(tmp_path)] == ["a cat", "a dog"]
    with pytest.raises(OptionError, match=r"instance_prompt is not given, and one.png has no text"):
        read(tmp_path, None)


def test_an_image_is_turned_as_its_file_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    save(tmp_path / "a.jpg", (1, 2, 3), exif=exif)
    assert read(tmp_path)[0].image.size == (4, 6)


def test_a_set_on_the_hub(monkeypatch):
    rows = datasets.Dataset.from_dict({"image": [Image.new("RGB", (2, 2), (9, 8, 7))], "text": ["a bird"]})
    rows = rows.cast_column("image", datasets.Image())
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: {("o/n", "train"): rows}[name, split])
    (found,) = read("o/n", None)
    assert (found.prompt, found.image.getpixel((1, 1))) == ("a bird", (9, 8, 7))
    for column, accepted in (("image", "an image"), ("text", "text")):
        wrong = rows.remove_columns(column).add_column(column, [None if column == "image" else 3])
        monkeypatch.setattr(datasets, "load_dataset", lambda name, split, wrong=wrong: wrong)
        with pytest.raises(OptionError, match=f"o/n: {column} of row 0 is (None|3); accepted: {accepted}"):
            read("o/n")
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: rows.remove_columns("image"))
    with pytest.raises(OptionError, match="o/n: has no column 'image', but text"):
        read("o/n")


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(OptionError, match="has no images; accepted: a folder of PNG"):
        read(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(OptionError, match="a.txt, a file; accepted: a folder of images, or an id on the hub"):
        read(tmp_path / "a.txt")
    save(tmp_path / "whole" / "a.png", (1, 2, 3), size=(50, 50))
    content = (tmp_path / "whole" / "a.png").read_bytes()
    for name, damaged in {"cut": content[:60], "other": b"no image"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(damaged)
        with pytest.raises(OptionError, match="a.png: cannot be read as an image"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("{", "metadata.jsonl: line 1 is no JSON"),
        ('\n{"text": "a"}', 'line 2 is none with "file_name" and "text"'),
        ('{"file_name": "a.png", "text": 3}', 'line 1 is none with "file_name" and "text"'),
        ('{"file_name": "none.png"}', "none.png: cannot be read as an image"),
        ("", "has no images"),
    ],
)
def test_metadata_that_is_none(tmp_path, lines, message):
    (tmp_path / "metadata.jsonl").write_text(lines)
    with pytest.raises(OptionError, match=message):
        read(tmp_path)


def test_the_digest_is_of_pixels_and_prompts(tmp_path):
    drawn = np.random.default_rng(0)
    Image.fromarray(drawn.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    first = images_digest(read(tmp_path))
    assert images_digest(read(tmp_path)) == first != images_digest(read(tmp_path, "a cat"))
    Image.fromarray(drawn.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    assert images_digest(read(tmp_path)) != first


def test_a_missing_package_is_named_with_its_extra():
    with pytest.raises(MissingExtraError, match=r"no_such_module is needed .*pip install 'lowrank-ldu\[diffusion\]'"):
        require("no_such_module", "diffusion")
