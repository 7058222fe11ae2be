"""Quantized weights: the numbers that the packages of each format make of them, and no declaration that breaks it."""

import contextlib
import json
import math
import tracemalloc
import warnings

import numpy as np
import packers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from weights import weight

from lowrank_ldu.analysis import CompareOptions, SurveyOptions, analyze_checkpoint, compare_checkpoints
from lowrank_ldu.analysis.selection import storage_reason
from lowrank_ldu.checkpoints import CheckpointError, open_weights
from lowrank_ldu.checkpoints.quantized.packing import unpacked

GPTQ = {"quantization_config": {"quant_method": "gptq", "checkpoint_format": "gptq"}}


def write(folder, state, config=None):
    save_file({name: values.contiguous() for name, values in state.items()}, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def read(folder, state, config=None):
    """Return the matrices, and what is said of everything else."""
    with open_weights(write(folder, state, config)) as reader:
        skipped = [info for info in reader.tensors if info.reason or "float" not in info.dtype]
        reasons = {info.name: str(storage_reason(info)) for info in skipped}
        matrices = {info.name: (info, reader.load(info.name)) for info in reader.tensors if info.name not in reasons}
        for info, values in matrices.values():
            assert tuple(values.shape) == info.shape
            assert str(values.dtype) == f"torch.{info.dtype}"
        return matrices, reasons | reader.ignored


def integers(seed, bits, out, inputs, groups):
    generator = np.random.default_rng(seed)
    q = generator.integers(0, 2**bits, (out, inputs))
    zeros = generator.integers(1, 2**bits, (groups, out))
    scales = generator.uniform(0.5, 1.5, (groups, out)).astype(np.float16)
    return q, zeros, scales


def in_groups(q, zeros, scales, g_idx):
    return torch.from_numpy(((q - zeros[g_idx].T) * scales[g_idx].T.astype(np.float64)).astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(1, 8), count=st.integers(1, 70), rows=st.integers(1, 3), seed=st.integers(0, 99))
def test_unpacked(bits, count, rows, seed):
    values = np.random.default_rng(seed).integers(0, 2**bits, (rows, count))
    words = torch.from_numpy(packers.bit_stream(values, bits))
    assert np.array_equal(unpacked(words, bits, count).numpy(), values)


class TestGptq:
    @settings(max_examples=40, deadline=None)
    @given(
        bits=st.sampled_from([2, 3, 4, 8]),
        out=st.integers(1, 3),
        groups=st.integers(1, 3),
        version=st.sampled_from([1, 2]),
        order=st.sampled_from(["none", "equal", "any"]),
        seed=st.integers(0, 99),
    )
    def test_values(self, tmp_path_factory, bits, out, groups, version, order, seed):
        out, inputs = 32 * out, 32 * groups
        q, zeros, scales = integers(seed, bits, out, inputs, groups)
        g_idx = np.arange(inputs) // 32
        if order == "any":
            g_idx = np.random.default_rng(seed).permutation(g_idx)
        state = packers.gptq(q, zeros, scales, None if order == "none" else g_idx, bits=bits, version=version)
        config = {"quant_method": "gptq", "checkpoint_format": {1: "gptq", 2: "gptq_v2"}[version]}
        matrices, others = read(
            tmp_path_factory.mktemp("gptq"),
            {f"layer.{name}": values for name, values in state.items()},
            {"quantization_config": config},
        )
        info, values = matrices["layer.weight"]
        assert info.stored_as == f"GPTQ {bits} bits"
        assert info.nbytes == sum(tensor.nbytes for tensor in state.values())
        assert others == {f"layer.{name}": f"{name} of 'layer.weight'" for name in state}
        torch.testing.assert_close(values, in_groups(q, zeros, scales, g_idx))

    def test_the_version_is_not_guessed(self, tmp_path):
        q, zeros, scales = integers(0, 4, 32, 64, 2)
        state = {f"a.{name}": values for name, values in packers.gptq(q, zeros, scales, bits=4).items()}
        matrices, others = read(tmp_path, state)
        assert matrices == {}
        assert "says whether zeros are stored less one" in others["a.qweight"]
        (tmp_path / "quantize_config.json").write_text('{"bits": 4}')
        assert list(read(tmp_path, state)[0]) == ["a.weight"]
        for method, layout in (("gptq", "marlin"), ("auto-round", None)):
            config = {"quantization_config": {"quant_method": method, "checkpoint_format": layout}}
            assert method in read(tmp_path, state, config)[1]["a.qweight"]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"qzeros": None}, "nothing is called 'a.qzeros'"),
            ({"scales": torch.ones(0, 32)}, r"'a.scales' is float32 of shape \(0, 32\)"),
            ({"scales": torch.ones(3, 32)}, "fit no width"),
            ({"qzeros": torch.ones(2, 5, dtype=torch.int32)}, "fit no width"),
            ({"qweight": torch.ones(8, 32)}, "'a.qweight' is float32"),
            ({"g_idx": torch.ones(63, dtype=torch.int32)}, r"g_idx has shape \(63,\), of 64 inputs"),
            ({"g_idx": torch.ones(64)}, "'a.g_idx' is float32"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, tmp_path, change, message):
        q, zeros, scales = integers(0, 4, 32, 64, 2)
        state = packers.gptq(q, zeros, scales, bits=4) | change
        state = {f"a.{name}": values for name, values in state.items() if values is not None}
        matrices, others = read(tmp_path, state | {"b.weight": weight(4, 3)}, GPTQ)
        assert list(matrices) == ["b.weight"]
        assert set(others) == set(state)
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(others["a.qweight"])

    @pytest.mark.parametrize("group", [-1, 2, 2**31 - 1])
    def test_groups_that_are_not_there(self, tmp_path, group):
        q, zeros, scales = integers(0, 4, 32, 64, 2)
        g_idx = np.arange(64) // 32
        g_idx[5] = group
        state = {f"a.{name}": values for name, values in packers.gptq(q, zeros, scales, g_idx, bits=4).items()}
        analysis = analyze_checkpoint(
            write(tmp_path, state | {"b.weight": weight(4, 3)}, GPTQ), SurveyOptions(ranks=(2,), threads=1)
        )
        assert [tensor.name for tensor, _ in analysis.matrices] == ["b.weight"]
        (reason,) = [tensor.reason for tensor in analysis.skipped if tensor.name == "a.weight"]
        assert "accepted: 0 to 1" in reason


