"""What a further loss on contrastive batches has to be: DiffCSE's, a masked language model's, a teacher's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from .embedding import EmbedsSentences
from .running_means import RunningMeans


class Auxiliary(nn.Module):
    """A loss beside the contrastive one, with what it alone has to learn.

    Its parameters are trained and stored in checkpoints, and no release holds them.

    Attributes:
        weight: Of its loss in the sum.
        packs: Whether it takes packed rows; else batches are padded.
    """

    packs: bool = True

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    @abstractmethod
    def forward(
        self, encoder: EmbedsSentences, inputs: Mapping[str, Tensor], embeddings: Tensor, means: RunningMeans
    ) -> Tensor:
        """The loss of a batch, not yet weighted.

        Args:
            encoder: The model in training.
            inputs: The batch as `ViewsCollator` made it, packed or padded.
            embeddings: (B, V, D) of its sentences, behind the head, with their gradient.
            means: For what is logged.

        Returns:
            Scalar.
        """
