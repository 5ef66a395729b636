"""The order of rows is that of accelerate's own sampler, held in an array; or one with weights for sources."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import SeedableRandomSampler, prepare_data_loader
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from simcse_hf import shuffled_rows
from simcse_hf.errors import ConfigError
from simcse_hf.shuffled_rows import ShuffledRows, WeightedRows, lighten


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


sources = st.lists(st.tuples(st.integers(0, 30), st.floats(0, 4)), min_size=1, max_size=5)


@settings(max_examples=200, deadline=None)
@given(sources, st.integers(0, 100), st.integers(0, 3))
def test_each_source_gives_as_many_rows_as_its_weight_says(drawn: list, seed: int, epoch: int) -> None:
    counts, weights = zip(*drawn, strict=True)
    if not any(count * weight for count, weight in drawn):
        with pytest.raises(ConfigError, match="leave no row to train on"):
            WeightedRows(counts, weights, seed)
        return
    sampler = WeightedRows(counts, weights, seed)
    sampler.set_epoch(epoch)
    times = Counter(sampler)
    assert times.total() == len(sampler)
    first = 0
    for count, weight in drawn:
        of_each = [times.pop(row, 0) for row in range(first, first + count)]
        expected = max(round(weight * count), 1) if weight and count else 0
        assert sum(of_each) == expected
        assert not of_each or max(of_each) - min(of_each) <= 1, "a row twice before another once"
        first += count
    assert not times


def test_weights_of_one_are_every_row_once() -> None:
    sampler = WeightedRows([5, 0, 8], [1, 1, 1], seed=3)
    order = list(sampler)
    assert sorted(order) == list(range(13)) != order
    assert any(order[place] >= 5 for place in range(5)), "the sources are not shuffled together"


def test_every_epoch_takes_another_rest_in_another_order() -> None:
    sampler = WeightedRows([100, 50], [0.2, 1.5], seed=4)
    epochs = [list(sampler) for _ in range(3)]
    chosen = [{row for row in epoch if row < 100} for epoch in epochs]
    twice = [{row for row, times in Counter(epoch).items() if times == 2} for epoch in epochs]
    assert all(len(rows) == 20 for rows in chosen) and all(len(rows) == 25 for rows in twice)
    assert chosen[0] != chosen[1] != chosen[2] and twice[0] != twice[1] != twice[2]
    again = WeightedRows([100, 50], [0.2, 1.5], seed=4)
    again.set_epoch(2)
    assert list(again) == epochs[2]
    assert list(WeightedRows([100, 50], [0.2, 1.5], seed=5)) != epochs[0]
    assert list(WeightedRows([100, 50], [0.2, 1.5], seed=5)) == epochs[1], "epoch e has the seed plus e"


def test_over_the_epochs_every_row_has_its_turn() -> None:
    sampler = WeightedRows([20], [0.25], seed=0)
    times = Counter(row for _ in range(400) for row in sampler)
    assert set(times) == set(range(20)) and min(times.values()) > 60 and max(times.values()) < 140


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "source_weights has 1 weights, and there are 2 training files. Give one for each"),
        ([1, 1, 1], "source_weights has 3 weights, and there are 2"),
        ([1, -0.5], "weight 2 is -0.5"),
        ([float("nan"), 1], "weight 1 is nan"),
        ([1, float("inf")], "weight 2 is inf"),
        ([0, 0], r"source_weights \[0, 0\] leave no row to train on"),
    ],
)
def test_weights_that_mean_nothing_are_named(weights: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WeightedRows([3, 4], weights, seed=0)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_loader_with_weights_is_as_long_as_its_order(processes: int) -> None:
    """15 rows of the first 30, and the last 10 three times: 45 rows are 11 batches of 4, and 11 are 5 for each of 2."""
    shares = []
    for process in range(processes):
        loader = prepared(light=False, processes=processes, process=process)
        lighten(loader, ([30, 10], [0.5, 3]))
        share = batches(loader)
        assert len(loader) == len(share) == 11 // processes
        assert batches(loader) != share, "the next epoch has the same order"
        shares.append(share)
    expected = WeightedRows([30, 10], [0.5, 3], seed=9)
    rows = list(expected)[: 4 * processes * (11 // processes)]
    dealt = [row for group in zip(*shares, strict=True) for batch in group for row in batch]
    assert dealt == rows


def test_a_resumed_epoch_with_weights_goes_on_where_it_stopped() -> None:
    whole = prepared(light=False, processes=2)
    lighten(whole, ([30, 10], [0.5, 3]))
    batches(whole)
    expected = batches(whole)[2:]
    again = prepared(light=False, processes=2)
    lighten(again, ([30, 10], [0.5, 3]))
    resumed = skip_first_batches(again, 2)
    resumed.set_epoch(1)
    assert batches(resumed) == expected


def test_weights_are_not_ignored_where_rows_stay_in_order() -> None:
    with pytest.raises(ConfigError, match="source_weights need rows in random order"):
        lighten(prepared(light=False, sampler=SequentialSampler(range(40))), ([30, 10], [0.5, 3]))


def test_an_order_with_weights_takes_eight_bytes_a_row() -> None:
    sampler = WeightedRows([1_000_000], [0.9], seed=1)
    tracemalloc.start()
    try:
        for _ in sampler:
            pass
        assert tracemalloc.get_traced_memory()[1] < 11_000_000
    finally:
        tracemalloc.stop()
