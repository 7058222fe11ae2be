"""The constraints after every step of an optimizer, wherever the optimizer goes."""

import copy
import pickle

import pytest
import torch
from accelerate import Accelerator
from peft import get_peft_model
from torch import nn
from torch.optim import SGD, Adagrad, AdamW, RMSprop
from transformers import Trainer, TrainingArguments

from lowrank_ldu.nn import PARAMETRIZATIONS, LDULayer, ProjectedOptimizer, inject, lowrank_layers, project_
from lowrank_ldu.peft import LolduConfig

EPSILON = 0.25
x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
OPTIMIZERS = {
    "SGD": lambda parameters: SGD(parameters, lr=5.0, momentum=0.9),
    "AdamW": lambda parameters: AdamW(parameters, lr=0.5),
    "AdamW fused": lambda parameters: AdamW(parameters, lr=0.5, fused=True),
    "RMSprop": lambda parameters: RMSprop(parameters, lr=0.5),
    "Adagrad": lambda parameters: Adagrad(parameters, lr=0.5),
    "LBFGS": lambda parameters: torch.optim.LBFGS(parameters, lr=0.5, max_iter=4),
}


@pytest.fixture
def model():
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    inject(model, "all-linear", 3)
    return model


def parameters(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def loss_of(model):
    return (model(x) - 3).square().mean()


def within(model, epsilon=EPSILON):
    return all(
        layer.z.norm() <= epsilon * (1 + 1e-5) and 0 < layer.sigma.item() <= 1 for _, layer in lowrank_layers(model)
    )


def train(model, optimizer, steps=4, after=lambda: None):
    """Whether the constraints held after every step."""
    held = []

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
        after()
        held.append(within(model))
    return held


def values(model):
    return [parameter.detach().clone() for parameter in parameters(model)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_step_ends_within_the_constraints(model, name):
    plain = copy.deepcopy(model)
    assert not any(train(plain, OPTIMIZERS[name](parameters(plain))))
    assert all(train(model, ProjectedOptimizer(OPTIMIZERS[name](parameters(model)), model, EPSILON)))


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_every_parametrization(parametrization):
    layer = LDULayer(nn.Linear(8, 8), 4, parametrization=parametrization)
    optimizer = ProjectedOptimizer(AdamW(parameters(layer), lr=0.5), layer, EPSILON)
    assert all(train(layer, optimizer))


def test_it_is_a_step_followed_by_project(model):
    other = copy.deepcopy(model)
    train(model, ProjectedOptimizer(AdamW(parameters(model), lr=0.5), model, EPSILON))
    train(other, AdamW(parameters(other), lr=0.5), after=lambda: project_(other, EPSILON))
    for ours, theirs in zip(values(model), values(other), strict=True):
        assert torch.equal(ours, theirs)


def test_the_step_of_the_wrapped_optimizer_projects_too(model):
    optimizer = AdamW(parameters(model), lr=0.5)
    ProjectedOptimizer(optimizer, model, EPSILON)
    assert all(train(model, optimizer))


def test_nothing_is_left_once_it_is_removed(model):
    other = copy.deepcopy(model)
    inner = AdamW(parameters(model), lr=0.5)
    optimizer = ProjectedOptimizer(inner, model, EPSILON)
    optimizer.remove()
    assert not inner._optimizer_step_post_hooks
    assert not any(train(model, optimizer))
    train(other, AdamW(parameters(other), lr=0.5))
    for ours, theirs in zip(values(model), values(other), strict=True):
        assert torch.equal(ours, theirs)
    optimizer.remove()  # twice is no error


@pytest.mark.parametrize("wrapped_first", [True, False])
@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5),
        # Reads defaults and writes momentum.
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=5),
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5),
    ],
)
def test_schedulers(model, schedule, wrapped_first):
    inner = AdamW(parameters(model), lr=0.5)
    optimizer = ProjectedOptimizer(inner, model, EPSILON)
    scheduler = schedule(optimizer if wrapped_first else inner)
    rates = []

    def after():
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()

    assert all(train(model, optimizer, after=after))
    assert len(set(rates)) == 4
    assert optimizer.param_groups is inner.param_groups


