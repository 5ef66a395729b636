"""Encoding: order, equal sentences, batches and prompts."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SENTENCES

from simcse_hf import SentenceEncoder, SimCSEConfig, SimCSEModel
from simcse_hf.benchmark import run_benchmark
from simcse_hf.errors import ModelError
from simcse_hf.search import search


@pytest.fixture(scope="module")
def encoder(text_config, tokenizer) -> SentenceEncoder:
    torch.manual_seed(0)
    return SentenceEncoder(
        SimCSEModel(SimCSEConfig(text_config=text_config(), pooler_type="avg")), tokenizer, device="cpu"
    )


def test_order_batch_size_and_repetition_change_nothing(encoder):
    texts = [*SENTENCES, SENTENCES[1], *SENTENCES[::-1]]
    one_by_one = np.stack([encoder.encode(text) for text in texts])
    for batch_size in (1, 3, 64):
        np.testing.assert_allclose(encoder.encode(texts, batch_size=batch_size), one_by_one, atol=2e-6)
    assert one_by_one.dtype == np.float32 and one_by_one.shape == (13, 32)
    assert np.abs(one_by_one[0] - one_by_one[1]).max() > 1e-2


def test_equal_sentences_are_computed_once(encoder, monkeypatch):
    rows = []
    embed = encoder.model.embed
    monkeypatch.setattr(encoder.model, "embed", lambda ids, mask: rows.append(len(ids)) or embed(ids, mask))
    encoder.encode(["비가 와요.", "눈이 와요.", "비가  와요. ", "비가 와요."])
    assert rows == [2]


def test_decomposed_hangul_is_the_same_sentence(encoder):
    composed = "한국어 문장입니다."
    decomposed = unicodedata.normalize("NFD", composed)
    assert decomposed != composed
    assert np.array_equal(encoder.encode(decomposed), encoder.encode(composed))


def test_normalize_gives_unit_vectors_and_similarity_is_the_cosine(encoder):
    vectors = encoder.encode(SENTENCES, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(encoder.similarity(SENTENCES, SENTENCES), vectors @ vectors.T, atol=1e-5)
    assert encoder.similarity("비가 와요.", SENTENCES).shape == (1, 6)


def test_no_sentences_give_no_rows(encoder):
    assert encoder.encode([]).shape == (0, 32)


def test_a_plain_encoder_needs_a_pooler(backbone_dir):
    folder = str(backbone_dir("bert"))
    with pytest.raises(ModelError, match="does not say how to pool its tokens. Give a pooler_type"):
        SentenceEncoder.from_pretrained(folder)
    with pytest.raises(ModelError, match="Use cls_before_pooler for the bare"):
        SentenceEncoder.from_pretrained(folder, pooler_type="cls")
    described = SentenceEncoder.from_pretrained(
        folder, pooler_type="max", prompt="질문: ", max_seq_length=12
    ).describe()
    assert (described["pooler_type"], described["prompt"], described["max_seq_length"]) == ("max", "질문: ", 12)


def test_a_checkpoint_says_how_it_pools_and_is_believed(text_config, tokenizer, tmp_path):
    model = SimCSEModel(SimCSEConfig(text_config=text_config(), pooler_type="max")).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    believed = SentenceEncoder.from_pretrained(str(tmp_path), pooler_type="avg")
    assert believed.describe()["pooler_type"] == "max"
    np.testing.assert_array_equal(
        believed.encode(SENTENCES), SentenceEncoder(model, tokenizer, device="cpu").encode(SENTENCES)
    )


def test_the_published_search_example_is_reproduced(models_dir):
    """Nine sentences and three queries of the KoSimCSE README: the same best hits."""
    example = json.loads((Path(__file__).parent / "golden/search_example.json").read_text(encoding="utf-8"))
    encoder = SentenceEncoder.from_pretrained(str(models_dir / "ko-e5-small"), pooler_type="avg", prompt="query: ")
    queries = list(example["best_hit"])
    found = search(encoder, queries, example["corpus"], top_k=5)
    assert {query: hits[0].sentence for query, hits in zip(queries, found, strict=True)} == example["best_hit"]
    for hits in found:
        assert len(hits) == 5 and [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert all(example["corpus"][hit.index] == hit.sentence for hit in hits)


def test_the_published_score_of_the_shared_encoder_is_reproduced(models_dir, data_dir):
    torch.set_num_threads(2)
    try:
        score = run_benchmark(
            [str(models_dir / "ko-e5-mini")], ["korsts-dev"], data_dir=str(data_dir), pooler_type="avg"
        )[0]
    finally:
        torch.set_num_threads(1)
    assert score.result.num_pairs == 1500
    assert 100 * score.result.metrics["cosine_spearman"] == pytest.approx(72.17, abs=0.02)
