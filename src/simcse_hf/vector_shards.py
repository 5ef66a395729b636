"""A folder of vectors: shards, and `manifest.json`, which says what they are and were made from.

Shards appear whole or not at all, and the manifest names those that are there with their checksums, so that whoever
is stopped at any moment can go on with the first that is missing. Several processes may fill a folder: shard i is
made by process i mod W, each shard gets a note of its own, and they meet in nothing but the manifest, which they change
one after another, when they begin and when they end.

Axes: N rows, D size of a vector, W processes.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from operator import index as whole_number
from pathlib import Path

import numpy as np
import pyarrow as pa

from .errors import ConfigError, DataError, SimCSEError
from .file_locks import waiting_for
from .files import sha256_of
from .shared_folder import MANIFEST_LOCK, check_name, place_in
from .vector_files import DTYPES, Block, read_blocks, read_sentences, write_vector_file
from .vector_manifest import (
    BEGIN_AGAIN,
    MANIFEST,
    VERSION,
    differences,
    has_notes,
    note_shard,
    put_shards,
    read_manifest,
    remove_note,
    remove_notes,
    shard_name,
    shards_of,
    span_of,
    write_manifest,
)

logger = logging.getLogger(__name__)


class VectorFolder:
    """A folder that is being filled by process r of W; see `vector_folder`.

    Attributes:
        folder: Where the shards and the manifest lie.
        manifest: As last read or written; empty before `begin`.
    """

    def __init__(self, folder: Path, process: int = 0, processes: int = 1):
        self.folder = folder
        self.manifest: dict = {}
        self._process = process
        self._processes = processes
        self._noted = False  # a shard that may not be in the manifest yet

    def begin(
        self, origin: dict | Callable[[list[dict]], dict], count_rows: Callable[[], list[int]], dimension: int
    ) -> None:
        """Take up the folder where it was left, or write the manifest of a new one.

        Args:
            origin: What the vectors are made from, JSON-ready: `model`, `options` (`shard_rows`, `format`,
                `output_dtype`, `with_text` among them) and `data`, one `path` and `sha256` for each file. Names of the
                model and paths may change, the rest of these may not. Or a function of the `data` in the manifest,
                none for a new folder, that is called while other processes wait.
            count_rows: Called for a new folder, while other processes wait: sentences in each data file.
            dimension: D.

        Raises:
            ConfigError: The folder was begun with something else, or holds files of somebody else.
        """
        with self._changing("reads the corpus to count its rows") as found:
            for leftover in self.folder.glob(f".{MANIFEST}.*"):  # of a process that was killed
                leftover.unlink()
            made_from = origin(found.get("data", [])) if callable(origin) else origin
            if found:
                if differing := differences(found, made_from):
                    raise ConfigError(f"{self.folder} was begun with {'; '.join(differing)}. {BEGIN_AGAIN}")
                # The same files, which may have been moved or copied since, so that their times are others.
                data = [
                    was | now | {"path": was["path"]} for was, now in zip(found["data"], made_from["data"], strict=True)
                ]
                if data != found["data"] or has_notes(self.folder):
                    self._write(found | {"data": data})
                return
            check_name(self.folder)
            remove_notes(self.folder)
            counts = count_rows()
            data = [entry | {"rows": rows} for entry, rows in zip(made_from["data"], counts, strict=True)]
            self._write(
                {"version": VERSION, "complete": False, "rows": sum(counts), "dimension": dimension}
                | made_from
                | {"data": data, "shards": []}
            )

    @property
    def own_shards(self) -> range:
        """Numbers of the shards that this process makes."""
        return range(self._process, shards_of(self.manifest), self._processes)

    def span(self, shard: int) -> tuple[int, int]:
        """First row of a shard, and the one after its last."""
        return span_of(self.manifest, shard)

    def missing(self, advance: Callable[[int], object] = lambda rows: None) -> list[int]:
        """Own shards that are still to be made; a damaged one is said, and struck from the manifest.

        Every byte of those that are there is read, to compare checksums.

        Args:
            advance: Told the rows of each shard that is whole.
        """
        recorded = {entry["file"]: entry for entry in self.manifest["shards"]}
        wanted, struck = [], []
        for shard in self.own_shards:
            entry = recorded.get(shard_name(self.manifest, shard))
            fault = "new" if entry is None else _fault(self.folder / entry["file"], entry)
            if fault is None:
                advance(entry["rows"])
                continue
            wanted.append(shard)
            if entry is not None:
                logger.warning("%s %s; it is made again.", self.folder / entry["file"], fault)
                struck.append(shard)
        if struck:
            with self._changing() as manifest:
                shards = {entry["first_row"]: entry for entry in manifest["shards"]}
                for shard in struck:
                    remove_note(self.folder, shard)
                    shards.pop(self.span(shard)[0], None)
                put_shards(manifest, shards)
                self._write(manifest)
        return wanted

    def write(self, shard: int, blocks: Iterable[Block], **note) -> None:
        """Make a shard from its sentences and vectors, and say so, together with how it was made."""
        options = self.manifest["options"]
        start, stop = self.span(shard)
        name = shard_name(self.manifest, shard)
        written = write_vector_file(
            self.folder / name,
            blocks,
            rows=stop - start,
            dimension=self.manifest["dimension"],
            dtype=options["output_dtype"],
            kind=options["format"],
            first_row=start,
            with_text=options["with_text"],
        )
        self._record(shard, {"file": name, "first_row": start, "rows": stop - start} | written | note)

    def shards_done(self) -> tuple[int, int]:
        """How many shards there are now, those of other processes included, and how many there will be.

        All of them are in the manifest then.
        """
        self.enter_notes()
        return len(self.manifest["shards"]), shards_of(self.manifest)

    def enter_notes(self) -> None:
        """Enter the shards that were made into the manifest."""
        with self._changing() as manifest:
            if manifest and has_notes(self.folder):
                self._write(manifest)
        self._noted = False

    def leave(self) -> None:
        """Whoever is stopped leaves a manifest that names what it made."""
        if self._noted:
            self.enter_notes()

    def _record(self, shard: int, entry: dict) -> None:
        note_shard(self.folder, shard, entry)
        self._noted = True

    @contextmanager
    def _changing(self, occupation: str = "writes the manifest") -> Iterator[dict]:
        """The manifest as it is, empty where there is none, which no other process changes inside the block."""
        with waiting_for(self.folder / MANIFEST_LOCK, occupation):
            self.manifest = read_manifest(self.folder) if (self.folder / MANIFEST).exists() else {}
            yield self.manifest

    def _write(self, manifest: dict) -> None:
        write_manifest(self.folder, manifest)
        self.manifest = manifest


@contextmanager
def vector_folder(folder: Path, process: int = 0, processes: int = 1) -> Iterator[VectorFolder]:
    """A folder to fill, made where it does not exist, that no other run fills at the same time.

    What a killed process left of the shards of this one is removed.

    Args:
        folder: With nothing in it, or begun before.
        process: r, from 0.
        processes: W; it may be another each time.

    Raises:
        ConfigError: A file is in the way, the name is that of a file, or another run is at work there.
    """
    with place_in(folder, process, processes):
        output = VectorFolder(folder, process, processes)
        try:
            yield output
        except BaseException:
            with suppress(OSError, SimCSEError):  # the notes stay, and say the same
                output.leave()
            raise
        output.leave()


def _fault(path: Path, entry: dict) -> str | None:
    """What is wrong with the file of a shard; None where it is whole."""
    if not path.exists():
        return "is missing"
    if (size := path.stat().st_size) != entry["bytes"]:
        return f"has {size:,} bytes instead of {entry['bytes']:,}"
    return None if sha256_of(path) == entry["sha256"] else "is damaged (its checksum differs)"


class VectorShards(Sequence):
    """The vectors of a folder as one array (N, D) of which only what is asked for is read.

    `npy` and Arrow shards are mapped from disk; a Parquet shard is read as a whole, and the last few are kept.

    Attributes:
        folder: Where the shards lie.
        manifest: What they are and were made from.
    """

    def __init__(self, folder: Path, manifest: dict):
        self.folder = folder
        self.manifest = manifest
        self._starts = [0]  # of each shard, and the end of the last
        for entry in manifest["shards"]:
            self._starts.append(self._starts[-1] + entry["rows"])
        self._blocks = lru_cache(maxsize=4 if manifest["options"]["format"] == "parquet" else 256)(self._open)
        self._sentences = lru_cache(maxsize=4)(self._open_sentences)

    def __reduce__(self):
        return type(self), (self.folder, self.manifest)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)"""
        return self.manifest["rows"], self.manifest["dimension"]

    @property
    def dtype(self) -> np.dtype:
        """As the vectors are stored."""
        return np.dtype(DTYPES[self.manifest["options"]["output_dtype"]])

    def __len__(self) -> int:
        return self.manifest["rows"]

    def __getitem__(self, index) -> np.ndarray:
        """A row (D,), or the rows of a slice (n, D): a view where they lie in one block, else a copy."""
        if isinstance(index, slice):
            rows = range(*index.indices(len(self)))
            if not rows:
                return np.empty((0, self.shape[1]), dtype=self.dtype)
            between = self._rows(min(rows), max(rows) + 1)
            return between if rows.step == 1 else between[:: rows.step]
        row = whole_number(index)
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self):,} in {self.folder}")
        row %= len(self)
        return self._rows(row, row + 1)[0]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """All of them, in memory."""
        return np.array(self[:], dtype=dtype)

    @property
    def has_sentences(self) -> bool:
        """Whether the sentences are stored beside the vectors."""
        return self.manifest["options"]["with_text"]

    def sentence(self, row: int) -> str:
        """Of a row 0 .. N - 1, where they are stored.

        Raises:
            DataError: The shard is damaged.
        """
        shard = bisect_right(self._starts, row) - 1
        return self._sentences(shard)[row - self._starts[shard]].as_py()

    def _rows(self, start: int, stop: int) -> np.ndarray:
        found = []
        shard = bisect_right(self._starts, start) - 1
        while shard < len(self._starts) - 1 and (first := self._starts[shard]) < stop:
            for block in self._blocks(shard):
                piece = block[max(start - first, 0) : max(stop - first, 0)]
                found += [piece] if len(piece) else []
                first += len(block)
            shard += 1
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _open(self, shard: int) -> list[np.ndarray]:
        path, kind, rows = self._file_of(shard)
        with suppress(ValueError):
            blocks = read_blocks(path, kind)
            if sum(map(len, blocks)) == rows and {block.shape[1:] for block in blocks} == {self.shape[1:]}:
                return blocks
        raise DataError(f"{path} is damaged. Run the encode command again: it makes this shard anew.")

    def _open_sentences(self, shard: int) -> pa.ChunkedArray:
        path, kind, rows = self._file_of(shard)
        with suppress(ValueError):
            if len(sentences := read_sentences(path, kind)) == rows:
                return sentences
        raise DataError(f"{path} is damaged. Run the encode command again: it makes this shard anew.")

    def _file_of(self, shard: int) -> tuple[Path, str, int]:
        entry = self.manifest["shards"][shard]
        return self.folder / entry["file"], self.manifest["options"]["format"], entry["rows"]


def open_vectors(folder: str | Path, *, verify: bool = False) -> VectorShards:
    """The vectors that `simcse-hf encode` wrote to a folder, not read yet.

    Args:
        folder: With a manifest.
        verify: Read every shard and compare checksums; else sizes are compared.

    Raises:
        DataError: No such folder, unfinished, or a shard that is missing or damaged.
        ConfigError: The manifest is damaged.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise DataError(f"{folder} is not a folder of vectors: it has no {MANIFEST}. Make one with simcse-hf encode.")
    manifest = read_manifest(folder)
    if not manifest["complete"]:
        raise DataError(
            f"{folder} is not finished: {len(manifest['shards']):,} of {shards_of(manifest):,} shards are there. Run the encode "
            "command again: it goes on with the next."
        )
    for entry in manifest["shards"]:
        path = folder / entry["file"]
        if verify:
            fault = _fault(path, entry)
        else:
            fault = None if path.exists() and path.stat().st_size == entry["bytes"] else "is missing or truncated"
        if fault:
            raise DataError(f"{path} {fault}. Run the encode command again: it makes this shard anew.")
    return VectorShards(folder, manifest)
