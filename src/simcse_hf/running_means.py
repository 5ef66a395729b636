"""Means that a training logs, summed where they arise and read once in a while.

Reading a number of a GPU waits for all work before it; here that happens when a line is logged, not at every step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .distributed import sum_over_processes


class RunningMeans:
    """Sums and counts by name, on the device of what is added."""

    def __init__(self):
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, total: Tensor | float, count: Tensor | float = 1.0) -> None:
        """Add to a mean.

        Args:
            name: Under which it is logged.
            total: Scalar sum of the values; no gradient is kept.
            count: How many they are.
        """
        device = total.device if isinstance(total, Tensor) else "cpu"
        # Apple's GPUs have no float64.
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        pair = torch.stack([torch.as_tensor(part, device=device).detach().to(dtype) for part in (total, count)])  # (2,)
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def pop(self) -> dict[str, float]:
        """The mean of each name over all processes since the last call; names without a count are left out.

        Every process must have added the same names.
        """
        if not self._sums:
            return {}
        names = sorted(self._sums)
        table = sum_over_processes(torch.stack([self._sums[name] for name in names])).tolist()  # one wait for all
        self._sums = {}
        return {name: total / count for name, (total, count) in zip(names, table, strict=True) if count}