class TestAwq:
    @settings(max_examples=30, deadline=None)
    @given(out=st.integers(1, 5), groups=st.integers(1, 3), each=st.integers(1, 9), seed=st.integers(0, 99))
    def test_values(self, tmp_path_factory, out, groups, each, seed):
        out, inputs = 8 * out, groups * each
        q, zeros, scales = integers(seed, 4, out, inputs, groups)
        state = {f"layer.{name}": values for name, values in packers.awq(q, zeros, scales).items()}
        matrices, _ = read(tmp_path_factory.mktemp("awq"), state)
        info, values = matrices["layer.weight"]
        assert info.stored_as == "AWQ 4 bits"
        torch.testing.assert_close(values, in_groups(q, zeros, scales, np.arange(inputs) // each))

    def test_other_layouts_are_refused(self, tmp_path):
        """Those of AutoAWQ's GEMV keep the outputs first."""
        q, zeros, scales = integers(0, 4, 32, 64, 2)
        state = packers.awq(q, zeros, scales)
        state["qweight"] = torch.ones(32, 8, dtype=torch.int32)
        _, others = read(tmp_path, {f"a.{name}": values for name, values in state.items()})
        assert "neither GPTQ's" in others["a.qweight"]


class TestBitsandbytes:
    """What bitsandbytes writes, and its own numbers."""

    @pytest.mark.parametrize("double", [False, True])
    @pytest.mark.parametrize("kind", ["nf4", "fp4"])
    @pytest.mark.parametrize("shape", [(48, 40), (64, 300)])
    def test_four_bits(self, tmp_path, kind, double, shape):
        bitsandbytes = pytest.importorskip("bitsandbytes")
        original = weight(*shape)
        packed, state = bitsandbytes.functional.quantize_4bit(original, quant_type=kind, compress_statistics=double)
        expected = bitsandbytes.functional.dequantize_4bit(packed, state)
        tensors = {"a.weight": packed} | {f"a.weight.{name}": v for name, v in state.as_dict(packed=True).items()}
        matrices, others = read(tmp_path, tensors)
        info, values = matrices["a.weight"]
        assert info.stored_as == f"bitsandbytes {kind}"
        assert list(matrices) == ["a.weight"]
        assert set(others) == set(tensors) - {"a.weight"}
        torch.testing.assert_close(values, expected)

    def test_stored_as_another_type(self, tmp_path):
        functional = pytest.importorskip("bitsandbytes").functional
        packed, state = functional.quantize_4bit(weight(16, 8), quant_type="nf4", quant_storage=torch.bfloat16)
        tensors = {"a": packed} | {f"a.{name}": values for name, values in state.as_dict(packed=True).items()}
        torch.testing.assert_close(read(tmp_path, tensors)[0]["a"][1], functional.dequantize_4bit(packed, state))

    @pytest.fixture
    def stored(self):
        state = {"shape": [16, 8], "blocksize": 64, "quant_type": "nf4"}
        return state, {
            "a": torch.zeros(64, 1, dtype=torch.uint8),
            "a.absmax": torch.ones(2),
            "a.quant_map": torch.linspace(-1, 1, 16),
        }

    def described(self, stored, **changes):
        state, tensors = stored
        text = json.dumps(state | changes).encode()
        return tensors | {"a.quant_state.bitsandbytes__nf4": torch.tensor(list(text), dtype=torch.uint8)}

    def test_as_described(self, tmp_path, stored):
        assert torch.equal(read(tmp_path, self.described(stored))[0]["a"][1], torch.full((16, 8), -1.0))

    @pytest.mark.parametrize(
        "changes",
        [
            {"shape": [2**30, 2**30]},
            {"shape": [16]},
            {"shape": [0, 128]},
            {"shape": [-16, -8]},
            {"shape": "ab"},
            {"shape": None},
            {"shape": [16.0, 8]},
            {"blocksize": 0},
            {"blocksize": True},
            {"blocksize": 63},
            {"blocksize": 2**70},
            {"nested_offset": "x"},
            {"nested_offset": math.nan},
        ],
        ids=str,
    )
    def test_descriptions_that_do_not_fit(self, tmp_path, stored, changes):
        matrices, others = read(tmp_path, self.described(stored, **changes) | {"b": weight(3, 4)})
        assert list(matrices) == ["b"]
        assert others["a"].startswith("bitsandbytes nf4: ")

    @pytest.mark.parametrize("text", [b"", b"[]", b"{", b"[" * 60000, b"x" * 2**17, b"1" * 5000], ids=range(6))
    def test_texts_that_are_none(self, tmp_path, stored, text):
        tensors = stored[1] | {"a.quant_state.bitsandbytes__nf4": torch.tensor(list(text), dtype=torch.uint8)}
        matrices, others = read(tmp_path, tensors)
        assert matrices == {}
        assert "JSON" in others["a"]

    @pytest.mark.parametrize("absent", ["a.quant_map", "a.absmax", "a.quant_state.bitsandbytes__nf4"])
    def test_what_is_missing_is_named(self, tmp_path, stored, absent):
        tensors = self.described(stored)
        del tensors[absent]
        assert f"nothing is called {absent!r}" in read(tmp_path, tensors)[1]["a"]

    def test_llm_int8(self, tmp_path):
        bitsandbytes = pytest.importorskip("bitsandbytes")
        original = weight(24, 16)
        layer = bitsandbytes.nn.Linear8bitLt(16, 24, bias=False, has_fp16_weights=False)
        layer.weight = bitsandbytes.nn.Int8Params(original.half(), requires_grad=False, has_fp16_weights=False)
        layer = layer.to("cpu")
        state = {f"a.{name}": values for name, values in layer.state_dict().items()}
        assert {"a.weight", "a.SCB", "a.weight_format"} == set(state)
        matrices, others = read(tmp_path, state)
        info, values = matrices["a.weight"]
        assert info.stored_as == "bitsandbytes LLM.int8"
        assert set(others) == {"a.SCB", "a.weight_format"}
        expected = bitsandbytes.functional.int8_vectorwise_dequant(state["a.weight"], state["a.SCB"])
        torch.testing.assert_close(values, expected)
        assert float((values - original).abs().max()) < 0.05
        state["a.weight_format"] += 1
        assert "rows are not one after another" in read(tmp_path, state)[1]["a.weight"]


class TestInt8:
    @settings(max_examples=30, deadline=None)
    @given(
        kind=st.sampled_from(["number", "rows", "column", "groups"]),
        zeros=st.booleans(),
        out=st.integers(2, 9),
        groups=st.integers(2, 4),
        seed=st.integers(0, 99),
    )
    def test_scales(self, tmp_path_factory, kind, zeros, out, groups, seed):
        generator = torch.Generator().manual_seed(seed)
        stored = torch.randint(-128, 128, (out, 3 * groups), generator=generator, dtype=torch.int8)
        shape = {"number": (1,), "rows": (out,), "column": (out, 1), "groups": (out, groups)}[kind]
        scale = torch.rand(shape, generator=generator) + 0.5
        state = {"a.weight": stored, "a.weight_scale": scale}
        zero = torch.zeros(shape)
        if zeros:
            state["a.weight_zero_point"] = torch.randint(-9, 9, shape, generator=generator, dtype=torch.int8)
            zero = state["a.weight_zero_point"].float()
        matrices, others = read(tmp_path_factory.mktemp("int8"), state)
        repeat = 3 if kind == "groups" else 1
        scale, zero = (
            (values if values.ndim == 2 else values[:, None]).repeat_interleave(repeat, 1) for values in (scale, zero)
        )
        torch.testing.assert_close(matrices["a.weight"][1], (stored.float() - zero) * scale)
        assert "a.weight_scale" in others

    def test_without_a_scale_that_fits(self, tmp_path):
        state = {"a": torch.ones(4, 6, dtype=torch.int8), "a_scale": torch.ones(5), "b": torch.ones(4, 6).char()}
        matrices, others = read(tmp_path, state)
        assert matrices == {}
        assert "fits no rule" in others["a"]
        assert others["b"] == "int8: integers are not factored"


class TestMxfp4:
    @settings(max_examples=25, deadline=None)
    @given(experts=st.integers(0, 3), out=st.integers(1, 4), groups=st.integers(1, 3), seed=st.integers(0, 99))
    def test_as_transformers(self, tmp_path_factory, experts, out, groups, seed):
        mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
        generator = torch.Generator().manual_seed(seed)
        rows = (experts, out) if experts else (out,)
        blocks = torch.randint(0, 256, (*rows, groups, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(100, 150, (*rows, groups), generator=generator, dtype=torch.uint8)
        state = {"mlp.experts.down_proj_blocks": blocks, "mlp.experts.down_proj_scales": scales}
        matrices, others = read(tmp_path_factory.mktemp("mxfp4"), state)
        assert set(others) == set(state)
        stack = (blocks, scales) if experts else (blocks[None], scales[None])
        expected = mxfp4.convert_moe_packed_tensors(*stack, dtype=torch.float32).transpose(1, 2)
        for number, matrix in enumerate(expected):
            name = "mlp.experts.down_proj" + (f"[{number}]" if experts else "")
            assert torch.equal(matrices[name][1], matrix)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x_scales": None}, "nothing is called 'x_scales'"),
            ({"x_scales": torch.ones(4, 3, dtype=torch.uint8)}, "accepted: uint8 of"),
            ({"x_scales": torch.ones(4, 2)}, "accepted: uint8 of"),
            ({"x_blocks": torch.ones(4, 2, 15, dtype=torch.uint8)}, "blocks of shape"),
            ({"x_blocks": torch.ones(0, 2, 16, dtype=torch.uint8)}, "blocks of shape"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, tmp_path, change, message):
        state = {"x_blocks": torch.ones(4, 2, 16).byte(), "x_scales": torch.ones(4, 2).byte()} | change
        _, others = read(tmp_path, {name: values for name, values in state.items() if values is not None})
        assert message in others["x_blocks"]

    def test_one_expert_at_a_time_is_dequantized(self, tmp_path):
        experts, out, groups = 16, 128, 16
        blocks = torch.ones(experts, out, groups, 16).byte()
        state = {"experts.w_blocks": blocks, "experts.w_scales": blocks[..., 0].contiguous()}
        save_file(state, tmp_path / "a.safetensors")
        whole = experts * out * groups * 32 * 4
        with open_weights(tmp_path / "a.safetensors") as reader:
            tracemalloc.start()  # of what is read; torch's own memory shows in what is held
            for info in reader.tensors:
                assert reader.load(info.name).nbytes == whole // experts
                assert reader._matrix is None
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < 2 * sum(tensor.nbytes for tensor in state.values())


class TestPackQuantized:
    """What compressed-tensors writes, and its own numbers."""

    @settings(max_examples=30, deadline=None)
    @given(
        bits=st.sampled_from([4, 8, 3, 2]),
        groups=st.integers(1, 3),
        symmetric=st.booleans(),
        out=st.integers(17, 40),  # of zeros in one word the package itself cannot read back those of four bits
        seed=st.integers(0, 99),
    )
    def test_values(self, tmp_path_factory, bits, groups, symmetric, out, seed):
        compressed = pytest.importorskip("compressed_tensors")
        from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

        assert compressed
        size, inputs = 32, 32 * groups
        generator = torch.Generator().manual_seed(seed)
        arguments = QuantizationArgs(num_bits=bits, strategy="group", group_size=size, symmetric=symmetric)
        scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
        half = 2 ** (bits - 1)
        state = {
            "weight": torch.randn(out, inputs, generator=generator),
            "weight_scale": torch.rand(out, groups, generator=generator) + 0.5,
            "weight_zero_point": torch.randint(-half, half, (out, groups), generator=generator, dtype=torch.int8),
        }
        if symmetric:
            del state["weight_zero_point"]
        packed = PackedQuantizationCompressor.compress(state, scheme)
        expected = PackedQuantizationCompressor.decompress(packed, scheme)["weight"]
        matrices, others = read(
            tmp_path_factory.mktemp("packed"), {f"a.{name}": values for name, values in packed.items()}
        )
        info, values = matrices["a.weight"]
        assert info.stored_as == f"pack-quantized {bits} bits"
        assert "a.weight_scale" in others
        torch.testing.assert_close(values, expected.float())

    @pytest.fixture
    def stored(self):
        return {
            "a.weight_packed": torch.ones(4, 8, dtype=torch.int32),
            "a.weight_scale": torch.ones(4, 2),
            "a.weight_shape": torch.tensor([4, 64]),
        }

    def test_groups_in_any_order(self, tmp_path, stored):
        index = torch.arange(64, dtype=torch.int32) % 2
        stored["a.weight_scale"] = torch.tensor([[1.0, 10.0]]).repeat(4, 1)
        values = read(tmp_path, stored | {"a.weight_g_idx": index})[0]["a.weight"][1]
        assert torch.equal(values[0, :4], torch.tensor([-7.0, -80.0, -8.0, -80.0]))
        write(tmp_path, stored | {"a.weight_g_idx": index + 1})
        with open_weights(tmp_path) as reader, pytest.raises(CheckpointError, match="accepted: 0 to 1"):
            reader.load("a.weight")

    @pytest.mark.parametrize(
        "change",
        [
            {"a.weight_shape": torch.tensor([2**40, 2**40])},
            {"a.weight_shape": torch.tensor([4, 2**62])},
            {"a.weight_shape": torch.tensor([4, 0])},
            {"a.weight_shape": torch.tensor([-4, -64])},
            {"a.weight_shape": torch.tensor([4.0, 64.0])},
            {"a.weight_shape": torch.ones(2**20, dtype=torch.int64)},
            {"a.weight_shape": None},
            {"a.weight_scale": torch.ones(4, 3)},
            {"a.weight_scale": torch.ones(4, 0)},
            {"a.weight_scale": torch.ones(5, 2)},
            {"a.weight_packed": torch.ones(4, 8, dtype=torch.uint8)},
            {"a.weight_zero_point": torch.ones(4, 2, dtype=torch.int32)},
            {"a.weight_g_idx": torch.ones(63, dtype=torch.int32)},
        ],
        ids=range(13),
    )
    def test_what_does_not_fit_is_refused(self, tmp_path, stored, change):
        state = {name: values for name, values in (stored | change).items() if values is not None}
        matrices, others = read(tmp_path, state | {"b.weight": weight(3, 4)})
        assert list(matrices) == ["b.weight"]
        assert others["a.weight_packed"].startswith("pack-quantized: ")


def test_what_quantization_changes_is_compared(tmp_path):
    """A quantized checkpoint has the names of its base, and can be compared with it."""
    functional = pytest.importorskip("bitsandbytes").functional
    original = weight(48, 32)
    packed, state = functional.quantize_4bit(original, quant_type="nf4")
    (tmp_path / "base").mkdir()
    (tmp_path / "tuned").mkdir()
    write(tmp_path / "base", {"a.weight": original, "b.weight": weight(6, 4)})
    stored = {f"a.weight.{name}": values for name, values in state.as_dict(packed=True).items()}
    write(tmp_path / "tuned", {"a.weight": packed, "b.weight": weight(6, 4), **stored})
    result = compare_checkpoints(tmp_path / "base", tmp_path / "tuned", CompareOptions(ranks=(2,), threads=1))
    ((pair, _),) = result.matrices
    assert (pair.name, pair.tuned_dtype) == ("a.weight", "bitsandbytes nf4 as float32")
    assert [pair.name for pair in result.unchanged] == ["b.weight"]


def test_names_that_are_taken(tmp_path):
    q, zeros, scales = integers(0, 4, 32, 64, 2)
    state = {f"a.{name}": values for name, values in packers.gptq(q, zeros, scales, bits=4).items()}
    matrices, others = read(tmp_path, state | {"a.weight": weight(3, 4)}, GPTQ)
    assert torch.equal(matrices["a.weight"][1], weight(3, 4))
    assert others["a.qweight"] == "int32: integers are not factored"


ROLES = [
    *("w.qweight", "w.qzeros", "w.scales", "w.g_idx", "w.weight", "w.weight_scale", "w.weight_zero_point", "w.SCB"),
    *("w.weight_format", "w.weight_packed", "w.weight_shape", "w.weight_g_idx", "w_blocks", "w_scales"),
    *("w.weight.absmax", "w.weight.quant_map", "w.weight.nested_absmax", "w.weight.nested_quant_map"),
    "w.weight.quant_state.bitsandbytes__nf4",
]
DTYPES = [torch.uint8, torch.int8, torch.int32, torch.int64, torch.float32, torch.float16, torch.float8_e4m3fn]


@settings(max_examples=150, deadline=None)
@given(
    data=st.dictionaries(
        st.sampled_from(ROLES),
        st.tuples(
            st.lists(st.sampled_from([0, 1, 2, 3, 4, 8, 16, 32]), max_size=4).map(tuple), st.sampled_from(DTYPES)
        ),
        min_size=1,
    ),
    fill=st.integers(0, 3),
    config=st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=2)),
)
def test_any_companions(tmp_path_factory, data, fill, config):
    """Whatever tensors are called and hold: values of the shape that is listed, or the one error."""
    state = {name: torch.full(shape, fill).to(dtype) for name, (shape, dtype) in data.items()}
    folder = write(
        tmp_path_factory.mktemp("any"),
        state | {"plain": weight(3, 4)},
        {"quantization_config": config or {"quant_method": "gptq"}},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with open_weights(folder) as reader:
            listed = [info.name for info in reader.tensors]
            assert len(set(listed)) == len(listed)
            assert set(state) <= {*listed, *reader.ignored}
            assert torch.equal(reader.load("plain"), weight(3, 4))
            for info in reader.tensors:
                if info.reason:
                    with pytest.raises(CheckpointError, match="cannot be dequantized"):
                        reader.load(info.name)
                    continue
                with contextlib.suppress(CheckpointError):
                    values = reader.load(info.name)
                    assert tuple(values.shape) == info.shape
                    assert str(values.dtype) == f"torch.{info.dtype}"
