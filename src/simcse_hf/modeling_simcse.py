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
from transformers import AutoModel
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from .attention import enable_packing
from .backbones import (
    ATTENTION_DROPOUTS,
    HIDDEN_DROPOUTS,
    load_backbone,
    load_config,
    load_whole,
    override_dropout,
    position_limit,
    without_pooler,
)
from .configuration_simcse import SimCSEConfig
from .distributed import gather_values, gather_with_gradient, rank
from .embedding import EmbedsSentences
from .errors import ModelError
from .losses import contrastive_logits, duplicate_mask, simcse_loss
from .sentence_transformers_layout import SentenceTransformersLayout, read_layout

_HUB_KWARGS = ("revision", "cache_dir", "token", "local_files_only")


@dataclass
class SimCSEOutput(ModelOutput):
    """What `SimCSEModel` returns.

    Attributes:
        loss: Scalar, with views in the input.
        logits: (B, C + K*C) with views; see `losses.contrastive_logits`.
        embeddings: (B, V, D) with views, else (N, D).
        pooler_output: (N, D) sentence embeddings, without views.
        last_hidden_state: (N, T, D) of the backbone, without views.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    embeddings: Tensor | None = None
    pooler_output: Tensor | None = None
    last_hidden_state: Tensor | None = None


class SimCSEHead(nn.Module):
    """Linear and tanh over the pooled vector (N, D) -> (N, D), as in BERT's own pooler."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, pooled: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        return torch.tanh(self.dense(pooled))


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
        self.backbone = AutoModel.from_config(config.text_config, **without_pooler(config.text_config))
        self.head = SimCSEHead(config.text_config.hidden_size) if config.has_head else None
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

        Raises:
            ValueError: `input_ids` of another rank, or views of a single item, whose loss would
                be zero without any negative.
        """
        extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        if input_ids.dim() == 2 and sentence_starts is None:
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
            vectors, last_hidden_state = self.embed(input_ids, attention_mask, **extra)
            return SimCSEOutput(embeddings=vectors, pooler_output=vectors, last_hidden_state=last_hidden_state)
        embeddings = self.embed_batch(
            input_ids, attention_mask, position_ids, sentence_starts, sentence_lengths, **extra
        )  # (B, V, D)
        logits, first_positive = self.contrast(embeddings, sentence_ids)
        return SimCSEOutput(
            loss=simcse_loss(logits, first_positive=first_positive), logits=logits, embeddings=embeddings
        )

    def contrast(self, embeddings: Tensor, sentence_ids: Tensor | None = None) -> tuple[Tensor, int]:
        """Logits of this process's anchors against the candidates of all processes.

        Args:
            embeddings: (B, V, D), V >= 2.
            sentence_ids: (B, V) or None.

        Returns:
            (B, C + K*C) logits with C = W*B in training and C = B in evaluation mode, and the
            column of the first anchor's positive.
        """
        batch, views = embeddings.shape[:2]
        if views < 2:
            raise ValueError(f"a contrastive loss needs at least 2 views of each item, got {views}.")
        candidates, all_ids, first_positive = embeddings[:, 1:], sentence_ids, 0
        if self.training:
            candidates = gather_with_gradient(candidates)  # (C, V-1, D)
            all_ids = None if sentence_ids is None else gather_values(sentence_ids)
            first_positive = batch * rank()
        if len(candidates) < 2:
            raise ValueError(
                "a batch of one item has no negatives and its loss is always 0. Use a per_device_train_batch_size of 2 or more."
            )
        masked = None
        if self.config.mask_duplicates and all_ids is not None:
            masked = duplicate_mask(
                sentence_ids[:, 0], all_ids[:, 1:], all_anchor_ids=all_ids[:, 0], first_positive=first_positive
            )
        logits = contrastive_logits(
            embeddings[:, 0],
            candidates[:, 0],
            candidates[:, 1:] if views > 2 else None,
            temperature=self.config.temperature,
            hard_negative_weight=self.config.hard_negative_weight,
            first_positive=first_positive,
            masked=masked,
        )
        return logits, first_positive

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
            name_or_path: Folder or Hub id of any encoder that AutoModel loads.
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
        config = SimCSEConfig(text_config=text_config, **simcse_config)
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
            model.head.dense.load_state_dict(layout.head)
        return model.to(dtype)
