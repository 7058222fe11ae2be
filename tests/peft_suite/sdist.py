"""PEFT's own tests, imported from an unpacked sdist: nothing of them is copied."""

import contextlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import sys
import types
from pathlib import Path

import pytest
from loldu_for_lora import Loldu, rows_as_loldu
from transformers.utils import is_datasets_available

from lowrank_ldu.peft import LolduLayer

_PACKAGE = "peft_sdist_tests"
# They skip models for methods other than LoRA by lists of names, or (those of BEFT) for all.
_OTHERS_BY_NAME = ("check_beft_config", "beft_tests", "deberta_beft_tests")
_MISSING = (
    "PEFT_TESTS is not set; to run PEFT's own tests set it to the folder `tests` of PEFT's unpacked sdist "
    "(pip download --no-deps --no-binary :all: --no-build-isolation peft==<installed version>)"
)


def load(name, classes, *, models=None, methods=("LoraConfig",), more=None):
    """Import a module of PEFT's tests and return classes of it by name, turned into LoLDU's.

    models: PEFT's list of model names in that module, and which of them to keep.
    methods: what the bodies of its tests call the method that is LoLDU here.
    more: a list of rows in that module, and rows that are added to it.
    """
    module = _import(name)
    if more is not None:
        getattr(module, more[0]).extend(more[1])
    if models is not None:
        known = getattr(module, models[0])
        known[:] = [model for model in known if model in models[1]]
    # Parametrizations share their lists of rows.
    marks = [
        mark
        for cls in classes
        for function in vars(getattr(module, cls)).values()
        for mark in getattr(function, "pytestmark", ())
        if mark.name == "parametrize" and isinstance(mark.args[1], list)
    ]
    for rows in {id(mark.args[1]): mark.args[1] for mark in marks}.values():
        rows[:] = rows_as_loldu(rows)
    for mark in marks:
        if len(mark.kwargs.get("ids", mark.args[1])) != len(mark.args[1]):
            del mark.kwargs["ids"]
    for method in methods:
        setattr(module, method, Loldu)
    for function in _OTHERS_BY_NAME:
        if hasattr(module, function):
            setattr(module, function, lambda *_: None)
    module.lora = types.SimpleNamespace(LoraLayer=LolduLayer)
    return {cls: getattr(module, cls) for cls in classes}


def module(name):
    """Return a module of PEFT's tests that was loaded."""
    return sys.modules[f"{_PACKAGE}.{name}"]


def _import(name):
    folder = os.environ.get("PEFT_TESTS")
    if folder is None:
        pytest.skip(_MISSING, allow_module_level=True)
    if not Path(folder, "testing_common.py").is_file():
        raise pytest.UsageError(f"PEFT_TESTS is {folder!r}, a folder without testing_common.py. {_MISSING}")
    with _stand_ins():
        if _PACKAGE not in sys.modules:
            pytest.register_assert_rewrite(_PACKAGE)
            package = types.ModuleType(_PACKAGE)
            package.__path__ = [folder]
            sys.modules[_PACKAGE] = package
            utilities = importlib.import_module(f"{_PACKAGE}.testing_utils")
            # It says that the hub can be reached the first time that a model is asked for.
            utilities.hub_online_once = contextlib.nullcontext
        return importlib.import_module(f"{_PACKAGE}.{name}")


@contextlib.contextmanager
def _stand_ins():
    """Offer the modules that PEFT's tests import and that only tests of other methods use."""
    missing = []
    is_datasets_available()  # is asked again meanwhile, and remembers the answer
    for name, attribute, value in (
        ("diffusers", "StableDiffusionPipeline", type("StableDiffusionPipeline", (), {})),
        ("datasets", "load_dataset", None),
        ("parameterized", "parameterized", types.SimpleNamespace(expand=_expand)),
    ):
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
            sys.modules[name].__version__ = "0"
            setattr(sys.modules[name], attribute, value)
            missing.append(name)
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


def _expand(cases, **_):
    def parametrize(function):
        names = list(inspect.signature(function).parameters)[1:]
        return pytest.mark.parametrize(names, list(cases))(function)

    return parametrize
