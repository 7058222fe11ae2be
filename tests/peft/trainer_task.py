"""Train the real all-MiniLM-L6-v2 on real sentences with transformers' Trainer; run as a script, predict again."""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import yaml
from minilm import checkpoint
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer, logging

import lowrank_ldu.peft  # noqa: F401  # makes PEFT know the method

# Topics of chatterbot-corpus with the most short sentences; the rest of the package is other languages.
TOPICS = ("ai", "emotion", "humor", "literature", "psychology", "trivia")
MOST = 160


def sentences():
    """Sentences and the number of each one's topic, shuffled, each sentence once."""
    folder = Path(find_spec("chatterbot_corpus").submodule_search_locations[0]) / "data" / "english"
    found = {}
    for label, topic in enumerate(TOPICS):
        content = yaml.safe_load((folder / f"{topic}.yml").read_text(encoding="utf-8"))
        topic_sentences = [str(sentence) for conversation in content["conversations"] for sentence in conversation]
        for sentence in topic_sentences[:MOST]:
            found.setdefault(sentence, label)
    order = np.random.default_rng(0).permutation(len(found))
    pairs = list(found.items())
    return [pairs[index] for index in order]


class Sentences(torch.utils.data.Dataset):
    def __init__(self, pairs):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint().parent)
        texts, self.labels = zip(*pairs, strict=True)
        self.rows = tokenizer(list(texts), truncation=True, max_length=16, padding="max_length")

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {name: values[index] for name, values in self.rows.items()} | {"labels": self.labels[index]}

    def inputs(self):
        return {name: torch.tensor(values) for name, values in self.rows.items()}


@torch.no_grad()
def predictions(model, dataset):
    return model.eval()(**dataset.inputs()).logits


def main(adapter, output):
    logging.disable_progress_bar()
    held_out = Sentences(sentences()[:200])
    model = AutoPeftModelForSequenceClassification.from_pretrained(adapter, num_labels=len(TOPICS))
    torch.save(predictions(model, held_out), output)


if __name__ == "__main__":
    main(*sys.argv[1:])
