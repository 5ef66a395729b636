"""Vectors in files and folders: what is read is what was written, and what is not whole is said."""

from __future__ import annotations

import errno
import json
import pickle
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock, Timeout
from hypothesis import given, settings
from hypothesis import strategies as st

import simcse_hf.vector_files as vector_files
import simcse_hf.vector_shards as vector_shards
from simcse_hf.errors import ConfigError, DataError, ModelError
from simcse_hf.files import sha256_of
from simcse_hf.search import nearest
from simcse_hf.vector_files import SUFFIXES, write_vector_file
from simcse_hf.vector_manifest import GREATEST, read_manifest, write_manifest
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


def test_a_value_beyond_float16_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"has the value 70000, which float16 cannot hold\. Choose --output_dtype float32"
    ):
        write_vector_file(tmp_path / "a", [(["가"], np.array([[1, 70_000]]))], rows=1, dimension=2, dtype="float16")
    assert visible(tmp_path) == []


@formats
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_that_are_not_finite_are_refused_with_their_row(
    kind: str, value: float, dtype: str, tmp_path: Path
) -> None:
    """A search would find a NaN before everything else."""
    spoilt = VECTORS.copy()
    spoilt[7, 2] = value
    parts = [(TEXTS[start : start + 3], spoilt[start : start + 3]) for start in range(2, 11, 3)]
    with pytest.raises(ModelError, match=r"row 108 \('문장 7'\) has values that are not finite\. .*--dtype float32"):
        write_vector_file(tmp_path / "a", parts, rows=9, dimension=SIZE, dtype=dtype, kind=kind, first_row=102)
    assert visible(tmp_path) == []


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


@formats
def test_a_pickled_folder_reads_the_same(kind: str, folders: dict[str, VectorShards]) -> None:
    """As workers of a loader get it that are spawned."""
    folders[kind][3]  # something is open
    assert np.array_equal(pickle.loads(pickle.dumps(folders[kind]))[5:9], VECTORS[5:9])


def test_a_row_is_found_without_a_walk_over_all_shards(folders: dict[str, VectorShards]) -> None:
    vectors = pickle.loads(pickle.dumps(folders["npy"]))

    class Counted(list):
        looked_at = 0

        def __getitem__(self, place):
            Counted.looked_at += 1
            return super().__getitem__(place)

        def __iter__(self):
            raise AssertionError("it walks over all shards")

    vectors._starts = Counted(shard * SHARD_ROWS for shard in range(4_000))
    assert np.array_equal(vectors[8], VECTORS[8])
    assert Counted.looked_at < 30


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_stored_sentences_are_read_by_row(kind: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "v", origin(kind, with_text=True))
    vectors = open_vectors(folder)
    assert vectors.has_sentences and [vectors.sentence(row) for row in range(ROWS)] == TEXTS
    path = folder / f"vectors-00001.{kind}"
    table = pa.ipc.open_file(path).read_all() if kind == "arrow" else pq.read_table(path)
    for spoilt in (table.drop_columns("sentence"), table.slice(1)):
        path.unlink()
        if kind == "arrow":
            with pa.ipc.new_file(str(path), spoilt.schema) as writer:
                writer.write_table(spoilt)
        else:
            pq.write_table(spoilt, path)
        again = VectorShards(folder, vectors.manifest)
        assert again.sentence(0) == TEXTS[0]
        with pytest.raises(DataError, match=r"vectors-00001.* is damaged\. Run the encode command again"):
            again.sentence(8)


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


