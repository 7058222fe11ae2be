"""The claims: verdicts on matrices whose answer is known by construction, and pages that no name can harm."""

import dataclasses
import json
import math

import minilm
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matrices import any_finite
from pages import Page
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from weights import HOSTILE, weight

from lowrank_ldu import gram_matrix, ldu
from lowrank_ldu.adapters import save_adapter
from lowrank_ldu.analysis import SurveyOptions, analyze_checkpoint, examine_claims, verdict, write_claims
from lowrank_ldu.analysis.claims.report import claims_json, render_claims
from lowrank_ldu.analysis.measures.initialization_change import initialization_changes
from lowrank_ldu.diagnostics import stored_numbers
from lowrank_ldu.errors import OptionError
from lowrank_ldu.initialization import INITIALIZATIONS, initial_diagonal
from lowrank_ldu.nn import LDULayer

RANK = 4


def orthogonal():
    return torch.linalg.qr(weight(24, 24, dtype=torch.float64))[0]


def diagonal():
    """The largest entries first, so that the leading terms are the best ones."""
    return torch.diag(torch.arange(12.0, 0.0, -1.0))


def overshooting():
    """Rows agree in the first columns and oppose each other in the last: a pivot row stands for its opposite."""
    first = torch.eye(RANK).repeat(2, 1)
    last = 100 * torch.cat([torch.eye(RANK), -torch.eye(RANK)])
    return torch.cat([first, last], dim=1)


def nearly_low_rank():
    return weight(20, RANK) @ weight(RANK, 15, seed=1) + 1e-4 * weight(20, 15, seed=2)


def identity():
    return torch.eye(9)


MAKERS = {make.__name__: make for make in (orthogonal, diagonal, overshooting, nearly_low_rank, identity)}


def examined(folder, state, **options):
    path = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    analysis = analyze_checkpoint(path, SurveyOptions(**{"ranks": (RANK,), "mode": "exact", "threads": 1, **options}))
    return analysis, claims_of(analysis)


def claims_of(analysis):
    return {claim.name: claim for claim in examine_claims(analysis)}


def verdicts(claim):
    return {(finding.test, finding.rank): finding.verdict for finding in claim.findings}


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """The analysis and the claims of each known matrix alone."""
    return {name: examined(tmp_path_factory.mktemp(name), {name: make()}) for name, make in MAKERS.items()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("orthogonal", "does not hold"),  # W is orthogonal, its triangular factors are not
        ("nearly_low_rank", "does not hold"),
        ("diagonal", "holds"),
        ("identity", "holds"),
    ],
)
def test_orthogonality(known, name, expected):
    assert set(verdicts(known[name][1]["orthogonality"]).values()) == {expected}


def test_orthogonal_terms_can_still_be_worse_than_zero(known):
    claims = known["overshooting"][1]
    assert verdicts(claims["orthogonality"])["L and U", RANK] == "holds"
    assert verdicts(claims["structure"])["partial pivoting", RANK] == "does not hold"


@pytest.mark.parametrize(
    ("name", "partial", "refit"),
    [
        ("diagonal", "holds", "holds"),
        ("nearly_low_rank", "holds", "holds"),
        ("overshooting", "does not hold", "does not hold"),
        ("identity", "holds", "holds"),  # 4 of 9 equal terms are as good as any
    ],
)
def test_structure(known, name, partial, refit):
    found = verdicts(known[name][1]["structure"])
    assert found["partial pivoting", RANK] == partial
    assert found["partial pivoting, refitted diagonal", RANK] == refit


def test_worse_than_zero_is_counted(known):
    findings = {finding.test: finding for finding in known["overshooting"][1]["structure"].findings}
    (case,) = findings["partial pivoting"].cases
    # Half of the last columns is wrong by twice its size: 4 errors of 200 beside 8 entries of 100 and 8 of 1.
    assert case.figures["error"] == pytest.approx(math.sqrt(4 * 200**2 / (8 * 100**2 + 8)))
    assert findings["partial pivoting"].counts == {"worse_than_zero": 1}
    assert findings["partial pivoting, refitted diagonal"].counts == {"worse_than_zero": 0}
    assert "worse than zero in 1 of 1" in findings["partial pivoting"].measured


def test_complete_pivoting_mends_what_column_order_spoiled(known):
    assert verdicts(known["overshooting"][1]["structure"])["complete pivoting", RANK] == "holds"


