"""Fitted bases: near the best of their rank, and files that any number of adapters share."""

import gc
import hashlib
import json

import numpy as np
import pytest
import torch
from fitted_models import batches, gradients, loss, model
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from lowrank_ldu.errors import FittingError
from lowrank_ldu.fitting import FittedBasis, fit_basis
from lowrank_ldu.fitting.energy import scale_rows_and_columns
from lowrank_ldu.fitting.factoring import BASIS_METHODS, finished, pivoted_ldl, terms_of_gradient
from lowrank_ldu.nn import inject, trainable_parameters


def diagonal_energy(factors, G):
    terms = np.stack(
        [np.outer(*pair).ravel() for pair in zip(factors.left.T.double(), factors.right.double(), strict=True)]
    )
    q = np.linalg.qr(terms.T)[0]
    G = G.double().numpy().ravel()
    return float(((q.T @ G) ** 2).sum() / (G**2).sum())


@pytest.mark.parametrize("method", BASIS_METHODS)
def test_a_basis_of_full_rank_is_the_gradient(method):
    network, data = model(), batches()
    total = gradients(network, data, loss)
    basis = fit_basis(network, data, loss, rank={"first": 6, "second": 6, "third": 4}, method=method)
    assert basis.layers == {"first": (6, 6, 6), "second": (9, 6, 6), "third": (4, 9, 4)}
    for name in basis.layers:
        G = total[f"{name}.weight"]
        assert (basis.factors(name).reconstruct() - G).norm() <= 1e-4 * G.norm()
        assert basis.held[name] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("method", BASIS_METHODS)
def test_the_energy_held_is_that_of_least_squares(method):
    network, data = model(), batches()
    total = gradients(network, data, loss)
    basis = fit_basis(network, data, loss, rank=2, method=method)
    best = fit_basis(network, data, loss, rank=2, method="svd")
    for name in basis.layers:
        held = diagonal_energy(basis.factors(name), total[f"{name}.weight"])
        # The near-best LDU's terms hold the approximation that they are of, and a little more.
        assert held >= basis.held[name] * (1 - 1e-4)
        if method != "ldu_lowrank":
            assert held == pytest.approx(basis.held[name], rel=1e-3)
        assert basis.held[name] <= best.held[name] * (1 + 1e-4)
    if method == "ldu_lowrank":
        assert all(basis.held[name] >= 0.95 * best.held[name] for name in basis.layers)


@given(m=st.integers(1, 9), n=st.integers(1, 9), seed=st.integers(0, 2**20), data=st.data())
def test_a_near_best_basis_is_an_ldu(m, n, seed, data):
    G = torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rank = data.draw(st.integers(1, min(m, n)))
    terms = terms_of_gradient(G, rank, "ldu_lowrank", seed)
    factors = finished(terms, "ldu_lowrank")
    assert torch.allclose(factors.reconstruct(), terms.reconstruct(), atol=1e-10)
    left, right = factors.left.numpy(), factors.right.numpy()
    for part in (left, right.T):  # unit lower triangular with its rows in some order
        rows = []
        for column in range(rank):
            own = [
                i for i in range(len(part)) if i not in rows and np.abs(part[i, column + 1 :]).max(initial=0) < 1e-10
            ]
            own = [i for i in own if abs(part[i, column] - 1) < 1e-10]
            assert own
            rows.append(own[0])
    best = np.linalg.svd(G.numpy(), compute_uv=False)
    error = float((G - factors.reconstruct()).norm())
    # The randomized approximation of matrices without decay is good but not the best.
    assert error <= 1.2 * np.linalg.norm(best[rank:]) + 1e-9


@given(n=st.integers(1, 10), k=st.integers(1, 10), seed=st.integers(0, 2**20), data=st.data())
def test_pivoted_ldl_is_an_elimination_of_the_largest(n, k, seed, data):
    A = torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moment = A @ A.T
    rank = data.draw(st.integers(1, n))
    lower, pivots = pivoted_ldl(moment, rank)
    assert len(pivots) == min(rank, k, n)
    assert bool((pivots > 0).all())
    rest = moment.clone()
    for step in range(len(pivots)):
        # Others may be 1, too.
        pivots_there = [int(i) for i in (lower[:, step] == 1).nonzero()]
        pivot = max(pivots_there, key=lambda i: float(rest[i, i]))
        assert float(rest.diagonal()[pivot]) == pytest.approx(float(rest.diagonal().max()), rel=1e-6)
        rest = rest - pivots[step] * torch.outer(lower[:, step], lower[:, step])
        assert float(rest[pivot].abs().max()) <= 1e-9 * float(moment.abs().max())
    if rank >= min(k, n):
        assert float(rest.abs().max()) <= 1e-9 * float(moment.abs().max())


