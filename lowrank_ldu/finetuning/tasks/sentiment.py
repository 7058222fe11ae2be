"""Read the human-rated snippets of the vaderSentiment archive."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowrank_ldu.errors import OptionError

if TYPE_CHECKING:
    from pathlib import Path

ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
HOW = "pip download vaderSentiment==3.3.2 --no-deps --no-binary :all:"
SETS = {"movies": "movieReview", "amazon": "amazonReview", "news": "nytEditorial"}
# Tenths of the snippets.
_TRAIN, _VALIDATION = 6, 8


@dataclass(frozen=True)
class Snippet:
    """Hold a snippet of text, and the mean of its ratings from -4 to 4."""

    id: str
    rating: float
    text: str

    @property
    def split(self) -> str:
        """Split that it belongs to, by its id alone: six tenths train, two tenths each validate and test."""
        place = int.from_bytes(hashlib.sha256(self.id.encode()).digest()[:8], "big") % 10
        return "train" if place < _TRAIN else "validation" if place < _VALIDATION else "test"


def read_snippets(archive: Path, name: str) -> list[Snippet]:
    """Return the snippets of one set, in the archive's order.

    Parameters
    ----------
    archive : pathlib.Path
        The source archive vaderSentiment-3.3.2.tar.gz.
    name : str
        "movies", "amazon" or "news".

    Returns
    -------
    list of Snippet
        Each id has the set's name before it.

    Raises
    ------
    OptionError
        The archive cannot be read, or is another one.
    """
    try:
        content = archive.read_bytes()
    except OSError as error:
        raise OptionError(f"{archive}: cannot be read ({error.strerror}); accepted: {ARCHIVE}, from {HOW}") from error
    if (found := hashlib.sha256(content).hexdigest()) != SHA256:
        raise OptionError(f"{archive} has sha256 {found}; accepted: {SHA256}, of {ARCHIVE}, from {HOW}")
    with tarfile.open(fileobj=io.BytesIO(content)) as outer:
        inner = _member(outer, "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(inner)) as files:
        lines = _member(files, f"hutto_ICWSM_2014/{SETS[name]}Snippets_GroundTruth.txt").decode("utf-8").split("\n")
    rated = [line.rstrip("\r").split("\t") for line in lines if line.strip()]
    return [Snippet(f"{name}:{place}", float(rating), text) for place, rating, text in rated]


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    # The archive is known to the last bit.
    assert file is not None  # noqa: S101
    return file.read()


def snippet_splits(archive: Path, name: str, *, polarity: bool) -> dict[str, dict[str, list[str | int | float]]]:
    """Return the columns of each split of one set.

    Parameters
    ----------
    archive : pathlib.Path
    name : str
    polarity : bool
        Whether labels are 1 for ratings above zero and 0 for those below, or the ratings themselves. Snippets rated
        zero have no polarity.

    Returns
    -------
    dict
        Split to columns "text" and "label".
    """
    splits: dict[str, dict[str, list[str | int | float]]] = {
        split: {"text": [], "label": []} for split in ("train", "validation", "test")
    }
    for snippet in read_snippets(archive, name):
        if polarity and snippet.rating == 0:
            continue
        columns = splits[snippet.split]
        columns["text"].append(snippet.text)
        columns["label"].append(int(snippet.rating > 0) if polarity else snippet.rating)
    return splits
