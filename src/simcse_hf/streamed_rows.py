"""Rows read from their files while they are trained on, in an order that the seed fixes.

A pass opens the files in an order of its own, a few at a time, and draws rows from them as often as they are large;
a shuffle buffer then mixes what lies near each other. The order depends on the files, the seed and the size of the
buffer, and on nothing else: every process reads the whole stream and keeps its share of each global batch, and a
resumed run reads what it had once more and throws it away.

`datasets.IterableDataset` is not used. Of one with as many files as processes, accelerate gives each process other
files, so that a global batch depends on the number of processes; and its `state_dict` leaves the shuffle buffer out,
so that a resumed run loses those rows.    Axes: V views.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .collators import ViewsCollator
from .corpora import Shape, complete_rows
from .distributed import gather_integers
from .errors import DataError, TrainingError
from .row_report import RowReport
from .sentence_store import BatchTokeniser, SentenceStore, TokenCounts
from .tables import read_table
from .training_corpus import Reading

logger = logging.getLogger(__name__)

# A sentence a view; label id, score in 0 .. 1, or None.
StreamedRow = tuple[tuple[str, ...], float | None]

_FILES_AT_ONCE = 8
_ROWS_AT_ONCE = 64  # drawn from one file before the next is chosen
_DRAWS_AT_ONCE = 4096


def sentence_id(sentence: str) -> int:
    """The identity of a normalised sentence: 63 bits of its BLAKE2b digest, the same on every process and in every run.

    Of a million different sentences two share an id with a probability of 5e-8.

    >>> sentence_id("네.") == sentence_id("네."), 0 <= sentence_id("네.") < 1 << 63
    (True, True)
    """
    return int.from_bytes(hashlib.blake2b(sentence.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True, kw_only=True)
class StreamedFile:
    """A data file, and what it was when the run began.

    Attributes:
        source: What identifies it (see `tables.source_of`); `rows` is filled in once it was read to its end.
        size: In bytes.
        modified: Of its last change, in nanoseconds.
    """

    path: Path
    source: dict
    size: int
    modified: int

    def check_unchanged(self) -> None:
        """Refuse a file that is not what it was: its rows would be others, and their order in a resumed run.

        Raises:
            DataError: It has another size or time of change, or is gone.
        """
        cure = "Put the file back and go on with --resume_from_checkpoint auto, or start a new run."
        try:
            now = self.path.stat()
        except FileNotFoundError:
            raise DataError(f"{self.path} is gone, and it is being trained on. {cure}") from None
        if now.st_size != self.size:
            raise DataError(
                f"{self.path} changed while it was trained on: it had {self.size:,} bytes, now {now.st_size:,}. {cure}"
            )
        if now.st_mtime_ns != self.modified:
            raise DataError(
                f"{self.path} was written again while it was trained on: its time of change is another. {cure}"
            )


class RowStream:
    """Rows as text, pass after pass without end.

    Attributes:
        report: Of all passes so far: a row that was read in two passes counts twice. What lies in the shuffle buffer
            has been read.
        passes: Finished ones.
    """

    def __init__(
        self,
        files: Sequence[StreamedFile],
        reading: Reading,
        *,
        shuffle_buffer: int,
        watch: Callable[[str, Sequence[str]], None] | None = None,
    ):
        """Remember what to read; nothing is opened yet.

        Args:
            files: All of one shape, which is not NLI rows for triplets.
            reading: How to read them. `deduplicate` and `max_rows` need the whole corpus and are not looked at.
            shuffle_buffer: Rows held in memory to mix them; 1 mixes nothing.
            watch: Told the place and the sentences of every row that is kept.
        """
        self.files = list(files)
        self.reading = reading
        self.shuffle_buffer = shuffle_buffer
        self.report = RowReport(on_bad_row=reading.on_bad_row)
        self.passes = 0
        self._watch = watch
        self._open: list[tuple[StreamedFile, Iterator[StreamedRow]]] = []

    def one_pass(self, seed: int) -> Iterator[StreamedRow]:
        """Every row once, in the order of `seed`.

        Raises:
            DataError: A malformed row, or a file that changed.
        """
        of_files, of_buffer = np.random.default_rng(seed).spawn(2)
        yield from shuffled(self._drawn(of_files), self.shuffle_buffer, of_buffer)
        self.passes += 1

    def check_unchanged(self) -> None:
        """Refuse files that changed, of those that are being read; what comes out of a pass was checked before.

        Raises:
            DataError: See `StreamedFile.check_unchanged`.
        """
        for file, _ in self._open:
            file.check_unchanged()

    def _drawn(self, generator: np.random.Generator) -> Iterator[StreamedRow]:
        waiting = deque(generator.permutation(len(self.files)).tolist())
        open_files = self._open = []
        while waiting or open_files:
            while waiting and len(open_files) < _FILES_AT_ONCE:
                file = self.files[waiting.popleft()]
                open_files.append((file, self._rows_of(file)))
            # As often as they are large: so all end at about the same time, and no file comes alone at the end.
            sizes = np.array([file.size for file, _ in open_files], dtype=np.float64)
            chosen = int(generator.choice(len(open_files), p=sizes / sizes.sum()))
            file, unread = open_files[chosen]
            try:
                rows = list(islice(unread, _ROWS_AT_ONCE))
            finally:  # a change explains a row that cannot be read
                file.check_unchanged()
            if len(rows) < _ROWS_AT_ONCE:
                del open_files[chosen]
            yield from rows

    def _rows_of(self, file: StreamedFile) -> Iterator[StreamedRow]:
        file.check_unchanged()
        report, reading = self.report, self.reading
        table = read_table(file.path, report, reading.column_names, source=file.source)
        _, rows = complete_rows(
            [table],
            report,
            train_as=reading.train_as,
            score_scale=reading.score_scale,
            held_out=reading.held_out,
        )
        for place, views, value, _ in rows:
            if self._watch is not None:
                self._watch(place, views)
            report.kept += 1
            yield views, value


def shuffled(rows: Iterator[StreamedRow], size: int, generator: np.random.Generator) -> Iterator[StreamedRow]:
    """The same rows in another order: each new one takes the place of a random one of the `size` held, which comes out.

    >>> sorted(shuffled(iter(range(9)), 4, np.random.default_rng(0))) == list(range(9))
    True
    """
    held = list(islice(rows, size))
    draws: list[int] = []
    for row in rows:
        if not draws:
            draws = generator.integers(size, size=_DRAWS_AT_ONCE).tolist()
        place = draws.pop()
        yield held[place]
        held[place] = row
    for place in generator.permutation(len(held)).tolist():
        yield held[place]


@dataclass(eq=False)
class StreamedRows(IterableDataset):
    """What the trainer reads: rows of a `RowStream` in whole global batches, tokenised when a batch is made of them.

    There is no length, and no end: pass e is shuffled by `seed + e`, and the rows that fill no global batch at the
    end of a pass are left out, others in every pass.

    Attributes:
        stream: The rows.
        shape: Of the files.
        tokenise: For the rows of this process.
        counts: Of the tokens of this process.
        store: A few sentences of the corpus, tokenised.
        teacher: None; vectors of a teacher belong to a corpus that is held.
        seed: Of the order.
        global_batch: Rows of a step of all processes; see `prepare`.
        rows_to_skip: The first so many are known to be thrown away, and are not tokenised.
        tokenised: Rows that were, on this process.
        left_over: Rows that filled no global batch.
    """

    stream: RowStream
    shape: Shape
    tokenise: BatchTokeniser
    counts: TokenCounts
    store: SentenceStore
    teacher: None = None
    seed: int = 0
    global_batch: int = 1
    rows_to_skip: int = 0
    tokenised: int = field(default=0, init=False)
    left_over: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[StreamedRow | None]:
        """Rows; None in the place of those to be thrown away.

        Raises:
            DataError: See `RowStream.one_pass`.
            TrainingError: A pass fills no global batch, or a worker process reads, of which each would give all rows.
        """
        if get_worker_info() is not None:
            raise TrainingError("a stream is read in the process that trains. Set dataloader_num_workers to 0.")
        skip = self.rows_to_skip
        number = 0
        while True:
            rows, batches = self.stream.one_pass(self.seed + number), 0
            while len(batch := list(islice(rows, self.global_batch))) == self.global_batch:
                yield from batch if skip <= 0 else [None] * len(batch)
                skip -= len(batch)
                batches += 1
            self.left_over += len(batch)
            number += 1
            logger.info(
                "pass %d over the stream is finished; %s\n  %s left over, fewer than a batch",
                number,
                str(self.stream.report),  # which changes
                f"{self.left_over:,}",
            )
            if not batches:
                raise TrainingError(
                    f"{len(batch)} training rows are fewer than one batch of {self.global_batch} (of all processes), and short "
                    f"batches are dropped: nothing would be trained. Use a smaller per_device_train_batch_size, or more rows.\n"
                    f"{self.stream.report}"
                )

    def prepare(
        self, accelerator: Accelerator, collate: ViewsCollator, *, batch_size: int, seed: int, pin_memory: bool = False
    ) -> DataLoader:
        """A loader of this process's share of every global batch: the rows that one process would see, cut in W parts.

        Args:
            accelerator: Knows W.
            collate: Makes batches of items as `ViewsDataset` gives them.
            batch_size: Rows of one process.
            seed: Of the order; the same on every process.
            pin_memory: As in `DataLoader`.

        Raises:
            TrainingError: The processes do not read the same files in the same order. All must call this together.
        """
        self.seed = seed
        order = [seed, self.stream.shuffle_buffer, *(file.source["sha256"] for file in self.stream.files)]
        if len({found for (found,) in gather_integers([sentence_id(str(order))], accelerator.device)}) > 1:
            raise TrainingError(
                "the processes do not read the same stream: train_file, shuffle_buffer or seed differ between them, or the content "
                "of a file does. Every process reads all of it and keeps its share; give all of them the same."
            )
        self.global_batch = batch_size * accelerator.num_processes
        loader = DataLoader(
            self, batch_size=batch_size, drop_last=True, collate_fn=self.collator(collate), pin_memory=pin_memory
        )
        # By itself accelerate would read a stream in one process and cut its batches up for the others.
        accelerator.dataloader_config.dispatch_batches = False
        return accelerator.prepare(loader)

    def collator(self, collate: ViewsCollator) -> Callable[[Sequence[StreamedRow | None]], dict[str, Tensor]]:
        """Rows -> batch; nothing for rows that are thrown away."""

        def collate_rows(rows: Sequence[StreamedRow | None]) -> dict[str, Tensor]:
            return {} if rows[0] is None else collate(self.items(rows))

        return collate_rows

    def items(self, rows: Sequence[StreamedRow]) -> list[dict]:
        """Tokenised rows, as `ViewsDataset` gives them; `sentence_ids` are those of `sentence_id`."""
        sentences = list(dict.fromkeys(sentence for views, _ in rows for sentence in views))
        tokens, lengths = self.tokenise(sentences, np.int32)
        self.counts.add(tokens, lengths)
        self.tokenised += len(rows)
        ids_of = dict(zip(sentences, np.split(tokens, np.cumsum(lengths)[:-1]), strict=True))
        items = []
        for views, value in rows:
            views = views * 2 if len(views) == 1 else views
            identities = np.array([sentence_id(sentence) for sentence in views], dtype=np.int64)
            item = {"views": [ids_of[sentence] for sentence in views], "sentence_ids": identities}
            if value is not None:
                item["score" if self.shape == "scored" else "label"] = value
            items.append(item)
        return items
