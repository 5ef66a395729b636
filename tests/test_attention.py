"""Packed attention: every way of computing it is the slow loop over sentences."""

from __future__ import annotations

import inspect
import math
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_batches import PACKING, sentences, tiny
from torch import Tensor

from simcse_hf import attention
from simcse_hf.attention import (
    EqualLengths,
    _runs_of_equal_length,
    attention_dropout,
    attention_layout,
    packed_attention,
    variable_length_kernel,
)
from simcse_hf.packing import RowLayout, packed_rows, same_sentence, sentence_boundaries

HEADS, SIZE = 2, 4
LENGTHS = [1, 7, 3, 3, 3, 12, 1, 9, 5, 2]
WINDOWS = [None, 1, 2, 4, 9]
HALF = torch.bfloat16
CPU = torch.device("cpu")


def slow_attention(query, key, value, sentences, scaling, window):
    """A loop over sentences, heads and tokens.    (R, H, L, E) each; sentences [(start, length)]  ->  (R, L, H, E)

    A token sees the tokens of its sentence that are less than `window` away.
    """
    rows, heads, row_length, size = query.shape
    output = torch.zeros(rows, row_length, heads, size, dtype=torch.float64)
    for start, length in sentences:
        row, first = divmod(start, row_length)
        for head in range(heads):
            for i in range(first, first + length):
                seen = [j for j in range(first, first + length) if window is None or abs(i - j) < window]
                weights = [math.exp(scaling * float(query[row, head, i] @ key[row, head, j])) for j in seen]
                total = sum(weights)
                for j, weight in zip(seen, weights, strict=True):
                    output[row, i, head] += weight / total * value[row, head, j].double()
    return output


class Case:
    """Queries, keys and values of packed rows, and where the sentences lie."""

    def __init__(self, layout: RowLayout, lengths: list[int] = LENGTHS):
        rows = packed_rows([np.ones(length) for length in lengths], layout, 0)
        self.positions = rows["position_ids"]
        order = rows["sentence_starts"].argsort()
        self.starts, self.lengths = rows["sentence_starts"][order], rows["sentence_lengths"][order]
        self.sentences = list(zip(self.starts.tolist(), self.lengths.tolist(), strict=True))
        count, row_length = self.positions.shape
        self.qkv = [torch.randn(count, HEADS, row_length, SIZE, dtype=torch.float64) for _ in range(3)]
        self.real = torch.zeros(count * row_length, dtype=torch.bool)
        for start, length in self.sentences:
            self.real[start : start + length] = True

    def attend(self, **options) -> Tensor:
        module = SimpleNamespace(is_causal=False, training=True)
        output, weights = packed_attention(module, *self.qkv, options.pop("attention_mask", None), **options)
        assert weights is None and output.shape == (*self.positions.shape, HEADS, SIZE)
        return output.flatten(0, 1)[self.real]

    def slow(self, *, scaling: float, window: int | None = None) -> Tensor:
        return slow_attention(*self.qkv, self.sentences, scaling, window).flatten(0, 1)[self.real]

    def near(self, window: int | None) -> Tensor:
        if window is None:
            return torch.tensor(True)
        return ((self.positions.unsqueeze(2) - self.positions.unsqueeze(1)).abs() < window).unsqueeze(1)


@pytest.fixture(params=[RowLayout(64), RowLayout(16), RowLayout(13, 5)], ids=str)
def case(request) -> Case:
    return Case(request.param)


# --- dense runs and the block mask ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", [None, 0.9])
@pytest.mark.parametrize("window", WINDOWS)
def test_dense_runs_and_the_block_mask_are_the_slow_loop(case, window, scaling):
    expected = case.slow(scaling=SIZE**-0.5 if scaling is None else scaling, window=window)
    runs = _runs_of_equal_length(case.starts, case.lengths)
    assert len(runs) < len(LENGTHS), "no two sentences share a run: the test would be vacuous"
    dense = case.attend(equal_lengths=runs, scaling=scaling, sliding_window=window)
    torch.testing.assert_close(dense, expected, atol=1e-12, rtol=0)
    mask = same_sentence(case.positions) & case.near(window)
    # The window is in the mask already.
    masked = case.attend(attention_mask=mask, scaling=scaling, sliding_window=window)
    torch.testing.assert_close(masked, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("window", [None, 4])
def test_dropout_on_attention_weights_keeps_their_expectation(window):
    """A mean of 2,000 draws within five standard errors of the slow loop: by chance not once in a thousand runs."""
    case = Case(RowLayout(16))
    runs = _runs_of_equal_length(case.starts, case.lengths)
    draws = torch.stack(
        [case.attend(equal_lengths=runs, dropout=0.3, scaling=0.9, sliding_window=window) for _ in range(2000)]
    )
    expected = case.slow(scaling=0.9, window=window)
    errors = draws.std(dim=0) / len(draws) ** 0.5
    assert errors.min() > 0, "no dropout: the test would be vacuous"
    assert ((draws.mean(dim=0) - expected).abs() / errors).max() < 5


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.integers(12, 40))
def test_runs_join_neighbours_of_equal_length_and_no_others(lengths: list[int], row_length: int) -> None:
    case = Case(RowLayout(row_length), lengths)
    runs = _runs_of_equal_length(case.starts, case.lengths)
    unfolded = [(run.start + n * run.length, run.length) for run in runs for n in range(run.sentences)]
    assert unfolded == case.sentences
    for run, after in zip(runs, runs[1:], strict=False):
        assert run.length != after.length or run.start + run.sentences * run.length < after.start


