"""Configuration files and flags: typed values, or one error that says what to write instead."""

from __future__ import annotations

import json
import math
import re
import tempfile
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.trainer_utils import HubStrategy, SchedulerType

from simcse_hf.arguments import DataArguments, ModelArguments, SimCSETrainingArguments
from simcse_hf.errors import ConfigError
from simcse_hf.parser import REMOVED_KEYS, coerce, field_types, parse_arguments, read_config, typed_values

GROUPS = (ModelArguments, DataArguments, SimCSETrainingArguments)
FIELDS = field_types(GROUPS)

# Fields of TrainingArguments in transformers 4.57.1 that 5.23 no longer has.
GONE_SINCE_TRANSFORMERS_4 = """
adafactor fp16_backend fp16_opt_level fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap group_by_length
half_precision_backend include_inputs_for_metrics include_tokens_per_second jit_mode_eval logging_dir mp_parameters
no_cuda overwrite_output_dir past_index per_gpu_eval_batch_size per_gpu_train_batch_size push_to_hub_model_id
push_to_hub_organization push_to_hub_token ray_scope save_safetensors torchdynamo tpu_metrics_debug tpu_num_cores
use_ipex use_legacy_prediction_loop use_mps_device warmup_ratio
""".split()


def config_file(folder: Path, content: dict | str, suffix: str = ".json") -> str:
    path = folder / f"config{suffix}"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def parse(folder: Path, content: dict | str, *flags: str, suffix: str = ".json") -> dict[str, Any]:
    """Every argument of every group, by name."""
    argv = ["--config", config_file(folder, content, suffix), "--output_dir", str(folder / "run"), *flags]
    return {name: value for group in parse_arguments(GROUPS, argv) for name, value in vars(group).items()}


def refusal(folder: Path, content: dict | str, *flags: str, suffix: str = ".json") -> str:
    with pytest.raises(ConfigError) as caught:
        parse(folder, content, *flags, suffix=suffix)
    return str(caught.value)


def fits(value: Any, wanted: Any) -> bool:
    """Whether a value has the annotated type; written without a look at `coerce`."""
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in inner)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in inner)
    if origin is list:
        return isinstance(value, list) and all(fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(item, inner[1]) for item in value.values())
    return type(value) is wanted


