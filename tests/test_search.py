"""Exact search: the neighbours a loop finds, and a corpus whose line numbers can be trusted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse_hf.errors import DataError, ModelError
from simcse_hf.sample import SAMPLES
from simcse_hf.search import Hit, nearest, read_corpus, search


def vectors(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def test_the_most_similar_come_first_with_their_cosines() -> None:
    corpus = vectors([0, 1], [3, 4], [2, 0], [-1, 0])
    scores, indices = nearest(vectors([5, 0], [0, 0.1]), corpus, 3)
    assert indices.tolist() == [[2, 1, 0], [0, 1, 2]]
    np.testing.assert_allclose(scores, [[1, 0.6, 0], [1, 0.8, 0]], atol=1e-7)
    assert (scores.dtype, indices.dtype) == (np.float32, np.int64)


def test_equal_scores_keep_the_order_of_the_corpus() -> None:
    corpus = vectors([0, 1], *[[1, 0]] * 40, [0, 1])
    _, indices = nearest(vectors([1, 0]), corpus, 42)
    assert indices[0].tolist() == [*range(1, 41), 0, 41]


@pytest.mark.parametrize("k", [1, 3, 4, 100])
def test_no_more_than_the_corpus_holds_come_back(k: int) -> None:
    scores, indices = nearest(vectors([1, 0]), vectors([1, 0], [0, 1], [1, 1], [0, 2]), k)
    assert scores.shape == indices.shape == (1, min(k, 4))


def test_a_zero_vector_is_like_nothing() -> None:
    scores, indices = nearest(vectors([1, 0]), vectors([0, 0], [1, 1]), 2)
    assert indices.tolist() == [[1, 0]]
    assert scores[0, 1] == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 5), st.integers(1, 14), st.integers(0, 10**6))
def test_the_neighbours_are_those_a_loop_finds(queries: int, sentences: int, size: int, k: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    left, right = generator.normal(size=(queries, size)), generator.normal(size=(sentences, size))
    scores, indices = nearest(left.astype(np.float32), right.astype(np.float32), k)
    for query, found_scores, found in zip(left, scores, indices, strict=True):
        cosines = [oracles.cosine(query, sentence) for sentence in right]
        np.testing.assert_allclose(found_scores, sorted(cosines, reverse=True)[:k], atol=1e-5)
        np.testing.assert_allclose([cosines[index] for index in found], found_scores, atol=1e-5)
        assert len(set(found.tolist())) == len(found)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused(value: float) -> None:
    """The bits of a NaN come before those of every number."""
    corpus = np.ones((9000, 2), dtype=np.float32)
    corpus[8500, 1] = value
    with pytest.raises(ModelError, match=r"vector of row 8,501 of the corpus has values that are not finite.*float32"):
        nearest(vectors([1, 0]), corpus, 3)
    with pytest.raises(ModelError, match="vector of a query has values that are not finite"):
        nearest(vectors([1, 0], [value, 0]), vectors([1, 0], [0, 1]), 1)


class Letters:
    """Encodes a sentence as its counts of the letters a, b and c."""

    def encode(self, sentences, *, batch_tokens: int, show_progress: bool = False) -> np.ndarray:
        return np.array([[sentence.count(letter) for letter in "abc"] for sentence in sentences], dtype=np.float32)


def test_a_hit_names_sentence_position_and_cosine() -> None:
    corpus = ["abb", "ccc", "aa", "abb"]
    found = search(Letters(), ["a", "cc"], corpus, top_k=2)
    assert [[hit.index for hit in hits] for hits in found] == [[2, 0], [1, 0]]
    assert found[0][0] == Hit("aa", 2, pytest.approx(1.0))
    assert found[0][1] == Hit("abb", 0, pytest.approx(1 / 5**0.5))
    assert all(type(hit.index) is int and type(hit.score) is float for hits in found for hit in hits)
    assert json.dumps(found[0][0].score)


def test_a_corpus_keeps_order_and_repeated_sentences(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes('\ufeff나\r\n가 \u00a0"\r\n나\r\n\u1112\u1161\u11ab'.encode())
    assert read_corpus(str(path)) == ["나", '가 "', "나", "한"]


def test_a_corpus_may_be_a_table_of_one_text_column(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "text": "가"}\n{"id": 2, "text": "나"}\n', encoding="utf-8")
    assert read_corpus(str(path)) == ["가", "나"]


def test_the_sample_is_a_corpus() -> None:
    lines = SAMPLES["sentences"].read_text(encoding="utf-8").splitlines()
    assert read_corpus("sample:sentences") == lines


def test_an_empty_line_is_named_because_results_are_numbered_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("가\n\n나\n\u00a0\n다\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.txt, line 2: an empty sentence \(2 in all\)\. .*remove the empty ones"):
        read_corpus(str(path))


@pytest.mark.parametrize(
    ("columns", "shape"),
    [
        ("anchor positive negative", "triplets"),
        ("sentence1 sentence2", "pairs"),
        ("sentence1 sentence2 score", "scored pairs"),
        ("premise hypothesis label", "NLI rows"),
    ],
)
def test_a_table_of_several_texts_is_no_corpus(tmp_path: Path, columns: str, shape: str) -> None:
    path = tmp_path / "a.tsv"
    names = columns.split()
    path.write_text("\t".join(names) + "\n" + "\t".join("1" for _ in names) + "\n")
    with pytest.raises(DataError, match=rf"a\.tsv holds {shape}; a corpus is one sentence a line, or a table"):
        read_corpus(str(path))


def test_a_corpus_is_one_file(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("가\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"\*\.txt means 2 files; a corpus is one file, because results are numbered"):
        read_corpus(str(tmp_path / "*.txt"))
    assert read_corpus(str(tmp_path / "a*.txt")) == ["가"]


def test_a_missing_corpus_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no data file .*none\.txt"):
        read_corpus(str(tmp_path / "none.txt"))