@given(
    m=st.integers(2, 9),
    n=st.integers(1, 9),
    seed=st.integers(0, 2**20),
    decades=st.floats(0, 4),
    unit=st.sampled_from([1e-30, 1.0, 1e30]),
)
def test_scaling_takes_the_sizes_of_rows_and_columns(m, n, seed, decades, unit):
    generator = torch.Generator().manual_seed(seed)
    a, b = (10 ** (decades * torch.rand(size, generator=generator, dtype=torch.float64)) for size in (m, n))
    signs = torch.randint(0, 2, (m, n), generator=generator) * 2.0 - 1
    G = (unit * a[:, None] * b * signs).float()
    # A matrix that is all sizes is nothing but signs afterwards, in the gradient's own unit.
    scaled = G.clone()
    scale_rows_and_columns(scaled)
    size = float(G.double().square().mean().sqrt())
    assert torch.allclose(scaled.double() / size, signs.double(), rtol=1e-4)
    # Rows that are zero stay zero.
    G[0] = 0
    scale_rows_and_columns(G)
    assert not bool(G[0].any())


@pytest.mark.parametrize("method", ["ldu_lowrank", "complete", "svd"])
def test_a_basis_of_the_scaled_gradient_is_that_of_the_textbook(method, tmp_path):
    network, data = model(), batches()
    total = gradients(network, data, loss)
    basis = fit_basis(network, data, loss, rank=2, source="scaled_gradient", method=method)
    assert FittedBasis.load(basis.save(tmp_path / "basis.safetensors")).source == "scaled_gradient"
    for name in basis.layers:
        G = total[f"{name}.weight"].double()
        mean = G.square().mean()
        scaled = G / (G.square().mean(1, keepdim=True) / mean).sqrt() / (G.square().mean(0, keepdim=True) / mean).sqrt()
        scaled = scaled.nan_to_num(0.0)  # rows of zeros, behind a ReLU
        expected = finished(terms_of_gradient(scaled, 2, method, 0), method).reconstruct()
        found = basis.factors(name).reconstruct().double()
        assert float((found - expected).norm()) <= 1e-4 * float(expected.norm())


@pytest.mark.parametrize("method", ["complete", "svd"])
def test_a_basis_of_activations_needs_no_labels(method):
    network, data = model(), [batch[0] for batch in batches()]
    basis = fit_basis(network, data, rank=3, source="activation", method=method)
    assert basis.source == "activation"
    for name in basis.layers:
        assert 0 < basis.held[name] < 1
    full = fit_basis(network, data, rank=6, source="activation", method=method, targets=["first"])
    factors = full.factors("first")
    x = []
    handle = network.first.register_forward_hook(lambda module, args, y: x.append(args[0].reshape(-1, 6)))
    with torch.no_grad():
        for each in data:
            network.eval()(each)
    handle.remove()
    inputs = torch.cat(x).T @ torch.cat(x)
    # The right factor diagonalizes the inputs' moment, the left one that of W x.
    W = network.first.weight.detach()
    for part, moment in ((factors.right.T, inputs), (factors.left, W @ inputs @ W.T)):
        inverse = torch.linalg.inv(part.double())
        core = inverse @ moment.double() @ inverse.T
        assert float((core - core.diagonal().diag()).norm()) <= 1e-4 * float(core.norm())


@pytest.mark.parametrize("method", BASIS_METHODS)
@pytest.mark.parametrize("limit", [None, 1])
def test_a_budget_is_shared_out(method, limit):
    network = model()
    basis = fit_basis(network, iter(batches()), loss, budget=9, method=method, max_bytes=limit)
    assert sum(basis.rank_pattern.values()) == 9
    again = fit_basis(network, batches(), loss, rank=basis.rank_pattern, method=method)
    for name in basis.layers:
        one, other = (each.factors(name).reconstruct() for each in (basis, again))
        # Sketches of two widths.
        assert float((one - other).norm()) <= (0.3 if method in {"ldu_lowrank", "randomized"} else 1e-4) * float(
            one.norm()
        )


