"""Files: opened whatever their compression, hashed, and written whole or not at all."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from .errors import DataError

STAGING = ".staging-"  # begins the name of a folder that is being written
COMPRESSIONS = (".gz", ".xz", ".bz2", ".zst")
# A few kilobytes of compressed zeros are gigabytes without a line break, and a line is held in memory.
LONGEST_LINE = 1 << 26
_BLOCK = 1 << 16


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes as they lie on disk (compressed files are not unpacked)."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def format_of(path: Path) -> str:
    """Lower-case extension below any compression suffix: `reviews.txt.xz` -> `.txt`."""
    name = path.name.lower()
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return Path(name).suffix


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The decompressed bytes of a `.gz`, `.xz`, `.bz2`, `.zst` or plain file.

    Raises:
        DataError: The file is not what its suffix says, or is truncated.
    """
    try:
        with _opener(path) as stream:
            yield stream
    except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"{path} cannot be decompressed ({error}). It is damaged or its suffix is wrong.") from error


def _opener(path: Path) -> BinaryIO:
    match path.suffix.lower():
        case ".gz":
            return gzip.open(path, "rb")
        case ".xz":
            return io.BufferedReader(_Streams(path.open("rb"), lzma.LZMADecompressor, padding=4), _BLOCK)
        case ".bz2":
            return io.BufferedReader(_Streams(path.open("rb"), bz2.BZ2Decompressor, padding=0), _BLOCK)
        case ".zst":
            # Arrow's reader: Python's zstandard takes the end of a truncated file for the end of the text.
            import pyarrow

            return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


class _Streams(io.RawIOBase):
    """What all compressed streams of a file hold, one after the other: parallel compressors and `cat` make several.

    Python's own readers take whatever follows the first stream and does not begin like another for the end of the
    file, so that one wrong byte silently costs all the rest.
    """

    def __init__(self, file: BinaryIO, new_decompressor: Callable[[], Any], *, padding: int):
        """Take over an open file.

        Args:
            file: At its start; closed with this.
            new_decompressor: Of one stream.
            padding: Zero bytes that may stand behind a stream (of .xz) come in multiples of so many; 0: none may.
        """
        self._file, self._new, self._padding = file, new_decompressor, padding
        self._stream, self._unread = new_decompressor(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        content = b""
        while not content:
            if self._stream.eof and not self._another_begins():
                return 0
            if self._stream.needs_input:
                self._unread = self._unread or self._file.read(_BLOCK)
                if not self._unread:
                    raise EOFError("it ends within a compressed stream")
            content = self._stream.decompress(self._unread, len(buffer))
            self._unread = b""
        buffer[: len(content)] = content
        return len(content)

    def _another_begins(self) -> bool:
        zeros, rest = 0, self._stream.unused_data or self._file.read(_BLOCK)
        while self._padding and rest[:1] == b"\0":
            behind = rest.lstrip(b"\0")
            zeros += len(rest) - len(behind)
            rest = behind or self._file.read(_BLOCK)
        if self._padding and zeros % self._padding:
            raise EOFError(f"{zeros:,} zero bytes follow a compressed stream")
        if rest:
            self._stream, self._unread = self._new(), rest
        return bool(rest)

    def close(self) -> None:
        self._file.close()
        super().close()


def read_lines(path: Path, *, longest: int = LONGEST_LINE) -> Iterator[tuple[int, str]]:
    """Line number (from 1) and text of every line, without its line end; UTF-8, BOM allowed.

    Args:
        path: Compressed or not; one line of it is held in memory at a time.
        longest: Bytes a line may have.

    Raises:
        DataError: A line that is not UTF-8, named, with a guess at what it is; or one that is too long.
    """
    with open_bytes(path) as stream:
        for number, raw in enumerate(iter(partial(stream.readline, longest + 1), b""), start=1):
            if len(raw) > longest:
                raise DataError(
                    f"{path}, line {number} has more than {longest:,} bytes. Put every sentence or object on a line of its own."
                )
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            try:
                yield number, raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise not_utf8(path, number, raw, error.start) from None


def not_utf8(path: Path, number: int, line: bytes, place: int) -> DataError:
    """The error for a line with such a byte at `place`, with a guess at what it is."""
    return DataError(f"{path}, line {number}: byte {place} (0x{line[place]:02x}) is not UTF-8. {_guess_encoding(line)}")


def _guess_encoding(raw: bytes) -> str:
    try:
        hangul = sum("가" <= character <= "힣" for character in raw.decode("cp949"))
    except UnicodeDecodeError:
        hangul = 0
    if hangul:
        return "The line reads as Korean in CP949 (EUC-KR): convert the file with `iconv -f cp949 -t utf-8`."
    return "Save the file as UTF-8."


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block succeeds: readers see the old one or the new, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8, whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, content) -> None:
    """`write_text` of indented JSON; NaN and infinities, which JSON lacks, become null."""
    write_text(path, json.dumps(_finite(content), ensure_ascii=False, indent=2) + "\n")


def _finite(content):
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


@contextmanager
def staged_folder(target: Path, last: str | None = None) -> Iterator[Path]:
    """A scratch folder in `target` whose entries move up into `target` when the block succeeds.

    When it fails the scratch folder is removed and `target` is as it was. Entries that exist in
    `target` already are replaced; others there stay. It lies inside, not beside, because `target`
    may be a mounted volume, and only a move within one file system is a single step.

    Args:
        target: Made where it does not exist.
        last: Name of the entry to move last: who sees it sees all the others.
    """
    made = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=target, prefix=STAGING))
    try:
        yield staging
        made = False
        for file in staging.rglob("*"):  # safetensors writes files that only their owner may read
            file.chmod(0o755 if file.is_dir() else 0o644)
        for entry in sorted(staging.iterdir(), key=lambda entry: (entry.name == last, entry.name)):
            destination = target / entry.name
            if destination.is_dir():
                shutil.rmtree(destination)
            entry.replace(destination)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if made:
            target.rmdir()
