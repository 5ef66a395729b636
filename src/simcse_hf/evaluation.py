"""One STS protocol for every model: encode the whole set once, correlate once, say on what."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from .corpora import ScoredPairs
from .metrics import alignment, bootstrap_interval, sts_correlations, uniformity
from .similarity import paired_similarities

# SimCSE (section 3) calls an STS-B pair positive when its score is above 4 of 5.
_POSITIVE_SHARE_OF_SCALE = 0.8


@dataclass(frozen=True, kw_only=True)
class STSResult:
    """A score with the protocol that produced it.

    Attributes:
        task: For example `korsts-test`.
        metrics: The eight correlations and `avg`, in [-1, 1].
        interval: 95 % bootstrap interval of `cosine_spearman`, resampling pairs.
        alignment: Over pairs scored above 80 % of the scale; NaN without any.
        uniformity: Over the distinct sentences of the set.
        num_pairs: Rows scored; another count is another benchmark.
        sources: Path or Hub id, sha256 and rows of the data.
        encoder: What `SentenceEncoder.describe` says.
        text_mode: `nfc`, or a legacy mode.
        seconds: Encoding time.
    """

    task: str
    metrics: dict[str, float]
    interval: tuple[float, float]
    alignment: float
    uniformity: float
    num_pairs: int
    sources: list[dict]
    text_mode: str = "nfc"
    encoder: dict = field(default_factory=dict)
    seconds: float = 0.0

    def as_dict(self) -> dict:
        """JSON-ready."""
        return asdict(self)


def geometry(
    embeddings1: torch.Tensor, embeddings2: torch.Tensor, scores: Sequence[float], scale: tuple[float, float]
) -> dict[str, float]:
    """`alignment` and `uniformity` of (N, D) embeddings, as `STSResult` defines them."""
    threshold = scale[0] + _POSITIVE_SHARE_OF_SCALE * (scale[1] - scale[0])
    positive = torch.from_numpy(np.asarray(scores, dtype=np.float64) > threshold)
    distinct = torch.unique(torch.cat([embeddings1, embeddings2]), dim=0)
    return {
        "alignment": alignment(embeddings1[positive], embeddings2[positive]) if positive.any() else float("nan"),
        "uniformity": uniformity(distinct) if len(distinct) > 1 else 0.0,
    }


def evaluate_sts(
    encode: Callable[[list[str]], np.ndarray],
    pairs: ScoredPairs,
    *,
    encoder: dict | None = None,
    text_mode: str = "nfc",
) -> STSResult:
    """Score any function from sentences to vectors.

    Args:
        encode: Takes S sentences, returns (S, D).
        pairs: The set; all its rows are scored.
        encoder: Stored with the result.
        text_mode: Stored with the result.
    """
    start = time.perf_counter()
    vectors = torch.from_numpy(np.asarray(encode([*pairs.sentences1, *pairs.sentences2]), dtype=np.float32))
    seconds = time.perf_counter() - start
    left, right = vectors[: len(pairs)], vectors[len(pairs) :]
    scores = np.asarray(pairs.scores, dtype=np.float64)
    cosine = paired_similarities(left, right)["cosine"].numpy()
    return STSResult(
        task=pairs.name,
        metrics=sts_correlations(left, right, scores),
        interval=bootstrap_interval(cosine, scores),
        **geometry(left, right, scores, pairs.scale),
        num_pairs=len(pairs),
        sources=pairs.sources,
        text_mode=text_mode,
        encoder=encoder or {},
        seconds=round(seconds, 3),
    )
