"""Through the real door: two processes that are started as a user starts them train what one trains.

Each start costs seconds of imports, so each does much.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import torch
from conftest import REPOSITORY, wait_for_words
from safetensors.torch import load_file

from simcse_hf import SimCSEModel
from simcse_hf.checkpoints import checkpoints_of, damage_of
from simcse_hf.cli import main

# 57 rows are nine batches of 6 and four of 12, with 9 rows left; 264 pairs are ten batches of 25 and 14 pairs.
ROWS, BATCH, EVAL_BATCH = 57, 6, 25
DATA = {
    "model_name_or_path": "sample:encoder",
    "pooler_type": "cls",
    "max_seq_length": 32,
    "train_file": "sample:triplets",
    "max_train_samples": ROWS,
    "eval_task": "sample:sts",
}
EXACT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TRAINING = {
    "learning_rate": 1e-4,
    "warmup_steps": 2,
    "weight_decay": 0.01,
    "num_train_epochs": 3,
    "per_device_eval_batch_size": EVAL_BATCH,
    "logging_steps": 1,
    "eval_steps": 3,
    "save_steps": 3,
    "save_total_limit": 9,
    "seed": 7,
    "disable_tqdm": True,
}
RUN_SIMCSE, LAUNCHED = str(REPOSITORY / "run_simcse.py"), str(REPOSITORY / "tests/launched.py")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def flags(output_dir: Path, *settings: dict, batch: int = BATCH, **further) -> list[str]:
    given = {**DATA, **TRAINING, "output_dir": output_dir, "per_device_train_batch_size": batch, "use_cpu": True}
    for each in (*settings, further):
        given |= each
    return [str(part) for name, value in given.items() for part in (f"--{name}", value)]


def start(command: Sequence[str], *, python: str = sys.executable, **environment: str) -> subprocess.CompletedProcess:
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    started = [python, *map(str, command)]
    return subprocess.run(
        started, cwd=REPOSITORY, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )


def accelerate(config: str, *more: str) -> list[str]:
    path = str(REPOSITORY / f"configs/accelerate/{config}.yaml")
    # Port 0: accelerate looks for a free one.
    launch = ["-m", "accelerate.commands.launch", "--config_file", path, "--num_processes", "2"]
    return [*launch, "--main_process_port", "0", *more]


def record_of(folder: Path) -> dict:
    return json.loads((folder / "simcse_run.json").read_text(encoding="utf-8"))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Without the biases of keys: no loss depends on them, and Adam makes steps of their gradients' rounding errors."""
    return {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "key.bias" not in name}


