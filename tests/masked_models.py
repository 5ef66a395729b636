"""Tiny masked language models with their tokenizer, and masks that depend on nothing but the tokens.

Axes: B items, V views, N sentences, T tokens.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from packed_batches import LENGTHS, LONGEST, sentences, views_batch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from simcse_hf import SimCSEModel
from simcse_hf.backbones import ATTENTION_DROPOUTS, HIDDEN_DROPOUTS, first_position, override_dropout
from simcse_hf.packing import RowLayout

VOCABULARY = 60
PAD, UNK, CLS, SEP, MASK = range(5)
LIVE = {"hidden_dropout": 0.1, "attention_dropout": 0.1}


def small_tokenizer(**other_words: int) -> PreTrainedTokenizerFast:
    """Of 60 tokens, five of them special; `other_words` takes the place of some."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"낱말{n}" for n in range(5, VOCABULARY))]
    for word, index in other_words.items():
        names[index] = word
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({name: n for n, name in enumerate(names)}, unk_token="[UNK]")),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def masked_lm(
    text_config: Callable[..., PreTrainedConfig],
    kind: str = "bert",
    *,
    hidden_dropout: float = 0.0,
    attention_dropout: float = 0.0,
    seed: int = 0,
    **overrides,
) -> PreTrainedModel:
    """With weights that all differ, in evaluation mode."""
    window = {"local_attention": 16} if kind == "modernbert" else {}
    settings = {"vocab_size": VOCABULARY, "pad_token_id": PAD, **window, **overrides}
    config = text_config(kind, **settings)
    config.max_position_embeddings = LONGEST + first_position(config)
    override_dropout(config, HIDDEN_DROPOUTS, hidden_dropout)
    override_dropout(config, ATTENTION_DROPOUTS, attention_dropout)
    torch.manual_seed(seed)
    model = AutoModelForMaskedLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=parameter.detach().mean().item(), std=0.1)
    return model.eval()


def saved(model: PreTrainedModel, folder: Path) -> str:
    model.save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return str(folder)


def encoder_of(folder: str, **settings) -> SimCSEModel:
    """A model to train, in float64."""
    torch.manual_seed(0)
    settings = {"pooler_type": "avg", "max_seq_length": LONGEST, **settings}
    return SimCSEModel.from_backbone(folder, **settings).double().train()


def marked_sentences(lengths: Sequence[int] = LENGTHS, *, seed: int = 0) -> list[np.ndarray]:
    """Random tokens between [CLS] and [SEP], where there is room for them."""
    found = sentences(lengths, seed=seed)
    for sentence in found:
        if len(sentence) > 2:
            sentence[0], sentence[-1] = CLS, SEP
    return found


def marked_batch(model: SimCSEModel, *, packed: bool, lengths: Sequence[int] = LENGTHS, views: int = 3) -> dict:
    return views_batch(model, RowLayout(LONGEST) if packed else None, marked_sentences(lengths), views=views)


def recorded(monkeypatch, where: str) -> list:
    """What a function returns from now on, call after call."""
    module, _, name = where.rpartition(".")
    whole, calls = getattr(importlib.import_module(module), name), []

    def record(*arguments, **options):
        calls.append(whole(*arguments, **options))
        return calls[-1]

    monkeypatch.setattr(where, record)
    return calls


def of_sentences(tensor: Tensor, inputs: dict[str, Tensor]) -> list[list]:
    """The values of the tokens of each sentence, from those of a batch: (R, L) packed, or (N, T) or (B, V, T) padded."""
    if "sentence_starts" in inputs:
        starts, lengths = inputs["sentence_starts"].flatten().tolist(), inputs["sentence_lengths"].flatten().tolist()
    else:
        lengths = inputs["attention_mask"].sum(dim=-1).flatten().tolist()
        starts = [index * inputs["input_ids"].shape[-1] for index in range(len(lengths))]
    flat = tensor.flatten().tolist()
    return [flat[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def negative_log_probability(logits: Sequence[float], chosen: int) -> float:
    return math.log(sum(math.exp(logit) for logit in logits)) - logits[chosen]


class MasksByToken:
    """In the place of `choose_tokens` and `mask_tokens`: what happens to a token depends on its id alone.

    So packed, padded and single sentences are spoiled alike.
    """

    def install(self, monkeypatch, module: str) -> None:
        monkeypatch.setattr(f"{module}.choose_tokens", lambda is_special, rate, starts_word=None: ~is_special)
        monkeypatch.setattr(f"{module}.mask_tokens", self.mask)

    @staticmethod
    def mask(input_ids: Tensor, chosen: Tensor, *, mask_token_id: int, replacements: Tensor, **shares: float):
        chosen = chosen & (input_ids % 3 == 0)
        masked = torch.where(chosen & (input_ids % 2 == 0), mask_token_id, input_ids)
        masked = torch.where(chosen & (input_ids % 9 == 0), input_ids + 1, masked)
        return masked, torch.where(chosen, input_ids, -100)


def saved_once(
    text_config: Callable[..., PreTrainedConfig], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., str]:
    """A function that saves each masked language model, by kind and overrides, once, and returns its folder."""
    made: dict[str, str] = {}

    def build(kind: str = "bert", **overrides) -> str:
        key = f"{kind}-{sorted(overrides.items())}"
        if key not in made:
            made[key] = saved(masked_lm(text_config, kind, **overrides), tmp_path_factory.mktemp(kind))
        return made[key]

    return build
