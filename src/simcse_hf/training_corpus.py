"""Training rows on disk: read and normalised once, each distinct sentence tokenised once.

Two folders of the data cache, so that another tokenizer does not read the files again:

- `corpus-...`: distinct sentences and the rows (see `corpus_folder`), keyed by the files' content
  and how they are read;
- `tokens-...`: `tokens.arrow` (token ids of each sentence), keyed by the corpus, the tokenizer,
  the length and the prompt.

Neither is held in memory: both are read through memory maps.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import tokenizers
import transformers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, TokenizersBackend

from .arrow_column import ArrowColumn, ColumnWriter, lists_of
from .cache_folder import cached_folder
from .corpora import TrainAs, TrainingViews, check_some_are_left, complete_rows, has_values
from .corpus_folder import CorpusRows, CorpusValues, write_rows
from .errors import DataError
from .files import format_of
from .leakage import HeldOutSentences
from .nli import TripletRule
from .row_report import RowReport
from .sentence_store import BatchTokeniser, TokenCounts, ViewsDataset
from .tables import Table, read_hub_table, read_table, source_of

# Raise it whenever the same files and settings would give other content.
_VERSION = 4


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files become rows: every choice that changes them.

    Attributes:
        column_names: Header of `.tsv` and `.csv` files that have none.
        triplet_rule: See `nli`.
        train_as: See `corpora.complete_rows`.
        score_scale: Lowest and highest score, which become 0 and 1.
        held_out: Drop rows that hold one of these sentences.
        deduplicate: Drop rows equal to an earlier row, the label or score included.
        max_rows: Keep only the first so many.
        on_bad_row: See `RowReport`.
    """

    column_names: Sequence[str] | None = None
    triplet_rule: TripletRule = "last_wins"
    train_as: TrainAs = "auto"
    score_scale: tuple[float, float] = (0.0, 5.0)
    held_out: HeldOutSentences | None = None
    deduplicate: bool = True
    max_rows: int | None = None
    on_bad_row: str = "error"

    def key(self) -> dict:
        """JSON-ready; differs where the rows may."""
        choices = {field.name: getattr(self, field.name) for field in fields(self)}
        return choices | {"held_out": None if self.held_out is None else self.held_out.digest}


def views_of_files(
    paths: Sequence[Path], reading: Reading, root: Path, *, show_progress: bool = False
) -> TrainingViews:
    """Rows of local files, by way of the cache.

    Args:
        paths: All of one shape.
        reading: How to read them.
        root: The cache.
        show_progress: Draw a progress bar while reading.

    Raises:
        ConfigError: The cache cannot be written.
        DataError: See `corpora.training_views`.
    """
    before = [_size_and_time(path) for path in paths]
    sources = [source_of(path) for path in paths]
    contents = [
        {"sha256": source["sha256"], "format": format_of(path)} for path, source in zip(paths, sources, strict=True)
    ]

    def open_tables(report: RowReport) -> list[Table]:
        return [
            read_table(path, report, reading.column_names, source=source)
            for path, source in zip(paths, sources, strict=True)
        ]

    def check_unchanged() -> None:
        for path, found in zip(paths, before, strict=True):
            if _size_and_time(path) != found:
                raise DataError(
                    f"{path} was changed while it was read, so its sha256 and its rows may not belong together. Start again "
                    "when nothing writes to it any more."
                )

    return _views(contents, sources, open_tables, reading, root, show_progress, check_unchanged)


