"""Tokenizers: loaded from files alone, and checked against the model they are to feed."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig

from .backbones import position_limit
from .errors import ModelError


def load_tokenizer(name_or_path: str, *, trust_remote_code: bool = False, **hub_kwargs) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub repository.

    Raises:
        ModelError: There is none, or one without vocabulary, or it cannot pad.
    """
    if not Path(name_or_path).exists() and name_or_path.startswith((".", "/", "~")):
        raise ModelError(f"there is no tokenizer folder {name_or_path}. Check the path.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code, **hub_kwargs)
    except Exception as error:  # tokenizer loading raises a dozen unrelated types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"cannot load a tokenizer from '{name_or_path}': {reason}") from error
    # From config.json alone transformers builds a tokenizer of special tokens and at most two kinds of space.
    if len(tokenizer) <= len(tokenizer.all_special_ids) + 2:
        raise ModelError(f"'{name_or_path}' has no vocabulary: put its tokenizer.json or vocab.txt beside config.json.")
    if tokenizer.pad_token_id is None:
        raise ModelError(f"the tokenizer of '{name_or_path}' has no padding token; set one with tokenizer.pad_token.")
    return tokenizer


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
    if reads_cls and tokenizer("가")["input_ids"][0] != tokenizer.cls_token_id:
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
