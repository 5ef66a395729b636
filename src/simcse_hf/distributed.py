"""The only door to `torch.distributed`.    Axes: B rows of this process, W processes.

On one process every function is the identity, so callers never ask.
"""

from __future__ import annotations

import atexit
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor


def world_size() -> int:
    """Number of processes W in the job (1 without a process group)."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process, 0 .. W-1."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def close_at_exit() -> None:
    """Have the process group of gloo closed when the interpreter ends: its threads may abort a process otherwise."""
    if world_size() > 1 and dist.get_backend() == "gloo":
        atexit.register(_close)


def _close() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


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
    return _Gather.apply(rows)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        ctx.own = slice(rank() * len(rows), (rank() + 1) * len(rows))
        return gather_values(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        # Every process found a gradient for every row. Not in place: autograd may still need its own copy.
        return sum_over_processes(gradient.clone(memory_format=torch.contiguous_format))[ctx.own]


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


def gather_integers(values: Sequence[int], device: torch.device) -> list[list[int]]:
    """A few integers of every process, in rank order; as many of each.

    Args:
        values: Of this process.
        device: One that the process group can send from.
    """
    return gather_values(torch.tensor([list(values)], device=device)).tolist()


def is_in_parts(tensor: Tensor) -> bool:
    """Whether processes hold parts of a weight (FSDP2), or of the float32 weight that it was rounded from (DeepSpeed)."""
    return isinstance(tensor, DTensor) or _is_rounded(tensor)


def whole_tensor(tensor: Tensor) -> Tensor:
    """A weight with the parts of all processes, which must call this together; others are returned as they are."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    return tensor.get_full_hp_param() if _is_rounded(tensor) else tensor


def _is_rounded(tensor: Tensor) -> bool:
    """With float16 and bfloat16 DeepSpeed trains float32 weights, in shards, and the model holds what they round to."""
    return hasattr(tensor, "get_full_hp_param") and tensor.dtype != torch.float32
