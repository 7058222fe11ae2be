"""Define the options of an adapter.

Layers, PEFT's configuration and files share them.
"""

from __future__ import annotations

import inspect
from copy import copy
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from lowrank_ldu.decomposition import PIVOTING, Pivoting
from lowrank_ldu.initialization import INITIALIZATIONS, Initialization
from lowrank_ldu.nn.basis import BASES, Basis
from lowrank_ldu.nn.coordinates import PARAMETRIZATIONS, Parametrization
from lowrank_ldu.validation import (
    LARGEST_SEED,
    LORA_KEYWORDS,
    check_choice,
    check_count,
    check_flag,
    check_positive,
    check_rank,
    explain_keywords,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_Function = TypeVar("_Function", bound="Callable[..., Any]")

# The random basis is drawn from NumPy's legacy generator, which takes no larger seed.
_LARGEST_BASIS_SEED = 2**32 - 1
# Options that the factors depend on. All others concern the diagonal between the factors.
_OF_FACTORS = ("rank", "pivoting", "basis", "parametrization", "seed")


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """Hold the options of an adapter.

    Attributes
    ----------
    rank : int, optional
        r, from 1 to min(m, n) of each layer's weight (m, n); the latter if not given.
    alpha : float, optional
        Sets sigma's start, sigma_0 = alpha / r. r if not given, so that sigma_0 = 1.
    init : str
        Start of z, one of `INITIALIZATIONS`.
    preserving : bool
        True: z_ref is the start of z, so the layer starts as the base layer. False: z_ref is the factorization's own
        diagonal, as Algorithm 1 has it (the residual is computed before z is overwritten), and any other start of z
        changes the model at step 0.
    pivoting : str
        As for `ldu`.
    basis : str
        "ldu"; or, to compare it with, the same trained diagonal between other factors: "svd", the leading singular
        vectors, or "random", orthonormal and independent of W.
    parametrization : str
        Coordinates that z is trained in: "diagonal", its own entries; "normalized", with every rank-one term of unit
        norm; "gram", orthonormal in the weight's metric, one Cholesky factor of the Gram matrix of the terms.
    train_sigma : bool
        Whether sigma is trained (True) or stays at alpha / r.
    seed : int
        Of random starts of z, of randomized pivoting and of the random basis.

    Raises
    ------
    TypeError, ValueError
        A field has a value that is not accepted; the message names the field and what is. Or a keyword is no field.

    Examples
    --------
    >>> options = AdapterOptions(rank=8, init="zeros")
    >>> options.alpha is None, options.pivoting
    (True, 'partial')
    >>> AdapterOptions(rank=0)
    Traceback (most recent call last):
        ...
    ValueError: rank is 0; accepted: an integer from 1 on
    """

    rank: int | None = None
    alpha: float | None = None
    init: Initialization = "regular_ldu"
    preserving: bool = True
    pivoting: Pivoting = "partial"
    basis: Basis = "ldu"
    parametrization: Parametrization = "diagonal"
    train_sigma: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field, and keep Python's own numbers.

        JSON takes no others.
        """
        if self.rank is not None:
            self._keep("rank", check_count(self.rank, "rank", 1))
        if self.alpha is not None:
            self._keep("alpha", check_positive(self.alpha, "alpha"))
        check_choice(self.init, "init", INITIALIZATIONS)
        check_choice(self.pivoting, "pivoting", PIVOTING)
        check_choice(self.basis, "basis", BASES)
        check_choice(self.parametrization, "parametrization", PARAMETRIZATIONS)
        self._keep("preserving", check_flag(self.preserving, "preserving"))
        self._keep("train_sigma", check_flag(self.train_sigma, "train_sigma"))
        largest = _LARGEST_BASIS_SEED if self.basis == "random" else LARGEST_SEED
        self._keep("seed", check_count(self.seed, "seed", largest=largest))

    def _changed(self, values: dict[str, Any]) -> AdapterOptions:
        """Return a copy with values that need no check: models have hundreds of layers."""
        other = copy(self)
        for name, value in values.items():
            object.__setattr__(other, name, value)
        return other

    def _keep(self, name: str, value: float) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def from_json(cls, entry: object) -> AdapterOptions:
        """Return the options of a JSON object made by `to_json`.

        Raises
        ------
        TypeError, ValueError
            `entry` is no dict of all the fields, or a value is not accepted.
        """
        if not isinstance(entry, dict) or set(entry) != set(OPTION_NAMES):
            raise ValueError(f"the options are {shown(entry)}; accepted: an object with {', '.join(OPTION_NAMES)}")
        return cls(**entry)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as an object of JSON, in their order.

        Examples
        --------
        >>> entry = AdapterOptions(rank=8, seed=3).to_json()
        >>> entry["rank"], entry["seed"], AdapterOptions.from_json(entry) == AdapterOptions(rank=8, seed=3)
        (8, 3, True)
        """
        return asdict(self)

    def for_layer(self, largest: int) -> AdapterOptions:
        """Return the options of one layer.

        Rank and alpha are filled in.

        Parameters
        ----------
        largest : int
            min(m, n) of the layer's weight.

        Raises
        ------
        ValueError
            The rank is larger.

        Examples
        --------
        >>> options = AdapterOptions().for_layer(6)
        >>> options.rank, options.alpha
        (6, 6.0)
        """
        rank = check_rank(self.rank, largest)
        return self._changed({"rank": rank, "alpha": float(rank) if self.alpha is None else self.alpha})

    @property
    def factors(self) -> AdapterOptions:
        """Return the options that determine the factors of a weight.

        The other fields are at their defaults. Adapters of one weight share their factors if these
        options are equal.
        """
        return self._changed({each.name: each.default for each in fields(self) if each.name not in _OF_FACTORS})

    def described(self) -> str:
        """Return the text for an adapter beside its factors.

        It has the rank and the options that the factors do not depend on.
        """
        own = ((name, value) for name, value in self.to_json().items() if name == "rank" or name not in _OF_FACTORS)
        return ", ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in own)

    @property
    def chooses_rows(self) -> bool:
        """Return whether the factors have pivot rows."""
        return self.basis == "ldu"

    @property
    def chooses_columns(self) -> bool:
        """Return whether the factors have pivot columns."""
        return self.basis == "ldu" and self.pivoting != "partial"


OPTION_NAMES = tuple(field.name for field in fields(AdapterOptions))
AdapterOptions.__init__ = explain_keywords(LORA_KEYWORDS)(AdapterOptions.__init__)  # type: ignore[method-assign]


def given_options(options: AdapterOptions | None, rank: int | None, keywords: Mapping[str, Any]) -> AdapterOptions:
    """Return the options of a call, as an object.

    The call gives them as an object or by keyword.

    Raises
    ------
    TypeError, ValueError
        `options` is no `AdapterOptions`, or keywords are given beside it; or a keyword is not accepted.
    """
    if isinstance(rank, AdapterOptions):
        raise TypeError("rank is of type AdapterOptions; accepted: an integer, or options=AdapterOptions(...)")
    if options is None:
        return AdapterOptions(rank=rank, **keywords)
    if not isinstance(options, AdapterOptions):
        raise TypeError(f"options is {shown(options)}; accepted: AdapterOptions, or its fields by keyword")
    others = [*([] if rank is None else ["rank"]), *keywords]
    if others:
        raise TypeError(f"options is given beside {', '.join(others)}; accepted: options, or its fields by keyword")
    return options


def takes_options(function: _Function) -> _Function:
    """Show the fields of `AdapterOptions` in a function's signature.

    Parameters
    ----------
    function : callable
        Takes `**fields`, which `help` and tab completion would show as that.

    Returns
    -------
    callable
        The same function.

    Examples
    --------
    >>> @takes_options
    ... def make(layer, rank=None, **fields): ...
    >>> list(inspect.signature(make).parameters)[:4]
    ['layer', 'rank', 'alpha', 'init']
    """
    signature = inspect.signature(function)
    own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    taken = {each.name for each in own}
    shared = [each for name, each in inspect.signature(AdapterOptions).parameters.items() if name not in taken]
    function.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
    return function
