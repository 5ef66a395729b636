"""Classification of sentence pairs.    Axes: B pairs, D size, L labels.

Reimers & Gurevych 2019, Sentence-BERT, arXiv:1908.10084, section 3, "Classification Objective Function":
o = softmax(W (u, v, |u - v|)).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .similarity import at_least_float32


def nli_features(first: Tensor, second: Tensor) -> Tensor:
    """(u, v, |u - v|), what the classifier sees of premises (B, D) and hypotheses (B, D)  ->  (B, 3D)

    >>> nli_features(torch.tensor([[1.0, 5.0]]), torch.tensor([[4.0, 3.0]])).tolist()
    [[1.0, 5.0, 4.0, 3.0, 3.0, 2.0]]
    """
    first, second = at_least_float32(first), at_least_float32(second)
    return torch.cat([first, second, (first - second).abs()], dim=-1)


def softmax_classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the right label.

    Args:
        logits: (B, L), L = 3 for NLI.
        labels: (B,) int64, 0 to L - 1.

    Returns:
        Scalar.
    """
    return F.cross_entropy(at_least_float32(logits), labels)
