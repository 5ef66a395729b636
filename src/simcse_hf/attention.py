"""Attention within sentences, over packed rows, as one attention function of transformers.

Axes: R rows, L tokens of a row, H heads, E size of a head.

transformers builds no block mask for packed bidirectional encoders, so packing by `position_ids` alone lets
sentences see each other. The function here is told where sentences lie, and does what suits the device:

| where                                   | how                                                                    |
|-----------------------------------------|------------------------------------------------------------------------|
| CPU                                     | sentences of equal length as one dense batch: no mask, no padding      |
| GPU, half precision, flash-attn there   | its variable-length kernel, attention dropout included                 |
| GPU, half precision, no dropout         | torch's variable-length kernel                                         |
| any other, and compiled code on a CPU   | SDPA with a block mask, attention dropout included                     |
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.configuration_utils import PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import PreTrainedModel

from .backbones import ATTENTION_DROPOUTS
from .packing import same_sentence, sentence_boundaries

PACKED_ATTENTION = "simcse_packed"

# Encoders whose attention and positions are known to pack; each is tested against padding.
_PACKABLE = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "modernbert")


@dataclass(frozen=True)
class EqualLengths:
    """Sentences of equal length, side by side in the flattened rows.

    Attributes:
        start: Position of the first token.
        sentences: How many.
        length: Tokens of each.
    """

    start: int
    sentences: int
    length: int


def enable_packing(backbone: PreTrainedModel) -> None:
    """Give an encoder the packed attention, where it can pack and its attention was left to SDPA.

    Padded input is then computed by SDPA as before.
    """
    config = backbone.config
    if config.model_type in _PACKABLE and config._attn_implementation == "sdpa" and not _is_decoder(config):
        backbone.set_attn_implementation(PACKED_ATTENTION)


def packs(config: PreTrainedConfig) -> bool:
    """Whether an encoder with this configuration takes packed rows."""
    return config._attn_implementation == PACKED_ATTENTION


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    equal_lengths: list[EqualLengths] | None = None,
    boundaries: Tensor | None = None,
    longest: int | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls in every layer.

    Args:
        module: The attention layer.
        query, key, value: (R, H, L, E)
        attention_mask: (R, 1, L, L) or None; not looked at with either of the layouts below.
        dropout: Probability on attention weights.
        scaling: Of the logits; 1 / sqrt(E) when None.
        sliding_window: A token sees tokens less than this far away.
        equal_lengths: Where sentences lie, in order of their starts.
        boundaries: (S + 1,) int32 cumulative lengths, for kernels of variable length.
        longest: No sentence of `boundaries` is longer.
        kwargs: Passed to SDPA when neither layout is given.

    Returns:
        (R, L, H, E) and None.
    """
    if equal_lengths is not None:
        return _equal_lengths_attention(query, key, value, dropout, scaling, sliding_window, equal_lengths), None
    if boundaries is not None:
        return _flash_attention(query, key, value, dropout, scaling, sliding_window, boundaries, longest), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=False, **kwargs
    )


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)


def attention_layout(
    backbone: PreTrainedModel,
    position_ids: Tensor,
    starts: Tensor,
    lengths: Tensor,
    *,
    dtype: torch.dtype,
    compiled: bool = False,
) -> dict[str, object]:
    """What the backbone needs to be told so that every layer attends within sentences.

    Args:
        backbone: One that packs.
        position_ids: (R, L), starting at 0 in each sentence.
        starts: (N,) positions of the sentences in the flattened rows, ascending.
        lengths: (N,) their tokens.
        dtype: In which attention is computed.
        compiled: Whether the backbone is compiled, and so wants tensors of few shapes.

    Returns:
        Keyword arguments for the backbone's forward.
    """
    device = position_ids.device
    if device.type == "cpu" and not compiled:
        return {"equal_lengths": _runs_of_equal_length(starts, lengths)}
    dropout = attention_dropout(backbone.config) if backbone.training else 0.0
    if device.type == "cuda" and variable_length_kernel(device, dtype, dropout):
        return {"boundaries": sentence_boundaries(position_ids), "longest": position_ids.shape[1]}
    mask = same_sentence(position_ids)
    if backbone.config.model_type != "modernbert":
        return {"attention_mask": mask}
    return {"attention_mask": {"full_attention": mask, "sliding_attention": mask & _near(position_ids, backbone)}}


def variable_length_kernel(device: torch.device, dtype: torch.dtype, dropout: float) -> str | None:
    """The flash kernel that computes this attention, `flash_attn` or `torch`, or None.

    None of them takes float32 or runs on GPUs older than Ampere, and torch's has no dropout.
    """
    if dtype not in (torch.float16, torch.bfloat16) or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    if _is_there("flash_attn"):
        return "flash_attn"
    return "torch" if dropout == 0 and _is_there("torch.nn.attention.varlen") else None


