"""Rows of text from local files and Hub datasets, with the place each row came from.

TSV is split on tabs with quoting off: the Korean TSV files hold unbalanced quotation marks, and
a reader that honours them swallows rows. CSV is read with quoting on, as CSV is meant.
"""

from __future__ import annotations

import csv
import errno
import glob
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from .errors import DataError, shortened
from .files import COMPRESSIONS, LONGEST_LINE, format_of, not_utf8, open_bytes, read_lines, sha256_of
from .official_files import OFFICIAL_FILES, bears_an_official_name
from .row_report import RowReport
from .strict_json import (
    MISSING,
    OBJECTS,
    UnusableJSONError,
    first_repeated,
    flat_fields,
    half_a_character,
    items_of,
    parse_json,
    parse_json_line,
)

FORMATS = (".txt", ".tsv", ".csv", ".json", ".jsonl", ".parquet")

# Of a format that is read as a whole, bytes after unpacking: more is a defect, or a trap.
_LARGEST_WHOLE = 1 << 30

# (place for messages, one value for each column)
Row = tuple[str, Sequence]


@dataclass
class Table:
    """Named columns and an iterator over rows.

    Attributes:
        source: What is stored with a run: path or Hub id, sha256 or fingerprint, rows, and the
            official name and licence where recognised. `rows` is filled once all are read.
    """

    name: str
    columns: list[str]
    rows: Iterator[Row]
    source: dict = field(default_factory=dict)


def expand_paths(paths: str | Sequence[str]) -> list[Path]:
    """Files meant by a path, a glob or a list of either, sorted within each glob.

    Raises:
        DataError: A path that does not exist, a glob that matches nothing, no regular file, or a name that no record of
            a run could hold.
    """
    found: list[Path] = []
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        text = os.path.expanduser(path)  # Path's own raises for an unknown user
        matches = _matches(text)
        if not matches:
            raise DataError(f"there is no data file {shortened(path)}. Relative paths start at {Path.cwd()}.")
        found += [Path(match) for match in matches]
    for path in found:
        if half_a_character(str(path)):
            name = str(path).encode("utf-8", "backslashreplace").decode("utf-8")
            raise DataError(f"the name of {name} is not UTF-8, so no record of a run can hold it. Rename the file.")
        if path.is_dir():
            raise DataError(f"{path} is a folder; name the files in it, for example '{path}/*.txt'.")
        if not path.is_file():
            raise DataError(
                f"{path} is no regular file but a pipe or a device; a data file is read more than once, so save it first."
            )
    return found


def _matches(path: str) -> list[str]:
    try:
        return [path] if Path(path).exists() else sorted(glob.glob(path, recursive=True))  # noqa: PTH207
    except ValueError:  # a name with a null character, or with half of any
        return []
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.EINVAL):  # of a name that no file can have
            raise
        return []


def source_of(path: Path) -> dict:
    """What identifies a local file: path and sha256, and the official name and licence where recognised."""
    sha256 = sha256_of(path)
    source = {"path": str(path), "sha256": sha256, "rows": None}
    if official := OFFICIAL_FILES.get(sha256):
        source |= {"official": official.name, "licence": official.licence}
    elif bears_an_official_name(path):
        source["note"] = f"called like a published file ({path.name}) but its content differs"
    return source


def read_table(
    path: Path, report: RowReport, column_names: Sequence[str] | None = None, *, source: dict | None = None
) -> Table:
    """Open one local file.

    Args:
        path: `.txt` (one column, `text`), `.tsv`, `.csv`, `.json` (a list of objects), `.jsonl`
            or `.parquet`; text formats may be compressed.
        report: Counts rows read and malformed.
        column_names: Header of a `.tsv` or `.csv` file that has none.
        source: What `source_of` found, if it was asked before.

    Raises:
        DataError: Unknown format, empty or undecodable file, malformed row.
    """
    kind = format_of(path)
    if kind not in FORMATS:
        raise DataError(f"{path} has the format '{kind or 'none'}'; these can be read: {', '.join(FORMATS)}.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty.")
    source = source or source_of(path)
    official = OFFICIAL_FILES.get(source["sha256"])
    reader = {
        ".txt": _read_txt,
        ".tsv": _read_tsv,
        ".csv": _read_csv,
        ".json": _read_json,
        ".jsonl": _read_jsonl,
        ".parquet": _read_parquet,
    }[kind]
    columns, rows = reader(path, report, list(column_names or []))
    table = Table(name=str(path), columns=columns, rows=iter(()), source=source)
    table.rows = _counted(table, rows, report, official.rows if official else None)
    return table


