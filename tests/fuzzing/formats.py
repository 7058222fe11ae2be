"""What the fuzzer damages: a small whole file or folder of every format, and what reads it."""

import copy
import io
import json
import math
import re
import struct
import tempfile
import warnings
import zipfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import gguf
import h5py
import numpy as np
import onnx
import torch
from mutations import with_sum
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import nn

from lowrank_ldu.adapters import (
    AdapterError,
    export_delta,
    export_lora,
    export_merged,
    import_published,
    load_adapter,
    read_adapter,
    save_adapter,
)
from lowrank_ldu.analysis import CompareOptions, SurveyOptions, analyze_checkpoint, compare_checkpoints
from lowrank_ldu.analysis.checkpoint import ANALYSIS_RESULTS
from lowrank_ldu.analysis.comparison.run import COMPARISON_RESULTS
from lowrank_ldu.analysis.engine.journal import Journal, Origin
from lowrank_ldu.checkpoints import CheckpointError, open_checkpoint, open_weights
from lowrank_ldu.errors import JournalError, OutputError
from lowrank_ldu.nn import inject, lowrank_layers


class WrongError(AssertionError):
    """What was read is not what may be read."""


@dataclass(frozen=True)
class Format:
    """A kind of input.

    Attributes
    ----------
    files : dict of str to bytes
        A whole one, by path in its folder.
    opened : str
        Which of the files is opened; the folder if empty.
    read : callable
        Reads everything at a path, and says in a word what came of it.
    """

    files: dict[str, bytes]
    opened: str
    read: object


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


STATE = {"layers.0.q.weight": numbers(6, 8), "layers.0.k.weight": numbers(4, 8, seed=1).half(), "step": torch.ones(1)}


# --- readers of checkpoints ---

# Entries of a tensor that has to be read or refused within the process's memory.
LARGEST = 2**26


def one_line(error):
    if len(str(error).splitlines()) != 1:
        raise WrongError(f"message of several lines: {str(error)[:200]!r}")


def read_checkpoint(path):
    try:
        with open_weights(path) as reader:
            for what in reader.ignored.values():
                if not isinstance(what, str):
                    raise WrongError(f"a reason that is {what!r}")
            refused = len(reader.ignored)
            for info in reader.tensors:
                try:
                    values = reader.load(info.name)
                except CheckpointError as error:
                    one_line(error)
                    refused += 1
                    continue
                except (MemoryError, RuntimeError) as error:
                    # The analysis does not ask for what the machine's memory cannot hold.
                    if math.prod(info.shape) <= LARGEST or not re.search("memory|^$", str(error)):
                        raise
                    refused += 1
                    continue
                if tuple(values.shape) != info.shape or str(values.dtype) != f"torch.{info.dtype}":
                    raise WrongError(f"{info} loads as {values.dtype} {tuple(values.shape)}")
            return "read in part" if refused else "read"
    except CheckpointError as error:
        one_line(error)
        return "refused"


def in_folder(write):
    """The files that a function writes into a folder."""
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(Path(place))
        return {str(path.relative_to(place)): path.read_bytes() for path in Path(place).rglob("*") if path.is_file()}


def torch_bytes(content):
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def torch_bytes_before_1_6(state):
    """As torch writes them, but for the names of storages, which are their addresses, and the order that these have."""
    storages = sorted((torch.UntypedStorage(0) for _ in state), key=lambda storage: str(storage._cdata))
    copies = {}
    for (name, tensor), storage in zip(state.items(), storages, strict=True):
        storage.resize_(tensor.nbytes)
        copies[name] = torch.empty(0, dtype=tensor.dtype).set_(storage, 0, tensor.shape).copy_(tensor)
    stream = io.BytesIO()
    torch.save(copies, stream, _use_new_zipfile_serialization=False)
    content = stream.getvalue()
    for number, tensor in enumerate(copies.values()):
        address, name = str(tensor.untyped_storage()._cdata).encode(), b"%d" % number
        content = content.replace(b"X%s%s" % (struct.pack("<I", len(address)), address), b"X\1\0\0\0" + name)
    return content


