"""Read byte ranges from object stores, by fsspec's file systems."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lowrank_ldu.checkpoints.remote.faults import Fault, ask, fault_of_status
from lowrank_ldu.checkpoints.remote.files import EXTRA, State, check_same, library
from lowrank_ldu.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lowrank_ldu.checkpoints.remote.address import Address

# The library of each scheme, and where its credentials come from.
_LIBRARIES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
_OF_AMAZON = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or FSSPEC_S3_ANON=true for public buckets"
)
_OF_GOOGLE = "set GOOGLE_APPLICATION_CREDENTIALS; for public buckets FSSPEC_GS_TOKEN=anon"
_ABSENT = "there is no such file or folder, or none that these credentials show; check the address"
# Of a mark of the content, in results; none is so long.
_LONGEST_MARK = 300
# The strongest first; stores differ in names and in what they have.
_MARKS = (
    *("VersionId", "generation", "ETag", "etag", "content_md5", "md5Hash"),
    *("LastModified", "last_modified", "updated", "mtime", "created"),
)


class ObjectFiles:
    """Read files of an object store.

    Parameters
    ----------
    shown : str
        What is opened, for messages.
    scheme : str
    """

    names: Sequence[str] = ()

    def __init__(self, shown: str, scheme: str) -> None:
        self._credentials = _OF_AMAZON if _LIBRARIES[scheme] == "s3fs" else _OF_GOOGLE
        self._fsspec = library(shown, "fsspec", EXTRA)
        self._system = ask(shown, lambda: self._connected(shown, scheme))

    def _connected(self, shown: str, scheme: str) -> Any:
        with self._faults():
            try:
                # Without listings and instances of others that are kept: what a file is now is asked for each time.
                return self._fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)
            except ImportError:
                name = _LIBRARIES[scheme]
                raise CheckpointError(f"{shown}: reading from there needs {name}: pip install {name}") from None

    def look(self, address: Address) -> State:
        """Return the state of a file."""
        with self._faults():
            information = self._system.info(address.asked)
        if information.get("type") != "file" or not isinstance(information.get("size"), int):
            raise Fault(_ABSENT, status=404)
        return State(information["size"], _mark(information))

    def fill(self, address: Address, start: int, buffer: memoryview, known: State) -> None:
        """Read a range into a buffer, of the file in a known state.

        The state is looked up after it was read, since the store does not give it with the bytes.
        """
        with self._faults():
            content = self._system.cat_file(address.asked, start=start, end=start + len(buffer))
        if len(content) > len(buffer):
            raise Fault("the store gives more than the range that was asked for; download the file, and give its path")
        check_same(self.look(address), known)
        if len(content) < len(buffer):
            raise Fault("the answer ended too early", again=True)
        buffer[:] = content

    def entries(self, address: Address) -> dict[str, bool]:
        """Return the names in a folder, and which are folders."""
        with self._faults():
            listed = self._system.ls(address.asked, detail=True)
        # Of a folder itself some stores list an entry without a name.
        return {
            entry["name"].rstrip("/").rpartition("/")[2]: entry["type"] == "directory"
            for entry in listed
            if entry["name"].strip("/") != address.asked.strip("/")
        }

    def give_up(self) -> None:
        """Do nothing: the libraries' requests cannot be ended."""

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Turn what the libraries raise into faults.

        Nothing of their messages is passed on: they have keys and signatures in them.
        """
        try:
            yield
        except (CheckpointError, Fault):
            raise
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise Fault(_ABSENT, status=404) from None
        except PermissionError:
            raise fault_of_status(403, self._credentials) from None
        except Exception as error:  # noqa: BLE001  # each library has errors of its own, and of its transport
            raise self._fault_of(error) from None

    def _fault_of(self, error: Exception) -> Fault:
        kind = type(error).__name__
        if "credential" in kind.lower():
            return Fault(f"there are no credentials for it ({kind}); {self._credentials}", status=401)
        status = next((found for name in ("status", "code") if type(found := getattr(error, name, None)) is int), None)
        if isinstance(error, OSError) and str(error).startswith("Forbidden"):  # gcsfs's own
            status = 403
        if status is not None:
            return fault_of_status(status, self._credentials)
        if isinstance(error, OSError) or "Connect" in kind or "Timeout" in kind:
            return Fault(f"the store cannot be read ({kind})", again=True)
        return Fault(f"the store cannot be read ({kind}); check the address and {self._credentials}")


def _mark(information: Mapping[str, Any]) -> str:
    return next(
        (str(information[name])[:300] for name in _MARKS if information.get(name) not in {None, "", "null"}), ""
    )
