"""Candidates too near to be negatives.    Axes: B anchors, M candidates.

Qwen3-Embedding, arXiv:2506.05176, section 3: the factor m_ij is 0 where s_ij > s(q_i, d_i+) + 0.1.
GISTEmbed, arXiv:2402.16829, is margin 0 with the cosines of a guide model.
"""

from __future__ import annotations

import torch
from torch import Tensor


def false_negative_mask(cosines: Tensor, margin: float, *, first_positive: int = 0) -> Tensor:
    """Which candidates are nearer to the anchor than its own positive by more than `margin`.

    Args:
        cosines: (B, M) in the column order of `contrastive_logits`, and cosines: neither divided by a temperature
            nor weighted.
        margin: Added to the own positive's cosine.
        first_positive: Column of anchor 0's positive.

    Returns:
        (B, M) bool, for `masked` of `contrastive_logits` (joined with `duplicate_mask` by |). Never the own positive.

    >>> false_negative_mask(torch.tensor([[0.5, 0.7, 0.55], [0.9, 0.2, 0.1]]), 0.1).tolist()
    [[False, True, False], [True, False, False]]
    """
    rows = torch.arange(len(cosines), device=cosines.device)
    own = cosines[rows, first_positive + rows].unsqueeze(1)  # (B, 1)
    masked = cosines > own + margin
    masked[rows, first_positive + rows] = False
    return masked
