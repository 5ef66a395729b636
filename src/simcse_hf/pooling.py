"""Sentence vectors from token vectors.    Axes: N sentences, T tokens, D hidden size.

The poolers of SimCSE (arXiv:2104.08821, section 6.3 and Table 6), as pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def cls_pool(hidden: Tensor) -> Tensor:
    """The first token's vector.    hidden (N, T, D)  ->  (N, D)"""
    return hidden[:, 0]


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Average over the real tokens.    hidden (N, T, D), mask (N, T) of 0/1  ->  (N, D)

    >>> import torch
    >>> hidden = torch.tensor([[[1.0], [3.0], [100.0]]])
    >>> mean_pool(hidden, torch.tensor([[1, 1, 0]])).item()
    2.0
    """
    weights = mask.unsqueeze(-1).to(hidden.dtype)  # (N, T, 1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)  # (N, D)


def max_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Elementwise maximum over the real tokens.    hidden (N, T, D), mask (N, T)  ->  (N, D)

    >>> import torch
    >>> hidden = torch.tensor([[[-1.0], [-3.0], [100.0]]])
    >>> max_pool(hidden, torch.tensor([[1, 1, 0]])).item()
    -1.0
    """
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(dim=1)  # (N, D)


def pool(
    pooler_type: str,
    hidden_states: Sequence[Tensor],
    mask: Tensor,
    *,
    first_hidden_state: int = 1,
) -> Tensor:
    """The sentence vector before any head.

    Args:
        pooler_type: A value of `SimCSEConfig.pooler_type`.
        hidden_states: Layer outputs, each (N, T, D), the embedding layer first and the last
            layer last. `cls`, `cls_before_pooler`, `avg` and `max` read only the last, so a
            sequence of one suffices for them.
        mask: (N, T), 1 for real tokens, special tokens included.
        first_hidden_state: The "first" layer of `avg_first_last`, 0 or 1.

    Returns:
        (N, D)

    Raises:
        ValueError: Unknown `pooler_type`.
    """
    last = hidden_states[-1]
    match pooler_type:
        case "cls" | "cls_before_pooler":
            return cls_pool(last)
        case "avg":
            return mean_pool(last, mask)
        case "avg_top2":
            return mean_pool((last + hidden_states[-2]) / 2, mask)
        case "avg_first_last":
            return mean_pool((hidden_states[first_hidden_state] + last) / 2, mask)
        case "max":
            return max_pool(last, mask)
    raise ValueError(f"unknown pooler_type {pooler_type!r}")