def compressed_torch():
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(torch_bytes(STATE))) as whole,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for member in whole.infolist():
            archive.writestr(zipfile.ZipInfo(member.filename), whole.read(member), zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def write_gguf(folder):
    writer = gguf.GGUFWriter(folder / "a.gguf", "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_array("tokenizer.tokens", ["a", "bc", "def"])
    writer.add_array("tokenizer.scores", [0.5, 1.5, -2.0])
    writer.add_tensor("blk.0.attn_q.weight", numbers(6, 32).numpy())
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("blk.0.attn_k.weight", gguf.quantize(numbers(4, 32).numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def onnx_graph():
    made = [onnx.numpy_helper.from_array(numbers(6, 8, seed=seed).numpy(), name) for seed, name in enumerate("abc")]
    node = onnx.helper.make_node("MatMul", ["x", "a"], ["y"])
    return onnx.helper.make_model(onnx.helper.make_graph([node], "graph", [], [], initializer=made))


def write_onnx_apart(folder):
    onnx.save(onnx_graph(), folder / "a.onnx", save_as_external_data=True, location="a.bin", size_threshold=0)


def write_h5(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        group = file.create_group("model_weights/dense")
        group.create_dataset("kernel:0", data=numbers(8, 6).numpy())
        group.create_dataset("bias:0", data=numbers(6).numpy(), compression="gzip")
        file.attrs["keras_version"] = "2.4.0"


def npy_bytes():
    stream = io.BytesIO()
    np.save(stream, numbers(6, 8).numpy())
    return stream.getvalue()


def npz_bytes(save_archive):
    stream = io.BytesIO()
    save_archive(stream, first=numbers(6, 8).numpy(), second=numbers(4, 3).numpy().astype(">f8"))
    return stream.getvalue()


def json_bytes(value):
    return json.dumps(value).encode()


def sharded():
    first, second = dict(list(STATE.items())[:1]), dict(list(STATE.items())[1:])
    names = dict.fromkeys(first, "a-1.safetensors") | dict.fromkeys(second, "a-2.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    return {
        "model.safetensors.index.json": json_bytes(index),
        "a-1.safetensors": save(first), "a-2.safetensors": save(second),
        "config.json": json_bytes({"model_type": "llama", "num_attention_heads": 2, "num_key_value_heads": 1}),
    }  # fmt: skip


def pipeline():
    return {
        "model_index.json": json_bytes({"_class_name": "Pipeline"}),
        "unet/diffusion_pytorch_model.safetensors": save({"conv.weight": numbers(4, 3, 2, 2)}),
        "vae/model.pt": torch_bytes({"w": numbers(3, 4)}),
        "scheduler/scheduler_config.json": b"{}",
    }


def lora():
    state = {"base_model.model.a.q.lora_A.weight": numbers(2, 8), "base_model.model.a.q.lora_B.weight": numbers(6, 2)}
    config = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"^a.q": 3, "k|v": 2}, "init_lora_weights": True,
        "use_rslora": False,
    }  # fmt: skip
    return {"adapter_model.safetensors": save(state), "adapter_config.json": json_bytes(config)}


def fused():
    state = {"h.0.attention.query_key_value.weight": numbers(24, 8), "h.0.mlp.experts.w1": numbers(2, 4, 8)}
    config = {"model_type": "falcon", "num_attention_heads": 4, "num_kv_heads": 2, "hidden_size": 8}
    return {"model.safetensors": save(state), "config.json": json_bytes(config)}


def quantized(state, method):
    return {"model.safetensors": save(state), "config.json": json_bytes({"quantization_config": method})}


def words(*shape):
    return torch.randint(-(2**31), 2**31 - 1, shape, generator=torch.Generator().manual_seed(0), dtype=torch.int32)


def byte_values(*shape):
    return torch.randint(0, 255, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


GPTQ = {
    "a.qweight": words(4, 8), "a.qzeros": words(2, 1), "a.scales": numbers(2, 8).half(),
    "a.g_idx": (torch.arange(32) // 16).int(),
}  # fmt: skip
AWQ = {"a.qweight": words(32, 1), "a.qzeros": words(2, 1), "a.scales": numbers(2, 8).half()}
NF4_STATE = json_bytes({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [16, 8]})
NF4 = {
    "a.weight": byte_values(64, 1), "a.weight.absmax": numbers(2).abs(), "a.weight.quant_map": numbers(16),
    "a.weight.quant_state.bitsandbytes__nf4": torch.frombuffer(bytearray(NF4_STATE), dtype=torch.uint8),
}  # fmt: skip
INT8 = {"a.weight": byte_values(6, 8).view(torch.int8), "a.SCB": numbers(6).abs()}
FLOAT8 = {"a.weight": numbers(6, 8).to(torch.float8_e4m3fn), "a.weight_scale": numbers(1).abs()}
MXFP4 = {"a_blocks": byte_values(4, 2, 16), "a_scales": byte_values(4, 2)}
PACKED = {"a.weight_packed": words(4, 8), "a.weight_scale": numbers(4, 2), "a.weight_shape": torch.tensor([4, 64])}
PACKED_METHOD = {
    "quant_method": "compressed-tensors", "format": "pack-quantized",
    "config_groups": {"g": {"weights": {"num_bits": 4, "group_size": 32, "symmetric": True, "strategy": "group"}}},
}  # fmt: skip


# --- adapters, bases, the published code's states ---


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))


NETWORK = network()


def write_native(folder):
    model = network()
    inject(model, ["0"], 3)
    with torch.no_grad():
        model[0].offset.normal_()
    save_adapter(model, folder, modules_to_save=["2"])


def write_of_peft(folder):
    from peft import get_peft_model

    from lowrank_ldu.peft import LolduConfig

    config = LolduConfig(r=3, target_modules=["0"], modules_to_save=["2"], init_weights=False, rank_pattern={"^0": 3})
    get_peft_model(network(), config).save_pretrained(folder)
    (folder / "README.md").unlink()


def put_on(read):
    """Load into a model: what is refused leaves it as it was, and what is not computes finite numbers."""

    def attempt(path):
        model = copy.deepcopy(NETWORK)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        try:
            read(model, path)
        except AdapterError as error:
            one_line(error)
            unchanged = list(model.state_dict()) == list(before) and all(
                torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()
            )
            if not unchanged or next(lowrank_layers(model), None) is not None:
                raise WrongError("refused, and the model is another one") from error
            return "refused"
        # Numbers near the end of float32 may leave it in the model's own sums: what counts is that they are numbers.
        if not bool(model.double()(torch.ones(2, 8, dtype=torch.float64)).isfinite().all()):
            raise WrongError("loaded, and the model's outputs are not finite")
        return "read"

    return attempt


ADAPTER = in_folder(write_native)


def written(files, folder):
    """A folder with the files of a format."""
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def finite(tensor):
    return bool(tensor.isfinite().all())


def exported(export, adapter=None, base=None):
    """Export a damaged adapter, or with a damaged base: what is refused leaves nothing."""

    def attempt(path):
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            try:
                trained = read_adapter(path if adapter is None else written(adapter, place / "adapter"))
                source = open_checkpoint(path if base is None else written(base, place / "base"))
                export(trained, source, place / "out")
            except (AdapterError, CheckpointError, OutputError) as error:
                one_line(error)
                if {path.name for path in place.iterdir()} - {"adapter", "base"}:
                    raise WrongError("refused, and something is there") from error
                return "refused"
            with safe_open(next((place / "out").glob("*.safetensors")), framework="pt") as file:
                broken = [key for key in file.keys() if not finite(file.get_tensor(key))]  # noqa: SIM118
                # What is not adapted is copied as it is: masks may be infinite.
                held = {info.name for info in source.tensors}
                if any(key not in held or finite(source.load(key)) for key in broken):
                    raise WrongError("exported, and not finite")
            return "read"

    return attempt


def base():
    names = dict.fromkeys(NETWORK.state_dict(), "a.safetensors")
    return {
        "a.safetensors": save({name: tensor.clone() for name, tensor in NETWORK.state_dict().items()}),
        "a.safetensors.index.json": json_bytes({"metadata": {"total_size": 1}, "weight_map": names}),
        "config.json": json_bytes({"model_type": "none", "architectures": ["None"], "tie_word_embeddings": False}),
    }


PUBLISHED = {"0.parametrizations.weight.0.vector_z": numbers(4), "2.bias": numbers(4)}


def read_safely(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return put_on(import_published)(path)


# --- journals ---

OPTIONS = SurveyOptions(ranks=(2,), threads=1)
COMPARED = CompareOptions(ranks=(2,), threads=1)
FILES = {"/model.safetensors": [1, 2]}
CHECKPOINT = Path(tempfile.mkdtemp()) / "model.safetensors"
TUNED = CHECKPOINT.with_name("tuned.safetensors")
save_file({"a": numbers(6, 4), "b": numbers(5, 5, seed=1)}, CHECKPOINT)
save_file({"a": numbers(6, 4, seed=2), "b": numbers(5, 5, seed=3)}, TUNED)


def as_everywhere(value):
    """A record of a journal without what another process has otherwise: times, and the checkpoint's place."""
    if isinstance(value, dict):
        return {key: 0.5 if key.endswith("seconds") else as_everywhere(item) for key, item in value.items()}
    return [as_everywhere(item) for item in value] if isinstance(value, list) else value


def keep_analysis(path):
    analyze_checkpoint(CHECKPOINT, OPTIONS, journal=path)


def keep_comparison(path):
    compare_checkpoints(CHECKPOINT, TUNED, COMPARED, journal=path)


def write_journal(keep, folder):
    path = folder / "journal"
    keep(path)
    first, *results = [as_everywhere(json.loads(line)) for line in path.read_bytes().splitlines()]
    records = [first | {"files": dict.fromkeys(first["files"], FILES)}, *results]
    for record in records:
        del record["crc32"]
    lines = [with_sum(json.dumps(record, separators=(",", ":")).encode()) for record in records]
    path.write_bytes(b"\n".join(lines) + b"\n")


def resume(kind, options, arguments, path):
    original = path.read_bytes()
    origin = replace(Origin.of(kind, options, {}), files=dict.fromkeys(arguments, FILES))
    try:
        with Journal(path, kind, origin, resume=True) as journal:
            return "read" if len(journal.results) == 2 else "read in part"
    except JournalError as error:
        one_line(error)
        if path.read_bytes() != original:
            raise WrongError("refused, and the file is another one") from error
        return "refused"


def checkpoint(files, opened=""):
    files = files if isinstance(files, dict) else {opened: files}
    return Format(files, opened, read_checkpoint)


FORMATS = {
    "safetensors": checkpoint(save(STATE), "a.safetensors"),
    "torch": checkpoint(torch_bytes({"model": STATE, "epoch": 3}), "a.pt"),
    "torch, compressed": checkpoint(compressed_torch(), "a.pt"),
    "torch before 1.6": checkpoint(torch_bytes_before_1_6(STATE), "a.bin"),
    "GGUF": checkpoint(in_folder(write_gguf), "a.gguf"),
    "ONNX": checkpoint(onnx_graph().SerializeToString(), "a.onnx"),
    "ONNX with values apart": checkpoint(in_folder(write_onnx_apart), "a.onnx"),
    "HDF5": checkpoint(in_folder(write_h5), "a.h5"),
    "npy": checkpoint(npy_bytes(), "a.npy"),
    "npz": checkpoint(npz_bytes(np.savez), "a.npz"),
    "npz, compressed": checkpoint(npz_bytes(np.savez_compressed), "a.npz"),
    "shards": checkpoint(sharded(), "model.safetensors.index.json"),
    "folder of shards": checkpoint(sharded()),
    "pipeline": checkpoint(pipeline()),
    "LoRA": checkpoint(lora()),
    "fused weights": checkpoint(fused()),
    "GPTQ": checkpoint(quantized(GPTQ, {"quant_method": "gptq", "checkpoint_format": "gptq", "bits": 4})),
    "AWQ": checkpoint(quantized(AWQ, {"quant_method": "awq", "bits": 4, "version": "gemm"})),
    "bitsandbytes 4 bits": checkpoint(quantized(NF4, {"quant_method": "bitsandbytes"})),
    "int8": checkpoint(quantized(INT8, {"quant_method": "bitsandbytes"})),
    "float8": checkpoint(quantized(FLOAT8, {"quant_method": "fp8"})),
    "MXFP4": checkpoint(quantized(MXFP4, {"quant_method": "mxfp4"})),
    "pack-quantized": checkpoint(quantized(PACKED, PACKED_METHOD)),
    "adapter": Format(ADAPTER, "", put_on(load_adapter)),
    "adapter of PEFT": Format(in_folder(write_of_peft), "", put_on(load_adapter)),
    "adapter, exported as LoRA": Format(ADAPTER, "", exported(export_lora, base=base())),
    "adapter, exported as updates": Format(ADAPTER, "", exported(export_delta, base=base())),
    "adapter, merged": Format(ADAPTER, "", exported(export_merged, base=base())),
    "base, merged": Format(base(), "", exported(export_merged, ADAPTER)),
    "base, for LoRA": Format(base(), "", exported(export_lora, ADAPTER)),
    "base, for updates": Format(base(), "", exported(export_delta, ADAPTER)),
    "state of the published code": Format({"a.pt": torch_bytes(PUBLISHED)}, "a.pt", read_safely),
    "journal": Format(
        in_folder(partial(write_journal, keep_analysis)), "journal",
        partial(resume, ANALYSIS_RESULTS, OPTIONS, ["source"]),
    ),
    "journal of a comparison": Format(
        in_folder(partial(write_journal, keep_comparison)), "journal",
        partial(resume, COMPARISON_RESULTS, COMPARED, ["base", "tuned"]),
    ),
}  # fmt: skip
