"""KoBERT's tokenizer: SentencePiece's own pieces, between [CLS] and [SEP]."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import family_tokenizers as made
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertConfig, XLNetTokenizer

from simcse_hf.errors import ModelError
from simcse_hf.sentencepiece_tokenizer import SentencePieceModel, read_sentencepiece, tokenizer_of
from simcse_hf.tokenization import check_tokenizer, load_tokenizer

TOKENS = list(made.KOBERT_TOKENS)


def unigram_model(**changes) -> SentencePieceModel:
    pieces = made.unigram(TOKENS)
    kinds = [2, 3, 3, 3, 3] + [1] * (len(pieces) - 5)
    return SentencePieceModel(
        **{"pieces": pieces, "kinds": kinds, "algorithm": 1, "unknown_id": 0, "character_map": b""} | changes
    )


def bpe_model(merged: list[str]) -> SentencePieceModel:
    """Pieces in the order in which they were learned, then the letters, as SentencePiece's trainer writes them."""
    texts = [*TOKENS, *merged, "▁", *sorted({letter for piece in merged for letter in piece} - {"▁"})]
    pieces = [(text, 0.0 if index < 5 else 5.0 - index) for index, text in enumerate(texts)]
    return unigram_model(pieces=pieces, kinds=[2, 3, 3, 3, 3] + [1] * (len(pieces) - 5), algorithm=2)


def best_cut(word: str, scores: dict[str, float]) -> list[str]:
    """Every way to cut a word into pieces, and the likeliest of them (arXiv:1804.10959, Eq. 4); slow."""
    unknown = min(scores.values()) - 10

    def ways(rest: str) -> list[tuple[float, list[str]]]:
        if not rest:
            return [(0.0, [])]
        found = []
        for end in range(1, len(rest) + 1):
            piece = rest[:end]
            if piece in scores or end == 1:
                tails = ways(rest[end:])
                found += [(scores.get(piece, unknown) + score, [piece, *tail]) for score, tail in tails]
        return found

    return max(ways(word))[1]


def merge_pairs(word: str, scores: dict[str, float]) -> list[str]:
    """Byte-pair encoding one merge at a time: always the pair whose union has the best score."""
    pieces = list(word)
    while True:
        unions = [(scores[left + right], -i) for i, (left, right) in enumerate(zip(pieces, pieces[1:], strict=False))
                  if left + right in scores]  # fmt: skip
        if not unions:
            return pieces
        i = -max(unions)[1]
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


def by_definition(text: str, model: SentencePieceModel, cut) -> list[int]:
    ids = {piece: index for index, (piece, _) in enumerate(model.pieces)}
    scores = {piece: score for (piece, score), kind in zip(model.pieces, model.kinds, strict=True) if kind == 1}
    found = [ids["[CLS]"]]
    for word in text.split():
        inside = [ids.get(piece, model.unknown_id) for piece in cut("▁" + word, scores)]
        found += [id for i, id in enumerate(inside) if id != model.unknown_id or inside[i - 1 : i] != [id]]
    return [*found, ids["[SEP]"]]


@pytest.mark.parametrize("text", [*made.SENTENCES, "고추를  말리고\t팔았다", "버스가 Z로 QX 왔다", "숲"])
def test_unigram_pieces_are_the_likeliest(text):
    model = unigram_model()
    tokenizer = tokenizer_of(model, {})
    assert tokenizer(text)["input_ids"] == by_definition(text, model, best_cut)


@pytest.mark.parametrize("text", ["나무가 나라가", "나나무가 무가나", "나무 무무무", "가나무가??", "QX나무"])
def test_byte_pairs_are_merged_in_the_order_of_their_scores(text):
    model = bpe_model(["나무", "▁나", "무가", "▁나무", "나라", "▁나무가"])
    tokenizer = tokenizer_of(model, {})
    assert tokenizer(text)["input_ids"] == by_definition(text, model, merge_pairs)
    assert len(tokenizer("나무가")["input_ids"]) == 3  # one piece


