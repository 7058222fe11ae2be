"""Human-rated snippets of the vaderSentiment archive, as token ids and polarities."""

from dataclasses import dataclass

import torch

from lowrank_ldu.finetuning.tasks.sentiment import read_snippets

LONGEST = 64
# Batches are cut from this many of them, sorted by length: that spares most of the padding.
_SORTED_TOGETHER = 25


@dataclass(frozen=True)
class Snippets:
    """Token ids of each snippet, and its polarity, 1.0 or 0.0."""

    ids: list[list[int]]
    labels: torch.Tensor

    def __len__(self):
        return len(self.ids)

    def take(self, indices):
        return Snippets([self.ids[i] for i in indices], self.labels[torch.as_tensor(indices, dtype=torch.long)])

    def split(self, sizes, seed=0):
        """Disjoint random parts of some sizes."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()
        parts = []
        for size in sizes:
            parts.append(self.take(order[:size]))
            order = order[size:]
        return parts

    def orders(self, size, seed, epochs=1):
        """Batches in a random order, as indices: snippets of about one length in each."""
        groups = []
        for epoch in range(epochs):
            generator = torch.Generator().manual_seed(1000 * seed + epoch)
            order, own = torch.randperm(len(self), generator=generator).tolist(), []
            for start in range(0, len(order), size * _SORTED_TOGETHER):
                near = sorted(order[start : start + size * _SORTED_TOGETHER], key=lambda i: len(self.ids[i]))
                own += [near[at : at + size] for at in range(0, len(near), size)]
            groups += [own[i] for i in torch.randperm(len(own), generator=generator).tolist()]
        return groups

    def ordered_batches(self, size):
        """All snippets from short to long, each batch with their places."""
        order = sorted(range(len(self)), key=lambda i: len(self.ids[i]))
        for start in range(0, len(order), size):
            places = order[start : start + size]
            yield places, self.batch(places)

    def batch(self, indices):
        longest = max(len(self.ids[i]) for i in indices)
        ids = torch.zeros(len(indices), longest, dtype=torch.long)
        mask = torch.zeros(len(indices), longest, dtype=torch.long)
        for row, i in enumerate(indices):
            ids[row, : len(self.ids[i])] = torch.tensor(self.ids[i])
            mask[row, : len(self.ids[i])] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": self.labels[torch.tensor(indices)]}


def tokenized_snippets(archive, name, tokenizer):
    """Snippets of one set whose mean rating is not zero, with its sign as their polarity."""
    kept = [snippet for snippet in read_snippets(archive, name) if snippet.rating != 0]
    ids = tokenizer([snippet.text for snippet in kept], truncation=True, max_length=LONGEST)["input_ids"]
    return Snippets(ids, torch.tensor([float(snippet.rating > 0) for snippet in kept]))
