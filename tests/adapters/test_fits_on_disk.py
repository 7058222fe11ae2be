"""Adapters with cores of blocks, at chosen pivots and in fitted bases: their files, and what is exported of them."""

import copy
import json
import shutil

import pytest
import torch
from half_precision import assert_as_near, references
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import mse_loss

from lowrank_ldu.adapters import (
    AdapterError,
    export_delta,
    export_lora,
    export_merged,
    load_adapter,
    read_adapter,
    save_adapter,
)
from lowrank_ldu.checkpoints import open_checkpoint
from lowrank_ldu.fitting import FittedBasis, choose_pivots, fit_basis
from lowrank_ldu.nn import AdapterOptions, inject, lowrank_layers, unload
from lowrank_ldu.nn.basis import _KNOWN, use_basis
from lowrank_ldu.nn.options import LATER_OPTIONS, OPTION_NAMES
from lowrank_ldu.peft import LolduConfig

NAMES = ["0", "2"]
X = torch.linspace(-1, 1, 5 * 24).reshape(5, 24)
FORMS = {
    "dense": {"rank": 4, "core": "dense", "parametrization": "gram"},
    "block": {"rank": 4, "core": "block", "block_size": 2, "pivoting": "complete"},
    "chosen": {"core": "dense"},
    "fitted": {},
    "fitted-block": {"core": "block", "block_size": 2, "parametrization": "normalized"},
}


def base_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(24, 20), nn.Tanh(), nn.Linear(20, 6))


def loss(model, batch):
    return mse_loss(model(batch), torch.ones(len(batch), 6))


def batches():
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(16, 24, generator=generator) for _ in range(2)]


@pytest.fixture(scope="module")
def fits(tmp_path_factory):
    """A folder with pivots.safetensors and basis.safetensors, and the base in base/."""
    folder = tmp_path_factory.mktemp("fits")
    choose_pivots(base_model(), batches(), loss, rank=4).save(folder / "pivots.safetensors")
    fit_basis(base_model(), batches(), loss, rank=4).save(folder / "basis.safetensors")
    fit_basis(base_model(), batches()[:1], loss, rank=4).save(folder / "other.safetensors")
    (folder / "base").mkdir()
    save_file(base_model().state_dict(), folder / "base" / "model.safetensors")
    return folder


def forget_bases():
    """Be as a new process."""
    _KNOWN.clear()


def trained(name, fits):
    """A model with layers of a form, with numbers as of training."""
    from lowrank_ldu.fitting import Pivots

    model, options = base_model(), dict(FORMS[name])
    if name == "chosen":
        options["pivots"] = Pivots.load(fits / "pivots.safetensors")
    if "fitted" in name:
        options["fitted_basis"] = FittedBasis.load(fits / "basis.safetensors")
    inject(model, NAMES, **options)
    for _, layer in lowrank_layers(model):
        with torch.no_grad():
            layer.offset.normal_(std=0.1)
            layer.sigma.mul_(0.9)
    return model


