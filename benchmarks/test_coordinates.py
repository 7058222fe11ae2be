"""What the coordinates of the diagonal cost in gradient descent, and what the constraints cost in a step.

pytest benchmarks/test_coordinates.py --benchmark-group-by=group --benchmark-columns=median,iqr,rounds -s
"""

import pytest
import torch
from minilm import checkpoint
from safetensors.torch import load_file
from torch import nn

from lowrank_ldu.decomposition.gram import gram_matrix
from lowrank_ldu.nn import PARAMETRIZATIONS, LDULayer, ProjectedOptimizer, inject

REDUCTION = 1e-6


@pytest.fixture(scope="module")
def weights():
    tensors = load_file(checkpoint())
    return [tensors[name].double() for name in tensors if name.endswith("attention.self.query.weight")][:2]


@pytest.mark.parametrize("pivoting", ["partial", "complete"])
@pytest.mark.parametrize("rank", [64, 384])
def test_updates_until_a_quadratic_is_fitted(weights, rank, pivoting):
    """Fit the update to the next layer's weight, each parametrization at its best fixed step."""
    base = nn.Linear(384, 384, bias=False).double()
    base.weight.data.copy_(weights[0])
    updates = {}
    for parametrization in PARAMETRIZATIONS:
        factors = LDULayer(base, rank, pivoting=pivoting, parametrization=parametrization).factors
        right = factors.right * factors.scale[:, None]
        slope = (factors.left * ((weights[1] - weights[0]) @ right.T)).sum(0)
        frame = factors.frame
        frame = torch.eye(rank).double() if frame is None else frame.diag() if frame.ndim == 1 else frame
        hessian, slope = frame.T @ gram_matrix(factors.left, right) @ frame, frame.T @ slope
        curvature = torch.linalg.eigvalsh(hessian)
        error = torch.linalg.solve(hessian, slope)
        at_start = error @ hessian @ error
        step = 2 / (curvature[0] + curvature[-1])
        count = 0
        while error @ hessian @ error > REDUCTION * at_start:
            error -= step * (hessian @ error)
            count += 1
        updates[parametrization] = count
        condition = curvature[-1] / curvature[0]
        print(f"\nr = {rank}, {pivoting}, {parametrization}: condition {condition:.3g}, {count} updates")
    assert updates["gram"] == 1
    assert updates["gram"] < updates["normalized"] < updates["diagonal"]


@pytest.mark.parametrize("projected", [True, False], ids=["ProjectedOptimizer(AdamW)", "AdamW"])
def test_an_optimizer_step(benchmark, projected):
    """24 layers of width 768 at full rank, as RoBERTa-base's query and value."""
    benchmark.group = "one optimizer step, 24 layers, r = 768"
    torch.set_num_threads(1)  # 769 numbers a layer: threads that wait for each other would be all that is measured
    base = nn.Linear(768, 768)
    model = nn.ModuleList(nn.Linear(768, 768) for _ in range(24))
    for layer in model:
        layer.load_state_dict(base.state_dict())
    inject(model, "all-linear", 768)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    if projected:
        optimizer = ProjectedOptimizer(optimizer, model, 10.0)
    benchmark.pedantic(optimizer.step, rounds=50, warmup_rounds=5)
