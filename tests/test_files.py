"""Files: read whatever their compression, damaged ones refused, written whole or not at all."""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import json
import lzma
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse_hf.errors import DataError
from simcse_hf.files import format_of, open_bytes, read_lines, sha256_of, staged_folder, write_json, write_text

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": lambda content: pyarrow.compress(content, codec="zstd", asbytes=True),
}
compressions = pytest.mark.parametrize("suffix", COMPRESS)

LINES = ["따옴표 하나 \" 와 '", "", "n/a", "NBSP\u00a0와 U+2028\u2028뒤", "\u1112\u1161\u11ab", "마지막"]
# Hardly compressible, so that a cut or a scratch in the middle falls into the data.
LONG = "\n".join(f"{i} {hashlib.sha256(str(i).encode()).hexdigest()} 문장" for i in range(3000)).encode()


def lines_of(path: Path) -> list[str]:
    numbered = list(read_lines(path))
    assert [number for number, _ in numbered] == list(range(1, len(numbered) + 1))
    return [line for _, line in numbered]


def hidden_entries(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.name.startswith(".")]


def test_the_digest_is_of_the_bytes_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(LONG))
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest() != hashlib.sha256(LONG).hexdigest()


def test_the_digest_of_nothing_is_the_known_one(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert sha256_of(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.tsv", ".tsv"),
        ("reviews.txt.xz", ".txt"),
        ("A.TXT.GZ", ".txt"),
        ("a.jsonl.zst", ".jsonl"),
        ("xnli.dev.ko.tsv.bz2", ".tsv"),
        ("a.gz", ""),
        ("a", ""),
        ("archive.zip", ".zip"),
    ],
)
def test_the_format_is_the_extension_below_the_compression(name: str, expected: str) -> None:
    assert format_of(Path("folder.txt") / name) == expected


def test_plain_lines_are_split_at_newlines_alone(tmp_path: Path) -> None:
    """`str.splitlines` would split at U+2028, U+0085, vertical tabs and form feeds as well."""
    line = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg"
    assert len(line.splitlines()) == 7
    path = tmp_path / "a.txt"
    path.write_bytes(f"{line}\n둘째".encode())
    assert lines_of(path) == [line, "둘째"]


@compressions
@pytest.mark.parametrize("upper", [False, True])
def test_a_compressed_file_holds_the_lines_of_the_plain_one(tmp_path: Path, suffix: str, upper: bool) -> None:
    path = tmp_path / f"a.txt{suffix.upper() if upper else suffix}"
    path.write_bytes(COMPRESS[suffix]("\n".join(LINES).encode()))
    assert lines_of(path) == LINES


@compressions
def test_all_members_of_a_concatenated_file_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix]("하나\n".encode()) + COMPRESS[suffix]("둘\n".encode()))
    assert lines_of(path) == ["하나", "둘"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.binary(max_size=40) | st.integers(0, 200_000).map(lambda size: b"\xea\xb0\x80" * size), max_size=6),
    st.sampled_from([".xz", ".bz2"]),
    st.integers(1, 100_000),
)
def test_all_streams_of_any_sizes_are_read_in_any_portions(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], suffix: str, portion: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"streams{suffix}"
    path.write_bytes(b"".join(COMPRESS[suffix](part) for part in [*parts, b""]))
    with open_bytes(path) as stream:
        assert b"".join(iter(lambda: stream.read(portion), b"")) == b"".join(parts)
        assert stream.read(1) == stream.readline() == b"", "the end is not the end"
    assert stream.raw.closed


@compressions
@pytest.mark.parametrize(
    "damage",
    [
        lambda one: one + b"\x00" + one[1:] + one,  # a byte of what tells that a stream begins
        lambda one: one * 2 + one[:3],
        lambda one: one * 3 + b"garbage",
        lambda one: one + one[:-5] + one,
    ],
    ids=["a wrong byte", "a stream of three bytes", "text behind the last", "a cut stream before another"],
)
def test_damage_behind_the_first_stream_is_an_error_not_a_shorter_text(
    tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes]
) -> None:
    """As from `cat`, pbzip2 or xz -T: Python's readers of .xz and .bz2 end where nothing begins like a stream."""
    path = tmp_path / f"a.txt{suffix}"
    one = COMPRESS[suffix](LONG)
    path.write_bytes(one * 3)
    assert len(lines_of(path)) == 8998  # the last line of each joins the first of the next
    path.write_bytes(damage(one))
    with pytest.raises(DataError, match=rf"a\.txt\{suffix} cannot be decompressed \(.+\)\. It is damaged"):
        lines_of(path)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([".xz", ".bz2"]), st.integers(0, 10**6), st.integers(0, 255) | st.none())
