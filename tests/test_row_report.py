"""What became of every row."""

from __future__ import annotations

import json

import pytest

from simcse_hf.errors import DataError, SimCSEError
from simcse_hf.row_report import RowReport


def test_a_bad_row_is_an_error_that_names_place_reason_and_both_cures() -> None:
    report = RowReport()
    with pytest.raises(DataError, match=r"a\.tsv, line 7: 2 fields\. Mend the row, or set on_bad_row to skip"):
        report.bad_row("wrong_number_of_fields", "a.tsv, line 7", "2 fields.")
    assert not report.dropped
    assert issubclass(DataError, SimCSEError) and issubclass(SimCSEError, ValueError)


def test_skipped_rows_are_counted_and_the_first_place_of_each_reason_is_kept() -> None:
    report = RowReport(on_bad_row="skip")
    report.bad_row("wrong_number_of_fields", "line 7", "2 fields.")
    report.bad_row("wrong_number_of_fields", "line 9", "4 fields.")
    report.drop("duplicate", "line 8")
    assert report.dropped == {"wrong_number_of_fields": 2, "duplicate": 1}
    assert report.examples == {"wrong_number_of_fields": "line 7", "duplicate": "line 8"}


def test_the_report_reads_as_text_most_frequent_reason_first() -> None:
    report = RowReport(read=5749, kept=5740, unit="triplets")
    report.drop("duplicate", "line 3")
    for line in (4, 5):
        report.drop("empty_sentence", f"line {line}")
    assert str(report).splitlines() == [
        "5,749 rows read, 5,740 triplets kept",
        "  2 dropped: empty sentence (first: line 4)",
        "  1 dropped: duplicate (first: line 3)",
    ]


def test_the_record_of_a_run_gets_plain_values() -> None:
    report = RowReport(read=3, kept=2)
    report.drop("duplicate", "line 3")
    record = report.as_dict()
    assert record == {"read": 3, "kept": 2, "unit": "rows", "dropped": {"duplicate": 1}}
    assert type(record["dropped"]) is dict


def test_a_report_is_recalled_as_it_was() -> None:
    first = RowReport(on_bad_row="skip", read=5, kept=2, unit="triplets")
    first.drop("empty_sentence", "a.tsv, line 3")
    first.bad_row("unknown_label", "a.tsv, line 4", "")
    first.drop("empty_sentence", "a.tsv, line 5")
    second = RowReport()
    second.recall(json.loads(json.dumps(first.remembered())))
    assert str(second) == str(first) and second.as_dict() == first.as_dict()
    second.drop("empty_sentence", "b.tsv, line 1")
    assert second.dropped["empty_sentence"] == 3 and first.dropped["empty_sentence"] == 2
