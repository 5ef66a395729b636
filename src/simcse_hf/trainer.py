"""`SimCSETrainer`: Hugging Face Trainer with a contrastive loss and STS evaluation.

Axes: B items, V views, N pairs, D vector size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from accelerate.utils import TorchDynamoPlugin
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader
from transformers import EvalPrediction, PreTrainedTokenizerBase, TrainerCallback

from .arguments import SimCSETrainingArguments
from .collators import ViewsCollator
from .errors import TrainingError
from .evaluation import geometry
from .interruption import shielded_workers
from .metrics import METRIC_NAMES
from .mixing import MixedBatches, follow_epochs
from .modeling_simcse import SimCSEModel
from .process_guards import check_equal_batches, check_sharding
from .resumable_trainer import ResumableTrainer
from .sentence_store import ViewsDataset
from .sharded_weights import shard_layer_by_layer, whole_model
from .shuffled_rows import ShuffledRows, WeightedRows, lighten
from .streamed_rows import StreamedRows
from .sts_metric import STSCorrelations
from .training_guards import GradientCheck, check_training_arguments, explain_accumulation

logger = logging.getLogger(__name__)


class SimCSETrainer(ResumableTrainer):
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
        super().__init__(
            model=model,
            args=args,
            data_collator=ViewsCollator(processing_class.pad_token_id, model.row_layout(args.device)),
            train_dataset=train_dataset,
            eval_dataset=None if eval_dataset is None else eval_dataset.sorted_by_length(),
            processing_class=processing_class,
            compute_metrics=compute_sts_metrics(score_scale),
            callbacks=callbacks,
            facts=facts,
        )
        check_sharding(args, self.accelerator)
        if self.is_fsdp_enabled:
            shard_layer_by_layer(model)

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

    def train(self, *args, **kwargs):
        """See `ResumableTrainer`.

        Raises:
            DataError: A file that is streamed changed under the run.
        """
        outcome = super().train(*args, **kwargs)
        self._check_stream()
        return outcome

    def _save_checkpoint(self, model, trial):
        self._check_stream()
        super()._save_checkpoint(model, trial)

    def _check_stream(self) -> None:
        """The record says what the weights were trained on."""
        if isinstance(self.train_dataset, StreamedRows):
            self.train_dataset.stream.check_unchanged()

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._check_gradients(norm, self.state.global_step + 1, scaled=self.accelerator.scaler is not None)
        return norm

    _whole_model: SimCSEModel | None = None  # while a set is scored


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
