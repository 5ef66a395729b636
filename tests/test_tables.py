"""Tables: every row of every format arrives, or a message names the one that did not."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse_hf import tables
from simcse_hf.errors import DataError
from simcse_hf.official_files import OFFICIAL_FILES, OfficialFile
from simcse_hf.row_report import RowReport
from simcse_hf.strict_json import MISSING
from simcse_hf.tables import Table, expand_paths, numbered, read_hub_table, read_table

# Odd numbers of quotation marks, a literal n/a and null, NBSP, decomposed Hangul, U+2028.
NASTY = [
    ('그는 "네라고 했다.', "'작은 따옴표 하나"),
    ('"시작만 있다', "끝은 없다"),
    ("n/a", "null"),
    ("NBSP\u00a0뒤", "\u1112\u1161\u11ab\u1100\u1173\u11af"),
    ("줄\u2028가름", "NaN"),
    ("\\N", "#주석 아님"),
    (" 앞뒤 ", ""),
]


def write(folder: Path, content: str | bytes, name: str = "a.tsv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def fields(table: Table) -> list[tuple]:
    return [tuple(values) for _, values in table.rows]


def read(path: Path, column_names: Sequence[str] | None = None) -> tuple[list[str], list[tuple]]:
    table = read_table(path, RowReport(), column_names)
    return table.columns, fields(table)


def tsv(rows: Sequence[Sequence[str]], header: Sequence[str] = ("sentence1", "sentence2")) -> str:
    return "".join("\t".join(row) + "\n" for row in [header, *rows])


def test_a_glob_is_sorted_and_a_list_keeps_its_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.txt"):
        write(tmp_path, "문장", name)
    found = expand_paths([str(tmp_path / "c.txt"), str(tmp_path / "[ab].txt")])
    assert [path.name for path in found] == ["c.txt", "a.txt", "b.txt"]
    assert expand_paths(str(tmp_path / "*.txt")) == sorted(found)


def test_a_file_whose_name_looks_like_a_glob_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, "문장", "wiki[1].txt")
    write(tmp_path, "다른 문장", "wiki1.txt")
    assert expand_paths(str(path)) == [path]


def test_two_stars_reach_every_folder_below(tmp_path: Path) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    path = write(tmp_path / "deep/er", "문장", "a.txt")
    assert expand_paths(str(tmp_path / "**/*.txt")) == [path]


def test_the_home_folder_may_be_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_paths("~/a.txt" if write(tmp_path, "문장", "a.txt") else "") == [tmp_path / "a.txt"]


@pytest.mark.parametrize("name", ["none.txt", "*.tsv"])
def test_what_matches_nothing_is_named_with_the_folder_paths_start_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "문장", "a.txt")
    with pytest.raises(DataError) as caught:
        expand_paths(["a.txt", name])
    assert f"there is no data file {name}. Relative paths start at {tmp_path}." in str(caught.value)


def test_a_folder_is_refused_with_the_glob_to_write(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder; name the files in it, for example '.*/\*\.txt'"):
        expand_paths(str(tmp_path))


def test_quotation_marks_and_words_for_nothing_are_text_in_tsv(tmp_path: Path) -> None:
    path = write(tmp_path, tsv(NASTY))
    assert len(list(csv.reader(io.StringIO(path.read_text(encoding="utf-8")), delimiter="\t"))) < len(NASTY) + 1
    assert read(path) == (["sentence1", "sentence2"], NASTY)


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_byte_order_mark_windows_ends_and_compression_change_nothing(tmp_path: Path, suffix: str) -> None:
    content = b"\xef\xbb\xbf" + tsv(NASTY).replace("\n", "\r\n").encode()
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix]
    assert read(write(tmp_path, pack(content), f"a.tsv{suffix}")) == (["sentence1", "sentence2"], NASTY)


def test_column_names_lose_the_spaces_around_them_but_text_does_not(tmp_path: Path) -> None:
    assert read(write(tmp_path, " a \tb\u00a0\n 가 \t나 \n")) == (["a", "b"], [(" 가 ", "나 ")])


def test_a_file_without_a_header_takes_the_names_it_is_given(tmp_path: Path) -> None:
    path = write(tmp_path, "가\t나\n다\t라\n")
    assert read(path, ["anchor", "positive"]) == (["anchor", "positive"], [("가", "나"), ("다", "라")])


def test_a_row_with_another_number_of_fields_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a\tb\tc\n1\t2\t3\n1\t2\n")
    expected = r"a\.tsv, line 3: 2 tab-separated fields where the header has 3 \(a, b, c\)\. Mend the row"
    with pytest.raises(DataError, match=expected):
        read(path)


def test_an_empty_line_at_the_end_of_a_tsv_is_a_malformed_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 3: 1 tab-separated fields where the header has 2"):
        read(write(tmp_path, "a\tb\n1\t2\n\n"))


def test_skipped_rows_count_as_read_and_dropped(tmp_path: Path) -> None:
    path = write(tmp_path, "a\tb\n1\n2\t3\n4\t5\t6\n7\t8\n")
    report = RowReport(on_bad_row="skip")
    table = read_table(path, report)
    assert list(table.rows) == [(f"{path}, line 3", ["2", "3"]), (f"{path}, line 5", ["7", "8"])]
    assert (report.read, dict(report.dropped)) == (4, {"wrong_number_of_fields": 2})
    assert table.source["rows"] == 2


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_a_column_name_that_occurs_twice_is_named(tmp_path: Path, name: str) -> None:
    separator = "\t" if name == "a.tsv" else ","
    with pytest.raises(DataError, match="the column name 'b' occurs twice in the header"):
        read(write(tmp_path, separator.join("abb ") + "\n", name))


def test_an_undecodable_row_is_named_when_it_is_reached(tmp_path: Path) -> None:
    path = write(tmp_path, "a\tb\n가\t나\n".encode() + "다\t라\n".encode("euc-kr"))
    table = read_table(path, RowReport())
    assert next(table.rows)[1] == ["가", "나"]
    with pytest.raises(DataError, match=r"line 3: .*iconv -f cp949"):
        next(table.rows)


def test_half_a_compressed_tsv_is_an_error(tmp_path: Path) -> None:
    content = gzip.compress(tsv(NASTY).encode())
    with pytest.raises(DataError, match="cannot be decompressed"):
        read(write(tmp_path, content[: len(content) // 2], "a.tsv.gz"))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.lists(
            st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]), max_size=12)
            | st.sampled_from(['"', '""', "'", '"가', "n/a", "null", "\u2028", "\\"]),
            min_size=2,
            max_size=2,
        ),
        min_size=1,
        max_size=8,
    )
)
def test_any_text_without_tabs_and_newlines_comes_back_from_tsv(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    path = write(tmp_path_factory.getbasetemp(), tsv(rows), "any.tsv")
    assert read(path) == (["sentence1", "sentence2"], [tuple(row) for row in rows])


def test_every_line_of_a_txt_is_a_row_the_empty_ones_too(tmp_path: Path) -> None:
    path = write(tmp_path, '탭\t있음\n\n"따옴표\n', "a.txt")
    table = read_table(path, RowReport())
    assert table.columns == ["text"]
    assert list(table.rows) == [
        (f"{path}, line 1", ("탭\t있음",)),
        (f"{path}, line 2", ("",)),
        (f"{path}, line 3", ('"따옴표',)),
    ]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_characters="\n\r\ufeff", exclude_categories=["Cs"]), max_size=20),
        min_size=1,
        max_size=8,
    )
)
def test_any_lines_come_back_from_txt(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = write(tmp_path_factory.getbasetemp(), "".join(line + "\n" for line in lines), "any.txt")
    assert read(path) == (["text"], [(line,) for line in lines])


def test_csv_is_read_with_quoting_on(tmp_path: Path) -> None:
    path = write(tmp_path, 'a,b\n"쉼표, 그리고 ""따옴표""",나\n"두\n줄",라\n', "a.csv")
    assert read(path) == (["a", "b"], [('쉼표, 그리고 "따옴표"', "나"), ("두\n줄", "라")])


