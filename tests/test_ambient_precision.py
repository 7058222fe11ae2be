"""Factors, figures and fits are the same whatever torch's autocast says around the call."""

import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch
from fitted_models import batches, loss, model

from lowrank_ldu import decomposition, diagnostics, fitting
from lowrank_ldu.backend import full_precision
from lowrank_ldu.decomposition import (
    PIVOTING,
    estimate_error,
    gram_matrix,
    ldu,
    ldu_at_pivots,
    ldu_lowrank,
    ldu_of_product,
    pissa,
    svd,
)
from lowrank_ldu.diagnostics import Examination, Target, diagnose, express
from lowrank_ldu.fitting import SOURCES, choose_pivots, fit_basis, input_moments, loss_gradients, target_layers
from lowrank_ldu.fitting.factoring import BASIS_METHODS

W = torch.from_numpy(np.random.default_rng(0).standard_normal((24, 18)).astype(np.float32))
D = W.flip(0) + 1
FACTORS = ldu(W, 6)
CALLS = {
    **{f"ldu, {pivoting}": (lambda pivoting=pivoting: ldu(W, 6, pivoting=pivoting)) for pivoting in PIVOTING},
    "ldu_at_pivots": lambda: ldu_at_pivots(W, range(6)),
    "ldu_lowrank": lambda: ldu_lowrank(W, 6),
    "ldu_lowrank, given pivots": lambda: ldu_lowrank(W, 6, pivots=(range(6), range(6))),
    "ldu_of_product": lambda: ldu_of_product(W[:, :6], W[:6]),
    "svd": lambda: svd(W, 6),
    "svd, randomized": lambda: svd(W, 6, niter=1),
    "pissa": lambda: pissa(W, 6, 1),
    "gram_matrix": lambda: gram_matrix(FACTORS.left, FACTORS.right),
    "estimate_error": lambda: estimate_error(W, FACTORS),
    **{name: (lambda name=name: getattr(FACTORS, name)(W)) for name in ("residual", "refit", "fit")},
    "reconstruct": FACTORS.reconstruct,
    "diagnose": lambda: diagnose(W, FACTORS, range(1, 7)),
    "Examination": lambda: (made := Examination(Target(W), FACTORS)) and [made.gram, *made.curve(), made.at(3)],
    "express": lambda: express(Target(D), FACTORS, [3, 6], [1, 2]),
    "loss_gradients": lambda: dict(loss_gradients(network := model(), _layers(network), batches(), loss)),
    "input_moments": lambda: dict(input_moments(network := model(), _layers(network), batches(), loss)),
    **{
        f"choose_pivots, {source}, {core}": (
            lambda source=source, core=core: choose_pivots(
                model(), batches(), loss, budget=30, core=core, source=source
            )
        )
        for source in SOURCES
        for core in ("dense", "diagonal")
    },
    **{
        f"fit_basis, {source}, {method}": (
            lambda source=source, method=method: fit_basis(
                model(), batches(), loss, rank=3, source=source, method=method
            )
        )
        for source in SOURCES
        for method in (BASIS_METHODS if source != "activation" else ("complete", "svd"))
    },
}


def _layers(network):
    return target_layers(network, "all-linear")


def plain(value):
    """What a result holds, to be compared."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, fitting.FittedBasis):
        return value.digest
    if isinstance(value, Mapping):
        return {getattr(key, "name", key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    assert value is None or isinstance(value, int | float | str)
    return value


@pytest.mark.parametrize("name", CALLS)
def test_autocast_has_no_say(name):
    expected = plain(CALLS[name]())
    with torch.autocast("cpu", torch.bfloat16):
        assert plain(CALLS[name]()) == expected
        assert torch.is_autocast_enabled("cpu")


def test_every_public_function_is_tried_under_autocast():
    measures_nothing = {"stored_numbers", "target_layers"}
    functions = {
        name
        for package in (decomposition, diagnostics, fitting)
        for name in package.__all__
        if inspect.isfunction(getattr(package, name))
    }
    assert functions - measures_nothing == functions & {name.split(",")[0] for name in CALLS}


def test_full_precision_ends_with_its_block():
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision():
            assert (W @ W.T).dtype == torch.float32
            assert not torch.is_autocast_enabled("cpu")
        assert (W @ W.T).dtype == torch.bfloat16
