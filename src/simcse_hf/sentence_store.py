"""Every distinct sentence, tokenised once; training rows are indices into it.

Axes: N rows, V views.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_SENTENCES_PER_CALL = 10_000


@dataclass(frozen=True)
class SentenceStore:
    """Token ids of sentences, end to end in one buffer.

    Attributes:
        tokens: int32, the ids of all sentences, special tokens included.
        offsets: int64, sentence i is `tokens[offsets[i]:offsets[i + 1]]`.
    """

    tokens: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sentence, int64."""
        return np.diff(self.offsets)

    @classmethod
    def build(
        cls,
        sentences: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        prompt: str = "",
        show_progress: bool = False,
    ) -> SentenceStore:
        """Tokenise sentences, in order.

        Args:
            sentences: Normalised text; repeated sentences are tokenised as often as they occur.
            tokenizer: Fast tokenizers use all cores.
            max_length: Tokens, special ones included; longer sentences are cut.
            prompt: Put before every sentence.
            show_progress: Draw a progress bar.
        """
        pieces, lengths = [], []
        starts = range(0, len(sentences), _SENTENCES_PER_CALL)
        for start in tqdm(starts, desc="Tokenising", unit="0k sentences", disable=not show_progress):
            chunk = [prompt + sentence for sentence in sentences[start : start + _SENTENCES_PER_CALL]]
            encoded = tokenizer(
                chunk, truncation=True, max_length=max_length, return_attention_mask=False, return_token_type_ids=False
            )["input_ids"]
            lengths += [len(ids) for ids in encoded]
            pieces.append(np.concatenate([np.asarray(ids, dtype=np.int32) for ids in encoded]))
        tokens = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int32)
        return cls(tokens=tokens, offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))


def index_rows(rows: Sequence[Sequence[str]]) -> tuple[list[str], np.ndarray]:
    """Distinct sentences in order of first use, and the rows as indices (N, V) into them."""
    ids: dict[str, int] = {}
    indices = [[ids.setdefault(sentence, len(ids)) for sentence in row] for row in rows]
    return list(ids), np.asarray(indices, dtype=np.int64)


class ViewsDataset(Dataset):
    """Rows of views over a `SentenceStore`.

    An item is `{"views": [V arrays of token ids], "sentence_ids": (V,) int64}`, with `score`
    where the rows are scored. The index of a sentence is its identity: the store holds distinct
    sentences, in an order that is the same on every process.
    """

    def __init__(self, store: SentenceStore, rows: np.ndarray, scores: Sequence[float] | None = None):
        self.store = store
        self.rows = rows
        self.scores = scores

    @classmethod
    def build(
        cls,
        rows: Sequence[Sequence[str]],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        prompt: str = "",
        scores: Sequence[float] | None = None,
        show_progress: bool = False,
    ) -> ViewsDataset:
        """Tokenise rows of sentences; a row of one sentence becomes two views of it."""
        sentences, indices = index_rows(rows)
        store = SentenceStore.build(
            sentences, tokenizer, max_length=max_length, prompt=prompt, show_progress=show_progress
        )
        if indices.shape[1] == 1:
            indices = np.repeat(indices, 2, axis=1)
        return cls(store, indices, scores)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index]
        item = {"views": [self.store[sentence] for sentence in row], "sentence_ids": row}
        if self.scores is not None:
            item["score"] = self.scores[index]
        return item

    def sorted_by_length(self) -> ViewsDataset:
        """The same rows, shortest first: evaluation batches then hold little padding."""
        order = np.argsort(self.store.lengths[self.rows].max(axis=1), kind="stable")
        scores = None if self.scores is None else [self.scores[index] for index in order]
        return ViewsDataset(self.store, self.rows[order], scores)

    def statistics(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, float]:
        """Counts that reveal a wrong tokenizer or a too small `max_length`."""
        lengths = self.store.lengths
        unknown = tokenizer.unk_token_id
        return {
            "rows": len(self),
            "views": int(self.rows.shape[1]),
            "distinct_sentences": len(self.store),
            "mean_tokens": round(float(lengths.mean()), 2),
            "at_max_length": int((lengths >= max_length).sum()),
            "unknown_tokens": int((self.store.tokens == unknown).sum()) if unknown is not None else 0,
        }
