"""The masked-LM loss beside the contrastive one: against a twin that reads one sentence at a time."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import BACKBONES, says
from masked_models import (
    LIVE,
    MASK,
    VOCABULARY,
    MasksByToken,
    encoder_of,
    marked_batch,
    masked_lm,
    negative_log_probability,
    of_sentences,
    recorded,
    saved,
    saved_once,
    small_tokenizer,
)
from packed_batches import LENGTHS, LONGEST, PACKING, gradients
from safetensors.torch import load_file
from test_gradient_caching import kept_bytes
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM, BartConfig, BartModel

from simcse_hf import SimCSEModel
from simcse_hf.attention import packs
from simcse_hf.errors import ModelError
from simcse_hf.masked_lm import MaskedLanguageModel
from simcse_hf.running_means import RunningMeans

KINDS = list(BACKBONES)
MODULE = "simcse_hf.masked_lm"


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory, text_config: Callable) -> Callable[..., str]:
    """`folder_of("bert", **overrides)`: a masked language model, saved with its head."""
    return saved_once(text_config, tmp_path_factory)


def with_masked_lm(folder: str, *, weight: float = 0.1, probability: float = 0.3, **settings) -> SimCSEModel:
    model = encoder_of(folder, **settings)
    auxiliary = MaskedLanguageModel.from_pretrained(
        folder, model, small_tokenizer(), weight=weight, probability=probability
    )
    model.add_auxiliary("masked_lm", auxiliary)
    return model.double().train()


def auxiliary_loss(model: SimCSEModel, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    means = RunningMeans()
    loss = model.auxiliaries["masked_lm"](model, batch, model.embed_batch(**batch), means)
    return loss, means.pop()


def twin(folder: str, masked: list[list[int]], labels: list[list[int]]) -> tuple[float, float]:
    """Mean cross-entropy and accuracy, by transformers' own class, one sentence after another."""
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    losses, right = [], 0
    for sentence, wanted in zip(masked, labels, strict=True):
        ids = torch.tensor([sentence])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].tolist()
        for position, label in enumerate(wanted):
            if label >= 0:
                losses.append(negative_log_probability(logits[position], label))
                right += max(range(VOCABULARY), key=logits[position].__getitem__) == label
    return sum(losses) / len(losses), right / len(losses)


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_accuracy_are_those_of_transformers_sentence_by_sentence(kind, folder_of, monkeypatch):
    monkeypatch.setattr("simcse_hf.passes._CPU_PASS_TOKENS", 2 * LONGEST)  # several passes
    monkeypatch.setattr("simcse_hf.passes._CPU_BUCKET_SENTENCES", 5)
    model = with_masked_lm(folder_of(kind))
    calls = recorded(monkeypatch, f"{MODULE}.mask_tokens")
    batch = marked_batch(model, packed=packs(model.backbone.config))
    loss, means = auxiliary_loss(model, batch)
    masked, labels = (of_sentences(tensor, batch) for tensor in calls[0])
    assert sum(label >= 0 for sentence in labels for label in sentence) > 50
    assert any(token == MASK for sentence in masked for token in sentence)
    expected, accuracy = twin(folder_of(kind), masked, labels)
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    assert means == {"mlm_loss": pytest.approx(expected, abs=1e-9), "mlm_accuracy": pytest.approx(accuracy)}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in PACKING])
def test_packed_equals_padded_in_loss_and_gradients(kind, folder_of, monkeypatch):
    MasksByToken().install(monkeypatch, MODULE)
    model = with_masked_lm(folder_of(kind))
    found = []
    for packed in (True, False):
        loss, _ = auxiliary_loss(model, marked_batch(model, packed=packed))
        model.zero_grad()
        loss.backward()
        found.append((loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (packed_loss, packed_gradients), (padded_loss, padded_gradients) = found
    torch.testing.assert_close(packed_loss, padded_loss, atol=1e-10, rtol=0)
    assert packed_gradients.keys() == padded_gradients.keys() and len(packed_gradients) > 20
    for name, gradient in padded_gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, atol=1e-10, rtol=1e-8, msg=name)


@pytest.mark.parametrize("kind", ["bert", "modernbert", "deberta-v2"])
def test_gradient_caching_changes_neither_loss_nor_gradients(kind, folder_of, monkeypatch):
    monkeypatch.setattr("simcse_hf.passes._CPU_PASS_TOKENS", 2 * LONGEST)
    monkeypatch.setattr("simcse_hf.passes._CPU_BUCKET_SENTENCES", 2)
    model = with_masked_lm(folder_of(kind, **LIVE))
    batch = marked_batch(model, packed=packs(model.backbone.config))

    def step(cache_tokens: int | None) -> dict[str, Tensor]:
        model.gradient_cache_tokens = cache_tokens
        torch.manual_seed(3)
        loss = model(**batch).loss
        return {"loss": loss.detach()} | gradients(model, loss)

    plain, cached = step(None), step(2 * LONGEST)
    for name, tensor in plain.items():
        torch.testing.assert_close(cached[name], tensor, atol=1e-11, rtol=1e-9, msg=name)


def test_gradient_caching_cuts_the_batch_and_keeps_no_activations(folder_of, monkeypatch):
    model = with_masked_lm(folder_of(**LIVE))
    batch = marked_batch(model, packed=True, lengths=LENGTHS * 8)
    plain = kept_bytes(model, batch, None)
    passes = recorded(monkeypatch, f"{MODULE}.encode_tokens")
    cached = kept_bytes(model, batch, 2 * LONGEST)
    assert len(passes) > 15 and plain > 10 * cached


def test_the_weight_scales_it_and_it_is_added_to_the_contrastive_loss(folder_of, monkeypatch):
    MasksByToken().install(monkeypatch, MODULE)
    model = with_masked_lm(folder_of(), weight=0.7)
    batch = marked_batch(model, packed=True)
    alone, _ = auxiliary_loss(model, batch)
    with_it = model(**batch).loss
    model.auxiliaries["masked_lm"].weight = 0.0
    contrastive = model(**batch).loss
    assert alone > 0.1
    torch.testing.assert_close(with_it, contrastive + 0.7 * alone)


def test_special_tokens_and_filler_are_never_masked_and_masks_are_drawn_anew(folder_of, monkeypatch):
    model = with_masked_lm(folder_of(), probability=0.5)
    calls = recorded(monkeypatch, f"{MODULE}.mask_tokens")
    batch = marked_batch(model, packed=True)
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        auxiliary_loss(model, batch)
    special = batch["input_ids"] < 5
    assert special.sum() > 50
    for masked, labels in calls:
        assert torch.equal(masked[special], batch["input_ids"][special]) and (labels[special] == -100).all()
        assert 0.35 < (labels[~special] >= 0).double().mean() < 0.65
        assert not torch.isin(masked[masked != batch["input_ids"]], torch.tensor([0, 1, 2, 3])).any()
    assert torch.equal(calls[0][0], calls[2][0]) and not torch.equal(calls[0][0], calls[1][0])


def test_a_batch_in_which_nothing_was_chosen_has_the_loss_0_and_gradients(folder_of):
    model = with_masked_lm(folder_of(), probability=0.0)
    batch = marked_batch(model, packed=True)
    loss, means = auxiliary_loss(model, batch)
    assert loss.item() == 0 and means == {}
    assert gradients(model, model(**batch).loss)["auxiliaries.masked_lm.head.model.cls.predictions.bias"].norm() == 0


def test_logged_means_are_over_tokens_of_all_steps(folder_of, monkeypatch):
    model = with_masked_lm(folder_of())
    calls, means = recorded(monkeypatch, f"{MODULE}.mask_tokens"), RunningMeans()
    losses, counts = [], []
    for lengths in ([5, 9, 3, 30], [60, 50, 40, 64]):
        batch = marked_batch(model, packed=True, lengths=lengths, views=2)
        losses.append(model.auxiliaries["masked_lm"](model, batch, model.embed_batch(**batch), means).item())
        counts.append(int((calls[-1][1] >= 0).sum()))
    assert counts[1] > 2 * counts[0] > 0 and abs(losses[0] - losses[1]) > 1e-3
    expected = (losses[0] * counts[0] + losses[1] * counts[1]) / sum(counts)
    assert means.pop()["mlm_loss"] == pytest.approx(expected, abs=1e-9)
    model(**batch)
    assert set(model.means.pop()) == {"contrastive_loss", "mlm_loss", "mlm_accuracy"}


def test_a_few_steps_lower_it(folder_of):
    model = with_masked_lm(folder_of(**LIVE), weight=1.0)
    batch = marked_batch(model, packed=True)
    ids = batch["input_ids"]
    batch["input_ids"] = torch.where(ids < 5, ids, 5 + ids % 4)  # four words: something to be learned
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def measured() -> float:
        torch.manual_seed(11)
        with torch.no_grad():
            return auxiliary_loss(model, batch)[0].item()

    before = measured()
    for _ in range(10):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    assert measured() < 0.7 * before


# --- the head -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_vocabulary_is_projected_by_the_encoders_own_embeddings_and_they_learn_from_it(kind, folder_of):
    model = with_masked_lm(folder_of(kind))
    table = model.backbone.get_input_embeddings().weight
    head = model.auxiliaries["masked_lm"].head
    vectors = torch.randn(3, 32, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(head(vectors, model.backbone)[:, 50].sum(), table)
    assert gradient[50].norm() > 0.1 and gradient[51].norm() == 0
    assert all(parameter.shape[:1] != (VOCABULARY,) or parameter.dim() == 1 for parameter in head.parameters())

    before = head(vectors, model.backbone)
    with torch.no_grad():
        table[50] += 1
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    model.to(torch.float64)
    after = head(vectors, model.backbone)
    changed = (after - before).abs().sum(dim=0) > 1e-6
    assert changed.nonzero().flatten().tolist() == [50], "tied after load_state_dict and to()"


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "deberta"])
def test_a_projection_of_its_own_stays_its_own(kind, folder_of, monkeypatch):
    folder = folder_of(kind, tie_word_embeddings=False)
    model = with_masked_lm(folder)
    calls = recorded(monkeypatch, f"{MODULE}.mask_tokens")
    batch = marked_batch(model, packed=packs(model.backbone.config))
    loss, _ = auxiliary_loss(model, batch)
    expected, _ = twin(folder, *(of_sentences(tensor, batch) for tensor in calls[0]))
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    head = model.auxiliaries["masked_lm"].head
    assert any(parameter.shape == (VOCABULARY, 32) for parameter in head.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_in_training_gets_a_gradient(kind, tied, folder_of):
    model = with_masked_lm(folder_of(kind, tie_word_embeddings=tied))
    model(**marked_batch(model, packed=packs(model.backbone.config))).loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_give_the_encoder_and_the_training_back(kind, folder_of, tmp_path):
    model = with_masked_lm(folder_of(kind))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = marked_batch(model, packed=packs(model.backbone.config))
    model(**batch).loss.backward()
    optimizer.step()
    model.float().save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    head = "auxiliaries.masked_lm.head."
    assert any(name.startswith(head) for name in stored)
    assert not any(
        name.startswith(head) and tensor.shape[0] == VOCABULARY and tensor.dim() == 2 for name, tensor in stored.items()
    )

    alone = SimCSEModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(alone.embed_batch(**batch), model.eval().embed_batch(**batch), atol=0, rtol=0)

    resumed = with_masked_lm(folder_of(kind)).float()
    report = resumed.load_state_dict(stored, strict=False)
    assert not report.missing_keys and not report.unexpected_keys
    losses = []
    for each in (model, resumed):
        torch.manual_seed(2)
        losses.append(auxiliary_loss(each.train(), batch)[0])
    assert losses[0] == losses[1] > 0


def test_it_may_be_tied_again_and_copied(folder_of):
    model = with_masked_lm(folder_of())
    batch = marked_batch(model, packed=True)
    model.tie_weights()
    twin_model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.manual_seed(1)
    assert twin_model(**batch).loss.isfinite() and auxiliary_loss(twin_model, batch)[0] > 0


@pytest.mark.parametrize("kind", ["bert", "electra"])
def test_a_checkpoint_without_head_gets_a_fresh_one_and_one_line(kind, folder_of, tmp_path, caplog):
    AutoModel.from_pretrained(folder_of(kind)).save_pretrained(tmp_path)
    small_tokenizer().save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger=MODULE):
        model = with_masked_lm(str(tmp_path))
    lines = [record for record in caplog.records if record.name == MODULE]
    assert len(lines) == 1
    says(lines[0].getMessage(), str(tmp_path), "no pretrained masked-LM head", "random")
    assert model(**marked_batch(model, packed=True)).loss.isfinite()


