"""Vectors in files: `.npy`, Arrow or Parquet, written block by block and read by row.

Axes: N rows, B rows of a block, D size of a vector.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tokenize import TokenError
from typing import BinaryIO
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import ConfigError, ModelError, shortened
from .files import replacing

SUFFIXES = {"npy": ".npy", "arrow": ".arrow", "parquet": ".parquet"}
DTYPES = {"float32": np.float32, "float16": np.float16}

# Sentences of a block, and their vectors (B, D).
Block = tuple[Sequence[str], np.ndarray]


class _Digesting(io.RawIOBase):
    """Passes on what is written and takes its digest: of what was meant, whatever the disk makes of it."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def write(self, data) -> int:
        with memoryview(data).cast("B") as content:
            self._file.write(content)
            self.digest.update(content)
            self.size += len(content)
            return len(content)


def write_vector_file(
    path: Path,
    blocks: Iterable[Block],
    *,
    rows: int,
    dimension: int,
    dtype: str = "float32",
    kind: str = "npy",
    first_row: int = 0,
    with_text: bool = False,
) -> dict:
    """Write a file whole or not at all; one block is held in memory.

    Args:
        path: Taken as it is given.
        blocks: Sentences and vectors (B, D), N rows in all.
        rows: N; the `.npy` format says it before the vectors.
        dimension: D.
        dtype: `float32` or `float16`, as the vectors are stored.
        kind: `npy`, or `arrow` or `parquet` with the columns row, sentence (where asked for) and vector.
        first_row: Number of the first row, for the column row.
        with_text: Store the sentences too; not in `.npy`.

    Returns:
        `bytes` and `sha256` of the file.

    Raises:
        ModelError: A value that is not finite: it would be nearest to everything.
        ConfigError: A value that float16 cannot hold.
    """
    converted = _converted(blocks, dtype, first_row)
    with replacing(path) as file:
        sink = _Digesting(file)
        if kind == "npy":
            _write_npy(sink, converted, rows, dimension, DTYPES[dtype])
        else:
            _write_columns(sink, converted, dimension, dtype, kind, first_row, with_text)
        return {"bytes": sink.size, "sha256": sink.digest.hexdigest()}


def _converted(blocks: Iterable[Block], dtype: str, row: int) -> Iterator[Block]:
    for sentences, vectors in blocks:
        finite = np.isfinite(vectors).all(axis=1)  # (B,)
        if not finite.all():
            place = int(finite.argmin())
            raise ModelError(
                f"the vector of row {row + place + 1:,} ({shortened(repr(sentences[place]))}) has values that are not finite. "
                "Encode with --dtype float32; if that was so, the weights of the model are damaged."
            )
        yield sentences, _stored(vectors, dtype)
        row += len(vectors)


def _stored(vectors: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(vectors, dtype=DTYPES[dtype])
    if dtype == "float16" and np.isinf(stored).any():
        raise ConfigError(
            f"a vector has the value {np.abs(vectors).max():.0f}, which float16 cannot hold. Choose --output_dtype float32, "
            "or --normalize, and another --output."
        )
    return stored


def _write_npy(sink: BinaryIO, blocks: Iterator[Block], rows: int, dimension: int, dtype: type[np.floating]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
    np.lib.format.write_array_header_1_0(sink, header | {"shape": (rows, dimension)})
    for _, vectors in blocks:
        sink.write(vectors)


def _write_columns(
    sink: BinaryIO, blocks: Iterator[Block], dimension: int, dtype: str, kind: str, row: int, with_text: bool
) -> None:
    value_type = pa.from_numpy_dtype(DTYPES[dtype])
    fields = [pa.field("row", pa.int64(), nullable=False)]
    if with_text:
        fields.append(pa.field("sentence", pa.string(), nullable=False))
    vector_type = pa.list_(pa.field("item", value_type, nullable=False), dimension)
    schema = pa.schema([*fields, pa.field("vector", vector_type, nullable=False)])
    if kind == "arrow":
        writer = pa.ipc.new_file(sink, schema)
    else:
        writer = pq.ParquetWriter(sink, schema, compression="zstd", use_dictionary=False)
    try:
        for sentences, vectors in blocks:
            columns = [pa.array(np.arange(row, row + len(vectors)))]
            if with_text:
                columns.append(pa.array(sentences, pa.string()))
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=vector_type))
            writer.write_batch(pa.record_batch(columns, schema=schema))
            row += len(vectors)
    except BaseException:
        with suppress(Exception):  # else it is closed, with a traceback, when its file is gone
            writer.close()
        raise
    writer.close()


def read_blocks(path: Path, kind: str) -> list[np.ndarray]:
    """The vectors of a file, block after block, each (B, D); mapped from disk, but of Parquet read.

    Raises:
        ValueError: Not such a file (`pyarrow.ArrowInvalid` is one too).
    """
    if kind == "npy":
        try:
            return [np.load(path, mmap_mode="r", allow_pickle=False)]
        except (EOFError, ArithmeticError, TypeError, BadZipFile, TokenError) as error:
            raise ValueError(str(error)) from error
    return [array.flatten().to_numpy().reshape(len(array), -1) for array in _column(path, kind, "vector")]


def read_sentences(path: Path, kind: str) -> pa.ChunkedArray:
    """The sentences of an Arrow or Parquet file that was written with them.

    Raises:
        ValueError: Not such a file.
    """
    found = pa.chunked_array(_column(path, kind, "sentence"))
    if not pa.types.is_string(found.type) or found.null_count:
        raise ValueError(f"its sentences are {found.type}, {found.null_count} of them missing")
    return found


def _column(path: Path, kind: str, name: str) -> list[pa.Array]:
    try:
        if kind == "arrow":
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            return [reader.get_batch(index).column(name) for index in range(reader.num_record_batches)]
        return pq.read_table(path, columns=[name]).column(name).chunks
    except KeyError as error:
        raise ValueError(str(error)) from error
