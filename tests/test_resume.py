"""A run that was stopped, however it was, ends as if it had not been."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
from conftest import REPOSITORY, TRIPLETS, says, training, wait_for_words
from safetensors.torch import load_file
from test_distributed import spawn
from torch.utils.data import DataLoader
from transformers import TrainerControl, TrainerState, TrainingArguments

import simcse_hf.batch_losses
from simcse_hf.checkpoints import checkpoints_of, damage_of
from simcse_hf.cli import main
from simcse_hf.errors import TrainingInterrupted
from simcse_hf.interruption import StopWhenAsked, Terminated, shielded_workers

# Everything that a checkpoint must carry is in use: dropout, a schedule, accumulation with a rest, epochs, patience.
SETTINGS = {
    "eval_task": "sample:sts",
    "max_steps": -1,
    "num_train_epochs": 3,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "learning_rate": 1e-3,
    "early_stopping_patience": 50,
    "logging_steps": 1,
    "save_total_limit": 50,
    "per_device_train_batch_size": 2,
}
STEPS = 9  # 12 rows: 3 a epoch


@pytest.fixture
def settings(good) -> dict:
    return good | SETTINGS


def assert_same_end(one: Path, other: Path, step: int = STEPS) -> None:
    """Weights, optimiser, schedule, random numbers, and all that was measured."""
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        files = [folder / f"checkpoint-{step}" / name for folder in (one, other)]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    states = [json.loads((folder / f"checkpoint-{step}/trainer_state.json").read_text()) for folder in (one, other)]
    for name in ("best_metric", "best_global_step", "global_step", "epoch", "max_steps"):
        assert states[0][name] == states[1][name], name
    counters = [state["stateful_callbacks"]["EarlyStoppingCallback"] for state in states]
    assert counters[0] == counters[1]
    scores = [
        {entry["step"]: entry["eval_cosine_spearman"] for entry in state["log_history"] if "eval_alignment" in entry}
        for state in states
    ]
    assert scores[0] == scores[1] and len(scores[0]) == step
    losses = [{entry["step"]: entry["loss"] for entry in state["log_history"] if "loss" in entry} for state in states]
    assert losses[0] == losses[1] and len(losses[0]) == step


def test_a_run_resumed_at_any_of_its_checkpoints_ends_as_the_whole_one(settings, tmp_path) -> None:
    """In the middle of an epoch, at its end, and after the last step."""
    assert main(training(settings)) == 0
    whole = settings["output_dir"]
    assert [path.name for path in checkpoints_of(whole)][0] == f"checkpoint-{STEPS}"
    for step in (1, 3, 5, 8):
        again = tmp_path / f"from-{step}"
        shutil.copytree(whole, again)
        (again / "simcse_run.json").unlink()
        remove_after(step, again)
        assert main(training(settings | {"output_dir": again}, "--resume_from_checkpoint", "auto")) == 0
        assert_same_end(whole, again)


def score_as(scores: Iterator[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each evaluation give the next of these."""
    monkeypatch.setattr(
        "simcse_hf.trainer.compute_sts_metrics", lambda _: lambda _: {"cosine_spearman": next(scores), "alignment": 0.0}
    )


def remove_after(step: int, run_dir: Path) -> None:
    for checkpoint in checkpoints_of(run_dir):
        if int(checkpoint.name.removeprefix("checkpoint-")) > step:
            shutil.rmtree(checkpoint)


def cut_short(settings: dict, *, after: int) -> None:
    """As if the run had been killed."""
    (settings["output_dir"] / "simcse_run.json").unlink()
    remove_after(after, settings["output_dir"])


def test_a_run_that_was_killed_after_its_last_step_trains_no_further(settings, caplog) -> None:
    """transformers would take one step more where max_steps ends within an epoch."""
    settings |= {"max_steps": 4}
    assert main(training(settings)) == 0
    weights = load_file(settings["output_dir"] / "checkpoint-4/model.safetensors")
    (settings["output_dir"] / "simcse_run.json").unlink()
    assert main(training(settings, "--resume_from_checkpoint", "auto")) == 0
    record = json.loads((settings["output_dir"] / "simcse_run.json").read_text(encoding="utf-8"))
    assert record["steps"] == 4
    assert [path.name for path in checkpoints_of(settings["output_dir"])][0] == "checkpoint-4"
    assert all(torch.equal(weights[name], tensor) for name, tensor in weights.items())


