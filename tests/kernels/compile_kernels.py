"""Compile the kernels for chips that are not here, and print what came out as lines of JSON."""

import json
import multiprocessing
import warnings
from typing import NamedTuple

warnings.simplefilter("ignore")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lowrank_ldu.kernels.triton_kernels import configurations
from lowrank_ldu.kernels.triton_kernels.core import core_kernel, outer_kernel
from lowrank_ldu.kernels.triton_kernels.decode import decode_kernel
from lowrank_ldu.kernels.triton_kernels.expand import expand_kernel
from lowrank_ldu.kernels.triton_kernels.project import project_kernel
from lowrank_ldu.kernels.triton_kernels.segment import segment_kernel
from lowrank_ldu.kernels.triton_kernels.skeleton import skeleton_kernel

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# As Triton spells them, with their size.
DTYPES = {"fp16": 2, "bf16": 2, "fp32": 4}
KERNELS = {
    "project": project_kernel,
    "expand": expand_kernel,
    "decode": decode_kernel,
    "skeleton": skeleton_kernel,
    "segment": segment_kernel,
    "core": core_kernel,
    "outer": outer_kernel,
}


def fixed(name):
    """The one configuration of a kernel that is not tuned."""
    blocks = dict(configurations.FIXED[name])
    return [triton.Config(blocks, num_warps=blocks.pop("num_warps"))]


CONFIGURATIONS = {
    "project": configurations.PROJECT,
    "expand": configurations.EXPAND,
    "decode": configurations.DECODE,
    "skeleton": configurations.SKELETON,
    "segment": fixed("segment"),
    "core": fixed("core"),
    "outer": fixed("outer"),
}
INDICES = {"index": "*i64", "order": "*i64", "offsets": "*i64", "numbers": "*i64"}
# float32 whatever the dtype of the layer; in the sum by adapters everything is.
WIDE = {"deltas", "product", "cores", "transform", "core"}
WIDE_IN = {"core": {"scales"}, "outer": {"scales", "out"}}
# Each is compiled as the launches make it: with one diagonal for all rows, and with a mix for each row.
ROWS = [{"USES": 0, "SCALED": False}, {"USES": 2, "SCALED": True}]
VARIANTS = {
    "project": [
        {"UPPER": True, "PRODUCT": False, "BLOCK_R": 128},
        {"UPPER": False, "PRODUCT": True, "BLOCK_R": 16},
    ],
    "expand": [
        {"BIAS": True, "UPPER": False, "BLOCK_R": 64, **ROWS[0]},
        {"BIAS": False, "UPPER": True, "BLOCK_R": 16, **ROWS[1]},
    ],
    "decode": [
        {"BIAS": True, "BLOCK_R": 128, "BLOCK_T": configurations.DECODE_ROWS, **ROWS[0]},
        {"BIAS": False, "BLOCK_R": 16, "BLOCK_T": configurations.DECODE_ROWS, **ROWS[1]},
    ],
    "skeleton": [{"BIAS": True, "BLOCK_R": 64}, {"BIAS": False, "BLOCK_R": 16}],
    "core": [
        {"BLOCK_OUT": 64, "BLOCK_IN": 64, "USES": 1, "SCALED": False},
        {"BLOCK_OUT": 16, "BLOCK_IN": 16, "USES": 2, "SCALED": True},
    ],
    "outer": [
        {"BLOCK_OUT": 64, "BLOCK_IN": 64, "USES": 1, "SCALED": False},
        {"BLOCK_OUT": 16, "BLOCK_IN": 16, "USES": 2, "SCALED": True},
    ],
    "segment": [{"BLOCK_R": 64, "SPLITS": 4, "USES": 2, "SCALED": True}],
}


class Case(NamedTuple):
    kernel: str
    target: str
    dtype: str
    precision: str
    variant: dict
    configuration: int


def cases():
    for kernel, configs in CONFIGURATIONS.items():
        for target in TARGETS:
            for dtype, itemsize in DTYPES.items():
                if kernel == "segment" and dtype != "fp32":
                    continue  # sums float32, whatever the layer's dtype
                for number, variant in enumerate(VARIANTS[kernel]):
                    # TF32, whose products are matrix instructions, and with the other variant full float32.
                    precision = "tf32" if number == 0 else "ieee"
                    size = {name: block for name, block in variant.items() if name in ("BLOCK_R", "BLOCK_T")}
                    limit = configurations.SHARED_MEMORY[target]
                    fits = (
                        configs
                        if kernel in configurations.FIXED
                        else configurations.fitting(configs, size, itemsize, limit)
                    )
                    for config in fits:
                        yield Case(kernel, target, dtype, precision, variant, configs.index(config))


def signature(case):
    """Types of the arguments: last strides of 1, and what a contiguous tensor makes divisible by 16."""
    kernel, config = KERNELS[case.kernel], CONFIGURATIONS[case.kernel][case.configuration]
    constants = {**case.variant, **config.kwargs}
    if "PRECISION" in kernel.arg_names:
        constants |= {"PRECISION": case.precision, "DEVICE": "compiled ahead"}
    constants |= {name: 1 for name in kernel.arg_names if name.endswith("_column")}
    types, attributes = {}, {}
    first = "tokens" if "tokens" in kernel.arg_names else SIZES[case.kernel]
    pointers = kernel.arg_names[: kernel.arg_names.index(first)]
    for position, name in enumerate(kernel.arg_names):
        if name in constants:
            types[name] = "constexpr"
        elif name in pointers:
            wide = name in WIDE or name in WIDE_IN.get(case.kernel, ())
            wide = wide or (case.kernel == "segment" and name not in INDICES)
            types[name] = INDICES.get(name, "*fp32" if wide else f"*{case.dtype}")
            attributes[position,] = [["tt.divisibility", 16]]
        else:
            types[name] = "i32"
            if name in {"T", "K", "M", "R"} or name.endswith("_row"):
                attributes[position,] = [["tt.divisibility", 16]]
    return types, constants, attributes, {"num_warps": config.num_warps, "num_stages": config.num_stages}


SIZES = {"decode": "T", "segment": "R", "core": "R", "outer": "R"}
MATRIX_INSTRUCTIONS = ("wgmma.mma_async", "mma.sync", "tcgen05.mma", "v_mfma")


def compile_case(case):
    types, constants, attributes, options = signature(case)
    report = case._asdict()
    try:
        source = ASTSource(KERNELS[case.kernel], types, constants, attributes)
        compiled = triton.compile(source, target=TARGETS[case.target], options=options)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is this case's result
        return report | {"error": f"{type(error).__name__}: {str(error)[:500]}"}
    assembly = compiled.asm["amdgcn" if case.target == "gfx942" else "ptx"]
    found = [name for name in MATRIX_INSTRUCTIONS if name in assembly]
    return report | {"shared": compiled.metadata.shared, "instructions": found, "binary": len(assembly) > 0}


if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for line in pool.imap_unordered(compile_case, cases(), chunksize=4):
            print(json.dumps(line), flush=True)
