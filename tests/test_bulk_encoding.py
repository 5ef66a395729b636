"""Encoding a corpus to a folder: the same bytes however often it was stopped, and however many processes shared it."""

from __future__ import annotations

import errno
import gzip
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import SENTENCES, reconfigure, says
from filelock import FileLock

import simcse_hf.bulk_encoding as module
from simcse_hf import SentenceEncoder
from simcse_hf.bulk_encoding import (
    Encoded,
    ShardOptions,
    device_of_job,
    encode_to_file,
    encode_to_folder,
    process_of_job,
)
from simcse_hf.cli import main
from simcse_hf.errors import ConfigError, DataError
from simcse_hf.files import sha256_of
from simcse_hf.search import search, search_folder
from simcse_hf.vector_files import _Digesting
from simcse_hf.vector_manifest import GREATEST
from simcse_hf.vector_origin import identity_of, makers_of
from simcse_hf.vector_shards import VectorFolder, open_vectors

# Of 50 rows, in shards of 12 and blocks of 5: the last shard and the last block of each are short.
TEXTS = [f"{SENTENCES[number % 6]} {number // 6}" for number in range(50)]
OPTIONS = ShardOptions(shard_rows=12)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 5)


@pytest.fixture(scope="module")
def encoder(backbone_dir) -> SentenceEncoder:
    return SentenceEncoder.from_pretrained(str(backbone_dir()), pooler_type="avg", max_seq_length=24, device="cpu")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two files, one of them compressed; the border lies within a block."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_text("".join(f"{text}\n" for text in TEXTS[:33]), encoding="utf-8")
    (folder / "b.txt.gz").write_bytes(gzip.compress("".join(f"{text}\n" for text in TEXTS[33:]).encode(), mtime=0))
    return folder


@pytest.fixture
def encode(encoder, corpus, tmp_path) -> Callable[..., Encoded]:
    def run(name: str = "v", options: ShardOptions = OPTIONS, **settings) -> Encoded:
        return encode_to_folder(settings.pop("by", encoder), [f"{corpus}/*"], tmp_path / name, options, **settings)

    return run


