"""Pretrained encoders, loaded whole or refused."""

from __future__ import annotations

import inspect
from pathlib import Path

import torch
from transformers import MODEL_MAPPING, AutoConfig, AutoModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .errors import ModelError
from .quiet import quiet_transformers

# What the supported encoders call their two dropouts.
HIDDEN_DROPOUTS = ("hidden_dropout_prob", "dropout", "mlp_dropout", "embedding_dropout")
ATTENTION_DROPOUTS = ("attention_probs_dropout_prob", "attention_dropout")

# These count positions from padding_idx + 1, so they take fewer tokens than they have positions.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm")


def without_pooler(text_config: PreTrainedConfig) -> dict[str, bool]:
    """Arguments that keep the encoder from building its own pooler.

    That pooler would be dead weight: SimCSE has its own head, and parameters without gradient
    make DDP fail.
    """
    model_class = MODEL_MAPPING.get(type(text_config), None)
    takes_it = model_class is not None and "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if takes_it else {}


def position_limit(text_config: PreTrainedConfig) -> int | None:
    """The most tokens an encoder takes; None where positions are not a table."""
    positions = getattr(text_config, "max_position_embeddings", None)
    if positions is None or text_config.model_type not in _OFFSET_POSITIONS:
        return positions
    return positions - (text_config.pad_token_id or 0) - 1


def override_dropout(text_config: PreTrainedConfig, names: tuple[str, ...], value: float | None) -> None:
    """Set every dropout of `names` that the encoder has; None leaves all as they are."""
    if value is None:
        return
    known = [name for name in names if hasattr(text_config, name)]
    if not known:
        raise ModelError(
            f"a '{text_config.model_type}' encoder has none of the dropouts {', '.join(names)}; leave the override out."
        )
    for name in known:
        setattr(text_config, name, value)


def load_config(name_or_path: str, **kwargs) -> PreTrainedConfig:
    """Configuration of a local folder or a Hub repository.

    Raises:
        ModelError: Nothing loadable is there, or the Hub cannot be reached.
    """
    folder = Path(name_or_path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(f"{name_or_path} is not a model folder: it has no config.json.")
    if folder.is_file():
        raise ModelError(f"{name_or_path} is a file; a model is a folder with config.json and model.safetensors.")
    if not folder.exists() and (name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1):
        raise ModelError(f"there is no model folder {name_or_path}. Check the path.")
    try:
        return AutoConfig.from_pretrained(name_or_path, **kwargs)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        cure = (
            "Check its config.json."
            if folder.is_dir()
            else "There is no such local folder, so it was taken for a Hub id, and the Hub did not give it. "
            "Offline, name a local folder instead."
        )
        raise ModelError(f"cannot load a model configuration from '{name_or_path}': {reason} {cure}") from error


def load_backbone(
    name_or_path: str, text_config: PreTrainedConfig, *, keep_pooler: bool, **kwargs
) -> tuple[PreTrainedModel, bool]:
    """The float32 encoder, and whether its pooler is pretrained.

    Raises:
        ModelError: No safetensors weights, or weights that leave parameters random.
    """
    try:
        # transformers prints every key it leaves out; what matters of that is judged below.
        with quiet_transformers():
            backbone, report = AutoModel.from_pretrained(
                name_or_path,
                config=text_config,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **({} if keep_pooler else without_pooler(text_config)),
                **kwargs,
            )
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"cannot load encoder weights from '{name_or_path}': {reason}") from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ModelError(
            f"the weights in '{name_or_path}' do not fit its config.json: {len(missing)} parameters are missing, "
            f"for example {missing[0]}. They would be random; nothing was loaded."
        )
    pooler_is_pretrained = getattr(backbone, "pooler", None) is not None and not any(
        key.startswith("pooler.") for key in report["missing_keys"]
    )
    return backbone, pooler_is_pretrained