DELETED = "(deleted)"
# Place in the manifest, what is put there, and what is said of it.
SPOILT = [
    (("version",), 2, "its version is 2, and this program reads 1"),
    (("version",), True, "version is true"),
    (("complete",), DELETED, "complete is missing"),
    (("complete",), 1, "complete is 1"),
    (("complete",), False, "it names 4 of 4 shards, and complete is false"),
    (("rows",), "23", 'rows is "23"'),
    (("rows",), True, "rows is true"),
    (("rows",), 24, "it says 24 rows, and its data have 23"),
    (("rows",), 1 << 49, "rows is 5"),
    (("dimension",), 0, "dimension is 0"),
    (("model",), [], r"model is \[\]"),
    (("model", "name"), DELETED, r"model\.name is missing"),
    (("options",), DELETED, "options is missing"),
    (("options", "shard_rows"), 0, r"options\.shard_rows is 0"),
    (("options", "with_text"), None, r"options\.with_text is null"),
    (("options", "format"), "pickle", r'options\.format is "pickle", not one of npy, arrow, parquet'),
    (("options", "output_dtype"), [], r"options\.output_dtype is \[\]"),
    (("options", "more"), [[[[[[[[1]]]]]]]], "brackets are nested too deeply"),
    (("data",), {}, r"data is \{\}"),
    (("data", 0, "path"), "\ud800", "it is not UTF-8"),
    (("data", 0), "a.txt", r"data\[0\] is no object"),
    (("data", 0, "path"), 1, r"data\[0\]\.path is 1"),
    (("data", 0, "sha256"), DELETED, r"data\[0\]\.sha256 is missing"),
    (("data", 0, "rows"), -23, r"data\[0\]\.rows is -23"),
    (("shards",), [], "it names 0 of 4 shards, and complete is true"),
    (("shards", 1), 1, r"shards\[1\] is no object"),
    (
        ("shards", 1, "file"),
        "../secret.npy",
        r'shards\[1\]\.file is "\.\./secret\.npy" instead of "vectors-00001\.npy"',
    ),
    (("shards", 1, "rows"), 8, r"shards\[1\]\.rows is 8 instead of 7"),
    (("shards", 3, "rows"), 7, r"shards\[3\]\.rows is 7 instead of 2"),
    (("shards", 1, "first_row"), 0, r"shards\[1\] begins at row 0, where no further shard begins"),
    (("shards", 1, "first_row"), 8, r"shards\[1\] begins at row 8, where"),
    (("shards", 3, "first_row"), 28, r"shards\[3\] begins at row 28, where"),
    (("shards", 1, "bytes"), 1.5, r"shards\[1\]\.bytes is 1\.5"),
    (("shards", 1, "sha256"), None, r"shards\[1\]\.sha256 is null"),
    (("shards", 1, "batch_tokens"), "1", r'shards\[1\]\.batch_tokens is "1"'),
]


@pytest.mark.parametrize(("place", "value", "fault"), SPOILT, ids=[f"{place}-{value}" for place, value, _ in SPOILT])
def test_a_manifest_that_was_tampered_with_is_refused_by_readers_and_writers(
    place: tuple, value: object, fault: str, tmp_path: Path
) -> None:
    folder = fill(tmp_path / "v", origin())
    np.save(tmp_path / "secret.npy", VECTORS[:7])
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    holder = manifest
    for name in place[:-1]:
        holder = holder[name]
    if value is DELETED:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    for use in (lambda: open_vectors(folder), lambda: fill(folder, origin())):
        with pytest.raises(
            ConfigError, match=rf"manifest\.json is damaged, or not a manifest of vectors: {fault}"
        ) as error:
            use()
        assert "Name another --output, or remove the folder" in str(error.value)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"{", "line 1 is not JSON"),
        (b"[]", "it is no object"),
        (b"\xff", "it is not UTF-8"),
        (b"[" * 100_000, "brackets are nested too deeply"),
        (b'{"version": ' + b"9" * 5000 + b"}", "a number of too many digits"),
    ],
)
def test_what_is_no_manifest_is_refused(content: bytes, fault: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ConfigError, match=f"manifest\\.json is damaged, or not a manifest of vectors: .*{fault}"):
        open_vectors(tmp_path)


# --- notes of shards ----------------------------------------------------------------------------------------------------


