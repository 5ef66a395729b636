"""A folder of vectors that the processes of one job fill together, and no other job at the same time.

Axes: W processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from .errors import ConfigError
from .file_locks import is_held, try_lock, waiting_for
from .vector_files import SUFFIXES
from .vector_manifest import MANIFEST, NOTE, STEM

MANIFEST_LOCK = ".manifest.lock"  # held by who reads the manifest and writes it anew
_DOOR_LOCK = ".door.lock"  # held for moments, by who enters or leaves
_PROCESS_LOCKS = ".process-*.lock"  # held while a process is inside
_MADE = ".made.lock"  # never held: it says that a process made the folder, and that nothing is in it yet
_ATTEMPTS = 50  # to enter a folder that others, who are refused, remove


@contextmanager
def place_in(folder: Path, process: int, processes: int) -> Iterator[None]:
    """Be process r of W inside the block. A folder that is made for it, and left without a manifest, is removed.

    Args:
        folder: May not exist yet.
        process: r, from 0.
        processes: W.

    Raises:
        ConfigError: A file is in the way, the name is that of a file, or another job is at work there.
    """
    check_name(folder)
    own = FileLock(folder / f".process-{process}-of-{processes}.lock")
    try:
        _enter(folder, own, process, processes)
        yield
    finally:
        try:
            _leave(folder, own)
        finally:
            own.release()


def check_name(folder: Path) -> None:
    """Refuse what can be no folder of vectors.

    Raises:
        ConfigError: It is a file or has the name of one, or holds files of somebody else.
    """
    names = _names_in(folder)
    kind = folder.suffix.lower().removeprefix(".")
    if kind in SUFFIXES and names is None:
        cure = (
            "For a single file write .npy in small letters" if kind == "npy" else f"Write --format {kind} --output DIR"
        )
        raise ConfigError(f"--output {folder} would be a folder with the name of a file. {cure}.")
    foreign = min((name for name in names or () if not name.startswith(".")), default=None)
    if foreign and not (folder / MANIFEST).exists():  # in this order: another process may be beginning
        raise ConfigError(
            f"{folder} holds other files ({foreign}) and no {MANIFEST}. Name another --output, or empty it."
        )


def _names_in(folder: Path) -> list[str] | None:
    """None where it is not there; asked once, because another process may remove it between two questions."""
    try:
        return [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise ConfigError(f"--output {folder} is a file; name a folder, or FILE.npy for a single file.") from None


def _enter(folder: Path, own: FileLock, process: int, processes: int) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            made = _make(folder)
            with waiting_for(folder / _DOOR_LOCK, f"enters {folder}"):
                if made:
                    (folder / _MADE).touch()
                _take_place(folder, own, process, processes)
                return
        except FileNotFoundError:  # a process that was refused removed the folder meanwhile
            if attempt == _ATTEMPTS:
                raise


def _make(folder: Path) -> bool:
    """Whether it was not there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir()
        return True
    return False


def _take_place(folder: Path, own: FileLock, process: int, processes: int) -> None:
    """Take the own lock and clear up; called by one process at a time.

    Shards are shared out by the number of processes, so that those of a job with another number could be in the making
    by both. Of the same number each makes its own.
    """
    others = (path for path in folder.glob(_PROCESS_LOCKS) if not path.name.endswith(f"-of-{processes}.lock"))
    held = next(filter(is_held, others), None)
    if held is None and not try_lock(own):
        held = Path(own.lock_file)
    if held is not None:
        raise ConfigError(
            f"another run is writing to {folder}. Wait until it has ended, or name another --output. Processes that are to "
            "share the work are started together, by torchrun or accelerate launch. Where no run is at work any more (a "
            f"machine was lost, and the file system has no locks), remove {held}."
        )
    for beginning in (f".{STEM}", f".{NOTE}"):
        for leftover in folder.glob(f"{beginning}*"):
            number = leftover.name.removeprefix(beginning).partition(".")[0]
            if number.isdecimal() and int(number) % processes == process:
                leftover.unlink()


def _leave(folder: Path, own: FileLock) -> None:
    with suppress(FileNotFoundError), waiting_for(folder / _DOOR_LOCK, f"leaves {folder}"):
        own.release()
        if (folder / MANIFEST).exists():
            (folder / _MADE).unlink(missing_ok=True)
        # Refused before anything was written; processes that are still inside count rows, or wait for who does.
        elif (folder / _MADE).exists() and not any(map(is_held, folder.glob(_PROCESS_LOCKS))):
            _remove_locks_and_folder(folder)


def _remove_locks_and_folder(folder: Path) -> None:
    for path in (folder / MANIFEST_LOCK, *folder.glob(_PROCESS_LOCKS), folder / _MADE, folder / _DOOR_LOCK):
        path.unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError:  # a process came through the door that is no more, and will leave; or a file that is not ours
        (folder / _MADE).touch()
