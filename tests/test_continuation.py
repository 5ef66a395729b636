"""A run goes on with what it was, or says what is not as it was."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from test_checkpoints import checkpoint

from simcse_hf.continuation import changed_settings, check_may_go_on, differences, goes_further, read_record
from simcse_hf.errors import ConfigError, DataError, SimCSEError, TrainingError
from simcse_hf.files import sha256_of

SOURCE = {"path": "a.txt", "sha256": "0" * 64, "rows": 3}
TRAINING = {
    "max_steps": 9,
    "num_train_epochs": 1.0,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "scored_batch_size": None,
    "early_stopping_patience": 2,
    "of_another_release": 1,
    "per_device_eval_batch_size": 8,
    "learning_rate": 1.0,
    "output_dir": "a",
    "metric_for_best_model": "avg",
}
FACTS = {
    "data": [SOURCE],
    "evaluated_on": [SOURCE | {"path": "dev.tsv"}],
    "kept_out": [],
    "arguments": {"model": {"temperature": 0.05, "dims": (1, 2)}, "data": {"train_as": "auto"}, "training": TRAINING},
    "world_size": 2,
    "mixed_precision": "no",
}


def facts(*, data: dict | None = None, training: dict | None = None, model: dict | None = None, **others) -> dict:
    found = copy.deepcopy(FACTS) | others
    found["arguments"]["data"] |= data or {}
    found["arguments"]["training"] |= training or {}
    found["arguments"]["model"] |= model or {}
    del found["arguments"]["training"]["of_another_release"]
    return found


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = checkpoint(tmp_path, 1, json.loads(json.dumps(FACTS)))
    (folder / "trainer_state.json").write_text('{"max_steps": 12}', encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "now",
    [
        facts(),
        facts() | {"data": [SOURCE | {"path": "moved.txt"}]},
        facts(evaluated_on=[]),
        facts(evaluated_on=[SOURCE | {"path": "moved.tsv"}]),
        facts(model={"temperature": 0.1}),
        facts(training={"per_device_train_batch_size": 4}),  # max_steps says where it ends
        facts(training={"max_steps": -1, "per_device_train_batch_size": 16}, world_size=1),
        facts(evaluated_on=[], training={"metric_for_best_model": "alignment"}),
    ],
)
def test_it_may_go_on(saved, now) -> None:
    check_may_go_on(saved, now)


@pytest.mark.parametrize(
    ("now", "kind", "words"),
    [
        (
            facts() | {"data": [SOURCE | {"sha256": "1" * 64}]},
            DataError,
            ["a.txt is not what a.txt was when checkpoint-1 was saved", "000000000000 then", "Put back the data"],
        ),
        (facts() | {"data": [SOURCE, SOURCE]}, DataError, ["1 data files were trained on, and now there are 2"]),
        (
            facts() | {"data": [{"hub": "someone/set", "fingerprint": "f"}]},
            DataError,
            ["someone/set is not what a.txt"],
        ),
        (
            facts(evaluated_on=[{"path": "new.tsv", "sha256": "2" * 64}]),
            DataError,
            ["new.tsv is not what dev.tsv was", "start a new run", "cannot be compared"],
        ),
        (facts(data={"train_as": "sentences"}), DataError, ["train_as: auto -> sentences", "rows are not those of"]),
        (
            facts(training={"metric_for_best_model": "alignment"}),
            ConfigError,
            ["metric_for_best_model: avg -> alignment", "was found by the other"],
        ),
        (
            facts(training={"max_steps": -1, "per_device_train_batch_size": 16}),
            TrainingError,
            ["per_device_train_batch_size: 8 -> 16", "num_train_epochs", "max_steps", "it was 12"],
        ),
        (facts(training={"max_steps": -1}, world_size=1), TrainingError, ["world_size: 2 -> 1", "it was 12"]),
        (
            facts(
                training={"max_steps": -1, "per_device_train_batch_size": 16, "scored_batch_size": 8},
                world_size=1,
            ),
            TrainingError,
            ["per_device_train_batch_size: 8 -> 16; scored_batch_size: None -> 8; world_size: 2 -> 1"],
        ),
        (
            facts(kept_out=[SOURCE, {"hub": "someone/set", "fingerprint": "f"}]),
            DataError,
            ["on_leakage drop", "These were none when checkpoint-1 was saved", "are a.txt, someone/set"],
        ),
        (
            facts(training={"max_steps": -1, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}),
            TrainingError,
            ["gradient_accumulation_steps: 1 -> 2; per_device_train_batch_size: 8 -> 4"],
        ),
    ],
)
def test_other_rows_measures_and_lengths_are_refused_with_a_cure(saved, now, kind, words) -> None:
    with pytest.raises(SimCSEError) as error:
        check_may_go_on(saved, now)
    assert type(error.value) is kind
    for word in words:
        assert word in str(error.value)


def test_a_checkpoint_of_which_nothing_is_known_is_taken(tmp_path) -> None:
    folder = checkpoint(tmp_path, 1)
    check_may_go_on(folder, facts())
    assert changed_settings(folder, facts()) == []
    other = checkpoint(tmp_path, 2, {"data": [], "arguments": {}})  # of an earlier version
    check_may_go_on(other, facts())
    assert changed_settings(other, facts()) == []


def test_settings_that_changed_are_listed_and_places_are_not(saved) -> None:
    assert changed_settings(saved, facts(training={"output_dir": "b", "per_device_eval_batch_size": 1})) == []
    now = facts(model={"temperature": 0.1}, training={"learning_rate": 2.0}, world_size=1)
    assert changed_settings(saved, now) == [
        "world_size: 2 -> 1, so this epoch sees some rows twice and others not",
        "temperature: 0.05 -> 0.1",
        "learning_rate: 1.0 -> 2.0, but the checkpoint's goes on",
    ]
    as_many = facts(training={"per_device_train_batch_size": 16}, world_size=1)
    assert changed_settings(saved, as_many) == ["world_size: 2 -> 1", "per_device_train_batch_size: 8 -> 16"]


@pytest.mark.parametrize(
    ("training", "further"),
    [
        ({}, False),
        ({"max_steps": 10}, True),
        ({"max_steps": 8}, False),
        ({"num_train_epochs": 2.0}, True),
        ({"num_train_epochs": 0.5}, False),
        ({"max_steps": -1, "num_train_epochs": 2.0}, False),  # who knows
        ({"early_stopping_patience": 5}, True),
        ({"early_stopping_patience": None}, True),
        ({"early_stopping_patience": 1}, False),
    ],
)
def test_more_steps_than_a_finished_run_made(training, further) -> None:
    record = json.loads(json.dumps(FACTS)) | {"steps": 9}
    assert goes_further(record, facts(training=training)["arguments"]) is further


GROUPS = '{"steps": 1, "arguments": {"model": {}, "data": {}, "training": {}}'


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "{}",
        "[]",
        "[" * 9999,
        '{"arguments": {"training": []}, "steps": 1}',
        GROUPS.replace("1", "null") + "}",
        GROUPS + ', "data": [1]}',
        GROUPS + ', "data": {"sources": 1}}',
        GROUPS + ', "scored_data": {"sources": [1]}}',
    ],
)
def test_a_damaged_record_is_one_sentence(content, tmp_path) -> None:
    path = tmp_path / "simcse_run.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"simcse_run\.json is damaged"):
        read_record(path)
    path.write_text(GROUPS + "}", encoding="utf-8")
    assert read_record(path)["steps"] == 1


def test_files_are_compared_with_those_there_were(tmp_path) -> None:
    files = [tmp_path / name for name in ("a.txt", "b.txt")]
    for file in files:
        file.write_text("봄이 왔다.\n", encoding="utf-8")
    arguments = {"data": {"train_file": [str(tmp_path / "*.txt")], "scored_file": None}}
    sources = [{"path": str(file), "sha256": sha256_of(file)} for file in files]
    record = {"arguments": arguments, "data": {"sources": sources}, "scored_data": None}
    assert differences(record, arguments) == {}
    (tmp_path / "c.txt").write_text("여름이 왔다.\n", encoding="utf-8")
    assert differences(record, arguments) == {"train_file": "train_file was 2 files and is 3"}
    (tmp_path / "c.txt").unlink()
    files[1].write_text("가을이 왔다.\n", encoding="utf-8")
    assert differences(record, arguments) == {str(files[1]): f"{files[1]} has another content"}
    for file in files:  # the run is over, and its data is not needed any more
        file.unlink()
    assert differences(record, arguments) == {}
