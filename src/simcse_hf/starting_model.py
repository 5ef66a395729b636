"""The model a run starts from: a plain encoder, one of our checkpoints, or a release."""

from __future__ import annotations

import copy
import logging

from transformers import PreTrainedTokenizerBase

from .arguments import ModelArguments
from .attention import enable_packing
from .backbones import load_config
from .configuration_simcse import SimCSEConfig
from .errors import ConfigError, ModelError
from .modeling_simcse import SimCSEModel
from .sample import resolve_sample
from .sentence_transformers_layout import read_layout
from .tokenization import load_tokenizer

logger = logging.getLogger(__name__)

_CONFIG_FIELDS = (
    "pooler_type",
    "mlp_only_train",
    "head_type",
    "head_size",
    "first_hidden_state",
    "temperature",
    "hard_negative_weight",
    "mask_duplicates",
    "symmetric",
    "false_negative_margin",
    "matryoshka_dims",
    "contrastive_weight",
    "scored_loss",
    "prompt",
    "max_seq_length",
)


def load_model(model_args: ModelArguments) -> tuple[SimCSEModel, PreTrainedTokenizerBase]:
    """The model to train, from a plain encoder, one of our checkpoints, or a release."""
    if not model_args.model_name_or_path:
        raise ConfigError("model_name_or_path is missing: name a folder, a Hub id, or sample:encoder.")
    name = resolve_sample(model_args.model_name_or_path)
    if (model_args.attn_implementation or "").startswith(("flash", "flex")):
        raise ConfigError(
            f"attn_implementation {model_args.attn_implementation} cannot be chosen: models are evaluated in float32, which "
            "these kernels do not take. Leave it out: packed rows use flash kernels by themselves wherever they can."
        )
    hub_kwargs = {"revision": model_args.model_revision, "cache_dir": model_args.cache_dir}
    hub_kwargs = {key: value for key, value in hub_kwargs.items() if value is not None}
    overrides = {key: getattr(model_args, key) for key in _CONFIG_FIELDS if getattr(model_args, key) is not None}
    found = load_config(name, trust_remote_code=model_args.trust_remote_code, **hub_kwargs)
    try:
        if found.model_type == SimCSEConfig.model_type or _is_release(name, overrides, hub_kwargs):
            model = _continue_from(name, overrides, model_args, hub_kwargs)
        else:
            model = SimCSEModel.from_backbone(
                name,
                head_init=model_args.head_init,
                hidden_dropout_prob=model_args.hidden_dropout_prob,
                attention_probs_dropout_prob=model_args.attention_probs_dropout_prob,
                attn_implementation=model_args.attn_implementation,
                trust_remote_code=model_args.trust_remote_code,
                hub_kwargs=hub_kwargs,
                **overrides,
            )
    except ModelError:
        raise
    except ValueError as error:  # SimCSEConfig refuses values and combinations
        raise ConfigError(str(error)) from error
    tokenizer = load_tokenizer(
        resolve_sample(model_args.tokenizer_name) if model_args.tokenizer_name else name,
        trust_remote_code=model_args.trust_remote_code,
        **hub_kwargs,
    )
    return model, tokenizer


def _is_release(name: str, overrides: dict, hub_kwargs: dict) -> bool:
    """Whether to go on with the vectors of a release, rather than start anew from its encoder."""
    wanted = overrides.get("pooler_type")
    try:
        layout = read_layout(name, **hub_kwargs)
    except ModelError:
        if wanted is None:
            raise
        layout = None
    if layout is None or wanted == layout.pooler_type:
        return layout is not None
    if wanted is not None:
        logger.warning("%s pools with %s; starting anew from its encoder with %s.", name, layout.pooler_type, wanted)
    return wanted is None


def _continue_from(name: str, overrides: dict, model_args: ModelArguments, hub_kwargs: dict) -> SimCSEModel:
    for setting in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        if getattr(model_args, setting) is not None:
            raise ConfigError(
                f"{setting} can be set when starting from a plain encoder, not when continuing from {name}."
            )
    if model_args.head_init != "fresh":
        raise ConfigError(f"head_init applies to a plain encoder; {name} brings its own head.")
    model = SimCSEModel.from_pretrained(name, trust_remote_code=model_args.trust_remote_code, **hub_kwargs)
    if model_args.attn_implementation is not None:
        model.backbone.set_attn_implementation(model_args.attn_implementation)
        enable_packing(model.backbone)
    if overrides.get("pooler_type", model.config.pooler_type) != model.config.pooler_type:
        raise ConfigError(
            f"{name} was trained with pooler_type {model.config.pooler_type}; continuing with {overrides['pooler_type']} "
            "would change what its vectors mean. Start from its backbone, or leave pooler_type out."
        )
    for key in ("head_type", "head_size"):
        if overrides.get(key, getattr(model.config, key)) != getattr(model.config, key):
            raise ConfigError(
                f"{key} {overrides[key]} is that of another head than {name} has ({getattr(model.config, key)}). Start from its "
                f"backbone, or leave {key} out."
            )
    settings = {key: getattr(model.config, key) for key in _CONFIG_FIELDS} | overrides
    # A config built anew validates the combination, but it resets the attention kernel of the text_config it is
    # given: it gets a copy, and its values are assigned to the one in use.
    validated = SimCSEConfig(text_config=copy.deepcopy(model.config.text_config), **settings)
    for key in settings:
        setattr(model.config, key, getattr(validated, key))
    return model
