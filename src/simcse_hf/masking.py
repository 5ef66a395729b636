"""Which tokens a masked language model has to guess, and what stands in their place.

Axes: any shape (...); packed rows or padded sentences alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100  # label of a token that is not to be guessed


def choose_tokens(is_special: Tensor, rate: float, starts_word: Tensor | None = None) -> Tensor:
    """Tokens to guess: each with the same probability, alone or together with the rest of its word.

    Whole-word masking (Devlin et al., BERT's release of May 2019) decides once for each word. Either way a share
    `rate` of the tokens is expected.

    Args:
        is_special: (...) bool, tokens that are never chosen: [CLS], [SEP], padding.
        rate: Probability.
        starts_word: (...) bool, whether a token begins a word; a special token always ends the word before it. None
            decides for each token.

    Returns:
        (...) bool.
    """
    flat_special = is_special.flatten()
    draws = torch.rand(flat_special.shape, device=is_special.device)
    if starts_word is not None:
        word = (starts_word.flatten() | flat_special).cumsum(0) - 1  # -1 where no word has begun yet
        draws = draws[word]
    return ((draws < rate) & ~flat_special).view(is_special.shape)


def mask_tokens(
    input_ids: Tensor,
    chosen: Tensor,
    *,
    mask_token_id: int,
    replacements: Tensor,
    kept: float = 0.1,
    random: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Put [MASK] in the place of most of the chosen tokens (Devlin et al. 2019, arXiv:1810.04805, section 3.1).

    Args:
        input_ids: (...) int64.
        chosen: (...) bool.
        mask_token_id: Of the tokenizer.
        replacements: (K,) ids to draw from for the share `random`.
        kept: Share of the chosen tokens that stays as it is.
        random: Share that becomes another token.

    Returns:
        The ids with the masks, and the labels: the original id where it is to be guessed, `IGNORED` elsewhere.
    """
    draws = torch.rand(input_ids.shape, device=input_ids.device)
    others = replacements[torch.randint(len(replacements), input_ids.shape, device=input_ids.device)]
    masked = torch.where(chosen & (draws >= kept + random), mask_token_id, input_ids)
    masked = torch.where(chosen & (draws < random), others, masked)
    return masked, torch.where(chosen, input_ids, IGNORED)
