"""Packing: every sentence whole in one row, rows without gaps, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse_hf.collators import ViewsCollator
from simcse_hf.packing import (
    RowLayout,
    fill_ratio,
    pack,
    packed_rows,
    same_sentence,
    sentence_boundaries,
    unpack_index,
)

ROW = 24
PAD = 0
lengths_of = st.lists(st.integers(1, ROW), min_size=1, max_size=40)
modest = settings(max_examples=150, deadline=None)


def first_fit_decreasing(lengths: list[int], row_length: int) -> list[int]:
    """The textbook: each sentence, longest first, into the first row with room."""
    used: list[int] = []
    starts = [0] * len(lengths)
    for sentence in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        row = next((r for r, tokens in enumerate(used) if tokens + lengths[sentence] <= row_length), len(used))
        if row == len(used):
            used.append(0)
        starts[sentence] = row * row_length + used[row]
        used[row] += lengths[sentence]
    return starts


def rows_of(starts: np.ndarray, row_length: int) -> int:
    return int(starts.max()) // row_length + 1


@modest
@given(lengths_of)
def test_the_places_are_those_of_first_fit_decreasing(lengths: list[int]) -> None:
    assert pack(np.array(lengths), ROW).tolist() == first_fit_decreasing(lengths, ROW)


@modest
@given(lengths_of, st.integers(ROW, 3 * ROW))
def test_sentences_lie_whole_in_a_row_side_by_side_from_its_left_end(lengths: list[int], row_length: int) -> None:
    starts = pack(np.array(lengths), row_length)
    taken = np.zeros((rows_of(starts, row_length), row_length), dtype=int)
    for start, length in zip(starts, lengths, strict=True):
        row, column = divmod(int(start), row_length)
        assert column + length <= row_length
        taken[row, column : column + length] += 1
    assert taken.max() == 1, "two sentences share a token"
    assert (np.diff(taken, axis=1) <= 0).all(), "a gap before a sentence"
    assert taken[:, 0].all(), "an empty row"


@modest
@given(lengths_of)
def test_packing_repeats_itself_and_equal_lengths_keep_their_order(lengths: list[int]) -> None:
    array = np.array(lengths)
    starts = pack(array, ROW)
    assert np.array_equal(starts, pack(array.copy(), ROW))
    for length in set(lengths):
        assert (np.diff(starts[array == length]) > 0).all()


@modest
@given(lengths_of, st.randoms(use_true_random=False))
def test_the_order_of_sentences_does_not_change_the_rows(lengths: list[int], random) -> None:
    shuffled = random.sample(lengths, len(lengths))
    places = [sorted(zip(pack(np.array(some), ROW).tolist(), some, strict=True)) for some in (lengths, shuffled)]
    assert places[0] == places[1]


@modest
@given(st.lists(st.lists(st.integers(1, ROW - 1), unique=True, max_size=6), min_size=1, max_size=12))
def test_rows_are_within_the_bound_of_first_fit_decreasing(cuts_of: list[list[int]]) -> None:
    """Rows cut into pieces can be filled exactly, so their number is the least; Dosa (2007): 11/9 of it + 6/9."""
    lengths = np.concatenate([np.diff([0, *sorted(cuts), ROW]) for cuts in cuts_of])
    rows = rows_of(pack(lengths, ROW), ROW)
    assert len(cuts_of) <= rows <= 11 / 9 * len(cuts_of) + 6 / 9
    assert fill_ratio(lengths, ROW) == len(cuts_of) / rows


@pytest.mark.parametrize("seed", range(5))
def test_everyday_lengths_fill_the_rows(seed: int) -> None:
    """Batches of 600 short sentences: 95 % of all rows, and 99 % without the end of the last, which a CPU leaves out."""
    lengths = np.random.default_rng(seed).integers(5, 41, size=600)
    assert fill_ratio(lengths, 256) > 0.95
    for row_length in (256, 1024):
        starts = pack(lengths, row_length)
        assert fill_ratio(lengths, row_length) == lengths.sum() / rows_of(starts, row_length) / row_length
        assert lengths.sum() / (starts + lengths).max() > 0.99


def test_no_sentences_need_no_places() -> None:
    assert pack(np.array([], dtype=np.int64), ROW).tolist() == []


@pytest.mark.parametrize(("lengths", "message"), [([3, 0, 5], "from 0 to 5"), ([3, 25], "from 3 to 25")])
def test_what_cannot_be_packed_is_refused_with_its_length(lengths: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=f"lengths {message} cannot be packed into rows of 24 tokens"):
        pack(np.array(lengths), ROW)


# --- rows of tokens -------------------------------------------------------------------------------------------------

layouts = st.builds(RowLayout, st.integers(1, 2 * ROW), st.integers(1, 5))


def token_ids(lengths: list[int]) -> list[np.ndarray]:
    """All different, none of them the pad."""
    return np.split(np.arange(1, sum(lengths) + 1), np.cumsum(lengths)[:-1])


@modest
@given(lengths_of, layouts)
def test_every_token_is_found_again_and_positions_start_anew(lengths: list[int], layout: RowLayout) -> None:
    sentences = token_ids(lengths)
    rows = packed_rows(sentences, layout, PAD)
    ids, positions = rows["input_ids"].flatten(), rows["position_ids"].flatten()
    for sentence, start, length in zip(sentences, rows["sentence_starts"], rows["sentence_lengths"], strict=True):
        assert ids[start : start + length].tolist() == sentence.tolist()
        assert positions[start : start + length].tolist() == list(range(len(sentence)))
    assert (ids == PAD).sum() == ids.numel() - sum(lengths)
    assert not positions[ids == PAD].any(), "filler is not at position 0"
    assert {tensor.dtype for tensor in rows.values()} == {torch.int64}


@modest
@given(lengths_of, layouts)
def test_rows_come_in_multiples_and_grow_for_a_longer_sentence(lengths: list[int], layout: RowLayout) -> None:
    rows = packed_rows(token_ids(lengths), layout, PAD)
    count, row_length = rows["input_ids"].shape
    assert row_length % layout.length == 0 and row_length - layout.length < max(lengths) <= row_length
    needed = rows_of(rows["sentence_starts"].numpy(), row_length)
    assert count % layout.multiple == 0 and needed <= count < needed + layout.multiple


@modest
@given(lengths_of, layouts)
def test_tokens_see_their_own_sentence_and_filler_sees_itself(lengths: list[int], layout: RowLayout) -> None:
    rows = packed_rows(token_ids(lengths), layout, PAD)
    count, row_length = rows["input_ids"].shape
    expected = torch.eye(row_length, dtype=torch.bool).repeat(count, 1, 1)
    edges = set(range(count * row_length + 1))
    for start, length in zip(rows["sentence_starts"].tolist(), rows["sentence_lengths"].tolist(), strict=True):
        row, column = divmod(start, row_length)
        expected[row, column : column + length, column : column + length] = True
        edges -= set(range(start + 1, start + length))
    assert torch.equal(same_sentence(rows["position_ids"]), expected.unsqueeze(1))
    boundaries = sentence_boundaries(rows["position_ids"])
    assert boundaries.dtype == torch.int32 and boundaries.tolist() == sorted(edges)


@modest
@given(lengths_of, layouts, st.integers(0, 3))
def test_unpacking_gives_each_sentence_its_tokens_and_repeats_its_first_behind(
    lengths: list[int], layout: RowLayout, spare: int
) -> None:
    sentences = token_ids(lengths)
    rows = packed_rows(sentences, layout, PAD)
    longest = max(lengths) + spare
    index, mask = unpack_index(rows["sentence_starts"], rows["sentence_lengths"], longest)
    unpacked = rows["input_ids"].flatten()[index]
    for sentence, ids, real in zip(sentences, unpacked.tolist(), mask.tolist(), strict=True):
        missing = longest - len(sentence)
        assert ids == [*sentence.tolist(), *[int(sentence[0])] * missing]
        assert real == [1] * len(sentence) + [0] * missing


def test_the_collator_keeps_items_views_ids_and_scores_in_their_places() -> None:
    sentences = token_ids([3, 9, 1, 5, 5, 2])
    items = [
        {"views": sentences[start : start + 2], "sentence_ids": np.array([start, start + 1]), "score": start / 2}
        for start in (0, 2, 4)
    ]
    batch = ViewsCollator(PAD, RowLayout(12))(items)
    ids = batch["input_ids"].flatten()
    assert batch["sentence_starts"].shape == batch["sentence_lengths"].shape == (3, 2)
    for item, starts, lengths in zip(items, batch["sentence_starts"], batch["sentence_lengths"], strict=True):
        for view, start, length in zip(item["views"], starts, lengths, strict=True):
            assert ids[start : start + length].tolist() == view.tolist()
    assert batch["sentence_ids"].tolist() == [[0, 1], [2, 3], [4, 5]] and batch["scores"].tolist() == [0, 1, 2]
