"""What would silently make a contrastive loss another one, or keep a model that has diverged, is refused."""

from __future__ import annotations

import logging
import math

import torch

from .arguments import SimCSETrainingArguments
from .distributed import whole_tensor
from .errors import TrainingError
from .metrics import METRIC_NAMES
from .process_guards import check_launch, check_same_settings

logger = logging.getLogger(__name__)


def check_training_arguments(args: SimCSETrainingArguments, rows: int | None) -> None:
    """Refuse what would silently make the loss another one.

    Args:
        args: To be checked.
        rows: To train on; None where a stream will tell.

    Raises:
        TrainingError: Names the argument and the cure.
    """
    check_launch(args)
    check_same_settings(args, 0 if rows is None else rows)
    per_process, processes = args.per_device_train_batch_size, args.world_size
    if args.n_gpu > 1:
        raise TrainingError(
            f"{args.n_gpu} GPUs are visible to one process. DataParallel would give every replica only its own negatives. "
            "Start with accelerate launch, or choose one GPU with CUDA_VISIBLE_DEVICES=0."
        )
    if per_process * processes < 2:
        raise TrainingError(
            "per_device_train_batch_size is 1 on one process: a sentence alone has no negatives and the loss is always 0. "
            "Use 2 or more (64 is usual)."
        )
    if not args.dataloader_drop_last:
        raise TrainingError(
            "dataloader_drop_last is false: the last batch of an epoch would have fewer negatives, and so a loss on another "
            "scale. Leave it true."
        )
    if rows is not None and rows < per_process * processes:
        raise TrainingError(
            f"{rows} training rows are fewer than one batch of {per_process} on {processes} process(es), and short batches "
            f"are dropped: nothing would be trained. Use a per_device_train_batch_size of {max(rows // processes, 2)} or less."
        )
    if args.train_sampling_strategy in ("group_by_length", "batch_rebalance"):
        raise TrainingError(
            f"train_sampling_strategy {args.train_sampling_strategy} would make the negatives of a batch alike in length or "
            "the batches of the processes unequal. Use random; padding is cut inside the model."
        )
    if args.remove_unused_columns:
        raise TrainingError("remove_unused_columns must stay false: the training rows are token ids, not columns.")
    if args.accelerator_config.dispatch_batches or args.accelerator_config.split_batches:
        raise TrainingError(
            "accelerator_config would cut a packed batch between processes, through sentences. Leave dispatch_batches and "
            "split_batches out: "
            "every process then reads its own batches."
        )
    if not args.accelerator_config.even_batches:
        raise TrainingError(
            "accelerator_config says even_batches false: processes would score unequal parts of the evaluation set, and some "
            "pairs not at all. Leave it out."
        )
    if args.push_to_hub:
        raise TrainingError(
            "push_to_hub would upload checkpoints, optimiser included, and not the release. Leave it out, and upload the finished "
            "output_dir with `hf upload`."
        )
    if args.auto_find_batch_size:
        raise TrainingError(
            "auto_find_batch_size would halve the batch, and so the negatives, without a word. Leave it out; for a large batch in "
            "little memory set gradient_cache_tokens."
        )
    for name in ("save_only_model", "ignore_data_skip"):
        if getattr(args, name):
            raise TrainingError(f"{name} would make resumed runs end in other weights than whole ones. Leave it out.")
    if args.enable_jit_checkpoint:
        raise TrainingError(
            "enable_jit_checkpoint is not needed and not exact: it saves in the middle of a step. SIGTERM and SIGINT always "
            "save a checkpoint here, after the step. Leave it out."
        )
    if args.early_stopping_patience is not None and args.eval_strategy == "no":
        raise TrainingError(
            "early_stopping_patience counts evaluations, and eval_strategy is no. Set eval_strategy to steps."
        )
    names = {*METRIC_NAMES, "avg", "alignment", "uniformity"}
    if args.eval_strategy != "no" and (args.metric_for_best_model or "avg").removeprefix("eval_") not in names:
        raise TrainingError(
            f"metric_for_best_model is {args.metric_for_best_model!r}, which no evaluation finds. Choose one of "
            f"{', '.join(sorted(names))}."
        )


def explain_accumulation(args: SimCSETrainingArguments) -> None:
    """Say what gradient accumulation does not do to a contrastive loss."""
    if args.gradient_accumulation_steps > 1:
        logger.warning(
            "gradient_accumulation_steps=%d averages gradients; it does not enlarge the negatives: each step still "
            "compares %d rows with each other.",
            args.gradient_accumulation_steps,
            args.per_device_train_batch_size * args.world_size,
        )


def check_weights(model: torch.nn.Module, step: int, learning_rate: float) -> None:
    """Refuse to keep a model that has diverged. Processes that share its weights must call this together.

    Raises:
        TrainingError: A parameter holds NaN or an infinity.
    """
    for name, parameter in model.named_parameters():
        # Of all processes, which must come to the same answer.
        if not torch.isfinite(whole_tensor(parameter)).all():
            raise TrainingError(
                f"after step {step} the weights are not finite ({name}): training diverged, and this state was not saved. "
                f"Lower the learning_rate ({learning_rate:g})."
            )


class GradientCheck:
    """Stops before gradients that are not finite reach the weights.

    With a loss scaler (float16) single steps with infinite gradients are normal: the scaler skips them and lowers its
    scale. Thirty in a row have lowered it a billionfold, and no scale will help.
    """

    _SKIPPED_IN_A_ROW = 30

    def __init__(self, learning_rate: float):
        self._learning_rate = learning_rate
        self._skipped = 0

    def __call__(self, norm: float | torch.Tensor | None, step: int, *, scaled: bool) -> None:
        """Look at the gradient norm of a step that has not been taken.

        Args:
            norm: Of all gradients; None where only the optimiser knows it (DeepSpeed).
            step: Counted from 1.
            scaled: Whether a loss scaler skips the step by itself.

        Raises:
            TrainingError: The norm is NaN or infinite, and that is no ordinary skip.
        """
        if norm is None or math.isfinite(norm):
            self._skipped = 0
            return
        self._skipped += 1
        if scaled and self._skipped < self._SKIPPED_IN_A_ROW:
            return
        what = f"have not been finite for {self._skipped} steps" if scaled else f"are not finite ({float(norm)})"
        raise TrainingError(
            f"the gradients {what} at step {step}; training stopped before this step changed the weights. Lower the "
            f"learning_rate ({self._learning_rate:g}), set a max_grad_norm, or use bf16 or fp32 instead of fp16."
        )
