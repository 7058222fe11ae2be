"""Hypothesis profiles, and each test on each array library."""

import gc
import os
import signal

# The matrices are small: threads cost more than they bring, most of all where cores are shared. Before any import.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Plans are chosen by the built-in figures, so that every machine tests the same ones.
os.environ["LOWRANK_LDU_MEASURE"] = "0"

import hypothesis
import pytest
import torch

# Where there is no GPU the Triton kernels are interpreted. Before triton is imported: it decides then.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from libraries import LIBRARIES

# In the background, and under nohup, they are ignored; the processes that tests start and end would ignore them, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A fixed seed: what CI proves is the same on every run. "explore" looks further, by hand.
hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


HALF = {torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}
HALF_NAMES = ("half_precision", "float16", "autocast", "float8", "rounded_copy", "zero_delta", "values_and_gradients")


def pytest_configure(config):
    """Let one process run a whole file, where there are several.

    Fixtures of a file are set up once then. An option for all of pytest, benchmarks too, would turn these off.
    """
    if config.getoption("dist", "no") == "load":
        config.option.dist = "loadfile"


def pytest_collection_modifyitems(items):
    """Mark the tests whose results depend on how the processor rounds to half precision."""
    for item in items:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        name = f"{item.cls.__name__ if item.cls else ''} {getattr(item, 'originalname', None) or item.name}".lower()
        if any(isinstance(value, torch.dtype) and value in HALF for value in values) or any(
            word in name for word in HALF_NAMES
        ):
            item.add_marker("half")


@pytest.fixture(scope="module", autouse=True)
def _imported_modules_are_not_collected():
    """Leave what is alive out of garbage collection.

    The modules of torch and transformers are millions of objects, which every collection would look through.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    # Libraries report what is left over at the end of the process.
    gc.unfreeze()


@pytest.fixture(params=LIBRARIES, ids=repr)
def library(request):
    return request.param


@pytest.fixture(autouse=True)
def _fixed_torch_seed():
    torch.manual_seed(0)
