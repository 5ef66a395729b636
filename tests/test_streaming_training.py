"""Training on a stream, through `train`: what it refuses, what it records, and that it can be resumed bit for bit."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from conftest import says, training

from simcse_hf import SimCSETrainingArguments
from simcse_hf.arguments import DataArguments, ModelArguments
from simcse_hf.errors import ConfigError, DataError
from simcse_hf.files import sha256_of
from simcse_hf.sample import SAMPLES
from simcse_hf.streamed_sets import FollowStream, check_streaming
from simcse_hf.train import TrainingRun, train
from simcse_hf.training_sets import load_training_views


@pytest.fixture
def files(tmp_path) -> list[Path]:
    """38 sentences in three files."""
    paths = []
    for number, rows in enumerate((6, 21, 11)):
        paths.append(tmp_path / f"{number}.txt")
        paths[-1].write_text("".join(f"파일 {number}의 문장 {row}\n" for row in range(rows)), encoding="utf-8")
    return paths


@pytest.fixture
def run(tmp_path, backbone_dir, files):
    def start(folder: str = "run", *, model=None, data=None, backbone=None, **settings) -> TrainingRun:
        model_args = {"model_name_or_path": str(backbone_dir(**(backbone or {}))), "pooler_type": "avg"}
        data_args = {
            "train_file": [str(path) for path in files],
            "eval_task": "none",
            "streaming": True,
            "shuffle_buffer": 9,
        }
        training_args = {
            "per_device_train_batch_size": 8,
            "max_steps": 11,
            "learning_rate": 1e-3,
            "eval_strategy": "no",
        }
        return train(
            ModelArguments(**(model_args | {"max_seq_length": 12} | (model or {}))),
            DataArguments(**(data_args | (data or {}))),
            SimCSETrainingArguments(
                output_dir=str(tmp_path / folder),
                use_cpu=True,
                disable_tqdm=True,
                **(
                    training_args
                    | {
                        "save_steps": 4,
                        "save_total_limit": 9,
                        "logging_steps": 2,
                        "load_best_model_at_end": False,
                        "write_release": False,
                    }
                    | settings
                ),
            ),
        )

    return start


def weights(outcome: TrainingRun) -> dict[str, torch.Tensor]:
    return outcome.model.state_dict()


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2, "max_steps": 7}])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(run, tmp_path, settings):
    """38 rows are four steps of 8 a pass: checkpoint 4 is at the end of the first, or with accumulation of the second."""
    whole = run("whole", **settings)
    (tmp_path / "broken").mkdir()
    shutil.copytree(tmp_path / "whole/checkpoint-4", tmp_path / "broken/checkpoint-4")
    resumed = run("broken", resume_from_checkpoint="auto", **settings)
    assert whole.record["steps"] == resumed.record["steps"] == settings.get("max_steps", 11)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name
    for part in ("report", "stream", "leakage", "sources"):
        assert whole.record["data"][part] == resumed.record["data"][part], part
    left = whole.record["data"]["statistics"]["rows"] - resumed.record["data"]["statistics"]["rows"]
    assert left == 4 * 8 * settings.get("gradient_accumulation_steps", 1), "rows to be thrown away were tokenised"
    other = run("other", seed=7, **settings)
    assert any(not torch.equal(tensor, weights(other)[name]) for name, tensor in weights(whole).items())


def test_one_batch_of_a_stream_trains_what_one_batch_of_a_corpus_trains(run, tmp_path):
    """Without dropout the order in a batch changes nothing but rounding; repeated sentences must be masked in both."""
    rows = [(f"문장 {n % 5}", f"같은 문장 {n}", f"다른 문장 {n % 3}") for n in range(16)]
    path = tmp_path / "triplets.tsv"
    path.write_text("anchor\tpositive\tnegative\n" + "".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    outcomes = {}
    for name, mask, streaming in (("stream", True, True), ("corpus", True, False), ("unmasked", False, True)):
        outcomes[name] = run(
            name,
            backbone={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
            model={"mask_duplicates": mask},
            data={"train_file": [str(path)], "streaming": streaming},
            per_device_train_batch_size=16,
            max_steps=2,
            logging_steps=1,
            save_strategy="no",
        )
    losses = {
        name: [entry["loss"] for entry in outcome.record["log_history"] if "loss" in entry]
        for name, outcome in outcomes.items()
    }
    assert losses["stream"] == pytest.approx(losses["corpus"], rel=1e-5)
    assert losses["unmasked"][0] > losses["stream"][0] + 0.01
    for name, tensor in weights(outcomes["corpus"]).items():
        torch.testing.assert_close(weights(outcomes["stream"])[name], tensor, rtol=1e-3, atol=2e-5)


def test_the_record_says_what_was_read_and_what_not(run, files, tmp_path, caplog):
    files[0].write_text(files[0].read_text(encoding="utf-8") + "\n \n", encoding="utf-8")
    pairs = tmp_path / "sts.tsv"
    pairs.write_text(
        "sentence1\tsentence2\tscore\n파일 1의 문장 3\t없는 문장\t1\n파일1의 문장4.\t파일 2의 문장 5\t2\n가\t나\t3\n",
        encoding="utf-8",
    )
    data = {"eval_task": str(pairs)}
    with caplog.at_level(logging.INFO):
        outcome = run(data=data, max_steps=6, save_strategy="no")
    found = json.loads((outcome.output_dir / "simcse_run.json").read_text(encoding="utf-8"))["data"]
    assert [(source["sha256"], source["rows"]) for source in found["sources"]] == [
        (sha256_of(path), rows) for path, rows in zip(files, (8, 21, 11), strict=True)
    ]
    # One pass of 40 lines, and of the second what fills the buffer and three batches, in blocks of 64 from a file.
    report = found["report"]
    assert report["read"] == report["kept"] + report["dropped"]["empty_sentence"] and 40 < report["read"] <= 80
    assert found["stream"] == {
        "shuffle_buffer": 9,
        "finished_passes": 1,
        "left_over": 6,
        "deduplicated": False,
    }
    leaked = next(iter(found["leakage"].values()))
    assert (leaked["exact"], leaked["loose"], leaked["loose_pairs"]) == (2, 3, 1)
    assert found["statistics"]["rows"] == 7 * 8 and found["statistics"]["unknown_tokens"] == 0
    messages = [record.getMessage() for record in caplog.records]
    assert any("pass 1 over the stream is finished; 40 rows read, 38 sentences kept" in text for text in messages)
    assert any("stream, pass 2: " in text and "dropped: empty sentence (first: " in text for text in messages)
    dropped = run("drop", data=data | {"on_leakage": "drop"}, max_steps=5)
    found = dropped.record["data"]
    assert found["report"]["dropped"]["in_evaluation_set"] >= 3 and next(iter(found["leakage"].values()))["loose"] == 0
    with pytest.raises(DataError, match=r"\d\.txt, line \d: '파일 \d의 문장 \d' is a sentence of an evaluation set"):
        run("error", data=data | {"on_leakage": "error"})


@pytest.mark.parametrize(
    ("train_as", "columns"), [("labels", "premise\thypothesis\tlabel"), ("scores", "sentence1\tsentence2\tscore")]
)
def test_pairs_with_a_value_can_be_streamed(run, tmp_path, train_as, columns):
    values = {"labels": ["entailment", "neutral", "contradiction"], "scores": ["0", "2", "5"]}[train_as]
    path = tmp_path / "pairs.tsv"
    lines = [f"가 {n}\t나 {n}\t{values[n % 3]}\n" for n in range(12)]
    path.write_text(columns + "\n" + "".join(lines), encoding="utf-8")
    outcome = run(data={"train_file": [str(path)], "train_as": train_as}, max_steps=2, save_strategy="no")
    assert outcome.record["data"]["shape"] == {"labels": "labelled", "scores": "scored"}[train_as]
    assert outcome.record["steps"] == 2


REFUSED = [
    ({}, {"train_file": None, "train_dataset": "org/set"}, {}, "streaming reads train_file.*Save a Hub dataset as"),
    ({}, {}, {"max_steps": -1, "num_train_epochs": 2}, "streaming needs max_steps"),
    ({}, {"source_weights": [1.0]}, {}, "source_weights needs the whole corpus"),
    ({}, {"max_train_samples": 5}, {}, "max_train_samples would mean other rows.*Leave it out"),
    ({}, {"scored_file": ["x.tsv"]}, {}, "scored_file needs the whole corpus.*first_stage"),
    (
        {"distillation": "vectors", "teacher_vectors": "a.npy", "teacher_sentences": "a.txt"},
        {},
        {},
        "distillation needs the whole corpus",
    ),
    ({}, {}, {"dataloader_num_workers": 2}, "dataloader_num_workers must be 0"),
    (
        {},
        {},
        {"train_sampling_strategy": "sequential"},
        "train_sampling_strategy sequential does nothing.*shuffle_buffer 1",
    ),
    ({}, {}, {"eval_strategy": "epoch"}, "eval_strategy epoch means the end of the run"),
    ({}, {}, {"save_strategy": "epoch"}, "save_strategy epoch means the end of the run"),
    ({}, {}, {"logging_strategy": "epoch"}, "logging_strategy epoch means the end of the run"),
]


@pytest.mark.parametrize(("model", "data", "settings", "message"), REFUSED)
def test_what_needs_the_whole_corpus_is_refused(tmp_path, model, data, settings, message):
    defaults = {"max_steps": 5, "load_best_model_at_end": False}
    arguments = (
        ModelArguments(**({"model_name_or_path": "sample:encoder"} | model)),
        DataArguments(**({"train_file": ["a.txt"], "streaming": True} | data)),
        SimCSETrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, **(defaults | settings)),
    )
    with pytest.raises(ConfigError, match=message):
        check_streaming(*arguments)
    with pytest.raises(ConfigError, match=message):
        train(*arguments)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="shuffle_buffer is 0; it must be at least 1"):
        DataArguments(train_file=["a.txt"], streaming=True, shuffle_buffer=0)


def test_files_that_cannot_be_streamed_are_named(tmp_path):
    def write(name: str, *lines: str) -> str:
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return str(tmp_path / name)

    nli = write("nli.tsv", "premise\thypothesis\tlabel", "가\t나\tneutral")
    two = write("two.tsv", "anchor\tpositive\tnegative", "가\t나\t다")
    three = write("three.tsv", "anchor\tpositive\tnegative\tnegative_2", "가\t나\t다\t라")
    sentences = write("sentences.txt", "가")
    blank = write("blank.txt", "", " ")
    broken = write("broken.tsv", "anchor\tpositive", "가\t나", "다")
    for names, message in (
        ([nli], r"nli\.tsv holds NLI rows.*simcse-hf prepare.*train_as to labels"),
        ([two, three], r"different numbers of sentences in a row \(.*two\.tsv: 3; .*three\.tsv: 4\)"),
        ([two, sentences], "different shapes"),
        ([blank], r"no training rows are left of .*blank\.txt"),
        ([broken], r"broken\.tsv, line 3: 1 tab-separated fields"),
        ([str(tmp_path / "*.none")], r"there is no data file"),
    ):
        with pytest.raises(DataError, match=message):
            load_training_views(DataArguments(train_file=names, streaming=True))


def test_thousands_of_files_of_different_kinds_are_refused_in_a_few_words(tmp_path):
    for number in range(300):
        columns = "anchor\tpositive\tnegative" + "\tnegative_2" * (number % 2)
        (tmp_path / f"{number:03}.tsv").write_text(columns + "\n", encoding="utf-8")
    expected = (
        r"a row \(.*/000\.tsv and 149 more: 3; .*/001\.tsv and 149 more: 4\)\. Make them equal, or train separately"
    )
    with pytest.raises(DataError, match=expected):
        load_training_views(DataArguments(train_file=[str(tmp_path / "*.tsv")], streaming=True))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (
            "a.jsonl",
            '[]\n{"text": "나"}\n{"text": "다"}\n',
            "line 1: a row must be an object with named fields, not list",
        ),
        ("a.jsonl", '{\n{"text": "나"}\n{"text": "다"}\n', "line 1: not JSON"),
        ("a.json", '["가", {}, {"text": "나"}, {"text": "다"}]', "item 0: a row must be an object"),
    ],
)
def test_a_first_row_that_cannot_be_read_is_skipped_when_asked(run, tmp_path, name, content, problem):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=f"{problem}.*set on_bad_row to skip"):
        load_training_views(DataArguments(train_file=[str(path)], streaming=True))
    data = {"train_file": [str(path)], "on_bad_row": "skip"}
    outcome = run(data=data, per_device_train_batch_size=2, max_steps=1, save_strategy="no")
    report = outcome.record["data"]["report"]
    dropped = sum(report["dropped"].values())
    assert report["read"] == report["kept"] + dropped and dropped % (2 if name == "a.json" else 1) == 0 < dropped


def test_a_file_that_is_written_over_ends_the_run_before_its_end(run, tmp_path, monkeypatch):
    """Twelve steps read a twentieth of it."""
    path = tmp_path / "long.txt"
    path.write_text("".join(f"긴 파일의 문장 {row:04}\n" for row in range(2000)), encoding="utf-8")
    trained = []
    on_log = FollowStream.on_log

    def write_over(self, args, state, control, **kwargs):
        trained.append(state.global_step)
        if state.global_step == 4:
            path.write_text(path.read_text(encoding="utf-8").replace("문장", "비밀"), encoding="utf-8")
        return on_log(self, args, state, control, **kwargs)

    monkeypatch.setattr(FollowStream, "on_log", write_over)
    with pytest.raises(DataError, match=r"long\.txt was written again while it was trained on"):
        run(data={"train_file": [str(path)], "shuffle_buffer": 1}, per_device_train_batch_size=16, max_steps=40)
    assert trained[-1] < 12 and not (tmp_path / "run/simcse_run.json").exists()


@pytest.mark.parametrize("save_strategy", ["steps", "no"])
def test_a_change_after_the_last_draw_is_seen_before_anything_is_saved(run, tmp_path, monkeypatch, save_strategy):
    """All rows that are trained on wait in the buffer already; checkpoint and release would bear the old checksum."""
    path = tmp_path / "long.txt"
    path.write_text("".join(f"긴 파일의 문장 {row:04}\n" for row in range(2000)), encoding="utf-8")
    on_log = FollowStream.on_log

    def append(self, args, state, control, **kwargs):
        with path.open("a", encoding="utf-8") as file:
            file.write("뒤늦은 문장\n")
        return on_log(self, args, state, control, **kwargs)

    monkeypatch.setattr(FollowStream, "on_log", append)
    settings = {"per_device_train_batch_size": 4, "max_steps": 3, "logging_steps": 1, "save_steps": 3}
    with pytest.raises(DataError, match=r"long\.txt changed while it was trained on"):
        run(data={"train_file": [str(path)], "shuffle_buffer": 1}, **settings, save_strategy=save_strategy)
    assert not list((tmp_path / "run").glob("*checkpoint*")) and not (tmp_path / "run/simcse_run.json").exists()


def test_a_stream_too_small_for_a_batch_ends_the_command_with_one_line(good, refused, capsys):
    message = refused(training(good | {"per_device_train_batch_size": 13, "streaming": True}, "--shuffle_buffer", "5"))
    says(message, "12 training rows are fewer than one batch of 13")


def test_a_release_says_which_files_were_not_read_to_their_end(run, files, tmp_path):
    long = tmp_path / "long.txt"
    long.write_text("".join(f"긴 파일의 문장 {row}\n" for row in range(2000)), encoding="utf-8")
    outcome = run(data={"train_file": [str(path) for path in (*files, long)]}, max_steps=1, write_release=True)
    assert outcome.record["data"]["sources"][-1] == {"path": str(long), "sha256": sha256_of(long), "rows": None}
    card = (outcome.output_dir / "README.md").read_text(encoding="utf-8")
    assert "| long.txt | not all read | `" in card and "rows read, " in card


def test_the_sample_can_be_streamed_and_nothing_is_cached(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SIMCSE_CACHE_DIR", str(tmp_path / "cache"))
    outcome = run(data={"train_file": ["sample:sentences"]}, max_steps=1, save_strategy="no")
    assert outcome.record["data"]["sources"][0]["sha256"] == sha256_of(SAMPLES["sentences"])
    assert not (tmp_path / "cache").exists()
