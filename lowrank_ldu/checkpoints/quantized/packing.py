"""Unpack integers of few bits.

They are packed into words or bytes. Numbers may be looked up by them.
"""

from __future__ import annotations

import math

import torch


def unpacked(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Return the integers in the words of an array.

    They lie one after another along the last axis, lowest bits first.

    Parameters
    ----------
    words : torch.Tensor
        (..., words), int32.
    bits : int
        Of each integer, from 1 to 8. Those that do not divide 32 go on in the next word.
    count : int
        How many there are along the last axis.

    Returns
    -------
    torch.Tensor
        (..., count), uint8.

    Examples
    --------
    >>> unpacked(torch.tensor([[0x87654321, 0x9]], dtype=torch.int64).int(), 4, 9).tolist()
    [[1, 2, 3, 4, 5, 6, 7, 8, 9]]
    """
    # The places repeat after so many integers, which fill so many words.
    period = 32 // math.gcd(32, bits)
    span = period * bits // 32
    words = torch.nn.functional.pad(words, (0, -words.shape[-1] % span))
    spans = words.reshape(*words.shape[:-1], words.shape[-1] // span, span)
    values = torch.empty((*spans.shape[:-1], period), dtype=torch.uint8)
    mask = (1 << bits) - 1
    for place in range(period):
        word, shift = divmod(place * bits, 32)
        value = spans[..., word] >> shift
        in_word = 32 - shift
        if in_word < bits:
            value = (value & ((1 << in_word) - 1)) | (spans[..., word + 1] << in_word)
        values[..., place] = value & mask
    return values.flatten(-2)[..., :count]


def looked_up(packed: torch.Tensor, table: torch.Tensor, *, high_first: bool) -> torch.Tensor:
    """Return the numbers that the halves of bytes stand for.

    Parameters
    ----------
    packed : torch.Tensor
        (..., bytes), uint8.
    table : torch.Tensor
        (16,), float32.
    high_first : bool
        Whether the upper half of a byte comes before its lower one.

    Returns
    -------
    torch.Tensor
        (..., 2 * bytes), float32.

    Examples
    --------
    >>> looked_up(torch.tensor([0x12], dtype=torch.uint8), torch.arange(16.0), high_first=True).tolist()
    [1.0, 2.0]
    """
    flat = packed.reshape(-1)
    values = torch.empty((flat.numel(), 2), dtype=torch.float32)
    for column, half in enumerate((flat >> 4, flat & 15) if high_first else (flat & 15, flat >> 4)):
        values[:, column] = table.index_select(0, half.int())
    return values.reshape(*packed.shape[:-1], 2 * packed.shape[-1])
