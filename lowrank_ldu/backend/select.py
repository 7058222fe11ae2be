"""Find the backend that an array belongs to."""

from __future__ import annotations

from importlib import import_module
from threading import Lock
from typing import TYPE_CHECKING

import array_api_compat

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowrank_ldu.backend.base import Array, Backend

# Each test answers without importing the library it asks about.
_LIBRARIES: dict[str, tuple[Callable[[object], bool], str]] = {
    "numpy": (array_api_compat.is_numpy_array, "NumpyBackend"),
    "torch": (array_api_compat.is_torch_array, "TorchBackend"),
    "jax": (array_api_compat.is_jax_array, "JaxBackend"),
    "cupy": (array_api_compat.is_cupy_array, "CupyBackend"),
}


_backends: dict[str, Backend] = {}
_making = Lock()


def _load(library: str) -> Backend:
    """Return the one backend of a library, for all threads."""
    if library in _backends:
        return _backends[library]
    # Outside of the lock: importing has locks of its own.
    module = import_module(f"lowrank_ldu.backend.{library}_backend")
    with _making:
        if library not in _backends:
            _backends[library] = getattr(module, _LIBRARIES[library][1])()
        return _backends[library]


def _belongs(array: Array, test: Callable[[object], bool]) -> bool:
    try:
        return test(array)
    except AttributeError:  # another thread is importing the library: nobody has an array of it yet
        return False


def backend_of(array: Array, name: str = "W") -> Backend:
    """Return the backend of an array.

    TypeError names the argument and the libraries that are accepted.

    Examples
    --------
    >>> import numpy as np
    >>> backend_of(np.zeros(3)).in_place
    True
    """
    for library, (test, _) in _LIBRARIES.items():
        if _belongs(array, test):
            return _load(library)
    accepted = ", ".join(_LIBRARIES)
    raise TypeError(
        f"{name} is a {type(array).__module__}.{type(array).__qualname__}; accepted: an array of {accepted}"
    )
