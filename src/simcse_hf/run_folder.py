"""The folder of a run: claimed before anything is computed, and where to go on in it."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accelerate.utils import broadcast_object_list
from filelock import FileLock

from .arguments import SimCSETrainingArguments
from .checkpoints import LAST, NONE, PARTIAL, RECORD, checkpoint_to_resume, checkpoints_of, remove_partial
from .continuation import differences, differences_of_stage, goes_further, read_record
from .errors import ConfigError, SimCSEError
from .failures import explain_failure
from .file_locks import try_lock
from .files import STAGING
from .stages import FOLDER

logger = logging.getLogger(__name__)

_LOCK = ".run.lock"
_OF_THE_FIRST_STAGE = {
    "model_name_or_path",
    "pooler_type",
    "head_init",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
}
_PATIENCE = 60.0  # seconds: a job that was started again may meet the one before, which is saving


class RunFinished(SimCSEError):
    """This very run has ended before; there is nothing to do."""

    exit_code = 0


@contextmanager
def claimed_output_dir(
    training_args: SimCSETrainingArguments, arguments: dict, first_stage: dict | None = None
) -> Iterator[Path | None]:
    """The folder of a run, for this run alone inside the block; yields the checkpoint to go on from, or None.

    The first process looks and chooses for all.

    Args:
        training_args: `output_dir`, `resume_from_checkpoint` and `first_stage` among them.
        arguments: Of the run, as its record keeps them.
        first_stage: The same of the first of two stages.

    Raises:
        ConfigError: The folder cannot be written or its record read; it holds what this run would replace, or a finished
            run of other settings or data; another run is at work there; the checkpoint is of neither stage of this run.
        ModelError: See `checkpoints.checkpoint_to_resume`.
        RunFinished: With `resume_from_checkpoint` auto, where the folder holds this run's end.
    """
    output_dir, choice = Path(training_args.output_dir), [None, None]
    lock, made = FileLock(output_dir / _LOCK), not output_dir.exists()
    try:
        if training_args.process_index == 0:
            try:
                _make_writable(output_dir)
                _wait_for(lock, output_dir)  # before anything in it is looked at
                _refuse_what_is_finished(training_args, arguments, first_stage)
                choice[0] = _resume_point(training_args)
                _refuse_what_would_be_replaced(training_args, choice[0])
                _remove_half_written(output_dir)
            except OSError as error:
                choice[1] = ConfigError(explain_failure(error) or str(error))
            except Exception as error:  # the others wait for an answer
                choice[1] = error
        checkpoint, error = broadcast_object_list(choice)
        if error is not None:
            raise error
        if training_args.should_save and training_args.process_index > 0:  # a folder of this machine's own
            _make_writable(output_dir)
            _remove_half_written(output_dir)
        yield checkpoint
    finally:
        if lock.is_locked:
            (output_dir / _LOCK).unlink(missing_ok=True)
            lock.release()
        if made:
            with suppress(OSError):
                output_dir.rmdir()


def _make_writable(output_dir: Path) -> None:
    if output_dir.exists() and not output_dir.is_dir():
        raise ConfigError(f"output_dir {output_dir} is a file; name a folder.")
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write into output_dir {output_dir}: {error.strerror}.") from None


def _wait_for(lock: FileLock, output_dir: Path) -> None:
    if try_lock(lock):
        return
    logger.warning("another run is at work in %s; waiting a minute for its end.", output_dir)
    if not try_lock(lock, _PATIENCE):
        raise ConfigError(
            f"another run is at work in {output_dir}. Wait until it has ended, or name another output_dir. Where none is at work "
            f"any more (a machine was lost, and the file system has no locks), remove {lock.lock_file}."
        )


def _refuse_what_is_finished(training_args: SimCSETrainingArguments, arguments: dict, first_stage: dict | None) -> None:
    output_dir, wanted = Path(training_args.output_dir), training_args.resume_from_checkpoint
    if wanted in NONE or not (output_dir / RECORD).exists():
        return
    record = read_record(output_dir / RECORD)
    differing = differences(record, arguments)
    if first_stage is not None:
        # The second stage was told to start from the first's result.
        differing = {name: words for name, words in differing.items() if name not in _OF_THE_FIRST_STAGE}
        of_first = output_dir / FOLDER / RECORD
        found = differences_of_stage(read_record(of_first), first_stage) if of_first.exists() else {}
        differing |= {f"{FOLDER}/{name}": f"in the first stage {words}" for name, words in found.items()}
    if goes_further(record, arguments):
        return
    if differing:
        raise ConfigError(
            f"{output_dir} holds a finished run, and this is another: {'; '.join(differing.values())}. Name another output_dir; or "
            "raise max_steps or num_train_epochs to train that one further."
        )
    if wanted in LAST:
        raise RunFinished(f"finished before, nothing to do: {output_dir}")


def _resume_point(training_args: SimCSETrainingArguments) -> Path | None:
    wanted, output_dir = training_args.resume_from_checkpoint, Path(training_args.output_dir)
    found = checkpoint_to_resume(wanted, output_dir)
    if found is None or not training_args.first_stage:
        return found
    if _lies_in(found, output_dir / FOLDER):
        return None  # the first stage goes on from it, and the second from the first's result
    if not _lies_in(found, output_dir):
        raise ConfigError(
            f"{wanted} is of neither stage of the run in {output_dir}, and of two trainings only their own are resumed. "
            "Use auto; or train the second stage alone, without first_stage."
        )
    return found


def _lies_in(checkpoint: Path, folder: Path) -> bool:
    return checkpoint.resolve().parent == folder.resolve()


def _refuse_what_would_be_replaced(training_args: SimCSETrainingArguments, checkpoint: Path | None) -> None:
    output_dir = Path(training_args.output_dir)
    resuming = checkpoint is not None and _lies_in(checkpoint, output_dir)
    if (output_dir / RECORD).exists() and not resuming:
        raise ConfigError(
            f"{output_dir} already holds a finished run. Choose another output_dir, or remove that folder first."
        )
    if training_args.first_stage and training_args.resume_from_checkpoint in NONE and (output_dir / FOLDER).exists():
        raise ConfigError(
            f"{output_dir / FOLDER} is there already. Go on with --resume_from_checkpoint auto, or remove {output_dir} first."
        )
    if not resuming and (last := next(checkpoints_of(output_dir), None)):
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
            f"output_dir {output_dir} holds a {taken[0]}, of a release that was cut off or of something else, which this run would "
            "replace. Name a new folder, or remove that one first."
        )


def _remove_half_written(output_dir: Path) -> None:
    """A run was killed while it wrote these."""
    for folder in output_dir.glob(f".checkpoint-*{PARTIAL}"):
        remove_partial(folder)
    for folder in output_dir.glob(f"{STAGING}*"):
        shutil.rmtree(folder, ignore_errors=True)
    for file in output_dir.glob(f".{RECORD}.*"):
        file.unlink(missing_ok=True)
