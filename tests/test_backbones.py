"""Which encoders are taken, how they are loaded, and what their dropouts are called."""

from __future__ import annotations

import shutil
from pathlib import Path

import family_tokenizers as made
import pytest
import torch
from conftest import SENTENCES
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    BartConfig,
    BertConfig,
    BertModel,
    GPT2Config,
    MarianConfig,
    MBartConfig,
    ModernBertConfig,
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from simcse_hf import SentenceEncoder, SimCSEConfig, SimCSEModel
from simcse_hf.backbones import (
    ATTENTION_DROPOUTS,
    HIDDEN_DROPOUTS,
    auto_class,
    encoder_config,
    load_config,
    new_backbone,
    override_dropout,
    position_limit,
)
from simcse_hf.dropout_audit import audit_dropout
from simcse_hf.errors import ModelError
from simcse_hf.release import check_release, write_release

_SIZE = {"d_model": 16, "num_layers": 3, "num_heads": 2, "d_kv": 8, "d_ff": 24, "decoder_start_token_id": 0}
T5_KINDS = {
    "t5": (T5Config, T5ForConditionalGeneration),
    "mt5": (MT5Config, MT5ForConditionalGeneration),
    "umt5": (UMT5Config, UMT5ForConditionalGeneration),
}


@pytest.fixture
def t5_folder(tmp_path: Path):
    def make(kind: str = "t5", **settings) -> Path:
        tokenizer = made.t5()
        config_class, model_class = T5_KINDS[kind]
        config = config_class(vocab_size=len(tokenizer), **_SIZE, **settings)
        model_class(config).save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
        return tmp_path / kind

    return make


@pytest.mark.parametrize("kind", T5_KINDS)
@torch.no_grad()
def test_of_a_whole_t5_the_encoder_is_loaded(kind, t5_folder):
    folder = t5_folder(kind)
    model = SimCSEModel.from_backbone(str(folder), pooler_type="avg")
    whole = T5_KINDS[kind][1].from_pretrained(folder).eval()
    input_ids = torch.randint(3, 40, (2, 9))
    expected = whole.get_encoder()(input_ids).last_hidden_state
    assert torch.equal(model(input_ids).last_hidden_state, expected)
    names = {name for name, _ in model.named_parameters()}
    assert not any("decoder" in name or "lm_head" in name for name in names)
    assert "backbone.encoder.embed_tokens.weight" not in names, "the shared embedding would be trained twice"


@pytest.mark.parametrize("kind", T5_KINDS)
def test_an_encoder_without_decoder_is_a_t5_too(kind, t5_folder, tmp_path):
    folder = t5_folder(kind)
    AutoModelForTextEncoding.from_pretrained(folder).save_pretrained(tmp_path / "encoder")
    made.t5().save_pretrained(tmp_path / "encoder")
    whole, half = (
        SentenceEncoder.from_pretrained(str(path), pooler_type="avg").encode(made.SENTENCES)
        for path in (folder, tmp_path / "encoder")
    )
    assert (whole == half).all() and abs(whole).max() > 0


def test_a_t5_that_lacks_a_weight_is_refused(t5_folder):
    folder = t5_folder()
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.block.1.layer.0.SelfAttention.q.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 parameters are missing, for example encoder\.block\.1\.layer\.0\.Self"):
        SimCSEModel.from_backbone(str(folder), pooler_type="avg")


