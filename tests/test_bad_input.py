"""Bad input: one line that says what is wrong and what to do, exit code 2, and nothing half-written."""

from __future__ import annotations

import errno
import gzip
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, SENTENCES, reconfigure, says, training
from safetensors import SafetensorError

import simcse_hf.batch_losses
from simcse_hf import SimCSEModel
from simcse_hf.checkpoints import PARTIAL
from simcse_hf.cli import main
from simcse_hf.errors import DataError, TrainingError
from simcse_hf.trainer import SimCSETrainer

SCORED = "sentence1\tsentence2\tscore\n" + "".join(f"첫 문장 {n}\t둘째 문장 {n}\t{n % 6}.0\n" for n in range(8))


def assert_nothing_half_written(output_dir: Path) -> None:
    """No release, no record, no scratch file or folder: in the run's folder or beside it."""
    assert not (output_dir / "simcse_run.json").exists() and not (output_dir / "model.safetensors").exists()
    assert hidden(output_dir.parent) == []


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(".")]


def checkpoints(output_dir: Path) -> list[str]:
    return sorted(path.name for path in output_dir.glob("checkpoint-*"))


def assert_checkpoint_is_whole(folder: Path) -> None:
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.load(folder / name, weights_only=False)
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    assert folder.name == f"checkpoint-{state['global_step']}"
    assert all(tensor.isfinite().all() for tensor in SimCSEModel.from_pretrained(folder).state_dict().values())


def test_without_a_defect_the_same_commands_succeed(good, capsys) -> None:
    """Else every test below would be vacuous."""
    assert main(training(good)) == 0
    assert capsys.readouterr().out.endswith(f"results: {good['output_dir']}\n")
    assert checkpoints(good["output_dir"]) == ["checkpoint-1", "checkpoint-2"]
    assert hidden(good["output_dir"].parent) == []
    for name in checkpoints(good["output_dir"]):
        assert_checkpoint_is_whole(good["output_dir"] / name)
    evaluation = ["eval", good["model_name_or_path"], "--pooler_type", "avg", "--tasks", "sample:sts"]
    assert main([str(part) for part in evaluation]) == 0


# --- data -----------------------------------------------------------------------------------------------------------

BAD_TRAINING_FILES = {
    "an empty file": ("empty.txt", b"", ["empty.txt is empty"]),
    "a header alone": ("header.tsv", b"anchor\tpositive\n", ["no training rows are left", "header.tsv"]),
    "wrong columns": (
        "columns.tsv",
        b"left\tright\na\tb\n",
        ["columns.tsv", "'left', 'right'", "anchor, positive, negative", "column_names"],
    ),
    "too few fields": (
        "short.tsv",
        "anchor\tpositive\tnegative\n가\t나\t다\n라\t마\n".encode(),
        ["short.tsv, line 3", "2 tab-separated fields", "anchor, positive, negative", "on_bad_row"],
    ),
    "too many fields": (
        "long.csv",
        "anchor,positive\n가,나\n라,마,바\n".encode(),
        ["long.csv, line 3", "3 comma-separated fields", "on_bad_row"],
    ),
    "a broken line of JSON": (
        "rows.jsonl",
        '{"text": "가"}\n{"text": \n'.encode(),
        ["rows.jsonl, line 2", "not JSON", "on_bad_row"],
    ),
    "broken JSON": ("rows.json", b'[{"text": "a"},\n]', ["rows.json, line 2", "not JSON"]),
    "EUC-KR": (
        "euckr.txt",
        b"plain\n" + "안녕하세요\n".encode("euc-kr"),
        ["euckr.txt, line 2", "0xbe", "EUC-KR", "iconv -f cp949 -t utf-8"],
    ),
    "bytes of no encoding": ("noise.txt", b"plain\n\xff\xff\n", ["noise.txt, line 2", "0xff", "UTF-8"]),
    "only empty sentences": (
        "blank.txt",
        " \n\t\n\u200b\n\n".encode(),
        ["blank.txt", "4 rows read, 0 sentences kept", "4 dropped: empty sentence (first: ", "blank.txt, line 1"],
    ),
    "only empty sides": (
        "sides.tsv",
        "anchor\tpositive\n가\t\n\t나\n".encode(),
        ["sides.tsv", "2 dropped: empty sentence", "sides.tsv, line 2"],
    ),
    "a cut-off archive": ("cut.txt.gz", gzip.compress("문장\n".encode() * 999)[:40], ["cut.txt.gz", "damaged"]),
    "no archive": ("plain.txt.gz", "문장\n".encode(), ["plain.txt.gz", "its suffix is wrong"]),
    "another format": ("rows.docx", b"PK", ["rows.docx", "'.docx'", ".txt, .tsv, .csv"]),
    "scored pairs": ("scored.tsv", SCORED.encode(), ["scored.tsv holds scored pairs", "train_as"]),
}


