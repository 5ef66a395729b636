"""The CPU's own linear layers and dropout: the same numbers, the same distribution, and only where they belong."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse_hf import cpu_kernels as kernels
from simcse_hf.cpu_kernels import cpu_kernels, dropout, linear

CPU = torch.device("cpu")
HERE = "simcse_hf.cpu_kernels"

has_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"),
    reason="this build of PyTorch has no oneDNN linear layer",
)


@pytest.fixture
def amd(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests of the context mean the same on every machine."""
    monkeypatch.setattr(f"{HERE}._vendor", lambda: "AuthenticAMD")
    monkeypatch.setattr(f"{HERE}._onednn_is_faster", lambda: True)


# --- linear ---------------------------------------------------------------------------------------------------------

INPUTS = {
    "rows": lambda: torch.randn(130, 48),
    "one row": lambda: torch.randn(1, 48),
    "sentences": lambda: torch.randn(5, 26, 48),
    "transposed": lambda: torch.randn(48, 130).T,
    "a slice": lambda: torch.randn(130, 3, 48)[:, 1],
    "every second sentence": lambda: torch.randn(10, 26, 48)[::2],
}


@has_onednn
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", INPUTS)
def test_linear_is_the_product_in_float64_and_so_are_its_gradients(shape, has_bias):
    leaves = [INPUTS[shape](), torch.randn(33, 48), *([torch.randn(33)] if has_bias else [])]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    direction = torch.randn(*leaves[0].shape[:-1], 33)
    found, expected = linear(*leaves), F.linear(*exact)
    assert found.dtype == torch.float32 and found.shape == expected.shape
    # Sums of at most 130 products: float32 keeps 6 digits of the largest.
    for one, other in [
        (found, expected),
        *zip(
            torch.autograd.grad(found, leaves, direction),
            torch.autograd.grad(expected, exact, direction.double()),
            strict=True,
        ),
    ]:
        torch.testing.assert_close(one.double(), other, rtol=0, atol=2e-6 * other.abs().max().item())


@has_onednn
@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)], ids=str)
def test_linear_gives_only_the_gradients_that_are_wanted(wanted):
    leaves = [torch.randn(70, 8), torch.randn(9, 8), torch.randn(9)]
    for leaf, wants in zip(leaves, wanted, strict=True):
        leaf.requires_grad_(wants)
    linear(*leaves).sum().backward()
    assert [leaf.grad is not None for leaf in leaves] == list(wanted)


@has_onednn
def test_linear_takes_a_gradient_that_was_expanded():
    """As `sum` and `mean` hand it over: strides of 0."""
    weight = torch.randn(9, 8, requires_grad=True)
    rows = torch.randn(70, 8)
    linear(rows, weight).sum().backward()
    torch.testing.assert_close(weight.grad, rows.sum(dim=0).expand(9, 8), rtol=1e-5, atol=1e-5)


# --- dropout --------------------------------------------------------------------------------------------------------

SIGMAS = 5  # a fair generator is further away once in 1.7 million draws


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_dropout_keeps_as_many_as_it_should_and_scales_them(p):
    count = 200_001  # not a multiple of the four that one random word serves
    values = torch.randn(count).abs() + 1
    dropped = dropout(values, p)
    kept = dropped != 0
    expected, deviation = count * (1 - p), (count * p * (1 - p)) ** 0.5
    assert abs(kept.sum().item() - expected) < SIGMAS * deviation
    torch.testing.assert_close(dropped[kept], values[kept] / (1 - p), rtol=1e-6, atol=0)


def test_the_four_elements_of_a_word_and_its_neighbours_are_independent():
    kept = (dropout(torch.ones(400_000), 0.3) != 0).float()
    for lag in (1, 2, 3, 4, 5):
        agreement = (kept[:-lag] * kept[lag:]).mean().item()
        deviation = (0.49 * 0.51 / len(kept)) ** 0.5
        # Pairs overlap, which widens the spread a little.
        assert abs(agreement - 0.49) < 2 * SIGMAS * deviation, lag
    for place in range(4):
        assert abs(kept[place::4].mean().item() - 0.7) < SIGMAS * (0.21 / 100_000) ** 0.5, place


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=0, max_size=4), st.sampled_from([0.2, 0.5]))
def test_dropout_takes_any_shape_and_passes_the_gradient_where_it_passed_the_value(shape: list[int], p: float) -> None:
    values = torch.rand(shape, dtype=torch.float64).add_(1).requires_grad_()
    dropped = dropout(values, p)
    assert dropped.shape == values.shape and dropped.dtype == values.dtype
    (gradient,) = torch.autograd.grad(dropped.sum(), values)
    torch.testing.assert_close(gradient * values, dropped, rtol=1e-12, atol=0)


def test_dropout_of_a_tensor_that_is_not_contiguous_keeps_places():
    values = torch.arange(1.0, 1201.0).view(30, 40).T
    dropped = dropout(values, 0.5)
    kept = dropped != 0
    assert 400 < kept.sum() < 800 and torch.equal(dropped[kept], 2 * values[kept])


