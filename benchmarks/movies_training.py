"""all-MiniLM-L6-v2 with a linear head on its mean token, trained and evaluated on snippets."""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoModel, AutoTokenizer

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "tools"))
from minilm import folder  # the tests' own, which verifies the checksum

BATCH, EPOCHS, WARM_UP, HEAD_RATE, EVALUATED_TOGETHER = 32, 2, 0.06, 5e-3, 100


def load_tokenizer():
    return AutoTokenizer.from_pretrained(folder())


class Classifier(nn.Module):
    """The encoder, frozen, and a head of one logit. Dropout is off, for all methods alike."""

    def __init__(self):
        super().__init__()
        self.encoder = AutoModel.from_pretrained(folder(), add_pooling_layer=False, dtype=torch.float32)
        self.encoder.requires_grad_(False)
        self.head = nn.Linear(self.encoder.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.eval()

    def features(self, batch):
        mask = batch["attention_mask"]
        states = self.encoder(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        weights = (mask / mask.sum(dim=1, keepdim=True)).unsqueeze(-1)
        return (states * weights).sum(dim=1)

    def forward(self, batch):
        return self.head(self.features(batch)).squeeze(-1)


def loss_of(model, batch):
    return binary_cross_entropy_with_logits(model(batch), batch["labels"])


def optimize(groups, orders, loss):
    """AdamW without decay; rates rise over 6 % of the steps and then fall to zero."""
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    steps, rising = len(orders), max(1, round(WARM_UP * len(orders)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, (steps - step) / (steps - rising))
    )
    for indices in orders:
        optimizer.zero_grad()
        loss(indices).backward()
        optimizer.step()
        schedule.step()


def train_head(head, features, snippets, seed, epochs):
    def loss(indices):
        return binary_cross_entropy_with_logits(head(features[indices]).squeeze(-1), snippets.labels[indices])

    optimize([{"params": list(head.parameters()), "lr": HEAD_RATE}], snippets.orders(BATCH, seed, epochs), loss)


def train(model, rate, snippets, seed):
    """Train adapter and head; the head's rate is the same for all methods."""
    head = list(model.head.parameters())
    for parameter in head:
        parameter.requires_grad = True
    of_head = {id(parameter) for parameter in head}
    adapter = [each for each in model.parameters() if each.requires_grad and id(each) not in of_head]
    groups = [{"params": head, "lr": HEAD_RATE}, {"params": adapter, "lr": rate}]
    optimize(groups, snippets.orders(BATCH, seed, EPOCHS), lambda indices: loss_of(model, snippets.batch(indices)))


@torch.no_grad()
def features_of(model, snippets):
    """The encoder's mean token of each snippet."""
    features = torch.zeros(len(snippets), model.head.in_features)
    for places, batch in snippets.ordered_batches(EVALUATED_TOGETHER):
        features[places] = model.features(batch)
    return features


@torch.no_grad()
def accuracy(model, snippets):
    """Percentage of snippets whose polarity is right."""
    right = 0
    for _, batch in snippets.ordered_batches(EVALUATED_TOGETHER):
        right += int(((model(batch) > 0) == (batch["labels"] > 0)).sum())
    return 100 * right / len(snippets)
