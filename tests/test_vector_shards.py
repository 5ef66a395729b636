"""Vectors in files and folders: what is read is what was written, and what is not whole is said."""

from __future__ import annotations

import errno
import json
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import simcse_hf.vector_files as vector_files
from simcse_hf.errors import ConfigError, DataError
from simcse_hf.files import sha256_of
from simcse_hf.search import nearest
from simcse_hf.vector_files import SUFFIXES, write_vector_file
from simcse_hf.vector_shards import VectorShards, open_vectors, vector_folder

formats = pytest.mark.parametrize("kind", SUFFIXES)
ROWS, SIZE, SHARD_ROWS = 23, 4, 7
VECTORS = np.random.default_rng(0).normal(size=(ROWS, SIZE)).astype(np.float32)
TEXTS = [f"문장 {number}" for number in range(ROWS)]


def blocks(start: int, stop: int, *, rows: int = 3):
    for begin in range(start, stop, rows):
        end = min(begin + rows, stop)
        yield TEXTS[begin:end], VECTORS[begin:end]


def origin(kind: str = "npy", dtype: str = "float32", *, with_text: bool = False) -> dict:
    options = {"format": kind, "output_dtype": dtype, "shard_rows": SHARD_ROWS, "with_text": with_text}
    return {"model": {"name": "m", "prompt": ""}, "options": options, "data": [{"path": "a.txt", "sha256": "0"}]}


def fill(folder: Path, made_from: dict, *, shards: int = 99) -> Path:
    with vector_folder(folder) as output:
        output.begin(made_from, lambda: [ROWS], SIZE)
        for shard in output.missing()[:shards]:
            output.write(shard, blocks(*output.span(shard)))
    return folder


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VectorShards]:
    root = tmp_path_factory.mktemp("folders")
    return {kind: open_vectors(fill(root / kind, origin(kind)), verify=True) for kind in SUFFIXES}


# --- files ----------------------------------------------------------------------------------------------------------


@formats
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_file_holds_the_vectors_and_its_checksum_is_that_of_its_bytes(kind: str, dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with_text = kind != "npy"
    written = write_vector_file(
        path, blocks(2, 12), rows=10, dimension=SIZE, dtype=dtype, kind=kind, first_row=2, with_text=with_text
    )
    assert written == {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    assert stat.S_IMODE(path.stat().st_mode) == 0o644 and visible(path.parent) == ["file"]
    expected = VECTORS[2:12].astype(dtype)
    if kind == "npy":
        found = np.load(path)
        assert found.dtype == expected.dtype and np.array_equal(found, expected)
        return
    table = pa.ipc.open_file(path).read_all() if kind == "arrow" else pq.read_table(path)
    assert table.column_names == ["row", "sentence", "vector"]
    assert table["row"].to_pylist() == list(range(2, 12)) and table["sentence"].to_pylist() == TEXTS[2:12]
    assert pa.types.is_fixed_size_list(table.schema.field("vector").type)
    assert table["vector"].to_pylist() == expected.tolist()


def test_without_text_there_is_no_column_of_it(folders: dict[str, VectorShards]) -> None:
    first = folders["parquet"].folder / "vectors-00000.parquet"
    assert pq.read_schema(first).names == ["row", "vector"]


@formats
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    write = vector_files._Digesting.write

    def full(self, data) -> int:
        if self.size + memoryview(data).nbytes > 150:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(vector_files._Digesting, "write", full)
    with pytest.raises(OSError, match="No space left"):
        write_vector_file(path, blocks(0, 23), rows=23, dimension=SIZE, kind=kind)
    assert path.read_text() == "old" and visible(tmp_path) == ["file"]


def test_a_value_beyond_float16_is_refused_and_one_that_was_infinite_is_not(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"has the value 70000, which float16 cannot hold\. Choose --output_dtype float32"
    ):
        write_vector_file(tmp_path / "a", [(["가"], np.array([[1, 70_000]]))], rows=1, dimension=2, dtype="float16")
    assert visible(tmp_path) == []
    infinite = [(["가"], np.array([[1, np.inf]], dtype=np.float32))]
    write_vector_file(tmp_path / "a", infinite, rows=1, dimension=2, dtype="float16")
    assert np.load(tmp_path / "a").tolist() == [[1, np.inf]]


# --- reading --------------------------------------------------------------------------------------------------------

rows_or_none = st.none() | st.integers(-30, 30)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SUFFIXES)), rows_or_none, rows_or_none, st.sampled_from([None, 1, 2, 5, -1, -3]))
def test_slices_are_those_of_an_array(
    folders, kind: str, start: int | None, stop: int | None, step: int | None
) -> None:
    found = folders[kind][start:stop:step]
    assert np.array_equal(found, VECTORS[start:stop:step]) and found.dtype == np.float32


