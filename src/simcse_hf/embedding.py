"""From tokens to sentence vectors, packed or padded.

Axes: B items, V views, N sentences, R rows of L tokens, T tokens of a sentence, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from .attention import attention_layout, packs
from .backbones import first_position
from .configuration_simcse import SimCSEConfig
from .cpu_kernels import cpu_kernels
from .packing import RowLayout, unpack_index
from .passes import in_passes, length_buckets, row_layout, row_passes, rows_per_pass
from .pooling import pool


class EmbedsSentences:
    """What a model with a backbone and perhaps a head can do with sentences.

    Attributes:
        backbone: The encoder.
        head: Over the pooled vector, or None.
        gradient_cache_tokens: In training, keep the activations of about so many tokens only, and compute them
            twice (see `passes.in_passes`). None: keep all.
        compiled: Whether `compile_encoder` was called.
    """

    config: SimCSEConfig
    backbone: PreTrainedModel
    head: nn.Module | None
    gradient_cache_tokens: int | None = None
    compiled: bool = False

    def embed_batch(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        sentence_starts: Tensor | None = None,
        sentence_lengths: Tensor | None = None,
        sentence_ids: Tensor | None = None,
        **padded_inputs: Tensor,
    ) -> Tensor:
        """(B, V, D) of a batch of `ViewsCollator`, packed or padded; `sentence_ids` does not matter.

        Raises:
            ValueError: `input_ids` of a shape that is neither.
        """
        if sentence_starts is not None:
            return self.embed_rows(input_ids, position_ids, sentence_starts, sentence_lengths)
        if input_ids.dim() != 3:
            raise ValueError(
                f"input_ids has the shape {tuple(input_ids.shape)}; SimCSEModel takes sentences (N, T), views (B, V, T) "
                "or packed rows (R, L) with sentence_starts."
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        return self.embed_views(input_ids, attention_mask, **padded_inputs)

    def embed(self, input_ids: Tensor, attention_mask: Tensor, **backbone_inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Sentence vectors (N, D) and token vectors (N, T, D) of `input_ids` (N, T).

        The head acts as the config says: in training mode wherever there is one, in evaluation
        mode only where it belongs to the shipped vector.
        """
        layers = self._encode(input_ids=input_ids, attention_mask=attention_mask, **backbone_inputs)
        return self._project(self._pool(layers, attention_mask)), layers[-1]

    def embed_rows(
        self, input_ids: Tensor, position_ids: Tensor, sentence_starts: Tensor, sentence_lengths: Tensor
    ) -> Tensor:
        """Vectors of the sentences in packed rows, equal to what `embed` gives for them padded.

        Args:
            input_ids: (R, L)
            position_ids: (R, L), starting at 0 in each sentence.
            sentence_starts: (...) positions in the flattened rows, in the order and shape wanted.
            sentence_lengths: (...)

        Returns:
            (..., D)

        Raises:
            ValueError: The encoder does not pack; its sentences would see each other.
        """
        if not packs(self.backbone.config):
            raise ValueError(
                f"a '{self.backbone.config.model_type}' encoder with {self.backbone.config._attn_implementation} attention does "
                "not take packed rows. Pad the batch: ViewsCollator with layout None."
            )
        rows = {"position_ids": position_ids}
        per_pass = rows_per_pass(input_ids, self.gradient_cache_tokens if self.caches_gradients else None)
        if self.caches_gradients or per_pass >= len(input_ids):
            rows["input_ids"] = input_ids
        else:
            # One lookup for all passes: its gradient is as large as the whole table, however small the pass.
            rows["inputs_embeds"] = self.backbone.get_input_embeddings()(input_ids)
        order = sentence_starts.flatten().argsort()  # (N,)
        starts, lengths = sentence_starts.flatten()[order], sentence_lengths.flatten()[order]
        passes = row_passes(rows, starts, lengths, per_pass)
        vectors = in_passes(self._embed_row_pass, passes, cache_gradients=self.caches_gradients)
        return self._project(vectors[order.argsort()]).unflatten(0, sentence_starts.shape)

    def _embed_row_pass(self, rows: dict[str, Tensor], starts: Tensor, lengths: Tensor) -> Tensor:
        """(N, D) of the sentences in ascending order of their starts."""
        layers = encode_rows(
            self.backbone,
            rows,
            starts,
            lengths,
            compiled=self.compiled,
            output_hidden_states=self.config.needs_all_hidden_states,
        )
        index, mask = unpack_index(starts, lengths, int(lengths.max()))  # (N, T)
        layers = tuple(layer.index_select(0, index.flatten()).unflatten(0, index.shape) for layer in layers)
        return self._pool(layers, mask)

    def embed_views(self, input_ids: Tensor, attention_mask: Tensor, **backbone_inputs: Tensor) -> Tensor:
        """(B, V, T) -> (B, V, D) for encoders that cannot pack, computing little of the padding.

        One flat pass pads every sentence to the longest of the batch. Here sentences are sorted by length and cut
        into passes, each padded to its own longest; vectors and gradients are the same. Padding is on the right, as
        `ViewsCollator` puts it.
        """
        batch, views, length = input_ids.shape
        flat = {"input_ids": input_ids, "attention_mask": attention_mask, **backbone_inputs}
        flat = {name: tensor.reshape(batch * views, length) for name, tensor in flat.items()}
        order, sizes, longest_of = length_buckets(
            flat["attention_mask"].sum(dim=1), length, self.gradient_cache_tokens if self.caches_gradients else None
        )
        passes = [
            ({name: tensor[chosen, :longest] for name, tensor in flat.items()},)
            for chosen, longest in zip(order.split(sizes), longest_of, strict=True)
        ]
        vectors = in_passes(self._embed_padded_pass, passes, cache_gradients=self.caches_gradients)
        return self._project(vectors[order.argsort()]).unflatten(0, (batch, views))  # (B, V, D)

    def _embed_padded_pass(self, inputs: dict[str, Tensor]) -> Tensor:
        return self._pool(self._encode(**inputs), inputs["attention_mask"])

    def _encode(self, **backbone_inputs) -> tuple[Tensor, ...]:
        """The layers that the pooler reads, the last of them last."""
        with cpu_kernels(self.device, enabled=not self.compiled):
            output = self.backbone(output_hidden_states=self.config.needs_all_hidden_states, **backbone_inputs)
        return _layers(output)

    def _pool(self, layers: tuple[Tensor, ...], mask: Tensor) -> Tensor:
        """From layers, each (N, T, D), and the mask (N, T) to (N, D)."""
        return pool(self.config.pooler_type, layers, mask, first_hidden_state=self.config.first_hidden_state)

    def _project(self, vectors: Tensor) -> Tensor:
        """(N, D) of a whole batch through the head where it acts; a head may look at all of them together."""
        if self.head is not None and (self.training or self.config.head_at_inference):
            return self.head(vectors)
        return vectors

    @property
    def caches_gradients(self) -> bool:
        """Whether passes keep no activations now."""
        return self.gradient_cache_tokens is not None and self.training and torch.is_grad_enabled()

    def row_layout(self, device: torch.device | None = None) -> RowLayout | None:
        """How to pack batches for this model on a device; None where its encoder cannot pack, and they are padded."""
        return row_layout(device or self.device, compiled=self.compiled) if packs(self.backbone.config) else None

    def compile_encoder(self, **options) -> None:
        """Compile the encoder with `torch.compile`; batches for it have few shapes.

        Args:
            options: Of `torch.compile`.
        """
        self.backbone.compile(**options)
        self.compiled = True