@pytest.mark.parametrize("name", MAKERS)
def test_the_near_best_ldu_holds_what_the_best_terms_hold(known, name):
    findings = {finding.test: finding for finding in known[name][1]["structure"].findings}
    assert findings["near-best LDU"].verdict == "holds"
    (near_best,) = findings["near-best LDU"].cases
    assert near_best.figures["error"] == pytest.approx(near_best.figures["svd_error"], rel=1e-4, abs=1e-6)
    for pivoting in ("partial", "complete"):
        (core,), (refit,) = (
            findings[f"{pivoting} pivoting, {what}"].cases for what in ("best core", "refitted diagonal")
        )
        assert near_best.figures["error"] <= core.figures["error"] + 1e-6
        assert core.figures["error"] <= refit.figures["error"] + 1e-6


def test_structure_is_the_formula_of_its_rule(known):
    for _, claims in known.values():
        for finding in claims["structure"].findings:
            for case in finding.cases:
                held, best = 1 - case.figures["error"] ** 2, 1 - case.figures["svd_error"] ** 2
                assert case.holds == (held >= best / 2)
                assert case.figures["svd_error"] <= case.figures["error"] + 1e-6


@pytest.mark.parametrize("name", MAKERS)
def test_preserving_form_changes_nothing(known, name):
    for finding in known[name][1]["initialization"].findings:
        if finding.test == "preserving form":
            assert finding.verdict == "holds"
            assert all(set(case.figures.values()) == {0.0} for case in finding.cases)


@pytest.mark.parametrize("name", MAKERS)
def test_algorithm_1_changes_the_layer(known, name):
    for finding in known[name][1]["initialization"].findings:
        if finding.test == "Algorithm 1 as written":
            assert finding.verdict == "does not hold"
            for case in finding.cases:
                assert set(case.figures) == set(INITIALIZATIONS)
                assert case.figures["regular_ldu"] == 0.0
                assert case.figures["normal_0_1"] > 1e-3


def test_identity_is_changed_by_no_start_that_is_its_own_diagonal(known):
    for finding in known["identity"][1]["initialization"].findings:
        (case,) = finding.cases
        for init in ("regular_ldu", "constant_zmean", "ones", "normal_zmean_zstd"):
            assert case.figures[init] == 0.0


@pytest.mark.parametrize("preserving", [True, False])
@pytest.mark.parametrize("init", INITIALIZATIONS)
def test_starts_are_those_of_the_layer(init, preserving):
    base = nn.Linear(14, 10, dtype=torch.float64)
    layer = LDULayer(base, RANK, init=init, preserving=preserving, seed=3)
    norm = float(torch.linalg.norm(base.weight))
    factors = ldu(base.weight.detach())
    (changes,) = initialization_changes(factors.diagonal, gram_matrix(factors.left, factors.right), [RANK], norm, 3)
    measured = changes[init].preserving if preserving else changes[init].algorithm_1
    with torch.no_grad():
        assert measured == pytest.approx(float(torch.linalg.norm(layer.delta_weight())) / norm, rel=1e-9, abs=0)


@given(any_finite(dtypes=(np.float32,)), st.sampled_from(INITIALIZATIONS), st.data())
def test_change_is_that_of_the_weights(W, init, data):
    rank = data.draw(st.integers(1, min(W.shape)))
    factors = ldu(torch.from_numpy(W))
    norm = float(np.linalg.norm(W.astype(np.float64)))
    (changes,) = initialization_changes(factors.diagonal, gram_matrix(factors.left, factors.right), [rank], norm, 0)
    leading = factors.truncate(rank)
    start = initial_diagonal(init, leading.diagonal, 0)
    step, left, right = (
        part.double().numpy() for part in (start.double() - leading.diagonal, leading.left, leading.right)
    )
    if not np.isfinite(step).all():  # a draw about huge pivots that float32 cannot hold
        assert changes[init].algorithm_1 == changes[init].preserving == math.inf
        return
    assert changes[init].preserving == 0.0
    if norm == 0.0:
        assert changes[init].algorithm_1 == (math.inf if step.any() else 0.0)
        return
    dense = np.linalg.norm((left * step) @ right)
    # Where terms cancel, the sum over their Gram matrix has lost half of its digits relative to their sizes.
    sizes = np.sum(np.abs(step) * np.linalg.norm(left, axis=0) * np.linalg.norm(right, axis=1))
    assert changes[init].algorithm_1 * norm == pytest.approx(dense, rel=1e-6, abs=1e-6 * sizes)


