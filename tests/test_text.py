"""Which sentences are the same."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse_hf.text import normalize_text

INVISIBLE = "\u200b\u2060\ufeff\u00ad"
SPACES = " \u00a0\u3000\u2028\u2029\u0085\t\r\n\x0b\x1c"
# Few characters, so that those meet which compose with each other or keep others from it; and any characters at all.
texts = st.text("가e\u1100\u1161\u11a8\u0301\u0323 \u200b\u00a0", max_size=8) | st.text(
    st.one_of(st.sampled_from(SPACES + INVISIBLE + "\u212b"), st.characters(exclude_categories=["Cs"])), max_size=30
)


@pytest.mark.parametrize(
    ("raw", "same_as"),
    [
        ("\u1112\u1161\u11ab\u1100\u1173\u11af", "한글"),
        ("비가\u00a0온다.", "비가 온다."),
        (" 비가 \t 온다.\r\n", "비가 온다."),
        ("비가\u2028온다.", "비가 온다."),
        ("비가\u3000온다.", "비가 온다."),
        ("\ufeff비가 온\u200b다.", "비가 온다."),
        ("soft\u00adware", "software"),
        ("가\u200b\u11a8", "각"),
        ("\u212b", "\u00c5"),
        ("\u200b \u2060", ""),
        ("", ""),
    ],
)
def test_what_a_reader_cannot_see_makes_no_other_sentence(raw: str, same_as: str) -> None:
    assert raw != same_as or not raw
    assert normalize_text(raw) == same_as


@pytest.mark.parametrize(
    "text", ["n/a", "그는 \"네\"라고 했다, '정말'.", "Ａ１", "ㅋㅋㅋ", "می\u200cخواهم", "👩\u200d👧", "①"]
)
def test_what_a_reader_sees_stays(text: str) -> None:
    assert normalize_text(text) == text


@settings(max_examples=300, deadline=None)
@given(texts)
def test_normalising_twice_is_normalising_once(text: str) -> None:
    once = normalize_text(text)
    assert normalize_text(once) == once


@settings(max_examples=300, deadline=None)
@given(texts)
def test_normalised_text_is_nfc_without_invisible_characters_or_double_spaces(text: str) -> None:
    normalised = normalize_text(text)
    assert unicodedata.is_normalized("NFC", normalised)
    assert not set(normalised) & set(INVISIBLE)
    assert normalised.split(" ") == normalised.split() or not normalised


@settings(max_examples=200, deadline=None)
@given(texts)
def test_composed_and_decomposed_copies_of_a_text_are_the_same(text: str) -> None:
    assert normalize_text(unicodedata.normalize("NFD", text)) == normalize_text(text)


@settings(max_examples=200, deadline=None)
@given(texts, st.lists(st.tuples(st.integers(0, 30), st.sampled_from(INVISIBLE)), min_size=1, max_size=5))
def test_invisible_characters_anywhere_change_nothing(text: str, insertions: list[tuple[int, str]]) -> None:
    """Between two jamo too, where one would keep them from composing."""
    littered = text
    for position, character in insertions:
        littered = littered[:position] + character + littered[position:]
    assert littered != text
    assert normalize_text(littered) == normalize_text(text)
