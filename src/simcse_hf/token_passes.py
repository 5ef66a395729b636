"""An encoder over the tokens of a batch of views, packed or padded, a pass at a time.

Axes: B items, V views, N = B*V sentences, R rows of L tokens (padded: R = N, and L = T of the longest sentence), P tokens
of a pass, D hidden size.

Sentences lie at positions of the flattened rows; padding is the case of one sentence in each row. So whatever is asked of
single tokens is written once. Passes are those of `embedding`, for the same reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from .cpu_kernels import cpu_kernels
from .distributed import sum_over_processes, world_size
from .embedding import EmbedsSentences, encode_rows
from .passes import in_passes, length_buckets, row_passes, rows_per_pass


@dataclass(frozen=True)
class TokenBatch:
    """The tokens of a batch.

    Attributes:
        input_ids: (R, L)
        inputs: What else the encoder is given, each (R, L): `position_ids` of packed rows, `attention_mask` of padded ones.
        starts: (N,) positions of the sentences in the flattened rows, in the order of items and views.
        lengths: (N,) their tokens.
        views: V.
        packed: Whether the rows are packed.
    """

    input_ids: Tensor
    inputs: dict[str, Tensor]
    starts: Tensor
    lengths: Tensor
    views: int
    packed: bool

    @classmethod
    def of(cls, inputs: Mapping[str, Tensor | None]) -> TokenBatch:
        """From what `ViewsCollator` makes; padding is on the right."""
        if inputs.get("sentence_starts") is not None:
            starts, lengths = inputs["sentence_starts"], inputs["sentence_lengths"]
            rows = {"position_ids": inputs["position_ids"]}
            return cls(inputs["input_ids"], rows, starts.flatten(), lengths.flatten(), starts.shape[1], packed=True)
        input_ids = inputs["input_ids"]  # (B, V, T)
        rows = {"attention_mask": torch.ones_like(input_ids)}
        given = {name: inputs.get(name) for name in ("attention_mask", "token_type_ids")}
        rows |= {name: tensor for name, tensor in given.items() if tensor is not None}
        rows = {name: tensor.flatten(0, 1) for name, tensor in rows.items()}
        lengths = rows["attention_mask"].sum(dim=1)  # (N,)
        starts = torch.arange(len(lengths), device=lengths.device) * input_ids.shape[2]
        return cls(input_ids.flatten(0, 1), rows, starts, lengths, input_ids.shape[1], packed=False)

    def with_ids(self, input_ids: Tensor) -> TokenBatch:
        """The same rows of other tokens (R, L)."""
        return replace(self, input_ids=input_ids)

    @property
    def real(self) -> Tensor:
        """(R, L) bool: tokens of a sentence, not padding or filler."""
        steps = torch.zeros(self.input_ids.numel() + 1, dtype=torch.int64, device=self.starts.device)
        ones = torch.ones_like(self.starts)
        steps.index_add_(0, self.starts, ones).index_add_(0, self.starts + self.lengths, -ones)
        return steps[:-1].cumsum(0).view_as(self.input_ids) > 0

    @property
    def view_of(self) -> Tensor:
        """(R, L) int64: which view of its item a token belongs to; padding belongs to the sentence before it."""
        order = self.starts.argsort()
        begins = torch.zeros(self.input_ids.numel(), dtype=torch.int64, device=self.starts.device)
        begins[self.starts] = 1
        return (order % self.views)[begins.cumsum(0) - 1].view_as(self.input_ids)


class TokenPass(NamedTuple):
    """Part of a batch. A named tuple, because checkpointing looks for devices only in what PyTorch can unfold.

    Attributes:
        inputs: Of the encoder, (r, l) or (r, l, D) each.
        tokens: Further values of tokens, (r, l) each.
        starts: (n,) positions of its sentences in its flattened rows, ascending.
        lengths: (n,)
        sentences: (n,) which of the batch's N sentences they are.
        packed: Whether the rows are packed.
    """

    inputs: dict[str, Tensor]
    tokens: dict[str, Tensor]
    starts: Tensor
    lengths: Tensor
    sentences: Tensor
    packed: bool


def token_passes(
    batch: TokenBatch,
    tokens: Mapping[str, Tensor],
    *,
    cache_tokens: int | None = None,
    embeddings: nn.Module | None = None,
    whole_rows: bool = False,
) -> Iterator[TokenPass]:
    """A batch cut into passes.

    Args:
        batch: Packed or padded.
        tokens: Further values of tokens, (R, L) each, to be cut along.
        cache_tokens: With gradient caching, the tokens of a pass.
        embeddings: The encoder's lookup of tokens. Packed rows of several passes are then looked up once, because the
            gradient of a lookup is as large as the whole table, however small the pass. Not with gradient caching.
        whole_rows: Do not cut the padding that all sentences of a pass share.

    Yields:
        Passes that hold a sentence.
    """
    lookup = {"input_ids": batch.input_ids}
    if batch.packed:
        order = batch.starts.argsort()
        per_pass = rows_per_pass(batch.input_ids, cache_tokens)
        if embeddings is not None and cache_tokens is None and per_pass < len(batch.input_ids):
            lookup = {"inputs_embeds": embeddings(batch.input_ids)}
        inputs, done = {**batch.inputs, **lookup}, 0
        for rows, starts, lengths in row_passes(
            {**inputs, **tokens}, batch.starts[order], batch.lengths[order], per_pass
        ):
            sentences = order[done : done + len(starts)]
            done += len(starts)
            yield TokenPass(*_apart(rows, inputs), starts, lengths, sentences, True)
        return
    inputs = {**batch.inputs, **lookup}
    length = batch.input_ids.shape[1]
    order, sizes, longest_of = length_buckets(batch.lengths, length, cache_tokens)
    for chosen, longest in zip(order.split(sizes), longest_of, strict=True):
        longest = length if whole_rows else longest
        rows = {name: tensor[chosen, :longest] for name, tensor in {**inputs, **tokens}.items()}
        starts = torch.arange(len(chosen), device=chosen.device) * longest
        yield TokenPass(*_apart(rows, inputs), starts, batch.lengths[chosen], chosen, False)


def _apart(rows: dict[str, Tensor], inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs of the encoder, and the rest."""
    return {name: rows[name] for name in inputs}, {name: rows[name] for name in rows if name not in inputs}


