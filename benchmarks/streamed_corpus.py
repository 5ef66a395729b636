"""What a large corpus costs when it is streamed: memory, and seconds to the first batch, beside the corpus on disk.

    SIMCSE_DATA_DIR=../shared/data SIMCSE_MODELS_DIR=../shared/models \
        python benchmarks/streamed_corpus.py [--lines 100000 10000000]

The lines are those of corpus_memory.py. In a process of its own each: the data path of a training with streaming
(checksum, first rows, shuffle buffer, batches; no model), and that of a training without, with an empty cache. Streamed
batches are timed, and then a whole pass is read without making batches of it, which is what a resumed run does with
the rows that it had. Memory is what Linux says of the process. Writes benchmarks/results/streamed_corpus.json;
temporary files take 0.4 GB a million lines.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import corpus_memory
from corpus_memory import BATCH_SIZE, BATCHES, MAX_LENGTH, resident
from paths import MODELS

SHUFFLE_BUFFER = 100_000
TIMED_BATCHES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", nargs="+", type=int, default=[100_000, 10_000_000])
    parser.add_argument("--tokenizer", default=str(MODELS / "ko-e5-small"))
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        kind, corpus = arguments.measure
        measure = streamed if kind == "streamed" else corpus_memory.measure
        print(json.dumps(measure(Path(corpus), arguments.tokenizer)))
        return
    runs = [run(lines, arguments.tokenizer) for lines in arguments.lines]
    settings = {"timed_batches": TIMED_BATCHES, "shuffle_buffer": SHUFFLE_BUFFER}
    corpus_memory.report("streamed_corpus", arguments.tokenizer, runs, settings)


def run(lines: int, tokenizer: str) -> dict:
    """One corpus, streamed and on disk."""
    with tempfile.TemporaryDirectory(prefix="streamed-corpus-") as folder:
        corpus = corpus_memory.made_corpus(Path(folder), lines)
        size = corpus.stat().st_size
        outcomes = {
            kind: corpus_memory.alone(
                [__file__, "--measure", kind, str(corpus), "--tokenizer", tokenizer], Path(folder)
            )
            for kind in ("streamed", "on_disk")
        }
    del outcomes["on_disk"]["order"]
    for kind, outcome in outcomes.items():
        peak, first = outcome["mebibytes"]["VmHWM"], outcome["seconds"]["to_the_first_batch"]
        print(f"{lines:,} lines, {kind}: peak {peak} MiB; {first} s to the first batch", flush=True)
    return {"lines": lines, "corpus_bytes": size, **outcomes}


def streamed(corpus: Path, tokenizer_folder: str) -> dict:
    """Seconds, memory and what was read; alone in this process."""
    from torch.utils.data import DataLoader

    from simcse_hf.arguments import DataArguments
    from simcse_hf.collators import ViewsCollator
    from simcse_hf.configuration_simcse import SimCSEConfig
    from simcse_hf.streamed_sets import streamed_set
    from simcse_hf.tokenization import load_tokenizer
    from simcse_hf.training_sets import load_training_views

    tokenizer = load_tokenizer(tokenizer_folder)
    memory = {"imported": resident()}
    clock = [time.perf_counter()]
    views = load_training_views(
        DataArguments(train_file=[str(corpus)], streaming=True, shuffle_buffer=SHUFFLE_BUFFER, eval_task="none")
    )
    dataset = streamed_set(views, tokenizer, SimCSEConfig(max_seq_length=MAX_LENGTH)).dataset
    dataset.seed, dataset.global_batch = 1, BATCH_SIZE
    clock.append(time.perf_counter())
    collate = dataset.collator(ViewsCollator(tokenizer.pad_token_id))
    batches = iter(DataLoader(dataset, batch_size=BATCH_SIZE, collate_fn=collate, drop_last=True))
    next(batches)
    clock.append(time.perf_counter())
    for _ in range(BATCHES - 1):
        next(batches)
    memory["after_batches"] = resident()
    start = time.perf_counter()
    wanted = min(TIMED_BATCHES, dataset.stream.report.kept // BATCH_SIZE - BATCHES - 1)
    for _ in range(wanted):
        next(batches)
    of_a_batch = (time.perf_counter() - start) / wanted
    del batches
    start, before = time.perf_counter(), dataset.stream.report.read
    rows = sum(1 for _ in dataset.stream.one_pass(seed=2))
    replay = time.perf_counter() - start
    return {
        "mebibytes": resident(),
        "mebibytes_on_the_way": memory,
        "seconds": {
            "checksum_and_first_rows": round(clock[1] - clock[0], 2),
            "filling_the_buffer_and_first_batch": round(clock[2] - clock[1], 2),
            "to_the_first_batch": round(clock[2] - clock[0], 2),
            "whole_pass_without_batches": round(replay, 2),
        },
        "milliseconds_of_a_batch": round(1000 * of_a_batch, 2),
        "rows_per_second_without_batches": round(rows / replay),
        "rows_of_the_pass": dataset.stream.report.read - before,
    }


if __name__ == "__main__":
    main()
