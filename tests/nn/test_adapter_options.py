"""The options of an adapter: one object, checked once, that every door takes and shows."""

import ast
import dataclasses
import inspect
import json
import pydoc
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import lowrank_ldu
from lowrank_ldu.decomposition import PIVOTING
from lowrank_ldu.nn import (
    BASES,
    CORES,
    INITIALIZATIONS,
    PARAMETRIZATIONS,
    AdapterOptions,
    LDULayer,
    inject,
    lowrank_layers,
)
from lowrank_ldu.nn.options import LATER_OPTIONS, PIVOTINGS

PACKAGE = Path(lowrank_ldu.__file__).parent
FIELDS = [field.name for field in dataclasses.fields(AdapterOptions)]


@st.composite
def any_options(draw):
    basis = draw(st.sampled_from(BASES))
    core = draw(st.sampled_from(CORES))
    at_zero = core != "diagonal" or basis == "fitted"
    size = draw(st.integers(1, 100)) if core == "block" else None
    ranks = st.integers(1, 10**6) if size is None else st.integers(1, 1000).map(lambda groups: groups * size)
    return AdapterOptions(
        rank=draw(st.none() | ranks),
        alpha=draw(st.none() | st.floats(min_value=0, exclude_min=True, allow_infinity=False)),
        init="regular_ldu" if at_zero else draw(st.sampled_from(INITIALIZATIONS)),
        preserving=at_zero or draw(st.booleans()),
        pivoting=draw(st.sampled_from(PIVOTINGS if basis == "ldu" else PIVOTING)),
        basis=basis,
        parametrization=draw(st.sampled_from(PARAMETRIZATIONS)),
        train_sigma=draw(st.booleans()),
        seed=draw(st.integers(0, 2**32 - 1 if basis == "random" else 2**63 - 1)),
        core=core,
        block_size=size,
        basis_digest=draw(st.text("abz09_.:-", min_size=1, max_size=128)) if basis == "fitted" else None,
    )


@given(any_options())
def test_options_go_through_json_and_come_back(options):
    text = json.dumps(options.to_json(), allow_nan=False)
    again = AdapterOptions.from_json(json.loads(text))
    assert again == options
    assert hash(again) == hash(options)
    assert json.dumps(again.to_json()) == text
    later = [name for name in LATER_OPTIONS if getattr(options, name) == getattr(AdapterOptions(), name)]
    assert list(options.to_json()) == [name for name in FIELDS if name not in later]


@given(any_options(), st.integers(1, 10**6))
def test_the_options_of_a_layer_have_rank_and_alpha(options, largest):
    if options.rank is not None and options.rank > largest:
        with pytest.raises(ValueError, match=f"rank is {options.rank}; accepted: an integer from 1 to {largest}"):
            options.for_layer(largest)
        return
    if options.core == "block" and (options.rank or largest) % options.block_size:
        with pytest.raises(ValueError, match=f"block_size is {options.block_size} at rank {largest}; accepted: a div"):
            options.for_layer(largest)
        return
    own = options.for_layer(largest)
    assert own.rank == (options.rank or largest)
    assert own.alpha == (options.alpha or float(own.rank))
    assert own.for_layer(largest) == own
    assert dataclasses.replace(own, rank=options.rank, alpha=options.alpha) == options


@given(any_options(), any_options())
def test_factors_are_shared_where_what_determines_them_is_equal(one, other):
    determine = ("rank", "pivoting", "basis", "parametrization", "seed", "core", "block_size", "basis_digest")
    equal = all(getattr(one, name) == getattr(other, name) for name in determine)
    assert (one.factors == other.factors) == equal
    same = dataclasses.replace(one, alpha=other.alpha, train_sigma=other.train_sigma)
    if not one.starts_at_zero:
        same = dataclasses.replace(same, init=other.init, preserving=other.preserving)
    assert same.factors == one.factors == one.factors.factors


def test_numbers_of_other_libraries_become_those_of_python():
    options = AdapterOptions(rank=np.int64(4), alpha=np.float32(2), train_sigma=np.False_, seed=np.int32(3))
    assert json.dumps(options.to_json()).startswith('{"rank": 4, "alpha": 2.0, "init": "regular_ldu"')
    assert options == AdapterOptions(rank=4, alpha=2, train_sigma=False, seed=3)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"rank": 0}, ValueError, "rank is 0; accepted: an integer from 1 on"),
        ({"rank": True}, TypeError, "rank is True; accepted: an integer from 1 on"),
        ({"alpha": 0}, ValueError, "alpha is 0; accepted: a positive finite number"),
        ({"alpha": 10**400}, ValueError, "alpha is 1000.*; accepted: a positive finite number"),
        ({"init": "random"}, ValueError, "init is 'random'; accepted: 'regular_ldu'"),
        ({"preserving": None}, TypeError, "preserving is None; accepted: True or False"),
        ({"pivoting": "none"}, ValueError, "pivoting is 'none'; accepted: 'partial'"),
        ({"basis": ["ldu"]}, ValueError, r"basis is \['ldu'\]; accepted: 'ldu', 'svd', 'random'"),
        ({"parametrization": "polar"}, ValueError, "parametrization is 'polar'; accepted: 'diagonal'"),
        ({"train_sigma": 1}, TypeError, "train_sigma is 1; accepted: True or False"),
        ({"seed": -1}, ValueError, f"seed is -1; accepted: an integer from 0 to {2**63 - 1}"),
        ({"seed": 2**32, "basis": "random"}, ValueError, f"accepted: an integer from 0 to {2**32 - 1}"),
        ({"lora_alpha": 8}, TypeError, "unexpected keyword argument 'lora_alpha': it is alpha here"),
        ({"pivot": "rook"}, TypeError, "unexpected keyword argument 'pivot': accepted: .*pivoting"),
    ],
)
def test_every_door_refuses_the_same_values(fields, error, message):
    doors = (
        lambda: AdapterOptions(**fields),
        lambda: LDULayer(nn.Linear(4, 3), **fields),
        lambda: inject(nn.Sequential(nn.Linear(4, 3)), ["0"], **fields),
        lambda: dataclasses.replace(AdapterOptions(), **fields),
    )
    for door in doors:
        with pytest.raises(error, match=message):
            door()


