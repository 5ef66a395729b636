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
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .arguments import SimCSETrainingArguments
from .checkpoints import PARTIAL, check_loaded, find_best_again, keep_only, resuming_from, seal, sync_folder
from .collators import ViewsCollator
from .errors import TrainingError
from .evaluation import geometry
from .interruption import StopWhenAsked, shielded_workers
from .metrics import METRIC_NAMES
from .mixing import MixedBatches, follow_epochs
from .modeling_simcse import SimCSEModel
from .process_guards import check_equal_batches, check_sharding
from .quiet import quiet_transformers
from .sentence_store import ViewsDataset
from .sharded_weights import keep_own_name, shard_layer_by_layer, whole_model
from .shuffled_rows import ShuffledRows, WeightedRows, lighten
from .streamed_rows import StreamedRows
from .sts_metric import STSCorrelations
from .training_guards import GradientCheck, check_training_arguments, check_weights, explain_accumulation

logger = logging.getLogger(__name__)


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
        train_dataset: ViewsDataset | StreamedRows | None = None,
        scored_dataset: ViewsDataset | None = None,
        row_weights: tuple[Sequence[int], Sequence[float]] | None = None,
        eval_dataset: ViewsDataset | None = None,
        processing_class: PreTrainedTokenizerBase,
        score_scale: tuple[float, float] = (0.0, 5.0),
        callbacks: Sequence[TrainerCallback] = (),
        facts: dict | None = None,
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
            facts: JSON-ready; kept with the checksums of every checkpoint.

        Raises:
            TrainingError: Arguments or data that cannot give a correct contrastive loss.
        """
        if train_dataset is not None:
            streamed = isinstance(train_dataset, StreamedRows)
            check_training_arguments(args, None if streamed else len(train_dataset))
            explain_accumulation(args)
        self.scored_dataset = scored_dataset
        self.row_weights = row_weights
        self.facts = facts or {}
        self.stop_when_asked = StopWhenAsked()
        self._check_gradients = GradientCheck(args.learning_rate)
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
        callbacks = [*callbacks, self.stop_when_asked]
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
        check_sharding(args, self.accelerator)
        if self.is_fsdp_enabled:
            shard_layer_by_layer(model)

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        """As in Trainer; SIGTERM and SIGINT end it after the step, with a checkpoint.

        Raises:
            ModelError: The checkpoint cannot be loaded into this model.
            TrainingInterrupted: By such a signal.
        """
        at_start = self.args.eval_on_start
        self.args.eval_on_start = at_start and resume_from_checkpoint is None  # a resumed run has started long ago
        try:
            with self.stop_when_asked:
                return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        finally:
            self.args.eval_on_start = at_start

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's own loss; `num_items_in_batch` is ignored on purpose.

        Raises:
            TrainingError: The loss is not finite, or the processes have unequal batches.
        """
        check_equal_batches(inputs)
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
        built = super()._build_accelerator_args(**kwargs) | {"dynamo_plugin": TorchDynamoPlugin()}
        (ddp,) = built["kwargs_handlers"]
        if self.args.ddp_find_unused_parameters is None:
            # Every step has a gradient for every parameter (see `SimCSEModel`), so looking for others is in vain.
            ddp.find_unused_parameters = False
        return built

    def get_train_dataloader(self):
        """As in Trainer; the same order of rows without a Python integer for each of them."""
        if self.scored_dataset is not None:
            return self._mixed_loader()
        if isinstance(self.train_dataset, StreamedRows):
            return self.train_dataset.prepare(
                self.accelerator,
                self.data_collator,
                batch_size=self._train_batch_size,
                seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
                pin_memory=self.args.dataloader_pin_memory,
            )
        loader = super().get_train_dataloader()
        lighten(loader, self.row_weights)
        return shielded_workers(loader)

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
        return shielded_workers(prepared)

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
            return shielded_workers(super().get_eval_dataloader(eval_dataset))
        finally:
            self.args.dataloader_drop_last = drop_last

    def evaluation_loop(self, dataloader, *args, **kwargs):
        """As in Trainer, and no pair may be missing from the score.

        Raises:
            TrainingError: Fewer or more pairs were scored than the set holds.
        """
        # A model that is sharded is put together once, not for each of its layers in each batch, and not in bf16.
        self._whole_model = whole_model(self.accelerator.unwrap_model(self.model))
        try:
            output = super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self._whole_model = None
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
        encoder = self.accelerator.unwrap_model(model) if self._whole_model is None else self._whole_model
        with torch.no_grad():
            embeddings = encoder.embed_batch(**inputs)
        return None, embeddings.float().contiguous(), scores

    def _save_checkpoint(self, model, trial):
        """Save into a hidden folder, with checksums, and rename: a checkpoint exists whole or not at all."""
        check_weights(self.model, self.state.global_step, self.args.learning_rate)
        run_dir = Path(self.args.output_dir)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._staging = run_dir / f".{name}{PARTIAL}"
        staged, final = self._staging / name, run_dir / name
        try:
            super()._save_checkpoint(model, trial)
            # A process that failed is not here, and then this one fails too: what it lacks must not be sealed.
            self.accelerator.wait_for_everyone()
            if self.state.best_model_checkpoint == str(staged):
                self.state.best_model_checkpoint = str(final)
            if self.args.should_save:
                self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
                self._check_that_all_wrote(staged)
                seal(staged, self.facts)
                if final.exists():
                    final.replace(self._staging / "replaced")
                staged.replace(final)
                sync_folder(run_dir)
                keep_only(run_dir, self.args.save_total_limit, self.state.best_model_checkpoint)
        finally:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None
        self.accelerator.wait_for_everyone()

    def _check_that_all_wrote(self, staged: Path) -> None:
        processes = self.args.world_size
        missing = [rank for rank in range(processes) if not (staged / f"rng_state_{rank}.pth").exists()]
        if processes > 1 and missing and not self.args.save_on_each_node:
            raise TrainingError(
                f"ranks {', '.join(map(str, missing))} wrote nothing into {staged.parent.parent}: it is not the same "
                "folder on all machines. Choose an output_dir that they share, or set save_on_each_node true."
            )

    def _init_training_state(self, *args, **kwargs):
        position = super()._init_training_state(*args, **kwargs)
        self._find_best_again()
        return position

    def _run_epoch(self, *args, **kwargs):
        """As in Trainer; a run that had come to its end before it was resumed trains no further step."""
        if self.state.global_step >= self.state.max_steps or self._patience_is_over():
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _load_callback_state(self):
        """Go on counting evaluations without a better score; patience itself is that of the arguments."""
        stored = self.state.stateful_callbacks.get(EarlyStoppingCallback.__name__)
        for callback in self._early_stopping():
            if stored:
                callback.early_stopping_patience_counter = stored["attributes"]["early_stopping_patience_counter"]

    def _early_stopping(self) -> list[EarlyStoppingCallback]:
        return [callback for callback in self.callback_handler.callbacks if isinstance(callback, EarlyStoppingCallback)]

    def _patience_is_over(self) -> bool:
        return any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self._early_stopping()
        )

    def _determine_best_metric(self, metrics, trial):
        is_new_best = super()._determine_best_metric(metrics, trial)
        if is_new_best and self.args.load_best_model_at_end:
            self.control.should_save = True  # else there would be nothing to load
        # With save_strategy best the answer decides whether to save now.
        return is_new_best or self.stop_when_asked.stopping

    def _load_best_model(self):
        self._find_best_again()
        self.released_best = self.state.best_model_checkpoint is not None
        if self.released_best:
            with resuming_from(self.state.best_model_checkpoint):
                super()._load_best_model()

    def _find_best_again(self) -> None:
        if self.args.metric_for_best_model is not None:
            find_best_again(
                self.state,
                Path(self.args.output_dir),
                self.args.metric_for_best_model,
                greater_is_better=bool(self.args.greater_is_better),
                is_released=self.args.load_best_model_at_end,
            )

    def _finalize_training(self, *args, **kwargs):
        # With save_total_limit 1 Trainer would remove the last checkpoint before the release is written.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        with resuming_from(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result):
        check_loaded(self.model, load_result.missing_keys, load_result.unexpected_keys)
        super()._issue_warnings_after_load(load_result)

    def _load_optimizer_and_scheduler(self, checkpoint):
        with resuming_from(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint):
        with resuming_from(checkpoint):
            super()._load_rng_state(checkpoint)

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._check_gradients(norm, self.state.global_step + 1, scaled=self.accelerator.scaler is not None)
        return norm

    def _save(self, output_dir=None, state_dict=None):
        keep_own_name(self.accelerator.unwrap_model(self.model))
        with quiet_transformers():
            super()._save(output_dir, state_dict)

    released_best = False  # whether the weights are those of the best checkpoint
    _staging: Path | None = None
    _whole_model: SimCSEModel | None = None  # while a set is scored

    def _get_output_dir(self, trial):
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)


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
