"""Whether a run may go on from what another start of it left, and what is not as it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .checkpoints import facts_of
from .errors import ConfigError, DataError, SimCSEError, TrainingError
from .files import sha256_of
from .sample import resolve_sample
from .tables import expand_paths

RECORD = "simcse_run.json"  # written last: a folder that holds it holds a finished run
# Where a run is made and how it is watched changes no weight.
_CHANGES_NOTHING = {
    "output_dir",
    "resume_from_checkpoint",
    "data_cache_dir",
    "data_dir",
    "cache_dir",
    "run_name",
    "report_to",
    "disable_tqdm",
    "project",
    "trackio_space_id",
    "debug",
    "logging_steps",
    "logging_strategy",
    "logging_first_step",
    "log_level",
    "log_level_replica",
    "log_on_each_node",
    "save_total_limit",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_pin_memory",
    "local_rank",
    "ddp_timeout",
    "per_device_eval_batch_size",
}

# Optimiser and the state of the trainer bring these along.
_GOES_ON = {
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "eval_steps",
    "save_steps",
}

# A resumed epoch skips as many rows as were trained on: of another order, other rows.
_CHANGES_ORDER = {"seed", "data_seed", "shuffle_buffer"}
_ROWS_OF_A_STEP = {
    "world_size",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "scored_batch_size",
    "mixing",
}
_DECIDES_ROWS = (
    "train_as",
    "triplet_rule",
    "on_bad_row",
    "deduplicate",
    "max_train_samples",
    "on_leakage",
    "column_names",
    "source_weights",
    "streaming",
)
_DECIDES_BEST = ("metric_for_best_model", "greater_is_better")


class Change(NamedTuple):
    """A setting that is not what it was."""

    name: str
    old: object
    new: object

    def __str__(self) -> str:
        return f"{self.name}: {self.old} -> {self.new}"


def check_may_go_on(checkpoint: Path, facts: dict) -> None:
    """Refuse to go on with other rows, another measure of what is best, or epochs of another length.

    Of other training data the order of the rows would be another, and part of them trained on twice. Scores on another
    evaluation set could not be compared with those there are, of which the best chooses the weights. With other batches
    the epochs asked for are another number of steps, of which some were made.

    Args:
        checkpoint: Sealed with such facts.
        facts: `data`: what identifies all that is trained on, as in `TrainingViews.sources`; `evaluated_on`: the same of
            the evaluation set, empty where there is none; and those of `changed_settings`.

    Raises:
        DataError: Names the file or the setting that changed.
        ConfigError: The best checkpoint would be chosen by another measure than before.
        TrainingError: `num_train_epochs` would be another number of steps.
    """
    before = facts_of(checkpoint)
    if not before:
        return
    anew = f"start a new run from its weights, with model_name_or_path {checkpoint} and another output_dir"
    cure = f"Put back the data that {checkpoint} was trained on; or {anew}."
    if len(before["data"]) != len(facts["data"]):
        raise DataError(
            f"{len(before['data'])} data files were trained on, and now there are {len(facts['data'])}. {cure}"
        )
    _check_same(before["data"], facts["data"], checkpoint, cure)
    changes = {each.name: each for each in _changes(before, facts)}
    for name in _DECIDES_ROWS:
        if name in changes:
            raise DataError(
                f"{changes[name]}, so the training rows are not those of {checkpoint.name}. Set it as it was; or {anew}."
            )
    if before["evaluated_on"] and facts["evaluated_on"]:
        cure = "Put it back, or start a new run in another output_dir: scores on two sets cannot be compared."
        _check_same(before["evaluated_on"], facts["evaluated_on"], checkpoint, cure)
        for name in _DECIDES_BEST:
            if name in changes:
                raise ConfigError(
                    f"{changes[name]}, and what was best until {checkpoint.name} was found by the other. Set it as it was; or "
                    f"{anew}."
                )
    if facts["arguments"]["training"]["max_steps"] <= 0 and (found := changes.keys() & _rows_of_a_step(before, facts)):
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        raise TrainingError(
            f"{'; '.join(str(changes[name]) for name in sorted(found))}, so num_train_epochs is another number of steps than when "
            f"{checkpoint.name} was saved. Set them as they were, or max_steps to the step to end at (it was "
            f"{state['max_steps']})."
        )


def _check_same(before: Sequence[dict], now: Sequence[dict], checkpoint: Path, cure: str) -> None:
    for old, new in zip(before, now, strict=False):
        if _content(old) != _content(new):
            name = new.get("path") or new.get("hub")
            raise DataError(
                f"{name} is not what {old.get('path') or old.get('hub')} was when {checkpoint.name} was saved "
                f"({_content(old)[:12]} then, {_content(new)[:12]} now). {cure}"
            )


def _content(source: dict) -> str:
    return str(source.get("sha256") or source.get("fingerprint"))


def changed_settings(checkpoint: Path, facts: dict) -> list[str]:
    """Settings that are not what they were when a checkpoint was saved, as `name: old -> new`.

    Args:
        checkpoint: Sealed with such facts.
        facts: `arguments` (`{"model": {...}, "data": {...}, "training": {...}}`), `world_size` and `mixed_precision`.
    """
    before = facts_of(checkpoint)
    means = dict.fromkeys(_GOES_ON, ", but the checkpoint's goes on")
    other_order = _CHANGES_ORDER | _rows_of_a_step(before, facts)
    means |= dict.fromkeys(other_order, ", so this epoch sees some rows twice and others not")
    return [f"{each}{means.get(each.name, '')}" for each in _changes(before, facts)]


def _changes(before: dict, facts: dict) -> list[Change]:
    names = [name for name in ("world_size", "mixed_precision") if before.get(name, facts[name]) != facts[name]]
    of_all = [Change(name, before[name], facts[name]) for name in names]
    return of_all + changed(before.get("arguments", {}), facts["arguments"])


def _rows_of_a_step(before: dict, facts: dict) -> set[str]:
    """The settings that decide which rows a step takes; none of the first three where their product is what it was."""

    def rows(of: dict) -> tuple[int, int]:
        training = of["arguments"]["training"]
        return of["world_size"] * training["per_device_train_batch_size"], training["gradient_accumulation_steps"]

    same = not before.get("arguments") or rows(before) == rows(facts)
    return _ROWS_OF_A_STEP - ({"world_size", "per_device_train_batch_size"} if same else set())


def changed(before: dict, now: dict) -> list[Change]:
    """The arguments that differ and change something.

    Args:
        before: `{"model": {...}, "data": {...}, "training": {...}}`, as a record keeps them.
        now: The same of another run.
    """
    now = json.loads(json.dumps(now, default=str))  # JSON knows no tuples
    return [
        Change(name, old, now.get(group, {}).get(name))
        for group, values in before.items()
        for name, old in sorted(values.items())
        if name not in _CHANGES_NOTHING and old != now.get(group, {}).get(name)
    ]


def read_record(path: Path) -> dict:
    """The record of a finished run.

    Raises:
        ConfigError: It is damaged.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record["arguments"]["training"], dict) and isinstance(record["steps"], int):
            return record
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ConfigError(f"{path} is damaged, or of another program. Name another output_dir, or remove that folder.")


