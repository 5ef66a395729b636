"""Columns on disk read item by item, without their pages staying resident."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse_hf import arrow_column
from simcse_hf.arrow_column import ArrowColumn, ColumnWriter, lists_of


def resident_of(path: Path) -> int:
    """KiB of a file that this process has mapped and touched."""
    size, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and ":" not in line.split()[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            size += int(line.split()[1])
    return size


def write(path: Path, blocks: list[list], kind: pa.DataType) -> ArrowColumn:
    with ColumnWriter(path, "items", kind) as writer:
        for block in blocks:
            writer.write(pa.array(block, kind))
    return ArrowColumn(path)


items = st.lists(st.lists(st.lists(st.integers(0, 60_000), max_size=5), max_size=4), max_size=5)


@settings(max_examples=60, deadline=None)
@given(items)
def test_items_come_back_whatever_the_blocks(tmp_path_factory: pytest.TempPathFactory, blocks: list) -> None:
    column = write(tmp_path_factory.mktemp("column") / "a.arrow", blocks, pa.list_(pa.uint16()))
    expected = [item for block in blocks for item in block]
    assert [item.tolist() for item in map(column.__getitem__, range(len(column)))] == expected
    assert column.lengths.tolist() == list(map(len, expected))
    assert [item for array in column.arrays() for item in array.to_pylist()] == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=6))
def test_strings_are_their_bytes(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    column = write(tmp_path_factory.mktemp("column") / "a.arrow", [texts], pa.string())
    assert [column[index].tobytes().decode() for index in range(len(column))] == texts


def test_an_item_is_a_view_into_the_file_and_cannot_be_written(tmp_path: Path) -> None:
    column = write(tmp_path / "a.arrow", [[[1, 2], [3]]], pa.list_(pa.int32()))
    assert not column[0].flags.owndata and column[0].dtype == np.int32
    with pytest.raises(ValueError, match="read-only"):
        column[0][0] = 7


@pytest.mark.parametrize("index", [-1, 3])
def test_there_is_nothing_outside(tmp_path: Path, index: int) -> None:
    column = write(tmp_path / "a.arrow", [[[1], [2]], [[3]]], pa.list_(pa.int32()))
    with pytest.raises(IndexError, match=f"item {index} of 3"):
        column[index]
    assert [item.tolist() for item in column] == [[1], [2], [3]]


def test_a_column_travels_to_another_process_as_its_path(tmp_path: Path) -> None:
    column = write(tmp_path / "a.arrow", [[[1, 2]]], pa.list_(pa.int32()))
    sent = pickle.dumps(column)
    assert len(sent) < 500 and pickle.loads(sent)[0].tolist() == [1, 2]


def test_datasets_opens_the_file_too(tmp_path: Path) -> None:
    column = write(tmp_path / "a.arrow", [[[1, 2]], [[], [60_000]]], pa.list_(pa.uint16()))
    dataset = Dataset.from_file(str(column.path))
    assert dataset["items"][:] == [[1, 2], [], [60_000]]


def test_what_was_read_does_not_stay_resident(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = lists_of(np.arange(500_000, dtype=np.int32), np.full(5000, 100))
    with ColumnWriter(tmp_path / "a.arrow", "items", block.type) as writer:
        for _ in range(20):
            writer.write(block)
    column = ArrowColumn(tmp_path / "a.arrow")  # 40 MB
    order = np.random.default_rng(1).permutation(len(column))[:20_000]

    def read() -> int:
        most = 0
        for count, index in enumerate(order.tolist()):
            assert column[index][0] == index % 5000 * 100
            if count % 500 == 0:
                most = max(most, resident_of(column.path))
        return most

    monkeypatch.setattr(arrow_column, "_READS_BEFORE_RELEASE", 10**9)
    assert read() > 30_000, "nothing stays of itself: the test would be vacuous"
    monkeypatch.setattr(arrow_column, "_READS_BEFORE_RELEASE", 100)
    column.release()
    assert read() < 10_000


def test_a_pass_over_all_gives_each_block_back(tmp_path: Path) -> None:
    block = lists_of(np.arange(500_000, dtype=np.int32), np.full(5000, 100))
    with ColumnWriter(tmp_path / "a.arrow", "items", block.type) as writer:
        for _ in range(10):
            writer.write(block)
    column = ArrowColumn(tmp_path / "a.arrow")
    sizes = []
    for array in column.arrays():
        assert array.values.to_numpy().sum() == np.arange(500_000).sum()
        sizes.append(resident_of(column.path))
    assert len(sizes) == 10 and max(sizes) < 6000
