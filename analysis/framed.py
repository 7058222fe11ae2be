"""Keep the frames of results once they were asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


class Framed(ABC):
    """Hold results that can be seen as pandas frames."""

    @abstractmethod
    def _build(self, name: str) -> pd.DataFrame:
        """Return a frame by its name."""

    def _frame(self, name: str) -> pd.DataFrame:
        if name not in self._frames:
            self._frames[name] = self._build(name)
        return self._frames[name].copy()  # which may be changed

    @cached_property
    def _frames(self) -> dict[str, pd.DataFrame]:
        return {}
