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
    "trackio_bucket_id",
    "trackio_static_space_id",
    "skip_memory_metrics",
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
    "dataloader_multiprocessing_context",
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
# Of a training that is over: how it was watched, and fitted into its machine. Another one may want it otherwise.
_OF_A_TRAINING_ONLY = {
    "eval_task",
    "final_tasks",
    "eval_strategy",
    "eval_steps",
    "eval_delay",
    "eval_on_start",
    "do_eval",
    "save_strategy",
    "save_steps",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
    "early_stopping_patience",
    "gradient_cache_tokens",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "activation_checkpointing",
    "activation_checkpointing_kwargs",
    "torch_compile",
    "torch_compile_backend",
    "torch_compile_mode",
    "use_cpu",
}
_DECIDES_BEST = ("metric_for_best_model", "greater_is_better")
_DATA = {"data": "train_file", "scored_data": "scored_file"}  # parts of a record, and the arguments they are of


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
        facts: `data`: what identifies all that is trained on, as in `TrainingViews.sources`; the same of the evaluation
            set (`evaluated_on`), and of sets whose sentences are left out (`kept_out`), empty where there are none; and
            those of `changed_settings`.

    Raises:
        DataError: Names the file or the setting that changed.
        ConfigError: The best checkpoint would be chosen by another measure than before.
        TrainingError: `num_train_epochs` would be another number of steps.
    """
    if not (before := _known(checkpoint)):
        return
    anew = f"start a new run from its weights, with model_name_or_path {checkpoint} and another output_dir"
    cure = f"Put back the data that {checkpoint} was trained on; or {anew}."
    if len(before["data"]) != len(facts["data"]):
        raise DataError(
            f"{len(before['data'])} data files were trained on, and now there are {len(facts['data'])}. {cure}"
        )
    _check_same(before["data"], facts["data"], checkpoint, cure)
    if _contents(before["kept_out"]) != _contents(facts["kept_out"]):
        names = [", ".join(map(_name, of["kept_out"])) or "none" for of in (before, facts)]
        raise DataError(
            f"on_leakage drop leaves out sentences of evaluation sets. These were {names[0]} when {checkpoint.name} was saved "
            f"and are {names[1]}, so the training rows are others. Ask for the same sets, unchanged; or {anew}."
        )
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
            raise DataError(
                f"{_name(new)} is not what {_name(old)} was when {checkpoint.name} was saved "
                f"({_content(old)[:12]} then, {_content(new)[:12]} now). {cure}"
            )


def _known(checkpoint: Path) -> dict:
    """The facts of a checkpoint; empty where another program sealed it, or an earlier version of this one."""
    facts = facts_of(checkpoint)
    needed = {"data", "evaluated_on", "kept_out", "arguments", "world_size", "mixed_precision"}
    return facts if needed <= facts.keys() else {}


def _contents(sources: Sequence[dict]) -> list[str]:
    return [_content(source) for source in sources]


def _name(source: dict) -> str:
    return str(source.get("path") or source.get("hub"))


def _content(source: dict) -> str:
    return str(source.get("sha256") or source.get("fingerprint"))


def changed_settings(checkpoint: Path, facts: dict) -> list[str]:
    """Settings that are not what they were when a checkpoint was saved, as `name: old -> new`.

    Args:
        checkpoint: Sealed with such facts.
        facts: `arguments` (`{"model": {...}, "data": {...}, "training": {...}}`), `world_size` and `mixed_precision`.
    """
    if not (before := _known(checkpoint)):
        return []
    means = dict.fromkeys(_GOES_ON, ", but the checkpoint's goes on")
    other_order = _CHANGES_ORDER | _rows_of_a_step(before, facts)
    means |= dict.fromkeys(other_order, ", so this epoch sees some rows twice and others not")
    return [f"{each}{means.get(each.name, '')}" for each in _changes(before, facts)]


def _changes(before: dict, facts: dict) -> list[Change]:
    names = [name for name in ("world_size", "mixed_precision") if before[name] != facts[name]]
    of_all = [Change(name, before[name], facts[name]) for name in names]
    return of_all + changed(before["arguments"], facts["arguments"])


def _rows_of_a_step(before: dict, facts: dict) -> set[str]:
    """The settings that decide which rows a step takes; sizes of batches only where their products are not what they were."""

    def rows(of: dict) -> tuple[int, int, int]:
        training, processes = of["arguments"]["training"], of["world_size"]
        size, steps = training["per_device_train_batch_size"], training["gradient_accumulation_steps"]
        return processes * size, processes * (training["scored_batch_size"] or size), steps

    same = rows(before) == rows(facts)
    return _ROWS_OF_A_STEP - ({"world_size", "per_device_train_batch_size", "scored_batch_size"} if same else set())


def changed(before: dict, now: dict) -> list[Change]:
    """The arguments that differ and change something.

    Args:
        before: `{"model": {...}, "data": {...}, "training": {...}}`, as a record keeps them.
        now: The same of another run.
    """
    now = json.loads(json.dumps(now, default=str))  # JSON knows no tuples
    return [
        Change(name, old, now[group][name])
        for group, values in before.items()
        for name, old in sorted(values.items())
        # Another release of transformers may have another list of arguments.
        if name not in _CHANGES_NOTHING and name in now.get(group, {}) and old != now[group][name]
    ]


def read_record(path: Path) -> dict:
    """The record of a finished run.

    Raises:
        ConfigError: It is damaged.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        sources = [source for part in _DATA if record.get(part) for source in record[part]["sources"]]
        groups = [record["arguments"][name] for name in ("model", "data", "training")]
        if isinstance(record["steps"], int) and all(isinstance(each, dict) for each in [*sources, *groups]):
            return record
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise ConfigError(f"{path} is damaged, or of another program. Name another output_dir, or remove that folder.")


def differences(record: dict, arguments: dict) -> dict[str, str]:
    """What is not as it was in a finished run, in words, by the argument's name or the data file's path.

    Args:
        record: Its `simcse_run.json`.
        arguments: Of another run, as its record would keep them.
    """
    found = {each.name: str(each) for each in changed(record["arguments"], arguments)}
    for part, name in _DATA.items():
        if record.get(part) and arguments["data"][name]:
            found |= _other_files(record[part]["sources"], arguments["data"][name], name)
    return found


def differences_of_stage(record: dict, arguments: dict) -> dict[str, str]:
    """The `differences` that matter of a finished first stage: not how it was watched, and fitted into its machine."""
    return {name: words for name, words in differences(record, arguments).items() if name not in _OF_A_TRAINING_ONLY}


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
        if sha256_of(path) != source.get("sha256")
    }


def goes_further(record: dict, arguments: dict) -> bool:
    """Whether more steps, epochs or patience are asked for than a finished run had."""
    raised = [
        each.new is None or (each.old is not None and each.new > each.old)
        for each in changed(record["arguments"], arguments)
        if each.name in ("max_steps", "num_train_epochs", "early_stopping_patience")
    ]
    return bool(raised) and all(raised)
