"""AnglE: the order of human scores as a loss on angles in the complex plane.    Axes: C pairs, D size.

Li & Li 2023, arXiv:2309.12871, section 3. The paper's loss is a sum of three weighted parts, a cosine
objective (`cosent_loss`), an in-batch negative objective (`simcse_loss`) and the angle objective; here is the
angle objective alone.

The paper writes the angle as a difference, yet what it computes, like the code its authors published and
sentence-transformers, is 1 for two equal vectors and is ranked as a similarity. So it is here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cosent import ranking_loss
from .similarity import at_least_float32

_SMALLEST_NORM = 1e-12  # as in torch.nn.functional.normalize


def paired_angle_similarities(first: Tensor, second: Tensor) -> Tensor:
    """|sum of the real and imaginary parts of z / w, divided by |z| / |w||, pair by pair.

    A vector is read as D/2 complex numbers: its first half holds the real parts, its second half the imaginary
    ones. With z = a + bi and w = c + di, z * conj(w) = (ac + bd) + (bc - ad)i; dividing by |w|^2 and then by
    |z| / |w| leaves |z| |w| below, the lengths of the whole vectors.

    Args:
        first, second: (C, D), D even.

    Returns:
        (C,), float32 or better.

    Raises:
        ValueError: D is odd.

    >>> u = torch.tensor([[3.0, 4.0]])
    >>> paired_angle_similarities(u, 2 * u).tolist()
    [1.0]
    """
    if first.shape[-1] % 2:
        raise ValueError(
            f"the angle objective reads a vector as pairs of components, and {first.shape[-1]} is odd. Use cosent."
        )
    with torch.autocast(first.device.type, enabled=False):
        first, second = at_least_float32(first), at_least_float32(second)
        a, b = first.chunk(2, dim=-1)  # each (C, D/2)
        c, d = second.chunk(2, dim=-1)
        lengths = first.norm(dim=-1).clamp(min=_SMALLEST_NORM) * second.norm(dim=-1).clamp(min=_SMALLEST_NORM)
        real, imaginary = (a * c + b * d).sum(dim=-1), (b * c - a * d).sum(dim=-1)
        return ((real + imaginary) / lengths).abs()


def angle_loss(first: Tensor, second: Tensor, scores: Tensor, *, scale: float = 20.0) -> Tensor:
    """log(1 + sum over y_i > y_j of exp(scale * (angle_j - angle_i))).

    Args:
        first, second: (C, D), the two sentences of each pair, D even.
        scores: (C,), any scale: only their order matters.
        scale: The inverse of the paper's temperature.

    Returns:
        Scalar; 0 without gradient where no two scores differ.

    Raises:
        ValueError: D is odd, or not one score a pair.
    """
    return ranking_loss(paired_angle_similarities(first, second), scores, scale=scale)
