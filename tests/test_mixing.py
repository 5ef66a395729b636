"""Batches of several sets: one set a step on all processes, nothing twice, a new order in every epoch."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import groupby

import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, DataLoader

from simcse_hf.errors import TrainingError
from simcse_hf.mixing import MixedBatches, Mixing, follow_epochs
from simcse_hf.shuffled_rows import ShuffledRows, WeightedRows

MODES: list[Mixing] = ["alternate", "proportional"]


def mixed(
    rows: list[int], sizes: list[int], *, processes: int = 1, mode: Mixing = "alternate", seed: int = 7
) -> MixedBatches:
    orders = [ShuffledRows(count, seed) for count in rows]
    return MixedBatches(orders, sizes, processes=processes, mode=mode, seed=seed)


def set_of(batch: list[int], rows: list[int]) -> int:
    """The one set that all rows of a batch belong to."""
    ends = [sum(rows[: number + 1]) for number in range(len(rows))]
    (number,) = {next(number for number, end in enumerate(ends) if row < end) for row in batch}
    return number


sets = st.integers(1, 3).flatmap(
    lambda processes: st.tuples(
        st.just(processes),
        st.lists(
            st.integers(1, 4).flatmap(lambda size: st.tuples(st.integers(size * processes, 40), st.just(size))),
            min_size=1,
            max_size=4,
        ),
    )
)


@settings(max_examples=150, deadline=None)
@given(sets, st.sampled_from(MODES), st.integers(0, 50))
def test_global_batches_are_of_one_set_and_hold_no_row_twice(drawn: tuple, mode: Mixing, seed: int) -> None:
    processes, of_each = drawn
    rows, sizes = map(list, zip(*of_each, strict=True))
    sampler = mixed(rows, sizes, processes=processes, mode=mode, seed=seed)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    used = [row for batch in batches for row in batch]
    assert len(used) == len(set(used)) and set(used) <= set(range(sum(rows)))
    turns = []
    for start in range(0, len(batches), processes):
        group = batches[start : start + processes]
        (number,) = {set_of(batch, rows) for batch in group}
        assert [len(batch) for batch in group] == [sizes[number]] * processes
        turns.append(number)
    steps = [count // (size * processes) for count, size in of_each]
    if mode == "alternate":
        assert turns == list(range(len(rows))) * min(steps)
    else:
        assert Counter(turns) == dict(enumerate(steps))


def test_the_rows_of_a_set_come_in_its_own_order() -> None:
    rows, sizes = [20, 9], [4, 2]
    for mode in MODES:
        sampler = mixed(rows, sizes, mode=mode)
        sampler.set_epoch(3)
        batches = list(sampler)
        for number, first in enumerate([0, 20]):
            order = ShuffledRows(rows[number], 7)
            order.set_epoch(3)
            found = [row - first for batch in batches if set_of(batch, rows) == number for row in batch]
            assert found == list(order)[: len(found)] and found


def test_proportional_turns_are_shuffled_anew_in_every_epoch() -> None:
    sampler = mixed([60, 60], [3, 3], mode="proportional")
    turns = [[set_of(batch, [60, 60]) for batch in sampler] for _ in range(3)]
    assert turns[0] != turns[1] != turns[2]
    assert max(len(list(run)) for _, run in groupby(turns[0])) < 20, "one set after the other"
    assert turns[1] == [set_of(batch, [60, 60]) for batch in mixed([60, 60], [3, 3], mode="proportional", seed=8)]


@pytest.mark.parametrize("mode", MODES)
def test_an_epoch_is_fixed_by_its_number_and_the_seed(mode: Mixing) -> None:
    one = mixed([17, 30], [2, 5], mode=mode)
    epochs = [list(one) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    other = mixed([17, 30], [2, 5], mode=mode)
    other.set_epoch(2)
    next(iter(other))  # a pass that is broken off
    assert list(other) == epochs[2]
    assert list(mixed([17, 30], [2, 5], mode=mode, seed=6)) != epochs[0]


def test_a_set_may_take_its_rows_with_weights() -> None:
    """The second set begins behind all rows of the first, whatever the weights make of them."""
    orders = [WeightedRows([10, 10], [0, 3], seed=1), ShuffledRows(6, seed=1)]
    batches = list(MixedBatches(orders, [5, 3], processes=1, mode="proportional", seed=1))
    times = Counter(row for batch in batches for row in batch)
    assert {row: times[row] for row in range(26) if times[row]} == dict.fromkeys(range(10, 20), 3) | dict.fromkeys(
        range(20, 26), 1
    )


def test_a_set_without_one_global_batch_is_named_with_the_cure() -> None:
    with pytest.raises(TrainingError, match=r"training set 2 has 7 rows, fewer than one batch of 4 on 2.*of 3 or less"):
        mixed([50, 7], [4, 4], processes=2)
    with pytest.raises(TrainingError, match="sts-train has 2 rows, .*Use fewer processes, or more rows"):
        MixedBatches(
            [ShuffledRows(9, 0), ShuffledRows(2, 0)],
            [1, 1],
            processes=3,
            mode="alternate",
            seed=0,
            names=["nli", "sts-train"],
        )


ROWS, SIZES = [23, 11], [3, 2]


def prepared(mode: Mixing, processes: int, process: int) -> DataLoader:
    loader = prepare_data_loader(
        DataLoader(
            ConcatDataset([range(count) for count in ROWS]),
            batch_sampler=mixed(ROWS, SIZES, processes=processes, mode=mode),
            collate_fn=list,
        ),
        num_processes=processes,
        process_index=process,
        even_batches=False,
        put_on_device=False,
        use_seedable_sampler=True,
        data_seed=1,
    )
    follow_epochs(loader)
    return loader


def indices(loader: DataLoader) -> list[list[int]]:
    """What the loader would read in its next pass, and the pass itself."""
    loader.set_epoch(loader.iteration)
    found = [list(batch) for batch in loader.batch_sampler]
    assert [len(batch) for batch in loader] == list(map(len, found))
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("processes", [1, 2])
def test_accelerate_deals_out_batches_of_the_same_set(mode: Mixing, processes: int) -> None:
    loaders = [prepared(mode, processes, process) for process in range(processes)]
    for epoch in range(3):
        shares = [indices(loader) for loader in loaders]
        assert {len(share) for share in shares} == {len(loaders[0])}
        expected = mixed(ROWS, SIZES, processes=processes, mode=mode)
        expected.set_epoch(epoch)
        assert [batch for step in zip(*shares, strict=True) for batch in step] == list(expected)
        for step in zip(*shares, strict=True):
            assert len({set_of(batch, ROWS) for batch in step}) == 1


def test_the_loader_reads_the_rows_of_the_indices() -> None:
    """The items are those of the sets, so the places of the sets are right."""
    loader = prepared("alternate", 1, 0)
    expected = [[row if row < 23 else row - 23 for row in batch] for batch in mixed(ROWS, SIZES)]
    assert list(loader) == expected


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_epoch_goes_on_where_it_stopped(mode: Mixing, processes: int) -> None:
    """As transformers resumes: the epoch is set on the loader that skips."""
    process = processes - 1
    whole = prepared(mode, processes, process)
    indices(whole)
    expected = indices(whole)[2:]
    resumed = skip_first_batches(prepared(mode, processes, process), 2)
    resumed.set_epoch(1)
    assert len(resumed) == len(expected)
    assert indices(resumed) == expected


def test_a_pass_holds_arrays_and_no_list_of_rows() -> None:
    sampler = mixed([500_000, 500_000], [64, 8], mode="proportional")
    tracemalloc.start()
    try:
        for _ in sampler:
            pass
        assert tracemalloc.get_traced_memory()[1] < 8_000_000  # as a list: 40 MB; torch's arrays are not counted
    finally:
        tracemalloc.stop()
