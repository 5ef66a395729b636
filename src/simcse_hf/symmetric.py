"""InfoNCE in both directions.    Axes: B anchors, C positives, M candidates.

Radford et al. 2021, CLIP, arXiv:2103.00020, section 2.3: the mean of two cross-entropies, one over the rows of
the similarity matrix and one over its columns.
"""

from __future__ import annotations

from torch import Tensor

from .losses import simcse_loss


def symmetric_loss(forward_logits: Tensor, backward_logits: Tensor, *, first_positive: int = 0) -> Tensor:
    """Half of anchors picking their positives and half of positives picking their anchors.

    Args:
        forward_logits: (B, M) from `contrastive_logits(anchors, positives, ...)`, hard negatives included.
        backward_logits: (B, C) from `contrastive_logits(positives, anchors)`; a hard negative was mined for the
            anchor and says nothing about the positive, so there are none.
        first_positive: Column of the first row's partner, in both.

    Returns:
        Scalar.
    """
    forward = simcse_loss(forward_logits, first_positive=first_positive)
    backward = simcse_loss(backward_logits, first_positive=first_positive)
    return (forward + backward) / 2
