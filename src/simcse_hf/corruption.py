"""How DiffCSE spoils a sentence: our way, and what the published code did.

Axes: B items, V views, N = B*V sentences, R rows of L tokens, T tokens of a sentence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .masking import choose_tokens, mask_tokens
from .packing import unpack_index
from .token_passes import TokenBatch


@dataclass(frozen=True)
class DiffCSESettings:
    """What the authors' code (arXiv:2204.10298) and KoDiffCSE do and ours does not, each on its own.

    Attributes:
        generator_dropout: The generator guesses with dropout.
        predict_everywhere: It guesses every real token anew but the first of a sentence, not only the chosen ones.
        separator_as_mask: Chosen tokens become [SEP], not [MASK].
        always_mask: All chosen tokens do, where else a tenth stays and a tenth becomes another token.
        static_masks: A sentence and view has the same tokens chosen in every step, max(1, floor(n * ratio)) of its n
            tokens that are not special.
        fixed_cls_id: The first token becomes 101 (BERT's [CLS]) or, for RoBERTa, 0, whatever the vocabulary says.
        padding_becomes_zero: Padding becomes token 0.
        count_padding: The loss also counts padding, to the longest sentence of the batch, as never replaced.
        pad_to_max_length: Batches are padded to max_seq_length.
        sum_of_views: The loss is the sum of the mean losses of the views, not their mean.
    """

    generator_dropout: bool = False
    predict_everywhere: bool = False
    separator_as_mask: bool = False
    always_mask: bool = False
    static_masks: bool = False
    fixed_cls_id: bool = False
    padding_becomes_zero: bool = False
    count_padding: bool = False
    pad_to_max_length: bool = False
    sum_of_views: bool = False

    @property
    def needs_padding(self) -> bool:
        """Whether batches must not be packed."""
        return self.count_padding or self.pad_to_max_length


OURS = DiffCSESettings()
LEGACY_DIFFCSE = DiffCSESettings(
    generator_dropout=True,
    predict_everywhere=True,
    fixed_cls_id=True,
    padding_becomes_zero=True,
    count_padding=True,
)
LEGACY_KODIFFCSE = DiffCSESettings(
    generator_dropout=True,
    predict_everywhere=True,
    separator_as_mask=True,
    always_mask=True,
    static_masks=True,
    padding_becomes_zero=True,
    count_padding=True,
    pad_to_max_length=True,
    sum_of_views=True,
)


def mask_for_generator(
    batch: TokenBatch,
    maskable: Tensor,
    sentence_ids: Tensor | None,
    *,
    ratio: float,
    settings: DiffCSESettings,
    mask_token_id: int,
    separator_id: int,
    replacements: Tensor,
) -> tuple[Tensor, Tensor]:
    """What the generator is shown, and what it has to guess.

    Args:
        batch: Of whole sentences.
        maskable: (R, L) bool, the tokens that may be chosen.
        sentence_ids: (B, V), for static masks.
        ratio: Share of them that is chosen.
        settings: See `DiffCSESettings`.
        mask_token_id: Of [MASK].
        separator_id: Of [SEP].
        replacements: (K,) ids to draw from for the tenth that becomes another token.

    Returns:
        The ids with the masks, and bool where to guess, both (R, L).

    Raises:
        ValueError: Static masks of sentences without ids.
    """
    if settings.static_masks:
        if sentence_ids is None:
            raise ValueError("static masks depend on sentence_ids, and this batch has none. Use ViewsCollator.")
        chosen = static_choice(batch, maskable, sentence_ids, ratio)
    else:
        chosen = choose_tokens(~maskable, ratio)
    shares = {"kept": 0.0, "random": 0.0} if settings.always_mask else {}
    mask = separator_id if settings.separator_as_mask else mask_token_id
    masked, _ = mask_tokens(batch.input_ids, chosen, mask_token_id=mask, replacements=replacements, **shares)
    if settings.predict_everywhere:
        chosen = batch.real.flatten().index_fill(0, batch.starts, False).view_as(chosen)
    return masked, chosen


def finish_corruption(guessed: Tensor, batch: TokenBatch, *, settings: DiffCSESettings, model_type: str) -> Tensor:
    """What the discriminator is shown: the guesses (R, L), with what the published code did to them afterwards.

    Args:
        guessed: (R, L) ids.
        batch: The original.
        settings: See `DiffCSESettings`.
        model_type: Of the encoder.
    """
    if settings.fixed_cls_id:
        first = 0 if "roberta" in model_type else 101
        guessed = guessed.flatten().index_fill(0, batch.starts, first).view_as(guessed)
    return torch.where(batch.real, guessed, 0) if settings.padding_becomes_zero else guessed


def static_choice(batch: TokenBatch, maskable: Tensor, sentence_ids: Tensor, ratio: float) -> Tensor:
    """Tokens that depend on the sentence and its view alone, max(1, floor(n * ratio)) of n.

    Args:
        batch: Of N sentences.
        maskable: (R, L) bool, the tokens that may be chosen.
        sentence_ids: (B, V)
        ratio: Share of them.

    Returns:
        (R, L) bool.
    """
    index, real = unpack_index(batch.starts, batch.lengths, batch.input_ids.shape[1])  # (N, L)
    allowed = maskable.flatten()[index] & real.bool()
    views = torch.arange(sentence_ids.shape[1], device=index.device).expand_as(sentence_ids)
    keys = _mixed(_mixed(sentence_ids.flatten()) + views.flatten())  # (N,)
    priority = _mixed(keys.unsqueeze(1) + torch.arange(index.shape[1], device=index.device))  # (N, L)
    priority = torch.where(allowed, priority, torch.iinfo(torch.int64).max)
    rank = priority.argsort(dim=1, stable=True).argsort(dim=1)
    count = (allowed.sum(dim=1, keepdim=True) * ratio).long().clamp(min=1)  # (N, 1)
    chosen = allowed & (rank < count)
    # Behind its end a sentence's index repeats its first token, where nothing may be chosen twice: add, do not write.
    flat = torch.zeros(maskable.numel(), dtype=torch.int64, device=index.device)
    return (flat.index_add_(0, index.flatten(), chosen.flatten().long()) > 0).view_as(maskable)


def _mixed(numbers: Tensor) -> Tensor:
    """int64 to int64 that look random: the finaliser of splitmix64 (Steele et al. 2014), wrapping around."""
    numbers = numbers + _signed(0x9E3779B97F4A7C15)
    numbers = (numbers ^ _shifted(numbers, 30)) * _signed(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ _shifted(numbers, 27)) * _signed(0x94D049BB133111EB)
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Shifted to the right, zeros coming in."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    return number - (1 << 64)
