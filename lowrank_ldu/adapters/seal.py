"""A JSON file that says of itself whether a byte of it was changed."""

from __future__ import annotations

import hashlib
import json
from typing import Any

_KEY = "config_sha256"
_DIGITS = 64


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


def _text(config: dict[str, Any], digest: str) -> bytes:
    return json.dumps({**config, _KEY: digest}, indent=1, allow_nan=False).encode()
