"""BART's encoder and the BERT made of it are one function."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import family_tokenizers as made
import numpy as np
import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, BartModel

from simcse_hf import SentenceEncoder, SimCSEModel
from simcse_hf.attention import PACKED_ATTENTION
from simcse_hf.bart import bert_config_of, bert_of
from simcse_hf.errors import DataError, ModelError

POSITIONS = 20


def bart_config(**settings) -> BartConfig:
    size = {"d_model": 24, "max_position_embeddings": POSITIONS, "vocab_size": 50, "pad_token_id": 3}
    layers = {"encoder_layers": 3, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 2}
    return BartConfig(**{**size, **layers, "encoder_ffn_dim": 40, "decoder_ffn_dim": 16, **settings})


def bart(**settings) -> BartModel:
    """Random weights with every bias and LayerNorm off its neutral start."""
    model = BartModel(bart_config(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    """Sentences of all positions, of some, and of a single token."""
    input_ids = torch.randint(4, 50, (3, POSITIONS))
    mask = torch.ones_like(input_ids)
    mask[1, 7:] = mask[2, 1:] = 0
    return {"input_ids": input_ids.where(mask == 1, 3), "attention_mask": mask}


@pytest.mark.parametrize("settings", [{}, {"scale_embedding": True}, {"activation_function": "relu"}], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@torch.no_grad()
def test_token_vectors_are_those_of_barts_encoder(settings, dtype, tolerance, inputs):
    model = bart(**settings).to(dtype)
    bert = bert_of(model.encoder)
    assert bert.dtype == dtype and not bert.training and bert.pooler is None
    assert not bert.embeddings.token_type_embeddings.weight.any()
    expected = model.encoder(**inputs, output_hidden_states=True)
    found = bert(**inputs, output_hidden_states=True)
    real = inputs["attention_mask"].bool()
    assert (found.last_hidden_state - expected.last_hidden_state)[real].abs().max() <= tolerance
    assert len(found.hidden_states) == len(expected.hidden_states) == 4
    for ours, barts in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert (ours - barts)[real].abs().max() <= tolerance
    padded = bert(inputs["input_ids"]).last_hidden_state
    assert (padded - expected.last_hidden_state)[1, :7].abs().max() > 1e-3, "the mask does nothing here"


@torch.no_grad()
def test_one_position_more_than_there_are_fits_neither():
    model = bart()
    too_long = torch.randint(4, 50, (1, POSITIONS + 1))
    for encoder in (model.encoder, bert_of(model.encoder)):
        with pytest.raises((IndexError, RuntimeError)):
            encoder(too_long)


def test_dropouts_act_where_bart_has_them(caplog):
    config = bert_config_of(bart_config(dropout=0.2, attention_dropout=0.3))
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.2, 0.3)
    bert = bert_of(bart(dropout=0.2, attention_dropout=0.3).encoder)
    layer = bert.encoder.layer[0]
    places = (bert.embeddings, layer.attention.self, layer.attention.output, layer.output)
    assert [place.dropout.p for place in places] == [0.2, 0.3, 0.2, 0.2]
    assert not caplog.records


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"activation_dropout": 0.1}, "which has no activation_dropout (0.1 in this model);"),
        (
            {"activation_dropout": 0.1, "encoder_layerdrop": 0.05},
            "no activation_dropout (0.1 in this model) and no encoder_layerdrop (0.05 in this model);",
        ),
    ],
)
def test_what_bert_does_not_have_is_named(settings, said, caplog):
    with caplog.at_level(logging.WARNING):
        bert_of(bart(**settings).encoder)
    assert said in caplog.text and len(caplog.records) == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = made.kobart()
    tokenizer.save_pretrained(tmp_path / "kobart")
    config = bart_config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    BartForConditionalGeneration(config).save_pretrained(tmp_path / "kobart")
    return tmp_path / "kobart"


@torch.no_grad()
def test_a_folder_of_bart_gives_the_mean_of_its_encoders_vectors(folder):
    encoder = SentenceEncoder.from_pretrained(str(folder), pooler_type="avg", max_seq_length=POSITIONS)
    assert encoder.model.backbone.config._attn_implementation == PACKED_ATTENTION
    assert encoder.model.config.text_config.model_type == "bert"
    vectors = encoder.encode(made.SENTENCES)
    original = BartModel.from_pretrained(folder).encoder.eval()
    for sentence, vector in zip(made.SENTENCES, vectors, strict=True):
        input_ids = torch.tensor([encoder.tokenizer(sentence, truncation=True, max_length=POSITIONS)["input_ids"]])
        np.testing.assert_allclose(vector, original(input_ids).last_hidden_state[0].mean(dim=0), atol=1e-5)


def test_a_sentence_without_tokens_has_no_vector(folder):
    """KoBART's tokenizer adds no token to an empty sentence."""
    encoder = SentenceEncoder.from_pretrained(str(folder), pooler_type="avg", max_seq_length=POSITIONS)
    for sentences in (["", "네."], [" "]):
        with pytest.raises(DataError, match=r"the sentence '' has no tokens.*Leave it out"):
            encoder.encode(sentences)
    assert encoder.encode([]).shape == (0, 24)


def test_overrides_and_eager_attention_reach_the_bert(folder):
    model = SimCSEModel.from_backbone(
        str(folder),
        pooler_type="avg",
        hidden_dropout_prob=0.25,
        attention_probs_dropout_prob=0.15,
        attn_implementation="eager",
    )
    assert model.backbone.config._attn_implementation == "eager"
    assert model.backbone.encoder.layer[0].output.dropout.p == model.config.text_config.hidden_dropout_prob == 0.25
    assert model.backbone.encoder.layer[0].attention.self.dropout.p == 0.15


def test_an_encoder_without_its_decoder_is_enough_and_nothing_less(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if ".decoder." not in name}
    assert len(kept) < len(weights)
    for name, tensors in (("half", kept), ("less", {k: v for k, v in kept.items() if "layers.1.fc2" not in k})):
        shutil.copytree(folder, tmp_path / name)
        save_file(tensors, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    whole, half = (
        SentenceEncoder.from_pretrained(str(path), pooler_type="avg", max_seq_length=POSITIONS).encode(made.SENTENCES)
        for path in (folder, tmp_path / "half")
    )
    np.testing.assert_array_equal(whole, half)
    with pytest.raises(ModelError, match=r"2 parameters are missing, for example encoder\.layers\.1\.fc2"):
        SimCSEModel.from_backbone(str(tmp_path / "less"), pooler_type="avg")


def test_a_head_cannot_start_from_a_pooler_that_bart_has_not(folder):
    with pytest.raises(ModelError, match="has no pretrained pooler"):
        SimCSEModel.from_backbone(str(folder), pooler_type="cls", head_init="backbone")
