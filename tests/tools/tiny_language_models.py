"""A tiny Llama with a tokenizer of words, and instructions that can be learned."""

import json
import random

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lowrank_ldu.finetuning.tasks.instructions import TEMPLATES

SPECIAL = ("<s>", "</s>", "<unk>")
COLORS, THINGS = ("red", "green", "blue"), ("rose", "leaf", "sky")
OTHERS = ("what", "color", "has", "the", "it", "is", "name", "a", "of")
# Of the longest prompt with the tokenizer of words, its start included.
PROMPT = 44


def save_tokenizer(folder, **names):
    """A tokenizer of words, whose text may have several lines."""
    text = TEMPLATES["alpaca"].with_input + TEMPLATES["alpaca"].without_input
    splits = [word for word, _ in Whitespace().pre_tokenize_str(text)]
    words = dict.fromkeys([*SPECIAL, *COLORS, *THINGS, *OTHERS, *splits])
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing("<s> $A", "<s> $A <s> $B", special_tokens=[("<s>", 0)])
    given = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **names}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **given).save_pretrained(folder)
    return len(words)


def save_llama(folder, length=128, **names):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=save_tokenizer(folder, **names),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=length,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    # Larger than the usual start, so that words can be told apart.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


def instructions(number, seed=0):
    """Rows with and without an input, and answers of one to six words."""
    drawn = random.Random(seed)  # noqa: S311
    rows = []
    for _ in range(number):
        place = drawn.randrange(3)
        thing, color = THINGS[place], COLORS[place]
        rows.append(
            {
                "instruction": f"what color has the {thing}",
                "input": "",
                "output": f"the color of the {thing} is {color}",
            }
            if drawn.randrange(2)
            else {"instruction": "name the color", "input": f"a {thing}", "output": color}
        )
    return rows


def save_instructions(file, number, seed=0):
    file.write_text(json.dumps(instructions(number, seed)), encoding="utf-8")
    return file