def of_peft(name, fits, folder):
    """The same of PEFT's making, saved to a folder."""
    options = {"r" if key == "rank" else key: value for key, value in FORMS[name].items()}
    if name in {"chosen", "fitted", "fitted-block"}:
        file = "pivots" if name == "chosen" else "basis"
        options[f"{file}_file"] = fits / f"{file}.safetensors"
    model = get_peft_model(base_model(), LolduConfig(**{"target_modules": NAMES} | options)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(("offset", "sigma")):
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def merged_outputs(model):
    plain = copy.deepcopy(model)
    for _, layer in lowrank_layers(plain):
        layer.merge(keep_base=False)
    unload(plain)
    return references(model, plain, X)


@pytest.mark.parametrize("name", FORMS)
def test_they_load_with_their_core(name, fits, tmp_path):
    model = trained(name, fits)
    save_adapter(model, tmp_path)
    tensors = load_file(tmp_path / "adapter.safetensors")
    extra = set() if "fitted" in name else {"pivot_rows"} if name == "dense" else {"pivot_rows", "pivot_columns"}
    always = {"offset", "sigma", "initial_sigma", "base_sample", "update_sketch"}
    assert set(tensors) == {f"{layer}.{key}" for layer in NAMES for key in always | extra}
    assert tensors["0.offset"].shape == model[0].options.core_shape
    forget_bases()
    again = base_model()
    load_adapter(again, tmp_path, basis=fits / "basis.safetensors" if "fitted" in name else None)
    assert_as_near(again(X), *merged_outputs(model))
    for (_, ours), (_, theirs) in zip(lowrank_layers(again), lowrank_layers(model), strict=True):
        assert ours.options == theirs.options
        assert torch.equal(ours.offset, theirs.offset)
    save_adapter(again, tmp_path / "again")
    for ours, theirs in zip(*(sorted(load_file(folder / "adapter.safetensors").items()) for folder in
                              (tmp_path, tmp_path / "again")), strict=True):  # fmt: skip
        assert ours[0] == theirs[0]
        assert "sketch" in ours[0] or torch.equal(ours[1], theirs[1])


def test_a_file_of_the_published_form_has_no_new_key(tmp_path):
    model = base_model()
    inject(model, NAMES, 4, pivoting="complete")
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter.json").read_text())
    assert set(config) == {
        "format", "version", "layers", "modules", "tied", "shared", "weights_sha256", "config_sha256",
    }  # fmt: skip
    fields = set(OPTION_NAMES) - set(LATER_OPTIONS) | {"kind", "shape", "base_dtype", "base_sha256"}
    assert all(set(entry) == fields for entry in config["layers"].values())


def test_folders_of_peft_that_were_written_before_there_were_cores(tmp_path):
    config = LolduConfig(r=4, target_modules=NAMES, init_weights=False)
    model = get_peft_model(base_model(), config)
    model.save_pretrained(tmp_path)
    assert not set(json.loads((tmp_path / "adapter_config.json").read_text())) & set(LATER_OPTIONS)
    assert read_adapter(tmp_path).layers["0"].record.options == AdapterOptions(rank=4, alpha=4)
    again = base_model()
    load_adapter(again, tmp_path)
    torch.testing.assert_close(again(X), model(X), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("where", ["path", "object", "process", "recorded", "beside", "inside"])
def test_a_basis_is_found_where_the_page_says(where, fits, tmp_path):
    model = trained("fitted", fits)
    file = shutil.copy(fits / "basis.safetensors", tmp_path)
    folder = save_adapter(
        model, tmp_path / "adapters" / "one", basis_file=file if where in {"recorded", "beside", "inside"} else None
    )
    assert not list(folder.glob("basis*"))
    forget_bases()
    basis = None
    if where == "process":
        use_basis(FittedBasis.load(file))
    elif where in {"beside", "inside"}:
        shutil.move(file, folder if where == "inside" else folder.parent)
    elif where in {"path", "object"}:
        basis = file if where == "path" else FittedBasis.load(file)
    again = base_model()
    load_adapter(again, folder, basis=basis)
    torch.testing.assert_close(again(X), model(X), atol=1e-6, rtol=1e-6)


def test_a_basis_that_is_not_found_is_named(fits, tmp_path):
    model = trained("fitted", fits)
    digest = model[0].options.basis_digest
    shutil.copy(fits / "basis.safetensors", tmp_path)
    folder = save_adapter(model, tmp_path / "adapter", basis_file=tmp_path / "basis.safetensors")
    forget_bases()
    shutil.copy(fits / "other.safetensors", tmp_path / "basis.safetensors")
    other = FittedBasis.load(fits / "other.safetensors").digest
    unknown = rf"fitted basis {digest}, which is not known \(.*basis.safetensors is basis {other}\); accepted: its file"
    plain = base_model()
    with pytest.raises(AdapterError, match=unknown):
        load_adapter(plain, folder)
    with pytest.raises(AdapterError, match=rf"basis has digest {other}; accepted: .*{digest}"):
        load_adapter(plain, folder, basis=fits / "other.safetensors")
    with pytest.raises(AdapterError, match="none: No such file or directory"):
        load_adapter(plain, folder, basis="none")
    with pytest.raises(TypeError, match="basis is a int; accepted: a FittedBasis, or the path of its file"):
        load_adapter(plain, folder, basis=3)
    (tmp_path / "basis.safetensors").write_bytes(b"damaged")
    with pytest.raises(
        AdapterError, match=rf"fitted basis {digest}, which is not known \(.*basis.safetensors"
    ) as raised:
        load_adapter(plain, folder)
    assert len(str(raised.value).splitlines()) == 1
    with pytest.raises(AdapterError, match=rf"layer '0': no basis of digest {digest} is known; accepted: to load its"):
        read_adapter(folder).layers["0"].bind(plain[0].weight.detach())
    assert not list(lowrank_layers(plain))
    with pytest.raises(AdapterError, match=f"basis_file is .* of digest {other}; accepted: {digest}"):
        save_adapter(model, tmp_path / "again", basis_file=fits / "other.safetensors")
    with pytest.raises(AdapterError, match=f"basis_file is .* of digest {other}; accepted: none, as no layer"):
        save_adapter(trained("dense", fits), tmp_path / "again", basis_file=fits / "other.safetensors")
    assert not (tmp_path / "again").exists()
    with pytest.raises(AdapterError, match="basis has digest .*; accepted: what the adapter's factors are of, none"):
        load_adapter(plain, save_adapter(trained("dense", fits), tmp_path / "dense"), basis=fits / "other.safetensors")


@pytest.mark.parametrize("name", ["chosen", "fitted"])
def test_another_base_is_refused(name, fits, tmp_path):
    save_adapter(trained(name, fits), tmp_path)
    other = base_model(seed=1)
    with pytest.raises(AdapterError, match="layer '0': the weight is not the one that the adapter was trained on"):
        load_adapter(other, tmp_path)
    rounded = base_model().bfloat16()
    with pytest.warns(UserWarning, match="the weight is not the one"):
        load_adapter(rounded, tmp_path, accept_other_base=True)
    assert len(list(lowrank_layers(rounded))) == 2
    if name == "fitted":
        with pytest.raises(AdapterError, match="layer '0': .*not the one that the basis was fitted for"):
            load_adapter(other, tmp_path, accept_other_base=True)


@pytest.mark.parametrize("writer", ["native", "peft"])
@pytest.mark.parametrize("name", FORMS)
def test_exports_are_exact(name, writer, fits, tmp_path):
    if writer == "native":
        model = trained(name, fits)
        save_adapter(model, tmp_path / "adapter")
        near = merged_outputs(model)
    else:
        model = of_peft(name, fits, tmp_path / "adapter")
        near = references(model, copy.deepcopy(model).merge_and_unload(), X)
    forget_bases()
    adapter, base = read_adapter(tmp_path / "adapter"), open_checkpoint(fits / "base")
    basis = {"basis": fits / "basis.safetensors"} if "fitted" in name else {}
    result = export_lora(adapter, base, tmp_path / "lora", **basis)
    assert set(result.ranks.values()) == {4}
    assert set(result.errors.values()) == {0.0}
    plain = PeftModel.from_pretrained(base_model(), tmp_path / "lora").eval()
    assert type(plain.peft_config["default"]) is LoraConfig
    assert_as_near(plain(X), *near)
    export_merged(adapter, base, tmp_path / "merged", **basis)
    merged = base_model()
    merged.load_state_dict(load_file(tmp_path / "merged" / "model.safetensors"))
    assert_as_near(merged(X), *near)
    export_delta(adapter, base, tmp_path / "delta", **basis)
    added = base_model()
    with torch.no_grad():
        for key, update in load_file(tmp_path / "delta" / "delta.safetensors").items():
            added.get_parameter(key).add_(update)
    assert_as_near(added(X), *near)
    small = export_lora(adapter, base, tmp_path / "small", rank=2, **basis)
    assert set(small.ranks.values()) == {2}
    again = base_model()
    load_adapter(again, tmp_path / "adapter", **basis)
    assert_as_near(again(X), *near)


@pytest.mark.parametrize("export", [export_lora, export_merged, export_delta])
def test_exports_need_the_basis(export, fits, tmp_path):
    save_adapter(trained("fitted", fits), tmp_path / "adapter")
    forget_bases()
    with pytest.raises(AdapterError, match=r"fitted basis [0-9a-f]{64}, which is not known; accepted: its file"):
        export(read_adapter(tmp_path / "adapter"), open_checkpoint(fits / "base"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
