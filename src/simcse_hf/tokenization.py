"""Tokenizers: loaded from files alone, and checked against the model they are to feed."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig

from .errors import ModelError

# These count positions from padding_idx + 1, so they take fewer tokens than they have positions.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm")


def load_tokenizer(name_or_path: str, *, trust_remote_code: bool = False, **hub_kwargs) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub repository.

    Raises:
        ModelError: There is none, or it cannot pad.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code, **hub_kwargs)
    except Exception as error:  # tokenizer loading raises a dozen unrelated types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"cannot load a tokenizer from '{name_or_path}': {reason}") from error
    if tokenizer.pad_token_id is None:
        raise ModelError(f"the tokenizer of '{name_or_path}' has no padding token; set one with tokenizer.pad_token.")
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, text_config: PreTrainedConfig, max_length: int) -> None:
    """Refuse a tokenizer whose ids or lengths the encoder cannot take.

    Raises:
        ModelError: More tokens than embeddings, another padding id, or more positions than there are.
    """
    if len(tokenizer) > text_config.vocab_size:
        raise ModelError(
            f"the tokenizer knows {len(tokenizer):,} tokens but the model embeds {text_config.vocab_size:,}: they do not "
            "belong together. Use the tokenizer saved beside the model."
        )
    model_pad = getattr(text_config, "pad_token_id", None)
    if model_pad is not None and model_pad != tokenizer.pad_token_id:
        raise ModelError(
            f"the tokenizer pads with id {tokenizer.pad_token_id} but the model with {model_pad}: they do not belong "
            "together. Use the tokenizer saved beside the model."
        )
    positions = getattr(text_config, "max_position_embeddings", None)
    if positions is not None:
        offset = (model_pad or 0) + 1 if text_config.model_type in _OFFSET_POSITIONS else 0
        if max_length > positions - offset:
            raise ModelError(
                f"max_seq_length is {max_length}, but this encoder has positions for {positions - offset} tokens. "
                f"Use {positions - offset} or less."
            )
