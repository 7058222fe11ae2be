"""What writes quantized weights, from the published layouts, with numpy: apart from the code that reads them."""

import numpy as np
import torch


def bit_stream(rows, bits):
    """Pack rows of integers, lowest bits first, into 32-bit words, as AutoGPTQ's QuantLinear.pack and
    compressed-tensors' pack_to_int32 lay them out."""
    packed = []
    for row in rows:
        stream = sum(int(value) << (bits * place) for place, value in enumerate(row))
        words = -(-len(row) * bits // 32)
        packed.append([(stream >> (32 * word)) & 0xFFFFFFFF for word in range(words)])
    return np.array(packed, dtype=np.uint32).view(np.int32)


def gptq(q, zeros, scales, g_idx=None, *, bits, version=1):
    """As AutoGPTQ's QuantLinear.pack: `q` (out, in), `zeros` and `scales` (groups, out)."""
    state = {
        "qweight": bit_stream(q, bits).T.copy(),
        "qzeros": bit_stream(zeros - (version == 1), bits),
        "scales": scales.astype(np.float16),
    }
    if g_idx is not None:
        state["g_idx"] = g_idx.astype(np.int32)
    return {name: torch.from_numpy(values) for name, values in state.items()}


def awq(q, zeros, scales):
    """As AutoAWQ's WQLinear_GEMM.from_linear: `q` (out, in), `zeros` and `scales` (groups, out)."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def pack(rows):
        packed = np.zeros((rows.shape[0], rows.shape[1] // 8), dtype=np.uint32)
        for place, which in enumerate(order):
            packed |= rows[:, which::8].astype(np.uint32) << np.uint32(4 * place)
        return torch.from_numpy(packed.view(np.int32))

    return {"qweight": pack(q.T), "qzeros": pack(zeros), "scales": torch.from_numpy(scales.astype(np.float16))}
