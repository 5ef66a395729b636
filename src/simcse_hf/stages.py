"""Two trainings in a row: the second goes on from what the first released."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from .arguments import DataArguments, ModelArguments, SimCSETrainingArguments
from .checkpoints import RECORD
from .errors import ConfigError, shortened
from .parser import check_values, field_types, read_config, typed_values

FOLDER = "first_stage"
_DECIDED_HERE = (
    "output_dir",
    "first_stage",
    "resume_from_checkpoint",
    # Set up once for a process.
    "bf16",
    "fp16",
    "use_cpu",
    # The second stage goes on with the encoder as the first one left it.
    "pooler_type",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)

Arguments = tuple[ModelArguments, DataArguments, SimCSETrainingArguments]


def first_stage_arguments(
    model_args: ModelArguments, data_args: DataArguments, training_args: SimCSETrainingArguments
) -> Arguments:
    """The arguments of the first of two trainings: those given, but for what the file `first_stage` says.

    It trains into `output_dir/first_stage`, and writes its release there, scored on the same sets: their sentences
    are looked for, and kept out, in both trainings.

    Raises:
        ConfigError: The file is missing or wrong, or sets what is decided here.
    """
    path = training_args.first_stage
    differing = typed_values(
        read_config(Path(path)), field_types((ModelArguments, DataArguments, SimCSETrainingArguments)), path
    )
    if forbidden := next((key for key in _DECIDED_HERE if key in differing), None):
        raise ConfigError(
            f"{path}: {forbidden} belongs to the run as a whole. Set it in the config that names this file."
        )
    output_dir = Path(training_args.output_dir) / FOLDER
    unfinished = not (output_dir / RECORD).exists()
    differing |= {
        "output_dir": str(output_dir),
        "first_stage": None,
        "resume_from_checkpoint": training_args.resume_from_checkpoint if unfinished else None,
        "write_release": True,
    }
    stage = []
    for arguments in (model_args, data_args, training_args):
        names = {field.name for field in dataclasses.fields(arguments)}
        try:
            stage.append(dataclasses.replace(arguments, **{key: differing[key] for key in differing if key in names}))
        except ConfigError:
            raise
        except Exception as error:  # TrainingArguments raises many unrelated types
            raise ConfigError(f"{path}: these arguments do not go together: {shortened(error, 1000)}") from error
    check_values(stage)
    return tuple(stage)
