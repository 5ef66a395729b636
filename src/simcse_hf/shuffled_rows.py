"""The order of training rows: new in every epoch, the same on every process, eight bytes a row."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate.data_loader import DataLoaderShard, SeedableRandomSampler
from torch.utils.data import Sampler

_CHUNK = 1 << 16


class ShuffledRows(Sampler[int]):
    """The order of accelerate's `SeedableRandomSampler`, without its list of Python integers.

    That list takes about 400 MB for ten million rows. The seed and the epoch fix the order, so a
    resumed run can skip what the interrupted one had.
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

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.seed + self.epoch))
        for chunk in order.split(_CHUNK):
            yield from chunk.tolist()
        self.epoch += 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass; a finished pass moves on by one."""
        self.epoch = epoch


def lighten(loader: DataLoaderShard) -> None:
    """Put `ShuffledRows` where accelerate put its own seedable sampler; the order stays the same.

    It must be put in afterwards: accelerate passes the epoch on to samplers that it knows, and of
    a `RandomSampler` it is handed it makes its own.
    """
    sampler = loader.get_sampler()
    if isinstance(sampler, SeedableRandomSampler):
        loader.set_sampler(ShuffledRows(len(sampler), sampler.initial_seed))
