"""Embeddings that may be cut.    Axes: D size.

Kusupati et al. 2022, Matryoshka Representation Learning, arXiv:2205.13147, Eq. 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from .errors import ConfigError


def matryoshka_loss(
    loss_of: Callable[[Tensor], Tensor],
    embeddings: Tensor,
    sizes: Sequence[int],
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Weighted mean of a loss over the first components of the embeddings.

    The paper sums; the mean has the same minimum, and a learning rate found for one size keeps its meaning.

    Args:
        loss_of: The loss of embeddings (..., size).
        embeddings: (..., D)
        sizes: How many components to keep, each from 1 to D; D itself only where it is listed.
        weights: Of each size; default: equal.

    Returns:
        Scalar.

    Raises:
        ConfigError: Sizes or weights that cannot be used.

    >>> import torch
    >>> matryoshka_loss(torch.sum, torch.tensor([1.0, 2.0, 4.0]), [1, 3], [3, 1]).item()  # (3*1 + 1*7) / 4
    2.5
    """
    check_sizes(sizes, embeddings.shape[-1])
    weights = [1.0] * len(sizes) if weights is None else list(weights)
    if len(weights) != len(sizes):
        raise ConfigError(f"{len(weights)} Matryoshka weights for {len(sizes)} sizes; give one weight for each size.")
    if wrong := [weight for weight in weights if not (math.isfinite(weight) and weight > 0)]:
        raise ConfigError(f"the Matryoshka weight {wrong[0]} is not above 0; leave the size out instead.")
    total = sum(weight * loss_of(embeddings[..., :size]) for size, weight in zip(sizes, weights, strict=True))
    return total / sum(weights)


def check_sizes(sizes: Sequence[int], full_size: int) -> None:
    """Refuse sizes that no embedding of `full_size` components can be cut to.

    Raises:
        ConfigError: None, one twice, or one that is not a whole number from 1 to `full_size`.
    """
    if not sizes:
        raise ConfigError(f"no Matryoshka sizes are given; list sizes from 1 to {full_size}.")
    for position, size in enumerate(sizes):
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= full_size:
            raise ConfigError(
                f"the Matryoshka size {size} is not a whole number from 1 to {full_size}, the size of the embedding."
            )
        if size in sizes[:position]:
            raise ConfigError(f"the Matryoshka size {size} is listed twice; list every size once.")