def differences(folder: Path, expected: Path) -> dict[str, float]:
    """The largest between two runs: of the losses of all steps, of all scores while training, and of the last weights."""
    logs = [record_of(each)["log_history"] for each in (folder, expected)]
    series = {
        "losses": [[entry["loss"] for entry in log if "loss" in entry] for log in logs],
        "norms": [[entry["grad_norm"] for entry in log if "loss" in entry] for log in logs],
        "scores": [
            [value for entry in log for name, value in sorted(entry.items()) if name.startswith("eval_")
             and not name.endswith(("runtime", "per_second"))]
            for log in logs
        ],
    }  # fmt: skip
    largest = {}
    for name, (found, wanted) in series.items():
        assert len(found) == len(wanted) and (found or (name == "scores" and folder.name == "mixed")), name
        # A norm is a sum of many; its error is relative.
        unit = [max(abs(value), 1.0) if name == "norms" else 1.0 for value in wanted]
        pairs = zip(found, wanted, unit, strict=True)
        largest[name] = max((abs(one - other) / unit for one, other, unit in pairs), default=0.0)
    last = [
        max(each.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])) for each in (folder, expected)
    ]
    assert last[0].name == last[1].name
    found, wanted = map(weights_of, last)
    assert found.keys() == wanted.keys()
    largest["weights"] = max((found[name] - wanted[name]).abs().max().item() for name in wanted)
    return largest


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with a batch of 12: `plain`, and `mixed` with scored pairs."""
    folder = tmp_path_factory.mktemp("alone")
    for name, settings in {"plain": {}, "mixed": MIXED}.items():
        doubled = {"scored_batch_size": 8} if settings else {}
        assert main(["train", *flags(folder / name, EXACT, settings, doubled, batch=2 * BATCH)]) == 0
    return folder


CACHED = {"attn_implementation": "eager", "gradient_cache_tokens": 64}  # padded, and in passes of two sentences
MIXED = {
    "scored_file": "sample:sts",
    "scored_batch_size": 4,
    "mixing": "proportional",
    "max_train_samples": 38,  # of each: three global batches of triplets and four of pairs in an epoch
    "num_train_epochs": 2,
    "eval_task": "none",
    "eval_steps": 5,
    "save_steps": 5,
    "load_best_model_at_end": False,
}


def test_accelerate_launch_trains_the_curve_of_one_process_with_twice_the_batch(alone: Path, tmp_path: Path) -> None:
    """Float32. Batches, rows left over and evaluation pairs do not divide by two."""
    assert ROWS % (2 * BATCH) and (ROWS // BATCH) % 2 and 264 % (2 * EVAL_BATCH)
    done = start([*accelerate("cpu_2_processes"), RUN_SIMCSE, *flags(tmp_path / "two", EXACT)])
    assert done.returncode == 0, done.stderr[-3000:]
    record = record_of(tmp_path / "two")
    assert record["world_size"] == 2 and record["steps"] == 12
    largest = differences(tmp_path / "two", alone / "plain")
    print("DDP", largest)
    assert max(largest.values()) < 1e-5
    released = [load_file(folder / "model.safetensors") for folder in (tmp_path / "two", alone / "plain")]
    assert released[0].keys() == released[1].keys()


def test_two_processes_score_alike_mix_sets_and_resume_bit_for_bit(alone: Path, tmp_path: Path) -> None:
    """Several runs in one start of torchrun.

    Scores on every process, with gradients cached in padded passes; sets that are mixed; both against one process that
    does neither cache nor pad. And resumed in the middle of the second epoch, with dropout, against the run that went on.
    """
    live = flags(tmp_path / "live", MIXED)
    whole = [*TORCHRUN, LAUNCHED, tmp_path, *flags(tmp_path / "two", EXACT, CACHED)]
    done = start([*whole, "--then", *flags(tmp_path / "mixed", EXACT, MIXED), "--then", *live])
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == 4, "evaluations"
    for name in ("eval_cosine_spearman", "eval_dot_pearson", "eval_alignment", "eval_uniformity"):
        found = [[each[name] for each in rank] for rank in ranks]
        assert found[0] == found[1], name
        expected = [entry[name] for entry in record_of(alone / "plain")["log_history"] if name in entry]
        assert found[0] == pytest.approx(expected, abs=1e-5), name
    for name, one in (("two", "plain"), ("mixed", "mixed")):
        largest = differences(tmp_path / name, alone / one)
        print("DDP, cached" if name == "two" else "DDP, mixed sets", largest)
        assert max(largest.values()) < 1e-5

    steps = record_of(tmp_path / "live")["steps"]
    checkpoints = sorted(int(path.name.split("-")[1]) for path in (tmp_path / "live").glob("checkpoint-*"))
    second_epoch = [step for step in checkpoints if steps // 2 < step < steps]
    assert second_epoch, "no checkpoint in the middle of the second epoch: the test would be vacuous"
    (tmp_path / "resumed").mkdir()
    shutil.copytree(tmp_path / f"live/checkpoint-{second_epoch[0]}", tmp_path / f"resumed/checkpoint-{second_epoch[0]}")
    resumed = flags(tmp_path / "resumed", MIXED, resume_from_checkpoint="auto")
    done = start([*TORCHRUN, RUN_SIMCSE, *resumed])
    assert done.returncode == 0, done.stderr[-3000:]
    last = [load_file(tmp_path / name / f"checkpoint-{steps}/model.safetensors") for name in ("live", "resumed")]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])
    released = [load_file(tmp_path / name / "model.safetensors") for name in ("live", "resumed")]
    assert all(torch.equal(released[0][name], released[1][name]) for name in released[0])


def test_fsdp2_trains_scores_saves_resumes_and_releases_what_one_process_does(alone: Path, tmp_path: Path) -> None:
    sharded(tmp_path, alone, accelerate("fsdp2", LAUNCHED), {"use_cpu": False})
    last = tmp_path / "two/checkpoint-12"
    model = SimCSEModel.from_pretrained(str(last))
    assert {name: weight.shape for name, weight in model.state_dict().items()} == {
        name: weight.shape for name, weight in load_file(last / "model.safetensors").items()
    }
    assert (last / "pytorch_model_fsdp.bin").is_file(), "FSDP wrote nothing: the test would be vacuous"
    config = json.loads((last / "config.json").read_text(encoding="utf-8"))
    assert config["auto_map"]["AutoModel"] == "modeling_simcse.SimCSEModel"


def sharded(folder: Path, alone: Path, launch: Sequence[str], settings: dict, **how: str) -> None:
    """Train in two processes, and resume from the middle: both are what one process finds."""
    arguments = flags(folder / "two", EXACT, settings)
    done = start([*launch, folder, "--as-accelerator", *arguments], **how)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    assert [each["eval_cosine_spearman"] for each in ranks[0]] == [each["eval_cosine_spearman"] for each in ranks[1]]
    largest = differences(folder / "two", alone / "plain")
    print(Path(launch[3]).stem, largest)
    assert max(largest.values()) < 1e-5
    (folder / "resumed").mkdir()
    shutil.copytree(folder / "two/checkpoint-6", folder / "resumed/checkpoint-6")
    resumed = flags(folder / "resumed", EXACT, settings, resume_from_checkpoint="auto")
    done = start([*launch, folder, "--as-accelerator", *resumed], **how)
    assert done.returncode == 0, done.stderr[-3000:]
    for last in ("checkpoint-12", "."):
        found, whole = (load_file(folder / name / last / "model.safetensors") for name in ("resumed", "two"))
        assert all(torch.equal(found[name], whole[name]) for name in whole)


def python_with_deepspeed() -> str | None:
    """This one, or that of SIMCSE_DEEPSPEED_PYTHON: an environment with this package and deepspeed."""
    return sys.executable if importlib.util.find_spec("deepspeed") else os.environ.get("SIMCSE_DEEPSPEED_PYTHON")


@pytest.mark.skipif(python_with_deepspeed() is None, reason="deepspeed is not installed")
def test_zero2_trains_scores_saves_resumes_and_releases_what_one_process_does(alone: Path, tmp_path: Path) -> None:
    launch = accelerate("deepspeed_zero2", LAUNCHED)
    sharded(tmp_path, alone, launch, {"use_cpu": False}, python=python_with_deepspeed(), DS_ACCELERATOR="cpu")
    mixed = flags(tmp_path / "mixed", EXACT, MIXED, CACHED, {"use_cpu": False})
    done = start([*launch, tmp_path, "--as-accelerator", *mixed], python=python_with_deepspeed(), DS_ACCELERATOR="cpu")
    assert done.returncode == 0, done.stderr[-3000:]
    largest = differences(tmp_path / "mixed", alone / "mixed")
    print("ZeRO-2, mixed sets, cached", largest)
    assert max(largest.values()) < 1e-5
    states = sorted(path.name for path in (tmp_path / "two/checkpoint-12/global_step12").iterdir())
    assert len([name for name in states if name.startswith("zero_pp_rank_")]) == 2, (
        "not sharded: the test would be vacuous"
    )


OWN_BATCH_SIZE = 'exec "$0" "$@" --per_device_train_batch_size $((4 + RANK))'
REFUSED = {
    "accelerate starts one process": (
        ["-m", "accelerate.commands.launch", "--num_processes", "2", RUN_SIMCSE],
        {},
        "accelerate launch was asked for several processes and started one",
    ),
    "two processes that do not know of each other": (
        [*TORCHRUN, RUN_SIMCSE],
        {"use_cpu": False, "ddp_backend": "gloo"},
        "2 processes were started, and each would train alone",
    ),
    "FSDP on a CPU": (
        [*accelerate("fsdp2"), RUN_SIMCSE],
        {"use_cpu": True},
        "FSDP was asked for, and accelerate does not shard on this machine's cpu",
    ),
    "batch sizes differ": (
        [*TORCHRUN, "--no-python", "bash", "-c", OWN_BATCH_SIZE, sys.executable, RUN_SIMCSE],
        {},
        "the processes differ in per_device_train_batch_size: 4, 5 on ranks 0 to 1",
    ),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
@pytest.mark.parametrize("why", REFUSED)
def test_what_would_train_something_else_is_refused(why: str, tmp_path: Path) -> None:
    command, settings, message = REFUSED[why]
    done = start([*command, *flags(tmp_path / "out", settings)])
    assert done.returncode != 0
    assert f"error: {message}" in done.stderr, done.stderr[-3000:]
    assert not (tmp_path / "out/simcse_run.json").exists() and not list((tmp_path / "out").glob("checkpoint-*"))


FAILS_ON_RANK_1 = """
import errno, os, sys
from pathlib import Path
from simcse_hf.cli import main
from simcse_hf.trainer import SimCSETrainer

