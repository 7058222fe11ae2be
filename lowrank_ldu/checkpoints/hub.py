"""Find a checkpoint on the Hugging Face hub.

It is named by its id and revision.
"""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_ldu.checkpoints.model_config import ADAPTER_CONFIGURATION, CONFIGURATIONS
from lowrank_ldu.checkpoints.remote.address import without_secrets
from lowrank_ldu.checkpoints.remote.hub_files import hub_path
from lowrank_ldu.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lowrank_ldu.checkpoints.remote.path import Place

PREFIX = "hf://"
# Names of branches may have slashes; before the name of a file only those of refs/pr/N are taken for one.
_NAMED_FILE = r"(?P<file>[\w./-]+\.safetensors(\.index\.json)?)"
_ID = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:"
    rf"(@(?P<revision_of_file>refs/[\w.-]+/[\w.-]+|[\w.-]+))?/{_NAMED_FILE}"
    r"|(@(?P<revision>[\w./-]+))?)"
)
# Configurations beside the weights: whether a folder is an adapter's, and how weights are fused or quantized.
_CONFIGS = (ADAPTER_CONFIGURATION, *CONFIGURATIONS)
_SAFETENSORS = (".safetensors", ".safetensors.index.json")
_TORCH = (".bin", ".bin.index.json", ".pt", ".pth")


def find(name: str) -> Place:
    """Return the place of a checkpoint on the hub.

    Parameters
    ----------
    name : str
        ``hf://OWNER/NAME`` or ``hf://OWNER/NAME@REVISION``, with ``/FILE.safetensors`` or the name of an index behind
        it where one file is meant. Without a revision that of ``main`` at present.

    Returns
    -------
    RemotePath or pathlib.Path
        Safetensors at the hub, to be read there by ranges; the local cache where it has all of them, or where
        HF_HUB_OFFLINE is set. Where the repository has torch files alone they are fetched to the cache. Either is
        called by its commit.

    Raises
    ------
    CheckpointError
        The name is not of this form, a library is not installed, there is no such repository, revision or file, or it
        cannot be reached and is not in the cache.

    Examples
    --------
    >>> find("hf://bert")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    lowrank_ldu.errors.CheckpointError: hf://bert: not a name on the hub; accepted: hf://OWNER/NAME, ...
    """
    found = _ID.fullmatch(name.removeprefix(PREFIX))
    if found is None or ".." in name:
        raise CheckpointError(
            f"{name}: not a name on the hub; accepted: {PREFIX}OWNER/NAME, or {PREFIX}OWNER/NAME@REVISION, and "
            "/FILE.safetensors behind it for one file"
        )
    try:
        import huggingface_hub  # noqa: PLC0415  # an extra's
        from huggingface_hub import constants  # noqa: PLC0415
    except ImportError as error:
        raise CheckpointError(
            f"{name}: reading from the hub needs huggingface_hub: pip install 'lowrank-ldu[remote]'"
        ) from error
    repository, file, revision = found["repo"], found["file"], found["revision"] or found["revision_of_file"]
    place: Place
    try:
        if constants.HF_HUB_OFFLINE:
            place = Path(huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True))
            return place if file is None else place / file
        information = huggingface_hub.HfApi().model_info(repository, revision=revision)
        files = [entry.rfilename for entry in information.siblings or ()]
        wanted = _wanted(files, name)
        # The commit, so that nothing changes between the list and the files.
        commit = str(information.sha)
        if not any(each.endswith(_SAFETENSORS) for each in wanted):
            # Names may hold characters of patterns.
            patterns = [glob.escape(each) for each in wanted]
            place = Path(huggingface_hub.snapshot_download(repository, revision=commit, allow_patterns=patterns))
        else:
            place = _cached(repository, commit, wanted) or hub_path(repository, commit, files)
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001  # raised anew, without its secrets
        # The library passes on its transport's errors, and versions of it use different packages for transport.
        reason = " ".join(without_secrets(str(error)).split())[:300] or type(error).__name__
        raise CheckpointError(
            f"{name}: cannot be fetched ({reason}); with HF_HUB_OFFLINE=1 in the environment the local cache is read"
        ) from (error if without_secrets(str(error)) == str(error) else None)  # a traceback would show them
    if file is not None and file not in files:
        raise CheckpointError(f"{name}: there is no file {file!r} among its {len(files)} files")
    return place if file is None else place / file


def _cached(repository: str, commit: str, files: list[str]) -> Path | None:
    """Return the folder in the local cache, None if it lacks a file."""
    import huggingface_hub  # noqa: PLC0415  # an extra's

    folder = None
    for file in files:
        found = huggingface_hub.try_to_load_from_cache(repository, file, revision=commit)
        if not isinstance(found, str):
            return None
        folder = Path(found).parents[file.count("/")]
    return folder


def _wanted(files: Iterable[str], name: str) -> list[str]:
    """Return the files of a repository to fetch.

    They hold the weights, in one format, or are the configurations beside them.
    """
    files = list(files)
    for suffixes in (_SAFETENSORS, _TORCH):
        weights = [file for file in files if file.endswith(suffixes)]
        if weights:
            return weights + [file for file in files if file.rpartition("/")[2] in _CONFIGS]
    raise CheckpointError(
        f"{name}: has no weights that can be read among its {len(files)} files; looked for "
        f"{', '.join((*_SAFETENSORS, *_TORCH))}"
    )
