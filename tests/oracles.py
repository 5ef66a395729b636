"""Slow twins: short enough to be obviously right, in float64 and loops."""

from __future__ import annotations

import math
from collections.abc import Sequence


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    dot = sum(a * b for a, b in zip(left, right, strict=True))
    return dot / math.sqrt(sum(a * a for a in left)) / math.sqrt(sum(b * b for b in right))


def simcse_loss(
    anchors, positives, hard_negatives=None, *, temperature=0.05, hard_negative_weight=0.0, ids=None
) -> float:
    """The paper's sum, one term at a time.

    hard_negatives: for each row a list of its K negatives. ids: for each row the identities of
    anchor, positive and negatives; equal sentences are left out of the denominator.
    """
    terms = []
    for i, anchor in enumerate(anchors):
        own = math.exp(cosine(anchor, positives[i]) / temperature)
        denominator = own
        for j in range(len(anchors)):
            if j != i and not (ids and (ids[j][1] in ids[i][:2] or ids[j][0] == ids[i][0])):
                denominator += math.exp(cosine(anchor, positives[j]) / temperature)
            for k, negative in enumerate(hard_negatives[j] if hard_negatives is not None else []):
                if not (ids and ids[j][2 + k] in ids[i][:2]):
                    weight = hard_negative_weight if j == i else 0.0
                    denominator += math.exp(cosine(anchor, negative) / temperature + weight)
        terms.append(-math.log(own / denominator))
    return sum(terms) / len(terms)


def ranks(values: Sequence[float]) -> list[float]:
    """Average ranks, ties shared."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values
    ]


def pearson(left: Sequence[float], right: Sequence[float]) -> float:
    mean_left, mean_right = sum(left) / len(left), sum(right) / len(right)
    covariance = sum((a - mean_left) * (b - mean_right) for a, b in zip(left, right, strict=True))
    spread = sum((a - mean_left) ** 2 for a in left) * sum((b - mean_right) ** 2 for b in right)
    return covariance / math.sqrt(spread)


def sts_correlations(embeddings1, embeddings2, scores) -> dict[str, float]:
    similarities = {
        "cosine": [cosine(u, v) for u, v in zip(embeddings1, embeddings2, strict=True)],
        "euclidean": [-math.dist(u, v) for u, v in zip(embeddings1, embeddings2, strict=True)],
        "manhattan": [
            -sum(abs(a - b) for a, b in zip(u, v, strict=True)) for u, v in zip(embeddings1, embeddings2, strict=True)
        ],
        "dot": [sum(a * b for a, b in zip(u, v, strict=True)) for u, v in zip(embeddings1, embeddings2, strict=True)],
    }
    results = {}
    for name, values in similarities.items():
        results[f"{name}_pearson"] = pearson(values, scores)
        results[f"{name}_spearman"] = pearson(ranks(values), ranks(scores))
    return results | {"avg": sum(results.values()) / 8}
