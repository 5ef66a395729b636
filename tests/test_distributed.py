"""Two and three processes compute what one does."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig

from simcse_hf import SimCSEConfig, SimCSEModel
from simcse_hf.distributed import gather_values, gather_with_gradient, rank, world_size

ROWS, VIEWS, TOKENS = 6, 3, 7


def build_model() -> SimCSEModel:
    torch.manual_seed(0)
    text_config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config = SimCSEConfig(text_config=text_config, temperature=0.1, hard_negative_weight=0.5)
    return SimCSEModel(config).double().train()


def build_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(1, 50, (ROWS, VIEWS, TOKENS), generator=generator)
    sentence_ids = torch.arange(ROWS * VIEWS).view(ROWS, VIEWS)
    # The same sentence as positives of rows 0 and 4, and row 5's negative is row 0's anchor:
    # the two lie on different processes.
    input_ids[4, 1], sentence_ids[4, 1] = input_ids[0, 1], sentence_ids[0, 1]
    input_ids[5, 2], sentence_ids[5, 2] = input_ids[0, 0], sentence_ids[0, 0]
    return {"input_ids": input_ids, "sentence_ids": sentence_ids}


def share_of_a_step(index: int, processes: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of one process.

    In a function, so that DDP is gone before the process group: PyTorch can deadlock when DDP frees it.
    """
    model = DistributedDataParallel(build_model())
    share = ROWS // processes
    batch = {name: tensor[index * share : (index + 1) * share] for name, tensor in build_batch().items()}
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.module.named_parameters()}


def worker(index: int, processes: int, port: int, folder: str, detach_remote: bool) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=index, world_size=processes)
    try:
        if detach_remote:  # what Princeton SimCSE does: only the local rows keep their gradient
            import simcse_hf.batch_losses as losses

            def local_gradient(rows: torch.Tensor) -> torch.Tensor:
                gathered = list(gather_values(rows.detach()).chunk(world_size()))
                gathered[rank()] = rows
                return torch.cat(gathered)

            losses.gather_with_gradient = local_gradient
        loss, gradients = share_of_a_step(index, processes)
        mean = loss.clone()
        dist.all_reduce(mean)
        if index == 0:
            torch.save({"loss": mean / processes, "gradients": gradients}, Path(folder) / "result.pt")
    finally:
        dist.destroy_process_group()


def spawn(function: Callable, processes: int, *arguments) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(function, args=(processes, port, *arguments), nprocs=processes)


def reference() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model = build_model()
    output = model(**build_batch())
    assert output.logits.isinf().any(), "no duplicates: the test would be vacuous"
    output.loss.backward()
    return output.loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_give_the_loss_and_the_gradients_of_one(processes: int, tmp_path: Path) -> None:
    """Duplicates lie on different processes, so masking must see across them."""
    spawn(worker, processes, str(tmp_path), False)
    result = torch.load(tmp_path / "result.pt")
    loss, gradients = reference()
    torch.testing.assert_close(result["loss"], loss, atol=1e-12, rtol=1e-9)
    assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-3
    for name, gradient in gradients.items():
        torch.testing.assert_close(result["gradients"][name], gradient, atol=1e-10, rtol=1e-7, msg=name)


def test_a_gather_that_keeps_only_local_gradients_fails_that_test(tmp_path: Path) -> None:
    spawn(worker, 2, str(tmp_path), True)
    result = torch.load(tmp_path / "result.pt")
    loss, gradients = reference()
    torch.testing.assert_close(result["loss"], loss)
    name = "backbone.encoder.layer.0.output.dense.weight"
    assert (result["gradients"][name] - gradients[name]).norm() > 0.1 * gradients[name].norm()


def test_on_one_process_everything_is_the_identity() -> None:
    rows = torch.randn(3, 2)
    assert (world_size(), rank()) == (1, 0)
    assert gather_with_gradient(rows) is rows and gather_values(rows) is rows