@pytest.mark.parametrize("case", BAD_TRAINING_FILES)
def test_a_bad_training_file_is_refused_with_file_line_and_cure(case, good, refused, tmp_path) -> None:
    name, content, fragments = BAD_TRAINING_FILES[case]
    (tmp_path / name).write_bytes(content)
    message = refused(training(good | {"train_file": tmp_path / name}))
    says(message, *fragments)
    assert_nothing_half_written(good["output_dir"])


@pytest.mark.parametrize("name", ["nowhere.txt", "*.nothing", "folder"])
def test_a_missing_file_a_glob_of_nothing_and_a_folder_are_named(name, good, refused, tmp_path) -> None:
    (tmp_path / "folder").mkdir()
    message = refused(training(good | {"train_file": tmp_path / name}))
    says(message, str(tmp_path / name), "is a folder" if name == "folder" else "there is no data file")
    assert_nothing_half_written(good["output_dir"])


def test_training_data_must_be_named_once(good, refused) -> None:
    without = {key: value for key, value in good.items() if key != "train_file"}
    for settings in (without, good | {"train_dataset": "nobody/nothing"}):
        says(refused(training(settings)), "exactly one of train_file", "train_dataset")


def test_files_of_different_shapes_do_not_mix(good, refused, tmp_path) -> None:
    (tmp_path / "more.txt").write_text("문장\n", encoding="utf-8")
    message = refused([*training(good), "--train_file", good["train_file"], tmp_path / "more.txt"])
    says(message, "train.tsv: triplets", "more.txt: sentences", "one shape at a time")


BAD_EVALUATION_FILES = {
    "an empty file": ("", ["sts.tsv is empty"]),
    "wrong columns": ("left\tright\n가\t나\n", ["sts.tsv", "'left', 'right'", "sentence1"]),
    "no scores": ("sentence1\tsentence2\n가\t나\n", ["sts.tsv has the columns sentence1, sentence2", "score"]),
    "too few fields": (
        "sentence1\tsentence2\tscore\n가\t나\t1\n가\t2\n",
        ["sts.tsv, line 3", "2 tab-separated fields"],
    ),
    "an empty sentence": (
        "sentence1\tsentence2\tscore\n가\t나\t1\n가\t \t2\n",
        ["sts.tsv, line 3", "an empty sentence", "mend the file"],
    ),
    "a score above the scale": (
        "sentence1\tsentence2\tscore\n가\t나\t1\n가\t나\t5.5\n",
        ["sts.tsv, line 3", "5.5 is outside the scale 0.0 to 5.0"],
    ),
    "a score below the scale": (
        "sentence1\tsentence2\tscore\n가\t나\t-1\n",
        ["sts.tsv, line 2", "-1.0 is outside the scale"],
    ),
    "a score that is not finite": (
        "sentence1\tsentence2\tscore\n가\t나\tnan\n",
        ["line 2", "nan is outside the scale"],
    ),
    "a score that is no number": ("sentence1\tsentence2\tscore\n가\t나\thigh\n", ["line 2", "'high'", "not a number"]),
    "a single pair": ("sentence1\tsentence2\tscore\n가\t나\t1\n", ["sts.tsv holds 1 scored pairs", "at least 2"]),
}


@pytest.mark.parametrize("case", BAD_EVALUATION_FILES)
def test_a_bad_evaluation_set_is_refused_in_training_and_in_scoring(case, good, refused, tmp_path) -> None:
    content, fragments = BAD_EVALUATION_FILES[case]
    path = tmp_path / "sts.tsv"
    path.write_text(content, encoding="utf-8")
    says(refused(training(good | {"eval_task": path})), *fragments)
    says(refused(["eval", "sample:encoder", "--tasks", path, "--output", tmp_path / "scores"]), *fragments)
    assert_nothing_half_written(good["output_dir"])
    assert not (tmp_path / "scores").exists()


