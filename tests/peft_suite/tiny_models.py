"""Small models with random weights, saved where PEFT's tests would name one of the hub: there is no network."""

import tempfile
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

SMALL = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4}


def _models():
    yield OPTForCausalLM(
        OPTConfig(**SMALL, vocab_size=1024, ffn_dim=32, max_position_embeddings=100, word_embed_proj_dim=16)
    )
    yield GPT2LMHeadModel(
        GPT2Config(vocab_size=1024, n_positions=100, n_embd=16, n_layer=4, n_head=4, bos_token_id=98, eos_token_id=98)
    )
    yield LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=1024, intermediate_size=32, max_position_embeddings=100))
    yield T5ForConditionalGeneration(
        T5Config(vocab_size=1024, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, decoder_start_token_id=0)
    )
    yield BertModel(BertConfig(**SMALL, vocab_size=1024, intermediate_size=32))


def make():
    """Save each and return {PEFT's table of model names: local paths}."""
    torch.manual_seed(0)
    folder = Path(tempfile.mkdtemp(prefix="tiny-models-"))
    paths = {}
    for model in _models():
        path = folder / f"tiny-random-{type(model).__name__}"
        # transformers starts weights at 0.02, where an update of a tenth of them is lost in these tests' tolerances.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(std=0.2)
        model.save_pretrained(path)
        paths[type(model)] = str(path)
    return {
        "PEFT_DECODER_MODELS_TO_TEST": [paths[kind] for kind in (OPTForCausalLM, GPT2LMHeadModel, LlamaForCausalLM)],
        "PEFT_ENCODER_DECODER_MODELS_TO_TEST": [paths[T5ForConditionalGeneration]],
        "PEFT_FEATURE_EXTRACTION_MODELS_TO_TEST": [paths[BertModel]],
    }