save = SimCSETrainer._save_rng_state

def full(self, output_dir):
    if os.environ["RANK"] == "1" and self.state.global_step == 2:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        Path(output_dir, "rng_state_1.pth").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", output_dir)
    save(self, output_dir)

SimCSETrainer._save_rng_state = full
sys.exit(main(["train", *sys.argv[1:]]))
"""


def test_a_process_that_fails_while_saving_leaves_no_checkpoint_that_looks_whole(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(FAILS_ON_RANK_1, encoding="utf-8")
    settings = {"eval_task": "none", "max_steps": 4, "save_steps": 1, "load_best_model_at_end": False}
    done = start([*TORCHRUN, tmp_path / "fails.py", *flags(tmp_path / "run", settings, EXACT)])
    assert done.returncode == 1
    assert "error: the disk is full" in done.stderr and "error: another process of this job is gone" in done.stderr
    assert [path.name for path in (tmp_path / "run").glob("*checkpoint*")] == ["checkpoint-1"]


def test_two_stages_train_on_two_processes(tmp_path: Path) -> None:
    stage = tmp_path / "stage.json"
    stage.write_text(json.dumps({"learning_rate": 2e-4, "max_steps": 2}), encoding="utf-8")
    settings = {"eval_task": "none", "load_best_model_at_end": False, "first_stage": stage, "max_steps": 3}
    command = [*TORCHRUN, RUN_SIMCSE, *flags(tmp_path / "run", settings, EXACT)]
    done = start(command)
    assert done.returncode == 0, done.stderr
    assert [record_of(tmp_path / f"run{folder}")["steps"] for folder in ("/first_stage", "")] == [2, 3]
    again = start([*command, "--resume_from_checkpoint", "auto"])
    assert again.returncode == 0 and "finished before" in again.stdout, again.stderr


def test_a_signal_to_one_of_two_processes_stops_both_with_a_checkpoint(tmp_path: Path) -> None:
    settings = {"eval_task": "none", "load_best_model_at_end": False, "max_steps": 100_000, "save_steps": 50_000}
    log = tmp_path / "log"
    with log.open("wb") as output:
        job = subprocess.Popen(
            [sys.executable, *TORCHRUN, RUN_SIMCSE, *flags(tmp_path / "run", settings, EXACT)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            cwd=REPOSITORY,
        )
    try:
        wait_for_words("'loss'", log, job)
        (one,) = [each for each in psutil.Process(job.pid).children() if each.environ().get("RANK") == "1"]
        one.send_signal(signal.SIGTERM)
        job.wait(60)
    finally:
        for each in psutil.Process(job.pid).children() if job.poll() is None else []:
            each.kill()
        job.kill()
    text = log.read_text(encoding="utf-8")
    assert text.count("error: stopped by SIGTERM after step") == 2, text
    (saved,) = checkpoints_of(tmp_path / "run")
    assert damage_of(saved) is None and text.count(str(saved)) == 2
