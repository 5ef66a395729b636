"""Training rows from disk are those of `training_views` in memory, tokenised as `ViewsDataset.build` does."""

from __future__ import annotations

import json
import logging
import multiprocessing
import pickle
import resource
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from conftest import SENTENCES, training
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from simcse_hf import corpus_folder, training_corpus
from simcse_hf.arguments import DataArguments
from simcse_hf.cache_folder import cache_root
from simcse_hf.cli import main
from simcse_hf.collators import ViewsCollator
from simcse_hf.corpora import ScoredPairs, TrainingViews, training_views
from simcse_hf.errors import ConfigError, DataError
from simcse_hf.leakage import HeldOutSentences
from simcse_hf.row_report import RowReport
from simcse_hf.sample import SAMPLES
from simcse_hf.sentence_store import ViewsDataset
from simcse_hf.tables import read_table
from simcse_hf.tokenization import load_tokenizer
from simcse_hf.train import load_training_views
from simcse_hf.training_corpus import Reading, fingerprint_of, tokenized_views, views_of_files, views_of_hub_dataset

TOKENIZER = load_tokenizer(str(SAMPLES["encoder"]))
OPTIONS = {"max_length": 12, "prompt": "질문: "}
ANY = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def in_memory(paths: Sequence[Path], reading: Reading) -> TrainingViews:
    report = RowReport(on_bad_row=reading.on_bad_row)
    return training_views(
        [read_table(path, report, reading.column_names) for path in paths],
        report,
        triplet_rule=reading.triplet_rule,
        train_as=reading.train_as,
        score_scale=reading.score_scale,
        held_out=reading.held_out,
        deduplicate=reading.deduplicate,
    )


def assert_same(paths: Sequence[Path], reading: Reading, root: Path) -> TrainingViews:
    """What lies on disk, built and found again, is what memory holds."""
    expected = in_memory(paths, reading)
    for _ in range(2):
        found = views_of_files(paths, reading, root)
        assert list(found.rows) == expected.rows
        assert (found.shape, found.sources) == (expected.shape, expected.sources)
        assert found.report.remembered() == expected.report.remembered()
        ours, statistics = tokenized_views(found, TOKENIZER, root, **OPTIONS)
        values = {"scored": "scores", "labelled": "labels"}.get(found.shape)
        theirs = ViewsDataset.build(
            expected.rows, TOKENIZER, **OPTIONS, **({values: expected.values} if values else {})
        )
        assert (found.values and list(found.values), found.source_rows) == (expected.values, expected.source_rows)
        assert (len(ours), len(ours.store)) == (len(theirs), len(theirs.store))
        assert ours.store.lengths.tolist() == theirs.store.lengths.tolist()
        assert [tokens.tolist() for tokens in ours.store] == [
            theirs.store[i].tolist() for i in range(len(theirs.store))
        ]
        for mine, other in zip(ours, theirs, strict=True):
            assert [view.tolist() for view in mine["views"]] == [view.tolist() for view in other["views"]]
            assert mine["sentence_ids"].tolist() == other["sentence_ids"].tolist()
            assert mine["sentence_ids"].dtype == np.int64 and set(mine) == set(other)
            for name in ("score", "label"):
                assert (mine.get(name), type(mine.get(name))) == (other.get(name), type(other.get(name)))
        assert statistics == theirs.statistics(TOKENIZER, OPTIONS["max_length"])
    return found


def new(tmp_path_factory: pytest.TempPathFactory, text: str, name: str) -> Path:
    path = tmp_path_factory.mktemp("corpus") / name
    path.write_text(text, encoding="utf-8")
    return path


words = st.sampled_from(["가", "나 ", " 다", "가  나", "\u1112\u1161\u11ab", "한", "", "\u200b"])


