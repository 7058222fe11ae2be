"""Read byte ranges from web servers.

fsspec keeps the session. Its own reading takes whatever a server answers, a whole file for eight bytes too: what is
asked here is checked by the answer's head before its body is read.
"""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import CancelledError, wait
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies

from lowrank_ldu.checkpoints.remote.faults import Fault, fault_of_status
from lowrank_ldu.checkpoints.remote.files import EXTRA, State, check_same, library

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Future

    from lowrank_ldu.checkpoints.remote.address import Address

# Bytes of the first request, which says the size: a safetensors file begins with the length of its header.
_FIRST = 8
# Seconds without a byte.
_CONNECT, _SILENCE = 30, 60
_PART = 2**20
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")
_EMPTY = re.compile(r"bytes \*/0")
_CREDENTIALS = "sign the URL anew, or put user and password of the host into ~/.netrc"
_COPY = "download the file, and give its path"


class WebFiles:
    """Read files of web servers, by one session.

    Parameters
    ----------
    shown : str
        What is opened, for messages.
    headers : mapping of str to str, optional
        Of every request; credentials are not sent on to other hosts.
    credentials : str
        Where the server's credentials come from, for messages.
    commit : str
        The version of all files, where the address itself says it; their marks are then not looked at.
    """

    # Of transformers and PEFT.
    names: Sequence[str] = (
        *("model.safetensors.index.json", "model.safetensors"),
        *("adapter_config.json", "adapter_model.safetensors"),
    )

    def __init__(
        self,
        shown: str,
        *,
        headers: Mapping[str, str] | None = None,
        credentials: str = _CREDENTIALS,
        commit: str = "",
    ) -> None:
        fsspec = library(shown, "fsspec", EXTRA)
        self._aiohttp = library(shown, "aiohttp", EXTRA)
        self._headers = dict(headers or {})
        self._credentials = credentials
        self._commit = commit
        self._running: Future[State] | None = None
        # Proxies and ~/.netrc. A password from there beside a token of our own would be an error of aiohttp's.
        trusted = not self._headers or bool(getproxies())
        self._session = fsspec.filesystem("https", skip_instance_cache=True, client_kwargs={"trust_env": trusted})

    def look(self, address: Address) -> State:
        """Return the state of a file, by a request for its first bytes."""
        first = bytearray(_FIRST)
        state = self._ask(address, 0, memoryview(first), None)
        return state._replace(first=bytes(first[: state.size]))

    def fill(self, address: Address, start: int, buffer: memoryview, known: State) -> None:
        """Read a range into a buffer, of the file in a known state."""
        self._ask(address, start, buffer, known)

    def entries(self, address: Address) -> dict[str, bool] | None:  # noqa: ARG002  # the same of all
        """Return None: a web server lists no folders."""
        return None

    def give_up(self) -> None:
        """End the request that another thread is at, if one is."""
        if self._running is not None:
            self._running.cancel()

    def _ask(self, address: Address, start: int, buffer: memoryview, known: State | None) -> State:
        aiohttp = self._aiohttp
        running = asyncio.run_coroutine_threadsafe(self._answer(address, start, buffer, known), self._session.loop)
        self._running = running
        try:
            # A second at a time, for Ctrl-C to be seen where waiting hides it.
            while not wait((running,), timeout=1).done:
                pass
            return running.result()
        except Fault:
            raise
        except CancelledError:
            raise Fault("the reading was given up") from None
        # Nothing of their messages is passed on: they have whole URLs in them.
        except aiohttp.TooManyRedirects:
            raise Fault("the server redirects without end; check the address") from None
        except (
            *(aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError),
            *(aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError),
        ) as error:
            raise Fault(f"the server cannot be trusted or named ({type(error).__name__}); check the address") from None
        except TimeoutError:
            raise Fault("the server does not answer in time", again=True) from None
        except aiohttp.ClientPayloadError:
            raise Fault("the connection ended within the answer", again=True) from None
        except (aiohttp.ClientError, OSError) as error:
            raise Fault(f"the server cannot be reached ({type(error).__name__})", again=True) from None
        except ValueError as error:
            raise Fault(f"the request cannot be made ({type(error).__name__}); check the address") from None
        finally:
            running.cancel()

    async def _answer(self, address: Address, start: int, buffer: memoryview, known: State | None) -> State:
        session = await self._session.set_session()
        options = dict(self._session.kwargs)
        end = start + len(buffer)
        headers = {
            **options.pop("headers", {}),
            **self._headers,
            "Range": f"bytes={start}-{end - 1}",
            "Accept-Encoding": "identity",
        }
        timeout = self._aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_SILENCE)
        async with session.get(_url(address), headers=headers, timeout=timeout, **options) as answer:
            state, size = self._checked(answer, start, end, known)
            await _read_body(answer, buffer[:size])
        return state

    def _checked(self, answer: Any, start: int, end: int, known: State | None) -> tuple[State, int]:
        """Return the state that an answer tells, and the size of its body."""
        head = answer.headers
        if answer.status == 416 and known is None and _EMPTY.fullmatch(head.get("Content-Range", "")):
            return State(0, self._version(head)), 0
        if answer.status == 416:
            raise Fault(
                "the file ends before the range that was asked for (416); it has been changed or is not whole",
                status=416,
            )
        if answer.status not in {200, 206}:
            raise fault_of_status(answer.status, self._credentials)
        if head.get("Content-Encoding", "identity") not in {"identity", ""}:
            raise Fault(f"the server compresses its answers unasked; {_COPY}")
        length = head.get("Content-Length", "")
        if answer.status == 200:
            # A whole file that was asked for whole may come so.
            if known is None or start or end != known.size or length != str(end):
                raise Fault(f"the server does not give ranges (it answers with the whole file); {_COPY}")
            state, size = State(end, self._version(head)), end
        else:
            state, size = self._ranged(head, start, end, known)
        if length and length != str(size):
            raise Fault(f"the server answers {size} bytes with a length of {length[:20]}; {_COPY}")
        if known is not None:
            check_same(state, known)
        return state, size

    def _ranged(self, head: Mapping[str, str], start: int, end: int, known: State | None) -> tuple[State, int]:
        said = head.get("Content-Range", "")
        found = _CONTENT_RANGE.fullmatch(said)
        if found is None:
            raise Fault(
                f"the server does not say which bytes it gives, of how many (Content-Range is {said[:60]!r}); {_COPY}"
            )
        first, last, total = map(int, found.groups())
        state = State(total, self._version(head))
        if known is not None:
            check_same(state, known)
        if (first, last) != (start, min(end, total) - 1) or (known is not None and end > total):
            raise Fault(f"the server gives bytes {first} to {last} of {total} for {start} to {end - 1}; {_COPY}")
        return state, last + 1 - first

    def _version(self, head: Mapping[str, str]) -> str:
        return self._commit or next((head[name] for name in ("ETag", "Last-Modified") if head.get(name)), "")[:300]


def _url(address: Address) -> Any:
    from yarl import URL  # noqa: PLC0415  # comes with aiohttp

    # A signature may hold for the very letters of the URL.
    text = address.asked + address.query
    return URL(text, encoded=text.isascii())


async def _read_body(answer: Any, buffer: memoryview) -> None:
    """Read a body of exactly the buffer's size.

    Raises `Fault` if it is shorter or longer. Memory is taken as the bytes come.
    """
    place = 0
    async for part in answer.content.iter_chunked(_PART):
        if place + len(part) > len(buffer):
            raise Fault(f"the server gives more bytes than it says; {_COPY}")
        buffer[place : place + len(part)] = part
        place += len(part)
    if place < len(buffer):
        raise Fault("the answer ended too early", again=True)
