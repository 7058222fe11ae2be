"""Batches whose rows use different adapters compute in each row what its adapter computes alone."""

import pytest
import torch
from peft import get_peft_model
from plugin_models import logits, perturb, tiny_bert, tiny_gpt2, tiny_t5, tokens

from lowrank_ldu.nn import set_plan
from lowrank_ldu.peft import LolduConfig

NAMES = ["default", "second", "__base__", "complete", "smaller", "second"]
OPTIONS = {"second": {}, "complete": {"pivoting": "complete"}, "smaller": {"r": 4}}


def served(base, **options):
    options = {"r": 8, **options}
    model = get_peft_model(base, LolduConfig(**options))
    for name, change in OPTIONS.items():
        model.add_adapter(name, LolduConfig(**options | change))
    return perturb(model, 0.5)


def alone(model, name, call):
    if name == "__base__":
        with model.disable_adapter():
            return call()
    model.set_adapter(name)
    return call()


def test_rows_are_those_of_their_adapters():
    model, ids = served(tiny_bert()), tokens(len(NAMES))
    mixed = logits(model, ids, adapter_names=NAMES)
    for row, name in enumerate(NAMES):
        single = alone(model, name, lambda row=row: logits(model, ids[row : row + 1]))
        torch.testing.assert_close(mixed[row], single[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("base", "targets"),
    [(tiny_gpt2, ["c_attn", "c_proj"]), (tiny_t5, ["q", "v", "wi"])],
    ids=["decoder", "encoder-decoder"],
)
def test_generation_with_beams(base, targets):
    model, ids = served(base(), target_modules=targets), tokens(len(NAMES), 5)
    options = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False}

    def generate(ids, **more):
        return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options, **more)

    mixed = generate(ids, adapter_names=NAMES)
    for row, name in enumerate(NAMES):
        assert torch.equal(mixed[row], alone(model, name, lambda row=row: generate(ids[row : row + 1]))[0])


def test_what_cannot_be_mixed_is_refused():
    model, ids = served(tiny_bert()), tokens(2)
    with pytest.raises(ValueError, match="non-existing adapter"):
        logits(model, ids, adapter_names=["default", "none"])
    with pytest.raises(ValueError, match="Length of `adapter_names`"):
        logits(model, ids, adapter_names=["default"])
    model.merge_adapter()
    with pytest.raises(ValueError, match="unmerge_adapter"):
        logits(model, ids, adapter_names=["default", "second"])
    model.unmerge_adapter()
    with pytest.raises(ValueError, match="training mode"):
        model.train()(ids, adapter_names=["default", "second"])


def test_plans():
    """PEFT's layers compute by the plan that is set, rows of a mixed batch too, and refuse what they cannot fuse."""
    model, ids = served(tiny_bert()), tokens(3)
    model.set_adapter("second")
    expected = logits(model, ids)
    mixed = logits(model, ids, adapter_names=["default", "second", "__base__"])
    assert set_plan(model, "factored") > 1
    torch.testing.assert_close(logits(model, ids), expected)
    # "default" and "second" share their factors; "complete" has others.
    torch.testing.assert_close(logits(model, ids, adapter_names=["default", "second", "__base__"]), mixed)
    with pytest.raises(RuntimeError, match="plan 'factored' cannot run here: layer .* do not share their factors"):
        logits(model, ids, adapter_names=["default", "complete", "__base__"])
    set_plan(model, "packed")
    with pytest.raises(RuntimeError, match="plan 'packed' cannot run here"):
        logits(model, ids)