def with_seconds(analysis, **seconds):
    """The same analysis as it comes from a machine on which each method takes these seconds."""
    tensors = []
    for tensor in analysis.results:
        measurements = [
            dataclasses.replace(item, seconds=seconds.get(item.diagnostics.method, 1.0))
            for item in tensor.analysis.measurements
        ]
        matrix = dataclasses.replace(tensor.analysis, measurements=measurements, svd_seconds=seconds["svd"])
        tensors.append(dataclasses.replace(tensor, analysis=matrix))
    return dataclasses.replace(analysis, results=tensors)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ((1.0, 2.0, 3.0), ("holds", "holds", "holds")),
        ((2.0, 1.0, 3.0), ("holds", "does not hold", "holds")),
        ((2.0, 1.0, 0.5), ("does not hold", "does not hold", "does not hold")),
        ((1.0, 1.0, 1.0), ("does not hold", "does not hold", "does not hold")),
    ],
)
def test_speed_follows_from_the_seconds(known, seconds, expected):
    own, quick, exact = seconds
    claim = claims_of(with_seconds(known["diagonal"][0], ldu=own, pissa=quick, svd=exact))["speed"]
    assert verdicts(claim) == dict(
        zip(
            [("LDU against exact SVD", RANK), ("LDU against quick PiSSA", RANK), ("full LDU against full SVD", None)],
            expected,
            strict=True,
        )
    )
    assert claim.findings[0].cases[0].figures == {
        "ldu_seconds": own,
        "svd_seconds": exact,
        "svd_over_ldu": exact / own,
    }


def test_storage(known):
    for analysis, claims in known.values():
        ((_, matrix),) = analysis.matrices
        k = min(matrix.m, matrix.n)
        for finding in claims["storage"].findings:
            (case,) = finding.cases
            rank = finding.rank or k
            pair = rank * (matrix.m + matrix.n)
            assert case.figures["lora_numbers"] == pair
            expected = {
                "trained": rank + 1,
                "adapter file": 2 * rank + 66,
                "memory beside the weight": pair + rank + 1,
            }[finding.test]
            assert case.figures["numbers"] == expected
            assert case.holds == (expected <= pair / 2)


def test_only_memory_grows_with_the_matrix(tmp_path):
    _, claims = examined(tmp_path, {"w": weight(90, 60)})
    assert verdicts(claims["storage"]) == {
        ("trained", RANK): "holds",
        ("adapter file", RANK): "holds",
        ("memory beside the weight", RANK): "does not hold",
        ("trained", None): "holds",
        ("adapter file", None): "holds",
        ("memory beside the weight", None): "does not hold",
    }


def test_stored_numbers_are_those_in_the_file(tmp_path):
    model = nn.Sequential(LDULayer(nn.Linear(20, 16), 7))
    save_adapter(model, tmp_path)
    with safe_open(tmp_path / "adapter.safetensors", "pt") as file:
        numbers = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118
    assert numbers == stored_numbers(7)


def test_verdict_counts_matrices(tmp_path):
    _, claims = examined(tmp_path, {"a": diagonal(), "b": weight(12, 12), "c": identity()})
    assert verdicts(claims["orthogonality"])["L and U", RANK] == "holds for 2 of 3 matrices"


@given(st.lists(st.booleans()))
def test_verdict_is_one_of_four(outcomes):
    held = sum(outcomes)
    expected = {
        (False, False): f"holds for {held} of {len(outcomes)} matrices",
        (True, False): "holds",
        (False, True): "does not hold",
        (True, True): "not tested",
    }[held == len(outcomes), held == 0]
    assert verdict(outcomes) == expected


@pytest.mark.parametrize("exponent", [-40, 3, 40])
def test_verdicts_do_not_depend_on_the_unit(tmp_path, known, exponent):
    for name in ("nearly_low_rank", "overshooting", "orthogonal"):
        scaled = examined(tmp_path, {name: 2.0**exponent * MAKERS[name]()})[1]
        for claim in ("orthogonality", "structure", "storage"):
            assert verdicts(scaled[claim]) == verdicts(known[name][1][claim])


def test_rank_that_no_matrix_exceeds_is_not_tested(tmp_path):
    _, claims = examined(tmp_path, {"w": weight(5, 4)}, ranks=(2, 64))
    assert set(verdicts(claims["structure"]).values()) >= {"not tested"}
    for claim in claims.values():
        for finding in claim.findings:
            assert (finding.verdict == "not tested") == (finding.rank == 64)
            assert (finding.measured == "") == (finding.rank == 64)