def test_a_checkpoint_with_head_says_nothing(folder_of, caplog):
    with caplog.at_level(logging.WARNING, logger=MODULE):
        with_masked_lm(folder_of("roberta"))
    assert not [record for record in caplog.records if record.name == MODULE]


# --- what is refused ----------------------------------------------------------------------------------------------------


def test_encoders_without_a_masked_lm_class_are_refused(folder_of):
    model = encoder_of(folder_of())
    model.backbone = BartModel(
        BartConfig(vocab_size=60, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8, decoder_ffn_dim=8)
    )
    with pytest.raises(ModelError) as caught:
        MaskedLanguageModel.from_pretrained(folder_of(), model, small_tokenizer())
    says(str(caught.value), "'bart'", "Train without")


def test_tokenizers_that_cannot_mask_are_refused(folder_of):
    model = encoder_of(folder_of())
    tokenizer = small_tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(ModelError, match="no mask token"):
        MaskedLanguageModel.from_pretrained(folder_of(), model, tokenizer)
    larger = small_tokenizer()
    larger.add_tokens(["하나", "둘"])
    with pytest.raises(ModelError, match="do not belong together"):
        MaskedLanguageModel.from_pretrained(folder_of(), model, larger)


def test_weights_of_another_shape_are_refused(folder_of, text_config, tmp_path):
    model = encoder_of(folder_of())
    other = saved(masked_lm(text_config, intermediate_size=48), Path(tmp_path))
    with pytest.raises(ModelError, match="do not fit"):
        MaskedLanguageModel.from_pretrained(other, model, small_tokenizer())
