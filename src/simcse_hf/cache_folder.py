"""A cache of prepared data: folders named by what they were made from, whole or not there.

Whoever finds a folder missing builds it under a lock; others wait and read. It is safe to
delete the cache at any time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ConfigError
from .file_locks import waiting_for
from .files import sha256_of, write_json

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_END = 1 << 16  # bytes at either end of a file that are compared with the manifest
_NO_PLACE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
}


def cache_root(folder: str | None = None) -> Path:
    """Where the cache lies: the folder given, else `SIMCSE_CACHE_DIR`, else `~/.cache/simcse_hf`."""
    return Path(os.path.expanduser(folder or os.environ.get("SIMCSE_CACHE_DIR") or "~/.cache/simcse_hf")).absolute()


def cached_folder(root: Path, kind: str, key: dict, build: Callable[[Path], dict]) -> tuple[Path, dict]:
    """The folder made from `key`, built unless it is there.

    Args:
        root: The cache.
        kind: Begins the folder's name.
        key: JSON-ready; everything the content depends on.
        build: Writes files into an empty folder and returns a JSON-ready record to keep with them.

    Returns:
        The folder, and the record.

    Raises:
        ConfigError: The cache cannot be read or written.
    """
    folder = root / f"{kind}-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:40]}"
    with _naming_the_cure(root):
        if (record := _record_if_whole(folder)) is not None:
            logger.info("read from the data cache: %s", folder)
            return folder, record
        root.mkdir(parents=True, exist_ok=True)
    with _naming_the_cure(root), waiting_for(root / f".{folder.name}.lock", f"is preparing {folder}"):
        if (record := _record_if_whole(folder)) is not None:  # another process was faster
            return folder, record
        if folder.exists():
            logger.warning("%s in the data cache is damaged or incomplete; it is made again.", folder)
            shutil.rmtree(folder)
        partial = root / f".{folder.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir()
        try:
            record = build(partial)
            files = {
                file.name: fingerprint(file, sync=True) | {"sha256": sha256_of(file)}
                for file in sorted(partial.iterdir())
            }
            write_json(partial / _MANIFEST, {"key": key, "record": record, "files": files})
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder, record


def _record_if_whole(folder: Path) -> dict | None:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        # What others read are the files that are there, so it is those that must be the ones that were written.
        if manifest["files"].keys() != {entry.name for entry in folder.iterdir()} - {_MANIFEST}:
            return None
        whole = all(_is_whole(folder / name, expected) for name, expected in manifest["files"].items())
        return manifest["record"] if whole else None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _is_whole(path: Path, expected: dict) -> bool:
    """Reading all of a large file would delay every start, so it is read only where somebody wrote to it since."""
    found = fingerprint(path)
    if any(found[name] != expected[name] for name in ("bytes", "sha256_of_ends")):
        return False
    return found["written_ns"] == expected["written_ns"] or sha256_of(path) == expected["sha256"]


def fingerprint(path: Path, *, sync: bool = False) -> dict:
    """Size, when it was last written, and a digest of both ends: what tells files apart without reading all of them.

    Args:
        path: Of a file.
        sync: Wait until its content is on the disk.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.sha256()
        for start in (0, max(size - _END, 0)):
            file.seek(start)
            digest.update(file.read(_END))
        if sync:
            os.fsync(file.fileno())
        written = os.fstat(file.fileno()).st_mtime_ns
    return {"bytes": size, "sha256_of_ends": digest.hexdigest(), "written_ns": written}


@contextmanager
def _naming_the_cure(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        elsewhere = error.filename is not None and root not in [Path(error.filename), *Path(error.filename).parents]
        if error.errno not in _NO_PLACE or (elsewhere and Path(error.filename) not in root.parents):
            raise
        raise ConfigError(
            f"cannot use the data cache {root}: {os.strerror(error.errno)}. Make room there, or name another folder with "
            "data_cache_dir or the environment variable SIMCSE_CACHE_DIR."
        ) from error