def killed(folder: Path, *, shards: int) -> Path:
    """A folder as a killed process leaves it: shards that only their notes name."""
    with vector_folder(folder) as output:
        output.begin(origin(), lambda: [ROWS], SIZE)
        for shard in range(shards):
            output.write(shard, blocks(*output.span(shard)))
        output._noted = False
    assert json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["shards"] == []
    assert [name for name in visible(folder) if name[0] == "."] == [f".shard-{n:05d}.json" for n in range(shards)]
    return folder


def test_a_shard_is_recorded_without_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which names all shards, so that to write it for each of n would take n * n lines."""
    with vector_folder(tmp_path / "v") as output:
        output.begin(origin(), lambda: [ROWS], SIZE)
        with monkeypatch.context() as patch:
            for name in ("read_manifest", "write_manifest", "waiting_for"):
                patch.setattr(f"simcse_hf.vector_shards.{name}", pytest.fail)
            for shard in output.missing():
                output.write(shard, blocks(*output.span(shard)))
        assert output.shards_done() == (4, 4)
    assert [name for name in visible(tmp_path / "v") if name[0] == "."] == []
    assert np.array_equal(open_vectors(tmp_path / "v", verify=True), VECTORS)


def test_what_a_killed_process_noted_is_there(tmp_path: Path) -> None:
    whole = fill(tmp_path / "whole", origin())
    with pytest.raises(DataError, match="is not finished: 2 of 4 shards are there"):
        open_vectors(killed(tmp_path / "v", shards=2))
    with vector_folder(tmp_path / "v") as output:
        output.begin(origin(), pytest.fail, SIZE)
        assert output.missing() == [2, 3]
    fill(tmp_path / "v", origin())
    assert visible(tmp_path / "v") == visible(whole)
    assert (tmp_path / "v/manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()


def test_a_folder_that_only_lacks_the_last_manifest_is_finished(tmp_path: Path) -> None:
    folder = killed(tmp_path / "v", shards=4)
    assert np.array_equal(open_vectors(folder, verify=True), VECTORS)
    with vector_folder(folder, 1, 2) as output:
        output.begin(origin(), pytest.fail, SIZE)
        assert output.missing() == [] and output.shards_done() == (4, 4)
    assert not [name for name in visible(folder) if name[0] == "."]


@pytest.mark.parametrize(
    "change",
    [
        lambda note: "{",
        lambda note: "[" * 5000,
        lambda note: json.dumps([note]),
        lambda note: json.dumps(note | {"file": "../secret.npy"}),
        lambda note: json.dumps(note | {"first_row": 0}),
        lambda note: json.dumps(note | {"rows": True}),
        lambda note: json.dumps(note | {"sha256": None}),
        lambda note: json.dumps(note | {"device": 1}),
        lambda note: json.dumps(note | {"versions": {"torch": 2}}),
        lambda note: json.dumps(note | {"more": "\ud800"}),
        lambda note: json.dumps(note | {"first_row": 7 * 10**9, "rows": 7}),
    ],
)
def test_a_note_of_something_else_is_no_shard(change: Callable[[dict], str], tmp_path: Path) -> None:
    folder = killed(tmp_path / "v", shards=3)
    note = folder / ".shard-00001.json"
    note.write_text(change(json.loads(note.read_text(encoding="utf-8"))), encoding="utf-8")
    with pytest.raises(DataError, match="is not finished: 2 of 4 shards are there"):
        open_vectors(folder)
    fill(folder, origin())
    assert np.array_equal(open_vectors(folder, verify=True), VECTORS)
    assert not [name for name in visible(folder) if name[0] == "."]


def test_notes_do_not_outlive_their_manifest(tmp_path: Path) -> None:
    folder = killed(tmp_path / "v", shards=4)
    for path in (folder / "manifest.json", *folder.glob("vectors-*")):
        path.unlink()
    with vector_folder(folder) as output:
        output.begin(origin(), lambda: [ROWS], SIZE)
        assert output.shards_done() == (0, 4)


def test_damaged_shards_are_struck_in_one_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, written = fill(tmp_path / "v", origin()), []
    for path in folder.glob("vectors-*"):
        path.unlink()
    original = vector_shards.write_manifest
    monkeypatch.setattr(vector_shards, "write_manifest", lambda *parts: written.append(1) or original(*parts))
    with vector_folder(folder) as output:
        output.begin(origin(), pytest.fail, SIZE)
        assert output.missing() == [0, 1, 2, 3]
    assert len(written) == 1
    with pytest.raises(DataError, match="0 of 4 shards"):
        open_vectors(folder)


def test_no_manifest_is_written_that_could_not_be_read(tmp_path: Path) -> None:
    folder = fill(tmp_path / "v", origin())
    before = (folder / "manifest.json").read_bytes()
    manifest = json.loads(before)
    manifest["shards"][1]["batch_tokens"] = GREATEST + 1
    with pytest.raises(ConfigError, match=r"manifest\.json cannot be written: shards\[1\]\.batch_tokens is"):
        write_manifest(folder, manifest)
    assert (folder / "manifest.json").read_bytes() == before
    manifest["shards"][1]["batch_tokens"] = GREATEST
    write_manifest(folder, manifest)
    assert read_manifest(folder) == manifest


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
        (changed("options", batch_tokens=9, normalize=True), r"normalize null \(now true\)"),
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


def test_names_of_files_are_refused_for_folders(tmp_path: Path) -> None:
    for name, cure in (
        ("v.parquet", "Write --format parquet --output DIR"),
        ("v.Arrow", "Write --format arrow --output DIR"),
        ("v.NPY", r"write \.npy in small letters"),
    ):
        with pytest.raises(ConfigError, match=rf"{name} would be a folder with the name of a file\. .*{cure}"):
            fill(tmp_path / name, origin())
    assert not list(tmp_path.iterdir())
    (tmp_path / "v.parquet").mkdir()
    assert visible(fill(tmp_path / "v.parquet", origin("parquet")))[0] == "manifest.json", "it is there already"


@pytest.mark.parametrize("processes", [1, 3])
def test_a_job_of_another_size_is_refused_while_one_process_still_writes(processes: int, tmp_path: Path) -> None:
    """The first of two processes has ended; the second is half-way through its shard when somebody starts again."""
    folder = tmp_path / "v"
    with vector_folder(folder, 0, 2) as output:
        output.begin(origin(), lambda: [ROWS], SIZE)
    refusals = []

    def half_way(start: int, stop: int):
        yield from blocks(start, start + 3)
        for process in range(processes):
            with (
                pytest.raises(ConfigError, match="another run is writing to .*v. Wait until it has ended") as refusal,
                vector_folder(folder, process, processes),
            ):
                pass
            refusals.append(refusal)
        yield from blocks(start + 3, stop)

    with vector_folder(folder, 1, 2) as output:
        output.begin(origin(), pytest.fail, SIZE)
        output.write(1, half_way(*output.span(1)))
        with vector_folder(folder, 0, 2) as sibling:  # of the same number: its shards are others
            sibling.begin(origin(), pytest.fail, SIZE)
            assert sibling.missing() == [0, 2]
    assert len(refusals) == processes
    with vector_folder(folder, 0, processes) as output:
        output.begin(origin(), pytest.fail, SIZE)
        assert 1 not in output.missing()
    fill(folder, origin())
    assert np.array_equal(open_vectors(folder, verify=True), VECTORS)


def test_a_refused_job_keeps_no_lock(tmp_path: Path) -> None:
    with vector_folder(tmp_path / "v", 1, 2) as output:
        output.begin(origin(), lambda: [ROWS], SIZE)
        with pytest.raises(ConfigError, match="another run"), vector_folder(tmp_path / "v"):
            pass
        with vector_folder(tmp_path / "v", 0, 2):
            pass


def test_who_made_the_folder_does_not_remove_it_under_others(tmp_path: Path) -> None:
    """Process 0 is stopped while process 1 counts rows."""
    folder, first = tmp_path / "v", vector_folder(tmp_path / "v", 0, 2)
    first.__enter__()

    def count() -> list[int]:
        assert not first.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        with pytest.raises(ConfigError, match="another run"), vector_folder(folder):
            pytest.fail("the lock of process 1 went with the folder")
        with pytest.raises(Timeout):
            FileLock(folder / ".manifest.lock").acquire(timeout=0)
        return [ROWS]

    with vector_folder(folder, 1, 2) as output:
        output.begin(origin(), count, SIZE)
        for shard in output.missing():
            output.write(shard, blocks(*output.span(shard)))
        assert output.shards_done() == (2, 4)
    fill(folder, origin())
    assert np.array_equal(open_vectors(folder, verify=True), VECTORS)


def test_a_file_of_somebody_else_keeps_the_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), vector_folder(tmp_path / "v"):
        (tmp_path / "v/note.txt").write_text("mine")
        raise KeyboardInterrupt
    assert visible(tmp_path / "v") == ["note.txt"]


def test_a_refusal_before_the_first_shard_leaves_no_folder(tmp_path: Path) -> None:
    def refuse() -> list[int]:
        raise DataError("no corpus")

    with pytest.raises(DataError, match="no corpus"), vector_folder(tmp_path / "v") as output:
        output.begin(origin(), refuse, SIZE)
    assert not (tmp_path / "v").exists()


def test_a_folder_that_a_refused_process_removes_under_another_is_made_again(tmp_path: Path) -> None:
    """All are refused, at the same time, and each for its reason. (Once in hundreds of times an empty folder stays.)"""

    def refuse() -> list[int]:
        raise DataError("no corpus")

    def attempt(process: int) -> list[str]:
        reasons = []
        for _ in range(25):
            try:
                with vector_folder(tmp_path / "v", process, 4) as output:
                    output.begin(origin(), refuse, SIZE)
            except Exception as error:
                reasons.append(f"{type(error).__name__}: {error}")
        return reasons

    with ThreadPoolExecutor(4) as pool:
        found = [reason for reasons in pool.map(attempt, range(4)) for reason in reasons]
    assert found == ["DataError: no corpus"] * 100
    assert not (tmp_path / "v").exists() or visible(tmp_path / "v") == []


def test_the_last_of_a_refused_job_removes_the_folder_that_the_first_made(tmp_path: Path) -> None:
    first, second = vector_folder(tmp_path / "v", 0, 2), vector_folder(tmp_path / "v", 1, 2)
    first.__enter__()
    second.__enter__()
    for process in (first, second):
        assert (tmp_path / "v").exists()
        assert not process.__exit__(DataError, DataError("no corpus"), None)
    assert not (tmp_path / "v").exists()


def test_an_empty_folder_of_the_user_stays_when_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    with pytest.raises(DataError), vector_folder(tmp_path / "v"):
        raise DataError("no corpus")
    assert (tmp_path / "v").is_dir()


def test_what_killed_processes_left_of_own_shards_is_removed(tmp_path: Path) -> None:
    folder = fill(tmp_path / "v", origin(), shards=1)
    of_notes = ("..shard-00001.json.x4", "..shard-00002.json.x5")
    for name in (".vectors-00001.npy.x1", ".vectors-00002.npy.x2", ".manifest.json.x3", ".other", *of_notes):
        (folder / name).write_bytes(b"half")
    with vector_folder(folder, 1, 2) as output:  # shard 2 may be in the making by process 0
        output.begin(origin(), pytest.fail, SIZE)
    left = ["..shard-00002.json.x5", ".other", ".vectors-00002.npy.x2", "manifest.json", "vectors-00000.npy"]
    assert visible(folder) == left


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
