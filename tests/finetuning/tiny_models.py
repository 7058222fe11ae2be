"""Tiny models of true architectures, with batches that they can learn."""

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from lowrank_ldu.finetuning import MethodRequest


def bert():
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=30, max_position_embeddings=8, num_labels=3, **sizes, **quiet)
    return BertForSequenceClassification(config).eval()


def llama():
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return LlamaForCausalLM(LlamaConfig(vocab_size=30, max_position_embeddings=8, **sizes)).eval()


def roberta():
    """Its head has two layers."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = RobertaConfig(vocab_size=30, max_position_embeddings=8, num_labels=3, **sizes)
    return RobertaForSequenceClassification(config).eval()


def gpt2():
    """Its layers store their weights transposed."""
    torch.manual_seed(1)
    sizes = {"n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=30, bos_token_id=1, eos_token_id=2, **sizes)).eval()


def batches_of(kind, number=2):
    torch.manual_seed(2)
    batches = [{"input_ids": torch.randint(3, 30, (6, 5))} for _ in range(number)]
    for batch in batches:
        batch["labels"] = batch["input_ids"] if kind == "llama" else batch["input_ids"][:, 0] % 3
    return batches


MODELS = {"bert": bert, "llama": llama}


def request_of(kind, **others):
    given = {
        "bert": {"targets": ["query", "value"], "trained_whole": ["classifier"], "task_type": "SEQ_CLS"},
        "llama": {"targets": ["q_proj", "v_proj"], "trained_whole": [], "task_type": "CAUSAL_LM"},
    }[kind]
    return MethodRequest(**{"seed": 3, "batches": batches_of(kind), "total_steps": 8, **given, **others})


# Options that suit layers of 16 features.
OPTIONS = {
    "lora": {"r": 2},
    "dora": {"r": 2},
    "pissa": {"r": 2},
    "adalora": {"init_r": 3, "target_r": 2},
    "vera": {"r": 4},
    "fourierft": {"n_frequency": 20},
    "oft": {"oft_block_size": 4},
    "vblora": {"r": 2, "num_vectors": 5, "vector_length": 4},
    "unilora": {"theta_d_length": 40},
    "psoft": {"r": 5, "psoft_alpha": 5},
    "tinylora": {"u": 7},
    "melora": {"r": 2, "n": 4, "lora_alpha": 2},
    "loldu": {"r": 6},
    "ldu-core": {"r": 3},
    "ldu-pivots": {"fit_rank": 3},
    "ldu-basis": {"fit_rank": 3},
}
