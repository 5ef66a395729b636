"""Two trainings in a row: the second goes on from what the first released."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from .arguments import DataArguments, ModelArguments, SimCSETrainingArguments
from .errors import ConfigError
from .parser import field_types, read_config, typed_values

FOLDER = "first_stage"
_DECIDED_HERE = ("output_dir", "first_stage", "resume_from_checkpoint")

Arguments = tuple[ModelArguments, DataArguments, SimCSETrainingArguments]


def first_stage_arguments(
    model_args: ModelArguments, data_args: DataArguments, training_args: SimCSETrainingArguments
) -> Arguments:
    """The arguments of the first of two trainings: those given, but for what the file `first_stage` says.

    It trains into `output_dir/first_stage`, and writes its release there.

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
    unfinished = (output_dir / "simcse_run.json").exists() is False
    differing |= {
        "output_dir": str(output_dir),
        "first_stage": None,
        "resume_from_checkpoint": training_args.resume_from_checkpoint if unfinished else None,
        "final_tasks": differing.get("final_tasks"),
        "write_release": True,
    }
    stage = []
    for arguments in (model_args, data_args, training_args):
        names = {field.name for field in dataclasses.fields(arguments)}
        stage.append(dataclasses.replace(arguments, **{key: differing[key] for key in differing if key in names}))
    return tuple(stage)
