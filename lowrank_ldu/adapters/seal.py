"""A JSON file that says of itself whether a byte of it was changed, and a copy of it inside the file of the weights."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from typing import TYPE_CHECKING, Any

from safetensors.torch import save

from lowrank_ldu.adapters.input_files import metadata_in
from lowrank_ldu.untrusted import LISTING, strict_json

if TYPE_CHECKING:
    from torch import Tensor

_KEY = "config_sha256"
_DIGITS = 64
# Of the metadata of the weights' file: the SHA-256 of the file less its own digits, and the configuration.
_COPY, _NO_DIGEST = "adapter", "?" * _DIGITS


def sealed(config: dict[str, Any]) -> bytes:
    """Return a configuration as JSON, with the SHA-256 of that text less the digits of the SHA-256."""
    digest = hashlib.sha256(_text(config, "")).hexdigest()
    return _text(config, digest)


def is_sealed(text: bytes, config: dict[str, Any]) -> bool:
    """Whether `text`, which reads as `config`, is what `sealed` wrote."""
    digest = config.get(_KEY)
    if not isinstance(digest, str) or len(digest) != _DIGITS:
        return False
    return hashlib.sha256(text.replace(digest.encode(), b"")).hexdigest() == digest


def with_copy(config: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    """Return a safetensors file of the tensors that has the configuration in it, and a checksum of all of it.

    Two files cannot be replaced in one step. One of them says it all: whoever finds new weights beside an old
    configuration takes the copy.
    """
    text = zlib.compress(json.dumps(config, separators=(",", ":"), allow_nan=False).encode(), 9)
    copy = base64.b85encode(text).decode()
    # One entry, since the library writes several in any order.
    data = save(tensors, {_COPY: f"{_NO_DIGEST} {copy}"})
    digest = hashlib.sha256(data.replace(_NO_DIGEST.encode(), b"", 1)).hexdigest()
    return data.replace(_NO_DIGEST.encode(), digest.encode(), 1)


def copy_in(data: bytes) -> dict[str, Any] | None:
    """Return the configuration that `with_copy` put into a file, None if a byte of the file is not as it was."""
    digest, _, copy = metadata_in(data).get(_COPY, "").partition(" ")
    if len(digest) != _DIGITS or hashlib.sha256(data.replace(digest.encode(), b"", 1)).hexdigest() != digest:
        return None
    try:
        config = strict_json(zlib.decompressobj().decompress(base64.b85decode(copy), LISTING.size), LISTING)
    except (ValueError, zlib.error):
        return None
    return config if isinstance(config, dict) else None


def _text(config: dict[str, Any], digest: str) -> bytes:
    return json.dumps({**config, _KEY: digest}, indent=1, allow_nan=False).encode()
