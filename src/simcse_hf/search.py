"""Exact search: every sentence of a corpus is compared.    Axes: Q queries, S sentences, D size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .corpora import shape_of, training_views
from .encoder import SentenceEncoder
from .errors import DataError
from .files import replacing
from .row_report import RowReport
from .sample import resolve_sample
from .similarity import cosine_matrix
from .tables import expand_paths, read_table


@dataclass(frozen=True)
class Hit:
    """A sentence of the corpus, its position there (from 0), and its cosine with the query."""

    sentence: str
    index: int
    score: float


def read_corpus(path: str) -> list[str]:
    """Sentences of a file, in order, repeated ones included.

    Raises:
        DataError: Several files, not one text column, or an empty line: rows of vectors must match lines.
    """
    files = expand_paths(resolve_sample(path))
    if len(files) > 1:
        raise DataError(f"{path} means {len(files)} files; a corpus is one file, because results are numbered by line.")
    report = RowReport(every_row_counts=True)
    table = read_table(files[0], report)
    shape, _ = shape_of(table)
    if shape != "sentences":
        raise DataError(f"{path} holds {shape}; a corpus is one sentence a line, or a table of one text column.")
    views = training_views([table], report, deduplicate=False)
    if report.dropped:
        raise DataError(
            f"{report.examples['empty_sentence']}: an empty sentence ({report.dropped.total()} in all). Results are "
            "numbered by line, so no line is left out; remove the empty ones."
        )
    return [row[0] for row in views.rows]


def nearest(queries: np.ndarray, corpus: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of `corpus` most similar to each query by cosine, best first.

    Args:
        queries: (Q, D)
        corpus: (S, D)
        k: At most S are returned.

    Returns:
        Scores (Q, k) float32 and row indices (Q, k) int64. Equal scores keep corpus order.
    """
    similarity = cosine_matrix(torch.from_numpy(queries), torch.from_numpy(corpus))  # (Q, S)
    scores, indices = similarity.sort(dim=1, descending=True, stable=True)
    return scores[:, :k].numpy(), indices[:, :k].numpy()


def search(
    encoder: SentenceEncoder,
    queries: Sequence[str],
    corpus: Sequence[str],
    *,
    top_k: int = 5,
    batch_tokens: int = 16_384,
) -> list[list[Hit]]:
    """The `top_k` sentences of `corpus` most similar to each query, best first."""
    scores, indices = nearest(
        encoder.encode(list(queries), batch_tokens=batch_tokens),
        encoder.encode(corpus, batch_tokens=batch_tokens, show_progress=len(corpus) > 1000),
        top_k,
    )
    return [
        [Hit(corpus[index], int(index), float(score)) for score, index in zip(row_scores, row, strict=True)]
        for row_scores, row in zip(scores, indices, strict=True)
    ]


def write_vectors(path: Path, vectors: np.ndarray) -> None:
    """Save an array as `.npy`, whole or not at all."""
    with replacing(path) as file:
        np.save(file, vectors)