def test_runs_of_a_row_are_written_out():
    runs = _runs_of_equal_length(torch.tensor([0, 4, 8, 10, 16]), torch.tensor([4, 4, 2, 2, 2]))
    assert runs == [EqualLengths(0, 2, 4), EqualLengths(8, 2, 2), EqualLengths(16, 1, 2)]


def test_filler_gives_zeros_in_dense_runs(case):
    runs = _runs_of_equal_length(case.starts, case.lengths)
    output, _ = packed_attention(SimpleNamespace(is_causal=False), *case.qkv, None, equal_lengths=runs)
    assert not case.real.all() and not output.flatten(0, 1)[~case.real].any()


# --- flash kernels --------------------------------------------------------------------------------------------------


class Kernel:
    """A kernel of variable length in slow motion; remembers what it was told."""

    def __init__(self):
        self.told: list[dict] = []

    def __call__(self, query, key, value, boundaries, *, scale, window_size, **told):
        """(R*L, H, E) each."""
        assert boundaries.dtype == torch.int32 and window_size[0] == window_size[1]
        edges = boundaries.tolist()
        assert max(b - a for a, b in zip(edges, edges[1:], strict=False)) <= told["longest"]
        self.told.append(told)
        scaling = query.shape[-1] ** -0.5 if scale is None else scale
        window = None if window_size[0] == -1 else window_size[0] + 1  # inclusive in flash kernels
        row = [tensor.transpose(0, 1).unsqueeze(0) for tensor in (query, key, value)]
        lengths = [(a, b - a) for a, b in zip(edges, edges[1:], strict=False)]
        return slow_attention(*row, lengths, scaling, window).squeeze(0)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Both kernels replaced, with the signatures of flash-attn 2.8 and of the PyTorch that is installed."""
    kernel = Kernel()

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
        deterministic=False, return_attn_probs=False, block_table=None,
    ):  # fmt: skip
        assert cu_seqlens_q is cu_seqlens_k and max_seqlen_q == max_seqlen_k and not causal
        return kernel(
            q, k, v, cu_seqlens_q, scale=softmax_scale, window_size=window_size,
            longest=max_seqlen_q, dropout=dropout_p, name="flash_attn",
        )  # fmt: skip

    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", module)

    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="this PyTorch has no variable-length kernel")
    signature = inspect.signature(varlen.varlen_attn)

    def varlen_attn(*args, **kwargs):
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        told = given.arguments
        assert told["cu_seq_q"] is told["cu_seq_k"] and told["max_q"] == told["max_k"]
        return kernel(
            told["query"], told["key"], told["value"], told["cu_seq_q"], scale=told["scale"],
            window_size=told["window_size"], longest=told["max_q"], dropout=0.0, name="torch",
        )  # fmt: skip

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    return kernel


@pytest.mark.parametrize("scaling", [None, 0.9])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("name", "dropout"), [("flash_attn", 0.0), ("flash_attn", 0.25), ("torch", 0.0)])
def test_flash_kernels_are_told_the_sentences_the_window_and_the_dropout(
    name, dropout, window, scaling, case, kernel, monkeypatch
):
    monkeypatch.setattr(attention, "variable_length_kernel", lambda *_: name)
    found = case.attend(
        boundaries=sentence_boundaries(case.positions),
        longest=case.positions.shape[1],
        dropout=dropout,
        scaling=scaling,
        sliding_window=window,
    )
    expected = case.slow(scaling=SIZE**-0.5 if scaling is None else scaling, window=window)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert [(told["name"], told["dropout"]) for told in kernel.told] == [(name, dropout)]


@pytest.mark.parametrize("name", ["flash_attn", "torch"])
@pytest.mark.parametrize("kind", PACKING)
def test_a_whole_encoder_on_flash_kernels_gives_what_it_gives_without(kind, name, text_config, kernel, monkeypatch):
    """ModernBERT's window is 8 tokens to either side, and most sentences are longer."""
    model = tiny(text_config, kind, num_hidden_layers=2, n_layers=2).double().eval()
    batch = packed_rows(sentences([1, 12, 5, 5, 23]), RowLayout(48), 1)
    with torch.no_grad():
        expected = model.embed_rows(**batch)
        monkeypatch.setattr(attention, "variable_length_kernel", lambda *_: name)
        monkeypatch.setattr(
            "simcse_hf.embedding.attention_layout",
            lambda backbone, positions, *_, **__: {
                "boundaries": sentence_boundaries(positions),
                "longest": positions.shape[1],
            },
        )
        found = model.embed_rows(**batch)
    assert len(kernel.told) == 2, "one call for each layer"
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


