"""Hard negatives from a corpus.    Axes: Q rows, S sentences of the corpus, D size, F forbidden, K candidates.

A sentence near to the anchor is a hard negative, unless it says the same: then it is a false one. The score of the
positive tells where to stop (Moreira et al. 2024, NV-Retriever, arXiv:2407.15831: TopK-PercPos takes candidates
up to 95 % of it, TopK-MarginPos up to it less a margin).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from .cache_folder import cache_root
from .corpora import Shape
from .cosine_regression import paired_cosines
from .encoder import SentenceEncoder
from .errors import ConfigError, DataError, ModelError
from .files import replacing
from .nli import TripletRule
from .row_report import RowReport
from .search import nearest
from .tables import expand_paths
from .training_corpus import CorpusRows, Reading, views_of_files

_ROWS_AT_ONCE = 4096
_SENTENCES_AT_ONCE = 10_000


@dataclass(frozen=True, kw_only=True)
class MiningRule:
    """Which sentences of a corpus become negatives. Scores are cosines with the anchor.

    Attributes:
        negatives: Wanted for each row.
        top_k: Only the nearest so many are looked at.
        skip_first: The nearest so many of them are passed over.
        min_score: Lowest score allowed.
        max_score: Highest score allowed.
        margin: False-negative guard: at most the positive's score less this.
        relative_margin: False-negative guard: at most this part of the positive's score. Where that score is negative,
            as far below it as the part would be of its absolute value.
        pick: `top`, the nearest of those allowed, or `random` ones of them.
        seed: Of `random`.
    """

    negatives: int = 1
    top_k: int = 50
    skip_first: int = 0
    min_score: float | None = None
    max_score: float | None = None
    margin: float | None = None
    relative_margin: float | None = 0.95
    pick: Literal["top", "random"] = "top"
    seed: int = 0

    def __post_init__(self):
        """Check the numbers against each other.

        Raises:
            ConfigError: A rule that nothing can fulfil, or that guards against nothing.
        """
        if self.negatives < 1:
            raise ConfigError(f"negatives is {self.negatives}; a row needs at least 1.")
        for name in ("skip_first", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        if self.top_k < self.skip_first + self.negatives:
            raise ConfigError(
                f"top_k is {self.top_k}; after skip_first {self.skip_first} that leaves fewer than the "
                f"{self.negatives} negatives wanted. Raise top_k to {self.skip_first + self.negatives} or more."
            )
        for name in ("min_score", "max_score", "margin", "relative_margin"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"{name} is {value}; give a number.")
        if self.min_score is not None and self.max_score is not None and self.min_score > self.max_score:
            raise ConfigError(f"min_score {self.min_score} is above max_score {self.max_score}; no score is between.")
        if self.margin is not None and self.margin < 0:
            raise ConfigError(f"margin is {self.margin}; below 0 it would let in what is nearer than the positive.")
        if self.relative_margin is not None and not 0 < self.relative_margin <= 1:
            raise ConfigError(f"relative_margin is {self.relative_margin}; it is a part of 1, for example 0.95.")
        if self.pick not in ("top", "random"):
            raise ConfigError(f"pick is {self.pick!r}; there are top and random.")


@dataclass(frozen=True, kw_only=True)
class MinedNegatives:
    """What was found for each row.

    Attributes:
        indices: (Q, negatives) int64 rows of the corpus, best first; -1 where there were too few.
        scores: (Q, negatives) float32, -inf where the index is -1.
        reasons: (Q,) what stood in the way of most candidates of a row with too few, else None.
    """

    indices: np.ndarray
    scores: np.ndarray
    reasons: list[str | None]


@dataclass(frozen=True, kw_only=True)
class MinedTriplets:
    """What `mine_triplets` did.

    Attributes:
        shape: What the files of pairs were.
        rows: Read, written (`kept`), and dropped for each reason.
        corpus: Read, kept and dropped sentences of the corpus.
    """

    shape: Shape
    rows: RowReport
    corpus: RowReport


def mine_negatives(
    queries: np.ndarray,
    positives: np.ndarray,
    corpus: np.ndarray,
    rule: MiningRule,
    *,
    forbidden: np.ndarray | None = None,
    first_row: int = 0,
) -> MinedNegatives:
    """Hard negatives of each row, all different.

    Args:
        queries: (Q, D) anchors.
        positives: (Q, D)
        corpus: (S, D) vectors of sentences that differ from each other.
        rule: What to take.
        forbidden: (Q, F) rows of the corpus that are never taken, and do not count as ranks: the anchor itself, its
            positives. -1 stands for none.
        first_row: Number of the first row, so that `random` does not depend on how rows are cut into blocks.

    Raises:
        ModelError: A vector that is not finite.
    """
    scores, indices = nearest(queries, corpus, rule.top_k, excluded=forbidden)
    scores, indices = scores[:, rule.skip_first :], indices[:, rule.skip_first :]  # (Q, K)
    own = paired_cosines(torch.from_numpy(queries), torch.from_numpy(positives)).numpy()[:, None]  # (Q, 1)
    if np.isnan(own).any():
        row = first_row + int(np.isnan(own).argmax()) + 1
        raise ModelError(
            f"the vector of the positive of row {row:,} has values that are not finite, so no bound would hold. Choose --dtype "
            "float32; if that was so, the weights of the model are damaged."
        )
    present = indices >= 0
    obstacles = {name: present & refused for name, refused in _refused(scores, own, rule).items()}
    allowed = present.copy()
    for refused in obstacles.values():
        allowed &= ~refused
    found = MinedNegatives(
        indices=np.full((len(queries), rule.negatives), -1, dtype=np.int64),
        scores=np.full((len(queries), rule.negatives), -np.inf, dtype=np.float32),
        reasons=[None] * len(queries),
    )
    for row, candidates in enumerate(allowed):
        chosen = np.flatnonzero(candidates)
        if rule.pick == "random" and len(chosen) > rule.negatives:
            generator = np.random.default_rng([rule.seed, first_row + row])
            chosen = np.sort(generator.choice(chosen, rule.negatives, replace=False))
        chosen = chosen[: rule.negatives]
        found.indices[row, : len(chosen)] = indices[row, chosen]
        found.scores[row, : len(chosen)] = scores[row, chosen]
        if len(chosen) < rule.negatives:
            counts = {name: int(refused[row].sum()) for name, refused in obstacles.items()}
            worst = max(counts, key=counts.get, default=None)
            found.reasons[row] = worst if worst and counts[worst] else "corpus_too_small"
    return found


def _refused(scores: np.ndarray, own: np.ndarray, rule: MiningRule) -> dict[str, np.ndarray]:
    """Which candidates (Q, K) each bound of the rule refuses, by the words of the report."""
    refused = {}
    if rule.min_score is not None:
        refused["candidates_below_min_score"] = scores < rule.min_score
    if rule.max_score is not None:
        refused["candidates_above_max_score"] = scores > rule.max_score
    limits = []
    if rule.margin is not None:
        limits.append(own - rule.margin)
    if rule.relative_margin is not None:
        limits.append(own - (1 - rule.relative_margin) * np.abs(own))
    if limits:
        refused["candidates_too_near_beside_the_positive"] = scores > np.minimum.reduce(limits)
    return refused


def mine_triplets(
    pairs: Sequence[str],
    corpus: Sequence[str],
    encoder: SentenceEncoder,
    output: Path,
    rule: MiningRule,
    *,
    triplet_rule: TripletRule = "last_wins",
    on_bad_row: Literal["error", "skip"] = "error",
    batch_tokens: int = 16_384,
    show_progress: bool = False,
) -> MinedTriplets:
    """Write anchor, positive and mined negatives as a table that training reads as triplets.

    Never taken for a row are the sentences that training would not count as its negatives either: the anchor, its
    positive, and the positives of equal anchors. Memory does not grow with the corpus: its sentences come from the
    data cache, its vectors lie in a temporary file.

    Args:
        pairs: Files of pairs, triplets (whose negatives are not used) or NLI rows.
        corpus: Files of any shape; every sentence of every text column is a candidate.
        encoder: What judges nearness.
        output: Written whole or not at all.
        rule: What to take.
        triplet_rule: See `nli`.
        on_bad_row: See `RowReport`.
        batch_tokens: See `SentenceEncoder.encode`.
        show_progress: Draw progress bars.

    Returns:
        What became of the rows, and of the sentences of the corpus.

    Raises:
        DataError: No pairs, or no row with enough negatives.
    """
    root = cache_root()
    views = views_of_files(
        expand_paths(pairs),
        Reading(triplet_rule=triplet_rule, on_bad_row=on_bad_row),
        root,
        show_progress=show_progress,
    )
    if views.unsupervised:
        raise DataError(f"{pairs[0]} holds sentences; mining needs pairs: anchor and positive.")
    sentences = views_of_files(
        expand_paths(corpus), Reading(train_as="sentences", on_bad_row=on_bad_row), root, show_progress=show_progress
    )
    candidates: CorpusRows = sentences.rows
    report = views.report
    report.unit, report.kept = "triplets", 0
    names = ["negative", *(f"negative_{number}" for number in range(2, rule.negatives + 1))]
    forbidden = _Forbidden(views.rows, candidates)
    with (
        tempfile.TemporaryFile() as scratch,
        tqdm(total=len(views.rows), desc="Mining", unit=" rows", disable=not show_progress) as progress,
        replacing(output) as file,
    ):
        vectors = _encode_corpus(candidates, encoder, scratch, batch_tokens, show_progress)
        file.write("\t".join(["anchor", "positive", *names]).encode() + b"\n")
        for start in range(0, len(views.rows), _ROWS_AT_ONCE):
            rows = views.rows[start : start + _ROWS_AT_ONCE]
            both = encoder.encode([text for row in rows for text in row[:2]], batch_tokens=batch_tokens)
            mined = mine_negatives(
                both[0::2], both[1::2], vectors, rule, forbidden=forbidden.of_rows(rows), first_row=start
            )
            for offset, (row, indices, reason) in enumerate(zip(rows, mined.indices, mined.reasons, strict=True)):
                if reason is not None:
                    report.drop(reason, f"row {start + offset + 1:,} of those read, {row[0]!r}")
                    continue
                negatives = [_text(candidates, index) for index in indices]
                file.write("\t".join([*row[:2], *negatives]).encode() + b"\n")
                report.kept += 1
            progress.update(len(rows))
        if not report.kept:
            raise DataError(
                f"no row found {rule.negatives} negatives among {len(candidates.sentences):,} sentences. Loosen "
                f"the bounds, or take a larger corpus.\n{report}"
            )
    return MinedTriplets(shape=views.shape, rows=report, corpus=sentences.report)


class _Forbidden:
    """Which sentences of the corpus are no negatives of an anchor. Holds the texts of the pairs, not of the corpus."""

    def __init__(self, rows: Sequence[tuple[str, ...]], candidates: CorpusRows):
        self._positives: dict[str, set[str]] = {}
        for row in rows:
            self._positives.setdefault(row[0], set()).add(row[1])
        wanted = set(self._positives).union(*self._positives.values())
        self._index = {text: index for index, text in enumerate(_texts(candidates)) if text in wanted}

    def of_rows(self, rows: Sequence[tuple[str, ...]]) -> np.ndarray:
        """(Q, F) rows of the corpus, -1 for none."""
        lists = [
            [self._index[text] for text in (row[0], *sorted(self._positives[row[0]])) if text in self._index]
            for row in rows
        ]
        table = np.full((len(rows), max(map(len, lists))), -1, dtype=np.int64)
        for row, indices in enumerate(lists):
            table[row, : len(indices)] = indices
        return table


def _texts(candidates: CorpusRows) -> Iterator[str]:
    for array in candidates.sentences.arrays():
        yield from array.to_pylist()


def _text(candidates: CorpusRows, index: int) -> str:
    return candidates.sentences[int(index)].tobytes().decode("utf-8")


def _encode_corpus(
    candidates: CorpusRows, encoder: SentenceEncoder, scratch: BinaryIO, batch_tokens: int, show_progress: bool
) -> np.ndarray:
    """Vectors (S, D) of the corpus, mapped from a file that vanishes with this process."""
    count, vectors, done = len(candidates.sentences), None, 0
    with tqdm(total=count, desc="Encoding the corpus", unit=" sentences", disable=not show_progress) as progress:
        for array in candidates.sentences.arrays():
            for start in range(0, len(array), _SENTENCES_AT_ONCE):
                texts = array.slice(start, _SENTENCES_AT_ONCE).to_pylist()
                block = encoder.encode(texts, batch_tokens=batch_tokens)
                if vectors is None:
                    vectors = np.memmap(scratch, dtype=np.float32, mode="w+", shape=(count, block.shape[1]))
                vectors[done : done + len(block)] = block
                done += len(block)
                progress.update(len(block))
    return vectors
