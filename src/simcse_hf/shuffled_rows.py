"""The order of training rows: new in every epoch, the same on every process, eight bytes a row."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from accelerate.data_loader import DataLoaderShard, SeedableRandomSampler
from torch import Tensor
from torch.utils.data import Sampler

from .errors import ConfigError

_CHUNK = 1 << 16


class RowOrder(Sampler[int]):
    """Rows of a set in an order that the seed and the epoch fix, so a resumed run can skip what it had.

    Attributes:
        rows: Of the set; an epoch may hold fewer or more, see `len`.
        epoch: Of the next pass.
    """

    def __init__(self, rows: int, seed: int):
        """Remember the seed.

        Args:
            rows: How many there are.
            seed: Epoch e is shuffled by `seed + e`; the same on every process.
        """
        self.rows = rows
        self.seed = seed
        self.epoch = 0

    @abstractmethod
    def __len__(self) -> int:
        """Rows in an epoch."""

    @abstractmethod
    def _order(self, seed: int) -> Tensor:
        """The rows of an epoch, integers."""

    def __iter__(self) -> Iterator[int]:
        for chunk in self._order(self.seed + self.epoch).split(_CHUNK):
            yield from chunk.tolist()
        self.epoch += 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass; a finished pass moves on by one."""
        self.epoch = epoch


class ShuffledRows(RowOrder):
    """Every row once, in the order of accelerate's `SeedableRandomSampler` without its list of Python integers.

    That list takes about 400 MB for ten million rows.
    """

    def __len__(self) -> int:
        return self.rows

    def _order(self, seed: int) -> Tensor:
        return torch.randperm(self.rows, generator=torch.Generator().manual_seed(seed))


class WeightedRows(RowOrder):
    """Rows of several sources, each as often as the weight of its source says, shuffled together.

    A source of n rows with weight w gives `round(w * n)` rows to an epoch, but at least one: all its
    rows as many times as fit, and a random choice for what is left, another in every epoch.
    Weight 0 leaves a source out; weight 1 takes each of its rows once.
    """

    def __init__(self, counts: Sequence[int], weights: Sequence[float], seed: int):
        """Check the weights.

        Args:
            counts: Rows of each source; the sources lie one after the other.
            weights: One for each source.
            seed: Epoch e is chosen and shuffled by `seed + e`; the same on every process.

        Raises:
            ConfigError: Not one weight for each source, a negative or infinite one, or nothing but zeros.
        """
        super().__init__(sum(counts), seed)
        if len(weights) != len(counts):
            raise ConfigError(
                f"source_weights has {len(weights)} weights, and there are {len(counts)} training files. Give one for each, "
                "in their order; a pattern such as data/*.txt stands for its files in alphabetical order."
            )
        for number, weight in enumerate(weights, start=1):
            if not (weight >= 0 and math.isfinite(weight)):
                raise ConfigError(
                    f"source_weights: weight {number} is {weight}; a weight says how often an epoch takes the rows of a file, "
                    "0 or more."
                )
        self.counts = list(counts)
        self.taken = [
            max(round(weight * count), 1) if weight and count else 0
            for weight, count in zip(weights, counts, strict=True)
        ]
        if not sum(self.taken):
            raise ConfigError(f"source_weights {list(weights)} leave no row to train on. Set one of them above 0.")

    def __len__(self) -> int:
        return sum(self.taken)

    def _order(self, seed: int) -> Tensor:
        generator = np.random.default_rng(seed)
        order = np.empty(len(self), dtype=np.int32 if self.rows < 1 << 31 else np.int64)
        first = done = 0
        for count, taken in zip(self.counts, self.taken, strict=True):
            rows = np.arange(first, first + count, dtype=order.dtype)
            whole, rest = divmod(taken, max(count, 1))
            order[done : done + whole * count].reshape(whole, count)[:] = rows
            if rest:
                generator.shuffle(rows)
                order[done + whole * count : done + taken] = rows[:rest]
            first, done = first + count, done + taken
        generator.shuffle(order)
        return torch.from_numpy(order)


def lighten(loader: DataLoaderShard, row_weights: tuple[Sequence[int], Sequence[float]] | None = None) -> None:
    """Put `ShuffledRows` where accelerate put its own seedable sampler; the order stays the same.

    It must be put in afterwards: accelerate passes the epoch on to samplers that it knows, and of
    a `RandomSampler` it is handed it makes its own.

    Args:
        loader: As accelerate prepared it.
        row_weights: Rows and weight of each source: put in `WeightedRows` instead. The length of
            the loader becomes that of its order.

    Raises:
        ConfigError: See `WeightedRows`; or the loader does not shuffle, and weights would be ignored.
    """
    sampler = loader.get_sampler()
    if isinstance(sampler, SeedableRandomSampler):
        seed = sampler.initial_seed
        loader.set_sampler(WeightedRows(*row_weights, seed) if row_weights else ShuffledRows(len(sampler), seed))
    elif row_weights:
        raise ConfigError(
            "source_weights need rows in random order. Leave train_sampling_strategy random, and "
            "accelerator_config.use_seedable_sampler true."
        )
