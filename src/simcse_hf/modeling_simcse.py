"""`SimCSEModel`: any encoder, a pooler, SimCSE's head, and the contrastive loss.

Axes: B items, V views (anchor, positive, hard negatives ...), N = B*V sentences, T tokens,
D hidden size, W processes.

Training, evaluation, encoding and export all take their vectors from `embedding`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from .attention import enable_packing
from .auxiliary import Auxiliary
from .backbones import (
    ATTENTION_DROPOUTS,
    HIDDEN_DROPOUTS,
    encoder_config,
    load_backbone,
    load_config,
    load_whole,
    new_backbone,
    override_dropout,
    position_limit,
)
from .batch_losses import contrastive_loss, scored_loss
from .configuration_simcse import SimCSEConfig
from .embedding import EmbedsSentences
from .errors import ModelError
from .heads import BatchNormHead, SimCSEHead
from .packing import RowLayout
from .running_means import RunningMeans
from .sentence_transformers_layout import SentenceTransformersLayout, read_layout
from .softmax_classification import nli_features, softmax_classification_loss

_HUB_KWARGS = ("revision", "cache_dir", "token", "local_files_only")


@dataclass
class SimCSEOutput(ModelOutput):
    """What `SimCSEModel` returns.

    Attributes:
        loss: Scalar, with views in the input.
        logits: (B, C + K*C) with views that are compared, see `losses.contrastive_logits`; (B, 3) with labels.
        embeddings: (B, V, D) with views, else (N, D).
        pooler_output: (N, D) sentence embeddings, without views.
        last_hidden_state: (N, T, D) of the backbone, without views.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    embeddings: Tensor | None = None
    pooler_output: Tensor | None = None
    last_hidden_state: Tensor | None = None


