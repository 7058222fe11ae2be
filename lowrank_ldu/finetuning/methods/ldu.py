"""Offer LoLDU in its forms, by `lowrank_ldu.peft.LolduConfig`."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.finetuning.methods.from_peft import FILLED_IN
from lowrank_ldu.finetuning.methods.ldu_model import PreparedLdu, core_numbers
from lowrank_ldu.finetuning.methods.method import Method, MethodRequest, Prepared, targets_of
from lowrank_ldu.finetuning.methods.modules import check_targets, linear_targets, whole_modules
from lowrank_ldu.finetuning.methods.options import as_option_errors, check_names, field_defaults
from lowrank_ldu.finetuning.methods.peft_model import config_class, of_task, prepared_by_peft, why_missing
from lowrank_ldu.fitting import SOURCES, FittedBasis, choose_pivots, fit_basis
from lowrank_ldu.fitting.factoring import checked_method
from lowrank_ldu.fitting.pivots import METHODS as PIVOT_METHODS
from lowrank_ldu.nn import use_basis
from lowrank_ldu.nn.injection import ALL_LINEAR, check_limits
from lowrank_ldu.validation import LORA_KEYWORDS, check_choice, check_count, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

Fit = Literal["pivots", "basis"]
_CONFIG = ("lowrank_ldu.peft", "LolduConfig")
_FIT_DEFAULTS = {
    "fit_rank": None,
    "fit_budget": None,
    "fit_source": "gradient",
    "fit_batches": 16,
    "fit_method": None,
}
_UNUSABLE = {
    "pivots_file": "method 'ldu-pivots' makes it",
    "requires": "it is for readers of the adapter's file",
    "layer_kinds": "it is filled in",
    "lora_obstacles": "it is filled in",
}
_UNUSABLE_WITH_FIT = {
    "r": "the rank is fit_rank, or fit_budget shares numbers out",
    "rank_pattern": "the fit finds the ranks",
    "clip_rank": "the fit finds the ranks",
    "pivoting": "the fit finds the factors",
    "basis": "the fit finds the factors",
    "basis_file": "the fit makes it; method 'loldu' takes one",
    "basis_digest": "the fit makes it",
}
_WAYS_OUT = "other targets, or fit_budget"
# Options that the configuration holds in other types, or not at all until the model is known.
_AS_GIVEN = {"seed", "target_modules", "exclude_modules"}


@dataclass(frozen=True)
class LduMethod(Method):
    """Train LoLDU in one of its forms.

    Options are the fields of `LolduConfig`, but for those that the task or a fit fills in. seed is the run's if None.
    Forms that are not fitted take a basis that was, by basis_file. Its digest is among the options then: another file
    makes another configuration.

    Forms that are fitted to the task have fit_rank or fit_budget (numbers of all layers together), fit_source,
    fit_batches and fit_method, as `choose_pivots` and `fit_basis` take them.

    Attributes
    ----------
    defaults : mapping
        Where they are not those of `LolduConfig`.
    fit : {"pivots", "basis"}, optional
        What is fitted to the task's batches before training.
    published : bool
        Whether sigma is kept in (0, 1], as long as options keep to the paper's form.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    fit: Fit | None = None
    published: bool = False

    def unavailable(self) -> str | None:
        """Return whether PEFT is missing; see `Method.unavailable`."""
        return why_missing(*_CONFIG)

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check options by `LolduConfig`; see `Method.options`."""
        config = config_class(self.name, *_CONFIG)
        why = FILLED_IN | _UNUSABLE | (_UNUSABLE_WITH_FIT if self.fit else {})
        fitting = {"fit": self.fit, **_FIT_DEFAULTS} if self.fit else {}
        defaults = field_defaults(config, why) | {"seed": None} | fitting | dict(self.defaults)
        hints = {name: hint for name, hint in LORA_KEYWORDS.items() if name not in defaults}
        check_names(self.name, given, defaults, hints | why)
        options = defaults | dict(given)
        if self.fit and options["fit_budget"] is not None and "fit_rank" not in given:
            options["fit_rank"] = None
        with as_option_errors(f"method {self.name!r}", quiet=True):
            self._check_fit(options)
            checked = self._config(options, 0)
        # As the configuration has them: a parametrization that follows from the core is named.
        own = field_defaults(config, _AS_GIVEN).keys() & options.keys()
        return {name: getattr(checked, name) if name in own else value for name, value in options.items()}

    def check_model(self, model: nn.Module, options: Mapping[str, Any], request: MethodRequest) -> None:
        """Check ranks, too, but those that a file or a budget has; see `Method.check_model`."""
        super().check_model(model, options, request)
        checked, targets = self.options(options), targets_of(options, request)
        if self.fit is not None or targets == ALL_LINEAR:
            targets = linear_targets(model, targets, whole_modules(model, request.trained_whole))
        with as_option_errors(f"method {self.name!r}", quiet=True):
            if self.fit is not None:
                check_limits({name: (model.get_submodule(name), checked["fit_rank"]) for name in targets}, _WAYS_OUT)
            elif checked["basis_file"] is None and not checked["clip_rank"]:
                config = self._config(checked, 0, target_modules=targets)
                require("lowrank_ldu.peft.model").LolduModel.check_ranks(model, config)

    def prepare(self, model: nn.Module, options: Mapping[str, Any], request: MethodRequest) -> Prepared:
        """Fit if need be, and put LoLDU's layers into the model; see `Method.prepare`."""
        checked = self.options(options)
        whole = whole_modules(model, request.trained_whole)
        targets = targets_of(checked, request)
        check_targets(model, targets, whole)
        # Of these exactly, and of nothing whose name ends with theirs.
        layers = "|".join(map(re.escape, linear_targets(model, targets, whole))) if self.fit else ""
        seed = request.seed if checked["seed"] is None else checked["seed"]
        others: dict[str, Any] = of_task(model, request, whole)
        basis = None
        with tempfile.TemporaryDirectory() as folder, as_option_errors(f"method {self.name!r}"):
            if self.fit is None:
                others["target_modules"] = targets
                if checked["basis_file"] is not None:
                    basis = FittedBasis.load(checked["basis_file"])
                    use_basis(basis)
            elif self.fit == "pivots":
                shape = {name: checked[name] for name in ("core", "block_size")}
                pivots = choose_pivots(model, **self._fitting(checked, request, layers), **shape)
                others["pivots_file"] = str(pivots.save(Path(folder, "pivots.safetensors")))
            else:
                basis = fit_basis(model, **self._fitting(checked, request, layers), seed=seed)
                use_basis(basis)
            if basis is not None:
                others |= {"basis": "fitted", "basis_digest": basis.digest, "basis_file": _file_of(basis)}
            config = self._config(checked, seed, **others)
        peft_model, adapted, biases = prepared_by_peft(model, config, request, self.name, whole)
        prepared = PreparedLdu(peft_model, biases, whole, projected=self._projected(checked), basis=basis)
        prepared.config.pivots_file = None  # it is gone, and its pivots are the layers'
        prepared.expected_numbers += core_numbers(adapted, prepared.config)
        if basis is not None:
            prepared.shared_files = (_file_of(basis),)
        return prepared

    def _config(self, options: Mapping[str, Any], seed: int, **others: Any) -> Any:
        given = {name: value for name, value in options.items() if not name.startswith("fit")} | {"seed": seed}
        if self.fit and not others:  # nothing is fitted yet, and options are checked as if it were
            least = options["fit_rank"] or options["block_size"] or 1
            fitted = {"basis": "fitted", "basis_digest": "0"} if self.fit == "basis" else {"pivoting": "chosen"}
            others = {"r": least} | fitted
        return config_class(self.name, *_CONFIG)(**{**given, **others})

    def _check_fit(self, options: Mapping[str, Any]) -> None:
        if self.fit is None:
            return
        if options["fit"] != self.fit:
            other = "ldu-basis" if self.fit == "pivots" else "ldu-pivots"
            raise OptionError(f"fit is {shown(options['fit'])}; accepted: {self.fit!r}, or method {other!r}")
        if (options["fit_rank"] is None) == (options["fit_budget"] is None):
            raise OptionError("fit_rank and fit_budget are both given, or neither; accepted: one of them")
        for name in ("fit_rank", "fit_budget", "fit_batches"):
            if options[name] is not None:
                check_count(options[name], name, 1)
        check_choice(options["fit_source"], "fit_source", SOURCES)
        if options["fit_method"] is not None:
            if self.fit == "pivots":
                check_choice(options["fit_method"], "fit_method", PIVOT_METHODS)
            else:
                checked_method(options["fit_method"], options["fit_source"])

    def _fitting(self, options: Mapping[str, Any], request: MethodRequest, layers: str) -> dict[str, Any]:
        """Return the arguments that both kinds of fit take."""
        if request.batches is None:
            raise OptionError(f"batches is None with method {self.name!r}, which is fitted to some; accepted: batches")
        given = {
            "data": request.batches,
            "targets": layers,
            "loss": request.loss,
            "rank": options["fit_rank"],
            "budget": options["fit_budget"],
            "source": options["fit_source"],
            "batches": options["fit_batches"],
        }
        return given if options["fit_method"] is None else given | {"method": options["fit_method"]}

    def _projected(self, options: Mapping[str, Any]) -> bool:
        form = {"core": "diagonal", "basis": "ldu", "parametrization": "diagonal", "train_sigma": True}
        return self.published and all(options[name] == value for name, value in form.items())


def _file_of(basis: FittedBasis) -> str:
    """Return the name of a basis's file, which its content determines."""
    return f"basis-{basis.digest[:16]}.safetensors"


LDU_METHODS = (
    LduMethod("loldu", "LoLDU", published=True),
    LduMethod(
        "ldu-core",
        "LDU core",
        defaults={"r": 16, "core": "dense", "parametrization": "gram", "train_sigma": False},
    ),
    LduMethod(
        "ldu-pivots",
        "LDU at chosen pivots",
        defaults={"core": "dense", "parametrization": "gram", "train_sigma": False, "fit_rank": 16},
        fit="pivots",
    ),
    LduMethod(
        "ldu-basis",
        "LDU of the gradient",
        defaults={"train_sigma": False, "parametrization": "normalized", "fit_rank": 32},
        fit="basis",
    ),
)
