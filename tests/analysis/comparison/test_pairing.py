"""Names that differ by a prefix, and adapters beside their base."""

import json

import pytest
import torch
from safetensors.torch import save_file
from weights import weight

from lowrank_ldu.analysis import compare
from lowrank_ldu.analysis.comparison.summary import comparison_headlines
from lowrank_ldu.checkpoints import open_checkpoint
from lowrank_ldu.errors import CheckpointError, NothingToCompareError

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
        f"tuned checkpoint (state dict in memory) are compared without the '{prefix}'" in each
        for each in comparison_headlines(of_tuned)
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


def test_of_two_models_in_one_file_none_is_chosen():
    base = {"encoder.0.weight": weight(6, 5)}
    tuned = with_prefix({"encoder.0.weight": weight(5, 6).T}, "model.")
    averaged = with_prefix({"encoder.0.weight": weight(5, 6).T * 2}, "ema.")
    with pytest.raises(NothingToCompareError, match="2 x only in the tuned checkpoint"):
        compare(base, tuned | averaged, **OPTIONS)
    with pytest.raises(NothingToCompareError, match="2 x only in the base"):
        compare(tuned | averaged, base, **OPTIONS)


def adapter(folder, factors, prefix="base_model.model.", others=None, **options):
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6} | options
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {}
    for module, (a, b) in factors.items():
        tensors |= {f"{prefix}{module}.lora_A.weight": a, f"{prefix}{module}.lora_B.weight": b}
    tensors |= {f"{prefix}{name}": tensor for name, tensor in (others or {}).items()}
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


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_an_update_of_fused_weights_is_taken_apart_as_they_are(tmp_path, prefix):
    torch.manual_seed(0)
    shapes = {"attn.c_attn": (4, 12), "attn.c_proj": (4, 4), "mlp.c_fc": (4, 16), "mlp.c_proj": (16, 4)}
    base = {f"h.0.{module}.weight": torch.randn(shape) for module, shape in shapes.items()}  # (in, out)
    factors = {
        f"{prefix}h.0.{module}": (torch.randn(2, shapes[module][0]), torch.randn(shapes[module][1], 2))
        for module in ("attn.c_attn", "attn.c_proj", "mlp.c_fc")
    }
    found = compare(base, adapter(tmp_path / "adapter", factors, fan_in_fan_out=True), **OPTIONS)
    a, b = (factor.double().numpy() for factor in factors[f"{prefix}h.0.attn.c_attn"])
    whole = base["h.0.attn.c_attn.weight"].double().numpy()
    for place, part in enumerate("qkv"):
        columns = slice(4 * place, 4 * place + 4)
        update = 3 * (b @ a).T[:, columns]
        matrix = next(each for tensor, each in found.matrices if tensor.name == f"h.0.attn.c_attn.weight[{part}]")
        assert matrix.update_norm == pytest.approx((update**2).sum() ** 0.5, rel=1e-5)
        assert matrix.base_norm == pytest.approx((whole[:, columns] ** 2).sum() ** 0.5, rel=1e-5)
    merged = {name: tensor + 3 * _update(factors, f"{prefix}{name}").T for name, tensor in base.items()}
    assert found.figures["explained"].tolist() == pytest.approx(
        compare(base, merged, **OPTIONS).figures["explained"].tolist(), abs=1e-4
    )
    assert [tensor.name for tensor in found.others] == ["h.0.mlp.c_proj.weight"]


def _update(factors, name):
    a, b = factors.get(name.removesuffix(".weight"), (torch.zeros(1, 1), torch.zeros(1, 1)))
    return b @ a


def test_in_projections_and_what_is_wrapped_twice_are_found(tmp_path):
    torch.manual_seed(0)
    base = {"attn.in_proj_weight": torch.randn(12, 4), "attn.out_proj.weight": torch.randn(4, 4)}
    factors = {
        "attn": (torch.randn(2, 4), torch.randn(12, 2)),
        "attn.base_layer.out_proj": (torch.randn(2, 4), torch.randn(4, 2)),
    }
    found = compare(base, adapter(tmp_path / "adapter", factors), **OPTIONS)
    norms = {tensor.name: matrix.update_norm for tensor, matrix in found.matrices}
    a, b = factors["attn"]
    rows = 3 * b @ a
    expected = {f"attn.in_proj_weight[{part}]": rows[4 * at : 4 * at + 4] for at, part in enumerate("qkv")}
    a, b = factors["attn.base_layer.out_proj"]
    expected["attn.out_proj.weight"] = 3 * b @ a
    assert norms == pytest.approx({name: float(update.norm()) for name, update in expected.items()}, rel=1e-5)


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_weights_that_an_adapter_changes_otherwise_are_not_called_unchanged(tmp_path, prefix):
    torch.manual_seed(0)
    base = model(0) | {"classifier.weight": torch.randn(3, 6), "embedding.weight": torch.randn(9, 5)}
    factors = {f"{prefix}encoder.{layer}": (torch.randn(2, 5), torch.randn(6, 2)) for layer in (0, 1)}
    others = {
        f"{prefix}encoder.1.lora_magnitude_vector": torch.ones(6),
        f"{prefix}classifier.weight": torch.ones(3, 6),
        f"{prefix}embedding.token_adapter.trainable_tokens_delta": torch.ones(2, 5),
    }
    found = compare(base, adapter(tmp_path / "adapter", factors, others=others), **OPTIONS)
    assert {tensor.name: tensor.status for tensor in found.results if tensor.base_shape} == {
        "encoder.0.weight": "compared",
        "encoder.1.weight": "not compared",
        "pooler.weight": "unchanged",
        "classifier.weight": "not compared",
        "embedding.weight": "not compared",
    }