def test_a_seed_gives_the_mask_again_and_the_next_draw_is_another():
    values = torch.ones(1000)
    torch.manual_seed(3)
    first, second = dropout(values, 0.5), dropout(values, 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropout(values, 0.5), first) and not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dropout_keeps_the_type(dtype):
    values = torch.ones(64, dtype=dtype, requires_grad=True)
    dropped = dropout(values, 0.5)
    assert dropped.dtype == dtype and set(dropped.tolist()) == {0.0, 2.0}
    dropped.sum().backward()
    assert values.grad.dtype == dtype


def test_no_dropout_is_the_identity_and_full_dropout_leaves_nothing():
    values = torch.randn(50)
    state = torch.get_rng_state()
    assert torch.equal(dropout(values, 0.0), values) and torch.equal(dropout(values, 0.7, training=False), values)
    assert torch.equal(torch.get_rng_state(), state), "random numbers were drawn for nothing"
    assert not dropout(values, 1.0).any()


def test_dropout_in_place_changes_its_input():
    values = torch.ones(1000)
    assert dropout(values, 0.5, True, True) is values and set(values.tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_an_impossible_probability_is_refused(p):
    with pytest.raises(ValueError, match=f"dropout probability has to be between 0 and 1, but got {p}"):
        dropout(torch.ones(3), p)


# --- where they are used --------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of our kernels, each time one is called."""
    seen: list[str] = []

    def recording(name: str):
        ordinary = getattr(F, name)
        # F.linear and F.dropout, so that this needs neither kernel.
        return lambda *args, **kwargs: seen.append(name) or ordinary(*args, **kwargs)

    for name in ("linear", "dropout"):
        monkeypatch.setattr(f"{HERE}.{name}", recording(name))
    return seen


def through_a_layer(rows: int = 64, dtype: torch.dtype = torch.float32) -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5)).to(dtype)
    layer(torch.randn(rows, 8, dtype=dtype))


def test_the_context_replaces_both_and_its_end_restores_them(calls, amd):
    with cpu_kernels(CPU):
        through_a_layer()
    assert calls == ["linear", "dropout"]
    through_a_layer()
    assert calls == ["linear", "dropout"]


@pytest.mark.parametrize(
    ("rows", "dtype", "autocast", "expected"),
    [
        (63, torch.float32, False, ["dropout"]),  # too few for it to pay
        (64, torch.float64, False, ["dropout"]),
        (64, torch.bfloat16, False, ["dropout"]),
        (64, torch.float32, True, ["dropout"]),
        (64, torch.float32, False, ["linear", "dropout"]),
    ],
)
def test_only_large_float32_products_are_replaced(rows, dtype, autocast, expected, calls, amd):
    with cpu_kernels(CPU), torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext():
        through_a_layer(rows, dtype)
    assert calls == expected


@pytest.mark.parametrize("vendor", ["AuthenticAMD", "", "GenuineIntel"])
def test_dropout_is_replaced_where_the_maker_is_not_intel_and_products_on_amd(vendor, calls, monkeypatch):
    monkeypatch.setattr(f"{HERE}._vendor", lambda: vendor)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: True)
    if vendor == "AuthenticAMD" and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this build of PyTorch has no oneDNN linear layer")
    kernels._onednn_is_faster.cache_clear()
    try:
        with cpu_kernels(CPU):
            through_a_layer()
    finally:
        kernels._onednn_is_faster.cache_clear()
    assert calls == {"AuthenticAMD": ["linear", "dropout"], "": ["dropout"], "GenuineIntel": []}[vendor]


@pytest.mark.parametrize(("device", "enabled"), [("cuda", True), ("cpu", False)])
def test_other_devices_and_compiled_code_are_left_alone(device, enabled, calls, amd):
    with cpu_kernels(torch.device(device), enabled=enabled):
        through_a_layer()
    assert calls == []


@has_onednn
def test_a_layer_in_the_context_gives_what_it_gives_outside(amd):
    layer = torch.nn.Linear(32, 16)
    rows = torch.randn(100, 32)
    with cpu_kernels(CPU):
        inside = layer(rows)
    assert type(inside.grad_fn).__name__ == "_OneDNNLinearBackward"
    torch.testing.assert_close(inside, layer(rows), rtol=1e-5, atol=1e-5)


@has_onednn
@pytest.mark.parametrize("keywords", [False, True])
def test_arguments_reach_the_kernels_by_position_and_by_name(keywords, amd):
    rows, weight, bias = torch.randn(64, 8), torch.randn(9, 8), torch.randn(9)
    with cpu_kernels(CPU):
        if keywords:
            found, dropped = F.linear(rows, weight=weight, bias=bias), F.dropout(rows, p=0.5, training=False)
        else:
            found, dropped = F.linear(rows, weight, bias), F.dropout(rows, 0.5, False)
    torch.testing.assert_close(found, rows @ weight.T + bias, rtol=1e-5, atol=1e-5)
    assert torch.equal(dropped, rows)


@pytest.mark.parametrize(("p", "kept"), [(0.999999, 0.0), (1e-7, 1.0)])
def test_probabilities_next_to_0_and_1_do_not_wrap_around(p, kept):
    """Sixteen bits have no threshold for these; the first once kept everything."""
    share = (dropout(torch.ones(10_000), p) != 0).float().mean()
    assert share == pytest.approx(kept, abs=1e-3)
