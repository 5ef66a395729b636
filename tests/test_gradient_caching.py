"""Gradient caching: the gradients of the one big batch, from the activations of a part of it at a time."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import BACKBONES
from packed_batches import LENGTHS, LONGEST, PACKING, gradients, sentences, tiny, views_batch
from test_distributed import spawn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig

from simcse_hf import SimCSEModel
from simcse_hf.batch_losses import contrastive_loss
from simcse_hf.packing import RowLayout

# In float64; the passes of both are the same, so only the order of some sums differs.
TOLERANCE = 1e-12
LIVE = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
ROWS_PER_PASS = 2
UNEVEN = [*LENGTHS, 30, 25, 6]  # seven rows
PASS_TOKENS = ROWS_PER_PASS * LONGEST
LAYOUT = RowLayout(LONGEST)


@pytest.fixture
def same_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain batches are cut where cached ones are, so that both draw their random numbers in the same order."""
    monkeypatch.setattr("simcse_hf.passes._CPU_PASS_TOKENS", PASS_TOKENS)


def step(model: SimCSEModel, batch: dict[str, Tensor], cache_tokens: int | None, *, seed: int = 5) -> dict[str, Tensor]:
    """Loss, vectors and gradients, and the state of the generator after them."""
    model.gradient_cache_tokens = cache_tokens
    torch.manual_seed(seed)
    output = model(**batch)
    found = {"loss": output.loss.detach(), "embeddings": output.embeddings.detach()}
    found |= gradients(model, output.loss)
    return found | {"generator": torch.get_rng_state().double()}


def assert_same(cached: dict[str, Tensor], plain: dict[str, Tensor]) -> None:
    for name, tensor in plain.items():
        torch.testing.assert_close(cached[name], tensor, atol=TOLERANCE, rtol=TOLERANCE, msg=name)


@pytest.mark.parametrize("block_mask", [False, True])
@pytest.mark.parametrize("kind", PACKING)
def test_cached_equals_plain_with_dropout_on_and_an_uneven_last_pass(kind, block_mask, text_config, same_passes):
    model = tiny(text_config, kind, "cls", **LIVE).double()
    model.compiled = block_mask
    batch = views_batch(model, LAYOUT, sentences(UNEVEN))
    assert len(batch["input_ids"]) > 2 * ROWS_PER_PASS and len(batch["input_ids"]) % ROWS_PER_PASS
    plain = step(model, batch, None)
    other_masks = step(model, batch, None, seed=6)
    assert (plain["loss"] - other_masks["loss"]).abs() > 1e-3, "no live dropout: the test would be vacuous"
    assert_same(step(model, batch, PASS_TOKENS), plain)


@pytest.mark.parametrize("kind", ["deberta", "deberta-v2"])
def test_cached_equals_plain_for_padded_encoders(kind, text_config, monkeypatch):
    model = tiny(text_config, kind, "cls", **LIVE).double()
    batch = views_batch(model, None)
    monkeypatch.setattr("simcse_hf.passes._CPU_BUCKET_SENTENCES", 4)
    plain = step(model, batch, None)
    assert len(LENGTHS) % 4, "the last pass is uneven"
    monkeypatch.setattr("simcse_hf.passes._CPU_BUCKET_SENTENCES", 32)
    assert_same(step(model, batch, 4 * LONGEST), plain)


@pytest.mark.parametrize("cache_tokens", [1, 100, 3 * LONGEST, 10**6])
@pytest.mark.parametrize("kind", ["bert", "deberta"])
def test_the_size_of_the_passes_changes_nothing_without_dropout(kind, cache_tokens, text_config):
    model = tiny(text_config, kind).double()
    batch = views_batch(model, model.row_layout() and LAYOUT)
    assert_same(step(model, batch, cache_tokens), step(model, batch, None))


def test_random_numbers_that_are_not_replayed_fail_that_test(text_config, same_passes, monkeypatch):
    model = tiny(text_config, pooler_type="cls", **LIVE).double()
    batch = views_batch(model, LAYOUT)
    plain = step(model, batch, None)
    whole = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(
        "simcse_hf.passes.checkpoint", lambda *args, **options: whole(*args, **options, preserve_rng_state=False)
    )
    name = "backbone.embeddings.word_embeddings.weight"
    difference = step(model, batch, PASS_TOKENS)[name] - plain[name]
    assert difference.norm() > 0.1 * plain[name].norm()


