"""Every distinct sentence, tokenised once; training rows are indices into it.

Axes: N rows, V views, S sentences, E components of a teacher's vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, TokenizersBackend

from .arrow_column import ArrowColumn
from .errors import DataError

_SENTENCES_PER_CALL = 10_000
_SENTENCES_COMPARED = 50


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
        tokenise = BatchTokeniser(tokenizer, max_length=max_length, prompt=prompt)
        tokens, lengths = [np.empty(0, dtype=np.int32)], [np.empty(0, dtype=np.int64)]
        with tqdm(total=len(sentences), desc="Tokenising", unit=" sentences", disable=not show_progress) as progress:
            for start in range(0, len(sentences), _SENTENCES_PER_CALL):
                ids, counts = tokenise(sentences[start : start + _SENTENCES_PER_CALL], np.int32)
                tokens.append(ids)
                lengths.append(counts)
                progress.update(len(counts))
        return cls(tokens=np.concatenate(tokens), offsets=np.concatenate([[0], np.cumsum(np.concatenate(lengths))]))


class BatchTokeniser:
    """Token ids of many sentences at once, as `tokenizer(...)` gives them and half as fast again."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, prompt: str = ""):
        """Remember how to tokenise.

        Args:
            tokenizer: One backed by `tokenizers` uses all cores.
            max_length: Tokens, special ones included; longer sentences are cut.
            prompt: Put before every sentence.
        """
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._prompt = prompt

    def __call__(self, sentences: Sequence[str], dtype: type[np.integer]) -> tuple[np.ndarray, np.ndarray]:
        """Ids end to end in `dtype`, and the tokens of each sentence, int64.

        Raises:
            OverflowError: An id does not fit `dtype`.
        """
        texts = [self._prompt + sentence for sentence in sentences]
        if len(texts) <= _SENTENCES_COMPARED or not isinstance(self._tokenizer, TokenizersBackend):
            return _end_to_end(self._ordinary(texts) if texts else [], dtype)
        # The ordinary call leaves its truncation set in the backend, where the direct one finds it.
        ordinary = self._ordinary(texts[:_SENTENCES_COMPARED])
        encodings = self._tokenizer.backend_tokenizer.encode_batch_fast(texts)
        if [encoding.ids for encoding in encodings[:_SENTENCES_COMPARED]] != ordinary:  # a class with ways of its own
            return _end_to_end(self._ordinary(texts), dtype)
        lengths = np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings))
        ids = chain.from_iterable(encoding.ids for encoding in encodings)
        return np.fromiter(ids, dtype=dtype, count=int(lengths.sum())), lengths

    def _ordinary(self, texts: list[str]) -> list[list[int]]:
        return self._tokenizer(
            texts,
            truncation=True,
            max_length=self._max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]


def _end_to_end(ids: Sequence[Sequence[int]], dtype: type[np.integer]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(sentence) for sentence in ids], dtype=np.int64)
    return np.fromiter(chain.from_iterable(ids), dtype=dtype, count=int(lengths.sum())), lengths


def index_rows(rows: Sequence[Sequence[str]]) -> tuple[list[str], np.ndarray]:
    """Distinct sentences in order of first use, and the rows as indices (N, V) into them."""
    ids: dict[str, int] = {}
    indices = [[ids.setdefault(sentence, len(ids)) for sentence in row] for row in rows]
    return list(ids), np.asarray(indices, dtype=np.int64)


