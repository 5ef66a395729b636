"""Runs that are killed and go on, against the same run left alone: the weights must be the same, bit for bit.

    python benchmarks/survival.py [--kills 20] [--processes 1] [--seed 1]

Trains the embedded encoder on the sample triplets (unsupervised dropout alive, evaluation, early stopping's count,
a linear schedule, two epochs, a checkpoint every second step) and sends SIGKILL at random moments: half of the kills
first wait until a checkpoint, or the release, is being written. After each kill every checkpoint must be whole by its
checksums; the run is then started again with resume_from_checkpoint auto, until it ends by itself. When it ends
before there were enough kills, another run begins. With --processes 2, one process of the two is killed, and the
other notices and leaves, or is killed as a launcher would.

Writes benchmarks/results/survival-PROCESSES.json. Needs fork, so Linux or macOS.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import random
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from paths import RESULTS

from simcse_hf.checkpoints import checkpoints_of, damage_of
from simcse_hf.cli import main as command
from simcse_hf.files import STAGING, sha256_of, write_json
from simcse_hf.versions import package_versions

STEPS = 24
LONGEST = 120  # seconds for a whole run
STARTS = "=== a start"  # in the log
GRACE = 15  # seconds for a process to notice that the other is gone


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # forked processes have no thread pool
    chance = random.Random(arguments.seed)
    start, kills, rounds = time.perf_counter(), [], 0
    with scratch_folder() as work:
        alone = work / "alone"
        seconds = wait_for_all(begin(alone, arguments.processes), LONGEST)
        while len(kills) < arguments.kills:
            rounds += 1
            output_dir = work / f"killed-{rounds}"
            kills += killed_run(output_dir, arguments, seconds, chance, arguments.kills - len(kills))
            compare(alone, output_dir)
    record = {
        "kills": len(kills),
        "by_moment": {moment: sum(kill["moment"] == moment for kill in kills) for moment in MOMENTS},
        "runs": rounds,
        "runs_with_the_weights_of_the_run_left_alone": rounds,
        "checkpoints_checked": sum(kill["checkpoints"] for kill in kills),
        "each": kills,
        "settings": {
            "processes": arguments.processes,
            "seed": arguments.seed,
            "steps": STEPS,
            "model": "sample:encoder",
            "data": "sample:triplets, sample:sts",
        },
        "seconds": round(time.perf_counter() - start, 1),
        "hardware": f"CPU ({platform.machine()}), {os.cpu_count()} cores",
        "versions": package_versions(),
    }
    path = arguments.results / f"survival-{arguments.processes}.json"
    write_json(path, record)
    print(f"{record['kills']} kills survived {record['by_moment']}; written: {path}")
    return record


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Removed at the end; where something went wrong, the logs are shown first."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            yield Path(scratch)
        except BaseException:
            for log in Path(scratch).glob("*.log"):
                print(f"--- {log.name}\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}")
            raise


MOMENTS = ("preparing", "training", "saving", "releasing")


def killed_run(output_dir: Path, arguments: argparse.Namespace, seconds: float, chance: random.Random, most: int):
    """Start, kill and start again, at most so many times; then let the run come to its end."""
    kills = []
    while len(kills) < most:
        left_over = entries(output_dir)
        processes = begin(output_dir, arguments.processes)
        moment = chance.choices(("anywhere", ".checkpoint-", STAGING), weights=(5, 3, 2))[0]
        killed = kill(processes, output_dir, left_over, moment, seconds, chance)
        if not killed:  # it came to its end first
            return kills
        left = list(checkpoints_of(output_dir)) if output_dir.exists() else []
        for checkpoint in left:
            assert (damage := damage_of(checkpoint)) is None, f"{checkpoint}: {damage}"
        kills.append(
            {
                "moment": moment_of(output_dir, left_over),
                "checkpoints": len(left),
                "last": left[0].name if left else None,
            }
        )
        print(f"kill {len(kills)}: {kills[-1]}", flush=True)
    wait_for_all(begin(output_dir, arguments.processes), LONGEST)
    return kills


def begin(output_dir: Path, processes: int) -> list[multiprocessing.Process]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    started = []
    for rank in range(processes):
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        places |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {name: str(value) for name, value in places.items()} if processes > 1 else {}
        process = context.Process(target=work_on, args=(output_dir, environment))
        process.start()
        started.append(process)
    return started


def work_on(output_dir: Path, environment: dict[str, str]) -> None:
    os.environ |= environment
    output_dir.parent.mkdir(exist_ok=True)
    with (output_dir.parent / f"{output_dir.name}.log").open("ab") as log:
        log.write(f"{STARTS}\n".encode())
        log.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    settings = {
        "model_name_or_path": "sample:encoder",
        "train_file": "sample:triplets",
        "eval_task": "sample:sts",
        "max_seq_length": 24,
        "hidden_dropout_prob": 0.1,
        "per_device_train_batch_size": 16 // int(environment.get("WORLD_SIZE", 1)),
        "max_train_samples": 12 * 16,
        "num_train_epochs": 2,
        "learning_rate": 3e-4,
        "eval_steps": 2,
        "save_steps": 2,
        "logging_steps": 2,
        "early_stopping_patience": 50,
        "resume_from_checkpoint": "auto",
        "use_cpu": "true",
        "disable_tqdm": "true",
        "output_dir": output_dir,
    }
    if environment:
        settings["ddp_backend"] = "gloo"
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    code = 1
    try:
        code = command(["train", *flags])
    finally:
        os._exit(code)  # without what the process that forked would do at its end


def kill(processes, output_dir: Path, left_over: set, moment: str, seconds: float, chance: random.Random) -> bool:
    """SIGKILL one of the processes; False where all had ended before."""
    start = time.perf_counter()
    if moment == "anywhere":
        time.sleep(chance.random() * seconds)
    else:
        while not written_since(left_over, output_dir, moment) and any(process.is_alive() for process in processes):
            assert time.perf_counter() - start < LONGEST, "the run is not getting anywhere"
            time.sleep(0.0005)
        time.sleep(0.1 * chance.random() ** 2)
    victim = chance.choice(processes)
    if victim.exitcode is not None:
        wait_for_all(processes, LONGEST)
        return False
    os.kill(victim.pid, signal.SIGKILL)
    for process in processes:
        process.join(GRACE)
        if process.exitcode is None:  # it waits at the meeting point for one that never comes; torchrun ends it so
            process.kill()
            process.join()
    return any(process.exitcode for process in processes)


def wait_for_all(processes, seconds: float) -> float:
    start = time.perf_counter()
    for process in processes:
        process.join(seconds)
        assert process.exitcode == 0, f"a run ended with {process.exitcode}: see its log"
    return time.perf_counter() - start


def entries(output_dir: Path) -> set[tuple[str, int]]:
    """Names and inodes: what a kill left is there again, by name, when the next start writes its own."""
    found = set()
    with contextlib.suppress(OSError):
        for path in output_dir.iterdir():
            with contextlib.suppress(OSError):
                found.add((path.name, path.stat().st_ino))
    return found


def written_since(left_over: set, output_dir: Path, prefix: str) -> bool:
    return any(name.startswith(prefix) for name, _ in entries(output_dir) - left_over)


def moment_of(output_dir: Path, left_over: set) -> str:
    """What the killed process was at, by what it left and logged."""
    if written_since(left_over, output_dir, STAGING):
        return "releasing"
    if written_since(left_over, output_dir, ".checkpoint-"):
        return "saving"
    log = (output_dir.parent / f"{output_dir.name}.log").read_text(encoding="utf-8", errors="replace")
    this_start = log.rpartition(STARTS)[2]
    return "training" if "{'loss'" in this_start or "{'eval" in this_start else "preparing"


def compare(alone: Path, killed: Path) -> None:
    """The released weights, the last checkpoint's, and what was measured on the way, are the same."""
    for name in ("model.safetensors", f"checkpoint-{STEPS}/model.safetensors", f"checkpoint-{STEPS}/optimizer.pt"):
        assert sha256_of(alone / name) == sha256_of(killed / name), f"{killed / name} differs"
    runs = [json.loads((folder / "simcse_run.json").read_text(encoding="utf-8")) for folder in (alone, killed)]
    scores = [
        [(entry["step"], entry["eval_cosine_spearman"]) for entry in run["log_history"] if "eval_alignment" in entry]
        for run in runs
    ]
    assert scores[0] == scores[1] and len(scores[0]) == STEPS // 2
    assert runs[0]["best"] == runs[1]["best"]


if __name__ == "__main__":
    main()