class SimCSEModel(EmbedsSentences, PreTrainedModel):
    """A sentence encoder that knows its own contrastive loss.

    `forward` with views, `input_ids` (B, V, T) or packed rows, returns `loss`, `logits` and
    `embeddings`; with sentences (N, T) it returns `pooler_output`, the sentence embedding, and
    `last_hidden_state`.
    """

    config_class = SimCSEConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Trainer multiplies the loss of a model whose forward takes **kwargs by the number of
    # accumulation steps, which is wrong for a loss that is a mean over in-batch comparisons.
    accepts_loss_kwargs = False

    def __init__(self, config: SimCSEConfig):
        super().__init__(config)
        self.backbone = new_backbone(config.text_config)
        self.head = _new_head(config)
        self.auxiliaries = nn.ModuleDict()  # see `add_auxiliary`; of no use to an encoder that is not in training
        self.classifier: nn.Linear | None = None
        self.means = RunningMeans()
        self.post_init()
        enable_packing(self.backbone)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        sentence_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        sentence_starts: Tensor | None = None,
        sentence_lengths: Tensor | None = None,
        scores: Tensor | None = None,
        labels: Tensor | None = None,
        teacher: Tensor | None = None,
    ) -> SimCSEOutput:
        """Loss of a batch of views, or embeddings of plain sentences.

        Args:
            input_ids: (B, V, T) views: the anchor, its positive, then its hard negatives; (N, T)
                sentences; or (R, L) packed rows (see `packing`). int64.
            attention_mask: Same shape, 1 for real tokens; all real when left out. Not for packed rows.
            sentence_ids: (B, V) integer; equal sentences share an id, and are then never each
                other's negatives (unless the config says otherwise).
            token_type_ids: Same shape as `input_ids`. Not for packed rows.
            position_ids: (R, L) of packed rows, starting at 0 in each sentence.
            sentence_starts: (B, V) positions of the views in the flattened packed rows.
            sentence_lengths: (B, V) their tokens.
            scores: (B,) from 0 to 1: the views are pairs to be as similar as that, not to be compared with others.
            labels: (B,) int64: the views are premise and hypothesis, to be classified.
            teacher: (B, V, E) a teacher's vectors of the views.

        Raises:
            ValueError: `input_ids` of another rank, views of a single item, whose loss would be zero without any
                negative, or labels without a classifier.
        """
        extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        if input_ids.dim() == 2 and sentence_starts is None:
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
            vectors, last_hidden_state = self.embed(input_ids, attention_mask, **extra)
            return SimCSEOutput(embeddings=vectors, pooler_output=vectors, last_hidden_state=last_hidden_state)
        rows = {"position_ids": position_ids, "sentence_starts": sentence_starts, "sentence_lengths": sentence_lengths}
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **rows, **extra}
        embeddings = self.embed_batch(**inputs)  # (B, V, D)
        if scores is not None:
            loss, logits = scored_loss(embeddings, scores, self.config, everywhere=self.training), None
            kind = "scored"
        elif labels is not None:
            logits = self._classify(embeddings)
            loss, kind = softmax_classification_loss(logits, labels), "labelled"
        else:
            loss, logits = contrastive_loss(embeddings, sentence_ids, self.config, everywhere=self.training)
            kind = "contrastive"
        if self.training:
            self.means.add(f"{kind}_loss", loss)
            loss = self._with_auxiliaries(
                loss, {**inputs, "sentence_ids": sentence_ids, "teacher": teacher}, embeddings, kind
            )
        return SimCSEOutput(loss=loss, logits=logits, embeddings=embeddings)

    def _classify(self, embeddings: Tensor) -> Tensor:
        """(B, 2, D) -> (B, 3)"""
        if self.classifier is None:
            raise ValueError("these rows have labels, and the model has no classifier. Call add_classifier first.")
        return self.classifier(nli_features(embeddings[:, 0], embeddings[:, 1]))

    def _with_auxiliaries(self, loss: Tensor, inputs: dict[str, Tensor], embeddings: Tensor, kind: str) -> Tensor:
        if kind == "contrastive":
            loss = self.config.contrastive_weight * loss
            for auxiliary in self.auxiliaries.values():
                loss = loss + auxiliary.weight * auxiliary(self, inputs, embeddings, self.means)
        idle = [self.auxiliaries if kind != "contrastive" else None, self.classifier if kind != "labelled" else None]
        # DDP waits for a gradient of every parameter in every step.
        for parameter in (parameter for part in idle if part is not None for parameter in part.parameters()):
            loss = loss + 0.0 * parameter.sum()
        return loss

    def add_auxiliary(self, name: str, auxiliary: Auxiliary) -> None:
        """Train with a further loss on batches of views; it is stored in checkpoints and not in a release."""
        self.auxiliaries[name] = auxiliary.to(self.device)

    def add_classifier(self, labels: int = 3) -> None:
        """Be able to train on labelled pairs: a linear layer over (u, v, |u - v|) (arXiv:1908.10084, section 3)."""
        size = self.config.head_size or self.config.text_config.hidden_size
        self.classifier = nn.Linear(3 * size, labels).to(self.device)

    def row_layout(self, device: torch.device | None = None) -> RowLayout | None:
        """As in `EmbedsSentences`, where every auxiliary takes packed rows too."""
        everything_packs = all(auxiliary.packs for auxiliary in self.auxiliaries.values())
        return super().row_layout(device) if everything_packs else None

    @classmethod
    def from_backbone(
        cls,
        name_or_path: str,
        *,
        head_init: str = "fresh",
        hidden_dropout_prob: float | None = None,
        attention_probs_dropout_prob: float | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        hub_kwargs: Mapping[str, str] | None = None,
        **simcse_config,
    ) -> SimCSEModel:
        """Start from a pretrained encoder, in float32 and, as with `from_pretrained`, in evaluation mode.

        Args:
            name_or_path: Folder or Hub id of any encoder that AutoModel loads, of a T5, or of a BART, which becomes a BERT.
            head_init: `fresh` (Princeton SimCSE) or `backbone`: start the head from the
                encoder's own pretrained pooler (KoSimCSE-SKT).
            hidden_dropout_prob: Overrides the encoder's own, whatever it calls it.
            attention_probs_dropout_prob: Likewise.
            attn_implementation: `sdpa` or `eager`.
            trust_remote_code: Run code from the model repository.
            hub_kwargs: `revision`, `cache_dir`, `token`.
            simcse_config: Fields of `SimCSEConfig`.

        Raises:
            ModelError: Not a model folder, weights that do not fit, or a head that is not there.
        """
        hub_kwargs = dict(hub_kwargs or {})
        text_config = load_config(name_or_path, trust_remote_code=trust_remote_code, **hub_kwargs)
        override_dropout(text_config, HIDDEN_DROPOUTS, hidden_dropout_prob)
        override_dropout(text_config, ATTENTION_DROPOUTS, attention_probs_dropout_prob)
        config = SimCSEConfig(text_config=encoder_config(text_config), **simcse_config)
        if head_init not in ("fresh", "backbone"):
            raise ModelError(f"head_init is {head_init!r}; it can be 'fresh' or 'backbone'.")
        keep_pooler = config.has_head and head_init == "backbone"
        backbone, pooler_is_pretrained = load_backbone(
            name_or_path,
            text_config,
            keep_pooler=keep_pooler,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            **hub_kwargs,
        )
        model = cls(config)
        if keep_pooler:
            if not pooler_is_pretrained:
                raise ModelError(
                    f"{name_or_path} has no pretrained pooler to start the head from. Use head_init 'fresh'."
                )
            model.head.dense.load_state_dict(backbone.pooler.dense.state_dict())
            backbone.pooler = None
        model.backbone = backbone
        enable_packing(backbone)
        return model.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """Load our checkpoint, our release, or any sentence-transformers folder of the same shape.

        A release is a plain encoder whose `modules.json` says how to pool; that is believed.

        Raises:
            ModelError: A plain encoder that does not say how to pool, or weights that do not fit.
        """
        name = str(pretrained_model_name_or_path)
        kwargs.setdefault("dtype", torch.float32)
        if config is None:
            hub_kwargs = {key: kwargs[key] for key in _HUB_KWARGS if key in kwargs}
            found = load_config(name, trust_remote_code=kwargs.get("trust_remote_code", False), **hub_kwargs)
            if found.model_type != SimCSEConfig.model_type:
                layout = read_layout(name, **hub_kwargs)
                if layout is None:
                    raise ModelError(
                        f"{name} is a plain '{found.model_type}' encoder and does not say how to pool its tokens. "
                        "Use SimCSEModel.from_backbone with a pooler_type."
                    )
                return cls.from_layout(
                    name,
                    layout,
                    dtype=kwargs["dtype"],
                    trust_remote_code=kwargs.get("trust_remote_code", False),
                    hub_kwargs=hub_kwargs,
                )
        wants_report = kwargs.pop("output_loading_info", False)
        for decided_here in ("use_safetensors", "ignore_mismatched_sizes"):
            kwargs.pop(decided_here, None)
        model, report = load_whole(super().from_pretrained, name, *model_args, config=config, **kwargs)
        return (model, report) if wants_report else model

    @classmethod
    def from_layout(
        cls,
        name_or_path: str,
        layout: SentenceTransformersLayout,
        *,
        dtype: torch.dtype = torch.float32,
        trust_remote_code: bool = False,
        hub_kwargs: Mapping[str, str] | None = None,
    ) -> SimCSEModel:
        """Build the model that a sentence-transformers folder describes, in evaluation mode."""
        model = cls.from_backbone(
            name_or_path,
            trust_remote_code=trust_remote_code,
            hub_kwargs=hub_kwargs,
            pooler_type=layout.pooler_type,
            first_hidden_state=layout.first_hidden_state,
            prompt=layout.prompt,
        )
        lengths = [layout.max_seq_length, position_limit(model.config.text_config)]
        model.config.max_seq_length = min((length for length in lengths if length), default=512)
        if layout.head is not None:
            if layout.head["weight"].shape != model.head.dense.weight.shape:
                found, expected = (list(weight.shape) for weight in (layout.head["weight"], model.head.dense.weight))
                raise ModelError(
                    f"the Dense module of {name_or_path} has the shape {found}, but its encoder needs {expected}. It is damaged."
                )
            model.head.dense.load_state_dict(layout.head)
        return model.to(dtype)


def _new_head(config: SimCSEConfig) -> nn.Module | None:
    if not config.has_head:
        return None
    hidden_size = config.text_config.hidden_size
    return BatchNormHead(hidden_size) if config.head_type == "batchnorm" else SimCSEHead(hidden_size, config.head_size)
