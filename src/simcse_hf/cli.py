"""The console script `simcse-hf`, and the two scripts at the top of the repository.

Exit codes: 0 done, 2 an error the user can cure (one line on stderr), 130 interrupted by SIGINT (Ctrl-C), 143 by SIGTERM.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NoReturn

from .errors import ConfigError, DataError, SimCSEError, shortened
from .failures import explain_failure
from .interruption import Terminated, sigterm_as_exception
from .run_folder import RunFinished

logger = logging.getLogger("simcse_hf")

_DTYPES = ["float32", "bfloat16", "float16"]
_POOLERS = ("cls", "cls_before_pooler", "avg", "avg_top2", "avg_first_last", "max")
_INTERRUPTED = {
    "train": "interrupted. Checkpoints already written are whole; go on with --resume_from_checkpoint auto.",
    "encode": "interrupted. Shards already written are whole; the same command goes on with the next.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Command line without the program's name; default: that of the process. `--debug`
            anywhere lets errors through with their traceback (with a value, `train` takes it for
            the trainer's own argument of that name).

    Returns:
        The exit code.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    argv, debug = _without_debug(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logger.setLevel(logging.INFO)
    with sigterm_as_exception():
        if debug:
            return _run(argv)
        try:
            return _run(argv)
        except RunFinished as error:
            print(error)
            return error.exit_code
        except SimCSEError as error:
            message, code = str(error), error.exit_code
        except Exception as error:
            message, code = explain_failure(error), 2
            if message is None:
                raise
        except KeyboardInterrupt as error:
            message = _INTERRUPTED.get(_what_runs(argv), "interrupted; nothing half-written was left.")
            code = 143 if isinstance(error, Terminated) else 130
    print(f"error: {' '.join(line.strip() for line in message.splitlines())}", file=sys.stderr)
    return code


def _without_debug(argv: list[str]) -> tuple[list[str], bool]:
    with_next = zip_longest(argv, argv[1:], fillvalue="--")
    kept = [each for each, after in with_next if each != "--debug" or (argv[0] == "train" and after[:1] != "-")]
    return kept, len(kept) < len(argv)


def _what_runs(argv: list[str]) -> str | None:
    """A command that leaves something to go on with."""
    if argv[:1] == ["encode"] and any(part.endswith(".npy") for part in argv):  # no corpus is: it is the --output
        return None
    return argv[0] if argv else None


def _run(argv: list[str]) -> int:
    if argv[:1] == ["train"]:
        return _train(argv[1:])
    parser = _parser()
    arguments = parser.parse_args(argv)
    return arguments.run(arguments)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {shortened(message, 1000)}. See {self.prog} --help.")


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _number_or_none(text: str) -> float | None:
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor none") from None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="simcse-hf", description="Korean sentence embeddings: train, score, encode, search.", allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("train", help="train a model (see: simcse-hf train --help)", add_help=False)

    score = commands.add_parser("eval", help="score models on Korean STS", allow_abbrev=False)
    score.add_argument("models", nargs="+", metavar="MODEL", help="folder, Hub id, or sample:encoder")
    score.add_argument("--tasks", nargs="+", default=["korsts-dev"], help="tasks or files (default: korsts-dev)")
    score.add_argument("--from_hub", action="store_true", help="take the tasks from their Hub copies")
    score.add_argument("--data_dir", help="folder with the KorSTS and KLUE files; else SIMCSE_DATA_DIR")
    score.add_argument(
        "--text_mode", choices=["nfc", "legacy_strip"], default="nfc", help="legacy_strip deletes , ' and \" first"
    )
    score.add_argument("--output", type=Path, metavar="DIR", help="write scores.json and scores.csv there")
    _add_encoder_options(score)
    score.set_defaults(run=_eval)

    prepare = commands.add_parser("prepare", help="NLI files -> a file of triplets", allow_abbrev=False)
    prepare.add_argument("files", nargs="+", metavar="FILE", help="NLI files; their order matters to last_wins")
    prepare.add_argument("--rule", choices=["last_wins", "all"], default="last_wins")
    prepare.add_argument("--on_bad_row", choices=["error", "skip"], default="error")
    prepare.add_argument("--output", type=Path, required=True, metavar="FILE.tsv")
    prepare.set_defaults(run=_prepare)

    mine = commands.add_parser("mine", help="pairs and a corpus -> triplets with hard negatives", allow_abbrev=False)
    mine.add_argument("pairs", nargs="+", metavar="PAIRS", help="files of pairs, triplets or NLI rows")
    mine.add_argument("--corpus", nargs="+", required=True, metavar="FILE", help="where the negatives are looked for")
    mine.add_argument("--model", required=True, help="folder, Hub id, or sample:encoder")
    mine.add_argument("--output", type=Path, required=True, metavar="FILE.tsv")
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
    mine.set_defaults(run=_mine)

    encode = commands.add_parser("encode", help="sentences of files -> vectors on disk", allow_abbrev=False)
    encode.add_argument("files", nargs="+", metavar="FILE", help="one sentence a line, or a table of one text column")
    encode.add_argument("--model", required=True, help="folder, Hub id, or sample:encoder")
    encode.add_argument(
        "--output",
        type=Path,
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
    encode.set_defaults(run=_encode)

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
    search.add_argument("--vectors", metavar="DIR", help="of the corpus: a folder that encode wrote with this model")
    search.add_argument("--top_k", type=_at_least_one, default=5)
    search.add_argument("--json", action="store_true", help="print JSON")
    _add_encoder_options(search)
    search.add_argument("--dtype", choices=_DTYPES, default="float32", help="of weights and arithmetic")
    search.set_defaults(run=_search)
    return parser


def _add_encoder_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pooler_type", choices=_POOLERS, help="how a plain encoder pools; a folder that says it is believed"
    )
    parser.add_argument("--prompt", help="text before every sentence")
    parser.add_argument("--max_seq_length", type=_at_least_one, help="in tokens")
    parser.add_argument("--batch_tokens", type=_at_least_one, default=16_384, help="tokens in one batch")
    parser.add_argument("--device", help="cpu, cuda, mps, ...")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code from the model repository")


def _encoder_options(arguments: argparse.Namespace) -> dict:
    import torch

    names = ("pooler_type", "prompt", "max_seq_length", "device", "trust_remote_code")
    try:
        torch.empty(0, device=arguments.device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"the device {arguments.device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return {name: getattr(arguments, name) for name in names}


def _train(argv: list[str]) -> int:
    from .arguments import DataArguments, ModelArguments, SimCSETrainingArguments
    from .method import warnings_about
    from .parser import parse_arguments
    from .train import train

    model_args, data_args, training_args = parse_arguments(
        (ModelArguments, DataArguments, SimCSETrainingArguments), argv
    )
    if not training_args.should_log:
        logger.setLevel(logging.ERROR)
    run = train(model_args, data_args, training_args)
    if training_args.process_index == 0:
        for result in run.results:
            low, high = result.interval
            score = f"{result.task} ({result.num_pairs} pairs)"
            score += f" cosine Spearman {100 * result.metrics['cosine_spearman']:.2f}"
            score += f" [{100 * low:.2f}, {100 * high:.2f}], AVG {100 * result.metrics['avg']:.2f}"
            if run.before is not None and run.before.task == result.task:
                score += f"; before training {100 * run.before.metrics['cosine_spearman']:.2f}"
            print(score)
        for warning in warnings_about(run.record):
            print(warning)
        print(f"results: {run.output_dir}")
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    from .benchmark import run_benchmark
    from .method import warnings_of_folder
    from .score_report import format_table, write_scores

    scores = run_benchmark(
        arguments.models,
        arguments.tasks,
        data_dir=arguments.data_dir,
        from_hub=arguments.from_hub,
        text_mode=arguments.text_mode,
        batch_tokens=arguments.batch_tokens,
        show_progress=sys.stderr.isatty(),
        **_encoder_options(arguments),
    )
    print(format_table(scores))
    for model in arguments.models:
        for warning in warnings_of_folder(model):
            print(f"{model}: {warning}")
    if arguments.output is not None:
        for path in write_scores(scores, arguments.output):
            print(f"written: {path}")
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    from .corpora import training_views
    from .files import write_text
    from .row_report import RowReport
    from .tables import expand_paths, read_table

    if arguments.output.suffix != ".tsv":
        raise ConfigError(
            f"--output is {arguments.output}; triplets are written separated by tabs, so name a .tsv file."
        )
    report = RowReport(on_bad_row=arguments.on_bad_row)
    tables = [read_table(path, report) for path in expand_paths(arguments.files)]
    views = training_views(tables, report, triplet_rule=arguments.rule)
    if views.shape != "nli":
        raise DataError(f"{arguments.files[0]} holds {views.shape}, not NLI rows (premise, hypothesis, label).")
    lines = ["anchor\tpositive\tnegative", *("\t".join(row) for row in views.rows)]
    write_text(arguments.output, "\n".join(lines) + "\n")
    print(report)
    print(f"written: {arguments.output}")
    return 0


def _mine(arguments: argparse.Namespace) -> int:
    from .mining import MiningRule, mine_triplets
    from .sample import resolve_sample

    if arguments.output.suffix != ".tsv":
        raise ConfigError(
            f"--output is {arguments.output}; triplets are written separated by tabs, so name a .tsv file."
        )
    rule = MiningRule(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(MiningRule)})
    mined = mine_triplets(
        [resolve_sample(path) for path in arguments.pairs],
        [resolve_sample(path) for path in arguments.corpus],
        _load_encoder(arguments),
        arguments.output,
        rule,
        triplet_rule=arguments.rule,
        on_bad_row=arguments.on_bad_row,
        batch_tokens=arguments.batch_tokens,
        show_progress=sys.stderr.isatty(),
    )
    print(f"corpus: {mined.corpus}")
    print(mined.rows)
    if mined.shape in ("triplets", "nli"):
        print("the negatives of the file itself are not written")
    print(f"written: {arguments.output}")
    return 0


def _encode(arguments: argparse.Namespace) -> int:
    from .bulk_encoding import ShardOptions, device_of_job, encode_to_file, encode_to_folder, process_of_job

    output, settings = arguments.output, {"normalize": arguments.normalize, "batch_tokens": arguments.batch_tokens}
    of_shards = {name: getattr(arguments, name) for name in ("format", "shard_rows", "with_text")}
    of_shards = {name: value for name, value in of_shards.items() if value}
    if output.suffix != ".npy":
        options = ShardOptions(**of_shards, output_dtype=arguments.output_dtype)
        process, processes = process_of_job()
        arguments.device = arguments.device or device_of_job(processes)
        settings |= {"model_name": arguments.model, "process": process, "processes": processes}
        settings |= {"show_progress": process == 0 and sys.stderr.isatty()}
        encoded = encode_to_folder(_load_encoder(arguments), arguments.files, output, options, **settings)
    else:
        from accelerate import PartialState

        if of_shards:
            raise ConfigError(f"--{next(iter(of_shards))} is for a folder of shards, and {output} names a single file.")
        state = PartialState(cpu=arguments.device == "cpu")
        if state.num_processes > 1 and arguments.device is None:
            arguments.device = state.device
        settings |= {"writes": state.is_main_process, "output_dtype": arguments.output_dtype}
        settings |= {"show_progress": state.is_main_process and sys.stderr.isatty()}
        encoded = encode_to_file(_load_encoder(arguments), arguments.files, output, **settings)
        if not state.is_main_process:
            return 0
    if encoded.rows_now:
        logger.info("%s", encoded.speed)
    print(f"{encoded.outcome}: {output}, {encoded.contents}")
    return 0


def _search(arguments: argparse.Namespace) -> int:
    from .search import read_corpus, search, search_folder
    from .vector_shards import open_vectors

    settings = {"top_k": arguments.top_k, "batch_tokens": arguments.batch_tokens}
    if arguments.vectors is None:
        if arguments.corpus is None:
            raise ConfigError("command line: --corpus FILE is missing, or --vectors DIR. See simcse-hf search --help.")
        if len(arguments.corpus) > 1:
            raise ConfigError(
                f"{len(arguments.corpus)} files are given as --corpus; without --vectors it is one, because results are "
                "numbered by line. Put them into one, or encode them to a folder."
            )
        corpus = read_corpus(arguments.corpus[0])
        found = search(_load_encoder(arguments), arguments.queries, corpus, **settings)
    else:
        vectors = open_vectors(arguments.vectors)
        found = search_folder(_load_encoder(arguments), arguments.queries, vectors, arguments.corpus, **settings)
    if arguments.json:
        records = [
            {
                "query": query,
                "results": [{"sentence": hit.sentence, "score": hit.score, "line": hit.index + 1} for hit in hits],
            }
            for query, hits in zip(arguments.queries, found, strict=True)
        ]
        print(json.dumps(records, ensure_ascii=False, indent=2))
        return 0
    for query, hits in zip(arguments.queries, found, strict=True):
        print(query)
        for hit in hits:
            print(f"  {hit.score:.4f}  {hit.sentence}")
    return 0


def _load_encoder(arguments: argparse.Namespace):
    import torch

    from .encoder import SentenceEncoder
    from .sample import resolve_sample

    options = _encoder_options(arguments) | {"dtype": getattr(torch, arguments.dtype)}
    return SentenceEncoder.from_pretrained(resolve_sample(arguments.model), **options)
