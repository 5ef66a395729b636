"""A corpus of any size to vectors on disk: a few thousand rows are in memory at a time.

Sentences are encoded in blocks of rows whose bounds follow from the shard alone, never from where a run began, so
that however often it was interrupted, and whichever process made a shard, its bytes are the same on one machine.

Axes: N rows, D size of a vector, W processes.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from filelock import FileLock
from tqdm.auto import tqdm

from .encoder import SentenceEncoder
from .errors import ConfigError
from .file_locks import try_lock
from .sentence_stream import CorpusFile, SentenceStream, count_rows
from .shared_folder import check_name
from .vector_files import Block, write_vector_file
from .vector_manifest import GREATEST
from .vector_origin import corpus_of, identity_of, makers_of, named_files, other_makers
from .vector_shards import VectorFolder, vector_folder

logger = logging.getLogger(__name__)

# Enough for batches of one length; equal sentences within a block are computed once.
ROWS_AT_ONCE = 10_000


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """How a folder of vectors is written.

    Attributes:
        format: `npy`, `arrow` or `parquet`.
        output_dtype: `float32` or `float16`, as vectors are stored.
        shard_rows: Rows of a shard; the last may have fewer.
        with_text: Store the sentences beside the vectors; not in `npy`.
    """

    format: str = "npy"
    output_dtype: str = "float32"
    shard_rows: int = 100_000
    with_text: bool = False

    def __post_init__(self):
        """Refuse what does not go together.

        Raises:
            ConfigError: Text in `npy`, or shards without rows or with more than a manifest can say.
        """
        if self.with_text and self.format == "npy":
            raise ConfigError("a .npy file has no place for sentences: --with_text needs --format arrow or parquet.")
        if self.shard_rows < 1:
            raise ConfigError(f"shard_rows is {self.shard_rows}; it must be at least 1.")
        _check_greatest("shard_rows", self.shard_rows)


def _check_greatest(name: str, number: int) -> None:
    if number > GREATEST:
        raise ConfigError(f"{name} is {number}; it may be {GREATEST} at most.")


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What there is now, and what this process did for it.

    Attributes:
        rows: N, of all shards.
        dimension: D.
        dtype: As the vectors are stored.
        rows_now: That this process encoded; the others were there, or are made by other processes.
        seconds: It took for that.
        shards: How many there will be; None for a single file.
        shards_left: How many of them are not there yet.
    """

    rows: int
    dimension: int
    dtype: str
    rows_now: int
    seconds: float
    shards: int | None = None
    shards_left: int = 0

    @property
    def outcome(self) -> str:
        """How it stands, in a word or two."""
        if self.shards_left:
            return f"this process is done, and {self.shards_left:,} shards of others are not there yet"
        return "written" if self.rows_now else "finished before, nothing to do"

    @property
    def contents(self) -> str:
        """Size and type, in words."""
        shards = "" if self.shards is None else f" in {self.shards} shards"
        return f"{self.rows} x {self.dimension} {self.dtype}{shards}"

    @property
    def speed(self) -> str:
        """Rows and seconds, in words."""
        return f"{self.rows_now:,} rows in {self.seconds:,.1f} s, {self.rows_now / max(self.seconds, 1e-9):,.0f} rows/s"


def process_of_job(environment: Mapping[str, str] | None = None) -> tuple[int, int]:
    """Which process of how many this is, as `torchrun` and `accelerate launch` say it: RANK and WORLD_SIZE.

    Raises:
        ConfigError: They are no such numbers.

    >>> process_of_job({"RANK": "1", "WORLD_SIZE": "4"}), process_of_job({})
    ((1, 4), (0, 1))
    """
    environment = os.environ if environment is None else environment
    rank, world_size = environment.get("RANK", "0"), environment.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)):
        raise ConfigError(
            f"the environment says RANK={rank} and WORLD_SIZE={world_size}; RANK counts from 0 to WORLD_SIZE - 1."
        )
    return int(rank), int(world_size)