# --- which of them --------------------------------------------------------------------------------------------------

V100, A100, H100 = (7, 0), (8, 0), (9, 0)
BOTH, ONLY_TORCH, NEITHER = ("flash_attn", "torch.nn.attention.varlen"), ("torch.nn.attention.varlen",), ()


@pytest.mark.parametrize(
    ("capability", "dtype", "dropout", "there", "expected"),
    [
        (A100, torch.float32, 0.0, BOTH, None),
        (A100, torch.float64, 0.0, BOTH, None),
        (V100, torch.float16, 0.0, BOTH, None),
        ((7, 5), torch.float16, 0.0, BOTH, None),
        (A100, HALF, 0.1, ONLY_TORCH, None),  # the block mask keeps the dropout alive
        (A100, HALF, 0.0, ONLY_TORCH, "torch"),
        (A100, torch.float16, 0.0, ONLY_TORCH, "torch"),
        (A100, HALF, 0.1, BOTH, "flash_attn"),
        (H100, HALF, 0.0, BOTH, "flash_attn"),
        (H100, HALF, 0.0, NEITHER, None),
    ],
)
def test_the_kernel_is_one_that_the_gpu_the_type_and_the_dropout_allow(
    capability, dtype, dropout, there, expected, monkeypatch
):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    monkeypatch.setattr(attention, "_is_there", lambda package: package in there)
    assert variable_length_kernel(torch.device("cuda"), dtype, dropout) == expected


class OnGPU(torch.Tensor):
    """A tensor of the CPU that says otherwise."""

    device = torch.device("cuda")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", PACKING)
def test_on_a_gpu_only_the_dropout_of_training_keeps_torchs_kernel_away(kind, training, text_config, monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: A100)
    monkeypatch.setattr(attention, "_is_there", lambda package: package in ONLY_TORCH)
    backbone = tiny(text_config, kind, attention_dropout=0.1).train(training).backbone
    case = Case(RowLayout(16))
    layout = attention_layout(
        backbone, case.positions.as_subclass(OnGPU), case.starts, case.lengths, dtype=HALF, compiled=False
    )
    assert list(layout) == (["attention_mask"] if training else ["boundaries", "longest"])
    if not training:
        assert layout["boundaries"].tolist() == sentence_boundaries(case.positions).tolist()
        assert layout["longest"] >= case.lengths.max()


@pytest.mark.parametrize("kind", PACKING)
def test_float32_on_a_gpu_and_compiled_code_get_a_block_mask_and_a_cpu_dense_runs(kind, text_config, monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: A100)
    backbone = tiny(text_config, kind).backbone
    case = Case(RowLayout(64), [1, 30, 9, 9])
    options = {"dtype": torch.float32}
    runs = attention_layout(backbone, case.positions, case.starts, case.lengths, **options)
    assert runs == {"equal_lengths": _runs_of_equal_length(case.starts, case.lengths)}
    for positions, compiled in ((case.positions.as_subclass(OnGPU), False), (case.positions, True)):
        mask = attention_layout(backbone, positions, case.starts, case.lengths, **options, compiled=compiled)
        assert list(mask) == ["attention_mask"]
        mask, full = mask["attention_mask"], same_sentence(case.positions)
        if kind == "modernbert":
            # local_attention 16 is 8 tokens to either side, the eighth included.
            assert torch.equal(mask["sliding_attention"].as_subclass(torch.Tensor), full & case.near(9))
            assert not torch.equal(full, full & case.near(9))
            mask = mask["full_attention"]
        assert torch.equal(mask.as_subclass(torch.Tensor), full)


@pytest.mark.parametrize("kind", PACKING)
def test_the_dropout_on_attention_weights_is_found_under_every_name(kind, text_config):
    assert attention_dropout(tiny(text_config, kind, attention_dropout=0.2).backbone.config) == 0.2
    assert attention_dropout(tiny(text_config, kind).backbone.config) == 0.0
