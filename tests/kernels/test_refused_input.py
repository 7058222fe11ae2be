"""Input that does not belong together is refused before anything is computed or read."""

import pytest
import torch
from layer_problems import call, problem

CPU = torch.device("cpu")


def layer(uses="one"):
    return problem(4, 5, 6, 3, uses=uses, device=CPU)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"x": torch.ones(4, 7)}, ValueError, r"x has shape \(4, 7\); accepted: \(..., 6\), as weight is \(5, 6\)"),
        ({"x": torch.tensor(1.0)}, ValueError, r"x has shape \(\)"),
        ({"x": torch.ones(4, 6, dtype=torch.int64)}, TypeError, "x has dtype int64; accepted: a floating dtype"),
        ({"x": torch.ones(4, 6).half()}, TypeError, "weight has dtype float32; accepted: x's, float16"),
        ({"x": [[1.0] * 6]}, TypeError, "x is a list; accepted: a torch tensor"),
        ({"weight": torch.ones(6)}, ValueError, r"weight has shape \(6,\); accepted: \(m, n\)"),
        ({"bias": torch.ones(6)}, ValueError, r"bias has shape \(6,\); accepted: \(5,\)"),
        ({"left": torch.ones(6, 3)}, ValueError, r"left has shape \(6, 3\); accepted: \(5, r\)"),
        ({"left": torch.ones(5, 0), "right": torch.ones(0, 6)}, ValueError, "no terms; accepted: a rank of at least 1"),
        ({"right": torch.ones(2, 6)}, ValueError, r"right has shape \(2, 6\); accepted: \(3, 6\)"),
        ({"right": torch.ones(3, 6, device="meta")}, ValueError, "right is on meta; accepted: x's device, cpu"),
        ({"deltas": torch.ones(4)}, ValueError, r"delta has shape \(4,\); accepted: \(3,\), \(3, 3\) or"),
        ({"deltas": torch.ones(3, 4)}, ValueError, r"delta has shape \(3, 4\); accepted: \(3,\), \(3, 3\) or"),
        ({"deltas": torch.ones(3, 2, 2)}, ValueError, r"accepted: .* or \(g, b, b\) with g b = 3"),
        ({"deltas": torch.tensor(1.0)}, ValueError, r"delta has shape \(\); accepted"),
        ({"deltas": torch.full((3, 3), torch.nan)}, ValueError, r"delta\[0, 0\] is nan; accepted: finite values"),
        (
            {"deltas": torch.ones(3, dtype=torch.int32)},
            TypeError,
            "delta is int32; accepted: a torch tensor of a float",
        ),
        ({"deltas": torch.tensor([0, torch.inf, 0])}, ValueError, r"delta\[1\] is inf; accepted: finite values"),
        ({"deltas": torch.tensor([0, 0, torch.nan])}, ValueError, r"delta\[2\] is nan; accepted: finite values"),
    ],
)
def test_layer(changes, kind, message):
    with pytest.raises(kind, match=message):
        call(layer()._replace(**changes))


@pytest.mark.parametrize("plan", ["auto", "reference", "factored", "triton"])
@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"index": torch.tensor([0, 1, 2, 5])}, IndexError, "reaches from 0 to 5; accepted: 0 to 4"),
        ({"index": torch.tensor([0, -1, 2, 3])}, IndexError, "reaches from -1 to 3; accepted: 0 to 4"),
        ({"index": torch.zeros(3).long()}, ValueError, r"adapter_index has shape \(3,\); accepted: x's leading"),
        ({"index": torch.tensor(0)}, ValueError, r"adapter_index has shape \(\)"),
        ({"index": torch.zeros(4)}, TypeError, "adapter_index is float32; accepted: a torch tensor, int64 or int32"),
        ({"index": torch.zeros(4).long().to("meta")}, ValueError, "adapter_index is on meta"),
        ({"deltas": torch.ones(3)}, ValueError, r"deltas has shape \(3,\); accepted: \(A, 3\), \(A, 3, 3\)"),
        ({"deltas": torch.ones(5, 2, 2)}, ValueError, r"accepted: .* or \(A, g, b, b\) with g b = 3"),
        ({"deltas": torch.full((5, 3), torch.nan)}, ValueError, r"deltas\[0, 0\] is nan"),
        ({"scales": torch.ones(4)}, ValueError, r"accepted: x's leading dimensions, \(4,\), .* last dimension for"),
    ],
)
def test_rows(changes, kind, message, plan):
    with pytest.raises(kind, match=message):
        call(layer("rows")._replace(**changes), plan=plan)


def test_mixes():
    mixed = layer("mixed")
    with pytest.raises(ValueError, match=r"scales has shape \(4, 2\); accepted: \(4, 3\)"):
        call(mixed._replace(scales=mixed.scales[:, :2]))
    with pytest.raises(ValueError, match=r"scales\[0, 0\] is inf"):
        call(mixed._replace(scales=mixed.scales / 0))


def test_upper_that_is_not():
    with pytest.raises(ValueError, match="right has entries left of its diagonal; accepted with upper=True"):
        call(layer()._replace(right=torch.ones(3, 6)), upper=True)


def test_weights_that_are_trained():
    trained = layer()
    trained.weight.requires_grad_()
    for plan in ("factored", "hybrid", "triton"):
        with pytest.raises(RuntimeError, match="weight, left or right requires a gradient"):
            call(trained, plan=plan)
    call(trained).sum().backward()  # the planner takes a plan that has its gradient
    assert trained.weight.grad is not None


def test_rows_of_no_adapters():
    empty = layer("rows")._replace(deltas=torch.ones(0, 3))
    with pytest.raises(IndexError, match="deltas has 0 rows"):
        call(empty)
    nothing = problem(0, 5, 6, 3, uses="rows", device=CPU)
    assert call(nothing._replace(deltas=torch.ones(0, 3))).shape == (0, 5)
