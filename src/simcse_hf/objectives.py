"""Every objective: a pure function, its equation, and where it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .angle import angle_loss
from .cosent import cosent_loss
from .cosine_regression import cosine_mse_loss
from .distillation import similarity_distillation_loss, vector_distillation_loss
from .false_negatives import false_negative_mask
from .losses import simcse_loss
from .matryoshka import matryoshka_loss
from .replaced_tokens import replaced_token_loss
from .softmax_classification import softmax_classification_loss
from .symmetric import symmetric_loss


@dataclass(frozen=True)
class Objective:
    """One entry of the registry.

    Attributes:
        name: Its key.
        function: Pure, on tensors.
        equation: What it computes, for one batch.
        source: Paper, and where to find it.
        applies_to: What a batch must hold: `views` (anchors, positives, hard negatives), `scored` pairs, `labels` of
            pairs, `vectors` of a student and a teacher, or `tokens`.
    """

    name: str
    function: Callable
    equation: str
    source: str
    applies_to: Literal["views", "scored", "labels", "vectors", "tokens"]


_SENTENCE_BERT = "Reimers & Gurevych 2019, Sentence-BERT, arXiv:1908.10084"

OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective(
            "simcse",
            simcse_loss,
            "mean_i -log( exp(cos(a_i, p_i)/t) / sum_j [exp(cos(a_i, p_j)/t) + sum_k exp(cos(a_i, n_jk)/t)] )",
            "Gao et al. 2021, SimCSE, arXiv:2104.08821",
            "views",
        ),
        Objective(
            "symmetric",
            symmetric_loss,
            "(InfoNCE(anchors -> positives and hard negatives) + InfoNCE(positives -> anchors)) / 2",
            "Radford et al. 2021, CLIP, arXiv:2103.00020",
            "views",
        ),
        Objective(
            "false_negatives",
            false_negative_mask,
            "candidate j is left out for anchor i where cos(a_i, c_j) > cos(a_i, p_i) + margin",
            "Zhang et al. 2025, Qwen3-Embedding, arXiv:2506.05176; Solatorio 2024, GISTEmbed, arXiv:2402.16829",
            "views",
        ),
        Objective(
            "matryoshka",
            matryoshka_loss,
            "sum_m c_m L(z[1..m]) / sum_m c_m",
            "Kusupati et al. 2022, Matryoshka Representation Learning, arXiv:2205.13147",
            "views",
        ),
        Objective("cosine_mse", cosine_mse_loss, "mean_i (cos(u_i, v_i) - y_i)^2", _SENTENCE_BERT, "scored"),
        Objective(
            "cosent",
            cosent_loss,
            "log(1 + sum_{y_i > y_j} exp(scale * (cos(u_j, v_j) - cos(u_i, v_i))))",
            "Su Jianlin 2022, CoSENT, https://kexue.fm/archives/8847",
            "scored",
        ),
        Objective(
            "angle",
            angle_loss,
            "log(1 + sum_{y_i > y_j} exp(scale * (s_j - s_i))), s = |sum Re(z conj w) + sum Im(z conj w)| / (|z| |w|)",
            "Li & Li 2023, AnglE, arXiv:2309.12871",
            "scored",
        ),
        Objective(
            "softmax_classification",
            softmax_classification_loss,
            "mean_i -log softmax(W (u_i, v_i, |u_i - v_i|))[label_i]",
            _SENTENCE_BERT,
            "labels",
        ),
        Objective(
            "similarity_distillation",
            similarity_distillation_loss,
            "mean_i KL( softmax_j(cos_T(x_i, x_j)/t_T) || softmax_j(cos_S(x_i, x_j)/t_S) )",
            "Fang et al. 2021, SEED, arXiv:2101.04731",
            "vectors",
        ),
        Objective(
            "vector_distillation",
            vector_distillation_loss,
            "mean (student - teacher)^2 over sentences and components",
            "Reimers & Gurevych 2020, arXiv:2004.09813",
            "vectors",
        ),
        Objective(
            "replaced_tokens",
            replaced_token_loss,
            "sum_t -log softmax(D(x'', h)_t)[1 if x''_t != x_t else 0]",
            "Chuang et al. 2022, DiffCSE, arXiv:2204.10298; Clark et al. 2020, ELECTRA, arXiv:2003.10555",
            "tokens",
        ),
    )
}

# loss(first (C, D), second (C, D), scores (C,) from 0 to 1, **options) -> scalar
SCORED_LOSSES: dict[str, Callable] = {
    name: objective.function for name, objective in OBJECTIVES.items() if objective.applies_to == "scored"
}
