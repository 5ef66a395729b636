"""Tokenizers of every class that Korean encoders use, made offline from a few sentences, as their folders hold them."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.implementations import ByteLevelBPETokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    DebertaTokenizer,
    DebertaV2Tokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    T5Tokenizer,
    XLMRobertaTokenizer,
)

SENTENCES = [
    "네.",
    "할머니가 마당에서 고추를 말리고 계신다.",
    "버스가 3시 20분에 출발한다고 했어요.",
    "새로 산 의자는 등받이가 편해서 마음에 든다.",
    "우리 동네 빵집은 월요일마다 문을 닫아요.",
    "강물이 불어나서 다리를 건널 수 없었다.",
    "동생은 기타를 치고 나는 노래를 불렀다.",
    "이 소설의 마지막 장면이 오래 기억에 남았다.",
    "택배가 아직 안 왔는데 언제쯤 도착하나요?",
    "감자를 삶아서 소금에 찍어 먹으면 맛있다.",
    "눈이 많이 와서 학교가 하루 쉬었습니다.",
    "회의 자료는 어제 저녁에 메일로 보냈습니다.",
]
_WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()})
_LETTERS = sorted({letter for word in _WORDS for letter in word})
_WHOLE_WORDS = _WORDS[::3]  # the rest is cut into letters

BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def wordpiece(folder: Path, special_tokens: Sequence[str] = BERT_TOKENS, **settings) -> list[str]:
    """`vocab.txt` of WordPiece with its special tokens in front, as of klue and KoELECTRA; returns the pieces."""
    pieces = [*special_tokens, *_WHOLE_WORDS, *_LETTERS, *("##" + letter for letter in _LETTERS)]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(pieces)) + "\n", encoding="utf-8")
    _write_settings(folder, {"do_lower_case": False, "model_max_length": 512} | settings)
    return list(dict.fromkeys(pieces))


def unigram(special_tokens: Sequence[str]) -> list[tuple[str, float]]:
    """Pieces and log-probabilities of a unigram language model."""
    letters = [("▁", -4.0), *((letter, -5.0 - index / 100) for index, letter in enumerate(_LETTERS))]
    words = [("▁" + word, -3.0 - index / 100) for index, word in enumerate(_WHOLE_WORDS)]
    return [*((token, 0.0) for token in special_tokens), *letters, *words]


def xlm_roberta() -> PreTrainedTokenizerBase:
    return XLMRobertaTokenizer(vocab=unigram(ROBERTA_TOKENS))


def deberta_v2() -> PreTrainedTokenizerBase:
    return DebertaV2Tokenizer(vocab=unigram(BERT_TOKENS), unk_id=1)


def t5() -> PreTrainedTokenizerBase:
    return T5Tokenizer(vocab=unigram(("<pad>", "</s>", "<unk>")), extra_ids=4)


def byte_bpe(tokenizer_class: type, special_tokens: Sequence[str]) -> PreTrainedTokenizerBase:
    """Of the classes of RoBERTa, BART and DeBERTa."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(SENTENCES, vocab_size=400, special_tokens=list(special_tokens), show_progress=False)
    model = json.loads(trained.to_str())["model"]
    return tokenizer_class(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])


def roberta() -> PreTrainedTokenizerBase:
    return byte_bpe(RobertaTokenizer, ROBERTA_TOKENS)


def deberta() -> PreTrainedTokenizerBase:
    return byte_bpe(DebertaTokenizer, BERT_TOKENS)


def kobart() -> PreTrainedTokenizerBase:
    """Byte pairs of words; adds no special tokens, and has neither [CLS] nor [SEP]."""
    tokens = ["<s>", "</s>", "<usr>", "<pad>", "<sys>", "<unk>", "<mask>"]
    named = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=_bpe(tokens, "<unk>"), **named)


def modernbert() -> PreTrainedTokenizerBase:
    backend = _bpe(list(BERT_TOKENS), "[UNK]")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {f"{token[1:-1].lower()}_token": token for token in BERT_TOKENS}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


def _bpe(special_tokens: list[str], unknown: str) -> Tokenizer:
    backend = Tokenizer(BPE(unk_token=unknown))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = BpeTrainer(vocab_size=300, special_tokens=special_tokens, show_progress=False)
    backend.train_from_iterator(SENTENCES, trainer)
    return backend


KOBERT_TOKENS = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]")


def kobert(folder: Path) -> list[str]:
    """`spiece.model` and the class that is named beside it, as of skt/kobert-base-v1; returns the pieces."""
    kinds = {"[UNK]": 2} | dict.fromkeys(KOBERT_TOKENS[1:], 3)
    pieces = [(piece, score, kinds.get(piece, 1)) for piece, score in unigram(KOBERT_TOKENS)]
    (folder / "spiece.model").write_bytes(sentencepiece_file(pieces))
    names = {"bos": "CLS", "eos": "SEP", "unk": "UNK", "sep": "SEP", "pad": "PAD", "cls": "CLS", "mask": "MASK"}
    named = {f"{name}_token": f"[{token}]" for name, token in names.items()}
    _write_settings(folder, {"tokenizer_class": "XLNetTokenizer", "do_lower_case": False} | named)
    return [piece for piece, _, _ in pieces]


def sentencepiece_file(
    pieces: Sequence[tuple[str, float, int]], *, algorithm: int = 1, unknown_id: int = 0, character_map: bytes = b""
) -> bytes:
    """A SentencePiece model as a protocol buffer message.    pieces: text, score, kind"""
    message = b""
    for text, score, kind in pieces:
        piece = (
            _field(1, text.encode())
            + bytes([0x15])
            + struct.pack("<f", score)
            + bytes([0x18, kind] if kind != 1 else [])
        )
        message += _field(1, piece)
    trainer = bytes([0x18, algorithm]) + _varint(40 << 3) + _varint(unknown_id)
    return message + _field(2, trainer) + _field(3, _field(2, character_map))


def character_map(replacements: dict[str, str]) -> bytes:
    """Normalisation rules as SentencePiece compiles them: a double array, every node of it with 256 units of its own."""
    texts, starts = b"", {}
    for text in dict.fromkeys(replacements.values()):
        starts[text] = len(texts)
        texts += text.encode() + bytes(1)
    nodes, units = {b"": 1}, {0: 1 << 18}  # the root is block 1: its offset is 256
    for source, target in replacements.items():
        key = source.encode()
        for end in range(1, len(key) + 1):
            before, node = nodes[key[: end - 1]], nodes.setdefault(key[:end], len(nodes) + 1)
            place = before * 256 ^ key[end - 1]
            leaf = end == len(key)
            units[place] = (place ^ node * 256) << 10 | leaf << 8 | key[end - 1]
            if leaf:
                units[node * 256] = 1 << 31 | starts[target]
    array = [units.get(place, 0) for place in range(256 * (len(nodes) + 1))]
    return struct.pack(f"<I{len(array)}I", 4 * len(array), *array) + texts


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _write_settings(folder: Path, settings: dict) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
