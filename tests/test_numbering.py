"""Texts numbered on disk as a dictionary would number them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse_hf import numbering
from simcse_hf.numbering import Numbering, first_uses


def by_dictionary(texts: list[str]) -> list[int]:
    known: dict[str, int] = {}
    return [known.setdefault(text, len(known)) for text in texts]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.text("가나다 ", max_size=3), max_size=12), max_size=5), st.sampled_from([1, 2, 3, 1 << 20]))
def test_numbers_are_those_of_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[list[str]], chunk: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numbering, "_CHUNK", chunk)
        counted = Numbering(tmp_path_factory.mktemp("numbering"))
        for block in blocks:
            counted.add(block)
        texts = [text for block in blocks for text in block]
        numbers = counted.numbers()
        assert numbers.tolist() == by_dictionary(texts)
        assert numbers.dtype == np.int32
        assert first_uses(numbers).tolist() == [text not in texts[:place] for place, text in enumerate(texts)]


def test_many_texts_fill_every_file(tmp_path: Path) -> None:
    texts = [f"문장 {number * number % 7919}" for number in range(30_000)]
    counted = Numbering(tmp_path)
    for start in range(0, len(texts), 1000):
        counted.add(texts[start : start + 1000])
    assert len(list(tmp_path.iterdir())) == 64
    assert counted.numbers().tolist() == by_dictionary(texts)


def test_half_a_character_is_not_a_text(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        Numbering(tmp_path).add(["가", "\ud83d"])
