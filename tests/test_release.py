"""A release loads anywhere and gives the trained model's vectors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BACKBONES, POOLERS, SENTENCES
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModel, BertTokenizer

from simcse_hf import SentenceEncoder, SimCSEConfig, SimCSEModel
from simcse_hf.errors import ModelError
from simcse_hf.release import TOLERANCE, check_release, encode_with_auto_model, write_release


def trained_model(text_config, kind: str = "bert", **settings) -> SimCSEModel:
    """Random weights with every bias and LayerNorm off its neutral start, so nothing can be lost unseen."""
    model = SimCSEModel(SimCSEConfig(text_config=text_config(kind), max_seq_length=40, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


CASES = [("bert", pooler) for pooler in POOLERS] + [(kind, "avg_first_last") for kind in BACKBONES if kind != "bert"]
CASES += [(kind, "cls") for kind in BACKBONES if kind != "bert"]


@pytest.mark.parametrize(("kind", "pooler_type"), CASES)
def test_four_loaders_agree(kind, pooler_type, text_config, tokenizer, tmp_path):
    model = trained_model(text_config, kind, pooler_type=pooler_type)
    write_release(model, tokenizer, tmp_path)
    differences = check_release(tmp_path, model, SENTENCES)
    assert set(differences) == {"AutoModel", "SimCSEModel", "SentenceEncoder", "SentenceTransformer"}
    assert all(difference is not None and difference <= TOLERANCE for difference in differences.values()), differences


@pytest.mark.parametrize(
    "settings",
    [
        {"pooler_type": "cls", "mlp_only_train": True},
        {"pooler_type": "avg_first_last", "first_hidden_state": 0},
        {"pooler_type": "avg", "prompt": "query: "},
    ],
)
def test_what_changes_the_vector_travels_with_the_release(settings, text_config, tokenizer, tmp_path):
    model = trained_model(text_config, **settings)
    write_release(model, tokenizer, tmp_path)
    check_release(tmp_path, model, SENTENCES)
    reloaded = SimCSEModel.from_pretrained(tmp_path)
    plain = {"pooler_type": "cls_before_pooler"} if settings.get("mlp_only_train") else settings
    for name, value in plain.items():
        if name != "mlp_only_train":
            assert getattr(reloaded.config, name) == value
    assert reloaded.config.max_seq_length == 40
    without = {"prompt": ""} if "prompt" in settings else {}
    if without:
        other = SentenceEncoder.from_pretrained(str(tmp_path), prompt="").encode(SENTENCES)
        assert np.abs(other - SentenceEncoder.from_pretrained(str(tmp_path)).encode(SENTENCES)).max() > 1e-3


def test_automodel_alone_gives_the_vectors_where_this_package_is_not_installed(text_config, tokenizer, tmp_path):
    model = trained_model(text_config, pooler_type="cls")
    write_release(model, tokenizer, tmp_path / "release")
    program = """
