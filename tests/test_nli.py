"""NLI rows to triplets: both rules, against an independent twin and the real files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse_hf.corpora import TrainingViews, training_views
from simcse_hf.errors import DataError
from simcse_hf.nli import NLIRow, Triplet, build_triplets
from simcse_hf.row_report import RowReport
from simcse_hf.tables import read_table

LABELS = {"e": "entailment", "n": "neutral", "c": "contradiction"}


def nli_rows(*rows: str) -> list[NLIRow]:
    """`"P e1 e"`: premise P, hypothesis e1, entailment."""
    split = [row.split() for row in rows]
    return [
        (f"line {number}", premise, hypothesis, LABELS.get(label, label))
        for number, (premise, hypothesis, label) in enumerate(split, start=2)
    ]


def last_wins_twin(rows: Sequence[NLIRow]) -> list[Triplet]:
    """Looks through all rows again for every premise, from the end."""
    premises = []
    for _, premise, _, label in rows:
        if label == "entailment" and premise not in premises:
            premises.append(premise)
    triplets = []
    for premise in premises:
        last = {}
        for _, other, hypothesis, label in reversed(rows):
            if other == premise and label not in last:
                last[label] = hypothesis
        if "contradiction" in last:
            triplet = (premise, last["entailment"], last["contradiction"])
            if "n/a" not in triplet:
                triplets.append(triplet)
    return triplets


def all_twin(rows: Sequence[NLIRow]) -> set[Triplet]:
    """Every pair of rows."""
    return {
        (premise, positive, negative)
        for _, premise, positive, label in rows
        for _, other, negative, other_label in rows
        if (label, other_label) == ("entailment", "contradiction") and premise == other
        if "n/a" not in (premise, positive, negative)
    }


def test_the_last_hypothesis_of_each_kind_counts() -> None:
    rows = nli_rows("P e1 e", "P c1 c", "Q e3 e", "P e2 e", "P n1 n", "Q c3 c", "P c2 c")
    assert build_triplets(rows, "last_wins", RowReport()) == [("P", "e2", "c2"), ("Q", "e3", "c3")]


def test_premises_keep_the_order_of_their_first_entailment() -> None:
    rows = nli_rows("P c1 c", "Q e2 e", "P e1 e", "Q c2 c", "Q e3 e")
    assert [triplet[0] for triplet in build_triplets(rows, "last_wins", RowReport())] == ["Q", "P"]


def test_a_hypothesis_that_comes_again_is_the_last() -> None:
    rows = nli_rows("P e1 e", "P e2 e", "P e1 e", "P c1 c")
    assert build_triplets(rows, "last_wins", RowReport()) == [("P", "e1", "c1")]


def test_all_combines_every_entailed_with_every_contradicting_hypothesis_once() -> None:
    rows = nli_rows("P e1 e", "P e2 e", "P e1 e", "P c1 c", "P c2 c", "P n1 n")
    report = RowReport()
    found = build_triplets(rows, "all", report)
    assert report.dropped == {"repeated_hypothesis": 1, "neutral_hypothesis": 1}
    assert sorted(found) == [("P", e, c) for e in ("e1", "e2") for c in ("c1", "c2")]


def test_premises_without_both_kinds_are_counted_by_what_they_lack() -> None:
    report = RowReport()
    rows = nli_rows("P e1 e", "Q c1 c", "R n1 n", "S e1 e", "S n1 n", "T e1 e", "T c1 c")
    assert build_triplets(rows, "last_wins", report) == [("T", "e1", "c1")]
    assert report.dropped == {
        "premise_without_contradiction": 2,
        "premise_without_entailment": 1,
        "neutral_hypothesis": 2,
    }
    assert report.examples["premise_without_entailment"] == "'Q'"


def test_a_triplet_with_not_available_is_dropped_and_counted() -> None:
    """The last hypothesis counts even so: an earlier one does not step in."""
    rows = nli_rows("P e1 e", "P c1 c", "P n/a c", "Q n/a e", "Q c1 c", "n/a e1 e", "n/a c1 c", "R e1 e", "R c1 c")
    report = RowReport()
    assert build_triplets(rows, "last_wins", report) == [("R", "e1", "c1")]
    assert report.dropped == {"n/a_instead_of_a_sentence": 3, "hypothesis_replaced_by_a_later_one": 1}
    report = RowReport()
    assert build_triplets(rows, "all", report) == [("P", "e1", "c1"), ("R", "e1", "c1")]
    assert report.dropped == {"n/a_instead_of_a_sentence": 3}


def test_not_available_within_a_sentence_is_text() -> None:
    rows = [("", "P", "n/a 라고 썼다", "entailment"), ("", "P", "N/A", "contradiction")]
    assert build_triplets(rows, "last_wins", RowReport()) == [("P", "n/a 라고 썼다", "N/A")]


def test_labels_may_differ_in_case_and_space() -> None:
    rows = [("", "P", "e", " Entailment"), ("", "P", "c", "CONTRADICTION ")]
    assert build_triplets(rows, "last_wins", RowReport()) == [("P", "e", "c")]


@pytest.mark.parametrize("label", ["-", "", "0", "entail"])
def test_another_label_is_an_error_that_names_the_row(label: str) -> None:
    rows = [*nli_rows("P e1 e"), ("kornli.tsv, line 3", "P", "c1", label)]
    with pytest.raises(DataError, match=rf"kornli\.tsv, line 3: the label is '{label}', not entailment, neutral or"):
        build_triplets(rows, "last_wins", RowReport())


def test_rows_with_another_label_can_be_skipped() -> None:
    report = RowReport(on_bad_row="skip")
    assert build_triplets(nli_rows("P e1 e", "P x ?", "P c1 c"), "last_wins", report) == [("P", "e1", "c1")]
    assert report.dropped == {"unknown_label": 1}
    assert report.examples == {"unknown_label": "line 3"}


def test_no_rows_give_no_triplets() -> None:
    assert build_triplets([], "all", RowReport()) == []


# Few premises and hypotheses, so that repetitions and every kind of gap occur.
open_ended_rows = st.lists(
    st.tuples(
        st.just("place"),
        st.sampled_from(["P", "Q", "R", "n/a"]),
        st.sampled_from(["1", "2", "3", "n/a"]),
        st.sampled_from(list(LABELS.values())),
    ),
    max_size=25,
)


@settings(max_examples=200, deadline=None)
@given(open_ended_rows)
def test_last_wins_is_what_the_twin_finds(rows: list[NLIRow]) -> None:
    assert build_triplets(rows, "last_wins", RowReport()) == last_wins_twin(rows)


@settings(max_examples=200, deadline=None)
@given(open_ended_rows)
def test_all_is_what_the_twin_finds_each_once_and_premises_together(rows: list[NLIRow]) -> None:
    found = build_triplets(rows, "all", RowReport())
    assert len(found) == len(set(found))
    assert set(found) == all_twin(rows)
    premises = [premise for index, (premise, *_) in enumerate(found) if index == 0 or premise != found[index - 1][0]]
    assert len(premises) == len(set(premises))


@settings(max_examples=200, deadline=None)
@given(open_ended_rows, st.sampled_from(["last_wins", "all"]))
def test_every_premise_with_a_label_that_matters_is_kept_or_counted(rows: list[NLIRow], rule: str) -> None:
    report = RowReport()
    triplets = build_triplets(rows, rule, report)
    premises = {premise for _, premise, _, label in rows if label != "neutral"}
    with_both = {premise for premise, *_ in triplets}
    lacking = report.dropped["premise_without_contradiction"] + report.dropped["premise_without_entailment"]
    assert len(with_both) + lacking <= len(premises)
    assert len(with_both) + lacking + report.dropped["n/a_instead_of_a_sentence"] >= len(premises)


def real_triplets(data_dir: Path, names: Sequence[str], rule: str) -> TrainingViews:
    report = RowReport()
    return training_views([read_table(data_dir / name, report) for name in names], report, triplet_rule=rule)


XNLI_TEST = "KorNLUDatasets/KorNLI/xnli.test.ko.tsv"
XNLI_DEV = "KorNLUDatasets/KorNLI/xnli.dev.ko.tsv"
KLUE_DEV = "klue/klue-nli-v1.1_dev.json"


@pytest.mark.parametrize("rule", ["last_wins", "all"])
@pytest.mark.parametrize(
    ("name", "rows", "triplets"), [(XNLI_DEV, 2490, 830), (XNLI_TEST, 5010, 1670), (KLUE_DEV, 3000, 1000)]
)
def test_the_real_files_give_one_triplet_a_premise(
    data_dir: Path, name: str, rows: int, triplets: int, rule: str
) -> None:
    views = real_triplets(data_dir, [name], rule)
    assert (views.report.read, views.report.kept, len(views.rows)) == (rows, triplets, triplets)
    assert views.report.dropped == {"neutral_hypothesis": triplets}
    assert len({row[0] for row in views.rows}) == triplets


@pytest.mark.parametrize(("rule", "triplets"), [("last_wins", 3499), ("all", 3502)])
def test_premises_are_matched_across_files(data_dir: Path, rule: str, triplets: int) -> None:
    views = real_triplets(data_dir, [XNLI_TEST, XNLI_DEV, KLUE_DEV], rule)
    assert (views.report.read, views.report.kept, len(views.rows)) == (10_500, triplets, triplets)
    assert [source["rows"] for source in views.sources] == [5010, 2490, 3000]
    replaced = {"hypothesis_replaced_by_a_later_one": 2} if rule == "last_wins" else {}
    assert views.report.dropped == {"neutral_hypothesis": 3500} | replaced
