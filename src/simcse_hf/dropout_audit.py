"""Which dropouts are alive.

In unsupervised SimCSE dropout is the only difference between the two views of a sentence
(arXiv:2104.08821, section 3); without it both are equal and there is nothing to learn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .attention import attention_dropout
from .modeling_simcse import SimCSEModel

# These kernels take no dropout probability, or are not given it: it is silently zero.
_WITHOUT_ATTENTION_DROPOUT = ("flash_attention_3", "flash_attention_4", "flex_attention")


@dataclass(frozen=True, kw_only=True)
class DropoutAudit:
    """The dropouts that act while training.

    Attributes:
        hidden: Largest probability of the dropout layers, 0 without any.
        attention: Probability that acts on attention weights.
        attention_configured: What the config asks for; differs where the kernel ignores it.
        attn_implementation: The attention kernel.
        views_differ: Whether one sentence, embedded twice in training mode, gave two vectors.
    """

    hidden: float
    attention: float
    attention_configured: float
    attn_implementation: str
    views_differ: bool

    def __str__(self) -> str:
        text = f"live dropouts: hidden {self.hidden:g}, attention {self.attention:g} ({self.attn_implementation})"
        if self.attention < self.attention_configured:
            text += (
                f"; the config asks for attention dropout {self.attention_configured:g}, which this kernel ignores: "
                "use attn_implementation sdpa to have it"
            )
        return text + ("" if self.views_differ else "; two views of a sentence are IDENTICAL")


def audit_dropout(model: SimCSEModel, input_ids: torch.Tensor) -> DropoutAudit:
    """Read the configuration, and try: embed a sentence twice in training mode.

    Args:
        model: Its mode and the global random state are restored.
        input_ids: (T,) one sentence of some length.
    """
    attention_modules = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Dropout) and ("attention.self" in name or name.endswith("attention.dropout"))
    }
    hidden = max(
        (
            module.p
            for name, module in model.named_modules()
            if isinstance(module, nn.Dropout) and name not in attention_modules
        ),
        default=0.0,
    )
    configured = attention_dropout(model.config.text_config)
    implementation = str(model.backbone.config._attn_implementation)
    ignored = any(name in implementation for name in _WITHOUT_ATTENTION_DROPOUT)
    was_training = model.training
    model.train()
    try:
        with torch.random.fork_rng(), torch.no_grad():
            twice = input_ids.to(model.device).expand(2, -1)
            first, second = model.embed(twice, torch.ones_like(twice))[0]
    finally:
        model.train(was_training)
    return DropoutAudit(
        hidden=float(hidden),
        attention=0.0 if ignored else configured,
        attention_configured=configured,
        attn_implementation=implementation,
        views_differ=not torch.equal(first, second),
    )
