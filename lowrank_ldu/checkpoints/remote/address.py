"""Take URLs apart: what may be shown, and what is asked for.

Queries sign requests, and user information holds passwords: neither is ever shown or stored.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from urllib.parse import SplitResult, quote, urlsplit

from lowrank_ldu.errors import CheckpointError

WEB = ("http", "https")
OBJECTS = ("s3", "s3a", "gs", "gcs")
HUB = "hf"
# One letter before the colon is a drive of Windows.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# What is left of one by pathlib, which takes a slash, or by quotes and spaces before it.
_MISSHAPEN = re.compile(r"(?<![A-Za-z0-9+.-])(https?|s3a?|gs|gcs|hf)://?[^/]", re.IGNORECASE)
_ACCEPTED = "https://HOST/FILE, s3://BUCKET/KEY, gs://BUCKET/KEY, hf://OWNER/NAME, or a path on this machine"


def scheme_of(path: str) -> str | None:
    """Return the scheme of a URL in lower case, None for a path.

    Examples
    --------
    >>> scheme_of("S3://bucket/model.safetensors"), scheme_of("model.safetensors"), scheme_of("C://model.safetensors")
    ('s3', None, None)
    """
    found = _URL.match(path)
    return None if found is None else found[1].lower()


_USER = re.compile(r"(?<=://)[^\s/'\"]*@")
_QUERY = re.compile(r"(://[^\s?'\"]*)\?[^\s'\"]*")


def without_secrets(text: str) -> str:
    """Return a message of others with the URLs in it as they may be shown.

    Examples
    --------
    >>> without_secrets("Error 404 for url 'https://me:word@host/a?signature=123'.")
    "Error 404 for url 'https://host/a'."
    """
    return _QUERY.sub(r"\1", _USER.sub("", text))


def check_no_url(path: str) -> None:
    """Refuse a path that is no file here and was meant as a URL.

    Raises
    ------
    CheckpointError
        The message does not have the path, which may hold a password.
    """
    found = _MISSHAPEN.search(path)
    if found is not None and not os.path.lexists(path):
        raise CheckpointError(
            f"the checkpoint is a {found[1].lower()}:// URL that is not written as one (as a pathlib.Path, with one "
            f"slash, or with spaces or quotes before it); accepted: a str, {_ACCEPTED}"
        )


@dataclass(frozen=True)
class Address:
    """Hold a place on a server.

    Attributes
    ----------
    shown : str
        For messages and results, without secrets.
    asked : str
        What the server is asked for; a URL without its query, or a bucket and key.
    query : str
        With the question mark; it goes with every file beside the first one.
    """

    shown: str
    asked: str = field(repr=False)
    query: str = field(default="", repr=False)

    @property
    def has_secrets(self) -> bool:
        """Say whether `shown` is less than what is asked for."""
        return bool(self.query) or "@" in urlsplit(self.asked).netloc

    @property
    def is_web(self) -> bool:
        """Say whether a web server is asked."""
        return scheme_of(self.asked) in WEB

    @property
    def name(self) -> str:
        """Return the last component."""
        return self.shown.rpartition("/")[2]

    def joined(self, name: str) -> Address:
        """Return the place of a name below this one."""
        below = quote(name) if self.is_web else name
        return replace(self, shown=f"{self.shown}/{name}", asked=f"{self.asked}/{below}")

    @property
    def parent(self) -> Address:
        """Return the place above."""
        shown, asked = (text.rpartition("/")[0] for text in (self.shown, self.asked))
        return replace(self, shown=shown, asked=asked)


def check_url(url: str) -> None:
    """Refuse a URL that nothing here can read.

    Raises
    ------
    CheckpointError
        Its scheme is another, it has a host or none where it should not, or secrets where none belong. The message
        has no secrets.
    """
    scheme = scheme_of(url)
    if scheme == "file":
        raise CheckpointError("the checkpoint is a file:// URL; accepted: the path itself, without file://")
    if scheme not in {*WEB, *OBJECTS, HUB}:
        raise CheckpointError(f"the checkpoint is a {scheme}:// URL; accepted: {_ACCEPTED}")
    if scheme in WEB:
        return
    host, slash, rest = url.partition("://")[2].partition("/")
    if any(mark in url for mark in "?#") or "@" in host:
        shown = re.split(r"[?#]", host.rpartition("@")[2] + slash + rest)[0]
        raise CheckpointError(
            f"{scheme}://{shown}: has a query, a fragment or user information; accepted: {scheme}:// names without "
            "them, and credentials in the environment"
        )


def address_of(url: str) -> Address:
    """Return the place that a URL of a web server or an object store names.

    Raises
    ------
    CheckpointError
        It is none, as of `check_url`, or it has no host or characters that are in no URL.

    Examples
    --------
    >>> address = address_of("https://me:word@host:8080/models/a.safetensors?signature=123#top")
    >>> address
    Address(shown='https://host:8080/models/a.safetensors')
    >>> address.parent.joined("b c").shown
    'https://host:8080/models/b c'
    """
    check_url(url)
    parts = _split(url)
    if parts.scheme not in WEB:
        key = (parts.netloc + parts.path).rstrip("/")
        return Address(f"{parts.scheme}://{key}", key)
    path = parts.path.rstrip("/")
    host = parts.netloc.rpartition("@")[2]
    query = f"?{parts.query}" if parts.query else ""
    return Address(f"{parts.scheme}://{host}{path}", f"{parts.scheme}://{parts.netloc}{path}", query)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        whole = parts.hostname and (parts.port or True)  # which raises where it is no number
    except ValueError:
        whole = None
    # Keys of object stores may have spaces.
    if not whole or not url.isprintable() or (" " in url and scheme_of(url) in WEB):
        # Nothing of it is shown: where it cannot be taken apart a password may be anywhere.
        raise CheckpointError(
            f"the checkpoint is a {scheme_of(url)}:// URL that cannot be taken apart (no host, a port that is no "
            f"number, or spaces); accepted: {_ACCEPTED}"
        )
    return parts