def read_hub_table(spec: str, report: RowReport) -> Table:
    """Open a Hub dataset named `hub_id[:config][:split][@revision]`; the split defaults to train.

    Raises:
        DataError: It cannot be loaded, for example without network.
    """
    from datasets import ClassLabel, load_dataset

    name, _, revision = spec.partition("@")
    hub_id, *rest = name.split(":")
    split = rest[-1] if rest and rest[-1] else "train"
    config = rest[0] if len(rest) == 2 and rest[0] else None
    try:
        dataset = load_dataset(hub_id, config, split=split, revision=revision or None)
    except Exception as error:  # datasets raises a dozen unrelated types here
        reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise DataError(
            f"cannot load the Hub dataset '{spec}' ({reason}). Offline, download it once and use train_file instead."
        ) from error
    while any(isinstance(feature, dict) for feature in dataset.features.values()):
        dataset = dataset.flatten()
    labels = {column: feature for column, feature in dataset.features.items() if isinstance(feature, ClassLabel)}

    def rows() -> Iterator[Row]:
        for index, record in enumerate(dataset):
            values = [
                labels[column].int2str(value) if column in labels and value is not None and value >= 0 else value
                for column, value in record.items()
            ]
            yield f"{spec}, row {index}", values

    table = Table(name=spec, columns=dataset.column_names, rows=iter(()))
    table.source = {"hub": spec, "revision": revision or None, "fingerprint": dataset._fingerprint, "rows": None}
    table.rows = _counted(table, rows(), report, None)
    return table


def _counted(table: Table, rows: Iterable[Row], report: RowReport, official_rows: int | None) -> Iterator[Row]:
    count = 0
    for row in rows:
        count += 1
        report.read += 1
        yield row
    table.source["rows"] = count
    if official_rows is not None and count != official_rows:
        raise DataError(
            f"{table.name} is the official file of {official_rows:,} rows by its sha256, but {count:,} were read. "
            "This is a defect of the reader: please report it."
        )


def _read_txt(path: Path, report: RowReport, column_names: list[str]) -> tuple[list[str], Iterator[Row]]:
    return ["text"], ((f"{path}, line {number}", (line,)) for number, line in read_lines(path))


def _read_tsv(path: Path, report: RowReport, column_names: list[str]) -> tuple[list[str], Iterator[Row]]:
    lines = ((number, line.split("\t")) for number, line in read_lines(path))
    return _with_header(path, lines, report, column_names, "tab")


def _read_csv(path: Path, report: RowReport, column_names: list[str]) -> tuple[list[str], Iterator[Row]]:
    # Python's own limit of a cell is 131,072 characters. It holds for all readers, so it is not lowered.
    csv.field_size_limit(max(LONGEST_LINE, csv.field_size_limit()))
    reader = csv.reader((line + "\n" for _, line in read_lines(path)), strict=True)

    def records() -> Iterator[tuple[int, list[str]]]:
        try:
            for fields in reader:
                yield reader.line_num, fields
        except csv.Error as error:
            raise DataError(
                f"{path}, line {reader.line_num}: {error}. In CSV a field with a quotation mark is quoted and the mark "
                "doubled; if the file does not quote, save it as .tsv."
            ) from None

    return _with_header(path, records(), report, column_names, "comma")


def _with_header(
    path: Path, records: Iterator[tuple[int, list[str]]], report: RowReport, column_names: list[str], separator: str
) -> tuple[list[str], Iterator[Row]]:
    if not column_names:
        header = next((fields for _, fields in records if fields), None)
        if header is None:
            raise DataError(f"{path} is empty.")
        column_names = [name.strip() for name in header]
    if separator == "comma" and any("\t" in name for name in column_names):
        raise DataError(f"{path} is called .csv, but its header is separated by tabs; save it as .tsv.")
    if (repeated := first_repeated(column_names)) is not None:
        raise DataError(f"{path}: the column name {shortened(repr(repeated))} occurs twice in the header.")

    def rows() -> Iterator[Row]:
        for number, fields in records:
            where = f"{path}, line {number}"
            if len(fields) != len(column_names):
                if not fields:  # A blank line of a .csv: in one column an empty cell, beside others no row.
                    if len(column_names) == 1:
                        yield where, [""]
                    continue
                report.read += 1
                report.bad_row(
                    "wrong_number_of_fields",
                    where,
                    f"{len(fields)} {separator}-separated fields where the header has {len(column_names)} "
                    f"({shortened(', '.join(column_names))}).",
                )
                continue
            yield where, fields

    return column_names, rows()


def _read_json(path: Path, report: RowReport, column_names: list[str]) -> tuple[list[str], Iterator[Row]]:
    with open_bytes(path) as stream:
        content = _whole(stream, f"{path} is more than 1 GiB of JSON, held in memory. Use .jsonl, one object a line.")
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start)
        start = content.rfind(b"\n", 0, error.start) + 1
        raise not_utf8(path, line + 1, content[start:].partition(b"\n")[0], error.start - start) from None
    del content
    try:
        records = parse_json(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}). Use .jsonl for one object a line."
        ) from None
    except UnusableJSONError as error:
        raise DataError(f"{path}: {error}. Mend it, or use .jsonl, one object a line.") from None
    if isinstance(records, OBJECTS):
        named = [value for name, value in items_of(records) if name == "data"]
        if len(named) > 1:
            raise DataError(f"{path}: the field 'data' stands twice. Keep one of them.")
        records = named[0] if named else None
    if not isinstance(records, list):
        raise DataError(f"{path} is JSON, but not a list of objects.")
    return _from_objects(path, ((f"{path}, item {index}", item) for index, item in enumerate(records)), report)


