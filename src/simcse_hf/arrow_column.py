"""One column of an Arrow file: written in blocks, read item by item through a memory map.

The files are plain Arrow streams; `datasets.Dataset.from_file` opens them too.
"""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

# One read makes up to 64 KiB of the file resident (the kernel maps the pages around it as well).
_READS_BEFORE_RELEASE = 512


class ColumnWriter:
    """Writes blocks of lists or strings, each as one record batch."""

    def __init__(self, path: Path, name: str, kind: pa.DataType):
        self._schema = pa.schema([(name, kind)])
        self._stream = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_stream(self._stream, self._schema)

    def __enter__(self) -> ColumnWriter:
        return self

    def __exit__(self, *exception) -> None:
        try:
            self._writer.close()
        finally:
            self._stream.close()

    def write(self, block: pa.Array) -> None:
        """Append a block of items; an empty one leaves no trace."""
        if len(block):
            self._writer.write_batch(pa.record_batch([block], schema=self._schema))


def lists_of(values: np.ndarray, lengths: np.ndarray) -> pa.ListArray:
    """An Arrow array of lists from their values, end to end, and the length of each.

    >>> lists_of(np.array([5, 6, 7]), np.array([2, 1])).to_pylist()
    [[5, 6], [7]]
    """
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(offsets, pa.array(values))


class ArrowColumn:
    """Items of a mapped column: `column[i]` is a read-only view into the file, not a copy.

    Pages of the file that were read count as resident memory of the process until they are given
    back, which happens every few hundred reads; they stay in the system's page cache, and a view
    that is still held finds its bytes there again. Processes that map the same file share them.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path):
        """Map the file.

        Raises:
            pyarrow.ArrowInvalid: Not an Arrow stream.
        """
        self.path = path
        with path.open("rb") as file:
            self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._arrays: list[pa.Array] = [batch.column(0) for batch in pa.ipc.open_stream(pa.py_buffer(self._mapping))]
        self._blocks = [_parts(array) for array in self._arrays]  # (values, offsets) of each
        self._starts = [0]  # of each block, and the end of the last
        for array in self._arrays:
            self._starts.append(self._starts[-1] + len(array))
        self._reads = 0
        self.release()

    def __reduce__(self):
        return type(self), (self.path,)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> np.ndarray:
        """Values of one item; a string is its UTF-8 bytes.

        Raises:
            IndexError: Outside 0 .. len - 1.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self):,} in {self.path}")
        self._reads += 1
        if self._reads % _READS_BEFORE_RELEASE == 0:
            self.release()
        block = bisect_right(self._starts, index) - 1
        values, offsets = self._blocks[block]
        place = index - self._starts[block]
        return values[offsets[place] : offsets[place + 1]]

    def arrays(self) -> Iterator[pa.Array]:
        """The blocks one after the other, for a pass over all; each is given back when the next is asked for."""
        for array in self._arrays:
            yield array
            self.release()

    @property
    def lengths(self) -> np.ndarray:
        """Values in each item, int32; computed anew, four bytes an item."""
        lengths = [np.diff(offsets) for _, offsets in self._blocks]
        self.release()
        return np.concatenate(lengths) if lengths else np.empty(0, dtype=np.int32)

    def release(self) -> None:
        """Give the pages that were read back to the system."""
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            self._mapping.madvise(mmap.MADV_DONTNEED)


def _parts(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Values and offsets (int32) of an array of lists or strings, without copying."""
    is_text = pa.types.is_string(array.type)
    dtype = np.uint8 if is_text else array.type.value_type.to_pandas_dtype()
    _, offsets, *_, values = array.buffers()
    offsets = np.frombuffer(offsets, dtype=np.int32)[: len(array) + 1]
    return np.frombuffer(values, dtype=dtype) if values else np.empty(0, dtype=dtype), offsets