def test_a_basis_of_one_set_is_used_for_another():
    network = model()
    basis = fit_basis(network, batches(seed=5), loss, rank=4)
    inject(network, "all-linear", fitted_basis=basis)
    assert trainable_parameters(network).adapter == 3 * (4 + 1)
    loss(network, batches(seed=6)[0]).backward()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "rank is None and budget is None; accepted: one of them"),
        ({"rank": 7}, ValueError, "layer 'first': rank is 7; accepted: an integer from 1 to 6$"),
        (
            {"rank": 2, "method": "partial"},
            ValueError,
            "source is 'gradient', and method is 'partial'; accepted: 'ldu_low",
        ),
        (
            {"rank": 2, "method": "rook", "source": "activation"},
            ValueError,
            "source is 'activation', and method is 'rook'; accepted: 'complete', 'svd'$",
        ),
        (
            {"rank": 2, "dtype": "float64"},
            ValueError,
            "dtype is 'float64'; accepted: 'float32', 'bfloat16', 'float16'$",
        ),
        ({"rank": 2, "dtype": torch.float32}, ValueError, "dtype is torch.float32; accepted: "),
        ({"rank": 2, "seed": -1}, ValueError, "seed is -1; accepted: an integer from 0"),
        ({"budget": 2}, ValueError, "budget is 2; accepted: at least 3"),
    ],
)
def test_options_that_are_none(options, error, message):
    with pytest.raises(error, match=message):
        fit_basis(model(), batches(), loss, **options)


def test_a_gradient_of_low_rank_is_named():
    network = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))
    data = [(torch.randn(2, 6), torch.randn(2, 4))]
    with pytest.warns(UserWarning, match="the gradients of 2 layers, '0' first, have a lower rank than asked for"):
        assert fit_basis(network, data, loss, rank=3).rank_pattern == {"0": 2, "1": 2}
    assert fit_basis(network, data, loss, budget=12).rank_pattern == {"0": 2, "1": 2}