def test_a_t5_is_padded_and_padding_changes_no_vector(t5_folder):
    encoder = SentenceEncoder.from_pretrained(str(t5_folder()), pooler_type="avg", max_seq_length=64)
    assert encoder.model.row_layout() is None
    together = encoder.encode(SENTENCES)
    for sentence, vector in zip(SENTENCES, together, strict=True):
        assert abs(encoder.encode(sentence) - vector).max() <= 1e-6
    model = encoder.model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    rows = [encoder.tokenizer(sentence)["input_ids"] for sentence in made.SENTENCES[:4]]
    padded = encoder.tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    views = {name: tensor.view(2, 2, -1) for name, tensor in padded.items()}
    alone = torch.stack([model.embed(torch.tensor([row]), torch.ones(1, len(row)))[0][0] for row in rows])
    torch.testing.assert_close(model.embed_views(**views).flatten(0, 1), alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", T5_KINDS)
@pytest.mark.parametrize("pooler_type", ["avg", "avg_top2", "avg_first_last", "max"])
def test_a_released_t5_gives_its_vectors_through_every_loader(kind, pooler_type, t5_folder, tmp_path):
    model = SimCSEModel.from_backbone(str(t5_folder(kind)), pooler_type=pooler_type)
    (tmp_path / "release").mkdir()
    write_release(model, made.t5(), tmp_path / "release")
    differences = check_release(tmp_path / "release", model, made.SENTENCES)
    assert list(differences) == ["AutoModelForTextEncoding", "SimCSEModel", "SentenceEncoder", "SentenceTransformer"]
    assert max(differences.values()) <= 1e-5
    assert not [name for name in load_file(tmp_path / "release/model.safetensors") if "decoder" in name]


def test_t5s_one_dropout_is_both(t5_folder):
    folder = str(t5_folder(dropout_rate=0.0))
    options = {"pooler_type": "avg"}
    silent = audit_dropout(SimCSEModel.from_backbone(folder, **options), torch.arange(4, 9))
    assert (silent.hidden, silent.attention, silent.views_differ) == (0, 0, False)
    model = SimCSEModel.from_backbone(folder, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2, **options)
    audit = audit_dropout(model, torch.arange(4, 9))
    assert (audit.hidden, audit.attention, audit.views_differ) == (0.2, 0.2, True)
    assert model.backbone.encoder.block[1].layer[0].SelfAttention.dropout == 0.2
    with pytest.raises(
        ModelError, match=r"one dropout .* dropout_rate, which is 0\.2; .*prob 0\.3 cannot be set apart"
    ):
        SimCSEModel.from_backbone(folder, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3, **options)


def test_only_what_a_config_has_is_overridden():
    config = ModernBertConfig(mlp_dropout=0.5)
    override_dropout(config, HIDDEN_DROPOUTS, 0.2)
    override_dropout(config, ATTENTION_DROPOUTS, 0.3)
    override_dropout(config, HIDDEN_DROPOUTS, None)
    assert (config.mlp_dropout, config.embedding_dropout, config.attention_dropout) == (0.2, 0.2, 0.3)
    assert not hasattr(config, "dropout_rate") and not hasattr(config, "hidden_dropout_prob")
    with pytest.raises(ModelError, match="has none of the dropouts hidden_dropout_prob, .*leave the override out"):
        override_dropout(AutoConfig.for_model("clip_text_model"), HIDDEN_DROPOUTS, 0.1)


def test_new_backbones_are_encoders_alone():
    assert type(new_backbone(T5Config(vocab_size=40, **_SIZE))) is T5EncoderModel
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    bert = new_backbone(BertConfig(vocab_size=40, **size))
    assert type(bert) is BertModel and bert.pooler is None
    assert auto_class(MT5Config()) is AutoModelForTextEncoding and auto_class(BertConfig()) is AutoModel
    assert position_limit(T5Config()) is None


def test_the_encoder_of_a_bart_is_a_bert_of_its_size():
    bart = BartConfig(
        d_model=24, encoder_layers=2, encoder_attention_heads=3, encoder_ffn_dim=40, max_position_embeddings=30
    )
    bert = encoder_config(bart)
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    assert [getattr(bert, name) for name in sizes] == [24, 2, 3, 40, bart.vocab_size]
    assert (bert.pad_token_id, bert.layer_norm_eps, position_limit(bert)) == (1, 1e-5, 30)
    assert encoder_config(bert) is bert


@pytest.mark.parametrize("config", [GPT2Config(), MBartConfig(), MarianConfig()], ids=lambda config: config.model_type)
def test_decoders_and_other_encoder_decoders_are_refused(config, tmp_path):
    config.save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match=rf"a '{config.model_type}' model, .*of encoder-decoders, T5, mT5, UMT5 or BART"
    ):
        load_config(str(tmp_path))


def test_a_t5_config_in_a_checkpoint_is_a_t5_again(tmp_path):
    model = SimCSEModel(SimCSEConfig(text_config=T5Config(vocab_size=40, **_SIZE), pooler_type="avg"))
    model.save_pretrained(tmp_path / "ours")
    again = SimCSEModel.from_pretrained(tmp_path / "ours")
    assert type(again.backbone) is T5EncoderModel
    assert again.backbone.shared.weight is again.backbone.encoder.embed_tokens.weight
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    shutil.rmtree(tmp_path / "ours")
