"""Tokenizers: loaded from files alone, and checked against the model they are to feed."""

from __future__ import annotations

import base64
import json
import logging
from importlib.util import find_spec
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TokenizersBackend, XLNetTokenizer
from transformers.configuration_utils import PreTrainedConfig

from .backbones import position_limit
from .errors import ModelError, shortened
from .hub_files import find_file, read_json
from .sentencepiece_tokenizer import between_cls_and_sep, is_character_map, read_sentencepiece, tokenizer_of

# Classes whose order of special tokens is XLNet's, or that were derived from it.
_XLNET_KIND = ("XLNetTokenizer", "XLNetTokenizerFast", "KoBERTTokenizer")

_COMMON = "가"
_UNKNOWN = "\U00013080"  # no vocabulary holds hieroglyphs
_TRIED_PIECES = 64

logger = logging.getLogger(__name__)


def load_tokenizer(name_or_path: str, *, trust_remote_code: bool = False, **hub_kwargs) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub repository, padding on the right.

    None of the encoders here is an XLNet, so a tokenizer of XLNet's class is taken for KoBERT's, whose folder names it,
    and becomes one of BERT's kind with the same pieces (see `sentencepiece_tokenizer`).

    Raises:
        ModelError: There is none, or one without vocabulary, or it cannot pad.
    """
    if not Path(name_or_path).exists() and name_or_path.startswith((".", "/", "~")):
        raise ModelError(f"there is no tokenizer folder {name_or_path}. Check the path.")
    tokenizer = _kobert_tokenizer(name_or_path, **hub_kwargs)
    if tokenizer is None:
        tokenizer = _auto_tokenizer(name_or_path, trust_remote_code=trust_remote_code, **hub_kwargs)
    # From config.json alone transformers builds a tokenizer of special tokens and at most two kinds of space.
    if len(tokenizer) <= len(tokenizer.all_special_ids) + 2:
        raise ModelError(f"'{name_or_path}' has no vocabulary: put its tokenizer.json or vocab.txt beside config.json.")
    if tokenizer.pad_token_id is None:
        raise ModelError(f"the tokenizer of '{name_or_path}' has no padding token; set one with tokenizer.pad_token.")
    tokenizer.padding_side = "right"  # positions are counted from the left
    _try_out(tokenizer, name_or_path)
    return tokenizer


def _try_out(tokenizer: PreTrainedTokenizerBase, name_or_path: str) -> None:
    """Refuse a tokenizer that loads and then fails at a text, for example because its settings are of a wrong type.

    One without an unknown token (a vocabulary of syllables, say) fails at a character that it lacks, as it is meant to:
    that is a warning, if it cuts what its vocabulary holds.
    """
    try:
        _check_character_maps(tokenizer, name_or_path)
        text_of_its_own(tokenizer)
        lacking = _failure_for_lack_of_a_piece(tokenizer, f"{_COMMON} {_UNKNOWN}")
    except ModelError:
        raise
    except BaseException as error:  # tokenizers raises plain Exception, and classes of others what they like
        _raise_if_not_of_the_library(error)
        reason = shortened(" ".join(str(error).split()) or type(error).__name__, 500).rstrip(".")
        raise ModelError(f"the tokenizer of '{name_or_path}' cannot cut a text: {reason}. It is damaged.") from error
    if lacking is not None:
        logger.warning(
            "the tokenizer of '%s' has no unknown token and fails at a text with a character that its vocabulary lacks (%s). "
            "Leave such texts out, or give it an unknown token.",
            name_or_path,
            shortened(" ".join(str(lacking).split())),
        )


def text_of_its_own(tokenizer: PreTrainedTokenizerBase) -> str:
    """A text that a tokenizer can cut: a common syllable, or else a piece of its vocabulary.

    Raises:
        Exception: That of the tokenizer, which can cut none of them.
    """
    if (failure := _failure_for_lack_of_a_piece(tokenizer, _COMMON)) is None:
        return _COMMON
    ids = range(0, len(tokenizer), max(1, len(tokenizer) // _TRIED_PIECES))
    pieces = tokenizer.convert_ids_to_tokens([token for token in ids if token not in tokenizer.all_special_ids])
    for piece in filter(None, pieces):  # ids may have gaps
        for text in (piece, tokenizer.convert_tokens_to_string([piece])):  # without a mark of words, where it has one
            if text and _failure_for_lack_of_a_piece(tokenizer, text) is None:
                return text
    raise failure


def _failure_for_lack_of_a_piece(tokenizer: PreTrainedTokenizerBase, text: str) -> Exception | None:
    """What the Rust code says to a text that it has no pieces for: a plain Exception, as nothing else raises."""
    try:
        tokenizer(text)
    except Exception as error:
        if type(error) is not Exception:
            raise
        return error
    return None


def _raise_if_not_of_the_library(error: BaseException) -> None:
    """Let go on what is no Exception; but Rust code that panics raises a class of its own, which cannot be imported."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def _check_character_maps(tokenizer: PreTrainedTokenizerBase, name_or_path: str) -> None:
    """Refuse compiled normalisation rules at which the process would abort, in the middle of a corpus."""
    normalizer = tokenizer.backend_tokenizer.normalizer if isinstance(tokenizer, TokenizersBackend) else None
    parts = [] if normalizer is None else [json.loads(normalizer.__getstate__())]
    while parts:
        part = parts.pop()
        parts += part.get("normalizers", ())
        rules = part.get("precompiled_charsmap")
        if rules and not is_character_map(base64.b64decode(rules)):
            raise ModelError(
                f"the tokenizer of '{name_or_path}' has a character map (precompiled_charsmap) that is damaged."
            )


