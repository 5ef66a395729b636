"""`run_simcse.py` for tests of several processes: more than one run in one start, and a word from every process.

    launched.py FOLDER [--as-accelerator] ARGUMENTS... [--then ARGUMENTS...]

Each process writes what its evaluations found into FOLDER/rank<number>.json.

accelerate shards nothing where it finds no GPU. With --as-accelerator it is told that it found one, with gloo for a
backend and the CPU for a device. Whatever comes after that is the real thing: transformers, accelerate, PyTorch's FSDP2,
DeepSpeed.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from accelerate.state import PartialState
from accelerate.utils import DistributedType
from transformers import training_args

from simcse_hf.cli import main
from simcse_hf.trainer import SimCSETrainer


def start(folder: Path, *arguments: str) -> int:
    if "--as-accelerator" in arguments:
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        training_args.is_torch_bf16_gpu_available = lambda: True
        PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    found: list[dict] = []
    evaluate = SimCSETrainer.evaluate

    def remember(self, *args, **kwargs):
        found.append(evaluate(self, *args, **kwargs))
        return found[-1]

    SimCSETrainer.evaluate = remember
    runs: list[list[str]] = [[]]
    for argument in arguments:
        if argument == "--then":
            runs.append([])
        elif argument != "--as-accelerator":
            runs[-1].append(argument)
    code = 0
    for run in runs:
        code = code or main(["train", *run])
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(start(Path(sys.argv[1]), *sys.argv[2:]))
