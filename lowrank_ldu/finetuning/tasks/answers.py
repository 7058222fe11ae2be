"""Make tokens of prompts and answers, and measure the loss of answers."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from lowrank_ldu.errors import DivergenceError, OptionError
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.finetuning.processes import is_first
from lowrank_ldu.finetuning.tasks.instructions import INPUT, INSTRUCTION, OUTPUT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lowrank_ldu.finetuning.tasks.instructions import Template

# What the loss leaves out, by PyTorch's convention.
IGNORED = -100


def answer_tokens(rows: Any, tokenizer: Any, template: Template, max_length: int, split: str) -> Any:
    """Make tokens of prompts and answers, and labels of the answers alone.

    A prompt and its answer are one text for the tokenizer. A token that has a character of the answer has a label, and
    so has the end of the sequence, which comes after it.

    Parameters
    ----------
    rows : datasets.Dataset
        Of `open_instructions`.
    tokenizer : transformers.PreTrainedTokenizerFast
        With an end of sequence.
    template : Template
    max_length : int
        Most tokens of a row; what is longer is cut at its end.
    split : str
        For messages.

    Returns
    -------
    datasets.Dataset
        With input_ids, attention_mask and labels, -100 on prompts.

    Raises
    ------
    OptionError
        No answer begins before `max_length`.

    Warns
    -----
    UserWarning
        Rows whose answer is cut off whole are left out; the message counts them.
    """

    def tokens(batch: Mapping[str, Any]) -> dict[str, Any]:
        prompts = [template.prompt(*each) for each in zip(batch[INSTRUCTION], batch[INPUT], strict=True)]
        texts = [prompt + answer for prompt, answer in zip(prompts, batch[OUTPUT], strict=True)]
        encoded = tokenizer(texts, return_offsets_mapping=True, return_special_tokens_mask=True)
        made: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
        for number, prompt in enumerate(prompts):
            ids, offsets, special = (
                list(encoded[name][number]) for name in ("input_ids", "offset_mapping", "special_tokens_mask")
            )
            # Some tokenizers add an end of their own.
            while special and special[-1]:
                ids.pop(), offsets.pop(), special.pop()
            marked = zip(ids, offsets, special, strict=True)
            labels = [IGNORED if added or end <= len(prompt) else token for token, (_, end), added in marked]
            ids, labels = ([*each, tokenizer.eos_token_id][:max_length] for each in (ids, labels))
            if any(label != IGNORED for label in labels):
                made["input_ids"].append(ids)
                made["attention_mask"].append([1] * len(ids))
                made["labels"].append(labels)
        return made

    datasets = require("datasets")
    numbers = datasets.Sequence(datasets.Value("int32"))
    features = datasets.Features(dict.fromkeys(("input_ids", "attention_mask", "labels"), numbers))
    # Nothing is left in a cache: a changed tokenizer cannot be overlooked.
    made = rows.map(tokens, batched=True, remove_columns=rows.column_names, features=features, keep_in_memory=True)
    if len(made) == 0:
        raise OptionError(
            f"max_length is {max_length}, and no answer of split {split!r} begins before it; accepted: more"
        )
    if len(made) < len(rows) and is_first():
        warnings.warn(
            f"{len(rows) - len(made)} of {len(rows)} rows of split {split!r} are left out: their answers begin after "
            f"max_length, {max_length} tokens",
            stacklevel=2,
        )
    return made


def answer_losses(logits: Any, labels: Tensor) -> Tensor:
    """Sum the loss over each row's answer, and count its tokens.

    Parameters
    ----------
    logits : Tensor, shape (b, t, v)
        Or a tuple that begins with it.
    labels : Tensor, shape (b, t), int64
        -100 where there is no answer.

    Returns
    -------
    Tensor, shape (b, 2), float32
        Sums of the negative logarithms of probabilities, in nats, and numbers of tokens.

    Examples
    --------
    >>> answer_losses(torch.zeros(1, 3, 2), torch.tensor([[-100, 1, 0]]))
    tensor([[1.3863, 2.0000]])
    """
    values = logits[0] if isinstance(logits, tuple) else logits
    following = labels[:, 1:]
    losses = cross_entropy(values[:, :-1].float().transpose(1, 2), following, ignore_index=IGNORED, reduction="none")
    return torch.stack([losses.sum(dim=1), (following != IGNORED).sum(dim=1).float()], dim=1)


def answer_metrics(evaluated: Any) -> dict[str, float]:
    """Return the mean loss over the answer tokens of all rows, and its exponential.

    Parameters
    ----------
    evaluated : transformers.EvalPrediction, or a pair
        `answer_losses` of all rows, and the labels.

    Raises
    ------
    DivergenceError
        The loss is not finite.

    Examples
    --------
    >>> answer_metrics((np.array([[1.0, 1.0], [3.0, 3.0]]), None))
    {'loss': 1.0, 'perplexity': 2.718281828459045}
    """
    losses, _ = evaluated
    total, tokens = np.asarray(losses, np.float64).sum(axis=0)
    if not np.isfinite(total):
        raise DivergenceError("the model's predictions are not finite; accepted: a smaller learning_rate, or no fp16")
    mean = total / tokens
    with np.errstate(over="ignore"):  # infinite, then
        return {"loss": float(mean), "perplexity": float(np.exp(mean))}
