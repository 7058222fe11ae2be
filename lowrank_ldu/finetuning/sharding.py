"""Train, save and load models that FSDP2 shards over processes.

Each process holds a part of every parameter, and of some none. What all of it is needed for, all processes do together.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.nn.quantized import is_quantized

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch.distributed.tensor import DTensor

    from lowrank_ldu.finetuning.methods import Prepared

# What accelerate's launcher sets, and what is done instead.
_OTHERS = {
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed", "data parallel processes (DDP), or --use_fsdp --fsdp_version 2"),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM", "data parallel processes (DDP), or --use_fsdp --fsdp_version 2"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (
        "a parallelism_config",
        "--use_fsdp --fsdp_version 2 without it, which shards over all processes",
    ),
}
_FSDP = "torch.distributed.fsdp."
_WRAPPED = ("TRANSFORMER_BASED_WRAP", "NO_WRAP")


def check_launcher() -> bool:
    """Return whether the launcher asks for FSDP2, and refuse others.

    transformers' TrainingArguments have to be made after it: what loads models asks the environment.

    Raises
    ------
    OptionError
        It asks for another way of dividing a model, or for a part of FSDP that names or methods do not go with.
    """
    for variable, (name, accepted) in _OTHERS.items():
        if _is_true(variable):
            raise OptionError(f"the launcher asks for {name}; accepted: {accepted}")
    if not _is_true("ACCELERATE_USE_FSDP"):
        return False
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise OptionError(
            f"the launcher asks for FSDP {version}, which puts frozen and trained numbers into one flat parameter; "
            "accepted: FSDP2 (--fsdp_version 2), or data parallel processes (DDP)"
        )
    policy = os.environ.get("FSDP_AUTO_WRAP_POLICY", "NO_WRAP").upper()
    if policy not in _WRAPPED:
        raise OptionError(
            f"fsdp_auto_wrap_policy is {policy}, which divides adapted layers into parts that are not called; "
            f"accepted: {', '.join(_WRAPPED)}"
        )
    if _is_true("FSDP_ACTIVATION_CHECKPOINTING"):
        raise OptionError(
            "fsdp_activation_checkpointing is true, which renames the trained parameters; accepted: "
            "--set gradient_checkpointing=true"
        )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no":
        raise OptionError(f"dynamo_backend is {backend}, which was not tried with FSDP2; accepted: no")
    # Every process needs all numbers before they are sharded: factors, starts and digests are computed from them.
    require("accelerate.utils").disable_fsdp_ram_efficient_loading()
    return True


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


def layout(processes: int) -> dict[str, Any]:
    """Return what checkpoints of a sharded model depend on.

    Each process writes its part of the optimizer's state, or the first one all of it.
    """
    return {"processes": processes, "state_dict_type": os.environ.get("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT")}


def check_shardable(prepared: Prepared, of_task: str | None, *, compiled: bool) -> None:
    """Refuse what cannot be trained sharded.

    Parameters
    ----------
    prepared : Prepared
    of_task : str, optional
        As `LoadedTask.obstacle_to_sharding`.
    compiled : bool
        Whether the model is to be compiled.

    Raises
    ------
    OptionError
        The message says why, and what is accepted.
    """
    quantized = next((name for name, module in prepared.model.named_modules() if is_quantized(module)), None)
    reason = of_task or prepared.obstacle_to_sharding()
    if quantized is not None:
        reason = f"the weight of {quantized!r} is quantized, and its scales would not be sharded with it"
    elif compiled:
        reason = "torch_compile is true, which was not tried with it"
    if reason is not None:
        raise OptionError(f"FSDP2 cannot shard this run: {reason}; accepted: data parallel processes (DDP)")


def check_sharding(accelerator: Any) -> None:
    """Refuse a launcher that asks for FSDP where accelerate leaves it out.

    accelerate shards on accelerators alone. On CPUs it trains by DDP instead, in silence.

    Raises
    ------
    OptionError
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and getattr(plugin, "fsdp_version", 1) != 2:  # of FSDP
        raise OptionError(
            f"accelerate {require('accelerate').__version__} has no FSDP2; accepted: a later one, or data parallel "
            "processes (DDP)"
        )
    if plugin is None:
        raise OptionError(
            f"the launcher asks for FSDP, and accelerate does not shard on {accelerator.device.type} "
            f"({accelerator.distributed_type.value}); accepted: several processes on GPUs, or data parallel processes "
            "(DDP)"
        )


