"""Adapters on disk: what is in the file, that it restores the model, and what is refused."""

import copy
import json
import re
import subprocess
import sys
import warnings
from contextlib import suppress

import pytest
import torch
from half_precision import assert_reloaded
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from lowrank_ldu.adapters import AdapterError, load_adapter, read_adapter, save_adapter
from lowrank_ldu.adapters.format import sealed
from lowrank_ldu.checkpoints import open_checkpoint
from lowrank_ldu.decomposition import PIVOTING
from lowrank_ldu.diagnostics import stored_numbers
from lowrank_ldu.nn import INITIALIZATIONS, inject, lowrank_layers, merge


def base_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(300, 280), nn.ReLU(), nn.Linear(280, 30))


def trained(init="regular_ldu", pivoting="partial", *, preserving=True):
    model = base_model()
    inject(model, "all-linear", 8, alpha=4, init=init, preserving=preserving, pivoting=pivoting, seed=5)
    for _, layer in lowrank_layers(model):
        with torch.no_grad():
            layer.offset.normal_(std=0.1)
            layer.sigma.mul_(0.9)
    return model


@pytest.fixture
def saved(tmp_path):
    return save_adapter(trained(), tmp_path / "adapter")


def unfrozen(name):
    model = base_model()
    inject(model, ["0"], 8)
    model.get_submodule(name).requires_grad_(True)
    return model


@pytest.mark.parametrize(
    ("name", "named"),
    [("2", "'2.weight', '2.bias'"), ("0.base_layer", "'0.base_layer.weight', '0.base_layer.bias'")],
)
def test_what_trains_and_is_not_saved_is_named(tmp_path, name, named):
    with pytest.warns(UserWarning, match=f"parameters that train are not saved: {named}; .*modules_to_save"):
        save_adapter(unfrozen(name), tmp_path)


def test_what_trains_and_is_saved_or_was_never_frozen_is_not_named(tmp_path):
    model = unfrozen("2")
    # Tied: one parameter, of which one name is enough.
    model.add_module("3", nn.Linear(280, 30))
    model[3].weight, model[3].bias = model[2].weight, model[2].bias
    loaded = base_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_adapter(model, tmp_path / "whole", modules_to_save=["3"])
        save_adapter(trained(), tmp_path / "adapter")
        load_adapter(loaded, tmp_path / "adapter")
        loaded.add_module("3", nn.Linear(30, 2))
        save_adapter(loaded, tmp_path / "again")


@pytest.mark.parametrize("pivoting", PIVOTING)
@pytest.mark.parametrize("init", INITIALIZATIONS)
@pytest.mark.parametrize("preserving", [True, False])
def test_a_reloaded_adapter_gives_the_same_model(tmp_path, init, pivoting, preserving):
    model = trained(init, pivoting, preserving=preserving)
    save_adapter(model, tmp_path)
    reloaded = base_model()
    assert load_adapter(reloaded, tmp_path) == ["0", "2"]
    x = torch.randn(5, 300)
    assert_reloaded(reloaded, model, trained(init, pivoting, preserving=preserving).double(), x)
    for (_, ours), (_, theirs) in zip(lowrank_layers(reloaded), lowrank_layers(model), strict=True):
        assert torch.equal(ours.offset, theirs.offset)
        assert torch.equal(ours.sigma, theirs.sigma)
        assert torch.equal(ours.adapter.pivot_rows, theirs.adapter.pivot_rows)


def test_the_file_holds_a_few_numbers_and_nothing_of_the_base(saved):
    tensors = load_file(saved / "adapter.safetensors")
    rows = trained()[0].adapter.pivot_rows
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == {
        "0.offset": ((8,), torch.float32),
        "0.sigma": ((1,), torch.float32),
        "0.pivot_rows": ((8,), torch.uint8 if rows.max() < 256 else torch.int16),
        **{
            f"{layer}.{name}": ((size,), torch.float32)
            for layer in (0, 2)
            for name, size in (("initial_sigma", 1), ("base_sample", 32), ("update_sketch", 32))
        },
        "2.offset": ((8,), torch.float32),
        "2.sigma": ((1,), torch.float32),
        "2.pivot_rows": ((8,), torch.uint8),
    }
    assert sum(path.stat().st_size for path in saved.iterdir()) < 3000
    assert sorted(path.name for path in saved.iterdir()) == ["adapter.json", "adapter.safetensors"]


