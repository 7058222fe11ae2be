"""Analysis of all-MiniLM-L6-v2 beside WeightWatcher's, on the same file: `pip install -e '.[weightwatcher]'` first."""

import io
import logging
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from minilm import checkpoint

from lowrank_ldu.analysis.options import SurveyOptions
from lowrank_ldu.analysis.run import analyse_checkpoint

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

    details = benchmark.pedantic(analyze, rounds=3, warmup_rounds=1)
    assert len(details) == 39


@pytest.mark.parametrize(
    ("mode", "pivoting"),
    [
        ("exact", ("partial",)),
        ("exact", ("partial", "complete", "randomized")),
        ("cheap", ("partial",)),
        ("cheap", ("partial", "complete", "randomized")),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
@pytest.mark.usefixtures("weightwatcher")
def test_this(benchmark, mode, pivoting):
    options = SurveyOptions(ranks=RANKS, pivoting=pivoting, mode=mode)
    analysis = benchmark.pedantic(analyse_checkpoint, (checkpoint(), options), rounds=3, warmup_rounds=1)
    assert len(analysis.matrices) == 40
