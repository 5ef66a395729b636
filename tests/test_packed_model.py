"""Packed equals padded: vectors, loss and every gradient; and with dropout, the same distribution."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import BACKBONES, POOLERS
from packed_batches import LENGTHS, LONGEST, PACKING, gradients, sentences, tiny, views_batch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from simcse_hf import SimCSEModel
from simcse_hf.backbones import first_position
from simcse_hf.batch_losses import contrastive_loss
from simcse_hf.packing import RowLayout
from simcse_hf.pooling import pool

# Row shape, block mask or dense runs, and the most tokens of a pass.
PATHS = {
    "one row": (RowLayout(1024), False, 1024),
    "rows with filler": (RowLayout(LONGEST), False, 1024),
    "several passes": (RowLayout(LONGEST), False, 2 * LONGEST),
    "block mask": (RowLayout(128, 4), True, 1024),
    "block mask, several passes": (RowLayout(LONGEST, 2), True, 2 * LONGEST),
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def padded_twin(model: SimCSEModel) -> SimCSEModel:
    """The same weights with transformers' own attention, spelled out where that has float64."""
    twin = SimCSEModel(copy.deepcopy(model.config))
    twin.load_state_dict(model.state_dict())
    # ModernBERT's eager softmax is float32, where the float64 mask is minus infinity.
    eager = model.dtype == torch.float32 or model.backbone.config.model_type != "modernbert"
    twin.backbone.set_attn_implementation("eager" if eager else "sdpa")
    assert twin.row_layout() is None
    return twin.to(model.dtype).train(model.training)


def results(model: SimCSEModel, embeddings: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    loss, _ = contrastive_loss(embeddings, batch["sentence_ids"], model.config)
    return {"embeddings": embeddings.detach(), "loss": loss.detach(), **gradients(model, loss)}


@pytest.mark.parametrize(
    ("pooler_type", "dtype"),
    [(pooler_type, torch.float32) for pooler_type in POOLERS] + [("cls", torch.float64)],
    ids=str,
)
@pytest.mark.parametrize("kind", PACKING)
def test_packed_gives_the_vectors_the_loss_and_every_gradient_of_padded(
    kind, pooler_type, dtype, text_config, monkeypatch
):
    model = tiny(text_config, kind, pooler_type).to(dtype)
    twin = padded_twin(model)
    batch = views_batch(twin, None)
    assert batch["input_ids"].shape[2] == LONGEST and 1 in LENGTHS, "single tokens beside the longest sentence"
    flat = twin.embed(batch["input_ids"].flatten(0, 1), batch["attention_mask"].flatten(0, 1))[0]
    expected = results(twin, flat.unflatten(0, batch["input_ids"].shape[:2]), batch)
    zero = [name for name, tensor in expected.items() if tensor.abs().max() < 1e-4]
    assert not [name for name in zero if "key.bias" not in name and "k_lin.bias" not in name], f"vacuous: {zero}"
    for path, (layout, block_mask, pass_tokens) in PATHS.items():
        monkeypatch.setattr("simcse_hf.passes._CPU_PASS_TOKENS", pass_tokens)
        model.compiled = block_mask  # chooses the attention; nothing is compiled here
        batch = views_batch(model, layout)
        found = results(model, model.embed_batch(**batch), batch)
        for name, tensor in expected.items():
            torch.testing.assert_close(
                found[name], tensor, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype], msg=f"{path}, {name}"
            )


# --- what a sentence may see ----------------------------------------------------------------------------------------


def with_other_neighbours() -> tuple[list[np.ndarray], list[np.ndarray], int]:
    """Two lists that agree in one sentence only."""
    first, second, kept = sentences(), sentences(seed=1), 7
    second[kept] = first[kept]
    assert not any(np.array_equal(a, b) for n, (a, b) in enumerate(zip(first, second, strict=True)) if n != kept)
    return first, second, kept


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", PACKING)
def test_a_sentence_does_not_see_its_neighbours(kind, path, text_config, monkeypatch):
    layout, block_mask, pass_tokens = PATHS[path]
    monkeypatch.setattr("simcse_hf.passes._CPU_PASS_TOKENS", pass_tokens)
    model = tiny(text_config, kind).double().eval()
    model.compiled = block_mask
    *versions, kept = with_other_neighbours()
    with torch.no_grad():
        one, other = (model.embed_batch(**views_batch(model, layout, some)).flatten(0, 1) for some in versions)
    moved = (one - other).abs().amax(dim=1)
    assert moved[kept] < 1e-12
    assert moved[torch.arange(len(moved)) != kept].min() > 1e-2, "the neighbours did not change"


