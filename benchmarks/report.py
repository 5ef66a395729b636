"""docs/benchmarks.md, put together from the JSON files in benchmarks/results and from nothing else."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from paths import REPORT, RESULTS

PEER = "peer"
SIDES = {
    "ours": "ours",
    "ours-cold": "ours, nothing cached",
    "ours-warm": "ours, the same corpus again",
    "ours-compile": "ours, torch_compile",
    "ours-gpu": "ours, in the rows of a GPU",
    "peer": "sentence-transformers",
    "peer-compile": "sentence-transformers, torch_compile",
    "flat": "every sentence padded to the longest of the batch",
}


@dataclass(frozen=True)
class Figure:
    """How a measured figure is shown.

    Attributes:
        label: With its unit.
        digits: After the point.
        better: Which way is better; the figures that are neither get no ratio.
    """

    label: str
    digits: int
    better: str | None


FIGURES = {
    "sentences_per_second": Figure("sentences/s", 1, "higher"),
    "tokens_per_second": Figure("real tokens/s", 0, "higher"),
    "seconds_per_step": Figure("s a step", 3, "lower"),
    "to_first_step": Figure("s from start to the end of the first step", 2, "lower"),
    "lines_per_second": Figure("lines/s", 0, "higher"),
    "peak_mib": Figure("peak memory, MiB", 0, "lower"),
    "resident_mib": Figure("memory that stays resident, MiB", 1, "lower"),
    "anonymous_mib": Figure("of it not backed by a file, MiB", 1, "lower"),
    "peak_growth_mib": Figure("peak while it is built, MiB", 1, "lower"),
    "fill": Figure("real tokens of those computed", 3, "higher"),
    "epoch_seconds": Figure("s an epoch, extrapolated", 1, "lower"),
    "flops_utilisation": Figure("model FLOPs utilisation", 3, "higher"),
    "matmul_teraflops": Figure("matmul peak, TFLOP/s", 1, None),
    "loss": Figure("mean loss", 3, None),
    "max_difference": Figure("largest difference of normalised vectors", 7, None),
}

TITLES = {
    "train-sup": "Training on triplets",
    "train-sup-bf16": "Training on triplets, bf16",
    "train-sup-64": "Training on triplets in batches of 64",
    "train-sup-64-bf16": "Training on triplets in batches of 64, bf16",
    "train-unsup": "Unsupervised training on reviews",
    "train-unsup-bf16": "Unsupervised training on reviews, bf16",
    "encode": "Encoding",
    "encode-bf16": "Encoding, bf16",
    "start": "From start to first step",
    "tokenise": "Tokenisation",
    "memory-corpus": "Memory against corpus size",
    "memory-4096": "Batches of 4,096 triplets with gradient caching",
    "fill": "Fill ratio",
    "gpu": "BERT-base on a GPU",
}

INTRODUCTION = [
    "## Engine: ours and sentence-transformers",
    "",
    "Written from `benchmarks/results/engine-*.json` by `python benchmarks/engine.py`; `--report` writes it anew without",
    "measuring. Every run is a process of its own, and the sides alternate, so that what disturbs the machine disturbs both.",
    "A ratio is the median of ours against the median of sentence-transformers, turned so that above 1 is better for the row",
    "it stands in; in brackets the lowest and highest ratio of two runs of the same round.",
    "",
]


def write_report() -> None:
    """Both scripts call this, so neither loses the sections of the other."""
    # sts_training imports this module.
    from sts_training import report as sts_training_report

    from simcse_hf.files import write_text

    write_text(REPORT, sts_training_report() + engine_report(RESULTS))
    print(f"written: {REPORT}")


def engine_report(results: Path) -> str:
    """The sections of `engine.py`; empty where nothing is measured yet."""
    paths = [path for name in TITLES if (path := results / f"engine-{name}.json").exists()]
    if not paths:
        return ""
    sections = [line for path in paths for line in section(json.loads(path.read_text(encoding="utf-8")))]
    if (corpora := results / "corpus_memory.json").exists():
        sections += corpus_section(json.loads(corpora.read_text(encoding="utf-8")))
    return "\n".join(["", *INTRODUCTION, *sections])


def corpus_section(result: dict) -> list[str]:
    """Title, table and circumstances of `corpus_memory.py`."""
    lines = [
        "### Corpora of up to ten million lines",
        "",
        "Written by `python benchmarks/corpus_memory.py`: real text repeated and perturbed, read, numbered and tokenised, and then",
        "50 shuffled batches; once with an empty data cache and once with a full one. Memory is the highest resident size of the",
        "process (VmHWM), the libraries included.",
        "",
        "| lines | MiB, empty cache | MiB, full cache | lines read/s | sentences tokenised/s | s to first batch | s, full cache |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in result["runs"]:
        cold, cached = run["cold"], run["cached"]
        cells = [f"{run['lines']:,}", f"{cold['mebibytes']['VmHWM']:.0f}", f"{cached['mebibytes']['VmHWM']:.0f}"]
        cells += [f"{cold['lines_per_second'][name]:,}" for name in ("reading", "tokenising")]
        cells += [f"{part['seconds']['to_the_first_batch']:.2f}" for part in (cold, cached)]
        lines.append(f"| {' | '.join(cells)} |")
    settings = ", ".join(f"{key} {value}" for key, value in result["settings"].items())
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    above = result["peak_above_the_smallest_mebibytes"]
    largest, smallest = result["runs"][-1]["lines"], result["runs"][0]["lines"]
    lines += ["", f"The peak of {largest:,} lines is {above:.0f} MiB above that of {smallest:,}.", ""]
    return [*lines, f"Measured on: {settings}; {result['hardware']}; {versions}.", ""]


def section(result: dict) -> list[str]:
    """Title, table and circumstances of one measurement."""
    lines = [f"### {TITLES[result['name']]}", ""]
    lines += ["| | side | median | min..max | ratio |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in table(result["runs"])]
    lines += ["", *(f"{note}\n" for note in result["notes"])]
    lines += [f"Measured on: {'; '.join(_circumstances(result))}.", ""]
    return lines


def table(runs: Sequence[dict]) -> list[list[str]]:
    """Rows of cells: figure, side, median, range, ratio to the peer.

    Args:
        runs: Each with `side`, `variant` (None where there is one only), `round` and either
            `figures` or, where the run failed, `error`.
    """
    rows = []
    for variant in dict.fromkeys(run["variant"] for run in runs):
        chosen = [run for run in runs if run["variant"] == variant]
        rows += [_failure_row(run, variant) for run in chosen if "error" in run]
        measured = [run for run in chosen if "figures" in run]
        keys = {key for run in measured for key in run["figures"]}
        for key, figure in FIGURES.items():
            if key in keys:
                rows += _figure_rows(key, figure, variant, [run for run in measured if key in run["figures"]])
    return rows


def _failure_row(run: dict, variant: str | None) -> list[str]:
    return [variant or "", SIDES[run["side"]], "failed", "", run["error"].replace("|", "\\|")]


def _figure_rows(key: str, figure: Figure, variant: str | None, runs: Sequence[dict]) -> list[list[str]]:
    rows = []
    by_side = {
        side: {run["round"]: run["figures"][key] for run in runs if run["side"] == side}
        for side in dict.fromkeys(run["side"] for run in runs)
    }
    for side, values in by_side.items():
        show = _formatter(figure)
        rows.append(
            [
                f"{variant}: {figure.label}" if variant else figure.label,
                SIDES[side],
                show(statistics.median(values.values())),
                f"{show(min(values.values()))}..{show(max(values.values()))}",
                "" if side == PEER else _ratio_cell(figure, values, by_side.get(PEER, {})),
            ]
        )
    return rows


def _formatter(figure: Figure) -> Callable[[float], str]:
    return lambda value: f"{value:,.{figure.digits}f}"


def _ratio_cell(figure: Figure, ours: dict[int, float], peer: dict[int, float]) -> str:
    if figure.better is None or not peer:
        return ""
    ratio, low, high = ratios(ours, peer, higher_is_better=figure.better == "higher")
    return f"{ratio:.2f} ({low:.2f}..{high:.2f})" if low is not None else f"{ratio:.2f}"


def ratios(
    ours: dict[int, float], peer: dict[int, float], *, higher_is_better: bool
) -> tuple[float, float | None, float | None]:
    """Ratio of the medians, lowest and highest ratio within a round; above 1 ours is better.

    The last two are None where no round has both sides.
    """

    def ratio(mine: float, other: float) -> float:
        above, below = (mine, other) if higher_is_better else (other, mine)
        return above / below if below else float("inf")

    pairs = [ratio(ours[number], peer[number]) for number in ours if number in peer]
    median = ratio(statistics.median(ours.values()), statistics.median(peer.values()))
    return median, min(pairs, default=None), max(pairs, default=None)


def _circumstances(result: dict) -> list[str]:
    data = result["data"]
    sources = ", ".join(
        f"{source['path']} ({source['rows']:,} rows, sha256 `{source['sha256'][:8]}...`)" for source in data["sources"]
    )
    settings = ", ".join(f"{key} {value}" for key, value in result["settings"].items() if value is not None)
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    hardware = result["hardware"]
    flags = f", {' '.join(hardware['cpu_flags'])}" if hardware["cpu_flags"] else ""
    processor = f"{hardware['cpu']} ({hardware['machine']}, {hardware['cpu_capability']}{flags})"
    machine = f"{hardware['gpu'] or processor}, {hardware['threads']} threads"
    described = f"{data['description']}{' from ' if sources else ''}{sources}"
    return [described, settings, machine, versions]
