"""Cores of blocks, chosen pivots and fitted bases under PEFT."""

import copy
import gc
import json
import pickle
import shutil

import pytest
import torch
from fits_of_bert import FORMS, RANKS, form, save_fits
from half_precision import assert_as_near, references
from peft import (
    AutoPeftModelForSequenceClassification,
    PeftModel,
    convert_to_lora,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from plugin_models import layers, logits, perturb, tiny_bert, tokens
from safetensors.torch import load_file
from torch import nn

from lowrank_ldu.adapters import AdapterError
from lowrank_ldu.fitting import FittedBasis, FittingError, Pivots
from lowrank_ldu.nn.basis import _KNOWN, use_basis
from lowrank_ldu.peft import LolduConfig

QUERY = "bert.encoder.layer.0.attention.self.query"
X = torch.randn(5, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fits")
    save_fits(folder)
    (folder / "other").mkdir()
    save_fits(folder / "other", seed=1)
    return folder


@pytest.fixture
def _no_basis_is_known(monkeypatch):
    """As in a new process."""
    for digest in list(_KNOWN):
        monkeypatch.delitem(_KNOWN, digest)


def adapted(name, files, dtype=torch.float32, **options):
    return get_peft_model(tiny_bert(dtype), LolduConfig(**form(name, files) | options))


@pytest.mark.parametrize("name", FORMS)
def test_cores_start_as_the_base_merge_come_back_and_convert(name, files):
    model = adapted(name, files)
    start = logits(tiny_bert())
    assert torch.equal(logits(model.eval()), start)
    trained = logits(perturb(model, 0.3))
    near = references(model, copy.deepcopy(model).merge_and_unload(), tokens())
    assert (trained - start).abs().max() > 1e-4
    weights = [layer.get_base_layer().weight.clone() for layer in layers(model)]
    model.merge_adapter()
    assert_as_near(logits(model), *near)
    model.unmerge_adapter()
    assert all(
        torch.equal(layer.get_base_layer().weight, was) for layer, was in zip(layers(model), weights, strict=True)
    )
    assert torch.equal(logits(model), trained)
    config, state = convert_to_lora(model, rank=6)
    lora = get_peft_model(tiny_bert(), config)
    set_peft_model_state_dict(lora, state)
    assert_as_near(logits(lora.eval()), *near)


@pytest.mark.parametrize("name", ["chosen", "fitted"])
def test_ranks_are_the_files_or_smaller(name, files):
    config = LolduConfig(**form(name, files))
    assert config.r == 6
    model = get_peft_model(tiny_bert(), config)
    assert {layer.name: layer.adapter("default").rank for layer in layers(model)} == RANKS
    assert not config.rank_pattern  # it may adapt another model
    own = model.peft_config["default"]
    assert set(own.target_modules) == set(RANKS)
    assert own.rank_pattern == {"^" + layer.replace(".", r"\."): rank for layer, rank in RANKS.items()}
    shorter = get_peft_model(
        tiny_bert(), LolduConfig(**form(name, files), r=5, rank_pattern={"0.*query": 3}, target_modules=["query"])
    )
    assert [layer.adapter("default").rank for layer in layers(shorter)] == [3, 4]
    if name == "chosen":
        rows, columns = Pivots.load(files / "pivots.safetensors")[QUERY]
        adapter = layers(shorter)[0].adapter("default")
        assert (adapter.pivot_rows.tolist(), adapter.pivot_columns.tolist()) == (list(rows[:3]), list(columns[:3]))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("loader", ["peft", "low memory", "transformers"])
def test_saved_adapters_load_without_their_pivots_file(name, loader, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(files, "fits")
    model = perturb(adapted(name, tmp_path / "fits"), 0.3)
    model.save_pretrained("adapter")
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert "pivots_file" not in written
    kept = {"offset", "sigma", "initial_sigma", "base_sample"} | (
        set() if "fitted" in name else {"pivot_rows"} if name == "dense" else {"pivot_rows", "pivot_columns"}
    )
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {key.rpartition(".")[2] for key in state} == kept
    (tmp_path / "fits" / "pivots.safetensors").unlink()
    if loader == "transformers":
        loaded = tiny_bert()
        loaded.load_adapter("adapter")
    else:
        loaded = PeftModel.from_pretrained(tiny_bert(), "adapter", low_cpu_mem_usage=loader == "low memory").eval()
    assert_as_near(logits(loaded), *references(model, tiny_bert(), tokens()))
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    first, again = layers(model)[0].held("default"), layers(loaded)[0].held("default")
    assert first.adapter.options == again.adapter.options
    assert torch.equal(first.adapter.offset, again.adapter.offset)


def test_a_configuration_of_the_published_form_has_no_new_field(tmp_path):
    get_peft_model(tiny_bert(), LolduConfig(r=4)).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert not set(written) & {"core", "block_size", "basis_digest", "pivots_file", "basis_file"}
    assert written["r"] == 4


@pytest.mark.parametrize("where", ["written", "beside", "inside", "process"])
@pytest.mark.usefixtures("_no_basis_is_known")
def test_a_basis_is_found_where_the_page_says(where, files, tmp_path):
    shutil.copytree(files, tmp_path / "fits")
    file = tmp_path / "fits" / "basis.safetensors"
    base = tmp_path / "base"
    tiny_bert().save_pretrained(base)
    plain = type(tiny_bert()).from_pretrained(base).eval()
    model = perturb(get_peft_model(plain, LolduConfig(basis_file=file, task_type="SEQ_CLS")), 0.3)
    folder = tmp_path / "adapters" / "one"
    model.save_pretrained(folder)
    _KNOWN.clear()
    if where in {"beside", "inside"}:
        file.rename((folder if where == "inside" else folder.parent) / file.name)
    elif where == "process":
        use_basis(FittedBasis.load(file.rename(tmp_path / "elsewhere")))
    for load in (lambda: PeftModel.from_pretrained(tiny_bert(), folder),
                 lambda: AutoPeftModelForSequenceClassification.from_pretrained(folder)):  # fmt: skip
        assert torch.equal(logits(load().eval()), logits(model))
    _KNOWN.clear()
    shutil.rmtree(tmp_path / "fits")
    for path in (folder / file.name, folder.parent / file.name):
        path.unlink(missing_ok=True)
    shutil.copy(files / "other" / "basis.safetensors", folder)
    digest = model.peft_config["default"].basis_digest
    with pytest.raises(AdapterError, match=rf"fitted basis {digest}, which is not known \(.* is basis .*; accepted: "):
        PeftModel.from_pretrained(tiny_bert(), folder)


def test_any_number_of_adapters_on_a_basis_share_its_factors(files):
    model = adapted("fitted", files)
    for number in range(5):
        model.add_adapter(f"n{number}", LolduConfig(**form("fitted", files)))
    assert all(len(layer.loldu_factors) == 1 for layer in layers(model))
    model.delete_adapter("n0")
    assert all(len(layer.loldu_factors) == 1 for layer in layers(model))
    model.add_adapter("other", LolduConfig(**form("fitted", files / "other")))
    assert all(len(layer.loldu_factors) == 2 for layer in layers(model))
    model.delete_adapter("other")
    assert all(len(layer.loldu_factors) == 1 for layer in layers(model))


@pytest.mark.parametrize("loaded", [False, True], ids=["made", "loaded"])
def test_adapters_of_equal_and_other_pivots_work_side_by_side(loaded, files, tmp_path):
    model = adapted("chosen", files)
    model.add_adapter("equal", LolduConfig(**form("chosen", files)))
    model.add_adapter("other", LolduConfig(**form("chosen", files / "other")))
    model.add_adapter("fitted", LolduConfig(**form("fitted", files)))
    assert all(len(layer.loldu_factors) == 3 for layer in layers(model))
    perturb(model, 0.5)
    if loaded:
        model.save_pretrained(tmp_path)
        folders = {name: tmp_path if name == "default" else tmp_path / name for name in model.peft_config}
        again = PeftModel.from_pretrained(tiny_bert(), tmp_path)
        for name in ("equal", "other", "fitted"):
            again.load_adapter(folders[name], name)
        assert all(len(layer.loldu_factors) == 3 for layer in layers(again))
        model = again.eval()
    names, ids = ["default", "equal", "__base__", "other", "fitted"], tokens(5)
    plain = logits(tiny_bert(), ids), logits(tiny_bert(torch.float64), ids)
    mixed, exact = logits(model, ids, adapter_names=names), copy.deepcopy(model).double()
    for row, name in enumerate(names):
        exact.set_adapter("default" if name == "__base__" else name)
        if name == "__base__":
            exact.disable_adapter_layers()
        assert_as_near(mixed[row], logits(exact, ids[row : row + 1])[0], *plain)
        exact.enable_adapter_layers()
    model.base_model.set_adapter(["default", "other", "fitted"])
    near = references(model, tiny_bert(), tokens())
    assert_as_near(logits(model), *near)
    model.merge_adapter()
    assert_as_near(logits(model), *near)
    model.unmerge_adapter()
    with pytest.raises(ValueError, match="do not share their factors"):
        model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "sum")
    del exact
    gc.collect()


@pytest.mark.parametrize("name", FORMS)
def test_weighted_sums_are_exact(name, files, tmp_path):
    model = adapted(name, files)
    model.add_adapter("other", LolduConfig(**form(name, files)))
    perturb(model)
    model.add_weighted_adapter(["default", "other"], [0.7, -1.3], "sum")
    for layer in layers(model):
        assert len(layer.loldu_factors) == 1
        first, second, both = (layer.get_delta_weight(each) for each in ("default", "other", "sum"))
        torch.testing.assert_close(both, 0.7 * first - 1.3 * second, atol=1e-6, rtol=1e-4)
    model.set_adapter("sum")
    expected = logits(model)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_bert(), tmp_path / "sum").eval()
    torch.testing.assert_close(logits(again), expected, atol=1e-5, rtol=1e-4)


def test_sums_of_adapters_that_have_no_common_form_are_refused(files):
    model = adapted("dense", files, target_modules=["query"])
    model.add_adapter("other", LolduConfig(r=5, target_modules=["value"], parametrization="gram"))
    with pytest.raises(ValueError, match="have different kinds of factors, which no single adapter has; accepted"):
        model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "sum")
    model.add_adapter("third", LolduConfig(r=3, core="dense", target_modules=["value"], parametrization="gram"))
    perturb(model)
    model.add_weighted_adapter(["default", "third"], [2.0, 3.0], "sum")  # of other layers, and ranks
    for layer in layers(model):
        only, weight = ("default", 2.0) if "query" in layer.name else ("third", 3.0)
        torch.testing.assert_close(layer.get_delta_weight("sum"), weight * layer.get_delta_weight(only))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(name, dtype, files):
    model = adapted(name, files, dtype)
    start = logits(tiny_bert(dtype))
    assert torch.equal(logits(model.eval()), start)
    assert all(layer.adapter("default").offset.dtype == torch.float32 for layer in layers(model))
    perturb(model, 0.02)
    plain = logits(tiny_bert(dtype)), logits(tiny_bert(dtype).float())
    assert_as_near(logits(model), logits(copy.deepcopy(model).float()), *plain)