def encode_rows(
    backbone: PreTrainedModel,
    rows: dict[str, Tensor],
    starts: Tensor,
    lengths: Tensor,
    *,
    compiled: bool = False,
    output_hidden_states: bool = False,
) -> tuple[Tensor, ...]:
    """Token vectors of packed rows, one pass through the encoder.

    Args:
        backbone: One that packs.
        rows: `position_ids` (R, L), starting at 0 in each sentence, and `input_ids` (R, L) or `inputs_embeds` (R, L, D).
        starts: (N,) positions of the sentences in the flattened rows, ascending.
        lengths: (N,) their tokens.
        compiled: Whether the backbone is compiled.
        output_hidden_states: Of all layers.

    Returns:
        The last layer, or all with the last of them last, each (P, D): P = R*L, or less on a CPU, which does not
        compute what lies behind the last sentence.
    """
    device = starts.device
    if device.type == "cpu" and not compiled:
        end = int(starts[-1] + lengths[-1])
        rows = {name: tensor.flatten(0, 1)[:end].unsqueeze(0) for name, tensor in rows.items()}
    position_ids = rows["position_ids"]
    autocast = torch.is_autocast_enabled(device.type)
    layout = attention_layout(
        backbone,
        position_ids,
        starts,
        lengths,
        dtype=torch.get_autocast_dtype(device.type) if autocast else backbone.dtype,
        compiled=compiled,
    )
    inputs = {**rows, "position_ids": position_ids + first_position(backbone.config), **layout}
    with cpu_kernels(device, enabled=not compiled):
        output = backbone(output_hidden_states=output_hidden_states, **inputs)
    return tuple(layer.flatten(0, 1) for layer in _layers(output))


def _layers(output: ModelOutput) -> tuple[Tensor, ...]:
    # With a final norm the last of the hidden states is not the last that the model shows.
    return (*(output.hidden_states or ())[:-1], output.last_hidden_state)
