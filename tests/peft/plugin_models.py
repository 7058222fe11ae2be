"""Base models, and what is done to adapters on them in every test."""

import torch
from minilm import checkpoint
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from lowrank_ldu.peft import LolduLayer

TOKENS = 97


def minilm(dtype=torch.float32, labels=3):
    torch.manual_seed(0)  # of the head, which is new
    folder = checkpoint().parent
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels, dtype=dtype).eval()


def tiny_bert(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(vocab_size=TOKENS, **sizes, **still)).to(dtype).eval()


def tiny_gpt2():
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=TOKENS)
    config.bos_token_id = config.pad_token_id = 0
    config.eos_token_id = None
    return GPT2LMHeadModel(config).eval()


def tiny_t5():
    torch.manual_seed(0)
    config = T5Config(d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2, vocab_size=TOKENS)
    config.decoder_start_token_id = config.pad_token_id = 0
    config.eos_token_id = None
    return T5ForConditionalGeneration(config).eval()


def tokens(rows=3, length=7):
    return torch.randint(1, TOKENS, (rows, length), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def perturb(model, size=0.2):
    """Give every adapter numbers as of training."""
    for name, parameter in model.named_parameters():
        if "loldu_adapter" in name:
            parameter.add_(size * torch.randn_like(parameter) if name.endswith("offset") else size / 2)
    return model.eval()


def layers(model):
    return [module for module in model.modules() if isinstance(module, LolduLayer)]


@torch.no_grad()
def logits(model, ids=None, **options):
    return model(tokens() if ids is None else ids, **options).logits


def stored_bytes(model):
    """Bytes of all distinct storages."""
    tensors = [*model.parameters(), *model.buffers()]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
