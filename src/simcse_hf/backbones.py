"""Pretrained encoders, loaded whole or refused."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path, PureWindowsPath

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    BartConfig,
)
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .bart import bert_config_of, bert_of
from .errors import ModelError, shortened
from .quiet import quiet_transformers

# What the supported encoders call their two dropouts.
HIDDEN_DROPOUTS = ("hidden_dropout_prob", "dropout", "mlp_dropout", "embedding_dropout", "dropout_rate")
ATTENTION_DROPOUTS = ("attention_probs_dropout_prob", "attention_dropout", "dropout_rate")

# Models with a decoder whose encoder transformers has as a class of its own.
_WITH_ENCODER_CLASS = ("t5", "mt5", "umt5")

_SIZES = (
    "hidden_size",
    "dim",
    "embedding_size",
    "intermediate_size",
    "hidden_dim",
    "num_attention_heads",
    "n_heads",
    "num_hidden_layers",
    "n_layers",
    "vocab_size",
    "max_position_embeddings",
)
_LARGEST_SIZE = 1 << 24

# These count positions from padding_idx + 1, so they take fewer tokens than they have positions.
_OFFSET_POSITIONS = (
    "roberta",
    "xlm-roberta",
    "camembert",
    "xlm-roberta-xl",
    "roberta-prelayernorm",
    "mpnet",
    "data2vec-text",
    "xmod",
)


def encoder_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the encoder that `load_backbone` makes of a model: BART's becomes a BERT (see `bart`)."""
    return bert_config_of(config) if isinstance(config, BartConfig) else config


def auto_class(text_config: PreTrainedConfig) -> type:
    """The class of transformers that loads an encoder: AutoModel, except where that would bring a decoder."""
    return AutoModelForTextEncoding if text_config.model_type in _WITH_ENCODER_CLASS else AutoModel


def new_backbone(text_config: PreTrainedConfig) -> PreTrainedModel:
    """An encoder with random weights, without pooler and decoder."""
    return auto_class(text_config).from_config(text_config, **without_pooler(text_config))


def without_pooler(text_config: PreTrainedConfig) -> dict[str, bool]:
    """Arguments that keep the encoder from building its own pooler.

    That pooler would be dead weight: SimCSE has its own head, and parameters without gradient
    make DDP fail.
    """
    model_class = MODEL_MAPPING.get(type(text_config), None)
    takes_it = model_class is not None and "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if takes_it else {}


def first_position(text_config: PreTrainedConfig) -> int:
    """The position id of a sentence's first token."""
    return (text_config.pad_token_id or 0) + 1 if text_config.model_type in _OFFSET_POSITIONS else 0


def position_limit(text_config: PreTrainedConfig) -> int | None:
    """The most tokens an encoder takes; None where positions are not a table."""
    positions = getattr(text_config, "max_position_embeddings", None)
    return positions if positions is None else positions - first_position(text_config)


def override_dropout(text_config: PreTrainedConfig, names: tuple[str, ...], value: float | None) -> None:
    """Set every dropout of `names` that the encoder has; None leaves all as they are.

    T5 has one dropout for all: it is set as a hidden dropout, and an attention dropout must then be the same.

    Raises:
        ModelError: The encoder has none of them, or one for all that has another value.
    """
    if value is None:
        return
    known = [name for name in names if hasattr(text_config, name)]
    if not known:
        raise ModelError(
            f"a '{text_config.model_type}' encoder has none of the dropouts {', '.join(names)}; leave the override out."
        )
    shared = [name for name in known if names == ATTENTION_DROPOUTS and name in HIDDEN_DROPOUTS]
    for name in shared:
        if getattr(text_config, name) != value:
            raise ModelError(
                f"a '{text_config.model_type}' encoder has one dropout for hidden states and attention weights, {name}, which is "
                f"{getattr(text_config, name):g}; attention_probs_dropout_prob {value:g} cannot be set apart from it. Set "
                "hidden_dropout_prob alone."
            )
    for name in known:
        setattr(text_config, name, value)


def load_config(name_or_path: str, **kwargs) -> PreTrainedConfig:
    """Configuration of a local folder or a Hub repository.

    Raises:
        ModelError: Nothing loadable is there, or the Hub cannot be reached.
    """
    kwargs.setdefault("trust_remote_code", False)  # None would ask on the terminal
    folder = Path(name_or_path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(f"{name_or_path} is not a model folder: it has no config.json.")
    if folder.is_file():
        raise ModelError(f"{name_or_path} is a file; a model is a folder with config.json and model.safetensors.")
    if not folder.exists() and (name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1):
        raise ModelError(f"there is no model folder {name_or_path}. Check the path.")
    try:
        config = AutoConfig.from_pretrained(name_or_path, **kwargs)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, StrictDataclassError) as error:
        cure = (
            "Check its config.json."
            if folder.is_dir()
            else "There is no such local folder, so it was taken for a Hub id, and the Hub did not give it. "
            "Offline, name a local folder instead."
        )
        raise ModelError(
            f"cannot load a model configuration from '{name_or_path}': {one_line(error)} {cure}"
        ) from error
    _check_values(config, name_or_path)
    if not _has_encoder(config):
        raise ModelError(
            f"'{name_or_path}' is a '{config.model_type}' model, which is not (only) a bidirectional encoder. Use BERT, RoBERTa, "
            "XLM-R, ELECTRA, DistilBERT, DeBERTa, ModernBERT or another encoder; of encoder-decoders, T5, mT5, UMT5 or BART."
        )
    return config


