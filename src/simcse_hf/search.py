"""Exact search: every sentence of a corpus is compared.    Axes: Q queries, S sentences, D size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .encoder import SentenceEncoder
from .errors import DataError, ModelError
from .sample import resolve_sample
from .sentence_stream import CorpusFile, SentenceStream, sentences_of
from .similarity import cosine_matrix
from .tables import expand_paths
from .vector_origin import corpus_of, identity_of, named_files
from .vector_shards import VectorShards

_QUERIES_AT_ONCE = 512
_SENTENCES_AT_ONCE = 8192
_LAST_INDEX = (1 << 32) - 1
# Of an encoder: what queries may have otherwise than the corpus. Some models want another prompt for them, a length
# cuts only what is longer, and a cosine does not see how long vectors are.
_OF_THE_TEXTS = {"prompt", "max_seq_length", "normalize"}


@dataclass(frozen=True)
class Hit:
    """A sentence of the corpus, its position there (from 0), and its cosine with the query."""

    sentence: str
    index: int
    score: float


def read_corpus(path: str) -> list[str]:
    """Sentences of a file, in order, repeated ones included.

    Raises:
        DataError: Several files, not one text column, or an empty line: a sentence is known by its number.
    """
    files = expand_paths(resolve_sample(path))
    if len(files) > 1:
        raise DataError(f"{path} means {len(files)} files; a corpus is one file, because results are numbered by line.")
    return list(sentences_of(CorpusFile(files[0], "")))  # nobody asks for its digest


def nearest(
    queries: np.ndarray, corpus: np.ndarray | VectorShards, k: int, *, excluded: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of `corpus` most similar to each query by cosine, best first.

    A block of the corpus is compared with a block of queries, so that neither the size of the corpus, which may be
    mapped from disk, nor the number of queries decides how much memory it takes.

    Args:
        queries: (Q, D)
        corpus: (S, D)
        k: At most S are returned.
        excluded: (Q, F) rows of the corpus that do not count for a query; -1 stands for none.

    Returns:
        Scores (Q, k) float32 and row indices (Q, k) int64. Equal scores keep corpus order. Where a query has fewer
        than k rows left, the score is -inf and the index -1.

    Raises:
        ModelError: A vector that is not finite: its bits would come before all others.
    """
    k = min(k, len(corpus))
    scores = np.empty((len(queries), k), dtype=np.float32)
    indices = np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        block = slice(start, start + _QUERIES_AT_ONCE)
        barred = None if excluded is None else torch.from_numpy(excluded[block])
        keys = _best_keys(torch.from_numpy(np.array(queries[block], dtype=np.float32)), corpus, k, barred)
        scores[block], indices[block] = (part.numpy() for part in _score_and_index(keys))
    return scores, indices


def _best_keys(queries: Tensor, corpus: np.ndarray | VectorShards, k: int, excluded: Tensor | None) -> Tensor:
    """The k greatest keys (see `_keys`) of each query over the whole corpus, descending: (Q, k) int64."""
    best = torch.empty(len(queries), 0, dtype=torch.int64)
    for start in range(0, len(corpus), _SENTENCES_AT_ONCE):
        block = torch.from_numpy(np.array(corpus[start : start + _SENTENCES_AT_ONCE], dtype=np.float32))
        cosines = cosine_matrix(queries, block)  # (Q, C)
        if cosines.isnan().any():
            _refuse_vectors(queries, block, start)
        if excluded is not None:
            inside = (excluded >= start) & (excluded < start + len(block))  # (Q, F)
            cosines[inside.nonzero()[:, 0], excluded[inside] - start] = float("-inf")
        # Among more than k, topk chooses freely between equal values; keys are all different.
        keys = torch.cat([best, _keys(cosines, start)], dim=1)
        best = keys.topk(min(k, keys.shape[1]), dim=1).values
    return best


def _refuse_vectors(queries: Tensor, block: Tensor, first_row: int) -> None:
    finite = block.isfinite().all(dim=1)
    place = "a query" if finite.all() else f"row {first_row + int(finite.int().argmin()) + 1:,} of the corpus"
    raise ModelError(
        f"the vector of {place} has values that are not finite, so it is near to nothing. Encode with --dtype float32; if that "
        "was so, the weights of the model are damaged."
    )


