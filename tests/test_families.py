"""Every family of encoders, as its folders are published: trained, stored, released, loaded again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import family_tokenizers as made
import numpy as np
import pytest
import torch
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.modeling_utils import PreTrainedModel

from simcse_hf import SentenceEncoder, SimCSETrainingArguments
from simcse_hf.arguments import DataArguments, ModelArguments
from simcse_hf.train import TrainingRun, train

_SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_T5_SIZE = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 32, "decoder_start_token_id": 0}
_BART_SIZE = {
    "d_model": 16,
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 32),
}
_KLUE_ROBERTA = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")


@dataclass(frozen=True, kw_only=True)
class Family:
    """One published encoder in small.

    Attributes:
        model: The class of transformers whose weights are published.
        size: Its configuration.
        tokenizer: Writes the tokenizer's files to a folder, and returns its tokens in the order of their ids.
        pooler_type: To train with.
        released: The class that AutoModel, or the class the card names, gives for the release.
        first, last: Tokens at the ends of every sentence; None where the tokenizer adds none.
        packs: Whether training packs.
    """

    model: str
    size: dict
    tokenizer: Callable[[Path], list[str]]
    released: str
    pooler_type: str = "cls"
    first: str | None = "[CLS]"
    last: str | None = "[SEP]"
    packs: bool = True


def saved(make: Callable[[], PreTrainedTokenizerBase]) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        tokenizer = make()
        tokenizer.save_pretrained(folder)
        return tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))

    return write


_T5 = {"tokenizer": saved(made.t5), "pooler_type": "avg", "first": None, "last": "</s>", "packs": False}
FAMILIES = {
    "klue-bert": Family(
        model="BertForMaskedLM",
        size=_SIZE,
        tokenizer=lambda folder: made.wordpiece(folder, tokenizer_class="BertTokenizer"),
        released="BertModel",
    ),
    "klue-roberta": Family(
        model="RobertaForMaskedLM",
        size=_SIZE | {"type_vocab_size": 1, "tokenizer_class": "BertTokenizer"},
        tokenizer=lambda folder: made.wordpiece(folder, _KLUE_ROBERTA, tokenizer_class="BertTokenizer"),
        released="RobertaModel",
    ),
    "kobert": Family(model="BertModel", size=_SIZE, tokenizer=made.kobert, released="BertModel"),
    "koelectra": Family(
        model="ElectraForPreTraining",
        size=_SIZE | {"embedding_size": 8},
        tokenizer=lambda folder: made.wordpiece(folder, tokenizer_class="ElectraTokenizer"),
        released="ElectraModel",
    ),
    "distilbert": Family(
        model="DistilBertForMaskedLM",
        size={"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
        tokenizer=lambda folder: made.wordpiece(folder, tokenizer_class="DistilBertTokenizer"),
        released="DistilBertModel",
    ),
    "xlm-roberta": Family(
        model="XLMRobertaForMaskedLM",
        size=_SIZE,
        tokenizer=saved(made.xlm_roberta),
        released="XLMRobertaModel",
        first="<s>",
        last="</s>",
    ),
    "deberta": Family(
        model="DebertaForMaskedLM", size=_SIZE, tokenizer=saved(made.deberta), released="DebertaModel", packs=False
    ),
    "deberta-v2": Family(
        model="DebertaV2ForMaskedLM",
        size=_SIZE,
        tokenizer=saved(made.deberta_v2),
        released="DebertaV2Model",
        packs=False,
    ),
    "modernbert": Family(
        model="ModernBertForMaskedLM",
        size=_SIZE | {"cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3, "mlp_dropout": 0.1},
        tokenizer=saved(made.modernbert),
        released="ModernBertModel",
    ),
    "t5": Family(model="T5ForConditionalGeneration", size=_T5_SIZE, released="T5EncoderModel", **_T5),
    "mt5": Family(model="MT5ForConditionalGeneration", size=_T5_SIZE, released="MT5EncoderModel", **_T5),
    "umt5": Family(model="UMT5ForConditionalGeneration", size=_T5_SIZE, released="UMT5EncoderModel", **_T5),
    "bart": Family(
        model="BartForConditionalGeneration",
        size=_BART_SIZE,
        tokenizer=saved(made.roberta),
        released="BertModel",
        first="<s>",
        last="</s>",
    ),
    "kobart": Family(
        model="BartModel",
        size=_BART_SIZE | {"attention_dropout": 0.1, "activation_dropout": 0.1},
        tokenizer=saved(made.kobart),
        released="BertModel",
        pooler_type="avg",
        first=None,
        last=None,
    ),
}


def publish(family: Family, folder: Path) -> PreTrainedModel:
    """Write an encoder with random weights, and its tokenizer, as its family does; returns the model."""
    folder.mkdir()
    tokens = family.tokenizer(folder)
    pad = next(index for index, token in enumerate(tokens) if token.lower() in ("[pad]", "<pad>"))
    model_class = getattr(transformers, family.model)
    torch.manual_seed(3)
    config = model_class.config_class(
        vocab_size=len(tokens), pad_token_id=pad, **{"max_position_embeddings": 64} | family.size
    )
    model = model_class(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Family], TrainingRun]:
    def start(family: Family) -> TrainingRun:
        publish(family, tmp_path / "encoder")
        file = tmp_path / "train.tsv"
        rows = zip(made.SENTENCES, made.SENTENCES[1:], made.SENTENCES[2:], strict=False)
        file.write_text("anchor\tpositive\tnegative\n" + "".join("\t".join(row) + "\n" for row in rows), "utf-8")
        return train(
            ModelArguments(
                model_name_or_path=str(tmp_path / "encoder"), pooler_type=family.pooler_type, max_seq_length=24
            ),
            DataArguments(train_file=[str(file)], eval_task="none"),
            SimCSETrainingArguments(
                output_dir=str(tmp_path / "released"),
                use_cpu=True,
                disable_tqdm=True,
                report_to="none",
                max_steps=2,
                eval_steps=1,
                save_steps=1,
                per_device_train_batch_size=4,
                learning_rate=1e-3,
            ),
        )

    return start


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_trained_stored_released_and_loaded_again(
    name: str, run: Callable[[Family], TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = FAMILIES[name]
    outcome = run(family)
    folder = outcome.output_dir

    # The pieces of the sentence between the special tokens of its class, and few unknown ones.
    tokens = [outcome.tokenizer.convert_ids_to_tokens(ids) for ids in outcome.tokenizer(made.SENTENCES)["input_ids"]]
    added = [token is not None for token in (family.first, family.last)]
    assert all(sentence[0] == family.first for sentence in tokens) is added[0]
    assert all(sentence[-1] == family.last for sentence in tokens) is added[1]
    assert not any(outcome.tokenizer.unk_token in sentence for sentence in tokens)
    assert outcome.model.config.max_seq_length == 24 and outcome.tokenizer.padding_side == "right"
    assert (outcome.model.row_layout() is not None) is family.packs

    # Nothing of it is random, and all loaders agree: those of the check, and the stored ones.
    check = outcome.record["release_check"]
    assert all(difference is not None and difference <= 1e-5 for difference in check.values()), check
    expected = SentenceEncoder(outcome.model, outcome.tokenizer).encode(made.SENTENCES)
    for stored in (folder, folder / "checkpoint-2"):
        again = SentenceEncoder.from_pretrained(str(stored))
        assert again.tokenizer(made.SENTENCES)["input_ids"] == outcome.tokenizer(made.SENTENCES)["input_ids"]
        np.testing.assert_allclose(again.encode(made.SENTENCES), expected, atol=1e-5)
    assert (
        AutoTokenizer.from_pretrained(folder)(made.SENTENCES[1])["input_ids"][0]
        == again.tokenizer(made.SENTENCES[1])["input_ids"][0]
    )

    # The code of the model card, as it stands there.
    code = (folder / "README.md").read_text(encoding="utf-8").split("transformers only:")[1].split("```")[1]
    monkeypatch.chdir(folder.parent)
    names: dict = {}
    exec(code.removeprefix("python"), names)
    assert type(names["model"]).__name__ == family.released
    np.testing.assert_allclose(names["embeddings"], again.encode(names["sentences"]), atol=1e-5)