def _size_and_time(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def views_of_hub_dataset(spec: str, reading: Reading, root: Path, *, show_progress: bool = False) -> TrainingViews:
    """Rows of a Hub dataset, by way of the cache; arguments and errors as for `views_of_files`."""
    table = read_hub_table(spec, RowReport(on_bad_row=reading.on_bad_row))
    contents = [{"hub": spec, "fingerprint": table.source["fingerprint"]}]

    def open_tables(fresh: RowReport) -> list[Table]:
        return [read_hub_table(spec, fresh)]

    return _views(contents, [table.source], open_tables, reading, root, show_progress)


def _views(
    contents: list[dict],
    sources: list[dict],
    open_tables: Callable[[RowReport], list[Table]],
    reading: Reading,
    root: Path,
    show_progress: bool,
    check_unchanged: Callable[[], None] = lambda: None,
) -> TrainingViews:
    report = RowReport(on_bad_row=reading.on_bad_row)
    key = {
        "version": _VERSION,
        "unicode": unicodedata.unidata_version,  # normalisation follows it
        "contents": contents,
        "reading": reading.key(),
    }

    def build(folder: Path) -> dict:
        fresh = RowReport(on_bad_row=reading.on_bad_row)
        record = _write_corpus(folder, open_tables(fresh), fresh, reading, show_progress)
        check_unchanged()
        return record

    folder, record = cached_folder(root, "corpus", key, build)
    report.recall(record["report"])
    for source, remembered in zip(sources, record["sources"], strict=True):
        source["rows"] = remembered["rows"]
    # The same content may have lain elsewhere when it was read.
    moved = {
        remembered["path"]: source["path"]
        for source, remembered in zip(sources, record["sources"], strict=True)
        if "path" in source
    }
    for reason, place in report.examples.items():
        file, _, line = place.rpartition(", ")
        if file in moved:
            report.examples[reason] = f"{moved[file]}, {line}"
    return TrainingViews(
        rows=CorpusRows(folder),
        shape=record["shape"],
        sources=sources,
        report=report,
        values=CorpusValues(folder) if has_values(record["shape"]) else None,
        source_rows=record["source_rows"],
    )


def _write_corpus(folder: Path, tables: list[Table], report: RowReport, reading: Reading, show_progress: bool) -> dict:
    shape, rows = complete_rows(
        tables,
        report,
        triplet_rule=reading.triplet_rule,
        train_as=reading.train_as,
        score_scale=reading.score_scale,
        held_out=reading.held_out,
    )
    source_rows = write_rows(
        folder,
        rows,
        shape,
        report,
        sources=len(tables),
        deduplicate=reading.deduplicate,
        max_rows=reading.max_rows,
        show_progress=show_progress,
    )
    check_some_are_left(tables, report)
    return {
        "shape": shape,
        "report": report.remembered(),
        "sources": [table.source for table in tables],
        "source_rows": None if shape == "nli" else source_rows,
    }


def tokenized_views(
    views: TrainingViews,
    tokenizer: PreTrainedTokenizerBase,
    root: Path,
    *,
    max_length: int,
    prompt: str = "",
    teacher: np.ndarray | None = None,
    show_progress: bool = False,
) -> tuple[ViewsDataset, dict[str, float]]:
    """The rows of `views_of_files` or `views_of_hub_dataset` as token ids, by way of the cache.

    Args:
        views: Its `rows` are `CorpusRows`.
        tokenizer: Fast tokenizers use all cores.
        root: The cache.
        max_length: Tokens, special ones included; longer sentences are cut.
        prompt: Put before every sentence.
        teacher: (S, E), a vector for each of `views.rows.sentences`.
        show_progress: Draw a progress bar while tokenising.

    Returns:
        The dataset, its arrays mapped from disk, with the labels or scores of the rows; and what
        `ViewsDataset.statistics` would say.

    Raises:
        ConfigError: The cache cannot be written.
        DataError: Not as many vectors as sentences.
    """
    corpus: CorpusRows = views.rows
    key = {
        "version": _VERSION,
        "corpus": corpus.folder.name,
        "tokenizer": fingerprint_of(tokenizer),
        "max_length": max_length,
        "prompt": prompt,
    }

    def build(folder: Path) -> dict:
        counts = _write_tokens(folder, corpus.sentences, tokenizer, max_length, prompt, show_progress)
        return counts.statistics(rows=len(corpus), views=max(2, len(corpus.indices[0])))

    folder, statistics = cached_folder(root, "tokens", key, build)
    dataset = ViewsDataset(
        ArrowColumn(folder / "tokens.arrow"),
        corpus.indices,
        scores=views.values if views.shape == "scored" else None,
        labels=views.values if views.shape == "labelled" else None,
        teacher=teacher,
    )
    return dataset, statistics


def _write_tokens(
    folder: Path,
    sentences: ArrowColumn,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    prompt: str,
    show_progress: bool,
) -> TokenCounts:
    dtype = np.uint16 if max(tokenizer.get_vocab().values()) < 1 << 16 else np.int32
    tokenise = BatchTokeniser(tokenizer, max_length=max_length, prompt=prompt)
    counts = TokenCounts(tokenizer, max_length)
    with (
        ColumnWriter(folder / "tokens.arrow", "input_ids", pa.list_(pa.from_numpy_dtype(dtype))) as tokens,
        tqdm(total=len(sentences), desc="Tokenising", unit=" sentences", disable=not show_progress) as progress,
    ):
        for array in sentences.arrays():
            ids, lengths = tokenise(array.to_pylist(), dtype)
            counts.add(ids, lengths)
            tokens.write(lists_of(ids, lengths))
            progress.update(len(lengths))
    return counts


def fingerprint_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex digest of all that decides which ids a tokenizer gives; not of padding, which changes none."""
    settings = {
        "class": type(tokenizer).__qualname__,
        "versions": [transformers.__version__, tokenizers.__version__],
        "truncation_side": tokenizer.truncation_side,
        "split_special_tokens": tokenizer.split_special_tokens,
    }
    if isinstance(tokenizer, TokenizersBackend):
        # What the last call asked for stays in the backend, and belongs to the call.
        backend = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    else:
        files = [Path(str(tokenizer.init_kwargs.get(name))) for name in tokenizer.vocab_files_names or {}]
        options = {name: repr(value) for name, value in tokenizer.init_kwargs.items() if name != "name_or_path"}
        backend = {
            "vocabulary": tokenizer.get_vocab(),
            "files": [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()],
            "options": options,
        }
    return hashlib.sha256(json.dumps([settings, backend], sort_keys=True).encode()).hexdigest()
