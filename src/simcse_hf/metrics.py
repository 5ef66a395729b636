"""Scores of embeddings against human judgement, and measures of their geometry.

Axes: N pairs, D vector size.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from .similarity import paired_similarities

SIMILARITIES = ("cosine", "euclidean", "manhattan", "dot")
CORRELATIONS = ("pearson", "spearman")
METRIC_NAMES = tuple(f"{similarity}_{correlation}" for similarity in SIMILARITIES for correlation in CORRELATIONS)


def sts_correlations(embeddings1: Tensor, embeddings2: Tensor, scores: np.ndarray) -> dict[str, float]:
    """The eight correlations of the Korean tables and their mean, over all pairs at once.

    Args:
        embeddings1, embeddings2: (N, D), not normalised.
        scores: (N,) human scores, on any scale.

    Returns:
        `{cosine,euclidean,manhattan,dot}_{pearson,spearman}` and `avg`, in [-1, 1], computed in
        float64. NaN where one side is constant (collapsed embeddings).
    """
    scores = np.asarray(scores, dtype=np.float64)
    results = {}
    for name, similarity in paired_similarities(embeddings1, embeddings2).items():
        similarity = similarity.cpu().numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            results[f"{name}_pearson"] = float(stats.pearsonr(similarity, scores).statistic)
            results[f"{name}_spearman"] = float(stats.spearmanr(similarity, scores).statistic)
    results["avg"] = float(np.mean([results[name] for name in METRIC_NAMES]))
    return results


def bootstrap_interval(
    similarity: np.ndarray, scores: np.ndarray, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a Spearman correlation, resampling pairs.

    Args:
        similarity, scores: (N,)
        resamples: Number of resamples.
        level: Coverage, for example 0.95.
        seed: Of the resampling; same seed, same interval.

    Returns:
        (low, high) in [-1, 1].
    """
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, len(scores), size=(resamples, len(scores)))  # (R, N)
    left = stats.rankdata(np.asarray(similarity)[draws], axis=1)
    right = stats.rankdata(np.asarray(scores)[draws], axis=1)
    left -= left.mean(axis=1, keepdims=True)
    right -= right.mean(axis=1, keepdims=True)
    norms = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    with np.errstate(invalid="ignore"):
        correlations = (left * right).sum(axis=1) / norms
    tail = (1 - level) / 2
    low, high = np.nanquantile(correlations, [tail, 1 - tail]) if np.isfinite(correlations).any() else (math.nan,) * 2
    return float(low), float(high)


def alignment(embeddings1: Tensor, embeddings2: Tensor, exponent: float = 2) -> float:
    """Mean squared distance of positive pairs on the unit sphere; smaller is better.

    Wang and Isola, arXiv:2005.10242, section 4.1, as used in SimCSE section 3.

    Args:
        embeddings1, embeddings2: (N, D), row i of both being a positive pair.
    """
    left, right = (torch.nn.functional.normalize(side.double(), dim=-1) for side in (embeddings1, embeddings2))
    return (left - right).norm(dim=-1).pow(exponent).mean().item()


def uniformity(embeddings: Tensor, t: float = 2) -> float:
    """Log of the mean Gaussian potential of all pairs on the unit sphere; smaller is better.

    Wang and Isola, arXiv:2005.10242, section 4.1. 0 means that all vectors coincide.

    Args:
        embeddings: (N, D), N >= 2.
    """
    points = torch.nn.functional.normalize(embeddings.double(), dim=-1)
    count = len(points)
    # Row by row blocks: all pairs at once would take N * N numbers. On the sphere, |a - b|^2 = 2 - 2 a.b.
    total = sum((-t * (2 - 2 * (block @ points.T))).exp().sum() for block in points.split(1024))
    return ((total - count) / (count * (count - 1))).log().item()