def test_an_unknown_task_is_refused_with_those_there_are(good, refused, monkeypatch) -> None:
    monkeypatch.delenv("SIMCSE_DATA_DIR", raising=False)
    for argv in (training(good | {"eval_task": "korsts"}), ["eval", "sample:encoder", "--tasks", "korsts"]):
        says(refused(argv), "'korsts'", "korsts-dev", "sample:sts")
    says(refused(["eval", "sample:encoder", "--tasks", "korsts-dev"]), "sts-dev.tsv", "SIMCSE_DATA_DIR")
    says(refused(["eval", "sample:encoder", "--data_dir", good["output_dir"]]), "korsts-dev", "looked for")


def test_a_corpus_for_searching_may_hold_no_empty_line(refused, tmp_path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("하나\n\n셋\n", encoding="utf-8")
    for command in (
        ["search", "--corpus", corpus, "질문"],
        ["encode", corpus, "--output", tmp_path / "vectors.npy"],
    ):
        message = refused([*command, "--model", "sample:encoder", "--pooler_type", "avg"])
        says(message, "corpus.txt, line 2", "an empty sentence")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt"]


def test_preparing_from_other_than_nli_leaves_the_target_as_it_was(refused, tmp_path) -> None:
    (tmp_path / "pairs.tsv").write_text("anchor\tpositive\n가\t나\n", encoding="utf-8")
    (tmp_path / "nli.tsv").write_text("premise\thypothesis\tlabel\n가\t나\tyes\n", encoding="utf-8")
    (tmp_path / "out.tsv").write_text("what was there", encoding="utf-8")
    argv = ["prepare", "--output", tmp_path / "out.tsv"]
    says(refused([*argv, tmp_path / "pairs.tsv"]), "pairs.tsv holds pairs", "premise, hypothesis, label")
    says(refused([*argv, tmp_path / "nli.tsv"]), "nli.tsv, line 2", "'yes'", "on_bad_row")
    assert (tmp_path / "out.tsv").read_text(encoding="utf-8") == "what was there"
    assert hidden(tmp_path) == []


# --- settings -------------------------------------------------------------------------------------------------------

BAD_SETTINGS = {
    "fewer rows than a batch": (
        {"per_device_train_batch_size": 16},
        ["12 training rows", "one batch of 16", "per_device_train_batch_size of 12 or less"],
    ),
    "a batch of one": ({"per_device_train_batch_size": 1}, ["per_device_train_batch_size is 1", "Use 2 or more"]),
    "no batch": ({"per_device_train_batch_size": 0}, ["per_device_train_batch_size is 0", "at least 1"]),
    "too few samples": ({"max_train_samples": 3}, ["3 training rows", "one batch of 4"]),
    "a short last batch": ({"dataloader_drop_last": False}, ["dataloader_drop_last is false", "Leave it true"]),
    "an unknown key": ({"learning_rat": 1}, ["unknown key 'learning_rat'", "Did you mean 'learning_rate'?"]),
    "a removed key": ({"warmup_ratio": 0.1}, ["'warmup_ratio'", "use warmup_steps"]),
    "a wrong type": ({"learning_rate": "fast"}, ["learning_rate", "fast"]),
    "a temperature of 0": ({"temperature": 0}, ["temperature is 0.0", "must be > 0"]),
    "hardly any tokens": ({"max_seq_length": 2}, ["max_seq_length is 2", "need 3"]),
    "more tokens than positions": ({"max_seq_length": 513}, ["max_seq_length is 513", "512 tokens", "Use 512 or less"]),
    "an unknown pooler": ({"pooler_type": "mean"}, ["pooler_type", "mean", "avg_first_last"]),
    "a head that is not there": (
        {"pooler_type": "avg", "mlp_only_train": True},
        ["mlp_only_train", "'avg'", "pooler_type 'cls'"],
    ),
    "an unknown sample": ({"model_name_or_path": "sample:bert"}, ["no sample 'bert'", "encoder"]),
    "no checkpoint to resume": (
        {"resume_from_checkpoint": "nowhere"},
        ["nowhere is not a checkpoint", "trainer_state.json", "auto"],
    ),
    "the best of nothing": ({"save_strategy": "best"}, ["save_strategy best", "eval_task"]),
    "half precision on a processor": ({"fp16": True}, ["fp16", "GPU", "--fp16 false"]),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_a_setting_that_cannot_work_is_refused_with_its_name_and_cure(case, good, refused) -> None:
    changes, fragments = BAD_SETTINGS[case]
    says(refused(training(good | changes)), *fragments)
    assert_nothing_half_written(good["output_dir"])


def test_the_same_mistakes_in_a_file_name_the_file(good, refused, tmp_path) -> None:
    path = tmp_path / "config.json"
    for content, fragments in (
        ('{"learning_rat": 1}', ["unknown key 'learning_rat'", "Did you mean 'learning_rate'?"]),
        ('{"warmup_ratio": 0.1}', ["'warmup_ratio'", "use warmup_steps"]),
        ('{"learning_rate": "fast"}', ["learning_rate is 'fast'", "a number"]),
        ('{"max_steps": 2.5}', ["max_steps is 2.5", "a whole number"]),
        ('{"max_steps": 2,}', ["line 1", "not JSON"]),
    ):
        path.write_text(content, encoding="utf-8")
        says(refused(training(good, "--config", str(path))), "config.json", *fragments)
    says(refused(training(good, "--config", "nowhere.json")), "nowhere.json", "No such file")
    assert not good["output_dir"].exists()


def test_an_unsupervised_run_without_dropout_is_refused_unless_allowed(good, refused, backbone_dir, tmp_path) -> None:
    (tmp_path / "sentences.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    unsupervised = good | {"train_file": tmp_path / "sentences.txt"}
    no_dropout = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    for settings in (
        unsupervised | no_dropout,
        unsupervised | {"model_name_or_path": backbone_dir(**no_dropout)},
    ):
        says(refused(training(settings)), "no dropout is alive", "hidden_dropout_prob", "allow_no_dropout")
        assert_nothing_half_written(good["output_dir"])
    assert main(training(good | no_dropout)) == 0, "supervised training needs no dropout"
    shutil.rmtree(good["output_dir"])
    assert main(training(unsupervised | no_dropout | {"allow_no_dropout": True})) == 0
    assert checkpoints(good["output_dir"]) == ["checkpoint-1", "checkpoint-2"]


@pytest.mark.parametrize(
    ("argv", "fragments"),
    [
        ([], ["required", "COMMAND"]),
        (["evaluate"], ["'evaluate'", "eval"]),
        (["eval"], ["MODEL", "required"]),
        (["eval", "sample:encoder", "--task", "sample:sts"], ["--task"]),
        (["eval", "sample:encoder", "--text_mode", "raw"], ["'raw'", "legacy_strip"]),
        (["eval", "sample:encoder", "--pooler_type", "mean"], ["'mean'", "avg"]),
        (["eval", "sample:encoder", "--tasks", "sample:sts", "--device", "tpu"], ["'tpu'", "cannot be used"]),
        (["encode", "sample:sentences", "--model", "sample:encoder"], ["--output", "required"]),
        (
            ["encode", "sample:sentences", "--model", "x", "--output", "y", "--batch_tokens", "0"],
            ["batch_tokens", "'0'", "at least 1"],
        ),
        (["search", "--model", "x", "--corpus", "y", "--top_k", "0", "질문"], ["top_k", "'0'", "at least 1"]),
        (["search", "--model", "x", "--corpus", "y", "--top_k", "many", "질문"], ["top_k", "'many'"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0] in ("eval", "encode", "search") else None,
)
def test_a_wrong_flag_of_any_command_is_one_line_without_a_usage_dump(argv, fragments, refused) -> None:
    says(refused(argv), *fragments)


# --- models ---------------------------------------------------------------------------------------------------------


BAD_MODELS = {
    "no config.json": (lambda folder: (folder / "config.json").unlink(), ["not a model folder", "no config.json"]),
    "broken config.json": (
        lambda folder: (folder / "config.json").write_text("{"),
        ["config.json", "not a valid JSON"],
    ),
    "config.json of nothing": (lambda folder: (folder / "config.json").write_text("{}"), ["model_type", "config.json"]),
    "an unknown type": (lambda folder: reconfigure(folder, model_type="gpt9"), ["gpt9"]),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        ["cannot load weights", "model.safetensors"],
    ),
    "weights as a pickle": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        ["cannot load weights", "model.safetensors"],
    ),
    "weights of another shape": (
        lambda folder: reconfigure(folder, intermediate_size=128),
        ["intermediate.dense", "has the shape [64]", "asks for [128]"],
    ),
    "missing weights": (
        lambda folder: reconfigure(folder, num_hidden_layers=4),
        ["16 parameters are missing", "encoder.layer.3.", "random"],
    ),
    "another padding id": (
        lambda folder: reconfigure(folder, pad_token_id=3),
        ["pads with id 0", "the model with 3", "tokenizer saved beside the model"],
    ),
    "no tokenizer": (
        lambda folder: [path.unlink() for path in folder.glob("tokenizer*")],
        ["has no vocabulary", "tokenizer.json"],
    ),
    "a broken tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{"), ["cannot load a tokenizer"]),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_a_folder_that_is_no_whole_model_is_refused(case, good, refused, model_dir, tmp_path) -> None:
    spoil, fragments = BAD_MODELS[case]
    spoil(model_dir)
    place = [] if "padding" in case else [str(model_dir)]
    says(refused(training(good | {"model_name_or_path": model_dir})), *place, *fragments)
    scoring = ["eval", model_dir, "--pooler_type", "avg", "--tasks", "sample:sts", "--output", tmp_path / "scores"]
    says(refused(scoring), *place, *fragments)
    assert_nothing_half_written(good["output_dir"])
    assert not (tmp_path / "scores").exists()


def test_a_tokenizer_with_more_tokens_than_the_model_embeds_is_refused(good, refused, backbone_dir, tokenizer) -> None:
    small = backbone_dir(vocab_size=100)
    fragments = [f"{len(tokenizer):,} tokens", "embeds 100", "tokenizer saved beside the model"]
    assert len(tokenizer) > 100
    says(refused(training(good | {"model_name_or_path": small})), *fragments)
    says(refused(["eval", small, "--pooler_type", "avg", "--tasks", "sample:sts"]), *fragments)
    assert_nothing_half_written(good["output_dir"])


@pytest.mark.parametrize(("kind", "positions"), [("bert", 512), ("roberta", 129)])
def test_a_length_beyond_the_positions_is_refused_with_the_longest_there_is(
    kind, positions, good, refused, backbone_dir
) -> None:
    folder = backbone_dir(kind)
    fragments = [f"max_seq_length is {positions + 1}", f"Use {positions} or less"]
    too_long = good | {"model_name_or_path": folder, "max_seq_length": positions + 1}
    says(refused(training(too_long)), *fragments)
    scoring = ["eval", str(folder), "--pooler_type", "avg", "--tasks", "sample:sts", "--max_seq_length"]
    says(refused([*scoring, positions + 1]), *fragments)
    assert main([*scoring, str(positions)]) == 0, "the longest there is must work"


@pytest.mark.parametrize("command", ["eval", "encode", "search"])
def test_a_plain_encoder_needs_a_pooler_and_not_cls(command, refused, model_dir, tmp_path) -> None:
    argv = {
        "eval": ["eval", model_dir, "--tasks", "sample:sts"],
        "encode": ["encode", "sample:sentences", "--model", model_dir, "--output", tmp_path / "vectors.npy"],
        "search": ["search", "--model", model_dir, "--corpus", "sample:sentences", "질문"],
    }[command]
    says(refused(argv), "plain 'bert' encoder", "pooler_type", "cls_before_pooler, avg")
    says(refused([*argv, "--pooler_type", "cls"]), "trained head", "has none", "cls_before_pooler")
    assert not (tmp_path / "vectors.npy").exists()


def test_names_that_lead_nowhere_are_told_from_hub_ids(good, refused, tmp_path) -> None:
    """No network: the fixture `no_network` fails on any attempt."""
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    file, folder = good["train_file"], tmp_path / "nowhere"
    for name, fragments in (
        ("nobody/nothing", ["'nobody/nothing'", "Hub id", "Offline, name a local folder"]),
        (folder, [f"there is no model folder {folder}"]),
        (file, [f"{file} is a file"]),
    ):
        says(refused(training(good | {"model_name_or_path": name})), *fragments)
        says(refused(["eval", name, "--tasks", "sample:sts"]), *fragments)
    hub_data = {key: value for key, value in good.items() if key != "train_file"} | {"train_dataset": "nobody/nothing"}
    says(refused(training(hub_data)), "'nobody/nothing'", "Offline", "train_file")
    says(refused(["eval", "sample:encoder", "--tasks", "hub:nobody/nothing"]), "'nobody/nothing'", "Offline")
    assert_nothing_half_written(good["output_dir"])


def test_the_model_must_be_named(good, refused) -> None:
    without = {key: value for key, value in good.items() if key != "model_name_or_path"}
    says(refused(training(without)), "model_name_or_path is missing", "sample:encoder")


# --- the output folder ----------------------------------------------------------------------------------------------


def test_an_output_dir_that_is_a_file_stays_as_it_was(good, refused) -> None:
    good["output_dir"].write_text("mine", encoding="utf-8")
    says(refused(training(good)), str(good["output_dir"]), "is a file", "name a folder")
    assert good["output_dir"].read_text(encoding="utf-8") == "mine"
    below = good["output_dir"] / "run"
    says(refused(training(good | {"output_dir": below})), str(below), "Not a directory")


def test_a_finished_run_is_never_overwritten(good, refused) -> None:
    assert main(training(good)) == 0
    record = good["output_dir"] / "simcse_run.json"
    before = {path: path.stat().st_mtime_ns for path in good["output_dir"].rglob("*")}
    assert record in before
    says(refused(training(good)), str(good["output_dir"]), "finished run", "another output_dir")
    assert {path: path.stat().st_mtime_ns for path in good["output_dir"].rglob("*")} == before


def test_an_unfinished_run_is_gone_on_with_or_refused(good, refused, monkeypatch) -> None:
    break_loss_at(3, monkeypatch, interrupt)
    refused(training(good | {"max_steps": 4}), code=130)
    monkeypatch.undo()
    says(refused(training(good | {"max_steps": 4})), "checkpoint-2", "unfinished", "--resume_from_checkpoint auto")
    assert main(training(good | {"max_steps": 4}, "--resume_from_checkpoint", "auto")) == 0
    assert checkpoints(good["output_dir"]) == [f"checkpoint-{step}" for step in (1, 2, 3, 4)]


def test_places_that_cannot_be_written_are_named(refused, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    model = ["--pooler_type", "avg", "--batch_tokens", "256"]
    scoring = ["eval", "sample:encoder", "--tasks", "sample:sts", *model]
    encoding = ["encode", "sample:sts", "--model", "sample:encoder", *model]
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("\n".join(SENTENCES), encoding="utf-8")
    encoding[1] = str(sentences)
    says(refused([*scoring, "--output", tmp_path / "file"]), "File exists", str(tmp_path / "file"))
    (tmp_path / "folder.npy").mkdir()
    says(refused([*encoding, "--output", tmp_path / "folder.npy"]), "is a folder", str(tmp_path / "folder.npy"))
    says(refused([*encoding, "--output", tmp_path / "file" / "v.npy"]), str(tmp_path / "file"))
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine" and hidden(tmp_path) == []

    def forbidden(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "/protected/scores.json")

    monkeypatch.setattr("tempfile.mkstemp", forbidden)  # the tests may run as root, who may write anywhere
    says(refused([*scoring, "--output", tmp_path / "scores"]), "no permission", "/protected/scores.json")


# --- failures while training ----------------------------------------------------------------------------------------


def interrupt(loss: torch.Tensor) -> torch.Tensor:
    raise KeyboardInterrupt


def break_loss_at(step: int, monkeypatch: pytest.MonkeyPatch, change: Callable) -> None:
    """Let `change` have the loss of one training step."""
    true_loss, calls = simcse_hf.batch_losses.simcse_loss, itertools.count(1)

    def loss(*args, **kwargs):
        value = true_loss(*args, **kwargs)
        return change(value) if next(calls) == step else value

    monkeypatch.setattr(simcse_hf.batch_losses, "simcse_loss", loss)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights(value, good, refused, monkeypatch) -> None:
    trainers, compute_loss = [], SimCSETrainer.compute_loss

    def recorded(self, *args, **kwargs):
        trainers.append(self)
        return compute_loss(self, *args, **kwargs)

    monkeypatch.setattr(SimCSETrainer, "compute_loss", recorded)
    break_loss_at(3, monkeypatch, lambda loss: loss * value)
    message = refused(training(good | {"max_steps": 5, "eval_task": "sample:sts", "max_seq_length": 12}))
    says(message, f"the loss is {value}", "at step 3", "learning_rate", "checkpoint-")
    assert len(trainers) == 3
    assert checkpoints(good["output_dir"]) == ["checkpoint-1", "checkpoint-2"]
    assert_nothing_half_written(good["output_dir"])
    for name in checkpoints(good["output_dir"]):
        assert_checkpoint_is_whole(good["output_dir"] / name)
    first, last = (
        SimCSEModel.from_pretrained(good["output_dir"] / f"checkpoint-{step}").state_dict() for step in (1, 2)
    )
    stopped = trainers[-1].model.state_dict()
    assert all(torch.equal(stopped[name], last[name]) for name in last)
    assert any(not torch.equal(first[name], last[name]) for name in last), "nothing was trained at all"


def test_a_learning_rate_that_blows_up_is_named(good, refused) -> None:
    message = refused(training(good | {"max_steps": 4, "learning_rate": 1e30, "lr_scheduler_type": "constant"}))
    says(message, "the loss is nan at step 2", "Lower the learning_rate (1e+30)")
    assert checkpoints(good["output_dir"]) == ["checkpoint-1"]
    assert_nothing_half_written(good["output_dir"])


def half_then(error: BaseException) -> Callable:
    """Stands for a function that saves: writes part of a file, then fails."""

    def save(*args, **kwargs):
        path = next(Path(part) for part in args if isinstance(part, (str, Path)))
        (path / "half" if path.is_dir() else path).write_bytes(b"half")
        raise error

    return save


# What the libraries raise on a full disk (tried on a small tmpfs), and the function that raises it.
FULL_DISKS = {
    "safetensors": (
        "transformers.modeling_utils.safe_save_file",
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ),
    "torch.save": ("torch.save", RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")),
    "torch.save, disk full before": ("torch.save", RuntimeError("basic_ios::clear: iostream error")),
    "the tokenizer": (
        "transformers.PreTrainedTokenizerBase.save_pretrained",
        OSError(errno.ENOSPC, "No space left on device"),
    ),
    "the quota": (
        "transformers.PreTrainedTokenizerBase.save_pretrained",
        OSError(errno.EDQUOT, "Disk quota exceeded", "tokenizer.json"),
    ),
}


@pytest.mark.parametrize("case", FULL_DISKS)
def test_a_full_disk_leaves_the_earlier_checkpoint_and_no_part_of_the_next(case, good, refused, monkeypatch) -> None:
    target, error = FULL_DISKS[case]
    save_checkpoint = SimCSETrainer._save_checkpoint
    tried = []

    def fail_on_the_second(self, *args, **kwargs):
        tried.append(self.state.global_step)
        with monkeypatch.context() as patch:
            if self.state.global_step == 2:
                patch.setattr(target, half_then(error))
            return save_checkpoint(self, *args, **kwargs)

    monkeypatch.setattr(SimCSETrainer, "_save_checkpoint", fail_on_the_second)
    message = refused(training(good | {"max_steps": 4}))
    says(message, "the disk is full", "--resume_from_checkpoint auto")
    assert tried == [1, 2] and checkpoints(good["output_dir"]) == ["checkpoint-1"]
    assert_checkpoint_is_whole(good["output_dir"] / "checkpoint-1")
    assert_nothing_half_written(good["output_dir"])
    monkeypatch.undo()
    if case == "safetensors":  # the cure that the message names
        assert main(training(good, "--resume_from_checkpoint", "auto")) == 0
        assert checkpoints(good["output_dir"]) == ["checkpoint-1", "checkpoint-2"]


def test_a_disk_full_while_releasing_leaves_checkpoints_and_no_release(good, refused, monkeypatch) -> None:
    def fail(model, tokenizer, folder):
        (folder / "config.json").write_text("{}")
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "model.safetensors"))

    monkeypatch.setattr("simcse_hf.publication.write_release", fail)
    says(refused(training(good | {"write_release": True})), "the disk is full", "model.safetensors")
    assert [path.name for path in sorted(good["output_dir"].iterdir())] == ["checkpoint-1", "checkpoint-2"]
    assert_nothing_half_written(good["output_dir"])
    assert_checkpoint_is_whole(good["output_dir"] / "checkpoint-2")


def test_a_disk_full_under_any_other_output_keeps_what_was_there(refused, tmp_path, monkeypatch) -> None:
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "sentences.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    (tmp_path / "nli.tsv").write_text(
        "premise\thypothesis\tlabel\n가\t나\tentailment\n가\t다\tcontradiction\n", encoding="utf-8"
    )
    for name in ("out.tsv", "out.npy", "scores.json"):
        (tmp_path / name).write_text("what was there", encoding="utf-8")
    monkeypatch.setattr(np, "save", full)
    monkeypatch.setattr(os, "fsync", full)
    model = ["--pooler_type", "avg"]
    for argv in (
        ["prepare", tmp_path / "nli.tsv", "--output", tmp_path / "out.tsv"],
        ["encode", tmp_path / "sentences.txt", "--model", "sample:encoder", *model, "--output", tmp_path / "out.npy"],
        ["eval", "sample:encoder", "--tasks", "sample:sts", *model, "--output", tmp_path],
    ):
        says(refused(argv), "the disk is full")
    for name in ("out.tsv", "out.npy", "scores.json"):
        assert (tmp_path / name).read_text(encoding="utf-8") == "what was there"
    assert hidden(tmp_path) == [] and not (tmp_path / "scores.csv").exists()


def test_an_interrupt_gives_130_and_says_how_to_go_on(good, refused, monkeypatch) -> None:
    break_loss_at(2, monkeypatch, interrupt)
    says(refused(training(good), code=130), "interrupted", "--resume_from_checkpoint auto")
    assert checkpoints(good["output_dir"]) == ["checkpoint-1"]
    assert_checkpoint_is_whole(good["output_dir"] / "checkpoint-1")
    assert_nothing_half_written(good["output_dir"])


def test_an_interrupt_while_saving_leaves_no_part_of_a_checkpoint(good, refused, monkeypatch) -> None:
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", half_then(KeyboardInterrupt()))
    refused(training(good), code=130)
    assert checkpoints(good["output_dir"]) == []
    assert_nothing_half_written(good["output_dir"])


def start(argv: list[str], log: Path) -> subprocess.Popen:
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, str(REPOSITORY / "run_simcse.py"), *argv],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text(encoding="utf-8")
        assert time.monotonic() < deadline, "the run is not getting anywhere"
        time.sleep(0.002)


