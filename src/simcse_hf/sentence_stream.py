"""The sentences of one or many files, read by row number and never held in memory as a whole.

A corpus here is one sentence a line, or tables of one text column, one file after the other. A row is a sentence, and
a row number counts through all files: a header is no row, nor is a blank line of `.jsonl`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tqdm.auto import tqdm

from .corpora import complete_rows
from .errors import DataError
from .files import sha256_of
from .row_report import RowReport
from .sample import resolve_sample
from .table_shapes import NAME_OF_SHAPE, shape_of
from .tables import Table, expand_paths, read_table


@dataclass(frozen=True)
class CorpusFile:
    """A data file as it was when its digest was taken.

    Attributes:
        path: Of the file, decompressed as it is read.
        sha256: Of its bytes on disk.
        state: Size and time of the last change then; None where the file was not looked at.
    """

    path: Path
    sha256: str
    state: tuple[int, int] | None = None

    @classmethod
    def of(cls, path: Path) -> CorpusFile:
        """Take the digest of a file."""
        state = _state(path)  # before reading: a change meanwhile is noticed later
        return cls(path, sha256_of(path), state)

    def check_unchanged(self) -> None:
        """Refuse a file that was written since its digest was taken.

        Raises:
            DataError: It was.
        """
        if self.state is not None and _state(self.path) != self.state:
            raise DataError(
                f"{self.path} was changed while it was being read. What is written so far is of the file as it was: restore "
                "it and go on, or begin again."
            )


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def corpus_files(paths: Sequence[str], *, show_progress: bool = False) -> list[CorpusFile]:
    """Files meant by paths, globs and samples, in the order given, with their digests.

    Raises:
        DataError: A path that does not exist or a glob that matches nothing.
    """
    found = expand_paths([resolve_sample(str(path)) for path in paths])
    with tqdm(
        found, desc="Digests", unit=" files", disable=not show_progress or len(found) < 2, leave=False
    ) as progress:
        return [CorpusFile.of(path) for path in progress]


def count_rows(files: Sequence[CorpusFile], *, show_progress: bool = False) -> list[int]:
    """Read everything once: the sentences of each file.

    Raises:
        DataError: A file that is no corpus, or an empty sentence in it, since rows of vectors must match lines.
    """
    counts = []
    with tqdm(desc="Reading", unit=" rows", unit_scale=True, disable=not show_progress, leave=False) as progress:
        for file in files:
            rows = 0
            for rows, _ in enumerate(sentences_of(file), start=1):
                if rows % 1000 == 0:
                    progress.update(1000)
            counts.append(rows)
    return counts


def sentences_of(file: CorpusFile) -> Iterator[str]:
    """Every sentence of a file, normalised.

    Raises:
        DataError: The file is no corpus; at its end, that a sentence was empty, that there was none, or that the file
            changed.
    """
    report = RowReport(every_row_counts=True)
    sentence = None
    for sentence in _sentences(_table(file, report), report):
        yield sentence
    if report.dropped:
        raise DataError(
            f"{report.examples['empty_sentence']}: an empty sentence ({report.dropped.total()} in all). Sentences are "
            "numbered, so none is left out; remove the empty ones."
        )
    if sentence is None:
        raise DataError(f"{file.path} holds no sentence.")
    file.check_unchanged()


class SentenceStream:
    """Sentences by row number, read forward; rows that are not asked for are passed over.

    Passing over rows costs reading and decompressing them, but no normalising. Files that lie before the rows asked
    for are not opened at all. Going back opens a file again.
    """

    def __init__(self, files: Sequence[CorpusFile], rows: Sequence[int]):
        """Open nothing yet.

        Args:
            files: One after the other.
            rows: Sentences in each, as `count_rows` found.
        """
        self._files = list(files)
        self._rows = list(rows)
        self._opened: int | None = None  # index of the open file
        self._next = 0  # row within it that its table gives next
        self._table: Table | None = None
        self._unread: Iterator | None = None
        self._report = RowReport(every_row_counts=True)

    def __len__(self) -> int:
        return sum(self._rows)

    def read(self, start: int, stop: int) -> list[str]:
        """The sentences start .. stop - 1, normalised.

        Raises:
            DataError: A file is not what it was when its rows were counted.
        """
        found: list[str] = []
        first = 0
        for index, rows in enumerate(self._rows):
            begin, end = max(start, first), min(stop, first + rows)
            if begin < end:
                found += self._read_of(index, begin - first, end - first)
            first += rows
        return found

    def _read_of(self, index: int, start: int, stop: int) -> list[str]:
        file = self._files[index]
        if self._opened != index or self._next > start:
            self._table = _table(file, self._report)
            self._unread, self._opened, self._next = self._table.rows, index, 0
        deque(islice(self._unread, start - self._next), maxlen=0)
        self._table.rows = islice(self._unread, stop - start)
        found = list(_sentences(self._table, self._report))
        self._next = stop
        file.check_unchanged()
        if len(found) != stop - start:
            raise DataError(
                f"{file.path} held {self._rows[index]:,} sentences when they were counted, and other ones now. Restore it, or "
                "begin again."
            )
        return found


def _table(file: CorpusFile, report: RowReport) -> Table:
    return read_table(file.path, report, source={"path": str(file.path), "sha256": file.sha256, "rows": None})


def _sentences(table: Table, report: RowReport) -> Iterator[str]:
    """Every sentence but the empty ones, which the report counts."""
    shape, _ = shape_of(table, as_sentences=True)
    if shape != "sentences":
        raise DataError(
            f"{table.name} holds {NAME_OF_SHAPE[shape]}; a corpus is one sentence a line, or a table of one text column."
        )
    _, rows = complete_rows([table], report)
    return (views[0] for _, views, _, _ in rows)
