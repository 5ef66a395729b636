"""Passes: the parts of a batch are the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse_hf.packing import RowLayout, packed_rows
from simcse_hf.passes import in_passes, length_buckets, row_layout, row_passes, rows_per_pass

ROW = 12
lengths_of = st.lists(st.integers(1, ROW), min_size=1, max_size=40)
modest = settings(max_examples=100, deadline=None)


@modest
@given(lengths_of, st.integers(1, 4), st.integers(1, 12))
def test_passes_hold_every_sentence_once_with_its_own_tokens(lengths: list[int], multiple: int, per_pass: int) -> None:
    sentences = np.split(np.arange(1, sum(lengths) + 1), np.cumsum(lengths)[:-1])
    batch = packed_rows(sentences, RowLayout(ROW, multiple), 0)
    order = batch["sentence_starts"].argsort()
    rows = {name: batch[name] for name in ("input_ids", "position_ids")}
    passes = list(row_passes(rows, batch["sentence_starts"][order], batch["sentence_lengths"][order], per_pass))
    found = []
    for piece, starts, own_lengths in passes:
        assert len(starts), "a pass without sentences"
        assert piece["input_ids"].shape == piece["position_ids"].shape and len(piece["input_ids"]) <= per_pass
        ids, positions = piece["input_ids"].flatten(), piece["position_ids"].flatten()
        for start, length in zip(starts.tolist(), own_lengths.tolist(), strict=True):
            found.append(ids[start : start + length].tolist())
            assert positions[start : start + length].tolist() == list(range(length))
    assert found == [sentences[n].tolist() for n in order]
    sizes = [len(piece["input_ids"]) for piece, *_ in passes]
    assert all(size == min(per_pass, len(rows["input_ids"])) for size in sizes[:-1])


def test_passes_of_filler_are_left_out() -> None:
    batch = packed_rows([np.ones(ROW)] * 3, RowLayout(ROW, multiple=8), 0)
    assert len(batch["input_ids"]) == 8
    rows = {"input_ids": batch["input_ids"]}
    passes = list(row_passes(rows, batch["sentence_starts"], batch["sentence_lengths"], 2))
    assert [starts.tolist() for _, starts, _ in passes] == [[0, ROW], [0]]


@pytest.mark.parametrize(
    ("shape", "cache_tokens", "expected"),
    [
        ((9, 1024), None, 1),  # a CPU's pass holds 1,024 tokens
        ((9, 256), None, 4),
        ((2, 256), None, 2),
        ((9, 256), 512, 2),
        ((9, 256), 767, 2),
        ((9, 256), 100, 1),  # a row is never cut
        ((9, 2000), None, 1),
        ((9, 256), 10**9, 4),  # nor does a CPU take more, whatever is allowed
    ],
)
def test_the_rows_of_a_pass_hold_so_many_tokens_and_are_one_at_least(shape, cache_tokens, expected) -> None:
    assert rows_per_pass(torch.zeros(shape), cache_tokens) == expected


def test_a_gpu_takes_all_rows_together_unless_gradients_are_cached() -> None:
    rows = torch.zeros(90, 256, device="meta")  # any device that is not the CPU
    assert rows_per_pass(rows, None) == 90
    assert rows_per_pass(rows, 4096) == 16


def test_compiled_rows_come_in_multiples_of_a_cpu_pass() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert row_layout(cpu, compiled=False) == RowLayout(1024)
    assert row_layout(gpu, compiled=False) == RowLayout(256)
    for device in (cpu, gpu):
        length, multiple = row_layout(device, compiled=True)
        assert length * multiple == 1024 and multiple > 1


@modest
@given(st.lists(st.integers(1, ROW), min_size=1, max_size=100), st.one_of(st.none(), st.integers(1, 40 * ROW)))
def test_buckets_hold_every_sentence_once_shortest_first(lengths: list[int], cache_tokens: int | None) -> None:
    longest = max(lengths)
    order, sizes, longest_of = length_buckets(torch.tensor(lengths), longest, cache_tokens)
    assert sorted(order.tolist()) == list(range(len(lengths))) and sum(sizes) == len(lengths)
    in_order = [lengths[n] for n in order]
    assert in_order == sorted(lengths)
    start = 0
    for size, longest_here in zip(sizes, longest_of, strict=True):
        assert max(in_order[start : start + size]) == longest_here
        assert size <= 32 and (cache_tokens is None or size == 1 or size * longest <= cache_tokens)
        start += size


def test_buckets_of_a_gpu_are_quarters_of_a_large_batch() -> None:
    class OnGPU:
        """Lengths on the CPU that say otherwise."""

        device = torch.device("cuda")
        argsort = staticmethod(lambda stable: torch.arange(400))

        def __getitem__(self, index):
            return torch.arange(400)[index]

    assert length_buckets(OnGPU(), 400, None)[1:] == ([100] * 4, [99, 199, 299, 399])


@pytest.mark.parametrize("cache_gradients", [False, True])
def test_vectors_and_gradients_of_passes_are_those_of_the_whole(cache_gradients: bool) -> None:
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(7, 5, dtype=torch.float64)
    calls = []

    def embed(some: torch.Tensor) -> torch.Tensor:
        calls.append(len(some))
        return (some @ weight).tanh()

    whole = (rows @ weight).tanh()
    vectors = in_passes(embed, ((piece,) for piece in rows.split(3)), cache_gradients=cache_gradients)
    assert torch.equal(vectors, whole) and calls == [3, 3, 1]
    gradients = [torch.autograd.grad((some @ some.T).exp().sum(), weight)[0] for some in (vectors, whole)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-12)
    assert sorted(calls) == ([1, 1, 3, 3, 3, 3] if cache_gradients else [1, 3, 3])