def test_what_the_standard_csv_writer_wrote_comes_back(tmp_path: Path) -> None:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([("sentence1", "sentence2"), *NASTY])
    assert read(write(tmp_path, "\ufeff" + buffer.getvalue(), "a.csv"))[1] == NASTY


@pytest.mark.parametrize("row", ['"열고 닫지 않음,나', '"가"나,다'])
def test_a_stray_quotation_mark_is_an_error_that_says_how_csv_quotes(tmp_path: Path, row: str) -> None:
    path = write(tmp_path, f"a,b\n가,나\n{row}\n", "a.csv")
    with pytest.raises(DataError, match=r"a\.csv, line 3: .*the mark doubled; if the file does not quote, save .*tsv"):
        read(path)


def test_a_cell_of_a_csv_may_be_as_long_as_a_line(tmp_path: Path) -> None:
    long = "긴 " * 70_000
    path = write(tmp_path, f'id,text\n1,{long}\n2,"{long}\n끝"\n', "a.csv")
    assert read(path) == (["id", "text"], [("1", long), ("2", f"{long}\n끝")])
    limit = csv.field_size_limit()
    assert limit == 1 << 26
    try:
        csv.field_size_limit(1 << 27)
        read(path)
        assert csv.field_size_limit() == 1 << 27, "a limit that somebody raised was lowered"
    finally:
        csv.field_size_limit(limit)


