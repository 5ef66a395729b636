"""What `SimCSETrainer` does besides the steps."""

from __future__ import annotations

from transformers import TrainerCallback


class LastStepEvaluation(TrainerCallback):
    """Evaluates and saves after the last step, wherever the interval falls.

    Without it the steps after the last multiple of `eval_steps` could never be chosen.
    """

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for an evaluation and a checkpoint once `max_steps` is reached."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = args.eval_strategy != "no"
            control.should_save = args.save_strategy != "no"
        return control
