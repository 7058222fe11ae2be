"""Configure LoLDU under PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from peft.config import PeftConfig
from peft.utils import PeftType

from lowrank_ldu.initialization import INITIALIZATIONS
from lowrank_ldu.nn import AdapterOptions
from lowrank_ldu.nn.base_identity import BaseCheck
from lowrank_ldu.nn.kinds import KINDS
from lowrank_ldu.nn.options import LATER_OPTIONS, OPTION_NAMES
from lowrank_ldu.peft.fits import Fit, checked_file, fit_of_basis, fit_of_basis_file, fit_of_pivots
from lowrank_ldu.validation import (
    LORA_KEYWORDS,
    check_choice,
    check_count,
    check_flag,
    check_names,
    check_pattern,
    check_positive,
    explain_keywords,
    is_several,
    shown,
)

Bias = Literal["none", "all", "loldu_only"]


def _help(text: str) -> dict[str, str]:
    return {"help": text}


_USUAL_RANK = 64
_DEFAULT_CORE = "diagonal"
REQUIRES = "pip install 'lowrank-ldu[peft]', and import lowrank_ldu.peft before loading"
# A line in the head of every card that PEFT writes.
_OF_PEFT = "library_name: peft"
_FLAGS = ("init_weights", "fan_in_fan_out", "keep_base", "clip_rank", "inference_mode")
# Fields of the same name; the rank is r here, as it is in LoRA.
_OPTIONS = tuple(name for name in OPTION_NAMES if name != "rank")
_MODULES = "names of modules, a regular expression, or None"
_SECTION = """## Loading this adapter

Its method, LoLDU, comes to PEFT with the package lowrank-ldu. Without the import PEFT ends with `KeyError: 'LOLDU'`.

```sh
pip install 'lowrank-ldu[peft]'
```