def test_letters_of_hangul_are_composed_and_accents_dropped():
    tokenizer = tokenizer_of(unigram_model(), {})
    decomposed = unicodedata.normalize("NFD", made.SENTENCES[1])
    assert decomposed != made.SENTENCES[1]
    ids = tokenizer(made.SENTENCES[1])["input_ids"]
    assert tokenizer(decomposed)["input_ids"] == ids and tokenizer.unk_token_id not in ids
    pieces = [*made.unigram(TOKENS), ("e", -5.0), ("é", -5.0), ("a", -5.0)]
    model = unigram_model(pieces=pieces, kinds=[2, 3, 3, 3, 3] + [1] * (len(pieces) - 5))
    for settings, text, tokens in (
        ({}, "é", ["▁", "e"]),
        ({"keep_accents": True}, "é", ["▁", "é"]),
        ({"do_lower_case": True}, "A", ["▁", "a"]),
    ):
        assert tokenizer_of(model, settings).tokenize(text) == tokens
    assert tokenizer_of(model, {})("A")["input_ids"][2] == 0


_WITH_COMMA = [*made.unigram(TOKENS), ("3,", -0.1), (",", -9.0)]


@pytest.mark.parametrize(
    "model",
    [
        unigram_model(pieces=_WITH_COMMA, kinds=[2, 3, 3, 3, 3] + [1] * (len(_WITH_COMMA) - 5)),
        bpe_model(["3,"]),
    ],
    ids=["unigram", "bpe"],
)
def test_a_comma_behind_a_digit_is_a_piece_of_its_own(model):
    assert tokenizer_of(model, {}).tokenize("3,")[-2:] == ["3", ","]


def test_symbols_of_the_users_are_kept_whole():
    pieces = [*made.unigram(TOKENS), ("<이름>", 0.0)]
    model = unigram_model(pieces=pieces, kinds=[2, 3, 3, 3, 3] + [1] * (len(pieces) - 6) + [4])
    tokenizer = tokenizer_of(model, {})
    assert tokenizer.convert_tokens_to_ids("<이름>") == len(pieces) - 1 and len(tokenizer) == len(pieces)
    assert "<이름>" in tokenizer.tokenize("네 <이름> 네")
    assert tokenizer.decode(tokenizer("네 <이름>")["input_ids"], skip_special_tokens=True).count("<이름>") == 1


def test_pairs_are_separated_and_named():
    tokenizer = tokenizer_of(unigram_model(), {})
    pair = tokenizer("네.", "버스가", return_token_type_ids=True)
    left, right = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("네.", "버스가"))
    assert pair["input_ids"] == [2, *left, 3, *right, 3]
    assert pair["token_type_ids"] == [0] * (len(left) + 2) + [1] * (len(right) + 1)


def test_a_special_token_that_is_no_piece_is_named():
    with pytest.raises(ModelError, match=r"has no piece <cls>, which the tokenizer wants as its cls_token"):
        tokenizer_of(unigram_model(), {"cls_token": {"content": "<cls>"}})


@given(
    st.lists(
        st.tuples(st.text(max_size=300), st.floats(width=32, allow_nan=False), st.sampled_from([1, 2, 3, 4, 5, 6])),
        min_size=1,
        max_size=20,
    ),
    st.sampled_from([1, 2]),
    st.integers(0, 2**31),
    st.binary(max_size=300),
)
def test_a_model_file_is_read_as_it_was_written(tmp_path_factory, pieces, algorithm, unknown_id, character_map):
    path = tmp_path_factory.mktemp("spm") / "spiece.model"
    content = made.sentencepiece_file(pieces, algorithm=algorithm, unknown_id=unknown_id, character_map=character_map)
    path.write_bytes(content)
    expected = SentencePieceModel(
        [piece[:2] for piece in pieces], [piece[2] for piece in pieces], algorithm, unknown_id, character_map
    )
    assert read_sentencepiece(path) == expected


@given(st.binary(max_size=200))
def test_other_files_are_refused_in_one_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("spm") / "spiece.model"
    path.write_bytes(content)
    try:
        assert read_sentencepiece(path).pieces
    except ModelError as error:
        assert str(path) in str(error) and "\n" not in str(error)


