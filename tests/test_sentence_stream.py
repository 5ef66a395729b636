"""Rows of many files by number: those a list of all would give, without the list."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import simcse_hf.sentence_stream as module
from simcse_hf.errors import DataError
from simcse_hf.sample import SAMPLES
from simcse_hf.sentence_stream import SentenceStream, corpus_files, count_rows, sentences_of


def write_corpus(folder: Path) -> list[str]:
    """A file of every kind, in the order of their names; the sentences of all."""
    texts = [f"{number}번째 문장입니다." for number in range(40)]
    parts = [texts[start : start + 5] for start in range(0, 40, 5)]
    lines = ["".join(f"{text}\n" for text in part).encode() for part in parts]
    (folder / "0.txt").write_bytes(b"\xef\xbb\xbf" + lines[0].replace(b"\n", b"\r\n"))
    (folder / "1.txt.gz").write_bytes(gzip.compress(lines[1]))
    (folder / "2.txt.xz").write_bytes(lzma.compress(lines[2]))
    (folder / "3.txt.bz2").write_bytes(bz2.compress(lines[3]))
    (folder / "4.txt.zst").write_bytes(pyarrow.compress(lines[4], codec="zstd", asbytes=True))
    (folder / "5.jsonl").write_text("".join(json.dumps({"id": 1, "text": text}) + "\n\n" for text in parts[5]))
    (folder / "6.tsv").write_bytes(b"n\ttext\n" + b"".join(b"9\t" + line + b"\n" for line in lines[6].splitlines()))
    pyarrow.parquet.write_table(pyarrow.table({"text": parts[7]}), folder / "7.parquet")
    return texts


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[list, list[int], list[str]]:
    folder = tmp_path_factory.mktemp("corpus")
    texts = write_corpus(folder)
    files = corpus_files([f"{folder}/*"])
    return files, count_rows(files), texts


def test_the_rows_of_every_format_are_counted(corpus) -> None:
    files, rows, texts = corpus
    assert [file.path.name[0] for file in files] == list("01234567")
    assert rows == [5] * 8
    assert len(SentenceStream(files, rows)) == len(texts)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=5))
def test_rows_by_number_are_those_of_a_list(corpus, spans: list[tuple[int, int]]) -> None:
    """Forward, backward, across files and empty spans, one after another through the same stream."""
    files, rows, texts = corpus
    stream = SentenceStream(files, rows)
    for start, stop in spans:
        assert stream.read(start, stop) == texts[start:stop]


def test_files_before_the_rows_are_not_opened_and_forward_reading_opens_each_once(corpus, monkeypatch) -> None:
    files, rows, texts = corpus
    opened = []
    read_table = module.read_table
    monkeypatch.setattr(
        module, "read_table", lambda path, *rest, **more: opened.append(path) or read_table(path, *rest, **more)
    )
    stream = SentenceStream(files, rows)
    assert [stream.read(start, start + 2) for start in (22, 24, 26, 38)] == [texts[n : n + 2] for n in (22, 24, 26, 38)]
    assert opened == [files[index].path for index in (4, 5, 7)]


def test_sentences_are_normalised_and_samples_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\u1112\u1161\u11ab  글\u200b \n", encoding="utf-8")
    files = corpus_files(["sample:sentences", str(tmp_path / "a.txt")])
    assert files[0].path == SAMPLES["sentences"]
    rows = count_rows(files)
    assert SentenceStream(files, rows).read(rows[0], rows[0] + 1) == ["한 글"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "하나\n\n셋\n \n", r"a\.txt, line 2: an empty sentence \(2 in all\)\. .*remove the empty ones"),
        ("a.jsonl", '{"text": "하나"}\n{"text": ""}\n', r"a\.jsonl, line 2: an empty sentence \(1 in all\)"),
        ("a.jsonl", '{"text": "하나"}\n{"text": "\\ud83d"}\n', r"a\.jsonl, line 2: text holds half a character"),
        ("a.tsv", "text\n", r"a\.tsv holds no sentence"),
        (
            "a.tsv",
            "anchor\tpositive\n하나\t둘\n",
            r"a\.tsv holds pairs; a corpus is one sentence a line, or a table of",
        ),
        (
            "a.tsv",
            "sentence1\tsentence2\tscore\n하나\t둘\t1\n",
            r"a\.tsv holds scored pairs; a corpus is one sentence a line",
        ),
        (
            "a.csv",
            "question1,question2,is_duplicate\n하나,둘,1\n",
            r"a\.csv holds pairs; a corpus is one sentence a line",
        ),
        ("a.csv", "text\n하나\n\n셋\n", r"a\.csv, line 3: an empty sentence \(1 in all\)"),
        ("a.jsonl", '{"text": "하나"}\n{"txt": "둘"}\n', r"a\.jsonl, line 2: text is missing\. Mend the row\."),
        ("a.jsonl", '{"text": "하나"}\n{"text": null}\n', r"a\.jsonl, line 2: an empty sentence"),
        ("a.tsv", "id\ttext\n1\t하나\n2\n", r"a\.tsv, line 3: 1 tab-separated fields.* Mend the row\."),
    ],
)
def test_what_is_no_corpus_is_refused_by_file_and_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / "0.txt").write_text("좋은 파일\n", encoding="utf-8")
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        count_rows(corpus_files([str(tmp_path / "0.txt"), str(tmp_path / name)]))


def test_a_row_is_a_sentence_and_not_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text\n1,하나\n\n2,"둘과\n셋"\n', encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "넷"}\n\n{"text": "다섯", "note": 1}\n', encoding="utf-8")
    files = corpus_files([f"{tmp_path}/*"])
    assert [list(sentences_of(file)) for file in files] == [["하나", "둘과 셋"], ["넷", "다섯"]]
    rows = count_rows(files)
    assert rows == [2, 2] and SentenceStream(files, rows).read(1, 3) == ["둘과 셋", "넷"]


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("하나\n둘\n셋\n", encoding="utf-8")
    files = corpus_files([str(path)])
    rows = count_rows(files)
    stream = SentenceStream(files, rows)
    assert stream.read(0, 1) == ["하나"]
    path.write_text("하나\n삼\n이\n", encoding="utf-8")
    os.utime(path, ns=(1, 1))
    for action in (lambda: stream.read(1, 2), lambda: count_rows(files)):
        with pytest.raises(DataError, match=r"a\.txt was changed while it was being read.*begin again"):
            action()


def test_fewer_rows_than_were_counted_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("하나\n둘\n", encoding="utf-8")
    stream = SentenceStream(corpus_files([str(path)]), [3])
    with pytest.raises(DataError, match=r"a\.txt held 3 sentences when they were counted, and other ones now"):
        stream.read(1, 3)
