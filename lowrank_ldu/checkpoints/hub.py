"""Fetch a checkpoint on the Hugging Face hub.

It is named by its id and revision.
"""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_ldu.checkpoints.model_config import CONFIGURATIONS
from lowrank_ldu.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFIX = "hf://"
_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
# Configurations beside the weights: whether a folder is an adapter's, and how weights are fused or quantized.
_CONFIGS = ("adapter_config.json", *CONFIGURATIONS)
_SAFETENSORS = (".safetensors", ".safetensors.index.json")
_TORCH = (".bin", ".bin.index.json", ".pt", ".pth")


def fetch(name: str) -> Path:
    """Return the local folder of a checkpoint on the hub.

    The folder is in the local cache; what is not there is fetched first.

    Parameters
    ----------
    name : str
        ``hf://OWNER/NAME`` or ``hf://OWNER/NAME@REVISION``. Without a revision that of ``main`` at present: the folder
        that is returned is called by its commit. Safetensors files are fetched, or torch files where there are none.

    Raises
    ------
    CheckpointError
        The name is not of this form, huggingface_hub is not installed, there is no such repository or revision, or it
        cannot be reached and is not in the cache.

    Examples
    --------
    >>> fetch("hf://bert")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    lowrank_ldu.errors.CheckpointError: hf://bert: not a name on the hub; accepted: hf://OWNER/NAME, ...
    """
    found = _ID.fullmatch(name.removeprefix(PREFIX))
    if found is None or ".." in name:
        raise CheckpointError(
            f"{name}: not a name on the hub; accepted: {PREFIX}OWNER/NAME, or {PREFIX}OWNER/NAME@REVISION"
        )
    try:
        import huggingface_hub  # noqa: PLC0415  # an extra's
        from huggingface_hub import constants  # noqa: PLC0415
    except ImportError as error:
        raise CheckpointError(
            f"{name}: reading from the hub needs huggingface_hub: pip install 'lowrank-ldu[formats]'"
        ) from error
    repository, revision = found["repo"], found["revision"]
    try:
        if constants.HF_HUB_OFFLINE:
            return Path(huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True))
        information = huggingface_hub.HfApi().model_info(repository, revision=revision)
        files = [file.rfilename for file in information.siblings or ()]
        # The commit, so that nothing changes between the list and the files.
        return Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=information.sha,
                # Names may hold characters of patterns.
                allow_patterns=[glob.escape(file) for file in _wanted(files, name)],
            )
        )
    except CheckpointError:
        raise
    except Exception as error:
        # The library passes on its transport's errors, and versions of it use different packages for transport.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(
            f"{name}: cannot be fetched ({reason}); with HF_HUB_OFFLINE=1 in the environment the local cache is read"
        ) from error


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
