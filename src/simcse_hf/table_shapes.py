"""What a table is.

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

from collections.abc import Mapping, Sequence
from typing import Literal

from .errors import DataError, shortened
from .tables import Table, numbered

TableShape = Literal["nli", "scored", "triplets", "pairs", "sentences"]

NAME_OF_SHAPE: dict[TableShape, str] = {
    "nli": "NLI rows",
    "scored": "scored pairs",
    "triplets": "triplets",
    "pairs": "pairs",
    "sentences": "sentences",
}
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


def shape_of(table: Table, *, as_sentences: bool = False) -> tuple[TableShape, list[str]]:
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
            named = f"{stem}, {stem}_2, ... beside {option[0]}" if stem else "negative, ... beside anchor and positive"
            raise DataError(
                f"{table.name} has the column {shortened(repr(ignored[0]))} beside {option[0]} and {option[1]}, and it would be "
                f"ignored. Name hard negatives {named}; remove rows that are not positives, and then other columns."
            )
        return "triplets" if negatives else "pairs", [*(known[name] for name in option), *negatives]
    if name := next((name for name in _SENTENCE_COLUMNS if name in known), None):
        return "sentences", [known[name]]
    if len(table.columns) == 1:
        return "sentences", list(table.columns)
    raise DataError(
        f"{table.name} has the columns {shortened(', '.join(map(repr, table.columns)))}, which fit no known shape. Name them "
        "anchor, positive, negative (triplets), anchor, positive (pairs), premise, hypothesis, label (NLI), sentence1, "
        "sentence2, score (scored pairs) or text (sentences). For a file without a header line, set column_names."
    )


def first_of(names: Sequence[str]) -> str:
    """For a message about any number of files: the first, and how many more there are."""
    return names[0] + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")


def one_of_each(kind_of: Mapping[str, object]) -> str:
    """For a message about files of different kinds: of each kind a file, and how many more there are.

    >>> one_of_each({"a.tsv": "pairs", "b.tsv": "triplets", "c.tsv": "pairs"})
    'a.tsv and 1 more: pairs; b.tsv: triplets'
    """
    names_of: dict[object, list[str]] = {}
    for name, kind in kind_of.items():
        names_of.setdefault(kind, []).append(name)
    return shortened("; ".join(f"{first_of(names)}: {kind}" for kind, names in names_of.items()), 1000)
