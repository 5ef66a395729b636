"""DiffCSE: what is corrupted, what is labelled, how the discriminator is conditioned, and what learns from it."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import BACKBONES, says
from masked_models import (
    LIVE,
    MASK,
    PAD,
    SEP,
    VOCABULARY,
    MasksByToken,
    encoder_of,
    marked_batch,
    marked_sentences,
    masked_lm,
    negative_log_probability,
    of_sentences,
    recorded,
    saved_once,
    small_tokenizer,
)
from packed_batches import LENGTHS, LONGEST, PACKING, gradients, views_batch
from safetensors.torch import load_file
from test_distributed import spawn
from test_gradient_caching import kept_bytes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AlbertConfig, AlbertModel, AutoModelForMaskedLM, T5Config, T5EncoderModel
from transformers.modeling_utils import PreTrainedModel

from simcse_hf import SimCSEModel
from simcse_hf.attention import packs
from simcse_hf.corruption import LEGACY_DIFFCSE, LEGACY_KODIFFCSE, OURS, DiffCSESettings, static_choice
from simcse_hf.errors import ModelError
from simcse_hf.masked_lm import MaskedLanguageModel
from simcse_hf.packing import RowLayout
from simcse_hf.replaced_token_detection import VARIANTS, ReplacedTokenDetection
from simcse_hf.running_means import RunningMeans
from simcse_hf.token_passes import TokenBatch

KINDS = list(BACKBONES)
CORRUPTION = "simcse_hf.corruption"
SHORT = [9, 4, 17, 5, 12, 7, 3, 20]  # two views of four items


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory, text_config: Callable) -> Callable[..., str]:
    """`folder_of("bert", **overrides)`: a masked language model, saved with its head."""
    return saved_once(text_config, tmp_path_factory)


@pytest.fixture
def made(folder_of) -> Callable[..., SimCSEModel]:
    """`made("bert", settings=..., **overrides)`: an encoder with DiffCSE, and another model as the generator."""

    def build(
        kind: str = "bert",
        *,
        generator: str | None = None,
        settings: DiffCSESettings = OURS,
        weight: float = 0.5,
        ratio: float = 0.3,
        **overrides,
    ) -> SimCSEModel:
        model = encoder_of(folder_of(kind, **overrides))
        auxiliary = ReplacedTokenDetection.from_pretrained(
            folder_of(generator or kind, seed=7, **overrides),
            model,
            small_tokenizer(),
            weight=weight,
            masking_ratio=ratio,
            settings=settings,
            max_seq_length=LONGEST,
        )
        nn.init.normal_(auxiliary.head.bias)
        model.add_auxiliary("replaced_tokens", auxiliary)
        return model.double().train()

    return build


def batch_of(model: SimCSEModel, lengths=LENGTHS, views: int = 3) -> dict[str, Tensor]:
    return marked_batch(model, packed=model.row_layout() is not None, lengths=lengths, views=views)


def auxiliary_loss(model: SimCSEModel, batch: dict[str, Tensor], embeddings: Tensor | None = None):
    means = RunningMeans()
    embeddings = model.embed_batch(**batch) if embeddings is None else embeddings
    loss = model.auxiliaries["replaced_tokens"](model, batch, embeddings, means)
    return loss, means.pop()


def first_layer(backbone: PreTrainedModel) -> nn.Module:
    return max((part for part in backbone.modules() if isinstance(part, nn.ModuleList)), key=len)[0]


def logits_of(auxiliary: ReplacedTokenDetection, ids: list[int], vector: Tensor, mask: list[int] | None = None):
    """One sentence alone; its first position is replaced where the first layer takes it in."""
    discriminator = auxiliary.discriminator

    def replaced(module, arguments, options):
        hidden = arguments[0].clone()
        hidden[0, 0] = vector
        return (hidden, *arguments[1:]), options

    handle = first_layer(discriminator).register_forward_pre_hook(replaced, with_kwargs=True)
    tokens = torch.tensor([ids])
    attention_mask = torch.ones_like(tokens) if mask is None else torch.tensor([mask])
    hidden = discriminator(input_ids=tokens, attention_mask=attention_mask).last_hidden_state
    handle.remove()
    return auxiliary.head(hidden)[0].tolist()


def guesses(
    folder: str, masked: list[list[int]], chosen: list[list[bool]], original: list[list[int]]
) -> list[list[int]]:
    """The generator's own class, one sentence after another; 0 is padding."""
    generator = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    corrupted = []
    for sentence, places, ids in zip(masked, chosen, original, strict=True):
        tokens = torch.tensor([sentence])
        logits = generator(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0].tolist()
        corrupted.append(
            [
                max(range(1, VOCABULARY), key=row.__getitem__) if place else own
                for row, place, own in zip(logits, places, ids, strict=True)
            ]
        )
    return corrupted


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_corruption_and_loss_are_those_of_transformers_sentence_by_sentence(kind, made, folder_of, monkeypatch):
    monkeypatch.setattr("simcse_hf.passes._CPU_PASS_TOKENS", 2 * LONGEST)  # several passes
    monkeypatch.setattr("simcse_hf.passes._CPU_BUCKET_SENTENCES", 5)
    model = made(kind)
    masks = recorded(monkeypatch, f"{CORRUPTION}.mask_tokens")
    choices = recorded(monkeypatch, f"{CORRUPTION}.choose_tokens")
    corruptions = recorded(monkeypatch, "simcse_hf.replaced_token_detection.finish_corruption")
    batch = batch_of(model)
    assert ("sentence_starts" in batch) == packs(model.backbone.config)
    embeddings = model.embed_batch(**batch).detach()
    loss, means = auxiliary_loss(model, batch, embeddings)

    original = of_sentences(batch["input_ids"], batch)
    masked, chosen, corrupted = (of_sentences(found, batch) for found in (masks[0][0], choices[0], corruptions[0]))
    assert any(token == MASK for sentence in masked for token in sentence)
    assert corrupted == guesses(folder_of(kind, seed=7), masked, chosen, original)
    losses = {0: [], 1: []}
    right = {0: 0, 1: 0}
    for ids, spoiled, vector in zip(original, corrupted, embeddings.flatten(0, 1), strict=True):
        for own, shown, row in zip(
            ids, spoiled, logits_of(model.auxiliaries["replaced_tokens"], spoiled, vector), strict=True
        ):
            label = int(own != shown)
            losses[label].append(negative_log_probability(row, label))
            right[label] += row[label] > row[1 - label]
    count = len(losses[0]) + len(losses[1])
    assert count == sum(LENGTHS) and len(losses[1]) > 40
    expected = (sum(losses[0]) + sum(losses[1])) / count
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    assert means == {
        "rtd_loss": pytest.approx(expected, abs=1e-9),
        "rtd_accuracy": pytest.approx((right[0] + right[1]) / count),
        "rtd_accuracy_replaced": pytest.approx(right[1] / len(losses[1])),
        "rtd_accuracy_kept": pytest.approx(right[0] / len(losses[0])),
        "replaced_share": pytest.approx(len(losses[1]) / count),
    }


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in PACKING])
def test_packed_equals_padded_in_loss_and_gradients(kind, made, monkeypatch):
    MasksByToken().install(monkeypatch, CORRUPTION)
    model = made(kind)
    found = []
    for packed in (True, False):
        loss, _ = auxiliary_loss(model, marked_batch(model, packed=packed))
        model.zero_grad()
        loss.backward()
        found.append((loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (packed_loss, packed_gradients), (padded_loss, padded_gradients) = found
    torch.testing.assert_close(packed_loss, padded_loss, atol=1e-10, rtol=0)
    assert packed_gradients.keys() == padded_gradients.keys() and len(packed_gradients) > 40
    for name, gradient in padded_gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, atol=1e-10, rtol=1e-8, msg=name)


@pytest.mark.parametrize("kind", ["bert", "electra", "deberta-v2"])
def test_gradient_caching_changes_neither_loss_nor_gradients(kind, made, monkeypatch):
    monkeypatch.setattr("simcse_hf.passes._CPU_PASS_TOKENS", 2 * LONGEST)
    monkeypatch.setattr("simcse_hf.passes._CPU_BUCKET_SENTENCES", 2)
    model = made(kind, **LIVE)
    batch = batch_of(model)

    def step(cache_tokens: int | None) -> dict[str, Tensor]:
        model.gradient_cache_tokens = cache_tokens
        torch.manual_seed(3)
        loss = model(**batch).loss
        return {"loss": loss.detach()} | gradients(model, loss)

    plain, cached = step(None), step(2 * LONGEST)
    assert plain["auxiliaries.replaced_tokens.head.weight"].norm() > 1e-3
    for name, tensor in plain.items():
        torch.testing.assert_close(cached[name], tensor, atol=1e-11, rtol=1e-9, msg=name)


def test_gradient_caching_cuts_the_batch_and_keeps_no_activations(made, monkeypatch):
    model = made(**LIVE)
    batch = batch_of(model, LENGTHS * 8)
    plain = kept_bytes(model, batch, None)
    generated = recorded(monkeypatch, "simcse_hf.generator.encode_tokens")
    told_apart = recorded(monkeypatch, "simcse_hf.replaced_token_detection.encode_tokens")
    cached = kept_bytes(model, batch, 2 * LONGEST)
    assert min(len(generated), len(told_apart)) > 15 and plain > 10 * cached


def test_the_weight_scales_it_and_it_is_added_to_the_contrastive_loss(made, monkeypatch):
    MasksByToken().install(monkeypatch, CORRUPTION)
    model = made(weight=0.5)
    batch = batch_of(model)
    alone, _ = auxiliary_loss(model, batch)
    with_it = model(**batch).loss
    model.auxiliaries["replaced_tokens"].weight = 0.0
    assert alone > 0.1
    torch.testing.assert_close(with_it, model(**batch).loss + 0.5 * alone)


def test_logged_means_are_over_tokens_of_all_steps(made):
    model, means = made(), RunningMeans()
    losses, counts = [], []
    for lengths in ([5, 9, 3, 30], [60, 50, 40, 64]):
        batch = batch_of(model, lengths, views=2)
        losses.append(model.auxiliaries["replaced_tokens"](model, batch, model.embed_batch(**batch), means).item())
        counts.append(sum(lengths))
    assert abs(losses[0] - losses[1]) > 1e-3
    expected = (losses[0] * counts[0] + losses[1] * counts[1]) / sum(counts)
    assert means.pop()["rtd_loss"] == pytest.approx(expected, abs=1e-9)


def test_both_losses_over_tokens_run_in_bfloat16_and_are_close_to_float32(folder_of, monkeypatch):
    MasksByToken().install(monkeypatch, CORRUPTION)
    MasksByToken().install(monkeypatch, "simcse_hf.masked_lm")
    model, halves = with_both(folder_of())
    model.float()
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = model(**halves[0]).loss
        found.append(model.means.pop())
        assert all(gradient.isfinite().all() for gradient in gradients(model, loss).values())
    assert found[0]["mlm_loss"] != found[1]["mlm_loss"], "no autocast: the test would be vacuous"
    for name in ("mlm_loss", "rtd_loss", "contrastive_loss"):
        assert found[1][name] == pytest.approx(found[0][name], rel=0.03), name


# --- the conditioning -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, packed", [(kind, packed) for kind in KINDS for packed in (True, False) if not packed or kind in PACKING]
)
def test_the_sentence_embedding_replaces_the_first_position_alone(kind, packed, made):
    """Behind the norm and the dropout of the embeddings, which would show in the vectors found."""
    model = made(kind, **LIVE)
    batch = marked_batch(model, packed=packed)
    seen = []
    handle = first_layer(model.auxiliaries["replaced_tokens"].discriminator).register_forward_pre_hook(
        lambda module, arguments: seen.append(arguments[0].detach())
    )
    embeddings = torch.randn(6, 3, 32, dtype=torch.float64)
    torch.manual_seed(0)
    auxiliary_loss(model, batch, embeddings)
    torch.manual_seed(0)
    auxiliary_loss(model, batch, embeddings + 1)
    handle.remove()
    assert len(seen) == 2
    differs = (seen[0] != seen[1]).any(dim=-1)
    assert differs.sum() == len(LENGTHS)
    found = {tuple(row.tolist()) for row in seen[0][differs]}
    assert found == {tuple(row.tolist()) for row in embeddings.flatten(0, 1)}, "the vectors themselves, each once"
    torch.testing.assert_close(seen[1][differs] - seen[0][differs], torch.ones(len(LENGTHS), 32, dtype=torch.float64))