def test_options_of_another_analysis_are_refused_before_it():
    steps = []
    refused = (({"mode": "fast"}, OptionError), ({"times": False}, OptionError), ({"pivoting": "rook"}, ValueError))
    for options, error in refused:
        with pytest.raises(error, match="accepted: an analysis with"):
            examine_claims({"w": weight(5, 4)}, progress=steps.append, **options)
    assert steps == []


def test_without_the_papers_pivoting_there_is_nothing_to_test(tmp_path):
    with pytest.raises(ValueError, match="pivoting is rook; accepted: an analysis with partial pivoting"):
        examined(tmp_path, {"w": weight(5, 4)}, pivoting=("rook",))


@pytest.fixture(scope="module")
def written(checkpoint, options, tmp_path_factory):
    analysis = analyze_checkpoint(checkpoint, options)
    claims = examine_claims(analysis)
    folder = tmp_path_factory.mktemp("claims")
    write_claims(claims, analysis, folder)
    return analysis, claims, folder


def test_json_is_strict_and_holds_every_figure(written):
    def refuse(constant):
        raise AssertionError(constant)

    analysis, claims, folder = written
    content = json.loads((folder / "claims.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert [entry["claim"] for entry in content["claims"]] == [claim.name for claim in claims]
    left = {(tensor["name"], tensor["reason"]) for tensor in content["tensors"] if tensor["analysis"] is None}
    assert left == {(tensor.name, tensor.reason) for tensor in analysis.skipped}
    for entry, claim in zip(content["claims"], claims, strict=True):
        assert (entry["statement"], entry["rule"]) == (claim.statement, claim.rule)
        for found, finding in zip(entry["findings"], claim.findings, strict=True):
            assert (found["test"], found["rank"], found["verdict"]) == (finding.test, finding.rank, finding.verdict)
            assert [case["tensor"] for case in found["matrices"]] == [case.tensor for case in finding.cases]
            for case, expected in zip(found["matrices"], finding.cases, strict=True):
                assert {name: float(value) for name, value in case["figures"].items()} == expected.figures
    assert HOSTILE in {case["tensor"] for case in content["claims"][0]["findings"][0]["matrices"]}


def test_page_is_whole_loads_nothing_and_shows_hostile_names_as_text(written):
    _, claims, folder = written
    source = (folder / "claims.html").read_text(encoding="utf-8")
    page = Page(source)
    assert page.elements.count("script") == 1  # the sorting of the tables
    assert not {"link", "img", "iframe", "object", "embed", "form"} & set(page.elements)
    assert not [name for name, _ in page.attributes if name in {"src", "href", "action", "data"}]
    assert "\x1b" not in source
    assert HOSTILE.replace("\x1b", "\\x1b") in page.text
    text = "".join(page.text)
    for claim in claims:
        assert claim.statement in text
        assert claim.rule in text
        for finding in claim.findings:
            assert finding.measured in text


def test_hostile_path_and_patterns_are_text(written):
    analysis, claims, _ = written
    options = dataclasses.replace(analysis.options, select="<i>x</i>|.", exclude="<u>y</u>")
    hostile = dataclasses.replace(analysis, checkpoint="<b>dir</b>/<i>model</i>.pt", options=options)
    page = Page(render_claims(claims, hostile))
    assert not {"b", "i", "u"} & set(page.elements)
    assert json.loads(claims_json(claims, hostile))["options"]["exclude"] == "<u>y</u>"


def test_real_weights():
    """What docs/claims.md says of all-MiniLM-L6-v2, on four of its matrices; no times."""
    options = SurveyOptions(
        ranks=(64,), mode="exact", select=r"layer\.[25]\.attention\.self\.(query|value)\.weight", threads=1
    )
    claims = claims_of(analyze_checkpoint(minilm.checkpoint(), options))
    assert set(verdicts(claims["orthogonality"]).values()) == {"does not hold"}
    structure = verdicts(claims["structure"])
    assert structure.pop(("near-best LDU", 64)) == "holds"
    assert set(structure.values()) == {"does not hold"}
    worse = {finding.test: finding.counts["worse_than_zero"] for finding in claims["structure"].findings}
    assert worse == {
        "partial pivoting": 4,
        "partial pivoting, refitted diagonal": 0,
        "partial pivoting, best core": 0,
        "complete pivoting": 4,
        "complete pivoting, refitted diagonal": 0,
        "complete pivoting, best core": 0,
        "near-best LDU": 0,
    }
    for finding in claims["initialization"].findings:
        changes = finding.medians.values()
        if finding.test == "preserving form":
            assert set(changes) == {0.0}
        else:
            own, *others = sorted(changes)
            assert own == 0.0
            assert min(others) > 0.9
