"""The order of rows is that of accelerate's own sampler, held in an array."""

from __future__ import annotations

import tracemalloc

import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import SeedableRandomSampler, prepare_data_loader
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from simcse_hf import shuffled_rows
from simcse_hf.shuffled_rows import ShuffledRows, lighten


@pytest.mark.parametrize("rows", [1, 2, 1000])
def test_an_epoch_has_the_order_of_torchs_sampler_with_its_seed(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffled_rows, "_CHUNK", 7)
    sampler = ShuffledRows(rows, seed=11)
    for epoch in (0, 3):
        sampler.set_epoch(epoch)
        generator = torch.Generator().manual_seed(11 + epoch)
        assert list(sampler) == list(RandomSampler(range(rows), generator=generator))
    assert len(sampler) == rows


def test_epochs_follow_each_other_as_in_accelerate() -> None:
    sampler = ShuffledRows(50, seed=5)
    theirs = SeedableRandomSampler(range(50), data_seed=5)
    epochs = [list(sampler) for _ in range(3)]
    assert epochs == [list(theirs) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]


def prepared(*, light: bool, processes: int = 1, process: int = 0, seed: int = 9, sampler=None) -> DataLoader:
    rows = range(40)
    loader = prepare_data_loader(
        DataLoader(rows, batch_size=4, sampler=sampler or RandomSampler(rows), drop_last=True),
        num_processes=processes,
        process_index=process,
        use_seedable_sampler=True,
        data_seed=seed,
    )
    if light:
        lighten(loader)
        assert isinstance(loader.get_sampler(), ShuffledRows) == (sampler is None)
    return loader


def batches(loader: DataLoader) -> list[list[int]]:
    return [batch.tolist() for batch in loader]


@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_lightened_loader_gives_the_same_batches(processes: int, process: int) -> None:
    """Per process and epoch: runs of earlier versions can be repeated."""
    ours, theirs = (prepared(light=light, processes=processes, process=process % processes) for light in (True, False))
    for _ in range(3):
        assert batches(ours) == batches(theirs)
    assert batches(ours) != batches(prepared(light=True, seed=10))


def test_processes_read_different_parts_of_one_order() -> None:
    shares = [batches(prepared(light=True, processes=2, process=process)) for process in (0, 1)]
    assert sorted(row for share in shares for batch in share for row in batch) == list(range(40))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_epoch_goes_on_where_it_stopped(processes: int) -> None:
    whole = prepared(light=True, processes=processes)
    batches(whole)
    expected = batches(whole)[2:]
    resumed = skip_first_batches(prepared(light=True, processes=processes), 2)
    resumed.set_epoch(1)  # as the trainer does
    assert batches(resumed) == expected


def test_rows_in_order_stay_in_order() -> None:
    assert batches(prepared(light=True, sampler=SequentialSampler(range(40))))[0] == [0, 1, 2, 3]


def test_python_integers_are_made_a_chunk_at_a_time() -> None:
    tracemalloc.start()
    try:
        for _ in ShuffledRows(1_000_000, seed=1):
            pass
        assert tracemalloc.get_traced_memory()[1] < 10_000_000  # as a list: 40 MB
    finally:
        tracemalloc.stop()