def _check_values(config: PreTrainedConfig, name_or_path: str) -> None:
    """Refuse what transformers takes from a config.json and then stumbles over, or would fill the memory with."""
    for part in [
        config,
        *([config.text_config] if isinstance(getattr(config, "text_config", None), PreTrainedConfig) else []),
    ]:
        for name in _SIZES:
            value = getattr(part, name, None)
            if isinstance(value, int) and not 0 < value <= _LARGEST_SIZE:
                raise ModelError(f"config.json of '{name_or_path}' has the {name} {shortened(value)}. Check it.")
        padding, pieces = getattr(part, "pad_token_id", None), getattr(part, "vocab_size", None)
        if isinstance(padding, int) and isinstance(pieces, int) and not -pieces <= padding < pieces:
            raise ModelError(
                f"config.json of '{name_or_path}' has the pad_token_id {shortened(padding)}, and the vocab_size {pieces}. Check it."
            )
        if part.dtype is not None and not isinstance(part.dtype, torch.dtype):
            raise ModelError(f"config.json of '{name_or_path}' has the dtype {shortened(repr(part.dtype))}. Check it.")


def _has_encoder(config: PreTrainedConfig) -> bool:
    """Whether `load_backbone` makes a bidirectional encoder of a model."""
    if config.model_type in _WITH_ENCODER_CLASS or isinstance(config, BartConfig):
        return True
    generates = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING
    return not (generates or getattr(config, "is_encoder_decoder", False))


def one_line(error: Exception) -> str:
    """The message of a library's error, folded to one line."""
    return shortened(" ".join(str(error).split()), 1000) or type(error).__name__


def load_whole(
    load: Callable[..., tuple[PreTrainedModel, dict]],
    name_or_path: str,
    *arguments,
    may_lack: str | None = None,
    **kwargs,
) -> tuple[PreTrainedModel, dict]:
    """A model with every one of its weights from the folder, and the loading report.

    transformers fills what is missing with random numbers and a warning; here that is an error.

    Args:
        load: A `from_pretrained`.
        name_or_path: Local folder or Hub id.
        arguments: Passed on.
        may_lack: Prefix of weights that may be missing.
        kwargs: Passed on.

    Raises:
        ModelError: No safetensors weights, damaged ones, or weights that do not fit the config.
    """
    _check_shards(name_or_path)
    try:
        # transformers prints every key it leaves out; what matters of that is judged below.
        with quiet_transformers():
            model, report = load(
                name_or_path,
                *arguments,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **kwargs,
            )
    # transformers checks few values of a config.json, and stumbles over the others in its own ways.
    except (
        OSError,
        RuntimeError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        AttributeError,
        ImportError,
        SafetensorError,
    ) as error:
        raise ModelError(f"cannot load weights from '{name_or_path}': {one_line(error)}") from error
    if mismatched := sorted(report["mismatched_keys"]):
        key, found, expected = mismatched[0]
        raise ModelError(
            f"the weights in '{name_or_path}' do not fit its config.json: {key} has the shape {list(found)} where the config "
            f"asks for {list(expected)} ({len(mismatched)} such weights). Nothing was loaded."
        )
    missing = sorted(key for key in report["missing_keys"] if may_lack is None or not key.startswith(may_lack))
    if missing:
        raise ModelError(
            f"the weights in '{name_or_path}' do not fit its config.json: {len(missing)} parameters are missing, "
            f"for example {missing[0]}. They would be random; nothing was loaded."
        )
    return model, report


def _check_shards(name_or_path: str) -> None:
    """Refuse an index of weights that names anything but safetensors files beside it.

    Raises:
        ModelError: Another file, which might lie anywhere or be a pickle.
    """
    index_file = Path(name_or_path) / SAFE_WEIGHTS_INDEX_NAME
    if not index_file.is_file() or (index_file.parent / SAFE_WEIGHTS_NAME).is_file():
        return
    try:
        index = json.loads(index_file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{index_file} is not JSON ({shortened(error)}). It is damaged.") from None
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not isinstance(index.get("metadata", {}), dict):
        raise ModelError(f"{index_file} maps no weights to files. It is damaged.")
    for shard in shards.values():
        if not isinstance(shard, str) or PureWindowsPath(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelError(
                f"{index_file} looks for weights in {shortened(repr(shard))}; only .safetensors files beside it are read."
            )


def load_backbone(
    name_or_path: str, text_config: PreTrainedConfig, *, keep_pooler: bool, **kwargs
) -> tuple[PreTrainedModel, bool]:
    """The float32 encoder, and whether its pooler is pretrained.

    Args:
        name_or_path: Local folder or Hub id.
        text_config: What `load_config` gave, perhaps with other dropouts.
        keep_pooler: Keep the encoder's own pooler, where it has one.
        kwargs: Of `from_pretrained`.

    Raises:
        ModelError: See `load_whole`.
    """
    is_bart = isinstance(text_config, BartConfig)
    backbone, report = load_whole(
        auto_class(text_config).from_pretrained,
        name_or_path,
        may_lack="decoder." if is_bart else "pooler.",
        config=text_config,
        dtype=torch.float32,
        **({} if keep_pooler else without_pooler(text_config)),
        **kwargs,
    )
    if is_bart:
        return bert_of(backbone.encoder, attn_implementation=kwargs.get("attn_implementation")), False
    pooler_is_pretrained = getattr(backbone, "pooler", None) is not None and not any(
        key.startswith("pooler.") for key in report["missing_keys"]
    )
    return backbone, pooler_is_pretrained
