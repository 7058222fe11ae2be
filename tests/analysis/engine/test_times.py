"""Times of methods: once for each shape, of what was measured."""

import math

import pytest
import torch
from weights import weight

from lowrank_ldu.analysis import Analysis, SurveyOptions, analyze, headlines
from lowrank_ldu.analysis.engine import shapes
from lowrank_ldu.analysis.measures import timing
from lowrank_ldu.analysis.measures.matrix import MethodAtRank
from lowrank_ldu.analysis.measures.timing import Problem, time_methods
from lowrank_ldu.errors import OptionError

STATE = {"a.weight": weight(20, 12), "b.weight": weight(20, 12).double(), "c.weight": 2 * weight(20, 12)}
OPTIONS = {"ranks": (2, 5), "threads": 1}


def seconds_of(analysis):
    return {
        tensor.name: [matrix.svd_seconds, *(each.seconds for each in matrix.measurements)]
        for tensor, matrix in analysis.matrices
    }


@pytest.mark.parametrize(("mode", "timed"), [("exact", True), ("cheap", True), ("fast", False)])
def test_times_are_as_asked_for(mode, timed):
    default = analyze(STATE, mode=mode, **OPTIONS)
    assert default.has_times == default.options.has_times == timed
    for times in (True, False):
        analysis = analyze(STATE, mode=mode, times=times, **OPTIONS)
        assert analysis.has_times == times
        for seconds in seconds_of(analysis).values():
            assert all(math.isfinite(each) and each > 0 if times else each is None for each in seconds)
        assert any("times as long as LDU" in sentence for sentence in headlines(analysis)) == times
        if times:
            assert analysis.plot_times() is not None
            assert analysis.plot_speeds() is not None


def test_matrices_of_a_shape_have_the_same_times(monkeypatch):
    asked = []

    def counted(problem, *others):
        asked.append(problem)
        return time_methods(problem, *others)

    monkeypatch.setattr(shapes, "time_methods", counted)
    seconds = seconds_of(analyze(STATE, mode="exact", **OPTIONS))
    assert seconds["a.weight"] == seconds["c.weight"]
    assert seconds["a.weight"] != seconds["b.weight"]
    assert {(each.m, each.n, each.dtype, each.svd_niter) for each in asked} == {
        (20, 12, "float32", None),
        (20, 12, "float64", None),
    }
    assert len(asked) == 2


NO_MEMORY = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(NO_MEMORY)], ids=["python", "torch"])
def test_a_shape_without_memory_has_no_times_and_loses_no_figures(monkeypatch, tmp_path, error):
    def fails(problem, *others):
        if problem.dtype == "float64":
            raise error
        return time_methods(problem, *others)

    monkeypatch.setattr(shapes, "time_methods", fails)
    analysis = analyze(STATE, mode="exact", **OPTIONS)
    seconds = seconds_of(analysis)
    assert all(each is None for each in seconds["b.weight"])
    assert all(each > 0 for name in ("a.weight", "c.weight") for each in seconds[name])
    analysis.save(tmp_path / "report")
    error = RuntimeError("what is wrong is not memory")
    with pytest.raises(RuntimeError, match="not memory"):
        analyze(STATE, mode="exact", **OPTIONS)


def test_every_method_is_timed_at_its_rank(monkeypatch):
    called = []

    def recorded(name):
        compute = getattr(timing, name)

        def record(W, *args, **kwargs):
            called.append((name, tuple(W.shape), W.dtype, *args, kwargs.get("pivoting")))
            return compute(W, *args, **kwargs)

        return record

    for name in ("ldu", "ldu_lowrank", "pissa", "svd"):
        monkeypatch.setattr(timing, name, recorded(name))
    methods = {
        MethodAtRank("ldu", "partial", 4, exact=False),
        MethodAtRank("ldu", "rook", 9, exact=False),
        MethodAtRank("ldu_lowrank", None, 4, exact=False),
        MethodAtRank("pissa", None, 4, exact=False),
        MethodAtRank("pissa", None, 4, exact=True),
    }
    times = time_methods(Problem(12, 9, "float64", None), methods, (4,), seed=0)
    assert set(times.methods) == methods
    assert times.methods[MethodAtRank("pissa", None, 4, exact=True)] > times.svd
    assert set(called) == {
        ("ldu", (12, 9), torch.float64, 4, "partial"),
        ("ldu", (12, 9), torch.float64, 9, "rook"),
        ("ldu_lowrank", (12, 9), torch.float64, 4, None),
        ("pissa", (12, 9), torch.float64, 4, None),
        ("svd", (12, 9), torch.float64, None),
    }


def test_shapes_beyond_the_memory_have_no_times(monkeypatch, tmp_path):
    state = STATE | {"large.weight": weight(60, 50)}
    # Room for 96 bytes for each of 240 entries, and not of 3,000.
    monkeypatch.setattr(shapes, "physical_memory", lambda: 2 * 96 * 1000)
    analysis = analyze(state, mode="exact", **OPTIONS)
    seconds = seconds_of(analysis)
    assert all(each is None for each in seconds["large.weight"])
    assert all(each > 0 for each in seconds["a.weight"])
    analysis.save(tmp_path / "report")
    assert Analysis.load(tmp_path / "report") == analysis
    assert analysis.plot_speeds() is not None


def test_progress_names_the_shapes():
    seen = []
    analyze({"w": weight(40, 30)}, mode="cheap", progress=seen.append, ranks=2, threads=1)
    assert any("times at 40 x 30, float32, randomized SVD" in state.running for state in seen)
    assert seen[-1].fraction == 1.0


@pytest.mark.parametrize("times", [1, "yes", torch.tensor(1)])
def test_times_is_a_truth_value(times):
    with pytest.raises(OptionError, match="times is .*; accepted: True, False or None"):
        SurveyOptions(times=times)
