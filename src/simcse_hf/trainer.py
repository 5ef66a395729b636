"""`SimCSETrainer`: Hugging Face Trainer with a contrastive loss and STS evaluation.

Axes: B items, V views, N pairs, D vector size.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate.utils import TorchDynamoPlugin
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader
from transformers import EarlyStoppingCallback, EvalPrediction, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from .arguments import SimCSETrainingArguments
from .collators import ViewsCollator
from .errors import TrainingError
from .evaluation import geometry
from .metrics import METRIC_NAMES
from .mixing import MixedBatches, follow_epochs
from .modeling_simcse import SimCSEModel
from .quiet import quiet_transformers
from .sentence_store import ViewsDataset
from .shuffled_rows import ShuffledRows, WeightedRows, lighten
from .sts_metric import STSCorrelations

logger = logging.getLogger(__name__)

PARTIAL = ".partial"  # ends the name of a checkpoint that is being written


class SimCSETrainer(Trainer):
    """Trains a `SimCSEModel` on views, packed where its encoder can, and evaluates it on scored pairs.

    Evaluation yields the eight corpus-level correlations, `avg`, `alignment` and `uniformity`.
    The loss is never rescaled: it is a mean over comparisons within a batch, so multiplying it
    by accumulation steps or processes, as Trainer does for token losses, would be wrong.
    """

    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: SimCSEModel,
        args: SimCSETrainingArguments,
        *,
        train_dataset: ViewsDataset | None = None,
        scored_dataset: ViewsDataset | None = None,
        row_weights: tuple[Sequence[int], Sequence[float]] | None = None,
        eval_dataset: ViewsDataset | None = None,
        processing_class: PreTrainedTokenizerBase,
        score_scale: tuple[float, float] = (0.0, 5.0),
        callbacks: Sequence[TrainerCallback] = (),
    ):
        """Connect the parts.

        Args:
            model: The encoder to train.
            args: Checked against what would silently break a contrastive loss.
            train_dataset: Rows of views; or labelled or scored pairs.
            scored_dataset: Scored pairs to train on in batches of their own, between those of `train_dataset`.
            row_weights: How many rows of `train_dataset` come from each source, one source after the other, and how
                often an epoch takes a row of each.
            eval_dataset: Rows of two views with a score.
            processing_class: The tokenizer, saved with every checkpoint.
            score_scale: Lowest and highest score of `eval_dataset`.
            callbacks: Further callbacks.

        Raises:
            TrainingError: Arguments or data that cannot give a correct contrastive loss.
        """
        if train_dataset is not None:
            check_training_arguments(args, len(train_dataset))
            explain_accumulation(args)
        self.scored_dataset = scored_dataset
        self.row_weights = row_weights
        model.gradient_cache_tokens = args.gradient_cache_tokens
        if args.torch_compile:
            model.compile_encoder(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
        if model.row_layout(args.device) is None:
            unpacked = [name for name, auxiliary in model.auxiliaries.items() if not auxiliary.packs]
            logger.info(
                "%s does not take packed rows; batches are padded within passes of similar length.",
                f"the objective {unpacked[0]}"
                if unpacked
                else f"a '{model.backbone.config.model_type}' encoder with {model.backbone.config._attn_implementation} attention",
            )
        callbacks = list(callbacks)
        if args.early_stopping_patience is not None:
            callbacks.append(EarlyStoppingCallback(early_stopping_patience=args.early_stopping_patience))
        super().__init__(
            model=model,
            args=args,
            data_collator=ViewsCollator(processing_class.pad_token_id, model.row_layout(args.device)),
            train_dataset=train_dataset,
            eval_dataset=None if eval_dataset is None else eval_dataset.sorted_by_length(),
            processing_class=processing_class,
            compute_metrics=compute_sts_metrics(score_scale),
            callbacks=callbacks,
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's own loss; `num_items_in_batch` is ignored on purpose.

        Raises:
            TrainingError: The loss is not finite.
        """
        outputs = model(**inputs)
        if not torch.isfinite(outputs.loss):
            last = self.state.best_model_checkpoint or "none yet"
            raise TrainingError(
                f"the loss is {outputs.loss.item()} at step {self.state.global_step + 1}; training stopped before this step "
                f"changed the weights. Best checkpoint: {last}. Lower the learning_rate "
                f"({self.args.learning_rate:g}), or use bf16 or fp32 instead of fp16."
            )
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _build_accelerator_args(self, **kwargs):
        # accelerate would compile the whole model, whose number of passes differs from batch to batch.
        return super()._build_accelerator_args(**kwargs) | {"dynamo_plugin": TorchDynamoPlugin()}

    def get_train_dataloader(self):
        """As in Trainer; the same order of rows without a Python integer for each of them."""
        if self.scored_dataset is not None:
            return self._mixed_loader()
        loader = super().get_train_dataloader()
        lighten(loader, self.row_weights)
        return loader

    def _mixed_loader(self):
        args = self.args
        seed = args.seed if args.data_seed is None else args.data_seed
        rows = len(self.train_dataset)
        order = ShuffledRows(rows, seed) if self.row_weights is None else WeightedRows(*self.row_weights, seed)
        sampler = MixedBatches(
            [order, ShuffledRows(len(self.scored_dataset), seed)],
            [args.per_device_train_batch_size, args.scored_batch_size or args.per_device_train_batch_size],
            processes=args.world_size,
            mode=args.mixing,
            seed=seed,
            names=("train_file", "scored_file"),
        )
        loader = DataLoader(
            ConcatDataset([self.train_dataset, self.scored_dataset]),
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        # Batches of two sizes: the sampler sees to it that every process has as many.
        even_batches, self.accelerator.even_batches = self.accelerator.even_batches, False
        try:
            prepared = self.accelerator.prepare(loader)
        finally:
            self.accelerator.even_batches = even_batches
        follow_epochs(prepared)
        return prepared

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in Trainer; where the loss has several parts, each is logged, and so is what their objectives count."""
        if "loss" in logs:
            parts = self.accelerator.unwrap_model(self.model).means.pop()
            logs |= parts if len(parts) > 1 else {}
        super().log(logs, start_time)

    def get_eval_dataloader(self, eval_dataset=None):
        """All pairs: Trainer would apply `dataloader_drop_last` to the evaluation set too."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def evaluation_loop(self, dataloader, *args, **kwargs):
        """As in Trainer, and no pair may be missing from the score.

        Raises:
            TrainingError: Fewer or more pairs were scored than the set holds.
        """
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        scored, expected = len(output.label_ids), len(dataloader.dataset)
        if scored != expected:
            raise TrainingError(
                f"{scored} of {expected} evaluation pairs were scored; a score over part of a set is another."
            )
        return output

    def prediction_step(
        self, model, inputs, prediction_loss_only, ignore_keys=None
    ) -> tuple[None, Tensor | None, Tensor | None]:
        """Embeddings (B, 2, D) and scores (B,) of a batch of pairs, in float32 whatever the training precision."""
        inputs = self._prepare_inputs(inputs)
        scores = inputs.pop("scores")
        # The wrapped forward would autocast under bf16 and fp16; `embed_batch` is not wrapped.
        encoder = self.accelerator.unwrap_model(model)
        with torch.no_grad():
            embeddings = encoder.embed_batch(**inputs)
        return None, embeddings.float().contiguous(), scores

    def _save_checkpoint(self, model, trial):
        """Save into a hidden folder and rename: a checkpoint exists whole or not at all."""
        check_weights(self.model, self.state.global_step, self.args.learning_rate)
        run_dir = Path(self.args.output_dir)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._staging = run_dir / f".{name}{PARTIAL}"
        staged, final = self._staging / name, run_dir / name
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.state.best_model_checkpoint == str(staged):
                self.state.best_model_checkpoint = str(final)
            if self.args.should_save:
                self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
                shutil.rmtree(final, ignore_errors=True)
                staged.replace(final)
                rotate_checkpoints(
                    output_dir=str(run_dir),
                    save_total_limit=self.args.save_total_limit,
                    best_model_checkpoint=self.state.best_model_checkpoint,
                    use_mtime=True,
                )
        finally:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None
            self.accelerator.wait_for_everyone()

    def _save(self, output_dir=None, state_dict=None):
        with quiet_transformers():
            super()._save(output_dir, state_dict)

    _staging: Path | None = None

    def _get_output_dir(self, trial):
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)