@pytest.mark.parametrize(
    "entry", [None, [], {}, {"rank": 4}, AdapterOptions().to_json() | {"more": 1}], ids=lambda entry: str(entry)[:20]
)
def test_an_entry_has_all_the_fields_and_no_others(entry):
    with pytest.raises(ValueError, match="the options are .*; accepted: an object with rank, alpha, init"):
        AdapterOptions.from_json(entry)


def test_one_object_or_keywords():
    options = AdapterOptions(rank=2, init="normal_0_1", seed=5)
    torch.manual_seed(0)
    base = nn.Linear(6, 4)
    layers = [LDULayer(base, options=options), LDULayer(base, 2, init="normal_0_1", seed=5)]
    assert layers[0].options == layers[1].options == options.for_layer(4)
    assert torch.equal(layers[0].adapter.initial_diagonal, layers[1].adapter.initial_diagonal)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))
    inject(model, ["0", "1"], options=options)
    assert [layer.options.seed for _, layer in lowrank_layers(model)] == [5, 6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"options": {"rank": 2}}, "options is {'rank': 2}; accepted: AdapterOptions, or its fields by keyword"),
        ({"options": AdapterOptions(), "seed": 1}, "options is given beside seed; accepted: options, or its fields"),
        ({"options": AdapterOptions(), "rank": 1, "init": "ones"}, "options is given beside rank, init; accepted"),
    ],
)
def test_not_both(arguments, message):
    for door in (LDULayer, lambda layer, **given: inject(nn.Sequential(layer), ["0"], **given)):
        with pytest.raises(TypeError, match=message):
            door(nn.Linear(4, 3), **arguments)


@pytest.mark.parametrize("door", [LDULayer, inject, AdapterOptions])
def test_help_and_completion_show_the_fields(door):
    shown = inspect.signature(door).parameters
    for field in dataclasses.fields(AdapterOptions):
        assert shown[field.name].default == field.default
    assert not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in shown.values())
    text = pydoc.render_doc(door, renderer=pydoc.plaintext)
    assert "train_sigma: 'bool' = True" in text
    assert "AdapterOptions" in text


def listings(tree):
    """Names of the functions and classes that have two of the options among their parameters or annotated fields."""
    for node in ast.walk(tree):
        names = set()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            arguments = node.args
            names = {each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
        elif isinstance(node, ast.ClassDef):
            names = {each.target.id for each in node.body if isinstance(each, ast.AnnAssign)}
        elif isinstance(node, ast.Call):
            names = {each.arg for each in node.keywords}
        elif isinstance(node, ast.Dict):
            names = {each.value for each in node.keys if isinstance(each, ast.Constant)}
        elif isinstance(node, ast.Tuple | ast.List | ast.Set):
            names = {each.value for each in node.elts if isinstance(each, ast.Constant)}
        if {"train_sigma", "preserving"} <= names:
            yield getattr(node, "name", type(node).__name__)


def test_no_option_is_listed_in_more_than_two_places():
    paths = sorted(PACKAGE.rglob("*.py"))
    found = [name for path in paths for name in listings(ast.parse(path.read_text(encoding="utf-8")))]
    assert sorted(found) == ["AdapterOptions", "LolduConfig"]


def test_options_in_the_place_of_the_rank():
    accepted = re.escape("accepted: an integer, or options=AdapterOptions(...)")
    with pytest.raises(TypeError, match=accepted):
        LDULayer(nn.Linear(4, 3), AdapterOptions(rank=2))
    with pytest.raises(TypeError, match=accepted):
        inject(nn.Sequential(nn.Linear(4, 3)), ["0"], AdapterOptions(rank=2))


def test_the_part_of_the_factors_is_that_of_options_made_so():
    options = AdapterOptions(rank=2, alpha=3.0, init="zeros", pivoting="rook", basis="ldu", train_sigma=False, seed=5)
    assert options.factors == AdapterOptions(rank=2, pivoting="rook", basis="ldu", seed=5)
    assert options.init == "zeros"