def test_patience_is_counted_on_and_a_run_it_ended_stays_ended(settings) -> None:
    """A learning rate of 0 changes no score: the second evaluation is the first without a better one."""
    settings |= {"learning_rate": 0.0, "early_stopping_patience": 4}
    assert main(training(settings)) == 0
    whole = settings["output_dir"]
    assert [path.name for path in checkpoints_of(whole)][0] == "checkpoint-5"
    for kept in (3, 5):
        remove_after(kept, whole)
        (whole / "simcse_run.json").unlink()
        assert main(training(settings, "--resume_from_checkpoint", "auto")) == 0
        assert [path.name for path in checkpoints_of(whole)][0] == "checkpoint-5"
        assert json.loads((whole / "simcse_run.json").read_text(encoding="utf-8"))["steps"] == 5


def test_the_best_checkpoint_is_never_removed(settings, monkeypatch) -> None:
    """The first evaluation is the best, and later checkpoints are more than may be kept."""
    score_as(iter([0.9, *[0.1 + step / 100 for step in range(STEPS)]]), monkeypatch)
    assert main(training(settings | {"save_total_limit": 1, "load_best_model_at_end": True})) == 0
    assert [path.name for path in checkpoints_of(settings["output_dir"])] == [f"checkpoint-{STEPS}", "checkpoint-1"]
    record = json.loads((settings["output_dir"] / "simcse_run.json").read_text(encoding="utf-8"))
    assert record["best"] == {"step": 1, "cosine_spearman": 0.9} and record["selected_on"] == "sample-sts"


def test_the_best_is_saved_also_between_the_steps_at_which_is_saved(settings, monkeypatch, tmp_path) -> None:
    """Else its score would be recorded, and another checkpoint released; and a resumed run would choose another."""
    scores = [0.1, 0.5, 0.9, 0.2, 0.3, 0.25]
    settings |= {"save_steps": 2, "max_steps": 6, "load_best_model_at_end": True}
    score_as(iter(scores), monkeypatch)
    assert main(training(settings)) == 0
    whole = settings["output_dir"]
    names = [path.name for path in checkpoints_of(whole)]
    assert names == [f"checkpoint-{step}" for step in (6, 4, 3, 2, 1)]
    again = tmp_path / "again"
    shutil.copytree(whole, again)
    (again / "simcse_run.json").unlink()
    remove_after(4, again)
    score_as(iter(scores[4:]), monkeypatch)
    assert main(training(settings | {"output_dir": again}, "--resume_from_checkpoint", "auto")) == 0
    for folder in (whole, again):
        record = json.loads((folder / "simcse_run.json").read_text(encoding="utf-8"))
        assert record["best"] == {"step": 3, "cosine_spearman": 0.9}


def test_without_a_choice_the_best_score_stands_though_it_was_not_saved(
    settings, monkeypatch, tmp_path, caplog
) -> None:
    """Patience counts from it."""
    scores = [0.9, 0.1, 0.2, 0.3, 0.25, 0.2]
    settings |= {"save_steps": 2, "max_steps": 6, "load_best_model_at_end": False}
    score_as(iter(scores), monkeypatch)
    assert main(training(settings)) == 0
    whole, again = settings["output_dir"], tmp_path / "again"
    shutil.copytree(whole, again)
    (again / "simcse_run.json").unlink()
    remove_after(2, again)
    score_as(iter(scores[2:]), monkeypatch)
    assert main(training(settings | {"output_dir": again}, "--resume_from_checkpoint", "auto")) == 0
    for folder in (whole, again):
        record = json.loads((folder / "simcse_run.json").read_text(encoding="utf-8"))
        assert record["best"] == {"step": 1, "cosine_spearman": 0.9} and record["selected_on"] is None
    assert "is lost" not in caplog.text