def test_a_killed_run_leaves_whole_checkpoints_and_goes_on_to_its_release(good, tmp_path, caplog) -> None:
    output_dir, log = good["output_dir"], tmp_path / "log"
    settings = good | {"max_steps": 4000, "save_steps": 2, "write_release": True, "num_train_epochs": 1}
    process = start(training(settings)[1:], log)
    try:
        # Killed while it writes the next checkpoint, if the poll is quick enough.
        wait_for(lambda: (output_dir / "checkpoint-2").exists() and any(output_dir.glob(".checkpoint-*")), process, log)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    left = checkpoints(output_dir)
    assert left and not (output_dir / "simcse_run.json").exists() and not (output_dir / "model.safetensors").exists()
    for name in left:
        assert_checkpoint_is_whole(output_dir / name)

    leftover = output_dir / f".checkpoint-9{PARTIAL}" / "checkpoint-9"  # whether the kill hit the writing or not
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half")
    last = max(int(name.split("-")[1]) for name in left)
    steps = last + 3
    assert main(training(settings | {"max_steps": steps}, "--resume_from_checkpoint", "auto")) == 0
    assert f"resuming from {output_dir / f'checkpoint-{last}'}" in caplog.text
    record = json.loads((output_dir / "simcse_run.json").read_text(encoding="utf-8"))
    assert record["steps"] == steps
    assert [entry["step"] for entry in record["log_history"] if "train_runtime" in entry] == [steps]
    assert SimCSEModel.from_pretrained(output_dir).config.pooler_type == "cls"
    assert f"checkpoint-{steps}" in checkpoints(output_dir)
    assert hidden(tmp_path) == []


# --- defects --------------------------------------------------------------------------------------------------------


def test_intervals_that_do_not_fit_come_with_a_cure(good, refused) -> None:
    settings = good | {"save_steps": 20, "eval_steps": 125}
    says(refused(training(settings)), "round multiple", "eval_task none", "load_best_model_at_end to false")


def test_debug_lets_the_exception_through(good, tmp_path, capsys) -> None:
    with pytest.raises(DataError, match=r"nowhere\.txt"):
        main(training(good | {"train_file": tmp_path / "nowhere.txt"}, "--debug"))
    with pytest.raises(TrainingError, match="12 training rows"):
        main(["--debug", *training(good | {"per_device_train_batch_size": 16})])
    assert "error:" not in capsys.readouterr().err


def test_debug_with_a_value_is_the_trainers_own_argument(good, capsys) -> None:
    assert main(training(good, "--debug", "nonsense")) == 2
    assert "argument --debug" in capsys.readouterr().err


def test_a_defect_of_ours_is_not_dressed_up_as_a_mistake_of_the_user(good, monkeypatch) -> None:
    def defect(loss):
        raise RuntimeError("shapes do not match")

    break_loss_at(1, monkeypatch, defect)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        main(training(good))
    assert_nothing_half_written(good["output_dir"])
