"""Sentences of evaluation sets in the training data: found exactly and loosely, and kept out where asked."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse_hf.arrow_column import ArrowColumn, ColumnWriter
from simcse_hf.corpora import ScoredPairs
from simcse_hf.leakage import HeldOutSentences, leakage_report, loose_key
from simcse_hf.text import normalize_text

DECOMPOSED = "\u1112\u1161\u11ab\u1100\u1173\u11af"


def pairs_of(*pairs: tuple[str, str], name: str = "dev") -> ScoredPairs:
    first, second = map(list, zip(*pairs, strict=True))
    return ScoredPairs(name=name, sentences1=first, sentences2=second, scores=[0.0] * len(pairs))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("비가 온다.", "비가온다"),
        ("비가 온다", "비 가 온다!?"),
        ("KLUE 는 무엇인가?", "klue는 무엇인가"),
        ("그는 '네.'", "그는 '네"),
        ("네…", "네"),
    ],
)
def test_spaces_case_and_final_punctuation_do_not_count_loosely(one: str, other: str) -> None:
    assert loose_key(one) == loose_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("비가 온다.", "비가 왔다."), ("1.5명", "15명"), ("...", "?"), ("가, 나", "가 나"), ("10%", "10"), ("'네'", "네")],
)
def test_everything_else_counts(one: str, other: str) -> None:
    assert loose_key(one) != loose_key(other)


def test_what_is_trained_on_is_counted_per_set() -> None:
    dev = pairs_of(
        ("비가 온다.", "날이 맑다."), ("비가 온다.", "눈이 온다."), ("바람이 분다.", "별이 떴다."), ("가", "나")
    )
    test = pairs_of(("네.", "아니요."), name="test")
    training = ["비가 온다.", "비가 온다.", "날이  맑다", "눈이온다!", "바람", DECOMPOSED]
    leakage = leakage_report(training, [dev, test])
    found, clean = leakage.sets
    assert (found.name, found.sentences, found.pairs) == ("dev", 7, 4)
    assert (found.exact, found.loose) == (1, 3)
    assert (found.exact_pairs, found.loose_pairs) == (0, 2)
    assert found.examples == ["비가 온다.", "날이 맑다.", "눈이 온다."]
    assert (clean.name, clean.exact, clean.loose, clean.loose_pairs, clean.examples) == ("test", 0, 0, 0, [])
    assert leakage and not leakage_report(training, [test])
    assert str(leakage).splitlines() == [
        "dev: 3 of 7 sentences (42.9%) are in the training data, 1 of them exactly; both sentences of 2 of 4 pairs "
        "(for example: 비가 온다.; 날이 맑다.; 눈이 온다.)",
        "test: 0 of 2 sentences (0.0%) are in the training data, 0 of them exactly; both sentences of 0 of 1 pairs",
    ]
    assert json.loads(json.dumps(leakage.as_dict()))["dev"]["loose_pairs"] == 2


def test_both_sides_are_normalised() -> None:
    (found,) = leakage_report([f" {DECOMPOSED}\u00a0문장"], [pairs_of(("한글 문장", f"{DECOMPOSED} 문장"))]).sets
    assert (found.sentences, found.exact, found.exact_pairs, found.examples) == (1, 1, 1, ["한글 문장"])


def test_a_column_of_a_corpus_is_read_as_its_sentences(tmp_path: Path) -> None:
    sentences = ["비가 온다.", "가", "날이 맑다", "나"]
    with ColumnWriter(tmp_path / "sentences.arrow", "text", pa.string()) as writer:
        writer.write(pa.array(sentences[:3]))
        writer.write(pa.array(sentences[3:]))
    sets = [pairs_of(("비가 온다.", "날이 맑다."), ("나", "다"))]
    assert leakage_report(ArrowColumn(tmp_path / "sentences.arrow"), sets) == leakage_report(sentences, sets)
    assert leakage_report(sentences, sets).sets[0].loose == 3


words = st.lists(st.sampled_from(["가", "나", " ", ".", "A", "a", "!"]), max_size=4).map("".join)


@settings(max_examples=200, deadline=None)
@given(st.lists(words, max_size=8), st.lists(st.tuples(words, words), min_size=1, max_size=6))
def test_the_counts_are_those_of_comparing_everything_with_everything(
    training: list[str], pairs: list[tuple[str, str]]
) -> None:
    clean = [normalize_text(sentence) for sentence in training]

    def exactly(sentence: str) -> bool:
        return any(sentence == other for other in clean)

    def loosely(sentence: str) -> bool:
        return any(loose_key(sentence) == loose_key(other) for other in clean)

    normalised = [(normalize_text(first), normalize_text(second)) for first, second in pairs]
    distinct = {sentence for pair in normalised for sentence in pair}
    (found,) = leakage_report(iter(training), [pairs_of(*pairs)]).sets
    assert found.sentences == len(distinct)
    assert found.exact == sum(map(exactly, distinct))
    assert found.loose == sum(map(loosely, distinct))
    assert found.exact_pairs == sum(exactly(first) and exactly(second) for first, second in normalised)
    assert found.loose_pairs == sum(loosely(first) and loosely(second) for first, second in normalised)
    assert len(found.examples) == min(3, found.loose) and all(map(loosely, found.examples))


def test_held_out_are_the_sentences_of_all_sets_loosely() -> None:
    held_out = HeldOutSentences([pairs_of(("비가 온다.", "네.")), pairs_of((f"{DECOMPOSED} 문장", "네"), name="test")])
    assert len(held_out) == 3
    assert all(sentence in held_out for sentence in ("비가온다", "네!", "한글 문장."))
    assert "비가 왔다." not in held_out and "" not in held_out


def test_the_digest_tells_held_out_sentences_apart() -> None:
    digests = [
        HeldOutSentences([pairs_of(*pairs)]).digest
        for pairs in ([("가", "나")], [("나", "가"), ("가.", "가")], [("가", "다")], [("가나", "다")])
    ]
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_the_training_side_is_not_held(tmp_path: Path) -> None:
    with ColumnWriter(tmp_path / "sentences.arrow", "text", pa.string()) as writer:
        for start in range(0, 200_000, 10_000):
            writer.write(pa.array([f"{number}번째 문장이 여기에 있다." for number in range(start, start + 10_000)]))
    column = ArrowColumn(tmp_path / "sentences.arrow")
    sets = [pairs_of(*((f"{number}번째 문장이 여기에 있다", "아니다") for number in np.arange(0, 400_000, 4_000)))]
    tracemalloc.start()
    try:
        (found,) = leakage_report(column, sets).sets
        assert tracemalloc.get_traced_memory()[1] < 4_000_000  # all of them: 20 MB
    finally:
        tracemalloc.stop()
    assert (found.exact, found.loose) == (0, 50)
