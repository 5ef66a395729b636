"""How fast, and in how much memory? Ours and sentence-transformers, side by side.

    SIMCSE_DATA_DIR=../shared/data SIMCSE_MODELS_DIR=../shared/models \
        python benchmarks/engine.py [MEASUREMENT ... | all] [--repeats 3] [--steps N] [--bf16]
    python benchmarks/engine.py gpu                # needs a GPU; with --tiny a smoke test anywhere
    python benchmarks/engine.py --report           # docs/benchmarks.md from the committed results

Every run is a process of its own. The sides alternate, see the same rows in the same order from the same weights, and
compute in the same precision. Each measurement is one JSON in benchmarks/results with all its runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path

import numpy as np
from paths import DATA, KORSTS_FILES, MODELS, NLI_FILES, RESULTS, REVIEWS_FILE

MAX_LENGTH = 64
REVIEWS = 4096
TOKENISED_REVIEWS = 100_000
CORPUS_SIZES = (10_000, 100_000, 650_000)
LARGE_BATCH = 4096
FILL_BATCHES = (64, 256, 1024)
SHORTEST_REVIEW = 6  # characters
GRADIENT_CACHE_TOKENS = 16_384

# Of klue/bert-base's kind: about 1.7 tokens a Korean word, and two special tokens.
GPU_TRIPLETS = 277_811
TOKENS_A_WORD = 1.7
PREMISE_WORDS, HYPOTHESIS_WORDS = 16, 8
GPU_VOCABULARY = 32_000

TELLING_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
PEER_PACKAGES = ("sentence-transformers", "flash-attn")

Rows = list[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What the runs of a measurement have in common.

    Attributes:
        data: `description`, and `sources` with the sha256 of each file.
        job: For the workers, beside what the command line says.
        variants: Label -> what it changes in the job; the sides alternate within each.
        notes: Sentences for the report.
    """

    data: dict
    job: dict
    variants: dict[str | None, dict] = field(default_factory=lambda: {None: {}})
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One table of the report.

    Attributes:
        worker: A name in `engine_workers.WORKERS`.
        prepare: Writes what the workers read into a folder.
        steps: Optimiser steps of a run, the first `skip` of them not timed; None where nothing is trained.
    """

    worker: str
    prepare: Callable[[argparse.Namespace, Path], Prepared]
    sides: tuple[str, ...] = ("ours", "peer")
    batch: int | None = None
    steps: int | None = None
    skip: int = 0
    repeats: int = 3
    has_bf16: bool = False
    settings: dict = field(default_factory=dict)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        return work(*sys.argv[2:])
    options = _parse()
    with tempfile.TemporaryDirectory(prefix="engine-cache-") as cache:
        # The corpora are read here once for all measurements; the workers get caches of their own.
        os.environ |= {"HF_HUB_OFFLINE": "1", "SIMCSE_CACHE_DIR": cache}
        results = [_measured(name, options) for name in ([] if options.report else options.measurements)]
    if options.results == RESULTS:
        from report import write_report

        write_report()
    if failed := [result["name"] for result in results if any("error" in run for run in result["runs"])]:
        sys.exit(f"some runs failed: {', '.join(failed)}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*MEASUREMENTS, "fill"]
    parser.add_argument("measurements", nargs="*", choices=[*names, "all"], default="all", metavar="MEASUREMENT")
    parser.add_argument("--repeats", type=int, help="runs of each side (default: 3; 1 where a run takes very long)")
    parser.add_argument("--steps", type=int, help="optimiser steps of a run, warm-up included")
    parser.add_argument("--batch", type=int, help="rows of a batch")
    parser.add_argument("--rows", type=int, help="use only the first so many rows")
    parser.add_argument("--sides", nargs="+", help="only these, for example ours")
    parser.add_argument("--encoder", default="ko-e5-small", help="a folder in SIMCSE_MODELS_DIR")
    parser.add_argument(
        "--bf16", action="store_true", help="where a measurement has it: stored under a name of its own"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="gpu: a smoke test of 2 layers and 200 triplets")
    parser.add_argument("--results", type=Path, default=RESULTS, help="elsewhere: docs/benchmarks.md is left alone")
    parser.add_argument("--report", action="store_true", help="only write docs/benchmarks.md")
    options = parser.parse_args()
    if options.tiny and options.results == RESULTS:
        parser.error("--tiny measures nothing that is worth keeping: name another folder with --results.")
    options.measurements = _chosen(options, names, parser)
    return options


def _chosen(options: argparse.Namespace, names: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    import torch

    gpu_is_possible = torch.cuda.is_available() or options.tiny
    wanted = options.measurements if isinstance(options.measurements, list) else [options.measurements]
    if "gpu" in wanted and not gpu_is_possible:
        parser.error("gpu needs a GPU, and torch sees none. As a smoke test it runs anywhere with --tiny.")
    if "all" in wanted:
        wanted = [name for name in names if name != "gpu" or gpu_is_possible]
    if options.bf16:
        wanted = [name for name in wanted if name in MEASUREMENTS and MEASUREMENTS[name].has_bf16]
        if not wanted:
            parser.error(
                "--bf16 applies to train-sup, train-sup-64, train-unsup and encode; gpu always computes in bf16."
            )
    return wanted


def measure(name: str, options: argparse.Namespace) -> dict:
    """All runs of a measurement, the sides alternating."""
    from engine_workers import peer_attention

    measurement = MEASUREMENTS[name]
    repeats = options.repeats or measurement.repeats
    runs = []
    with tempfile.TemporaryDirectory(prefix="engine-") as temporary:
        folder = Path(temporary)
        prepared = measurement.prepare(options, folder)
        job = _job(measurement, options) | prepared.job
        for number in range(repeats):
            for variant, changes in prepared.variants.items():
                for side in options.sides or measurement.sides:
                    own = {"output": str(folder / f"run-{len(runs)}"), "vectors": str(folder / f"{side}.npy")}
                    # One cache for the cold and the warm run of a round, a new one for everything else.
                    cache = folder / f"cache-{number}-{variant}-{side.split('-')[0]}"
                    outcome = run(measurement.worker, side, job | changes | own, cache, folder)
                    runs.append({"side": side, "variant": variant, "round": number + 1, **outcome})
                    _log(name, runs[-1], repeats)
                if measurement.worker == "encode":
                    _compare_vectors(runs[-2:], folder)
    settings = {
        "encoder": prepared.data.get("encoder", options.encoder),
        "precision": "bf16" if job["bf16"] else "fp32",
        "max length": MAX_LENGTH,
        "batch": job["batch"],
        "steps": job["steps"] and f"{job['steps']} ({job['skip']} of them warm-up)",
        "repeats": repeats,
        "seed": options.seed,
        "attention of sentence-transformers": peer_attention(job["bf16"]),
        **measurement.settings,
    }
    name = f"{name}-bf16" if options.bf16 else name
    return _result(name, prepared.data, settings, prepared.notes, runs)


def _job(measurement: Measurement, options: argparse.Namespace) -> dict:
    """What every worker is told; a measurement that does not train has no steps."""
    steps = measurement.steps and (options.steps or measurement.steps)
    return {
        "encoder": str(MODELS / options.encoder),
        "max_length": MAX_LENGTH,
        "batch": measurement.batch and (options.batch or measurement.batch),
        "steps": steps,
        # Where there is one step only, that one is timed.
        "skip": min(measurement.skip, (steps or 1) - 1),
        "seed": options.seed,
        "bf16": options.bf16,
        "compile": False,
        "gradient_cache": None,
        "dataloader_workers": 0,
    }


def _compare_vectors(runs: Sequence[dict], folder: Path) -> None:
    """Adds to the run of ours how far its normalised vectors lie from the other side's."""
    if [run["side"] for run in runs if "figures" in run] != ["ours", "peer"]:
        return
    ours, peer = (np.load(folder / f"{run['side']}.npy") for run in runs)
    runs[0]["figures"]["max_difference"] = difference = float(np.abs(ours - peer).max())
    print(f"vectors agree within {difference:.1e}", flush=True)


