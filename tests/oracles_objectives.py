"""Slow twins of the objectives: float64, one term at a time."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Sequence

from oracles import cosine


def cosine_mse(first, second, scores) -> float:
    total = 0.0
    for u, v, score in zip(first, second, scores, strict=True):
        total += (cosine(u, v) - score) ** 2
    return total / len(scores)


def angle_similarity(u: Sequence[float], v: Sequence[float]) -> float:
    """Each complex quotient, brought to the length ratio 1, then real and imaginary parts summed."""
    half = len(u) // 2
    z = [complex(u[n], u[half + n]) for n in range(half)]
    w = [complex(v[n], v[half + n]) for n in range(half)]
    squared_length = sum(abs(number) ** 2 for number in w)
    ratio = math.sqrt(sum(abs(number) ** 2 for number in z)) / math.sqrt(squared_length)
    quotients = [a * b.conjugate() / squared_length / ratio for a, b in zip(z, w, strict=True)]
    return abs(sum(quotient.real + quotient.imag for quotient in quotients))


def ranking(similarities: Sequence[float], scores: Sequence[float], scale: float) -> float:
    total = 1.0
    for i, score in enumerate(scores):
        for j, other in enumerate(scores):
            if score > other:
                total += math.exp(scale * (similarities[j] - similarities[i]))
    return math.log(total)


def cosent(first, second, scores, scale: float = 20.0) -> float:
    return ranking([cosine(u, v) for u, v in zip(first, second, strict=True)], scores, scale)


def angle(first, second, scores, scale: float = 20.0) -> float:
    return ranking([angle_similarity(u, v) for u, v in zip(first, second, strict=True)], scores, scale)


def argument_of_quotient(u: Sequence[float], v: Sequence[float]) -> float:
    """Of two vectors of two components: the angle between them, with its sign."""
    return cmath.phase(complex(*u) / complex(*v))


def softmax(values: Sequence[float]) -> list[float]:
    exponentials = [math.exp(value - max(values)) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def cross_entropy(logits, labels) -> float:
    terms = [-math.log(softmax(row)[label]) for row, label in zip(logits, labels, strict=True)]
    return sum(terms) / len(terms)


def nli_features(u: Sequence[float], v: Sequence[float]) -> list[float]:
    return [*u, *v, *(abs(a - b) for a, b in zip(u, v, strict=True))]


def symmetric(forward_logits, backward_logits, first_positive: int) -> float:
    targets = [first_positive + row for row in range(len(forward_logits))]
    return 0.5 * cross_entropy(forward_logits, targets) + 0.5 * cross_entropy(backward_logits, targets)


def false_negatives(cosines, margin: float, first_positive: int) -> list[list[bool]]:
    masked = []
    for row, values in enumerate(cosines):
        own = first_positive + row
        masked.append([column != own and value > values[own] + margin for column, value in enumerate(values)])
    return masked


def matryoshka(loss_of: Callable, rows_of_views, sizes, weights=None) -> float:
    weights = weights or [1.0] * len(sizes)
    total = 0.0
    for size, weight in zip(sizes, weights, strict=True):
        total += weight * loss_of([[view[:size] for view in row] for row in rows_of_views])
    return total / sum(weights)


def similarity_distillation(student, teacher, student_temperature, teacher_temperature, masked=None) -> float:
    terms = []
    for row in range(len(student)):
        columns = [column for column in range(len(student[row])) if not (masked and masked[row][column])]
        if not columns:
            terms.append(0.0)
            continue
        p = softmax([teacher[row][column] / teacher_temperature for column in columns])
        q = softmax([student[row][column] / student_temperature for column in columns])
        cross_entropy_of_row = -sum(a * math.log(b) for a, b in zip(p, q, strict=True))
        entropy = -sum(a * math.log(a) for a in p if a)
        terms.append(cross_entropy_of_row - entropy)
    return sum(terms) / len(terms)


def vector_distillation(student, teacher) -> float:
    squares = [
        (a - b) ** 2 for left, right in zip(student, teacher, strict=True) for a, b in zip(left, right, strict=True)
    ]
    return sum(squares) / len(squares)


def replaced_tokens(logits, labels, counted) -> tuple[float, int]:
    total, number = 0.0, 0
    for row, label, counts in zip(logits, labels, counted, strict=True):
        if counts:
            total -= math.log(softmax(row)[label])
            number += 1
    return total, number