def test_a_model_that_normalises_does_so_here_too(encode, encoder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(encoder, "normalize", True)
    encode()
    lengths = np.linalg.norm(np.asarray(open_vectors(tmp_path / "v")), axis=1)
    np.testing.assert_allclose(lengths, 1.0, atol=1e-5)


def test_blocks_of_another_size_are_another_encoding(encode, encoder, tmp_path, monkeypatch) -> None:
    """Batches would be composed otherwise, and vectors differ in their last bits."""
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        stop_after(encoder, patch, 4, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        encode()
    monkeypatch.setattr("simcse_hf.bulk_encoding.ROWS_AT_ONCE", 7)
    with pytest.raises(ConfigError, match="rows_at_once"):
        encode()


def test_a_single_file_of_vectors_has_rows_of_a_single_corpus_file(encoder, corpus, tmp_path) -> None:
    with pytest.raises(ConfigError, match="2 files are to be encoded.*Name a folder as --output"):
        encode_to_file(encoder, [f"{corpus}/*"], tmp_path / "v.npy")
    assert not (tmp_path / "v.npy").exists()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.endswith(".lock")}


def vectors_in_blocks(encoder: SentenceEncoder) -> np.ndarray:
    borders = sorted({*range(0, 50, 12), *(shard + block for shard in range(0, 50, 12) for block in (5, 10)), 50})
    borders = [border for border in borders if border <= 50]
    return np.concatenate([encoder.encode(TEXTS[a:b]) for a, b in zip(borders, borders[1:], strict=False)])


# --- what is written ------------------------------------------------------------------------------------------------


def test_the_vectors_are_those_of_the_encoder_row_by_row(encode, encoder, tmp_path) -> None:
    encoded = encode(model_name="tiny")
    found = np.asarray(open_vectors(tmp_path / "v", verify=True))
    assert np.array_equal(found, vectors_in_blocks(encoder)), "bit for bit within the same bounds"
    np.testing.assert_allclose(found, encoder.encode(TEXTS), atol=2e-6)
    assert (encoded.rows, encoded.dimension, encoded.rows_now, encoded.shards) == (50, 32, 50, 5)
    assert (encoded.outcome, encoded.contents) == ("written", "50 x 32 float32 in 5 shards")
    manifest = json.loads((tmp_path / "v/manifest.json").read_text(encoding="utf-8"))
    assert [entry["rows"] for entry in manifest["data"]] == [33, 17]
    assert [Path(entry["path"]).name for entry in manifest["data"]] == ["a.txt", "b.txt.gz"]
    assert [entry["sha256"] for entry in manifest["data"]] == [sha256_of(Path(e["path"])) for e in manifest["data"]]
    assert manifest["model"]["name"] == "tiny" and manifest["model"]["max_seq_length"] == 24
    assert {shard["batch_tokens"] for shard in manifest["shards"]} == {16_384} and manifest["versions"]["torch"]


@pytest.mark.parametrize(("kind", "dtype"), [("arrow", "float16"), ("parquet", "float32")])
def test_formats_hold_the_same_vectors_and_the_normalised_text(kind, dtype, encode, encoder, tmp_path) -> None:
    encode(options=ShardOptions(shard_rows=20, format=kind, output_dtype=dtype, with_text=True), normalize=True)
    vectors = open_vectors(tmp_path / "v", verify=True)
    assert vectors.dtype == dtype
    np.testing.assert_allclose(np.asarray(vectors), encoder.encode(TEXTS, normalize=True), atol=1e-3)
    second = tmp_path / f"v/vectors-00001.{kind}"
    table = pa.ipc.open_file(second).read_all() if kind == "arrow" else pa.parquet.read_table(second)
    assert table["row"].to_pylist() == list(range(20, 40)) and table["sentence"].to_pylist() == TEXTS[20:40]


def test_one_file_is_the_same_array(encoder, corpus, tmp_path) -> None:
    (tmp_path / "all.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    output = tmp_path / "new/v.npy"
    encoded = encode_to_file(encoder, [str(tmp_path / "all.txt")], output)
    np.testing.assert_allclose(np.load(output), encoder.encode(TEXTS), atol=2e-6)
    assert (encoded.outcome, encoded.contents) == ("written", "50 x 32 float32")
    encode_to_file(encoder, [str(tmp_path / "all.txt")], output, output_dtype="float16", normalize=True)
    assert np.load(output).dtype == np.float16 and np.allclose(np.linalg.norm(np.load(output), axis=1), 1, atol=1e-2)
    encode_to_file(encoder, [str(tmp_path / "all.txt")], tmp_path / "none.npy", writes=False)
    assert not (tmp_path / "none.npy").exists() and [path.name for path in output.parent.iterdir()] == ["v.npy"]
    with pytest.raises(ConfigError, match="2 files are to be encoded.*Name a folder as --output"):
        encode_to_file(encoder, [f"{corpus}/*"], output)
    with pytest.raises(ConfigError, match="new is a folder with the name of a file"):
        encode_to_file(encoder, [f"{corpus}/a*"], output.parent)


def test_no_more_than_a_block_is_asked_for_at_once(encode, encoder, monkeypatch) -> None:
    sizes = []
    original = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda texts, **more: sizes.append(len(texts)) or original(texts, **more))
    encode()
    assert sizes == [5, 5, 2] * 4 + [2]


def test_text_needs_a_format_with_columns_and_shards_need_rows() -> None:
    with pytest.raises(ConfigError, match="no place for sentences: --with_text needs --format arrow or parquet"):
        ShardOptions(with_text=True)
    with pytest.raises(ConfigError, match="shard_rows is 0; it must be at least 1"):
        ShardOptions(shard_rows=0)


def test_an_empty_line_is_named_before_anything_is_encoded(encode, corpus, tmp_path, encoder, monkeypatch) -> None:
    (corpus / "c.txt").write_text("하나\n\n", encoding="utf-8")
    monkeypatch.setattr(encoder, "encode", pytest.fail)
    with pytest.raises(DataError, match=r"c\.txt, line 2: an empty sentence"):
        encode()
    assert not (tmp_path / "v").exists()


# --- stopping and going on ------------------------------------------------------------------------------------------


def stop_after(encoder: SentenceEncoder, monkeypatch: pytest.MonkeyPatch, calls: int, act: Callable) -> None:
    """Do something instead of encoding the block after so many."""
    original, counted = SentenceEncoder.encode, []

    def encode(self, sentences, **settings):
        counted.append(len(sentences))
        return act() if len(counted) == calls + 1 else original(self, sentences, **settings)

    monkeypatch.setattr(SentenceEncoder, "encode", encode)


def test_stopped_anywhere_it_goes_on_to_the_same_bytes_and_then_there_is_nothing_to_do(
    encode, encoder, tmp_path, monkeypatch
) -> None:
    encode("whole")
    stops = 0
    for calls in (0, 4, 2, 7):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(encoder, patch, calls, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
            encode()
        stops += 1
    assert stops == 4 and 0 < len(list((tmp_path / "v").glob("vectors-*"))) < 5
    assert not list((tmp_path / "v").glob(".vectors-*")) + list((tmp_path / "v").glob(".shard-*"))
    last = encode()
    assert 0 < last.rows_now < 50 and last.outcome == "written"
    before = content(tmp_path / "v")
    assert before == content(tmp_path / "whole")
    monkeypatch.setattr(encoder, "encode", pytest.fail)
    again = encode()
    assert (again.rows_now, again.outcome) == (0, "finished before, nothing to do")
    assert content(tmp_path / "v") == before


def test_only_what_is_damaged_is_encoded_again(encode, encoder, tmp_path, monkeypatch, caplog) -> None:
    encode()
    before = content(tmp_path / "v")
    with (tmp_path / "v/vectors-00001.npy").open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"\x00\x01\x02")
    os.truncate(tmp_path / "v/vectors-00004.npy", 100)
    texts = []
    original = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda block, **more: texts.extend(block) or original(block, **more))
    assert encode().rows_now == 14
    assert texts == TEXTS[12:24] + TEXTS[48:]
    assert content(tmp_path / "v") == before
    assert "vectors-00001.npy is damaged" in caplog.text and "vectors-00004.npy has 100 bytes instead" in caplog.text


