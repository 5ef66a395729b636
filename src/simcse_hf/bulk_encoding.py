"""A corpus of any size to vectors on disk: a few thousand rows are in memory at a time.

Sentences are encoded in blocks of rows whose bounds follow from the shard alone, never from where a run began, so
that however often it was interrupted, and whichever process made a shard, its bytes are the same on one machine.

Axes: N rows, D size of a vector, W processes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm

from .encoder import SentenceEncoder
from .errors import ConfigError
from .sentence_stream import CorpusFile, SentenceStream, corpus_files, count_rows
from .vector_files import Block, write_vector_file
from .vector_shards import VectorFolder, vector_folder
from .versions import package_versions

logger = logging.getLogger(__name__)

# Enough for batches of one length; equal sentences within a block are computed once.
ROWS_AT_ONCE = 10_000
# Of a configuration: where it lay, and what wrote it.
_NO_MATTER = ("_name_or_path", "transformers_version", "architectures", "dtype")


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
            ConfigError: Text in `npy`, or shards without rows.
        """
        if self.with_text and self.format == "npy":
            raise ConfigError("a .npy file has no place for sentences: --with_text needs --format arrow or parquet.")
        if self.shard_rows < 1:
            raise ConfigError(f"shard_rows is {self.shard_rows}; it must be at least 1.")


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
    with vector_folder(folder, process, processes) as output:
        files = corpus_files(paths, show_progress=show_progress)
        settings = {"normalize": normalize or encoder.normalize, "batch_tokens": batch_tokens}
        fixed = {"normalize": settings["normalize"], "rows_at_once": ROWS_AT_ONCE}
        origin = {
            "model": {"name": model_name, **identity_of(encoder)},
            "options": asdict(options) | fixed,
            "data": [{"path": str(file.path), "sha256": file.sha256} for file in files],
            "versions": package_versions(),
        }
        try:
            output.begin(
                origin,
                lambda: count_rows(files, show_progress=show_progress),
                encoder.model.config.text_config.hidden_size,
            )
            encoded, seconds = _fill(output, encoder, files, settings, show_progress)
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
    output: VectorFolder, encoder: SentenceEncoder, files: Sequence[CorpusFile], settings: dict, show_progress: bool
) -> tuple[int, float]:
    """Make the shards that are missing; rows encoded, and seconds."""
    stream = SentenceStream(files, [entry["rows"] for entry in output.manifest["data"]])
    own_rows = sum(stop - start for start, stop in map(output.span, output.own_shards))
    bar = {"total": own_rows, "unit": " rows", "unit_scale": True, "disable": not show_progress}
    with tqdm(desc="Checking", leave=False, **bar) as progress:
        missing = output.missing(progress.update)
    _warn_of_other_batches(output, settings["batch_tokens"], missing)
    there = own_rows - sum(stop - start for start, stop in map(output.span, missing))
    started = time.perf_counter()
    with tqdm(desc="Encoding", initial=there, **bar) as progress:
        for shard in missing:
            blocks = _blocks(encoder, stream, *output.span(shard), settings, progress)
            output.write(shard, blocks, batch_tokens=settings["batch_tokens"])
    return own_rows - there, time.perf_counter() - started


def _warn_of_other_batches(output: VectorFolder, batch_tokens: int, missing: Sequence[int]) -> None:
    before = {entry["batch_tokens"] for entry in output.manifest["shards"] if "batch_tokens" in entry} - {batch_tokens}
    if missing and before:
        logger.warning(
            "%s has shards made with batch_tokens %s, and goes on with %d: vectors may differ in their last bits from "
            "those of one run.",
            output.folder,
            ", ".join(map(str, sorted(before))),
            batch_tokens,
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
        DataError: Not one file, no corpus, or an empty sentence.
        ConfigError: The output is a folder.
    """
    if output.is_dir():
        raise ConfigError(f"--output {output} is a folder with the name of a file. Name another, or remove it.")
    files = corpus_files(paths)
    if len(files) > 1:
        raise ConfigError(
            f"{len(files)} files are to be encoded, and the rows of a .npy file are numbered by line of one. Name a folder as "
            "--output: its manifest says how many rows belong to each file."
        )
    (rows,) = count_rows(files, show_progress=show_progress)
    stream, dimension = SentenceStream(files, [rows]), encoder.model.config.text_config.hidden_size
    settings = {"normalize": normalize or None, "batch_tokens": batch_tokens, "across_processes": True}
    started = time.perf_counter()
    with tqdm(total=rows, desc="Encoding", unit=" rows", unit_scale=True, disable=not show_progress) as progress:
        blocks = _blocks(encoder, stream, 0, rows, settings, progress)
        if writes:
            write_vector_file(output, blocks, rows=rows, dimension=dimension, dtype=output_dtype)
        else:
            for _ in blocks:
                pass
    seconds = time.perf_counter() - started
    return Encoded(rows=rows, dimension=dimension, dtype=output_dtype, rows_now=rows, seconds=seconds)


def _blocks(
    encoder: SentenceEncoder, stream: SentenceStream, start: int, stop: int, settings: dict, progress: tqdm
) -> Iterator[Block]:
    for begin in range(start, stop, ROWS_AT_ONCE):
        sentences = stream.read(begin, min(begin + ROWS_AT_ONCE, stop))
        yield sentences, encoder.encode(sentences, **settings)
        progress.update(len(sentences))


def identity_of(encoder: SentenceEncoder) -> dict:
    """What decides the vectors of an encoder besides the sentences, with digests of what is long.

    Two folders with the same weights, tokenizer and settings have the same identity, wherever they lie.
    """
    weights = hashlib.sha256()
    for name, tensor in sorted(encoder.model.state_dict().items()):
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    described, config = encoder.describe(), encoder.model.config
    without = {*described, *_NO_MATTER, "text_config"}
    configuration = [
        {name: value for name, value in each.to_diff_dict().items() if name not in without}
        for each in (config, config.text_config)
    ]
    return described | {
        "weights_sha256": weights.hexdigest(),
        "configuration_sha256": _digest(configuration),
        "tokenizer_sha256": _digest(_content_of(encoder.tokenizer)),
    }


def _content_of(tokenizer) -> object:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    content = json.loads(backend.to_str())
    return {name: part for name, part in content.items() if name not in ("truncation", "padding")}  # set by every call


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
