"""A teacher's vectors as a further objective.    Axes: B items, V views, C items of all processes, D and E vector sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from .auxiliary import Auxiliary
from .distillation import similarity_distillation_loss, vector_distillation_loss
from .distributed import gather_values, gather_with_gradient
from .embedding import EmbedsSentences
from .running_means import RunningMeans
from .similarity import at_least_float32, cosine_matrix


class Distillation(Auxiliary):
    """Learn from vectors that a larger model gave the same sentences.

    `similarities`: how the teacher ranks the candidates of a batch for each anchor, whatever the size of its vectors.
    `vectors`: its vectors themselves, which must have the student's size.
    """

    def __init__(self, kind: Literal["similarities", "vectors"], *, weight: float, temperature: float):
        super().__init__(weight)
        self.kind = kind
        self.temperature = temperature

    def forward(
        self, encoder: EmbedsSentences, inputs: Mapping[str, Tensor], embeddings: Tensor, means: RunningMeans
    ) -> Tensor:
        """See `Auxiliary`; `inputs` holds `teacher` (B, V, E)."""
        teacher = inputs["teacher"]
        if self.kind == "vectors":
            # Similarity is the cosine, so only directions are learnt; the teacher's vectors have unit length.
            student = F.normalize(at_least_float32(embeddings), dim=-1)
            loss = vector_distillation_loss(student.flatten(0, 1), teacher.flatten(0, 1))
        else:
            candidates, teacher_candidates = gather_with_gradient(embeddings), gather_values(teacher)  # (C, V, D)
            ids = inputs["sentence_ids"]
            # Every model finds a sentence most similar to itself; in unsupervised training the positive is that.
            itself = gather_values(ids)[:, 1:].flatten() == ids[:, :1]  # (B, C*(V-1))
            loss = similarity_distillation_loss(
                cosine_matrix(embeddings[:, 0], candidates[:, 1:].flatten(0, 1)),
                cosine_matrix(teacher[:, 0], teacher_candidates[:, 1:].flatten(0, 1)),
                student_temperature=self.temperature,
                teacher_temperature=self.temperature,
                masked=itself,
            )
        means.add("distillation_loss", loss)
        return loss