def test_whatever_byte_is_changed_or_lost_no_line_is(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, place: int, byte: int | None
) -> None:
    lines = [f"{n}째 줄" for n in range(6)]
    whole = b"".join(COMPRESS[suffix](f"{line}\n".encode()) for line in lines)
    place %= len(whole)
    path = tmp_path_factory.getbasetemp() / f"changed{suffix}"
    path.write_bytes(whole[:place] + (b"" if byte is None else bytes([byte])) + whole[place + 1 :])
    try:
        assert lines_of(path) == lines
    except DataError:
        assert whole[place] != byte


def test_zero_bytes_behind_a_stream_are_padding_where_the_format_has_it(tmp_path: Path) -> None:
    """.xz: in fours, between streams too; .gz: as gzip reads tapes; in .bz2 and .zst they may stand for what was lost."""
    for zeros in (4, 8, 200_000):
        for suffix, allowed in ((".xz", True), (".gz", True), (".bz2", False), (".zst", False)):
            one, two = (COMPRESS[suffix](text.encode()) for text in ("하나\n", "둘\n"))
            path = tmp_path / f"a.txt{suffix}"
            for content in (one + bytes(zeros) + two, one + two + bytes(zeros)):
                path.write_bytes(content)
                if allowed:
                    assert lines_of(path) == ["하나", "둘"]
                else:
                    with pytest.raises(DataError, match="cannot be decompressed"):
                        lines_of(path)
    path = tmp_path / "a.txt.xz"
    for content in (lzma.compress(b"1\n") + bytes(6), lzma.compress(b"1\n") + bytes(65_537) + lzma.compress(b"2\n")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"\((6|65,537) zero bytes follow a compressed stream\)"):
            lines_of(path)


@compressions
@pytest.mark.parametrize("missing", [1, 0.5])
def test_a_truncated_file_is_an_error_not_a_shorter_text(tmp_path: Path, suffix: str, missing: float) -> None:
    path = tmp_path / f"a.txt{suffix}"
    whole = COMPRESS[suffix](LONG)
    path.write_bytes(whole)
    assert len(lines_of(path)) == 3000
    path.write_bytes(whole[: -1 if missing == 1 else int(len(whole) * missing)])
    with pytest.raises(DataError, match=rf"a\.txt\{suffix} cannot be decompressed \(.+\)\. It is damaged"):
        lines_of(path)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2"])
def test_a_scratched_file_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    whole = COMPRESS[suffix](LONG)
    path.write_bytes(whole[:1000] + b"\xff" * 100 + whole[1100:])
    with pytest.raises(DataError, match="cannot be decompressed"):
        lines_of(path)


@compressions
def test_a_wrong_suffix_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes("그냥 글\n".encode() * 100)
    with pytest.raises(DataError, match="cannot be decompressed .* its suffix is wrong"):
        lines_of(path)


def test_what_the_system_refuses_is_not_called_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), open_bytes(tmp_path / "none.txt.gz"):
        pass
    with pytest.raises(IsADirectoryError), open_bytes(tmp_path):
        pass