def test_a_new_process_gets_the_same_output(saved):
    x = torch.linspace(-1, 1, 300)
    script = (
        "import sys, torch; from torch import nn; from lowrank_ldu.adapters import load_adapter; torch.manual_seed(0);"
        "model = nn.Sequential(nn.Linear(300, 280), nn.ReLU(), nn.Linear(280, 30)); load_adapter(model, sys.argv[1]);"
        "print(model(torch.linspace(-1, 1, 300)).tolist())"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, str(saved)], check=True, capture_output=True, text=True, cwd=saved
    ).stdout
    here = base_model()
    load_adapter(here, saved)
    assert_reloaded(lambda _: torch.tensor(json.loads(out)), here, trained().double(), x)


def refused(model, path, message):
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(AdapterError, match=message):
        load_adapter(model, path)
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_another_base_is_refused(saved):
    model = base_model()
    with torch.no_grad():
        model[2].weight[0, 0] += 1e-6
    refused(model, saved, "layer '2': the weight is not the one that the adapter was trained on")


def test_another_dtype_of_the_base_is_refused(saved):
    refused(base_model().bfloat16(), saved, "layer '0': the weight is not the one")


def test_another_shape_is_refused(saved):
    model = nn.Sequential(nn.Linear(300, 280), nn.ReLU(), nn.Linear(280, 31))
    model[0] = base_model()[0]
    refused(model, saved, r"layer '2' has shape \(31, 280\) in the model; accepted: \(30, 280\)")


def test_a_missing_layer_and_one_of_another_kind_are_refused(saved):
    refused(base_model()[:2], saved, "layer '2': the model .* has no such module")
    other = nn.Sequential(base_model()[0], nn.ReLU(), nn.ReLU())
    refused(other, saved, "layer '2' of the model: the layer is a ReLU; accepted: nn.Linear")


def test_a_model_that_has_an_adapter_already_is_refused(saved):
    model = base_model()
    load_adapter(model, saved)
    with pytest.raises(AdapterError, match="layer '0' has an adapter already; accepted: the base model"):
        load_adapter(model, saved)


@pytest.mark.parametrize("name", ["adapter.safetensors", "adapter.json"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    refused(base_model(), saved, f"{name}: No such file or directory")


@pytest.mark.parametrize("name", ["adapter.safetensors", "adapter.json"])
def test_a_change_of_any_byte_is_refused(saved, name):
    path = saved / name
    original = path.read_bytes()
    for position in range(len(original)):
        damaged = bytearray(original)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(AdapterError, match=re.escape(str(saved))):
            read_adapter(saved)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["adapter.safetensors", "adapter.json"]), st.data())
def test_damaged_files_are_refused(saved, name, data):
    path = saved / name
    original = path.read_bytes()
    start = data.draw(st.integers(0, len(original) - 1))
    end = data.draw(st.integers(start, len(original)))
    damaged = original[:start] + data.draw(st.binary(max_size=20)) + original[end:]
    assume(damaged != original)
    path.write_bytes(damaged)
    try:
        with pytest.raises(AdapterError, match=re.escape(str(saved))):
            read_adapter(saved)
    finally:
        path.write_bytes(original)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"\xff\xfe", b"", b"null", b"[]", b'{"format": NaN}', b"1" * 5000])
def test_json_of_any_other_kind_is_refused(saved, text):
    (saved / "adapter.json").write_bytes(text)
    refused(base_model(), saved, "adapter.json: not ")


