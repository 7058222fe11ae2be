"""Write files that belong together."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_together(files: dict[Path, bytes]) -> None:
    """Replace files, each of them at once, and none before all are on disk.

    A crash between two replacements leaves a mixture: the files have to say which of them belong together.
    """
    temporaries = {path: path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp") for path in files}
    try:
        for path, data in files.items():
            with temporaries[path].open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in temporaries.items():
            temporary.replace(path)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