def _keys(scores: Tensor, first_index: int) -> Tensor:
    """Whole numbers that order by score, and equal scores by index, lower first: (Q, C) int64."""
    bits = (scores + 0.0).view(torch.int32)  # adding zero turns -0.0 into 0.0
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()  # negative floats order by falling bits
    indices = torch.arange(first_index, first_index + scores.shape[1])
    return (ordered << 32) | (_LAST_INDEX - indices)


def _score_and_index(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The scores and indices of `_keys`; an excluded row has the index -1."""
    bits = (keys >> 32).int()
    scores = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)
    return scores, (_LAST_INDEX - (keys & _LAST_INDEX)).masked_fill(scores == float("-inf"), -1)


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


def search_folder(
    encoder: SentenceEncoder,
    queries: Sequence[str],
    vectors: VectorShards,
    corpus: Sequence[str] | None = None,
    *,
    top_k: int = 5,
    batch_tokens: int = 16_384,
) -> list[list[Hit]]:
    """As `search`, over vectors on disk; of the corpus only the sentences found are kept.

    Args:
        encoder: That the vectors were made with; the prompt and the longest length may be others.
        queries: Sentences.
        vectors: Of `open_vectors`.
        corpus: The files they were made from, wherever they lie now and in any order; default: where they lay then, or
            none where the sentences are stored beside the vectors.
        top_k: At most so many for each query.
        batch_tokens: Tokens in one batch.

    Raises:
        DataError: The vectors were made from other files, or these are not where they were.
        ModelError: The vectors were made with another model, or with other settings of it.
    """
    stored = vectors.has_sentences
    files = [] if stored and corpus is None else _files_of(vectors, corpus)
    model = vectors.manifest["model"]
    different = [
        name for name, value in identity_of(encoder).items() if model.get(name) != value and name not in _OF_THE_TEXTS
    ]
    if different:
        raise ModelError(
            f"{vectors.folder} was made with another model or other settings of it ({model['name']}; {', '.join(different)} "
            "differ). Name that model and its settings, or encode the corpus with this one."
        )
    scores, indices = nearest(encoder.encode(list(queries), batch_tokens=batch_tokens), vectors, top_k)
    stream = SentenceStream(files, [entry["rows"] for entry in vectors.manifest["data"]])
    rows = np.unique(indices).tolist()  # in one pass: they ascend
    sentences = {row: vectors.sentence(row) if stored else stream.read(row, row + 1)[0] for row in rows}
    return [
        [Hit(sentences[int(index)], int(index), float(score)) for score, index in zip(row_scores, row, strict=True)]
        for row_scores, row in zip(scores, indices, strict=True)
    ]


def _files_of(vectors: VectorShards, corpus: Sequence[str] | None) -> list[CorpusFile]:
    """The files that vectors were made from, in the order of their rows; known by their digests, not their names."""
    made_from = vectors.manifest["data"]
    if corpus is None:
        paths = [Path(entry["path"]) for entry in made_from]  # names, in which * is no glob
        if gone := [path for path in paths if not path.is_file()]:
            raise DataError(
                f"{gone[0]}, which {vectors.folder} was made from, is not there (relative paths start at {Path.cwd()}). Say with "
                "--corpus where its files lie now."
            )
    else:
        paths = named_files(corpus)
    found = [file for file, _ in corpus_of(paths, made_from)]
    if sorted(file.sha256 for file in found) == sorted(entry["sha256"] for entry in made_from):
        by_digest = {file.sha256: file for file in found}
        return [by_digest[entry["sha256"]] for entry in made_from]
    known = {file.sha256 for file in found}
    entry = next((entry for entry in made_from if entry["sha256"] not in known), made_from[0])
    raise DataError(
        f"{vectors.folder} holds the vectors of other files ({len(made_from)}, among them {entry['path']}, sha256 "
        f"{entry['sha256'][:12]}). Name all of those and no others, or encode the corpus."
    )
