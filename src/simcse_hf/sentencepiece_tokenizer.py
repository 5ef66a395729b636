"""KoBERT's tokenizer: the pieces of a SentencePiece model between [CLS] and [SEP].

`skt/kobert-base-v1` is a BERT whose folder names XLNet's tokenizer, and transformers then does what is right for XLNet:
it puts [CLS] last and pads on the left. Since its version 5 it also takes Hangul apart into letters (NFKD) and does not
put them together again, which SentencePiece itself did, so that nearly every Korean word becomes [UNK]. The tokenizer
made here is a plain file that any version of transformers reads.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram
from transformers import PreTrainedTokenizerFast

from .errors import ModelError, shortened

# What KoBERT calls them.
_SPECIAL_TOKENS = {
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
}
_UNIGRAM, _BPE = 1, 2
_CONTROL, _USER_DEFINED = 3, 4
_KINDS = range(1, 7)
# XLNet's tokenizer, and so KoBERT's, takes a comma behind a digit for a piece of its own.
_AVOIDED = -100.0


@dataclass(frozen=True)
class SentencePieceModel:
    """What a SentencePiece model file holds, as far as it decides how text is cut.

    Attributes:
        pieces: Text and score, in the order of their ids.
        kinds: Of each piece: 1 normal, 2 unknown, 3 control, 4 defined by a user.
        algorithm: 1 unigram language model (arXiv:1804.10959), 2 byte-pair encoding (arXiv:1508.07909).
        unknown_id: Of the piece that stands for what no piece covers.
        character_map: Compiled normalisation rules; empty for none.
    """

    pieces: list[tuple[str, float]]
    kinds: list[int]
    algorithm: int
    unknown_id: int
    character_map: bytes


def read_sentencepiece(path: str | Path) -> SentencePieceModel:
    """Read a SentencePiece model file (`spiece.model`); needs no other package.

    Raises:
        ModelError: It is none, or of an algorithm that is neither unigram nor byte pairs.
    """
    pieces, kinds, algorithm, unknown_id, character_map = [], [], 0, 0, b""
    try:
        for number, content in _fields(Path(path).read_bytes()):
            if number == 1:
                piece = dict(_fields(content))
                pieces.append((piece[1].decode("utf-8"), struct.unpack("<f", piece.get(2, bytes(4)))[0]))
                kinds.append(piece.get(3, 1))
            elif number == 2:
                trainer = dict(_fields(content))
                algorithm, unknown_id = trainer.get(3, _UNIGRAM), trainer.get(40, 0)
            elif number == 3:
                character_map = dict(_fields(content)).get(2, b"")
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise ModelError(f"{path} is not a SentencePiece model ({shortened(error)}). It is damaged.") from None
    if not pieces or algorithm not in (_UNIGRAM, _BPE):
        raise ModelError(f"{path} holds no whole SentencePiece model of the kinds unigram or bpe.")
    return SentencePieceModel(pieces, kinds, algorithm, unknown_id, character_map)


def _defect(model: SentencePieceModel) -> str | None:
    """What `tokenizers` would take, and stumble over when it cuts a text; None for a sound model."""
    if not all(kind in _KINDS for kind in model.kinds):
        return "a piece is of a kind that there is not"
    if type(model.unknown_id) is not int or not model.unknown_id < len(model.pieces):
        return "its unknown piece is none of its pieces"
    if not all(math.isfinite(score) for _, score in model.pieces):
        return "the score of a piece is not finite"
    if not all(piece for piece, _ in model.pieces):
        return "a piece is empty"
    if len({piece for piece, _ in model.pieces}) < len(model.pieces):  # ids would go beyond the size of the vocabulary
        return "a piece occurs twice"
    if not isinstance(model.character_map, bytes) or not is_character_map(model.character_map):
        return "its character map is damaged"
    return None


def is_character_map(content: bytes) -> bool:
    """Whether compiled normalisation rules never lead outside of themselves, whatever text they are applied to.

    They are a double array (Aoe, 1989; as darts-clone writes it), which is walked byte by byte, and the replacements,
    each ended by NUL. The library that walks it aborts where it would leave the array.
    """
    if not content:
        return True
    size = int.from_bytes(content[:4], "little")
    if len(content) < 4 or size % 4 or not 0 < size <= len(content) - 4:
        return False
    units = np.frombuffer(content, dtype="<u4", count=size // 4, offset=4).astype(np.int64)
    replacements = content[4 + size :]
    try:
        replacements.decode("utf-8")
    except UnicodeDecodeError:
        return False
    after = np.arange(len(units)) ^ ((units >> 10) << ((units & (1 << 9)) >> 6))
    byte, seen = np.arange(1, 256), np.zeros(len(units), dtype=bool)
    places = after[:1]  # where the walk may stand before it reads a byte
    while len(places):
        if (places | 255).max() >= len(units):
            return False
        children = places[:, None] ^ byte
        children = np.unique(children[(units[children] & ((1 << 31) | 255)) == byte])
        children = children[~seen[children]]
        seen[children] = True
        places = after[children]
        leaves = places[(units[children] >> 8 & 1).astype(bool)]
        if len(leaves) and leaves.max() >= len(units):
            return False
        starts = units[leaves] & ((1 << 31) - 1)
        # Within the replacements, and not within a character of theirs.
        if any(
            start > len(replacements) or replacements[start : start + 1] >= b"\x80" and replacements[start] < 0xC0
            for start in starts.tolist()
        ):
            return False
    return True


def tokenizer_of(
    model: SentencePieceModel, settings: Mapping[str, object], name: str = "the SentencePiece model"
) -> PreTrainedTokenizerFast:
    """The tokenizer that puts the pieces of a SentencePiece model between [CLS] and [SEP].

    Args:
        model: Of `read_sentencepiece`.
        settings: Content of `tokenizer_config.json`.
        name: Of the model, for messages.

    Raises:
        ModelError: The model is damaged, or a special token is no piece.
    """
    if (defect := _defect(model)) is not None:
        raise ModelError(f"{name} cannot be used: {defect}. It is damaged.")
    if model.algorithm == _UNIGRAM:
        scores = [(piece, score + _AVOIDED * _ends_in_a_number(piece)) for piece, score in model.pieces]
        backend = Tokenizer(Unigram(scores, unk_id=model.unknown_id, byte_fallback=False))
    else:
        vocabulary = {piece: index for index, (piece, _) in enumerate(model.pieces)}
        unknown = model.pieces[model.unknown_id][0]
        backend = Tokenizer(BPE(vocabulary, _merges(model), unk_token=unknown, fuse_unk=True))
    steps = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not settings.get("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if settings.get("do_lower_case", False):
        steps.append(normalizers.Lowercase())
    if model.character_map:
        steps.append(normalizers.Precompiled(model.character_map))
    backend.normalizer = normalizers.Sequence(steps)
    words = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    backend.add_special_tokens(
        [
            AddedToken(piece, normalized=False, special=True)
            for (piece, _), kind in zip(model.pieces, model.kinds, strict=True)
            if kind == _CONTROL
        ]
    )
    backend.add_tokens(
        [
            AddedToken(piece, normalized=False)
            for (piece, _), kind in zip(model.pieces, model.kinds, strict=True)
            if kind == _USER_DEFINED
        ]
    )
    return between_cls_and_sep(backend, settings, name)


def between_cls_and_sep(
    backend: Tokenizer, settings: Mapping[str, object], name: str = "the SentencePiece model"
) -> PreTrainedTokenizerFast:
    """A BERT-style tokenizer of XLNet's kind of backend: "[CLS] A [SEP]", padding on the right, Hangul kept whole.

    Args:
        backend: Changed.
        settings: Names the special tokens, as `tokenizer_config.json` does.
        name: Of the model, for messages.

    Raises:
        ModelError: A special token is no piece.
    """
    tokens = {name: _text(settings.get(name) or usual) for name, usual in _SPECIAL_TOKENS.items()}
    for role, token in tokens.items():
        if backend.token_to_id(token) is None:
            raise ModelError(f"{name} has no piece {shortened(token)}, which the tokenizer wants as its {role}.")
    cls, sep = tokens["cls_token"], tokens["sep_token"]
    # Composes the letters of Hangul, as SentencePiece's own rules do.
    backend.normalizer = normalizers.Sequence([backend.normalizer, normalizers.NFC()])
    backend.post_processor = processors.TemplateProcessing(
        single=[f"{cls}:0", "$A:0", f"{sep}:0"],
        pair=[f"{cls}:0", "$A:0", f"{sep}:0", "$B:1", f"{sep}:1"],
        special_tokens=[(token, backend.token_to_id(token)) for token in (cls, sep)],
    )
    tokens["mask_token"] = AddedToken(tokens["mask_token"], lstrip=True, special=True)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)


def _merges(model: SentencePieceModel) -> list[tuple[str, str]]:
    """Pairs to merge, best first: every way to cut a piece into two pieces has the rank of its score."""
    ids = {piece: index for index, (piece, _) in enumerate(model.pieces)}
    merges = []
    for piece, _ in sorted(model.pieces, key=lambda entry: -entry[1]):
        cuts = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        merges += [
            (left, right) for left, right in cuts if left in ids and right in ids and not _ends_in_a_number(piece)
        ]
    return merges


def _ends_in_a_number(piece: str) -> bool:
    return len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit()


def _text(token: object) -> str:
    text = str(token.get("content")) if isinstance(token, Mapping) else str(token)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # JSON can hold half a character, and no piece can


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of the fields of a protocol buffer message."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, position = _varint(message, position)
        else:
            if kind == 2:
                size, position = _varint(message, position)
            else:
                size = {1: 8, 5: 4}[kind]
            if position + size > len(message):
                raise ValueError("it ends in the middle of a field")
            value, position = message[position : position + size], position + size
        yield number, value


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        if shift > 63:
            raise ValueError("a number has more than 64 bits")
        value |= (byte & 0x7F) << shift
        shift, position = shift + 7, position + 1
        if byte < 0x80:
            return value, position