@pytest.mark.parametrize(
    "content", ["text\n가\n\n나\n \n\n", '\ntext\n가\n""\n나\n" "\n\n', "text\r\n가\r\n\r\n나\r\n \r\n\r\n"]
)
def test_a_blank_line_of_a_csv_of_one_column_is_an_empty_cell(tmp_path: Path, content: str) -> None:
    path = write(tmp_path, content, "a.csv")
    report = RowReport()
    assert fields(read_table(path, report)) == [("가",), ("",), ("나",), (" ",), ("",)]
    assert report.read == 5
    other = write(tmp_path, content.replace('"', "").removeprefix("\n"), "a.tsv")
    assert fields(read_table(other, RowReport())) == fields(read_table(path, RowReport()))
    named = write(tmp_path, "가\n\n나\n", "b.csv")
    assert read(named, ["text"])[1] == [("가",), ("",), ("나",)]


def test_a_csv_of_blank_lines_is_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.csv is empty"):
        read(write(tmp_path, "\n\n", "a.csv"))


def test_an_empty_line_of_a_csv_is_no_row_and_lines_are_counted_on(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b\n가,나\n\n다,라\n\n", "a.csv")
    report = RowReport()
    assert list(read_table(path, report).rows) == [(f"{path}, line 2", ["가", "나"]), (f"{path}, line 4", ["다", "라"])]
    assert (report.read, report.dropped.total()) == (2, 0)


def test_a_csv_row_with_another_number_of_fields_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 3: 3 comma-separated fields where the header has 2 \(a, b\)"):
        read(write(tmp_path, "a,b\n가,나\n가,나,다\n", "a.csv"))


KLUE = [
    {"guid": "0", "sentence1": "가", "sentence2": '나"', "labels": {"label": 3.7, "real-label": 3.714}},
    {"guid": "1", "sentence1": "다", "sentence2": "라", "labels": {"label": 0.0, "real-label": 0.0}},
]
COLUMNS = ["guid", "sentence1", "sentence2", "labels.label", "labels.real-label"]
ROWS = [("0", "가", '나"', 3.7, 3.714), ("1", "다", "라", 0.0, 0.0)]


@pytest.mark.parametrize("content", [KLUE, {"version": "1.1", "data": KLUE}])
def test_nested_json_names_are_joined_by_dots(tmp_path: Path, content) -> None:
    path = write(tmp_path, "\ufeff" + json.dumps(content, indent=2), "a.json")
    assert read(path) == (COLUMNS, ROWS)


def test_json_lines_are_the_same_rows(tmp_path: Path) -> None:
    path = write(tmp_path, "\n\n".join(json.dumps(item, ensure_ascii=False) for item in KLUE), "a.jsonl")
    assert read(path) == (COLUMNS, ROWS)
    assert [place for place, _ in read_table(path, RowReport()).rows] == [f"{path}, line 1", f"{path}, line 3"]


def test_a_field_that_a_row_lacks_is_marked(tmp_path: Path) -> None:
    path = write(tmp_path, '[{"text": "가", "note": 1}, {"text": "나"}, {"text": "다", "new": 2}]', "a.json")
    assert read(path) == (["text", "note"], [("가", 1), ("나", MISSING), ("다", MISSING)])


def test_json_that_is_not_utf_8_is_named_by_line(tmp_path: Path) -> None:
    content = '\ufeff[{"text": "가"},\r\n {"text": "'.encode() + "나".encode("cp949") + b'"}]\n'
    with pytest.raises(DataError, match=r"a\.json, line 2: byte 11 \(0xb3\) is not UTF-8\. .*iconv -f cp949"):
        read(write(tmp_path, content, "a.json"))
    content = b'[{"text": "' + "나".encode("cp949") + b'"}]'
    with pytest.raises(DataError, match=r"a\.json, line 1: byte 11 \(0xb3\) is not UTF-8"):
        read(write(tmp_path, content, "a.json"))


def test_the_limit_of_json_is_of_bytes_and_line_breaks_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_LARGEST_WHOLE", 40)
    assert read(write(tmp_path, '[{"text": "가나다라마바사아"}]', "a.json"))[1] == [("가나다라마바사아",)]  # 38 bytes
    for content in (
        '[{"text": "가나다라마바사아자"}]',
        '[{"text": "가"}]' + "\n" * 30,
    ):  # 41 bytes of 23 characters; 47
        with pytest.raises(DataError, match=r"a\.json is more than 1 GiB"):
            read(write(tmp_path, content, "a.json"))


def test_broken_json_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, '[{"text": "가"},\n {"text": }]', "a.json")
    with pytest.raises(
        DataError, match=r"a\.json, line 2: not JSON \(Expecting value\)\. Use \.jsonl for one object a line"
    ):
        read(path)