def check_weights(model: torch.nn.Module, step: int, learning_rate: float) -> None:
    """Refuse to keep a model that has diverged.

    Raises:
        TrainingError: A parameter holds NaN or an infinity.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise TrainingError(
                f"after step {step} the weights are not finite ({name}): training diverged, and this state was not saved. "
                f"Lower the learning_rate ({learning_rate:g})."
            )


def compute_sts_metrics(scale: tuple[float, float]) -> Callable[[EvalPrediction], dict[str, float]]:
    """A `compute_metrics` for predictions (N, 2, D) and scores (N,) on `scale`."""
    metric = STSCorrelations()

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        embeddings1, embeddings2 = prediction.predictions[:, 0], prediction.predictions[:, 1]
        correlations = metric.compute(embeddings1=embeddings1, embeddings2=embeddings2, references=prediction.label_ids)
        return {name: correlations[name] for name in (*METRIC_NAMES, "avg")} | geometry(
            torch.from_numpy(embeddings1), torch.from_numpy(embeddings2), prediction.label_ids, scale
        )

    return compute_metrics


def check_training_arguments(args: SimCSETrainingArguments, rows: int) -> None:
    """Refuse what would silently make the loss another one.

    Raises:
        TrainingError: Names the argument and the cure.
    """
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
    if rows < per_process * processes:
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
    if args.push_to_hub:
        raise TrainingError(
            "push_to_hub would upload checkpoints, optimiser included, and not the release. Leave it out, and upload the finished "
            "output_dir with `hf upload`."
        )
    if args.early_stopping_patience is not None and args.eval_strategy == "no":
        raise TrainingError(
            "early_stopping_patience counts evaluations, and eval_strategy is no. Set eval_strategy to steps."
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
