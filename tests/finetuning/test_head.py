"""Heads that are trained alone: what changes, what stays, and what is refused."""

import pytest
import torch
from tiny_models import batches_of, bert, llama

from lowrank_ldu.errors import OptionError, TrainingError
from lowrank_ldu.finetuning import Choice, load_recipe
from lowrank_ldu.finetuning.configuration import configure
from lowrank_ldu.finetuning.head import train_head

SIZES = {"learning_rate": 0.1, "epochs": 20, "steps": 2}


def trained(model, batches, **options):
    train_head(model, ["classifier"], lambda _: batches, **{**SIZES, **options})
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def loss_of(model, batches):
    with torch.no_grad():
        return sum(float(model(**batch).loss) for batch in batches)


def test_the_head_learns_and_nothing_else_changes():
    model, batches = bert(), batches_of("bert")
    model.bert.pooler.requires_grad_(False)
    model.train()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    flags = [value.requires_grad for value in model.parameters()]
    first, state = loss_of(model, batches), torch.get_rng_state()
    after = trained(model, batches)
    assert loss_of(model, batches) < 0.8 * first
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    assert [value.requires_grad for value in model.parameters()] == flags
    assert all(value.grad is None for value in model.parameters())
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    # The same call gives the same head, bit for bit.
    again = trained(bert(), batches)
    assert torch.equal(again["classifier.weight"], after["classifier.weight"])


def test_every_epoch_has_its_own_batches():
    asked = []

    def batches(epoch):
        asked.append(epoch)
        return batches_of("bert")

    train_head(bert(), ["classifier"], batches, learning_rate=0.1, epochs=3, steps=2)
    assert asked == [0, 1, 2]


def test_what_cannot_be_trained_is_refused_and_the_model_is_as_it_was():
    model, batches = bert(), batches_of("bert")
    with torch.no_grad():
        model.classifier.bias[0] = torch.nan
    with pytest.raises(TrainingError, match="the loss is nan while the head is trained alone; accepted: a sma"):
        trained(model, batches)
    assert all(value.requires_grad for value in model.parameters())
    with pytest.raises(OptionError, match="head_epochs is given, and the model has no head; accepted: 0, or modules_"):
        train_head(llama(), [], lambda _: batches_of("llama"), **SIZES)
    with pytest.raises(OptionError, match="trained_whole has 'score', which matches no module"):
        train_head(llama(), ["score"], lambda _: batches_of("llama"), **SIZES)


@pytest.mark.parametrize(("value", "found"), [(-1, "head_epochs is -1"), (1.5, "head_epochs is 1.5")])
def test_epochs_of_the_head_are_a_count(value, found):
    recipe = load_recipe("sentiment")
    assert configure(recipe, recipe.tasks[0], Choice(), seed=0).head_epochs == 1
    with pytest.raises(OptionError, match=found):
        configure(recipe, recipe.tasks[0], Choice(settings={"head_epochs": value}), seed=0)
