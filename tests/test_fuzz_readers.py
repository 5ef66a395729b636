"""Files of any content: read, or refused in a short message that names them. SIMCSE_FUZZ_EXAMPLES tries more."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import errno
import gzip
import importlib.util
import json
import os
import re
import sys
import types
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from fuzzing import CONFIG_SEEDS, TARGETS, attempt, examples, parquet_file, spoilt, table_seeds, write
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from simcse_hf import files, tables
from simcse_hf.corpora import TrainingViews, scored_pairs, training_views
from simcse_hf.errors import DataError
from simcse_hf.files import read_lines
from simcse_hf.row_report import RowReport
from simcse_hf.strict_json import flat_fields, parse_json, parse_json_line
from simcse_hf.tables import expand_paths, read_table
from simcse_hf.training_corpus import Reading, views_of_files

usual = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def sentences(path: Path, on_bad_row: str = "error") -> TrainingViews:
    report = RowReport(on_bad_row=on_bad_row)
    return training_views([read_table(path, report)], report)


@pytest.mark.parametrize("suffix", tables.FORMATS)
def test_any_table_is_read_or_refused(suffix: str) -> None:
    target, seeds = TARGETS[f"table{suffix}"]

    @settings(usual, max_examples=examples(120))
    @given(spoilt(seeds()))
    def holds(data: bytes) -> None:
        target(data)

    holds()


@pytest.mark.parametrize("packing", [".gz", ".xz", ".bz2", ".zst"])
def test_any_packed_table_is_read_or_refused(packing: str) -> None:
    """Half of them spoilt before they are packed, half after."""
    choices = st.sampled_from([name for name in TARGETS if name.endswith(packing)])

    @settings(usual, max_examples=examples(80))
    @given(choices.flatmap(lambda name: st.tuples(st.just(name), spoilt(TARGETS[name][1]()))))
    def holds(case: tuple[str, bytes]) -> None:
        TARGETS[case[0]][0](case[1])

    holds()


@settings(usual, max_examples=examples(25))
@given(
    st.sampled_from([".tsv", ".jsonl"]).flatmap(
        lambda suffix: st.tuples(st.just(suffix), spoilt(table_seeds()[suffix]))
    )
)
@example((".jsonl", b'{"text": "\\ud800"}\n{"text": "a"}'))
def test_the_cache_holds_the_rows_that_are_read_without_it(case: tuple[str, bytes]) -> None:
    TARGETS[f"cached{case[0]}"][0](case[1])


# --- what was found by it, and by reading the code --------------------------------------------------------------------

DEEP = '{"text": ' + "[" * 5000
SPOILT_JSON = {
    "brackets nested too deeply": (DEEP + "]" * 5000 + "}", "brackets are nested too deeply"),
    "brackets that do not end": (DEEP, "brackets are nested too deeply"),
}
# In the place of a "text" or of an "id" in an object "labels", of which only the text is read.
SPOILT_VALUES = {
    "a number of 5,000 digits": ("9" * 5000, "holds a number of more digits than can be read"),
    "half a character": ('"잘린 \\uD83d"', r"holds half a character \(\\ud83d\), which no text can hold"),
    "a field twice": ('"가", "{field}": "나"', "stands twice in the row"),
    "a field twice with white space": ('"가: 나", "{field}"\t : "나"', "stands twice in the row"),
    "an object twice": ('"가"}}, "labels": {{"{field}": "나"', "stands twice in the row"),
    "two ways to one name": ('"가"}}, "labels.{field}": "나", "more": {{"a": 1', "stands twice in the row"),
}


@pytest.mark.parametrize("case", SPOILT_JSON)
def test_json_that_cannot_be_used_is_a_malformed_row(case: str, tmp_path: Path) -> None:
    spoilt_row, expected = SPOILT_JSON[case]
    path = write(tmp_path, "a.jsonl", f'{{"text": "가"}}\n{spoilt_row}\n{{"text": "다"}}\n'.encode())
    with pytest.raises(DataError, match=rf"a\.jsonl, line 2: {expected}.*Mend the row"):
        sentences(path)
    views = sentences(path, on_bad_row="skip")
    assert views.rows == [("가",), ("다",)]
    assert (views.report.read, dict(views.report.dropped)) == (3, {"unusable_json": 1})
    first = write(tmp_path, "b.jsonl", f'{spoilt_row}\n{{"text": "다"}}\n'.encode())
    with pytest.raises(DataError, match=rf"b\.jsonl, line 1: {expected}"):
        sentences(first)
    assert sentences(first, on_bad_row="skip").rows == [("다",)]
    whole = write(tmp_path, "c.json", f'[{{"text": "가"}}, {spoilt_row}]'.encode())
    with pytest.raises(DataError, match=rf"c\.json: {expected}.*use \.jsonl"):
        sentences(whole)


def record(number: int, spoilt_field: str = "", spoilt: str = "") -> str:
    """An object with a sentence and a number, one of them replaced."""
    values = {"text": f'"문장 {number}"', "id": str(number)}
    if spoilt_field:
        values[spoilt_field] = spoilt.replace("{field}", spoilt_field).replace("{{", "{").replace("}}", "}")
    return '{"labels": {"text": ' + values["text"] + ', "id": ' + values["id"] + "}}"


def labelled_sentences(path: Path, on_bad_row: str = "error") -> TrainingViews:
    report = RowReport(on_bad_row=on_bad_row)
    table = read_table(path, report)
    table.columns[table.columns.index("labels.text")] = "text"
    return training_views([table], report)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("case", SPOILT_VALUES)
def test_a_value_that_cannot_be_used_matters_to_who_reads_it(case: str, place: int, tmp_path: Path) -> None:
    value, problem = SPOILT_VALUES[case]
    for name, where in (("a.jsonl", f"line {place + 1}"), ("a.json", f"item {place}")):
        for field in ("text", "id"):
            rows = [record(0), record(1), record(2)]
            rows[place] = record(place, field, value)
            path = write(
                tmp_path, name, ("[" + ",\n".join(rows) + "]" if name == "a.json" else "\n".join(rows)).encode()
            )
            sound = [(f"문장 {number}",) for number in range(3)]
            if field == "id":
                assert labelled_sentences(path).rows == sound
                continue
            with pytest.raises(DataError, match=rf"{name}, {where}: text {problem}\. Mend the row"):
                labelled_sentences(path)
            views = labelled_sentences(path, on_bad_row="skip")
            assert views.rows == sound[:place] + sound[place + 1 :]
            assert views.report.as_dict()["dropped"] == {"unusable_value": 1} and views.report.read == 3


@pytest.mark.parametrize(
    "unread",
    [
        '"meta": {"a": 1, "a": 2}',
        '"raw": "\\ud83d"',
        '"\\udfff": 1',
        '"tags": [{"a": 1, "a": 2}]',
        '"id": ' + "9" * 5000,
        '"a.b": 1, "a": {"b": 2}',
    ],
    ids=lambda unread: unread[:20],
)
def test_what_nobody_reads_stops_no_run(unread: str, tmp_path: Path) -> None:
    rows = ['{"text": "가나", ' + unread + "}", '{"text": "다"}', '{"text": "라", ' + unread + "}"]
    for name, content in (("a.jsonl", "\n".join(rows)), ("a.json", "[" + ",".join(rows) + "]")):
        assert sentences(write(tmp_path, name, content.encode())).rows == [("가나",), ("다",), ("라",)]


def test_a_first_row_that_is_none_is_skipped_when_asked(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", '["가", {}, {"text": "나"}]'.encode())
    with pytest.raises(DataError, match=r"item 0: a row must be an object with named fields, not str\..*on_bad_row"):
        sentences(path)
    views = sentences(path, on_bad_row="skip")
    assert views.rows == [("나",)]
    assert (views.report.read, dict(views.report.dropped)) == (3, {"not_an_object": 2})
    path = write(tmp_path, "b.json", b"[1, 2]")
    with pytest.raises(DataError, match=r"b\.json holds no rows that can be used"):
        sentences(path, on_bad_row="skip")


def test_a_field_that_a_row_lacks_is_empty_in_training_data_and_an_error_where_every_row_counts(tmp_path: Path) -> None:
    rows = [{"anchor": "가", "positive": "나"}, {"anchor": "다"}, {"anchor": "라", "positive": None}]
    views = sentences(write(tmp_path, "a.json", json.dumps(rows).encode()))
    assert views.rows == [("가", "나")] and views.report.as_dict()["dropped"] == {"empty_sentence": 2}
    for lacking in ("sentence2", "score"):
        pair = {"sentence1": "가", "sentence2": "나", "score": 1.5}
        lines = [pair, pair | {"note": 1}, {name: value for name, value in pair.items() if name != lacking}]
        path = write(tmp_path, "b.jsonl", "\n".join(map(json.dumps, lines)).encode())
        with pytest.raises(DataError, match=rf"b\.jsonl, line 3: {lacking} is missing\. Mend the row\.$"):
            scored_pairs(read_table(path, RowReport(every_row_counts=True)), "set")


def test_a_list_of_rows_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", '{"data": [{"text": "가"}], "data": [{"text": "나"}]}'.encode())
    with pytest.raises(DataError, match="the field 'data' stands twice"):
        sentences(path)
    path = write(tmp_path, "b.json", '{"version": 1, "version": 2, "data": [{"text": "가"}]}'.encode())
    assert sentences(path).rows == [("가",)]


JSON_VALUES = st.recursive(
    st.none() | st.integers() | st.text(st.sampled_from('가:": \t\\'), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab: "', max_size=2), inner, max_size=3),
    max_leaves=8,
)


@settings(usual, max_examples=examples(200))
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", 'c":', "d"]), JSON_VALUES), max_size=4),
    st.sampled_from([":", " :", ": ", "\t:", "\r: "]),
)
def test_a_line_is_parsed_as_strictly_as_a_file(pairs: list[tuple[str, object]], colon: str) -> None:
    """However it is spaced, and whatever colons are in its texts."""
    text = "{" + ", ".join(f"{json.dumps(name)}{colon}{json.dumps(value)}" for name, value in pairs) + "}"
    assert flat_fields(parse_json_line(text)) == flat_fields(parse_json(text))
    names = [name for name, _ in pairs]
    assert isinstance(parse_json_line(text), dict) == (len(set(names)) == len(names))


def test_whole_characters_that_are_escaped_in_halves_are_text(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", json.dumps({"text": "좋아요 👍 \U00020000"}).encode())
    assert b"\\ud83d" in path.read_bytes()
    assert sentences(path).rows == [("좋아요 👍 \U00020000",)]


def test_a_field_may_be_nested_as_deep_as_brackets_can_be(tmp_path: Path) -> None:
    nested = '{"a": ' * 900 + '"가"' + "}" * 900
    path = write(tmp_path, "a.jsonl", f"{nested}\n{nested}\n".encode())
    assert sentences(path).rows == [("가",)]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["가".encode(), b"\xff"]),
        pa.array([datetime.date(2024, 5, 1)] * 2),
        pa.array([datetime.datetime(2024, 5, 1, 12)] * 2),
        pa.array([datetime.timedelta(seconds=5)] * 2),
        pa.array([True, False]),
        pa.array([["가"], ["나"]]),
        pa.array([[("가", 1)]] * 2, pa.map_(pa.string(), pa.int64())),
    ],
    ids=lambda column: str(column.type),
)
def test_values_that_are_no_text_are_not_written_out_as_if_they_were(column: pa.Array, tmp_path: Path) -> None:
    path = write(tmp_path, "a.parquet", parquet_file(pa.table({"text": column})))
    with pytest.raises(DataError, match=r"a\.parquet, row 0: text holds a \w+, not a text\. Write the column as text"):
        sentences(path)
    with pytest.raises(DataError, match="2 dropped: not a text"):
        sentences(path, on_bad_row="skip")


def test_numbers_are_text_and_what_is_missing_is_empty(tmp_path: Path) -> None:
    columns = {"anchor": [1, 2, None], "positive": [0.5, float("nan"), 1.0], "negative": [decimal.Decimal("1.50")] * 3}
    views = sentences(write(tmp_path, "a.parquet", parquet_file(pa.table(columns))))
    assert views.rows == [("1", "0.5", "1.50")]
    assert views.report.as_dict() == {"read": 3, "kept": 1, "unit": "rows", "dropped": {"empty_sentence": 2}}
    path = write(tmp_path, "a.jsonl", b'{"text": NaN}\n{"text": "nan"}\n')
    assert sentences(path).rows == [("nan",)]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**50, 5], pa.timestamp("s", tz="Asia/Seoul")),
        pa.array([1, None], pa.timestamp("ns", tz="Nowhere/Nothing")),
        pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]),
    ],
    ids=["a time beyond the calendar", "a zone that there is not", "text that is not UTF-8"],
)
def test_parquet_that_no_python_value_can_hold_is_refused(column: pa.Array, tmp_path: Path) -> None:
    path = write(tmp_path, "a.parquet", parquet_file(pa.table({"text": column})))
    with pytest.raises(DataError, match=r"a\.parquet is not a Parquet file that can be read \(.+\)\. Write it again"):
        sentences(path)


def test_parquet_of_nothing_and_of_two_columns_of_one_name(tmp_path: Path) -> None:
    for name, table, expected in (
        ("columns.parquet", pa.table({}), "holds no rows"),
        ("rows.parquet", pa.table({"text": pa.array([], pa.string())}), "holds no rows"),
        ("nulls.parquet", pa.table({"text": pa.array([None, None])}), "no training rows are left"),
        ("twice.parquet", pa.table([pa.array(["가"]), pa.array(["나"])], names=["text"] * 2), "'text' occurs twice"),
    ):
        with pytest.raises(DataError, match=expected) as caught:
            sentences(write(tmp_path, name, parquet_file(table)))
        assert name in str(caught.value)


def test_encrypted_parquet_is_refused(tmp_path: Path) -> None:
    content = parquet_file(pa.table({"text": ["가"]}))
    path = write(tmp_path, "a.parquet", b"PARE" + content[4:-4] + b"PARE")
    with pytest.raises(DataError, match=r"a\.parquet is not a Parquet file that can be read"):
        sentences(path)


@pytest.mark.parametrize("score", ["9" * 400, '"' + "x" * 9000 + '"', "[1]", "true", "null", "NaN", "1e999", '"4_5"'])
def test_scores_that_are_none_are_named_in_short(score: str, tmp_path: Path) -> None:
    record = f'{{"sentence1": "가", "sentence2": "나", "score": {score}}}\n'
    path = write(tmp_path, "a.jsonl", (record * 2).encode())
    refusal = attempt(lambda: scored_pairs(read_table(path, RowReport()), "set"), names=["a.jsonl, line 1"])
    assert isinstance(refusal, DataError)


def test_a_message_does_not_repeat_a_file(tmp_path: Path) -> None:
    for name, content in (
        ("header.tsv", "\t".join(f"열{n}" for n in range(20_000)) + "\n가\n"),
        ("label.tsv", "premise\thypothesis\tlabel\n가\t나\t" + "다" * 100_000 + "\n"),
        ("telling.tsv", "anchor\tpositive\t" + "neg" * 50_000 + "\n가\t나\t다\n"),
        ("twice.csv", "a" * 50_000 + "," + "a" * 50_000 + "\n1,2\n"),
    ):
        refusal = attempt(sentences, write(tmp_path, name, content.encode()), names=[name])
        assert isinstance(refusal, DataError), name


def test_a_line_is_held_in_memory_and_so_not_of_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.LONGEST_LINE == 1 << 26
    bomb = gzip.compress(b"a line\n" + bytes(300_000_000), 1)
    assert len(bomb) < 2_000_000
    lines = read_lines(write(tmp_path, "a.txt.gz", bomb))
    assert next(lines) == (1, "a line")
    with pytest.raises(DataError, match=r"a\.txt\.gz, line 2 has more than 67,108,864 bytes"):
        next(lines)
    path = write(tmp_path, "b.txt", b"12345\n1234\n")
    assert list(read_lines(path, longest=6)) == [(1, "12345"), (2, "1234")]
    with pytest.raises(DataError, match=r"b\.txt, line 1 has more than 5 bytes"):
        list(read_lines(path, longest=5))


def test_what_is_read_as_a_whole_is_not_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    json_file = write(tmp_path, "a.json", b'[\n{"text":\n"abcdefg"}\n]')
    parquet = write(tmp_path, "a.parquet.gz", gzip.compress(parquet_file(pa.table({"text": ["가"]}))))
    assert sentences(json_file).rows == [("abcdefg",)] and sentences(parquet).rows == [("가",)]
    monkeypatch.setattr(tables, "_LARGEST_WHOLE", 15)
    with pytest.raises(DataError, match=r"a\.json is more than 1 GiB of JSON.*Use \.jsonl"):
        sentences(json_file)
    with pytest.raises(DataError, match=r"a\.parquet\.gz unpacks to more than 1 GiB.*Leave it unpacked"):
        sentences(parquet)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tsv")
    for path in (tmp_path / "a.tsv", "/dev/null"):
        refusal = attempt(lambda path=path: expand_paths([str(path)]), names=[str(path)], seconds=5)
        assert "no regular file but a pipe or a device" in str(refusal)


@pytest.mark.parametrize(
    "name", ["a" * 5000 + ".txt", "a\0b.txt", "a\0*.txt", "\ud800.txt", "~nobody-here/a.txt", "**" * 200]
)
def test_a_name_that_no_file_can_have_leads_nowhere(name: str) -> None:
    assert isinstance(attempt(expand_paths, [name]), DataError)


@pytest.mark.parametrize(("number", "passes"), [(errno.EACCES, False), (errno.EIO, False), (errno.ENAMETOOLONG, True)])
def test_a_file_that_may_not_be_looked_at_is_not_called_missing(
    number: int, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exists(path: Path) -> bool:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "exists", exists)
    with pytest.raises(DataError if passes else OSError) as caught:
        expand_paths(["locked/a.txt"])
    assert isinstance(caught.value, DataError) == passes
    assert passes or caught.value.errno == number


def test_a_name_that_no_record_can_hold_is_refused_before_the_work(tmp_path: Path) -> None:
    """Latin-1 in a name: the path could not be written into simcse_run.json at the end of the training."""
    name = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    try:
        Path(os.fsdecode(name)).write_text("문장\n", encoding="utf-8")
    except (OSError, UnicodeEncodeError):
        pytest.skip("this file system takes UTF-8 names only")
    for pattern in (os.fsdecode(name), str(tmp_path / "*.txt")):
        with pytest.raises(DataError, match=r"caf\\udce9\.txt is not UTF-8.*Rename the file") as caught:
            expand_paths([pattern])
        str(caught.value).encode("utf-8")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    """`scripts/fuzz.py`, which must change no limit of this process."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).parent.parent / "scripts/fuzz.py")
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", dict(os.environ))
        spec.loader.exec_module(module)
    monkeypatch.setattr(module.resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(module, "quiet", lambda: None)
    return module


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (["--targets", "manifest", "tabel"], r"no target has 'tabel' in its name; there are table\.txt, "),
        (["--targets", "table.txt", "--minutes", "0"], 1),
        (["--targets", "sentencepiece", "--minutes", "0.001"], 0),
    ],
)
def test_a_fuzzer_that_tried_nothing_says_so(
    options: list[str], status: int | str, script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", ["fuzz.py", *options])
    with pytest.raises(SystemExit) as caught:
        script.main()
    if isinstance(status, str):
        assert re.match(status, caught.value.code)
    else:
        assert caught.value.code == status
        assert (json.loads(capsys.readouterr().out)["inputs"] == 0) == bool(status)


def test_a_target_for_atheris_that_there_is_not_is_refused(script, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = types.SimpleNamespace(instrument_imports=lambda include: contextlib.nullcontext())
    monkeypatch.setitem(sys.modules, "atheris", nothing)
    monkeypatch.setattr("sys.argv", ["fuzz.py", "--atheris", "tabel"])
    with pytest.raises(SystemExit) as caught:
        script.main()
    assert "there is no target 'tabel', but table.txt, " in caught.value.code


def test_the_seeds_are_read(tmp_path: Path) -> None:
    """A fuzzer whose every input is refused at once tests nothing."""
    for suffix in tables.FORMATS:
        target, seeds = TARGETS[f"table{suffix}"]
        assert sum(map(target, seeds())) >= 3, suffix
    assert CONFIG_SEEDS and views_of_files([write(tmp_path, "a.txt", "문장\n".encode())], Reading(), tmp_path / "cache")
