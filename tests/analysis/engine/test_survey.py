"""The survey: its figures are those of plain NumPy, every tensor is accounted for, one is in memory at a time."""

import dataclasses
import json
import math
import weakref

import minilm
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from threadpoolctl import threadpool_info
from weights import HOSTILE, weight

from lowrank_ldu import diagnose, environment, ldu
from lowrank_ldu.analysis import SurveyOptions, analyze_checkpoint
from lowrank_ldu.analysis.engine import survey as survey_module
from lowrank_ldu.analysis.engine.resources import Layout, plan
from lowrank_ldu.analysis.engine.survey import survey
from lowrank_ldu.analysis.measures.curves import best_errors, sample_ranks, sampled
from lowrank_ldu.analysis.measures.spectrum import summarize_spectrum
from lowrank_ldu.checkpoints import CheckpointError, open_checkpoint
from lowrank_ldu.checkpoints.weights import open_weights
from lowrank_ldu.decomposition import Factorization
from lowrank_ldu.diagnostics import Examination, Target
from lowrank_ldu.errors import NothingToAnalyzeError, OptionError

ANALYZED = {"tall", "wide", "convolution", "zero", HOSTILE}


def results_of(path, options):
    with open_checkpoint(path) as reader:
        return {result.name: result for result in survey(reader, options)}


def relative_error(W, approximation):
    return np.linalg.norm(W - approximation) / np.linalg.norm(W)


def test_every_tensor_has_an_analysis_or_a_reason(checkpoint, options):
    results = results_of(checkpoint, options)
    assert {name for name, result in results.items() if result.analysis is not None} == ANALYZED
    reasons = {name: result.reason for name, result in results.items() if name not in ANALYZED}
    assert reasons == {
        "bias": "1-D: no matrix to factor",
        "scalar": "0-D: no matrix to factor",
        "stack": "3-D: neither experts nor a convolution by its name",
        "video": "6-D: neither a matrix nor a convolution",
        "row": "one side of the matrix is 1: its rank is 1 and there is nothing to choose",
        "empty": "it is empty",
        "ids": "int64: integers are not factored",
        "mask": "bool: integers are not factored",
        "quantized": reasons["quantized"],
        "bad": reasons["bad"],
    }
    assert reasons["quantized"].startswith("float8_e4m3fn: no scale beside it")
    assert reasons["bad"].startswith("it holds 2 entries that are not finite, the first at (1, 2): nan")


def test_figures_are_those_of_numpy(checkpoint, options):
    analysis = results_of(checkpoint, options)["tall"].analysis
    W = weight(30, 12).to(torch.float32).numpy().astype(np.float64)
    values = np.linalg.svd(W, compute_uv=False)
    energy = values**2 / np.sum(values**2)
    share = values / values.sum()

    spectrum = analysis.spectrum
    assert spectrum.largest == pytest.approx(values[0], rel=1e-5)
    assert spectrum.smallest == pytest.approx(values[-1], rel=1e-5)
    assert spectrum.stable_rank == pytest.approx(np.sum(values**2) / values[0] ** 2, rel=1e-5)
    assert spectrum.effective_rank == pytest.approx(np.exp(-np.sum(share * np.log(share))), rel=1e-5)
    assert spectrum.energy == pytest.approx({rank: energy[:rank].sum() for rank in (3, 8, 12)}, rel=1e-5)

    for pivoting in ("partial", "complete"):
        factors = ldu(W, pivoting=pivoting)
        for rank in (3, 8, 12):
            left, z, right = factors.left[:, :rank], factors.diagonal[:rank], factors.right[:rank]
            terms = np.stack([np.outer(left[:, i], right[i]).ravel() for i in range(rank)], axis=1)
            best = terms @ np.linalg.lstsq(terms, W.ravel(), rcond=None)[0]
            measured = analysis.at("ldu", rank, pivoting)
            figures = measured.diagnostics
            assert figures.frobenius_error == pytest.approx(relative_error(W, (left * z) @ right), rel=1e-4, abs=1e-6)
            assert figures.refit_frobenius_error == pytest.approx(
                relative_error(W, best.reshape(W.shape)), rel=1e-4, abs=1e-6
            )
            assert figures.svd_frobenius_error == pytest.approx(
                np.sqrt(np.sum(values[rank:] ** 2) / np.sum(values**2)), rel=1e-4, abs=1e-6
            )
            assert figures.condition_left == pytest.approx(np.linalg.cond(left), rel=1e-3)
    quick = analysis.at("pissa", 3).diagnostics
    assert quick.svd_frobenius_error <= quick.frobenius_error < 1
    exact = analysis.at("pissa", 3, exact=True)
    assert exact.diagnostics.frobenius_error == pytest.approx(exact.diagnostics.svd_frobenius_error, rel=1e-5)
    # Its sketch spans the whole of a matrix as small as this.
    near_best = analysis.at("ldu_lowrank", 3)
    assert near_best.diagnostics.frobenius_error == pytest.approx(near_best.diagnostics.svd_frobenius_error, rel=1e-5)


