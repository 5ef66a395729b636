"""A Trainer whose checkpoints are whole, and whose runs go on from them as if they had never stopped."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .arguments import SimCSETrainingArguments
from .checkpoints import (
    PARTIAL,
    REPLACED,
    check_loaded,
    find_best_again,
    keep_only,
    remove_partial,
    resuming_from,
    seal,
    set_aside_after,
    sync_folder,
)
from .errors import TrainingError
from .interruption import StopWhenAsked
from .quiet import quiet_transformers
from .sharded_weights import keep_own_name
from .training_guards import check_weights


class ResumableTrainer(Trainer):
    """Saves checkpoints with checksums, stops when it is asked to, and resumes exactly.

    Attributes:
        facts: JSON-ready; kept with the checksums of every checkpoint.
        stop_when_asked: Acts on signals while training.
        released_best: Whether the weights, after training, are those of the best checkpoint.
    """

    def __init__(
        self,
        *,
        args: SimCSETrainingArguments,
        callbacks: Sequence[TrainerCallback] = (),
        facts: dict | None = None,
        **parts,
    ):
        """As `Trainer`, with `facts`; patience is counted where `args` have `early_stopping_patience`."""
        self.facts = facts or {}
        self.stop_when_asked = StopWhenAsked()
        self.released_best = False
        self._staging: Path | None = None
        callbacks = [*callbacks, self.stop_when_asked]
        if args.early_stopping_patience is not None:
            callbacks.append(EarlyStoppingCallback(early_stopping_patience=args.early_stopping_patience))
        super().__init__(args=args, callbacks=callbacks, **parts)

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
                    final.replace(self._staging / REPLACED)
                staged.replace(final)
                sync_folder(run_dir)
                keep_only(run_dir, self.args.save_total_limit, last=final, best=self.state.best_model_checkpoint)
        finally:
            if self.args.should_save:
                remove_partial(self._staging)
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

    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ):
        position = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if self.state.global_step > self.state.max_steps:
            raise TrainingError(
                f"{resume_from_checkpoint} is step {self.state.global_step}, and training is to end after {self.state.max_steps}. "
                "Raise max_steps or num_train_epochs, or name another output_dir."
            )
        if resume_from_checkpoint is not None:
            self.accelerator.wait_for_everyone()  # until all have read its state
            if self.args.should_save:
                set_aside_after(self.state.global_step, Path(self.args.output_dir))
            self.accelerator.wait_for_everyone()
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
        for callback in self._early_stopping():
            # Whoever saves takes it for granted that the state knows the callback.
            stored = self.state.stateful_callbacks.setdefault(EarlyStoppingCallback.__name__, callback.state())
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

    def _load_scaler(self, checkpoint):
        if self.accelerator.scaler is not None:  # there is none where a run goes on without fp16
            with resuming_from(checkpoint):
                super()._load_scaler(checkpoint)

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        reads_checkpoint = self.is_deepspeed_enabled and resume_from_checkpoint is not None
        with resuming_from(resume_from_checkpoint) if reads_checkpoint else nullcontext():
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _save(self, output_dir=None, state_dict=None):
        keep_own_name(self.accelerator.unwrap_model(self.model))
        with quiet_transformers():
            super()._save(output_dir, state_dict)

    def _get_output_dir(self, trial):
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)
