"""`manifest.json` of a folder of vectors: read with distrust, since it may be half-copied, or somebody else's.

What is returned by `read_manifest` names no file outside its folder, and its rows add up. A shard that was made since
the manifest was written has a note of its own, `.shard-NNNNN.json`, with what the manifest will say of it: the manifest
names all shards, and to write it anew for each of n would take n * n lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from .errors import ConfigError, shortened
from .files import write_json
from .vector_files import DTYPES, SUFFIXES

MANIFEST = "manifest.json"
VERSION = 1
STEM = "vectors-"
NOTE = ".shard-"
BEGIN_AGAIN = "Name another --output, or remove the folder to begin again."

GREATEST = 1 << 48  # of any number in it; beyond, not even an empty array of so many rows can be made
_LEVELS = 8  # of brackets; a manifest has four
_TOO_DEEP = "brackets are nested too deeply"
# Of the model and the options: what may change between two runs that fill one folder.
_NO_MATTER = {"name", "batch_tokens"}  # the second is noted for each shard; earlier manifests have it here


class _Fault(Exception):
    """What is wrong with a manifest, in words."""


def read_manifest(folder: Path) -> dict:
    """The manifest of a folder, with all its fields as they should be, and with the shards that are only noted yet.

    A note that is none is passed over: its shard is made again.

    Raises:
        ConfigError: It is damaged, or something else.
    """
    path = folder / MANIFEST
    notes = list(_notes(folder))  # before the manifest: another process may be moving them there
    try:
        manifest = _parsed(path.read_bytes())
        _check(manifest)
    except _Fault as error:
        raise ConfigError(f"{path} is damaged, or not a manifest of vectors: {error}. {BEGIN_AGAIN}") from None
    if notes:
        shards = {entry["first_row"]: entry for entry in manifest["shards"]}
        for number, content in notes:
            if (entry := _noted_entry(manifest, number, content)) is not None:
                shards[entry["first_row"]] = entry
        put_shards(manifest, shards)
    return manifest


def put_shards(manifest: dict, shards: dict[int, dict]) -> None:
    """Let a manifest name these shards, given by their first rows, and no others."""
    manifest["shards"] = [shards[row] for row in sorted(shards)]
    manifest["complete"] = len(shards) == shards_of(manifest)


def write_manifest(folder: Path, manifest: dict) -> None:
    """Write the manifest, and remove the notes of shards that it names.

    Raises:
        ConfigError: It could not be read again.
    """
    try:
        _check(manifest)
    except _Fault as error:
        raise ConfigError(
            f"{folder / MANIFEST} cannot be written: {error}, which no folder can be made with."
        ) from None
    write_json(folder / MANIFEST, manifest)
    named = {entry["first_row"] // manifest["options"]["shard_rows"] for entry in manifest["shards"]}
    for number, path in _note_paths(folder):
        if number in named:
            path.unlink(missing_ok=True)


def note_shard(folder: Path, number: int, entry: dict) -> None:
    """Say of a shard what the manifest will say; others may do so for theirs at the same time."""
    write_json(_note_path(folder, number), entry)


def remove_note(folder: Path, number: int) -> None:
    """Of a shard that is not there after all."""
    _note_path(folder, number).unlink(missing_ok=True)


def has_notes(folder: Path) -> bool:
    """Whether there are shards that the manifest may not name yet."""
    return next(_note_paths(folder), None) is not None


def remove_notes(folder: Path) -> None:
    """Of a folder whose manifest is gone."""
    for _, path in _note_paths(folder):
        path.unlink(missing_ok=True)


def _note_path(folder: Path, number: int) -> Path:
    return folder / f"{NOTE}{number:05d}.json"


def _note_paths(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob(f"{NOTE}*.json"):
        number = path.name.removeprefix(NOTE).removesuffix(".json")
        if number.isdecimal() and len(number) < 20:
            yield int(number), path


def _notes(folder: Path) -> Iterator[tuple[int, bytes]]:
    for number, path in _note_paths(folder):
        try:
            yield number, path.read_bytes()
        except OSError:  # the manifest names it now
            continue


def _noted_entry(manifest: dict, number: int, content: bytes) -> dict | None:
    try:
        entry = _parsed(content)
        if _is_deeper(entry, _LEVELS) or _check_shard(manifest, entry, "", -1) != number:
            return None
    except _Fault:
        return None
    return entry


def _parsed(content: bytes) -> object:
    try:
        text = content.decode("utf-8")
        found = json.loads(text)
        if "\\u" in text:  # a half of a character can be read so, and not be written again
            json.dumps(found, ensure_ascii=False).encode("utf-8")
        return found
    except json.JSONDecodeError as error:
        raise _Fault(f"line {error.lineno} is not JSON") from None
    except UnicodeError:
        raise _Fault("it is not UTF-8") from None
    except ValueError:  # of int(), which reads 4,300 digits
        raise _Fault("it has a number of too many digits") from None
    except RecursionError:
        raise _Fault(_TOO_DEEP) from None


def shards_of(manifest: dict) -> int:
    """How many shards there are when all are there."""
    return -(-manifest["rows"] // manifest["options"]["shard_rows"])


def shard_name(manifest: dict, shard: int) -> str:
    """Of its file."""
    return f"{STEM}{shard:05d}{SUFFIXES[manifest['options']['format']]}"


def span_of(manifest: dict, shard: int) -> tuple[int, int]:
    """First row of a shard, and the one after its last."""
    shard_rows = manifest["options"]["shard_rows"]
    return shard * shard_rows, min((shard + 1) * shard_rows, manifest["rows"])


def differences(begun: dict, origin: dict) -> list[str]:
    """What of the model, the options and the data is not as it was, in words."""
    found = []
    for part in ("model", "options"):
        for name in sorted((begun[part].keys() | origin[part].keys()) - _NO_MATTER):
            before, now = begun[part].get(name), origin[part].get(name)
            if before == now:
                continue
            if name.endswith("_sha256"):
                found.append(f"another {name.removesuffix('_sha256')} of the model")
            else:
                found.append(f"{name} {_shown(before)} (now {_shown(now)})")
    before, now = begun["data"], origin["data"]
    if len(before) != len(now):
        found.append(f"{len(before):,} data files (now {len(now):,})")
    elif changed := [new for old, new in zip(before, now, strict=True) if old["sha256"] != new["sha256"]]:
        found.append(f"other data ({changed[0]['path']} is not the same file)")
    return found


def _check(manifest: object) -> None:
    if _is_deeper(manifest, _LEVELS):
        raise _Fault(_TOO_DEEP)
    if (version := _field(manifest, "version", int)) != VERSION:
        raise _Fault(f"its version is {version}, and this program reads {VERSION}")
    complete, rows = _field(manifest, "complete", bool), _field(manifest, "rows", int, least=1)
    _field(manifest, "dimension", int, least=1)
    _field(_field(manifest, "model", dict), "name", str, of="model")
    options = _field(manifest, "options", dict)
    _field(options, "shard_rows", int, of="options", least=1)
    _field(options, "with_text", bool, of="options")
    for name, known in (("format", SUFFIXES), ("output_dtype", DTYPES)):
        if (value := _field(options, name, str, of="options")) not in known:
            raise _Fault(f"options.{name} is {_shown(value)}, not one of {', '.join(known)}")
    _check_makers(manifest)
    counted = 0
    for place, entry in enumerate(_field(manifest, "data", list)):
        _field(entry, "path", str, of=f"data[{place}]")
        _field(entry, "sha256", str, of=f"data[{place}]")
        counted += _field(entry, "rows", int, of=f"data[{place}]", least=1)
    if counted != rows:
        raise _Fault(f"it says {rows:,} rows, and its data have {counted:,}")
    shards = _field(manifest, "shards", list)
    last = -1
    for place, entry in enumerate(shards):
        last = _check_shard(manifest, entry, f"shards[{place}]", last)
    if complete != (len(shards) == shards_of(manifest)):
        raise _Fault(f"it names {len(shards):,} of {shards_of(manifest):,} shards, and complete is {_shown(complete)}")


def _check_shard(manifest: dict, entry: object, of: str, last: int) -> int:
    """Number of a shard, which must be greater than that of the last."""
    start = _field(entry, "first_row", int, of=of)
    shard = start // manifest["options"]["shard_rows"]
    first, stop = span_of(manifest, shard)
    if shard <= last or start != first or stop <= start:
        raise _Fault(f"{of} begins at row {start:,}, where no further shard begins")
    expected = {"file": shard_name(manifest, shard), "rows": stop - start}
    for name, value in expected.items():
        if (found := _field(entry, name, type(value), of=of)) != value:
            raise _Fault(f"{of}.{name} is {_shown(found)} instead of {_shown(value)}")
    _field(entry, "bytes", int, of=of)
    _field(entry, "sha256", str, of=of)
    if "batch_tokens" in entry:
        _field(entry, "batch_tokens", int, of=of)
    _check_makers(entry, of)
    return shard


def _check_makers(holder: dict, of: str = "") -> None:
    """Where they are: what the vectors were made with. Folders made before have less of it."""
    if "device" in holder:
        _field(holder, "device", str, of=of)
    if "versions" in holder:
        for name in (versions := _field(holder, "versions", dict, of=of)):
            _field(versions, name, str, of=f"{of}.versions" if of else "versions")


def _field(holder: object, name: str, kind: type, *, of: str = "", least: int = 0):
    """A field of an object, of just that type: true is no number."""
    place = f"{of}.{name}" if of else name
    if not isinstance(holder, dict):
        raise _Fault(f"{of or 'it'} is no object")
    if name not in holder:
        raise _Fault(f"{place} is missing")
    value = holder[name]
    if type(value) is not kind or (kind is int and not least <= value <= GREATEST):
        raise _Fault(f"{place} is {_shown(value)}")
    return value


def _is_deeper(content: object, levels: int) -> bool:
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return bool(inner) and (levels == 0 or any(_is_deeper(each, levels - 1) for each in inner))


def _shown(value: object) -> str:
    return shortened(json.dumps(value, ensure_ascii=False))