def device_of_job(processes: int, environment: Mapping[str, str] | None = None) -> str | None:
    """The GPU of this process of W on its machine, by LOCAL_RANK; None, for the default, where there is no choice."""
    environment = os.environ if environment is None else environment
    if processes == 1 or not torch.cuda.is_available():
        return None
    return f"cuda:{int(environment.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def encode_to_folder(
    encoder: SentenceEncoder,
    paths: Sequence[str],
    folder: Path,
    options: ShardOptions | None = None,
    *,
    model_name: str = "",
    normalize: bool = False,
    batch_tokens: int = 16_384,
    process: int = 0,
    processes: int = 1,
    show_progress: bool = False,
) -> Encoded:
    """Encode the sentences of files to a folder of shards, or go on where a run before stopped.

    Of W processes each is called with the same arguments and its own number; they need not know each other. The one
    that makes the last shard completes the manifest.

    Args:
        encoder: The same for all processes.
        paths: Files, globs and samples; rows are numbered through all of them.
        folder: See `vector_shards`.
        options: Default: `ShardOptions()`.
        model_name: For the manifest.
        normalize: Scale to unit length, also where the model folder does not say so.
        batch_tokens: Tokens in one batch, padding included; it may be another when the run goes on, and is noted for
            each shard.
        process: From 0.
        processes: W.
        show_progress: Draw progress bars.

    Raises:
        DataError: A file that is no corpus, an empty sentence, or a file that changes meanwhile.
        ConfigError: The folder was begun with something else, or the disk is full.
    """
    options = options or ShardOptions()
    _check_greatest("batch_tokens", batch_tokens)
    named, files = named_files(paths), []
    settings = {"normalize": normalize or encoder.normalize, "batch_tokens": batch_tokens}
    model = {"name": model_name, **identity_of(encoder)}
    makers = makers_of(encoder)

    def origin(known: Sequence[dict]) -> dict:
        entries = []
        with tqdm(
            named, desc="Digests", unit=" files", disable=not show_progress or len(named) < 2, leave=False
        ) as bar:
            for file, entry in corpus_of(bar, known):
                files.append(file)
                entries.append(entry)
        fixed = {"normalize": settings["normalize"], "rows_at_once": ROWS_AT_ONCE}
        return {"model": model, "options": asdict(options) | fixed, "data": entries} | makers

    with vector_folder(folder, process, processes) as output:
        try:
            output.begin(
                origin,
                lambda: count_rows(files, show_progress=show_progress),
                encoder.model.config.text_config.hidden_size,
            )
            encoded, seconds = _fill(output, encoder, files, settings, makers, show_progress)
            done, shards = output.shards_done()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ConfigError(
                f"the disk is full ({folder}). Shards already written are whole: free space and run the same command again, "
                "it goes on with the next."
            ) from error
        return Encoded(
            rows=output.manifest["rows"],
            dimension=output.manifest["dimension"],
            dtype=options.output_dtype,
            rows_now=encoded,
            seconds=seconds,
            shards=shards,
            shards_left=shards - done,
        )


def _fill(
    output: VectorFolder,
    encoder: SentenceEncoder,
    files: Sequence[CorpusFile],
    settings: dict,
    makers: dict,
    show_progress: bool,
) -> tuple[int, float]:
    """Make the shards that are missing; rows encoded, and seconds."""
    stream = SentenceStream(files, [entry["rows"] for entry in output.manifest["data"]])
    own_rows = sum(stop - start for start, stop in map(output.span, output.own_shards))
    bar = {"total": own_rows, "unit": " rows", "unit_scale": True, "disable": not show_progress}
    with tqdm(desc="Checking", leave=False, **bar) as progress:
        missing = output.missing(progress.update)
    if missing:
        _warn_of_other_makers(output, makers, settings["batch_tokens"])
    # What is as the manifest says of all is not said again for each.
    note = {name: value for name, value in makers.items() if output.manifest.get(name) != value}
    note["batch_tokens"] = settings["batch_tokens"]
    there = own_rows - sum(stop - start for start, stop in map(output.span, missing))
    started = time.perf_counter()
    with tqdm(desc="Encoding", initial=there, **bar) as progress:
        for shard in missing:
            output.write(shard, _blocks(encoder, stream, *output.span(shard), settings, progress), **note)
    return own_rows - there, time.perf_counter() - started


