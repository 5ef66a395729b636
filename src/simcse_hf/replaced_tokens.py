"""Which tokens were replaced?    Axes: N tokens.

Clark et al. 2020, ELECTRA, arXiv:2003.10555, section 2 (L_Disc); Chuang et al. 2022, DiffCSE, arXiv:2204.10298,
section 3 (L_RTD, where the discriminator also sees the sentence embedding). Both sum over the tokens of a sentence.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .similarity import at_least_float32

KEPT, REPLACED = 0, 1


def replaced_labels(original: Tensor, corrupted: Tensor, real: Tensor) -> Tensor:
    """1 where a real token is not the original one, else 0; a generator that guesses right has replaced nothing.

    Args:
        original, corrupted: Token ids, of one shape.
        real: bool of that shape, False on padding.

    Returns:
        int64 of that shape.

    >>> replaced_labels(torch.tensor([5, 6, 0]), torch.tensor([5, 7, 9]), torch.tensor([True, True, False])).tolist()
    [0, 1, 0]
    """
    return ((original != corrupted) & real).long()


def replaced_token_loss(logits: Tensor, labels: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over the counted tokens, and their number.

    Sum and number apart, because a mean over passes or processes is the sum of all over the number of all.

    Args:
        logits: (N, 2), column 1 for "replaced".
        labels: (N,) from `replaced_labels`.
        counted: (N,) bool, the tokens that take part.

    Returns:
        Two scalars: the sum, and the number as int64, which may be 0.
    """
    losses = F.cross_entropy(at_least_float32(logits), labels, reduction="none")  # (N,)
    # Not a product: an infinite loss where nothing counts must not become NaN.
    return torch.where(counted, losses, 0.0).sum(), counted.sum()


@torch.no_grad()
def replaced_token_counts(logits: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
    """How many tokens are told apart, without leaving the device.

    Args:
        logits: (N, 2)
        labels: (N,)
        counted: (N,) bool

    Returns:
        (2, 2) int64: rows `KEPT` and `REPLACED`, columns correct and all. Counts of passes and processes add up.

    >>> logits, labels = torch.tensor([[2.0, 1.0], [2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1, 1])
    >>> replaced_token_counts(logits, labels, torch.tensor([True, True, True])).tolist()
    [[1, 1], [1, 2]]
    """
    correct = logits.argmax(dim=-1) == labels
    of_class = [counted & (labels == label) for label in (KEPT, REPLACED)]
    return torch.stack([torch.stack([(chosen & correct).sum(), chosen.sum()]) for chosen in of_class])
