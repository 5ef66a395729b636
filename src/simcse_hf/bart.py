"""BART's encoder as the BERT that it is.    Axes: N sentences, T tokens, D hidden size.

The encoder of BART (arXiv:1910.13461) and of KoBART is BERT's in other words: learned positions, a LayerNorm behind the
embeddings and behind every residual sum, GELU. Written as a `BertModel` it packs, and its releases load anywhere.
"""

from __future__ import annotations

import logging
import math

import torch
from torch import nn
from transformers import BartConfig, BertConfig, BertModel, PreTrainedModel

logger = logging.getLogger(__name__)

# The first rows of BART's table of positions belong to no position.
_UNUSED_POSITIONS = 2

# Of a layer, ours -> BART's.
_MODULES = {
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "self_attn_layer_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "final_layer_norm",
}


def bert_config_of(config: BartConfig) -> BertConfig:
    """The configuration of the BERT that computes what BART's encoder computes.

    `dropout` acts where BERT's `hidden_dropout_prob` does (behind the embeddings, the attention and the feed-forward
    layer), `attention_dropout` on attention weights. BERT has neither `activation_dropout` (between the feed-forward
    layer's two matrices; 0 in BART, 0.1 in KoBART) nor `encoder_layerdrop`: they act on training only, and are left out.
    """
    return BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        num_hidden_layers=config.encoder_layers,
        num_attention_heads=config.encoder_attention_heads,
        intermediate_size=config.encoder_ffn_dim,
        hidden_act=config.activation_function,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.attention_dropout,
        max_position_embeddings=config.max_position_embeddings,
        type_vocab_size=1,
        initializer_range=config.init_std,
        layer_norm_eps=nn.LayerNorm(1).eps,  # BART names none
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
    )


@torch.no_grad()
def bert_of(encoder: PreTrainedModel, *, attn_implementation: str | None = None) -> BertModel:
    """A BERT without pooler that gives the token vectors of `BartModel.encoder`, (N, T, D), in evaluation mode.

    The factor of `scale_embedding` goes into the word embeddings. The embedding of the only token type, which BART has
    not, is zero at first; trained, it is one more constant beside the positions.

    Args:
        encoder: Of a `BartModel`.
        attn_implementation: `sdpa` or `eager`; None for the default.
    """
    config = encoder.config
    left_out = {name: getattr(config, name) for name in ("activation_dropout", "encoder_layerdrop")}
    if any(left_out.values()):
        logger.warning(
            "BART's encoder is trained as a BERT, which has no %s; the other dropouts act as before.",
            " and no ".join(f"{name} ({value:g} in this model)" for name, value in left_out.items() if value),
        )
    scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
    weights = {
        "embeddings.word_embeddings.weight": encoder.embed_tokens.weight * scale,
        "embeddings.position_embeddings.weight": encoder.embed_positions.weight[_UNUSED_POSITIONS:],
        "embeddings.token_type_embeddings.weight": encoder.embed_tokens.weight.new_zeros(1, config.d_model),
        **_named("embeddings.LayerNorm", encoder.layernorm_embedding),
    }
    for index, layer in enumerate(encoder.layers):
        for name, original in _MODULES.items():
            weights |= _named(f"encoder.layer.{index}.{name}", layer.get_submodule(original))
    bert = BertModel._from_config(
        bert_config_of(config),
        add_pooling_layer=False,
        attn_implementation=attn_implementation,
        dtype=encoder.embed_tokens.weight.dtype,
    )
    bert.load_state_dict(weights)
    return bert.eval()


def _named(name: str, module: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": tensor for key, tensor in module.state_dict().items()}
