"""What a config asks for is what a batch is trained with, on one process and on two."""

from __future__ import annotations

import os
from pathlib import Path

import oracles
import oracles_objectives
import pytest
import torch
import torch.distributed as dist
from test_distributed import build_batch, build_model, spawn
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig

from simcse_hf import SimCSEConfig, SimCSEModel
from simcse_hf.batch_losses import contrastive_loss, scored_loss
from simcse_hf.distillation_auxiliary import Distillation
from simcse_hf.running_means import RunningMeans

ITEMS, SIZE = 5, 6


def config_with(**settings) -> SimCSEConfig:
    return SimCSEConfig(text_config=BertConfig(hidden_size=SIZE), pooler_type="avg", temperature=0.1, **settings)


@pytest.fixture
def vectors() -> torch.Tensor:
    return torch.randn(ITEMS, 3, SIZE, dtype=torch.float64)


def loop_loss(vectors: list, **options) -> float:
    anchors, positives, negatives = ([row[view] for row in vectors] for view in range(3))
    return oracles.simcse_loss(anchors, positives, [[row] for row in negatives], temperature=0.1, **options)


def backward_loss(vectors: list) -> float:
    return oracles.simcse_loss([row[1] for row in vectors], [row[0] for row in vectors], temperature=0.1)


def test_without_options_it_is_the_paper(vectors) -> None:
    loss, logits = contrastive_loss(vectors, None, config_with())
    assert loss.item() == pytest.approx(loop_loss(vectors.tolist()), abs=1e-12)
    assert logits.shape == (ITEMS, 2 * ITEMS)


def test_symmetric_is_the_mean_of_both_directions(vectors) -> None:
    loss, _ = contrastive_loss(vectors, None, config_with(symmetric=True))
    rows = vectors.tolist()
    assert loss.item() == pytest.approx((loop_loss(rows) + backward_loss(rows)) / 2, abs=1e-12)


def test_symmetric_masks_duplicates_in_both_directions(vectors) -> None:
    """Items 1 and 3 share their positive, and item 4's anchor is item 2's positive."""
    ids = torch.arange(ITEMS * 3).view(ITEMS, 3)
    ids[3, 1] = ids[1, 1]
    ids[4, 0] = ids[2, 1]
    loss, _ = contrastive_loss(vectors, ids, config_with(symmetric=True))
    rows = vectors.tolist()
    forward = loop_loss(rows, ids=ids.tolist())
    backward = oracles.simcse_loss(
        [row[1] for row in rows], [row[0] for row in rows], temperature=0.1, ids=ids[:, :2].flip(1).tolist()
    )
    assert backward != pytest.approx(backward_loss(rows))
    assert loss.item() == pytest.approx((forward + backward) / 2, abs=1e-12)


@pytest.mark.parametrize("margin", [-0.3, 0.0, 0.2])
def test_the_margin_leaves_out_what_is_closer_than_the_positive(vectors, margin) -> None:
    loss, logits = contrastive_loss(vectors, None, config_with(false_negative_margin=margin))
    plain = contrastive_loss(vectors, None, config_with())[1]
    masked = oracles_objectives.false_negatives((plain * 0.1).tolist(), margin, 0)
    assert any(map(any, masked)), "nothing masked: the test would be vacuous"
    assert logits.isinf().tolist() == masked
    rows = [
        [-torch.inf if out else value for out, value in zip(*row, strict=True)]
        for row in zip(masked, plain.tolist(), strict=True)
    ]
    assert loss.item() == pytest.approx(oracles_objectives.cross_entropy(rows, range(ITEMS)), abs=1e-10)


def test_the_margin_and_the_duplicates_are_both_left_out(vectors) -> None:
    ids = torch.arange(ITEMS * 3).view(ITEMS, 3)
    ids[3, 1] = ids[1, 1]
    both = contrastive_loss(vectors, ids, config_with(false_negative_margin=0.8))[1].isinf()
    duplicates = contrastive_loss(vectors, ids, config_with())[1].isinf()
    margin = contrastive_loss(vectors, None, config_with(false_negative_margin=0.8))[1].isinf()
    assert (duplicates & ~margin).any() and (margin & ~duplicates).any()
    assert torch.equal(both, duplicates | margin)