def test_ranks_above_the_full_one_are_clipped_and_the_full_one_is_measured(checkpoint, options):
    analysis = results_of(checkpoint, options)["convolution"].analysis
    assert (analysis.m, analysis.n) == (6, 12)
    measured = [(m.diagnostics.method, m.diagnostics.pivoting, m.diagnostics.rank) for m in analysis.measurements]
    assert measured == [
        ("ldu", "partial", 3),
        ("ldu", "partial", 6),
        ("ldu", "complete", 3),
        ("ldu", "complete", 6),
        ("pissa", None, 3),
        ("pissa", None, 6),
        ("pissa", None, 3),
        ("pissa", None, 6),
        ("ldu_lowrank", None, 3),
        ("ldu_lowrank", None, 6),
    ]
    assert [m.exact for m in analysis.measurements] == [False] * 6 + [True] * 2 + [False] * 2
    assert {m.diagnostics.dtype for m in analysis.measurements} == {"float64"}
    assert analysis.at("ldu", 64, "partial") is analysis.at("ldu", 6, "partial")


def test_half_precision_is_computed_in_float32(checkpoint, options):
    result = results_of(checkpoint, options)["wide"]
    assert result.dtype == "bfloat16"
    figures = result.analysis.at("ldu", 8, "complete").diagnostics
    (expected, *_) = diagnose(
        weight(10, 25, seed=1, dtype=torch.bfloat16),
        ldu(weight(10, 25, seed=1, dtype=torch.bfloat16), pivoting="complete"),
        [8],
    )
    assert figures.dtype == "float32"
    assert figures.frobenius_error == pytest.approx(expected.frobenius_error, rel=1e-6)


@pytest.mark.parametrize("pivoting", ["partial", "complete", "rook", "randomized"])
def test_curves_are_what_diagnose_measures_rank_by_rank(pivoting):
    W = weight(20, 14, seed=5)
    factors = ldu(W, pivoting=pivoting)
    errors, refit_errors = Examination(Target(W), factors).curve()
    figures = diagnose(W, factors, range(1, 15))
    assert errors == pytest.approx([item.frobenius_error for item in figures], rel=1e-5, abs=1e-6)
    assert refit_errors == pytest.approx([item.refit_frobenius_error for item in figures], rel=1e-5, abs=1e-6)
    best = [item.svd_frobenius_error for item in figures]
    values = torch.linalg.svdvals(W)
    assert best_errors(values) == pytest.approx(best, rel=1e-4, abs=1e-6)
    assert best_errors(values[:5], float(torch.linalg.matrix_norm(W))) == pytest.approx(best[:5], rel=1e-4)


def test_curves_are_samples_of_the_factorization(checkpoint, options):
    analysis = results_of(checkpoint, options)["tall"].analysis
    W = weight(30, 12).to(torch.float32)
    factors = ldu(W, pivoting="complete")
    curve = analysis.curves["complete"]
    assert analysis.curve_ranks == sample_ranks(12)
    assert curve.pivot == [abs(float(factors.diagonal[rank - 1])) for rank in analysis.curve_ranks]
    expected = [item.frobenius_error for item in diagnose(W, factors, analysis.curve_ranks)]
    assert curve.error == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_samples_of_errors_that_are_not_known_are_none():
    assert sampled([0.5, math.nan, 0.25], [1, 2, 3]) == [0.5, None, 0.25]


def test_zero_matrix_has_figures_without_warnings(checkpoint, options):
    analysis = results_of(checkpoint, options)["zero"].analysis
    assert analysis.spectrum.stable_rank == analysis.spectrum.effective_rank == 0
    assert analysis.spectrum.energy == {3: 1.0, 4: 1.0}
    assert analysis.at("ldu", 3, "partial").diagnostics.frobenius_error == 0
    assert analysis.curves["partial"].error == [0.0] * 4
    assert {needed.rank for needed in analysis.needed} == {1}


def test_refit_curve_stops_where_terms_depend_on_each_other():
    doubled = Factorization(torch.ones(4, 3), torch.ones(3), torch.ones(3, 4))
    errors, refit_errors = Examination(Target(torch.ones(4, 4)), doubled).curve()
    assert errors == pytest.approx([0.0, 1.0, 2.0], abs=1e-7)
    assert refit_errors[0] == pytest.approx(0.0, abs=1e-7)
    assert np.isnan(refit_errors[1:]).all()


