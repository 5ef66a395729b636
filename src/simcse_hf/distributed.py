"""The only door to `torch.distributed`.    Axes: B rows of this process, W processes.

On one process every function is the identity, so callers never ask.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def world_size() -> int:
    """Number of processes W in the job (1 without a process group)."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process, 0 .. W-1."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Rows of all processes in rank order, with gradients for all of them.

    The backward pass sums what every process found for a row. After DDP has averaged the
    parameter gradients, W processes with B rows equal one process with W*B rows; a gather that
    keeps only the local gradient (Princeton SimCSE, DiffCSE) gives 1/W of it.

    Args:
        rows: (B, ...) floating point; B must be the same on every process.

    Returns:
        (W*B, ...)
    """
    if world_size() == 1:
        return rows
    return torch.cat(all_gather(rows.contiguous()), dim=0)


def gather_values(rows: Tensor) -> Tensor:
    """Rows of all processes in rank order, without gradient.    (B, ...) -> (W*B, ...)"""
    if world_size() == 1:
        return rows
    rows = rows.contiguous()
    gathered = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(gathered, rows)
    return torch.cat(gathered, dim=0)


def sum_over_processes(values: Tensor) -> Tensor:
    """Elementwise sum over all processes, without gradient; the result is the same on each of them."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values