@pytest.mark.parametrize("kind", PACKING)
def test_positions_alone_would_let_sentences_see_each_other(kind, text_config):
    """Why there is a packed attention: transformers' SDPA gets the same rows and leaks."""
    model = tiny(text_config, kind).double().eval()
    model.backbone.set_attn_implementation("sdpa")
    *versions, kept = with_other_neighbours()
    vectors = []
    for some in versions:
        batch = views_batch(model, RowLayout(1024), some)
        with torch.no_grad():
            hidden = model.backbone(
                input_ids=batch["input_ids"], position_ids=batch["position_ids"] + first_position(model.backbone.config)
            ).last_hidden_state
        vectors.append(hidden.flatten(0, 1)[batch["sentence_starts"].flatten()[kept]])
    assert (vectors[0] - vectors[1]).abs().max() > 1e-3


@pytest.mark.parametrize("block_mask", [False, True])
def test_what_fills_a_row_is_not_seen(block_mask, text_config):
    model = tiny(text_config).double().eval()
    model.compiled = block_mask
    batch = views_batch(model, RowLayout(LONGEST, 4))
    filler = torch.ones_like(batch["input_ids"], dtype=torch.bool).flatten()
    for start, length in zip(batch["sentence_starts"].flatten(), batch["sentence_lengths"].flatten(), strict=True):
        filler[start : start + length] = False
    assert filler.sum() > LONGEST
    noisy = batch["input_ids"].masked_fill(filler.view_as(batch["input_ids"]), 59)
    with torch.no_grad():
        plain, disturbed = model.embed_batch(**batch), model.embed_batch(**batch | {"input_ids": noisy})
    torch.testing.assert_close(plain, disturbed, atol=1e-12, rtol=0)


def test_a_longer_sentence_than_a_row_gets_longer_rows(text_config):
    model = tiny(text_config).double()
    longer = views_batch(model, RowLayout(24))
    assert longer["input_ids"].shape[1] == 72, "three times 24 hold the 64 tokens"
    expected = model.embed_batch(**views_batch(model, RowLayout(1024)))
    torch.testing.assert_close(model.embed_batch(**longer), expected, atol=1e-12, rtol=0)