@pytest.mark.parametrize("name", FORMS)
def test_random_starts_show_and_copies_compute_the_same(name, files):
    model = adapted(name, files, init_weights=False).eval()
    expected = logits(model)
    for layer in layers(model):
        weight, update = layer.get_base_layer().weight, layer.get_delta_weight("default")
        torch.testing.assert_close(update.norm() / weight.norm(), torch.tensor(0.1), atol=0.05, rtol=0)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301  # written here
        assert torch.equal(logits(twin), expected)
    again = adapted(name, files)
    again.load_state_dict(model.state_dict())
    assert torch.equal(logits(again.eval()), expected)


def test_pivots_that_are_yet_to_come_are_asked_for_by_the_name_of_the_layer(files):
    model = perturb(adapted("chosen", files))
    config = copy.copy(model.peft_config["default"])
    config._fit, config.pivots_file = None, None
    waiting = get_peft_model(tiny_bert(), config)
    message = f"layer '{QUERY}': adapter 'default' has pivoting 'chosen' and no pivots; accepted: pivots_file"
    for call in (
        lambda: logits(waiting),
        waiting.merge_adapter,
        lambda: layers(waiting)[0].get_delta_weight("default"),
        lambda: model.add_weighted_adapter(["default", "waiting"], [1.0, 1.0], "sum"),
    ):
        if call is not waiting.merge_adapter and "waiting" not in model.peft_config:
            model.add_adapter("waiting", config)
        with pytest.raises(ValueError, match=rf"{message}|do not share their factors"):
            call()
    state = get_peft_model_state_dict(model)
    set_peft_model_state_dict(waiting, state)
    set_peft_model_state_dict(model, state, adapter_name="waiting")
    assert torch.equal(logits(waiting.eval()), logits(model))
    assert all(len(layer.loldu_factors) == 1 for layer in layers(model))


