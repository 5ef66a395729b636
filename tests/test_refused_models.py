"""Damaged models and late refusals: one clear line each, never random weights."""

from __future__ import annotations

import json
from pathlib import Path

import family_tokenizers
import pytest
from conftest import reconfigure, says, training
from transformers import AutoConfig, AutoModelForTextEncoding

from simcse_hf import SimCSEModel


@pytest.fixture
def checkpoint(tmp_path, backbone_dir, tokenizer) -> Path:
    SimCSEModel.from_backbone(str(backbone_dir()), pooler_type="avg").save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


def both_refuse(folder, good, refused, *fragments):
    says(refused(training(good | {"model_name_or_path": folder})), str(folder), *fragments)
    says(refused(["eval", folder, "--pooler_type", "avg", "--tasks", "sample:sts"]), str(folder), *fragments)


def cut(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])


def test_backbones_cut_off_weights(model_dir, good, refused):
    cut(model_dir)
    both_refuse(model_dir, good, refused)


def test_backbones_wrong_type_in_config(model_dir, good, refused):
    reconfigure(model_dir, hidden_size="x")
    both_refuse(model_dir, good, refused, "hidden_size")


def test_backbones_mismatched_shape_is_explained(model_dir, good, refused):
    reconfigure(model_dir, intermediate_size=128)
    both_refuse(model_dir, good, refused, "intermediate.dense", "64", "128")


def test_backbones_attention_that_is_not_installed(good, refused):
    says(refused(training(good | {"attn_implementation": "flash_attention_2"})), "lash")


def test_ours_without_weights(checkpoint, good, refused):
    (checkpoint / "model.safetensors").unlink()
    both_refuse(checkpoint, good, refused)


def test_ours_cut_off(checkpoint, good, refused):
    cut(checkpoint)
    both_refuse(checkpoint, good, refused)


def test_ours_with_missing_weights_is_not_filled_with_random_ones(checkpoint, good, refused):
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    (checkpoint / "config.json").write_text(json.dumps(config))
    both_refuse(checkpoint, good, refused, "missing")


def test_ours_with_missing_head_is_not_filled_with_a_random_one(checkpoint, good, refused):
    reconfigure(checkpoint, pooler_type="cls")
    both_refuse(checkpoint, good, refused, "head")


def test_ours_with_another_shape(checkpoint, good, refused):
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 128
    (checkpoint / "config.json").write_text(json.dumps(config))
    both_refuse(checkpoint, good, refused)


@pytest.mark.parametrize("change", [{"pooler_type": "mean"}, {"temperature": -1.0}, {"max_seq_length": 1}], ids=str)
def test_ours_with_a_wrong_config(change, checkpoint, good, refused):
    reconfigure(checkpoint, **change)
    both_refuse(checkpoint, good, refused, *change)


@pytest.mark.parametrize("text", ["{x", "[]", '{"a": 1}', "[1]", '[{"idx": 0}]'])
def test_layout_broken_modules_json(text, model_dir, good, refused):
    (model_dir / "modules.json").write_text(text)
    both_refuse(model_dir, good, refused, "modules.json")


@pytest.mark.parametrize(
    "change",
    [
        {"report_to": "wandb"},
        {"report_to": "foo"},
        {"lr_scheduler_kwargs": "abc"},
        {"use_liger_kernel": True},
        {"adam_beta1": 2},
    ],
    ids=str,
)
def test_what_trainer_refuses_late(change, good, refused):
    says(refused(training(good | change)), *map(str, change.values()) if "report_to" in change else ())


def test_encoder_too_short(refused):
    for length in ("1", "2"):
        argv = ["eval", "sample:encoder", "--pooler_type", "avg", "--tasks", "sample:sts", "--max_seq_length", length]
        says(refused(argv), f"max_seq_length is {length}")


def test_encoder_refuses_a_negative_batch(tokenizer, backbone_dir):
    from simcse_hf import SentenceEncoder

    encoder = SentenceEncoder.from_pretrained(str(backbone_dir()), pooler_type="avg")
    with pytest.raises(ValueError, match="batch_tokens is -1; it must be at least 1"):
        encoder.encode(["가", "나"], batch_tokens=-1)


def test_a_diverged_last_step_is_named(good, refused):
    argv = training(good | {"max_steps": 1, "learning_rate": 1e30, "write_release": True})
    says(refused(argv), "not finite", "learning_rate")


def test_tokenizer_path_that_is_not_there(good, refused):
    message = refused(training(good | {"tokenizer_name": "/nowhere"}))
    assert "Repo id" not in message and "/nowhere" in message


@pytest.mark.parametrize(("kind", "size"), [("mbart", {"encoder_layers": 1}), ("gpt2", {"n_layer": 1})])
def test_a_decoder_is_refused_by_name(kind, size, tmp_path, tokenizer, good, refused):
    AutoConfig.for_model(kind, vocab_size=len(tokenizer), **size).save_pretrained(tmp_path / kind)
    tokenizer.save_pretrained(tmp_path / kind)
    both_refuse(tmp_path / kind, good, refused, kind, "not (only) a bidirectional encoder", "T5, mT5, UMT5 or BART")


def test_a_cls_pooler_is_refused_where_there_is_no_cls(tmp_path, good, refused):
    tokenizer = family_tokenizers.t5()
    config = AutoConfig.for_model(
        "t5", d_model=32, num_layers=1, num_heads=2, d_kv=16, d_ff=32, vocab_size=len(tokenizer)
    )
    AutoModelForTextEncoding.from_config(config).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    message = refused(training(good | {"model_name_or_path": tmp_path / "t5", "pooler_type": "cls"}))
    says(message, "no [CLS] token", "T5 and KoBART", "pooler_type avg")


def test_home_of_nobody_in_a_data_path(good, refused):
    says(refused(training(good | {"train_file": "~nobody-of-this-name/a.txt"})), "there is no data file")