def test_state_dicts_are_those_of_the_wrapped_optimizer(model):
    inner = AdamW(parameters(model), lr=0.5)
    optimizer = ProjectedOptimizer(inner, model, EPSILON)
    train(model, optimizer, 3)
    state, at = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model)
    assert state.keys() == inner.state_dict().keys()
    train(model, optimizer, 2)
    # A resumed training goes on as the one that was not stopped.
    resumed = ProjectedOptimizer(AdamW(parameters(at), lr=0.1), at, EPSILON)
    resumed.load_state_dict(state)
    assert resumed.param_groups[0]["lr"] == 0.5
    assert all(train(at, resumed, 2))
    for ours, theirs in zip(values(at), values(model), strict=True):
        assert torch.equal(ours, theirs)
    # And the state is good for the optimizer without the projection.
    AdamW(parameters(at), lr=0.1).load_state_dict(state)


def test_copies_project_the_copied_model(model):
    optimizer = ProjectedOptimizer(AdamW(parameters(model), lr=0.5), model, EPSILON)
    train(model, optimizer, 2)
    before = values(model)
    for copy_of in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):  # noqa: S301
        other, twin = copy_of((model, optimizer))
        assert twin.model is other
        assert twin.param_groups[0]["params"][0] is parameters(other)[0]
        assert all(train(other, twin, 2))
        twin.remove()
        assert not any(train(*copy_of((other, twin)), 2))
    for now, then in zip(values(model), before, strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "AdamW fused"])
def test_gradient_scaler(model, name):
    """Steps that the scaler leaves out leave the parameters where they were."""
    optimizer = ProjectedOptimizer(OPTIMIZERS[name](parameters(model)), model, EPSILON)
    scaler = torch.amp.GradScaler("cpu")
    for scale in (1.0, 1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(loss_of(model) * scale).backward()
        before = values(model)
        scaler.step(optimizer)
        scaler.update()
        assert within(model)
        unmoved = all(torch.equal(now, then) for now, then in zip(values(model), before, strict=True))
        assert unmoved == (scale == float("inf"))
    assert scaler.get_scale() == 2.0**15


def test_accelerate(model):
    optimizer = ProjectedOptimizer(AdamW(parameters(model), lr=0.5), model, EPSILON)
    accelerator = Accelerator(cpu=True)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    prepared, outer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    for _ in range(3):
        accelerator.backward(loss_of(prepared))
        outer.step()
        scheduler.step()
        outer.zero_grad()
        assert within(model)
    assert optimizer.param_groups[0]["lr"] == 0.5**4


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
        inject(self, "all-linear", 3)

    def forward(self, x, labels):
        logits = self.layers(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_trainer_with_a_scheduler_and_a_resumed_run(tmp_path):
    data = [{"x": row, "labels": i % 3} for i, row in enumerate(x)]
    results = []
    torch.manual_seed(0)
    start = Classifier()
    for steps, resume in ((4, None), (6, "checkpoint-4"), (6, None)):
        model = copy.deepcopy(start)
        optimizer = ProjectedOptimizer(AdamW(parameters(model), lr=0.5), model, EPSILON)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
        arguments = TrainingArguments(
            tmp_path,
            max_steps=steps,
            save_steps=2,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
        )
        trainer = Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, scheduler))
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / resume))
        assert within(model)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 / (steps + 1))
        results.append(values(model))
    for resumed, straight in zip(*results[1:], strict=True):
        torch.testing.assert_close(resumed, straight, atol=1e-5, rtol=1e-4)


