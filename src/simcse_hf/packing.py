"""Sentences laid end to end in rows, so that next to nothing is padding.

Axes: N sentences, R rows, L tokens of a row.

A sentence lies whole in one row; positions start again at 0 in each; a filler token stands alone at position 0.
First-fit decreasing over the histogram of lengths (Johnson, 1973; as used for packing by arXiv:2107.02027): a row
takes as many of the longest remaining sentences as fit, then of the next shorter ones. Equal lengths so lie side by
side, which `attention` makes use of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class RowLayout(NamedTuple):
    """Shape of packed rows.

    Attributes:
        length: Tokens of a row; a batch with a longer sentence gets rows of twice, thrice ... the length.
        multiple: Rows of filler are added until their number is a multiple of this, so that compiled code meets few
            shapes.
    """

    length: int
    multiple: int = 1


def pack(lengths: np.ndarray, row_length: int) -> np.ndarray:
    """Where each sentence starts, as a position in the flattened (R, L) rows.

    Deterministic; rows are filled from the left without gaps between sentences.

    Args:
        lengths: (N,) tokens of each sentence, 1 or more.
        row_length: L.

    Returns:
        (N,) int64. Sentence n lies in row `starts[n] // L`.

    Raises:
        ValueError: A sentence without tokens, or longer than a row.

    >>> pack(np.array([2, 5, 3, 2]), 7).tolist()
    [5, 0, 7, 10]
    """
    if len(lengths) and not 0 < lengths.min() <= lengths.max() <= row_length:
        raise ValueError(
            f"lengths from {lengths.min()} to {lengths.max()} cannot be packed into rows of {row_length} tokens."
        )
    order = np.argsort(-lengths, kind="stable")  # (N,) longest first
    histogram = np.unique(-lengths[order], return_index=True, return_counts=True)
    waiting = [[-length, first, count] for length, first, count in np.stack(histogram, axis=1).tolist()]
    starts = np.empty(len(lengths), dtype=np.int64)
    position = 0  # of the next token, in the flattened rows
    while waiting:
        room = row_length
        for entry in waiting:
            length, first, count = entry
            taken = min(count, room // length)
            if taken:
                starts[order[first : first + taken]] = position + length * np.arange(taken)
                entry[1:] = first + taken, count - taken
                position += length * taken
                room -= length * taken
        position += room
        waiting = [entry for entry in waiting if entry[2]]
    return starts


def packed_rows(sentences: Sequence[np.ndarray], layout: RowLayout, pad_token_id: int) -> dict[str, Tensor]:
    """Token ids of N sentences as rows.

    Args:
        sentences: Token ids of each.
        layout: Of the rows.
        pad_token_id: Fills what is left of a row.

    Returns:
        `input_ids` and `position_ids` (R, L), `sentence_starts` and `sentence_lengths` (N,), int64.

    >>> rows = packed_rows([np.array([7, 8]), np.array([9])], RowLayout(4), pad_token_id=0)
    >>> rows["input_ids"].tolist(), rows["position_ids"].tolist()
    ([[7, 8, 9, 0]], [[0, 1, 0, 0]])
    """
    lengths = np.array([len(sentence) for sentence in sentences], dtype=np.int64)
    row_length = -(-int(lengths.max()) // layout.length) * layout.length
    starts = pack(lengths, row_length)
    used = int(starts.max()) // row_length + 1
    rows = -(-used // layout.multiple) * layout.multiple
    first_token = np.cumsum(lengths) - lengths  # (N,) in the sentences end to end
    within = np.arange(lengths.sum()) - np.repeat(first_token, lengths)
    where = np.repeat(starts, lengths) + within
    input_ids = np.full(rows * row_length, pad_token_id, dtype=np.int64)
    position_ids = np.zeros(rows * row_length, dtype=np.int64)
    input_ids[where] = np.concatenate(sentences)
    position_ids[where] = within
    return {
        "input_ids": torch.from_numpy(input_ids).view(rows, row_length),
        "position_ids": torch.from_numpy(position_ids).view(rows, row_length),
        "sentence_starts": torch.from_numpy(starts),
        "sentence_lengths": torch.from_numpy(lengths),
    }


def fill_ratio(lengths: np.ndarray, row_length: int) -> float:
    """Real tokens for each in the rows. The empty ends of rows count here, although a CPU does not compute them."""
    starts = pack(lengths, row_length)
    return float(lengths.sum() / ((int(starts.max()) // row_length + 1) * row_length))


def same_sentence(position_ids: Tensor) -> Tensor:
    """Which tokens of a row may attend to each other.    position_ids (R, L)  ->  (R, 1, L, L) bool

    >>> same_sentence(torch.tensor([[0, 1, 0]]))[0, 0].int().tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """
    sentence = (position_ids == 0).cumsum(dim=1)  # (R, L)
    return (sentence.unsqueeze(2) == sentence.unsqueeze(1)).unsqueeze(1)


def sentence_boundaries(position_ids: Tensor) -> Tensor:
    """Cumulative lengths for variable-length kernels; each filler token counts as a sentence.

    Args:
        position_ids: (R, L)

    Returns:
        (S + 1,) int32, from 0 to R*L.

    >>> sentence_boundaries(torch.tensor([[0, 1, 0], [0, 0, 1]])).tolist()
    [0, 2, 3, 4, 6]
    """
    flat = position_ids.reshape(-1)
    starts = (flat == 0).nonzero().squeeze(1)
    return torch.cat([starts, starts.new_tensor([len(flat)])]).to(torch.int32)


def unpack_index(starts: Tensor, lengths: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Where the tokens of each sentence lie.

    Args:
        starts: (N,)
        lengths: (N,)
        longest: T, at least the longest length.

    Returns:
        (N, T) positions in the flattened rows, those beyond a sentence's end repeating its first, and the (N, T)
        int64 mask of real tokens.
    """
    step = torch.arange(longest, device=starts.device)  # (T,)
    mask = step < lengths.unsqueeze(1)  # (N, T)
    return starts.unsqueeze(1) + step * mask, mask.to(torch.int64)
