"""Faster linear layers and dropout on CPUs that PyTorch's defaults serve badly.

Two of PyTorch's float32 kernels are chosen for Intel: matrix products go through MKL, which takes its AVX2 path on
AMD, and Bernoulli masks are drawn one by one on every other make. Within `cpu_kernels()` linear layers of AMD CPUs
with AVX-512 go through oneDNN, which PyTorch also ships, and dropout draws 16 random bits for each element, four
elements at a time. Both are float32 throughout and take their randomness from PyTorch's generator.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

# Below this many rows the two libraries are equally fast.
_LEAST_ROWS = 64
_LEVELS = 1 << 16  # dropout probabilities are rounded to multiples of 2^-16


def cpu_kernels(device: torch.device, *, enabled: bool = True) -> AbstractContextManager:
    """A context in which the encoder's linear layers and dropouts on `device` are the faster ones, where there are any."""
    if not enabled or device.type != "cpu" or _vendor() == "GenuineIntel" or torch.compiler.is_compiling():
        return nullcontext()
    return _CPUKernels()


class _CPUKernels(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.linear and _onednn_is_faster() and _fits(*args, **kwargs):
            return linear(*args, **kwargs)
        if function is F.dropout:
            return dropout(*args, **kwargs)
        return function(*args, **kwargs)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` by oneDNN, with gradients.    input (..., I), weight (O, I), bias (O,)  ->  (..., O), float32"""
    return _OneDNNLinear.apply(input, weight, bias)


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """`F.dropout` for any shape, with masks drawn faster; `p` is rounded to a multiple of 2^-16.

    Raises:
        ValueError: p outside [0, 1].
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    keeps_some_and_drops_some = 0 < round(p * _LEVELS) < _LEVELS
    if not training or not keeps_some_and_drops_some or inplace or input.device.type != "cpu":
        return torch.dropout_(input, p, training) if inplace else torch.dropout(input, p, training)
    return _Dropout.apply(input, p)


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, weight, bias):
        ctx.save_for_backward(input, weight)
        return _product(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        input, weight = ctx.saved_tensors
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            _product(gradient, weight.T) if wants_input else None,
            _product(rows.T, input.reshape(-1, input.shape[-1]).T) if wants_weight else None,
            rows.sum(dim=0) if wants_bias else None,
        )


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product left @ right.T, with the bias (O,) added."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, p):
        count = input.numel()
        words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(1 << 63), None)
        keep = words.view(torch.int16)[:count].view(input.shape) >= round(p * _LEVELS) - _LEVELS // 2
        ctx.save_for_backward(keep)
        ctx.scale = 1 / (1 - p)
        return (input * keep).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (keep,) = ctx.saved_tensors
        return (gradient * keep).mul_(ctx.scale), None


def _fits(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return (
        input.dtype == weight.dtype == torch.float32
        and input.device.type == "cpu"
        and input.numel() >= _LEAST_ROWS * input.shape[-1]
        and not torch.is_autocast_enabled("cpu")
    )


@cache
def _vendor() -> str:
    """The CPU's own name for its maker, empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), "")


@cache
def _onednn_is_faster() -> bool:
    return (
        _vendor() == "AuthenticAMD"
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
