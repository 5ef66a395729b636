"""Means over steps and processes, read once in a while."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_distributed import spawn

from simcse_hf.running_means import RunningMeans


def test_sums_and_counts_make_means_and_are_forgotten_when_read() -> None:
    means = RunningMeans()
    means.add("accuracy", torch.tensor(3.0), torch.tensor(4.0))
    means.add("accuracy", torch.tensor(1.0), torch.tensor(6.0))
    means.add("loss", torch.tensor(2.0, requires_grad=True))
    means.add("nothing", torch.tensor(0.0), 0.0)
    assert means.pop() == {"accuracy": pytest.approx(0.4), "loss": 2.0}
    assert means.pop() == {}


def test_no_graph_is_kept() -> None:
    means, value = RunningMeans(), torch.ones((), requires_grad=True)
    for _ in range(3):
        means.add("loss", value * 2)
    assert not any(pair.requires_grad for pair in means._sums.values())


def worker(index: int, processes: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=index, world_size=processes)
    try:
        means = RunningMeans()
        means.add("accuracy", torch.tensor(float(index)), torch.tensor(float(2 * index + 1)))
        torch.save(means.pop(), Path(folder) / f"{index}.pt")
    finally:
        dist.destroy_process_group()


def test_processes_are_counted_together(tmp_path: Path) -> None:
    spawn(worker, 2, str(tmp_path))
    assert torch.load(tmp_path / "0.pt") == torch.load(tmp_path / "1.pt") == {"accuracy": 0.25}
