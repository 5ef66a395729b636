"""A student that imitates a teacher.    Axes: B sentences, C candidates, N sentences, D size.

Of similarities: Fang et al. 2021, SEED, arXiv:2101.04731. Of vectors: Reimers & Gurevych 2020, arXiv:2004.09813.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import ConfigError
from .similarity import at_least_float32


def similarity_distillation_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    student_temperature: float = 0.05,
    teacher_temperature: float = 0.05,
    masked: Tensor | None = None,
) -> Tensor:
    """Mean over rows of KL(p || q), p = softmax(teacher / t_T), q = softmax(student / t_S) over the candidates.

    SEED minimises the cross-entropy of the two. The divergence is that less the teacher's entropy, which the
    student does not change: the same gradient, and 0 for a student that agrees.

    Each model compares its own vectors, so their sizes may differ. All candidates take part, the own positive
    included, as in SEED. Where rows and candidates are the same sentences, the cosine of a sentence with itself is 1
    for every model and would leave the others little of the softmax: mask it.

    Args:
        student: (B, C) cosines.
        teacher: (B, C) cosines of the same sentences. No gradient flows into them.
        student_temperature: t_S
        teacher_temperature: t_T; SEED takes a lower one than the student's.
        masked: (B, C) bool, True where a candidate takes no part. A row without any other than these counts as 0.

    Returns:
        Scalar.

    Raises:
        ConfigError: A temperature that is not above 0.
    """
    for name, temperature in (("student", student_temperature), ("teacher", teacher_temperature)):
        if not temperature > 0:
            raise ConfigError(f"the {name}'s temperature is {temperature}; it must be above 0.")
    student = at_least_float32(student) / student_temperature
    teacher = at_least_float32(teacher.detach()) / teacher_temperature
    if masked is not None:
        # Not minus infinity: a row that is masked as a whole would be NaN.
        student = student.masked_fill(masked, torch.finfo(student.dtype).min)
        teacher = teacher.masked_fill(masked, torch.finfo(teacher.dtype).min)
    log_q, log_p = student.log_softmax(dim=-1), teacher.log_softmax(dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()


def vector_distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of (student - teacher)^2 over all components.

    Args:
        student: (N, D)
        teacher: (N, D) of the same sentences. No gradient flows into them.

    Returns:
        Scalar.

    Raises:
        ConfigError: Vectors of different sizes.
    """
    if student.shape[-1] != teacher.shape[-1]:
        raise ConfigError(
            f"the student's vectors have {student.shape[-1]} components and the teacher's {teacher.shape[-1]}, so they "
            "cannot be subtracted. Distil similarities instead, or take a teacher of the student's size."
        )
    student = at_least_float32(student)
    return F.mse_loss(student, teacher.detach().to(student.dtype))