def test_sampled_ranks_reach_from_one_to_full():
    for k in (2, 3, 97, 5000):
        ranks = sample_ranks(k)
        assert ranks[0] == 1
        assert ranks[-1] == k
        assert ranks == sorted(set(ranks))
        assert len(ranks) <= 96


def test_spectrum_of_equal_values_has_full_effective_rank():
    spectrum = summarize_spectrum(torch.full((7,), 2.0), [1, 7])
    assert spectrum.effective_rank == pytest.approx(7)
    assert spectrum.stable_rank == pytest.approx(7)
    assert spectrum.energy == pytest.approx({1: 1 / 7, 7: 1.0})


@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_weights_are_alive_than_threads(checkpoint, options, monkeypatch, threads):
    alive = weakref.WeakSet()
    most = []
    with open_checkpoint(checkpoint) as reader:
        load = reader.load

        def watched(name):
            tensor = load(name)
            alive.add(tensor)
            most.append(len(alive))
            return tensor

        monkeypatch.setattr(reader, "load", watched)
        list(survey(reader, dataclasses.replace(options, threads=threads)))
    assert len(most) == len(ANALYZED) + 1  # "bad" has to be read to be known
    assert max(most) <= threads


def test_torch_threads_are_what_they_were_even_if_the_survey_is_dropped(checkpoint, options):
    before = torch.get_num_threads()
    with open_checkpoint(checkpoint) as reader:
        for result in survey(reader, options):
            if result.analysis is not None:
                break
    del result
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("select", "threads"), [("tall", 2), ("tall|wide", 1)])
def test_torch_and_blas_share_the_threads(checkpoint, options, monkeypatch, select, threads):
    def threads_now():
        return {torch.get_num_threads()} | {
            pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"
        }

    seen = []
    monkeypatch.setattr(survey_module, "analyze_matrix", lambda *_: seen.append(threads_now()))
    results_of(checkpoint, dataclasses.replace(options, threads=2, select=f"^({select})$"))
    assert seen == [{threads}] * len(select.split("|"))


def test_threads_do_not_change_the_figures(checkpoint, options):
    one, many = (results_of(checkpoint, dataclasses.replace(options, threads=threads)) for threads in (1, 4))
    for name in ANALYZED:
        assert one[name].analysis.curves == many[name].analysis.curves
        assert [m.diagnostics for m in one[name].analysis.measurements] == [
            m.diagnostics for m in many[name].analysis.measurements
        ]


def test_a_tensor_that_cannot_be_read_does_not_stop_the_others(checkpoint, options, monkeypatch):
    with open_checkpoint(checkpoint) as reader:
        load = reader.load

        def damaged(name):
            if name == "tall":
                raise CheckpointError("disk gone")
            return load(name)

        monkeypatch.setattr(reader, "load", damaged)
        results = {result.name: result for result in survey(reader, options)}
    assert results["tall"].reason == "error: disk gone"
    assert {name for name, result in results.items() if result.analysis is not None} == ANALYZED - {"tall"}


def test_a_failure_of_lapack_is_a_reason(checkpoint, options, monkeypatch):
    def fail(_matrix, _options):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr("lowrank_ldu.analysis.engine.survey.analyze_matrix", fail)
    with pytest.raises(NothingToAnalyzeError, match="did not converge"):
        analyze_checkpoint(checkpoint, options)


def test_progress_counts_up_to_all_of_the_work(checkpoint, options):
    states = []
    with open_checkpoint(checkpoint) as reader:
        list(survey(reader, options, states.append))
    assert states[0].finished == 0
    assert states[0].running == ("tall",)
    assert [states[-1].finished, states[-1].total, states[-1].fraction] == [6, 6, 1.0]
    assert [state.fraction for state in states] == sorted(state.fraction for state in states)


def test_results_come_in_the_order_of_the_checkpoint(checkpoint, options):
    with open_checkpoint(checkpoint) as reader:
        names = [info.name for info in reader.tensors]
    assert [result.name for result in analyze_checkpoint(checkpoint, options).results] == names


def test_what_is_not_a_tensor_is_listed(tmp_path, options):
    path = tmp_path / "model.pt"
    torch.save({"weight": weight(4, 4), "epoch": 3}, path)
    (result,) = analyze_checkpoint(path, options).skipped
    assert (result.name, result.dtype, result.reason) == ("epoch", "int", "not a plain tensor")


def test_names_select_and_exclude(checkpoint):
    options = SurveyOptions(ranks=(2,), select="^(tall|wide)$", exclude="i", threads=1)
    results = results_of(checkpoint, options)
    assert {name for name, result in results.items() if result.analysis is not None} == {"tall"}
    assert results["wide"].reason == "its name is excluded"
    assert results["zero"].reason == "its name does not match the selection"