```python
import lowrank_ldu.peft
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "the folder of this file")
```
"""


@dataclass
class LolduConfig(PeftConfig):  # type: ignore[misc]  # peft has no types
    r"""Options of a LoLDU adapter under PEFT.

    Fields that LoRA has, too, mean the same.

    Attributes
    ----------
    r : int
        Rank, at most min(m, n) of each layer's weight; 64 if not given. r numbers are trained in a layer, or those of
        its core. With `pivots_file` or `basis_file` it limits the ranks of the file, which count if it is not given.
    alpha : float, optional
        sigma starts at alpha / r; at 1 if not given.
    target_modules : list of str, or str, optional
        Names, a regular expression, or "all-linear"; by default the layers of `pivots_file` or `basis_file`, or what
        LoRA takes for the architecture. Linear layers, transformers' Conv1D, convolutions and embeddings can be
        targets.
    exclude_modules : list of str, or str, optional
        Not these.
    modules_to_save : list of str, optional
        Modules that are trained and saved whole, such as a new classification head.
    layers_to_transform, layers_pattern
        Only blocks of these numbers, in a list of modules of that name.
    rank_pattern, alpha_pattern : dict
        Name or regular expression to r or alpha, where it differs.
    clip_rank : bool
        Give layers that are too small for r the largest rank that they have, written into `rank_pattern`; they are
        refused otherwise.
    bias : str
        "none", "all" or "loldu_only": which biases are trained.
    init_weights : bool
        True: step 0 is the base model bit for bit. False: a random offset, for tests that need to see an effect.
    fan_in_fan_out : bool
        Set where a target stores its weight transposed; found out by itself.
    init, preserving, pivoting, basis, parametrization, train_sigma, seed, core, block_size, basis_digest
        As for `lowrank_ldu.nn.AdapterOptions`; core and block_size are those that `pivots_file` was chosen for, if it
        is given and they are not.
    pivots_file : str, optional
        File of the pivots that `lowrank_ldu.fitting.choose_pivots` found: `pivoting` is "chosen" then, and each layer
        has the file's rank unless rank_pattern gives a smaller one. Not saved: an adapter's own files hold its pivots.
    basis_file : str, optional
        File of the basis that `lowrank_ldu.fitting.fit_basis` made: `basis` is "fitted" then, with its digest, and
        ranks as with `pivots_file`. Saved, since it is needed to load the adapter: it is looked up by its digest among
        the bases of the process, at this path, and under this name in the adapter's folder and beside it.
    keep_base : bool
        Keep a copy of each weight when an adapter is merged, so that unmerging restores it bit for bit. False saves
        that memory; unmerging then subtracts, which leaves rounding errors.
    base_check : str
        What happens when an adapter is loaded on a base weight that is not the one of training, beyond what a change
        of its dtype explains: "error", "warn" or "ignore". "error" still only warns of what may be quantization.
    layer_kinds : dict, optional
        Kind of each target that is not a linear layer; filled in by the model.
    lora_obstacles : dict, optional
        Why a LoRA pair beside a target would compute something else, where it would; filled in by the model.

    Raises
    ------
    TypeError, ValueError
        A value is not accepted; the message names the field and what is. Or a file cannot be read. Names that match
        nothing in a model are warned of when the adapter is made.

    Examples
    --------
    >>> config = LolduConfig(r=8, target_modules=["query", "value"])
    >>> config.peft_type.value, config.bias
    ('LOLDU', 'none')
    """

    # None becomes a number: 64, or the largest rank of what was fitted.
    r: int = field(default=None, metadata=_help("Rank of each layer; 64 if not given."))  # type: ignore[assignment]
    alpha: float | None = field(default=None, metadata=_help("sigma starts at alpha / r; r if not given."))
    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata=_help("Names, a regular expression, or 'all-linear'.")
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata=_help("Modules that are left alone.")
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata=_help("Modules that are trained and saved whole, such as a new head.")
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata=_help("Numbers of the blocks to transform.")
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata=_help("Name of the list of blocks that layers_to_transform counts.")
    )
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata=_help("Name or pattern to rank."))
    alpha_pattern: dict[str, float | None] = field(default_factory=dict, metadata=_help("Name or pattern to alpha."))
    bias: Bias = field(default="none", metadata=_help("Biases that are trained: 'none', 'all' or 'loldu_only'."))
    init_weights: bool = field(
        default=True, metadata=_help("True: starts as the base model. False: random offset, for tests.")
    )
    fan_in_fan_out: bool = field(
        default=False, metadata=_help("Whether targets store their weight transposed; found out by itself.")
    )
    init: str = field(default="regular_ldu", metadata=_help("Start of the diagonal: " + ", ".join(INITIALIZATIONS)))
    preserving: bool = field(default=True, metadata=_help("Whether every start leaves the model unchanged."))
    pivoting: str = field(default="partial", metadata=_help("partial, complete, rook, randomized or chosen."))
    basis: str = field(default="ldu", metadata=_help("What the factors are of: ldu, fitted, svd or random."))
    parametrization: str | None = field(
        default=None, metadata=_help("diagonal, normalized or gram; by default what suits the core and the basis.")
    )
    train_sigma: bool = field(default=True, metadata=_help("Whether the scale is trained."))
    seed: int = field(default=0, metadata=_help("Seed of what is random."))
    core: str | None = field(default=None, metadata=_help("What is trained: diagonal, block or dense."))
    block_size: int | None = field(default=None, metadata=_help("Of core 'block', a divisor of r."))
    basis_digest: str | None = field(default=None, metadata=_help("Of basis 'fitted': the digest that names it."))
    pivots_file: str | None = field(default=None, metadata=_help("File of chosen pivots; not saved."))
    basis_file: str | None = field(default=None, metadata=_help("File of the fitted basis."))
    keep_base: bool = field(default=True, metadata=_help("Keep the base weight while merged."))
    base_check: BaseCheck = field(default="error", metadata=_help("On another base: 'error', 'warn' or 'ignore'."))
    clip_rank: bool = field(
        default=False, metadata=_help("Give layers that are too small for r the largest rank that they have.")
    )
    requires: str = field(
        default=REQUIRES, metadata=_help("What has to be installed and imported to load the adapter; for readers.")
    )
    layer_kinds: dict[str, str] | None = field(
        default=None, metadata=_help("Kinds of targets that are not linear layers; filled in.")
    )

    lora_obstacles: dict[str, str] | None = field(
        default=None, metadata=_help("Targets beside which a LoRA pair would compute something else; filled in.")
    )

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write the configuration, and complete the card that PEFT wrote.

        The card gets instructions for loading such an adapter.
        """
        super().save_pretrained(save_directory, **kwargs)
        # Adapters of other names than "default" lie in folders below the card.
        for folder in (Path(save_directory), Path(save_directory).parent):
            card = folder / "README.md"
            if card.is_file():
                text = card.read_text(encoding="utf-8")
                # Any other README is its owner's: a configuration can be saved without a model, to any folder.
                if _OF_PEFT in text and _SECTION.splitlines()[0] not in text:
                    card.write_text(f"{text.rstrip()}\n\n{_SECTION}", encoding="utf-8")
                break

    def __post_init__(self) -> None:
        """Check every value.

        A mistake shows before a model is touched.
        """
        super().__post_init__()
        self.peft_type = PeftType.LOLDU
        # What was fitted, and the folder that the configuration was read from; neither is saved.
        self._fit: Fit | None = None
        self._folder: Path | None = None
        for name in _FLAGS:
            setattr(self, name, check_flag(getattr(self, name), name))
        self._take_fit()
        if self.core is None:
            self.core = _DEFAULT_CORE
        self._check_options()
        self._check_names()
        self._check_modules()
        self._check_layers()

    @property
    def options(self) -> AdapterOptions:
        """Return the options for layers without an own rank or alpha."""
        return AdapterOptions(rank=self.r, **{name: getattr(self, name) for name in _OPTIONS})

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> LolduConfig:
        """Read the configuration of a saved adapter."""
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        if isinstance(config, LolduConfig):
            config._folder = Path(pretrained_model_name_or_path, subfolder or "")  # noqa: SLF001
        return config  # type: ignore[no-any-return]

    def to_dict(self) -> dict[str, Any]:
        """Return what is saved of the fields.

        Fields that earlier versions do not know are left out at their defaults.
        """
        unset = {name for name in ("basis_file", *LATER_OPTIONS) if getattr(self, name) == _DEFAULTS[name]}
        return {name: value for name, value in super().to_dict().items() if name not in unset | {"pivots_file"}}

    def fit(self) -> Fit | None:
        """Return what was fitted for the layers, if this is told by files.

        Raises
        ------
        AdapterError
            The fitted basis is not found.
        """
        if self._fit is None and self.basis_digest is not None:
            return fit_of_basis(self.basis_digest, self.basis_file, self._folder)
        return self._fit

    def _take_fit(self) -> None:
        """Read the file of pivots or of a basis, and take over its ranks."""
        for name in ("pivots_file", "basis_file"):
            setattr(self, name, checked_file(getattr(self, name), name))
        if self.pivots_file is not None:
            self._take("pivoting", "chosen", "pivots_file", ("partial",))
            if self.basis_file is not None:
                raise ValueError("pivots_file and basis_file are given; accepted: one of them")
            self._fit = fit_of_pivots(self.pivots_file)
            if self.core is None and self.block_size is None:
                self.core, self.block_size = self._fit.core, self._fit.block_size
        elif self.basis_file is not None:
            self._take("basis", "fitted", "basis_file", ("ldu",))
            # A saved configuration has the digest: the basis is looked up once it is needed.
            if self.basis_digest is None:
                self.basis_digest, self._fit = fit_of_basis_file(self.basis_file)
        given: object = self.r
        if given is None:
            fit = self.fit()
            self.r = _USUAL_RANK if fit is None else fit.largest_rank
        elif self._fit is not None and check_count(self.r, "r", 1) > self._fit.largest_rank:
            raise ValueError(
                f"r is {self.r}; accepted: up to {self._fit.largest_rank}, the largest rank of {self._fit.source}, or "
                "to leave it out"
            )

    def _take(self, name: str, value: str, file: str, defaults: tuple[str, ...]) -> None:
        if getattr(self, name) not in {value, *defaults}:
            raise ValueError(f"{name} is {shown(getattr(self, name))} with {file}; accepted: {value!r}")
        setattr(self, name, value)

    def _check_options(self) -> None:
        # The numbers are kept as Python's own: the file of the configuration takes no others.
        self.r = check_count(self.r, "r", 1)
        options = self.options
        for name in _OPTIONS:
            setattr(self, name, getattr(options, name))
        ranks, alphas = (self._pattern(name, numbers) for name, numbers in (("rank", "ranks"), ("alpha", "alphas")))
        self.rank_pattern = {key: check_count(rank, f"rank_pattern[{key!r}]", 1) for key, rank in ranks.items()}
        self.alpha_pattern = {key: _alpha(alpha, f"alpha_pattern[{key!r}]") for key, alpha in alphas.items()}

    def _pattern(self, of: str, numbers: str) -> dict[str, Any]:
        name, accepted = f"{of}_pattern", f"names of modules or regular expressions, to {numbers}"
        # Other methods, and files written by hand, have None for nothing.
        pattern = {} if getattr(self, name) is None else getattr(self, name)
        if not isinstance(pattern, Mapping) or not all(isinstance(key, str) for key in pattern):
            raise TypeError(f"{name} is {shown(pattern)}; accepted: a dict of {accepted}")
        for key in pattern:
            check_pattern(key, f"a key of {name}", accepted)
        return dict(pattern)

    def _check_names(self) -> None:
        for name, accepted in (("bias", get_args(Bias)), ("base_check", get_args(BaseCheck))):
            check_choice(getattr(self, name), name, accepted)

    def _check_modules(self) -> None:
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, str):
                check_pattern(value, name, _MODULES)
            elif value is not None:
                setattr(self, name, set(check_names(value, name, _MODULES)))
        if self.modules_to_save is not None:
            accepted = "a list of names of modules, or None"
            # A list, to which PEFT adds the heads of its tasks.
            self.modules_to_save = check_names(self.modules_to_save, "modules_to_save", accepted)
            for module in self.modules_to_save:
                check_pattern(module, "a name in modules_to_save", accepted)
        kinds, obstacles = ({} if value is None else value for value in (self.layer_kinds, self.lora_obstacles))
        if not _are_texts(kinds) or not set(kinds.values()) <= set(KINDS):
            raise TypeError(
                f"layer_kinds is {shown(kinds)}; accepted: names of modules to {', '.join(map(repr, KINDS))}, or None"
            )
        if not _are_texts(obstacles):
            raise TypeError(f"lora_obstacles is {shown(obstacles)}; accepted: names of modules to reasons, or None")

    def _check_layers(self) -> None:
        self.layers_to_transform = _block_numbers(self.layers_to_transform)
        patterns = self.layers_pattern
        if patterns is not None:
            accepted = "a name of lists of blocks, a list of them, or None"
            if not isinstance(patterns, str):
                self.layers_pattern = check_names(patterns, "layers_pattern", accepted)
            for pattern in [patterns] if isinstance(patterns, str) else patterns:
                check_pattern(pattern, "layers_pattern", accepted)
        if isinstance(self.target_modules, str):
            for name in ("layers_to_transform", "layers_pattern"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} is given and target_modules is a string; accepted: a list of names with it"
                    )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern is given and layers_to_transform is not; accepted: both or neither")


