"""Training on a stream: what it cannot do is refused, and what it saw is recorded.

`training_sets` does the same for a corpus that is read, de-duplicated and tokenised before the first step.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, TrainerCallback

from .arguments import DataArguments, ModelArguments, SimCSETrainingArguments
from .configuration_simcse import SimCSEConfig
from .corpora import ScoredPairs, Shape, TrainingViews, check_some_are_left, complete_rows, has_values
from .errors import ConfigError, DataError
from .leakage import HeldOutSentences, Leakage, leakage_report
from .row_report import RowReport
from .sentence_store import BatchTokeniser, SentenceStore, TokenCounts
from .streamed_rows import RowStream, StreamedFile, StreamedRows
from .table_shapes import one_of_each, shape_of
from .tables import Table, expand_paths, read_table, source_of
from .training_corpus import Reading

logger = logging.getLogger(__name__)

_ROWS_OF_HEAD = 1000


def check_streaming(
    model_args: ModelArguments, data_args: DataArguments, training_args: SimCSETrainingArguments
) -> None:
    """Refuse what needs the whole corpus before the first step.

    Raises:
        ConfigError: Names the option and the cure.
    """
    if not data_args.train_file or data_args.train_dataset:
        raise ConfigError(
            "streaming reads train_file, and train_file alone. Save a Hub dataset as .parquet files first."
        )
    if training_args.max_steps <= 0:
        raise ConfigError(
            "streaming needs max_steps: how many rows there are is not known before all are read. An epoch of n rows is "
            "n / (per_device_train_batch_size * processes) steps."
        )
    whole = "needs the whole corpus, which a stream never holds"
    refused = {
        "source_weights": (data_args.source_weights, f"source_weights {whole}. Leave it out; files mix by their size."),
        "max_train_samples": (
            data_args.max_train_samples,
            "max_train_samples would mean other rows in every pass of a stream. Leave it out: max_steps says how far to read.",
        ),
        "scored_file": (data_args.scored_file, f"scored_file {whole}. Train in two stages (first_stage) instead."),
        "distillation": (model_args.distillation, f"distillation {whole}: a vector for each sentence."),
        "dataloader_num_workers": (
            training_args.dataloader_num_workers,
            "dataloader_num_workers must be 0 with streaming: each worker would read, and yield, the whole stream.",
        ),
        "train_sampling_strategy": (
            training_args.train_sampling_strategy != "random",
            f"train_sampling_strategy {training_args.train_sampling_strategy} does nothing to a stream. Leave it random; "
            "shuffle_buffer 1 leaves rows in the order in which they are read.",
        ),
    }
    for strategy in ("eval_strategy", "save_strategy", "logging_strategy"):
        by_epoch = getattr(training_args, strategy) == "epoch"
        message = f"{strategy} epoch means the end of the run, as a stream has no epochs. Use steps."
        refused[strategy] = (by_epoch, message)
    for is_set, message in refused.values():
        if is_set:
            raise ConfigError(message)


class LeakageWatch:
    """What of the evaluation sets went by in a stream.

    Only sentences that occur in them are held, so memory is bounded by the evaluation sets.
    """

    def __init__(self, evaluation: Sequence[ScoredPairs], *, refuse: bool):
        """Remember what to look for.

        Args:
            evaluation: The sets.
            refuse: Stop at the first sentence of theirs.
        """
        self._evaluation = evaluation
        self._wanted = HeldOutSentences(evaluation)
        self._refuse = refuse
        self._found: set[str] = set()

    def __call__(self, place: str, sentences: Sequence[str]) -> None:
        """Look at a row.

        Raises:
            DataError: It holds a sentence of an evaluation set, and that is to be refused.
        """
        for sentence in sentences:
            if sentence in self._wanted:
                if self._refuse:
                    raise DataError(
                        f"{place}: {sentence!r} is a sentence of an evaluation set, and on_leakage is error. Set on_leakage to "
                        "drop to leave such rows out, or to report to train on them."
                    )
                self._found.add(sentence)

    def report(self) -> Leakage:
        """Of what was seen so far."""
        return leakage_report(sorted(self._found), self._evaluation)


@dataclass(frozen=True, kw_only=True)
class StreamedViews(TrainingViews):
    """The first rows of a stream, to look at before it is trained on; `report` is that of the stream.

    Attributes:
        stream: All rows.
        watch: What it is told of them.
    """

    stream: RowStream
    watch: LeakageWatch


@dataclass(frozen=True, kw_only=True)
class StreamedSet:
    """A stream to train on; see `training_sets.TrainingSet`."""

    views: StreamedViews
    dataset: StreamedRows

    def record(self) -> dict:
        """What `simcse_run.json` keeps of it: of the rows that were read, which need not be all.

        `statistics` are of the rows that this process tokenised, in a resumed run since it was resumed.
        """
        stream, dataset = self.views.stream, self.dataset
        leakage = self.views.watch.report()
        for line in str(leakage).splitlines():
            logger.info("leakage, in the rows that were read: %s", line)
        statistics = {}
        if dataset.tokenised:
            statistics = dataset.counts.statistics(rows=dataset.tokenised, views=max(2, len(self.views.rows[0])))
            statistics["tokenised_sentences"] = statistics.pop("distinct_sentences")
        return {
            "shape": self.views.shape,
            "sources": self.views.sources,
            "report": stream.report.as_dict(),
            "report_text": str(stream.report),
            "statistics": statistics,
            "leakage": leakage.as_dict(),
            "stream": {
                "shuffle_buffer": stream.shuffle_buffer,
                "finished_passes": stream.passes,
                "left_over": dataset.left_over,
                "deduplicated": False,
            },
        }


def open_stream(
    paths: Sequence[str],
    reading: Reading,
    evaluation: Sequence[ScoredPairs],
    *,
    on_leakage: str,
    shuffle_buffer: int,
    show_progress: bool = False,
) -> StreamedViews:
    """Look at every file (its content for the checksum, its columns, its first rows); then it can be read.

    Args:
        paths: Files or globs, all of one shape.
        reading: How to read them.
        evaluation: Sets whose sentences are looked for.
        on_leakage: `report`, `drop` (see `Reading.held_out`) or `error`.
        shuffle_buffer: Rows held in memory.
        show_progress: Draw a progress bar while the checksums are computed.

    Raises:
        DataError: Unusable or differing columns, NLI rows, or no row at all.
    """
    files = _identified(expand_paths(paths), show_progress)
    shape = _common_shape(files, reading)
    watch = LeakageWatch(evaluation, refuse=on_leakage == "error")
    stream = RowStream(files, reading, shuffle_buffer=shuffle_buffer, watch=watch if evaluation else None)
    head = _head(files, reading)
    logger.info(
        "training on a stream of %d files, %s bytes: equal rows are not dropped, but masked within a batch",
        len(files),
        f"{sum(file.size for file in files):,}",
    )
    return StreamedViews(
        rows=[views for views, _ in head],
        shape=shape,
        sources=[file.source for file in files],
        report=stream.report,
        values=[value for _, value in head] if has_values(shape) else None,
        stream=stream,
        watch=watch,
    )


def streamed_set(views: StreamedViews, tokenizer: PreTrainedTokenizerBase, config: SimCSEConfig) -> StreamedSet:
    """The stream with what it takes to tokenise it."""
    options = {"max_length": config.max_seq_length, "prompt": config.prompt}
    first = list(dict.fromkeys(sentence for row in views.rows for sentence in row))
    dataset = StreamedRows(
        stream=views.stream,
        shape=views.shape,
        tokenise=BatchTokeniser(tokenizer, **options),
        counts=TokenCounts(tokenizer, config.max_seq_length),
        store=SentenceStore.build(first, tokenizer, **options),
    )
    return StreamedSet(views=views, dataset=dataset)


class FollowStream(TrainerCallback):
    """Says how far a stream was read, and what a resumed run need not tokenise again."""

    def __init__(self, dataset: StreamedRows):
        """Remember the stream."""
        self._dataset = dataset

    def on_train_begin(self, args, state, control, **kwargs):
        """A resumed run reads the rows it had again, to throw them away."""
        skipped = 0 if args.ignore_data_skip else state.global_step % state.max_steps
        self._dataset.rows_to_skip = skipped * args.gradient_accumulation_steps * self._dataset.global_batch
        if skipped:
            logger.info(
                "reading the stream up to row %s, where step %d ended", f"{self._dataset.rows_to_skip:,}", skipped
            )

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Nothing is dropped silently."""
        if state.is_world_process_zero and "loss" in (logs or {}):
            stream = self._dataset.stream
            logger.info("stream, pass %d: %s", stream.passes + 1, str(stream.report))  # which changes