SAVE = """
import itertools, json, os, pathlib, sys, torch
from lowrank_ldu.adapters import read_adapter, save_adapter
from lowrank_ldu.nn import inject

def model(offset):
    torch.manual_seed(0)
    made = torch.nn.Sequential(torch.nn.Linear(24, 20))
    inject(made, ["0"], rank=5)
    made[0].offset.data.fill_(offset)
    return made

def number(folder):
    return float(read_adapter(folder).layers["0"].tensors["offset"][0])

"""
KILLED = """
def save_until(stop, later, folder):
    calls = itertools.count(1)

    def count(owner, name):
        original = getattr(owner, name)

        def call(*args, **options):
            if next(calls) == stop:
                os._exit(137)  # as kill -9 would
            return original(*args, **options)

        setattr(owner, name, call)

    for name in ("replace", "rename", "fsync", "unlink", "link", "mkdir", "chmod"):
        count(os, name)
    count(pathlib.Path, "open")
    save_adapter(later, folder)
    os._exit(0)

found = []
for stop in itertools.count(1):
    folder = pathlib.Path(sys.argv[1], str(stop))
    save_adapter(model(0.25), folder)
    later, child = model(0.5), os.fork()
    if child == 0:
        save_until(stop, later, folder)
    _, status = os.waitpid(child, 0)
    found.append(number(folder))
    save_adapter(model(0.75), folder)
    assert sorted(os.listdir(folder)) == ["adapter.json", "adapter.safetensors"]
    if os.waitstatus_to_exitcode(status) == 0:
        break
    assert os.waitstatus_to_exitcode(status) == 137
print(json.dumps(found))
"""


def test_a_save_that_is_killed_leaves_the_old_adapter_or_the_new_one(tmp_path):
    """Killed before each of its steps; the next save leaves nothing else behind."""
    out = subprocess.run(
        [sys.executable, "-P", "-c", SAVE + KILLED, str(tmp_path)], check=True, capture_output=True
    ).stdout
    found = json.loads(out)
    assert found == sorted(found)
    assert set(found) == {0.25, 0.5}
    assert found.count(0.5) > 1  # killed between the two files, too


