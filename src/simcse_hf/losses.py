"""The contrastive loss of SimCSE.    Axes: B anchors, C candidates, K hard negatives, D size.

arXiv:2104.08821, Eq. 1 (unsupervised), Eq. 5 (supervised), Eq. 8 (weighted hard negatives).
On several processes B counts this process's anchors and C all processes' candidates; row i's
positive is then candidate `first_positive + i`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .similarity import cosine_matrix


def contrastive_logits(
    anchors: Tensor,
    positives: Tensor,
    hard_negatives: Tensor | None = None,
    *,
    temperature: float = 0.05,
    hard_negative_weight: float = 0.0,
    first_positive: int = 0,
    masked: Tensor | None = None,
) -> Tensor:
    """Scores of every anchor against every candidate: all positives, then all hard negatives.

    Args:
        anchors: (B, D)
        positives: (C, D); row `first_positive + i` belongs to anchor i.
        hard_negatives: (C, K, D) or None; row `first_positive + i` belongs to anchor i.
        temperature: Logits are cosine / temperature.
        hard_negative_weight: Added to the logits of an anchor's own K hard negatives.
        first_positive: B times the rank of this process.
        masked: (B, C + K*C) bool, True where a candidate must not count as a negative
            (see `duplicate_mask`).

    Returns:
        (B, C + K*C) float32 (float64 for float64 input), columns: the C positives, then the C
        first negatives, then the C second negatives, and so on.
    """
    logits = cosine_matrix(anchors, positives) / temperature  # (B, C)
    if hard_negatives is not None:
        own = torch.zeros_like(logits)  # (B, C)
        own.diagonal(offset=first_positive)[:] = hard_negative_weight
        blocks = [cosine_matrix(anchors, column) / temperature + own for column in hard_negatives.unbind(dim=1)]
        logits = torch.cat([logits, *blocks], dim=1)  # (B, C + K*C)
    if masked is not None:
        logits = logits.masked_fill(masked, float("-inf"))
    return logits


def duplicate_mask(
    anchor_ids: Tensor,
    candidate_ids: Tensor,
    *,
    all_anchor_ids: Tensor | None = None,
    first_positive: int = 0,
) -> Tensor:
    """Which candidates are not negatives of an anchor, judged by sentence identity.

    A candidate is masked when it is the same sentence as the anchor, the same sentence as the
    anchor's own positive, or the positive of an equal anchor. The anchor's own positive never is.

    Args:
        anchor_ids: (B,) integer; equal sentences have equal ids.
        candidate_ids: (C, 1 + K) integer, ids of each row's positive and K hard negatives.
        all_anchor_ids: (C,) ids of the anchors of all candidate rows (B == C: may be left out).
        first_positive: Row of `candidate_ids` that belongs to anchor 0.

    Returns:
        (B, C + K*C) bool, in the column order of `contrastive_logits`.

    >>> duplicate_mask(torch.tensor([1, 2]), torch.tensor([[5], [5]])).tolist()
    [[False, True], [True, False]]
    """
    if all_anchor_ids is None:
        all_anchor_ids = anchor_ids
    rows = torch.arange(len(anchor_ids), device=anchor_ids.device)
    own_positive_ids = candidate_ids[first_positive + rows, 0]  # (B,)
    columns = candidate_ids.T.reshape(-1)  # (C + K*C,)
    masked = columns == anchor_ids.unsqueeze(1)  # (B, C + K*C)
    masked |= columns == own_positive_ids.unsqueeze(1)
    masked[:, : len(candidate_ids)] |= all_anchor_ids == anchor_ids.unsqueeze(1)
    masked[rows, first_positive + rows] = False
    return masked


def simcse_loss(logits: Tensor, *, first_positive: int = 0) -> Tensor:
    """Mean cross-entropy of picking the own positive among all candidates (InfoNCE).

    Args:
        logits: (B, C + K*C) from `contrastive_logits`.
        first_positive: Column of anchor 0's positive.

    Returns:
        Scalar. Equal logits everywhere give log(C + K*C):

    >>> round(simcse_loss(torch.zeros(2, 8)).item(), 4)  # log 8
    2.0794
    """
    targets = first_positive + torch.arange(len(logits), device=logits.device)  # (B,)
    return F.cross_entropy(logits, targets)