def test_adapters_of_other_models_and_adapters_as_bases_are_refused(tmp_path):
    other = adapter(tmp_path / "other", {"decoder.0": (torch.ones(2, 5), torch.ones(6, 2))})
    with pytest.raises(NothingToCompareError, match="3 x only in the base"):
        compare(model(0), other, **OPTIONS)
    with pytest.raises(CheckpointError, match="given as the base"):
        compare(other, model(0), **OPTIONS)


def test_an_adapter_of_another_method_is_refused_by_its_name(tmp_path):
    factors = {"encoder.0": (torch.ones(2, 5), torch.ones(6, 2))}
    other = adapter(tmp_path / "other", factors, peft_type="LOHA")
    for pair in ((model(0), other), (other, model(0))):
        with pytest.raises(CheckpointError, match="the method 'LOHA'.*merge_and_unload"):
            compare(*pair, **OPTIONS)


def test_the_reason_says_what_is_no_update(tmp_path):
    factors = {f"encoder.{layer}": (torch.ones(2, 5), torch.ones(6, 2)) for layer in (0, 1)}
    others = {"encoder.1.lora_magnitude_vector": torch.ones(6), "pooler.weight": torch.ones(6, 5)}
    found = compare(model(0), adapter(tmp_path / "a", factors, others=others), **OPTIONS)
    reasons = {each.name.removeprefix("base_model.model."): (each.tuned_dtype, each.reason) for each in found.others}
    unread = "not read, and may hold weights: "
    for side in "AB":
        reason = f"{unread}factor of a DoRA update, which needs the base weight"
        assert reasons[f"encoder.1.lora_{side}.weight"] == ("", reason)
    whole = "float32 tensor that is no factor of an update, as of a module that was trained whole"
    stored = [each for each in found.others if each.name == "base_model.model.pooler.weight"]
    assert [each.reason for each in stored] == [f"{unread}{whole}"]
    pissa = adapter(tmp_path / "b", factors, init_lora_weights="pissa")
    with pytest.raises(NothingToCompareError, match="4 x not compared: .*the base when it began"):
        compare(model(0), pissa, **OPTIONS)


@pytest.mark.parametrize(
    "options",
    [
        {"use_qalora": True},
        {"layer_replication": [[0, 2], [1, 3]]},
        {"kasa_config": {"beta": 1.0}},
        {"target_parameters": ["encoder.0.weight"]},
    ],
)
def test_products_that_are_no_updates_of_the_base_are_not_read(tmp_path, options):
    folder = adapter(tmp_path / "a", {"encoder.0": (torch.ones(2, 5), torch.ones(6, 2))}, **options)
    with open_checkpoint(folder) as reader:
        assert reader.tensors == []
        assert all(next(iter(options)) in what for what in reader.ignored.values())
    with pytest.raises(NothingToCompareError, match="not measured"):
        compare(model(0), folder, **OPTIONS)


def test_a_part_of_a_checkpoint_is_not_compared_with_its_transpose():
    base = {"h.0.attn.c_proj.weight": weight(8, 8), "h.0.mlp.c_fc.weight": weight(8, 32), "w": weight(6, 5)}
    tuned = {name: tensor + 0.1 * weight(*tensor.shape, seed=1) for name, tensor in base.items()}
    whole = compare(base, tuned, **OPTIONS)
    del tuned["h.0.mlp.c_fc.weight"]
    part = compare(base, tuned, **OPTIONS)
    assert [tensor.name for tensor, _ in whole.matrices] == list(base)
    assert [tensor.name for tensor, _ in part.matrices] == ["w"]
    assert "stored as (in, out)" in part.results[0].reason
    # Of two such parts both are as they are stored.
    both = compare({name: base[name] for name in tuned}, tuned, **OPTIONS)
    assert both.matrices[0][1].update_norm == pytest.approx(whole.matrices[0][1].update_norm)


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("tied_side", ["base", "tuned"])
def test_a_weight_that_is_tied_on_one_side_is_compared(tmp_path, tied_side, saved):
    """A fine-tuning may have taken it apart; on both sides alike it is one weight, and compared once."""
    shared, own = weight(8, 6), weight(8, 6, seed=1)
    tied, untied = {"embedding": shared, "head": shared}, {"embedding": shared + 0.1, "head": own}
    sides = [tied, untied] if tied_side == "base" else [untied, tied]
    moved = {"embedding": shared + 0.1}
    again = moved | {"head": moved["embedding"]}
    if saved:
        for number, side in enumerate([*sides, tied, again]):
            torch.save(side, tmp_path / f"{number}.pt")
        *sides, tied, again = [tmp_path / f"{number}.pt" for number in range(4)]
    found = {result.name: result for result in compare(*sides, ranks=2).results}
    assert found["head"].status == found["embedding"].status == "compared"
    expected = float((own - shared).norm() / (shared if tied_side == "base" else own).norm())
    assert found["head"].comparison.relative_norm == pytest.approx(expected, rel=1e-5)
    both = {result.name: (result.status, result.reason) for result in compare(tied, again, ranks=2).results}
    assert both == {"embedding": ("compared", None), "head": ("not compared", "the same tensor as 'embedding'")}
