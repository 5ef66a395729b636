"""Training views and scored pairs from tables.

What a table is follows from its columns (`table_shapes`); what it is trained as is another matter
(`TrainAs`): any of them as unlabelled sentences, NLI rows as triplets or as labelled pairs, scored
pairs by their scores.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain
from types import NoneType
from typing import Literal

from .errors import DataError, shortened
from .leakage import HeldOutSentences
from .nli import LABEL_IDS, NOT_A_SENTENCE, TripletRule, build_triplets, known_label
from .row_report import RowReport
from .strict_json import MISSING, UnusableValue, half_a_character
from .table_shapes import NAME_OF_SHAPE, TableShape, first_of, one_of_each, shape_of
from .tables import Table
from .text import normalize_text

Shape = Literal[TableShape, "labelled"]
TrainAs = Literal["auto", "sentences", "labels", "scores"]
# Place for messages; a sentence a view; label id, score in 0 .. 1, or None; index of the table. A plain tuple, because
# the garbage collector goes through millions of anything else.
PlacedRow = tuple[str, tuple[str, ...], float | None, int]

_WRITTEN_AS_TEXT = (int, float, Decimal, NoneType)

# What each way of training with a value reads, and what it makes of it.
_WITH_VALUES: dict[str, tuple[TableShape, Shape, str]] = {
    "labels": ("nli", "labelled", "NLI rows (premise, hypothesis, label)"),
    "scores": ("scored", "scored", "scored pairs (sentence1, sentence2, score)"),
}


@dataclass(frozen=True, kw_only=True)
class TrainingViews:
    """Rows to train on: anchor, positive, hard negatives; or two sentences and what is said of them.

    Attributes:
        rows: Normalised sentences, in memory or decoded from disk when asked for; all rows have
            the same number of views. Unlabelled sentences appear as rows of one; the second view
            is the same sentence again.
        shape: What the source tables were; NLI rows that keep their labels are `labelled`.
        sources: One entry for each file: path, sha256, rows.
        values: One for each row: ids of `LABEL_IDS` where the shape is `labelled`, scores in
            0 .. 1 where it is `scored`; else None.
        source_rows: How many of the rows came from each source, one source after the other; None
            where a row is matched from several.
    """

    rows: Sequence[tuple[str, ...]]
    shape: Shape
    sources: list[dict]
    report: RowReport
    values: Sequence[float] | None = None
    source_rows: list[int] | None = None

    @property
    def unsupervised(self) -> bool:
        """Whether dropout is the only difference between the two views."""
        return self.shape == "sentences"


@dataclass(frozen=True, kw_only=True)
class ScoredPairs:
    """Sentence pairs with a human similarity score.

    Attributes:
        scores: On the scale of the source; `scale` is its (lowest, highest).
        sources: One entry for each file: path, sha256, rows.
    """

    name: str
    sentences1: list[str]
    sentences2: list[str]
    scores: list[float]
    scale: tuple[float, float] = (0.0, 5.0)
    sources: list[dict] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.scores)


def training_views(
    tables: Sequence[Table],
    report: RowReport,
    *,
    triplet_rule: TripletRule = "last_wins",
    train_as: TrainAs = "auto",
    score_scale: tuple[float, float] = (0.0, 5.0),
    held_out: HeldOutSentences | None = None,
    deduplicate: bool = True,
) -> TrainingViews:
    """Read tables of one shape into rows of views, held in memory.

    `training_corpus` gives the same rows from disk, for corpora of any size.

    Args:
        tables: All of the same shape; NLI premises are matched across them.
        report: Counts rows kept and dropped; the same that the tables were opened with.
        triplet_rule: See `nli`.
        train_as: See `complete_rows`.
        score_scale: Lowest and highest score, which become 0 and 1.
        held_out: Drop rows that hold one of these sentences.
        deduplicate: Drop rows equal to an earlier row, the label or score included.

    Raises:
        DataError: Unusable or differing columns, or no row left.
    """
    shape, rows = complete_rows(
        tables, report, triplet_rule=triplet_rule, train_as=train_as, score_scale=score_scale, held_out=held_out
    )
    kept, values, seen, from_source = [], [], set(), Counter()
    for place, views, value, source in rows:
        if deduplicate and (views, value) in seen:
            report.drop("duplicate", place)
        else:
            kept.append(views)
            values.append(value)
            seen.add((views, value))
            from_source[source] += 1
    report.kept = len(kept)
    check_some_are_left(tables, report)
    return TrainingViews(
        rows=kept,
        shape=shape,
        sources=[table.source for table in tables],
        report=report,
        values=values if has_values(shape) else None,
        source_rows=None if shape == "nli" else [from_source[source] for source in range(len(tables))],
    )


def has_values(shape: Shape) -> bool:
    """Whether the rows of a corpus have a label or a score each."""
    return shape in ("labelled", "scored")


def check_some_are_left(tables: Sequence[Table], report: RowReport) -> None:
    """Refuse an empty corpus.

    Raises:
        DataError: No row was kept.
    """
    if not report.kept:
        raise DataError(f"no training rows are left of {first_of([table.name for table in tables])}.\n{report}")


def complete_rows(
    tables: Sequence[Table],
    report: RowReport,
    *,
    triplet_rule: TripletRule = "last_wins",
    train_as: TrainAs = "auto",
    score_scale: tuple[float, float] = (0.0, 5.0),
    held_out: HeldOutSentences | None = None,
) -> tuple[Shape, Iterator[PlacedRow]]:
    """The shape of the corpus, and its rows one by one: normalised, none empty, repeated ones included.

    Args:
        tables: All of the same shape; NLI rows that become triplets are held in memory, to match
            their premises.
        report: Counts rows dropped.
        triplet_rule: See `nli`.
        train_as: `auto` makes views for a contrastive loss. `sentences` takes every sentence of
            every text column as unlabelled. `labels` makes (premise, hypothesis) of NLI rows, with
            the label's id. `scores` makes pairs with a score.
        score_scale: Lowest and highest score, which become 0 and 1.
        held_out: Drop rows that hold one of these sentences, as `in_evaluation_set`.

    Raises:
        DataError: Unusable or differing columns; while iterating, a malformed row.
    """
    if train_as in _WITH_VALUES:
        shape, rows = _rows_with_values(tables, report, train_as, score_scale)
    else:
        shape, rows = _rows_without_values(tables, report, triplet_rule, as_sentences=train_as == "sentences")
    return shape, _complete(rows, report, held_out)


def _rows_without_values(
    tables: Sequence[Table], report: RowReport, triplet_rule: TripletRule, *, as_sentences: bool
) -> tuple[Shape, Iterator[PlacedRow]]:
    shapes = {table.name: "sentences" if as_sentences else shape_of(table)[0] for table in tables}
    if len(set(shapes.values())) > 1:
        listed = one_of_each({name: NAME_OF_SHAPE[shape] for name, shape in shapes.items()})
        raise DataError(f"the training files are of different shapes ({listed}). Train on one shape at a time.")
    shape: Shape = next(iter(shapes.values()))
    if shape == "scored":
        raise DataError(
            f"{tables[0].name} holds scored pairs; a contrastive loss needs positives, not scores. To train on the "
            "scores, set train_as to scores; to use its sentences for unsupervised training, set train_as to sentences."
        )
    if shape == "nli":
        report.unit = "triplets"
        complete = chain.from_iterable(_complete_nli_rows(table, report) for table in tables)
        return shape, (("", triplet, None, 0) for triplet in build_triplets(complete, triplet_rule, report))
    if shape == "sentences":
        report.unit = "sentences"
        return shape, chain.from_iterable(
            _sentences(source, table, report, as_sentences) for source, table in enumerate(tables)
        )
    return shape, (
        (place, views, None, source)
        for source, table in enumerate(tables)
        for place, views in _column_values(table, shape_of(table)[1], report)
    )


def _rows_with_values(
    tables: Sequence[Table], report: RowReport, train_as: TrainAs, score_scale: tuple[float, float]
) -> tuple[Shape, Iterator[PlacedRow]]:
    needed, shape, description = _WITH_VALUES[train_as]
    for table in tables:
        if (found := shape_of(table)[0]) != needed:
            raise DataError(
                f"{table.name} holds {NAME_OF_SHAPE[found]}, by its columns {shortened(', '.join(table.columns))}; train_as "
                f"{train_as} needs {description}. Choose another file, or another train_as."
            )
    report.unit = f"{shape} pairs"
    if shape == "labelled":
        rows = (_labelled(source, table, report) for source, table in enumerate(tables))
    else:
        rows = (_scored(source, table, report, score_scale) for source, table in enumerate(tables))
    return shape, chain.from_iterable(rows)


def _labelled(source: int, table: Table, report: RowReport) -> Iterator[PlacedRow]:
    for place, premise, hypothesis, label in _complete_nli_rows(table, report):
        name = known_label(place, label, report)
        if name is None:
            continue
        if NOT_A_SENTENCE in (premise, hypothesis):
            report.drop("n/a_instead_of_a_sentence", place)
        else:
            yield place, (premise, hypothesis), LABEL_IDS[name], source


def _scored(source: int, table: Table, report: RowReport, scale: tuple[float, float]) -> Iterator[PlacedRow]:
    lowest, highest = scale
    for place, (first, second, text) in _column_values(table, shape_of(table)[1], report, sentences=2):
        if not (first and second):
            report.drop("empty_sentence", place)
            continue
        try:
            score = _score(text, scale)
        except ValueError as error:
            report.bad_row("unusable_score", place, str(error))
        else:
            share = (score - lowest) / (highest - lowest) + 0.0  # there is no -0.0
            yield place, (first, second), share, source


def scored_pairs(
    table: Table, name: str, *, scale: tuple[float, float] = (0.0, 5.0), text_mode: str = "nfc"
) -> ScoredPairs:
    """Read an STS table; an evaluation set loses no row, so every defect is an error.

    Args:
        table: With two sentence columns and a score.
        name: What to call it in results, for example `korsts-dev`.
        scale: Lowest and highest allowed score.
        text_mode: `nfc` (normalised only) or `legacy_strip` (also deletes `,`, `'` and `"`, as
            SimCSE-KO does before scoring; only for comparison with its table).

    Raises:
        DataError: Wrong columns, an empty sentence, a score that is no number or off the scale.
    """
    shape, columns = shape_of(table)
    if shape != "scored":
        raise DataError(
            f"{table.name} has the columns {shortened(', '.join(table.columns))}; scored pairs need sentence1, sentence2 and "
            "score."
        )
    clean = normalize_text if text_mode == "nfc" else _strip_punctuation
    pairs = ScoredPairs(name=name, sentences1=[], sentences2=[], scores=[], scale=scale, sources=[table.source])
    whole = RowReport(every_row_counts=True)
    for where, (first, second, score) in _column_values(table, columns, whole, sentences=2, normalize=False):
        sentences = [clean(str(value or "")) for value in (first, second)]
        if not all(sentences):
            raise DataError(f"{where}: an empty sentence. An evaluation set is not shortened; mend the file.")
        pairs.sentences1.append(sentences[0])
        pairs.sentences2.append(sentences[1])
        try:
            pairs.scores.append(_score(score, scale))
        except ValueError as error:
            raise DataError(f"{where}: {error}") from None
    if len(pairs) < 2:
        raise DataError(f"{table.name} holds {len(pairs)} scored pairs; a correlation needs at least 2.")
    return pairs


def _column_values(
    table: Table,
    columns: Sequence[str],
    report: RowReport,
    *,
    sentences: int | None = None,
    normalize: bool = True,
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Place and values of these columns; a row with a value that is no text is reported.

    Args:
        table: Its rows are taken one by one.
        columns: To be read; what stands in others does not matter.
        report: Of bad rows.
        sentences: How many of the columns, from the first, hold sentences; default: all. What others (a label, a
            score) hold is for the caller to judge.
        normalize: All values as normalised text; else only what is missing is made None.
    """
    positions = [table.columns.index(column) for column in columns]
    sentences = len(columns) if sentences is None else sentences
    for where, fields in table.rows:
        values = [fields[position] for position in positions]
        for position, value in enumerate(values):
            if isinstance(value, str):
                if value.isascii() or (half := half_a_character(value)) is None:
                    continue
                value = UnusableValue(f"holds half a character ({half}), which no text can hold")
            if isinstance(value, UnusableValue):
                if value is MISSING and not report.every_row_counts:
                    values[position] = None
                    continue
                report.bad_row("unusable_value", where, f"{shortened(columns[position])} {value.problem}.")
                break
            if position < sentences and (isinstance(value, bool) or not isinstance(value, _WRITTEN_AS_TEXT)):
                column, kind = shortened(columns[position]), type(value).__name__
                report.bad_row("not_a_text", where, f"{column} holds a {kind}, not a text. Write the column as text.")
                break
            if value != value:  # what writers of JSON and Parquet make of a cell that is empty
                values[position] = None
        else:
            if normalize:
                values = [normalize_text("" if value is None else str(value)) for value in values]
            yield where, tuple(values)