import sys, json
sys.modules["simcse_hf"] = None
import torch
from transformers import AutoModel, AutoTokenizer
folder, sentences, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
with torch.no_grad():
    vectors = model(**tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")).pooler_output
torch.save(vectors, out)
"""
    arguments = [str(tmp_path / "release"), json.dumps(SENTENCES), str(tmp_path / "out.pt")]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True, cwd=tmp_path)
    expected = SentenceEncoder(model, tokenizer, device="cpu").encode(SENTENCES)
    assert np.abs(torch.load(tmp_path / "out.pt").numpy() - expected).max() <= TOLERANCE


def test_nothing_in_a_release_is_random_or_pickled(text_config, tokenizer, tmp_path):
    model = trained_model(text_config, pooler_type="avg")
    write_release(model, tokenizer, tmp_path)
    _, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".py")]


def test_the_pooling_config_is_written_in_the_schema_every_server_reads(text_config, tokenizer, tmp_path):
    """vLLM and llama.cpp take the compact schema of sentence-transformers 5.4 for CLS."""
    write_release(trained_model(text_config, pooler_type="avg"), tokenizer, tmp_path)
    pooling = json.loads((tmp_path / "1_Pooling/config.json").read_text(encoding="utf-8"))
    assert pooling["pooling_mode_mean_tokens"] is True and pooling["pooling_mode_cls_token"] is False
    assert pooling["word_embedding_dimension"] == 32
    modules = json.loads((tmp_path / "modules.json").read_text(encoding="utf-8"))
    assert [module["type"] for module in modules] == [
        "sentence_transformers.models.Transformer",
        "sentence_transformers.models.Pooling",
    ]


def test_a_release_that_lost_its_head_is_not_published(text_config, tokenizer, tmp_path):
    """simple-simcse-ja dropped a head that belonged to the vector, without a word."""
    model = trained_model(text_config, pooler_type="cls")
    write_release(model, tokenizer, tmp_path)
    with torch.no_grad():
        model.head.dense.bias.add_(0.5)
    with pytest.raises(ModelError, match="does not give the vectors of the trained model through AutoModel"):
        check_release(tmp_path, model, SENTENCES)


def test_a_tokenizer_that_is_another_one_when_it_is_loaded_again_is_not_released(text_config, tokenizer, tmp_path):
    """BertTokenizer builds its rules anew, and then splits what this one keeps together."""
    changed = BertTokenizer(
        vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "네": 5, ".": 6, "네.": 7},
        do_lower_case=False,
    )
    changed.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    assert 7 in changed("네.")["input_ids"]
    with pytest.raises(
        ModelError, match=r"does not survive saving: '네\.' was \[2, 7, 3\] and is \[2, 5, 6, 3\] .* BertTok"
    ):
        write_release(trained_model(text_config, pooler_type="avg"), changed, tmp_path)


def test_the_check_restores_the_mode_of_the_model(text_config, tokenizer, tmp_path):
    model = trained_model(text_config, pooler_type="avg")
    write_release(model, tokenizer, tmp_path)
    check_release(tmp_path, model.train(), SENTENCES)
    assert model.training and model.backbone.encoder.layer[0].output.dropout.training


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
def test_folders_that_sentence_transformers_writes_are_read(mode, backbone_dir, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer

    transformer = Transformer(str(backbone_dir("bert")), max_seq_length=40)
    peer = SentenceTransformer(modules=[transformer, Pooling(32, pooling_mode=mode), Normalize()], device="cpu")
    peer.save_pretrained(str(tmp_path))
    ours = SentenceEncoder.from_pretrained(str(tmp_path)).encode(SENTENCES)
    assert np.abs(ours - peer.encode(SENTENCES)).max() <= TOLERANCE
    assert np.linalg.norm(ours, axis=1) == pytest.approx(1, abs=1e-5)


def test_sentence_transformers_models_of_other_shapes_are_refused_by_name(backbone_dir, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Pooling, Transformer

    transformer = Transformer(str(backbone_dir("bert")))
    two = [Dense(32, 16), Dense(16, 8)]
    SentenceTransformer(modules=[transformer, Pooling(32), *two], device="cpu").save_pretrained(str(tmp_path / "two"))
    with pytest.raises(ModelError, match="Transformer -> Pooling -> Dense -> Dense"):
        SimCSEModel.from_pretrained(tmp_path / "two")
    SentenceTransformer(
        modules=[transformer, Pooling(32, pooling_mode="mean"), Dense(32, 16)], device="cpu"
    ).save_pretrained(str(tmp_path / "dense"))
    with pytest.raises(ModelError, match="only the tanh head behind cls pooling"):
        SimCSEModel.from_pretrained(tmp_path / "dense")
    SentenceTransformer(modules=[transformer, Pooling(32, pooling_mode=("cls", "mean"))], device="cpu").save_pretrained(
        str(tmp_path / "both")
    )
    with pytest.raises(ModelError, match="only cls, mean or max alone"):
        SimCSEModel.from_pretrained(tmp_path / "both")


def test_layer_mixtures_other_than_ours_are_refused(text_config, tokenizer, tmp_path):
    from safetensors.torch import save_file

    write_release(trained_model(text_config, pooler_type="avg_top2"), tokenizer, tmp_path)
    weights = next(Path(tmp_path).glob("*_WeightedLayerPooling/model.safetensors"))
    save_file({"layer_weights": torch.tensor([1.0, 3.0])}, weights)
    with pytest.raises(ModelError, match=r"mixes its layers with the weights \[1.0, 3.0\]"):
        SimCSEModel.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(ModelError, match="only safetensors weights are read"):
        SimCSEModel.from_pretrained(tmp_path)


def test_the_recipe_of_the_model_card_is_the_one_that_is_checked(text_config, tokenizer, tmp_path):
    model = trained_model(text_config, pooler_type="max")
    write_release(model, tokenizer, tmp_path)
    with torch.no_grad():
        expected = SentenceEncoder(model, tokenizer, device="cpu").encode(SENTENCES)
        assert np.abs(encode_with_auto_model(tmp_path, SENTENCES) - expected).max() <= TOLERANCE