@formats
def test_a_folder_reads_as_one_array(kind: str, folders: dict[str, VectorShards]) -> None:
    vectors = folders[kind]
    assert (vectors.shape, len(vectors), vectors.dtype) == ((ROWS, SIZE), ROWS, np.float32)
    assert np.array_equal(np.asarray(vectors), VECTORS)
    assert np.asarray(vectors, dtype=np.float64).dtype == np.float64
    for row in (0, 6, 7, 22, -1, -23, np.int64(9)):
        assert np.array_equal(vectors[row], VECTORS[row])
    for row in (23, -24):
        with pytest.raises(IndexError, match="of 23"):
            vectors[row]
    for mine, expected in zip(nearest(VECTORS[:3], vectors, 9), nearest(VECTORS[:3], VECTORS, 9), strict=True):
        assert np.array_equal(mine, expected)


@pytest.mark.parametrize("kind", ["npy", "arrow"])
def test_rows_of_one_block_are_mapped_from_disk(kind: str, folders: dict[str, VectorShards]) -> None:
    found = folders[kind][8:10]
    assert not found.flags.owndata and not found.flags.writeable


# --- the manifest ---------------------------------------------------------------------------------------------------


def test_the_manifest_says_what_there_is(tmp_path: Path) -> None:
    folder = fill(tmp_path / "made" / "v", origin("arrow", "float16", with_text=True))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    names = [f"vectors-{n:05d}.arrow" for n in range(4)]
    assert visible(folder) == ["manifest.json", *names]
    assert manifest["complete"] is True and (manifest["rows"], manifest["dimension"]) == (23, 4)
    assert manifest["data"] == [{"path": "a.txt", "sha256": "0", "rows": 23}]
    assert [(each["file"], each["first_row"], each["rows"]) for each in manifest["shards"]] == list(
        zip(names, [0, 7, 14, 21], [7, 7, 7, 2], strict=True)
    )
    for each in manifest["shards"]:
        assert (folder / each["file"]).stat().st_size == each["bytes"]
        assert sha256_of(folder / each["file"]) == each["sha256"]
    assert open_vectors(str(folder)).dtype == np.float16


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@formats
@pytest.mark.parametrize(
    ("spoil", "fault"),
    [(Path.unlink, "is missing"), (truncate, r"has [\d,]+ bytes instead of"), (flip, "is damaged \\(its checksum")],
)
def test_a_spoilt_shard_is_found_said_and_made_again(
    kind: str, spoil: Callable[[Path], None], fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = fill(tmp_path / "v", origin(kind))
    path = folder / f"vectors-00002{SUFFIXES[kind]}"
    before, manifest = path.read_bytes(), (folder / "manifest.json").read_bytes()
    spoil(path)
    with pytest.raises(DataError, match=rf"{path.name} {fault}.*Run the encode command again"):
        open_vectors(folder, verify=True)
    with vector_folder(folder) as output:
        output.begin(origin(kind), pytest.fail, SIZE)
        assert output.missing() == [2]
        assert output.shards_done() == (3, 4)
        with pytest.raises(DataError, match="is not finished: 3 of 4 shards are there"):
            open_vectors(folder)
        output.write(2, blocks(*output.span(2)))
    assert len(caplog.messages) == 1 and path.name in caplog.text and "it is made again" in caplog.text
    assert path.read_bytes() == before and (folder / "manifest.json").read_bytes() == manifest


def test_without_verifying_sizes_are_compared(tmp_path: Path) -> None:
    folder = fill(tmp_path / "v", origin())
    flip(folder / "vectors-00001.npy")
    open_vectors(folder)
    truncate(folder / "vectors-00001.npy")
    with pytest.raises(DataError, match=r"vectors-00001\.npy is missing or truncated"):
        open_vectors(folder)


@formats
def test_a_shard_that_does_not_open_is_named(kind: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "v", origin(kind))
    vectors = open_vectors(folder)
    path = folder / f"vectors-00001{SUFFIXES[kind]}"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError, match=rf"{path.name} is damaged\. Run the encode command again"):
        vectors[8]


def test_what_is_not_a_finished_folder_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a folder of vectors: it has no manifest\.json"):
        open_vectors(tmp_path)
    with pytest.raises(DataError, match="is not finished: 2 of 4 shards are there. Run the encode command again"):
        open_vectors(fill(tmp_path / "v", origin(), shards=2))
    for content in ("{", "[]", '{"version": 2, "shards": []}', '{"version": 1}'):
        (tmp_path / "v/manifest.json").write_text(content)
        with pytest.raises(ConfigError, match=r"manifest\.json is damaged, or not a manifest of vectors"):
            open_vectors(tmp_path / "v")


# --- going on -------------------------------------------------------------------------------------------------------


def test_a_folder_goes_on_with_the_first_shard_that_is_missing(tmp_path: Path) -> None:
    folder = fill(tmp_path / "v", origin(), shards=2)
    advanced = []
    with vector_folder(folder) as output:
        output.begin(origin(), pytest.fail, SIZE)
        assert output.missing(advanced.append) == [2, 3] and advanced == [7, 7]
    fill(folder, origin())
    assert np.array_equal(open_vectors(folder, verify=True), VECTORS)