def test_a_save_to_a_full_disk_leaves_the_old_adapter(saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    model = trained()
    with torch.no_grad():
        model[0].offset.fill_(0.5)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            save_adapter(model, saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


TOGETHER = """
save_adapter(model(0.0), sys.argv[1])
children = []
for value in (1.0, 2.0):
    later, child = model(value), os.fork()
    if child == 0:
        for _ in range(60):
            save_adapter(later, sys.argv[1])
        os._exit(0)
    children.append(child)
seen, left = {number(sys.argv[1])}, set(children)
while left:
    seen.add(number(sys.argv[1]))
    for child in list(left):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0
            left.remove(child)
seen.add(number(sys.argv[1]))
print(json.dumps(sorted(seen)))
"""


def test_two_processes_save_while_a_third_reads(tmp_path):
    """Whichever comes first: every read finds the adapter of one of them."""
    arguments = [sys.executable, "-P", "-c", SAVE + TOGETHER, str(tmp_path / "adapter")]
    seen = json.loads(subprocess.run(arguments, check=True, capture_output=True).stdout)
    assert set(seen) <= {0.0, 1.0, 2.0}
    assert seen[-1] > 0


def test_files_that_are_replaced_keep_their_modes(saved):
    (saved / "adapter.json").chmod(0o640)
    save_adapter(trained(), saved)
    assert (saved / "adapter.json").stat().st_mode & 0o777 == 0o640


def consistent(saved, change_tensors=lambda tensors: None, change_config=lambda config: None):
    """An adapter that was changed by someone who mended its checksum."""
    import hashlib

    tensors = load_file(saved / "adapter.safetensors")
    change_tensors(tensors)
    save_file(tensors, saved / "adapter.safetensors")
    config = json.loads((saved / "adapter.json").read_text())
    config["weights_sha256"] = hashlib.sha256((saved / "adapter.safetensors").read_bytes()).hexdigest()
    change_config(config)
    (saved / "adapter.json").write_bytes(sealed(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("2.sigma"), "layer '2': the adapter holds no sigma"),
        (lambda t: t.update({"2.offset": torch.zeros(7)}), r"layer '2': offset has shape \(7,\); accepted: \(8,\)"),
        (lambda t: t.update({"2.offset": torch.full((8,), torch.nan)}), "layer '2': offset holds entries that are not"),
        (
            lambda t: t.update({"2.pivot_rows": torch.zeros(8, dtype=torch.uint8)}),
            "layer '2': pivot_rows holds an index twice",
        ),
        (
            lambda t: t.update({"2.pivot_rows": torch.arange(200, 208)}),
            "layer '2': pivot_rows holds indices from 200 to 207; accepted",
        ),
        (lambda t: t.update({"5.offset": torch.zeros(8)}), "unknown tensors"),
    ],
)
def test_changed_tensors_are_refused(saved, change, message):
    consistent(saved, change_tensors=change)
    refused(base_model(), saved, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(version=99), "format version 99; accepted: 2"),
        (lambda c: c.update(format="lora"), "not the configuration of a LoLDU adapter"),
        (lambda c: c.update(layers={}), "'layers' is dict; accepted: an object with at least one"),
        (lambda c: c.update(modules="2"), "'modules' is '2'; accepted: a list of names"),
        (lambda c: c["layers"]["0"].pop("rank"), "layer '0'; accepted: an object with kind, shape"),
        (lambda c: c["layers"]["0"].update(rank="8"), "layer '0': rank is '8'; accepted: an integer from 1 on"),
        (lambda c: c["layers"]["0"].update(shape=[1]), "layer '0' has shape"),
        (lambda c: c["layers"]["0"].update(init="other"), "layer '0': init is 'other'"),
        (lambda c: c["layers"]["0"].update(alpha=-1.0), "layer '0': alpha is -1.0"),
        (lambda c: c["layers"]["0"].update(rank=10**12), r"layer '0': offset has shape \(8,\); accepted: \(10{12},\)"),
        (lambda c: c["layers"]["0"].update(preserving=1), "layer '0': preserving is 1; accepted: True or False"),
        (lambda c: c["layers"]["0"].update(kind="dense"), "layer '0': kind is 'dense'; accepted: 'linear', "),
        (
            lambda c: c["layers"]["0"].update(kind="embedding"),
            "layer '0' is a Linear in the model; accepted: kind 'embed",
        ),
        (lambda c: c["layers"]["0"].update(basis="eigen"), "layer '0': basis is 'eigen'"),
    ],
)
def test_changed_configurations_are_refused(saved, change, message):
    consistent(saved, change_config=change)
    refused(base_model(), saved, message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.data())
def test_no_value_in_the_configuration_does_worse_than_be_refused(saved, data):
    """Or be accepted where it is a possible one: an alpha of 3, say, whose start of sigma is in the file."""
    path = saved / "adapter.json"
    original = path.read_bytes()
    config = json.loads(original)
    del config["config_sha256"]
    where = data.draw(st.sampled_from([config, config["layers"], config["layers"]["0"]]))
    where[data.draw(st.sampled_from(sorted(where)))] = data.draw(JSON)
    path.write_bytes(sealed(config))
    model, loaded = base_model(), []
    try:
        with suppress(AdapterError):
            loaded = load_adapter(model, saved)
    finally:
        path.write_bytes(original)
    assert [name for name, _ in lowrank_layers(model)] == loaded


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["layers"]["0"].update(shape=[2**70, 2**70]), r"layer '0' has shape \(280, 300\) in the model"),
        (lambda c: c["layers"]["0"].update(rank=2**70), "offset has shape"),
        (lambda c: c["layers"]["0"].update(seed=2**70), "seed is"),
        (lambda c: c["layers"]["0"].update(alpha=2**2000), "alpha|int too large"),
        (lambda c: c["layers"].update({"7": c["layers"].pop("2")}), "layer '7': the adapter holds no offset"),
        (lambda c: c["layers"]["2"].update(pivoting="rook"), "layer '2': the adapter holds no pivot_columns"),
        (lambda c: c["layers"]["2"].update(basis="svd"), r"layer '2': unknown tensors \['pivot_rows'\]"),
        (lambda c: c["layers"]["2"].update(parametrization="gram"), "layer '2': the update comes out about"),
    ],
)
def test_what_the_layers_do_not_add_up_to(saved, change, message):
    consistent(saved, change_config=change)
    refused(base_model(), saved, message)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: m.__setitem__(2, nn.Linear(280, 31)), r"layer '2' has shape \(31, 280\) in the model"),
        (lambda m: m.__setitem__(2, nn.ReLU()), "layer '2' of the model: the layer is a ReLU; accepted: nn.Linear"),
        (lambda m: m.__delitem__(2), "layer '2': the model .* has no such module"),
        (lambda m: m[2].to("meta"), "layer '2' is on the meta device"),
    ],
)
def test_force_accepts_another_weight_and_nothing_else(saved, spoil, message):
    model = base_model()
    spoil(model)
    before = [type(module) for module in model.modules()]
    with pytest.raises(AdapterError, match=message):
        load_adapter(model, saved, accept_other_base=True)
    assert [type(module) for module in model.modules()] == before


