"""The folder of a run: claimed before anything is computed, and where to go on in it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from accelerate.utils import broadcast_object_list

from .arguments import SimCSETrainingArguments
from .checkpoints import PARTIAL, checkpoint_to_resume, checkpoints_of
from .errors import ConfigError, ModelError
from .files import STAGING
from .stages import FOLDER


def resume_point(training_args: SimCSETrainingArguments) -> Path | None:
    """The checkpoint to go on from, or None; one process chooses for all.

    Raises:
        ModelError: See `checkpoints.checkpoint_to_resume`.
    """
    choice = [None, None]
    if training_args.process_index == 0:
        try:
            choice[0] = checkpoint_to_resume(training_args.resume_from_checkpoint, Path(training_args.output_dir))
        except ModelError as error:
            choice[1] = str(error)
    found, error = broadcast_object_list(choice)
    if error is not None:
        raise ModelError(error)
    return found


def claim_output_dir(training_args: SimCSETrainingArguments, *, resuming: bool) -> None:
    """Make the folder of a run, or find it free for this run, and remove what a killed one left half-written.

    Raises:
        ConfigError: It cannot be written, or holds what this run would replace.
    """
    output_dir = Path(training_args.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise ConfigError(f"output_dir {output_dir} is a file; name a folder.")
    if (output_dir / "simcse_run.json").exists() and not resuming:
        raise ConfigError(
            f"{output_dir} already holds a finished run. Choose another output_dir, or remove that folder first."
        )
    if training_args.first_stage and training_args.resume_from_checkpoint is None and (output_dir / FOLDER).exists():
        raise ConfigError(
            f"{output_dir / FOLDER} is there already. Go on with --resume_from_checkpoint auto, or remove {output_dir} first."
        )
    if not resuming and output_dir.is_dir() and (last := next(checkpoints_of(output_dir), None)):
        raise ConfigError(
            f"{output_dir} holds {last.name} of an unfinished run. Go on with --resume_from_checkpoint auto, or remove "
            "that folder first."
        )
    taken = [
        name
        for name in ("config.json", "model.safetensors", "modules.json", "README.md")
        if (output_dir / name).exists()
    ]
    if taken and not resuming:
        raise ConfigError(
            f"output_dir {output_dir} holds a {taken[0]} that this run did not write and would replace. Name a new folder."
        )
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write into output_dir {output_dir}: {error.strerror}.") from None
    if training_args.should_save:
        # A run was killed while it wrote these.
        unfinished = [
            *output_dir.glob(f".checkpoint-*{PARTIAL}"),
            *output_dir.glob(f"{STAGING}*"),
        ]
        for folder in unfinished:
            shutil.rmtree(folder, ignore_errors=True)