def _alpha(value: Any, name: str) -> float | None:
    return None if value is None else check_positive(value, name)


def _are_texts(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(text, str) for pair in value.items() for text in pair)


def _block_numbers(value: Any) -> list[int] | int | None:
    """Return numbers of blocks as Python's own.

    They are one number or a list.
    """
    if value is None:
        return None
    several = is_several(value)
    try:
        numbers = [check_count(number, "layers_to_transform") for number in (value if several else [value])]
    except (TypeError, ValueError):
        raise TypeError(
            f"layers_to_transform is {shown(value)}; accepted: an integer from 0 on, a list of them, or None"
        ) from None
    return numbers if several else numbers[0]


_DEFAULTS = {each.name: each.default for each in fields(LolduConfig)} | {"core": _DEFAULT_CORE}

# Dataclasses make an __init__ of their own. PEFT looks for these words in the message on keywords that
# only later versions know.
LolduConfig.__init__ = explain_keywords(  # type: ignore[method-assign]
    {name: hint for name, hint in LORA_KEYWORDS.items() if name != "r"}
    | {
        "rank": "it is r here",
        "lora_alpha": "it is alpha here; sigma starts at alpha / r",
        "init_lora_weights": "it is init_weights here, or init and preserving; basis='svd' is what is nearest to PiSSA",
        "targets": "it is target_modules here",
        "ensure_weight_tying": "tied weights are not merged; accepted: leave it out",
        "trainable_token_indices": "there is no such option; accepted: modules_to_save",
        "layer_replication": "there is no such option; accepted: leave it out",
        "megatron_config": "there is no tensor parallelism; accepted: leave it out",
    }
)(LolduConfig.__init__)
