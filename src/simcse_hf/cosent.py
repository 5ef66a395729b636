"""CoSENT: the order of human scores as a loss on cosines.    Axes: C pairs, D size.

Su Jianlin 2022, "CoSENT", https://kexue.fm/archives/8847; Huang et al. 2024, doi:10.1109/TASLP.2024.3402087.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cosine_regression import paired_cosines


def cosent_loss(first: Tensor, second: Tensor, scores: Tensor, *, scale: float = 20.0) -> Tensor:
    """log(1 + sum over y_i > y_j of exp(scale * (cos_j - cos_i))), where cos_i = cos(u_i, v_i).

    Args:
        first, second: (C, D), the two sentences of each pair.
        scores: (C,), any scale: only their order matters.
        scale: The inverse of a temperature.

    Returns:
        Scalar; 0 without gradient where no two scores differ.

    Raises:
        ValueError: Not one score a pair.

    >>> u = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> round(cosent_loss(u, u, torch.tensor([0.2, 0.9])).item(), 4)  # equal cosines: log(1 + e^0)
    0.6931
    """
    return ranking_loss(paired_cosines(first, second), scores, scale=scale)


def ranking_loss(similarities: Tensor, scores: Tensor, *, scale: float) -> Tensor:
    """log(1 + sum over y_i > y_j of exp(scale * (s_j - s_i))); equal scores demand nothing of each other.

    Args:
        similarities: (C,), larger means more alike.
        scores: (C,)
        scale: The inverse of a temperature.

    Returns:
        Scalar.

    Raises:
        ValueError: Not one score a similarity.
    """
    if scores.shape != similarities.shape:
        expected = tuple(similarities.shape)
        raise ValueError(f"scores has the shape {tuple(scores.shape)}; one score a pair means {expected}.")
    differences = scale * (similarities.unsqueeze(0) - similarities.unsqueeze(1))  # (C, C): s_j - s_i
    unordered = scores.unsqueeze(1) <= scores.unsqueeze(0)
    terms = differences.masked_fill(unordered, float("-inf")).flatten()
    # The zero is the 1 in the logarithm; with it, a batch without any ordered pair has a finite gradient.
    return torch.cat([terms.new_zeros(1), terms]).logsumexp(dim=0)