def test_force_does_not_accept_damage(saved):
    path = saved / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AdapterError, match="truncated or was changed"):
        load_adapter(base_model(), saved, accept_other_base=True)


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match=r"the model \(Sequential\) has no LoLDU layer"):
        save_adapter(base_model(), tmp_path / "none")
    model = trained()
    merge(model)
    with pytest.raises(RuntimeError, match="layer '0' is merged; accepted: unmerge it before saving"):
        save_adapter(model, tmp_path / "merged")
    with pytest.raises(ValueError, match="the model is a LoLDU layer itself"):
        save_adapter(trained()[0], tmp_path / "root")
    model = trained()
    with torch.no_grad():
        model[2].offset[3] = torch.nan
    with pytest.raises(ValueError, match="layer '2': offset holds entries that are not finite"):
        save_adapter(model, tmp_path / "nan")
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_peft_is_saved_by_peft(tmp_path):
    from lowrank_ldu.peft import LolduConfig

    model = get_peft_model(base_model(), LolduConfig(r=4, target_modules=["0"]))
    with pytest.raises(ValueError, match="accepted: save_pretrained of the PEFT model"):
        save_adapter(model, tmp_path)


class Odd(nn.Linear):
    def get_extra_state(self):
        return "text"


def with_head():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(300, 280), nn.ReLU(), nn.Linear(280, 30), nn.Sequential(nn.Linear(30, 5)))


def test_modules_trained_whole_are_saved_and_loaded(tmp_path):
    model = with_head()
    inject(model, "0", 8)
    with torch.no_grad():
        model[3][0].weight.normal_()
        model[0].offset.fill_(0.1)
    save_adapter(model, tmp_path, modules_to_save=["3"])
    reloaded = with_head()
    assert load_adapter(reloaded, tmp_path) == ["0"]
    x = torch.randn(4, 300)
    exact = with_head().double()
    inject(exact, "0", 8)
    assert_reloaded(reloaded, model, exact, x)
    refused(base_model(), tmp_path, "module '3': the model .* has no such module")
    other = with_head()
    other[3] = nn.Sequential(nn.Linear(30, 6))
    refused(other, tmp_path, r"tensor '3.0.bias' has shape \(5,\) in the adapter; accepted: \(6,\)")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["head"], "modules_to_save names 'head'; the model .* has no such module"),
        (["0"], "'0', which has LoLDU layers"),
        (["0.base_layer"], "'0.base_layer', which is inside of LoLDU layer '0'"),
        (["2"], "names '2', whose state holds '_extra_state', which is not a tensor"),
    ],
)
def test_modules_that_cannot_be_saved_whole(tmp_path, names, message):
    model = with_head()
    model[2] = Odd(280, 30)
    inject(model, "0", 8)
    with pytest.raises(ValueError, match=message):
        save_adapter(model, tmp_path / "new", modules_to_save=names)
    assert not (tmp_path / "new").exists()