@ANY
@given(
    st.lists(words, min_size=1, max_size=14),
    st.booleans(),
    st.sampled_from([1, 2, 3, 10_000]),
)
def test_sentences_are_those_held_in_memory(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], deduplicate: bool, at_once: int
) -> None:
    path = new(tmp_path_factory, "\n".join(["처음", *lines]), "a.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_folder, "_ROWS_AT_ONCE", at_once)
        assert_same([path], Reading(deduplicate=deduplicate), path.parent / "cache")


@ANY
@given(
    st.integers(2, 4).flatmap(lambda views: st.lists(st.tuples(*[words] * views), min_size=1, max_size=14)),
    st.booleans(),
    st.sampled_from([1, 2, 3, 10_000]),
)
def test_pairs_and_triplets_are_those_held_in_memory(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]], deduplicate: bool, at_once: int
) -> None:
    names = ["anchor", "positive", "negative", "negative_2"][: len(rows[0])]
    lines = ["\t".join(row) for row in [names, ["처음"] * len(names), *rows]]
    path = new(tmp_path_factory, "\n".join(lines), "a.tsv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_folder, "_ROWS_AT_ONCE", at_once)
        assert_same([path], Reading(deduplicate=deduplicate), path.parent / "cache")


@pytest.mark.parametrize("name", ["sentences", "triplets"])
def test_the_samples_are_those_held_in_memory(tmp_path: Path, name: str) -> None:
    assert_same([SAMPLES[name]], Reading(), tmp_path)


def test_several_files_and_every_reason_to_drop_are_reported_alike(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = new(tmp_path_factory, "anchor\tpositive\n가\t나\n\t나\n가\t나\n세\t칸\t다\n", "a.tsv")
    second = new(tmp_path_factory, "anchor\tpositive\n다\t라\n가\t나\n", "b.tsv")
    views = assert_same([first, second], Reading(on_bad_row="skip"), tmp_path)
    assert views.report.dropped == {"duplicate": 2, "empty_sentence": 1, "wrong_number_of_fields": 1}
    assert views.report.examples["duplicate"] == f"{first}, line 4"


@pytest.mark.parametrize("rule", ["last_wins", "all"])
def test_nli_rows_are_matched_as_in_memory(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, rule: str) -> None:
    rows = ["P\te1\tentailment", "P\te2\tentailment", "P\tc\tcontradiction", "Q\te\tentailment", "P\tn\tneutral"]
    path = new(tmp_path_factory, "\n".join(["premise\thypothesis\tlabel", *rows]), "a.tsv")
    assert_same([path], Reading(triplet_rule=rule), tmp_path)


values = {
    "labels": ("premise\thypothesis\tlabel", ["entailment", "neutral", "contradiction", "-", ""]),
    "scores": ("sentence1\tsentence2\tscore", ["0", "-0.0", "2.5", "2.50", "5", "3.1", "5.5", "셋"]),
}


@ANY
@given(
    st.sampled_from(["labels", "scores"]),
    st.lists(st.tuples(words, words, st.integers(0, 7)), max_size=14),
    st.lists(st.sampled_from(["가", "나 다", "한"]), max_size=1),
    st.booleans(),
    st.sampled_from([1, 2, 3, 10_000]),
)
def test_rows_with_values_are_those_held_in_memory(
    tmp_path_factory: pytest.TempPathFactory, train_as: str, rows: list, kept_out: list, deduplicate: bool, at_once: int
) -> None:
    header, choices = values[train_as]
    lines = ["\t".join([first, second, choices[number % len(choices)]]) for first, second, number in rows]
    whole = ["\t".join(["처음", "처음", choices[0]])]
    path = new(tmp_path_factory, "\n".join([header, *whole, *lines]), "a.tsv")
    second = new(tmp_path_factory, "\n".join([header, *lines, *whole]), "b.tsv")
    dev = ScoredPairs(name="dev", sentences1=kept_out, sentences2=[], scores=[])
    reading = Reading(train_as=train_as, deduplicate=deduplicate, on_bad_row="skip", held_out=HeldOutSentences([dev]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_folder, "_ROWS_AT_ONCE", at_once)
        assert_same([path, second], reading, path.parent / "cache")


@pytest.mark.parametrize(("wanted", "of_each"), [(1, [1, 0, 0]), (2, [2, 0, 0]), (3, [2, 0, 1]), (9, [2, 0, 2])])
def test_values_and_sources_of_the_first_rows(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, wanted: int, of_each: list[int]
) -> None:
    files = [["가\t나\t5", "가\t나\t0"], ["가\t나\t5"], ["다\t라\t1", "가\t나\t5.0", "마\t바\t4"]]
    paths = [
        new(tmp_path_factory, "\n".join(["sentence1\tsentence2\tscore", *lines]), f"{name}.tsv")
        for name, lines in zip("abc", files, strict=True)
    ]
    views = views_of_files(paths, Reading(train_as="scores", max_rows=wanted), tmp_path)
    assert list(views.values) == [1.0, 0.0, 0.2, 0.8][:wanted]
    assert views.values[-1] == list(views.values)[-1] and views.values[:1] == [1.0]
    assert (views.source_rows, sum(views.source_rows)) == (of_each, len(views.rows))


def test_a_score_of_minus_zero_is_zero(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = new(tmp_path_factory, "sentence1\tsentence2\tscore\n가\t나\t0\n가\t나\t-0.0\n", "a.tsv")
    assert len(assert_same([path], Reading(train_as="scores"), tmp_path).rows) == 1


def test_scores_on_another_scale_are_another_corpus(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = new(tmp_path_factory, "sentence1\tsentence2\tscore\n가\t나\t1\n", "a.tsv")
    found = [
        list(views_of_files([path], Reading(train_as="scores", score_scale=scale), tmp_path).values)
        for scale in ((0.0, 5.0), (0.0, 1.0))
    ]
    assert found == [[0.2], [1.0]]


def test_other_held_out_sentences_are_another_corpus(corpus: Path, tmp_path: Path, builds: list[str]) -> None:
    for sentence in ("다.", "라", "라!"):
        dev = ScoredPairs(name="dev", sentences1=[sentence], sentences2=["마"], scores=[0])
        views = start(corpus, tmp_path, held_out=HeldOutSentences([dev]))
        assert list(views.rows) == [("가", "나")]
        assert views.report.dropped == {"in_evaluation_set": 1, "duplicate": 1}
    assert builds.count("_write_corpus") == 2


def test_nothing_left_beside_held_out_sentences_says_so(corpus: Path, tmp_path: Path) -> None:
    dev = ScoredPairs(name="dev", sentences1=["가"], sentences2=["다"], scores=[0])
    with pytest.raises(DataError, match=r"no training rows are left of (.|\n)*3 dropped: in evaluation set"):
        start(corpus, tmp_path, held_out=HeldOutSentences([dev]))


def test_the_teachers_vectors_go_by_the_sentences_of_the_corpus(corpus: Path, tmp_path: Path) -> None:
    views = views_of_files([corpus], Reading(), tmp_path)
    numbers = {"가": 1, "나": 2, "다": 3, "라": 4}
    sentences = [sentence for array in views.rows.sentences.arrays() for sentence in array.to_pylist()]
    teacher = np.array([[numbers[sentence], 0.5] for sentence in sentences])
    dataset, _ = tokenized_views(views, TOKENIZER, tmp_path, **OPTIONS, teacher=teacher)
    assert [item["teacher"][:, 0].tolist() for item in dataset] == [[1, 2], [3, 4]]
    with pytest.raises(DataError, match="teacher holds 3 entries for 4 sentences"):
        tokenized_views(views, TOKENIZER, tmp_path, **OPTIONS, teacher=teacher[:3])


@pytest.mark.parametrize("wanted", [1, 2, 3, 4, 9])
def test_only_the_first_rows_are_kept_and_the_others_counted(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_folder, "_ROWS_AT_ONCE", 2)
    rows = ["가\t나", "가\t나", "다\t가", "나\t다", "라\t마"]
    path = new(tmp_path_factory, "\n".join(["anchor\tpositive", *rows]), "a.tsv")
    views = views_of_files([path], Reading(max_rows=wanted), tmp_path)
    everything = in_memory([path], Reading()).rows
    assert list(views.rows) == everything[:wanted]
    assert views.report.kept == len(views.rows) == min(wanted, 4)
    dropped = {"duplicate": 1, **({"beyond_max_train_samples": 4 - wanted} if wanted < 4 else {})}
    assert views.report.dropped == dropped
    if wanted < 4:
        assert views.report.examples["beyond_max_train_samples"] == f"row {wanted + 1} of those kept"
    dataset, _ = tokenized_views(views, TOKENIZER, tmp_path, **OPTIONS)
    assert len(dataset.store) == len({sentence for row in everything[:wanted] for sentence in row})


def test_rows_can_be_cut_out_and_counted_from_the_end(tmp_path: Path) -> None:
    rows = views_of_files([SAMPLES["triplets"]], Reading(), tmp_path).rows
    everything = in_memory([SAMPLES["triplets"]], Reading()).rows
    assert rows[:16] == everything[:16] and rows[-3:] == everything[-3:] and rows[-1] == everything[-1]
    with pytest.raises(IndexError):
        rows[len(rows)]


@pytest.fixture
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new(tmp_path_factory, "anchor\tpositive\n가\t나\n다\t라\n가\t나\n", "a.tsv")


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was built, in order."""
    built: list[str] = []

    def counted(name: str, original: Callable) -> Callable:
        return lambda *arguments: built.append(name) or original(*arguments)

    for name in ("_write_corpus", "_write_tokens"):
        monkeypatch.setattr(training_corpus, name, counted(name, getattr(training_corpus, name)))
    return built


def start(
    paths: Path | list[Path], root: Path, tokenizer=TOKENIZER, options: dict = OPTIONS, **reading
) -> TrainingViews:
    views = views_of_files([paths] if isinstance(paths, Path) else paths, Reading(**reading), root)
    tokenized_views(views, tokenizer, root, **options)
    return views


def test_a_second_start_neither_reads_nor_tokenises_and_says_the_same(
    corpus: Path, tmp_path: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(corpus, tmp_path)
    monkeypatch.setattr(training_corpus, "read_table", None)
    second = start(corpus, tmp_path)
    assert builds == ["_write_corpus", "_write_tokens"]
    assert str(first.report) == str(second.report) and first.sources == second.sources
    assert (first.report.unit, first.sources[0]["rows"]) == (second.report.unit, 3)


def test_a_moved_file_is_known_by_its_content_and_named_by_its_new_place(
    corpus: Path, tmp_path: Path, builds: list[str]
) -> None:
    start(corpus, tmp_path)
    moved = corpus.rename(corpus.with_name("b.tsv"))
    views = start(moved, tmp_path)
    assert builds == ["_write_corpus", "_write_tokens"]
    assert views.report.examples == {"duplicate": f"{moved}, line 4"}
    assert views.sources[0]["path"] == str(moved)


@pytest.mark.parametrize(
    "reading",
    [
        {"column_names": ["anchor", "positive"]},
        {"triplet_rule": "all"},
        {"train_as": "sentences"},
        {"held_out": HeldOutSentences([ScoredPairs(name="dev", sentences1=["다"], sentences2=["바"], scores=[0])])},
        {"deduplicate": False},
        {"max_rows": 1},
        {"on_bad_row": "skip"},
    ],
    ids=lambda reading: next(iter(reading)),
)
def test_another_way_of_reading_is_another_corpus(
    corpus: Path, tmp_path: Path, builds: list[str], reading: dict
) -> None:
    start(corpus, tmp_path)
    start(corpus, tmp_path, **reading)
    assert builds == ["_write_corpus", "_write_tokens"] * 2


@pytest.mark.parametrize("change", ["content", "format", "order", "version"])
def test_other_content_is_another_corpus(
    corpus: Path, tmp_path: Path, builds: list[str], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = corpus.with_name("other.tsv")
    other.write_text("anchor\tpositive\n마\t바\n", encoding="utf-8")
    start([corpus, other], tmp_path)
    paths = [corpus, other]
    if change == "content":
        corpus.write_text("anchor\tpositive\n가\t나\n다\t마\n가\t나\n", encoding="utf-8")
    elif change == "format":
        paths = [corpus.rename(corpus.with_suffix(".txt")), other.rename(other.with_suffix(".txt"))]
    elif change == "order":
        paths = [other, corpus]
    else:
        monkeypatch.setattr(training_corpus, "_VERSION", 0)
    start(paths, tmp_path)
    assert builds.count("_write_corpus") == 2


@pytest.mark.parametrize("options", [{"max_length": 13}, {"prompt": "문서: "}], ids=["max_length", "prompt"])
def test_other_lengths_and_prompts_are_tokenised_again_from_the_same_corpus(
    corpus: Path, tmp_path: Path, builds: list[str], options: dict
) -> None:
    start(corpus, tmp_path)
    start(corpus, tmp_path, options=OPTIONS | options)
    assert builds == ["_write_corpus", "_write_tokens", "_write_tokens"]


def lower_case(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


def one_more_token(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.add_tokens(["새낱말"])


def cut_in_front(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.truncation_side = "left"


@pytest.mark.parametrize("change", [lower_case, one_more_token, cut_in_front])
def test_another_tokenizer_is_told_apart(corpus: Path, tmp_path: Path, builds: list[str], change: Callable) -> None:
    start(corpus, tmp_path)
    other = load_tokenizer(str(SAMPLES["encoder"]))
    change(other)
    start(corpus, tmp_path, other)
    assert builds == ["_write_corpus", "_write_tokens", "_write_tokens"]


def test_what_a_tokenizer_was_used_for_before_does_not_matter() -> None:
    used, fresh = (load_tokenizer(str(SAMPLES["encoder"])) for _ in range(2))
    used(SENTENCES, padding=True, truncation=True, max_length=7)
    assert fingerprint_of(used) == fingerprint_of(fresh)


def test_a_truncated_cache_is_made_again(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    start(corpus, tmp_path)
    for name in ("sentences.arrow", "rows.arrow", "tokens.arrow"):
        (file,) = tmp_path.glob(f"*/{name}")
        file.write_bytes(file.read_bytes()[:-8])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            views = start(corpus, tmp_path)
        assert "damaged or incomplete" in caplog.text
        assert list(views.rows) == [("가", "나"), ("다", "라")]


def test_errors_in_the_data_leave_nothing_in_the_cache(tmp_path: Path, tmp_path_factory) -> None:
    bad = new(tmp_path_factory, "anchor\tpositive\n가\t나\n다\n", "a.tsv")
    empty = new(tmp_path_factory, "text\n\n\n", "b.tsv")
    for path, message in ((bad, "line 3: 1 tab-separated fields"), (empty, "no training rows are left of .*b.tsv")):
        with pytest.raises(DataError, match=message):
            views_of_files([path], Reading(), tmp_path)
    assert [entry for entry in tmp_path.iterdir() if entry.suffix != ".lock"] == []


def _start_with_little_room(root: Path, most: int, answer) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    try:
        start(SAMPLES["sentences"], root)
        answer.send("fine")
    except ConfigError as error:
        answer.send(str(error))


@pytest.mark.parametrize("most", [300, 5000, 50_000, 70_000])
def test_wherever_the_disk_is_full_nothing_half_written_is_left(tmp_path: Path, most: int) -> None:
    """The spill file, the sentences, the tokens: each in turn is the one that no longer fits."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_start_with_little_room, args=(tmp_path, most, sender))
    process.start()
    assert receiver.poll(60)
    message = receiver.recv()
    process.join()
    assert message.startswith(f"cannot use the data cache {tmp_path}: File too large. Make room there")
    left = [entry for entry in tmp_path.iterdir() if entry.suffix != ".lock"]
    assert all((entry / "manifest.json").exists() for entry in left)
    start(SAMPLES["sentences"], tmp_path)


def test_half_a_character_is_named(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = new(tmp_path_factory, '{"text": "가"}\n{"text": "나\\ud83d"}\n', "a.jsonl")
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: text holds half a character \(\\ud83d\)"):
        views_of_files([path], Reading(), tmp_path)


def test_the_files_are_the_smallest_that_datasets_can_open(corpus: Path, tmp_path: Path) -> None:
    start(corpus, tmp_path)
    opened = {
        name: datasets.Dataset.from_file(str(next(tmp_path.glob(f"*/{name}.arrow"))))
        for name in ("sentences", "rows", "tokens")
    }
    assert opened["sentences"]["text"][:] == ["가", "나", "다", "라"]
    assert opened["rows"]["sentences"][:] == [[0, 1], [2, 3]]
    assert opened["tokens"]["input_ids"][0] == TOKENIZER("질문: 가")["input_ids"]
    assert opened["tokens"].data.schema.field("input_ids").type == pa.list_(pa.uint16())


def test_a_large_vocabulary_takes_wider_ids(corpus: Path, tmp_path: Path) -> None:
    large = load_tokenizer(str(SAMPLES["encoder"]))
    large.add_tokens([f"낱말{number}" for number in range(66_000)])
    path = corpus.with_name("b.tsv")
    path.write_text("anchor\tpositive\n낱말65999 가\t나\n", encoding="utf-8")
    views = views_of_files([path], Reading(), tmp_path)
    dataset, _ = tokenized_views(views, large, tmp_path, max_length=12)
    assert dataset.store[0].dtype == np.int32
    assert dataset.store[0].tolist() == large("낱말65999 가")["input_ids"] and max(dataset.store[0]) > 1 << 16


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_whatever_reads_them(tmp_path: Path, workers: int) -> None:
    views = views_of_files([SAMPLES["triplets"]], Reading(), tmp_path)
    mapped, _ = tokenized_views(views, TOKENIZER, tmp_path, **OPTIONS)
    held = ViewsDataset.build(views.rows, TOKENIZER, **OPTIONS)
    collate = ViewsCollator(TOKENIZER.pad_token_id)
    expected = list(DataLoader(held, batch_size=50, collate_fn=collate))
    sent = pickle.loads(pickle.dumps(mapped))  # as to a worker that is not forked
    found = list(DataLoader(sent, batch_size=50, collate_fn=collate, num_workers=workers))
    for ours, theirs in zip(found, expected, strict=True):
        assert all(ours[name].equal(theirs[name]) for name in theirs)


def _start_alone(root: Path, answer: Path, gate) -> None:
    gate.wait(30)
    views = views_of_files([SAMPLES["sentences"]], Reading(), root)
    dataset, statistics = tokenized_views(views, TOKENIZER, root, max_length=12)
    tokens = [tokens.tolist() for tokens in dataset.store]
    answer.write_text(json.dumps([str(views.report), statistics, tokens]), encoding="utf-8")


def test_two_processes_at_once_both_get_the_whole(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    gate = context.Event()
    answers = [tmp_path / "first", tmp_path / "second"]
    processes = [context.Process(target=_start_alone, args=(tmp_path / "cache", answer, gate)) for answer in answers]
    for process in processes:
        process.start()
    gate.set()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = (json.loads(answer.read_text(encoding="utf-8")) for answer in answers)
    assert first == second
    report, statistics, tokens = first
    held = ViewsDataset.build(in_memory([SAMPLES["sentences"]], Reading()).rows, TOKENIZER, max_length=12)
    assert tokens == [held.store[index].tolist() for index in range(len(held.store))]
    assert statistics["rows"] == len(held) and "sentences kept" in report
    assert len(list(tmp_path.glob("cache/*/manifest.json"))) == 2


def test_a_hub_dataset_is_known_by_its_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, builds: list[str]
) -> None:
    def publish(texts: list[str]) -> None:
        dataset = datasets.Dataset.from_dict({"text": texts})
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: dataset)

    publish(["가", "나", "가"])
    for _ in range(2):
        views = views_of_hub_dataset("owner/name", Reading(), tmp_path)
        assert list(views.rows) == [("가",), ("나",)]
        assert views.sources[0]["hub"] == "owner/name" and views.sources[0]["rows"] == 3
        assert views.report.examples == {"duplicate": "owner/name, row 2"}
    assert builds == ["_write_corpus"]
    publish(["다"])
    assert list(views_of_hub_dataset("owner/name", Reading(), tmp_path).rows) == [("다",)]


def test_training_arguments_choose_the_folder(corpus: Path, tmp_path: Path) -> None:
    load_training_views(DataArguments(train_file=[str(corpus)], data_cache_dir=str(tmp_path / "mine")))
    assert len(list((tmp_path / "mine").glob("corpus-*"))) == 1
    assert not list(cache_root().glob("corpus-*"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"cannot use the data cache {tmp_path / 'file'}"):
        load_training_views(DataArguments(train_file=[str(corpus)], data_cache_dir=str(tmp_path / "file")))


def test_a_run_from_the_cache_is_the_run_that_filled_it(good: dict, tmp_path: Path, builds: list[str]) -> None:
    runs = []
    for name in ("first", "second"):
        assert main(training(good | {"output_dir": tmp_path / name})) == 0
        record = json.loads((tmp_path / name / "simcse_run.json").read_text(encoding="utf-8"))
        runs.append((record["data"], (tmp_path / name / "checkpoint-2/model.safetensors").read_bytes()))
    assert builds == ["_write_corpus", "_write_tokens"]
    assert runs[0] == runs[1]
    assert runs[0][0]["statistics"]["rows"] == 12


@pytest.mark.parametrize("show", [True, False])
def test_progress_is_drawn_only_when_asked(
    corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture, show: bool
) -> None:
    views = views_of_files([corpus], Reading(), tmp_path, show_progress=show)
    tokenized_views(views, TOKENIZER, tmp_path, **OPTIONS, show_progress=show)
    drawn = capfd.readouterr().err
    assert ("Reading" in drawn, "Tokenising" in drawn) == (show, show)
