"""Tiny models of true architectures with a tokenizer of words, and data that can be learned."""

import random

import datasets
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

GOOD, BAD = ("good", "fine", "great", "lovely"), ("bad", "poor", "awful", "dull")
OTHERS = ("the", "film", "was", "a", "story", "actor")
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
WORDS = (*SPECIAL, *GOOD, *BAD, *OTHERS)


def offline():
    """Nothing is looked up on the hub; the environment's variable counts only before these are imported."""
    patch = pytest.MonkeyPatch()
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    patch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    yield
    patch.undo()


def save_tokenizer(folder):
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    places = {word: place for place, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordLevel(places, unk_token=names["unk_token"]))
    tokenizer.pre_tokenizer = Whitespace()
    ends = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = TemplateProcessing("<s> $A </s>", "<s> $A </s> $B </s>", special_tokens=ends)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def save_model(folder, kind="roberta", **options):
    """A body without a head, or with one where `num_labels` is given."""
    torch.manual_seed(0)
    size = {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
        "pad_token_id": 1,
    }
    config, whole = {
        "roberta": (RobertaConfig, RobertaForSequenceClassification),
        "bert": (BertConfig, BertForSequenceClassification),
    }[kind]
    model = whole(config(**size, **options))
    # Larger than the usual start, so that words can be told apart.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.3)
    (model if "num_labels" in options else model.base_model).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def sentences(number, seed):
    """Sentences, each with more good than bad words or the other way about, and how good they are."""
    drawn = random.Random(seed)  # noqa: S311
    rows = []
    for _ in range(number):
        good = drawn.randrange(2)
        words = [*drawn.choices(GOOD if good else BAD, k=2), *drawn.choices(OTHERS, k=drawn.randrange(2, 6))]
        drawn.shuffle(words)
        rows.append((" ".join(words), good))
    return rows


def data_set(columns=("sentence",), train=64, validation=32, label=lambda good: good, splits=("validation",)):
    """A DatasetDict with a split for training and others."""

    def split(number, seed):
        rows = sentences(number, seed)
        table = {column: [text for text, _ in rows] for column in columns}
        return datasets.Dataset.from_dict({**table, "label": [label(good) for _, good in rows]})

    return datasets.DatasetDict(
        {"train": split(train, 1), **{name: split(validation, place + 2) for place, name in enumerate(splits)}}
    )
