"""Locks that processes take on files of a folder they share, and what becomes of them where a file system has none.

Where `flock` is unknown, as on some mounts of cluster file systems, `filelock` takes the existence of a file for the
lock. Of a machine that was lost such a file stays, so every message names it.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
_WITHOUT_A_WORD = 1.0  # seconds
_REMINDER = 600.0  # seconds: who is waited for may be reading a corpus, which takes hours


def try_lock(lock: FileLock, timeout: float = 0.0) -> bool:
    """Take a lock; False where another process holds it.

    On a file system that knows no locks nothing is held, which is said once, and the answer is True.

    Raises:
        OSError: Its file cannot be made, in a folder that is not there, say.
    """
    folder = Path(lock.lock_file).parent
    if not folder.is_dir():  # which filelock would make
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        return False
    except NotImplementedError as error:
        _say_that_nothing_is_held(folder, str(error))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _say_that_nothing_is_held(folder, str(error.strerror))
    return True


@cache
def _say_that_nothing_is_held(folder: Path, problem: str) -> None:
    logger.warning("%s cannot be locked (%s), so nothing keeps a second run out of it.", folder, problem)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of this file now."""
    lock = FileLock(path)
    free = try_lock(lock)
    lock.release()
    return not free


@contextmanager
def waiting_for(path: Path, occupation: str) -> Iterator[None]:
    """Hold a lock inside the block; who has to wait for it says so, and again every ten minutes.

    Args:
        path: File of the lock.
        occupation: What the process does that is waited for.

    Raises:
        OSError: The file cannot be made.
    """
    lock = FileLock(path)
    patience = _WITHOUT_A_WORD
    while not try_lock(lock, patience):
        patience = _REMINDER
        logger.info("waiting for another process, which %s. If none is at work any more, remove %s", occupation, path)
    try:
        yield
    finally:
        lock.release()
