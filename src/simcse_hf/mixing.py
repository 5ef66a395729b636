"""Batches of several training sets in one run: each batch from one set, the same set on every process.

The sets lie end to end, as in torch's `ConcatDataset`, and an index counts through all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from typing import Literal

import numpy as np
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard
from torch.utils.data import Sampler

from .errors import TrainingError
from .shuffled_rows import RowOrder

Mixing = Literal["alternate", "proportional"]


class MixedBatches(Sampler[list[int]]):
    """Indices of one process's batch after another, for accelerate to deal out.

    Batch i goes to process i mod W. Batches come in groups of W from one set, a global batch, so at
    every step all processes train on the same set and its negatives are each other's. Rows that fill
    no global batch are left out, others in every epoch.

    - `alternate`: a global batch of each set in turn, until the set that ends first has none left
      (the round robin of sentence-transformers, and so of the Korean multitask models);
    - `proportional`: every global batch of every set once, in an order that `seed + epoch` shuffles.

    Attributes:
        batch_size: None: it differs from batch to batch, and accelerate then takes batches as they are.
        drop_last: True: accelerate has nothing to fill up.
    """

    batch_size = None
    drop_last = True

    def __init__(
        self,
        orders: Sequence[RowOrder],
        batch_sizes: Sequence[int],
        *,
        processes: int,
        mode: Mixing,
        seed: int,
        names: Sequence[str] = (),
    ):
        """Check that every set has a batch.

        Args:
            orders: The rows of each set, in the order in which the sets lie end to end.
            batch_sizes: Rows of each set in a batch of one process.
            processes: W.
            mode: See the class.
            seed: Shuffles the order of the sets; the same on every process.
            names: Of the sets, for messages; else they are numbered.

        Raises:
            TrainingError: A set is smaller than one global batch.
        """
        self.orders = list(orders)
        self.batch_sizes = list(batch_sizes)
        self.processes = processes
        self.mode = mode
        self.seed = seed
        self.epoch = 0
        self._firsts = [0, *accumulate(order.rows for order in self.orders)][:-1]  # index of each set's first row
        self._steps = []  # global batches that each set can fill
        for number, (order, size) in enumerate(zip(self.orders, self.batch_sizes, strict=True)):
            self._steps.append(len(order) // (size * processes))
            if not self._steps[-1]:
                name = names[number] if names else f"training set {number + 1}"
                cure = (
                    f"Use a batch size of {len(order) // processes} or less for it" if len(order) >= processes else ""
                )
                raise TrainingError(
                    f"{name} has {len(order)} rows, fewer than one batch of {size} on {processes} process(es), and short "
                    f"batches are left out: it would not be trained on. {cure or 'Use fewer processes'}, or more rows."
                )

    def __len__(self) -> int:
        """Batches of an epoch, of all processes together."""
        steps = len(self.orders) * min(self._steps) if self.mode == "alternate" else sum(self._steps)
        return steps * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        rows = []
        for order in self.orders:
            order.set_epoch(self.epoch)
            rows.append(iter(order))
        for number in self._turns():
            first, size = self._firsts[number], self.batch_sizes[number]
            for _ in range(self.processes):
                yield [first + row for row in islice(rows[number], size)]
        self.epoch += 1

    def _turns(self) -> Iterator[int]:
        """The set of each global batch of the epoch."""
        if self.mode == "alternate":
            for _ in range(min(self._steps)):
                yield from range(len(self.orders))
            return
        turns = np.repeat(np.arange(len(self._steps), dtype=np.int16), self._steps)
        np.random.default_rng(self.seed + self.epoch).shuffle(turns)
        yield from map(int, turns)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass; a finished pass moves on by one."""
        self.epoch = epoch

    @property
    def sampler(self) -> MixedBatches:
        """Itself: accelerate passes the epoch on to the `sampler` of a batch sampler that it wrapped."""
        return self


def follow_epochs(loader: DataLoaderShard) -> None:
    """Let the epoch reach the `MixedBatches` of a prepared loader also where batches are skipped.

    accelerate looks two wrappers deep. On several processes a resumed epoch has three: one that
    skips, one that deals out, and the sampler.
    """
    shard = loader.batch_sampler
    if isinstance(shard, BatchSamplerShard):
        shard.sampler = shard.batch_sampler