# --- one value ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "wanted", "expected"),
    [
        ("3e-5", float, 3e-5),
        (3, float, 3.0),
        (" 0.1 ", float, 0.1),
        ("8", int, 8),
        (8.0, int, 8),
        ("8.0", int, 8),
        ("1e3", int, 1000),
        (2**53 + 1, int, 2**53 + 1),  # a float would round it
        (str(2**53 + 1), int, 2**53 + 1),
        ("false", bool, False),
        ("False", bool, False),
        ("no", bool, False),
        ("0", bool, False),
        (0, bool, False),
        ("true", bool, True),
        (1, bool, True),
        (True, bool, True),
        (5, str, "5"),
        (0.5, str, "0.5"),
        ("a.txt", list[str], ["a.txt"]),
        (["a.txt", "b.txt"], list[str], ["a.txt", "b.txt"]),
        (["1", 2], list[int], [1, 2]),
        ([], list[str], []),
        ("cls", Literal["cls", "avg"], "cls"),
        ("1", Literal[0, 1], 1),
        (1, Literal[0, 1], 1),
        (None, int | None, None),
        ("7", int | None, 7),
        ("x", int | str, "x"),
        ("7", str | int, 7),  # text fits everything, so it is tried last
        ({"a": 1}, dict | str, {"a": 1}),
        ({"a": "false"}, dict[str, bool], {"a": False}),
        ("linear", SchedulerType, SchedulerType.LINEAR),
        ("every_save", HubStrategy | str, HubStrategy.EVERY_SAVE),
        ({"any": ["thing"]}, Any, {"any": ["thing"]}),
    ],
)
def test_a_value_takes_the_type_of_its_field(value: Any, wanted: Any, expected: Any) -> None:
    found = coerce(value, wanted)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "wanted", "reason"),
    [
        (1.5, int, "it must be a whole number"),
        ("1.5", int, "it must be a whole number"),
        ("", int, "it must be a whole number"),
        (float("inf"), int, "it must be a whole number"),
        (float("nan"), int, "it must be a whole number"),
        (True, int, "it must be a whole number"),
        (True, float, "it must be a number"),
        ("fast", float, "it must be a number"),
        ("", float, "it must be a number"),
        (10**400, float, "it must be a number"),
        ([1.0], float, "it must be a number"),
        ("maybe", bool, "it must be true or false"),
        (2, bool, "it must be true or false"),
        (None, bool, "it must be true or false"),
        (None, str, "it must be text"),
        (True, str, "it must be text"),
        (["a"], str, "it must be text"),
        (None, int, "it must be a whole number"),
        (None, int | str, "it must not be empty"),
        ([None], list[str], "it must be text"),
        ({"a": 1}, list[str], "it must be text"),
        ("mean", Literal["cls", "avg"], "it must be one of cls, avg"),
        ("a", dict, "it must be a mapping"),
        ({"a": "maybe"}, dict[str, bool], "it must be true or false"),
        ("sometimes", SchedulerType, "it must be one of linear, cosine"),
        ("x", int | None, "it must be a whole number"),
        ("x", int | bool, "it must be a whole number or it must be true or false"),
        (5, Path, "it must be a Path, which cannot be written here"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_what_it_must_be(value: Any, wanted: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}"):
        coerce(value, wanted)


@given(st.floats(allow_nan=False))
def test_a_number_survives_being_written_as_text(number: float) -> None:
    assert coerce(str(number), float) == number


@given(st.integers())
@example(2**53 + 1)
@example(10**400)
def test_a_whole_number_survives_being_written_as_text(number: int) -> None:
    assert coerce(str(number), int) == number
    assert coerce(number, int) == number


def test_not_a_number_stays_not_a_number() -> None:
    assert math.isnan(coerce("nan", float))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["true", "no", "3", "1e-4"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(FIELDS)), JSON_VALUES)
@example("seed", 10**400)
@example("parallelism_config", {"a": 1})
@example("liger_kernel_config", {"rope": "false"})
@example("train_file", "~\0")
@example("temperature", 10**400)
def test_any_value_for_any_key_becomes_the_annotated_type_or_is_refused(key: str, value: Any) -> None:
    try:
        typed = typed_values({key: value}, FIELDS, "any.json")
    except ConfigError as error:
        assert str(error).startswith(f"any.json: {key} is ")
    else:
        assert list(typed) == [key] and fits(typed[key], FIELDS[key]), f"{typed[key]!r} is no {FIELDS[key]}"


@given(st.text(), JSON_VALUES)
def test_any_key_is_known_or_refused_by_name(key: str, value: Any) -> None:
    try:
        assert list(typed_values({key: value}, FIELDS, "any.json")) == [key]
    except ConfigError as error:
        assert key in str(error)


def test_the_check_of_types_above_can_fail() -> None:
    assert fits(1, int) and fits([1], list[int] | None) and fits(None, int | None)
    assert not (fits(True, int) or fits("1", int) or fits(["1"], list[int]) or fits({"a": "b"}, dict[str, bool]))


# --- the file -------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.text() | JSON_VALUES.map(json.dumps), st.sampled_from([".json", ".yaml", ".yml"]))
@example("[" * 100_000, ".json")
@example("[" * 5_000, ".yaml")
@example('{"seed": ' + "1" * 5_000 + "}", ".json")
@example("seed: " + "1" * 5_000, ".yaml")
@example("run_name: 2024-02-31", ".yaml")
@example("? [a]\n: 1", ".yaml")
@example("a: &x [*x]", ".yaml")
@example('{"a": "\\ud800"}', ".json")
@example("a: !!python/object/apply:os.getcwd []", ".yaml")
@example("\0", ".yaml")
@example("", ".json")
@example("", ".yaml")
def test_any_text_given_as_a_config_file_is_a_mapping_or_one_error(text: str, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"config{suffix}"
        path.write_text(text, encoding="utf-8")
        try:
            found = read_config(path)
        except ConfigError as error:
            assert path.name in str(error)
        else:
            assert isinstance(found, dict)


def test_json_and_yaml_say_the_same(tmp_path: Path) -> None:
    # YAML reads 3e-5 as text (its numbers need a point), off as false and ~ as nothing.
    text = "learning_rate: 3e-5\ndeduplicate: off\ntrain_file: [a.txt, b.txt]\ntokenizer_name: ~\nseed: 7\n"
    from_yaml = parse(tmp_path, text, suffix=".yaml")
    record = {
        "learning_rate": "3e-5",
        "deduplicate": "off",
        "train_file": ["a.txt", "b.txt"],
        "tokenizer_name": None,
        "seed": 7,
    }
    from_json = parse(tmp_path, record)
    for found in (from_yaml, from_json):
        assert found["learning_rate"] == 3e-5 and found["deduplicate"] is False and found["seed"] == 7
        assert found["train_file"] == ["a.txt", "b.txt"] and found["tokenizer_name"] is None


def test_what_neither_file_nor_flags_name_keeps_its_default(tmp_path: Path) -> None:
    found = parse(tmp_path, {})
    assert found["learning_rate"] == SimCSETrainingArguments(output_dir=str(tmp_path)).learning_rate
    assert found["eval_task"] == DataArguments().eval_task and found["pooler_type"] is None


def test_keys_that_start_with_an_underscore_are_comments(tmp_path: Path) -> None:
    assert read_config(Path(config_file(tmp_path, {"_about": "why", "_also": [1], "seed": 3}))) == {"seed": 3}
    assert parse(tmp_path, {"_about": "why", "seed": 3})["seed"] == 3


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    assert parse(tmp_path, '\ufeff{"seed": 3}')["seed"] == 3


def test_variables_and_the_home_folder_are_put_in_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCSE_TEST_DIR", "/data/ko")
    monkeypatch.setenv("HOME", "/home/someone")
    found = parse(
        tmp_path,
        {"train_file": ["${SIMCSE_TEST_DIR}/a.tsv", "~/b.tsv"], "data_dir": "$SIMCSE_TEST_DIR", "prompt": "a ~ b"},
    )
    assert found["train_file"] == ["/data/ko/a.tsv", "/home/someone/b.tsv"]
    assert found["data_dir"] == "/data/ko" and found["prompt"] == "a ~ b"


def test_a_variable_that_is_not_set_is_named_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIMCSE_NOT_SET", raising=False)
    message = refusal(tmp_path, {"train_file": ["ok.txt", "${SIMCSE_NOT_SET}/a.tsv"]})
    assert "train_file" in message and "environment variable SIMCSE_NOT_SET is not set" in message


@pytest.mark.parametrize(
    ("name", "text", "fragments"),
    [
        ("repeated.json", '{"seed": 1, "temperature": 2, "seed": 3}', ["'seed'", "occurs twice"]),
        ("repeated.yaml", "seed: 1\ntemperature: 2\nseed: 3\n", ["'seed'", "occurs twice"]),
        ("comma.json", '{\n  "seed": 1,\n  "temperature": 2,\n}', ["line 4", "not JSON"]),
        ("unclosed.yaml", "seed: 1\ntrain_file: [a.txt\n", ["line 3", "not YAML"]),
        ("list.json", '["seed"]', ["one mapping", "list"]),
        ("text.yaml", "seed", ["one mapping", "str"]),
        ("empty.yaml", "", ["one mapping", "NoneType"]),
        ("empty.json", "", ["line 1", "not JSON"]),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_place_and_cause(
    name: str, text: str, fragments: list[str], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path / name)
    for fragment in [name, *fragments]:
        assert fragment in str(caught.value)


def test_a_merged_yaml_mapping_may_be_overridden(tmp_path: Path) -> None:
    (tmp_path / "merge.yaml").write_text("_base: &base {seed: 1, prompt: a}\n<<: *base\nseed: 2\n", encoding="utf-8")
    assert read_config(tmp_path / "merge.yaml") == {"seed": 2, "prompt": "a"}


def test_a_missing_file_a_folder_and_another_encoding_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json: No such file"):
        read_config(tmp_path / "nowhere.json")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_config(tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        read_config(Path("~nobody-of-this-name/config.json"))
    (tmp_path / "euckr.json").write_bytes('{"prompt": "질문"}'.encode("cp949"))
    with pytest.raises(ConfigError, match=r"euckr\.json is not UTF-8"):
        read_config(tmp_path / "euckr.json")


# --- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("learning_rat", "learning_rate"),
        ("batch_size_per_device_train", None),
        ("per_device_train_batchsize", "per_device_train_batch_size"),
        ("Temperature", "temperature"),
        ("pooler_typ", "pooler_type"),
        ("zzzzzz", None),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_valid_name(wrong: str, right: str | None, tmp_path: Path) -> None:
    messages = [refusal(tmp_path, {wrong: 1}), refusal(tmp_path, {}, f"--{wrong}", "1")]
    for message in messages:
        assert f"unknown key '{wrong}'" in message
        assert right is None or f"Did you mean '{right}'?" in message
    assert "config.json" in messages[0] and "command line" in messages[1]


@pytest.mark.parametrize("key", REMOVED_KEYS)
def test_a_key_that_is_gone_is_refused_with_what_to_write_instead(key: str, tmp_path: Path) -> None:
    assert key not in FIELDS, f"{key} is valid; it must not be refused"
    cure = REMOVED_KEYS[key]
    for message in (refusal(tmp_path, {key: "1"}), refusal(tmp_path, {}, f"--{key}", "1")):
        assert f"'{key}'" in message and cure in message
    if not cure.startswith("leave it out"):
        successors = re.match(r"use (\w+)(?: or (\w+))?", cure)
        assert successors and all(name in FIELDS for name in successors.groups() if name), cure


def test_no_cure_is_refused_by_the_training() -> None:
    """`accelerator_config` may not cut batches up."""
    refused = {"accelerator_config", "push_to_hub", "auto_find_batch_size", "save_only_model", "ignore_data_skip"}
    assert not [key for key, cure in REMOVED_KEYS.items() if refused & set(re.findall(r"\w+", cure))]


def test_every_key_that_transformers_5_removed_is_known_to_be_gone() -> None:
    assert len(GONE_SINCE_TRANSFORMERS_4) > 20
    assert not [key for key in GONE_SINCE_TRANSFORMERS_4 if key not in REMOVED_KEYS and key not in FIELDS]


def test_keys_that_are_no_text_are_refused_by_name(tmp_path: Path) -> None:
    assert "unknown key '1'" in refusal(tmp_path, "1: 2\n", suffix=".yaml")
    assert "unknown key 'True'" in refusal(tmp_path, "on: 2\n", suffix=".yaml")


# --- the command line -----------------------------------------------------------------------------------------------


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    content = {"learning_rate": 1e-5, "seed": 1, "deduplicate": True, "train_file": ["a.txt"], "pooler_type": "cls"}
    flags = "--learning_rate 3e-5 --deduplicate false --train_file b.txt c.txt --pooler-type avg".split()
    found = parse(tmp_path, content, *flags)
    assert found["learning_rate"] == 3e-5 and found["deduplicate"] is False and found["pooler_type"] == "avg"
    assert found["train_file"] == ["b.txt", "c.txt"]
    assert found["seed"] == 1, "what no flag names comes from the file"


def test_a_flag_equal_to_the_default_still_wins_over_the_file(tmp_path: Path) -> None:
    assert parse(tmp_path, {"seed": 7}, "--seed", "42")["seed"] == 42
    assert parse(tmp_path, {"deduplicate": False}, "--deduplicate", "true")["deduplicate"] is True
    assert parse(tmp_path, {"write_release": False}, "--write_release")["write_release"] is True


def test_a_file_can_switch_off_what_is_on_by_default(tmp_path: Path) -> None:
    found = parse(tmp_path, {"write_release": "false", "deduplicate": "no", "trust_remote_code": "0"})
    assert found["write_release"] is False and found["deduplicate"] is False and found["trust_remote_code"] is False


def test_config_may_stand_anywhere_and_be_joined_by_an_equals_sign(tmp_path: Path) -> None:
    path = config_file(tmp_path, {"seed": 5})
    for argv in (["--config", path], [f"--config={path}"], ["--temperature", "0.1", "--config", path]):
        assert parse_arguments(GROUPS, [*argv, "--output_dir", str(tmp_path / "run")])[2].seed == 5


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        (["--learning_rate", "fast"], ["learning_rate", "fast"]),
        (["--per_device_train_batch_size", "1.5"], ["per_device_train_batch_size", "1.5"]),
        (["--deduplicate", "maybe"], ["deduplicate", "maybe"]),
        (["--pooler_type", "mean"], ["pooler_type", "mean", "avg"]),
        (["--triplet_rule", "best"], ["triplet_rule", "last_wins"]),
        (["--seed"], ["seed", "expected one argument"]),
        (["--learning-rat=1"], ["learning-rat", "Did you mean 'learning_rate'?"]),
        (["--temp", "0.1"], ["'temp'", "use temperature"]),
        (["stray"], ["stray"]),
        (["--seed", "1", "2"], ["2"]),
        (["--config"], ["config", "expected one argument"]),
        (["--config", "nowhere.json"], ["nowhere.json", "No such file"]),
    ],
)
def test_a_wrong_flag_is_one_error_without_a_usage_dump(
    flags: list[str], fragments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(ConfigError) as caught:  # and so no SystemExit
        parse_arguments(GROUPS, ["--output_dir", str(tmp_path), *flags])
    message = str(caught.value)
    assert all(fragment in message for fragment in fragments) and "usage" not in message and "\n" not in message
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        ({"learning_rate": "fast"}, ["learning_rate is 'fast'", "a number"]),
        ({"per_device_train_batch_size": 1.5}, ["per_device_train_batch_size is 1.5", "a whole number"]),
        ({"deduplicate": "maybe"}, ["deduplicate is 'maybe'", "true or false"]),
        ({"pooler_type": "mean"}, ["pooler_type is 'mean'", "cls, cls_before_pooler, avg"]),
        ({"train_file": {"a": 1}}, ["train_file", "text"]),
        ({"seed": None}, ["seed is None", "a whole number"]),
        ({"liger_kernel_config": "all"}, ["liger_kernel_config", "a mapping"]),
        ({"parallelism_config": 2}, ["parallelism_config", "cannot be written here"]),
    ],
)
def test_a_wrong_type_in_the_file_names_file_key_value_and_cure(
    content: dict, fragments: list[str], tmp_path: Path
) -> None:
    message = refusal(tmp_path, content)
    assert all(fragment in message for fragment in ["config.json", *fragments])


@pytest.mark.parametrize(
    "content",
    [
        {"seed": -1},
        {"learning_rate": -1e-5},
        {"learning_rate": "nan"},
        {"per_device_train_batch_size": 0},
        {"per_device_eval_batch_size": 0},
        {"gradient_accumulation_steps": 0},
        {"dataloader_num_workers": -1},
        {"early_stopping_patience": 0},
        {"max_train_samples": 0},
        {"max_train_samples": -5},
    ],
    ids=str,
)
def test_a_number_below_its_least_sensible_value_is_refused(content: dict, tmp_path: Path) -> None:
    (key,) = content
    message = refusal(tmp_path, content)
    assert message.startswith(f"{key} is ") and "at least" in message


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ({"eval_strategy": "steps", "save_strategy": "epoch"}, "load_best_model_at_end"),
        ({"logging_steps": 0}, "logging_steps"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"fsdp": "everything"}, "everything"),
    ],
)
def test_what_transformers_refuses_is_one_of_our_errors(content: dict, fragment: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, content)
    assert message.startswith("these arguments do not go together") and fragment in message


def test_a_file_of_arguments_beside_the_script_is_not_read_in_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HfArgumentParser would read SCRIPT.args."""
    (tmp_path / "run_simcse.args").write_text("--seed 99", encoding="utf-8")
    monkeypatch.setattr("sys.argv", [str(tmp_path / "run_simcse.py")])
    assert parse(tmp_path, {})["seed"] == 42


def test_every_field_has_a_type_that_a_file_can_name() -> None:
    """`coerce` must know every kind of annotation there is."""
    known = {bool, int, float, str, dict, list, Any, type(None)}

    def kinds(wanted: Any) -> list:
        origin = typing.get_origin(wanted)
        if origin is Literal:
            return []
        if origin in (list, dict, Union, types.UnionType):
            return [kind for option in typing.get_args(wanted) for kind in kinds(option)]
        return [wanted]

    strange = {
        name: kind
        for name, wanted in FIELDS.items()
        for kind in kinds(wanted)
        if kind not in known and not (isinstance(kind, type) and issubclass(kind, Enum))
    }
    assert set(strange) == {"parallelism_config"}, f"how does a file write {strange}?"
