"""`SimCSEConfig`: everything that changes the sentence vector or the loss, saved with the weights."""

# Annotations must be types here, not strings: `strict` checks values against them.
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

PoolerType = Literal["cls", "cls_before_pooler", "avg", "avg_top2", "avg_first_last", "max"]
HeadType = Literal["mlp", "batchnorm"]
ScoredLoss = Literal["cosine_mse", "cosent", "angle"]


@strict
class SimCSEConfig(PreTrainedConfig):
    r"""Configuration of `SimCSEModel`.

    What each `pooler_type` means (h is the last layer, hs[k] the output of layer k, hs[0] the
    embedding layer; averages and maxima run over real tokens only):

    | `pooler_type`       | token vectors -> sentence vector       | MLP head (Linear, tanh)         |
    |---------------------|----------------------------------------|---------------------------------|
    | `cls`               | h[:, 0]                                | training; and at inference      |
    |                     |                                        | unless `mlp_only_train`         |
    | `cls_before_pooler` | h[:, 0]                                | never                           |
    | `avg`               | mean of h                              | never                           |
    | `avg_top2`          | mean of (hs[-1] + hs[-2]) / 2          | never                           |
    | `avg_first_last`    | mean of (hs[f] + hs[-1]) / 2,          | never                           |
    |                     | f = `first_hidden_state`               |                                 |
    | `max`               | elementwise maximum of h               | never                           |

    Args:
        text_config: Configuration of the backbone encoder, any type AutoModel knows.
        pooler_type: See the table.
        mlp_only_train: With `cls`: drop the head at inference. The convention of SimCSE is to
            drop it for unsupervised models and keep it for supervised ones.
        head_type: With `cls`: `mlp` (Linear, tanh), or `batchnorm`, DiffCSE's projection, which is for training only.
        head_size: With `mlp_only_train` and `mlp`: components of the head's output, if not those of the encoder.
        first_hidden_state: Which layer counts as "first" in `avg_first_last`: 1 as in
            Princeton's current code, 0 (embedding layer) as in the paper and in DiffCSE.
        temperature: The logits are cosine / temperature (SimCSE, arXiv:2104.08821, Eq. 1;
            0.05 is the best value of its Table D.1).
        hard_negative_weight: Added to the logit of a row's own hard negatives (the logarithm
            of alpha in Eq. 8 of the paper). 0 leaves them as they are.
        mask_duplicates: Never use a sentence as a negative of an equal sentence.
        symmetric: Also pick the anchor of each positive among all anchors, and take the mean of both losses.
        false_negative_margin: Leave out candidates whose cosine with the anchor exceeds that of its positive by more
            than this. None leaves out none.
        matryoshka_dims: Train the first so many components of the vectors as vectors of their own, for each of these
            sizes and the whole, whose losses are averaged.
        contrastive_weight: Of the contrastive loss beside auxiliary ones.
        scored_loss: What scored pairs are trained with; see `objectives`.
        prompt: Text put before every sentence, at training and inference alike.
        max_seq_length: In tokens, special tokens included; longer sentences are cut.
    """

    model_type = "simcse"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert")}

    text_config: dict | PreTrainedConfig | None = None
    pooler_type: PoolerType = "cls"
    mlp_only_train: bool = False
    head_type: HeadType = "mlp"
    head_size: int | None = None
    first_hidden_state: Literal[0, 1] = 1
    temperature: float = 0.05
    hard_negative_weight: float = 0.0
    mask_duplicates: bool = True
    symmetric: bool = False
    false_negative_margin: float | None = None
    matryoshka_dims: list[int] | None = None
    contrastive_weight: float = 1.0
    scored_loss: ScoredLoss = "cosine_mse"
    prompt: str = ""
    max_seq_length: int = 64

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; logits are cosine / temperature, so it must be > 0.")
        if self.max_seq_length < 3:
            raise ValueError(f"max_seq_length is {self.max_seq_length}; two special tokens and one word need 3.")
        if self.mlp_only_train and self.pooler_type != "cls":
            raise ValueError(
                f"mlp_only_train has no meaning with pooler_type '{self.pooler_type}', which has no MLP head. "
                "Use pooler_type 'cls', or leave mlp_only_train out."
            )
        if self.head_type == "batchnorm" and not self.mlp_only_train:
            raise ValueError(
                "head_type 'batchnorm' looks at a whole batch, so it cannot be part of the shipped vector. Use it with "
                "pooler_type 'cls' and mlp_only_train true."
            )
        if self.head_size is not None and (not self.mlp_only_train or self.head_type != "mlp" or self.head_size < 1):
            raise ValueError(
                f"head_size is {self.head_size}; it is a positive number and goes with pooler_type 'cls', head_type 'mlp' and "
                "mlp_only_train true, because the shipped vector keeps the size of the encoder."
            )
        if not self.contrastive_weight >= 0:
            raise ValueError(f"contrastive_weight is {self.contrastive_weight}; it must be 0 or more.")
        if self.matryoshka_dims is not None:
            self.matryoshka_dims = self._checked_sizes(self.matryoshka_dims)

    def _checked_sizes(self, sizes: list[int]) -> list[int]:
        if self.mlp_only_train:
            raise ValueError(
                "matryoshka_dims shapes the vectors that are trained, and mlp_only_train ships others. Leave one of them out."
            )
        whole = self.text_config.hidden_size
        wrong = [size for size in sizes if not 0 < size <= whole]
        if wrong or not sizes:
            raise ValueError(
                f"matryoshka_dims is {sizes}; sizes lie between 1 and {whole}, the components of this encoder's vectors."
            )
        if self.scored_loss == "angle" and (odd := [size for size in sizes if size % 2]):
            raise ValueError(
                f"matryoshka_dims holds {odd[0]}, and scored_loss angle needs even sizes: it takes vectors in halves."
            )
        return sorted({*sizes, whole})

    def get_text_config(self, *args, **kwargs) -> PreTrainedConfig:
        """The backbone's own, which other libraries ask for sizes and dtypes."""
        return self.text_config.get_text_config(*args, **kwargs)

    @property
    def has_head(self) -> bool:
        """Whether the model owns an MLP head at all."""
        return self.pooler_type == "cls"

    @property
    def head_at_inference(self) -> bool:
        """Whether the shipped vector has passed through the MLP head."""
        return self.has_head and not self.mlp_only_train

    @property
    def reads_cls(self) -> bool:
        """Whether the pooler takes the first token for [CLS]."""
        return self.pooler_type in ("cls", "cls_before_pooler")

    @property
    def needs_all_hidden_states(self) -> bool:
        """Whether the pooler reads other layers than the last."""
        return self.pooler_type in ("avg_top2", "avg_first_last")
