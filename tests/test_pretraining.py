"""The scripts that make the encoder in the package: what they read, what they learn from, and that they can be cut off."""

from __future__ import annotations

import importlib
import json
import lzma
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, SENTENCES
from transformers import AutoModel, AutoModelForMaskedLM, BertConfig, BertForMaskedLM, PreTrainedTokenizerBase

from simcse_hf.errors import ConfigError
from simcse_hf.files import sha256_of
from simcse_hf.masking import IGNORED
from simcse_hf.packing import RowLayout
from simcse_hf.sample import SAMPLES
from simcse_hf.sentence_store import SentenceStore

TEXT = SAMPLES["sentences"].read_text(encoding="utf-8").splitlines()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """`script("corpus")`: a module of scripts/pretraining."""
    monkeypatch.syspath_prepend(REPOSITORY / "scripts" / "pretraining")
    return importlib.import_module


@pytest.fixture
def data_folder(script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of two sources and an evaluation set that overlaps with them."""
    folder = tmp_path / "data"
    (folder / "unlabeled").mkdir(parents=True)
    (folder / "KorSTS").mkdir()
    seen = [TEXT[0], TEXT[1], TEXT[5].replace(" ", "") + "  !"]
    lines = ["genre\tfilename\tyear\tid\tscore\tsentence1\tsentence2"]
    lines += [f"g\tf\t2012\t{row}\t3.0\t{sentence}\t{TEXT[0]}" for row, sentence in enumerate(seen)]
    (folder / "KorSTS" / "sts-dev.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, sentences in {"general": TEXT[:400], "films": [TEXT[390] + ".", *TEXT[400:500]]}.items():
        with lzma.open(folder / "unlabeled" / f"{name}.txt.xz", "wt", encoding="utf-8") as file:
            file.write("\n".join(sentences) + "\n")
    corpus = script("corpus")
    monkeypatch.setattr(corpus, "REVIEWS", "films")
    monkeypatch.setattr(corpus, "SOURCES", corpus._unlabelled("CC0 1.0", "general", "films"))
    monkeypatch.setenv("SIMCSE_DATA_DIR", str(folder))
    return folder


def test_no_sentence_of_an_evaluation_set_is_read_however_it_is_spaced(script, data_folder: Path):
    found = script("corpus").collect(data_folder)
    assert found.sentences == [TEXT[2], TEXT[3], TEXT[4], *TEXT[6:500]]
    assert found.kept_out["korsts-dev"] == 3 and "sample:sts" in found.kept_out
    general, films = found.sources
    assert (general["sentences"], general["left_out_for_evaluation"]) == (397, 3)
    assert (films["sentences"], films["left_out_for_evaluation"]) == (100, 0), "the first differs in a full stop alone"


def test_reviews_are_taken_evenly_from_the_whole_file(script, data_folder: Path):
    found = script("corpus").collect(data_folder, reviews=11)
    assert found.sentences[397:] == [TEXT[position] for position in range(409, 500, 10)]
    assert not script("corpus").collect(data_folder, reviews=0).sources[1]["sentences"]


def test_the_sources_exist_and_none_is_named_twice(script, data_dir: Path):
    sources = script("corpus").SOURCES
    files = [file for source in sources for file in source.files]
    assert len(set(files)) == len(files) and all((data_dir / file).is_file() for file in files)
    assert not any("parakqc" in file or "sts-dev" in file or "sts-test" in file for file in files)


ODD = ["漢字와 한글 😀", "뷁쀍똠 ꥠ", "Ｈｅｌｌｏ　１２３", "가나다라…「따옴표」"]


@pytest.mark.parametrize("kind", ["unigram", "bpe", "byte_bpe"])
def test_nothing_is_unknown_to_a_tokenizer_that_knows_bytes(script, kind: str):
    tokenizer = script("tokenizer").train_tokenizer(TEXT, kind, 3000, max_length=64)
    assert len(tokenizer) <= 3000
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]) == [0, 1, 2, 3, 4]
    for sentence in [*TEXT, *ODD]:
        ids = tokenizer(sentence)["input_ids"]
        assert ids[0] == 2 and ids[-1] == 3 and 1 not in ids
        plain = " ".join(unicodedata.normalize("NFKC", sentence).split())
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == plain
        assert tokenizer(unicodedata.normalize("NFD", sentence))["input_ids"] == ids


def test_fertility_counts_pieces_words_and_what_is_unknown(script):
    module = script("tokenizer")
    tokenizer = module.train_tokenizer(TEXT, "wordpiece", 3000, max_length=64)
    sentences = ["오늘은 비가", "ꥠ 온다"]
    pieces = [piece for sentence in sentences for piece in tokenizer.tokenize(sentence)]
    found = module.fertility(tokenizer, sentences)
    assert found["pieces_per_word"] == len(pieces) / 4
    assert found["characters_per_piece"] == 10 / len(pieces)
    assert found["unknown_share"] == 1 / len(pieces) and found["byte_share"] == 0
    tokenizer = module.train_tokenizer(TEXT, "bpe", 3000, max_length=64)
    pieces = [piece for sentence in sentences for piece in tokenizer.tokenize(sentence)]
    assert module.fertility(tokenizer, sentences)["byte_share"] == 3 / len(pieces)


@pytest.mark.parametrize("kind", ["unigram", "bpe", "byte_bpe", "wordpiece"])
def test_a_word_begins_behind_a_space_and_punctuation_is_its_own(script, kind: str):
    module = script("tokenizer")
    tokenizer = module.train_tokenizer(TEXT, kind, 2600, max_length=64)
    begins = module.starts_word(tokenizer)
    ids = tokenizer("고양이가 창가에서 졸고 있습니다.", add_special_tokens=False)["input_ids"]
    words = 4 if kind == "wordpiece" else 5  # BERT's full stop begins a word as well, but ends the ids in one piece
    assert sum(begins[token] for token in ids) in (words, 5)
    assert begins[ids[0]] and len(ids) > 5


def test_another_kind_of_tokenizer_is_refused(script):
    with pytest.raises(ValueError, match="no tokenizer kind 'bbpe'; there are unigram"):
        script("tokenizer").train_tokenizer(TEXT, "bbpe", 3000, max_length=64)


def masked_batch(script, tokenizer: PreTrainedTokenizerBase, row_length: int = 64) -> dict[str, torch.Tensor]:
    module = script("masked_lm")
    sentences = module.Sentences(SentenceStore.build(SENTENCES * 3, tokenizer, max_length=48))
    batch = module.RowsCollator(tokenizer.pad_token_id, RowLayout(row_length))([*sentences])
    ids, labels = module.Masking(tokenizer, rate=0.3)(batch["input_ids"])
    return batch | {"input_ids": ids, "labels": labels}


def test_real_tokens_alone_are_to_be_guessed_and_labels_say_what_they_were(script, tokenizer):
    batch = masked_batch(script, tokenizer)
    store = SentenceStore.build(SENTENCES * 3, tokenizer, max_length=48)
    ids, labels = batch["input_ids"].flatten(), batch["labels"].flatten()
    original = torch.where(labels == IGNORED, ids, labels)
    asked = 0
    for index, (start, length) in enumerate(zip(batch["sentence_starts"], batch["sentence_lengths"], strict=True)):
        sentence = original[start : start + length]
        assert sentence.tolist() == store[index].tolist()
        own = labels[start : start + length]
        assert own[0] == own[-1] == IGNORED
        asked += int((own != IGNORED).sum())
    assert asked == int((labels != IGNORED).sum()) > 20
    special = {tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id}
    assert not set(ids[labels != IGNORED].tolist()) & special


@pytest.mark.parametrize("row_length", [64, 4096])
def test_packed_masked_lm_is_berts_own_over_padded_sentences(script, tokenizer, row_length: int):
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    packed = script("masked_lm").PackedMaskedLM(config).double().train()
    padded = BertForMaskedLM(config).double().train()
    padded.load_state_dict(packed.state_dict())
    batch = masked_batch(script, tokenizer, row_length)
    longest = int(batch["sentence_lengths"].max())
    inputs = torch.zeros(len(batch["sentence_lengths"]), longest, dtype=torch.int64)
    labels, mask = torch.full_like(inputs, IGNORED), torch.zeros_like(inputs)
    for index, (start, length) in enumerate(zip(batch["sentence_starts"], batch["sentence_lengths"], strict=True)):
        inputs[index, :length] = batch["input_ids"].flatten()[start : start + length]
        labels[index, :length] = batch["labels"].flatten()[start : start + length]
        mask[index, :length] = 1
    # The loss is computed in float32, as everywhere in training.
    ours = packed(**batch).loss
    reference = padded(input_ids=inputs, attention_mask=mask, labels=labels).loss
    assert ours.item() == pytest.approx(reference.item(), rel=1e-6)
    ours.backward()
    reference.backward()
    for (name, own), (_, other) in zip(packed.named_parameters(), padded.named_parameters(), strict=True):
        assert torch.allclose(own.grad, other.grad, atol=1e-6), name


TINY = {
    "tokenizer": "bpe",
    "vocab_size": 2600,
    "layers": 1,
    "hidden_size": 32,
    "heads": 2,
    "feed_forward": 64,
    "max_length": 48,
    "mask_rate": 0.3,
    "whole_words": True,
    "dropout": 0.1,
    "reviews": 50,
    "batch_sentences": 16,
    "steps": 6,
    "learning_rate": 1e-3,
    "warmup": 0.1,
    "schedule": "cosine",
    "weight_decay": 0.01,
    "seed": 1,
}


class CutOff(Exception):
    pass


def test_pretraining_that_was_cut_off_ends_in_the_same_weights(script, data_folder: Path, tmp_path: Path, monkeypatch):
    module = script("pretrain")
    recipe = module.Recipe(**TINY)
    module.pretrain(recipe, tmp_path / "whole", save_steps=2)

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise CutOff

    with monkeypatch.context() as patch, pytest.raises(CutOff):
        patch.setattr(module.Clock, "on_step_begin", stop)
        patch.setattr(module.Clock, "on_step_end", lambda *args, **kwargs: None)
        module.pretrain(recipe, tmp_path / "cut", save_steps=2)
    assert (tmp_path / "cut" / "checkpoint-4").is_dir() and not (tmp_path / "cut" / "encoder").exists()
    module.pretrain(recipe, tmp_path / "cut", save_steps=2)

    whole, resumed = (AutoModelForMaskedLM.from_pretrained(tmp_path / name / "encoder") for name in ("whole", "cut"))
    for (name, one), (_, other) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert whole.dtype == torch.float16 and whole.config.hidden_dropout_prob == 0.1
    assert whole.config.architectures == ["BertForMaskedLM"]
    encoder = AutoModel.from_pretrained(tmp_path / "whole" / "encoder")
    assert torch.equal(encoder.embeddings.word_embeddings.weight, whole.bert.embeddings.word_embeddings.weight)
    record = json.loads((tmp_path / "cut" / "training.json").read_text(encoding="utf-8"))
    assert record["recipe"] == TINY and record["parameters"] == whole.num_parameters()
    described = json.loads((tmp_path / "cut" / "corpus.json").read_text(encoding="utf-8"))
    assert described["unknown_share"] == 0 and described["kept_out"]["korsts-dev"] == 3

    with pytest.raises(ConfigError, match=r"run with other settings \(layers\)\. Name another --output"):
        module.pretrain(module.Recipe(**TINY | {"layers": 2}), tmp_path / "cut", save_steps=2)


def test_principal_axes_keep_the_most_of_the_centred_cosines(script):
    module = script("distill")
    vectors = np.random.default_rng(0).normal(size=(200, 12)).astype(np.float32) * np.linspace(3, 0.1, 12) + 1
    reduced = module.principal_axes(vectors, 5)
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    _, strengths, axes = np.linalg.svd(centred, full_matrices=False)
    assert np.allclose(np.abs(reduced), np.abs(centred @ axes[:5].T), atol=1e-4)
    assert np.allclose((reduced**2).sum(), (strengths[:5] ** 2).sum(), rtol=1e-4)
    whole = module.principal_axes(vectors, 12)
    assert np.allclose(whole @ whole.T, centred @ centred.T, atol=1e-3)


def test_a_student_learns_where_its_teacher_points(
    script, data_folder: Path, tmp_path: Path, backbone_dir, monkeypatch
):
    module = script("distill")
    monkeypatch.setenv("SIMCSE_MODELS_DIR", str(backbone_dir().parent))
    settings = {
        "student": backbone_dir(num_hidden_layers=1),
        "output": tmp_path / "student",
        "teacher": backbone_dir().name,
        "prompt": "",
        "sentences": 300,
        "epochs": 8.0,
        "batch_sentences": 16,
        "learning_rate": 3e-3,
        "seed": 1,
    }
    module.distill(**settings)
    record = json.loads((tmp_path / "student" / "distillation.json").read_text(encoding="utf-8"))
    assert record["loss_curve"][-1]["loss"] < 0.8 * record["loss_curve"][0]["loss"]
    assert record["settings"]["teacher"] == backbone_dir().name and record["sentences"] == 300
    vectors = np.load(tmp_path / "student" / "teacher.npy")
    assert np.allclose(np.linalg.norm(vectors.astype(np.float32), axis=1), 1, atol=1e-2)
    assert AutoModel.from_pretrained(tmp_path / "student" / "encoder").dtype == torch.float16
    with pytest.raises(ConfigError, match="holds 300 vectors, but there are 200 sentences"):
        module.distill(**settings | {"sentences": 200})


def test_mean_input_embeddings_leave_special_tokens_out(script, backbone_dir, tokenizer: PreTrainedTokenizerBase):
    table = AutoModel.from_pretrained(backbone_dir()).get_input_embeddings().weight.detach().double()
    found = script("score").mean_input_embeddings(backbone_dir(), SENTENCES)
    for sentence, vector in zip(SENTENCES, found, strict=True):
        ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(sentence))
        assert torch.allclose(torch.from_numpy(vector).double(), table[ids].mean(dim=0), atol=1e-6)


def test_a_random_encoder_has_the_shape_and_the_tokenizer_of_the_other(script, backbone_dir, tmp_path: Path):
    like = AutoModel.from_pretrained(backbone_dir())
    made = {seed: script("score").random_encoder(backbone_dir(), tmp_path / str(seed), seed) for seed in (1, 2)}
    tables = [AutoModel.from_pretrained(folder).get_input_embeddings().weight for folder in made.values()]
    assert tables[0].shape == like.get_input_embeddings().weight.shape
    assert not torch.equal(tables[0], tables[1])
    tokenizers = [json.loads((folder / "tokenizer.json").read_text()) for folder in (made[1], backbone_dir())]
    for each in tokenizers:  # how it was last called is written there too
        del each["truncation"], each["padding"]
    assert tokenizers[0] == tokenizers[1]


def test_the_document_and_the_card_say_what_was_measured_on_what_is_shipped(script):
    document = script("document")
    assert document.REPORT.read_text(encoding="utf-8") == document.report()
    assert document.CARD.read_text(encoding="utf-8") == document.card()
    scored = json.loads((document.RESULTS / "distilled.json").read_text(encoding="utf-8"))
    assert scored["weights_sha256"] == sha256_of(SAMPLES["encoder"] / "model.safetensors")
    training = json.loads((document.RESULTS / "training.json").read_text(encoding="utf-8"))
    recipe = json.loads((document.HERE / "recipe.json").read_text(encoding="utf-8"))
    assert training["recipe"] == recipe and training["steps"] == recipe["steps"]
