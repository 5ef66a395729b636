"""Whether sentences of evaluation sets are trained on.

Two degrees of being the same, both after `normalize_text`: exactly, and loosely, which is blind to
spaces, letter case and what punctuation a sentence ends with. Korean is written with and without
some spaces, so copies of one sentence often differ in nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from .arrow_column import ArrowColumn
from .text import normalize_text

_EXAMPLES = 3
_FINAL_PUNCTUATION = ".,!?…。、！？，~;:\"'”’」』)]"


class PairSet(Protocol):
    """What is needed of `corpora.ScoredPairs`."""

    name: str
    sentences1: Sequence[str]
    sentences2: Sequence[str]


def loose_key(sentence: str) -> str:
    """Equal for sentences that differ in spaces, letter case and final punctuation alone.

    Args:
        sentence: As `normalize_text` gives it. One of nothing but punctuation keeps it.

    >>> loose_key("SimCSE 란 무엇 인가?") == loose_key("simcse란 무엇인가")
    True
    """
    bare = sentence.replace(" ", "").casefold()
    return bare.rstrip(_FINAL_PUNCTUATION) or bare


class HeldOutSentences:
    """The sentences of evaluation sets, to keep out of the training rows: loosely the same is the same.

    Attributes:
        digest: Differs where other sentences are held out.
    """

    def __init__(self, sets: Iterable[PairSet]):
        self._keys = frozenset(loose_key(sentence) for pairs in sets for sentence in _sentences_of(pairs))
        self.digest = hashlib.sha256("\n".join(sorted(self._keys)).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, sentence: str) -> bool:
        return loose_key(sentence) in self._keys


@dataclass(frozen=True, kw_only=True)
class SetLeakage:
    """What of one evaluation set is trained on.

    Attributes:
        sentences: Distinct ones.
        exact: How many of them occur in the training data.
        loose: How many occur there loosely; those of `exact` are among them.
        pairs: All.
        exact_pairs: Both of whose sentences occur.
        loose_pairs: Both of whose sentences occur loosely.
        examples: The first few sentences that occur, as the evaluation set has them; exact ones first.
    """

    name: str
    sentences: int
    exact: int
    loose: int
    pairs: int
    exact_pairs: int
    loose_pairs: int
    examples: list[str]

    def __str__(self) -> str:
        share = f"{self.loose / max(self.sentences, 1):.1%}"
        found = (
            f"{self.name}: {self.loose:,} of {self.sentences:,} sentences ({share}) are in the training data, {self.exact:,} of "
            f"them exactly; both sentences of {self.loose_pairs:,} of {self.pairs:,} pairs"
        )
        return f"{found} (for example: {'; '.join(self.examples)})" if self.examples else found


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """What of each evaluation set is trained on."""

    sets: list[SetLeakage]

    def __bool__(self) -> bool:
        return any(found.loose for found in self.sets)

    def __str__(self) -> str:
        return "\n".join(map(str, self.sets))

    def as_dict(self) -> dict:
        """JSON-ready, for the record of a run."""
        return {
            found.name: {key: value for key, value in asdict(found).items() if key != "name"} for found in self.sets
        }


def leakage_report(training: ArrowColumn | Iterable[str], sets: Sequence[PairSet]) -> Leakage:
    """Look for the sentences of evaluation sets in the training data.

    Args:
        training: Sentences, read once, one after the other, and not held; a column holds normalised ones.
        sets: Evaluation sets, whose sentences are held.
    """
    per_set = [_sentences_of(pairs) for pairs in sets]
    wanted: dict[str, set[str]] = {}  # loose key -> sentences of evaluation sets that have it
    for sentence in {sentence for sentences in per_set for sentence in sentences}:
        wanted.setdefault(loose_key(sentence), set()).add(sentence)
    exact: set[str] = set()
    loose: set[str] = set()
    for sentence in _normalised(training):
        key = loose_key(sentence)
        if key in wanted:
            loose.add(key)
            if sentence in wanted[key]:
                exact.add(sentence)
    return Leakage(
        sets=[_leakage_of(pairs, sentences, exact, loose) for pairs, sentences in zip(sets, per_set, strict=True)]
    )


def _leakage_of(pairs: PairSet, sentences: list[str], exact: set[str], loose: set[str]) -> SetLeakage:
    distinct = list(dict.fromkeys(sentences))
    exactly = [sentence for sentence in distinct if sentence in exact]
    only_loosely = [sentence for sentence in distinct if sentence not in exact and loose_key(sentence) in loose]
    half = len(sentences) // 2
    both = list(zip(sentences[:half], sentences[half:], strict=True))
    return SetLeakage(
        name=pairs.name,
        sentences=len(distinct),
        exact=len(exactly),
        loose=len(exactly) + len(only_loosely),
        pairs=half,
        exact_pairs=sum(first in exact and second in exact for first, second in both),
        loose_pairs=sum(loose_key(first) in loose and loose_key(second) in loose for first, second in both),
        examples=[*exactly, *only_loosely][:_EXAMPLES],
    )


def _sentences_of(pairs: PairSet) -> list[str]:
    return [normalize_text(sentence) for sentence in (*pairs.sentences1, *pairs.sentences2)]


def _normalised(training: ArrowColumn | Iterable[str]) -> Iterator[str]:
    if isinstance(training, ArrowColumn):
        for array in training.arrays():
            yield from array.to_pylist()
    else:
        yield from map(normalize_text, training)
