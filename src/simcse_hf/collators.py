"""Rows of views -> one batch, packed or padded.    Axes: B items, V views, T tokens, E components."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .packing import RowLayout, packed_rows


class ViewsCollator:
    """Lays the views of a batch end to end in rows, or pads them to one (B, V, T) block.

    The sentences are copied in one step by index arithmetic; nothing loops over tokens.
    """

    def __init__(self, pad_token_id: int, layout: RowLayout | None = None):
        """Choose the shape of batches.

        Args:
            pad_token_id: Of the tokenizer.
            layout: Of packed rows; None pads.
        """
        self.pad_token_id = pad_token_id
        self.layout = layout

    def __call__(self, items: Sequence[dict]) -> dict[str, Tensor]:
        """Collate items of a `ViewsDataset`.

        Args:
            items: All with the same number of views.

        Returns:
            Packed: see `packing.packed_rows`, with `sentence_starts` and `sentence_lengths` (B, V). Padded:
            `input_ids` and `attention_mask` (B, V, T). Either with `sentence_ids` (B, V), all int64; and, where
            the items have them, with `scores` (B,) float32, `labels` (B,) int64 and `teacher` (B, V, E) float32.
        """
        sentences = [view for item in items for view in item["views"]]
        views = len(items[0]["views"])
        if self.layout is None:
            input_ids, attention_mask = pad(sentences, self.pad_token_id)  # (B*V, T)
            batch = {
                "input_ids": input_ids.unflatten(0, (-1, views)),
                "attention_mask": attention_mask.unflatten(0, (-1, views)),
            }
        else:
            batch = packed_rows(sentences, self.layout, self.pad_token_id)
            for name in ("sentence_starts", "sentence_lengths"):
                batch[name] = batch[name].unflatten(0, (-1, views))
        batch["sentence_ids"] = torch.from_numpy(np.stack([item["sentence_ids"] for item in items]))
        if "score" in items[0]:
            batch["scores"] = torch.tensor([item["score"] for item in items], dtype=torch.float32)
        if "label" in items[0]:
            batch["labels"] = torch.tensor([item["label"] for item in items], dtype=torch.int64)
        if "teacher" in items[0]:
            batch["teacher"] = torch.from_numpy(np.stack([item["teacher"] for item in items]))
        return batch


def pad(sentences: Sequence[np.ndarray], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Token ids of N sentences -> `input_ids` and `attention_mask`, each (N, T) int64.

    >>> pad([np.array([5, 6]), np.array([7])], 0)[0].tolist()
    [[5, 6], [7, 0]]
    """
    lengths = np.array([len(sentence) for sentence in sentences])
    mask = np.arange(lengths.max()) < lengths[:, None]  # (N, T)
    input_ids = np.full(mask.shape, pad_token_id, dtype=np.int64)
    input_ids[mask] = np.concatenate(sentences)
    return torch.from_numpy(input_ids), torch.from_numpy(mask.astype(np.int64))