def _read_jsonl(path: Path, report: RowReport, column_names: list[str]) -> tuple[list[str], Iterator[Row]]:
    def objects() -> Iterator[tuple[str, object]]:
        for number, line in read_lines(path):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                record = parse_json_line(line)
            except (json.JSONDecodeError, UnusableJSONError) as error:
                report.read += 1
                if isinstance(error, UnusableJSONError):
                    report.bad_row("unusable_json", where, f"{error}.")
                else:
                    report.bad_row("not_json", where, f"not JSON ({error.msg}).")
            else:
                yield where, record

    return _from_objects(path, objects(), report)


def _read_parquet(path: Path, report: RowReport, column_names: list[str]) -> tuple[list[str], Iterator[Row]]:
    records = ((f"{path}, row {index}", record) for index, record in enumerate(_parquet_records(path)))
    return _from_objects(path, records, report)


def _parquet_records(path: Path) -> Iterator[dict]:
    import pyarrow
    import pyarrow.parquet

    with open_bytes(path) as stream:
        # Parquet is read from its end, and a compressed stream has none until it is unpacked.
        if path.suffix.lower() in COMPRESSIONS:
            cure = "Leave it unpacked: Parquet is compressed inside."
            stream = pyarrow.BufferReader(_whole(stream, f"{path} unpacks to more than 1 GiB, held in memory. {cure}"))
        try:
            file = pyarrow.parquet.ParquetFile(stream)
            if (repeated := first_repeated(file.schema_arrow.names)) is not None:
                raise DataError(f"{path}: the column name {shortened(repr(repeated))} occurs twice.")
            for batch in file.iter_batches(batch_size=10_000):
                yield from batch.to_pylist()
        except DataError:
            raise
        # Damage shows as any of these: text that is not UTF-8, a time beyond the calendar, an unknown time zone, ...
        except (pyarrow.ArrowException, OSError, ValueError, ArithmeticError, LookupError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the file system
                raise
            reason = shortened(" ".join(str(error).split()))
            raise DataError(f"{path} is not a Parquet file that can be read ({reason}). Write it again.") from None


def _whole(stream: BinaryIO, too_large: str) -> bytearray:
    content = bytearray()
    while block := stream.read(1 << 20):
        content += block
        if len(content) > _LARGEST_WHOLE:
            raise DataError(too_large)
    return content


def _from_objects(
    path: Path, objects: Iterator[tuple[str, object]], report: RowReport
) -> tuple[list[str], Iterator[Row]]:
    """Columns of the first object, nested keys joined by dots (`labels.label`).

    A value that cannot be used is an `UnusableValue`, which is a defect only where that column is read.
    """
    names: list[str] = []
    first = None
    count = 0
    for where, record in objects:
        count += 1
        if isinstance(record, OBJECTS) and (flat := flat_fields(record)):
            names, first = list(flat), (where, list(flat.values()))
            break
        report.read += 1
        kind = "without a field" if isinstance(record, OBJECTS) else type(record).__name__
        report.bad_row("not_an_object", where, f"a row must be an object with named fields, not {kind}.")
    if first is None:
        raise DataError(f"{path} holds no rows{' that can be used' if count else ''}.")
    known = set(names)

    def rows() -> Iterator[Row]:
        yield first
        for place, record in objects:
            flat = flat_fields(record) if isinstance(record, OBJECTS) else {}
            if flat.keys() == known:
                yield place, [flat[name] for name in names]
                continue
            # Fields that only some rows carry (a note, say) are no defect unless they are read.
            if not flat:
                report.read += 1
                report.bad_row("not_an_object", place, "the row is not an object with named fields.")
                continue
            late = [name for name in flat if name not in known and "neg" in name.lower()]
            if late:
                report.read += 1
                message = f"the field {shortened(repr(late[0]))} is not in the first row, which sets the columns."
                report.bad_row("negative_not_in_the_first_row", place, message)
                continue
            yield place, [flat.get(name, MISSING) for name in names]

    # A name with half a character could stand in no message.
    return [name.encode("utf-8", "backslashreplace").decode("utf-8") for name in names], rows()


def numbered(columns: Sequence[str], stem: str) -> list[str]:
    """Columns called `stem`, `stem_2`, `stem2`, ... in the order of their numbers."""
    found = []
    for column in columns:
        if match := re.fullmatch(rf"{stem}s?[_-]?(\d{{0,9}})", column.lower()):
            found.append((int(match.group(1) or 0), column))
    return [column for _, column in sorted(found)]
