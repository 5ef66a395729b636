"""A run that goes on with something changed, or from another checkpoint than the last, is what it says it is."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from conftest import says, training
from test_resume import ask, at_call, cut_short, score_as

from simcse_hf import run_folder
from simcse_hf.checkpoints import checkpoints_of
from simcse_hf.cli import main
from simcse_hf.errors import ConfigError

AUTO = ("--resume_from_checkpoint", "auto")


@pytest.fixture
def settings(good) -> dict:
    return good | {"max_steps": 4, "load_best_model_at_end": False, "learning_rate": 1e-3}


def names(run_dir: Path) -> list[str]:
    return [path.name for path in checkpoints_of(run_dir)]


def record_of(settings: dict) -> dict:
    return json.loads((settings["output_dir"] / "simcse_run.json").read_text(encoding="utf-8"))


def test_what_was_saved_last_is_kept_below_a_damaged_one(settings, refused, monkeypatch) -> None:
    """Each pre-emption would lose all steps since the best checkpoint, for ever."""
    assert main(training(settings)) == 0
    cut_short(settings, after=4)
    for step in (3, 4):
        (settings["output_dir"] / f"checkpoint-{step}/model.safetensors").write_bytes(b"half")
    settings |= {"save_total_limit": 1}
    at_call(1, ask(signal.SIGTERM), monkeypatch)
    says(refused(training(settings, *AUTO), code=143), "after step 3", "checkpoint-3")
    assert names(settings["output_dir"]) == ["checkpoint-3"]
    assert {path.name for path in settings["output_dir"].glob("superseded*")} == {
        "superseded1-checkpoint-3",
        "superseded1-checkpoint-4",
    }


def test_from_an_earlier_checkpoint_the_later_ones_are_set_aside(settings, refused, monkeypatch, caplog) -> None:
    assert main(training(settings)) == 0
    cut_short(settings, after=4)
    at_call(1, ask(signal.SIGTERM), monkeypatch)
    start = settings["output_dir"] / "checkpoint-1"
    refused(training(settings, "--resume_from_checkpoint", str(start)), code=143)
    assert names(settings["output_dir"]) == ["checkpoint-2", "checkpoint-1"]
    assert (settings["output_dir"] / "superseded1-checkpoint-3").is_dir()
    monkeypatch.undo()
    assert main(training(settings, *AUTO)) == 0
    assert record_of(settings)["resumed"]["checkpoint"] == "checkpoint-2"


def test_epochs_of_another_length_are_refused(settings, refused) -> None:
    """Twice the rows a step, and after step 2 of 3 nothing more would be trained and the run be called finished."""
    settings |= {"max_steps": -1, "num_train_epochs": 2}
    assert main(training(settings)) == 0
    cut_short(settings, after=2)
    more = training(settings | {"per_device_train_batch_size": 8}, *AUTO)
    says(refused(more), "per_device_train_batch_size: 4 -> 8", "num_train_epochs", "max_steps", "it was 6")
    assert main([*more, "--max_steps", "3"]) == 0
    assert record_of(settings)["steps"] == 3


def test_other_rows_of_the_same_files_are_refused(settings, refused) -> None:
    assert main(training(settings)) == 0
    cut_short(settings, after=2)
    says(refused(training(settings | {"max_train_samples": 8}, *AUTO)), "max_train_samples: None -> 8", "not those of")


def test_other_evaluation_sets_that_are_left_out_are_other_rows(settings, refused) -> None:
    settings |= {"on_leakage": "drop", "eval_task": "sample:sts", "save_steps": 2, "eval_steps": 2}
    assert main(training(settings)) == 0
    cut_short(settings, after=2)
    message = refused(training(settings | {"eval_task": "none"}, *AUTO))
    says(message, "on_leakage drop", "when checkpoint-2 was saved and are none", "Ask for the same sets")
    assert main(training(settings, *AUTO)) == 0


@pytest.mark.parametrize("finished", [True, False])
def test_an_end_before_what_was_trained_is_refused(finished, settings, refused) -> None:
    assert main(training(settings)) == 0
    before = record_of(settings)
    if not finished:
        cut_short(settings, after=4)
    message = refused(training(settings | {"max_steps": 3}, *AUTO))
    says(message, "max_steps: 4 -> 3" if finished else "is step 4, and training is to end after 3")
    if finished:
        assert record_of(settings) == before


def test_a_stop_in_the_last_step_does_not_lose_the_evaluation_after_it(settings, refused, monkeypatch) -> None:
    """Steps end within an epoch, of which the end comes all the same."""
    settings |= {"eval_task": "sample:sts", "eval_strategy": "epoch", "save_strategy": "epoch"}
    settings |= {"load_best_model_at_end": True}
    score_as(iter([0.1, 0.5]), monkeypatch)
    at_call(4, ask(signal.SIGTERM), monkeypatch)
    says(refused(training(settings), code=143), "after step 4")
    assert main(training(settings, *AUTO)) == 0
    assert record_of(settings)["best"] == {"step": 4, "cosine_spearman": 0.5}


def test_patience_may_be_added(settings) -> None:
    settings |= {"eval_task": "sample:sts"}
    assert main(training(settings)) == 0
    cut_short(settings, after=2)
    assert main(training(settings | {"early_stopping_patience": 1, "learning_rate": 0.0}, *AUTO)) == 0
    state = json.loads((settings["output_dir"] / f"{names(settings['output_dir'])[0]}/trainer_state.json").read_text())
    assert "EarlyStoppingCallback" in state["stateful_callbacks"]


def test_half_precision_may_be_given_up(settings) -> None:
    """The state of a loss scaler lies in the checkpoint, and there is no scaler."""
    assert main(training(settings | {"max_steps": 2})) == 0
    checkpoint = settings["output_dir"] / "checkpoint-2"
    (checkpoint / "scaler.pt").write_bytes((checkpoint / "scheduler.pt").read_bytes())
    assert main(training(settings, *AUTO)) == 0
    assert record_of(settings)["steps"] == 4


def test_all_changes_of_a_run_are_kept(settings) -> None:
    assert main(training(settings | {"max_steps": 2, "temperature": 0.05})) == 0
    for steps in (3, 4):
        assert main(training(settings | {"max_steps": steps, "temperature": 0.1}, *AUTO)) == 0
    assert record_of(settings)["resumed"]["changed"] == [
        "temperature: 0.05 -> 0.1",
        "max_steps: 2 -> 3",
        "max_steps: 3 -> 4",
    ]


def test_a_named_checkpoint_of_a_finished_run_opens_no_other_run(settings, refused) -> None:
    assert main(training(settings | {"temperature": 0.05})) == 0
    before = record_of(settings)
    start = str(settings["output_dir"] / "checkpoint-2")
    other = training(settings | {"temperature": 0.9}, "--resume_from_checkpoint", start)
    says(refused(other), "finished run", "temperature: 0.05 -> 0.9")
    assert record_of(settings) == before


def test_a_finished_run_that_goes_on_from_an_earlier_checkpoint_is_unfinished(settings, refused, monkeypatch) -> None:
    """Stopped then, it is told to go on with auto, which must not call it finished."""
    assert main(training(settings)) == 0
    at_call(2, ask(signal.SIGTERM), monkeypatch)
    start = str(settings["output_dir"] / "checkpoint-1")
    refused(training(settings, "--resume_from_checkpoint", start), code=143)
    assert not (settings["output_dir"] / "simcse_run.json").exists()
    assert main(training(settings, *AUTO)) == 0
    assert record_of(settings)["resumed"]["checkpoint"] == "checkpoint-3" and record_of(settings)["steps"] == 4


def test_a_run_that_patience_ended_may_be_given_more(settings) -> None:
    settings |= {"eval_task": "sample:sts", "learning_rate": 0.0, "max_steps": 6, "early_stopping_patience": 1}
    assert main(training(settings)) == 0
    assert record_of(settings)["steps"] == 2
    assert main(training(settings | {"early_stopping_patience": 3}, *AUTO)) == 0
    assert record_of(settings)["steps"] == 4


def test_a_defect_of_the_first_process_reaches_all(settings, monkeypatch) -> None:
    """They wait for its answer."""
    told = []
    broadcast = run_folder.broadcast_object_list
    monkeypatch.setattr(run_folder, "broadcast_object_list", lambda choice: told.append(choice[1]) or broadcast(choice))
    monkeypatch.setattr(run_folder, "checkpoint_to_resume", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(training(settings))
    assert isinstance(told[0], ZeroDivisionError) and not settings["output_dir"].exists()


def test_a_damaged_record_of_a_finished_run_is_one_sentence(settings, refused) -> None:
    assert main(training(settings)) == 0
    record = settings["output_dir"] / "simcse_run.json"
    record.write_bytes(record.read_bytes()[:-100])
    says(refused(training(settings, *AUTO)), str(record), "is damaged")


def test_data_that_cannot_be_read_is_one_sentence_on_every_process(settings, refused, monkeypatch) -> None:
    """The first process alone compares it, and the others wait for its answer."""
    assert main(training(settings)) == 0

    def fail(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("simcse_hf.continuation.sha256_of", fail)
    told = []
    broadcast = run_folder.broadcast_object_list
    monkeypatch.setattr(run_folder, "broadcast_object_list", lambda choice: told.append(choice[1]) or broadcast(choice))
    says(refused(training(settings, *AUTO)), "no permission", str(settings["train_file"]))
    assert isinstance(told[0], ConfigError)


def test_a_finished_run_says_so_to_those_who_debug_too(settings, capsys) -> None:
    assert main(training(settings)) == 0
    assert main(training(settings, *AUTO, "--debug")) == 0
    assert "finished before" in capsys.readouterr().out


def test_a_run_that_failed_before_it_began_leaves_no_folder(settings, refused) -> None:
    refused(training(settings | {"train_file": "nowhere.txt"}))
    assert not settings["output_dir"].exists()


def test_how_the_second_stage_fits_into_its_machine_is_no_matter_to_the_first(settings, refused, monkeypatch, tmp_path):
    """The first is over; the second ran out of memory, and is told to cache gradients."""
    stage = tmp_path / "stage.json"
    stage.write_text(json.dumps({"max_steps": 2}), encoding="utf-8")
    settings |= {"first_stage": stage}
    at_call(3, ask(signal.SIGTERM), monkeypatch)
    refused(training(settings), code=143)
    monkeypatch.undo()
    monkeypatch.setenv("SIMCSE_CACHE_DIR", str(tmp_path / "cache"))
    more = {"gradient_cache_tokens": 64, "save_steps": 2, "eval_steps": 2}
    assert main(training(settings | more, *AUTO)) == 0
    assert record_of(settings)["steps"] == 4
    assert main(training(settings | more, *AUTO)) == 0
    says(refused(training(settings | more | {"weight_decay": 0.3}, *AUTO)), "in the first stage weight_decay")


def test_a_first_stage_has_an_evaluation_of_its_own(run, tmp_path) -> None:
    stage = tmp_path / "stage.json"
    stage.write_text(json.dumps({"eval_task": "sample:sts", "max_steps": 2}), encoding="utf-8")
    outcome = run(data={"eval_task": "none"}, first_stage=str(stage), max_steps=2, load_best_model_at_end=False)
    assert len(outcome.record["first_stage"]["results"]) == 1 and outcome.record["results"] == []
    stage.write_text(json.dumps({"eval_task": "sample:sts", "max_steps": 2, "learning_rate": 1e-4}), encoding="utf-8")
    with pytest.raises(ConfigError, match="finished run, and this is another: in the first stage learning_rate"):
        run(
            data={"eval_task": "none"},
            first_stage=str(stage),
            max_steps=2,
            load_best_model_at_end=False,
            resume_from_checkpoint="auto",
        )
