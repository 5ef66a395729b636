"""The STS correlations as an `evaluate.Metric`, defined here and so needing no download."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np
import torch

from .metrics import sts_correlations

_DESCRIPTION = (
    "Pearson and Spearman correlation of cosine, negative Euclidean, negative Manhattan and dot-product similarity with "
    "human scores, each over the whole set at once, and their mean."
)


class STSCorrelations(evaluate.Metric):
    """Corpus-level STS correlations of sentence embeddings.

    `compute(embeddings1, embeddings2, references)` takes two (N, D) arrays and (N,) scores and
    returns the dictionary of `metrics.sts_correlations`.
    """

    def __init__(self, **kwargs):
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        vector = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_DESCRIPTION,
            features=datasets.Features(
                {"embeddings1": vector, "embeddings2": vector, "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, embeddings1, embeddings2, references) -> dict[str, float]:
        return sts_correlations(
            torch.from_numpy(np.asarray(embeddings1)), torch.from_numpy(np.asarray(embeddings2)), np.asarray(references)
        )