def test_other_data_models_and_options_are_refused_and_leave_the_folder(
    encode, encoder, corpus, backbone_dir, tmp_path
) -> None:
    encode()
    before = content(tmp_path / "v")

    def refused(**settings) -> str:
        with pytest.raises(ConfigError, match="was begun with .* Name another --output, or remove the folder") as error:
            encode(**settings)
        assert content(tmp_path / "v") == before
        return str(error.value)

    def load(folder: Path, **settings) -> SentenceEncoder:
        settings = {"pooler_type": "avg", "max_seq_length": 24, "device": "cpu"} | settings
        return SentenceEncoder.from_pretrained(str(folder), **settings)

    says(refused(options=ShardOptions(shard_rows=10)), "shard_rows 12 (now 10)")
    says(refused(normalize=True, batch_tokens=99), "was begun with normalize false (now true). Name")
    other = load(backbone_dir(initializer_range=0.1), max_seq_length=20, prompt="질문: ")
    says(refused(by=other), "another weights of the model", "max_seq_length 24 (now 20)", 'prompt "" (now "질문: ")')
    same_weights = Path(shutil.copytree(backbone_dir(), tmp_path / "model"))
    assert encode(by=load(same_weights), model_name="moved").rows_now == 0, "the same model in another place"
    reconfigure(same_weights, hidden_act="relu")
    says(refused(by=load(same_weights)), "another configuration of the model")
    reconfigure(same_weights, hidden_act="gelu")
    tokenizer = json.loads((same_weights / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["merges"].pop()
    (same_weights / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    says(refused(by=load(same_weights)), "another tokenizer of the model")
    (corpus / "a.txt").write_text("".join(f"{text}\n" for text in reversed(TEXTS[:33])), encoding="utf-8")
    says(refused(), "other data", "a.txt is not the same file")
    (corpus / "c.txt").write_text("하나 더\n", encoding="utf-8")
    says(refused(), "2 data files (now 3)")


def test_a_run_goes_on_with_smaller_batches_and_says_what_that_means(
    encode, encoder, tmp_path, monkeypatch, caplog
) -> None:
    def out_of_memory() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        stop_after(encoder, patch, 7, out_of_memory)
        encode()
    assert encode(batch_tokens=99).outcome == "written"
    warning = "shards made with batch_tokens 16384 (now 99): vectors may differ in their last bits"
    assert len(caplog.messages) == 1 and warning in caplog.text
    vectors = open_vectors(tmp_path / "v", verify=True)
    assert [shard["batch_tokens"] for shard in vectors.manifest["shards"]] == [16_384] * 2 + [99] * 3
    np.testing.assert_allclose(np.asarray(vectors), encoder.encode(TEXTS), atol=2e-6)
    before = content(tmp_path / "v")
    assert encode(batch_tokens=50).outcome == "finished before, nothing to do"
    assert content(tmp_path / "v") == before and len(caplog.messages) == 1


def test_shards_of_other_programs_and_machines_are_noted_and_told(
    encode, encoder, tmp_path, monkeypatch, caplog
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(encoder, patch, 4, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        encode()
    here = makers_of(encoder)
    other = {"versions": here["versions"] | {"torch": "9.9"}, "device": "cuda (H200)"}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "makers_of", lambda _: other)
        stop_after(encoder, patch, 4, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        encode()
    warning = f"shards made with device cpu (now cuda (H200)); torch {torch.__version__} (now 9.9): vectors may differ"
    assert len(caplog.messages) == 1 and warning in caplog.text
    encode()
    assert "shards made with device cuda (H200) (now cpu); torch 9.9 (now " in caplog.messages[1]
    manifest = open_vectors(tmp_path / "v", verify=True).manifest
    assert manifest["versions"] == here["versions"] and manifest["device"] == "cpu"
    noted = [{name: entry.get(name) for name in other} for entry in manifest["shards"]]
    assert noted == [dict.fromkeys(other), other, *[dict.fromkeys(other)] * 3], (
        "where it is as the manifest says, nothing"
    )
    encode()
    assert len(caplog.messages) == 2, "nothing was made"


def test_a_folder_that_was_written_before_there_were_notes_goes_on(encode, tmp_path) -> None:
    encode()
    path = tmp_path / "v/manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["device"], manifest["shards"][1:]
    manifest["complete"] = False
    manifest["data"] = [{name: entry[name] for name in ("path", "sha256", "rows")} for entry in manifest["data"]]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert encode().rows_now == 38
    vectors = open_vectors(tmp_path / "v", verify=True)
    assert [entry.get("device") for entry in vectors.manifest["shards"]] == [None] + ["cpu"] * 4
    assert all("written_ns" in entry for entry in vectors.manifest["data"])


def test_files_are_read_through_once_and_not_for_each_process(encode, encoder, corpus, tmp_path, monkeypatch) -> None:
    read = []
    monkeypatch.setattr("simcse_hf.vector_origin.sha256_of", lambda path: read.append(path.name) or sha256_of(path))
    for process in range(3):
        encode(process=process, processes=3)
    assert read == ["a.txt", "b.txt.gz"]
    search_folder(encoder, ["비가 와요."], open_vectors(tmp_path / "v"))
    assert len(read) == 2, "nor for each query"
    os.utime(corpus / "a.txt", ns=(0, 0))
    assert encode().rows_now == 0 and encode().rows_now == 0
    assert read == ["a.txt", "b.txt.gz", "a.txt"], "the time of the last change is another: read once, and noted"
    content = (corpus / "a.txt").read_bytes()
    (corpus / "a.txt").write_bytes(content.replace("비".encode(), "눈".encode(), 1))
    with pytest.raises(ConfigError, match=r"a\.txt is not the same file"):
        encode()


def test_numbers_that_no_manifest_can_hold_are_refused_before_anything_is_written(encode, tmp_path) -> None:
    with pytest.raises(ConfigError, match=f"batch_tokens is {GREATEST + 1}; it may be {GREATEST} at most"):
        encode(batch_tokens=GREATEST + 1)
    assert not (tmp_path / "v").exists()
    with pytest.raises(ConfigError, match=f"shard_rows is {GREATEST + 1}; it may be {GREATEST} at most"):
        ShardOptions(shard_rows=GREATEST + 1)
    encode(options=ShardOptions(shard_rows=GREATEST), batch_tokens=GREATEST)
    assert encode(options=ShardOptions(shard_rows=GREATEST), batch_tokens=GREATEST).rows_now == 0


def test_a_file_name_that_is_not_utf8_is_refused_before_rows_are_counted(encoder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "count_rows", pytest.fail)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / os.fsdecode("말뭉치.txt".encode("cp949"))).write_text("하나\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"\\udcb8.* is not UTF-8.*Rename the file"):
        encode_to_folder(encoder, [f"{tmp_path}/c/*"], tmp_path / "v", OPTIONS)
    assert not (tmp_path / "v").exists()


def test_what_a_killed_run_left_of_a_single_file_is_removed_and_two_runs_do_not_meet(encoder, corpus, tmp_path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    for name in (".v.npy.5be3bhdn", ".v.npy.keep", ".w.npy.5be3bhdn"):
        (made / name).write_bytes(b"half")
    encode_to_file(encoder, [str(corpus / "a.txt")], made / "v.npy")
    assert sorted(path.name for path in made.iterdir()) == [".v.npy.keep", ".w.npy.5be3bhdn", "v.npy"]
    with (
        FileLock(made / ".v.npy.lock"),
        pytest.raises(ConfigError, match=r"another run is writing to .*v\.npy\. .*remove"),
    ):
        encode_to_file(encoder, [str(corpus / "a.txt")], made / "v.npy")


def test_a_corpus_that_changes_meanwhile_stops_the_run(encode, encoder, corpus, monkeypatch) -> None:
    def change() -> np.ndarray:
        (corpus / "a.txt").write_text("".join(f"{text}!\n" for text in TEXTS[:33]), encoding="utf-8")
        return np.zeros((5, 32), dtype=np.float32)

    stop_after(encoder, monkeypatch, 3, change)
    with pytest.raises(DataError, match=r"a\.txt was changed while it was being read"):
        encode()


def test_a_full_disk_says_how_to_go_on_and_leaves_whole_shards(encode, tmp_path, monkeypatch) -> None:
    encode("whole")
    write, written = _Digesting.write, []

    def full(self, data) -> int:
        written.append(1)
        if len(written) == 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="the disk is full .*run the same command"):
        patch.setattr(_Digesting, "write", full)
        encode()
    names = {path.name for path in (tmp_path / "v").iterdir() if not path.name.endswith(".lock")}
    assert names == {"manifest.json", "vectors-00000.npy", "vectors-00001.npy"}
    assert encode().rows_now == 26
    assert content(tmp_path / "v") == content(tmp_path / "whole")


# --- processes ------------------------------------------------------------------------------------------------------


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(moment: str, count: int) -> None:
    """In a process that may be lost: be killed when something happens for the time `count`, half-way where it can be."""
    owner, name = {
        "writing a shard": (_Digesting, "write"),
        "before a shard is entered": (VectorFolder, "_record"),
        "writing the manifest": (os, "fsync"),
    }[moment]
    original, calls = getattr(owner, name), []

    def deadly(*arguments, **settings):
        calls.append(1)
        if len(calls) == count:
            if name == "write":
                original(arguments[0], bytes(arguments[1])[:70])
                arguments[0]._file.flush()
            die()
        return original(*arguments, **settings)

    setattr(owner, name, deadly)


def in_processes(functions: list[Callable[[], object]]) -> list[int]:
    """Exit codes of real processes, forked, that run at the same time."""
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=function) for function in functions]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    return [process.exitcode for process in started]


@needs_fork
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(encode, tmp_path) -> None:
    encode("whole")
    survived, leftovers = 0, 0
    for moment, counts in {
        "writing a shard": (1, 2, 4, 11),
        "before a shard is entered": (1, 3),
        "writing the manifest": (1, 3, 5, 12),  # of the manifest that begins, of notes after shards, and at the end
    }.items():
        for count in counts:
            name = f"{moment} {count}"

            def lost(moment=moment, count=count, name=name) -> None:
                die_at(moment, count)
                encode(name)

            assert in_processes([lost]) == [-signal.SIGKILL], name
            hidden = [path for path in (tmp_path / name).glob(".*.*") if not path.name.endswith(".lock")]
            leftovers += len(hidden)
            for path in (tmp_path / name).glob("vectors-*"):
                assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes(), "a shard is not whole"
            encode(name)
            assert content(tmp_path / name) == content(tmp_path / "whole"), name
            survived += 1
    assert survived == 10 and leftovers >= 7, "nothing was half-written when it was killed: the test would be vacuous"


@needs_fork
def test_two_processes_make_what_one_makes_and_a_lost_one_loses_only_its_shards(encode, tmp_path) -> None:
    encode("whole")
    shares = [lambda process=process: encode(process=process, processes=2) for process in range(2)]
    assert in_processes(shares) == [0, 0]
    assert content(tmp_path / "v") == content(tmp_path / "whole")

    def lost() -> None:
        die_at("writing a shard", 6)  # the second of its block in shard 3
        encode("w", process=1, processes=2)

    assert in_processes([lambda: encode("w", process=0, processes=2), lost]) == [0, -signal.SIGKILL]
    made = {path.name for path in (tmp_path / "w").glob("vectors-*")}
    assert made == {f"vectors-0000{shard}.npy" for shard in (0, 1, 2, 4)}
    with pytest.raises(DataError, match="4 of 5 shards are there"):
        open_vectors(tmp_path / "w")
    assert encode("w").rows_now == 12, "one process alone goes on with what two began"
    assert content(tmp_path / "w") == content(tmp_path / "whole")


def test_a_process_that_ends_before_the_others_says_so(encode) -> None:
    assert encode(process=1, processes=2).outcome == "this process is done, and 3 shards of others are not there yet"
    assert encode(process=0, processes=2).outcome == "written"
    assert encode(process=7, processes=8).outcome == "finished before, nothing to do"


def test_which_process_this_is_comes_from_the_launcher(monkeypatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert process_of_job() == (2, 3)
    for rank, size in (("3", "3"), ("-1", "3"), ("x", "3"), ("0", "")):
        with pytest.raises(ConfigError, match=f"RANK={rank} and WORLD_SIZE={size}"):
            process_of_job({"RANK": rank, "WORLD_SIZE": size})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert device_of_job(1, {"LOCAL_RANK": "2"}) is None
    assert [device_of_job(8, {"LOCAL_RANK": rank}) for rank in "36"] == ["cuda:3", "cuda:2"]


def test_the_identity_of_an_encoder_does_not_change_with_use(encoder, backbone_dir) -> None:
    before = identity_of(encoder)
    encoder.encode(TEXTS)
    encoder.encode(TEXTS * 2, batch_tokens=100)
    assert identity_of(encoder) == before and json.dumps(before)
    half = SentenceEncoder.from_pretrained(str(backbone_dir()), pooler_type="avg", dtype=torch.bfloat16, device="cpu")
    assert identity_of(half)["weights_sha256"] != before["weights_sha256"]


# --- search over a folder -------------------------------------------------------------------------------------------


def test_search_over_a_folder_finds_what_search_finds(encode, encoder, corpus, backbone_dir, tmp_path) -> None:
    encode(options=ShardOptions(shard_rows=12, format="arrow"))
    vectors, queries = open_vectors(tmp_path / "v"), ["비가 와요.", TEXTS[40]]
    found = search_folder(encoder, queries, vectors, [f"{corpus}/*"], top_k=7)
    for hits, expected in zip(found, search(encoder, queries, TEXTS, top_k=7), strict=True):
        assert [(hit.sentence, hit.index) for hit in hits] == [(hit.sentence, hit.index) for hit in expected]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-5)
    with pytest.raises(DataError, match=r"holds the vectors of other files \(.*b\.txt"):
        search_folder(encoder, queries, vectors, [f"{corpus}/a.txt"])
    other = SentenceEncoder.from_pretrained(str(backbone_dir()), pooler_type="max", max_seq_length=24, device="cpu")
    with pytest.raises(ValueError, match="other settings of it .*; pooler_type differ"):
        search_folder(other, queries, vectors, [f"{corpus}/*"])


def test_queries_may_have_another_prompt_and_length_than_the_corpus(encode, encoder, backbone_dir, tmp_path) -> None:
    encode()
    settings = {"pooler_type": "avg", "max_seq_length": 20, "prompt": "질문: ", "device": "cpu"}
    asking = SentenceEncoder.from_pretrained(str(backbone_dir()), **settings)
    ((best, *_),) = search_folder(asking, ["비가 와요."], open_vectors(tmp_path / "v"), top_k=3)
    cosines = encoder.encode(TEXTS, normalize=True) @ asking.encode(["비가 와요."], normalize=True)[0]
    assert best.score == pytest.approx(cosines.max(), abs=1e-5) and best.sentence == TEXTS[best.index]
    assert cosines[best.index] == pytest.approx(cosines.max(), abs=1e-6)


def test_the_files_of_a_folder_are_known_by_their_content(encode, encoder, corpus, tmp_path) -> None:
    encode()
    vectors, asking = open_vectors(tmp_path / "v"), [TEXTS[40]]
    (expected,) = search_folder(encoder, asking, vectors, [f"{corpus}/*"])
    assert expected[0].index == 40 and expected[0].sentence == TEXTS[40]
    assert search_folder(encoder, asking, vectors) == [expected], "where they lay"
    (corpus / "a.txt").rename(corpus / "z.txt")
    assert search_folder(encoder, asking, vectors, [f"{corpus}/*"]) == [expected], "in another order"
    with pytest.raises(DataError, match=r"a\.txt, which .*v was made from, is not there .*Say with --corpus where"):
        search_folder(encoder, asking, vectors)
    (corpus / "more.txt").write_text("하나\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"other files \(2, among them .*Name all of those and no others"):
        search_folder(encoder, asking, vectors, [f"{corpus}/*"])
    (corpus / "a.txt").write_text("하나\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"holds the vectors of other files \(2, among them .*a\.txt"):
        search_folder(encoder, asking, vectors)


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_where_the_sentences_are_stored_the_files_are_not_needed(kind, encode, encoder, corpus, tmp_path) -> None:
    encode(options=ShardOptions(shard_rows=12, format=kind, with_text=True))
    vectors = open_vectors(tmp_path / "v")
    (expected,) = search_folder(encoder, [TEXTS[40]], vectors, [f"{corpus}/*"], top_k=9)
    shutil.rmtree(corpus)
    assert search_folder(encoder, [TEXTS[40]], vectors, top_k=9) == [expected]
    assert all(hit.sentence == TEXTS[hit.index] for hit in expected)
    with pytest.raises(DataError, match="there is no data file|matches no file"):
        search_folder(encoder, [TEXTS[40]], vectors, [f"{corpus}/*"])


def test_a_file_named_like_a_glob_is_found_again(encoder, tmp_path) -> None:
    (tmp_path / "corpus[1].txt").write_text("".join(f"{text}\n" for text in TEXTS[:9]), encoding="utf-8")
    encode_to_folder(encoder, [str(tmp_path / "corpus[[]1].txt")], tmp_path / "v", OPTIONS)
    ((best, *_),) = search_folder(encoder, [TEXTS[4]], open_vectors(tmp_path / "v"))
    assert (best.index, best.sentence) == (4, TEXTS[4])


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(corpus, backbone_dir, tmp_path) -> list[str]:
    model = ["--model", str(backbone_dir()), "--pooler_type", "avg", "--max_seq_length", "24", "--device", "cpu"]
    return [
        "encode",
        str(corpus / "a.txt"),
        str(corpus / "b*"),
        *model,
        "--shard_rows",
        "12",
        "--output",
        str(tmp_path / "c"),
    ]


def test_the_command_writes_goes_on_after_a_signal_and_says_what_it_did(
    command, encode, encoder, tmp_path, capsys, monkeypatch
) -> None:
    encode("whole")
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with monkeypatch.context() as patch:
            stop_after(encoder, patch, 4, lambda number=number: os.kill(os.getpid(), number))
            assert main(command) == code
        output = capsys.readouterr()
        says(output.err, "error: interrupted. Shards already written are whole; the same command goes on")
        assert "written" not in output.out and not list((tmp_path / "c").glob(".vectors*"))
    assert main(command) == 0
    assert capsys.readouterr().out == f"written: {tmp_path / 'c'}, 50 x 32 float32 in 5 shards\n"
    assert main(command) == 0
    assert capsys.readouterr().out == f"finished before, nothing to do: {tmp_path / 'c'}, 50 x 32 float32 in 5 shards\n"
    mine, whole = content(tmp_path / "c"), content(tmp_path / "whole")
    assert {name for name in mine if mine[name] != whole[name]} == {"manifest.json"}, "only the model's name differs"


def test_an_interrupted_single_file_leaves_nothing_and_says_so(command, encoder, tmp_path, capsys, monkeypatch) -> None:
    to_file = [part for part in command[:-1] if part not in ("--shard_rows", "12") and not part.endswith("b*")]
    to_file[-1] = f"--output={tmp_path / 'v.npy'}"
    with monkeypatch.context() as patch:
        stop_after(encoder, patch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert main(to_file) == 130
    assert capsys.readouterr().err == "error: interrupted; nothing half-written was left.\n"

    def full(*_) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_Digesting, "write", full)
    assert main(to_file) == 2
    says(
        capsys.readouterr().err,
        "error: the disk is full. Nothing half-written was left. Free space and run the command",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_search_takes_the_folder_with_its_files_or_without(command, corpus, tmp_path, capsys, refused) -> None:
    assert main(command) == 0
    searching = ["search", TEXTS[40], *command[3:9], "--top_k", "4", "--json"]
    folder, found = ["--vectors", str(tmp_path / "c")], []
    for more in ([], ["--corpus", str(corpus / "b.txt.gz"), "--corpus", str(corpus / "a.txt")]):
        capsys.readouterr()
        assert main([*searching, *folder, *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1] and found[0][0]["results"][0]["line"] == 41
    says(refused(searching), "--corpus FILE is missing, or --vectors DIR")
    says(refused([*searching, *more]), "2 files are given as --corpus; without --vectors it is one")


def test_search_takes_the_folder_with_its_file(command, tmp_path, capsys) -> None:
    one_file = [part for part in command if not part.endswith("b*")]
    assert main(one_file) == 0
    corpus, model = one_file[1], one_file[2:8]
    searching = ["search", "비가 와요.", *model, "--corpus", corpus, "--top_k", "4", "--json"]
    found = []
    for more in ([], ["--vectors", str(tmp_path / "c")]):
        capsys.readouterr()
        assert main([*searching, *more]) == 0
        found.append(json.loads(capsys.readouterr().out)[0]["results"])
    assert [hit["line"] for hit in found[0]] == [hit["line"] for hit in found[1]] and len(found[1]) == 4


def test_what_is_wrong_with_files_and_folders_is_found_before_the_model(
    command, refused, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("simcse_hf.cli._load_encoder", lambda _: pytest.fail("too late"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/note.txt").write_text("mine")
    says(refused([*command[:-1], tmp_path / "mine"]), "holds other files (note.txt)")
    says(refused([*command[:-1], tmp_path / "v.parquet"]), "would be a folder with the name of a file")
    says(refused(["encode", tmp_path / "none.txt", *command[2:]]), "none.txt")
    to_file = ["encode", command[1], *command[3:9], "--output", tmp_path / "v.npy"]
    says(refused(["encode", tmp_path / "none.txt", *to_file[2:]]), "none.txt")
    says(refused(["encode", command[1], command[2], *to_file[2:]]), "2 files are to be encoded")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    says(refused(to_file), "WORLD_SIZE=2", "do not know each other", "torchrun", "name a folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "mine"]


def test_torchrun_shares_a_single_file_also_where_there_is_no_gpu(command, tmp_path) -> None:
    to_file = ["encode", command[1], *command[3:7], "--output", str(tmp_path / "v.npy"), "--format", "npy"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    started = [*torchrun, "--no-python", str(Path(sys.executable).with_name("simcse-hf")), *to_file]
    done = subprocess.run(
        started, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0 and done.stdout.count("written: ") == 1, done.stderr[-2000:]
    assert main([*to_file[:-4], "--output", str(tmp_path / "one.npy")]) == 0
    assert np.allclose(np.load(tmp_path / "v.npy"), np.load(tmp_path / "one.npy"), atol=1e-6)


def test_flags_that_do_not_go_together_are_one_line(command, refused, tmp_path, monkeypatch) -> None:
    to_file = [*command[:-1], str(tmp_path / "v.npy")]
    says(refused(to_file), "--shard_rows is for a folder of shards", "v.npy names a single file")
    without = [part for part in to_file if part not in ("--shard_rows", "12")]
    says(refused(without), "2 files are to be encoded", "Name a folder")
    says(refused([*command, "--with_text"]), "--with_text needs --format arrow or parquet")
    monkeypatch.setenv("RANK", "first")
    says(refused(command), "RANK=first")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus"]