@pytest.mark.parametrize("mode", ["evaluation", "no_grad"])
def test_nothing_is_computed_twice_where_there_is_no_gradient_to_cache(mode, text_config, monkeypatch):
    model = tiny(text_config).train(mode == "no_grad")
    model.gradient_cache_tokens = PASS_TOKENS
    monkeypatch.setattr("simcse_hf.passes.checkpoint", None)
    with torch.set_grad_enabled(mode != "no_grad"):
        assert model(**views_batch(model, LAYOUT)).loss.isfinite()


# --- what it is for -------------------------------------------------------------------------------------------------


def kept_bytes(model: SimCSEModel, batch: dict[str, Tensor], cache_tokens: int | None) -> int:
    """Memory of the tensors that one forward pass keeps for the backward pass, weights left out."""
    storages = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.gradient_cache_tokens = cache_tokens
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**batch).loss
    assert loss.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("kind", ["bert", "deberta"])
def test_activations_are_not_kept(kind, text_config):
    model = tiny(text_config, kind, **LIVE)
    batch = views_batch(model, model.row_layout() and LAYOUT, sentences(LENGTHS * 10))
    plain, cached = kept_bytes(model, batch, None), kept_bytes(model, batch, PASS_TOKENS)
    vectors = len(LENGTHS * 10) * 32 * 4
    assert vectors < cached < 20 * vectors and plain > 20 * cached, (vectors, cached, plain)


@pytest.mark.parametrize("kind", ["bert", "deberta"])
def test_each_gradient_is_completed_once_and_so_synchronised_once(kind, text_config):
    model = tiny(text_config, kind, **LIVE)
    model.gradient_cache_tokens = PASS_TOKENS
    times = Counter()
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: times.update([name]))
    passes = []
    model.backbone.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    model(**views_batch(model, model.row_layout() and LAYOUT)).loss.backward()
    assert len(passes) >= 6, "one pass only: the test would be vacuous"
    assert times == Counter({name: 1 for name, _ in model.named_parameters()})


# --- several processes ----------------------------------------------------------------------------------------------


def model_and_batch() -> tuple[SimCSEModel, dict[str, Tensor], dict[str, Tensor]]:
    """The model and the two halves of a batch, of equal numbers of items and unequal numbers of tokens and passes."""
    model = tiny(lambda kind, **settings: BertConfig(**BACKBONES[kind][1], pad_token_id=0, **settings)).double()
    lengths = LENGTHS[:9] + [1, 2, 1, 3, 2, 2, 1, 4, 5]
    halves = [views_batch(model, LAYOUT, sentences(lengths)[start : start + 9]) for start in (0, 9)]
    assert len(halves[0]["input_ids"]) > len(halves[1]["input_ids"]) == 1
    for index, half in enumerate(halves):
        half["sentence_ids"] += 9 * index
    return model, *halves


def synchronised_gradients(index: int) -> dict[str, Tensor]:
    """Of one process.

    In a function, so that DDP is gone before the process group: PyTorch can deadlock when DDP frees it.
    """
    model, *halves = model_and_batch()
    model.gradient_cache_tokens = LONGEST
    wrapped = DistributedDataParallel(model)
    return gradients(model, wrapped(**halves[index]).loss)


def worker(index: int, processes: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=index, world_size=processes)
    try:
        found = synchronised_gradients(index)
        if index == 0:
            torch.save(found, Path(folder) / "gradients.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_that_cache_give_the_gradients_of_one_that_does_not(tmp_path: Path) -> None:
    spawn(worker, 2, str(tmp_path))
    model, *halves = model_and_batch()
    embeddings = torch.cat([model.embed_batch(**half) for half in halves])
    ids = torch.cat([half["sentence_ids"] for half in halves])
    _, logits = contrastive_loss(embeddings, ids, model.config)
    expected = gradients(model, torch.nn.functional.cross_entropy(logits, torch.arange(len(logits))))
    found = torch.load(tmp_path / "gradients.pt")
    assert expected["backbone.embeddings.word_embeddings.weight"].abs().max() > 1e-3
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-10, rtol=1e-7, msg=name)