def differences(record: dict, arguments: dict) -> dict[str, str]:
    """What is not as it was in a finished run, in words, by the argument's name or the data file's path.

    Args:
        record: Its `simcse_run.json`.
        arguments: Of another run, as its record would keep them.
    """
    found = {each.name: str(each) for each in changed(record["arguments"], arguments)}
    for part, name in (("data", "train_file"), ("scored_data", "scored_file")):
        if record.get(part) and arguments["data"][name]:
            found |= _other_files(record[part]["sources"], arguments["data"][name], name)
    return found


def _other_files(sources: Sequence[dict], names: Sequence[str], argument: str) -> dict[str, str]:
    try:
        paths = expand_paths([resolve_sample(name) for name in names])
    except SimCSEError:  # they were removed after the run
        return {}
    if len(paths) != len(sources):
        return {argument: f"{argument} was {len(sources)} files and is {len(paths)}"}
    return {
        str(path): f"{path} has another content"
        for path, source in zip(paths, sources, strict=True)
        if sha256_of(path) != source["sha256"]
    }


def goes_further(record: dict, arguments: dict) -> bool:
    """Whether more steps or epochs are asked for than a finished run made."""
    raised = [
        each.new > each.old
        for each in changed(record["arguments"], arguments)
        if each.name in ("max_steps", "num_train_epochs")
    ]
    return bool(raised) and all(raised)
