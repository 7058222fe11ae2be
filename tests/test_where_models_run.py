"""Adapted models where a model may be: traced, exported, wrapped, offloaded, moved."""

import copy
from functools import partial

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import remove_hook_from_submodules
from peft import PeftModel, get_peft_model
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lowrank_ldu.adapters import load_adapter, save_adapter
from lowrank_ldu.nn import inject, merge, unload, unmerge
from lowrank_ldu.peft import LolduConfig

TARGETS = ["0", "2.0", "3"]
x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


def base():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), block, nn.Linear(8, 3))


@torch.no_grad()
def trained(model):
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def injected(model=None, **options):
    model = base() if model is None else model
    inject(model, TARGETS, rank=3, **options)
    return trained(model)


def with_peft(model=None, **options):
    config = LolduConfig(r=3, target_modules=TARGETS, **options)
    return trained(get_peft_model(base() if model is None else model, config))


BOTH = pytest.mark.parametrize("make", [injected, with_peft])


def inner(model):
    """The model that the layers are in: torch.fx does not trace PEFT's own around it."""
    return model.base_model.model if hasattr(model, "peft_config") else model


def first(model):
    return inner(model)[0]


@BOTH
def test_fx_traces_a_layer_as_one_node(make):
    model = make()
    graph = torch.fx.symbolic_trace(inner(model))
    assert next(node.target for node in graph.graph.nodes if node.op == "call_module") == "0"
    assert graph.get_submodule("0") is first(model)
    torch.testing.assert_close(graph(x), model(x))
    with torch.no_grad():
        next(parameter for parameter in model.parameters() if parameter.requires_grad).mul_(2)
    torch.testing.assert_close(graph(x), model(x))
    with pytest.raises(RuntimeError, match="torch.fx traces a .* by itself, .*; accepted: a model with the"):
        torch.fx.symbolic_trace(first(model))