def encode_tokens(
    backbone: PreTrainedModel, piece: TokenPass, *, compiled: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Token vectors of a pass, (P, D), and its further values of tokens, (P,) each."""
    if piece.packed:
        vectors = encode_rows(backbone, piece.inputs, piece.starts, piece.lengths, compiled=compiled)[-1]
    else:
        with cpu_kernels(piece.starts.device, enabled=not compiled):
            vectors = backbone(**piece.inputs).last_hidden_state.flatten(0, 1)
    return vectors, {name: tensor.flatten()[: len(vectors)] for name, tensor in piece.tokens.items()}


def sum_over_passes(
    sums: Callable[..., Tensor], passes: Iterable[tuple[TokenPass, *tuple[Tensor, ...]]], encoder: EmbedsSentences
) -> Tensor:
    """Sums over the tokens of a batch, with the encoder's gradient caching where it caches.

    Args:
        sums: From a pass, and what belongs to it, to sums over its tokens (K,).
        passes: Arguments of `sums`.
        encoder: The model in training.

    Returns:
        (K,)
    """
    return in_passes(lambda *pieces: sums(*pieces).unsqueeze(0), passes, cache_gradients=encoder.caches_gradients).sum(
        dim=0
    )


def mean_over_processes(total: Tensor, count: Tensor) -> Tensor:
    """The part of this process in a mean over the tokens of all processes.

    Processes have different numbers of tokens. Once DDP has averaged the gradients, they are those of the one mean over
    all of them.

    Args:
        total: (...) sums of this process.
        count: (...) how many values they sum.

    Returns:
        (...): W * total / (count of all processes); 0 where there is nothing to count.
    """
    return world_size() * total / sum_over_processes(count.detach().clone()).clamp(min=1)
