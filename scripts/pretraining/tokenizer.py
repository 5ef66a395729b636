"""Tokenizers for Korean, trained on the pretraining corpus, and what there is to compare them by."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
KINDS = ("unigram", "wordpiece", "bpe", "byte_bpe")
_SPACE = "▁"  # before every word, so that a word is the same piece wherever it stands


def train_tokenizer(
    sentences: Sequence[str], kind: str, vocab_size: int, *, max_length: int
) -> PreTrainedTokenizerFast:
    """A tokenizer with BERT's special tokens; [PAD] has the id 0.

    Text is NFKC: NFC for Hangul, and half- and full-width forms become one.  Digits are single pieces.

    - `unigram`, `bpe`: with a byte for what is not in the vocabulary, so nothing is unknown. Every Hangul syllable of
      the corpus that occurs ten times is a piece.
    - `wordpiece`: as in BERT; what is not in its alphabet is [UNK].
    - `byte_bpe`: over bytes, as in GPT-2 and RoBERTa; a Hangul syllable is three of them until it is merged.

    Args:
        sentences: Of the corpus.
        kind: One of `KINDS`.
        vocab_size: Special tokens and bytes included.
        max_length: Tokens that the model takes.

    Raises:
        ValueError: Another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no tokenizer kind {kind!r}; there are {', '.join(KINDS)}.")
    tokenizer = {"unigram": _unigram, "wordpiece": _wordpiece, "bpe": _bpe, "byte_bpe": _byte_bpe}[kind](
        sentences, vocab_size
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _prepared(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=_SPACE),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation(),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(replacement=_SPACE)])
    return tokenizer


def _alphabet(sentences: Iterable[str], least: int = 10) -> set[str]:
    """Characters that occur so often, normalised as the tokenizer does it."""
    normalise = normalizers.NFKC().normalize_str
    counts: Counter[str] = Counter()
    for sentence in sentences:
        counts.update(normalise(sentence))
    return {character for character, count in counts.items() if count >= least and not character.isspace()}


def _unigram(sentences: Sequence[str], vocab_size: int) -> Tokenizer:
    trained = _prepared(models.Unigram())
    alphabet = _alphabet(sentences)
    # The trainer gives every character it meets a piece, so it meets none of the rare ones.
    allowed = alphabet | {" "}
    normalise = normalizers.NFKC().normalize_str
    common = [sentence for sentence in sentences if allowed.issuperset(normalise(sentence))]
    trained.train_from_iterator(
        common,
        trainers.UnigramTrainer(
            vocab_size=vocab_size - len(BYTES), special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False
        ),
        length=len(common),
    )
    # Nor does it know bytes. They come last: below every piece, and used only where no piece fits.
    pieces = [tuple(piece) for piece in json.loads(trained.to_str())["model"]["vocab"]]
    lowest = min(score for _, score in pieces)
    pieces += [(byte, lowest - 10) for byte in BYTES]
    return _prepared(models.Unigram(pieces, unk_id=SPECIAL.index("[UNK]"), byte_fallback=True))


def _bpe(sentences: Sequence[str], vocab_size: int) -> Tokenizer:
    trained = _prepared(models.BPE(unk_token="[UNK]", byte_fallback=True))
    alphabet = [*sorted(_alphabet(sentences)), _SPACE]
    trained.train_from_iterator(
        sentences,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=SPECIAL + BYTES,
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        ),
        length=len(sentences),
    )
    # The trainer keeps the bytes only as special tokens, which decoding leaves out; here they are pieces like others.
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return _prepared(models.BPE(vocab=model["vocab"], merges=merges, unk_token="[UNK]", byte_fallback=True))


def _wordpiece(sentences: Sequence[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.BertNormalizer(lowercase=False)])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.decoder = decoders.WordPiece()
    alphabet = sorted(_alphabet(sentences))
    tokenizer.train_from_iterator(
        sentences,
        trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            special_tokens=SPECIAL,
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        ),
        length=len(sentences),
    )
    return tokenizer


def _byte_bpe(sentences: Sequence[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Prepend(" ")])
    # Digits come first: among the characters that stand for bytes there are some that count as digits.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        sentences,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
        length=len(sentences),
    )
    return tokenizer


def starts_word(tokenizer: PreTrainedTokenizerBase) -> list[bool]:
    """For each id, whether the piece begins a word; punctuation is a word of its own."""
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    if any(piece.startswith("##") for piece in pieces):
        return [not piece.startswith("##") for piece in pieces]
    return [piece.startswith((_SPACE, "Ġ")) or not any(map(str.isalnum, piece)) for piece in pieces]


def fertility(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> dict[str, float]:
    """Pieces for a word, characters for a piece, and the shares of unknown and of byte pieces; specials not counted."""
    words = sum(len(sentence.split()) for sentence in sentences)
    characters = sum(map(len, sentences))
    encoded = tokenizer(list(sentences), add_special_tokens=False, return_attention_mask=False)["input_ids"]
    counts = Counter(token for ids in encoded for token in ids)
    pieces = counts.total()
    byte_ids = set(tokenizer.convert_tokens_to_ids(BYTES)) - {tokenizer.unk_token_id}
    return {
        "pieces_per_word": pieces / words,
        "characters_per_piece": characters / pieces,
        "unknown_share": counts[tokenizer.unk_token_id] / pieces,
        "byte_share": sum(counts[token] for token in byte_ids) / pieces,
    }