@BOTH
def test_exports_for_any_number_of_rows(make):
    model = make()
    program = torch.export.export(inner(model), (x,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert all(name.startswith(("aten.", "sym_")) for name in operators)  # which ONNX and other runtimes know
    rows = torch.randn(9, 8)
    torch.testing.assert_close(program.module()(rows), model(rows))


@BOTH
@pytest.mark.parametrize("options", [{}, {"basis": "svd"}])
@pytest.mark.parametrize("assign", [True, False])
def test_comes_back_from_the_meta_device(make, options, assign):
    model = make(**options)
    moved = copy.deepcopy(model).to("meta")
    assert moved(x.to("meta")).shape == (5, 3)
    if not assign:
        moved.to_empty(device="cpu")
        for buffer in moved.buffers():
            buffer.zero_()
    moved.load_state_dict(model.state_dict(), assign=assign)
    torch.testing.assert_close(moved(x), model(x))


def compiled(module):
    return torch.compile(module, backend="eager")


WRAPPERS = pytest.mark.parametrize("wrap", [checkpoint_wrapper, compiled])


@BOTH
def test_files_have_no_names_of_data_parallel_blocks(make, tmp_path):
    model = make()
    inner(model)[2] = nn.DataParallel(inner(model)[2])
    save(model, tmp_path)
    torch.testing.assert_close(load(make, base(), tmp_path)(x), model(x))


@BOTH
def test_stacked_models_under_vmap(make):
    models = [make(), make()]
    state = torch.func.stack_module_state(models)
    stacked = torch.func.vmap(lambda *state: torch.func.functional_call(models[0], state, (x,)))(*state)
    torch.testing.assert_close(stacked, torch.stack([model(x) for model in models]))


def wrapped(model, wrap):
    """With a wrapper around an adapted layer, around a block, and around a layer inside of it."""
    inside = inner(model)
    inside[2][0], inside[0] = wrap(inside[2][0]), wrap(inside[0])
    inside[2] = wrap(inside[2])
    return model


def save(model, folder):
    if hasattr(model, "peft_config"):
        model.save_pretrained(folder)
    else:
        save_adapter(model, folder)


def load(make, model, folder):
    if make is with_peft:
        return PeftModel.from_pretrained(model, folder).eval()
    load_adapter(model, folder)
    return model


def merged(model, *, leave=False):
    if hasattr(model, "peft_config"):
        if leave:
            return model.merge_and_unload()
        model.merge_adapter()
    elif leave:
        unload(model)
    else:
        merge(model)
    return model


def unmerged(model):
    if hasattr(model, "peft_config"):
        model.unmerge_adapter()
    else:
        unmerge(model)
    return model


@torch.no_grad()
@BOTH
@WRAPPERS
@pytest.mark.filterwarnings("error:Found missing adapter keys")
def test_files_have_the_plain_models_names(make, wrap, tmp_path):
    torch._dynamo.reset()
    model = make()
    expected = model(x)
    torch.testing.assert_close(wrapped(model, wrap)(x), expected)
    save(model, tmp_path)
    torch.testing.assert_close(load(make, base(), tmp_path)(x), expected)


@torch.no_grad()
@WRAPPERS
@pytest.mark.parametrize("bias", ["all", "loldu_only"])
def test_biases_are_saved_and_loaded_around_wrappers(wrap, bias, tmp_path):
    torch._dynamo.reset()
    make = partial(LolduConfig, r=3, target_modules=r".*0|.*_mod(ule)?\.0|3", bias=bias)
    model = trained(get_peft_model(base(), make()))
    expected = model(x)
    save(wrapped(model, wrap), tmp_path / "wrapped")
    torch.testing.assert_close(PeftModel.from_pretrained(base(), tmp_path / "wrapped").eval()(x), expected)
    model = trained(get_peft_model(base(), make()))
    save(model, tmp_path / "plain")
    again = PeftModel.from_pretrained(wrapped(base(), wrap), tmp_path / "plain").eval()
    torch.testing.assert_close(again(x), model(x))


@torch.no_grad()
@WRAPPERS
def test_adapters_go_into_wrapped_layers(wrap, tmp_path):
    torch._dynamo.reset()
    expected = injected()
    save_adapter(expected, tmp_path, modules_to_save=["2.1"])
    model = wrapped(base(), wrap)
    plain = model(x)
    load_adapter(model, tmp_path)
    torch.testing.assert_close(model(x), expected(x))
    unload(model, merged=False)
    torch.testing.assert_close(model(x), plain)
    names = inject(model, "all-linear", rank=3)
    assert len(names) == 3
    assert not torch.equal(trained(model)(x), plain)


@torch.no_grad()
@WRAPPERS
def test_peft_adapts_wrapped_layers(wrap):
    torch._dynamo.reset()
    block = wrapped(base(), wrap)
    plain = block(x)
    model = trained(get_peft_model(block, LolduConfig(r=3, target_modules=r".*0|.*_mod(ule)?\.0|3")))
    assert {layer.name for layer in model.modules() if hasattr(layer, "loldu_config")} == set(TARGETS)
    adapted = model(x)
    assert not torch.allclose(adapted, plain)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), plain)
    torch.testing.assert_close(model.merge_and_unload()(x), adapted)


def on_disk(model, folder):
    return disk_offload(model, folder, execution_device="cpu")


def half_on_disk(model, folder):
    prefix = "base_model.model." if hasattr(model, "peft_config") else ""
    places = {f"{prefix}{name}": "disk" if name == "2" else "cpu" for name in "0123"}
    return dispatch_model(model, places, main_device="cpu", offload_dir=folder, force_hooks=True)


OFFLOADED = pytest.mark.parametrize(
    "offload", [lambda model, folder: cpu_offload(model, execution_device="cpu"), on_disk, half_on_disk]
)


