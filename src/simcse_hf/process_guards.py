"""What would silently make several processes train something else than one is refused."""

from __future__ import annotations

import os
from collections.abc import Mapping

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor
from transformers.utils.generic import strtobool

from .arguments import SimCSETrainingArguments
from .distributed import gather_integers, world_size
from .errors import TrainingError

_OF_LAUNCHED_PROCESSES = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_KINDS = ("scores", "labels")  # what a batch holds that is not compared within itself


def check_launch(args: SimCSETrainingArguments) -> None:
    """Refuse processes that do not know of each other, and one process where several were asked for.

    Raises:
        TrainingError: Says how to start them.
    """
    started = max(int(os.environ.get("WORLD_SIZE") or 1), world_size())
    if started > 1 and args.distributed_state.distributed_type == DistributedType.NO:
        raise TrainingError(
            f"{started} processes were started, and each would train alone, because no GPU was found and the CPU was not "
            "asked for. Add --use_cpu true, or unset WORLD_SIZE to train in one process."
        )
    asked_of_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if asked_of_accelerate and not any(name in os.environ for name in _OF_LAUNCHED_PROCESSES):
        raise TrainingError(
            "accelerate launch was asked for several processes and started one, as it does where it finds no GPUs. Use "
            "--config_file configs/accelerate/cpu_2_processes.yaml, or --multi_gpu --num_processes 2 and, after run_simcse.py, "
            "--use_cpu true; or --num_processes 1, with MASTER_ADDR unset."
        )


def check_sharding(args: SimCSETrainingArguments, accelerator: Accelerator) -> None:
    """Refuse ways of sharding under which training or its checkpoints would not be what they say.

    Raises:
        TrainingError: Names the setting and the cure.
    """
    asked = bool(args.fsdp) or strtobool(os.environ.get("ACCELERATE_USE_FSDP", "false"))
    if asked and accelerator.distributed_type != DistributedType.FSDP:
        raise TrainingError(
            f"FSDP was asked for, and accelerate does not shard on this machine's {args.device.type}: every process would "
            "hold all weights. Use configs/accelerate/cpu_2_processes.yaml on a CPU."
        )
    if asked:
        plugin = accelerator.state.fsdp_plugin
        # What must be so, and why.
        wanted = {
            "fsdp_version": (plugin.fsdp_version == 2, "2", "evaluation gathers the weights of FSDP2 only"),
            "fsdp_state_dict_type": (
                "FULL_STATE_DICT" in str(plugin.state_dict_type),
                "FULL_STATE_DICT",
                "a checkpoint is a model folder, and shards are none",
            ),
            "fsdp_cpu_ram_efficient_loading": (
                not plugin.cpu_ram_efficient_loading,
                "false",
                "the model is scored on every process before it is sharded, and only the first would have loaded it",
            ),
        }
        for name, (right, value, reason) in wanted.items():
            if not right:
                raise TrainingError(f"{name} must be {value}: {reason}. See configs/accelerate/fsdp2.yaml.")
        if args.gradient_cache_tokens is not None:
            raise TrainingError(
                "gradient_cache_tokens cuts a batch into passes, of which every process has its own number, and FSDP gathers "
                "the weights for each: processes would wait for each other forever. Use DDP (configs/accelerate/multi_gpu.yaml)."
            )
    deepspeed = getattr(accelerator.state, "deepspeed_plugin", None)
    if deepspeed is not None and deepspeed.zero_stage == 3:
        raise TrainingError(
            "DeepSpeed's ZeRO stage 3 shards the weights, which evaluation and the release need whole. Use stage 2 "
            "(configs/deepspeed/zero2.json)."
        )


def check_same_settings(args: SimCSETrainingArguments, rows: int) -> None:
    """Refuse processes that would train on different numbers of rows. All processes must call this together.

    Args:
        args: Of this process.
        rows: To train on.

    Raises:
        TrainingError: On every process.
    """
    own = [
        rows,
        args.per_device_train_batch_size,
        args.scored_batch_size or 0,
        args.gradient_accumulation_steps,
        args.seed,
    ]
    names = (
        "training rows",
        "per_device_train_batch_size",
        "scored_batch_size",
        "gradient_accumulation_steps",
        "seed",
    )
    for name, values in zip(names, zip(*gather_integers(own, args.device), strict=True), strict=True):
        if len(set(values)) > 1:
            raise TrainingError(
                f"the processes differ in {name}: {', '.join(map(str, values))} on ranks 0 to {len(values) - 1}. They train one "
                "model on one set; give all of them the same arguments and files."
            )


def check_equal_batches(inputs: Mapping[str, Tensor]) -> None:
    """Refuse batches that cannot be gathered. All processes must call this together, before each batch.

    A gather takes for granted that every process has as many rows; where one has fewer, PyTorch hangs, or hands out
    rows of the wrong process.

    Args:
        inputs: As `ViewsCollator` makes them.

    Raises:
        TrainingError: On every process.
    """
    if world_size() == 1:
        return
    ids = inputs["sentence_ids"]
    kind = next((number for number, name in enumerate(_KINDS, start=1) if name in inputs), 0)
    found = gather_integers([*ids.shape, kind], ids.device)
    if any(each != found[0] for each in found):
        shown = ", ".join(
            f"{rows} x {views} {('views', 'scored', 'labelled')[kind]} on rank {rank}"
            for rank, (rows, views, kind) in enumerate(found)
        )
        raise TrainingError(
            f"the processes have unequal batches ({shown}), and their rows cannot be compared with each other. Every "
            "process needs the same per_device_train_batch_size and the same number of sentences a row."
        )