class ViewsDataset(Dataset):
    """Rows of views over a `SentenceStore`.

    An item is `{"views": [V arrays of token ids], "sentence_ids": (V,) int64}`, with `score` or
    `label` where the rows have one, and `teacher` (V, E) float32 where the sentences have vectors.
    The index of a sentence is its identity: the store holds distinct sentences, in an order that is
    the same on every process.

    Attributes:
        store: In memory, or a mapped column of token ids.
        rows: Indices into it: (N, V) in memory, or a mapped column of N lists. A list of one
            stands for two views of a sentence.
        scores: (N,) or None.
        labels: (N,) integers or None.
        teacher: (S, E), the vector that a teacher gives each sentence of the store, or None.
    """

    def __init__(
        self,
        store: SentenceStore | ArrowColumn,
        rows: np.ndarray | ArrowColumn,
        scores: Sequence[float] | None = None,
        *,
        labels: Sequence[int] | None = None,
        teacher: np.ndarray | None = None,
    ):
        """Put the parts together.

        Raises:
            DataError: Not one score and label for each row, or not one vector for each sentence.
        """
        for name, values, one_each in (("scores", scores, rows), ("labels", labels, rows), ("teacher", teacher, store)):
            if values is not None and len(values) != len(one_each):
                what = "sentences" if one_each is store else "rows"
                raise DataError(
                    f"{name} holds {len(values):,} entries for {len(one_each):,} {what}; give one for each."
                )
        self.store = store
        self.rows = rows
        self.scores = scores
        self.labels = labels
        self.teacher = teacher

    @classmethod
    def build(
        cls,
        rows: Sequence[Sequence[str]],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        prompt: str = "",
        scores: Sequence[float] | None = None,
        labels: Sequence[int] | None = None,
        teacher: np.ndarray | None = None,
        show_progress: bool = False,
    ) -> ViewsDataset:
        """Tokenise rows of sentences; a row of one sentence becomes two views of it.

        `teacher` (S, E) is in the order of `index_rows`.
        """
        sentences, indices = index_rows(rows)
        store = SentenceStore.build(
            sentences, tokenizer, max_length=max_length, prompt=prompt, show_progress=show_progress
        )
        if indices.shape[1] == 1:
            indices = np.repeat(indices, 2, axis=1)
        return cls(store, indices, scores, labels=labels, teacher=teacher)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index].astype(np.int64)
        if len(row) == 1:
            row = row.repeat(2)
        item = {"views": [self.store[sentence] for sentence in row], "sentence_ids": row}
        if self.scores is not None:
            item["score"] = self.scores[index]
        if self.labels is not None:
            item["label"] = self.labels[index]
        if self.teacher is not None:
            item["teacher"] = np.asarray(self.teacher[row], dtype=np.float32)
        return item

    def sorted_by_length(self) -> ViewsDataset:
        """The same rows, shortest first: evaluation batches then hold little padding."""
        order = np.argsort(self.store.lengths[self.rows].max(axis=1), kind="stable")
        scores, labels = (
            None if values is None else [values[index] for index in order] for values in (self.scores, self.labels)
        )
        return ViewsDataset(self.store, self.rows[order], scores, labels=labels, teacher=self.teacher)

    def statistics(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, float]:
        """What `TokenCounts` says of a set in memory."""
        counts = TokenCounts(tokenizer, max_length)
        counts.add(self.store.tokens, self.store.lengths)
        return counts.statistics(rows=len(self), views=int(self.rows.shape[1]))


class TokenCounts:
    """Counts that reveal a wrong tokenizer or a too small `max_length`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int):
        self._unknown_id = tokenizer.unk_token_id
        self._max_length = max_length
        self._sentences = self._tokens = self._at_max_length = self._unknown = 0

    def add(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Count sentences: their ids end to end, and the tokens of each."""
        self._sentences += len(lengths)
        self._tokens += len(tokens)
        self._at_max_length += int((lengths >= self._max_length).sum())
        if self._unknown_id is not None:
            self._unknown += int((tokens == self._unknown_id).sum())

    def statistics(self, *, rows: int, views: int) -> dict[str, float]:
        """The counts, with the size of the set that the sentences make up."""
        return {
            "rows": rows,
            "views": views,
            "distinct_sentences": self._sentences,
            "mean_tokens": round(self._tokens / self._sentences, 2),
            "at_max_length": self._at_max_length,
            "unknown_tokens": self._unknown,
        }