def test_a_run_stopped_at_the_end_of_an_epoch_is_evaluated_there(settings, refused, monkeypatch, tmp_path) -> None:
    settings |= {"eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": False}
    at_call(6, ask(signal.SIGTERM), monkeypatch)  # in step 3, the last of the first epoch
    says(refused(training(settings), code=143), "stopped by SIGTERM after step 3")
    monkeypatch.undo()
    monkeypatch.setenv("SIMCSE_CACHE_DIR", str(tmp_path / "cache"))
    assert main(training(settings, "--resume_from_checkpoint", "auto")) == 0
    whole = settings | {"output_dir": tmp_path / "whole"}
    assert main(training(whole)) == 0
    states = [
        json.loads((each["output_dir"] / f"checkpoint-{STEPS}/trainer_state.json").read_text())
        for each in (settings, whole)
    ]
    scores = [
        [(entry["step"], entry["eval_cosine_spearman"]) for entry in state["log_history"] if "eval_alignment" in entry]
        for state in states
    ]
    assert scores[0] == scores[1] and [step for step, _ in scores[0]] == [3, 6, 9]
    weights = [each["output_dir"] / f"checkpoint-{STEPS}/model.safetensors" for each in (settings, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_an_evaluation_at_the_start_is_not_repeated_by_a_resumed_run(settings) -> None:
    """It would count against patience."""
    settings |= {"eval_on_start": True, "max_steps": 2}
    assert main(training(settings)) == 0
    (settings["output_dir"] / "simcse_run.json").unlink()
    assert main(training(settings | {"max_steps": 3}, "--resume_from_checkpoint", "auto")) == 0
    record = json.loads((settings["output_dir"] / "simcse_run.json").read_text(encoding="utf-8"))
    assert [entry["step"] for entry in record["log_history"] if "eval_alignment" in entry] == [0, 1, 2, 3]


def test_a_run_whose_folder_moved_keeps_its_best_checkpoint(settings, tmp_path, monkeypatch) -> None:
    """The state names the old place, where nothing is; unprotected, the next checkpoint would push it out."""
    score_as(iter([0.9, 0.1, 0.2, 0.3]), monkeypatch)
    settings |= {"save_total_limit": 2, "load_best_model_at_end": True, "max_steps": 2}
    assert main(training(settings)) == 0
    moved = tmp_path / "moved"
    settings["output_dir"].rename(moved)
    (moved / "simcse_run.json").unlink()
    assert main(training(settings | {"output_dir": moved, "max_steps": 4}, "--resume_from_checkpoint", "auto")) == 0
    assert [path.name for path in checkpoints_of(moved)] == ["checkpoint-4", "checkpoint-1"]
    assert json.loads((moved / "simcse_run.json").read_text(encoding="utf-8"))["best"]["step"] == 1


# --- signals ---


def at_call(call: int, action: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something while the loss of a batch is computed."""
    true_loss, calls = simcse_hf.batch_losses.simcse_loss, []

    def loss(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            action()
        return true_loss(*args, **kwargs)

    monkeypatch.setattr(simcse_hf.batch_losses, "simcse_loss", loss)


def ask(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("strategy", ["steps", "no"])
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_saves_after_the_step_and_the_resumed_run_ends_as_the_whole_one(
    name, code, strategy, settings, refused, monkeypatch, tmp_path
) -> None:
    settings |= {"save_strategy": strategy, "save_steps": 3, "load_best_model_at_end": False, "write_release": True}
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    at_call(8, ask(getattr(signal, name)), monkeypatch)  # within step 4, which ends with the eighth batch
    message = refused(training(settings), code=code)
    says(message, f"stopped by {name} after step 4", "checkpoint-4", "--resume_from_checkpoint auto")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    saved = ["checkpoint-4"] if strategy == "no" else ["checkpoint-4", "checkpoint-3"]
    assert [path.name for path in checkpoints_of(settings["output_dir"])] == saved
    assert damage_of(settings["output_dir"] / "checkpoint-4") is None
    monkeypatch.undo()
    monkeypatch.setenv("SIMCSE_CACHE_DIR", str(tmp_path / "cache"))
    assert main(training(settings, "--resume_from_checkpoint", "auto")) == 0
    assert main(training(settings | {"output_dir": tmp_path / "whole"})) == 0
    weights = [(folder / "model.safetensors").read_bytes() for folder in (settings["output_dir"], tmp_path / "whole")]
    assert weights[0] == weights[1]


def test_a_signal_saves_also_where_only_the_best_is_saved(settings, refused, monkeypatch) -> None:
    """A learning rate of 0: after the first evaluation none is a new best."""
    settings |= {"save_strategy": "best", "learning_rate": 0.0}
    at_call(8, ask(signal.SIGTERM), monkeypatch)
    says(refused(training(settings), code=143), "stopped by SIGTERM after step 4")
    assert [path.name for path in checkpoints_of(settings["output_dir"])] == ["checkpoint-4", "checkpoint-1"]


def test_a_stop_is_no_defect_to_those_who_debug(settings, refused, monkeypatch) -> None:
    at_call(2, ask(signal.SIGTERM), monkeypatch)
    says(refused(training(settings, "--debug"), code=143), "stopped by SIGTERM")


def test_the_same_request_may_come_twice(settings, refused, monkeypatch) -> None:
    """A scheduler signals every process of a job, and the launcher passes its own signal on."""

    def ask_thrice() -> None:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)

    at_call(4, ask_thrice, monkeypatch)
    says(refused(training(settings), code=143), "stopped by SIGTERM after step 2", "checkpoint-2")


def test_a_second_request_is_not_waited_for(settings, refused, monkeypatch) -> None:
    monkeypatch.setattr("simcse_hf.interruption._ONE_REQUEST", 0.0)

    def ask_twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second came through")

    at_call(4, ask_twice, monkeypatch)
    says(refused(training(settings), code=130), "interrupted", "--resume_from_checkpoint auto")
    assert [path.name for path in checkpoints_of(settings["output_dir"])] == ["checkpoint-1"]


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    """As in a process that was started in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopWhenAsked():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN != signal.getsignal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_after_the_last_step_is_passed_on() -> None:
    with pytest.raises(KeyboardInterrupt), StopWhenAsked():
        os.kill(os.getpid(), signal.SIGINT)


def test_sigterm_while_data_are_prepared_removes_what_is_half_written(settings, refused, monkeypatch, tmp_path) -> None:
    """There is no step to finish."""
    monkeypatch.setenv("SIMCSE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("simcse_hf.training_corpus.write_rows", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    says(refused(training(settings), code=143), "interrupted")
    assert list(tmp_path.rglob("*partial*")) == []


def test_a_worker_lives_on_after_a_signal_but_not_for_ever(monkeypatch) -> None:
    """The step that is to be finished needs it; and the data loader ends a worker that hangs by SIGTERM."""
    monkeypatch.setattr("simcse_hf.interruption._LAST_STEP", 0.2)
    reader, writer = os.pipe()
    worker = os.fork()
    if worker == 0:
        shielded_workers(DataLoader(range(1))).worker_init_fn(0)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        os.write(writer, b"alive" if os.getsid(0) == os.getpid() else b"in the session of its parent")
        time.sleep(60)
        os._exit(0)
    _, status = os.waitpid(worker, 0)
    assert os.read(reader, 100) == b"alive"
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM


def agree(index: int, processes: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=index, world_size=processes)
    try:
        arguments = TrainingArguments(output_dir=folder, use_cpu=True, report_to="none")
        callback, saved_at = StopWhenAsked(), None
        with pytest.raises(TrainingInterrupted) as interrupted, callback:
            for step in range(1, 5):
                if (index, step) == (1, 3):
                    os.kill(os.getpid(), signal.SIGINT)
                control = TrainerControl()
                callback.on_step_end(arguments, TrainerState(global_step=step, max_steps=9), control)
                if control.should_save:
                    saved_at = step
                    callback.on_save(arguments, TrainerState(global_step=step, max_steps=9), control)
        assert saved_at == 3
        Path(folder, str(index)).write_text(str(interrupted.value.exit_code), encoding="utf-8")
    finally:
        dist.destroy_process_group()


def test_processes_stop_at_the_same_step_though_one_was_asked(tmp_path) -> None:
    spawn(agree, 2, str(tmp_path))
    assert [(tmp_path / str(index)).read_text(encoding="utf-8") for index in (0, 1)] == ["143", "130"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_every_process_leaves_the_workers_to_the_step_and_the_checkpoint_is_saved(
    number, code, settings, tmp_path
) -> None:
    """Terminals signal the group, schedulers each process; a worker that died of it would break the step."""
    (tmp_path / "train.tsv").write_text(TRIPLETS, encoding="utf-8")
    log = tmp_path / "log"
    settings |= {"max_steps": 100_000, "eval_steps": 1000, "save_steps": 1000, "dataloader_num_workers": 2}
    settings |= {"dataloader_persistent_workers": True}  # or some would be starting just then
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "run_simcse.py"), *training(settings)[1:]],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
    try:
        wait_for_words("'loss'", log, process)
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) >= 2
        if number == signal.SIGTERM:
            for each in workers:
                each.send_signal(number)
        os.killpg(process.pid, number)
        assert process.wait(60) == code, log.read_text(encoding="utf-8")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    last = log.read_text(encoding="utf-8").splitlines()[-1]
    says(last, f"error: stopped by {number.name} after step", "--resume_from_checkpoint auto")
    (saved,) = checkpoints_of(settings["output_dir"])
    assert damage_of(saved) is None and saved.name in last


def test_sigterm_is_an_exception_only_within_a_command() -> None:
    assert issubclass(Terminated, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
