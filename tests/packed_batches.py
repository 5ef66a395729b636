"""The same sentences packed and padded, and tiny models for them.    Axes: B items, V views, N sentences, T tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import CamembertConfig
from transformers.configuration_utils import PreTrainedConfig

from simcse_hf import SimCSEConfig, SimCSEModel
from simcse_hf.backbones import ATTENTION_DROPOUTS, HIDDEN_DROPOUTS, first_position, override_dropout
from simcse_hf.collators import ViewsCollator
from simcse_hf.packing import RowLayout

PACKING = ["bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "modernbert"]
VIEWS = 3
LONGEST = 64
# Single tokens, odd lengths, equal ones that share a run, and the longest: six items of three views.
LENGTHS = [1, 5, 64, 2, 17, 17, 33, 9, 1, 64, 23, 3, 17, 40, 7, 5, 12, 31]


def tiny(
    text_config: Callable[..., PreTrainedConfig],
    kind: str = "bert",
    pooler_type: str = "avg",
    *,
    hidden_dropout: float = 0.0,
    attention_dropout: float = 0.0,
    **overrides,
) -> SimCSEModel:
    """A small model in training mode, with a window that most sentences are longer than where attention has one."""
    if kind == "camembert":
        config = CamembertConfig(
            **text_config("roberta", vocab_size=60, **overrides).to_diff_dict() | {"model_type": kind}
        )
    else:
        window = {"local_attention": 16} if kind == "modernbert" else {}
        config = text_config(kind, vocab_size=60, **window, **overrides)
    config.max_position_embeddings = LONGEST + first_position(config)  # the longest sentence takes every position
    override_dropout(config, HIDDEN_DROPOUTS, hidden_dropout)
    override_dropout(config, ATTENTION_DROPOUTS, attention_dropout)
    torch.manual_seed(0)
    model = SimCSEModel(SimCSEConfig(text_config=config, pooler_type=pooler_type, max_seq_length=LONGEST))
    for parameter in model.parameters():
        # Biases and norms of a fresh model are 0 and 1: swapping two of them would go unnoticed.
        torch.nn.init.normal_(parameter, mean=parameter.detach().mean().item(), std=0.1)
    return model.train()


def sentences(lengths: Sequence[int] = LENGTHS, *, seed: int = 0) -> list[np.ndarray]:
    """Random tokens that are not special."""
    generator = np.random.default_rng(seed)
    return [generator.integers(5, 60, size=length) for length in lengths]


def views_batch(
    model: SimCSEModel, layout: RowLayout | None, chosen: Sequence[np.ndarray] | None = None, *, views: int = VIEWS
) -> dict[str, torch.Tensor]:
    """What the collator makes of sentences; padded without a layout."""
    chosen = sentences() if chosen is None else chosen
    items = [
        {"views": chosen[start : start + views], "sentence_ids": np.arange(start, start + views)}
        for start in range(0, len(chosen), views)
    ]
    return ViewsCollator(model.config.text_config.pad_token_id, layout)(items)


def gradients(model: SimCSEModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of every parameter; none may be missing."""
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
