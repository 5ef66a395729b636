"""The folder of a run belongs to one run, and nothing in it is replaced unasked."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from conftest import says, training
from filelock import FileLock
from test_bad_input import hidden
from test_resume import ask, at_call

from simcse_hf import run_folder
from simcse_hf.checkpoints import checkpoints_of
from simcse_hf.cli import main


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("evaluation", ["none", "sample:sts"])
def test_a_finished_run_that_is_started_again_says_so_and_does_nothing(evaluation, good, capsys) -> None:
    """The line with auto stands in job scripts."""
    settings = good | {"write_release": True, "eval_task": evaluation}
    assert main(training(settings, "--resume_from_checkpoint", "auto")) == 0
    before = times(settings["output_dir"])
    capsys.readouterr()
    assert main(training(settings | {"report_to": "none"}, "--resume_from_checkpoint", "auto")) == 0
    output = capsys.readouterr()
    assert output.out == f"finished before, nothing to do: {settings['output_dir']}\n" and "error" not in output.err
    assert times(settings["output_dir"]) == before and hidden(settings["output_dir"]) == []


def test_a_finished_run_of_other_settings_or_data_is_left_alone(good, refused) -> None:
    settings = good | {"temperature": 0.05}
    assert main(training(settings)) == 0
    before = times(settings["output_dir"])
    message = refused(training(settings | {"temperature": 0.1}, "--resume_from_checkpoint", "auto"))
    says(message, "finished run", "temperature: 0.05 -> 0.1", "another output_dir")
    with good["train_file"].open("a", encoding="utf-8") as file:
        file.write("하나\t둘\t셋\n")
    says(refused(training(settings, "--resume_from_checkpoint", "auto")), f"{good['train_file']} has another content")
    assert times(settings["output_dir"]) == before


def test_a_finished_run_may_be_continued_further(good) -> None:
    assert main(training(good)) == 0
    assert main(training(good | {"max_steps": 3}, "--resume_from_checkpoint", "auto")) == 0
    assert next(checkpoints_of(good["output_dir"])).name == "checkpoint-3"


def test_a_checkpoint_of_another_folder_opens_no_folder_that_is_taken(good, refused, tmp_path) -> None:
    assert main(training(good)) == 0
    other = tmp_path / "other"
    assert main(training(good | {"output_dir": other, "write_release": True})) == 0
    before = times(other)
    for start in ("false", str(good["output_dir"] / "checkpoint-1")):
        says(refused(training(good | {"output_dir": other}, "--resume_from_checkpoint", start)), "finished run")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "model.safetensors").write_bytes(b"precious")
    start = str(good["output_dir"] / "checkpoint-1")
    says(refused(training(good | {"output_dir": mine}, "--resume_from_checkpoint", start)), "holds a model.safetensors")
    assert times(other) == before and (mine / "model.safetensors").read_bytes() == b"precious"


def test_two_runs_do_not_share_a_folder(good, refused, monkeypatch, caplog) -> None:
    monkeypatch.setattr("simcse_hf.run_folder._PATIENCE", 0.1)
    good["output_dir"].mkdir()
    (good["output_dir"] / ".checkpoint-5.partial").mkdir()  # the other is writing it
    with FileLock(good["output_dir"] / ".run.lock"):
        says(refused(training(good)), "another run is at work", str(good["output_dir"]))
        assert (good["output_dir"] / ".checkpoint-5.partial").exists()
    assert "waiting a minute" in caplog.text
    assert main(training(good)) == 0
    assert hidden(good["output_dir"]) == []


def test_of_two_runs_that_start_together_in_a_new_folder_one_waits(good, monkeypatch, refused) -> None:
    """The folder is locked before anything in it is looked at, and not only once it is found free."""
    monkeypatch.setattr("simcse_hf.run_folder._PATIENCE", 0.1)
    look = run_folder.checkpoint_to_resume

    def while_the_other_looks(*args):
        monkeypatch.setattr("simcse_hf.run_folder.checkpoint_to_resume", look)
        says(refused(training(good)), "another run is at work")
        return look(*args)

    monkeypatch.setattr("simcse_hf.run_folder.checkpoint_to_resume", while_the_other_looks)
    assert main(training(good)) == 0
    assert run_folder.checkpoint_to_resume is look


def test_a_refused_run_leaves_no_new_folder(good, refused) -> None:
    refused(training(good, "--resume_from_checkpoint", "nowhere"))
    assert not good["output_dir"].exists()


def test_a_folder_that_cannot_be_locked_is_said_to_be_open_to_others(good, monkeypatch, caplog) -> None:
    acquire = FileLock.acquire

    def no_locks(self, *args, **kwargs):
        if self.lock_file.endswith(".run.lock"):  # the data cache has locks of its own, on its own disk
            raise OSError(37, "No locks available")
        return acquire(self, *args, **kwargs)

    monkeypatch.setattr(FileLock, "acquire", no_locks)
    assert main(training(good)) == 0
    assert f"{good['output_dir']} cannot be locked" in caplog.text and "keeps a second run out" in caplog.text


def test_a_run_holds_its_folder_while_it_trains(good, monkeypatch) -> None:
    seen = []
    at_call(2, lambda: seen.extend(path.name for path in good["output_dir"].glob(".run.lock")), monkeypatch)
    assert main(training(good)) == 0
    assert seen == [".run.lock"] and not (good["output_dir"] / ".run.lock").exists()


def test_what_a_kill_left_of_the_record_is_removed(good) -> None:
    good["output_dir"].mkdir()
    (good["output_dir"] / ".simcse_run.json.abc").write_text("half", encoding="utf-8")
    assert main(training(good)) == 0
    assert hidden(good["output_dir"]) == []


def test_a_checkpoint_of_the_first_stage_is_for_the_first_stage(good, refused, monkeypatch, tmp_path) -> None:
    """The message of a stopped first stage names it."""
    stage = tmp_path / "stage.json"
    stage.write_text(json.dumps({"learning_rate": 5e-3, "max_steps": 3, "save_steps": 1}), encoding="utf-8")
    settings = good | {"first_stage": stage, "learning_rate": 1e-3, "max_steps": 4, "write_release": True}
    at_call(2, ask(signal.SIGTERM), monkeypatch)
    message = refused(training(settings), code=143)
    named = settings["output_dir"] / "first_stage/checkpoint-2"
    says(message, str(named))
    monkeypatch.undo()
    monkeypatch.setenv("SIMCSE_CACHE_DIR", str(tmp_path / "cache"))
    assert main(training(settings, "--resume_from_checkpoint", str(named))) == 0
    first, second = (
        json.loads((settings["output_dir"] / name).read_text(encoding="utf-8"))
        for name in ("first_stage/simcse_run.json", "simcse_run.json")
    )
    assert first["steps"] == 3 and first["resumed"]["checkpoint"] == "checkpoint-2"
    assert second["steps"] == 4 and second["resumed"] is None
    ended = times(settings["output_dir"])
    assert main(training(settings, "--resume_from_checkpoint", "auto")) == 0
    assert times(settings["output_dir"]) == ended, "a finished run of two stages"
    whole = tmp_path / "whole"
    assert main(training(settings | {"output_dir": whole})) == 0
    weights = [(folder / "model.safetensors").read_bytes() for folder in (settings["output_dir"], whole)]
    assert weights[0] == weights[1]


def test_a_checkpoint_of_neither_stage_is_refused(good, refused, tmp_path) -> None:
    assert main(training(good)) == 0
    stage = tmp_path / "stage.json"
    stage.write_text(json.dumps({"max_steps": 1}), encoding="utf-8")
    other = tmp_path / "other"
    checkpoint = good["output_dir"] / "checkpoint-1"
    settings = good | {"first_stage": stage, "output_dir": other}
    says(
        refused(training(settings, "--resume_from_checkpoint", str(checkpoint))),
        str(checkpoint),
        "neither stage",
        "auto",
    )
    assert not other.exists()
