"""STS metrics: golden values, a slow float64 twin, and properties."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse_hf.metrics import METRIC_NAMES, alignment, bootstrap_interval, sts_correlations, uniformity
from simcse_hf.sts_metric import STSCorrelations

GOLDEN = {
    "cosine_pearson": -0.668685,
    "cosine_spearman": -0.428571,
    "euclidean_pearson": -0.342895,
    "euclidean_spearman": -0.428571,
    "manhattan_pearson": -0.482978,
    "manhattan_spearman": -0.428571,
    "dot_pearson": -0.830762,
    "dot_spearman": -0.885714,
    "avg": -0.562094,
}
SCORES = np.array([0, 1.2, 2.5, 3, 4.4, 5])


def golden_embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    state = np.random.RandomState(0)
    left, right = (state.randn(6, 4).astype(np.float32) for _ in range(2))
    return torch.from_numpy(left), torch.from_numpy(right)


@pytest.mark.parametrize("scale", [1, 1 / 5, 100])
def test_the_golden_metrics_on_any_scale_of_scores(scale: float) -> None:
    assert sts_correlations(*golden_embeddings(), SCORES * scale) == pytest.approx(GOLDEN, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 12), st.integers(2, 6), st.integers(0, 10**6))
def test_the_metrics_are_what_a_loop_computes(pairs: int, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(pairs, size, generator=generator, dtype=torch.float64)
    # Repeated integer scores and a repeated pair: ties on both sides.
    right = torch.randn(pairs, size, generator=generator, dtype=torch.float64)
    left[1], right[1] = left[0], right[0]
    scores = torch.randint(0, 4, (pairs,), generator=generator).double()
    scores[0], scores[1] = 0, 3
    slow = oracles.sts_correlations(left.tolist(), right.tolist(), scores.tolist())
    assert sts_correlations(left, right, scores.numpy()) == pytest.approx(slow, abs=1e-6)


def test_the_order_of_the_pairs_does_not_matter_and_avg_is_the_mean_of_eight() -> None:
    left, right = golden_embeddings()
    order = [3, 1, 5, 0, 4, 2]
    shuffled = sts_correlations(left[order], right[order], SCORES[order])
    assert shuffled == pytest.approx(GOLDEN, abs=1e-6)
    assert shuffled["avg"] == pytest.approx(sum(shuffled[name] for name in METRIC_NAMES) / 8)


def test_the_whole_set_is_not_the_mean_of_its_batches() -> None:
    """KoSimCSE's tables average per-batch correlations; ours must not."""
    generator = torch.Generator().manual_seed(3)
    left, right = (torch.randn(40, 8, generator=generator) for _ in range(2))
    scores = np.arange(40) % 6
    batches = [sts_correlations(left[i : i + 10], right[i : i + 10], scores[i : i + 10]) for i in range(0, 40, 10)]
    whole = sts_correlations(left, right, scores)["cosine_spearman"]
    assert abs(whole - np.mean([batch["cosine_spearman"] for batch in batches])) > 0.01


def test_the_evaluate_metric_says_the_same_offline() -> None:
    left, right = golden_embeddings()
    result = STSCorrelations().compute(embeddings1=left.numpy(), embeddings2=right.numpy(), references=SCORES)
    assert result == pytest.approx(GOLDEN, abs=1e-6)


def test_collapsed_embeddings_score_nan_and_not_a_number_that_looks_good() -> None:
    scores = sts_correlations(torch.ones(4, 3), torch.ones(4, 3), np.array([0, 1, 2, 3]))
    assert math.isnan(scores["cosine_spearman"])


def test_the_interval_covers_the_estimate_is_seeded_and_narrows_with_more_pairs() -> None:
    generator = np.random.default_rng(0)
    widths = []
    for pairs in (100, 1600):
        scores = generator.normal(size=pairs)
        similarity = scores + generator.normal(size=pairs)
        low, high = bootstrap_interval(similarity, scores)
        estimate = oracles.pearson(oracles.ranks(similarity.tolist()), oracles.ranks(scores.tolist()))
        assert low < estimate < high
        assert bootstrap_interval(similarity, scores) == (low, high)
        assert bootstrap_interval(similarity, scores, seed=1) != (low, high)
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.35)  # 1 / sqrt(n)


def test_the_interval_on_ties_equals_a_loop() -> None:
    scores, similarity = np.array([0, 0, 1, 2, 2, 3.0]), np.array([0.1, 0.1, 0.0, 0.5, 0.4, 0.9])
    draws = np.random.default_rng(0).integers(0, 6, size=(200, 6))
    slow = [
        oracles.pearson(oracles.ranks(similarity[d]), oracles.ranks(scores[d]))
        for d in draws
        if len({*scores[d]}) > 1 < len({*similarity[d]})
    ]
    low, high = bootstrap_interval(similarity, scores, resamples=200, seed=0)
    assert len(slow) > 190
    assert (low, high) == pytest.approx(np.quantile(slow, [0.025, 0.975]))


def test_alignment_and_uniformity_of_points_whose_distances_are_known() -> None:
    axes = torch.eye(3)
    assert alignment(axes, 2 * axes) == pytest.approx(0)  # scale does not count
    assert alignment(axes, axes.roll(1, 0)) == pytest.approx(2)  # squared distance of orthogonal unit vectors
    assert uniformity(axes) == pytest.approx(-4)  # log exp(-2 * 2)
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0)


def test_uniformity_in_blocks_is_the_mean_over_all_pairs():
    points = torch.nn.functional.normalize(torch.randn(1500, 8).double(), dim=-1)
    slow = torch.pdist(points).pow(2).mul(-2).exp().mean().log().item()
    assert uniformity(points * 3) == pytest.approx(slow, abs=1e-9)