@BOTH
@OFFLOADED
@pytest.mark.parametrize("first", ["adapted", "offloaded"])
def test_offloaded_models(make, offload, first, tmp_path):
    torch.manual_seed(3)
    expected = make()(x)
    torch.manual_seed(3)
    folder = tmp_path / "weights"
    model = offload(make(), folder) if first == "adapted" else make(offload(base(), folder))
    torch.testing.assert_close(model(x), expected)
    save(model, tmp_path / "adapter")
    torch.testing.assert_close(load(make, base(), tmp_path / "adapter")(x), expected)
    assert torch.equal(merged(model)(x), model(x))
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(unmerged(model)(x), expected)
    assert any(parameter.device.type == "meta" for parameter in model.parameters())
    torch.testing.assert_close(merged(model, leave=True)(x), expected)


@BOTH
def test_what_is_written_to_an_offloaded_adapter_is_not_lost_in_silence(make):
    model = make()
    state = {name: tensor for name, tensor in model.state_dict().items() if "offset" in name}
    cpu_offload(model, execution_device="cpu")
    with pytest.raises(RuntimeError, match="the adapter is offloaded by accelerate, .* accepted: accelerate.hooks"):
        model.load_state_dict(state, strict=False)
    remove_hook_from_submodules(model)
    assert not model.load_state_dict(state, strict=False).unexpected_keys


def test_merging_an_offloaded_weight_leaves_a_tied_one():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    inject(cpu_offload(model, execution_device="cpu"), ["0"], rank=3)
    adapted = trained(model)(x)
    merge(model)
    torch.testing.assert_close(model(x), adapted)


class Absolute(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight.abs(), self.bias)


def test_bases_without_data_are_refused():
    with pytest.raises(ValueError, match=r"layer '0': base_layer.weight is on the meta device, where device_map, off"):
        inject(base().to("meta"), ["0"])
    own = cpu_offload(nn.Sequential(Absolute(8, 8)), execution_device="cpu")
    with pytest.raises(ValueError, match="layer '0': .* offloaded by accelerate .*; accepted: a weight that"):
        inject(own, ["0"])


@pytest.fixture
def process_group(tmp_path, monkeypatch):
    """Of this process alone."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    destroy_process_group()


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))


@pytest.mark.usefixtures("process_group")
def test_distributed_models(tmp_path):
    wrapped_already = (
        "is wrapped by DistributedDataParallel already, which would not average the gradients of new parameters; "
        "accepted: the model inside, wrapped afterwards"
    )
    with pytest.raises(ValueError, match=f"^the model {wrapped_already}$"):
        inject(DistributedDataParallel(small()), ["0"])
    part = small()
    part[1] = DistributedDataParallel(part[1])
    with pytest.raises(ValueError, match=f"^module '1' {wrapped_already}$"):
        get_peft_model(part, LolduConfig(r=2, target_modules=["0"]))
    model = small()
    inject(model, ["0", "1.0"], rank=2)
    model[1] = DistributedDataParallel(model[1])
    wrapped = DistributedDataParallel(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * parameter.requires_grad)
    rows = torch.randn(3, 4)
    wrapped(rows).sum().backward()
    assert model[0].offset.grad.any()
    assert model[1].module[0].offset.grad.any()
    save_adapter(wrapped, tmp_path / "adapter")
    plain = small()
    assert load_adapter(plain, tmp_path / "adapter") == ["0", "1.0"]
    torch.testing.assert_close(plain(rows), model(rows))
    merge(wrapped)
    torch.testing.assert_close(plain(rows), wrapped(rows))
    sharded = fully_shard(plain)
    whole = "accepted: the whole model, with its full state dict loaded$"
    with pytest.raises(
        RuntimeError, match=f"^layer '0' is sharded by fully_shard, each process .* part of it; {whole}"
    ):
        save_adapter(sharded, tmp_path / "again")
    with pytest.raises(TypeError, match=f"^layer '0': the weight is sharded by fully_shard; {whole}"):
        merge(sharded)