def plain(seed=0, **more):
    torch.manual_seed(seed)
    return nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 6), **more})


def test_names_that_match_other_modules_too_are_matched_whole(tmp_path, files):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    from lowrank_ldu.fitting import LayerPivots

    path = Pivots({"0": LayerPivots((2, 1), (0, 3))}, {"0": (8, 8)}, {"0": 0.5}, "dense", None, "gradient", None).save(
        tmp_path / "pivots.safetensors"
    )
    model = get_peft_model(inner, LolduConfig(pivots_file=path, core="dense"))
    assert [layer.name for layer in layers(model)] == ["0"]
    with pytest.raises(ValueError, match="layers_to_transform is given, and names in .* match other modules"):
        get_peft_model(copy.deepcopy(model.unload()), LolduConfig(pivots_file=path, layers_to_transform=[0]))
    with pytest.raises(ValueError, match=r"layer 'bert.encoder.*' of .*: the model \(Sequential\) has no such module"):
        get_peft_model(model.unload(), LolduConfig(**form("chosen", files)))


REFUSED = {
    "r": ({"r": 7}, "chosen", r"r is 7; accepted: up to 6, the largest rank of .*pivots.safetensors"),
    "pattern": ({"rank_pattern": {"value": 5}}, "fitted", "value': rank is 5 by rank_pattern; accepted: up to 4, as"),
    "layer": ({"target_modules": ["query", "key"]}, "fitted", r"self.key': the fitted basis .* has none of it; acc"),
    "embedding": ({"target_modules": ["word_embeddings"]}, "chosen", r"word_embeddings': .* has none of it; accepted"),
    "block": ({"core": "block", "block_size": 3}, "chosen", r"layer '.*0.*value': block_size is 3 at rank 4; accepted"),
    "both": ({"basis_file": "basis.safetensors"}, "chosen", "pivots_file and basis_file are given; accepted: one"),
    "basis": ({"basis": "svd"}, "fitted", "basis is 'svd' with basis_file; accepted: 'fitted'"),
    "pivoting": ({"pivoting": "rook"}, "chosen", "pivoting is 'rook' with pivots_file; accepted: 'chosen'"),
    "init": ({"init": "ones"}, "fitted", "init is 'ones' with basis 'fitted'; accepted: the def"),
    "type": ({"pivots_file": 3}, "dense", "pivots_file is 3; accepted: the path of a file, or None"),
    "file": ({"pivots_file": "none"}, "dense", "none: No such file or directory; accepted: a lowrank-ldu"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "name", "message"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused(options, name, message, files):
    given = form(name, files) | options
    if "pivots_file" in options:
        del given["r"], given["parametrization"]
    with pytest.raises((TypeError, ValueError, FittingError), match=message):
        get_peft_model(tiny_bert(), LolduConfig(**given))


def test_another_base_is_refused_by_the_name_of_the_layer(files, tmp_path):
    for name, reason in (("chosen", "singular|differs"), ("fitted", "the weight is not the one that the basis")):
        if name == "fitted":
            with pytest.raises(ValueError, match=rf"layer '{QUERY}': .*{reason}"):
                get_peft_model(tiny_bert(seed=1), LolduConfig(**form(name, files)))
        perturb(adapted(name, files)).save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match=rf"layer '{QUERY}'.*({reason})"):
            PeftModel.from_pretrained(tiny_bert(seed=1), tmp_path / name)
