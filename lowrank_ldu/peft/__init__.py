"""Add LoLDU to PEFT as a method.

Importing this package makes `LolduConfig` work wherever PEFT takes a configuration. A saved adapter names its method,
which PEFT knows once this package has been imported: import it before `PeftModel.from_pretrained`, too.
"""

from __future__ import annotations

try:
    import aenum as _aenum  # noqa: F401
    import peft as _peft  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"lowrank_ldu.peft needs {error.name}; install it with: pip install 'lowrank-ldu[peft]'", name=error.name
    ) from error

from lowrank_ldu.peft.registration import add_peft_type

add_peft_type()

from lowrank_ldu.peft.config import LolduConfig  # noqa: E402  # its class needs the type
from lowrank_ldu.peft.layer import LolduLayer  # noqa: E402
from lowrank_ldu.peft.model import LolduModel  # noqa: E402
from lowrank_ldu.peft.registration import register  # noqa: E402

register(LolduConfig, LolduModel)

__all__ = ["LolduConfig", "LolduLayer", "LolduModel"]


def __dir__() -> list[str]:
    return __all__
