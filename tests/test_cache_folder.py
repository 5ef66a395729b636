"""Folders of the data cache: whole or not there, built by one process at a time."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from pathlib import Path

import pytest

from simcse_hf.cache_folder import cache_root, cached_folder
from simcse_hf.errors import ConfigError, DataError


def build(folder: Path) -> dict:
    (folder / "a.bin").write_bytes(b"abc" * 100_000)
    (folder / "b.bin").write_bytes(b"")
    return {"made": 1}


def not_again(folder: Path) -> dict:
    raise AssertionError("it was built again")


def test_what_was_built_is_found_again(tmp_path: Path) -> None:
    folder, record = cached_folder(tmp_path / "cache", "kind", {"n": 1}, build)
    assert record == {"made": 1} and folder.name.startswith("kind-")
    assert cached_folder(tmp_path / "cache", "kind", {"n": 1}, not_again) == (folder, record)


def test_another_key_is_another_folder(tmp_path: Path) -> None:
    folders = {cached_folder(tmp_path, "kind", {"n": n, "m": m}, build)[0] for n in (1, 2) for m in (None, "1")}
    assert len(folders) == 4


def truncate(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(299_999)


def overwrite(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.write(b"x")


def spoil_end(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"x")


def flip_a_bit_inside(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, overwrite, spoil_end, flip_a_bit_inside, Path.unlink])
def test_a_damaged_folder_is_built_again_with_a_warning(
    tmp_path: Path, damage, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = cached_folder(tmp_path, "kind", {}, build)
    damage(folder / "a.bin")
    cached_folder(tmp_path, "kind", {}, build)
    assert f"{folder} in the data cache is damaged or incomplete; it is made again" in caplog.text
    assert (folder / "a.bin").read_bytes() == b"abc" * 100_000


def test_a_copied_cache_is_read_once_and_used(tmp_path: Path) -> None:
    """A copy was written at another time, and holds the same."""
    folder, record = cached_folder(tmp_path, "kind", {}, build)
    os.utime(folder / "a.bin")
    assert cached_folder(tmp_path, "kind", {}, not_again) == (folder, record)


def test_what_nobody_wrote_to_is_not_read_through_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached_folder(tmp_path, "kind", {}, build)

    def read_through(path: Path) -> str:
        raise AssertionError(f"{path} was read through")

    monkeypatch.setattr("simcse_hf.cache_folder.sha256_of", read_through)
    cached_folder(tmp_path, "kind", {}, not_again)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"files": {}}), "[" * 5000])
def test_a_broken_manifest_is_a_damaged_folder(tmp_path: Path, text: str) -> None:
    folder, record = cached_folder(tmp_path, "kind", {}, build)
    (folder / "manifest.json").write_text(text)
    assert cached_folder(tmp_path, "kind", {}, build) == (folder, record)


def test_a_file_that_was_not_built_makes_a_damaged_folder(tmp_path: Path) -> None:
    folder, record = cached_folder(tmp_path, "kind", {}, build)
    (folder / "c.bin").write_bytes(b"of somebody else")
    assert cached_folder(tmp_path, "kind", {}, build) == (folder, record)
    assert not (folder / "c.bin").exists()


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict:
        build(folder)
        raise DataError("a bad row")

    with pytest.raises(DataError, match="a bad row"):
        cached_folder(tmp_path, "kind", {}, fail)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    folder, _ = cached_folder(tmp_path, "kind", {}, build)
    folder.rename(folder.with_name(f".{folder.name}.partial"))
    (tmp_path / f".{folder.name}.partial/scratch").mkdir()
    assert cached_folder(tmp_path, "kind", {}, build)[0] == folder
    assert {path.name for path in folder.iterdir()} == {"a.bin", "b.bin", "manifest.json"}
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*.partial"))


def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path: Path) -> None:
    def full(folder: Path) -> dict:
        build(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        ConfigError, match=r"cannot use the data cache .*: No space left .*data_cache_dir.*SIMCSE_CACHE"
    ):
        cached_folder(tmp_path, "kind", {}, full)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_a_source_that_cannot_be_read_is_not_blamed_on_the_cache(tmp_path: Path) -> None:
    source = str(tmp_path / "corpus.txt")

    def unreadable(folder: Path) -> dict:
        raise PermissionError(errno.EACCES, "Permission denied", source)

    with pytest.raises(PermissionError, match="corpus.txt"):
        cached_folder(tmp_path / "cache", "kind", {}, unreadable)


def test_a_cache_below_a_file_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(ConfigError, match=rf"cannot use the data cache {root}: .*name another folder"):
            cached_folder(root, "kind", {}, build)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_one_message(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot use the data cache .*: Permission denied"):
        cached_folder(tmp_path, "kind", {}, build)


def test_a_cache_that_is_there_is_read_without_writing(tmp_path: Path) -> None:
    """A cache shared read-only: not even the lock is touched."""
    folder, record = cached_folder(tmp_path, "kind", {}, build)
    (tmp_path / f".{folder.name}.lock").unlink(missing_ok=True)
    assert cached_folder(tmp_path, "kind", {}, not_again) == (folder, record)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def _compete(root: Path, log: Path, ready) -> None:
    def slow(folder: Path) -> dict:
        with log.open("a") as file:
            file.write("built\n")
        record = build(folder)
        ready.wait(0.5)  # the other is sure to arrive meanwhile
        return record

    ready.wait(30)
    folder, record = cached_folder(root, "kind", {}, slow)
    assert record == {"made": 1} and (folder / "a.bin").stat().st_size == 300_000


def test_two_processes_build_once_and_both_read(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    processes = [context.Process(target=_compete, args=(tmp_path / "c", tmp_path / "log", ready)) for _ in range(3)]
    for process in processes:
        process.start()
    ready.set()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "built\n"


def test_the_cache_lies_where_one_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SIMCSE_CACHE_DIR", "~/mine")
    assert cache_root("here") == Path.cwd() / "here"
    assert cache_root() == tmp_path / "mine"
    monkeypatch.delenv("SIMCSE_CACHE_DIR")
    assert cache_root() == tmp_path / ".cache/simcse_hf"