def _warn_of_other_makers(output: VectorFolder, makers: dict, batch_tokens: int) -> None:
    if differing := other_makers(output.manifest, makers | {"batch_tokens": batch_tokens}):
        logger.warning(
            "%s has shards made with %s: vectors may differ in their last bits from those of one run.",
            output.folder,
            "; ".join(differing),
        )


def encode_to_file(
    encoder: SentenceEncoder,
    paths: Sequence[str],
    output: Path,
    *,
    output_dtype: str = "float32",
    normalize: bool = False,
    batch_tokens: int = 16_384,
    writes: bool = True,
    show_progress: bool = False,
) -> Encoded:
    """Encode the sentences of one file to one `.npy` file, which appears when it is whole.

    In a job of several processes each block of rows is computed by all of them together.

    Args:
        encoder: The same for all processes.
        paths: They must mean one file.
        output: Taken as it is given.
        output_dtype: `float32` or `float16`.
        normalize: Scale to unit length, also where the model folder does not say so.
        batch_tokens: Tokens in one batch, padding included.
        writes: Whether this process is the one that writes.
        show_progress: Draw a progress bar.

    Raises:
        DataError: No corpus, or an empty sentence.
        ConfigError: Several files, the output is a folder, or another run is writing to it.
    """
    (named,) = check_single_file(paths, output)
    state = named.stat()
    files = [CorpusFile(named, "", (state.st_size, state.st_mtime_ns))]  # no manifest asks for its digest
    (rows,) = count_rows(files, show_progress=show_progress)
    stream, dimension = SentenceStream(files, [rows]), encoder.model.config.text_config.hidden_size
    settings = {"normalize": normalize or None, "batch_tokens": batch_tokens, "across_processes": True}
    started = time.perf_counter()
    with tqdm(total=rows, desc="Encoding", unit=" rows", unit_scale=True, disable=not show_progress) as progress:
        blocks = _blocks(encoder, stream, 0, rows, settings, progress)
        if writes:
            with _alone_at(output):
                write_vector_file(output, blocks, rows=rows, dimension=dimension, dtype=output_dtype)
        else:
            for _ in blocks:
                pass
    seconds = time.perf_counter() - started
    return Encoded(rows=rows, dimension=dimension, dtype=output_dtype, rows_now=rows, seconds=seconds)


def check_folder(paths: Sequence[str], folder: Path) -> None:
    """What `encode_to_folder` would find wrong with its files and its folder, before a model is loaded.

    Raises:
        DataError: See `named_files`.
        ConfigError: See `shared_folder.check_name`.
    """
    check_name(folder)
    named_files(paths)


def check_single_file(paths: Sequence[str], output: Path) -> list[Path]:
    """The one data file that is encoded to a `.npy` file.

    Raises:
        DataError: See `named_files`.
        ConfigError: Several files, or the output is a folder.
    """
    if output.is_dir():
        raise ConfigError(f"--output {output} is a folder with the name of a file. Name another, or remove it.")
    if len(found := named_files(paths)) > 1:
        raise ConfigError(
            f"{len(found)} files are to be encoded, and the rows of a .npy file are numbered by line of one. Name a folder as "
            "--output: its manifest says how many rows belong to each file."
        )
    return found


@contextmanager
def _alone_at(output: Path) -> Iterator[None]:
    """Keep other runs from a file, and remove what one that was killed left of it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    lock_file = output.with_name(f".{output.name}.lock")
    lock = FileLock(lock_file)
    if not try_lock(lock):
        raise ConfigError(
            f"another run is writing to {output}. Wait until it has ended, or name another --output. Where none is at work any "
            f"more, remove {lock_file}."
        )
    try:
        half_written = re.compile(rf"{re.escape(f'.{output.name}.')}[a-z0-9_]{{8}}")
        for leftover in output.parent.iterdir():
            if half_written.fullmatch(leftover.name):
                leftover.unlink()
        yield
    finally:
        lock_file.unlink(missing_ok=True)
        lock.release()


def _blocks(
    encoder: SentenceEncoder, stream: SentenceStream, start: int, stop: int, settings: dict, progress: tqdm
) -> Iterator[Block]:
    for begin in range(start, stop, ROWS_AT_ONCE):
        sentences = stream.read(begin, min(begin + ROWS_AT_ONCE, stop))
        yield sentences, encoder.encode(sentences, **settings)
        progress.update(len(sentences))
