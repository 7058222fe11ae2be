"""Batches whose rows use different adapters compute in each row what its adapter computes alone."""

import copy

import pytest
import torch
from half_precision import assert_as_near
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
    plain = logits(tiny_bert(), ids), logits(tiny_bert(torch.float64), ids)
    mixed, exact = logits(model, ids, adapter_names=NAMES), copy.deepcopy(model).double()
    for row, name in enumerate(NAMES):
        single = alone(exact, name, lambda row=row: logits(exact, ids[row : row + 1]))
        assert_as_near(mixed[row], single[0], *plain)


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


@pytest.mark.parametrize("where", ["argument", "model"])
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_beams_of_a_configuration(where, options):
    model, ids = served(tiny_gpt2(), target_modules=["c_attn", "c_proj"]), tokens(len(NAMES), 5)
    configuration = model.generation_config.__class__(max_new_tokens=5, do_sample=False, pad_token_id=0, **options)
    if where == "model":
        model.base_model.model.generation_config = configuration
    given = {"generation_config": configuration} if where == "argument" else {}

    def generate(ids, **more):
        return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **given, **more)

    mixed = generate(ids, adapter_names=NAMES).unflatten(0, (len(NAMES), -1))
    for row, name in enumerate(NAMES):
        assert torch.equal(mixed[row], alone(model, name, lambda row=row: generate(ids[row : row + 1])))
    assert "_expand_inputs_for_generation" not in vars(model.base_model.model)


def test_sampled_return_sequences_keep_their_adapters():
    model, ids = served(tiny_gpt2(), target_modules=["c_attn", "c_proj"]), tokens(2, 5)
    # Of one candidate, sampling is greedy: its rows can be compared.
    options = {"do_sample": True, "top_k": 1, "num_return_sequences": 3, "max_new_tokens": 5, "pad_token_id": 0}
    mask = torch.ones_like(ids)
    mixed = model.generate(input_ids=ids, attention_mask=mask, adapter_names=NAMES[:2], **options)
    for row, name in enumerate(NAMES[:2]):
        own = alone(
            model,
            name,
            lambda row=row: model.generate(input_ids=ids[row : row + 1], attention_mask=mask[row : row + 1], **options),
        )
        assert torch.equal(mixed[3 * row : 3 * row + 3], own)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_rows_of_offloaded_layers(where, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    ids, plain, base = tokens(len(NAMES), 5), tiny_gpt2(), tiny_gpt2()
    torch.manual_seed(1)
    expected = logits(served(plain, target_modules=["c_attn", "c_proj"]), ids, adapter_names=NAMES)
    if where == "memory":
        accelerate.cpu_offload(base)
    else:
        accelerate.disk_offload(base, str(tmp_path / "weights"))
    torch.manual_seed(1)
    model = served(base, target_modules=["c_attn", "c_proj"])
    assert {parameter.device.type for parameter in base.parameters()} == {"cpu", "meta"}
    torch.testing.assert_close(logits(model, ids, adapter_names=NAMES), expected)


def test_what_cannot_be_mixed_is_refused():
    model, ids = served(tiny_bert()), tokens(2)
    with pytest.raises(ValueError, match="non-existing adapter"):
        logits(model, ids, adapter_names=["default", "none"])
    with pytest.raises(ValueError, match=r"layer '.*query': Length of `adapter_names`.*1 and 2.*exclude_modules"):
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
    plain = logits(tiny_bert(), ids), logits(tiny_bert(torch.float64), ids)
    exact = copy.deepcopy(model).double()
    assert set_plan(model, "factored") > 1
    assert_as_near(logits(model, ids), logits(exact, ids), *plain)
    # "default" and "second" share their factors; "complete" has others.
    mixed = {"adapter_names": ["default", "second", "__base__"]}
    assert_as_near(logits(model, ids, **mixed), logits(exact, ids, **mixed), *plain)
    with pytest.raises(RuntimeError, match="plan 'factored' cannot run here: layer .* do not share their factors"):
        logits(model, ids, adapter_names=["default", "complete", "__base__"])
    set_plan(model, "packed")
    with pytest.raises(RuntimeError, match="plan 'packed' cannot run here"):
        logits(model, ids)
