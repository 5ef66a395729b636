"""A batch cut into passes through the encoder.    Axes: N sentences, R rows of L tokens, T tokens, D hidden size.

A CPU is fastest when the intermediate values of a pass stay in its cache; a GPU wants one large pass; gradient
caching wants as few activations as its user allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .packing import RowLayout

# Two cores of an EPYC train ko-e5-small at 1,024 tokens a pass 1.2 times as fast as at 4,096, and 1.9 times as fast
# as in a single pass.
_CPU_PASS_TOKENS = 1024
_GPU_ROW_TOKENS = 256
_CPU_BUCKET_SENTENCES = 32  # of a padded pass


def row_layout(device: torch.device, *, compiled: bool) -> RowLayout:
    """Rows as the attention of a device wants them.

    A row is a pass on the CPU. Where attention has a block mask its cost grows with the row, and where code is
    compiled the number of rows should take few values.
    """
    if device.type == "cpu" and not compiled:
        return RowLayout(_CPU_PASS_TOKENS)
    return RowLayout(_GPU_ROW_TOKENS, multiple=_CPU_PASS_TOKENS // _GPU_ROW_TOKENS if compiled else 1)


def rows_per_pass(input_ids: Tensor, cache_tokens: int | None) -> int:
    """How many of the rows (R, L) go through the encoder together; at least one, and all on a GPU without caching.

    Larger passes than it likes are of no use to a CPU, whatever `cache_tokens` allows.
    """
    rows, row_length = input_ids.shape
    tokens = cache_tokens or rows * row_length
    if input_ids.device.type == "cpu":
        tokens = min(tokens, _CPU_PASS_TOKENS)
    return min(rows, max(1, tokens // row_length))


def row_passes(
    rows: Mapping[str, Tensor], starts: Tensor, lengths: Tensor, per_pass: int
) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
    """Packed rows in groups, each with its own sentences.

    Args:
        rows: Tensors (R, L, ...).
        starts: (N,) positions of the sentences in the flattened rows, ascending.
        lengths: (N,)
        per_pass: Rows of a pass; the last may have fewer.

    Yields:
        The rows of a pass, the positions of its sentences in them, and their lengths. Passes without any sentence
        are left out.
    """
    count, row_length = next(iter(rows.values())).shape[:2]
    if per_pass >= count:
        yield dict(rows), starts, lengths
        return
    pass_tokens = per_pass * row_length
    sentences = (starts // pass_tokens).bincount(minlength=-(-count // per_pass)).tolist()
    pieces = zip(*(tensor.split(per_pass) for tensor in rows.values()), strict=True)
    for index, (piece, own_starts, own_lengths) in enumerate(
        zip(pieces, starts.split(sentences), lengths.split(sentences), strict=True)
    ):
        if len(own_starts):
            yield dict(zip(rows, piece, strict=True)), own_starts - index * pass_tokens, own_lengths


def length_buckets(lengths: Tensor, longest: int, cache_tokens: int | None) -> tuple[Tensor, list[int], list[int]]:
    """Padded sentences in groups of similar length.

    Args:
        lengths: (N,)
        longest: T, to which the batch is padded.
        cache_tokens: Tokens that a pass may hold; None for no limit.

    Returns:
        The sentences sorted by length (N,), how many belong to each pass, and the longest of each pass.
    """
    order = lengths.argsort(stable=True)
    # A GPU would rather have few large passes.
    on_cpu = lengths.device.type == "cpu"
    sentences = _CPU_BUCKET_SENTENCES if on_cpu else max(_CPU_BUCKET_SENTENCES, len(order) // 4)
    if cache_tokens is not None:
        sentences = max(1, min(sentences, cache_tokens // longest))
    buckets = order.split(sentences)
    longest_of = lengths[torch.stack([bucket[-1] for bucket in buckets])].tolist()
    return order, [len(bucket) for bucket in buckets], longest_of


def in_passes(embed: Callable[..., Tensor], passes: Iterable[tuple], *, cache_gradients: bool) -> Tensor:
    """Vectors of all passes, one after another.

    Gradient caching (Gao et al. 2021, arXiv:2101.06983) is here activation checkpointing of whole passes: the
    backward pass repeats one pass after another, with the random numbers it had, while each parameter's gradient is
    completed, and synchronised between processes, once. Vectors and gradients are those of the one big batch; the
    encoder runs forward twice.

    Args:
        embed: From the values of a pass to its vectors, (n, D).
        passes: Arguments of `embed`.
        cache_gradients: Keep the activations of a single pass only.

    Returns:
        (N, D)
    """
    if cache_gradients:
        embed = partial(checkpoint, embed, use_reentrant=False)
    return torch.cat([embed(*inputs) for inputs in passes])