def layer_classes(model: nn.Module, named: Sequence[str] | None) -> list[str]:
    """Return the classes of layers that are gathered one at a time.

    accelerate shards embeddings of tokens by themselves, and cannot do it once more inside of such a layer.

    Parameters
    ----------
    model : nn.Module
    named : sequence of str, optional
        By the launcher; those that the model names itself, but for embeddings, if not given.

    Raises
    ------
    OptionError
        The launcher names embeddings.
    """
    embeddings = {getattr(model, name, lambda: None)() for name in ("get_input_embeddings", "get_output_embeddings")}
    classes: dict[str, bool] = {}
    for module in model.modules():
        holds = any(each in embeddings for each in module.modules() if each is not module)
        classes[type(module).__name__] = holds or classes.get(type(module).__name__, False)
    # A model names those of all its kin.
    own = [name for name in getattr(model, "_no_split_modules", None) or () if classes.get(name) is False]
    wrong = next((name for name in named or () if classes.get(name) is not False), None)
    if wrong is not None:
        reason = "holds the embeddings" if wrong in classes else "is no class of a module of the model"
        raise OptionError(
            f"fsdp_transformer_layer_cls_to_wrap has {wrong!r}, which {reason}; accepted: {', '.join(own)}, which is "
            "what is taken if it is not given"
        )
    return own if named is None else list(named)


def units(model: nn.Module) -> list[Any]:
    """Return the modules that FSDP2 has sharded, each by itself."""
    from torch import distributed  # noqa: PLC0415  # slow to import

    if not distributed.is_available():
        return []
    from torch.distributed.fsdp import FSDPModule  # noqa: PLC0415

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def sharded(accelerator: Any, model: nn.Module, optimizer: Any) -> tuple[Any, Any]:
    """Shard a model that is not trained here, as the Trainer does before it trains.

    Parameters
    ----------
    accelerator : accelerate.Accelerator
    model : nn.Module
    optimizer : torch.optim.Optimizer
        Of its parameters: accelerate shards no model without one.

    Returns
    -------
    tuple
        Model and optimizer, prepared.
    """
    from torch.distributed.fsdp import register_fsdp_forward_method  # noqa: PLC0415  # slow to import

    model, optimizer = accelerator.prepare(model, optimizer)
    if hasattr(model, "generate"):
        register_fsdp_forward_method(model, "generate")
    return model, optimizer


def save_optimizer(accelerator: Any, optimizer: Any, model: nn.Module, folder: str) -> None:
    """Write the optimizer's state, each process its part.

    Raises
    ------
    OSError
        It cannot be written.
    """
    from torch.distributed.checkpoint.api import CheckpointException  # noqa: PLC0415  # slow to import

    save = require("accelerate.utils").save_fsdp_optimizer
    try:
        save(accelerator.state.fsdp_plugin, accelerator, optimizer, model, folder)
    except CheckpointException as error:  # it is no Exception
        raise OSError("; ".join(str(cause) for cause, _ in error.failures.values())) from error


@torch.no_grad()
def take_over_from_first(model: nn.Module, device: torch.device) -> None:
    """Give every process the numbers of the first one, before they are sharded.

    DDP does so when it wraps a model, and FSDP2 does not. What processes computed for themselves may differ in
    rounding, factors and their pivots most of all.

    Parameters
    ----------
    model : nn.Module
    device : torch.device
        On which the processes speak to each other.
    """
    from torch import distributed  # noqa: PLC0415  # slow to import

    for tensor in (*model.parameters(), *model.buffers()):
        sent = tensor.detach().to(device).contiguous()
        distributed.broadcast(sent, src=0)
        tensor.copy_(sent)


