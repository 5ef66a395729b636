"""Rows of sentences as Arrow files in a folder: `sentences.arrow`, `rows.arrow`, perhaps `values.arrow`.

Each distinct sentence is written once, and rows are indices into them. While they are written, four
bytes a sentence and five a row are held in memory; afterwards nothing is.    Axes: N rows, V views.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, islice, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from .arrow_column import ArrowColumn, ColumnWriter, lists_of
from .corpora import PlacedRow, Shape, has_values
from .numbering import Numbering, first_uses
from .row_report import RowReport

_ROWS_AT_ONCE = 10_000
_VALUE_TYPES = {"labelled": pa.int8(), "scored": pa.float64()}


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


class CorpusValues(Sequence):
    """The label (int) or score (float) of each row, in a folder of the cache."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._column = ArrowColumn(folder / "values.arrow")

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        return self._column[index + len(self) if index < 0 else index].item()


def write_rows(
    folder: Path,
    rows: Iterator[PlacedRow],
    shape: Shape,
    report: RowReport,
    *,
    sources: int,
    deduplicate: bool,
    max_rows: int | None,
    show_progress: bool,
) -> list[int]:
    """Read rows once into a spill file, number the sentences, and write those that are new and the rows.

    Args:
        folder: Exists, and is empty.
        rows: Source by source.
        shape: Of the corpus.
        report: Told which rows are kept, repeated or too many.
        sources: How many there are.
        deduplicate: Drop rows equal to an earlier row, the label or score included.
        max_rows: Keep only the first so many.
        show_progress: Draw a progress bar.

    Returns:
        How many of the rows kept came from each source; where none is kept, nothing was written.
    """
    scratch = folder / "scratch"
    scratch.mkdir()
    views, numbers, is_kept, from_source = _spill(scratch, rows, shape, deduplicate, show_progress)
    kept = int(is_kept.sum())
    wanted = kept if max_rows is None else min(kept, max_rows)
    duplicates = len(is_kept) - kept
    if duplicates:
        report.dropped["duplicate"] = duplicates
        report.examples["duplicate"] = _place_of(scratch, int(is_kept.argmin()))
    if wanted < kept:
        report.dropped["beyond_max_train_samples"] = kept - wanted
        report.examples["beyond_max_train_samples"] = f"row {wanted + 1:,} of those kept"
    report.kept = wanted
    if wanted:
        _keep(scratch, folder, shape, numbers.reshape(-1, views), is_kept, wanted)
    shutil.rmtree(scratch)
    ends = np.cumsum([0, *(from_source[source] for source in range(sources))])
    of_each = [int(is_kept[start:end].sum()) for start, end in pairwise(ends)]
    return np.diff(np.minimum(np.cumsum([0, *of_each]), wanted)).tolist()


def _spill(
    scratch: Path, rows: Iterator[PlacedRow], shape: Shape, deduplicate: bool, show_progress: bool
) -> tuple[int, np.ndarray, np.ndarray, Counter[int]]:
    """Write all rows to `scratch`.

    Returns:
        V, the numbers of the rows' sentences (N*V,), which rows to keep (N,), and how many came from each source.
    """
    sentences, whole_rows = Numbering(scratch / "sentences"), Numbering(scratch / "rows")
    views, writer, from_source = 1, None, Counter()
    compressed = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        pa.OSFile(str(scratch / "spill.arrow"), "wb") as stream,
        tqdm(desc="Reading", unit=" rows", disable=not show_progress) as progress,
    ):
        while chunk := list(islice(rows, _ROWS_AT_ONCE)):
            of_each, values = [row[1] for row in chunk], [row[2] for row in chunk]
            views = len(of_each[0])
            from_source.update(row[3] for row in chunk)
            sentences.add(chain.from_iterable(of_each))
            # Normalised sentences hold no line breaks, so joining them is unambiguous.
            if deduplicate and has_values(shape):
                whole_rows.add("\n".join((*row, repr(value))) for row, value in zip(of_each, values, strict=True))
            elif deduplicate and views > 1:
                whole_rows.add(map("\n".join, of_each))
            columns = {"place": pa.array([row[0] for row in chunk], pa.string())}
            columns |= {
                f"view_{view}": pa.array(column, pa.string()) for view, column in enumerate(zip(*of_each, strict=True))
            }
            if has_values(shape):
                columns["value"] = pa.array(values, _VALUE_TYPES[shape])
            batch = pa.record_batch(columns)
            writer = writer or pa.ipc.new_stream(stream, batch.schema, options=compressed)
            writer.write_batch(batch)
            progress.update(len(chunk))
        if writer:
            writer.close()
    numbers = sentences.numbers()
    if not deduplicate:
        return views, numbers, np.ones(len(numbers) // views, dtype=bool), from_source
    return views, numbers, first_uses(numbers if views == 1 else whole_rows.numbers()), from_source


def _spilled(scratch: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(scratch / "spill.arrow")) as stream:
        yield from pa.ipc.open_stream(stream)


def _place_of(scratch: Path, row: int) -> str:
    return next(islice(_spilled(scratch), row // _ROWS_AT_ONCE, None)).column(0)[row % _ROWS_AT_ONCE].as_py()


def _keep(scratch: Path, folder: Path, shape: Shape, numbers: np.ndarray, is_kept: np.ndarray, wanted: int) -> None:
    """Write the first `wanted` of the rows to keep, numbers (N, V), and each sentence where it is used first."""
    sentences, rows, done, values = 0, 0, 0, None
    number_type = pa.from_numpy_dtype(numbers.dtype)
    with ExitStack() as files:
        texts = files.enter_context(ColumnWriter(folder / "sentences.arrow", "text", pa.string()))
        indices = files.enter_context(ColumnWriter(folder / "rows.arrow", "sentences", pa.list_(number_type)))
        if has_values(shape):
            value_type = pa.list_(_VALUE_TYPES[shape])
            values = files.enter_context(ColumnWriter(folder / "values.arrow", shape, value_type))
        for batch in _spilled(scratch):
            here = slice(done, done + len(batch))
            done += len(batch)
            positions = np.flatnonzero(is_kept[here])[: wanted - rows]
            kept = numbers[here][positions]  # (K, V)
            rows += len(kept)
            indices.write(lists_of(kept.ravel(), np.full(len(kept), kept.shape[1])))
            if values is not None:
                values.write(lists_of(batch.column("value").to_numpy()[positions], np.ones(len(kept))))
            # Numbers ascend in order of first use, so a sentence is new where its number has not been reached.
            new = np.flatnonzero(first_uses(np.concatenate([[sentences - 1], kept.ravel()]))[1:])
            sentences += len(new)
            row, view = np.divmod(new, kept.shape[1])
            columns = pa.concat_arrays(batch.columns[1 : 1 + kept.shape[1]])  # (V*N,), one view after the other
            texts.write(columns.take(pa.array(view * len(batch) + positions[row])))
            if rows == wanted:
                return