def _identified(paths: Sequence[Path], show_progress: bool) -> list[StreamedFile]:
    """Sizes and times before checksums: a file that changes in between is then found changed."""
    stats = [path.stat() for path in paths]
    total = sum(found.st_size for found in stats)
    files = []
    with tqdm(
        total=total, desc="Checksums", unit="B", unit_scale=True, disable=not show_progress
    ) as progress:  # about a second a gigabyte
        for path, found in zip(paths, stats, strict=True):
            source = source_of(path)
            files.append(StreamedFile(path=path, source=source, size=found.st_size, modified=found.st_mtime_ns))
            progress.update(found.st_size)
    return files


def _common_shape(files: Sequence[StreamedFile], reading: Reading) -> Shape:
    tables = []
    for file in files:
        # Opened for its columns and closed again: there may be more files than a process may hold open.
        report = RowReport(on_bad_row=reading.on_bad_row)
        columns = read_table(file.path, report, reading.column_names, source=dict(file.source)).columns
        tables.append(Table(name=str(file.path), columns=columns, rows=iter(())))
    shape, _ = complete_rows(tables, RowReport(), train_as=reading.train_as)
    if shape == "nli":
        raise DataError(
            f"{files[0].path} holds NLI rows, and streaming cannot match premises across a corpus. Make triplets of them first "
            "(simcse-hf prepare), or set train_as to labels or sentences."
        )
    if shape in ("pairs", "triplets"):
        views = {table.name: len(shape_of(table)[1]) for table in tables}
        if len(set(views.values())) > 1:
            raise DataError(
                f"the training files have different numbers of sentences in a row ({one_of_each(views)}). Make them equal, or "
                "train separately."
            )
    return shape


def _head(files: Sequence[StreamedFile], reading: Reading) -> list[tuple[tuple[str, ...], float | None]]:
    """The first rows in the order of the files; a defect in them is found before a model is loaded."""
    report = RowReport(on_bad_row=reading.on_bad_row)
    head, tables = [], []
    for file in files:
        tables.append(read_table(file.path, report, reading.column_names, source=dict(file.source)))
        _, rows = complete_rows(
            tables[-1:], report, train_as=reading.train_as, score_scale=reading.score_scale, held_out=reading.held_out
        )
        head += [(views, value) for _, views, value, _ in islice(rows, _ROWS_OF_HEAD - len(head))]
        if len(head) == _ROWS_OF_HEAD:
            break
    report.kept = len(head)
    check_some_are_left(tables, report)
    return head
