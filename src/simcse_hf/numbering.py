"""Equal texts get equal numbers, in order of first use, without holding the texts.

A dictionary of ten million sentences is gigabytes. Here a text becomes a digest of 128 bits in
one of some files, each of which is sorted by itself; four bytes a text are held. That two
different texts of a billion share a digest has a probability of 1e-21.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import numpy as np

_BITS = 6  # of the digest, to choose one of 64 files
_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("position", "<i8")])
_CHUNK = 1 << 20


class Numbering:
    """Collects texts, then numbers them.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     numbering = Numbering(Path(folder))
    ...     numbering.add(["나", "가", "나", "다"])
    ...     numbering.numbers().tolist()
    [0, 1, 0, 2]
    """

    def __init__(self, folder: Path):
        """Start in an empty folder, which is made if need be and is the caller's to remove."""
        folder.mkdir(parents=True, exist_ok=True)
        self._files = [folder / f"{part:02}" for part in range(1 << _BITS)]
        self._count = 0

    def add(self, texts: Iterable[str]) -> None:
        """Take in texts; the first ever added has position 0.

        Raises:
            UnicodeEncodeError: A text holds half of a surrogate pair.
        """
        digests = b"".join([blake2b(text.encode("utf-8"), digest_size=16).digest() for text in texts])
        halves = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)
        records = np.empty(len(halves), dtype=_RECORD)
        records["high"], records["low"] = halves.T
        records["position"] = np.arange(self._count, self._count + len(halves))
        self._count += len(halves)
        parts = (records["high"] >> np.uint64(64 - _BITS)).astype(np.int64)
        order = np.argsort(parts, kind="stable")
        bounds = np.searchsorted(parts[order], np.arange(len(self._files) + 1))
        for file, start, end in zip(self._files, bounds, bounds[1:], strict=False):
            if end > start:
                with file.open("ab") as stream:
                    stream.write(records[order[start:end]].tobytes())

    def numbers(self) -> np.ndarray:
        """The number of each text by position, int32 (int64 from 2**31 texts on)."""
        numbers = np.empty(self._count, dtype=np.int32 if self._count < 1 << 31 else np.int64)
        for file in self._files:
            if not file.exists():
                continue
            records = np.fromfile(file, dtype=_RECORD)
            # Stable, so within equal digests the positions still ascend.
            records = records[np.lexsort((records["low"], records["high"]))]
            changes = (np.diff(records["high"]) != 0) | (np.diff(records["low"]) != 0)
            starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
            counts = np.diff(np.append(starts, len(records)))
            numbers[records["position"]] = np.repeat(records["position"][starts], counts)
        _rank_first_positions(numbers)
        return numbers


def _rank_first_positions(numbers: np.ndarray) -> None:
    """Replace, in place, the position of a text's first use by the count of texts first used before it."""
    known = 0
    for start in range(0, len(numbers), _CHUNK):
        chunk = numbers[start : start + _CHUNK]
        firsts = chunk.copy()
        is_first = firsts == np.arange(start, start + len(chunk))
        chunk[is_first] = np.arange(known, known + is_first.sum())
        # What points to an earlier place, in this chunk or before it, finds its number there.
        chunk[~is_first] = numbers[firsts[~is_first]]
        known += int(is_first.sum())


def first_uses(numbers: np.ndarray) -> np.ndarray:
    """Whether each number stands where it is used first, bool; numbers as `Numbering` gives them.

    >>> first_uses(np.array([0, 1, 0, 2])).tolist()
    [True, True, False, True]
    """
    uses = np.ones(len(numbers), dtype=bool)
    highest = -1
    for start in range(0, len(numbers), _CHUNK):
        chunk = numbers[start : start + _CHUNK]
        reached = np.maximum.accumulate(np.concatenate([[highest], chunk]))
        uses[start : start + _CHUNK] = chunk > reached[:-1]
        highest = int(reached[-1])
    return uses