def test_matryoshka_is_the_mean_over_the_sizes_and_the_whole(vectors) -> None:
    config = config_with(matryoshka_dims=[2, 4])
    assert config.matryoshka_dims == [2, 4, SIZE]
    loss, logits = contrastive_loss(vectors, None, config)
    assert loss.item() == pytest.approx(
        oracles_objectives.matryoshka(loop_loss, vectors.tolist(), [2, 4, SIZE]), abs=1e-12
    )
    torch.testing.assert_close(logits, contrastive_loss(vectors, None, config_with())[1])


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("cosine_mse", oracles_objectives.cosine_mse),
        ("cosent", oracles_objectives.cosent),
        ("angle", oracles_objectives.angle),
    ],
)
def test_scored_pairs_are_trained_with_the_loss_of_the_config(vectors, name, twin) -> None:
    scores = torch.rand(ITEMS, dtype=torch.float64)
    loss = scored_loss(vectors[:, :2], scores, config_with(scored_loss=name, matryoshka_dims=[2]))
    rows = vectors[:, :2].tolist()
    expected = sum(twin([r[0][:n] for r in rows], [r[1][:n] for r in rows], scores.tolist()) for n in (2, SIZE)) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("kind", ["similarities", "vectors"])
def test_distillation_compares_with_what_the_teacher_says(vectors, kind) -> None:
    """Items 0 and 2 are one sentence, and item 1 is unlabelled: its positive is itself."""
    teacher = torch.randn(ITEMS, 3, SIZE, dtype=torch.float64)
    ids = torch.arange(ITEMS * 3).view(ITEMS, 3)
    ids[2, 0] = ids[0, 1]
    ids[1, 1] = ids[1, 0]
    inputs = {"teacher": teacher, "sentence_ids": ids}
    loss = Distillation(kind, weight=1.0, temperature=0.2)(None, inputs, vectors, RunningMeans())
    if kind == "vectors":
        student = torch.nn.functional.normalize(vectors, dim=-1).flatten(0, 1)
        expected = oracles_objectives.vector_distillation(student.tolist(), teacher.flatten(0, 1).tolist())
    else:
        cosines = [
            [[oracles.cosine(row[0], other[view]) for other in rows for view in (1, 2)] for row in rows]
            for rows in (vectors.tolist(), teacher.tolist())
        ]
        itself = [[bool(row[0] == other[view]) for other in ids for view in (1, 2)] for row in ids]
        assert sum(map(sum, itself)) == 2
        expected = oracles_objectives.similarity_distillation(*cosines, 0.2, 0.2, itself)
    assert loss.item() == pytest.approx(expected, abs=1e-10)


OPTIONS = {
    "symmetric": {"symmetric": True},
    "margin": {"false_negative_margin": 0.05},
    "matryoshka": {"matryoshka_dims": [4, 8]},
    "scored": {"scored_loss": "cosent"},
    "batchnorm": {"pooler_type": "cls", "head_type": "batchnorm", "mlp_only_train": True},
}


def model_and_batch(name: str) -> tuple[SimCSEModel, dict[str, torch.Tensor]]:
    plain = build_model().config
    torch.manual_seed(0)
    config = SimCSEConfig(text_config=plain.text_config, temperature=0.1, **{"pooler_type": "avg"} | OPTIONS[name])
    model, batch = SimCSEModel(config).double().train(), build_batch()
    if name == "scored":
        batch = {
            "input_ids": batch["input_ids"][:, :2],
            "scores": torch.linspace(0, 1, 6).double()[torch.tensor([3, 0, 5, 1, 4, 2])],
        }
    return model, batch


def worker(index: int, processes: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=index, world_size=processes)
    try:
        found = {name: gradients_of_a_share(name, index, processes) for name in OPTIONS}
        if index == 0:
            torch.save(found, Path(folder) / "gradients.pt")
    finally:
        dist.destroy_process_group()


def gradients_of_a_share(name: str, index: int, processes: int) -> dict[str, torch.Tensor]:
    model, batch = model_and_batch(name)
    share = 6 // processes
    wrapped = DistributedDataParallel(model)
    wrapped(**{key: tensor[index * share : (index + 1) * share] for key, tensor in batch.items()}).loss.backward()
    return {key: parameter.grad for key, parameter in model.named_parameters()}


def test_two_processes_give_the_gradients_of_one_with_every_option(tmp_path: Path) -> None:
    spawn(worker, 2, str(tmp_path))
    found = torch.load(tmp_path / "gradients.pt")
    for name in OPTIONS:
        model, batch = model_and_batch(name)
        model(**batch).loss.backward()
        assert max(parameter.grad.abs().max() for parameter in model.parameters()) > 1e-3
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(found[name][key], parameter.grad, atol=1e-9, rtol=1e-6, msg=f"{name} {key}")
