"""Vectors of a teacher for every distinct training sentence.    Axes: S sentences, D the teacher's size.

They come from a teacher model, or from a file that was encoded elsewhere, and lie in the data cache in a folder
`teacher-...`, where sentence i of the corpus has vector i. All have unit length.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tokenize import TokenError
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import torch
from tqdm.auto import tqdm

from .arguments import ModelArguments
from .arrow_column import ArrowColumn, ColumnWriter, lists_of
from .cache_folder import cached_folder
from .corpora import TrainingViews
from .encoder import SentenceEncoder
from .errors import DataError, ModelError, shortened
from .files import sha256_of
from .numbering import Numbering
from .sample import resolve_sample
from .search import read_corpus
from .tables import expand_paths
from .training_corpus import CorpusRows, fingerprint_of

# Raise it whenever the same corpus and teacher would give other vectors.
_VERSION = 1
_SENTENCES_AT_ONCE = 10_000


class TeacherVectors:
    """(S, D) float32 of unit length, read from a memory map: `vectors[i]` belongs to sentence i of the corpus.

    Attributes:
        shape: (S, D)
        folder: Of the data cache.
        source: What identifies them, as in `TrainingViews.sources`.
    """

    def __init__(self, folder: Path, identity: dict):
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
        self.source = {"path": "the teacher", "fingerprint": digest.hexdigest()}
        self.folder = folder
        self._column = ArrowColumn(folder / "vectors.arrow")
        self.shape = (len(self._column), len(self._column[0]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | Sequence[int] | np.ndarray) -> np.ndarray:
        """(D,) of one sentence, a read-only view; (N, D) of N sentences, a copy.

        Raises:
            IndexError: Outside 0 .. S - 1.
        """
        if np.ndim(index) == 0:
            return self._column[int(index)]
        vectors = np.empty((len(index), self.shape[1]), dtype=np.float32)
        for row, sentence in enumerate(index):
            vectors[row] = self._column[int(sentence)]
        return vectors


def teacher_vectors(
    views: TrainingViews, model_args: ModelArguments, root: Path, *, show_progress: bool = False
) -> TeacherVectors:
    """The vectors of the teacher that the arguments name, by `vectors_of_model` or `vectors_of_file`.

    Args:
        views: Of `training_corpus`.
        model_args: `teacher_name_or_path` with its pooler and prompt, or `teacher_vectors` and `teacher_sentences`.
        root: The cache.
        show_progress: Draw a progress bar.

    Raises:
        ConfigError: The cache cannot be written.
        DataError, ModelError: See the two.
    """
    corpus: CorpusRows = views.rows
    if model_args.teacher_vectors:
        return vectors_of_file(
            corpus, model_args.teacher_vectors, model_args.teacher_sentences, root, show_progress=show_progress
        )
    teacher = SentenceEncoder.from_pretrained(
        resolve_sample(model_args.teacher_name_or_path),
        pooler_type=model_args.teacher_pooler_type,
        prompt=model_args.teacher_prompt,
        trust_remote_code=model_args.trust_remote_code,
        **({"cache_dir": model_args.cache_dir} if model_args.cache_dir else {}),
    )
    return vectors_of_model(corpus, teacher, root, show_progress=show_progress)


def vectors_of_model(
    corpus: CorpusRows,
    teacher: SentenceEncoder,
    root: Path,
    *,
    batch_tokens: int = 16_384,
    show_progress: bool = False,
) -> TeacherVectors:
    """What a teacher model says of every sentence, computed once and then read from the cache.

    Args:
        corpus: Of `training_corpus`.
        teacher: Loaded by `SentenceEncoder.from_pretrained`, with its pooler and prompt. What identifies it are its
            weights, configuration and tokenizer, not where they lie.
        root: The cache.
        batch_tokens: See `SentenceEncoder.encode`.
        show_progress: Draw a progress bar.

    Raises:
        ConfigError: The cache cannot be written.
        ModelError: The teacher gives vectors that are not finite.
    """

    def vectors() -> Iterator[np.ndarray]:
        for texts in _blocks_of_texts(corpus):
            block = teacher.encode(texts, batch_tokens=batch_tokens)
            if (row := _first_not_finite(block)) is not None:
                raise ModelError(
                    f"the teacher's vector of {texts[row]!r} is not finite. Its weights are damaged, or its dtype is "
                    "too narrow: load it in float32."
                )
            yield block

    return _cached(corpus, {"model": identity_of(teacher)}, vectors, root, show_progress)


def vectors_of_file(
    corpus: CorpusRows, vectors_file: str | Path, text_file: str, root: Path, *, show_progress: bool = False
) -> TeacherVectors:
    """Vectors encoded elsewhere, found for every sentence by its normalised text.

    Args:
        corpus: Of `training_corpus`.
        vectors_file: `.npy` (N, D), for example of `simcse-hf encode`.
        text_file: The N sentences it was encoded from, one a line. It may hold others than the corpus, in any order.
        root: The cache.
        show_progress: Draw a progress bar.

    Raises:
        ConfigError: The cache cannot be written.
        DataError: Not an array (N, D) of finite numbers, as many as there are lines, or a sentence without a vector.
    """
    vectors_file = expand_paths(str(vectors_file))[0]
    source = _open_vectors(vectors_file)
    identity = {"vectors": sha256_of(vectors_file), "texts": sha256_of(expand_paths(resolve_sample(text_file))[0])}

    def vectors() -> Iterator[np.ndarray]:
        lines = read_corpus(text_file)
        if len(lines) != len(source):
            raise DataError(
                f"{vectors_file} holds {len(source):,} vectors and {text_file} {len(lines):,} sentences. Give the "
                "file that the vectors were encoded from, unchanged."
            )
        rows, done = _rows_by_text(lines, corpus), 0
        if (missing := int((rows < 0).sum())) > 0:
            sentence = corpus.sentences[int((rows < 0).argmax())].tobytes().decode("utf-8")
            raise DataError(
                f"{text_file} lacks the training sentence {sentence!r} ({missing:,} of {len(rows):,} are lacking), so "
                f"{vectors_file} has no vector of it. Encode all training sentences."
            )
        for texts in _blocks_of_texts(corpus):
            chosen = rows[done : done + len(texts)]
            done += len(texts)
            block = np.asarray(source[chosen], dtype=np.float32)
            if (row := _first_not_finite(block)) is not None:
                raise DataError(
                    f"{vectors_file}, row {chosen[row] + 1:,} ({texts[row]!r}): the vector is not finite in float32. "
                    "Encode it again."
                )
            yield block

    return _cached(corpus, identity, vectors, root, show_progress)


def identity_of(encoder: SentenceEncoder) -> str:
    """Hex digest of all that decides which vectors an encoder gives: weights, configuration, tokenizer, prompt, pooler."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    settings = [_without_names(encoder.model.config.to_dict()), fingerprint_of(encoder.tokenizer)]
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _without_names(config: dict) -> dict:
    """A configuration without where it was read from: a copy of a model is the same model."""
    return {
        key: _without_names(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in ("_name_or_path", "name_or_path")
    }


def _cached(
    corpus: CorpusRows, identity: dict, vectors: Callable[[], Iterator[np.ndarray]], root: Path, show_progress: bool
) -> TeacherVectors:
    key = {"version": _VERSION, "corpus": corpus.folder.name, "teacher": identity}

    def build(folder: Path) -> dict:
        size = 0
        with (
            ColumnWriter(folder / "vectors.arrow", "vector", pa.list_(pa.float32())) as column,
            tqdm(total=len(corpus.sentences), desc="Teacher", unit=" sentences", disable=not show_progress) as progress,
        ):
            for block in vectors():
                size = block.shape[1]
                block = block / np.linalg.norm(block, axis=1, keepdims=True).clip(min=1e-12)
                column.write(lists_of(block.ravel(), np.full(len(block), size)))
                progress.update(len(block))
        return {"size": size}

    folder, _ = cached_folder(root, "teacher", key, build)
    return TeacherVectors(folder, identity)


def _blocks_of_texts(corpus: CorpusRows) -> Iterator[list[str]]:
    for array in corpus.sentences.arrays():
        for start in range(0, len(array), _SENTENCES_AT_ONCE):
            yield array.slice(start, _SENTENCES_AT_ONCE).to_pylist()


def _rows_by_text(lines: list[str], corpus: CorpusRows) -> np.ndarray:
    """The first of the lines that equals each sentence of the corpus, -1 for none: (S,)."""
    with tempfile.TemporaryDirectory() as scratch:
        numbering = Numbering(Path(scratch))
        numbering.add(lines)
        for texts in _blocks_of_texts(corpus):
            numbering.add(texts)
        numbers = numbering.numbers()
    of_lines, of_sentences = numbers[: len(lines)], numbers[len(lines) :]
    first_line = np.full(int(numbers.max()) + 1, -1, dtype=np.int64)
    first_line[of_lines[::-1]] = np.arange(len(lines))[::-1]  # of equal lines the first is assigned last
    return first_line[of_sentences]


def _open_vectors(path: Path) -> np.ndarray:
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, ArithmeticError, TypeError, BadZipFile, TokenError) as error:
        reason = shortened(" ".join(str(error).split()))
        raise DataError(
            f"{path} is not a .npy file of numbers ({reason}). Write one with `simcse-hf encode` or numpy.save."
        ) from error
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or 0 in vectors.shape or vectors.dtype.kind != "f":
        found = f"{vectors.dtype} {vectors.shape}" if isinstance(vectors, np.ndarray) else "an archive"
        raise DataError(f"{path} holds {found}; a teacher's vectors are floating-point numbers (sentences, size).")
    return vectors


def _first_not_finite(vectors: np.ndarray) -> int | None:
    finite = np.isfinite(vectors).all(axis=1)
    return None if finite.all() else int(finite.argmin())
