"""Names that differ by a prefix, and adapters beside their base."""

import json

import pytest
import torch
from safetensors.torch import save_file
from weights import weight

from lowrank_ldu.analysis import compare
from lowrank_ldu.analysis.comparison.summary import comparison_headlines

OPTIONS = {"ranks": (2,), "pivoting": "partial", "threads": 1}


def model(seed):
    names = ("encoder.0.weight", "encoder.1.weight", "pooler.weight")
    torch.manual_seed(seed)
    return {name: torch.randn(6, 5) for name in names}


def with_prefix(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", ["bert.", "model.bert."])
def test_a_common_prefix_is_left_out(prefix):
    base, tuned = model(0), model(1)
    plain = compare(base, tuned, **OPTIONS)
    of_tuned = compare(base, with_prefix(tuned, prefix) | {"classifier.weight": torch.ones(2, 5)}, **OPTIONS)
    assert of_tuned.figures.equals(plain.figures)
    assert (of_tuned.prefixes.base, of_tuned.prefixes.tuned) == ("", prefix)
    assert [tensor.name for tensor in of_tuned.others] == ["classifier.weight"]
    assert any(
        f"tuned checkpoint are compared without the '{prefix}'" in each for each in comparison_headlines(of_tuned)
    )
    of_base = compare(with_prefix(base, prefix), tuned, **OPTIONS)
    assert (of_base.prefixes.base, of_base.prefixes.tuned) == (prefix, "")
    assert [tensor.name for tensor in of_base.results] == list(with_prefix(base, prefix))
    assert of_base.figures["explained"].tolist() == plain.figures["explained"].tolist()
    assert not any("compared without" in each for each in comparison_headlines(plain))


def test_names_that_are_equal_stay_partners():
    base, tuned = model(0), model(1)
    # Three are equal, and one of the others would fit another with a prefix: that is not what all of them have.
    comparison = compare(base | {"head.weight": weight(4, 5)}, tuned | {"a.head.weight": weight(4, 5)}, **OPTIONS)
    assert (comparison.prefixes.base, comparison.prefixes.tuned) == ("", "")
    assert {tensor.name: tensor.status for tensor in comparison.others} == {
        "head.weight": "only in the base",
        "a.head.weight": "only in the tuned checkpoint",
    }
    # Here the prefix is common, but one name without it has its partner already.
    tuned = with_prefix(model(1), "m.") | {"pooler.weight": torch.eye(6, 5)}
    comparison = compare(base, tuned, **OPTIONS)
    assert comparison.prefixes.tuned == "m."
    assert {tensor.name: tensor.status for tensor in comparison.others} == {
        "m.pooler.weight": "only in the tuned checkpoint"
    }


def adapter(folder, factors, prefix="base_model.model."):
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {}
    for module, (a, b) in factors.items():
        tensors |= {f"{prefix}{module}.lora_A.weight": a, f"{prefix}{module}.lora_B.weight": b}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_a_lora_adapter_is_measured_by_its_updates(tmp_path, prefix):
    base = model(0)
    factors = {f"{prefix}encoder.{layer}": (torch.randn(2, 5), torch.randn(6, 2)) for layer in (0, 1)}
    merged = dict(base)
    for layer in (0, 1):
        a, b = factors[f"{prefix}encoder.{layer}"]
        merged[f"encoder.{layer}.weight"] = base[f"encoder.{layer}.weight"] + 3 * b @ a
    expected = compare(base, merged, **OPTIONS)
    found = compare(base, adapter(tmp_path / "adapter", factors), **OPTIONS)
    assert found.updates
    assert not expected.updates
    assert [tensor.name for tensor, _ in found.matrices] == ["encoder.0.weight", "encoder.1.weight"]
    # The merged weights are rounded to float32, the updates are not.
    for column in ("explained", "trained_numbers", "rank"):
        assert found.figures[column].tolist() == pytest.approx(expected.figures[column].tolist(), abs=1e-5)
    assert [(tensor.name, tensor.reason) for tensor in found.unchanged] == [
        ("pooler.weight", "the adapter does not change it")
    ]
    assert found.prefixes.tuned == prefix
    lora = found.figures.query("method == 'lora' and rank == 2")
    assert lora["explained"].tolist() == pytest.approx([1.0, 1.0])