def test_further_groups_hooks_and_unknown_names(model):
    inner = AdamW(parameters(model)[:2], lr=0.5)
    optimizer = ProjectedOptimizer(inner, model, EPSILON)
    optimizer.add_param_group({"params": parameters(model)[2:], "lr": 0.1})
    assert [group["lr"] for group in inner.param_groups] == [0.5, 0.1]
    seen = []
    handle = optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    assert all(train(model, optimizer, 2))
    handle.remove()
    train(model, optimizer, 1)
    assert seen == ["pre", "pre"]
    assert optimizer.defaults is inner.defaults
    assert optimizer.state is inner.state
    assert repr(optimizer).startswith(f"ProjectedOptimizer(epsilon={EPSILON}, AdamW (")
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = optimizer.nothing_such


def test_what_is_frozen_is_left_alone(model):
    first, second = (layer for _, layer in lowrank_layers(model))
    with torch.no_grad():
        for layer in (first, second):
            layer.sigma.fill_(3.0)
    first.adapter.requires_grad_(False)
    optimizer = ProjectedOptimizer(SGD(second.adapter.parameters(), lr=0.1), model, EPSILON)
    before = first.z.clone()
    loss_of(model).backward()
    optimizer.step()
    assert torch.equal(first.z, before)
    assert first.sigma.item() == 3.0
    assert second.sigma.item() == 1.0
    assert second.z.norm() <= EPSILON * (1 + 1e-5)


def test_models_of_peft_and_their_inactive_adapters():
    model = get_peft_model(nn.Sequential(nn.Linear(8, 6)), LolduConfig(r=4, target_modules=["0"]))
    model.add_adapter("inactive", LolduConfig(r=4, target_modules=["0"], init_weights=False))
    layer = model.base_model.model[0]
    before = layer.adapter("inactive").offset.detach().clone()
    optimizer = ProjectedOptimizer(SGD(parameters(model), lr=5.0), model, EPSILON)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        _, adapter, factors = layer.held("default")
        assert adapter.z(factors).norm() <= EPSILON * (1 + 1e-5)
        assert 0 < adapter.sigma.item() <= 1
    assert torch.equal(layer.adapter("inactive").offset, before)


def test_each_of_z_and_sigma_is_projected_where_it_trains():
    """A sigma that the caller fixed beyond 1 is no parameter: moving it would change the model at a step of lr 0."""
    base = nn.Linear(8, 6)
    layer = LDULayer(base, 4, alpha=8, train_sigma=False)
    output = layer(x)
    project_(layer)
    assert layer.sigma.item() == 2.0
    assert torch.equal(layer(x), output)
    layer = LDULayer(base, 4)
    layer.offset.requires_grad_(False)
    with torch.no_grad():
        layer.sigma.fill_(3.0)
    z = layer.z.clone()
    project_(layer, 1e-3)
    assert layer.sigma.item() == 1.0
    assert torch.equal(layer.z, z)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda model: ProjectedOptimizer(model, model),
            TypeError,
            "optimizer is a Sequential; accepted: a torch.optim",
        ),
        (lambda model: ProjectedOptimizer(SGD, model), TypeError, "optimizer is a type; accepted: a torch.optim"),
        (
            lambda model: ProjectedOptimizer(SGD(parameters(model)), model, 0),
            ValueError,
            "epsilon is 0; accepted: a pos",
        ),
        (lambda model: ProjectedOptimizer(SGD(parameters(model)), model, "1"), TypeError, "epsilon is '1'; accepted"),
        (lambda model: ProjectedOptimizer(SGD(parameters(model)), None), TypeError, "model is a NoneType; accepted: a"),
        (lambda _: project_(nn.Linear(2, 2)), ValueError, "has no LoLDU layer; accepted: one that inject"),
        (lambda _: project_(None), TypeError, "model is a NoneType; accepted: a"),
    ],
)
def test_bad_arguments(model, make, error, message):
    with pytest.raises(error, match=message):
        make(model)
