"""The further objectives a run asks for, put on its model."""

from __future__ import annotations

import dataclasses
import logging

from transformers import PreTrainedTokenizerBase

from .arguments import ModelArguments
from .corpora import TrainingViews
from .distillation_auxiliary import Distillation
from .errors import ConfigError
from .masked_lm import MaskedLanguageModel
from .modeling_simcse import SimCSEModel
from .replaced_token_detection import VARIANTS, ReplacedTokenDetection
from .sample import resolve_sample

logger = logging.getLogger(__name__)

_LABELS = 3  # contradiction, entailment, neutral
# Settings that only count beside another one.
_COUNTS_WITH = {
    "mlm_weight": "do_mlm",
    "mlm_probability": "do_mlm",
    "lambda_weight": "generator_name",
    "masking_ratio": "generator_name",
    "diffcse_variant": "generator_name",
    "distillation_weight": "distillation",
    "distillation_temperature": "distillation",
}
_OF_THE_CONTRASTIVE_LOSS = ("hard_negative_weight", "mask_duplicates", "symmetric", "false_negative_margin")


def settings_without_effect(model_args: ModelArguments, *, contrastive: bool, scored: bool) -> dict[str, str]:
    """What was set and takes no part in the training, and why.

    Args:
        model_args: What is asked for.
        contrastive: Whether any rows are trained with the contrastive loss.
        scored: Whether any are scored pairs.
    """
    reasons = {name: f"{switch} is not set" for name, switch in _COUNTS_WITH.items() if not getattr(model_args, switch)}
    if not contrastive:
        reasons |= dict.fromkeys(_OF_THE_CONTRASTIVE_LOSS, "no rows are trained with the contrastive loss")
    if not scored:
        reasons["scored_loss"] = "no rows are scored pairs"
    defaults = {field.name: field.default for field in dataclasses.fields(model_args)}
    return {name: reason for name, reason in reasons.items() if getattr(model_args, name) != defaults[name]}


def add_objectives(
    model: SimCSEModel,
    tokenizer: PreTrainedTokenizerBase,
    model_args: ModelArguments,
    views: TrainingViews,
    *,
    teacher_size: int | None = None,
) -> None:
    """Give the model what the training rows and the arguments need beside the contrastive loss.

    Args:
        model: To be trained.
        tokenizer: Its tokenizer.
        model_args: What is asked for.
        views: The training rows.
        teacher_size: Components of the teacher's vectors, where there is one.

    Raises:
        ConfigError: An objective over contrastive batches, and rows that are none; a teacher of another size.
        ModelError: A generator or masked language model that does not fit the encoder.
    """
    hub_kwargs = {
        "trust_remote_code": model_args.trust_remote_code,
        **({"cache_dir": model_args.cache_dir} if model_args.cache_dir else {}),
    }
    if views.shape == "labelled":
        model.add_classifier(_LABELS)
    added = ("do_mlm", "generator_name", "distillation")
    given = next((name for name in added if getattr(model_args, name)), None)
    if given and views.values is not None:
        kind = "labels" if views.shape == "labelled" else "scores"
        raise ConfigError(
            f"{given} adds to a contrastive loss, and train_file is trained by its {kind}. Leave {given} out, or train_as."
        )
    if model_args.do_mlm:
        auxiliary = MaskedLanguageModel.from_pretrained(
            resolve_sample(model_args.model_name_or_path),
            model,
            tokenizer,
            weight=model_args.mlm_weight,
            probability=model_args.mlm_probability,
            **({"revision": model_args.model_revision} if model_args.model_revision else {}),
            **hub_kwargs,
        )
        model.add_auxiliary("masked_lm", auxiliary)
    if model_args.generator_name:
        auxiliary = ReplacedTokenDetection.from_pretrained(
            resolve_sample(model_args.generator_name),
            model,
            tokenizer,
            weight=model_args.lambda_weight,
            masking_ratio=model_args.masking_ratio,
            settings=VARIANTS[model_args.diffcse_variant],
            max_seq_length=model.config.max_seq_length,
            **hub_kwargs,
        )
        model.add_auxiliary("replaced_tokens", auxiliary)
    if model_args.distillation:
        size = model.config.head_size or model.config.text_config.hidden_size
        if model_args.distillation == "vectors" and teacher_size not in (None, size):
            raise ConfigError(
                f"the teacher's vectors have {teacher_size} components and the student's {size}, so they cannot be compared. "
                "Set distillation to similarities, or take a teacher of that size."
            )
        model.add_auxiliary(
            "distillation",
            Distillation(
                model_args.distillation,
                weight=model_args.distillation_weight,
                temperature=model_args.distillation_temperature,
            ),
        )
    if not model.config.contrastive_weight and not model.auxiliaries and views.values is None:
        raise ConfigError(
            "contrastive_weight is 0 and there is no other objective, so nothing would be trained. Set distillation or do_mlm, or "
            "leave contrastive_weight out."
        )
