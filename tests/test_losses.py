"""The contrastive loss: golden values, closed forms, and a slow float64 twin."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse_hf.losses import contrastive_logits, duplicate_mask, simcse_loss

# Published golden case: two items, three views.
ANCHORS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
POSITIVES = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.8, 0.2]])
NEGATIVES = torch.tensor([[[0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]])


def loss(anchors, positives, negatives=None, **options) -> torch.Tensor:
    return simcse_loss(contrastive_logits(anchors, positives, negatives, **options))


@pytest.mark.parametrize(
    ("negatives", "options", "expected"),
    [
        (None, {"temperature": 1.0}, 0.333939),
        (NEGATIVES, {"temperature": 1.0}, 1.025748),
        (NEGATIVES, {"temperature": 1.0, "hard_negative_weight": 1.0}, 1.233370),
        (NEGATIVES, {"temperature": 0.05}, 0.895914),
    ],
)
def test_the_four_golden_losses(negatives, options: dict, expected: float) -> None:
    assert loss(ANCHORS, POSITIVES, negatives, **options).item() == pytest.approx(expected, abs=5e-7)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 7), st.integers(0, 3), st.floats(0.02, 2.0), st.floats(-2.0, 2.0), st.integers(0, 10**6))
def test_the_loss_is_the_papers_sum(rows: int, negatives: int, temperature: float, weight: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    views = torch.randn(rows, 2 + negatives, 6, generator=generator, dtype=torch.float64)
    # Few identities, so that every kind of duplicate occurs.
    ids = torch.randint(0, 2 * rows, (rows, 2 + negatives), generator=generator)
    hard = views[:, 2:] if negatives else None
    fast = simcse_loss(
        contrastive_logits(
            views[:, 0],
            views[:, 1],
            hard,
            temperature=temperature,
            hard_negative_weight=weight,
            masked=duplicate_mask(ids[:, 0], ids[:, 1:]),
        )
    )
    slow = oracles.simcse_loss(
        views[:, 0].tolist(),
        views[:, 1].tolist(),
        hard.tolist() if negatives else None,
        temperature=temperature,
        hard_negative_weight=weight,
        ids=ids.tolist(),
    )
    assert fast.dtype == torch.float64
    assert fast.item() == pytest.approx(slow, rel=1e-9, abs=1e-12)


def test_equal_sentences_everywhere_give_the_log_of_the_candidate_count() -> None:
    same = torch.ones(6, 8)
    torch.testing.assert_close(loss(same, same), torch.tensor(6.0).log())
    torch.testing.assert_close(loss(same, same, same.unsqueeze(1).repeat(1, 2, 1)), torch.tensor(18.0).log())


def test_scaling_an_embedding_changes_nothing() -> None:
    anchors, positives = torch.randn(5, 4), torch.randn(5, 4)
    torch.testing.assert_close(loss(anchors * 7, positives * 0.3), loss(anchors, positives))


def test_the_weight_reaches_only_a_rows_own_negatives() -> None:
    anchors, positives, negatives = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 2, 4)
    plain = contrastive_logits(anchors, positives, negatives)
    weighted = contrastive_logits(anchors, positives, negatives, hard_negative_weight=1.5)
    expected = torch.zeros(3, 9)
    expected[range(3), [3, 4, 5]] = expected[range(3), [6, 7, 8]] = 1.5
    torch.testing.assert_close(weighted - plain, expected, atol=1e-5, rtol=0)


def test_rows_of_the_second_process_find_their_positives() -> None:
    anchors, positives, negatives = torch.randn(6, 4), torch.randn(6, 4), torch.randn(6, 1, 4)
    ids = torch.tensor([[0, 1, 2], [0, 3, 4], [5, 6, 1], [7, 8, 9], [10, 6, 11], [12, 13, 0]])
    whole = contrastive_logits(
        anchors, positives, negatives, hard_negative_weight=0.5, masked=duplicate_mask(ids[:, 0], ids[:, 1:])
    )
    second = contrastive_logits(
        anchors[3:],
        positives,
        negatives,
        hard_negative_weight=0.5,
        first_positive=3,
        masked=duplicate_mask(ids[3:, 0], ids[:, 1:], all_anchor_ids=ids[:, 0], first_positive=3),
    )
    assert whole.isinf().any(), "nothing is masked: the test would be vacuous"
    torch.testing.assert_close(second, whole[3:])
    halves = (simcse_loss(whole[:3]) + simcse_loss(second, first_positive=3)) / 2
    torch.testing.assert_close(halves, simcse_loss(whole))


def test_duplicates_are_masked_and_only_they() -> None:
    #            anchor, positive, negative
    ids = torch.tensor([[1, 2, 3], [4, 2, 1], [1, 5, 6], [7, 8, 2]])
    masked = duplicate_mask(ids[:, 0], ids[:, 1:])
    expected = torch.zeros(4, 8, dtype=torch.bool)
    expected[0, [1, 2]] = True  # row 1 has the same positive, row 2 the same anchor
    expected[0, [5, 7]] = True  # row 1's negative is our anchor, row 3's is our positive
    expected[1, [0, 7]] = True
    expected[2, [0, 5]] = True
    torch.testing.assert_close(masked, expected)


def test_a_masked_candidate_gets_no_gradient_and_the_own_positive_always_does() -> None:
    positives = torch.randn(3, 4, requires_grad=True)
    ids = torch.tensor([[0, 9], [1, 9], [2, 3]])
    masked = duplicate_mask(ids[:, 0], ids[:, 1:])
    simcse_loss(contrastive_logits(torch.randn(3, 4), positives, masked=masked)[:1]).backward()
    assert positives.grad[1].abs().sum() == 0
    assert positives.grad[0].abs().sum() > 0 < positives.grad[2].abs().sum()


def test_unsupervised_views_of_equal_sentences_do_not_repel() -> None:
    ids = torch.tensor([[4, 4], [5, 5], [4, 4]])
    assert duplicate_mask(ids[:, 0], ids[:, 1:]).tolist() == [
        [False, False, True],
        [False, False, False],
        [True, False, False],
    ]


def test_half_precision_embeddings_are_compared_in_float32() -> None:
    anchors, positives = torch.randn(8, 64).bfloat16(), torch.randn(8, 64).bfloat16()
    exact = loss(anchors.double(), positives.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(anchors, positives)
    assert value.dtype == torch.float32
    assert math.isclose(value.item(), exact.item(), rel_tol=1e-5)