def is_shard(tensor: Tensor) -> TypeGuard[DTensor]:
    """Return whether a process holds a part of a tensor."""
    return hasattr(tensor, "full_tensor")


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds."""
    return tensor.to_local() if is_shard(tensor) else tensor


def any_process(found: Sequence[bool], parameters: Sequence[Tensor]) -> list[bool]:
    """Return what holds of each parameter in any process.

    All processes have to come here if one of the parameters is sharded.

    Parameters
    ----------
    found : sequence of bool
        What holds of each parameter's part in this process.
    parameters : sequence of Tensor

    Returns
    -------
    list of bool
    """
    shard = next(filter(is_shard, parameters), None)
    if shard is None:
        return list(found)
    from torch import distributed  # noqa: PLC0415  # slow to import

    flags = torch.tensor(found, dtype=torch.int32, device=shard.device_mesh.device_type)
    distributed.all_reduce(flags, distributed.ReduceOp.MAX, group=shard.device_mesh.get_group())
    return [bool(each) for each in flags.tolist()]


@contextmanager
def whole(prepared: Prepared, *, written: bool = False) -> Iterator[None]:
    """Put whole parameters in the places of shards during the block.

    It does nothing where none is sharded. All processes have to come here otherwise.

    Parameters
    ----------
    prepared : Prepared
        Of which the trained parameters are made whole.
    written : bool
        Keep what the block writes to them.
    """
    model = prepared.model
    for unit in units(model):
        # After an evaluation some have whole parameters still, which are not those that are trained.
        unit.reshard()
    trained = {id(each): each for each in prepared.trained().values() if is_shard(each)}
    if not trained:
        yield
        return
    gathered = {key: nn.Parameter(_gathered(each), each.requires_grad) for key, each in trained.items()}
    places = [
        (module._parameters, name, id(value))  # noqa: SLF001  # a parameter may be in several places
        for module in model.modules()
        for name, value in module._parameters.items()  # noqa: SLF001
        if id(value) in trained
    ]
    for parameters, name, key in places:
        parameters[name] = gathered[key]
    try:
        with _loading_as_it_is(model):
            yield
        if written:
            for parameters, name, key in places:
                _write(trained[key], cast("Tensor", parameters[name]))
    finally:
        for parameters, name, key in places:
            parameters[name] = cast("nn.Parameter", trained[key])


@contextmanager
def _loading_as_it_is(model: nn.Module) -> Iterator[None]:
    """Keep FSDP2 from taking what a state dict is loaded into for shards."""
    hooks = [module._load_state_dict_post_hooks for module in model.modules()]  # noqa: SLF001  # no public way to ask
    before = [dict(each) for each in hooks]
    for each in hooks:
        for key, hook in list(each.items()):
            if getattr(hook, "__module__", "").startswith(_FSDP):
                del each[key]
    try:
        yield
    finally:
        for each, own in zip(hooks, before, strict=True):
            each.clear()
            each.update(own)


@torch.no_grad()
def _gathered(shard: DTensor) -> Tensor:
    # Offloaded ones are gathered on the device where the processes speak to each other.
    detached = cast("DTensor", shard.detach().to(shard.device_mesh.device_type))
    found: Tensor = detached.full_tensor()
    return found.to(shard.device)


@torch.no_grad()
def _write(shard: DTensor, numbers: Tensor) -> None:
    from torch.distributed.tensor import DTensor, Replicate  # noqa: PLC0415  # slow to import

    # Each process has all numbers: none is sent.
    sent = numbers.detach().to(shard.device_mesh.device_type)
    replicated = DTensor.from_local(sent, shard.device_mesh, [Replicate()], run_check=False)
    part = replicated.redistribute(placements=shard.placements)
    local_part(shard).copy_(local_part(part))
