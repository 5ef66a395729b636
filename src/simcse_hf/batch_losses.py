"""What a batch of vectors is trained with, as its `SimCSEConfig` says, over the batches of all processes.

Axes: B items of this process, W processes, C = W*B items of all, V views, K = V - 2 hard negatives, D vector size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .configuration_simcse import SimCSEConfig
from .distributed import gather_values, gather_with_gradient, rank
from .false_negatives import false_negative_mask
from .losses import contrastive_logits, duplicate_mask, simcse_loss
from .matryoshka import matryoshka_loss
from .objectives import SCORED_LOSSES
from .symmetric import symmetric_loss


def contrastive_loss(
    embeddings: Tensor, sentence_ids: Tensor | None, config: SimCSEConfig, *, everywhere: bool = True
) -> tuple[Tensor, Tensor]:
    """SimCSE's loss of this process's anchors against the candidates of all processes.

    Args:
        embeddings: (B, V, D), V >= 2.
        sentence_ids: (B, V) or None.
        config: Temperature, masks, directions and sizes.
        everywhere: Compare with all processes; else C = B.

    Returns:
        The scalar loss, and the (B, C + K*C) logits of the whole vectors, see `losses.contrastive_logits`.

    Raises:
        ValueError: A single view, or a single item on a single process.
    """
    batch, views, size = embeddings.shape
    if views < 2:
        raise ValueError(f"a contrastive loss needs at least 2 views of each item, got {views}.")
    first, everyone, ids = 0, embeddings, sentence_ids
    if everywhere:
        first, everyone = batch * rank(), gather_with_gradient(embeddings)  # (C, V, D)
        ids = None if sentence_ids is None else gather_values(sentence_ids)
    if len(everyone) < 2:
        raise ValueError(
            "a batch of one item has no negatives and its loss is always 0. Use a per_device_train_batch_size of 2 or more."
        )
    own = slice(first, first + batch)
    if not config.mask_duplicates:
        ids = None
    found = {}

    def loss_of(vectors: Tensor) -> Tensor:
        logits = _logits(vectors[own, 0], vectors[:, 1:], config, first, _duplicates(ids, own))
        found["logits"] = logits
        if not config.symmetric:
            return simcse_loss(logits, first_positive=first)
        swapped = None if ids is None else ids[:, :2].flip(1)
        backward = _logits(vectors[own, 1], vectors[:, :1], config, first, _duplicates(swapped, own))
        return symmetric_loss(logits, backward, first_positive=first)

    # Sizes ascend, so the logits of the whole vectors are found last.
    loss = matryoshka_loss(loss_of, everyone, config.matryoshka_dims or [size])
    return loss, found["logits"]


def scored_loss(embeddings: Tensor, scores: Tensor, config: SimCSEConfig, *, everywhere: bool = True) -> Tensor:
    """The loss of scored pairs, over those of all processes.

    Args:
        embeddings: (B, 2, D)
        scores: (B,) from 0 to 1.
        config: Names the loss, see `objectives.SCORED_LOSSES`, and the sizes.
        everywhere: Take the pairs of all processes together.

    Returns:
        Scalar.
    """
    if everywhere:
        embeddings, scores = gather_with_gradient(embeddings), gather_values(scores)
    loss = SCORED_LOSSES[config.scored_loss]
    sizes = config.matryoshka_dims or [embeddings.shape[-1]]
    return matryoshka_loss(lambda vectors: loss(vectors[:, 0], vectors[:, 1], scores), embeddings, sizes)


def _logits(anchors: Tensor, candidates: Tensor, config: SimCSEConfig, first: int, masked: Tensor | None) -> Tensor:
    """Anchors (B, D) against candidates (C, 1 + K, D)  ->  (B, C + K*C)"""
    hard_negatives = candidates[:, 1:] if candidates.shape[1] > 1 else None
    if config.false_negative_margin is not None:
        with torch.no_grad():
            cosines = contrastive_logits(anchors, candidates[:, 0], hard_negatives, temperature=1.0)
        too_close = false_negative_mask(cosines, config.false_negative_margin, first_positive=first)
        masked = too_close if masked is None else masked | too_close
    return contrastive_logits(
        anchors,
        candidates[:, 0],
        hard_negatives,
        temperature=config.temperature,
        hard_negative_weight=config.hard_negative_weight,
        first_positive=first,
        masked=masked,
    )


def _duplicates(ids: Tensor | None, own: slice) -> Tensor | None:
    """The duplicate mask of `ids` (C, V), the first column being the anchors."""
    if ids is None:
        return None
    return duplicate_mask(ids[own, 0], ids[:, 1:], all_anchor_ids=ids[:, 0], first_positive=own.start)
