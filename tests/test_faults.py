"""What machines do to a run: one clear message, and nothing lost but the last interval."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, TRIPLETS, says, training
from test_bad_input import assert_nothing_half_written, break_loss_at

from simcse_hf.arguments import SimCSETrainingArguments
from simcse_hf.checkpoints import checkpoints_of, damage_of
from simcse_hf.cli import main
from simcse_hf.errors import TrainingError
from simcse_hf.failures import explain_failure
from simcse_hf.sample import SAMPLES
from simcse_hf.training_guards import GradientCheck

SCORED = {"eval_task": "sample:sts", "learning_rate": 1e-3}


def names(run_dir: Path) -> list[str]:
    return [path.name for path in checkpoints_of(run_dir)]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-50] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("model.safetensors", cut),
        ("optimizer.pt", flip_a_bit),
        ("scheduler.pt", flip_a_bit),
        ("rng_state.pth", Path.unlink),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_as_if_it_had_not_been(
    name, spoil, good, tmp_path, caplog, refused
) -> None:
    settings = good | SCORED | {"max_steps": 4, "load_best_model_at_end": False}
    assert main(training(settings)) == 0
    run_dir, whole = settings["output_dir"], tmp_path / "whole"
    shutil.copytree(run_dir, whole)
    shutil.rmtree(run_dir / "checkpoint-4")
    (run_dir / "simcse_run.json").unlink()
    spoil(run_dir / "checkpoint-3" / name)
    if spoil is cut:
        message = refused(training(settings, "--resume_from_checkpoint", str(run_dir / "checkpoint-3")))
        says(message, "checkpoint-3 is damaged", name, "bytes instead of", "Use auto")
    assert main(training(settings, "--resume_from_checkpoint", "auto")) == 0
    assert "checkpoint-3 is damaged" in caplog.text and f"resuming from {run_dir / 'checkpoint-2'}" in caplog.text
    assert names(run_dir) == ["checkpoint-4", "checkpoint-3", "checkpoint-2", "checkpoint-1"]
    assert damage_of(run_dir / "checkpoint-3") is None
    for step in (3, 4):
        files = [folder / f"checkpoint-{step}" / "model.safetensors" for folder in (run_dir, whole)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_best_checkpoint_that_was_damaged_under_the_run_is_not_released(good, caplog, monkeypatch) -> None:
    scores = iter([0.5, 0.9, 0.7, 0.6])
    run_dir = good["output_dir"]

    def score(prediction):
        found = next(scores)
        if found == 0.6:
            cut(run_dir / "checkpoint-2/model.safetensors")
        return {"cosine_spearman": found, "alignment": 0.0}

    monkeypatch.setattr("simcse_hf.trainer.compute_sts_metrics", lambda _: score)
    assert main(training(good | SCORED | {"max_steps": 4, "load_best_model_at_end": True})) == 0
    says(caplog.text, "checkpoint-2, is lost", "Of those left checkpoint-3 is the best")
    assert json.loads((run_dir / "simcse_run.json").read_text())["best"] == {"step": 3, "cosine_spearman": 0.7}


def test_a_data_file_that_changed_between_start_and_resumption_is_refused(good, refused) -> None:
    settings = good | SCORED | {"max_steps": 1}
    assert main(training(settings)) == 0
    before = good["train_file"].read_bytes()
    good["train_file"].write_bytes(before + "새 문장\t다른 새 문장\t아주 다른 이야기\n".encode())
    message = refused(training(settings | {"max_steps": 2}, "--resume_from_checkpoint", "auto"))
    says(message, str(good["train_file"]), "when checkpoint-1 was saved", "Put back", "model_name_or_path")
    assert names(good["output_dir"]) == ["checkpoint-1"]
    good["train_file"].write_bytes(before)
    assert main(training(settings | {"max_steps": 2}, "--resume_from_checkpoint", "auto")) == 0


def test_an_evaluation_file_that_changed_before_a_resumption_is_refused(good, refused, tmp_path) -> None:
    dev = tmp_path / "dev.tsv"
    dev.write_bytes(SAMPLES["sts"].read_bytes())
    settings = good | SCORED | {"eval_task": dev, "on_leakage": "report"}
    assert main(training(settings | {"max_steps": 1})) == 0
    dev.write_bytes(dev.read_bytes() + "봄이 왔다.\t봄이 되었다.\t4.5\n".encode())
    more = ["--max_steps", "2", "--resume_from_checkpoint", "auto"]
    says(refused(training(settings, *more)), str(dev), "when checkpoint-1 was saved", "another output_dir")
    assert main(training(settings | {"eval_task": "none", "load_best_model_at_end": False}, *more)) == 0


def test_settings_that_changed_before_a_resumption_are_named(good, caplog) -> None:
    settings = good | SCORED | {"max_steps": 2, "temperature": 0.05}
    assert main(training(settings | {"max_steps": 1})) == 0
    assert main(training(settings | {"temperature": 0.1}, "--resume_from_checkpoint", "auto")) == 0
    says(caplog.text, "not as it was when checkpoint-1 was saved: temperature: 0.05 -> 0.1")
    record = json.loads((good["output_dir"] / "simcse_run.json").read_text(encoding="utf-8"))
    assert record["resumed"] == {
        "checkpoint": "checkpoint-1",
        "changed": ["temperature: 0.05 -> 0.1", "max_steps: 1 -> 2"],
    }


def test_a_checkpoint_of_another_model_is_one_sentence(good, refused, backbone_dir) -> None:
    assert main(training(good)) == 0
    other = training(good | {"model_name_or_path": backbone_dir("distilbert"), "pooler_type": "avg", "max_steps": 3})
    message = refused([*other, "--resume_from_checkpoint", "auto"])
    says(message, "checkpoint-2 cannot be resumed", "its weights are not those of this model", "another model")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_damage_that_no_checksum_shows_is_one_sentence_too(name, good, refused) -> None:
    assert main(training(good)) == 0
    checkpoint = good["output_dir"] / "checkpoint-2"
    (checkpoint / "checksums.json").unlink()
    cut(checkpoint / name)
    message = refused(training(good | {"max_steps": 3}, "--resume_from_checkpoint", str(checkpoint)))
    assert "checkpoint-2 cannot be resumed" in message or "checkpoint-2 is damaged" in message


def test_what_one_process_did_not_write_is_not_sealed(good, refused, monkeypatch) -> None:
    """Two processes of which one failed: rank 0 must not call what is there a checkpoint."""
    monkeypatch.setattr(SimCSETrainingArguments, "world_size", 2)
    monkeypatch.setattr("simcse_hf.trainer.check_training_arguments", lambda *_: None)
    monkeypatch.setattr("simcse_hf.train.check_training_arguments", lambda *_: None)
    says(refused(training(good)), "ranks 1 wrote nothing into", "save_on_each_node")
    assert names(good["output_dir"]) == []


def test_a_data_file_that_changes_while_it_is_read_is_refused_and_not_cached(
    good, refused, monkeypatch, tmp_path
) -> None:
    import simcse_hf.training_corpus as reader

    cache = tmp_path / "cache"
    monkeypatch.setenv("SIMCSE_CACHE_DIR", str(cache))
    write_rows = reader.write_rows

    def write_while_another_writes(*args, **kwargs):
        found = write_rows(*args, **kwargs)
        with good["train_file"].open("a", encoding="utf-8") as file:
            file.write("하나\t둘\t셋\n")
        return found

    monkeypatch.setattr(reader, "write_rows", write_while_another_writes)
    says(refused(training(good)), str(good["train_file"]), "was changed while it was read", "Start again")
    assert cache.is_dir() and list(cache.glob("corpus-*")) == []


def test_a_data_file_that_changes_while_the_run_trains_changes_nothing(good, monkeypatch, tmp_path) -> None:
    """Rows are read from the cache."""
    settings = good | {"max_steps": 4}
    assert main(training(settings)) == 0

    def rewrite(loss):
        good["train_file"].write_text(TRIPLETS[: len(TRIPLETS) // 2], encoding="utf-8")
        return loss

    monkeypatch.setenv("SIMCSE_CACHE_DIR", str(tmp_path / "another cache"))
    break_loss_at(2, monkeypatch, rewrite)
    assert main(training(settings | {"output_dir": tmp_path / "rewritten"})) == 0
    weights = [folder / "checkpoint-4/model.safetensors" for folder in (good["output_dir"], tmp_path / "rewritten")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_gradients_that_are_not_finite_stop_before_they_reach_the_weights(good, refused, monkeypatch) -> None:
    class BadBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss):
            return loss.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * math.inf

    break_loss_at(3, monkeypatch, BadBackward.apply)
    message = refused(training(good | {"max_steps": 5}))
    says(message, "the gradients are not finite", "at step 3", "before this step changed the weights", "learning_rate")
    assert names(good["output_dir"]) == ["checkpoint-2", "checkpoint-1"]
    assert_nothing_half_written(good["output_dir"])


def test_a_loss_scaler_may_skip_steps_but_not_for_ever() -> None:
    check = GradientCheck(3e-5)
    for step in range(29):
        check(math.inf, step, scaled=True)
    check(torch.tensor(1.0), 29, scaled=True)
    check(None, 30, scaled=False)
    for step in range(29):
        check(torch.tensor(math.nan), step, scaled=True)
    with pytest.raises(TrainingError, match="have not been finite for 30 steps at step 29.*3e-05"):
        check(math.nan, 29, scaled=True)
    with pytest.raises(TrainingError, match=r"are not finite \(inf\) at step 7"):
        GradientCheck(3e-5)(torch.tensor(math.inf), 7, scaled=False)


def test_a_file_size_limit_while_saving_leaves_the_checkpoints_before(good, refused, monkeypatch) -> None:
    """A real failure of write(2), in the middle of a file, as on a disk that becomes full."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    weights = []

    def limit(loss):
        weights.append((good["output_dir"] / "checkpoint-1/optimizer.pt").stat().st_size)
        resource.setrlimit(resource.RLIMIT_FSIZE, (weights[0] // 2, limits[1]))
        return loss

    break_loss_at(2, monkeypatch, limit)
    try:
        message = refused(training(good))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "became larger" in message or "the disk is full" in message
    assert names(good["output_dir"]) == ["checkpoint-1"] and damage_of(good["output_dir"] / "checkpoint-1") is None
    assert_nothing_half_written(good["output_dir"])


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_computed(good, refused, monkeypatch) -> None:
    """The tests may run as root, who may write anywhere but on a read-only file system."""

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system", str(good["output_dir"]))

    monkeypatch.setattr("simcse_hf.run_folder.tempfile.TemporaryFile", read_only)
    monkeypatch.setattr("simcse_hf.train.load_training_views", lambda *_, **__: pytest.fail("too late"))
    says(refused(training(good)), "cannot write into output_dir", str(good["output_dir"]), "Read-only file system")


@pytest.mark.parametrize(
    "words",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1234",
        "[gloo/transport/tcp/pair.cc:446] Read error: Connection reset by peer",
        "NCCL communicator was aborted on rank 1.",
    ],
)
def test_a_process_that_is_gone_is_named_as_such(words: str) -> None:
    says(explain_failure(RuntimeError(words)), "another process of this job is gone", "--resume_from_checkpoint auto")


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("Connection closed by peer")])
def test_a_defect_is_not_blamed_on_the_machine(error: Exception) -> None:
    assert explain_failure(error) is None


def test_kills_at_random_moments_are_survived(tmp_path) -> None:
    """The program that writes benchmarks/results/survival-1.json, with fewer kills; it compares the weights itself."""
    program = [sys.executable, str(REPOSITORY / "benchmarks" / "survival.py"), "--kills", "3", "--seed", "7"]
    done = subprocess.run(
        [*program, "--results", str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "survival-1.json").read_text(encoding="utf-8"))
    assert record["kills"] == 3 == sum(record["by_moment"].values())


@pytest.mark.parametrize("processes", [1, 2])
def test_the_document_says_what_was_measured(processes: int) -> None:
    measured = json.loads((REPOSITORY / f"benchmarks/results/survival-{processes}.json").read_text(encoding="utf-8"))
    moments = " | ".join(str(number) for number in measured["by_moment"].values())
    row = f"| {processes} | {measured['kills']} | {moments} | {measured['runs']} |"
    assert row in (REPOSITORY / "docs/resuming.md").read_text(encoding="utf-8")