def test_no_hook_is_left_behind(made):
    model = made()
    discriminator = model.auxiliaries["replaced_tokens"].discriminator
    ids = torch.tensor([[2, 7, 8, 3]])
    before = discriminator(input_ids=ids).last_hidden_state
    auxiliary_loss(model, batch_of(model))
    assert torch.equal(discriminator(input_ids=ids).last_hidden_state, before)
    with pytest.raises(RuntimeError):
        auxiliary_loss(model, batch_of(model), torch.zeros(6, 3, 5, dtype=torch.float64))
    assert torch.equal(discriminator(input_ids=ids).last_hidden_state, before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_reaches_the_encoder_through_the_embeddings_alone(kind, made):
    model = made(kind)
    batch = batch_of(model)
    loss, _ = auxiliary_loss(model, batch)
    loss.backward()
    of_encoder = {name: p.grad for name, p in model.backbone.named_parameters()}
    assert all(
        gradient is not None and gradient.norm() > 0 for name, gradient in of_encoder.items() if "bias" not in name
    )
    model.zero_grad()
    loss, _ = auxiliary_loss(model, batch, model.embed_batch(**batch).detach())
    loss.backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    own = model.auxiliaries["replaced_tokens"]
    assert all(p.grad is not None for p in own.parameters()) and own.head.weight.grad.norm() > 0


def test_it_passes_through_the_head_of_the_sentence_embedding(folder_of):
    model = encoder_of(folder_of(), pooler_type="cls", mlp_only_train=True, head_type="batchnorm")
    auxiliary = ReplacedTokenDetection.from_pretrained(
        folder_of(seed=7), model, small_tokenizer(), max_seq_length=LONGEST
    )
    model.add_auxiliary("replaced_tokens", auxiliary)
    model.double().train()
    loss, _ = auxiliary_loss(model, batch_of(model))
    loss.backward()
    assert model.head.expand.weight.grad.norm() > 0
    assert (auxiliary.weight, auxiliary.masking_ratio) == (0.005, 0.30)


# --- the generator, and what is trained ---------------------------------------------------------------------------------


def generator_tensors(model: SimCSEModel) -> list[Tensor]:
    generator = model.auxiliaries["replaced_tokens"].generator
    return [*generator._backbone.parameters(), *generator._head.parameters()]


def test_the_generator_is_frozen_still_and_in_no_checkpoint(made):
    model = made(**LIVE)
    before = [tensor.clone() for tensor in generator_tensors(model)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model.train()
    loss = model(**batch_of(model)).loss
    loss.backward()
    optimizer.step()
    tensors = generator_tensors(model)
    assert all(torch.equal(old, new) for old, new in zip(before, tensors, strict=True))
    assert not any(tensor.requires_grad or tensor.grad is not None for tensor in tensors)
    trained = {tensor.data_ptr() for tensor in model.parameters()}
    assert not trained & {tensor.data_ptr() for tensor in tensors}
    own = [name for name in model.state_dict() if name.startswith("auxiliaries.")]
    assert all(
        name.startswith(("auxiliaries.replaced_tokens.discriminator.", "auxiliaries.replaced_tokens.head."))
        for name in own
    )
    generator = model.auxiliaries["replaced_tokens"].generator
    assert not any(part.training for part in generator._backbone.modules())
    assert not any(part.training for part in generator._head.modules())
    assert model.auxiliaries["replaced_tokens"].discriminator.training


def test_the_generator_follows_the_model(made):
    model = made()
    assert {tensor.dtype for tensor in generator_tensors(model)} == {torch.float64}
    model.to(torch.float32)
    assert {tensor.dtype for tensor in generator_tensors(model)} == {torch.float32}
    copied = copy.deepcopy(model)
    assert not {t.data_ptr() for t in generator_tensors(model)} & {t.data_ptr() for t in generator_tensors(copied)}
    assert auxiliary_loss(copied, batch_of(copied))[0].isfinite()


@pytest.mark.parametrize("kind", KINDS)
def test_the_discriminator_is_a_copy_of_the_encoder_that_learns_apart_from_it(kind, made):
    model = made(kind)
    own = model.auxiliaries["replaced_tokens"].discriminator
    assert type(own) is type(model.backbone) and getattr(own, "pooler", None) is None
    pairs = list(zip(own.parameters(), model.backbone.parameters(), strict=True))
    assert all(torch.equal(left, right) and left.data_ptr() != right.data_ptr() for left, right in pairs)
    assert all(left.requires_grad for left, _ in pairs)
    model(**batch_of(model)).loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_generators_of_another_architecture_and_size(made, folder_of, tmp_path, text_config):
    model = made("bert", generator="electra")
    assert model.row_layout() is not None and auxiliary_loss(model, batch_of(model))[0] > 0
    model = made("bert", generator="deberta")
    assert model.row_layout() is None, "one of the two must be padded"
    assert auxiliary_loss(model, batch_of(model))[0] > 0
    with pytest.raises(ValueError, match="Pad the batch"):
        auxiliary_loss(model, marked_batch(model, packed=True))
    assert made("deberta", generator="bert").row_layout() is None


def test_masks_are_drawn_anew_and_special_tokens_and_padding_never_change(made, monkeypatch):
    model = made(ratio=0.6)
    corruptions = recorded(monkeypatch, "simcse_hf.replaced_token_detection.finish_corruption")
    for packed in (True, False):
        corruptions.clear()
        batch = marked_batch(model, packed=packed)
        for seed in (1, 2, 1):
            torch.manual_seed(seed)
            auxiliary_loss(model, batch)
        first, second, again = corruptions
        assert torch.equal(first, again) and not torch.equal(first, second)
        special = batch["input_ids"].view_as(first) < 5
        for found in (first, second):
            assert torch.equal(found[special], batch["input_ids"].view_as(first)[special])
            assert 0.4 < (found != batch["input_ids"].view_as(first))[~special].double().mean() < 0.8


def test_a_few_steps_lower_it(made):
    model = made(weight=1.0, **LIVE)
    model.config.contrastive_weight = 0.0
    batch = batch_of(model, SHORT, views=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def measured() -> float:
        torch.manual_seed(11)
        with torch.no_grad():
            return auxiliary_loss(model, batch)[0].item()

    before = measured()
    for _ in range(15):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    assert measured() < 0.8 * before


@pytest.mark.parametrize("kind", ["bert", "electra", "deberta"])
def test_checkpoints_give_the_encoder_and_the_training_back(kind, made, tmp_path):
    model = made(kind)
    batch = batch_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**batch).loss.backward()
    optimizer.step()
    model.float().save_pretrained(tmp_path)
    alone = SimCSEModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(alone.embed_batch(**batch), model.eval().embed_batch(**batch), atol=0, rtol=0)
    resumed = made(kind).float()
    report = resumed.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert not report.missing_keys and not report.unexpected_keys
    losses = []
    for each in (model, resumed):
        torch.manual_seed(2)
        losses.append(auxiliary_loss(each.train(), batch)[0])
    assert losses[0] == losses[1] > 0


# --- several processes ----------------------------------------------------------------------------------------------------


def with_both(folder: str) -> tuple[SimCSEModel, list[dict[str, Tensor]]]:
    """A model with both losses over tokens, and the halves of a batch with unequal numbers of tokens."""
    model = encoder_of(folder)
    tokenizer = small_tokenizer()
    model.add_auxiliary("masked_lm", MaskedLanguageModel.from_pretrained(folder, model, tokenizer, weight=0.7))
    torch.manual_seed(0)
    rtd = ReplacedTokenDetection.from_pretrained(folder, model, tokenizer, weight=0.5, max_seq_length=LONGEST)
    model.add_auxiliary("replaced_tokens", rtd)
    model.double().train()
    halves = [
        marked_batch(model, packed=True, lengths=lengths, views=2) for lengths in ([64, 50, 33, 40], [5, 3, 7, 9])
    ]
    halves[1]["sentence_ids"] += 100
    return model, halves


def synchronised_gradients(folder: str, index: int) -> dict[str, Tensor]:
    model, halves = with_both(folder)
    wrapped = DistributedDataParallel(model)
    return gradients(model, wrapped(**halves[index]).loss)


def worker(index: int, processes: int, port: int, folder: str, result: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    patch = pytest.MonkeyPatch()
    MasksByToken().install(patch, CORRUPTION)
    MasksByToken().install(patch, "simcse_hf.masked_lm")
    dist.init_process_group("gloo", rank=index, world_size=processes)
    try:
        found = synchronised_gradients(folder, index)
        if index == 0:
            torch.save(found, Path(result) / "gradients.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_give_the_gradients_of_one(folder_of, monkeypatch, tmp_path):
    MasksByToken().install(monkeypatch, CORRUPTION)
    MasksByToken().install(monkeypatch, "simcse_hf.masked_lm")
    spawn(worker, 2, folder_of(), str(tmp_path))
    model, _ = with_both(folder_of())
    sentences = marked_sentences([64, 50, 33, 40]) + marked_sentences([5, 3, 7, 9])
    whole = views_batch(model, RowLayout(LONGEST), sentences, views=2)
    expected = gradients(model, model(**whole).loss)
    found = torch.load(tmp_path / "gradients.pt")
    assert expected["auxiliaries.replaced_tokens.head.weight"].norm() > 1e-2
    assert expected["auxiliaries.masked_lm.head.model.cls.predictions.bias"].norm() > 1e-2
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-10, rtol=1e-7, msg=name)


# --- legacy switches ------------------------------------------------------------------------------------------------------


class Seen:
    """What one loss was computed from: what the generator saw and guessed, labels, and what was counted."""

    def __init__(self, model: SimCSEModel, batch: dict[str, Tensor], monkeypatch, *, seed: int = 5):
        with monkeypatch.context() as patch:
            shown = recorded(patch, f"{CORRUPTION}.mask_tokens")
            where = recorded(patch, "simcse_hf.replaced_token_detection.mask_for_generator")
            corrupted = recorded(patch, "simcse_hf.replaced_token_detection.finish_corruption")
            labels = recorded(patch, "simcse_hf.replaced_token_detection.replaced_labels")
            torch.manual_seed(seed)
            self.embeddings = torch.randn(*batch["sentence_ids"].shape, 32, dtype=torch.float64)
            self.loss, self.means = auxiliary_loss(model, batch, self.embeddings)
        self.masked, self.where, self.corrupted, self.labels = shown[0][0], where[0][1], corrupted[0], labels[0]
        self.parts = {"masked": self.masked, "where": self.where, "corrupted": self.corrupted, "labels": self.labels}


def only_differ(ours: Seen, legacy: Seen, *names: str) -> None:
    differing = {name for name, tensor in ours.parts.items() if not torch.equal(tensor, legacy.parts[name])}
    assert differing == set(names)


@pytest.fixture
def compared(made, monkeypatch) -> Callable[..., tuple[SimCSEModel, dict[str, Tensor], Seen, Seen]]:
    """`compared("always_mask")`: the same padded batch, our way and with one switch."""

    def build(switch: str, kind: str = "bert", **overrides):
        ours, legacy = made(kind, **overrides), made(kind, settings=DiffCSESettings(**{switch: True}), **overrides)
        batch = marked_batch(ours, packed=False, lengths=SHORT, views=2)
        return legacy, batch, Seen(ours, batch, monkeypatch), Seen(legacy, batch, monkeypatch)

    return build


def test_generator_dropout_changes_guesses_alone(compared):
    model, _, ours, legacy = compared("generator_dropout", **LIVE)
    assert model.auxiliaries["replaced_tokens"].generator._backbone.training
    only_differ(ours, legacy, "corrupted")
    assert not ((ours.corrupted != legacy.corrupted) & ~ours.where).any()


def test_predicting_everywhere_leaves_the_first_token_and_padding(compared):
    _, batch, ours, legacy = compared("predict_everywhere")
    real = batch["attention_mask"].flatten(0, 1).bool()
    only_differ(ours, legacy, "where", "corrupted", "labels")
    expected = real.clone()
    expected[:, 0] = False
    assert torch.equal(legacy.where, expected)
    assert torch.equal(legacy.corrupted[ours.where], ours.corrupted[ours.where]), "the same guesses where both guess"
    original = batch["input_ids"].flatten(0, 1)
    assert torch.equal(legacy.corrupted[~expected], original[~expected])
    assert (legacy.corrupted != original)[expected & ~ours.where].double().mean() > 0.5


def test_the_separator_may_stand_for_the_mask(compared):
    _, _, ours, legacy = compared("separator_as_mask")
    assert MASK in ours.masked and MASK not in legacy.masked
    assert torch.equal(legacy.masked, torch.where(ours.masked == MASK, SEP, ours.masked))
    assert torch.equal(ours.where, legacy.where)
    assert not ((ours.corrupted != legacy.corrupted) & ~ours.where).any()


def test_all_chosen_tokens_may_become_masks(compared):
    _, _, ours, legacy = compared("always_mask", ratio=0.9)
    assert torch.equal(ours.where, legacy.where)
    assert (legacy.masked[legacy.where] == MASK).all() and (ours.masked[ours.where] != MASK).any()
    assert torch.equal(ours.masked[~ours.where], legacy.masked[~legacy.where])


@pytest.mark.parametrize("ratio", [0.05, 0.15, 0.5])
def test_static_masks_are_of_the_sentence_and_its_view_and_of_an_exact_number(ratio, made, monkeypatch):
    model = made(settings=DiffCSESettings(static_masks=True), ratio=ratio)
    lengths = [20, 20, 33, 33, 3, 3, 64, 64]
    seen = {}
    for packed in (True, False):
        batch = marked_batch(model, packed=packed, lengths=lengths, views=2)
        batch["sentence_ids"] = torch.tensor([[4, 4], [9, 9], [2, 2], [0, 0]])
        found = [Seen(model, batch, monkeypatch, seed=seed) for seed in (1, 2)]
        assert torch.equal(found[0].where, found[1].where), "in every step"
        seen[packed] = of_sentences(found[0].where, batch)
    assert seen[True] == seen[False]
    original = of_sentences(batch["input_ids"], batch)
    for where, ids in zip(seen[True], original, strict=True):
        ordinary = sum(token >= 5 for token in ids)
        assert sum(where) == max(1, math.floor(ordinary * ratio))
        assert not any(place for place, token in zip(where, ids, strict=True) if token < 5)
    assert seen[True][6] != seen[True][7], "the views of a sentence differ"

    # The sentence keeps its masks wherever it stands in a batch, and another id has others.
    batch = marked_batch(model, packed=True, lengths=[64, 64, 20, 20], views=2)
    batch["sentence_ids"] = torch.tensor([[0, 0], [5, 5]])
    moved = of_sentences(Seen(model, batch, monkeypatch).where, batch)
    assert moved[:2] == seen[True][6:] and moved[2:] != seen[True][:2]


def test_static_masks_choose_every_place_about_equally_often(made, monkeypatch):
    model = made(settings=DiffCSESettings(static_masks=True), ratio=0.25)
    counts = torch.zeros(20)
    for start in range(0, 400, 40):
        batch = marked_batch(model, packed=False, lengths=[22] * 80, views=2)
        batch["sentence_ids"] = torch.arange(start, start + 40).unsqueeze(1).expand(40, 2)
        tokens = TokenBatch.of(batch)
        maskable = torch.ones(80, 22, dtype=torch.bool)
        maskable[:, [0, -1]] = False
        counts += static_choice(tokens, maskable, batch["sentence_ids"], 0.25)[:, 1:-1].sum(dim=0)
    # 800 draws with probability 1/4 at each place: five standard deviations.
    assert ((counts - 200).abs() < 5 * math.sqrt(800 * 0.25 * 0.75)).all()


def test_static_masks_leave_a_sentence_without_ordinary_tokens_alone(made):
    tokens = TokenBatch.of(marked_batch(made(), packed=False, lengths=[4, 4], views=2))
    maskable = torch.zeros(2, 4, dtype=torch.bool)
    maskable[1, 2] = True
    assert torch.equal(static_choice(tokens, maskable, torch.tensor([[3, 3]]), 0.5), maskable)


def test_static_masks_need_ids(made):
    model = made(settings=DiffCSESettings(static_masks=True))
    batch = marked_batch(model, packed=True) | {"sentence_ids": None}
    with pytest.raises(ValueError, match="sentence_ids"):
        auxiliary_loss(model, batch)


@pytest.mark.parametrize("kind, first", [("bert", 101), ("roberta", 0)])
def test_the_first_token_may_become_a_fixed_id(kind, first, folder_of, monkeypatch):
    folder = folder_of(kind, vocab_size=120)
    batch, found = None, []
    for settings in (OURS, DiffCSESettings(fixed_cls_id=True)):
        model = encoder_of(folder)
        auxiliary = ReplacedTokenDetection.from_pretrained(
            folder, model, small_tokenizer(), settings=settings, max_seq_length=LONGEST
        )
        model.add_auxiliary("replaced_tokens", auxiliary)
        model.double().train()
        batch = marked_batch(model, packed=True, lengths=SHORT, views=2)
        found.append(Seen(model, batch, monkeypatch))
    ours, legacy = found
    starts = batch["sentence_starts"].flatten()
    only_differ(ours, legacy, "corrupted", "labels")
    assert (legacy.corrupted.flatten()[starts] == first).all()
    differs = torch.zeros(ours.corrupted.numel(), dtype=torch.bool)
    differs[starts] = True
    assert torch.equal((ours.corrupted != legacy.corrupted).flatten(), differs)
    assert (legacy.labels.flatten()[starts] == 1).all() and torch.equal(
        legacy.labels.flatten()[~differs], ours.labels.flatten()[~differs]
    )


@pytest.mark.parametrize("packed", [True, False])
def test_padding_may_become_token_0(packed, made, monkeypatch):
    found = []
    for settings in (OURS, DiffCSESettings(padding_becomes_zero=True)):
        model = made(settings=settings)
        batch = marked_batch(model, packed=packed, lengths=SHORT, views=2)
        # Padding is 0 in this vocabulary; as in RoBERTa's it is another here.
        real = TokenBatch.of(batch).real
        batch["input_ids"] = torch.where(real.view_as(batch["input_ids"]), batch["input_ids"], 1)
        found.append(Seen(model, batch, monkeypatch))
    ours, legacy = found
    only_differ(ours, legacy, "corrupted")
    assert (legacy.corrupted[~real] == 0).all() and (ours.corrupted[~real] == 1).all()
    assert torch.equal(legacy.corrupted[real], ours.corrupted[real]) and (~real).any()
    torch.testing.assert_close(legacy.loss, ours.loss)


def padded_twin(model: SimCSEModel, batch: dict[str, Tensor], seen: Seen, length: int) -> list[list[float]]:
    """The losses of all positions up to `length`, of each sentence, padding counted as never replaced."""
    auxiliary, found = model.auxiliaries["replaced_tokens"], []
    for ids, spoiled, vector in zip(
        of_sentences(batch["input_ids"], batch),
        of_sentences(seen.corrupted, {**batch, "input_ids": seen.corrupted}),
        seen.embeddings.flatten(0, 1),
        strict=True,
    ):
        filler = [PAD] * (length - len(ids))
        rows = logits_of(auxiliary, spoiled + filler, vector, [1] * len(ids) + [0] * len(filler))
        labels = [int(own != shown) for own, shown in zip(ids, spoiled, strict=True)] + [0] * len(filler)
        found.append([negative_log_probability(row, label) for row, label in zip(rows, labels, strict=True)])
    return found


def test_padding_may_count(compared):
    model, batch, ours, legacy = compared("count_padding")
    only_differ(ours, legacy)
    assert model.row_layout() is None
    losses = padded_twin(model, batch, legacy, max(SHORT))
    assert legacy.loss.item() == pytest.approx(sum(map(sum, losses)) / (len(SHORT) * max(SHORT)), abs=1e-9)
    real = sum(sum(row[:length]) for row, length in zip(losses, SHORT, strict=True)) / sum(SHORT)
    assert ours.loss.item() == pytest.approx(real, abs=1e-9)
    assert legacy.means["replaced_share"] == pytest.approx(ours.means["replaced_share"] * sum(SHORT) / (8 * max(SHORT)))


def test_batches_may_be_padded_to_the_full_length(made, monkeypatch):
    model = made(settings=DiffCSESettings(pad_to_max_length=True))
    assert model.row_layout() is None
    batch = marked_batch(model, packed=False, lengths=SHORT, views=2)
    seen = Seen(model, batch, monkeypatch)
    assert seen.masked.shape == seen.corrupted.shape == (8, LONGEST)
    assert (seen.corrupted[:, max(SHORT) :] == PAD).all()
    # Of no consequence where padding does not count; with it, all positions to the full length do.
    both = made(settings=DiffCSESettings(pad_to_max_length=True, count_padding=True))
    counted = Seen(both, batch, monkeypatch)
    losses = padded_twin(both, batch, counted, LONGEST)
    assert counted.loss.item() == pytest.approx(sum(map(sum, losses)) / (8 * LONGEST), abs=1e-9)
    real = sum(sum(row[:length]) for row, length in zip(losses, SHORT, strict=True)) / sum(SHORT)
    assert seen.loss.item() == pytest.approx(real, abs=1e-9)


def test_the_views_may_be_added_up(compared):
    model, batch, ours, legacy = compared("sum_of_views")
    only_differ(ours, legacy)
    losses = padded_twin(model, batch, legacy, max(SHORT))
    of_view = []
    for view in (0, 1):
        chosen = [row[:length] for row, length in zip(losses[view::2], SHORT[view::2], strict=True)]
        of_view.append(sum(map(sum, chosen)) / sum(map(len, chosen)))
    assert abs(of_view[0] - of_view[1]) > 1e-3
    assert legacy.loss.item() == pytest.approx(sum(of_view), abs=1e-9)
    assert legacy.means == ours.means


def test_the_variants_are_what_the_reference_says_of_them():
    names = {field.name for field in fields(DiffCSESettings)}
    on = {name: {field for field in names if getattr(settings, field)} for name, settings in VARIANTS.items()}
    assert on["ours"] == set()
    assert names - on["legacy_diffcse"] == {
        "separator_as_mask",
        "always_mask",
        "static_masks",
        "pad_to_max_length",
        "sum_of_views",
    }
    assert names - on["legacy_kodiffcse"] == {"fixed_cls_id"}
    assert VARIANTS == {"ours": OURS, "legacy_diffcse": LEGACY_DIFFCSE, "legacy_kodiffcse": LEGACY_KODIFFCSE}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains(variant, made):
    model = made(settings=VARIANTS[variant], vocab_size=120)
    assert (model.row_layout() is None) == (variant != "ours")
    loss = model(**batch_of(model, SHORT, views=2)).loss
    assert all(gradient.isfinite().all() for gradient in gradients(model, loss).values())


# --- what is refused --------------------------------------------------------------------------------------------------------


def rtd(folder: str, model: SimCSEModel, **settings) -> ReplacedTokenDetection:
    settings = {"max_seq_length": LONGEST, **settings}
    return ReplacedTokenDetection.from_pretrained(folder, model, small_tokenizer(), **settings)


def test_generators_with_another_vocabulary_are_refused(folder_of, tmp_path, text_config):
    model = encoder_of(folder_of())
    masked_lm(text_config).save_pretrained(tmp_path)
    small_tokenizer(**{"다른낱말": 17}).save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        rtd(str(tmp_path), model)
    says(str(caught.value), "token 17", "'다른낱말'", "'낱말17'", "share the encoder's vocabulary")


def test_generators_without_tokenizer_are_judged_by_their_number_of_tokens(folder_of, tmp_path, text_config, caplog):
    model = encoder_of(folder_of())
    masked_lm(text_config).save_pretrained(tmp_path / "equal")
    assert rtd(str(tmp_path / "equal"), model).packs
    says(caplog.text, "no tokenizer", "only the number of its tokens")
    masked_lm(text_config, vocab_size=50).save_pretrained(tmp_path / "fewer")
    with pytest.raises(ModelError) as caught:
        rtd(str(tmp_path / "fewer"), model)
    says(str(caught.value), "60 tokens", "embeds 50")


def test_tokens_that_are_none_are_never_guessed(folder_of):
    folder = folder_of(vocab_size=300)
    model = encoder_of(folder)
    model.add_auxiliary("replaced_tokens", rtd(folder, model, masking_ratio=1.0))
    model.double().train()
    batch = marked_batch(model, packed=True)
    found = model.auxiliaries["replaced_tokens"].corrupt(TokenBatch.of(batch))
    assert (found != batch["input_ids"]).any() and found.max() < VOCABULARY


def test_padding_is_never_guessed(made):
    """RoBERTa's positions count what is not padding, so a guess of it would move all words behind it."""
    model = made("roberta", ratio=1.0)
    auxiliary = model.auxiliaries["replaced_tokens"]
    with torch.no_grad():
        auxiliary.generator._head.model.lm_head.bias[:2] = torch.tensor([100.0, 90.0])
    batch = marked_batch(model, packed=True)
    tokens = TokenBatch.of(batch)
    found = auxiliary.corrupt(tokens)
    ordinary = tokens.real & (batch["input_ids"] >= 5)
    assert (found[ordinary] == 1).all() and torch.equal(found[~ordinary], batch["input_ids"][~ordinary])


def test_generators_that_are_no_masked_language_model_are_refused(folder_of, tmp_path, backbone_dir):
    model = encoder_of(folder_of())
    T5EncoderModel(T5Config(vocab_size=60, d_model=8, d_ff=8, num_layers=1, num_heads=2, d_kv=4)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ModelError, match="'t5'"):
        rtd(str(tmp_path), model)
    with pytest.raises(ModelError, match="there is no model folder"):
        rtd("./nothing/here", model)


def test_generators_without_head_are_refused(folder_of, tmp_path):
    model = encoder_of(folder_of())
    model.backbone.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="missing"):
        rtd(str(tmp_path), model)


def test_generators_with_too_few_positions_are_refused(folder_of):
    model = encoder_of(folder_of())
    with pytest.raises(ModelError) as caught:
        rtd(folder_of(), model, max_seq_length=LONGEST + 1)
    says(str(caught.value), str(LONGEST + 1), f"positions for {LONGEST}", "Use")


def test_heads_of_another_size_are_refused(folder_of):
    model = encoder_of(folder_of(), pooler_type="cls", mlp_only_train=True, head_size=8)
    with pytest.raises(ModelError) as caught:
        rtd(folder_of(), model)
    says(str(caught.value), "head_size is 8", "32", "Leave head_size out")


def test_encoders_without_an_embedding_layer_of_their_size_are_refused(folder_of):
    model = encoder_of(folder_of())
    albert = AlbertConfig(
        vocab_size=60, embedding_size=8, hidden_size=32, num_attention_heads=2, intermediate_size=8, num_hidden_layers=1
    )
    t5 = T5Config(vocab_size=60, d_model=32, d_ff=8, num_layers=1, num_heads=2, d_kv=4)
    for backbone in (AlbertModel(albert), T5EncoderModel(t5)):
        model.backbone = backbone
        with pytest.raises(ModelError) as caught:
            rtd(folder_of(), model)
        says(str(caught.value), f"'{backbone.config.model_type}'", "embedding layer", "Use BERT")


def test_tokenizers_without_separator_cannot_mask_with_it(folder_of):
    model = encoder_of(folder_of())
    tokenizer = small_tokenizer()
    tokenizer.sep_token = None
    with pytest.raises(ModelError, match="SEP"):
        ReplacedTokenDetection.from_pretrained(
            folder_of(), model, tokenizer, settings=LEGACY_KODIFFCSE, max_seq_length=LONGEST
        )