def test_a_byte_order_mark_is_dropped_at_the_start_only(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffid\n\ufeff둘째\n".encode())
    assert lines_of(path) == ["id", "\ufeff둘째"]


def test_windows_line_ends_are_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("하나\r\n\r\n 둘 \r\n".encode())
    assert lines_of(path) == ["하나", "", " 둘 "]


@pytest.mark.parametrize(("content", "count"), [(b"", 0), (b"a", 1), (b"a\n", 1), (b"a\n\n", 2), (b"\n", 1)])
def test_a_line_is_counted_whether_or_not_the_last_one_ends(tmp_path: Path, content: bytes, count: int) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert len(lines_of(path)) == count


def test_korean_in_another_encoding_is_named_with_its_cure(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("ascii\n둘째 줄\n".encode() + "abc 뷁 셋째 줄\n".encode("cp949"))
    with pytest.raises(
        DataError, match=r"a\.txt, line 3: byte 4 \(0x[0-9a-f]{2}\) is not UTF-8\. .*iconv -f cp949 -t utf-8"
    ):
        lines_of(path)


def test_the_lines_before_an_undecodable_one_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("하나\n둘\n".encode() + "셋".encode("euc-kr"))
    lines = read_lines(path)
    assert [next(lines), next(lines)] == [(1, "하나"), (2, "둘")]
    with pytest.raises(DataError, match="line 3"):
        next(lines)


@pytest.mark.parametrize(
    "content", ["caf\u00e9".encode("latin-1"), "한글".encode("utf-16"), "한".encode()[:2], b"\xff\xff\xff"]
)
def test_other_undecodable_bytes_are_not_called_korean(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"line 1: byte \d+ \(0x[0-9a-f]{2}\) is not UTF-8\. Save the file as UTF-8\."):
        lines_of(path)


# A carriage return at the end of a line is a line end, and a byte-order mark at the start is none of the text.
plain_lines = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=100, deadline=None)
@given(st.lists(plain_lines, min_size=1, max_size=8), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
def test_any_lines_come_back(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], line_end: str, bom: bool, ended: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    bom = bom or lines[0].startswith("\ufeff")
    ended = ended or not lines[-1]
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + (line_end.join(lines) + line_end * ended).encode())
    assert lines_of(path) == lines


def test_writing_makes_folders_and_leaves_one_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "a.txt"
    write_text(path, "한글\n")
    assert path.read_bytes() == "한글\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    write_text(path, "다시")
    assert path.read_text(encoding="utf-8") == "다시"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("step", ["fsync", "encode", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "옛글")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if step == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    elif step == "replace":
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UnicodeEncodeError if step == "encode" else OSError):
        write_text(path, "새글\ud800" if step == "encode" else "새글")
    assert path.read_text(encoding="utf-8") == "옛글"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_json_has_null_where_numbers_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(
        path, {"점수": [1.5, float("nan")], "짝": (float("inf"), {"a": -float("inf")}), "none": None, "참": True}
    )
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {"점수": [1.5, None], "짝": [None, {"a": None}], "none": None, "참": True}
    assert '"점수"' in text and text.endswith("}\n") and "NaN" not in text


def test_a_staged_folder_appears_whole_and_keeps_what_else_is_there(tmp_path: Path) -> None:
    target = tmp_path / "new" / "release"
    with staged_folder(target) as staging:
        (staging / "1_Pooling").mkdir()
        (staging / "1_Pooling" / "old.json").write_text("old")
        (staging / "config.json").write_text("old")
        assert not (target / "config.json").exists()
    (target / "checkpoint-5").mkdir()
    with staged_folder(target) as staging:
        (staging / "1_Pooling").mkdir()
        (staging / "1_Pooling" / "config.json").write_text("new")
        (staging / "config.json").write_text("new")
        assert (target / "config.json").read_text() == "old"
    found = sorted(str(path.relative_to(target)) for path in target.rglob("*"))
    assert found == ["1_Pooling", "1_Pooling/config.json", "checkpoint-5", "config.json"]
    assert (target / "config.json").read_text() == "new"
    assert hidden_entries(target.parent) == []


def test_a_staged_folder_that_fails_leaves_the_target_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "release"
    for attempt in range(2):
        with pytest.raises(RuntimeError, match="half-way"), staged_folder(target) as staging:
            (staging / "config.json").write_text("new")
            raise RuntimeError("half-way")
        assert hidden_entries(tmp_path) == []
        if attempt == 0:
            assert not target.exists()
            target.mkdir()
            (target / "config.json").write_text("old")
    assert (target / "config.json").read_text() == "old"


def test_the_entry_named_last_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: moved.append(self.name) or replace(self, target))
    with staged_folder(tmp_path / "release", last="a.json") as staging:
        for name in ("a.json", "b.json", "c.json"):
            (staging / name).touch()
    assert moved == ["b.json", "c.json", "a.json"]


def test_everybody_may_read_a_staged_folder(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "release") as staging:
        (staging / "deep").mkdir(mode=0o700)
        (staging / "deep" / "model.safetensors").touch(mode=0o600)
    assert stat.S_IMODE((tmp_path / "release" / "deep").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "release" / "deep" / "model.safetensors").stat().st_mode) == 0o644