def _complete_nli_rows(table: Table, report: RowReport) -> Iterator[tuple[str, str, str, str]]:
    for where, row in _column_values(table, shape_of(table)[1], report, sentences=2):
        if row[0] and row[1]:
            yield where, *row
        else:
            report.drop("empty_sentence", where)


def _sentences(source: int, table: Table, report: RowReport, as_sentences: bool) -> Iterator[PlacedRow]:
    shape, columns = shape_of(table, as_sentences=as_sentences)
    if as_sentences and shape in ("nli", "scored"):
        columns = columns[:2]
    for where, values in _column_values(table, columns, report):
        for value in values:
            yield where, (value,), None, source


def _complete(rows: Iterator[PlacedRow], report: RowReport, held_out: HeldOutSentences | None) -> Iterator[PlacedRow]:
    number = None
    for row in rows:
        place, views, _, _ = row
        if not all(views):
            report.drop("empty_sentence", place)
            continue
        if len(views) != (number := number or len(views)):
            raise DataError(
                "the training files have different numbers of negatives; make them equal, or train separately."
            )
        if held_out is not None and any(sentence in held_out for sentence in views):
            report.drop("in_evaluation_set", place or repr(views[0][:40]))  # a triplet has no place of its own
            continue
        yield row


def _strip_punctuation(text: str) -> str:
    return normalize_text(text.translate(str.maketrans("", "", ",'\"")))


def _score(value, scale: tuple[float, float]) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, (str, *_WRITTEN_AS_TEXT)):  # float() takes bytes, too
            raise TypeError
        score = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"the score is {shortened(repr(value))}, which is not a number.") from None
    if not (math.isfinite(score) and scale[0] <= score <= scale[1]):
        raise ValueError(f"the score {score} is outside the scale {scale[0]} to {scale[1]}.")
    return score
