"""Checkpoints that are whole, and known to be: checksums are written last and compared before anything is loaded."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError

from safetensors import SafetensorError
from transformers import PreTrainedModel, TrainerState

from .errors import ModelError, SimCSEError, shortened
from .failures import explain_failure
from .files import sha256_of, write_json

logger = logging.getLogger(__name__)

SEAL = "checksums.json"
PARTIAL = ".partial"  # ends the name of a checkpoint that is being written
RECORD = "simcse_run.json"  # of a run, written last: a folder that holds it holds a finished run
REPLACED = "replaced"  # in there: an earlier one of the same step, until the new one has its place
LAST = ("auto", "true", "True")  # what resume_from_checkpoint says for the last one
NONE = (None, "", "false", "False")  # and to start anew
_NAME = re.compile(r"checkpoint-(\d+)")


def seal(folder: Path, facts: dict) -> None:
    """Write the checksums of all files in a folder, after the disk has taken them.

    Args:
        folder: A checkpoint; from now on nothing in it may change.
        facts: JSON-ready; kept with the checksums (see `facts_of`).
    """
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    write_json(folder / SEAL, {"files": files, "facts": facts})
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Have the disk take the names of what lies in a folder: a rename survives a power cut only then."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def damage_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None where every file has its checksum.

    A checkpoint without checksums, which an earlier version or another program wrote, is taken as it is, if it has
    what a run goes on from.
    """
    if not (folder / "trainer_state.json").is_file():
        return "it has no trainer_state.json"
    if not (folder / SEAL).exists():
        for pattern in ("scheduler.pt", "rng_state*.pth"):
            if not any(folder.glob(pattern)):
                return f"it has neither {SEAL} nor {pattern}"
        try:
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            return "trainer_state.json cannot be read"
        logger.warning("%s has no %s, so its files are used unchecked.", folder, SEAL)
        return None
    try:
        content = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        for name, expected in content["files"].items():
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                return f"{SEAL} names the file {name}, which is not in it"
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if (size := path.stat().st_size) != expected["bytes"]:
                return f"{name} has {size:,} bytes instead of {expected['bytes']:,}"
            if sha256_of(path) != expected["sha256"]:
                return f"the content of {name} has changed since it was written"
        if not isinstance(content["facts"], dict):
            return f"{SEAL} cannot be read"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{SEAL} cannot be read"
    except OSError as error:  # a disk that fails
        return f"a file in it cannot be read ({error.strerror})"
    return None


def facts_of(folder: Path) -> dict:
    """What `seal` was given; empty for a checkpoint without checksums."""
    try:
        return json.loads((folder / SEAL).read_text(encoding="utf-8"))["facts"]
    except FileNotFoundError:
        return {}


