"""Training views and scored pairs from tables.

Columns are found by name, never by position; what a table is follows from its columns:

| shape        | columns                                                                       |
|--------------|-------------------------------------------------------------------------------|
| NLI rows     | `sentence1/sentence2`, or `premise/hypothesis`, with `gold_label` or `label`  |
| scored pairs | `sentence1/sentence2/score`, `sentence1/sentence2/labels.label`                |
| triplets     | `anchor/positive/negative...`, `sent0/sent1/hard_neg...`                      |
| pairs        | `anchor/positive`, `sent0/sent1`, `sentence1/sentence2`, `question1/question2` |
| sentences    | `text` or `sentence`, or a table of one column                                |
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

from .errors import DataError
from .nli import TripletRule, build_triplets
from .row_report import RowReport
from .tables import Table, numbered
from .text import normalize_text

Shape = Literal["nli", "scored", "triplets", "pairs", "sentences"]
PlacedViews = tuple[str, tuple[str, ...]]  # place for messages, one sentence a view

_NLI_COLUMNS = [
    ("sentence1", "sentence2", "gold_label"),
    ("sentence1", "sentence2", "label"),
    ("premise", "hypothesis", "gold_label"),
    ("premise", "hypothesis", "label"),
]
_SCORED_COLUMNS = [("sentence1", "sentence2", "score"), ("sentence1", "sentence2", "labels.label")]
_PAIR_COLUMNS = [("anchor", "positive"), ("sent0", "sent1"), ("sentence1", "sentence2"), ("question1", "question2")]
_NEGATIVE_STEMS = {("anchor", "positive"): "negative", ("sent0", "sent1"): "hard_neg"}
# A column like these beside two texts says something about them that training on bare pairs would ignore.
_TELLING_COLUMNS = {"label", "gold_label", "score", "is_duplicate", "labels.label"}
_SENTENCE_COLUMNS = ("text", "sentence")


@dataclass(frozen=True, kw_only=True)
class TrainingViews:
    """Rows for a contrastive loss: anchor, positive, hard negatives.

    Attributes:
        rows: Normalised sentences, in memory or decoded from disk when asked for; all rows have
            the same number of views. Unlabelled sentences appear as rows of one; the second view
            is the same sentence again.
        shape: What the source tables were.
        sources: One entry for each file: path, sha256, rows.
    """

    rows: Sequence[tuple[str, ...]]
    shape: Shape
    sources: list[dict]
    report: RowReport

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
    as_sentences: bool = False,
    deduplicate: bool = True,
) -> TrainingViews:
    """Read tables of one shape into rows of views, held in memory.

    `training_corpus` gives the same rows from disk, for corpora of any size.

    Args:
        tables: All of the same shape; NLI premises are matched across them.
        report: Counts rows kept and dropped; the same that the tables were opened with.
        triplet_rule: See `nli`.
        as_sentences: Take every sentence of every text column as unlabelled.
        deduplicate: Drop rows equal to an earlier row.

    Raises:
        DataError: Unusable or differing columns, or no row left.
    """
    shape, rows = complete_rows(tables, report, triplet_rule=triplet_rule, as_sentences=as_sentences)
    kept, seen = [], set()
    for where, row in rows:
        if deduplicate and row in seen:
            report.drop("duplicate", where)
        else:
            kept.append(row)
            seen.add(row)
    report.kept = len(kept)
    check_some_are_left(tables, report)
    return TrainingViews(rows=kept, shape=shape, sources=[table.source for table in tables], report=report)


def check_some_are_left(tables: Sequence[Table], report: RowReport) -> None:
    """Refuse an empty corpus.

    Raises:
        DataError: No row was kept.
    """
    if not report.kept:
        raise DataError(f"no training rows are left of {', '.join(table.name for table in tables)}.\n{report}")


def complete_rows(
    tables: Sequence[Table],
    report: RowReport,
    *,
    triplet_rule: TripletRule = "last_wins",
    as_sentences: bool = False,
) -> tuple[Shape, Iterator[PlacedViews]]:
    """The shape of the tables, and their rows one by one: normalised, none empty, repeated ones included.

    Args:
        tables: All of the same shape; NLI rows alone are held in memory, to match their premises.
        report: Counts rows dropped.
        triplet_rule: See `nli`.
        as_sentences: Take every sentence of every text column as unlabelled.

    Raises:
        DataError: Unusable or differing columns; while iterating, a malformed row.
    """
    shapes = {table.name: "sentences" if as_sentences else shape_of(table)[0] for table in tables}
    if len(set(shapes.values())) > 1:
        listed = "; ".join(f"{name}: {shape}" for name, shape in shapes.items())
        raise DataError(f"the training files are of different shapes ({listed}). Train on one shape at a time.")
    shape: Shape = next(iter(shapes.values()))
    if shape == "scored":
        raise DataError(
            f"{tables[0].name} holds scored pairs; a contrastive loss needs positives, not scores. To use its "
            "sentences for unsupervised training, set train_as to sentences."
        )
    if shape == "nli":
        report.unit = "triplets"
        rows: Iterator[PlacedViews] = (
            ("", triplet) for triplet in build_triplets(_complete_nli_rows(tables, report), triplet_rule, report)
        )
    elif shape == "sentences":
        report.unit = "sentences"
        rows = chain.from_iterable(_sentences(table, as_sentences) for table in tables)
    else:
        rows = chain.from_iterable(_column_values(table, shape_of(table)[1]) for table in tables)
    return shape, _complete(rows, report)


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
            f"{table.name} has the columns {', '.join(table.columns)}; scored pairs need sentence1, sentence2 and "
            "score."
        )
    clean = normalize_text if text_mode == "nfc" else _strip_punctuation
    pairs = ScoredPairs(name=name, sentences1=[], sentences2=[], scores=[], scale=scale, sources=[table.source])
    for where, (first, second, score) in _column_values(table, columns, normalize=False):
        sentences = [clean(str(value or "")) for value in (first, second)]
        if not all(sentences):
            raise DataError(f"{where}: an empty sentence. An evaluation set is not shortened; mend the file.")
        pairs.sentences1.append(sentences[0])
        pairs.sentences2.append(sentences[1])
        pairs.scores.append(_score(where, score, scale))
    if len(pairs) < 2:
        raise DataError(f"{table.name} holds {len(pairs)} scored pairs; a correlation needs at least 2.")
    return pairs


def shape_of(table: Table, *, as_sentences: bool = False) -> tuple[Shape, list[str]]:
    """What a table is, and the columns that make it so, in the order of the views.

    Args:
        table: Not read any further.
        as_sentences: Labels do not matter, because the sentences are used one by one.

    Raises:
        DataError: No known combination of column names, or a telling column that pairs would ignore.
    """
    known = {column.lower(): column for column in table.columns}

    def find(options: Sequence[tuple[str, ...]]) -> tuple[str, ...] | None:
        return next((option for option in options if set(option) <= known.keys()), None)

    if option := find(_NLI_COLUMNS):
        return "nli", [known[name] for name in option]
    if option := find(_SCORED_COLUMNS):
        return "scored", [known[name] for name in option]
    if option := find(_PAIR_COLUMNS):
        stem = _NEGATIVE_STEMS.get(option)
        negatives = numbered(table.columns, stem) if stem else []
        ignored = [
            column
            for name, column in known.items()
            if (name in _TELLING_COLUMNS or "neg" in name) and column not in negatives
        ]
        if ignored and not as_sentences:
            raise DataError(
                f"{table.name} has the column {ignored[0]!r} beside {option[0]} and {option[1]}, and it would be ignored. Name "
                f"hard negatives {stem or 'negative'}, {stem or 'negative'}_2, ... beside {option[0]}; remove other columns, and "
                "rows that are not positives."
            )
        return "triplets" if negatives else "pairs", [*(known[name] for name in option), *negatives]
    if name := next((name for name in _SENTENCE_COLUMNS if name in known), None):
        return "sentences", [known[name]]
    if len(table.columns) == 1:
        return "sentences", list(table.columns)
    raise DataError(
        f"{table.name} has the columns {', '.join(map(repr, table.columns))}, which fit no known shape. Name them "
        "anchor, positive, negative (triplets), anchor, positive (pairs), premise, hypothesis, label (NLI), sentence1, "
        "sentence2, score (scored pairs) or text (sentences). For a file without a header line, set column_names."
    )


def _column_values(table: Table, columns: Sequence[str], *, normalize: bool = True) -> Iterator[PlacedViews]:
    positions = [table.columns.index(column) for column in columns]
    for where, fields in table.rows:
        values = [fields[position] for position in positions]
        for column, value in zip(columns, values, strict=True):
            if isinstance(value, (list, dict)):
                raise DataError(f"{where}: {column} holds a {type(value).__name__}, not a text.")
        if normalize:
            values = [normalize_text("" if value is None else str(value)) for value in values]
        yield where, tuple(values)


def _complete_nli_rows(tables: Sequence[Table], report: RowReport) -> Iterator[tuple[str, str, str, str]]:
    for table in tables:
        for where, row in _column_values(table, shape_of(table)[1]):
            if row[0] and row[1]:
                yield where, *row
            else:
                report.drop("empty_sentence", where)


def _sentences(table: Table, as_sentences: bool) -> Iterator[PlacedViews]:
    shape, columns = shape_of(table, as_sentences=as_sentences)
    if as_sentences and shape in ("nli", "scored"):
        columns = columns[:2]
    for where, values in _column_values(table, columns):
        for value in values:
            yield where, (value,)


def _complete(rows: Iterator[PlacedViews], report: RowReport) -> Iterator[PlacedViews]:
    views = None
    for where, row in rows:
        if not all(row):
            report.drop("empty_sentence", where)
            continue
        if len(row) != (views := views or len(row)):
            raise DataError(
                "the training files have different numbers of negatives; make them equal, or train separately."
            )
        yield where, row


def _strip_punctuation(text: str) -> str:
    return normalize_text(text.translate(str.maketrans("", "", ",'\"")))


def _score(where: str, value, scale: tuple[float, float]) -> float:
    try:
        score = float(value)
    except (TypeError, ValueError):
        raise DataError(f"{where}: the score is {value!r}, which is not a number.") from None
    if not (math.isfinite(score) and scale[0] <= score <= scale[1]):
        raise DataError(f"{where}: the score {score} is outside the scale {scale[0]} to {scale[1]}.")
    return score