@pytest.fixture(scope="module")
def basis():
    return fit_basis(model(), batches(), loss, rank=2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_file_has_the_size_that_was_said(dtype, basis, tmp_path):
    rounded = fit_basis(model(), batches(), loss, rank=2, dtype=dtype)
    path = rounded.save(tmp_path / "basis.safetensors")
    assert rounded.nbytes <= path.stat().st_size <= rounded.nbytes + 4096
    numbers = sum((m + n) * r for m, n, r in rounded.layers.values())
    assert rounded.nbytes == numbers * (4 if dtype == "float32" else 2) + 4 * sum(2 + 32 for _ in rounded.layers)
    read = FittedBasis.load(path)
    assert (read.digest, read.layers, read.held) == (rounded.digest, rounded.layers, rounded.held)
    assert (read.source, read.method, read.dtype) == ("gradient", "ldu_lowrank", dtype)
    for name in read.layers:
        one, other, exact = (each.factors(name) for each in (rounded, read, basis))
        for key in ("left", "diagonal", "right"):
            assert torch.equal(getattr(one, key), getattr(other, key))
            assert getattr(one, key).dtype == torch.float32
            assert torch.allclose(getattr(one, key), getattr(exact, key), rtol=1e-2, atol=1e-2)
    read.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert f"in {dtype}, basis {read.digest[:16]}" in str(read)
    assert len(str(read).splitlines()) == 5


def test_a_digest_names_the_content_and_not_the_file(basis, tmp_path):
    path = basis.save(tmp_path / "basis.safetensors")
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    # Another header of the same meaning.
    other = (size + 16).to_bytes(8, "little") + content[8 : 8 + size] + b" " * 16 + content[8 + size :]
    (tmp_path / "other.safetensors").write_bytes(other)
    assert FittedBasis.load(tmp_path / "other.safetensors").digest == basis.digest
    assert fit_basis(model(), batches(), loss, rank=2, targets=["first"]).digest != basis.digest


def test_another_base_is_refused_and_a_rounded_one_is_not(basis):
    basis.check_base(model())
    basis.check_base(model().to(torch.bfloat16))
    other = model()
    other.second.weight.data.normal_()
    with pytest.raises(FittingError, match="layer 'second': the weight is not the one that the basis was fitted for"):
        basis.check_base(other)
    other = model()
    other.second = nn.Linear(6, 3)
    with pytest.raises(FittingError, match=r"layer 'second' has a weight of shape \(3, 6\); accepted: \(9, 6\)"):
        basis.check_base(other)
    other.second = nn.ReLU()
    with pytest.raises(FittingError, match="layer 'second' of the basis is no linear layer of the model"):
        basis.check_base(other)
    with pytest.raises(FittingError, match="none of layer 'fourth'; accepted: 'first', 'second', 'third'$"):
        basis.factors("fourth")
    adapted = model()
    inject(adapted, "all-linear", fitted_basis=basis)
    basis.check_base(adapted)


def test_layers_are_read_when_they_are_asked_for(basis, tmp_path):
    path = basis.save(tmp_path / "basis.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    read = FittedBasis.load(path)
    sound, damaged = [], []
    for name in read.layers:
        try:
            read.factors(name)
            read.check(name, getattr(model(), name).weight)
            sound.append(name)
        except FittingError as error:
            damaged.append(str(error))
    assert len(sound) == 2
    assert len(damaged) == 1
    assert "is not the one that was written; the file was changed" in damaged[0]
    with pytest.raises(FittingError, match="the file was changed"):
        read.save(tmp_path / "again.safetensors")
    assert not (tmp_path / "again.safetensors").exists()


@given(cut=st.integers(0, 5000))
def test_a_file_that_was_cut_short_is_refused(cut, whole_file):
    content, path = whole_file
    path.write_bytes(content[: min(cut, len(content) - 1)])
    with pytest.raises(FittingError):
        FittedBasis.load(path)


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory, basis):
    path = tmp_path_factory.mktemp("basis") / "basis.safetensors"
    basis.save(path)
    return path.read_bytes(), path


def forged(path, tensors, record):
    for name, tensor in tensors.items():
        content = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        kind = str(tensor.dtype).removeprefix("torch.")
        record["tensors"][name] = {
            "dtype": kind, "shape": list(tensor.shape), "sha256": hashlib.sha256(content).hexdigest()
        }  # fmt: skip
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    save_file(tensors, path, {"record": text, "sha256": hashlib.sha256(text.encode()).hexdigest()})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"first.left": torch.zeros(6, 3)},
            r"layer 'first' has factors of shapes \[\[6, 3\], \[2\], \[2, 6\]\]; accepted",
        ),
        ({"first.diagonal": torch.zeros(0)}, "layer 'first' has factors of shapes"),
        ({"first.diagonal": torch.zeros(2, 1)}, "layer 'first' has factors of shapes"),
        ({"first.left": torch.zeros(6, 2).half()}, "layer 'first' has tensors of .*float16.*; accepted"),
        ({"first.left": torch.zeros(6, 2, dtype=torch.int32)}, "layer 'first' has tensors of .*int32.*; accepted"),
        ({"first.base_sample": torch.zeros(3)}, "layer 'first' has tensors of .*; accepted"),
        ({"first.other": torch.zeros(3)}, "tensor 'first.other' is missing or of no layer; accepted"),
        (
            {"first.left": torch.full((6, 2), torch.nan)},
            "tensor 'first.left' of the basis has entries that are not fin",
        ),
    ],
)
def test_forged_files_are_refused(changed, message, basis, tmp_path):
    path = basis.save(tmp_path / "basis.safetensors")
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    forged(path, load_file(path) | changed, json.loads(header["__metadata__"]["record"]))
    with pytest.raises(FittingError, match=message):
        FittedBasis.load(path).factors("first")


def test_a_record_that_is_none_is_refused(basis, tmp_path):
    path = basis.save(tmp_path / "basis.safetensors")
    record = json.loads(
        json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])["__metadata__"]["record"]
    )
    for key, value in (("dtype", "float64"), ("method", "partial"), ("source", 3), ("budget", "x"), ("more", 1)):
        forged(path, load_file(basis.save(tmp_path / "sound.safetensors")), record | {key: value})
        with pytest.raises(FittingError, match=key if key != "more" else "the record has fields"):
            FittedBasis.load(path)
    gc.collect()
