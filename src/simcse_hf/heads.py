"""What lies between the pooled vector and the loss.    Axes: N sentences, D hidden size, E head size, W processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .distributed import gather_with_gradient, world_size


class SimCSEHead(nn.Module):
    """Linear and tanh over the pooled vector (N, D) -> (N, E), as in BERT's own pooler."""

    def __init__(self, hidden_size: int, head_size: int | None = None):
        super().__init__()
        self.dense = nn.Linear(hidden_size, head_size or hidden_size)

    def forward(self, pooled: Tensor) -> Tensor:
        """(N, D) -> (N, E)."""
        return torch.tanh(self.dense(pooled))


class BatchNormHead(nn.Module):
    """DiffCSE's projection (arXiv:2204.10298, section 4.1): D -> 2D, norm, ReLU, D, norm without weights.

    All sentences of a batch, of all views and processes, share their statistics. No running statistics are kept,
    because the head only acts in training.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.expand = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.scale = nn.Parameter(torch.ones(2 * hidden_size))
        self.shift = nn.Parameter(torch.zeros(2 * hidden_size))
        self.reduce = nn.Linear(2 * hidden_size, hidden_size, bias=False)

    def forward(self, pooled: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        hidden = torch.relu(batch_normalize(self.expand(pooled)) * self.scale + self.shift)  # (N, 2D)
        return batch_normalize(self.reduce(hidden))


def batch_normalize(vectors: Tensor, eps: float = 1e-5) -> Tensor:
    """Every component to mean 0 and variance 1 over the batch of all processes (Ioffe & Szegedy, arXiv:1502.03167).

    Args:
        vectors: (N, D), N the same on every process; N*W must be 2 or more.
        eps: Added to the variance, which is the biased one.

    Returns:
        (N, D) float32 (float64 for float64 input).

    >>> batch_normalize(torch.tensor([[1.0], [3.0]]), eps=0).tolist()
    [[-1.0], [1.0]]
    """
    if vectors.dtype != torch.float64:
        vectors = vectors.float()
    count = len(vectors) * world_size()
    mean = gather_with_gradient(vectors.sum(dim=0, keepdim=True)).sum(dim=0) / count  # (D,)
    centred = vectors - mean
    variance = gather_with_gradient(centred.square().sum(dim=0, keepdim=True)).sum(dim=0) / count  # (D,)
    return centred * (variance + eps).rsqrt()
