"""The console script `simcse-hf`, and the two scripts at the top of the repository.

Exit codes: 0 done, 2 an error the user can cure (one line on stderr), 130 interrupted by SIGINT (Ctrl-C), 143 by SIGTERM.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Sequence
from itertools import zip_longest

from .command_line import Arguments, parse_command
from .distributed import rank
from .errors import ConfigError, DataError, SimCSEError, TrainingInterrupted
from .failures import explain_failure
from .interruption import Terminated, sigterm_as_exception
from .run_folder import RunFinished

logger = logging.getLogger("simcse_hf")

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
        try:
            return _run(argv)
        except RunFinished as error:
            if rank() == 0:
                print(error)
            return error.exit_code
        except SimCSEError as error:
            if debug and not isinstance(error, TrainingInterrupted):
                raise
            message, code = str(error), error.exit_code
        except Exception as error:
            message, code = explain_failure(error), 2
            if debug or message is None:
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
    arguments = parse_command(argv)
    commands = {"eval": _eval, "prepare": _prepare, "mine": _mine, "encode": _encode, "search": _search}
    return commands[arguments.command](arguments)


def _encoder_options(arguments: Arguments) -> dict:
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


def _eval(arguments: Arguments) -> int:
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


def _prepare(arguments: Arguments) -> int:
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


def _mine(arguments: Arguments) -> int:
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


def _encode(arguments: Arguments) -> int:
    from .bulk_encoding import (
        ShardOptions,
        check_folder,
        check_single_file,
        device_of_job,
        encode_to_file,
        encode_to_folder,
        process_of_job,
    )

    output, settings = arguments.output, {"normalize": arguments.normalize, "batch_tokens": arguments.batch_tokens}
    of_shards = {name: getattr(arguments, name) for name in ("format", "shard_rows", "with_text")}
    of_shards = {name: value for name, value in of_shards.items() if value}
    process, processes = process_of_job()
    if output.suffix != ".npy":
        options = ShardOptions(**of_shards, output_dtype=arguments.output_dtype)
        check_folder(arguments.files, output)
        arguments.device = arguments.device or device_of_job(processes)
        settings |= {"model_name": arguments.model, "process": process, "processes": processes}
        settings |= {"show_progress": process == 0 and sys.stderr.isatty()}
        encoded = encode_to_folder(_load_encoder(arguments), arguments.files, output, options, **settings)
    else:
        import torch
        from accelerate import PartialState

        if of_shards.pop("format", "npy") != "npy" or of_shards:
            raise ConfigError(
                f"--{next(iter(of_shards), 'format')} is for a folder of shards, and {output} names a single file."
            )
        check_single_file(arguments.files, output)
        if processes > 1 and "MASTER_ADDR" not in os.environ:
            raise ConfigError(
                f"the environment says WORLD_SIZE={processes}, and the processes do not know each other: each would write all of "
                f"{output}. Start them with torchrun or accelerate launch, or name a folder as --output."
            )
        # Where it finds no GPU it lets them know each other only if the CPU is asked for.
        state = PartialState(cpu=str(arguments.device) == "cpu" or not torch.cuda.is_available())
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


def _search(arguments: Arguments) -> int:
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


def _load_encoder(arguments: Arguments):
    import torch

    from .encoder import SentenceEncoder
    from .sample import resolve_sample

    options = _encoder_options(arguments) | {"dtype": getattr(torch, arguments.dtype)}
    return SentenceEncoder.from_pretrained(resolve_sample(arguments.model), **options)