def _auto_tokenizer(name_or_path: str, **kwargs) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **kwargs)
    except BaseException as error:  # tokenizer loading raises a dozen unrelated types
        _raise_if_not_of_the_library(error)
        reason = shortened((str(error).strip() or type(error).__name__).splitlines()[0], 500)
        if "tiktoken" in reason and find_spec("sentencepiece") is None:  # what is left to try without it
            reason = "it is a SentencePiece model, and reading it needs a package: pip install sentencepiece protobuf."
        raise ModelError(f"cannot load a tokenizer from '{name_or_path}': {reason}") from error
    if isinstance(tokenizer, XLNetTokenizer):
        settings = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        return between_cls_and_sep(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), settings, name_or_path)
    return tokenizer


def _kobert_tokenizer(name_or_path: str, **hub_kwargs) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder that has a SentencePiece model and names XLNet's class, or one derived from it."""
    settings = read_json(name_or_path, "tokenizer_config.json", **hub_kwargs)
    if not isinstance(settings, dict) or settings.get("tokenizer_class") not in _XLNET_KIND:
        return None
    if find_file(name_or_path, "tokenizer.json", **hub_kwargs) is not None:
        return None
    model_file = find_file(name_or_path, "spiece.model", **hub_kwargs)
    return None if model_file is None else tokenizer_of(read_sentencepiece(model_file), settings, model_file)


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, text_config: PreTrainedConfig, max_length: int, *, reads_cls: bool = False
) -> None:
    """Refuse a tokenizer whose ids or lengths the encoder cannot take.

    Args:
        tokenizer: To be checked.
        text_config: Of the encoder.
        max_length: In tokens, special tokens included.
        reads_cls: Whether the pooler takes the first token for [CLS].

    Raises:
        ModelError: More tokens than embeddings, another padding id, no [CLS] in front, or more
            positions than there are.
    """
    if max_length < 3:
        raise ModelError(f"max_seq_length is {max_length}; two special tokens and one word need 3.")
    if reads_cls and tokenizer.cls_token_id is None:
        raise ModelError(
            "this tokenizer has no [CLS] token (those of T5 and KoBART have none), but a cls pooler reads it. Use pooler_type avg."
        )
    if reads_cls and tokenizer(text_of_its_own(tokenizer))["input_ids"][0] != tokenizer.cls_token_id:
        raise ModelError(
            "this tokenizer does not put its [CLS] token first (XLNet's kind puts it last), but a cls pooler reads the "
            "first token. Use the model's own tokenizer class, or pooler_type avg."
        )
    if len(tokenizer) > text_config.vocab_size:
        raise ModelError(
            f"the tokenizer knows {len(tokenizer):,} tokens but the model embeds {text_config.vocab_size:,}: they do "
            "not belong together. Use the tokenizer saved beside the model."
        )
    model_pad = getattr(text_config, "pad_token_id", None)
    if model_pad is not None and model_pad != tokenizer.pad_token_id:
        raise ModelError(
            f"the tokenizer pads with id {tokenizer.pad_token_id} but the model with {model_pad}: they do not belong "
            "together. Use the tokenizer saved beside the model."
        )
    limit = position_limit(text_config)
    if limit is not None and max_length > limit:
        raise ModelError(
            f"max_seq_length is {max_length}, but this encoder has positions for {limit} tokens. Use {limit} or less."
        )
