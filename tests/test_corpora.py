"""Tables to training views and scored pairs: by column name, normalised, every lost row counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse_hf.corpora import LABEL_IDS, ScoredPairs, scored_pairs, shape_of, training_views
from simcse_hf.errors import DataError
from simcse_hf.leakage import HeldOutSentences
from simcse_hf.row_report import RowReport
from simcse_hf.table_shapes import one_of_each
from simcse_hf.tables import Table, read_hub_table, read_table
from simcse_hf.text import normalize_text

DECOMPOSED = "\u1112\u1161\u11ab\u1100\u1173\u11af"


def table(columns: str | Sequence[str], *rows: Sequence, name: str = "a.tsv") -> Table:
    columns = columns.split() if isinstance(columns, str) else list(columns)
    assert all(len(row) == len(columns) for row in rows)
    places = ((f"{name}, line {number}", row) for number, row in enumerate(rows, start=2))
    return Table(name=name, columns=columns, rows=places, source={"path": name})


@pytest.mark.parametrize(
    ("columns", "ignored"),
    [
        ("sent0 sent1 negative", "negative"),
        ("sent0 sent1 hard_neg Hard_Negative", "Hard_Negative"),
        ("question1 question2 is_duplicate", "is_duplicate"),
        ("anchor positive score", "score"),
    ],
)
def test_a_column_that_says_something_about_the_pairs_is_not_ignored(columns: str, ignored: str) -> None:
    """Else rows that are no duplicates would be trained as positives, and hard negatives would vanish."""
    row = ["가", "나", *("다" for _ in columns.split()[2:])]
    with pytest.raises(DataError, match=f"a.tsv has the column '{ignored}' beside .* and it would be ignored"):
        training_views([table(columns, row)], RowReport())
    views = training_views([table(columns, row)], RowReport(), train_as="sentences")
    assert views.rows[:2] == [("가",), ("나",)]


def test_a_list_is_not_a_text() -> None:
    with pytest.raises(DataError, match="line 2: negative holds a list, not a text"):
        training_views([table("anchor positive negative", ["가", "나", ["다", "라"]])], RowReport())


@pytest.mark.parametrize("value", [b"\xea\xb0\x80", True, ["가"]])
def test_what_is_no_text_is_an_error_with_a_cure_or_counted(value) -> None:
    rows = [("가", "나"), ("다", value)]
    with pytest.raises(DataError, match=r"line 3: positive holds a \w+, not a text\. Write .* set on_bad_row to skip"):
        training_views([table("anchor positive", *rows)], RowReport())
    report = RowReport(on_bad_row="skip")
    assert training_views([table("anchor positive", *rows)], report).rows == [("가", "나")]
    assert report.as_dict()["dropped"] == {"not_a_text": 1} and report.examples == {"not_a_text": "a.tsv, line 3"}


@pytest.mark.parametrize("value", [b"5", True, ["5"]])
def test_a_score_or_label_that_is_no_text_is_judged_as_what_it_is(value) -> None:
    rows = [("가", "나", 1), ("가", "다", value)]
    with pytest.raises(DataError, match="line 3: the score is .*, which is not a number.*on_bad_row"):
        training_views([table("sentence1 sentence2 score", *rows)], RowReport(), train_as="scores")
    report = RowReport(on_bad_row="skip")
    assert training_views([table("sentence1 sentence2 score", *rows)], report, train_as="scores").values == [0.2]
    assert dict(report.dropped) == {"unusable_score": 1}
    with pytest.raises(DataError, match=r"line 3: the score is .*, which is not a number") as caught:
        scored_pairs(sts(*rows), "set")
    assert repr(value) in str(caught.value)
    report = RowReport(on_bad_row="skip")
    rows = [("가", "나", "neutral"), ("가", "다", value)]
    assert training_views([table("premise hypothesis label", *rows)], report, train_as="labels").values == [2]
    assert dict(report.dropped) == {"unknown_label": 1}


def test_an_evaluation_set_with_what_is_no_text_is_refused_with_a_cure() -> None:
    with pytest.raises(DataError, match=r"line 2: sentence2 holds a bytes, not a text\. Write .*Mend the row\.$"):
        scored_pairs(sts(("가", b"x", 1), ("가", "나", 2)), "set")


@pytest.mark.parametrize(
    ("columns", "shape", "views"),
    [
        ("sentence1 sentence2 gold_label", "nli", "sentence1 sentence2 gold_label"),
        ("premise hypothesis label", "nli", "premise hypothesis label"),
        ("guid source premise hypothesis gold_label author label2", "nli", "premise hypothesis gold_label"),
        ("label hypothesis premise", "nli", "premise hypothesis label"),
        ("genre filename year id score sentence1 sentence2", "scored", "sentence1 sentence2 score"),
        ("guid sentence1 sentence2 labels.label labels.real-label", "scored", "sentence1 sentence2 labels.label"),
        ("anchor positive negative", "triplets", "anchor positive negative"),
        ("negative_2 positive anchor negative_1", "triplets", "anchor positive negative_1 negative_2"),
        ("sent0 sent1 hard_neg", "triplets", "sent0 sent1 hard_neg"),
        ("sent0 sent1 hard_neg hard_neg2", "triplets", "sent0 sent1 hard_neg hard_neg2"),
        ("sentence1 sentence2 label", "nli", "sentence1 sentence2 label"),
        ("anchor positive", "pairs", "anchor positive"),
        ("id sentence1 sentence2", "pairs", "sentence1 sentence2"),
        ("id text", "sentences", "text"),
        ("id sentence", "sentences", "sentence"),
        ("본문", "sentences", "본문"),
        ("Sentence1 SENTENCE2 Score", "scored", "Sentence1 SENTENCE2 Score"),
    ],
)
def test_the_shape_follows_from_the_column_names(columns: str, shape: str, views: str) -> None:
    assert shape_of(table(columns)) == (shape, views.split())


@pytest.mark.parametrize("columns", ["a b", "premise label", "anchor negative", "sentence1 score", ""])
def test_unknown_columns_are_listed_with_the_known_shapes(columns: str) -> None:
    listed = ", ".join(map(repr, columns.split()))
    with pytest.raises(DataError, match=rf"a\.tsv has the columns {listed}, which fit no known.*set column_names"):
        shape_of(table(columns))


def test_views_are_normalised_and_come_in_the_order_of_the_shape() -> None:
    views = training_views(
        [table("negative id positive anchor", ("셋\u00a0", 1, f" {DECOMPOSED} ", "\ufeff하나"))], RowReport()
    )
    assert views.rows == [("하나", "한글", "셋")]
    assert (views.shape, views.unsupervised) == ("triplets", False)


def test_sentences_are_rows_of_one() -> None:
    report = RowReport()
    views = training_views([table("text", ("가",), ("나",)), table("id sentence", (1, "다"), name="b.csv")], report)
    assert views.rows == [("가",), ("나",), ("다",)]
    assert (views.shape, views.unsupervised, report.kept, report.unit) == ("sentences", True, 3, "sentences")
    assert [source["path"] for source in views.sources] == ["a.tsv", "b.csv"]


def test_numbers_are_text_and_nothing_is_an_empty_sentence() -> None:
    report = RowReport()
    views = training_views([table("anchor positive", (7, 0), (None, "나"), ("가", None))], report)
    assert views.rows == [("7", "0")]
    assert report.dropped == {"empty_sentence": 2}


def test_empty_sentences_are_dropped_and_the_first_is_named() -> None:
    report = RowReport()
    training_views([table("anchor positive", ("가", "나"), ("\u200b \u00a0", "라"), ("마", ""))], report)
    assert report.dropped == {"empty_sentence": 2}
    assert report.examples == {"empty_sentence": "a.tsv, line 3"}


def test_rows_that_a_reader_cannot_tell_apart_are_kept_once_across_files() -> None:
    report = RowReport()
    tables = [
        table("text", ("한글",), (DECOMPOSED,), ("가  나",)),
        table("text", ("가\u00a0나",), ("다",), name="b.tsv"),
    ]
    views = training_views(tables, report)
    assert views.rows == [("한글",), ("가 나",), ("다",)]
    assert report.dropped == {"duplicate": 2}
    assert report.examples == {"duplicate": "a.tsv, line 3"}


def test_rows_equal_in_part_are_no_duplicates() -> None:
    rows = [("가", "나"), ("나", "가"), ("가", "다")]
    assert training_views([table("anchor positive", *rows)], RowReport()).rows == rows


def test_duplicates_can_be_kept() -> None:
    report = RowReport()
    views = training_views([table("text", ("가",), ("가",), ("",))], report, deduplicate=False)
    assert views.rows == [("가",), ("가",)]
    assert report.dropped == {"empty_sentence": 1}


def test_nli_rows_become_triplets_matched_after_normalisation_and_across_files() -> None:
    report = RowReport()
    tables = [
        table("sentence1 sentence2 gold_label", ("한글", "참", "entailment"), ("", "참", "neutral"), ("한글", "", "?")),
        table("premise hypothesis label", (f"{DECOMPOSED} ", "거짓", "contradiction"), name="b.json"),
    ]
    views = training_views(tables, report)
    assert views.rows == [("한글", "참", "거짓")]
    assert (views.shape, report.unit, report.kept) == ("nli", "triplets", 1)
    assert report.dropped == {"empty_sentence": 2}


def test_the_triplet_rule_is_the_one_asked_for() -> None:
    rows = [("P", "e1", "entailment"), ("P", "e2", "entailment"), ("P", "c", "contradiction")]
    last = training_views([table("premise hypothesis label", *rows)], RowReport())
    every = training_views([table("premise hypothesis label", *rows)], RowReport(), triplet_rule="all")
    assert last.rows == [("P", "e2", "c")]
    assert every.rows == [("P", "e1", "c"), ("P", "e2", "c")]


@pytest.mark.parametrize(
    ("columns", "row", "expected"),
    [
        ("id sentence1 sentence2 score", ("7", "가", "나", "3.0"), ["가", "나"]),
        ("premise hypothesis label", ("가", "나", "neutral"), ["가", "나"]),
        ("anchor positive negative", ("가", "나", "다"), ["가", "나", "다"]),
        ("id text", ("7", "가"), ["가"]),
    ],
)
def test_any_shape_can_be_read_as_its_sentences(columns: str, row: tuple, expected: list[str]) -> None:
    views = training_views([table(columns, row)], RowReport(), train_as="sentences")
    assert views.rows == [(sentence,) for sentence in expected]
    assert views.unsupervised


def test_files_of_different_shapes_are_one_corpus_as_sentences() -> None:
    tables = [table("text", ("가",)), table("anchor positive", ("나", "가"), name="b.tsv")]
    assert training_views(tables, RowReport(), train_as="sentences").rows == [("가",), ("나",)]


def test_files_of_different_shapes_are_refused_by_name() -> None:
    tables = [table("text", ("가",)), table("anchor positive", ("나", "다"), name="b.tsv")]
    with pytest.raises(DataError, match=r"different shapes \(a\.tsv: sentences; b\.tsv: pairs\)\. Train on one shape"):
        training_views(tables, RowReport())


def test_thousands_of_files_are_refused_in_a_few_words() -> None:
    """One of each kind, and how many more there are."""
    kinds = ("text", "anchor positive", "sentence1 sentence2 score")
    tables = [table(kinds[n % 3], name=f"folder/{n:04}.tsv") for n in range(3000)]
    expected = (
        r"different shapes \(folder/0000\.tsv and 999 more: sentences; folder/0001\.tsv and 999 more: pairs; "
        r"folder/0002\.tsv and 999 more: scored pairs\)"
    )
    with pytest.raises(DataError, match=expected):
        training_views(tables, RowReport())
    with pytest.raises(DataError, match=r"no training rows are left of folder/0000\.tsv and 999 more\.\n") as caught:
        training_views(tables[::3], RowReport())
    assert len(str(caught.value)) < 200
    negatives = {f"{n}.tsv": n for n in range(3000)}
    assert len(one_of_each(negatives)) <= 1010


def test_the_cure_for_a_column_beside_pairs_is_one() -> None:
    """Hard negatives are found beside anchor and sent0 alone."""
    for columns, cure in (
        (
            "question1 question2 is_duplicate",
            r"negative, \.\.\. beside anchor and positive; remove rows that are not pos",
        ),
        ("sent0 sent1 negative", r"hard_neg, hard_neg_2, \.\.\. beside sent0"),
    ):
        with pytest.raises(DataError, match=rf"Name hard negatives {cure}"):
            training_views([table(columns)], RowReport())


def test_scored_pairs_are_no_training_data_but_their_sentences_are() -> None:
    with pytest.raises(
        DataError, match=r"a\.tsv holds scored pairs; .*set train_as to scores; .*set train_as to sentences"
    ):
        training_views([table("sentence1 sentence2 score", ("가", "나", "1"))], RowReport())


def test_files_with_different_numbers_of_negatives_are_refused() -> None:
    tables = [
        table("anchor positive negative", ("가", "나", "다")),
        table("anchor positive negative1 negative2", ("라", "마", "바", "사"), name="b.tsv"),
    ]
    with pytest.raises(DataError, match="different numbers of negatives; make them equal, or train separately"):
        training_views(tables, RowReport())


def test_nothing_left_is_an_error_that_says_why() -> None:
    with pytest.raises(
        DataError, match=r"no training rows are left of a\.tsv\.\n0 rows read(.|\n)*2 dropped: empty sentence"
    ):
        training_views([table("text", ("",), ("\u00a0",))], RowReport())


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["가", "나", " 가", "", "\u00a0", DECOMPOSED, "한글"]), min_size=2, max_size=2))
)
def test_every_row_is_kept_or_counted(rows: list[list[str]]) -> None:
    report = RowReport()
    usable = any(all(map(normalize_text, row)) for row in rows)
    if not usable:
        with pytest.raises(DataError, match="no training rows are left"):
            training_views([table("anchor positive", *rows)], report)
        return
    views = training_views([table("anchor positive", *rows)], report)
    assert report.kept == len(views.rows) == len(set(views.rows))
    assert report.kept + report.dropped.total() == len(rows)
    assert {tuple(map(normalize_text, row)) for row in rows if all(map(normalize_text, row))} == set(views.rows)


def sts(*rows: Sequence, columns: str = "sentence1 sentence2 score") -> Table:
    return table(columns, *rows, name="sts.tsv")


def test_scored_pairs_are_normalised_floats_with_repeated_rows_kept() -> None:
    pairs = scored_pairs(sts((f"{DECOMPOSED} ", "나", "3.500"), ("한글", "나", 3.5), ("가, '나'", '"다"', "0")), "mine")
    assert pairs.sentences1 == ["한글", "한글", "가, '나'"]
    assert pairs.sentences2 == ["나", "나", '"다"']
    assert pairs.scores == [3.5, 3.5, 0.0]
    assert (pairs.name, pairs.scale, len(pairs), pairs.sources) == ("mine", (0.0, 5.0), 3, [{"path": "sts.tsv"}])


def test_the_klue_score_is_the_label_not_the_real_label() -> None:
    columns = "guid sentence1 sentence2 labels.label labels.real-label labels.binary-label"
    rows = [("0", "가", "나", 3.7, 3.714285, 1), ("1", "다", "라", 0.0, 0.0, 0)]
    assert scored_pairs(sts(*rows, columns=columns), "klue").scores == [3.7, 0.0]


def test_the_legacy_text_mode_deletes_commas_and_quotation_marks() -> None:
    rows = [("가, '나'", '"다" , 라', "1"), ("마", "바", "2")]
    pairs = scored_pairs(sts(*rows), "korsts", text_mode="legacy_strip")
    assert (pairs.sentences1, pairs.sentences2) == (["가 나", "마"], ["다 라", "바"])


@pytest.mark.parametrize("columns", ["sentence1 sentence2 gold_label", "anchor positive", "text"])
def test_a_table_without_scores_is_refused_with_its_columns(columns: str) -> None:
    listed = ", ".join(columns.split())
    with pytest.raises(DataError, match=rf"sts\.tsv has the columns {listed}; scored pairs need sentence1"):
        scored_pairs(sts(columns=columns), "mine")


@pytest.mark.parametrize("row", [("", "나", "1"), ("가", "\u00a0", "1"), (None, "나", "1")])
def test_an_empty_sentence_in_an_evaluation_set_is_an_error(row: tuple) -> None:
    with pytest.raises(DataError, match=r"sts\.tsv, line 3: an empty sentence\. An evaluation set is not shortened"):
        scored_pairs(sts(("가", "나", "1"), row), "mine")


def test_a_sentence_of_nothing_but_quotation_marks_is_empty_in_the_legacy_mode_alone() -> None:
    rows = [("가", '","', "1"), ("다", "라", "2")]
    assert len(scored_pairs(sts(*rows), "mine")) == 2
    with pytest.raises(DataError, match="line 2: an empty sentence"):
        scored_pairs(sts(*rows), "mine", text_mode="legacy_strip")


@pytest.mark.parametrize("score", ["", "셋", "3,5", None])
def test_a_score_that_is_no_number_is_named(score) -> None:
    with pytest.raises(DataError, match=rf"sts\.tsv, line 2: the score is {score!r}, which is not a number"):
        scored_pairs(sts(("가", "나", score)), "mine")


@pytest.mark.parametrize(
    ("score", "scale"), [("5.01", (0, 5)), ("-0.1", (0, 5)), ("nan", (0, 5)), ("inf", (0, 5)), ("2", (0, 1))]
)
def test_a_score_off_the_scale_is_named_with_the_scale(score: str, scale: tuple) -> None:
    expected = rf"line 2: the score {float(score)} is outside the scale {scale[0]} to {scale[1]}"
    with pytest.raises(DataError, match=expected):
        scored_pairs(sts(("가", "나", score)), "mine", scale=scale)


def test_the_ends_of_the_scale_are_on_it() -> None:
    assert scored_pairs(sts(("가", "나", "0"), ("다", "라", "5.0")), "mine").scores == [0.0, 5.0]
    assert scored_pairs(sts(("가", "나", "-1"), ("다", "라", "1")), "mine", scale=(-1, 1)).scores == [-1.0, 1.0]


@pytest.mark.parametrize("rows", [[], [("가", "나", "1")]])
def test_fewer_than_two_pairs_have_no_correlation(rows: list[tuple]) -> None:
    with pytest.raises(DataError, match=rf"sts\.tsv holds {len(rows)} scored pairs; a correlation needs at least 2"):
        scored_pairs(sts(*rows), "mine")


@pytest.mark.parametrize(("name", "rows", "altered"), [("sts-train.tsv", 5749, 1467), ("sts-dev.tsv", 1500, 512)])
def test_real_korsts_is_whole(data_dir: Path, name: str, rows: int, altered: int) -> None:
    """The rows that the legacy mode alters are those counted for SimCSE-KO."""
    path = data_dir / "KorNLUDatasets/KorSTS" / name
    pairs = scored_pairs(read_table(path, RowReport()), "korsts")
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    assert len(pairs) == rows
    assert list(zip(pairs.sentences1, pairs.sentences2, pairs.scores, strict=True)) == [
        (normalize_text(line[5]), normalize_text(line[6]), float(line[4])) for line in lines
    ]
    legacy = scored_pairs(read_table(path, RowReport()), "korsts", text_mode="legacy_strip")
    changed = zip(pairs.sentences1, pairs.sentences2, legacy.sentences1, legacy.sentences2, strict=True)
    assert sum((a, b) != (c, d) for a, b, c, d in changed) == altered


def test_labels_make_pairs_of_nli_rows_with_ids_by_name() -> None:
    report = RowReport()
    tables = [
        table(
            "sentence1 sentence2 gold_label", (f"{DECOMPOSED} ", "참", "entailment"), ("한글", "거짓", " Contradiction")
        ),
        table("premise hypothesis label", ("한글", "몰라", "neutral"), ("", "참", "neutral"), name="b.json"),
    ]
    views = training_views(tables, report, train_as="labels")
    assert views.rows == [("한글", "참"), ("한글", "거짓"), ("한글", "몰라")]
    assert views.values == [1, 0, 2] == [LABEL_IDS[name] for name in ("entailment", "contradiction", "neutral")]
    assert (views.shape, views.unsupervised, views.source_rows) == ("labelled", False, [2, 1])
    assert (report.unit, report.kept, report.dropped) == ("labelled pairs", 3, {"empty_sentence": 1})


def test_labels_of_the_hub_are_read_by_name_whatever_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """KLUE numbers entailment, contradiction, neutral; kor_nli entailment, neutral, contradiction."""
    for names in (["entailment", "contradiction", "neutral"], ["entailment", "neutral", "contradiction"]):
        features = datasets.Features(
            {name: datasets.Value("string") for name in ("premise", "hypothesis")}
            | {"label": datasets.ClassLabel(names=names)}
        )
        rows = {"premise": ["가"] * 3, "hypothesis": names, "label": [0, 1, 2]}
        dataset = datasets.Dataset.from_dict(rows, features=features)
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, dataset=dataset, **__: dataset)
        report = RowReport()
        views = training_views([read_hub_table("owner/name", report)], report, train_as="labels")
        assert views.values == [LABEL_IDS[hypothesis] for _, hypothesis in views.rows]


@pytest.mark.parametrize("label", ["1", "-", "", "-1", "함의"])
def test_a_label_without_a_name_is_an_error_or_counted(label: str) -> None:
    rows = [("가", "나", "neutral"), ("가", "다", label)]
    with pytest.raises(DataError, match=rf"a\.tsv, line 3: the label is '{label}', not entailment.*on_bad_row to skip"):
        training_views([table("premise hypothesis label", *rows)], RowReport(), train_as="labels")
    report = RowReport(on_bad_row="skip")
    views = training_views([table("premise hypothesis label", *rows)], report, train_as="labels")
    assert (views.rows, views.values) == ([("가", "나")], [2])
    assert (report.dropped, report.examples) == ({"unknown_label": 1}, {"unknown_label": "a.tsv, line 3"})


def test_a_hypothesis_that_is_none_is_not_labelled() -> None:
    rows = [("가", "n/a", "neutral"), ("n/a", "나", "neutral"), ("가", "나", "neutral")]
    report = RowReport()
    views = training_views([table("premise hypothesis label", *rows)], report, train_as="labels")
    assert views.rows == [("가", "나")]
    assert report.dropped == {"n/a_instead_of_a_sentence": 2}


def test_scores_make_pairs_with_a_score_from_0_to_1() -> None:
    report = RowReport()
    tables = [
        table("sentence1 sentence2 score", (f"{DECOMPOSED} ", "나", "3.500"), ("가", "나", "-0.0"), ("", "나", "1")),
        table("guid sentence1 sentence2 labels.label labels.real-label", (1, "다", "라", 5, 4.9), name="b.json"),
    ]
    views = training_views(tables, report, train_as="scores")
    assert views.rows == [("한글", "나"), ("가", "나"), ("다", "라")]
    assert views.values == [0.7, 0.0, 1.0]
    assert (views.shape, views.unsupervised, views.source_rows) == ("scored", False, [2, 1])
    assert (report.unit, report.dropped) == ("scored pairs", {"empty_sentence": 1})


def test_the_scale_of_scores_can_be_another() -> None:
    rows = [("가", "나", "-1"), ("가", "다", "0"), ("가", "라", "1")]
    tables = [table("sentence1 sentence2 score", *rows)]
    assert training_views(tables, RowReport(), train_as="scores", score_scale=(-1, 1)).values == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ("셋", "the score is '셋', which is not a number"),
        (None, "the score is '', which is not a number"),
        ("5.01", r"the score 5\.01 is outside the scale 0\.0 to 5\.0"),
        ("nan", "the score nan is outside the scale"),
    ],
)
def test_a_training_score_that_cannot_be_used_is_an_error_or_counted(score: str | None, message: str) -> None:
    rows = [("가", "나", "1"), ("가", "다", score)]
    with pytest.raises(DataError, match=rf"a\.tsv, line 3: {message}.*set on_bad_row to skip"):
        training_views([table("sentence1 sentence2 score", *rows)], RowReport(), train_as="scores")
    report = RowReport(on_bad_row="skip")
    assert training_views([table("sentence1 sentence2 score", *rows)], report, train_as="scores").values == [0.2]
    assert report.examples == {"unusable_score": "a.tsv, line 3"}


@pytest.mark.parametrize(
    ("train_as", "columns", "message"),
    [
        (
            "labels",
            "sentence1 sentence2 score",
            r"b\.tsv holds scored pairs, by its columns .* needs NLI rows \(premise",
        ),
        ("labels", "anchor positive", r"b\.tsv holds pairs, .*train_as labels needs NLI rows"),
        ("scores", "premise hypothesis label", r"b\.tsv holds NLI rows, .*train_as scores needs scored pairs"),
        ("scores", "text", r"b\.tsv holds sentences, .* Choose another file, or another train_as"),
    ],
)
def test_a_table_without_the_values_is_refused_by_name(train_as: str, columns: str, message: str) -> None:
    good = {"labels": "premise hypothesis label", "scores": "sentence1 sentence2 score"}[train_as]
    with pytest.raises(DataError, match=message):
        training_views([table(good), table(columns, name="b.tsv")], RowReport(), train_as=train_as)


def test_rows_with_values_are_the_same_when_the_value_is_too() -> None:
    rows = [("가", "나", "1"), ("가", "나", "1.0"), ("가", "나", "2"), ("나", "가", "1")]
    report = RowReport()
    views = training_views([table("sentence1 sentence2 score", *rows)], report, train_as="scores")
    assert (views.rows, views.values) == ([("가", "나"), ("가", "나"), ("나", "가")], [0.2, 0.4, 0.2])
    assert report.examples == {"duplicate": "a.tsv, line 3"}


def test_rows_without_values_have_none_and_say_how_many_came_from_each_source() -> None:
    tables = [
        table("text", ("가",), ("나",)),
        table("text", ("나",), ("",), name="b.tsv"),
        table("text", ("다",), name="c"),
    ]
    views = training_views(tables, RowReport())
    assert (views.values, views.source_rows) == (None, [2, 0, 1])
    nli = [("P", "e", "entailment"), ("P", "c", "contradiction")]
    views = training_views([table("premise hypothesis label", *nli)], RowReport())
    assert (views.values, views.source_rows) == (None, None)


def held_out(*sentences: str) -> HeldOutSentences:
    return HeldOutSentences([ScoredPairs(name="dev", sentences1=list(sentences), sentences2=[], scores=[])])


@pytest.mark.parametrize(
    ("train_as", "columns", "rows", "kept", "place"),
    [
        ("auto", "text", [("가 나.",), ("다",), ("가나",)], [("다",)], "a.tsv, line 2"),
        ("auto", "anchor positive", [("다", "라"), ("다", "가나!"), ("가나", "라")], [("다", "라")], "a.tsv, line 3"),
        ("sentences", "anchor positive", [("다", "가 나")], [("다",)], "a.tsv, line 2"),
        ("scores", "sentence1 sentence2 score", [("가나", "다", 1), ("다", "라", 2)], [("다", "라")], "a.tsv, line 2"),
        (
            "auto",
            "premise hypothesis label",
            [(p, h, label) for p in "PQ" for h, label in ((f"{p} e", "entailment"), ("가 나", "contradiction"))]
            + [("R", "e", "entailment"), ("R", "c", "contradiction")],
            [("R", "e", "c")],
            "'P'",
        ),
    ],
)
def test_rows_with_a_held_out_sentence_are_dropped_and_counted(
    train_as: str, columns: str, rows: list, kept: list, place: str
) -> None:
    report = RowReport()
    views = training_views([table(columns, *rows)], report, train_as=train_as, held_out=held_out("가 나", "마"))
    assert views.rows == kept
    assert report.dropped["in_evaluation_set"] > 0 and report.examples["in_evaluation_set"] == place
    assert "dropped: in evaluation set (first: " in str(report)
