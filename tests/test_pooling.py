"""Poolers: expected values can be read from the test."""

from __future__ import annotations

import pytest
import torch
from conftest import POOLERS

from simcse_hf.pooling import max_pool, mean_pool, pool


def layers(count: int = 4, sentences: int = 2, tokens: int = 5, size: int = 3) -> list[torch.Tensor]:
    """Layer k's token t has the value 100 k + t in every component."""
    positions = torch.arange(tokens, dtype=torch.float32)
    return [(100.0 * k + positions).expand(sentences, tokens).unsqueeze(-1).repeat(1, 1, size) for k in range(count)]


MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])  # mean positions 2 and 1


@pytest.mark.parametrize(
    ("pooler_type", "expected"),
    [
        ("cls", [300.0, 300.0]),
        ("cls_before_pooler", [300.0, 300.0]),
        ("avg", [302.0, 301.0]),
        ("avg_top2", [252.0, 251.0]),  # layers 2 and 3
        ("avg_first_last", [202.0, 201.0]),  # layers 1 and 3
        ("max", [304.0, 302.0]),
    ],
)
def test_each_pooler_takes_what_it_says(pooler_type: str, expected: list[float]) -> None:
    vectors = pool(pooler_type, layers(), MASK)
    assert vectors.shape == (2, 3)
    assert vectors[:, 0].tolist() == expected


def test_the_first_layer_of_avg_first_last_can_be_the_embedding_layer() -> None:
    assert pool("avg_first_last", layers(), MASK, first_hidden_state=0)[:, 0].tolist() == [152.0, 151.0]


@pytest.mark.parametrize("pooler_type", POOLERS)
def test_whatever_stands_in_the_padding_is_ignored_and_nothing_is_written(pooler_type: str) -> None:
    clean = layers()
    noisy = [layer.masked_fill(MASK.unsqueeze(-1) == 0, 1e4) for layer in clean]
    assert not torch.equal(noisy[-1], clean[-1]), "no padding in the fixture"
    before = [layer.clone() for layer in noisy]
    torch.testing.assert_close(pool(pooler_type, noisy, MASK), pool(pooler_type, clean, MASK))
    assert all(torch.equal(layer, copy) for layer, copy in zip(noisy, before, strict=True))


def test_max_of_negative_values_is_not_zero() -> None:
    assert max_pool(torch.full((1, 3, 2), -5.0), torch.tensor([[1, 1, 0]])).tolist() == [[-5.0, -5.0]]


def test_mean_keeps_half_precision_and_gradients() -> None:
    hidden = torch.randn(2, 5, 3, dtype=torch.bfloat16, requires_grad=True)
    pooled = mean_pool(hidden, MASK)
    pooled.sum().backward()
    assert pooled.dtype == torch.bfloat16
    assert hidden.grad[1, 3:].abs().sum() == 0 < hidden.grad[1, :3].abs().sum()


def test_an_unknown_pooler_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown pooler_type 'mean'"):
        pool("mean", layers(), MASK)