def attention_dropout(config: PreTrainedConfig) -> float:
    """The dropout on attention weights that a configuration asks for, whatever it calls it."""
    return float(max(getattr(config, name, 0.0) for name in ATTENTION_DROPOUTS))


@cache
def _is_there(package: str) -> bool:
    return find_spec(package) is not None


def _is_decoder(config: PreTrainedConfig) -> bool:
    return bool(getattr(config, "is_decoder", False))


def _near(position_ids: Tensor, backbone: PreTrainedModel) -> Tensor:
    """(R, 1, L, L) bool: within the window of ModernBERT's local attention.    position_ids (R, L)"""
    distance = (position_ids.unsqueeze(2) - position_ids.unsqueeze(1)).abs()
    return (distance <= backbone.config.sliding_window).unsqueeze(1)


def _runs_of_equal_length(starts: Tensor, lengths: Tensor) -> list[EqualLengths]:
    runs: list[EqualLengths] = []
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        last = runs[-1] if runs else None
        if last and last.length == length and last.start + last.sentences * length == start:
            runs[-1] = EqualLengths(last.start, last.sentences + 1, length)
        else:
            runs.append(EqualLengths(start, 1, length))
    return runs


def _equal_lengths_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    scaling: float | None,
    sliding_window: int | None,
    runs: list[EqualLengths],
) -> Tensor:
    rows, heads, row_length, head_size = query.shape
    scaling = head_size**-0.5 if scaling is None else scaling
    sizes = _sizes_with_filler(runs, rows * row_length)
    # (H, R*L, E), cut where runs begin and end; cut in one go, or the gradient of each piece would be a whole tensor
    pieces = (tensor.transpose(0, 1).flatten(1, 2).split(sizes, dim=1) for tensor in (query, key, value))
    shapes = {run.start: (run.sentences, run.length) for run in runs}
    outputs, position = [], 0
    for size, *piece in zip(sizes, *pieces, strict=True):
        if shape := shapes.get(position):
            q, k, v = (tensor.unflatten(1, shape).transpose(0, 1) for tensor in piece)  # (S, H, l, E)
            attended = _dense_attention(q, k, v, dropout, scaling, _window_mask(shape[1], sliding_window, q.device))
            outputs.append(attended.transpose(1, 2).flatten(0, 1))  # (S*l, H, E)
        else:
            outputs.append(query.new_zeros(size, heads, head_size))
        position += size
    return torch.cat(outputs).unflatten(0, (rows, row_length))  # (R, L, H, E)


def _sizes_with_filler(runs: list[EqualLengths], total: int) -> list[int]:
    """Tokens of each run, and of the filler between and after them."""
    sizes, position = [], 0
    for run in runs:
        if run.start > position:
            sizes.append(run.start - position)
        sizes.append(run.sentences * run.length)
        position = run.start + sizes[-1]
    return sizes if position == total else [*sizes, total - position]


def _dense_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float, scaling: float, mask: Tensor | None) -> Tensor:
    """(S, H, l, E) each, mask (l, l) or None  ->  (S, H, l, E)"""
    if dropout == 0:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
    # Spelled out, because SDPA would draw its dropout outside of `cpu_kernels`.
    logits = (q * scaling) @ k.transpose(-1, -2)  # (S, H, l, l)
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    return F.dropout(logits.softmax(dim=-1), dropout) @ v


def _window_mask(length: int, sliding_window: int | None, device: torch.device) -> Tensor | None:
    """(l, l) bool, or None where every token of a sentence sees every other."""
    if sliding_window is None or length <= sliding_window:
        return None
    position = torch.arange(length, device=device)
    return (position.unsqueeze(1) - position).abs() < sliding_window


def _flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    scaling: float | None,
    sliding_window: int | None,
    boundaries: Tensor,
    longest: int,
) -> Tensor:
    rows, _, row_length, _ = query.shape
    query, key, value = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))  # (R*L, H, E)
    reach = -1 if sliding_window is None else sliding_window - 1
    lengths = (boundaries, boundaries, longest, longest)
    window = {"window_size": (reach, reach)}
    if variable_length_kernel(query.device, query.dtype, dropout) == "flash_attn":
        from flash_attn import flash_attn_varlen_func

        output = flash_attn_varlen_func(query, key, value, *lengths, dropout_p=dropout, softmax_scale=scaling, **window)
    else:
        from torch.nn.attention.varlen import varlen_attn

        output = varlen_attn(query, key, value, *lengths, scale=scaling, **window)
    return output.unflatten(0, (rows, row_length))