@pytest.mark.parametrize("content", ['{"text": "가"}', '"가"', "3", '{"data": {"text": "가"}}'])
def test_json_that_is_no_list_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match=r"a\.json is JSON, but not a list of objects"):
        read(write(tmp_path, content, "a.json"))


@pytest.mark.parametrize(("content", "name"), [("[]", "a.json"), ('{"data": []}', "a.json"), ("\n\n", "a.jsonl")])
def test_json_without_objects_is_an_error(tmp_path: Path, content: str, name: str) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl? holds no rows"):
        read(write(tmp_path, content, name))


@pytest.mark.parametrize(("content", "kind"), [('["가", "나"]', "str"), ("[[1]]", "list"), ("[null]", "NoneType")])
def test_a_json_list_of_something_else_is_refused(tmp_path: Path, content: str, kind: str) -> None:
    with pytest.raises(DataError, match=rf"item 0: a row must be an object with named fields, not {kind}"):
        read(write(tmp_path, content, "a.json"))


def test_a_later_json_row_that_is_no_object_is_named_or_skipped(tmp_path: Path) -> None:
    path = write(tmp_path, '[{"text": "가"}, "나", {"text": "다"}]', "a.json")
    with pytest.raises(DataError, match="item 1: the row is not an object with named fields"):
        read(path)
    report = RowReport(on_bad_row="skip")
    assert fields(read_table(path, report)) == [("가",), ("다",)]
    assert (report.read, dict(report.dropped)) == (3, {"not_an_object": 1})


def test_a_broken_json_line_is_named_or_skipped(tmp_path: Path) -> None:
    path = write(tmp_path, '{"text": "가"}\n{"text": "나"\n{"text": "다"}\n', "a.jsonl")
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: not JSON \(.+\)\. Mend the row"):
        read(path)
    report = RowReport(on_bad_row="skip")
    assert fields(read_table(path, report)) == [("가",), ("다",)]
    assert (report.read, dict(report.dropped)) == (3, {"not_json": 1})


def test_nested_parquet_columns_are_joined_by_dots(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(KLUE), tmp_path / "a.parquet")
    columns, rows = read(tmp_path / "a.parquet")
    assert [dict(zip(columns, row, strict=True)) for row in rows] == [
        dict(zip(COLUMNS, row, strict=True)) for row in ROWS
    ]


def test_places_in_parquet_are_row_numbers_from_zero(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["가", None]}), tmp_path / "a.parquet")
    table = read_table(tmp_path / "a.parquet", RowReport())
    assert list(table.rows) == [(f"{table.name}, row 0", ["가"]), (f"{table.name}, row 1", [None])]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_parquet_file_of_many_row_groups_is_read_whole(tmp_path: Path, suffix: str) -> None:
    texts = [f"문장 {number}" for number in range(25_000)]
    path = tmp_path / f"a.parquet{suffix}"
    with pyarrow.output_stream(str(path), compression={"": None, ".gz": "gzip", ".zst": "zstd"}[suffix]) as stream:
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), stream, row_group_size=7000)
    assert [text for _, (text,) in read_table(path, RowReport()).rows] == texts


def test_another_file_called_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.parquet is not a Parquet file"):
        read(write(tmp_path, "text\n가\n" * 10, "a.parquet"))


