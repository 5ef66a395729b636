"""The command line of all commands but `train`, whose flags are the fields of its dataclasses (see `parser`)."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from .errors import ConfigError, shortened
from .strict_json import half_a_character

Arguments = argparse.Namespace

_DTYPES = ["float32", "bfloat16", "float16"]
_POOLERS = ("cls", "cls_before_pooler", "avg", "avg_top2", "avg_first_last", "max")
# Files that are only read; what is written or printed must be text.
_MAY_BE_ANY_BYTES = {"files", "pairs", "corpus", "vectors"}


def parse_command(argv: Sequence[str]) -> Arguments:
    """The arguments of a command, and its name as `command`.

    Raises:
        ConfigError: Names the flag or value that cannot be used.
    """
    parser, commands = _parsers()
    if argv and argv[0] in commands:
        _check_flags(commands[argv[0]], argv[1:])
    arguments = parser.parse_args(argv)
    for name, value in vars(arguments).items():
        for text in map(str, value if isinstance(value, list) else [value]):
            if name not in _MAY_BE_ANY_BYTES and half_a_character(text):
                raise ConfigError(
                    f"command line: {name} is {shortened(ascii(text))}, which is not UTF-8. Set the terminal to UTF-8, or rename "
                    "the file."
                )
    return arguments


def _check_flags(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """A mistyped flag would else be told as one that is missing."""
    flags = [part.partition("=")[0] for part in argv[: argv.index("--") if "--" in argv else None]]
    known = [flag for action in parser._actions for flag in action.option_strings]
    for flag in flags:
        if flag.startswith("--") and flag not in known:
            near = difflib.get_close_matches(shortened(flag), known, n=1, cutoff=0.6)
            parser.error(f"unrecognized arguments: {shortened(flag)}" + (f"; did you mean {near[0]}?" if near else ""))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {shortened(message, 1000)}. See {self.prog} --help.")


def _at_least_one(text: str) -> int:
    from .vector_manifest import GREATEST

    if not (text.isdecimal() and len(text) < 20 and 1 <= int(text) <= GREATEST):
        raise argparse.ArgumentTypeError(
            f"{shortened(repr(text))} is not a whole number of at least 1 and at most {GREATEST}"
        )
    return int(text)


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))


def _number_or_none(text: str) -> float | None:
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor none") from None


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = _Parser(
        prog="simcse-hf", description="Korean sentence embeddings: train, score, encode, search.", allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    commands.add_parser("train", help="train a model (see: simcse-hf train --help)", add_help=False)

    score = commands.add_parser("eval", help="score models on Korean STS", allow_abbrev=False)
    score.add_argument("models", nargs="+", metavar="MODEL", help="folder, Hub id, or sample:encoder")
    score.add_argument("--tasks", nargs="+", default=["korsts-dev"], help="tasks or files (default: korsts-dev)")
    score.add_argument("--from_hub", action="store_true", help="take the tasks from their Hub copies")
    score.add_argument("--data_dir", help="folder with the KorSTS and KLUE files; else SIMCSE_DATA_DIR")
    score.add_argument(
        "--text_mode", choices=["nfc", "legacy_strip"], default="nfc", help="legacy_strip deletes , ' and \" first"
    )
    score.add_argument("--output", type=_path, metavar="DIR", help="write scores.json and scores.csv there")
    _add_encoder_options(score)

    prepare = commands.add_parser("prepare", help="NLI files -> a file of triplets", allow_abbrev=False)
    prepare.add_argument("files", nargs="+", metavar="FILE", help="NLI files; their order matters to last_wins")
    prepare.add_argument("--rule", choices=["last_wins", "all"], default="last_wins")
    prepare.add_argument("--on_bad_row", choices=["error", "skip"], default="error")
    prepare.add_argument("--output", type=_path, required=True, metavar="FILE.tsv")

    mine = commands.add_parser("mine", help="pairs and a corpus -> triplets with hard negatives", allow_abbrev=False)
    mine.add_argument("pairs", nargs="+", metavar="PAIRS", help="files of pairs, triplets or NLI rows")
    mine.add_argument("--corpus", nargs="+", required=True, metavar="FILE", help="where the negatives are looked for")
    mine.add_argument("--model", required=True, help="folder, Hub id, or sample:encoder")
    mine.add_argument("--output", type=_path, required=True, metavar="FILE.tsv")
    mine.add_argument("--negatives", type=int, default=1, help="for each row (default: 1)")
    mine.add_argument("--top_k", type=int, default=50, help="look at so many of the nearest (default: 50)")
    mine.add_argument("--skip_first", type=int, default=0, help="and pass over the first of them")
    mine.add_argument("--min_score", type=float, help="lowest cosine of a negative with the anchor")
    mine.add_argument("--max_score", type=float, help="highest cosine of a negative with the anchor")
    mine.add_argument("--margin", type=float, help="a negative scores at most the positive's score less this")
    mine.add_argument(
        "--relative_margin",
        type=_number_or_none,
        default=0.95,
        help="a negative scores at most this part of the positive's score, or none (default: 0.95)",
    )
    mine.add_argument("--pick", choices=["top", "random"], default="top", help="of those the bounds allow")
    mine.add_argument("--seed", type=int, default=0, help="of --pick random")
    mine.add_argument("--rule", choices=["last_wins", "all"], default="last_wins", help="for NLI rows")
    mine.add_argument("--on_bad_row", choices=["error", "skip"], default="error")
    _add_encoder_options(mine)
    mine.add_argument("--dtype", choices=_DTYPES, default="float32", help="of weights and arithmetic")

    encode = commands.add_parser("encode", help="sentences of files -> vectors on disk", allow_abbrev=False)
    encode.add_argument("files", nargs="+", metavar="FILE", help="one sentence a line, or a table of one text column")
    encode.add_argument("--model", required=True, help="folder, Hub id, or sample:encoder")
    encode.add_argument(
        "--output",
        type=_path,
        required=True,
        metavar="FILE.npy|DIR",
        help="one array (N, D), or a folder of shards; the same command again goes on with a folder where it stopped",
    )
    encode.add_argument("--format", choices=["npy", "arrow", "parquet"], help="of shards (default: npy)")
    encode.add_argument("--shard_rows", type=_at_least_one, help="rows of a shard (default: 100000)")
    encode.add_argument("--with_text", action="store_true", help="store the sentences too (arrow and parquet)")
    encode.add_argument(
        "--output_dtype", choices=["float32", "float16"], default="float32", help="of stored vectors (default: float32)"
    )
    encode.add_argument("--normalize", action="store_true", help="scale vectors to unit length")
    _add_encoder_options(encode)
    encode.add_argument("--dtype", choices=_DTYPES, default="float32", help="of weights and arithmetic")

    search = commands.add_parser("search", help="the most similar sentences of a file", allow_abbrev=False)
    search.add_argument("queries", nargs="+", metavar="QUERY")
    search.add_argument("--model", required=True, help="folder, Hub id, or sample:encoder")
    search.add_argument(
        "--corpus",
        action="append",
        metavar="FILE",
        help="one sentence a line; with --vectors it may be given several times, or left out where the files lie where "
        "they were",
    )
    search.add_argument(
        "--vectors", type=_path, metavar="DIR", help="of the corpus: a folder that encode wrote with this model"
    )
    search.add_argument("--top_k", type=_at_least_one, default=5)
    search.add_argument("--json", action="store_true", help="print JSON")
    _add_encoder_options(search)
    search.add_argument("--dtype", choices=_DTYPES, default="float32", help="of weights and arithmetic")
    return parser, commands.choices


def _add_encoder_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pooler_type", choices=_POOLERS, help="how a plain encoder pools; a folder that says it is believed"
    )
    parser.add_argument("--prompt", help="text before every sentence")
    parser.add_argument("--max_seq_length", type=_at_least_one, help="in tokens")
    parser.add_argument("--batch_tokens", type=_at_least_one, default=16_384, help="tokens in one batch")
    parser.add_argument("--device", help="cpu, cuda, mps, ...")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code from the model repository")
