"""NLI rows -> triplets.

Two rules, both stated in the log and in the record of a run:

- `last_wins`: one triplet for each premise that has both an entailed and a contradicting
  hypothesis; where it has several, the last of the file counts. Premises keep the order of
  their first entailment. This is the published Korean recipe (SimCSE-KO): KorNLI's MNLI and
  SNLI training files, in that order, give 277,811.
- `all`: every entailed hypothesis with every contradicting one of the same premise.

Neutral hypotheses are not used. KorNLI holds rows whose hypothesis is the literal `n/a`; a
triplet with one is dropped and counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from .errors import shortened
from .row_report import RowReport

TripletRule = Literal["last_wins", "all"]

NLIRow = tuple[str, str, str, str]  # place, premise, hypothesis, label
Triplet = tuple[str, str, str]

# The ids of KoSBERT's first stage. Sources number their labels differently, so only names are read.
LABEL_IDS = {"contradiction": 0, "entailment": 1, "neutral": 2}
NOT_A_SENTENCE = "n/a"


def known_label(where: str, label: str, report: RowReport) -> str | None:
    """A key of `LABEL_IDS`; None for any other label, which is reported.

    Raises:
        DataError: Another label (`on_bad_row: error`).
    """
    name = label.strip().lower()
    if name in LABEL_IDS:
        return name
    report.bad_row(
        "unknown_label", where, f"the label is {shortened(repr(name))}, not entailment, neutral or contradiction."
    )
    return None


def build_triplets(rows: Iterable[NLIRow], rule: TripletRule, report: RowReport) -> list[Triplet]:
    """Triplets (premise, entailed, contradicting) by `rule`.

    Args:
        rows: Text is expected normalised; premises are the same when they are equal.
        rule: See the module's docstring.
        report: `rows` are taken as read; premises and triplets left out are counted here.

    Returns:
        Triplets in the order of each premise's first entailment.

    Raises:
        DataError: A label other than entailment, neutral or contradiction (`on_bad_row: error`).

    >>> rows = [("", "비가 온다.", "날씨가 궂다.", "entailment"), ("", "비가 온다.", "맑다.", "contradiction")]
    >>> build_triplets(rows, "last_wins", RowReport())
    [('비가 온다.', '날씨가 궂다.', '맑다.')]
    """
    entailed: dict[str, dict[str, None]] = {}
    contradicting: dict[str, dict[str, None]] = {}
    for where, premise, hypothesis, label in rows:
        label = known_label(where, label, report)
        if label is None:
            continue
        if label == "neutral":
            report.drop("neutral_hypothesis", where)
        else:
            hypotheses = (entailed if label == "entailment" else contradicting).setdefault(premise, {})
            if hypotheses and rule == "last_wins":
                report.drop("hypothesis_replaced_by_a_later_one", where)
                hypotheses.clear()
            elif hypothesis in hypotheses:
                report.drop("repeated_hypothesis", where)
            hypotheses[hypothesis] = None
    triplets = []
    for premise, positives in entailed.items():
        negatives = contradicting.get(premise)
        if not negatives:
            report.drop("premise_without_contradiction", repr(premise[:40]))
            continue
        for positive in positives:
            for negative in negatives:
                if NOT_A_SENTENCE in (premise, positive, negative):
                    report.drop("n/a_instead_of_a_sentence", repr(premise[:40]))
                else:
                    triplets.append((premise, positive, negative))
    for premise in contradicting:
        if premise not in entailed:
            report.drop("premise_without_entailment", repr(premise[:40]))
    return triplets
