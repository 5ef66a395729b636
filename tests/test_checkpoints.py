"""Checkpoints are whole or passed over, and what was lost is said."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import TrainerState

from simcse_hf.checkpoints import (
    SEAL,
    check_loaded,
    checkpoint_to_resume,
    checkpoints_of,
    damage_of,
    facts_of,
    find_best_again,
    keep_only,
    last_whole_checkpoint,
    remove_partial,
    resuming_from,
    seal,
    set_aside_after,
)
from simcse_hf.errors import ModelError


def checkpoint(run_dir: Path, step: int, facts: dict | None = None) -> Path:
    folder = run_dir / f"checkpoint-{step}"
    (folder / "shards").mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "shards" / "0.distcp").write_bytes(b"shard")
    for name in ("scheduler.pt", "rng_state.pth"):
        (folder / name).write_bytes(b"state")
    seal(folder, facts or {})
    return folder


def flip_a_bit(file: Path) -> None:
    stamp = file.stat()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as a failing disk does it


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


DAMAGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a flipped bit": ("model.safetensors", flip_a_bit, "the content of model.safetensors has changed"),
    "a truncated file": ("model.safetensors", cut, "model.safetensors has 10,239 bytes instead of 10,240"),
    "a missing file": ("model.safetensors", Path.unlink, "model.safetensors is missing"),
    "a missing shard": ("shards/0.distcp", Path.unlink, "shards/0.distcp is missing"),
    "no state": ("trainer_state.json", Path.unlink, "no trainer_state.json"),
    "half a seal": (SEAL, lambda file: file.write_text(file.read_text()[:-9]), "cannot be read"),
    "a seal of brackets": (SEAL, lambda file: file.write_text("[" * 5000), "cannot be read"),
    "another seal": (SEAL, lambda file: file.write_text("[]"), "cannot be read"),
    "a seal without sizes": (SEAL, lambda file: file.write_text('{"files": {"model.safetensors": 1}}'), "cannot be"),
    "a path that leaves it": (SEAL, lambda file: file.write_text('{"files": {"../secret": {}}}'), "../secret"),
    "a seal without facts": (SEAL, lambda file: file.write_text('{"files": {}}'), "cannot be read"),
    "an absolute path": (SEAL, lambda file: file.write_text('{"files": {"/etc/passwd": {}}}'), "/etc/passwd"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_found_and_the_checkpoint_before_is_taken(case, tmp_path, caplog) -> None:
    name, spoil, words = DAMAGES[case]
    before, last = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    assert damage_of(last) is None and last_whole_checkpoint(tmp_path) == last
    spoil(last / name)
    assert words in damage_of(last)
    assert checkpoint_to_resume("auto", tmp_path) == before
    assert f"{last} is damaged ({damage_of(last)}) and is passed over" in caplog.text
    with pytest.raises(ModelError, match="checkpoint-10"):
        checkpoint_to_resume(str(last), tmp_path)


def test_a_file_that_was_added_is_no_damage(tmp_path) -> None:
    folder = checkpoint(tmp_path, 1)
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    assert damage_of(folder) is None


def test_where_all_are_damaged_the_run_does_not_silently_start_anew(tmp_path) -> None:
    for step in (1, 2):
        cut(checkpoint(tmp_path, step) / "model.safetensors")
    with pytest.raises(
        ModelError, match="every checkpoint in .* is damaged, checkpoint-2 among them: model.safetensors"
    ):
        checkpoint_to_resume("auto", tmp_path)
    assert checkpoint_to_resume("false", tmp_path) is None


def test_checkpoints_are_ordered_by_number_and_other_folders_are_none(tmp_path) -> None:
    for step in (9, 10, 100):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / ".checkpoint-200.partial").mkdir()
    (tmp_path / "checkpoint-300").write_text("a file", encoding="utf-8")
    assert [path.name for path in checkpoints_of(tmp_path)] == ["checkpoint-100", "checkpoint-10", "checkpoint-9"]
    assert checkpoint_to_resume("auto", tmp_path / "nowhere") is None


def test_a_checkpoint_of_an_earlier_version_is_used_and_said_to_be_unchecked(tmp_path, caplog) -> None:
    folder = checkpoint(tmp_path, 1)
    (folder / SEAL).unlink()
    assert last_whole_checkpoint(tmp_path) == folder and facts_of(folder) == {}
    assert "has no checksums.json, so its files are used unchecked" in caplog.text


# --- the best ---


def state(best: int, scores: dict[int, float]) -> TrainerState:
    found = TrainerState(best_global_step=best, best_metric=scores[best], best_model_checkpoint="elsewhere")
    found.log_history = [{"step": step, "eval_score": score} for step, score in scores.items()]
    return found


def test_the_best_is_found_where_the_folder_has_moved_to(tmp_path, caplog) -> None:
    best = checkpoint(tmp_path, 4)
    checkpoint(tmp_path, 6)
    found = state(4, {2: 0.5, 4: 0.7, 6: 0.6})
    find_best_again(found, tmp_path, "score", greater_is_better=True)
    assert (found.best_global_step, found.best_metric, found.best_model_checkpoint) == (4, 0.7, str(best))
    assert caplog.text == ""


def test_the_best_of_the_run_that_this_one_went_on_from_counts(tmp_path, caplog) -> None:
    best = checkpoint(tmp_path / "first", 4)
    checkpoint(tmp_path / "second", 6)
    found = state(4, {4: 0.7, 6: 0.6})
    found.best_model_checkpoint = str(best)
    find_best_again(found, tmp_path / "second", "score", greater_is_better=True)
    assert (found.best_global_step, found.best_model_checkpoint, caplog.text) == (4, str(best), "")


@pytest.mark.parametrize(("greater", "chosen"), [(True, 8), (False, 6)])
@pytest.mark.parametrize(
    "loss", [lambda best: cut(best / "model.safetensors"), lambda best: best.rename(best.parent / "x")]
)
def test_where_the_best_is_lost_the_best_of_those_left_takes_its_place(loss, greater, chosen, tmp_path, caplog) -> None:
    for step in (4, 6, 8):
        checkpoint(tmp_path, step)
    loss(tmp_path / "checkpoint-4")
    scores = {2: 0.99, 4: 0.9, 6: 0.6, 8: 0.7}  # step 2 has no checkpoint any more
    found = state(4, scores)
    find_best_again(found, tmp_path, "eval_score", greater_is_better=greater)
    assert (found.best_global_step, found.best_metric) == (chosen, scores[chosen])
    assert found.best_model_checkpoint == str(tmp_path / f"checkpoint-{chosen}")
    assert "checkpoint-4, is lost" in caplog.text and f"checkpoint-{chosen} is the best" in caplog.text


def test_where_none_that_was_scored_is_left_nothing_is_called_best(tmp_path, caplog) -> None:
    checkpoint(tmp_path, 7)
    found = state(4, {4: 0.9})
    find_best_again(found, tmp_path, "score", greater_is_better=True)
    assert (found.best_global_step, found.best_metric, found.best_model_checkpoint) == (0, None, None)
    assert "No other that was scored is left" in caplog.text


# --- which are kept ---


@pytest.mark.parametrize(
    ("limit", "left"),
    [(None, [9, 8, 7, 2]), (0, [9, 8, 7, 2]), (3, [9, 8, 2]), (2, [9, 2]), (1, [9, 2])],
)
def test_the_last_and_the_best_are_kept_whatever_the_limit(limit, left, tmp_path) -> None:
    for step in (2, 7, 8, 9):
        checkpoint(tmp_path, step)
    keep_only(tmp_path, limit, last=tmp_path / "checkpoint-9", best=str(tmp_path / "checkpoint-2"))
    assert [path.name for path in checkpoints_of(tmp_path)] == [f"checkpoint-{step}" for step in left]
    assert len(list(tmp_path.iterdir())) == len(left)


def test_the_one_that_was_just_saved_is_kept_also_below_others(tmp_path) -> None:
    for step in (2, 5, 6, 9):
        checkpoint(tmp_path, step)
    keep_only(tmp_path, 2, last=tmp_path / "checkpoint-5", best=str(tmp_path / "checkpoint-2"))
    assert [path.name for path in checkpoints_of(tmp_path)] == ["checkpoint-5", "checkpoint-2"]


def test_later_checkpoints_and_the_record_of_an_end_are_set_aside(tmp_path, caplog) -> None:
    for step in (2, 5, 6):
        checkpoint(tmp_path, step)
    (tmp_path / "simcse_run.json").write_text("{}", encoding="utf-8")
    set_aside_after(2, tmp_path)
    checkpoint(tmp_path, 6)
    set_aside_after(2, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint-2",
        "superseded1-checkpoint-5",
        "superseded1-checkpoint-6",
        "superseded2-checkpoint-6",
        "superseded1-simcse_run.json",
    }
    assert damage_of(tmp_path / "superseded1-checkpoint-5") is None
    assert "checkpoint-6 is beyond step 2" in caplog.text


@pytest.mark.parametrize("came_to_its_place", [False, True])
def test_what_was_to_be_replaced_returns_to_its_place(came_to_its_place, tmp_path) -> None:
    """Killed between two renames."""
    partial = tmp_path / ".checkpoint-4.partial"
    partial.mkdir()
    checkpoint(tmp_path, 4, {"age": "old"}).replace(partial / "replaced")
    if came_to_its_place:
        checkpoint(tmp_path, 4, {"age": "new"})
    remove_partial(partial)
    assert facts_of(tmp_path / "checkpoint-4") == {"age": "new" if came_to_its_place else "old"}
    assert not partial.exists()


def test_a_checkpoint_on_a_failing_disk_is_damaged(tmp_path, monkeypatch) -> None:
    folder = checkpoint(tmp_path, 1)

    def fail(path: Path) -> str:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("simcse_hf.checkpoints.sha256_of", fail)
    assert damage_of(folder) == "a file in it cannot be read (Input/output error)"


def test_a_checkpoint_that_is_being_removed_is_none(tmp_path, monkeypatch) -> None:
    """Killed in the middle of it."""
    for step in (1, 2):
        checkpoint(tmp_path, step)

    def half(folder: Path, **_) -> None:
        if folder.exists():
            (folder / SEAL).unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", half)
    with pytest.raises(KeyboardInterrupt):
        keep_only(tmp_path, 1, last=tmp_path / "checkpoint-2", best=None)
    assert [path.name for path in checkpoints_of(tmp_path)] == ["checkpoint-2"]


@pytest.mark.parametrize("name", ["scheduler.pt", "rng_state.pth"])
def test_without_checksums_it_must_have_what_a_run_goes_on_from(name, tmp_path) -> None:
    folder = checkpoint(tmp_path, 1)
    (folder / SEAL).unlink()
    assert damage_of(folder) is None
    (folder / name).unlink()
    assert "it has neither" in damage_of(folder)


def test_every_file_is_on_the_disk_before_the_seal_is(tmp_path, monkeypatch) -> None:
    synced, fsync = [], os.fsync

    def remember(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", remember)
    checkpoint(tmp_path, 1)
    assert set(synced[:5]) == {"0.distcp", "model.safetensors", "trainer_state.json", "scheduler.pt", "rng_state.pth"}
    assert synced[5].startswith(f".{SEAL}") and synced[6:] == ["checkpoint-1", "shards"]


def test_weights_tied_to_one_that_was_loaded_are_not_missing() -> None:
    """T5 stores one of the two names of its embeddings."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    check_loaded(model, ["1.weight"], [])
    with pytest.raises(ValueError, match="2 differ, 0.weight among them"):
        check_loaded(model, ["0.weight", "1.weight"], [])
    with pytest.raises(ValueError, match="1 differ, strange among them"):
        check_loaded(model, [], ["strange"])


def test_a_checkpoint_is_not_blamed_for_a_full_memory(tmp_path) -> None:
    with pytest.raises(ModelError, match="belongs to another model"), resuming_from(tmp_path):
        raise RuntimeError("size mismatch for a weight")
    with pytest.raises(RuntimeError, match="Connection closed"), resuming_from(tmp_path):
        raise RuntimeError("[gloo] Connection closed by peer")
