"""Cosine regression on human scores.    Axes: C pairs, D size.

Reimers & Gurevych 2019, Sentence-BERT, arXiv:1908.10084, section 3, "Regression Objective Function".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .similarity import at_least_float32


def paired_cosines(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of each row of first (C, D) with the same row of second (C, D)  ->  (C,), float32 or better."""
    with torch.autocast(first.device.type, enabled=False):
        first = F.normalize(at_least_float32(first), dim=-1)
        second = F.normalize(at_least_float32(second), dim=-1)
        return (first * second).sum(dim=-1)


def cosine_mse_loss(first: Tensor, second: Tensor, scores: Tensor) -> Tensor:
    """Mean of (cos(u, v) - y)^2.

    Args:
        first, second: (C, D), the two sentences of each pair.
        scores: (C,) from 0 to 1.

    Returns:
        Scalar.

    Raises:
        ValueError: `scores` has another shape than the cosines, and would be compared with all of them.

    >>> cosine_mse_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([0.5])).item()
    0.25
    """
    cosines = paired_cosines(first, second)
    if scores.shape != cosines.shape:
        raise ValueError(f"scores has the shape {tuple(scores.shape)}; one score a pair means {tuple(cosines.shape)}.")
    return F.mse_loss(cosines, scores.to(cosines.dtype))
