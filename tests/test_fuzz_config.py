"""Configurations and flags of any content: typed arguments, or one short error. SIMCSE_FUZZ_EXAMPLES tries more."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from fuzzing import CONFIG_SEEDS, GROUPS, TARGETS, Hang, at_most, attempt, examples, parses_arguments, spoilt, write
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from simcse_hf.cli import main
from simcse_hf.errors import ConfigError
from simcse_hf.parser import field_types, parse_arguments, read_config, typed_values

usual = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@pytest.mark.parametrize("suffix", CONFIG_SEEDS)
def test_any_file_is_a_configuration_or_refused(suffix: str) -> None:
    target, seeds = TARGETS[f"config{suffix}"]

    @settings(usual, max_examples=examples(300))
    @given(spoilt(seeds()))
    def holds(data: bytes) -> None:
        target(data)

    holds()


@settings(usual, max_examples=examples(60))
@given(
    st.sampled_from(list(CONFIG_SEEDS)).flatmap(lambda suffix: st.tuples(spoilt(CONFIG_SEEDS[suffix]), st.just(suffix)))
)
@example((b'{"first_stage": "a\\u0000b", "learning_rate": NaN}', ".json"))
def test_any_file_gives_arguments_or_one_error(case: tuple[bytes, str]) -> None:
    parses_arguments(*case)


FLAGS = st.one_of(
    st.sampled_from(
        ["--config", "--", "-", "--help=", "--seed", "--max_steps", "--bf16", "--train_file", "--fsdp_config"]
    ),
    st.sampled_from(sorted(field_types(GROUPS))).map(lambda name: f"--{name}"),
    st.sampled_from(
        ["nan", "1e999", "9" * 5000, "true", "{", "[" * 3000, "-1", "a=b", "@file", "%s", "\ud800", "a\0b", ""]
    ),
    st.text(max_size=8),
)


@settings(usual, max_examples=examples(100))
@given(st.lists(FLAGS, max_size=6))
@example(["--learning_rate", "nan"])
@example(["--train_file", "caf\udce9.txt"])
def test_any_flags_give_arguments_or_one_error(flags: list[str]) -> None:
    attempt(parse_arguments, GROUPS, ["--output_dir", "/nowhere", "--use_cpu", "true", "--report_to", "none", *flags])


@settings(usual, max_examples=examples(150))
@given(st.sampled_from(["eval", "prepare", "mine", "encode", "search", "", "--debug-"]), st.lists(FLAGS, max_size=5))
def test_any_flags_of_the_other_commands_are_one_line(command: str, flags: list[str]) -> None:
    """None of them names a model that is there, so none may succeed; nor may one wait for an answer."""
    assume("--debug" not in flags)  # lets every error through, as it should
    with at_most(10):
        assert main([command, *flags]) == 2


# --- what was found by it, and by reading the code --------------------------------------------------------------------


def bomb(levels: int) -> bytes:
    """Each line stands for eight of the one before."""
    lines = ["_0: &a0 [x, x, x, x, x, x, x, x]"]
    lines += [f"_{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, levels)]
    return "\n".join([*lines, f"train_file: *a{levels - 1}\n"]).encode()


def refusal(folder: Path, content: bytes, suffix: str = ".yaml") -> str:
    path = write(folder, f"config{suffix}", content)
    error = attempt(
        lambda: typed_values(read_config(path), field_types(GROUPS), str(path)), names=[path.name], seconds=5
    )
    assert isinstance(error, ConfigError), error
    return str(error)


def test_aliases_that_stand_for_billions_of_values_are_counted_and_not_followed(tmp_path: Path) -> None:
    started = time.monotonic()
    assert "stands for more than 10,000 values" in refusal(tmp_path, bomb(12))
    assert time.monotonic() - started < 2
    assert "10,000" not in refusal(tmp_path, bomb(3)), "a few are no bomb: the value itself is what is wrong"


def test_an_alias_inside_of_what_it_stands_for(tmp_path: Path) -> None:
    assert "an alias stands inside of what it stands for" in refusal(tmp_path, b"train_file: &a [x, *a]\n")
    assert "an alias stands inside of what it stands for" in refusal(tmp_path, b"? &a [x, *a]\n: 1\n")


def test_merged_mappings_and_plain_aliases_still_work(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", b"_base: &base {seed: 3, max_steps: &n 7}\n<<: *base\nsave_steps: *n\n")
    assert read_config(path) == {"seed": 3, "max_steps": 7, "save_steps": 7}


@pytest.mark.parametrize(
    "value",
    [
        "!!int ''",
        "!!bool maybe",
        "!!float ''",
        "!!timestamp never",
        "!!binary aGk=",
        "!!set {a, b}",
        "!!python/object/apply:os.system [exit]",
        "!mine x",
    ],
)
def test_tags_are_refused_with_their_line(value: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, f"temperature: 0.05\nseed: {value}\n".encode())
    assert "config.yaml, line 2: not YAML (the tag " in message and "write the value without it" in message


def test_a_file_that_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    for path, expected in (
        (tmp_path / "config.json", "is a pipe or a device"),
        (Path("/dev/zero"), "is a pipe or a device"),
        (tmp_path, "Is a directory"),
        (tmp_path / "a\0b.json", "there can be no config file"),
        (tmp_path / ("a" * 5000), "File name too long"),
        (Path("~nobody-here/a.json"), "No such file"),
    ):
        assert expected in str(attempt(read_config, path, seconds=5)), path


def test_a_file_of_a_size_that_no_configuration_has(tmp_path: Path) -> None:
    assert "larger than 1,048,576 bytes" in refusal(tmp_path, b"#" * (1 << 20) + b"\nseed: 1\n")
    assert read_config(write(tmp_path, "a.yaml", b"seed: 1\n" + b"#" * ((1 << 20) - 8))) == {"seed": 1}


def test_a_long_value_is_not_repeated(tmp_path: Path) -> None:
    for content in (b'{"seed": "' + b"x" * 100_000 + b'"}', b'{"' + b"x" * 100_000 + b'": 1}'):
        assert len(refusal(tmp_path, content, ".json")) < 1000


@pytest.mark.parametrize("name", ["learning_rate", "temperature", "max_grad_norm", "weight_decay", "warmup_steps"])
def test_nan_is_no_value(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", f'{{"{name}": NaN}}'.encode())
    for flags in (["--config", str(path)], [f"--{name}", "nan"]):
        error = attempt(parse_arguments, GROUPS, ["--output_dir", str(tmp_path), "--use_cpu", "true", *flags])
        assert isinstance(error, ConfigError) and name in str(error) and "nan" in str(error)


@pytest.mark.parametrize("text", ["\\u0000", "\\ud800"])
@pytest.mark.parametrize("name", ["data_dir", "prompt", "run_name", "first_stage", "train_file"])
def test_text_that_no_file_can_hold_is_refused_at_once(name: str, text: str, tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", f'{{"{name}": "a{text}b"}}'.encode())
    error = attempt(
        parse_arguments, GROUPS, ["--config", str(path), "--output_dir", str(tmp_path), "--use_cpu", "true"]
    )
    assert isinstance(error, ConfigError) and name in str(error) and "not UTF-8 or holds NUL" in str(error)
    str(error).encode("utf-8")


def test_variables_are_put_in_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCSE_A", "${SIMCSE_B}")
    monkeypatch.setenv("SIMCSE_B", "${SIMCSE_A}")
    assert "SIMCSE_B is not set" in refusal(tmp_path, b"data_dir: ${SIMCSE_A}\n")


def test_a_hang_is_noticed() -> None:
    with pytest.raises(Hang):
        attempt(time.sleep, 5, seconds=0.05)
