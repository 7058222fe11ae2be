"""An adapted layer hands on what models look at and pass to the layer in its place."""

import copy
import io

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import (
    BartConfig,
    BartModel,
    OPTConfig,
    OPTForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.pytorch_utils import Conv1D

from lowrank_ldu.nn import LDULayer, inject
from lowrank_ldu.peft import LolduConfig

GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape, **options):
    return torch.randn(*shape, generator=GENERATOR, **options)


BASES = {
    "linear": (lambda: nn.Linear(6, 5), {"input": randn(4, 6)}, ("in_features", "out_features")),
    "Conv1D": (lambda: Conv1D(5, 6), {"x": randn(4, 6)}, ("nf", "nx")),
    "convolution": (
        lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        {"input": randn(2, 4, 6, 6)},
        ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    ),
    "embedding": (
        lambda: nn.Embedding(9, 6, padding_idx=2),
        {"input": torch.arange(9)},
        ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "sparse"),
    ),
}


def adapted(base, under_peft):
    if not under_peft:
        return LDULayer(base, rank=3)
    return get_peft_model(nn.Sequential(base), LolduConfig(r=3, target_modules=["0"])).base_model.model[0]


@pytest.mark.parametrize("under_peft", [False, True])
@pytest.mark.parametrize("name", BASES)
def test_attributes_and_keywords(name, under_peft):
    make, inputs, names = BASES[name]
    base = make()
    base.note = "of its model"
    layer = adapted(base, under_peft)
    for attribute in (*names, "weight", "note"):
        assert getattr(layer, attribute) is getattr(base, attribute) or getattr(layer, attribute) == getattr(
            base, attribute
        )
    assert getattr(layer, "bias", None) is getattr(base, "bias", None)
    assert torch.equal(layer(**inputs), base(**inputs))
    layer.merge()
    assert torch.equal(layer(**inputs), base(**inputs))
    with pytest.raises(AttributeError, match="nothing"):
        _ = layer.nothing
    with pytest.raises(TypeError, match="was called without its input; accepted: one tensor, or (input|x)=tensor"):
        layer()


def through_a_file(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("under_peft", [False, True])
def test_nothing_is_there_twice(under_peft):
    base = nn.Linear(6, 5)
    layer = adapted(base, under_peft)
    assert [name for name, _ in layer.named_parameters() if "weight" in name] == ["base_layer.weight"]
    assert [name for name in layer.state_dict() if "weight" in name] == ["base_layer.weight"]
    assert "_hf_hook" not in dir(layer)
    base._flag = True  # a library's own word on the one module
    assert not hasattr(layer, "_flag")
    for twin in (copy.deepcopy(layer), through_a_file(layer)):
        assert type(twin) is type(layer)
        assert twin.weight is twin.base_layer.weight
        assert twin.weight is not layer.weight


@pytest.mark.parametrize("under_peft", [False, True])
def test_setting_the_weight(under_peft):
    layer = adapted(nn.Linear(6, 5), under_peft)
    layer.weight = layer.base_layer.weight  # as tie_weights does
    with pytest.raises(
        RuntimeError, match="weight is another tensor than the one that the layer's adapter was made on"
    ):
        layer.weight = nn.Parameter(torch.zeros(5, 6))
    layer.bias = bias = nn.Parameter(torch.ones(5))
    assert layer.base_layer.bias is bias
    assert "bias" not in layer._parameters


def t5():
    config = T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config), ["wo", "shared", "lm_head"], {"input_ids": IDS, "decoder_input_ids": IDS}


def siglip():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = SiglipVisionConfig(**sizes, image_size=8, patch_size=4)
    return SiglipVisionModel(config), ["patch_embedding", "fc1"], {"pixel_values": randn(2, 3, 8, 8)}


def opt():
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "ffn_dim": 32,
        "word_embed_proj_dim": 16,
    }
    model = OPTForCausalLM(OPTConfig(vocab_size=32, **sizes, max_position_embeddings=16))
    return model, ["embed_positions", "embed_tokens", "fc1"], {"input_ids": IDS}


def bart():
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 16}
    model = BartModel(BartConfig(vocab_size=32, **layers, **sizes, scale_embedding=True))
    return model, ["embed_positions", "embed_tokens", "q_proj"], {"input_ids": IDS}


IDS = torch.arange(3, 15).reshape(2, 6)


@pytest.mark.parametrize("make", [t5, siglip, opt, bart])
def test_models_run_with_adapters_as_they_do_without(make):
    torch.manual_seed(0)
    model, targets, inputs = make()
    model.eval()
    with torch.no_grad():
        expected = model(**inputs)[0]
        inject(model, targets, rank=4)
        assert torch.equal(model(**inputs)[0], expected)
        model.tie_weights()
        assert torch.equal(model(**inputs)[0], expected)
    embeddings = None if make is siglip else model.get_input_embeddings()
    if embeddings is not None:
        assert embeddings.weight.shape == (32, 16)
