"""Training rows on disk: read and normalised once, each distinct sentence tokenised once.

Two folders of the data cache, so that another tokenizer does not read the files again:

- `corpus-...`: `sentences.arrow` (each distinct sentence), `rows.arrow` (indices into it),
  keyed by the files' content and how they are read;
- `tokens-...`: `tokens.arrow` (token ids of each sentence), keyed by the corpus, the tokenizer,
  the length and the prompt.

While they are built, four bytes a sentence and five a row are held in memory; afterwards nothing
is: both are read through memory maps.    Axes: N rows, V views.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import tokenizers
import transformers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, TokenizersBackend

from .arrow_column import ArrowColumn, ColumnWriter, lists_of
from .cache_folder import cached_folder
from .corpora import PlacedViews, TrainingViews, check_some_are_left, complete_rows
from .errors import DataError
from .files import format_of
from .nli import TripletRule
from .numbering import Numbering, first_uses
from .row_report import RowReport
from .sentence_store import BatchTokeniser, TokenCounts, ViewsDataset
from .tables import Table, read_hub_table, read_table, source_of

# Raise it whenever the same files and settings would give other content.
_VERSION = 1
_ROWS_AT_ONCE = 10_000


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files become rows: every choice that changes them.

    Attributes:
        column_names: Header of `.tsv` and `.csv` files that have none.
        triplet_rule: See `nli`.
        as_sentences: Take every sentence of every text column as unlabelled.
        deduplicate: Drop rows equal to an earlier row.
        max_rows: Keep only the first so many.
        on_bad_row: See `RowReport`.
    """

    column_names: Sequence[str] | None = None
    triplet_rule: TripletRule = "last_wins"
    as_sentences: bool = False
    deduplicate: bool = True
    max_rows: int | None = None
    on_bad_row: str = "error"