def run(worker: str, side: str, job: dict, cache: Path, folder: Path) -> dict:
    """One process: `figures` and what loaded the machine before, or `error` with the last line it wrote."""
    load = os.getloadavg()[0]
    path = folder / "job.json"
    path.write_text(json.dumps(job | {"spawned": time.time()}), encoding="utf-8")
    # Nothing that another run kept on disk shortens this one.
    environment = os.environ | {"SIMCSE_CACHE_DIR": str(cache)}
    process = subprocess.run(
        [sys.executable, __file__, "--worker", worker, side, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [f"ended with code {process.returncode}"]
        print(process.stderr, file=sys.stderr)
        return {"error": lines[-1]}
    return {"load": round(load, 2), "figures": json.loads(process.stdout.strip().splitlines()[-1])}


def work(worker: str, side: str, job: str) -> None:
    """Inside a started process: one line of JSON on standard output, the last."""
    from engine_workers import WORKERS

    settings = json.loads(Path(job).read_text(encoding="utf-8"))
    print(json.dumps(WORKERS[worker](side, settings)), flush=True)


def prepare_triplets(options: argparse.Namespace, folder: Path) -> Prepared:
    """All triplets of the NLI files, shuffled once for both sides."""
    rows, data = _nli_triplets(options)
    return Prepared(data=data, job={"rows": _write_rows(rows, folder)})


def prepare_large_batch(options: argparse.Namespace, folder: Path) -> Prepared:
    """As many triplets as one step takes, the last of them made from the first."""
    rows, data = _nli_triplets(options)
    needed = (options.batch or LARGE_BATCH) * (options.steps or 1)
    notes = []
    if needed > len(rows):
        notes.append(
            f"There are {len(rows):,} triplets; the other {needed - len(rows):,} are the same again with the words of every "
            "sentence in another order, and so as long."
        )
    job = {"rows": _write_rows(fill_up(rows, needed), folder), "gradient_cache": GRADIENT_CACHE_TOKENS}
    return Prepared(data=data, job=job, notes=notes)


def prepare_reviews(options: argparse.Namespace, folder: Path) -> Prepared:
    """Sentences of the reviews, each a row of one."""
    rows, data = _reviews(options, options.rows or REVIEWS)
    return Prepared(data=data, job={"rows": _write_rows(rows, folder)})


def prepare_many_reviews(options: argparse.Namespace, folder: Path) -> Prepared:
    """So many that the time of start-up does not count."""
    rows, data = _reviews(options, options.rows or TOKENISED_REVIEWS)
    sentences = _write_sentences(rows, folder)
    return Prepared(data=data, job={"rows": _write_rows(rows, folder), "sentences": sentences})


def prepare_corpora(options: argparse.Namespace, folder: Path) -> Prepared:
    """The first sentences of the reviews, at several sizes."""
    sizes = [size for size in CORPUS_SIZES if size <= (options.rows or max(CORPUS_SIZES))] or [options.rows]
    rows, data = _reviews(options, max(sizes))
    variants = {
        f"{size:,} sentences": {"sentences": _write_sentences(rows[:size], folder)}
        for size in dict.fromkeys(min(size, len(rows)) for size in sizes)
    }
    return Prepared(data=data, job={}, variants=variants)


def prepare_sts_sentences(options: argparse.Namespace, folder: Path) -> Prepared:
    """Every distinct sentence of KorSTS train and dev."""
    rows, data = _sts_sentences(options)
    return Prepared(data=data, job={"rows": _write_rows(rows, folder)})


def prepare_gpu(options: argparse.Namespace, folder: Path) -> Prepared:
    """A randomly initialised BERT, and token ids as many and as long as KorNLI's would be."""
    import torch
    from transformers import BertConfig, BertModel

    from simcse_hf.quiet import quiet_transformers

    triplets, batch, size = (200, 16, 512) if options.tiny else (GPU_TRIPLETS, options.batch or 512, 8192)
    triplets = min(options.rows or triplets, triplets)
    lengths = draw_lengths(triplets, options.seed)
    generator = np.random.default_rng(options.seed)
    offsets = np.concatenate([[0], np.cumsum(lengths.ravel())])
    tokens = generator.integers(5, GPU_VOCABULARY, offsets[-1], dtype=np.int32)
    tokens[offsets[:-1]], tokens[offsets[1:] - 1] = 2, 3
    np.savez(folder / "ids.npz", tokens=tokens, offsets=offsets, rows=np.arange(lengths.size).reshape(lengths.shape))
    torch.manual_seed(options.seed)
    config = BertConfig(vocab_size=GPU_VOCABULARY, **({"num_hidden_layers": 2} if options.tiny else {}))
    model = BertModel(config)
    with quiet_transformers():
        model.save_pretrained(folder / "bert")
    _word_tokenizer().save_pretrained(folder / "bert")
    parameters = sum(parameter.numel() for parameter in model.encoder.parameters())
    means = " / ".join(f"{mean:.1f}" for mean in lengths.mean(axis=0))
    job = {
        "encoder": str(folder / "bert"),
        "ids": str(folder / "ids.npz"),
        "batch": min(batch, triplets),
        "bf16": True,
        "parameters": parameters,
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "matmul_size": size,
        "dataloader_workers": 0 if options.tiny else 4,
    }
    data = {
        "description": f"{triplets:,} triplets of random token ids, on average {means} tokens (words: gamma, mean "
        f"{PREMISE_WORDS} and {HYPOTHESIS_WORDS}; {TOKENS_A_WORD} tokens a word and 2 special)",
        "sources": [],
        "encoder": f"BERT, {config.num_hidden_layers} layers of {config.hidden_size}, vocabulary {GPU_VOCABULARY:,}, random",
    }
    notes = [
        "Model FLOPs utilisation = (6 P n + 12 layers hidden sum(length^2)) / seconds / matmul peak, over the timed steps: n "
        f"real tokens, length of each sentence, P = {parameters:,} parameters without embeddings and pooler; forward and "
        f"backward, nothing counted for padding or for what is computed twice. Matmul peak: the fastest of 30 bf16 products "
        f"of {size} x {size} matrices in the same process. An epoch is its whole batches times the mean step.",
    ]
    return Prepared(data=data, job=job, notes=notes)


def draw_lengths(triplets: int, seed: int) -> np.ndarray:
    """(triplets, 3) tokens of premise and hypotheses, special tokens included."""
    generator = np.random.default_rng(seed)
    shape = 4.0  # of the gamma distribution: spread half as wide as the mean
    means = np.array([PREMISE_WORDS, HYPOTHESIS_WORDS, HYPOTHESIS_WORDS])
    words = np.maximum(1, np.rint(generator.gamma(shape, means / shape, (triplets, 3))))
    return np.minimum(MAX_LENGTH, np.rint(TOKENS_A_WORD * words) + 2).astype(np.int64)


def _word_tokenizer():
    """Only there to be loaded and saved: the benchmark feeds token ids."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *(f"w{number}" for number in range(len(special), GPU_VOCABULARY))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    names = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def fill_up(rows: Rows, count: int) -> Rows:
    """`count` rows: those given and, where they are too few, the same with the words of each sentence rotated."""

    def rotated(sentence: str, places: int) -> str:
        words = sentence.split()
        cut = places % len(words)
        return " ".join(words[cut:] + words[:cut])

    return [
        tuple(rotated(sentence, number // len(rows)) for sentence in rows[number % len(rows)])
        for number in range(count)
    ]


def fill(options: argparse.Namespace) -> dict:
    """What part of the tokens that go through the encoder is real; nothing is timed."""
    from simcse_hf.tokenization import load_tokenizer

    tokenizer = load_tokenizer(str(MODELS / options.encoder))
    triplets, triplet_data = _nli_triplets(options)
    reviews, review_data = _reviews(options, options.rows or REVIEWS)
    runs = []
    for label, rows in (("triplets", triplets), ("pairs of equal reviews", [row * 2 for row in reviews])):
        encoded = tokenizer([sentence for row in rows for sentence in row], truncation=True, max_length=MAX_LENGTH)
        lengths = np.array([len(ids) for ids in encoded["input_ids"]]).reshape(len(rows), -1)
        for batch in FILL_BATCHES:
            for side, ratio in fill_ratios(lengths, min(batch, len(rows))).items():
                variant = f"{label}, batch {batch:,}"
                runs.append({"side": side, "variant": variant, "round": 1, "figures": {"fill": ratio}})
    data = {
        "description": f"{triplet_data['description']} and {review_data['description']}",
        "sources": triplet_data["sources"] + review_data["sources"],
    }
    settings = {"encoder": options.encoder, "max length": MAX_LENGTH, "seed": options.seed}
    return _result("fill", data, settings, [], runs)


def fill_ratios(lengths: np.ndarray, batch: int) -> dict[str, float]:
    """Real tokens for each computed one over the whole batches of `lengths` (N, V), by side.

    `flat` pads all views of a batch to one length. `peer` runs the anchors by themselves and the other views together,
    each padded to its own longest, as MultipleNegativesRankingLoss of sentence-transformers 6.2 does. Ours is packed, in
    rows as the CPU takes them and as a GPU does.
    """
    batches = len(lengths) // batch
    whole = lengths[: batches * batch].reshape(batches, batch, -1)  # (batches, batch, V)
    longest = whole.max(axis=1)  # (batches, V)
    views = whole.shape[2]
    computed = {
        "ours": _packed_tokens(whole, "cpu"),
        "ours-gpu": _packed_tokens(whole, "cuda"),
        "peer": (longest[:, 0] + longest[:, 1:].max(axis=1) * (views - 1)).sum() * batch,
        "flat": longest.max(axis=1).sum() * batch * views,
    }
    return {side: float(whole.sum() / tokens) for side, tokens in computed.items()}


def _packed_tokens(batches: np.ndarray, device: str) -> float:
    import torch

    from simcse_hf.packing import fill_ratio
    from simcse_hf.passes import row_layout

    length = row_layout(torch.device(device), compiled=False).length
    return sum(batch.sum() / fill_ratio(batch.ravel(), length) for batch in batches)


def _nli_triplets(options: argparse.Namespace) -> tuple[Rows, dict]:
    views = _views(NLI_FILES)
    order = np.random.default_rng(options.seed).permutation(len(views.rows))
    rows = [tuple(views.rows[int(number)]) for number in order[: options.rows]]
    return rows, _described(f"{len(rows):,} triplets", views)


def _reviews(options: argparse.Namespace, count: int) -> tuple[Rows, dict]:
    views = _views([REVIEWS_FILE], train_as="sentences")
    rows = list(islice((tuple(row) for row in views.rows if len(row[0]) >= SHORTEST_REVIEW), count))
    what = f"the first {len(rows):,} distinct reviews longer than {SHORTEST_REVIEW - 1} characters"
    return rows, _described(what, views)


def _sts_sentences(options: argparse.Namespace) -> tuple[Rows, dict]:
    views = _views(KORSTS_FILES, train_as="sentences")
    rows = [tuple(row) for row in views.rows[: options.rows]]
    return rows, _described(f"{len(rows):,} distinct sentences of KorSTS train and dev", views)


def _views(files: Sequence[str], **settings):
    from simcse_hf import DataArguments
    from simcse_hf.train import load_training_views

    return load_training_views(DataArguments(train_file=[str(DATA / file) for file in files], **settings))


def _described(what: str, views) -> dict:
    sources = [
        {"path": Path(source["path"]).name, "sha256": source["sha256"], "rows": source["rows"]}
        for source in views.sources
    ]
    return {"description": what, "sources": sources}


def _write_rows(rows: Rows, folder: Path) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _write_sentences(rows: Rows, folder: Path) -> str:
    path = folder / f"{len(rows)}.txt"
    path.write_text("".join(row[0] + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _result(name: str, data: dict, settings: dict, notes: list[str], runs: list[dict]) -> dict:
    from simcse_hf.versions import git_revision

    return {
        "name": name,
        "data": data,
        "settings": settings,
        "notes": notes,
        "runs": runs,
        "hardware": _hardware(),
        "versions": _versions(),
        "git_revision": git_revision(),
    }


def _measured(name: str, options: argparse.Namespace) -> dict:
    from simcse_hf.files import write_json

    result = fill(options) if name == "fill" else measure(name, options)
    path = options.results / f"engine-{result['name']}.json"
    write_json(path, result)  # at once: the next measurement may be interrupted
    print(f"written: {path}", flush=True)
    return result


def _log(name: str, run: dict, repeats: int) -> None:
    shown = run.get("error") or ", ".join(f"{key} {value:,.4g}" for key, value in run["figures"].items())
    variant = f", {run['variant']}" if run["variant"] else ""
    print(f"{name}{variant}, {run['side']}, {run['round']} of {repeats}: {shown}", flush=True)


def _hardware() -> dict:
    import torch

    facts = _processor_facts()
    known = facts.get("flags", "").split()
    return {
        "cpu": facts.get("model name") or platform.processor() or "unknown CPU",
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_flags": [flag for flag in TELLING_CPU_FLAGS if flag in known],
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor_facts() -> dict[str, str]:
    """Of the first processor, where the system tells."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _versions() -> dict[str, str]:
    from simcse_hf.versions import package_versions

    versions = package_versions()
    for package in PEER_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


TRAINING = {"steps": 5, "skip": 1}
MEASUREMENTS = {
    "train-sup": Measurement(worker="train", prepare=prepare_triplets, batch=256, has_bf16=True, **TRAINING),
    "train-sup-64": Measurement(worker="train", prepare=prepare_triplets, batch=64, has_bf16=True, **TRAINING),
    "train-unsup": Measurement(worker="train", prepare=prepare_reviews, batch=256, has_bf16=True, **TRAINING),
    "encode": Measurement(
        worker="encode",
        prepare=prepare_sts_sentences,
        has_bf16=True,
        settings={"batch sizes of sentence-transformers": "32 and 128, the faster counts"},
    ),
    "start": Measurement(
        worker="start", prepare=prepare_many_reviews, sides=("ours-cold", "ours-warm", "peer"), batch=256
    ),
    "tokenise": Measurement(
        worker="tokenise",
        prepare=prepare_many_reviews,
        settings={"sentences at once in sentence-transformers": 256},
    ),
    "memory-corpus": Measurement(worker="memory-corpus", prepare=prepare_corpora),
    "memory-4096": Measurement(
        worker="train",
        prepare=prepare_large_batch,
        batch=LARGE_BATCH,
        steps=1,
        skip=1,
        repeats=1,
        settings={
            "tokens at once in ours": GRADIENT_CACHE_TOKENS,
            "loss of sentence-transformers": "CachedMultipleNegativesRankingLoss, mini-batches of 64",
        },
    ),
    "gpu": Measurement(
        worker="gpu",
        prepare=prepare_gpu,
        sides=("ours", "peer", "ours-compile", "peer-compile"),
        batch=512,
        steps=60,
        skip=20,
    ),
}


if __name__ == "__main__":
    main()
