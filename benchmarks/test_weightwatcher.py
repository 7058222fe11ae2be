"""Analysis of all-MiniLM-L6-v2 beside WeightWatcher's, on the same file: `pip install -e '.[weightwatcher]'` first."""

import io
import logging
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import pytest
from minilm import checkpoint
from safetensors.torch import load_file

from lowrank_ldu import pissa, svd
from lowrank_ldu.analysis import SurveyOptions, analyze_checkpoint
from lowrank_ldu.analysis.engine.resources import pinned_threads

RANKS = (8, 16, 32, 64, 128)

pytestmark = pytest.mark.benchmark(group="all-MiniLM-L6-v2, whole analysis")


@pytest.fixture(scope="module")
def weightwatcher():
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        module = pytest.importorskip("weightwatcher", reason="pip install -e '.[weightwatcher]'")
    logging.getLogger("weightwatcher").setLevel(logging.ERROR)
    return module


def test_weightwatcher(benchmark, weightwatcher):
    folder = str(Path(checkpoint()).parent)

    def analyze():
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return weightwatcher.WeightWatcher().analyze(model=folder)

    details = benchmark.pedantic(analyze, rounds=3)
    assert len(details) == 39


@pytest.fixture(scope="module")
def matrices():
    return [W for W in load_file(checkpoint()).values() if W.ndim == 2 and W.is_floating_point()]


@pytest.mark.parametrize(
    "factor",
    [svd, *(partial(pissa, rank=rank, niter=4) for rank in RANKS)],
    ids=["exact SVD", *(f"quick PiSSA {rank}" for rank in RANKS)],
)
def test_factorizations_alone(benchmark, matrices, factor):
    """What the whole analysis cannot be faster than: a part of what it measures, two matrices side by side."""
    with pinned_threads(1), ThreadPoolExecutor(2) as pool:
        possible = [W for W in matrices if min(W.shape) > max(RANKS)]
        benchmark.pedantic(lambda: list(pool.map(factor, possible)), rounds=3)


@pytest.mark.parametrize(
    ("mode", "pivoting", "times"),
    [
        ("fast", ("partial",), "no times"),
        ("fast", ("partial", "complete"), "no times"),
        ("fast", ("partial", "complete"), "times"),
        ("exact", ("partial",), "no times"),
        ("exact", ("partial",), "times"),
        ("exact", ("partial", "complete"), "times"),
        ("exact", ("partial", "complete", "randomized"), "times"),
        ("cheap", ("partial",), "times"),
        ("cheap", ("partial", "complete", "randomized"), "times"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
@pytest.mark.usefixtures("weightwatcher")
def test_this(benchmark, mode, pivoting, times):
    options = SurveyOptions(ranks=RANKS, pivoting=pivoting, mode=mode, times=times == "times")
    analysis = benchmark.pedantic(analyze_checkpoint, (checkpoint(), options), rounds=3)
    assert len(analysis.matrices) == 40
