"""Stand-ins of the models that PEFT's tests fetch from the hub: same names, random weights, on disk."""

import contextlib

import torch
import transformers as tf
from loldu_for_lora import Loldu
from peft import get_peft_model

_SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    # So large that what an adapter changes shows in the output.
    "initializer_range": 0.3,
}
_OPT = {**_SMALL, "ffn_dim": 32, "word_embed_proj_dim": 16, "init_std": 0.3}
_BART = {
    "vocab_size": 64,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
    "init_std": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 3,
    "forced_eos_token_id": None,
}
_T5 = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
_LLAMA = {**_SMALL, "num_key_value_heads": 2}
# Untied: merging into a tied embedding is refused.
_GEMMA = {**_LLAMA, "head_dim": 8, "tie_word_embeddings": False}

_OWN = "peft-internal-testing/tiny-random-"
MODELS = {
    _OWN + "OPTForCausalLM": (tf.OPTForCausalLM, tf.OPTConfig, _OPT),
    _OWN + "GPT2LMHeadModel": (tf.GPT2LMHeadModel, tf.GPT2Config, _SMALL),
    _OWN + "LlamaForCausalLM": (tf.LlamaForCausalLM, tf.LlamaConfig, _LLAMA),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": (tf.LlamaForCausalLM, tf.LlamaConfig, _LLAMA),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": (tf.Gemma3ForCausalLM, tf.Gemma3TextConfig, _GEMMA),
    _OWN + "BloomForCausalLM": (tf.BloomForCausalLM, tf.BloomConfig, {**_SMALL, "num_hidden_layers": 5}),
    _OWN + "T5ForConditionalGeneration-calibrated": (
        tf.T5ForConditionalGeneration,
        tf.T5Config,
        {**_T5, "decoder_start_token_id": 0},
    ),
    _OWN + "BartForConditionalGeneration": (tf.BartForConditionalGeneration, tf.BartConfig, _BART),
    _OWN + "BertModel": (tf.BertModel, tf.BertConfig, _SMALL),
    _OWN + "RobertaModel": (tf.RobertaModel, tf.RobertaConfig, _SMALL),
    _OWN + "BertForSequenceClassification": (tf.BertForSequenceClassification, tf.BertConfig, _SMALL),
    _OWN + "RobertaForSequenceClassification": (tf.RobertaForSequenceClassification, tf.RobertaConfig, _SMALL),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": (
        tf.LlamaForSequenceClassification,
        tf.LlamaConfig,
        {**_LLAMA, "num_labels": 1},
    ),
    "gpt2": (tf.GPT2LMHeadModel, tf.GPT2Config, _SMALL),
    "hf-internal-testing/tiny-random-gpt2": (tf.GPT2LMHeadModel, tf.GPT2Config, _SMALL),
    "peft-internal-testing/tiny-random-t5": (tf.T5ForConditionalGeneration, tf.T5Config, _T5),
    "peft-internal-testing/opt-125m": (tf.OPTForCausalLM, tf.OPTConfig, _OPT),
    "bert-base-uncased": (tf.BertForSequenceClassification, tf.BertConfig, _SMALL),
}

_HUB = "peft-internal-testing/"
# Adapters by name: the model's class, configuration and task.
ADAPTERS = {
    _HUB + "tiny-OPTForCausalLM-lora": (tf.OPTForCausalLM, tf.OPTConfig, _OPT, "CAUSAL_LM"),
    _HUB + "tiny_T5ForSeq2SeqLM-lora": (
        tf.T5ForConditionalGeneration,
        tf.T5Config,
        {**_T5, "decoder_start_token_id": 0},
        "SEQ_2_SEQ_LM",
    ),
    _HUB + "tiny_OPTForSequenceClassification-lora": (tf.OPTForSequenceClassification, tf.OPTConfig, _OPT, "SEQ_CLS"),
    _HUB + "tiny_GPT2ForTokenClassification-lora": (tf.GPT2ForTokenClassification, tf.GPT2Config, _SMALL, "TOKEN_CLS"),
    _HUB + "tiny_OPTForQuestionAnswering-lora": (tf.OPTForQuestionAnswering, tf.OPTConfig, _OPT, "QUESTION_ANS"),
    _HUB + "tiny_OPTForFeatureExtraction-lora": (tf.OPTModel, tf.OPTConfig, _OPT, "FEATURE_EXTRACTION"),
}


def save_models(folder):
    """Save every model and adapter under its name on the hub: seen from the folder, the name is its path."""
    for name, (model, config, options) in MODELS.items():
        torch.manual_seed(0)
        model(config(**options)).save_pretrained(folder / name)
    with contextlib.chdir(folder):  # an adapter holds the name of its base
        for name, (model, config, options, task) in ADAPTERS.items():
            torch.manual_seed(0)
            model(config(**options)).save_pretrained(f"{name}-base")
            adapted = get_peft_model(model.from_pretrained(f"{name}-base"), Loldu(task_type=task))
            adapted.save_pretrained(name)
