"""The projections between pooled vectors and loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig

from simcse_hf import SimCSEConfig, SimCSEModel
from simcse_hf.heads import BatchNormHead, SimCSEHead, batch_normalize


def test_batch_normalisation_is_that_of_pytorch() -> None:
    vectors = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    theirs = nn.BatchNorm1d(4, affine=False, dtype=torch.float64)(vectors)
    torch.testing.assert_close(batch_normalize(vectors), theirs, atol=1e-12, rtol=0)
    weights = torch.randn(7, 4, dtype=torch.float64)
    (ours,) = torch.autograd.grad((batch_normalize(vectors) * weights).sum(), vectors)
    (expected,) = torch.autograd.grad((theirs * weights).sum(), vectors)
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)


def test_half_precision_is_normalised_in_float32() -> None:
    vectors = torch.randn(64, 3) * 1e-2 + 100
    assert batch_normalize(vectors.bfloat16()).dtype == torch.float32


def test_the_projection_of_diffcse_is_that_of_its_layers() -> None:
    head = BatchNormHead(4).double()
    nn.init.normal_(head.scale)
    nn.init.normal_(head.shift)
    norm = nn.BatchNorm1d(8, dtype=torch.float64)
    norm.load_state_dict(norm.state_dict() | {"weight": head.scale.data, "bias": head.shift.data})
    layers = nn.Sequential(
        head.expand, norm, nn.ReLU(), head.reduce, nn.BatchNorm1d(4, affine=False, dtype=torch.float64)
    )
    vectors = torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(head(vectors), layers(vectors), atol=1e-12, rtol=0)
    assert not any(name.endswith(".bias") for name, _ in head.named_parameters())


@pytest.mark.parametrize("cached", [None, 8])
def test_statistics_are_of_the_batch_and_not_of_a_pass(text_config, cached) -> None:
    """On a CPU a batch goes through the encoder in passes; the head comes after them."""
    config = text_config("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    settings = {"pooler_type": "cls", "head_type": "batchnorm", "mlp_only_train": True}
    model = SimCSEModel(SimCSEConfig(text_config=config, **settings)).train()
    model.gradient_cache_tokens = cached
    ids = torch.randint(5, 100, (20, 2, 30))
    ids[::2, :, 10:] = 0  # two lengths, and so several passes of the padded path
    mask = (ids != 0).long()
    vectors = model(ids, mask).embeddings.flatten(0, 1)
    torch.testing.assert_close(vectors.mean(dim=0), torch.zeros(32), atol=1e-5, rtol=0)
    torch.testing.assert_close(vectors.var(dim=0, unbiased=False), torch.ones(32), atol=1e-2, rtol=0)
    # In evaluation the vector is the first token's.
    sentence = model.eval()(ids[:1, 0], mask[:1, 0])
    torch.testing.assert_close(sentence.pooler_output, sentence.last_hidden_state[:, 0])


def test_a_head_may_be_smaller_where_it_is_not_shipped() -> None:
    config = SimCSEConfig(text_config=BertConfig(hidden_size=12), pooler_type="cls", mlp_only_train=True, head_size=4)
    head = SimCSEHead(12, config.head_size)
    assert head(torch.randn(3, 12)).shape == (3, 4)


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({"head_type": "batchnorm"}, "cannot be part of the shipped vector"),
        ({"head_size": 4}, "head_size is 4"),
        ({"head_size": 0, "mlp_only_train": True}, "head_size is 0"),
        ({"head_size": 4, "mlp_only_train": True, "head_type": "batchnorm"}, "head_size is 4"),
        ({"matryoshka_dims": [4, 13]}, "between 1 and 12"),
        ({"matryoshka_dims": []}, "between 1 and 12"),
        ({"matryoshka_dims": [4], "mlp_only_train": True}, "mlp_only_train ships others"),
        ({"matryoshka_dims": [5], "scored_loss": "angle"}, "even sizes"),
        ({"contrastive_weight": -1.0}, "contrastive_weight is -1.0"),
    ],
)
def test_combinations_without_meaning_are_refused(settings, fragment) -> None:
    with pytest.raises(ValueError, match=fragment):
        SimCSEConfig(text_config=BertConfig(hidden_size=12), **{"pooler_type": "cls"} | settings)
