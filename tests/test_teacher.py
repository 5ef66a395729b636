"""A teacher's vectors: the right one for every sentence, computed once, whole or not there."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from simcse_hf import SentenceEncoder, teacher
from simcse_hf.arguments import ModelArguments
from simcse_hf.cache_folder import cache_root
from simcse_hf.cli import main
from simcse_hf.corpora import TrainingViews
from simcse_hf.errors import DataError, ModelError
from simcse_hf.sample import SAMPLES
from simcse_hf.teacher import TeacherVectors, identity_of, teacher_vectors, vectors_of_file, vectors_of_model
from simcse_hf.training_corpus import Reading, views_of_files

PAIRS = """anchor\tpositive
비가 온다.\t하늘에서 비가 내린다.
고양이가 잔다.\t비가 온다.
버스가 늦었다.\t버스가 제때 오지 않았다.
"""
DISTINCT = ["비가 온다.", "하늘에서 비가 내린다.", "고양이가 잔다.", "버스가 늦었다.", "버스가 제때 오지 않았다."]


@pytest.fixture
def views(tmp_path: Path) -> TrainingViews:
    (tmp_path / "pairs.tsv").write_text(PAIRS, encoding="utf-8")
    return views_of_files([tmp_path / "pairs.tsv"], Reading(), cache_root())


@pytest.fixture
def encoder() -> SentenceEncoder:
    return SentenceEncoder.from_pretrained(str(SAMPLES["encoder"]), pooler_type="avg")


@pytest.fixture
def cached() -> Callable[[], list[str]]:
    return lambda: sorted(path.name for path in cache_root().glob("*teacher*") if path.suffix != ".lock")


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# --- a teacher model ------------------------------------------------------------------------------------------------


def test_every_distinct_sentence_has_the_teachers_vector_of_unit_length(views, encoder, monkeypatch) -> None:
    monkeypatch.setattr(teacher, "_SENTENCES_AT_ONCE", 2)
    vectors = vectors_of_model(views.rows, encoder, cache_root())
    texts = [views.rows.sentences[number].tobytes().decode() for number in range(len(vectors))]
    assert texts == DISTINCT and vectors.shape == (5, encoder.model.config.text_config.hidden_size)
    expected = unit(encoder.encode(DISTINCT))
    for row in range(len(views.rows)):
        numbers = views.rows.indices[row]
        chosen = vectors[numbers]
        assert chosen.shape == (2, vectors.shape[1]) and chosen.dtype == np.float32
        np.testing.assert_allclose(chosen, expected[numbers], atol=1e-5)
    np.testing.assert_allclose(vectors[3], expected[3], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors[[0, 1, 2, 3, 4]], axis=1), 1, atol=1e-6)
    with pytest.raises(IndexError):
        vectors[5]


def test_the_second_time_they_are_read(views, encoder, monkeypatch, cached) -> None:
    first = vectors_of_model(views.rows, encoder, cache_root())
    monkeypatch.setattr(SentenceEncoder, "encode", lambda *_, **__: pytest.fail("encoded again"))
    again = vectors_of_model(views.rows, encoder, cache_root())
    assert again.folder == first.folder and len(cached()) == 1
    assert np.array_equal(again[[4, 0]], first[[4, 0]])


def test_a_worker_process_maps_the_file_itself(views, encoder) -> None:
    vectors = vectors_of_model(views.rows, encoder, cache_root())
    pickled = pickle.dumps(vectors)
    assert len(pickled) < 1000
    copy = pickle.loads(pickled)
    assert isinstance(copy, TeacherVectors) and np.array_equal(copy[[0, 4]], vectors[[0, 4]])


def test_a_copied_teacher_is_the_same_and_another_is_not(encoder, tmp_path: Path) -> None:
    copy = shutil.copytree(SAMPLES["encoder"], tmp_path / "elsewhere")
    assert identity_of(SentenceEncoder.from_pretrained(str(copy), pooler_type="avg")) == identity_of(encoder)
    others = [
        SentenceEncoder.from_pretrained(str(copy), pooler_type="cls_before_pooler"),
        SentenceEncoder.from_pretrained(str(copy), pooler_type="avg", prompt="query: "),
        SentenceEncoder.from_pretrained(str(copy), pooler_type="avg", max_seq_length=8),
        SentenceEncoder.from_pretrained(str(copy), pooler_type="avg", dtype=torch.bfloat16),
        SentenceEncoder.from_pretrained(str(copy), pooler_type="avg"),
    ]
    with torch.no_grad():
        next(iter(others[-1].model.parameters())).view(-1)[0] += 1e-3
    others.append(SentenceEncoder.from_pretrained(str(copy), pooler_type="avg"))
    others[-1].tokenizer.truncation_side = "left"
    assert len({identity_of(other) for other in [encoder, *others]}) == 7


def test_another_corpus_or_teacher_has_other_vectors(views, encoder, tmp_path: Path, cached) -> None:
    vectors_of_model(views.rows, encoder, cache_root())
    encoder.model.config.prompt = "질문: "
    vectors_of_model(views.rows, encoder, cache_root())
    (tmp_path / "other.tsv").write_text(PAIRS.replace("잔다", "논다"), encoding="utf-8")
    other = views_of_files([tmp_path / "other.tsv"], Reading(), cache_root())
    vectors_of_model(other.rows, encoder, cache_root())
    assert len(cached()) == 3


def test_a_teacher_that_gives_no_numbers_is_refused_and_nothing_stays(views, encoder, cached) -> None:
    with torch.no_grad():
        next(iter(encoder.model.parameters())).fill_(float("nan"))
    with pytest.raises(ModelError, match=r"the teacher's vector of '비가 온다\.' is not finite"):
        vectors_of_model(views.rows, encoder, cache_root())
    assert cached() == []


def test_the_arguments_name_a_teacher_model(views, encoder) -> None:
    arguments = ModelArguments(
        distillation="similarities",
        teacher_name_or_path="sample:encoder",
        teacher_pooler_type="avg",
        teacher_prompt="질문: ",
    )
    vectors = teacher_vectors(views, arguments, cache_root())
    encoder.model.config.prompt = "질문: "
    np.testing.assert_allclose(vectors[range(5)], unit(encoder.encode(DISTINCT)), atol=1e-5)


# --- vectors of a file ----------------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path: Path) -> tuple[Path, Path]:
    """More sentences than the corpus has, in another order, one of them twice and one decomposed."""
    lines = ["눈이 온다.", *reversed(DISTINCT), "비가 온다."]
    lines[2] = "\u1107\u1165\u1109\u1173가  늦었다."
    (tmp_path / "texts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    vectors = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    return tmp_path / "vectors.npy", tmp_path / "texts.txt"


def found(views, offline) -> TeacherVectors:
    return vectors_of_file(views.rows, offline[0], str(offline[1]), cache_root())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_vectors_are_found_by_the_text(views, offline, dtype, monkeypatch) -> None:
    monkeypatch.setattr(teacher, "_SENTENCES_AT_ONCE", 2)
    source = np.load(offline[0]).astype(dtype)
    np.save(offline[0], source)
    vectors = found(views, offline)
    assert vectors.shape == (5, 6)
    # The first of two equal lines counts: line 5, not 6.
    np.testing.assert_allclose(vectors[range(5)], unit(source[[5, 4, 3, 2, 1]].astype(np.float32)), atol=1e-3)
    assert np.array_equal(found(views, offline)[0], vectors[0])


def test_what_encode_writes_is_what_a_teacher_model_gives(views, encoder, tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("\n".join(DISTINCT) + "\n", encoding="utf-8")
    model = ["--model", "sample:encoder", "--pooler_type", "avg"]
    assert main(["encode", str(tmp_path / "all.txt"), *model, "--output", str(tmp_path / "all.npy")]) == 0
    arguments = ModelArguments(
        distillation="vectors",
        teacher_vectors=str(tmp_path / "all.npy"),
        teacher_sentences=str(tmp_path / "all.txt"),
    )
    by_file = teacher_vectors(views, arguments, cache_root())
    by_model = vectors_of_model(views.rows, encoder, cache_root())
    np.testing.assert_allclose(by_file[range(5)], by_model[range(5)], atol=1e-5)


def test_changed_vectors_are_read_again(views, offline) -> None:
    first = found(views, offline)[0].copy()
    np.save(offline[0], np.load(offline[0])[::-1])
    assert not np.allclose(found(views, offline)[0], first)


def test_a_training_sentence_without_a_vector_is_named(views, offline, cached) -> None:
    text = offline[1].read_text(encoding="utf-8")
    offline[1].write_text(text.replace("고양이가", "개가").replace("하늘에서", "밖에서"), encoding="utf-8")
    message = r"texts\.txt lacks the training sentence '하늘에서 비가 내린다\.' \(2 of 5 are lacking\).*Encode all"
    with pytest.raises(DataError, match=message):
        found(views, offline)
    assert cached() == []


def test_as_many_vectors_as_lines_are_needed(views, offline) -> None:
    np.save(offline[0], np.load(offline[0])[:-1])
    with pytest.raises(DataError, match=r"vectors\.npy holds 6 vectors and .*texts\.txt 7 sentences"):
        found(views, offline)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_vector_that_is_no_number_is_named_by_row(views, offline, broken: float, cached) -> None:
    vectors = np.load(offline[0])
    vectors[3, 2] = broken
    np.save(offline[0], vectors)
    with pytest.raises(DataError, match=r"vectors\.npy, row 4 \('고양이가 잔다\.'\): the vector is not finite"):
        found(views, offline)
    assert cached() == []


def test_a_broken_vector_that_no_sentence_needs_does_no_harm(views, offline) -> None:
    vectors = np.load(offline[0])
    vectors[0] = np.nan
    np.save(offline[0], vectors)
    assert np.isfinite(found(views, offline)[range(5)]).all()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(7, dtype=np.float32), r"holds float32 \(7,\); a teacher's vectors are floating-point numbers"),
        (np.zeros((7, 2, 2), dtype=np.float32), r"holds float32 \(7, 2, 2\)"),
        (np.zeros((7, 0), dtype=np.float32), r"holds float32 \(7, 0\)"),
        (np.zeros((7, 2), dtype=np.int8), r"holds int8 \(7, 2\)"),
        (np.zeros((7, 2), dtype=np.complex64), r"holds complex64 \(7, 2\)"),
        (np.array([[{}] * 2] * 7, dtype=object), r"vectors\.npy is not a \.npy file of numbers"),
    ],
)
def test_arrays_that_are_no_vectors_are_refused(views, offline, array: np.ndarray, message: str) -> None:
    np.save(offline[0], array, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        found(views, offline)


@pytest.mark.parametrize("content", [b"", b"not an array", b"\x93NUMPY\x01\x00"])
def test_files_that_are_no_arrays_are_refused(views, offline, content: bytes) -> None:
    offline[0].write_bytes(content)
    with pytest.raises(DataError, match=r"vectors\.npy is not a \.npy file of numbers"):
        found(views, offline)


def test_an_archive_of_arrays_is_refused(views, offline) -> None:
    with offline[0].open("wb") as file:
        np.savez(file, vectors=np.zeros((7, 2)))
    with pytest.raises(DataError, match=r"vectors\.npy holds an archive"):
        found(views, offline)


def test_a_file_cut_short_is_refused(views, offline) -> None:
    offline[0].write_bytes(offline[0].read_bytes()[:-10])
    with pytest.raises(DataError, match=r"vectors\.npy is not a \.npy file of numbers"):
        found(views, offline)


@pytest.mark.parametrize("number", [0, 1])
def test_missing_files_are_named(views, offline, number: int) -> None:
    offline[number].unlink()
    with pytest.raises(DataError, match=rf"there is no data file .*{offline[number].name}"):
        found(views, offline)
