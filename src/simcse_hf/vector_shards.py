"""A folder of vectors: shards, and `manifest.json`, which says what they are and were made from.

Shards appear whole or not at all, and the manifest names those that are there with their checksums, so that whoever
is stopped at any moment can go on with the first that is missing. Several processes may fill a folder: shard i is
made by process i mod W, and they meet in nothing but the manifest, which they change one after another.

Axes: N rows, D size of a vector, W processes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import pairwise
from operator import index as whole_number
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from .errors import ConfigError, DataError
from .files import sha256_of, write_json
from .vector_files import DTYPES, SUFFIXES, Block, read_blocks, write_vector_file
from .vector_manifest import (
    BEGIN_AGAIN,
    MANIFEST,
    STEM,
    VERSION,
    differences,
    read_manifest,
    shard_name,
    shards_of,
    span_of,
)

logger = logging.getLogger(__name__)

_MANIFEST_LOCK = ".manifest.lock"
_DOOR_LOCK = ".door.lock"  # held for moments, by who enters or leaves
_PROCESS_LOCKS = ".process-*.lock"  # held while a process is inside


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

    def begin(self, origin: dict, count_rows: Callable[[], list[int]], dimension: int) -> None:
        """Take up the folder where it was left, or write the manifest of a new one.

        Args:
            origin: What the vectors are made from, JSON-ready: `model`, `options` (`shard_rows`, `format`,
                `output_dtype`, `with_text` among them) and `data`, one `path` and `sha256` for each file. Names of the
                model and paths may change, everything else here may not.
            count_rows: Called for a new folder, while other processes wait: sentences in each data file.
            dimension: D.

        Raises:
            ConfigError: The folder was begun with something else, or holds files of somebody else.
        """
        with self._changing() as found:
            for leftover in self.folder.glob(f".{MANIFEST}.*"):  # of a process that was killed
                leftover.unlink()
            if found:
                if differing := differences(found, origin):
                    raise ConfigError(f"{self.folder} was begun with {'; '.join(differing)}. {BEGIN_AGAIN}")
                return
            foreign = sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))
            if foreign:
                raise ConfigError(
                    f"{self.folder} holds other files ({foreign[0]}) and no {MANIFEST}. Name another --output, or empty it."
                )
            counts = count_rows()
            data = [entry | {"rows": rows} for entry, rows in zip(origin["data"], counts, strict=True)]
            self._write(
                {"version": VERSION, "complete": False, "rows": sum(counts), "dimension": dimension}
                | origin
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
        wanted = []
        for shard in self.own_shards:
            entry = recorded.get(shard_name(self.manifest, shard))
            fault = "new" if entry is None else _fault(self.folder / entry["file"], entry)
            if fault is None:
                advance(entry["rows"])
                continue
            wanted.append(shard)
            if entry is not None:
                logger.warning("%s %s; it is made again.", self.folder / entry["file"], fault)
                self._record(shard, None)
        return wanted

    def write(self, shard: int, blocks: Iterable[Block], **note) -> None:
        """Make a shard from its sentences and vectors, and enter it in the manifest, with a note of how it was made."""
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
        """How many shards the manifest names now, those of other processes included, and how many there will be."""
        manifest = read_manifest(self.folder)
        return len(manifest["shards"]), shards_of(manifest)

    def _record(self, shard: int, entry: dict | None) -> None:
        with self._changing() as manifest:
            shards = {each["first_row"]: each for each in manifest["shards"]}
            shards.pop(self.span(shard)[0], None)
            if entry is not None:
                shards[entry["first_row"]] = entry
            ordered = [shards[row] for row in sorted(shards)]
            self._write(manifest | {"complete": len(ordered) == shards_of(manifest), "shards": ordered})

    @contextmanager
    def _changing(self) -> Iterator[dict]:
        """The manifest as it is, empty where there is none, which no other process changes inside the block."""
        with FileLock(self.folder / _MANIFEST_LOCK):
            self.manifest = read_manifest(self.folder) if (self.folder / MANIFEST).exists() else {}
            yield self.manifest

    def _write(self, manifest: dict) -> None:
        write_json(self.folder / MANIFEST, manifest)
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
    _check_name(folder)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    door = FileLock(folder / _DOOR_LOCK)
    own = FileLock(folder / f".process-{process}-of-{processes}.lock")
    try:
        with door:
            _enter(folder, own, process, processes)
        yield VectorFolder(folder, process, processes)
    finally:
        with door:
            own.release()
            # Refused before anything was written; processes that are still inside count rows, or wait for who does.
            if made and not (folder / MANIFEST).exists() and not any(map(_is_held, folder.glob(_PROCESS_LOCKS))):
                _remove_locks_and_folder(folder)


def _check_name(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder} is a file; name a folder, or FILE.npy for a single file.")
    kind = folder.suffix.lower().removeprefix(".")
    if kind in SUFFIXES and not folder.exists():
        cure = (
            "For a single file write .npy in small letters" if kind == "npy" else f"Write --format {kind} --output DIR"
        )
        raise ConfigError(f"--output {folder} would be a folder with the name of a file. {cure}.")


def _enter(folder: Path, own: FileLock, process: int, processes: int) -> None:
    """Take the own lock and clear up; called by one process at a time.

    Shards are shared out by the number of processes, so that those of a job with another number could be in the making
    by both. Of the same number each makes its own.
    """
    try:
        own.acquire(timeout=0)
        others = (path for path in folder.glob(_PROCESS_LOCKS) if not path.name.endswith(f"-of-{processes}.lock"))
        busy = any(map(_is_held, others))
    except Timeout:
        busy = True
    if busy:
        raise ConfigError(
            f"another run is writing to {folder}. Wait until it has ended, or name another --output. Processes that are to "
            "share the work are started together, by torchrun or accelerate launch."
        )
    for leftover in folder.glob(f".{STEM}*"):
        number = leftover.name.removeprefix(f".{STEM}").partition(".")[0]
        if number.isdecimal() and int(number) % processes == process:
            leftover.unlink()


def _is_held(path: Path) -> bool:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _remove_locks_and_folder(folder: Path) -> None:
    with suppress(OSError):  # whatever else lies there is not ours, and keeps the folder
        for path in (folder / _MANIFEST_LOCK, *folder.glob(_PROCESS_LOCKS), folder / _DOOR_LOCK):
            path.unlink(missing_ok=True)
        folder.rmdir()


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

    def _rows(self, start: int, stop: int) -> np.ndarray:
        found = []
        for shard, (first, end) in enumerate(pairwise(self._starts)):
            if first >= stop or end <= start:
                continue
            for block in self._blocks(shard):
                piece = block[max(start - first, 0) : max(stop - first, 0)]
                found += [piece] if len(piece) else []
                first += len(block)
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _open(self, shard: int) -> list[np.ndarray]:
        entry = self.manifest["shards"][shard]
        path = self.folder / entry["file"]
        try:
            blocks = read_blocks(path, self.manifest["options"]["format"])
            if sum(map(len, blocks)) == entry["rows"] and {block.shape[1:] for block in blocks} == {self.shape[1:]}:
                return blocks
        except ValueError:
            pass
        raise DataError(f"{path} is damaged. Run the encode command again: it makes this shard anew.")


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
