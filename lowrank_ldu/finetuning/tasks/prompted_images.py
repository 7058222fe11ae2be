"""Read images with the prompts that describe them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.validation import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_METADATA = "metadata.jsonl"
_FILE, _IMAGE, _TEXT = "file_name", "image", "text"
EXTRA = "diffusion"


class PromptedImage(NamedTuple):
    """Hold an image, and the prompt that describes it.

    Attributes
    ----------
    image : PIL.Image.Image
        In RGB, as it is looked at: turned as its file says.
    prompt : str
    """

    image: Any
    prompt: str


def read_images(data: str, prompt: str | None, *, data_name: str, prompt_name: str) -> list[PromptedImage]:
    """Read the images of a folder, or of a set on the hub.

    Parameters
    ----------
    data : str
        A folder of images, whose prompts may be in metadata.jsonl (a line for each image, with "file_name" and
        "text"); or an id on the hub, whose split "train" has a column "image", and may have "text".
    prompt : str, optional
        Of images without a text of their own.
    data_name, prompt_name : str
        Options that they are given by, for messages.

    Returns
    -------
    list of PromptedImage
        In the order of the files' names, of metadata.jsonl, or of the set.

    Raises
    ------
    OptionError
        There are no images, one cannot be read, or has no prompt.
    """
    path = Path(data)
    if path.is_dir():
        found = _from_folder(path)
    elif path.exists():
        raise OptionError(f"{data_name} is {data}, a file; accepted: a folder of images, or an id on the hub")
    else:
        found = _from_hub(data, data_name)
    images = []
    for name, image, text in found:
        if text is None and prompt is None:
            raise OptionError(f"{prompt_name} is not given, and {name} has no text; accepted: {prompt_name}, or texts")
        # The text of an image says more than what is said of all.
        images.append(PromptedImage(image, str(text if text is not None else prompt)))
    if not images:
        raise OptionError(f"{data}: has no images; accepted: a folder of PNG, JPEG, WebP or other images")
    return images


def _from_folder(folder: Path) -> Iterator[tuple[str, Any, str | None]]:
    if (folder / _METADATA).is_file():
        for name, text in _listed(folder / _METADATA):
            yield name, _opened(folder / name), text
        return
    suffixes = require("PIL.Image", EXTRA).registered_extensions()
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in suffixes and not file.name.startswith("."):
            yield str(file), _opened(file), None


def _listed(file: Path) -> Iterator[tuple[str, str | None]]:
    """Go through the names and texts that a file of metadata lists."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{file}: cannot be read ({error}); accepted: JSON lines") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise OptionError(f"{file}: line {number} is no JSON ({error})") from error
        name = row.get(_FILE) if isinstance(row, dict) else None
        if not isinstance(name, str) or not isinstance(row.get(_TEXT), str | None):
            raise OptionError(f'{file}: line {number} is none with "{_FILE}" and "{_TEXT}"')
        yield name, row.get(_TEXT)


def _opened(file: Path) -> Any:
    try:
        with require("PIL.Image", EXTRA).open(file) as opened:
            return _upright(opened)
    # What PIL says of a file that is cut short, or too large to be taken in good faith, too.
    except (OSError, ValueError, SyntaxError, require("PIL.Image", EXTRA).DecompressionBombError) as error:
        raise OptionError(f"{file}: cannot be read as an image ({error})") from error


def _upright(image: Any) -> Any:
    return require("PIL.ImageOps", EXTRA).exif_transpose(image).convert("RGB")


def _from_hub(data: str, data_name: str) -> Iterator[tuple[str, Any, str | None]]:
    try:
        rows = require("datasets").load_dataset(data, split="train")
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise OptionError(
            f"{data_name} is {data!r}: neither a folder nor a set that the hub gives ({reason}); accepted: a folder of "
            "images, or an id"
        ) from error
    if _IMAGE not in rows.column_names:
        raise OptionError(f"{data}: has no column {_IMAGE!r}, but {', '.join(rows.column_names)}")
    for place, row in enumerate(rows):
        image, text = row[_IMAGE], row.get(_TEXT)
        if image is None or not isinstance(text, str | None):
            wrong, accepted = (_IMAGE, "an image") if image is None else (_TEXT, "text")
            raise OptionError(f"{data}: {wrong} of row {place} is {shown(row[wrong])}; accepted: {accepted}")
        yield f"{data} row {place}", _upright(image), text


def images_digest(images: Sequence[PromptedImage]) -> str:
    """Return the sha256 of images and their prompts."""
    digest = hashlib.sha256()
    for image, prompt in images:
        digest.update(f"{image.size} {prompt!r}".encode("utf-8", "surrogatepass"))
        digest.update(image.tobytes())
    return digest.hexdigest()