def test_a_layer_under_two_names_is_loaded_under_both(tmp_path):
    def shared():
        torch.manual_seed(0)
        layer = nn.Linear(8, 8)
        return nn.Sequential(layer, nn.ReLU(), layer)

    model = shared()
    inject(model, "all-linear", 4)
    with torch.no_grad():
        model[0].offset.fill_(0.5)
    save_adapter(model, tmp_path)
    reloaded = shared()
    load_adapter(reloaded, tmp_path)
    assert reloaded[0] is reloaded[2]
    x = torch.randn(3, 8)
    exact = shared().double()
    inject(exact, "all-linear", 4)
    assert_reloaded(reloaded, model, exact, x)


def test_a_path_that_is_a_file_and_a_single_name(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="which is a file; accepted: a folder"):
        save_adapter(trained(), tmp_path / "file")
    with pytest.raises(TypeError, match="modules_to_save is 'head'; accepted: a sequence of names"):
        save_adapter(trained(), tmp_path / "new", modules_to_save="head")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda path: load_adapter(path, base_model()),
            TypeError,
            "model is a PosixPath and path is a Sequential; acc",
        ),
        (lambda path: save_adapter(path, trained()), TypeError, "model is a PosixPath and path is a Sequential; acc"),
        (lambda path: load_adapter(None, path), TypeError, "model is a NoneType; accepted: a torch.nn.Module"),
        (lambda _: load_adapter(base_model(), 5), TypeError, "path is a int; accepted: a path"),
        (
            lambda path: load_adapter(base_model(), path, accept_other_base="no"),
            TypeError,
            "accept_other_base is 'no'; accepted: True or False",
        ),
        (lambda _: read_adapter(b"a"), TypeError, "path is a bytes; accepted: a path"),
        (lambda _: read_adapter("a\0b"), AdapterError, r"path is 'a\\x00b'; accepted: a path"),
        (
            lambda path: read_adapter(path / "adapter.json"),
            AdapterError,
            "adapter.json: is a file; accepted: the folder",
        ),
        (lambda _: save_adapter(trained(), None), TypeError, "path is a NoneType; accepted: a path"),
        (
            lambda _: save_adapter(trained(), "a", modules_to_save=None),
            TypeError,
            "modules_to_save is None; accepted: ",
        ),
        (
            lambda _: save_adapter(trained(), "a", modules_to_save=[1]),
            TypeError,
            r"modules_to_save is \[1\]; accepted: ",
        ),
        (
            lambda path: read_adapter(path).layers["0"].bind(None),
            TypeError,
            "matrix is a NoneType; accepted: a torch.T",
        ),
        (
            lambda path: read_adapter(path).layers["0"].bind(torch.ones(280, 300), accept_other_base=1),
            TypeError,
            "accept_other_base is 1; accepted: True or",
        ),
        (lambda _: stored_numbers(0), ValueError, "rank is 0; accepted: an integer from 1 on"),
        (lambda _: open_checkpoint(None), TypeError, "path is a NoneType; accepted: a path"),
    ],
)
def test_arguments_of_other_types(saved, call, error, message):
    with pytest.raises(error, match=message) as raised:
        call(saved)
    assert len(str(raised.value).splitlines()) == 1


def test_saving_again_replaces_the_adapter(saved):
    model = trained()
    for _, layer in lowrank_layers(model):
        with torch.no_grad():
            layer.offset.fill_(0.5)
    save_adapter(model, saved)
    reloaded = copy.deepcopy(base_model())
    load_adapter(reloaded, saved)
    assert (next(lowrank_layers(reloaded))[1].offset == 0.5).all()
    assert len(list(saved.iterdir())) == 2


@pytest.mark.parametrize("parametrization", ["diagonal", "gram"])
def test_layers_of_inference_mode_can_be_trained(tmp_path, parametrization):
    made, loaded = (nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(2))
    loaded.load_state_dict(made.state_dict())
    with torch.inference_mode():
        inject(made, "all-linear", rank=3, parametrization=parametrization)
        save_adapter(made, tmp_path / "adapter")
        load_adapter(loaded, tmp_path / "adapter")
    for model in (made, loaded):
        model(torch.ones(2, 8)).sum().backward()
        assert all(parameter.grad.any() for name, parameter in model.named_parameters() if name.endswith("offset"))