def test_nothing_to_analyze_says_why(tmp_path, options):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.full((3, 3), torch.nan), "b": weight(3), "c": weight(2)}, path)
    with pytest.raises(NothingToAnalyzeError, match=r"none of its 3 tensors.*'b' and 1 more: 1-D"):
        analyze_checkpoint(path, options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ranks": (0,)}, "rank is 0"),
        ({"ranks": (True,)}, "rank is True"),
        ({"ranks": ()}, "ranks is empty"),
        ({"pivoting": ("none",)}, "pivoting is 'none'; accepted: partial, complete, rook, randomized"),
        ({"pivoting": ()}, "pivoting is empty"),
        ({"select": "("}, "select is '\\(', not a regular expression"),
        ({"exclude": "["}, "exclude is"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808; accepted: at most"),
        ({"threads": 0}, "threads is 0"),
        ({"mode": "quick"}, "mode is 'quick'; accepted: fast, exact, cheap"),
        ({"dtype": "float16"}, "dtype is 'float16'; accepted: float32, float64"),
        ({"targets": ()}, "targets is empty"),
        ({"targets": (0.5, 0.0)}, "targets holds 0.0; accepted: relative errors"),
        ({"targets": (float("nan"),)}, "targets holds nan"),
        ({"targets": (0.5, 1.0)}, "targets holds 1.0; accepted: relative errors above 0 and below 1"),
    ],
)
def test_options_out_of_range_are_refused(given, message):
    with pytest.raises(OptionError, match=message):
        SurveyOptions(**given)


def test_options_are_ordered_and_unique():
    options = SurveyOptions(ranks=(8, 2, 8), pivoting=("rook", "partial", "rook"), targets=(0.1, 0.5, 0.1))
    assert options.ranks == (2, 8)
    assert options.targets == (0.5, 0.1)
    assert options.pivoting == ("rook", "partial")


def test_workers_are_as_many_as_memory_holds(checkpoint):
    with open_checkpoint(checkpoint) as reader:
        tensors = [info for info in reader.tensors if info.name in {"tall", "wide"}]
    need = 12 * 8 * 30 * 12
    assert plan(tensors, 8, memory=2**40) == Layout(matrices=2, threads_each=4)
    assert plan(tensors, 8, memory=2 * need) == Layout(matrices=1, threads_each=8)
    assert plan(tensors, 1, memory=0) == Layout(matrices=1, threads_each=1)
    assert plan([], 2, memory=2**40) == Layout(matrices=1, threads_each=2)


def test_the_memory_of_a_container_is_its_limit(monkeypatch, tmp_path):
    machine = environment.physical_memory()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(environment, "_LIMITS", (tmp_path / "missing", limit))
    for text, expected in (("4096\n", 4096), ("max\n", machine), (f"{2**62}\n", machine)):
        limit.write_text(text)
        assert environment.physical_memory() == expected


def test_parts_of_a_tensor_are_worked_on_together_and_read_once(tmp_path, monkeypatch):
    """Queries are larger than keys and values, and two layers are alike: the largest first would take them apart."""
    path = tmp_path / "model.safetensors"
    config = {"model_type": "phi3", "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    names = [f"model.layers.{layer}.self_attn.qkv_proj.weight" for layer in (0, 1)]
    save_file({name: weight(32, 16, seed=place) for place, name in enumerate(names)}, path)
    read = []
    with open_weights(path) as reader:
        stored = reader._reader
        load = stored.load
        monkeypatch.setattr(stored, "load", lambda name: read.append(name) or load(name))
        results = list(survey(reader, SurveyOptions(ranks=(4,), threads=1)))
    assert [result.name for result in results] == [f"{name}[{part}]" for name in names for part in "qkv"]
    assert read == names


def test_real_weights_overshoot_as_documented():
    options = SurveyOptions(mode="exact", ranks=(64,), select=r"layer\.0\.attention\.self.*weight", threads=1)
    analysis = analyze_checkpoint(minilm.checkpoint(), options)
    assert len(analysis.matrices) == 3
    assert len(analysis.results) == 104
    for _, matrix in analysis.matrices:
        partial, complete = (matrix.at("ldu", 64, pivoting).diagnostics for pivoting in ("partial", "complete"))
        assert 1.8 < partial.frobenius_error < 2.6
        assert 1.3 < complete.frobenius_error < 1.7
        assert 0.5 < partial.svd_frobenius_error < partial.refit_frobenius_error < 1
        assert matrix.at("ldu", 384, "partial").diagnostics.frobenius_error < 1e-5
