"""Masked language modelling: which tokens are chosen, and what stands in their place."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from simcse_hf.masking import IGNORED, choose_tokens, mask_tokens

TOKENS = 20_000


def within(count: int, trials: int, share: float) -> bool:
    """Whether a binomial count lies within five standard deviations of what is expected."""
    return abs(count - trials * share) <= 5 * math.sqrt(trials * share * (1 - share))


@given(rate=st.floats(0.02, 0.9), seed=st.integers(0, 2**31))
def test_tokens_are_chosen_at_the_rate_and_never_special_ones(rate, seed):
    torch.manual_seed(seed)
    is_special = torch.arange(TOKENS) % 10 == 0
    chosen = choose_tokens(is_special, rate)
    assert not chosen[is_special].any()
    assert within(int(chosen.sum()), int((~is_special).sum()), rate)


@given(words=st.lists(st.integers(1, 6), min_size=1, max_size=50), rate=st.floats(0.1, 0.9), seed=st.integers(0, 2**31))
def test_whole_words_are_chosen_together(words, rate, seed):
    """Sentences of one word each, [CLS] before and [SEP] after: neighbours must not decide together."""
    torch.manual_seed(seed)
    is_special, starts_word, word_of = [], [], []
    for word, length in enumerate(words):
        is_special += [True, *[False] * length, True]
        # The first piece of a word that a sentence begins with need not be marked.
        starts_word += [False] * (length + 2)
        word_of += [-1, *[word] * length, -1]
    is_special, word_of = torch.tensor(is_special), torch.tensor(word_of)
    chosen = choose_tokens(is_special, rate, torch.tensor(starts_word))
    for word in range(len(words)):
        assert chosen[word_of == word].unique().numel() == 1
    assert not chosen[is_special].any()


def test_words_of_one_sentence_are_chosen_independently_and_at_the_rate():
    torch.manual_seed(0)
    starts_word = torch.arange(2 * TOKENS) % 2 == 0  # words of two pieces
    chosen = choose_tokens(torch.zeros(2 * TOKENS, dtype=torch.bool), 0.3, starts_word)
    assert torch.equal(chosen[::2], chosen[1::2])
    assert within(int(chosen[::2].sum()), TOKENS, 0.3)
    both = chosen[::2][:-1] & chosen[::2][1:]
    assert within(int(both.sum()), TOKENS - 1, 0.09)


def test_shapes_are_kept():
    is_special = torch.zeros(3, 4, 5, dtype=torch.bool)
    chosen = choose_tokens(is_special, 1.0, is_special)
    assert chosen.shape == (3, 4, 5) and chosen.all()
    assert not choose_tokens(is_special, 0.0).any()


def test_eight_of_ten_chosen_tokens_become_masks_one_another_token_one_stays():
    torch.manual_seed(0)
    input_ids = torch.full((10, TOKENS // 10), 7)
    chosen = torch.arange(TOKENS).view(10, -1) % 2 == 0
    masked, labels = mask_tokens(input_ids, chosen, mask_token_id=1, replacements=torch.tensor([8, 9]))
    assert torch.equal(masked[~chosen], input_ids[~chosen])
    assert torch.equal(labels, torch.where(chosen, 7, IGNORED))
    assert set(masked[chosen].tolist()) == {1, 7, 8, 9}
    for token, share in ((1, 0.8), (7, 0.1), (8, 0.05), (9, 0.05)):
        assert within(int((masked[chosen] == token).sum()), TOKENS // 2, share), token
    assert (input_ids == 7).all(), "the ids given are not changed"


@given(kept=st.floats(0, 0.5), random=st.floats(0, 0.5), seed=st.integers(0, 2**31))
def test_shares_are_those_asked_for(kept, random, seed):
    torch.manual_seed(seed)
    input_ids = torch.full((TOKENS,), 7)
    chosen = torch.ones(TOKENS, dtype=torch.bool)
    masked, _ = mask_tokens(
        input_ids, chosen, mask_token_id=1, replacements=torch.tensor([8]), kept=kept, random=random
    )
    for token, share in ((7, kept), (8, random), (1, 1 - kept - random)):
        assert within(int((masked == token).sum()), TOKENS, share), token