# --- encoders that do not pack --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["deberta", "deberta-v2"])
def test_deberta_is_padded_and_trains(kind, text_config):
    model = tiny(text_config, kind)
    assert model.row_layout() is None
    found = gradients(model, model(**views_batch(model, model.row_layout())).loss)
    assert all(gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize("kind", sorted(BACKBONES.keys() & PACKING))
def test_eager_attention_is_padded_and_gives_the_same(kind, backbone_dir):
    options = {"pooler_type": "avg", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    packing, eager = (
        SimCSEModel.from_backbone(str(backbone_dir(kind)), attn_implementation=attention, **options)
        for attention in (None, "eager")
    )
    assert packing.row_layout() == RowLayout(1024) and eager.row_layout() is None
    outputs = [model(**views_batch(model, model.row_layout())) for model in (packing, eager)]
    torch.testing.assert_close(outputs[0].embeddings, outputs[1].embeddings, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss, atol=1e-5, rtol=1e-5)


def test_a_decoder_does_not_pack(text_config):
    assert tiny(text_config, is_decoder=True).row_layout() is None


# --- dropout --------------------------------------------------------------------------------------------------------

SPECIMENS = (5, 9)  # tokens of the sentences that are drawn again and again
DRAWS = 1000
# Of a size that either of them, when missing, shows in the variance.
DROPOUTS = {"hidden_dropout": 0.05, "attention_dropout": 0.4}
LEVEL = 1e-4  # at which each of the tests below refuses by chance, all its comparisons together


@pytest.mark.parametrize("block_mask", [False, True])
@pytest.mark.parametrize("which", ["hidden_dropout", "attention_dropout"])
@pytest.mark.parametrize("kind", PACKING)
def test_each_dropout_alone_is_alive(kind, which, block_mask, text_config):
    model = tiny(text_config, kind, **{which: 0.1})
    model.compiled = block_mask
    batch = views_batch(model, RowLayout(256))
    with torch.no_grad():
        first, second = model.embed_batch(**batch), model.embed_batch(**batch)
        assert (first - second).abs().amax(dim=-1)[batch["sentence_lengths"] > 2].min() > 1e-4
        model.eval()
        assert torch.equal(model.embed_batch(**batch), model.embed_batch(**batch))


def draws(model: SimCSEModel, embed) -> Tensor:
    """(specimens, DRAWS, D): vectors of the same sentences, under ever new dropout masks."""
    repeated = [sentence for sentence in sentences(SPECIMENS) for _ in range(DRAWS)]
    with torch.no_grad():
        return embed(model, repeated).flatten(0, -2).double().unflatten(0, (len(SPECIMENS), DRAWS))


def packed(model: SimCSEModel, repeated: list[np.ndarray]) -> Tensor:
    return model.embed_batch(**views_batch(model, RowLayout(256), repeated, views=1))


def padded(model: SimCSEModel, repeated: list[np.ndarray]) -> Tensor:
    """transformers and PyTorch alone: neither our attention nor our dropout."""
    twin = padded_twin(model)
    batch = views_batch(twin, None, repeated, views=1)
    ids, mask = batch["input_ids"].flatten(0, 1), batch["attention_mask"].flatten(0, 1)
    return pool("avg", (twin.backbone(input_ids=ids, attention_mask=mask).last_hidden_state,), mask)


def surprises(left: Tensor, right: Tensor) -> dict[str, float]:
    """Largest z-score among the coordinates of both sentences, for each statistic.    (S, M, D) each"""
    found = {}
    moments = {
        "mean": lambda vectors: vectors,
        "variance": lambda vectors: (vectors - vectors.mean(dim=1, keepdim=True)).square(),
        # Sentences of a batch must not share their masks: neighbours' products average to zero.
        "neighbours": lambda vectors: (centred := vectors - vectors.mean(dim=1, keepdim=True))[:, 1:] * centred[:, :-1],
    }
    for name, moment in moments.items():
        terms = [moment(vectors) for vectors in (left, right)]
        difference = terms[0].mean(dim=1) - terms[1].mean(dim=1)
        error = sum(term.var(dim=1) / term.shape[1] for term in terms).sqrt()
        found[name] = (difference / error).abs().max().item()
    return found


def critical(model: SimCSEModel) -> float:
    """The z-score that one of all comparisons exceeds with probability LEVEL (Bonferroni)."""
    comparisons = 3 * len(SPECIMENS) * model.config.text_config.hidden_size
    return torch.special.ndtri(torch.tensor(1 - LEVEL / comparisons / 2, dtype=torch.float64)).item()


@pytest.mark.parametrize("block_mask", [False, True], ids=["dense runs", "block mask"])
@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert"])
def test_with_dropout_packed_vectors_have_the_distribution_of_padded_ones(kind, block_mask, text_config):
    model = tiny(text_config, kind, **DROPOUTS)
    reference = draws(model, padded)
    model.compiled = block_mask
    found = surprises(draws(model, packed), reference)
    assert max(found.values()) < critical(model), found


@pytest.mark.parametrize("which", ["hidden_dropout", "attention_dropout"])
def test_that_test_notices_a_dropout_that_is_not_applied(which, text_config):
    model = tiny(text_config, **DROPOUTS)
    lacking = tiny(text_config, **DROPOUTS | {which: 0.0})
    assert surprises(draws(lacking, packed), draws(model, padded))["variance"] > critical(model)


def test_that_test_notices_sentences_that_share_their_masks(text_config):
    model = tiny(text_config, **DROPOUTS)
    twice = draws(model, packed)[:, : DRAWS // 2].repeat_interleave(2, dim=1)
    assert surprises(twice, draws(model, padded))["neighbours"] > critical(model)


# --- compiled -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_a_compiled_encoder_meets_two_shapes_at_most_and_gives_the_same(kind, text_config):
    """Batches of one pass look their tokens up within the compiled code, longer ones before it: two graphs."""
    model = tiny(text_config, kind)
    generator = np.random.default_rng(0)
    batches = [generator.integers(1, LONGEST + 1, size=3 * items) for items in (4, 8, 40, 5, 60, 31)]
    expected, found = [], []
    for lengths in batches:
        batch = views_batch(model, RowLayout(1024), sentences(lengths))
        output = model(**batch)
        expected.append({"embeddings": output.embeddings.detach(), **gradients(model, output.loss)})
    torch._dynamo.reset()
    counter = CompileCounter()
    model.compile_encoder(backend=counter)
    shapes = set()
    for lengths in batches:
        batch = views_batch(model, model.row_layout(), sentences(lengths))
        shapes.add(tuple(batch["input_ids"].shape))
        output = model(**batch)
        found.append({"embeddings": output.embeddings.detach(), **gradients(model, output.loss)})
    torch._dynamo.reset()
    assert len(shapes) > 2 and 1 <= counter.frame_count <= 2, (shapes, counter.frame_count)
    for plain, compiled in zip(expected, found, strict=True):
        for name, tensor in plain.items():
            torch.testing.assert_close(compiled[name], tensor, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize(("kind", "attention"), [("bert", "eager"), ("deberta", None)])
def test_packed_rows_for_an_encoder_that_does_not_pack_are_refused(kind, attention, text_config):
    """They were computed, and their sentences saw each other."""
    model = tiny(text_config, kind)
    if attention:
        model.backbone.set_attn_implementation(attention)
    with pytest.raises(ValueError, match="does not take packed rows. Pad the batch"):
        model(**views_batch(model, RowLayout(LONGEST)))