@pytest.mark.parametrize(("name", "kind"), [("a.xlsx", r"\.xlsx"), ("a.gz", "none"), ("a", "none")])
def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path, name: str, kind: str) -> None:
    with pytest.raises(DataError, match=rf"has the format '{kind}'; these can be read: \.txt, \.tsv, \.csv, .*parquet"):
        read(write(tmp_path, "가", name))


@pytest.mark.parametrize("name", ["a.txt", "a.tsv", "a.json", "a.parquet", "a.txt.gz"])
def test_a_file_of_no_bytes_is_empty(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name} is empty\."):
        read(write(tmp_path, "", name))


@pytest.mark.parametrize("name", ["a.tsv.gz", "a.csv.gz"])
def test_a_compressed_file_of_no_lines_is_empty(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name} is empty\."):
        read(write(tmp_path, gzip.compress(b""), name))


def test_the_source_holds_path_digest_and_the_rows_once_they_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, "가\n나\n", "a.txt")
    report = RowReport()
    table = read_table(path, report)
    assert (table.source["rows"], report.read) == (None, 0)
    assert fields(table) == [("가",), ("나",)]
    assert table.source == {"path": str(path), "sha256": tables.sha256_of(path), "rows": 2}
    assert (table.name, report.read) == (str(path), 2)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of two rows that is official, and whose list entry says so."""
    path = write(tmp_path, tsv(NASTY[:2]), "xnli.dev.ko.tsv")
    official = OfficialFile(name="KorNLI XNLI dev", filename=path.name, rows=2, licence="CC BY-SA 4.0")
    monkeypatch.setattr(tables, "OFFICIAL_FILES", {tables.sha256_of(path): official})
    return path


def test_a_recognised_file_carries_its_name_and_licence_wherever_it_lies(published: Path) -> None:
    moved = published.rename(published.with_name("mine.tsv"))
    table = read_table(moved, RowReport())
    assert len(fields(table)) == 2
    assert (table.source["official"], table.source["licence"]) == ("KorNLI XNLI dev", "CC BY-SA 4.0")
    assert "note" not in table.source


def test_an_altered_file_is_noted_and_not_called_official(published: Path) -> None:
    published.write_bytes(published.read_bytes().replace(b"\n", b"\r\n"))
    source = read_table(published, RowReport()).source
    assert source["note"] == "called like a published file (xnli.dev.ko.tsv) but its content differs"
    assert "official" not in source


def test_a_reader_that_loses_rows_of_an_official_file_is_found_out(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official = OfficialFile(name="KorNLI XNLI dev", filename=published.name, rows=2490, licence="")
    monkeypatch.setattr(tables, "OFFICIAL_FILES", {tables.sha256_of(published): official})
    with pytest.raises(DataError, match=r"official file of 2,490 rows by its sha256, but 2 were read\. .* report it"):
        read(published)


def test_the_list_of_official_files_agrees_with_itself() -> None:
    assert all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in OFFICIAL_FILES)
    filenames = [official.filename for official in OFFICIAL_FILES.values()]
    assert len(set(filenames)) == len(filenames) == 8


REAL = [
    ("KorNLUDatasets/KorSTS/sts-train.tsv", "KorSTS train", 5749),
    ("KorNLUDatasets/KorSTS/sts-dev.tsv", "KorSTS dev", 1500),
    ("KorNLUDatasets/KorNLI/xnli.dev.ko.tsv", "KorNLI XNLI dev", 2490),
    ("KorNLUDatasets/KorNLI/xnli.test.ko.tsv", "KorNLI XNLI test", 5010),
]


@pytest.mark.parametrize(("name", "official", "rows"), REAL)
def test_korean_tsv_files_are_recognised_and_equal_a_naive_split(
    data_dir: Path, name: str, official: str, rows: int
) -> None:
    table = read_table(data_dir / name, RowReport())
    found = fields(table)
    naive = [tuple(line.split("\t")) for line in (data_dir / name).read_bytes().decode().strip("\n").split("\n")]
    assert any('"' in field for row in naive for field in row)
    assert found == naive[1:]
    assert (len(found), table.source["rows"], table.source["official"]) == (rows, rows, official)


def test_klue_nli_is_recognised(data_dir: Path) -> None:
    table = read_table(data_dir / "klue/klue-nli-v1.1_dev.json", RowReport())
    assert len(fields(table)) == 3000
    assert table.source["official"] == "KLUE-NLI dev"
    assert {"premise", "hypothesis", "gold_label"} <= set(table.columns)


def test_one_changed_byte_makes_another_file(data_dir: Path, tmp_path: Path) -> None:
    content = (data_dir / "KorNLUDatasets/KorSTS/sts-dev.tsv").read_bytes()
    table = read_table(write(tmp_path, content + b"\n", "sts-dev.tsv"), RowReport())
    assert len(fields(table)) == 1500
    assert "official" not in table.source
    assert "sts-dev.tsv" in table.source["note"] and "differs" in table.source["note"]


def test_xz_text_is_read_line_by_line(data_dir: Path) -> None:
    path = data_dir / "unlabeled/ud_pud.txt.xz"
    lines = lzma.decompress(path.read_bytes()).decode().removesuffix("\n").split("\n")
    assert fields(read_table(path, RowReport())) == [(line,) for line in lines]
    assert len(lines) == 993


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """The Hub holds one small dataset; what was asked of it is recorded."""
    features = datasets.Features(
        {
            "premise": datasets.Value("string"),
            "hypothesis": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["entailment", "neutral", "contradiction"]),
            "labels": {"label": datasets.Value("float64"), "by": {"name": datasets.Value("string")}},
        }
    )
    rows = [
        {"premise": "가", "hypothesis": '나"', "label": label, "labels": {"label": 1.5, "by": {"name": "n"}}}
        for label in (0, 2, -1, None)
    ]
    asked = []

    def load_dataset(hub_id, config=None, *, split, revision):
        asked.append((hub_id, config, split, revision))
        return datasets.Dataset.from_list(rows, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_hub_class_labels_become_words_and_nested_columns_flat(hub: list[tuple]) -> None:
    report = RowReport()
    table = read_hub_table("owner/name:nli:validation", report)
    columns = ["premise", "hypothesis", "label", "labels.label", "labels.by.name"]
    assert sorted(table.columns) == sorted(columns)
    order = [table.columns.index(column) for column in columns]
    rows = [(place, tuple(values[position] for position in order)) for place, values in table.rows]
    assert [place for place, _ in rows] == [f"owner/name:nli:validation, row {index}" for index in range(4)]
    assert [values[2] for _, values in rows] == ["entailment", "contradiction", -1, None]
    assert rows[0][1] == ("가", '나"', "entailment", 1.5, "n")
    assert (table.source["rows"], report.read, table.source["revision"]) == (4, 4, None)
    assert table.source["fingerprint"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("owner/name", ("owner/name", None, "train", None)),
        ("owner/name:test", ("owner/name", None, "test", None)),
        ("owner/name:nli:test", ("owner/name", "nli", "test", None)),
        ("owner/name:nli:", ("owner/name", "nli", "train", None)),
        ("owner/name:nli:test@abc123", ("owner/name", "nli", "test", "abc123")),
        ("owner/name@abc123", ("owner/name", None, "train", "abc123")),
    ],
)
def test_a_hub_name_may_hold_config_split_and_revision(hub: list[tuple], spec: str, expected: tuple) -> None:
    read_hub_table(spec, RowReport())
    assert hub == [expected]


def test_without_network_the_message_names_the_hub_dataset_and_the_way_out() -> None:
    with pytest.raises(
        DataError, match=r"cannot load the Hub dataset 'no-such/set:test' \(.+\)\. Offline, .*train_file"
    ):
        read_hub_table("no-such/set:test", RowReport())


def test_a_hub_error_without_words_still_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_, **__):
        raise TimeoutError

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"'owner/name' \(TimeoutError\)\."):
        read_hub_table("owner/name", RowReport())


@pytest.mark.parametrize(
    ("columns", "stem", "expected"),
    [
        (["anchor", "positive", "negative"], "negative", ["negative"]),
        (["negative_10", "negative_2", "negative"], "negative", ["negative", "negative_2", "negative_10"]),
        (["hard_neg2", "hard_neg1"], "hard_neg", ["hard_neg1", "hard_neg2"]),
        (["Negative-2", "NEGATIVES"], "negative", ["NEGATIVES", "Negative-2"]),
        (["negative_source", "my_negative", "negative1b"], "negative", []),
    ],
)
def test_numbered_columns_come_in_the_order_of_their_numbers(
    columns: list[str], stem: str, expected: list[str]
) -> None:
    assert numbered(columns, stem) == expected
