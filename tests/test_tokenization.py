"""Tokenizers: loaded whole, refused when they do not fit the encoder."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import family_tokenizers
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaConfig,
    T5Config,
    TokenizersBackend,
)

from simcse_hf.errors import ModelError
from simcse_hf.sample import SAMPLES
from simcse_hf.tokenization import check_tokenizer, load_tokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the sample tokenizer without its model."""
    for name in TOKENIZER_FILES:
        shutil.copy(SAMPLES["encoder"] / name, tmp_path)
    return tmp_path


def test_a_tokenizer_is_loaded_from_its_files_alone(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    loaded = load_tokenizer(str(folder))
    assert len(loaded) == len(tokenizer) == 8000
    assert loaded("비가 온다.")["input_ids"] == tokenizer("비가 온다.")["input_ids"]


def test_an_empty_folder_has_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"cannot load a tokenizer from '{tmp_path}': \S"):
        load_tokenizer(str(tmp_path))


def test_a_broken_tokenizer_file_is_an_error_of_one_line(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(ModelError, match=rf"cannot load a tokenizer from '{folder}': .+") as caught:
        load_tokenizer(str(folder))
    assert "\n" not in str(caught.value)


def test_a_hub_name_without_network_is_named() -> None:
    with pytest.raises(ModelError, match=r"cannot load a tokenizer from 'no-such/tokenizer': \S"):
        load_tokenizer("no-such/tokenizer")


def test_an_error_without_words_is_called_by_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_pretrained(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr("simcse_hf.tokenization.AutoTokenizer.from_pretrained", from_pretrained)
    with pytest.raises(ModelError, match=r"from 'mine': NotImplementedError$"):
        load_tokenizer("mine")


@pytest.mark.parametrize("config", [BertConfig(), RobertaConfig(), T5Config()], ids=lambda config: config.model_type)
def test_a_model_folder_without_tokenizer_files_is_refused(tmp_path: Path, config) -> None:
    """transformers makes up a tokenizer there, to which every Korean word is unknown."""
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has no vocabulary: put its tokenizer\.json or vocab\.txt beside"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_that_cannot_pad_is_refused(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"'{folder}' has no padding token; set one with tokenizer\.pad_token"):
        load_tokenizer(str(folder))


SYLLABLES = {token: number for number, token in enumerate(["[PAD]", "[CLS]", "[SEP]", *"비온다눈이네내일"])}


@pytest.mark.parametrize(
    "model",
    [
        models.WordLevel(SYLLABLES, unk_token="[UNK]"),
        models.WordPiece(SYLLABLES, unk_token="[UNK]"),
        models.Unigram([(piece, -1.0) for piece in SYLLABLES], None),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_tokenizer_without_an_unknown_token_is_sound(
    model: models.Model, tmp_path: Path, text_config: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    """It fails at what its vocabulary lacks, and cuts what that holds."""
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", SYLLABLES["[CLS]"]), ("[SEP]", SYLLABLES["[SEP]"])]
    )
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer("비온다")["input_ids"] == [1, 3, 4, 5, 2]
    check_tokenizer(tokenizer, text_config(vocab_size=len(SYLLABLES)), 16, reads_cls=True)
    assert f"'{tmp_path}' has no unknown token and fails at a text with a character" in caplog.text


@pytest.mark.parametrize("panic", [TypeError("wrong"), type("PanicException", (BaseException,), {})("range.")])
def test_a_tokenizer_that_fails_at_every_text_is_refused(
    folder: Path, panic: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    for failure in (panic, Exception("never.")):

        def fail(*_, failure: BaseException = failure, **__):
            raise failure

        monkeypatch.setattr(TokenizersBackend, "__call__", fail)
        with pytest.raises(ModelError, match=r"cannot cut a text: (wrong|range|never)\. It is damaged\.$"):
            load_tokenizer(str(folder))


def test_a_tokenizer_that_fails_at_a_rare_character_for_another_reason_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = TokenizersBackend.__call__

    def fail(tokenizer: TokenizersBackend, text: str, **options):
        if text != "가":
            raise TypeError("wrong")
        return cut(tokenizer, text, **options)

    monkeypatch.setattr(TokenizersBackend, "__call__", fail)
    with pytest.raises(ModelError, match=r"cannot cut a text: wrong\. It is damaged\.$"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
def test_a_tokenizer_that_fits_is_let_through(
    tokenizer: PreTrainedTokenizerBase, text_config: Callable, kind: str
) -> None:
    check_tokenizer(tokenizer, text_config(kind), 128, reads_cls=True)


def test_more_tokens_than_embeddings_are_refused_with_both_counts(
    tokenizer: PreTrainedTokenizerBase, text_config: Callable
) -> None:
    check_tokenizer(tokenizer, text_config(vocab_size=8000), 64)
    check_tokenizer(tokenizer, text_config(vocab_size=9000), 64)
    with pytest.raises(ModelError, match="knows 8,000 tokens but the model embeds 7,999: .* saved beside the model"):
        check_tokenizer(tokenizer, text_config(vocab_size=7999), 64)


def test_another_padding_id_is_refused_with_both_ids(tokenizer: PreTrainedTokenizerBase, text_config: Callable) -> None:
    with pytest.raises(ModelError, match="pads with id 0 but the model with 1: they do not belong together"):
        check_tokenizer(tokenizer, text_config(pad_token_id=1), 64)
    check_tokenizer(tokenizer, text_config(pad_token_id=None), 64)
    other = copy.deepcopy(tokenizer)
    other.pad_token = other.sep_token
    with pytest.raises(ModelError, match="pads with id 3 but the model with 0"):
        check_tokenizer(other, text_config(), 64)


# RoBERTa counts positions from padding_idx + 1, here 1.
@pytest.mark.parametrize(("kind", "limit"), [("bert", 40), ("electra", 40), ("roberta", 39), ("xlm-roberta", 39)])
def test_longer_sentences_than_positions_are_refused_with_the_limit(
    tokenizer: PreTrainedTokenizerBase, text_config: Callable, kind: str, limit: int
) -> None:
    config = text_config(kind, max_position_embeddings=40)
    check_tokenizer(tokenizer, config, limit)
    with pytest.raises(ModelError, match=rf"max_seq_length is {limit + 1}, .* positions for {limit} .*Use {limit}"):
        check_tokenizer(tokenizer, config, limit + 1)


def test_relative_positions_have_no_limit(tokenizer: PreTrainedTokenizerBase) -> None:
    check_tokenizer(tokenizer, T5Config(vocab_size=len(tokenizer), pad_token_id=0), 100_000)


def test_a_cls_pooler_needs_the_cls_token_in_front(
    folder: Path, tokenizer: PreTrainedTokenizerBase, text_config: Callable
) -> None:
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["post_processor"]["single"].sort(key=lambda piece: "Sequence" not in piece)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    cls_last = load_tokenizer(str(folder))
    assert cls_last("가")["input_ids"][0] != tokenizer.cls_token_id in cls_last("가")["input_ids"]
    check_tokenizer(cls_last, text_config(), 64)
    with pytest.raises(ModelError, match=r"does not put its \[CLS\] token first .* or pooler_type avg"):
        check_tokenizer(cls_last, text_config(), 64, reads_cls=True)


def test_a_tokenizer_without_cls_is_named_where_the_pooler_reads_it(text_config: Callable) -> None:
    kobart = family_tokenizers.kobart()
    config = text_config(vocab_size=len(kobart), pad_token_id=kobart.pad_token_id)
    check_tokenizer(kobart, config, 64)
    with pytest.raises(ModelError, match=r"has no \[CLS\] token \(those of T5 and KoBART have none\).*pooler_type avg"):
        check_tokenizer(kobart, config, 64, reads_cls=True)


def test_padding_is_on_the_right(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"padding_side": "left"}))
    tokenizer = load_tokenizer(str(folder))
    short = tokenizer(["네", "내일은 비가 오겠습니다"], padding=True)["attention_mask"][0]
    assert short[0] == 1 and short[-1] == 0


@pytest.mark.skipif(
    any(find_spec(name) for name in ("sentencepiece", "tiktoken")), reason="what would be missing is installed"
)
def test_a_sentencepiece_model_without_its_package_names_the_package(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(family_tokenizers.sentencepiece_file([("<unk>", 0.0, 2), ("가", -1.0, 1)]))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="it is a SentencePiece model, .*: pip install sentencepiece protobuf"):
        load_tokenizer(str(tmp_path))