def test_a_cut_file_and_another_algorithm_are_refused(tmp_path):
    path = tmp_path / "spiece.model"
    whole = made.sentencepiece_file([("가", -1.0, 1), ("나", -2.0, 1)])
    path.write_bytes(whole[:9])
    with pytest.raises(ModelError, match=r"is not a SentencePiece model \(it ends in the middle of a field\)"):
        read_sentencepiece(path)
    for content in (whole[:12], made.sentencepiece_file([("가", -1.0, 1)], algorithm=4)):  # cut behind a piece; words
        path.write_bytes(content)
        with pytest.raises(ModelError, match="no whole SentencePiece model of the kinds unigram or bpe"):
            read_sentencepiece(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As skt/kobert-base-v1 is published."""
    pieces = made.kobert(tmp_path)
    BertConfig(vocab_size=len(pieces), pad_token_id=1).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["XLNetTokenizer", "XLNetTokenizerFast", "KoBERTTokenizer"])
def test_the_folder_of_kobert_gives_a_tokenizer_of_berts_kind(folder, name):
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": name}))
    tokenizer = load_tokenizer(str(folder))
    assert (tokenizer.padding_side, len(tokenizer)) == ("right", len(made.unigram(TOKENS)))
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("unk", "pad", "cls", "sep", "mask")}
    assert ids == {"unk": 0, "pad": 1, "cls": 2, "sep": 3, "mask": 4}
    padded = tokenizer(made.SENTENCES[:2], padding=True)
    assert padded["input_ids"][0][0] == 2 and padded["input_ids"][0][-1] == 1 and padded["attention_mask"][0][-1] == 0
    for sentence in made.SENTENCES:
        assert tokenizer(sentence)["input_ids"] == by_definition(sentence, unigram_model(), best_cut)
    check_tokenizer(tokenizer, BertConfig(vocab_size=len(tokenizer), pad_token_id=1), 64, reads_cls=True)
    # As a release keeps it, and any program loads it.
    tokenizer.save_pretrained(folder / "kept")
    BertConfig(vocab_size=len(tokenizer), pad_token_id=1).save_pretrained(folder / "kept")
    kept = AutoTokenizer.from_pretrained(folder / "kept")
    assert kept(made.SENTENCES)["input_ids"] == tokenizer(made.SENTENCES)["input_ids"]
    assert kept.padding_side == "right" and kept.mask_token_id == 4
    assert not (folder / "kept/spiece.model").exists()


def test_the_same_tokenizer_stored_by_transformers_is_mended_too(tmp_path):
    """As XLNetTokenizer it puts [CLS] last, and every Korean letter is unknown to it."""
    named = {f"{token[1:-1].lower()}_token": token for token in TOKENS}
    named |= {"bos_token": "[CLS]", "eos_token": "[SEP]", "additional_special_tokens": TOKENS}
    xlnet = XLNetTokenizer(vocab=made.unigram(TOKENS), unk_id=0, **named)
    xlnet.save_pretrained(tmp_path)
    BertConfig(vocab_size=len(xlnet), pad_token_id=1).save_pretrained(tmp_path)
    defect = AutoTokenizer.from_pretrained(tmp_path)(made.SENTENCES[1])["input_ids"]
    assert defect[-1] == 2 and defect.count(0) == 5, "transformers mended it: see sentencepiece_tokenizer"
    tokenizer = load_tokenizer(str(tmp_path))
    for sentence in made.SENTENCES:
        assert tokenizer(sentence)["input_ids"] == by_definition(sentence, unigram_model(), best_cut)
    assert tokenizer.padding_side == "right"


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_pieces_are_those_of_the_sentencepiece_package(kind, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece", reason="not needed by the package")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(made.SENTENCES * 5),
        model_prefix=str(tmp_path / "spiece"),
        model_type=kind,
        vocab_size=140,
        hard_vocab_limit=False,
        unk_id=0,
        pad_id=1,
        bos_id=-1,
        eos_id=-1,
        unk_piece="[UNK]",
        pad_piece="[PAD]",
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    tokenizer = tokenizer_of(read_sentencepiece(tmp_path / "spiece.model"), {})
    for sentence in [*made.SENTENCES, "３시　２０분", "기타와 ㈜한국 다리", unicodedata.normalize("NFD", "버스가")]:
        assert tokenizer(sentence)["input_ids"] == [2, *processor.encode(sentence), 3]
