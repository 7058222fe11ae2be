"""Define the options of an adapter.

Layers, PEFT's configuration and files share them.
"""

from __future__ import annotations

import re
from copy import copy
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from lowrank_ldu.decomposition import PIVOTING
from lowrank_ldu.decomposition import Pivoting as Strategy
from lowrank_ldu.initialization import INITIALIZATIONS, Initialization
from lowrank_ldu.nn.basis import BASES, Basis
from lowrank_ldu.nn.coordinates import PARAMETRIZATIONS, Parametrization
from lowrank_ldu.nn.cores import CORES, Core, core_shape
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
    shows_fields,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_Function = TypeVar("_Function", bound="Callable[..., Any]")

# "chosen": rows and columns that come from outside of the weight, such as those that a task's gradient asks for.
Pivoting = Literal[Strategy, "chosen"]
PIVOTINGS: tuple[Pivoting, ...] = (*PIVOTING, "chosen")

# The random basis is drawn from NumPy's legacy generator, which takes no larger seed.
_LARGEST_BASIS_SEED = 2**32 - 1
# Options that the factors and the frame of the core depend on. All others concern the core alone.
_OF_FACTORS = ("rank", "pivoting", "basis", "parametrization", "seed", "core", "block_size", "basis_digest")
# It stands in messages.
_DIGEST = re.compile(r"[\w.:-]{1,128}", re.ASCII)
# Options that came later. Entries of earlier versions lack them, and have their defaults.
LATER_OPTIONS = ("core", "block_size", "basis_digest")


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
        As for `ldu`; or "chosen": the pivots are given, such as those that `lowrank_ldu.fitting.choose_pivots` found.
    basis : str
        What the factors are of. "ldu": of W. "fitted": they come from a basis that was fitted to a task. Or, to compare
        with: "svd", the leading singular vectors of W, or "random", orthonormal and independent of W.
    parametrization : str
        Coordinates that the core is trained in: "diagonal", its own entries; "normalized", with every rank-one term, or
        every block of them, orthonormal in itself; "gram", orthonormal in the weight's metric. If not given, "diagonal"
        for the published form, and "normalized" for cores of blocks, dense ones and fitted bases: a dense core is
        orthonormal then.
    train_sigma : bool
        Whether sigma is trained (True) or stays at alpha / r.
    seed : int
        Of random starts of z, of randomized pivoting and of the random basis.
    core : str
        What is trained between the factors: "diagonal", r numbers; "block", r / block_size blocks on the diagonal, in
        all r block_size numbers; "dense", r^2 numbers.
    block_size : int, optional
        Of core "block", a divisor of the rank.
    basis_digest : str, optional
        Of basis "fitted": the digest that names the basis.

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
    parametrization: Parametrization = None  # type: ignore[assignment]  # never None once it is checked
    train_sigma: bool = True
    seed: int = 0
    core: Core = "diagonal"
    block_size: int | None = None
    basis_digest: str | None = None

    def __post_init__(self) -> None:
        """Check every field, and keep Python's own numbers.

        JSON takes no others.
        """
        if self.rank is not None:
            self._keep("rank", check_count(self.rank, "rank", 1))
        if self.alpha is not None:
            self._keep("alpha", check_positive(self.alpha, "alpha"))
        check_choice(self.init, "init", INITIALIZATIONS)
        check_choice(self.pivoting, "pivoting", PIVOTINGS)
        check_choice(self.basis, "basis", BASES)
        if cast("str | None", self.parametrization) is None:
            object.__setattr__(self, "parametrization", "normalized" if self.starts_at_zero else "diagonal")
        check_choice(self.parametrization, "parametrization", PARAMETRIZATIONS)
        self._keep("preserving", check_flag(self.preserving, "preserving"))
        self._keep("train_sigma", check_flag(self.train_sigma, "train_sigma"))
        largest = _LARGEST_BASIS_SEED if self.basis == "random" else LARGEST_SEED
        self._keep("seed", check_count(self.seed, "seed", largest=largest))
        check_choice(self.core, "core", CORES)
        self._check_core()
        self._check_basis()

    def _check_core(self) -> None:
        if self.core == "block":
            if self.block_size is None:
                raise ValueError("block_size is None with core 'block'; accepted: a divisor of the rank")
            self._keep("block_size", check_count(self.block_size, "block_size", 1))
            if self.rank is not None:
                core_shape(self.core, self.rank, self.block_size)
        elif self.block_size is not None:
            raise ValueError(
                f"block_size is {shown(self.block_size)} with core {self.core!r}; accepted: None, or core 'block'"
            )
        if self.starts_at_zero and (self.init != "regular_ldu" or not self.preserving):
            name = "init" if self.init != "regular_ldu" else "preserving"
            cause = "basis 'fitted'" if self.core == "diagonal" else f"core {self.core!r}"
            raise ValueError(
                f"{name} is {getattr(self, name)!r} with {cause}; accepted: the default, as such a core starts at zero"
            )

    def _check_basis(self) -> None:
        if (self.basis == "fitted") != (self.basis_digest is not None):
            raise ValueError(
                f"basis_digest is {shown(self.basis_digest)} with basis {self.basis!r}; accepted: the digest of a "
                "basis with basis 'fitted', and None with any other"
            )
        digest = self.basis_digest
        if digest is not None and not isinstance(digest, str):
            raise TypeError(f"basis_digest is {shown(digest)}; accepted: a string, or None")
        if digest is not None and not _DIGEST.fullmatch(digest):
            raise ValueError(f"basis_digest is {shown(digest)}; accepted: up to 128 letters and digits")
        if self.pivoting == "chosen" and self.basis != "ldu":
            raise ValueError(
                f"pivoting is 'chosen' with basis {self.basis!r}; accepted: basis 'ldu', whose pivots they are"
            )

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
        if not isinstance(entry, dict) or {*entry, *LATER_OPTIONS} != set(OPTION_NAMES):
            raise ValueError(f"the options are {shown(entry)}; accepted: an object with {', '.join(OPTION_NAMES)}")
        return cls(**entry)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as an object of JSON, in their order.

        Fields that earlier versions do not know are left out at their defaults.

        Examples
        --------
        >>> entry = AdapterOptions(rank=8, seed=3).to_json()
        >>> entry["rank"], entry["seed"], AdapterOptions.from_json(entry) == AdapterOptions(rank=8, seed=3)
        (8, 3, True)
        """
        default = {each.name: each.default for each in fields(self)}
        return {
            name: value for name, value in asdict(self).items() if name not in LATER_OPTIONS or value != default[name]
        }

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
            The rank is larger, or no multiple of the block size.

        Examples
        --------
        >>> options = AdapterOptions().for_layer(6)
        >>> options.rank, options.alpha
        (6, 6.0)
        """
        rank = check_rank(self.rank, largest)
        core_shape(self.core, rank, self.block_size)
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
    def core_shape(self) -> tuple[int, ...]:
        """Return the shape of the trained core; the rank is filled in."""
        return core_shape(self.core, cast("int", self.rank), self.block_size)

    @property
    def starts_at_zero(self) -> bool:
        """Return whether the core starts at zero, whatever the factors' own diagonal is."""
        return self.core != "diagonal" or self.basis == "fitted"

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
    >>> import inspect
    >>> @takes_options
    ... def make(layer, rank=None, **fields): ...
    >>> list(inspect.signature(make).parameters)[:4]
    ['layer', 'rank', 'alpha', 'init']
    """
    return shows_fields(AdapterOptions)(function)