def changed(part: str, **changes) -> dict:
    made_from = origin()
    made_from[part] |= changes
    return made_from


@pytest.mark.parametrize(
    ("made_from", "words"),
    [
        (changed("options", shard_rows=8), r"shard_rows 7 \(now 8\)"),
        (changed("options", format="arrow"), r'format "npy" \(now "arrow"\)'),
        (changed("options", normalize=True), r"normalize null \(now true\)"),
        (changed("model", prompt="질문: "), r'prompt "" \(now "질문: "\)'),
        (changed("model", weights_sha256="1"), "another weights of the model"),
        (origin() | {"data": []}, r"1 data files \(now 0\)"),
        (origin() | {"data": [{"path": "b.txt", "sha256": "1"}]}, r"other data \(b\.txt is not the same file\)"),
    ],
)
def test_a_folder_of_something_else_is_left_alone(made_from: dict, words: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "v", origin(), shards=1)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match=rf"v was begun with {words}\. Name another --output, or remove the folder"):
        fill(folder, made_from)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_all_that_differs_is_said_at_once(tmp_path: Path) -> None:
    folder = fill(tmp_path / "v", origin(), shards=1)
    with pytest.raises(ConfigError, match=r"output_dtype .*; with_text false \(now true\)\. Name"):
        fill(folder, origin(dtype="float16", with_text=True))


def test_names_of_the_model_and_of_files_may_change(tmp_path: Path) -> None:
    folder = fill(tmp_path / "v", origin(), shards=1)
    fill(folder, changed("model", name="elsewhere") | {"data": [{"path": "moved.txt", "sha256": "0"}]})
    assert open_vectors(folder).manifest["complete"]


def test_places_that_are_taken_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="file is a file; name a folder"):
        fill(tmp_path / "file", origin())
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"full holds other files \(note\.txt\) and no manifest\.json"):
        fill(tmp_path / "full", origin())
    assert visible(tmp_path / "full") == ["note.txt"]
    with (
        vector_folder(tmp_path / "v") as output,
        pytest.raises(ConfigError, match="another run is writing to .*v. Wait until it has ended"),
    ):
        output.begin(origin(), lambda: [ROWS], SIZE)
        fill(tmp_path / "v", origin())
    assert fill(tmp_path / "v", origin()), "the lock outlived its run"


def test_a_refusal_before_the_first_shard_leaves_no_folder(tmp_path: Path) -> None:
    def refuse() -> list[int]:
        raise DataError("no corpus")

    with pytest.raises(DataError, match="no corpus"), vector_folder(tmp_path / "v") as output:
        output.begin(origin(), refuse, SIZE)
    assert not (tmp_path / "v").exists()


def test_what_killed_processes_left_of_own_shards_is_removed(tmp_path: Path) -> None:
    folder = fill(tmp_path / "v", origin(), shards=1)
    for name in (".vectors-00001.npy.x1", ".vectors-00002.npy.x2", ".manifest.json.x3", ".other"):
        (folder / name).write_bytes(b"half")
    with vector_folder(folder, 1, 2) as output:  # shard 2 may be in the making by process 0
        output.begin(origin(), pytest.fail, SIZE)
    assert visible(folder) == [".other", ".vectors-00002.npy.x2", "manifest.json", "vectors-00000.npy"]


@pytest.mark.parametrize("processes", [1, 2, 3, 6])
def test_shards_are_shared_out_and_the_last_one_completes_the_manifest(processes: int, tmp_path: Path) -> None:
    folder, seen = tmp_path / "v", []
    for process in reversed(range(processes)):
        with vector_folder(folder, process, processes) as output:
            output.begin(origin(), lambda: [ROWS], SIZE)
            seen += (own := output.missing())
            assert own == list(output.own_shards) == list(range(process, 4, processes))
            for shard in own:
                assert not output.manifest["complete"]
                output.write(shard, blocks(*output.span(shard)))
    assert sorted(seen) == [0, 1, 2, 3]
    assert np.array_equal(open_vectors(folder, verify=True), VECTORS)


def test_processes_that_record_shards_at_the_same_moment_lose_none(tmp_path: Path) -> None:
    """Threads stand for processes: each has a lock of its own on the manifest."""
    made_from = origin()
    made_from["options"]["shard_rows"] = 1

    def make(process: int) -> None:
        with vector_folder(tmp_path / "v", process, 4) as output:
            output.begin(made_from, lambda: [40], 4)
            for shard in output.missing():
                output.write(shard, [(["글"], np.full((1, 4), shard, dtype=np.float32))])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(make, range(4)))
    np.testing.assert_array_equal(np.asarray(open_vectors(tmp_path / "v", verify=True))[:, 0], np.arange(40))
