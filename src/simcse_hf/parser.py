"""One flat JSON or YAML file plus command-line flags -> typed arguments, or one clear error."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import math
import os
import re
import types
import typing
from collections.abc import Iterable, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NoReturn, Union

import yaml
from transformers import HfArgumentParser

from .errors import ConfigError, shortened

_LARGEST = 1 << 20  # bytes of a config file
_MOST_NODES = (
    10_000  # of a YAML file after each alias has become a copy of what it stands for: a few lines can be 8**20
)
_HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")

# Keys of transformers 4 and of the published SimCSE scripts, and what to write instead.
REMOVED_KEYS = {
    "overwrite_output_dir": "leave it out: nothing finished is ever overwritten half",
    "logging_dir": "leave it out, or set the environment variable TENSORBOARD_LOGGING_DIR",
    "save_safetensors": "leave it out: safetensors is the only format",
    "group_by_length": "leave it out: batches are cut by length inside the model",
    "warmup_ratio": "use warmup_steps with a number below 1, for example 0.1",
    "evaluation_strategy": "use eval_strategy",
    "no_cuda": "use use_cpu",
    "include_tokens_per_second": "use include_num_input_tokens_seen",
    "include_inputs_for_metrics": "leave it out",
    "push_to_hub_token": "use hub_token",
    "half_precision_backend": "use bf16 or fp16",
    "fp16_backend": "use bf16 or fp16",
    "per_gpu_train_batch_size": "use per_device_train_batch_size",
    "per_gpu_eval_batch_size": "use per_device_eval_batch_size",
    "fsdp_min_num_params": "use fsdp_config",
    "torchdynamo": "use torch_compile_backend",
    "use_ipex": "leave it out",
    "temp": "use temperature",
    "pooler": "use pooler_type",
    "max_length": "use max_seq_length",
    "max_len": "use max_seq_length",
    "evaluate_during_training": "use eval_strategy",
    "pad_to_max_length": "leave it out: padding to the maximum only wastes time",
    "adafactor": "use optim with the value adafactor",
    "fp16_opt_level": "use fp16",
    "fsdp_transformer_layer_cls_to_wrap": "use fsdp_config",
    "sharded_ddp": "use fsdp",
    "push_to_hub_model_id": "use hub_model_id",
    "push_to_hub_organization": "use hub_model_id with the organization in front, for example org/name",
    "xpu_backend": "use ddp_backend",
    "dispatch_batches": "leave it out: every process reads its own batches",
    "split_batches": "leave it out: every process reads its own batches",
    "use_mps_device": "leave it out: MPS is used where there is one",
    "tpu_num_cores": "leave it out",
    "tpu_metrics_debug": "leave it out",
    "jit_mode_eval": "leave it out",
    "past_index": "leave it out",
    "mp_parameters": "leave it out",
    "ray_scope": "leave it out",
    "use_legacy_prediction_loop": "leave it out",
}


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {shortened(message, 1000)}. See --help.")


def parse_arguments(argument_classes: Sequence[type], argv: Sequence[str]) -> tuple:
    """Instances of `argument_classes` from `--config FILE` and flags, the flags winning.

    Args:
        argument_classes: Dataclasses whose field names do not overlap.
        argv: Command line without the program's name.

    Raises:
        ConfigError: Unreadable file, unknown or removed key, or a value of the wrong type.
    """
    config_option = _Parser((), add_help=False, allow_abbrev=False)
    config_option.add_argument("--config")
    known, rest = config_option.parse_known_args(list(argv))
    parser = _Parser(argument_classes, allow_abbrev=False, prog="simcse-hf train")
    # Shown by --help; consumed above.
    parser.add_argument("--config", metavar="FILE", help="JSON or YAML file with any of the arguments below.")
    types_of = field_types(argument_classes)
    if known.config is not None:
        parser.set_defaults(**typed_values(read_config(Path(known.config)), types_of, known.config))
    _, unknown = parser.parse_known_args(rest)
    if unknown:
        flag = unknown[0].split("=")[0]
        problem = (
            _unknown(flag.removeprefix("--"), types_of) if flag.startswith("--") else f"stray {shortened(repr(flag))}."
        )
        raise ConfigError(f"command line: {problem}")
    try:
        *arguments, _ = parser.parse_args_into_dataclasses(rest, look_for_args_file=False)
    except ConfigError:
        raise
    except Exception as error:  # TrainingArguments raises many unrelated types
        raise ConfigError(f"these arguments do not go together: {shortened(error, 1000)}") from error
    check_values(arguments)
    return tuple(arguments)


def check_values(arguments: Sequence[Any]) -> None:
    """Refuse what would be found out late: a limit that is NaN, or a name that the record of the run cannot hold.

    Args:
        arguments: Instances of dataclasses.

    Raises:
        ConfigError: Names the argument.
    """
    for group in arguments:
        for name, value in vars(group).items():
            _check_value(name, value)


def _check_value(name: str, value: Any) -> None:
    if isinstance(value, float) and math.isnan(value):
        raise ConfigError(f"{name} is nan, which is no number. Give one, or leave it out.")
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and ("\0" in text or _HALF_A_CHARACTER.search(text)):
            written = shortened(ascii(text))
            raise ConfigError(
                f"{name} is {written}, which is not UTF-8 or holds NUL. Write it in UTF-8; rename the file."
            )


def read_config(path: Path) -> dict[str, Any]:
    """The flat mapping of a `.json`, `.yaml` or `.yml` file; keys starting with `_` are comments.

    Raises:
        ConfigError: Missing, unreadable, or not a flat mapping.
    """
    text = _text_of(path)
    try:
        if path.suffix in (".yaml", ".yml"):
            content = _loaded(text)
        else:
            content = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"{path}{line}: not YAML ({shortened(problem)}).") from None
    except _RepeatedKeyError as error:
        raise ConfigError(f"{path}: the key '{shortened(error)}' occurs twice; keep one.") from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, the 31st of February, 1,000 brackets
        raise ConfigError(f"{path} holds a value that cannot be read ({shortened(error)}).") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold one mapping of keys to values, not a {type(content).__name__}.")
    return {key: value for key, value in content.items() if not str(key).startswith("_")}


def _text_of(path: Path) -> str:
    try:
        file = Path(_home(str(path)))
        # Reading a pipe may wait for ever, and every process of a training reads the file.
        waits = file.exists() and not file.is_file() and not file.is_dir()
        content = b"" if waits else _first_bytes(file)
    except OSError as error:
        raise ConfigError(
            f"cannot read the config file {shortened(path)}: {error.strerror}. Paths start at {Path.cwd()}."
        ) from None
    except ValueError:  # NUL, or half a character, in its name
        raise ConfigError(f"there can be no config file {shortened(repr(str(path)))}. Name another.") from None
    if waits:
        raise ConfigError(f"the config file {path} is a pipe or a device; save it as a regular file.")
    if len(content) > _LARGEST:
        raise ConfigError(f"the config file {path} is larger than {_LARGEST:,} bytes, so it is none. Name another.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"the config file {path} is not UTF-8.") from None


def _first_bytes(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(_LARGEST + 1)


class _RepeatedKeyError(Exception):
    pass


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = {}
    for key, value in pairs:
        if key in result:
            raise _RepeatedKeyError(key)
        result[key] = value
    return result


def _loaded(text: str) -> Any:
    loader = _YAMLLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count_nodes(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count_nodes(node: yaml.Node, counts: dict[int, int | None]) -> int:
    """Nodes below and including one, those behind an alias as often as it is used."""
    known = counts.get(id(node), 0)
    if known is None:
        raise ValueError("an alias stands inside of what it stands for")
    if known:
        return known
    counts[id(node)] = None
    children: Iterable[yaml.Node] = ()
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = itertools.chain.from_iterable(node.value)
    count = 1 + sum(_count_nodes(child, counts) for child in children)
    if count > _MOST_NODES:
        raise ValueError(f"it stands for more than {_MOST_NODES:,} values")
    counts[id(node)] = count
    return count


class _YAMLLoader(yaml.SafeLoader):
    """Refuses a repeated key, of which YAML would silently take the last, and tags, which no argument needs."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        if getattr(event, "tag", None) not in (None, "!"):
            raise yaml.composer.ComposerError(
                None, None, f"the tag {shortened(event.tag)} is not read; write the value without it", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        merge = "tag:yaml.org,2002:merge"
        _once([(key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != merge])
        return super().construct_mapping(node, deep=deep)


def field_types(argument_classes: Sequence[type]) -> dict[str, Any]:
    """Resolved type of every field that can be set."""
    found = {}
    for argument_class in argument_classes:
        hints = typing.get_type_hints(argument_class)
        found |= {field.name: hints[field.name] for field in dataclasses.fields(argument_class) if field.init}
    return found


def typed_values(values: dict[str, Any], types_of: dict[str, Any], path: str) -> dict[str, Any]:
    """Values coerced to their fields' types: `"3e-5"` becomes a number, `"false"` false.

    Raises:
        ConfigError: Unknown or removed key, or a value that does not fit.
    """
    result = {}
    for key, value in values.items():
        if key not in types_of:
            raise ConfigError(f"{path}: {_unknown(str(key), types_of)}")
        try:
            result[key] = coerce(_expanded(value), types_of[key])
        except ValueError as error:
            raise ConfigError(f"{path}: {key} is {shortened(repr(value))}, but {error}.") from None
    return result


def coerce(value: Any, wanted: Any) -> Any:
    """`value` as the annotated type `wanted`.

    Raises:
        ValueError: "it must be ...", for use in a sentence.

    >>> coerce("3e-5", float), coerce("false", bool), coerce("a.txt", list[str])
    (3e-05, False, ['a.txt'])
    """
    origin = typing.get_origin(wanted)
    if wanted is Any:
        return value
    if origin in (Union, types.UnionType):
        return _coerce_union(value, list(typing.get_args(wanted)))
    if origin is Literal:
        for option in typing.get_args(wanted):
            if value == option or str(value) == str(option):
                return option
        raise ValueError(f"it must be one of {', '.join(map(str, typing.get_args(wanted)))}")
    if origin is list or wanted is list:
        inner = (typing.get_args(wanted) or (Any,))[0]
        return [coerce(item, inner) for item in (value if isinstance(value, list) else [value])]
    if origin is dict or wanted is dict:
        if not isinstance(value, dict):
            raise ValueError("it must be a mapping")
        _, inner = typing.get_args(wanted) or (str, Any)
        return {str(key): coerce(item, inner) for key, item in value.items()}
    if wanted is bool:
        return _coerce_bool(value)
    if wanted in (int, float):
        return _coerce_number(value, wanted)
    if wanted is str:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
        raise ValueError("it must be text")
    if isinstance(wanted, type) and issubclass(wanted, Enum):
        try:
            return wanted(value)
        except ValueError:
            raise ValueError(f"it must be one of {', '.join(str(item.value) for item in wanted)}") from None
    if isinstance(value, wanted):
        return value
    raise ValueError(f"it must be a {wanted.__name__}, which cannot be written here")


def _coerce_union(value: Any, options: list[Any]) -> Any:
    if value is None:
        if type(None) in options:
            return None
        raise ValueError("it must not be empty")
    options = [option for option in options if option is not type(None)]
    # Text fits everything, so it is tried last: "0.1" for `int | float | str` is a number.
    options.sort(key=lambda option: option is str)
    reasons = []
    for option in options:
        try:
            return coerce(value, option)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError(" or ".join(dict.fromkeys(reasons)))


def _coerce_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in ("true", "yes", "on", "1"):
        return True
    if text in ("false", "no", "off", "0"):
        return False
    raise ValueError("it must be true or false")


def _coerce_number(value: Any, wanted: type) -> float | int:
    kind = "a whole number" if wanted is int else "a number"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"it must be {kind}")
    if wanted is int and not isinstance(value, float):
        with suppress(ValueError):
            return int(value)  # exact, where a float would round what is beyond 2**53
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"it must be {kind}") from None
    if wanted is float:
        return number
    if not number.is_integer():
        raise ValueError(f"it must be {kind}")
    return int(number)


def _expanded(value: Any) -> Any:
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    if not isinstance(value, str):
        return value
    value = os.path.expandvars(value)
    if match := re.search(r"\$\{(\w+)\}", value):
        raise ValueError(f"the environment variable {match.group(1)} is not set")
    return _home(value)


def _home(path: str) -> str:
    return os.path.expanduser(path)


def _unknown(key: str, types_of: dict[str, Any]) -> str:
    if key in REMOVED_KEYS:
        return f"'{key}' is not a key any more; {REMOVED_KEYS[key]}."
    nearest = difflib.get_close_matches(shortened(key), types_of, n=1, cutoff=0.6)
    return f"unknown key '{shortened(key)}'." + (f" Did you mean '{nearest[0]}'?" if nearest else "")
