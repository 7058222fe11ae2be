"""Tensors that hold several matrices, or a turned one, and float8 with its scales."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from weights import weight

from lowrank_ldu.analysis import SurveyOptions, analyze_checkpoint
from lowrank_ldu.analysis.selection import as_matrix
from lowrank_ldu.checkpoints import CheckpointError, CheckpointReader, TensorInfo
from lowrank_ldu.checkpoints.quantized.float8 import dequantized
from lowrank_ldu.checkpoints.weights import WeightsReader, open_weights


class InMemory(CheckpointReader):
    """Tensors in memory, and a note of each read."""

    def __init__(self, state):
        self.state, self.reads = state, []
        super().__init__(
            "memory",
            [
                TensorInfo(name, tuple(values.shape), str(values.dtype).removeprefix("torch."), "memory", values.nbytes)
                for name, values in state.items()
            ],
            {},
        )

    def _read(self, info):
        self.reads.append(info.name)
        return self.state[info.name]


def matrices(state):
    with WeightsReader(InMemory(state)) as reader:
        return {info.name: as_matrix(reader.load(info.name), info.order) for info in reader.tensors}


def test_experts():
    stack = weight(3, 4, 5)
    found = matrices({"layers.0.mlp.experts.down_proj": stack, "layers.0.stack": stack})
    assert list(found) == [*(f"layers.0.mlp.experts.down_proj[{number}]" for number in range(3)), "layers.0.stack"]
    for number in range(3):
        assert torch.equal(found[f"layers.0.mlp.experts.down_proj[{number}]"], stack[number])


@pytest.mark.parametrize(
    "name", ["attn.qkv.weight", "in_proj_weight", "self_attn.qkv_proj.weight", "attn.Wqkv.weight", "to_qkv.weight"]
)
def test_queries_keys_and_values(name):
    stored = weight(12, 4)
    found = matrices({name: stored})
    for letter, third in zip("qkv", stored.chunk(3), strict=True):
        assert torch.equal(found[f"{name}[{letter}]"], third)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("attn.qkv.weight", (8, 4)),  # fewer heads of keys than of queries
        ("attn.query_key_value.weight", (12, 4)),  # head by head
        ("attn.qkv.bias", (12,)),
        ("mlp.up.weight", (12, 4)),
        ("experts.gate.weight", (12, 4)),
    ],
)
def test_what_stays_whole(name, shape):
    assert list(matrices({name: weight(*shape)})) == [name]


def gpt2(widening):
    return {
        "transformer.h.0.attn.c_attn.weight": weight(4, 12),
        "transformer.h.0.attn.c_proj.weight": weight(4, 4, seed=1),
        "transformer.h.0.mlp.c_fc.weight": weight(*((4, 16) if widening else (16, 4)), seed=2),
        "transformer.h.0.mlp.c_proj.weight": weight(*((16, 4) if widening else (4, 16)), seed=3),
        "transformer.wte.weight": weight(20, 4, seed=4),
    }


def test_conv1d():
    state = gpt2(widening=True)
    found = matrices(state)
    attention = "transformer.h.0.attn.c_attn.weight"
    for letter, third in zip("qkv", state[attention].T.chunk(3), strict=True):
        assert torch.equal(found[f"{attention}[{letter}]"], third)
    for name in ("transformer.h.0.attn.c_proj.weight", "transformer.h.0.mlp.c_fc.weight"):
        assert torch.equal(found[name], state[name].T)
    assert torch.equal(found["transformer.wte.weight"], state["transformer.wte.weight"])


def test_the_same_names_of_linear_layers():
    state = gpt2(widening=False)
    assert torch.equal(matrices(state)["transformer.h.0.attn.c_proj.weight"], weight(4, 4, seed=1))


def test_every_tensor_is_read_once():
    state = {"a.experts.up": weight(5, 3, 3), "a.qkv.weight": weight(9, 3), "b.weight": weight(3, 3)}
    stored = InMemory(state)
    with WeightsReader(stored) as reader:
        for info in reader.tensors:
            reader.load(info.name)
        assert reader._tensors is reader._matrix is None  # let go of after the last part
    assert stored.reads == list(state)


def test_a_tensor_that_is_called_like_a_part():
    state = {"qkv.weight": weight(9, 3), "qkv.weight[k]": weight(2, 2)}
    found = matrices(state)
    assert found["qkv.weight[k]"].shape == (2, 2)


class TestFloat8:
    @settings(max_examples=40, deadline=None)
    @given(
        m=st.integers(1, 300),
        n=st.integers(1, 300),
        kind=st.sampled_from(["number", "rows", "column", "blocks"]),
        suffix=st.sampled_from(["_scale_inv", "_scale"]),
        seed=st.integers(0, 99),
    )
    def test_scales(self, m, n, kind, suffix, seed):
        stored = weight(m, n, seed=seed).to(torch.float8_e4m3fn)
        shape = {"number": (), "rows": (m,), "column": (m, 1), "blocks": (-(-m // 128), -(-n // 128))}[kind]
        scale = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.5
        with WeightsReader(InMemory({"w": stored, f"w{suffix}": scale})) as reader:
            (info,) = reader.tensors
            assert (info.dtype, info.stored_as) == ("float32", "float8_e4m3fn")
            assert reader.ignored == {f"w{suffix}": "scale of 'w'"}
            values = reader.load("w")
        if kind == "blocks" and 1 not in scale.shape:
            rows, columns = torch.arange(m) // 128, torch.arange(n) // 128
            expected = stored.float() * scale[rows][:, columns]
        elif kind == "blocks":
            expected = (
                stored.float()
                * (scale.expand(-(-m // 128), -(-n // 128))[torch.arange(m) // 128][:, torch.arange(n) // 128])
            )
        else:
            expected = stored.float() * scale.reshape(-1, 1)
        assert torch.equal(values, expected)

    def test_without_a_scale_that_fits(self, tmp_path):
        stored = weight(6, 4).to(torch.float8_e4m3fn)
        state = {"a": stored, "b": stored.clone(), "b_scale": torch.ones(5), "c": weight(6, 4)}
        save_file(state, tmp_path / "a.safetensors")
        analysis = analyze_checkpoint(tmp_path / "a.safetensors", SurveyOptions(ranks=(2,), threads=1))
        reasons = {tensor.name: tensor.reason for tensor in analysis.skipped}
        assert all("no scale beside it" in reasons[name] for name in "ab")

    def test_other_shapes_are_refused(self):
        with pytest.raises(ValueError, match=r"scale has shape \(5,\), which fits no rule for values \(6, 4\)"):
            dequantized(torch.ones(6, 4), torch.ones(5))


def test_convolutions(tmp_path):
    state = {
        "conv.weight": weight(5, 3, 4),
        "video.weight": weight(5, 3, 2, 2, 2, seed=1),
        "state.A": weight(5, 3, 4, seed=2),
    }
    save_file(state, tmp_path / "a.safetensors")
    analysis = analyze_checkpoint(tmp_path / "a.safetensors", SurveyOptions(ranks=(2,), threads=1))
    assert {tensor.name: (matrix.m, matrix.n) for tensor, matrix in analysis.matrices} == {
        "conv.weight": (5, 12),
        "video.weight": (5, 24),
    }
    assert [tensor.reason for tensor in analysis.skipped] == ["3-D: neither experts nor a convolution by its name"]


def test_closed(tmp_path):
    save_file({"qkv.weight": weight(9, 3)}, tmp_path / "a.safetensors")
    reader = open_weights(tmp_path / "a.safetensors")
    reader.close()
    with pytest.raises(CheckpointError, match="closed"):
        reader.load("qkv.weight[q]")
