"""Fused matrices, taken apart where the configuration beside them tells how: as transformers' models use them."""

import contextlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from weights import weight

from lowrank_ldu.analysis.selection import as_matrix
from lowrank_ldu.checkpoints import TensorInfo, open_weights
from lowrank_ldu.checkpoints.model_config import ModelConfig
from lowrank_ldu.checkpoints.parts import parts_of
from lowrank_ldu.errors import CheckpointError

SMALL = {"vocab_size": 32, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}
MODELS = {
    "phi3": {**SMALL, "num_key_value_heads": 2, "intermediate_size": 24, "pad_token_id": 0},
    "gpt_neox": {**SMALL, "intermediate_size": 24},
    "gpt_neox_japanese": {**SMALL, "intermediate_multiple_size": 1},
    "bloom": {"vocab_size": 32, "hidden_size": 32, "n_head": 4, "n_layer": 1},
    "persimmon": {**SMALL, "intermediate_size": 24},
    "falcon": {**SMALL, "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon-one": {**SMALL, "new_decoder_architecture": False, "multi_query": True},
    "falcon-heads": {**SMALL, "new_decoder_architecture": False, "multi_query": False},
    "gpt_bigcode": {"vocab_size": 32, "n_embd": 32, "n_head": 4, "n_layer": 1, "multi_query": True},
    "gpt_bigcode-heads": {"vocab_size": 32, "n_embd": 32, "n_head": 4, "n_layer": 1, "multi_query": False},
    "codegen": {"vocab_size": 32, "n_embd": 32, "n_head": 4, "n_layer": 1, "rotary_dim": 4},
    "mpt": {"vocab_size": 32, "d_model": 32, "n_heads": 4, "n_layers": 1},
}


@pytest.mark.parametrize("kind", MODELS)
def test_parts_do_in_the_model_what_they_are_called(kind, tmp_path):
    """Without keys all scores are equal, whatever the queries; and without queries, whatever the keys."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind.partition("-")[0], **MODELS[kind])
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    save_file({name: values.clone() for name, values in model.state_dict().items()}, tmp_path / "model.safetensors")
    model.config.to_json_file(tmp_path / "config.json")
    with open_weights(tmp_path) as reader:
        parts = {letter: [info for info in reader.tensors if info.name.endswith(f"[{letter}]")] for letter in "qkv"}
        (name,) = {info.name[:-3] for found in parts.values() for info in found}
        fused = model.get_parameter(name)
        for found in parts.values():
            (info,) = found
            assert info.shape == tuple(reader.load(info.name).shape)
        numbers = torch.arange(len(fused))[:, None].expand(fused.shape)
        rows = {letter: reader._sources[f"{name}[{letter}]"].part.take(numbers)[:, 0] for letter in "qkv"}
        for letter, which in rows.items():
            assert torch.equal(reader.load(f"{name}[{letter}]"), fused[which])
    assert sorted(torch.cat(list(rows.values())).tolist()) == list(range(len(fused)))

    tokens = torch.arange(6)[None]

    @torch.no_grad()
    def answers(zeroed, changed):
        before = fused.clone()
        fused[rows[zeroed]] = 0
        fused[rows[changed]] += weight(*fused[rows[changed]].shape, seed=1)
        result = model(tokens).logits
        fused.copy_(before)
        return result

    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name == name.removesuffix("weight") + "bias":
                parameter.zero_()
        fused.copy_(weight(*fused.shape, seed=2))
        for zeroed, changed in ("qk", "kq"):
            before = fused.clone()
            fused[rows[zeroed]] = 0
            expected = model(tokens).logits
            fused.copy_(before)
            torch.testing.assert_close(answers(zeroed, changed), expected)
            assert not torch.allclose(answers(zeroed, "v"), expected, atol=1e-3)


def taken_apart(folder, state, config):
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with open_weights(folder) as reader:
        return {info.name: as_matrix(reader.load(info.name), info.order) for info in reader.tensors}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "phi3", "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 1},
        {"model_type": "any", "text_config": {"model_type": "phi3", "hidden_size": 8, "num_attention_heads": 4}},
        {"model_type": "codegen", "n_embd": 12, "n_head": 4},
        {"model_type": "phi3", "hidden_size": "8", "num_attention_heads": True},
        {"model_type": ["phi3"], "hidden_size": 8},
        [],
        '{"model_type": "phi3", "hidden_size": 1e400}',
    ],
    ids=range(7),
)
def test_sizes_that_do_not_fit_stay_whole(tmp_path, config):
    assert list(taken_apart(tmp_path, {"self_attn.qkv_proj.weight": weight(20, 8)}, config)) == [
        "self_attn.qkv_proj.weight"
    ]


@pytest.mark.parametrize("config", ["", "{", '{"model_type": "phi3", "hidd', "[" * 10**5, "1" * 5000], ids=range(5))
def test_a_configuration_that_cannot_be_read_is_refused(tmp_path, config):
    """A download may have ended in it; the fused matrix would be taken for one."""
    with pytest.raises(
        CheckpointError, match=r"config.json: not a readable configuration .*; accepted: the whole conf"
    ):
        taken_apart(tmp_path, {"self_attn.qkv_proj.weight": weight(20, 8)}, config)


def test_numbers_in_the_text_part(tmp_path):
    section = {"model_type": "phi3", "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 1}
    found = taken_apart(
        tmp_path, {"self_attn.qkv_proj.weight": weight(12, 8)}, {"model_type": "any", "text_config": section}
    )
    assert [values.shape for values in found.values()] == [(8, 8), (2, 8), (2, 8)]


def test_a_layout_that_is_known_is_not_cut_in_thirds(tmp_path):
    config = {"model_type": "codegen", "n_embd": 12, "n_head": 4}
    assert list(taken_apart(tmp_path, {"attn.qkv_proj.weight": weight(36, 12)}, config)) == [
        *(f"attn.qkv_proj.weight[{letter}]" for letter in "qvk")
    ]
    config["n_head"] = 5
    assert list(taken_apart(tmp_path, {"attn.qkv_proj.weight": weight(36, 12)}, config)) == ["attn.qkv_proj.weight"]


class TestGates:
    def test_of_a_layer(self, tmp_path):
        stored = weight(10, 4)
        config = {"model_type": "glm4", "hidden_size": 4, "intermediate_size": 5}
        found = taken_apart(tmp_path, {"mlp.gate_up_proj.weight": stored}, config)
        gate, up = stored.chunk(2)
        assert torch.equal(found["mlp.gate_up_proj.weight[gate]"], gate)
        assert torch.equal(found["mlp.gate_up_proj.weight[up]"], up)
        config["intermediate_size"] = 6
        assert list(taken_apart(tmp_path, {"mlp.gate_up_proj.weight": stored}, config)) == ["mlp.gate_up_proj.weight"]

    @pytest.mark.parametrize("turned", [False, True])
    @pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
    def test_of_experts(self, tmp_path, kind, turned):
        stored, down = weight(3, 10, 4), weight(3, 4, 5, seed=1)
        config = {"model_type": kind, "hidden_size": 4, "intermediate_size": 5}
        state = {"mlp.experts.gate_up_proj": stored, "mlp.experts.down_proj": down}
        if turned:
            state = {name: values.transpose(1, 2).contiguous() for name, values in state.items()}
        found = taken_apart(tmp_path, state, config)
        assert len(found) == 9
        for number in range(3):
            gate, up = stored[number].chunk(2) if kind == "mixtral" else (stored[number][::2], stored[number][1::2])
            assert torch.equal(found[f"mlp.experts.gate_up_proj[{number}][gate]"], gate)
            assert torch.equal(found[f"mlp.experts.gate_up_proj[{number}][up]"], up)
            assert torch.equal(found[f"mlp.experts.down_proj[{number}]"], down[number])

    def test_of_quantized_experts(self, tmp_path):
        """As gpt-oss is published."""
        generator = torch.Generator().manual_seed(0)
        state = {
            "mlp.experts.gate_up_proj_blocks": torch.randint(0, 256, (2, 6, 2, 16), generator=generator).byte(),
            "mlp.experts.gate_up_proj_scales": torch.full((2, 6, 2), 127).byte(),
        }
        whole = taken_apart(tmp_path, state, {})
        found = taken_apart(tmp_path, state, {"model_type": "gpt_oss", "hidden_size": 64, "intermediate_size": 3})
        assert len(found) == 4
        for number in range(2):
            matrix = whole[f"mlp.experts.gate_up_proj[{number}]"]
            assert torch.equal(found[f"mlp.experts.gate_up_proj[{number}][gate]"], matrix[::2])
            assert torch.equal(found[f"mlp.experts.gate_up_proj[{number}][up]"], matrix[1::2])

    def test_of_square_experts_stay_whole(self, tmp_path):
        config = {"model_type": "mixtral", "hidden_size": 4, "intermediate_size": 2}
        assert len(taken_apart(tmp_path, {"experts.gate_up_proj": weight(3, 4, 4)}, config)) == 3


SIZES = st.integers(-1, 12) | st.sampled_from([2**31, 2**62, 2**200, 0.5, True, None, "4", [4], {}])
NAMES = [
    *(
        "self_attn.qkv_proj.weight",
        "attn.Wqkv.weight",
        "attn.c_attn.weight",
        "query_key_value.weight",
        "in_proj_weight",
    ),
    *("in_proj_weight", "attn.qkv_proj.weight", "mlp.gate_up_proj.weight", "experts.gate_up_proj", "experts.down_proj"),
]
KEYS = [
    *("hidden_size", "n_embd", "num_attention_heads", "n_head", "num_key_value_heads", "num_kv_heads", "head_dim"),
    *("intermediate_size", "moe_intermediate_size", "new_decoder_architecture", "multi_query"),
]
KINDS = ["phi3", "mpt", "gpt_neox", "falcon", "gpt_bigcode", "codegen", "mixtral", "gpt_oss", "glm", "other"]


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    shape=st.lists(st.integers(0, 12), min_size=1, max_size=4).map(tuple),
    config=st.dictionaries(st.sampled_from(KEYS), SIZES),
    kind=st.sampled_from(KINDS),
    transposed=st.booleans(),
)
def test_any_configuration(tmp_path_factory, name, shape, config, kind, transposed):
    """Parts are of the shape that is listed, are together the whole, and none raises."""
    folder = tmp_path_factory.mktemp("any")
    (folder / "config.json").write_text(json.dumps(config | {"model_type": kind}))
    info = TensorInfo(name, shape, "float32", "a", 0)
    tensor = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    parts = parts_of(info, ModelConfig(folder), transposed=transposed and len(shape) == 2)
    values = []
    for part in parts:
        row = tensor if part.row is None else tensor[part.row]
        values.append(row if part.take is None else part.take(row))
        assert tuple(values[-1].shape) == part.info.shape
    if len(parts) > 1:
        assert sorted(torch.cat([value.flatten() for value in values]).tolist()) == tensor.flatten().tolist()


def test_a_configuration_that_is_too_large_or_no_file(tmp_path):
    (tmp_path / "config.json").mkdir()
    assert ModelConfig(tmp_path).sections == []
    other = tmp_path / "other"
    other.mkdir()
    with (other / "config.json").open("wb") as file, contextlib.suppress(OSError):
        file.truncate(2**40)
    with pytest.raises(CheckpointError, match="larger than 16777216 bytes"):
        _ = ModelConfig(other).sections
    (other / "config.json").unlink()
