"""What a large corpus costs: memory while it is prepared and read, and seconds to the first batch.

    SIMCSE_DATA_DIR=../shared/data SIMCSE_MODELS_DIR=../shared/models \
        python benchmarks/corpus_memory.py [--lines 100000 1000000 10000000]

Lines are real text, repeated with a word exchanged and one moved (and one time in twenty as it is,
so that there are duplicates to drop) until there are enough. The data path
of a training (read, de-duplicate, tokenise, shuffle, 50 batches; no model) runs in a process of its
own, once with an empty cache and once with the cache it left. Memory is what Linux says of that
process. Writes benchmarks/results/corpus_memory.json; temporary files take 0.4 GB a million lines.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path

from paths import DATA, MODELS, RESULTS

BATCHES = 50
BATCH_SIZE = 64
MAX_LENGTH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", nargs="+", type=int, default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--tokenizer", default=str(MODELS / "ko-e5-small"))
    parser.add_argument("--measure", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.tokenizer)))
        return
    runs = [run(lines, arguments.tokenizer) for lines in arguments.lines]
    peaks = [record["cold"]["mebibytes"]["VmHWM"] for record in runs]
    report(
        "corpus_memory", arguments.tokenizer, runs, peak_above_the_smallest_mebibytes=round(max(peaks) - min(peaks), 1)
    )


def report(name: str, tokenizer: str, runs: list[dict], settings: dict | None = None, **findings) -> None:
    """Write `results/NAME.json`: what was measured, with which settings, on what."""
    from simcse_hf.files import write_json
    from simcse_hf.versions import package_versions

    common = {
        "tokenizer": Path(tokenizer).name,
        "batches": BATCHES,
        "batch_size": BATCH_SIZE,
        "max_length": MAX_LENGTH,
    }
    path = RESULTS / f"{name}.json"
    write_json(
        path,
        {
            "settings": common | (settings or {}),
            "runs": runs,
            **findings,
            "hardware": f"CPU ({platform.machine()}), {os.cpu_count()} cores",
            "versions": package_versions() | {"pyarrow": version("pyarrow")},
        },
    )
    print(f"written: {path}")


def run(lines: int, tokenizer: str) -> dict:
    """One corpus, prepared and then found prepared."""
    with tempfile.TemporaryDirectory(prefix="corpus-memory-") as folder:
        corpus = made_corpus(Path(folder), lines)
        size = corpus.stat().st_size
        command = [__file__, "--measure", str(corpus), "--tokenizer", tokenizer]
        outcomes = {start: alone(command, Path(folder)) for start in ("cold", "cached")}
        cached = sum(file.stat().st_size for file in Path(folder, "cache").rglob("*") if file.is_file())
    if outcomes["cold"].pop("order") != outcomes["cached"].pop("order"):
        raise RuntimeError("the cached start read other batches than the first")
    peak, seconds = (outcomes["cold"][name] for name in ("mebibytes", "seconds"))
    again = outcomes["cached"]["seconds"]["to_the_first_batch"]
    print(
        f"{lines:,} lines: peak {peak['VmHWM']} MiB; {seconds['to_the_first_batch']} s to the first batch, {again} s cached",
        flush=True,
    )
    return {"lines": lines, "corpus_bytes": size, "cache_bytes": cached, **outcomes}


def made_corpus(folder: Path, lines: int) -> Path:
    """A text file of so many lines."""
    corpus = folder / "corpus.txt"
    with corpus.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in islice(made_lines(random.Random(1)), lines))
    return corpus


def alone(command: list[str], folder: Path) -> dict:
    """What a Python program measures in a process of its own, with its cache in a folder: the last line it prints."""
    environment = os.environ | {"SIMCSE_CACHE_DIR": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *command], env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def made_lines(chance: random.Random) -> Iterator[str]:
    """The unlabelled corpora as they are, then again and again with a word exchanged and one moved."""
    texts = []
    for path in sorted(DATA.glob("unlabeled/*.txt.xz")):
        with lzma.open(path, "rt", encoding="utf-8") as file:
            texts += [line.strip() for line in file if line.strip()]
    chance.shuffle(texts)
    yield from texts
    while True:
        for text in texts:
            words = text.split()
            if chance.random() < 0.95:
                words[chance.randrange(len(words))] = chance.choice(chance.choice(texts).split())
                words.insert(chance.randrange(len(words)), words.pop())
            yield " ".join(words)


def measure(corpus: Path, tokenizer_folder: str) -> dict:
    """Seconds, memory and what was read; alone in this process."""
    from torch.utils.data import DataLoader

    from simcse_hf.arguments import DataArguments
    from simcse_hf.cache_folder import cache_root
    from simcse_hf.collators import ViewsCollator
    from simcse_hf.shuffled_rows import ShuffledRows
    from simcse_hf.tokenization import load_tokenizer
    from simcse_hf.training_corpus import tokenized_views
    from simcse_hf.training_sets import load_training_views

    tokenizer = load_tokenizer(tokenizer_folder)
    memory = {"imported": resident()}
    clock = [time.perf_counter()]
    views = load_training_views(DataArguments(train_file=[str(corpus)]))
    clock.append(time.perf_counter())
    memory["read"] = resident()
    dataset, statistics = tokenized_views(views, tokenizer, cache_root(), max_length=MAX_LENGTH)
    clock.append(time.perf_counter())
    memory["tokenised"] = resident()
    loader = DataLoader(
        dataset,
        batch_size=BATCH_SIZE,
        sampler=ShuffledRows(len(dataset), seed=1),
        collate_fn=ViewsCollator(tokenizer.pad_token_id),
        drop_last=True,
    )
    order = []
    for batch in islice(loader, BATCHES):
        if not order:
            clock.append(time.perf_counter())
        order.append(int(batch["sentence_ids"].sum()))
    read, tokenised, first_batch = (end - start for start, end in zip(clock, clock[1:], strict=False))
    return {
        "mebibytes": resident(),
        "mebibytes_on_the_way": memory,
        "seconds": {
            "reading": round(read, 2),
            "tokenising": round(tokenised, 2),
            "shuffling_and_first_batch": round(first_batch, 2),
            "to_the_first_batch": round(clock[-1] - clock[0], 2),
        },
        "lines_per_second": {
            "reading": round(views.report.read / read),
            "tokenising": round(statistics["distinct_sentences"] / tokenised),
        },
        "report": views.report.as_dict(),
        "statistics": statistics,
        "order": order,
    }


def resident() -> dict[str, float]:
    """Peak and present memory of this process in MiB, as Linux counts them."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: round(int(fields[name].split()[0]) / 1024, 1) for name in ("VmHWM", "VmRSS", "RssAnon", "RssFile")}


if __name__ == "__main__":
    main()
