"""Locks that are waited for with words, and file systems that have none."""

from __future__ import annotations

import errno
import logging
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock, SoftFileLock

from simcse_hf import file_locks
from simcse_hf.cache_folder import cached_folder
from simcse_hf.errors import ConfigError
from simcse_hf.file_locks import is_held, try_lock, waiting_for
from simcse_hf.vector_shards import vector_folder

NO_LOCKS = [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("flock is not implemented")]


def without_locks(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(self, *_, **__):
        raise error

    monkeypatch.setattr(FileLock, "acquire", refuse)


def test_who_waits_says_for_what_and_which_file_to_remove(tmp_path: Path, monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(file_locks, "_WITHOUT_A_WORD", 0.05)
    monkeypatch.setattr(file_locks, "_REMINDER", 0.1)
    path, taken = tmp_path / "x.lock", threading.Event()

    def hold() -> None:
        with waiting_for(path, "is first"):
            taken.set()
            time.sleep(0.5)

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait(5)
    assert is_held(path) and not try_lock(FileLock(path))
    with waiting_for(path, "counts rows"):
        holder.join()
    assert len(caplog.messages) >= 2, "it was said once and never again"
    expected = f"waiting for another process, which counts rows. If none is at work any more, remove {path}"
    assert set(caplog.messages) == {expected}
    assert not is_held(path)


def test_who_need_not_wait_says_nothing(tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    with waiting_for(tmp_path / "x.lock", "counts rows"):
        pass
    assert caplog.messages == []


@pytest.mark.parametrize("error", NO_LOCKS, ids=["ENOLCK", "NotImplementedError"])
def test_without_locks_work_goes_on_with_a_warning(error: Exception, tmp_path: Path, monkeypatch, caplog) -> None:
    without_locks(monkeypatch, error)
    origin = {
        "model": {"name": "m"},
        "options": {"format": "npy", "output_dtype": "float32", "shard_rows": 2, "with_text": False},
        "data": [{"path": "a.txt", "sha256": "0"}],
    }
    with vector_folder(tmp_path / "v") as output:
        output.begin(origin, lambda: [3], 2)
    assert (tmp_path / "v/manifest.json").exists()
    folder, _ = cached_folder(tmp_path / "cache", "kind", {}, lambda folder: (folder / "a").touch() or {})
    assert (folder / "a").exists()
    messages = [message for message in caplog.messages if "cannot be locked" in message]
    assert len(messages) == 2, "once for each folder"
    assert f"{tmp_path / 'v'} cannot be locked" in messages[0] and "nothing keeps a second run out" in messages[0]


def test_a_lock_that_cannot_be_made_is_no_file_system_without_locks(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        try_lock(FileLock(tmp_path / "none/x.lock"))


def test_what_a_lost_machine_left_is_named_with_its_cure(tmp_path: Path, monkeypatch) -> None:
    """Where flock is unknown `filelock` takes a file for the lock, here one of a process on another machine."""
    for module in ("shared_folder", "file_locks"):
        monkeypatch.setattr(f"simcse_hf.{module}.FileLock", SoftFileLock)
    (tmp_path / "v").mkdir()
    lost = tmp_path / "v/.process-0-of-1.lock"
    lost.write_text("1\nanother-machine\n")
    with pytest.raises(ConfigError, match=f"another run is writing to .*a machine was lost.*remove {lost}"):
        with vector_folder(tmp_path / "v"):
            pass
    lost.unlink()
    with vector_folder(tmp_path / "v"):
        pass
