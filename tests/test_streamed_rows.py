"""A stream: every row once in a pass, in an order that the seed fixes and the number of processes does not change."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import tempfile
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderDispatcher, prepare_data_loader, skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from simcse_hf import streamed_rows
from simcse_hf.collators import ViewsCollator
from simcse_hf.corpora import training_views
from simcse_hf.errors import DataError, TrainingError
from simcse_hf.row_report import RowReport
from simcse_hf.sentence_store import BatchTokeniser, SentenceStore, TokenCounts
from simcse_hf.streamed_rows import RowStream, StreamedFile, StreamedRows, sentence_id, shuffled
from simcse_hf.tables import read_table, source_of
from simcse_hf.training_corpus import Reading


def text_file(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def stream_of(paths, *, shuffle_buffer: int = 7, watch=None, **reading) -> RowStream:
    files = [
        StreamedFile(path=path, source=source_of(path), size=path.stat().st_size, modified=path.stat().st_mtime_ns)
        for path in paths
    ]
    return RowStream(files, Reading(**reading), shuffle_buffer=shuffle_buffer, watch=watch)


def dataset_of(stream: RowStream, tokenizer, *, global_batch: int, seed: int = 3, shape="sentences") -> StreamedRows:
    dataset = StreamedRows(
        stream=stream,
        shape=shape,
        tokenise=BatchTokeniser(tokenizer, max_length=12),
        counts=TokenCounts(tokenizer, 12),
        store=SentenceStore.build(["네."], tokenizer, max_length=12),
    )
    dataset.seed, dataset.global_batch = seed, global_batch
    return dataset


@pytest.fixture
def three_files(tmp_path) -> list[Path]:
    return [
        text_file(tmp_path / f"{n}.txt", [f"파일 {n} 문장 {i}" for i in range(rows)])
        for n, rows in enumerate((5, 17, 30))
    ]


def texts(rows) -> list[str]:
    return [views[0] for views, _ in rows]


# What is read


ROWS = [{"anchor": f"문장 {n}", "positive": f"같은 문장 {n}", "negative": f"다른 문장 {n}"} for n in range(9)]


def written(folder: Path, rows: list[dict], name: str) -> Path:
    path = folder / name
    columns = list(rows[0])
    lines = {
        "tsv": ["\t".join(columns), *("\t".join(map(str, row.values())) for row in rows)],
        "csv": [",".join(columns), *(",".join(map(str, row.values())) for row in rows)],
        "jsonl": [json.dumps(row, ensure_ascii=False) for row in rows],
        "json": [json.dumps(rows, ensure_ascii=False)],
    }
    kind = name.split(".")[1]
    if kind == "parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
        return path
    content = "".join(f"{line}\n" for line in lines[kind]).encode()
    packed = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}.get(path.suffix, bytes)
    path.write_bytes(packed(content))
    return path


@pytest.mark.parametrize(
    "names",
    [
        ["a.tsv", "b.csv", "c.jsonl"],
        ["a.json", "b.parquet"],
        ["a.tsv.gz", "b.jsonl.xz", "c.csv.bz2"],
    ],
)
@pytest.mark.parametrize("views", [1, 2, 3])
def test_a_pass_holds_every_row_of_every_format_and_shape_once(tmp_path, names, views):
    columns = ["anchor", "positive", "negative"][:views]
    rows = [{column if views > 1 else "text": row[column] for column in columns} for row in ROWS]
    parts = [rows[n :: len(names)] for n in range(len(names))]
    paths = [written(tmp_path, part, name) for part, name in zip(parts, names, strict=True)]
    report = RowReport()
    expected = training_views([read_table(path, report) for path in paths], report, deduplicate=False)
    stream = stream_of(paths)
    found = list(stream.one_pass(seed=1))
    assert Counter(row for row, _ in found) == Counter(expected.rows) and len(found) == 9
    assert {value for _, value in found} == {None}
    assert stream.report.as_dict() == report.as_dict() and stream.passes == 1
    assert [file.source["rows"] for file in stream.files] == [len(part) for part in parts]


def test_labels_and_scores_come_with_their_rows(tmp_path, tokenizer):
    scored = text_file(tmp_path / "s.tsv", ["sentence1\tsentence2\tscore", "가\t나\t0", "다\t라\t5", "마\t바\t2.5"])
    stream = stream_of([scored], train_as="scores")
    assert sorted(stream.one_pass(seed=0)) == [(("가", "나"), 0.0), (("다", "라"), 1.0), (("마", "바"), 0.5)]
    item = dataset_of(stream, tokenizer, global_batch=2, shape="scored").items([(("가", "나"), 0.5)])[0]
    assert item["score"] == 0.5 and "label" not in item
    nli = text_file(tmp_path / "n.tsv", ["premise\thypothesis\tlabel", "가\t나\tneutral", "다\t라\tentailment"])
    stream = stream_of([nli], train_as="labels")
    rows = sorted(stream.one_pass(seed=0))
    assert [views for views, _ in rows] == [("가", "나"), ("다", "라")] and rows[0][1] != rows[1][1]
    item = dataset_of(stream, tokenizer, global_batch=2, shape="labelled").items(rows[:1])[0]
    assert item["label"] == rows[0][1] and "score" not in item


def test_what_is_left_out_is_counted_in_every_pass(tmp_path):
    path = text_file(tmp_path / "a.jsonl", ['{"text": "가"}', "{", '{"text": " "}', '{"text": "나"}'])
    stream = stream_of([path], on_bad_row="skip")
    for passes in (1, 2):
        assert sorted(texts(stream.one_pass(seed=passes))) == ["가", "나"]
        assert stream.report.as_dict() == {
            "read": 4 * passes,
            "kept": 2 * passes,
            "unit": "sentences",
            "dropped": {"not_json": passes, "empty_sentence": passes},
        }
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: not JSON"):
        list(stream_of([path]).one_pass(seed=1))


# In which order


def test_the_order_follows_the_seed_and_nothing_else(three_files):
    first, again, other = (texts(stream_of(three_files).one_pass(seed)) for seed in (4, 4, 5))
    assert first == again != other
    assert sorted(first) == sorted(other) and len(set(first)) == 52
    stream = stream_of(three_files)
    assert [texts(stream.one_pass(seed)) for seed in (4, 5)] == [first, other], "a pass depends on those before it"
    assert texts(stream_of(three_files, shuffle_buffer=8).one_pass(4)) != first
    assert texts(stream_of(three_files, shuffle_buffer=1000).one_pass(4)) != sorted(first)


def test_files_are_opened_in_another_order_in_every_pass_and_never_all_at_once(tmp_path, monkeypatch):
    paths = [text_file(tmp_path / f"{n:02}.txt", [f"{n:02} {i}" for i in range(300)]) for n in range(20)]
    stream = stream_of(paths, shuffle_buffer=1)
    orders = []
    for seed in (1, 2):
        found = texts(stream.one_pass(seed))
        starts, lasts = {}, {}
        for position, row in enumerate(found):
            starts.setdefault(row[:2], position)
            lasts[row[:2]] = position
        orders.append(list(starts))
        open_at = [sum(starts[name] <= position <= lasts[name] for name in starts) for position in range(len(found))]
        assert max(open_at) == 8
        # Rows of one file stay in its order: nothing but the buffer mixes them.
        assert [row for row in found if row.startswith("07")] == [f"07 {i}" for i in range(300)]
    firsts = {next(stream.one_pass(seed))[0][0][:2] for seed in range(40)}
    assert len(firsts) > 12, "the same files always come first"
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) == [f"{n:02}" for n in range(20)]


def test_files_are_drawn_from_as_often_as_they_are_large(tmp_path):
    large = text_file(tmp_path / "large.txt", [f"큰 {i:05}" for i in range(40_000)])
    small = text_file(tmp_path / "small.txt", [f"작 {i:05}" for i in range(4_000)])
    found = texts(stream_of([large, small], shuffle_buffer=1).one_pass(seed=0))
    of_small = [position / len(found) for position, row in enumerate(found) if row.startswith("작")]
    assert 0.4 < np.mean(of_small) < 0.6, "the small file comes at one end"
    assert of_small[-1] > 0.6 and of_small[0] < 0.2


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1, 12), st.integers(0, 5))
def test_the_buffer_permutes_and_reads_no_further_than_its_size(rows, size, seed):
    read = 0

    def counted():
        nonlocal read
        for row in range(rows):
            read += 1
            yield row

    found = []
    for row in shuffled(counted(), size, np.random.default_rng(seed)):
        assert read <= len(found) + size + 1
        found.append(row)
    assert sorted(found) == list(range(rows))
    if size == 1:
        assert found == list(range(rows))


def test_every_row_in_the_buffer_is_as_likely_to_come_out():
    firsts = Counter(next(shuffled(iter(range(50)), 10, np.random.default_rng(seed))) for seed in range(3000))
    assert set(firsts) == set(range(10)) and all(230 < count < 370 for count in firsts.values())  # 300 +- 4 sigma


# A batch


def batches(dataset, tokenizer, *, processes: int, rank: int, steps: int, skip: int = 0):
    """As `StreamedRows.prepare` has accelerate deal them out, on one of several processes that need not exist."""
    collate = dataset.collator(ViewsCollator(tokenizer.pad_token_id))
    size = dataset.global_batch // processes
    loader = prepare_data_loader(
        DataLoader(dataset, batch_size=size, drop_last=True, collate_fn=collate),
        device=torch.device("cpu"),
        put_on_device=True,
        num_processes=processes,
        process_index=rank,
        dispatch_batches=False,
    )
    return list(islice(iter(skip_first_batches(loader, skip) if skip else loader), steps))


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_see_the_rows_that_one_would_see(three_files, tokenizer, processes):
    """52 rows in batches of 12: four a pass and four rows left over; 11 steps are in the third pass."""
    whole = batches(
        dataset_of(stream_of(three_files), tokenizer, global_batch=12), tokenizer, processes=1, rank=0, steps=11
    )
    datasets = [dataset_of(stream_of(three_files), tokenizer, global_batch=12) for _ in range(processes)]
    parts = [
        batches(dataset, tokenizer, processes=processes, rank=rank, steps=11) for rank, dataset in enumerate(datasets)
    ]
    for step, of_all in enumerate(whole):
        ids = torch.cat([part[step]["sentence_ids"] for part in parts])
        assert torch.equal(ids, of_all["sentence_ids"]) and len(ids) == 12
    of_a_pass = torch.cat([batch["sentence_ids"][:, 0] for batch in whole[:4]])
    assert len(of_a_pass.unique()) == 48
    of_the_next = torch.cat([batch["sentence_ids"][:, 0] for batch in whole[4:8]])
    assert len(of_the_next.unique()) == 48 and not torch.equal(of_a_pass, of_the_next)
    for dataset in datasets:
        # Every process reads all and tokenises its share; the loader is one batch ahead.
        assert dataset.tokenised == 12 * 12 // processes and dataset.left_over == 2 * 4
        assert dataset.stream.report.as_dict() == datasets[0].stream.report.as_dict()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=12),
    st.integers(1, 40),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(0, 3),
)
def test_every_process_keeps_its_part_of_what_a_plain_loop_would_deal_out(sizes, buffer, processes, batch_size, seed):
    global_batch = batch_size * processes
    rows = sum(sizes)
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            text_file(Path(folder, f"{n}.txt"), [f"{n} {row}" for row in range(count)]) for n, count in enumerate(sizes)
        ]
        if rows < global_batch:
            return
        expected: list[list[str]] = []
        number = 0
        while len(expected) < 7:
            found = texts(stream_of(paths, shuffle_buffer=buffer).one_pass(seed + number))
            assert sorted(found) == sorted(f"{n} {row}" for n, count in enumerate(sizes) for row in range(count))
            for start in range(0, rows - global_batch + 1, global_batch):
                expected.append(found[start : start + global_batch])
            number += 1
        for rank in range(processes):
            dataset = StreamedRows(
                stream=stream_of(paths, shuffle_buffer=buffer),
                shape="sentences",
                tokenise=None,
                counts=None,
                store=None,
            )
            dataset.seed, dataset.global_batch = seed, global_batch
            loader = prepare_data_loader(
                DataLoader(dataset, batch_size=batch_size, drop_last=True, collate_fn=texts),
                num_processes=processes,
                process_index=rank,
                dispatch_batches=False,
            )
            own = slice(rank * batch_size, (rank + 1) * batch_size)
            assert list(islice(loader, 7)) == [batch[own] for batch in expected[:7]]


def test_rows_to_skip_are_not_tokenised_and_the_others_are_the_same(three_files, tokenizer):
    def run(**kwargs):
        dataset = dataset_of(stream_of(three_files), tokenizer, global_batch=8)
        dataset.rows_to_skip = 8 * kwargs.pop("told", 0)
        return dataset, batches(dataset, tokenizer, processes=1, rank=0, **kwargs)

    _, whole = run(steps=12)
    for told in (0, 8):
        dataset, resumed = run(steps=4, skip=8, told=told)
        for batch, expected in zip(resumed, whole[8:], strict=True):
            assert set(batch) == set(expected)
            assert all(torch.equal(batch[name], expected[name]) for name in batch)
        assert dataset.tokenised == 8 * (13 - told)


def test_equal_sentences_share_an_identity_wherever_they_are(tokenizer):
    # Fixed for all time: a checkpoint and another machine rely on it.
    assert sentence_id("네.") == 2_792_810_891_551_628_891
    dataset = dataset_of(stream_of([]), tokenizer, global_batch=2)
    rows = [(("가", "나"), None), (("나", "다"), None), (("가", "나"), None)]
    items = dataset.items(rows)
    ids = np.stack([item["sentence_ids"] for item in items])
    assert ids.dtype == np.int64 and ids.tolist() == [[sentence_id(text) for text in views] for views, _ in rows]
    assert len(np.unique(ids)) == 3 and (ids >= 0).all()
    expected = tokenizer(["나"], max_length=12, truncation=True)["input_ids"][0]
    assert items[0]["views"][1].tolist() == items[1]["views"][0].tolist() == expected
    one = dataset.items([(("홀로",), None)])[0]
    assert len(one["views"]) == 2 and one["sentence_ids"][0] == one["sentence_ids"][1] == sentence_id("홀로")


# What is refused


def test_a_file_that_changes_under_the_run_is_named(three_files):
    stream = stream_of(three_files)
    list(stream.one_pass(seed=0))
    with three_files[1].open("a", encoding="utf-8") as file:
        file.write("한 줄 더\n")
    with pytest.raises(DataError, match=r"1\.txt changed while it was trained on: it had \d+ bytes, now \d+"):
        list(stream.one_pass(seed=1))
    stream = stream_of(three_files)
    found = three_files[2].stat()
    os.utime(three_files[2], ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    with pytest.raises(DataError, match=r"2\.txt was written again while it was trained on"):
        list(stream.one_pass(seed=0))
    stream = stream_of(three_files)
    three_files[0].unlink()
    with pytest.raises(DataError, match=r"0\.txt is gone.*resume_from_checkpoint"):
        list(stream.one_pass(seed=0))


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path):
    path = text_file(tmp_path / "long.txt", [f"문장 {n}" for n in range(5000)])
    rows = stream_of([path]).one_pass(seed=0)
    next(rows)
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    with pytest.raises(DataError, match=r"long\.txt was written again"):
        list(rows)


@pytest.mark.parametrize("others", [0, 3])
def test_rows_that_were_written_over_in_mid_pass_are_never_given_out(tmp_path, others):
    """A run is usually shorter than a pass: what is only noticed at the end of a file is never noticed."""
    path = text_file(tmp_path / "long.txt", [f"문장 {n:05}" for n in range(20_000)])
    paths = [path, *(text_file(tmp_path / f"{n}.txt", [f"다른 {n}"] * 99) for n in range(others))]
    before = path.stat()
    stream = stream_of(paths)
    found = texts(islice(rows := stream.one_pass(seed=0), 500))
    stream.check_unchanged()
    with path.open("r+", encoding="utf-8") as file:  # as long as before, and the same file
        file.write(path.read_text(encoding="utf-8").replace("문장", "비밀"))
    if path.stat().st_mtime_ns == before.st_mtime_ns:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(DataError, match=r"long\.txt was written again while it was trained on.*resume_from_checkpoint"):
        stream.check_unchanged()
    with pytest.raises(DataError, match=r"long\.txt was written again"):
        for views, _ in rows:
            found.append(views[0])
    assert len(found) < 20_000 / 2 and not any("비밀" in text for text in found)


def test_only_files_that_are_being_read_need_be_as_they_were(tmp_path, monkeypatch):
    paths = [text_file(tmp_path / f"{n:02}.txt", [f"{n:02} {i}" for i in range(300)]) for n in range(20)]
    stream = stream_of(paths, shuffle_buffer=1)
    for path in paths:
        path.rename(path.with_suffix(".bak"))
    stream.check_unchanged()
    for path in paths:
        path.with_suffix(".bak").rename(path)
    opened = []
    read_table_of = streamed_rows.read_table
    monkeypatch.setattr(
        streamed_rows,
        "read_table",
        lambda path, *args, **more: opened.append(path) or read_table_of(path, *args, **more),
    )
    rows = stream.one_pass(seed=0)
    next(rows)
    stream.check_unchanged()
    opened[0].unlink()
    with pytest.raises(DataError, match=rf"{opened[0].name} is gone"):
        stream.check_unchanged()
    stream = stream_of(paths[:1] if opened[0] != paths[0] else paths[1:2])
    list(stream.one_pass(seed=0))
    stream.files[0].path.unlink()
    stream.check_unchanged()  # read to its end, and it was what it was


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_a_change_explains_a_row_that_cannot_be_read(tmp_path, on_bad_row):
    long = "가" * 3000  # so that what is written now is read before the next look at the file
    path = text_file(tmp_path / "a.jsonl", [json.dumps({"text": f"문장 {n} {long}"}) for n in range(400)])
    rows = stream_of([path], on_bad_row=on_bad_row).one_pass(seed=0)
    next(rows)
    path.write_bytes(b"\xff{" * path.stat().st_size)
    with pytest.raises(DataError, match=r"a\.jsonl changed while it was trained on"):
        list(rows)


def test_a_pass_without_a_batch_would_go_on_forever(three_files, tokenizer):
    dataset = dataset_of(stream_of(three_files), tokenizer, global_batch=53)
    with pytest.raises(TrainingError, match=r"52 training rows are fewer than one batch of 53"):
        next(iter(dataset))
    dataset.global_batch = 52
    assert len(list(islice(dataset, 104))) == 104


def test_a_worker_process_would_repeat_the_stream(three_files, tokenizer):
    dataset = dataset_of(stream_of(three_files), tokenizer, global_batch=4)
    loader = DataLoader(dataset, batch_size=4, num_workers=1, collate_fn=list)
    with pytest.raises(TrainingError, match="dataloader_num_workers to 0"):
        next(iter(loader))


def test_preparing_deals_the_stream_out_on_every_process_itself(three_files, tokenizer, monkeypatch):
    dataset = dataset_of(stream_of(three_files), tokenizer, global_batch=1)
    accelerator = Accelerator(cpu=True)
    loader = dataset.prepare(accelerator, ViewsCollator(tokenizer.pad_token_id), batch_size=8, seed=3)
    assert dataset.global_batch == 8 and not isinstance(loader, DataLoaderDispatcher)
    assert accelerator.dispatch_batches is False
    expected = batches(
        dataset_of(stream_of(three_files), tokenizer, global_batch=8), tokenizer, processes=1, rank=0, steps=9
    )
    for batch, other in zip(islice(loader, 9), expected, strict=True):
        assert torch.equal(batch["sentence_ids"], other["sentence_ids"])
    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "num_processes", 3)
        patch.setattr(Accelerator, "prepare", lambda self, loader: loader)
        two = dataset_of(stream_of(three_files), tokenizer, global_batch=1)
        two.prepare(accelerator, ViewsCollator(tokenizer.pad_token_id), batch_size=8, seed=3)
        assert two.global_batch == 24
    sent = []
    monkeypatch.setattr(
        streamed_rows, "gather_integers", lambda own, device: sent.append(own[0]) or [own, [own[0] + 1]]
    )
    with pytest.raises(TrainingError, match="the processes do not read the same stream"):
        dataset.prepare(accelerator, ViewsCollator(tokenizer.pad_token_id), batch_size=8, seed=3)
    for other in (stream_of(three_files, shuffle_buffer=9), stream_of(three_files[:2])):
        with pytest.raises(TrainingError):
            dataset_of(other, tokenizer, global_batch=1).prepare(
                accelerator, ViewsCollator(tokenizer.pad_token_id), batch_size=8, seed=3
            )
    assert len(set(sent)) == 3, "other files or another buffer are not told apart"
