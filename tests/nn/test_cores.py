"""Cores between the factors: diagonals, blocks and dense ones, of one adapter or of each row's own."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lowrank_ldu.nn import AdapterOptions, LDULayer, inject, merge, project_, trainable_parameters, unmerge
from lowrank_ldu.nn.coordinates import PARAMETRIZATIONS, coordinates_of, from_core, to_core
from lowrank_ldu.nn.cores import apply_core, core_shape, scaled_core, times_core
from lowrank_ldu.nn.update import updated_matrix

EPS = torch.finfo(torch.float64).eps
SHAPES = {"linear": nn.Linear(12, 10), "conv": nn.Conv2d(4, 8, 3, groups=2), "embedding": nn.Embedding(30, 8)}
INPUTS = {
    "linear": lambda: torch.randn(3, 5, 12).double(),
    "conv": lambda: torch.randn(3, 4, 6, 6).double(),
    "embedding": lambda: torch.randint(0, 30, (3, 5)),
}


def dense(core, rank):
    """Return a core as a matrix (r, r), entry by entry."""
    if core.ndim == 1:
        return torch.diag(core)
    full = torch.zeros(rank, rank, dtype=core.dtype)
    for group, block in enumerate(core):
        size = len(block)
        full[group * size : (group + 1) * size, group * size : (group + 1) * size] = block
    return full


@st.composite
def cores(draw):
    size, groups = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    kind = draw(st.sampled_from(["diagonal", "block", "dense"]))
    shape = core_shape(kind, groups * size, size if kind == "block" else None)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    return torch.randn(shape, dtype=torch.float64, generator=generator), groups * size


@given(cores())
def test_products_are_those_of_the_whole_matrix(drawn):
    core, rank = drawn
    K, a = dense(core, rank), torch.linspace(-1, 1, 6 * rank, dtype=torch.float64).reshape(2, 3, rank)
    scale = torch.arange(1.0, rank + 1, dtype=torch.float64)
    torch.testing.assert_close(times_core(a, core), a @ K)
    torch.testing.assert_close(apply_core(a, core), a @ K.T)
    torch.testing.assert_close(dense(scaled_core(core, scale), rank), K @ torch.diag(scale))
    rows = torch.stack([core, -2 * core])
    expected = torch.stack([a[0] @ K.T, -2 * a[1] @ K.T])
    torch.testing.assert_close(apply_core(a, rows), expected)


@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from(["normalized", "gram"]), st.integers(0, 100))
@settings(max_examples=40)
def test_coordinates_are_orthonormal(groups, size, parametrization, seed):
    rank = groups * size
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(9, rank, dtype=torch.float64, generator=generator)
    right = torch.randn(rank, 10, dtype=torch.float64, generator=generator)
    shape = (groups, size, size)
    frame, jitter = coordinates_of(left, right, parametrization, shape)
    assert jitter == 0.0
    units = torch.eye(groups * size * size, dtype=torch.float64).reshape(-1, *shape)
    updates = torch.stack([times_core(left, to_core(unit, frame)) @ right for unit in units]).flatten(1)
    gram = updates @ updates.T
    if parametrization == "normalized":  # within each block, and of unit norm
        blocks = torch.arange(len(units)) // (size * size)
        gram = torch.where(blocks[:, None] == blocks[None, :], gram, 0.0)
    # The frame divides by triangles whose condition number its own Gram matrix has.
    condition = float(torch.linalg.cond(left) * torch.linalg.cond(right)) ** 2
    torch.testing.assert_close(gram, torch.eye(len(units), dtype=torch.float64), atol=100 * EPS * condition, rtol=0)
    w = torch.randn(shape, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(from_core(to_core(w, frame), frame), w, atol=100 * EPS * condition, rtol=0)
    stacked = to_core(torch.stack([w, 2 * w]), frame)
    torch.testing.assert_close(stacked[1], 2 * stacked[0])


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("basis", ["ldu", "svd", "random"])
def test_blocks_of_one_are_the_diagonal_and_one_block_is_dense(parametrization, basis):
    torch.manual_seed(0)
    base = nn.Linear(9, 7).double()

    def update(numbers, **options):
        layer = LDULayer(copy.deepcopy(base), 4, parametrization=parametrization, basis=basis, **options)
        with torch.no_grad():
            layer.offset.copy_(numbers.reshape(layer.offset.shape))
        return layer.delta_weight()

    w, core = torch.randn(4).double(), torch.randn(4, 4).double()
    torch.testing.assert_close(update(w), update(w, core="block", block_size=1))
    torch.testing.assert_close(update(core, core="dense"), update(core, core="block", block_size=4))


@pytest.mark.parametrize("name", sorted(SHAPES))
@pytest.mark.parametrize("options", [{"core": "dense"}, {"core": "block", "block_size": 2}], ids=["dense", "block"])
def test_the_update_is_that_of_the_changed_weight(name, options):
    torch.manual_seed(0)
    model = nn.Sequential(copy.deepcopy(SHAPES[name]).double())
    base, x = copy.deepcopy(model), INPUTS[name]()
    inject(model, ["0"], 4, pivoting="complete", parametrization="gram", **options)
    assert torch.equal(model(x), base(x))
    with torch.no_grad():
        model[0].offset.normal_(std=0.3)
    weight = base[0].weight
    changed = copy.deepcopy(base)
    with torch.no_grad():
        changed[0].weight.add_(model[0].delta_weight().reshape(weight.shape))
    y = model(x)
    torch.testing.assert_close(y, changed(x))
    merge(model)
    torch.testing.assert_close(model(x), y)
    unmerge(model)
    assert torch.equal(model[0].base_layer.weight, weight)


def test_gradients_are_those_of_the_changed_weight():
    torch.manual_seed(0)
    base = nn.Linear(8, 6).double()
    for core, parametrization in itertools.product(
        [{"core": "dense"}, {"core": "block", "block_size": 3}], PARAMETRIZATIONS
    ):
        layer = LDULayer(copy.deepcopy(base), 6, parametrization=parametrization, **core)
        with torch.no_grad():
            layer.offset.normal_(std=0.3)
        x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
        got = torch.autograd.grad(layer(x).square().sum(), [x, layer.offset, layer.sigma])
        weight = base.weight.detach() + updated_matrix(layer.factors, layer.delta)
        expected = torch.autograd.grad(
            nn.functional.linear(x, weight, base.bias.detach()).square().sum(), [x, layer.offset, layer.sigma]
        )
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other)


def test_a_core_is_trained_from_zero_and_counted():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    inject(model, ["0"], 4, core="dense", parametrization="gram", train_sigma=False)
    assert trainable_parameters(model).adapter == 16
    layer = model[0]
    assert not layer.delta.any()
    optimizer = torch.optim.SGD([layer.offset], lr=0.1)
    x = torch.randn(16, 8)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    norm = torch.linalg.matrix_norm(layer.delta_weight())
    torch.testing.assert_close(norm, layer.offset.detach().norm(), rtol=1e-4, atol=0)
    limit = 0.5 * float(torch.linalg.vector_norm(layer.z.detach()))
    project_(model, epsilon=limit)
    assert float(torch.linalg.vector_norm(layer.z.detach())) <= limit * (1 + 1e-5)


def test_a_layer_is_loaded_with_its_core():
    torch.manual_seed(0)
    base = nn.Linear(8, 6)
    layer = LDULayer(copy.deepcopy(base), 4, core="block", block_size=2, parametrization="gram", pivoting="rook")
    with torch.no_grad():
        layer.offset.normal_()
    other = LDULayer(copy.deepcopy(base), 4, core="block", block_size=2, parametrization="diagonal")
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other.delta_weight(), layer.delta_weight())


def test_chosen_pivots_are_those_of_the_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 5))
    pivots = {"0": ([4, 1, 5], [7, 2, 0]), "1": ([0, 3], [1, 5])}
    names = inject(model, core="dense", pivots=pivots)
    assert names == ["0", "1"]
    for name, (rows, columns) in pivots.items():
        layer = model[int(name)]
        assert layer.rank == len(rows)
        assert layer.options.pivoting == "chosen"
        assert layer.factors.pivot_rows.tolist() == rows
        assert layer.factors.pivot_columns.tolist() == columns
        weight = layer.base_layer.weight.detach()
        for span, of in ((layer.factors.left, weight[:, columns]), (layer.factors.right.T, weight[rows].T)):
            again = span @ torch.linalg.lstsq(span, of).solution
            torch.testing.assert_close(again, of)
    other = LDULayer(copy.deepcopy(model[0].base_layer), 3, core="dense", pivots=([0, 1, 2], [0, 1, 2]))
    with torch.no_grad():
        model[0].offset.normal_()
    other.load_state_dict(model[0].state_dict())
    torch.testing.assert_close(other.delta_weight(), model[0].delta_weight())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"core": "full"}, "core is 'full'; accepted: 'diagonal', 'block', 'dense'"),
        ({"core": "block"}, "block_size is None with core 'block'; accepted: a divisor of the rank"),
        ({"core": "block", "block_size": 3}, "block_size is 3 at rank 4; accepted: a divisor of it, 1, 2, 4"),
        ({"block_size": 2}, "block_size is 2 with core 'diagonal'; accepted: None, or core 'block'"),
        ({"core": "dense", "init": "ones"}, "init is 'ones' with core 'dense'; accepted: the default"),
        ({"core": "dense", "preserving": False}, "preserving is False with core 'dense'"),
        ({"basis": "fitted"}, "basis_digest is None with basis 'fitted'; accepted: the digest of a basis"),
        ({"basis_digest": "x"}, "basis_digest is 'x' with basis 'ldu'"),
        ({"basis": "fitted", "basis_digest": "x"}, "no basis of digest x is known; accepted: to load its file"),
        ({"pivoting": "chosen"}, "pivoting is 'chosen' and no pivots are given"),
        ({"pivoting": "chosen", "basis": "svd"}, "pivoting is 'chosen' with basis 'svd'"),
        ({"pivots": ([0, 1], [0, 1])}, "pivots has 2 rows and rank is 4; accepted: as many"),
        ({"pivots": ([0, 1, 2, 9], [0, 1, 2, 3])}, "rows holds indices from 0 to 9; accepted: 0 to 5"),
        ({"pivots": ([0, 1, 2, 3], [0, 1, 2, 3]), "pivoting": "rook"}, "pivots are given beside pivoting 'rook'"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        LDULayer(nn.Linear(8, 6), 4, **options)


def test_pivots_that_are_singular_are_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4))
    with pytest.raises(ValueError, match="layer '0': rows and columns hold a pivot that is zero"):
        inject(model, ["0"], core="dense", pivots={"0": ([0, 1], [2, 3])})
    with pytest.raises(ValueError, match="layer '0': pivots has none of this layer"):
        inject(model, ["0"], core="dense", pivots={"1": ([0], [0])})


def test_numbers_of_another_core_are_refused():
    """A vector would be copied to every row of a dense core."""
    layer = LDULayer(nn.Linear(8, 6), 4, core="dense", parametrization="gram")
    for change in (layer.adapter.set_z, layer.adapter.set_delta):
        with pytest.raises(ValueError, match=r"numbers have shape \(4,\); accepted: \(1, 4, 4\), the core's"):
            change(torch.ones(4), layer.factors)


def test_divisors_of_a_rank_that_no_layer_has_are_not_counted():
    with pytest.raises(ValueError, match="block_size is 7 at rank 1000.*; accepted: a divisor of it, such as 1"):
        core_shape("block", 10**18, 7)


def test_the_layers_of_pivots_are_taken_by_their_whole_names():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))
    assert inject(model, core="dense", pivots={"0": ([0], [1])}) == ["0"]
    with pytest.raises(TypeError, match="targets is None; accepted: a sequence of module names"):
        inject(model)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"pivots": "abc"}, TypeError, "pivots is 'abc'; accepted: a mapping of names to"),
        ({"pivots": {"0": None}}, TypeError, "layer '0': pivots has None; accepted: a pair of sequences"),
        (
            {"pivots": {"0": ([0], [0])}, "pivoting": "rook"},
            ValueError,
            "pivoting is 'rook' beside pivots; acc",
        ),
        ({"pivots": {"0": ([0], [0])}, "options": AdapterOptions()}, ValueError, "pivoting is 'partial' beside pivots"),
        ({"fitted_basis": "basis.safetensors"}, TypeError, "fitted_basis is 'basis.safetensors'; accepted: a Fit"),
    ],
)
def test_contradictions_are_refused_and_change_nothing(arguments, error, message):
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(error, match=message.replace("(", r"\(")):
        inject(model, ["0"], **arguments)
    assert type(model[0]) is nn.Linear
