"""In unsupervised training dropout is the augmentation: it must be alive, and said."""

from __future__ import annotations

import pytest
import torch
from conftest import BACKBONES

from simcse_hf import SimCSEConfig, SimCSEModel
from simcse_hf.dropout_audit import audit_dropout

SENTENCE = torch.tensor([2, 50, 60, 70, 80, 3])
NAMES = {
    "distilbert": ("dropout", "attention_dropout"),
    "modernbert": ("mlp_dropout", "attention_dropout"),
}


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize(("hidden", "attention"), [(0.0, 0.0), (0.2, 0.0), (0.0, 0.3)])
def test_the_audit_says_what_is_alive(kind, hidden, attention, text_config):
    hidden_name, attention_name = NAMES.get(kind, ("hidden_dropout_prob", "attention_probs_dropout_prob"))
    config = text_config(kind, **{hidden_name: hidden, attention_name: attention})
    audit = audit_dropout(SimCSEModel(SimCSEConfig(text_config=config, pooler_type="avg")), SENTENCE)
    # ModernBERT drops the attention's output, a hidden state, with the attention's probability.
    assert audit.hidden == pytest.approx(max(hidden, attention) if kind == "modernbert" else hidden)
    assert audit.attention == audit.attention_configured == pytest.approx(attention)
    assert audit.views_differ is (hidden > 0 or attention > 0)
    assert ("IDENTICAL" in str(audit)) is not audit.views_differ


def test_a_kernel_that_ignores_attention_dropout_is_named(text_config):
    model = SimCSEModel(SimCSEConfig(text_config=text_config(), pooler_type="avg"))
    model.backbone.config._attn_implementation_internal = "flash_attention_3"
    model.embed = lambda ids, mask: (torch.randn(2, 32), None)
    audit = audit_dropout(model, SENTENCE)
    assert (audit.attention, audit.attention_configured) == (0.0, 0.1)
    assert "asks for attention dropout 0.1, which this kernel ignores" in str(audit)


def test_the_audit_changes_neither_mode_nor_random_state(text_config):
    model = SimCSEModel(SimCSEConfig(text_config=text_config())).eval()
    state = torch.random.get_rng_state()
    audit_dropout(model, SENTENCE)
    assert not model.training and torch.equal(torch.random.get_rng_state(), state)