class CorpusRows(Sequence):
    """Rows of sentences in a folder of the cache, decoded when they are asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.sentences = ArrowColumn(folder / "sentences.arrow")
        self.indices = ArrowColumn(folder / "rows.arrow")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        return tuple(self.sentences[sentence].tobytes().decode("utf-8") for sentence in self.indices[position])


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
    sources = [source_of(path) for path in paths]
    contents = [
        {"sha256": source["sha256"], "format": format_of(path)} for path, source in zip(paths, sources, strict=True)
    ]

    def open_tables(report: RowReport) -> list[Table]:
        return [
            read_table(path, report, reading.column_names, source=source)
            for path, source in zip(paths, sources, strict=True)
        ]

    return _views(contents, sources, open_tables, reading, root, show_progress)


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
) -> TrainingViews:
    report = RowReport(on_bad_row=reading.on_bad_row)
    key = {
        "version": _VERSION,
        "unicode": unicodedata.unidata_version,  # normalisation follows it
        "contents": contents,
        "reading": asdict(reading),
    }

    def build(folder: Path) -> dict:
        fresh = RowReport(on_bad_row=reading.on_bad_row)
        return _write_corpus(folder, open_tables(fresh), fresh, reading, show_progress)

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
    return TrainingViews(rows=CorpusRows(folder), shape=record["shape"], sources=sources, report=report)


def _write_corpus(folder: Path, tables: list[Table], report: RowReport, reading: Reading, show_progress: bool) -> dict:
    """Read once into a spill file, number the sentences, and write those that are new and the rows."""
    shape, rows = complete_rows(tables, report, triplet_rule=reading.triplet_rule, as_sentences=reading.as_sentences)
    scratch = folder / "scratch"
    scratch.mkdir()
    views, numbers, is_kept = _spill(scratch, rows, reading.deduplicate, show_progress)
    kept = int(is_kept.sum())
    wanted = kept if reading.max_rows is None else min(kept, reading.max_rows)
    duplicates = len(is_kept) - kept
    if duplicates:
        report.dropped["duplicate"] = duplicates
        report.examples["duplicate"] = _place_of(scratch, int(is_kept.argmin()))
    if wanted < kept:
        report.dropped["beyond_max_train_samples"] = kept - wanted
        report.examples["beyond_max_train_samples"] = f"row {wanted + 1:,} of those kept"
    report.kept = wanted
    check_some_are_left(tables, report)
    _keep(scratch, folder, numbers.reshape(-1, views), is_kept, wanted)
    shutil.rmtree(scratch)
    return {
        "shape": shape,
        "report": report.remembered(),
        "sources": [table.source for table in tables],
    }


def _spill(
    scratch: Path, rows: Iterator[PlacedViews], deduplicate: bool, show_progress: bool
) -> tuple[int, np.ndarray, np.ndarray]:
    """Write all rows to `scratch`; V, the numbers of their sentences (N*V,), and which rows to keep (N,)."""
    sentences, whole_rows = Numbering(scratch / "sentences"), Numbering(scratch / "rows")
    views, writer = 1, None
    compressed = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        pa.OSFile(str(scratch / "spill.arrow"), "wb") as stream,
        tqdm(desc="Reading", unit=" rows", disable=not show_progress) as progress,
    ):
        while chunk := list(islice(rows, _ROWS_AT_ONCE)):
            columns = [[place for place, _ in chunk], *zip(*(row for _, row in chunk), strict=True)]
            views = len(columns) - 1
            try:
                sentences.add(chain.from_iterable(row for _, row in chunk))
            except UnicodeEncodeError:
                raise _not_a_text(chunk) from None
            if deduplicate and views > 1:
                # Normalised sentences hold no line breaks, so joining them is unambiguous.
                whole_rows.add("\n".join(row) for _, row in chunk)
            batch = pa.record_batch([pa.array(column, pa.string()) for column in columns], names=_spill_names(views))
            writer = writer or pa.ipc.new_stream(stream, batch.schema, options=compressed)
            writer.write_batch(batch)
            progress.update(len(chunk))
        if writer:
            writer.close()
    numbers = sentences.numbers()
    if not deduplicate:
        return views, numbers, np.ones(len(numbers) // views, dtype=bool)
    return views, numbers, first_uses(numbers if views == 1 else whole_rows.numbers())


def _spill_names(views: int) -> list[str]:
    return ["place", *(f"view_{view}" for view in range(views))]


def _not_a_text(chunk: list[PlacedViews]) -> DataError:
    for place, row in chunk:
        for sentence in row:
            try:
                sentence.encode("utf-8")
            except UnicodeEncodeError as error:
                broken = sentence[error.start]
                return DataError(
                    f"{place}: half a character (\\u{ord(broken):04x}), which no text can hold. Mend the row."
                )
    raise AssertionError("every row can be encoded")


def _spilled(scratch: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(scratch / "spill.arrow")) as stream:
        yield from pa.ipc.open_stream(stream)


def _place_of(scratch: Path, row: int) -> str:
    return next(islice(_spilled(scratch), row // _ROWS_AT_ONCE, None)).column(0)[row % _ROWS_AT_ONCE].as_py()


def _keep(scratch: Path, folder: Path, numbers: np.ndarray, is_kept: np.ndarray, wanted: int) -> None:
    """Write the first `wanted` of the rows to keep, numbers (N, V), and each sentence where it is used first."""
    sentences, rows, done = 0, 0, 0
    with (
        ColumnWriter(folder / "sentences.arrow", "text", pa.string()) as texts,
        ColumnWriter(folder / "rows.arrow", "sentences", pa.list_(pa.from_numpy_dtype(numbers.dtype))) as indices,
    ):
        for batch in _spilled(scratch):
            here = slice(done, done + len(batch))
            done += len(batch)
            positions = np.flatnonzero(is_kept[here])[: wanted - rows]
            kept = numbers[here][positions]  # (K, V)
            rows += len(kept)
            indices.write(lists_of(kept.ravel(), np.full(len(kept), kept.shape[1])))
            # Numbers ascend in order of first use, so a sentence is new where its number has not been reached.
            new = np.flatnonzero(first_uses(np.concatenate([[sentences - 1], kept.ravel()]))[1:])
            sentences += len(new)
            row, view = np.divmod(new, kept.shape[1])
            columns = pa.concat_arrays(batch.columns[1:])  # (V*N,), one view after the other
            texts.write(columns.take(pa.array(view * len(batch) + positions[row])))
            if rows == wanted:
                return


def tokenized_views(
    views: TrainingViews,
    tokenizer: PreTrainedTokenizerBase,
    root: Path,
    *,
    max_length: int,
    prompt: str = "",
    show_progress: bool = False,
) -> tuple[ViewsDataset, dict[str, float]]:
    """The rows of `views_of_files` or `views_of_hub_dataset` as token ids, by way of the cache.

    Args:
        views: Its `rows` are `CorpusRows`.
        tokenizer: Fast tokenizers use all cores.
        root: The cache.
        max_length: Tokens, special ones included; longer sentences are cut.
        prompt: Put before every sentence.
        show_progress: Draw a progress bar while tokenising.

    Returns:
        The dataset, its arrays mapped from disk, and what `ViewsDataset.statistics` would say.

    Raises:
        ConfigError: The cache cannot be written.
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
    return ViewsDataset(ArrowColumn(folder / "tokens.arrow"), corpus.indices), statistics


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
