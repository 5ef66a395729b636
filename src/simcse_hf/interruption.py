"""Asked to stop, a training finishes its step, saves, and says how to go on.

SIGTERM is what pre-emptible machines and cluster schedulers send before they take a machine
away; SIGINT is Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import TrainerCallback

from .distributed import sum_over_processes, world_size
from .errors import TrainingInterrupted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would raise KeyboardInterrupt, so that what is half-written is removed."""


@contextmanager
def sigterm_as_exception() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM inside the block, in the main thread; elsewhere it stays as it was."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number, frame):
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StopWhenAsked(TrainerCallback):
    """Saves after the step during which SIGTERM or SIGINT came, then raises `TrainingInterrupted`.

    As a context manager it catches the signals; as a callback it acts on them. Processes of one job get their signals
    at different moments, so after each step they agree whether one of them was asked. A second signal is not waited
    for: it interrupts at once.
    """

    def __init__(self):
        self._asked: int | None = None
        self._stopping = False
        self._before = {}

    def __enter__(self) -> StopWhenAsked:
        self._asked, self._stopping = None, False
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            # A process in the background is born with SIGINT ignored, and so it stays.
            wanted = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._remember) for number in wanted}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._asked is not None and self._before and exception[0] is None:
            os.kill(os.getpid(), self._asked)  # it came after the last step
        self._before = {}

    @property
    def stopping(self) -> bool:
        """Whether a process of the job was asked to stop before the last step ended."""
        return self._stopping

    def _remember(self, number: int, frame) -> None:
        if os.getpid() != self._process:  # a worker of the data loader, which inherited this handler
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self._asked is not None:
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated
        self._asked = number
        # Logging may hold its lock just now.
        os.write(2, f"\n{signal.Signals(number).name}: stopping after this step, with a checkpoint.\n".encode())

    def on_step_end(self, args, state, control, **kwargs):
        """Have a checkpoint saved where any process was asked to stop."""
        asked = self._asked is not None
        if world_size() > 1:
            asked = bool(sum_over_processes(torch.tensor([int(asked)], device=args.device)).item())
        self._stopping = asked
        control.should_save |= asked

    def on_save(self, args, state, control, **kwargs):
        """Leave the training once the checkpoint is there.

        Raises:
            TrainingInterrupted: With the signal's number.
        """
        if self._stopping:
            number = signal.Signals(self._asked or signal.SIGTERM)
            raise TrainingInterrupted(
                f"stopped by {number.name} after step {state.global_step}, which is saved in "
                f"{args.output_dir}/checkpoint-{state.global_step}. Go on with --resume_from_checkpoint auto.",
                exit_code=128 + number,
            )
