"""Asked to stop, a training finishes its step, saves, and says how to go on.

SIGTERM is what pre-emptible machines and cluster schedulers send before they take a machine
away; SIGINT is Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from .distributed import sum_over_processes, world_size
from .errors import TrainingInterrupted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ONE_REQUEST = 3.0  # seconds
_LAST_STEP = 60.0  # seconds


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


def shielded_workers(loader: DataLoader) -> DataLoader:
    """Let workers of a loader outlive the signals that ask a training to stop: its last step needs them.

    They start sessions of their own, which signals to the group do not reach. Of a SIGTERM that a scheduler sends to
    every single process they die a minute later, if the training has not ended them before.
    """
    start = partial(_start_worker, then=loader.worker_init_fn)
    # accelerate's loaders iterate over the one that they wrap, and are themselves copied where batches are skipped.
    for each in (loader, getattr(loader, "base_dataloader", loader)):
        each.worker_init_fn = start
    return loader


def _start_worker(worker: int, *, then: Callable[[int], object] | None) -> None:
    if os.name == "posix":
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, frame: signal.setitimer(signal.ITIMER_REAL, _LAST_STEP))
    if then is not None:
        then(worker)


class StopWhenAsked(TrainerCallback):
    """Saves after the step during which SIGTERM or SIGINT came, then raises `TrainingInterrupted`.

    As a context manager it catches the signals; as a callback it acts on them. Processes of one job get their signals
    at different moments, and often more than once (a scheduler signals all, and a launcher passes it on), so after each
    step they agree whether one of them was asked. A signal that comes seconds later is another request: it interrupts
    at once.

    A checkpoint due at the last step of an epoch, or of the training, waits for what else happens at the epoch's end: an
    evaluation there would be missed by a run that goes on from it.
    """

    def __init__(self):
        self._asked: int | None = None
        self._asked_at = 0.0
        self._stopping = self._save_is_due = False
        self._before = {}

    def __enter__(self) -> StopWhenAsked:
        self._asked, self._stopping, self._save_is_due = None, False, False
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
        if os.getpid() != self._process:  # a worker that has no handlers of its own yet
            return
        if self._asked is None:
            self._asked, self._asked_at = number, time.monotonic()
            # Not logged: logging may hold its lock just now.
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: stopping after this step, with a checkpoint. Once more stops at once.\n".encode())
        elif time.monotonic() - self._asked_at >= _ONE_REQUEST:
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    def on_step_end(self, args, state, control, **kwargs):
        """Have a checkpoint saved where any process was asked to stop."""
        asked = self._asked is not None
        if world_size() > 1:
            asked = bool(sum_over_processes(torch.tensor([int(asked)], device=args.device)).item())
        self._stopping = asked
        control.should_save |= asked
        is_last = state.global_step >= state.max_steps or float(state.epoch or 0.5).is_integer()
        if control.should_save and is_last:
            control.should_save, self._save_is_due = False, True

    def on_epoch_end(self, args, state, control, **kwargs):
        """Save now what was due at the last step."""
        control.should_save |= self._save_is_due
        self._save_is_due = False

    def on_save(self, args, state, control, **kwargs):
        """Leave the training once the checkpoint is there.

        Raises:
            TrainingInterrupted: With the signal's number.
        """
        self._save_is_due = False
        if self._stopping:
            number = signal.Signals(self._asked or signal.SIGTERM)
            raise TrainingInterrupted(
                f"stopped by {number.name} after step {state.global_step}, which is saved in "
                f"{args.output_dir}/checkpoint-{state.global_step}. Go on with --resume_from_checkpoint auto.",
                exit_code=128 + number,
            )