def checkpoints_of(run_dir: Path) -> Iterator[Path]:
    """The checkpoints of a run, last first."""
    found = [(int(match[1]), path) for path in run_dir.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    for _, path in sorted(found, reverse=True):
        if path.is_dir():
            yield path


def last_whole_checkpoint(run_dir: Path) -> Path | None:
    """The last checkpoint of a run that is not damaged; each one passed over is named in a warning."""
    for path in checkpoints_of(run_dir):
        if (damage := damage_of(path)) is None:
            return path
        logger.warning("%s is damaged (%s) and is passed over.", path, damage)
    return None


def checkpoint_to_resume(wanted: str | None, run_dir: Path) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` means, compared with its checksums; None to start anew.

    Args:
        wanted: A folder; `auto` or `true` for the last one of the run that is whole; `false` or None for none.
        run_dir: Where the run's checkpoints lie.

    Raises:
        ModelError: The folder is no checkpoint or damaged; or with `auto`, all are.
    """
    if wanted in NONE:
        return None
    if wanted in LAST:
        found = last_whole_checkpoint(run_dir)
        if found is None and (damaged := next(checkpoints_of(run_dir), None)):
            raise ModelError(
                f"every checkpoint in {run_dir} is damaged, {damaged.name} among them: {damage_of(damaged)}. Restore one, or "
                "train anew in another output_dir."
            )
        return found
    folder = Path(wanted)
    if not (folder / "trainer_state.json").is_file():
        raise ModelError(f"{wanted} is not a checkpoint: it has no trainer_state.json. Use auto to take the last one.")
    if damage := damage_of(folder):
        raise ModelError(f"the checkpoint {wanted} is damaged: {damage}. Use auto to take the last one that is whole.")
    return folder


def check_loaded(model: PreTrainedModel, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    """Refuse weights that are not those of a model: transformers would warn, and train on with what it has.

    Args:
        model: What they were loaded into.
        missing: Names that were not among them; those tied to one that was are no matter.
        unexpected: Names that the model lacks.

    Raises:
        ValueError: Names the first that differs.
    """
    own = model.state_dict(keep_vars=True)
    loaded = {tensor.data_ptr() for name, tensor in own.items() if name not in missing}
    lost = [name for name in missing if name in own and own[name].data_ptr() not in loaded]
    if strange := sorted([*lost, *unexpected]):
        raise ValueError(f"its weights are not those of this model ({len(strange)} differ, {strange[0]} among them)")


@contextmanager
def resuming_from(checkpoint: str | Path | None) -> Iterator[None]:
    """Say of whatever goes wrong in the block that this checkpoint cannot be resumed.

    Raises:
        ModelError: Instead of what torch and safetensors raise. Only tensors and numbers are read, no pickled code.
    """
    try:
        yield
    except (RuntimeError, SafetensorError, UnpicklingError, OSError, EOFError, ValueError, KeyError) as error:
        if isinstance(error, SimCSEError) or (isinstance(error, RuntimeError) and explain_failure(error)):
            raise  # a full memory, or a lost process: not the checkpoint's fault
        raise ModelError(
            f"{checkpoint} cannot be resumed: {shortened(' '.join(str(error).split()), 300)}. It belongs to another model, or a "
            "file in it is damaged or holds more than tensors and numbers. Resume with the settings it was saved with, or "
            "take another checkpoint."
        ) from error


def keep_only(run_dir: Path, limit: int | None, *, last: Path, best: str | None) -> None:
    """Remove the oldest checkpoints of a run, but never the last or the best.

    Each is renamed first: one that was half-removed when the process was killed is no checkpoint.

    Args:
        run_dir: Where they lie.
        limit: How many to keep; None or 0 for all.
        last: The one that was saved last.
        best: Path of the best.
    """
    if not limit or limit < 0:
        return
    found = list(checkpoints_of(run_dir))
    protected = [path for path in found if path == last or (best is not None and path == Path(best))]
    others = [path for path in found if path not in protected]
    for path in others[max(limit - len(protected), 0) :]:
        hidden = path.with_name(f".{path.name}{PARTIAL}")
        shutil.rmtree(hidden, ignore_errors=True)
        path.replace(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def set_aside_after(step: int, run_dir: Path) -> None:
    """Rename what a run left beyond the step from which it goes on, and would else take for its own.

    These are checkpoints that are damaged, or of a continuation that was given up, and the record of an end.
    """
    for path in checkpoints_of(run_dir):
        if int(_NAME.fullmatch(path.name)[1]) > step:
            aside = _set_aside(path)
            logger.warning(
                "%s is beyond step %d, from which the run goes on; it is kept as %s.", path, step, aside.name
            )
    if (run_dir / RECORD).exists():
        _set_aside(run_dir / RECORD)


def _set_aside(path: Path) -> Path:
    names = (f"superseded{number}-{path.name}" for number in count(1))
    aside = next(aside for name in names if not (aside := path.with_name(name)).exists())
    path.replace(aside)
    return aside


def remove_partial(folder: Path) -> None:
    """Remove what is left of a checkpoint that was being written; one that it was to replace returns to its place."""
    replaced = folder / REPLACED
    final = folder.with_name(folder.name.removeprefix(".").removesuffix(PARTIAL))
    if replaced.exists() and not final.exists():
        replaced.replace(final)
    shutil.rmtree(folder, ignore_errors=True)


def find_best_again(
    state: TrainerState, run_dir: Path, metric: str, *, greater_is_better: bool, is_released: bool = True
) -> None:
    """Set the best checkpoint of a state to one that is there and whole.

    The folder of the run may have moved since, or the best checkpoint been damaged: then the best of those that are
    left takes its place.

    Args:
        state: Of the run; its `best_*` attributes are changed.
        run_dir: Where the checkpoints lie now.
        metric: What best means, as in `metric_for_best_model`.
        greater_is_better: Whether larger is better.
        is_released: Whether the best checkpoint is what the run ends in. If not it need not have been saved, and the
            best score stands whatever became of it.
    """
    if state.best_global_step in (None, 0):
        return
    best = run_dir / f"checkpoint-{state.best_global_step}"
    if not best.is_dir() and Path(state.best_model_checkpoint or best).is_dir():
        best = Path(state.best_model_checkpoint)  # of the run whose checkpoint this one went on from
    damage = damage_of(best) if best.is_dir() else "it is not there"
    if damage is None:
        state.best_model_checkpoint = str(best)
        return
    if not is_released:
        state.best_model_checkpoint = None
        return
    name = metric if metric.startswith("eval_") else f"eval_{metric}"
    whole = {int(_NAME.fullmatch(path.name)[1]): path for path in checkpoints_of(run_dir) if damage_of(path) is None}
    scores = {entry["step"]: entry[name] for entry in state.log_history if name in entry and entry.get("step") in whole}
    step = (max if greater_is_better else min)(scores, key=scores.get, default=None)
    logger.warning(
        "the best checkpoint, %s, is lost: %s. %s",
        best,
        damage,
        "No other that was scored is left." if step is None else f"Of those left checkpoint-{step} is the best.",
    )
    state.best_global_step = step or 0
    state.best_metric = None if step is None else scores[step]
    state.best_model_checkpoint = None if step is None else str(whole[step])
