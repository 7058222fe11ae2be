"""Every method, by one interface: what it trains, that it learns, and that what it saves gives the same predictions."""

import json

import pytest
import torch
from tiny_models import MODELS, OPTIONS, batches_of, request_of

from lowrank_ldu.finetuning import METHODS, get_method

# Their definition starts at random, or (full-rank spectra) at a random update.
OTHER_START = {"fourierft", "vblora", "unilora"}
RATES = {"full": 3e-3, "head": 3e-2, "bitfit": 3e-2, "fourierft": 3e-2, "ldu-pivots": 5e-2, "ldu-core": 5e-2}
KINDS = ["bert", "llama"]
NEEDS_MORE = {"head": "bert", "bitfit": "bert"}


def combinations():
    return [
        pytest.param(name, kind, id=f"{name}-{kind}")
        for name in METHODS
        for kind in KINDS
        if NEEDS_MORE.get(name, kind) == kind
    ]


def prepared(name, kind, **others):
    method = get_method(name)
    return method.prepare(MODELS[kind](), method.options(OPTIONS.get(name, {})), request_of(kind, **others))


def logits(model, kind):
    with torch.no_grad():
        return model(input_ids=batches_of(kind)[0]["input_ids"]).logits


def trained(found, kind, name, steps=8):
    """Losses, and names of parameters that had a gradient."""
    optimizer = torch.optim.AdamW(found.parameter_groups(RATES.get(name, 2e-2), head_lr=1e-2, weight_decay=0.01))
    losses, reached = [], set()
    for step in range(steps):
        batch = batches_of(kind)[step % 2]
        loss = found.model(**batch).loss
        loss.backward()
        reached |= {each for each, value in found.trained().items() if value.grad is not None and value.grad.any()}
        optimizer.step()
        found.after_step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, reached


@pytest.mark.parametrize(("name", "kind"), combinations())
def test_a_method(name, kind, tmp_path):
    method = get_method(name)
    options = method.options(OPTIONS.get(name, {}))
    assert json.loads(json.dumps(options)) == options
    assert method.options(options) == options
    model, request = MODELS[kind](), request_of(kind)
    state = torch.random.get_rng_state()

    found = method.prepare(model, options, request)

    assert torch.equal(torch.random.get_rng_state(), state)
    assert found.trained_numbers == found.expected_numbers
    assert (found.expected_numbers > 0) == (name != "head")
    found.model.eval()
    base = logits(MODELS[kind](), kind)
    start = logits(found.model, kind)
    if name in OTHER_START:
        assert not torch.equal(start, base)
    else:
        torch.testing.assert_close(start, base, rtol=0, atol=1e-5)

    losses, reached = trained(found, kind, name)

    assert sum(losses[-2:]) < sum(losses[:2]) - 1e-3, losses
    unreached = {each for each in found.trained() if each not in reached}
    assert all(each.endswith("key.bias") for each in unreached)  # softmax does not see it
    after = logits(found.model, kind)
    assert (after - start).abs().max() > 1e-3

    found.save(tmp_path / "saved")
    again = prepared(name, kind)
    again.load(tmp_path / "saved")
    torch.testing.assert_close(logits(again.model.eval(), kind), after, rtol=0, atol=2e-5)
    assert again.trained().keys() == found.trained().keys()

    if name == "beft" and kind == "llama":
        return
    plain = found.merged().eval()
    torch.testing.assert_close(logits(plain, kind), after, rtol=0, atol=2e-5)
    assert plain.state_dict().keys() == MODELS[kind]().state_dict().keys()
    torch.testing.assert_close(logits(found.model, kind), after, rtol=0, atol=0)
