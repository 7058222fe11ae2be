"""Read byte ranges of a repository on the Hugging Face hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.checkpoints.remote.address import HUB, Address
from lowrank_ldu.checkpoints.remote.path import RemotePath, Server
from lowrank_ldu.checkpoints.remote.web_files import WebFiles

if TYPE_CHECKING:
    from collections.abc import Sequence

_CREDENTIALS = "accept the model's terms on the hub, and set HF_TOKEN or run `hf auth login`"


class HubFiles(WebFiles):
    """Read files of one commit, whose list is known.

    Parameters
    ----------
    root : Address
        Of the commit.
    commit : str
    files : sequence of str
        What is in it.
    """

    def __init__(self, root: Address, commit: str, files: Sequence[str]) -> None:
        from huggingface_hub import get_token  # noqa: PLC0415  # an extra's

        token = get_token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        super().__init__(root.shown, headers=headers, credentials=_CREDENTIALS, commit=commit)
        self._root = root
        self._files = files

    def entries(self, address: Address) -> dict[str, bool]:
        """Return the names in a folder, and which are folders."""
        folder = f"{address.shown}/".removeprefix(f"{self._root.shown}/")
        found = {}
        for file in self._files:
            if file.startswith(folder):
                name, below, _ = file.removeprefix(folder).partition("/")
                found[name] = bool(below)
        return found


def hub_path(repository: str, commit: str, files: Sequence[str]) -> RemotePath:
    """Return the path of a repository at a commit.

    Parameters
    ----------
    repository, commit : str
    files : sequence of str
        What is in it.
    """
    from huggingface_hub import hf_hub_url  # noqa: PLC0415  # an extra's

    name = "a"
    url = hf_hub_url(repository, name, revision=commit)
    root = Address(f"{HUB}://{repository}@{commit}", url.removesuffix(f"/{name}"))
    return RemotePath(root, Server(HubFiles(root, commit, files)))
