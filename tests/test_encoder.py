"""Encoding: order, equal sentences, batches and prompts."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import BACKBONES, POOLERS, SENTENCES
from test_distributed import spawn

from simcse_hf import SentenceEncoder, SimCSEConfig, SimCSEModel
from simcse_hf.benchmark import run_benchmark
from simcse_hf.errors import ModelError
from simcse_hf.pooling import pool
from simcse_hf.search import search


@pytest.fixture(scope="module")
def encoder(text_config, tokenizer) -> SentenceEncoder:
    torch.manual_seed(0)
    return SentenceEncoder(
        SimCSEModel(SimCSEConfig(text_config=text_config(), pooler_type="avg")), tokenizer, device="cpu"
    )


def test_order_batch_tokens_and_repetition_change_nothing(encoder):
    texts = [*SENTENCES, SENTENCES[1], *SENTENCES[::-1]]
    one_by_one = np.stack([encoder.encode(text) for text in texts])
    for batch_tokens in (1, 60, 16_384):
        np.testing.assert_allclose(encoder.encode(texts, batch_tokens=batch_tokens), one_by_one, atol=2e-6)
    assert one_by_one.dtype == np.float32 and one_by_one.shape == (13, 32)
    assert np.abs(one_by_one[0] - one_by_one[1]).max() > 1e-2


def test_equal_sentences_are_computed_once(encoder, monkeypatch):
    counts = []
    embed = encoder._embed
    monkeypatch.setattr(encoder, "_embed", lambda batch: counts.append(len(batch)) or embed(batch))
    encoder.encode(["비가 와요.", "눈이 와요.", "비가  와요. ", "비가 와요."])
    assert counts == [2]


@pytest.mark.parametrize("batch_tokens", [1, 40, 100, 16_384])
def test_a_batch_has_so_many_tokens_at_most_or_one_sentence(batch_tokens, encoder, monkeypatch):
    batches = []
    embed = encoder._embed
    monkeypatch.setattr(encoder, "_embed", lambda batch: batches.append([len(ids) for ids in batch]) or embed(batch))
    encoder.encode(SENTENCES, batch_tokens=batch_tokens)
    lengths = [length for batch in batches for length in batch]
    assert lengths == sorted(lengths, reverse=True) and len(lengths) == len(SENTENCES)
    assert all(len(batch) == 1 or len(batch) * batch[0] <= batch_tokens for batch in batches)
    for batch, after in zip(batches, batches[1:], strict=False):
        assert (len(batch) + 1) * batch[0] > batch_tokens, f"{after[0]} tokens would have fitted"


@pytest.mark.parametrize("pooler_type", POOLERS)
@pytest.mark.parametrize("kind", BACKBONES)
def test_the_vectors_are_those_of_each_sentence_alone_through_the_plain_encoder(
    kind, pooler_type, text_config, tokenizer
):
    """Packed where the encoder can be; the reference is transformers without padding."""
    config = text_config(kind, **({"local_attention": 16} if kind == "modernbert" else {}))
    model = SimCSEModel(SimCSEConfig(text_config=config, pooler_type=pooler_type, max_seq_length=40))
    encoder = SentenceEncoder(model, tokenizer, device="cpu")
    assert (model.row_layout() is None) == kind.startswith("deberta")
    found = encoder.encode(SENTENCES, batch_tokens=100)
    model.backbone.set_attn_implementation("eager")
    for vector, sentence in zip(found, SENTENCES, strict=True):
        inputs = tokenizer(sentence, truncation=True, max_length=40, return_tensors="pt")
        with torch.no_grad():
            layers = model.backbone(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], output_hidden_states=True
            )
            expected = pool(
                pooler_type, (*layers.hidden_states[:-1], layers.last_hidden_state), inputs["attention_mask"]
            )
            expected = expected if model.head is None else model.head(expected)
        np.testing.assert_allclose(vector, expected[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "deberta"])
def test_bfloat16_points_the_same_way_as_float32(kind, backbone_dir):
    exact, rounded = (
        SentenceEncoder.from_pretrained(str(backbone_dir(kind)), pooler_type="avg", dtype=dtype, device="cpu")
        for dtype in (torch.float32, torch.bfloat16)
    )
    vectors = [encoder.encode(SENTENCES, normalize=True) for encoder in (exact, rounded)]
    assert vectors[1].dtype == np.float32 and not np.array_equal(*vectors)
    assert (vectors[0] * vectors[1]).sum(axis=1).min() > 0.99


# --- several processes ----------------------------------------------------------------------------------------------

SEVEN = [*SENTENCES, "하나 더."]  # shares of four and three


def worker(index: int, processes: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=index, world_size=processes)
    try:
        encoder = SentenceEncoder.from_pretrained(folder, pooler_type="avg", device="cpu")
        embed, computed = encoder._embed, []
        encoder._embed = lambda batch: computed.append(len(batch)) or embed(batch)
        found = {
            "all": encoder.encode([*SEVEN, SEVEN[0]], batch_tokens=60, across_processes=True),
            "computed": sum(computed),
            "unit": encoder.encode(SEVEN, normalize=True, across_processes=True),
            "one": encoder.encode(SEVEN[1], across_processes=True),
            "none": encoder.encode([], across_processes=True),
        }
        np.savez(Path(folder) / f"{index}.npz", **found)
    finally:
        dist.destroy_process_group()


def test_processes_share_the_sentences_and_each_gets_all_vectors(backbone_dir, tmp_path):
    folder = shutil.copytree(backbone_dir("bert"), tmp_path / "encoder")
    spawn(worker, 2, str(folder))
    encoder = SentenceEncoder.from_pretrained(str(folder), pooler_type="avg", device="cpu")
    found = [np.load(folder / f"{index}.npz") for index in range(2)]
    assert [int(each["computed"]) for each in found] == [4, 3]
    for each in found:
        np.testing.assert_allclose(each["all"], encoder.encode([*SEVEN, SEVEN[0]]), atol=2e-6)
        np.testing.assert_allclose(each["unit"], encoder.encode(SEVEN, normalize=True), atol=2e-6)
        np.testing.assert_allclose(each["one"], encoder.encode(SEVEN[1]), atol=2e-6)
        assert each["none"].shape == (0, 32)
    assert np.array_equal(found[0]["all"], found[1]["all"])


def test_one_process_shares_with_nobody(encoder):
    assert np.array_equal(encoder.encode(SENTENCES, across_processes=True), encoder.encode(SENTENCES))


# --- text and folders -----------------------------------------------------------------------------------------------


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
