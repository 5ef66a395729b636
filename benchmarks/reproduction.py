"""Every published Korean row, what we expect of it, and what its method does here. Writes docs/reproduction.md.

    python benchmarks/reproduction.py

Put together from benchmarks/published.json and the runs in benchmarks/results/family-*-seed*.json (of
family_training.py), and from nothing else. Any of the runs may be missing.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from paths import RESULTS

PUBLISHED = Path(__file__).parent / "published.json"
DOCUMENT = Path(__file__).parent.parent / "docs" / "reproduction.md"
RUNS = "family-*-seed*.json"

# Eight columns and their mean are each rounded to 0.01 (or cut off there), so a sound AVG may be this far off.
ROUNDING = Decimal("0.010")
TABLES = {"korsts-test": "KorSTS-test", "klue-sts-dev": "KLUE-STS-dev"}
COSINE_SPEARMAN = 1
MEASURED = "measured-here"  # the anchor of its heading
COLUMNS = ["run", "method", "rows", "steps", "before", "after, each seed", "mean", "sd", "change", "against baseline"]
COLUMNS += ["AVG before", "AVG after"]

INTRODUCTION = """\
# Reproduction

Written by `python benchmarks/reproduction.py` from `benchmarks/published.json` and the runs in `benchmarks/results`; do
not edit.

**None of the published rows was run by us.** They stand for klue encoders, the whole of KorNLI or a Wikipedia corpus, and
KorSTS-test, none of which we have here. The first part says, row by row, which config stands for it, what was published,
whether the numbers agree with each other, what is wrong with the original, and what we expect of our config. The second
part measures the same methods on a small encoder, with the data that we do have; nothing in it repeats a published row.

All scores x 100. cosS is the cosine Spearman; AVG the mean of the eight correlations (cosine, Euclidean, Manhattan, dot;
Pearson and Spearman of each). *audit* compares a published AVG with the mean of its own eight columns. *D* numbers are the
defects of the original, listed below. *expected* is for AVG; the reasons stand in the list below the tables. *measured*
names the row of the second part with the same method, on other data and another encoder.

The commands are for one process; `--config_file` of accelerate and the files in `configs/accelerate` are for others.
"""

EXPLANATION = """\
KorSTS-dev, cosine Spearman x 100, last weights of the run (no choice of checkpoint). *change* is against the encoder
before training. *against baseline* is the mean over seeds of the difference to plain SimCSE with the same seed and number
of steps, with its standard deviation.
"""


@dataclass(frozen=True)
class Audit:
    """Whether a published AVG is the mean of the columns beside it.

    Attributes:
        mean: Of the eight columns, exact; None where they were not all published.
        difference: AVG - mean; None where one of them is missing.
        verdict: consistent, inconsistent, no AVG, or no columns.
    """

    mean: Decimal | None
    difference: Decimal | None
    verdict: str


def audit(columns: Sequence[Decimal | None], average: Decimal | None) -> Audit:
    """Compare eight published columns with their published mean.

    >>> audit([Decimal("70.00")] * 7 + [Decimal("70.08")], Decimal("70.02"))
    Audit(mean=Decimal('70.01'), difference=Decimal('0.01'), verdict='consistent')
    """
    if None in columns:
        return Audit(None, None, "no columns")
    mean = sum(columns) / len(columns)
    if average is None:
        return Audit(mean, None, "no AVG")
    difference = average - mean
    return Audit(mean, difference, "consistent" if abs(difference) <= ROUNDING else "inconsistent")


def places(values: Sequence[Decimal | None]) -> list[int | None]:
    """Place of each value, the largest first; equal values share one.

    >>> places([Decimal(2), None, Decimal(3), Decimal(2)])
    [2, None, 1, 2]
    """
    known = [value for value in values if value is not None]
    return [None if value is None else 1 + sum(other > value for other in known) for value in values]


def read_published() -> dict:
    """Content of published.json, its numbers as they are written there."""
    return json.loads(PUBLISHED.read_text(encoding="utf-8"), parse_float=Decimal)


def read_runs(results: Path = RESULTS) -> list[dict]:
    """The runs there are: baselines first, then by name and seed."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in results.glob(RUNS)]
    return sorted(runs, key=lambda run: (run["baseline"] is not None, run["experiment"], run["seed"]))


def read_generator(results: Path = RESULTS) -> dict | None:
    """How DiffCSE's generator was trained, where it was."""
    path = results / "generator.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def document(published: dict, runs: Sequence[dict], generator: dict | None = None) -> str:
    """The whole of docs/reproduction.md."""
    rows, experiments = published["rows"], list(dict.fromkeys(run["experiment"] for run in runs))
    numbers = {name: f"D{number}" for number, name in enumerate(published["defects"], start=1)}
    lines = [INTRODUCTION]
    for task, title in TABLES.items():
        lines += published_table(title, [row for row in rows if row["task"] == task], numbers, experiments)
    columns = ", ".join(name.replace("_", " ") for name in published["columns"])
    lines += ["## Row by row", "", f"The published numbers stand in the order {columns}.", ""]
    for row in rows:
        lines += row_entry(row)
    lines += ["", "## Defects of the originals", ""]
    for name, text in published["defects"].items():
        lines.append(f"- {numbers[name]}, {name}: {text}")
    lines += ["", *audit_section(rows), *measured_section(runs)]
    if generator:
        lines.append(generator_line(generator))
    return "\n".join(lines).rstrip() + "\n"


def published_table(title: str, rows: Sequence[dict], numbers: dict[str, str], experiments: Sequence[str]) -> list[str]:
    lines = [f"## {title}", "", "| row | config | cosS | AVG | audit | defects | expected | measured |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [row["id"], f"`{row['config']}.json`" if row["config"] else "none"]
        cells += [_score(row["columns"][COSINE_SPEARMAN]), _score(row["avg"])]
        cells.append(audit(row["columns"], row["avg"]).verdict)
        cells.append(" ".join(number for name, number in numbers.items() if name in row["defects"]))
        cells += [row["expected"], measured_cell(row["method"], experiments)]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def measured_cell(method: str | None, experiments: Sequence[str]) -> str:
    """The method's name as a link to part two, where there is a run of it or of one of its variants."""
    if method is None:
        return "-"
    if not any(name == method or name.startswith(f"{method}-") for name in experiments):
        return "not measured"
    return f"[{method}](#{MEASURED})"


def row_entry(row: dict) -> list[str]:
    source = f"{row['repository']}, {row['document']}"
    if row["config"]:
        change = row.get("change", "")
        command = f"accelerate launch run_simcse.py --config configs/{row['config']}.json"
        how = f"`{command} {change}`" if change.startswith("--") else f"`{command}`{', ' if change else ''}{change}"
    else:
        how = f"No config: {row['no_config']}"
    because = f"{row['because'][0].upper()}{row['because'][1:]}"
    return [
        f"- **{row['id']}**: {row['system']}. {source}.",
        f"  - {how}.",
        f"  - Published: {' '.join(_score(column) for column in row['columns'])}, AVG {_score(row['avg'])}.",
        f"  - Defects: {', '.join(row['defects'])}.",
        f"  - {because}" if row["expected"] == "none" else f"  - Expected AVG: {row['expected']}. {because}",
    ]


def audit_section(rows: Sequence[dict]) -> list[str]:
    lines = [
        "## AVG audit",
        "",
        f"An AVG within {ROUNDING} of the mean of its eight columns is consistent: all nine are rounded or cut off at 0.01. The",
        "places are among the rows of the same table, by the published AVG, by the mean of the columns, and by cosS.",
        "",
    ]
    for task, title in TABLES.items():
        chosen = [row for row in rows if row["task"] == task]
        audits = [audit(row["columns"], row["avg"]) for row in chosen]
        orders = [
            places([row["avg"] for row in chosen]),
            places([found.mean for found in audits]),
            places([row["columns"][COSINE_SPEARMAN] for row in chosen]),
        ]
        lines += [f"| {title} | AVG | mean of 8 | difference | verdict | place: AVG | mean | cosS |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for row, found, *order in zip(chosen, audits, *orders, strict=True):
            cells = [row["id"], _score(row["avg"])]
            cells += ["-" if found.mean is None else f"{found.mean:.5f}"]
            cells += ["-" if found.difference is None else f"{found.difference:+.5f}", found.verdict]
            lines.append(f"| {' | '.join([*cells, *(str(place or '-') for place in order)])} |")
        lines.append("")
    return lines


def measured_section(runs: Sequence[dict]) -> list[str]:
    """Part two: a table for each group of runs, and what they were made with."""
    lines = ["## Measured here", "", EXPLANATION]
    if not runs:
        return [*lines, "Not measured: there is no run in `benchmarks/results` yet.", ""]
    by_name: dict[str, dict[int, dict]] = {}
    for run in runs:
        by_name.setdefault(run["experiment"], {})[run["seed"]] = run
    for group in dict.fromkeys(run["group"] for run in runs):
        names = [name for name, seeds in by_name.items() if next(iter(seeds.values()))["group"] == group]
        lines += [
            f"### {group[0].upper()}{group[1:]}",
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|---" * len(COLUMNS) + "|",
            *(f"| {' | '.join(measured_row(name, by_name))} |" for name in names),
            "",
        ]
    return [*lines, *outcome_lines(by_name), *circumstances(by_name)]


def measured_row(name: str, by_name: dict[str, dict[int, dict]]) -> list[str]:
    runs = list(by_name[name].values())
    after = [_spearman(run, "after") for run in runs]
    change = statistics.mean(_spearman(run, "after") - _spearman(run, "before") for run in runs)
    return [
        name,
        runs[0]["shows"],
        f"{runs[0]['rows']:,}",
        _joined([run["steps"] for run in runs], "d"),
        _joined([_spearman(run, "before") for run in runs], ".2f"),
        " ".join(f"{value:.2f}" for value in after),
        f"{statistics.mean(after):.2f}",
        f"{statistics.stdev(after):.2f}" if len(after) > 1 else "-",
        f"{change:+.2f}",
        _against_baseline(name, by_name),
        _joined([100 * run["before"]["avg"] for run in runs], ".2f"),
        f"{statistics.mean(100 * run['after']['avg'] for run in runs):.2f}",
    ]


def differences(name: str, by_name: dict[str, dict[int, dict]]) -> list[float] | str:
    """Points above the baseline for each seed that both were run with, or why there are none."""
    runs = by_name[name]
    baseline = next(iter(runs.values()))["baseline"]
    if baseline is None:
        return "is the baseline"
    shared = sorted(runs.keys() & by_name.get(baseline, {}).keys())
    if not shared:
        return f"{baseline} not measured"
    if any(runs[seed]["steps"] != by_name[baseline][seed]["steps"] for seed in shared):
        steps = [
            _joined([each[name][seed]["steps"] for seed in shared], "d")
            for each, name in ((by_name, name), (by_name, baseline))
        ]
        return f"steps differ ({' and '.join(steps)})"
    return [_spearman(runs[seed], "after") - _spearman(by_name[baseline][seed], "after") for seed in shared]


def _against_baseline(name: str, by_name: dict[str, dict[int, dict]]) -> str:
    found = differences(name, by_name)
    if isinstance(found, str):
        return found
    spread = f"sd {statistics.stdev(found):.2f}" if len(found) > 1 else "one seed"
    return f"{statistics.mean(found):+.2f} ({spread})"


def outcome_lines(by_name: dict[str, dict[int, dict]]) -> list[str]:
    """Which methods are above their baseline with every seed, which below with every seed, and which neither."""
    compared = {name: found for name in by_name if not isinstance(found := differences(name, by_name), str)}
    single = [name for name, found in compared.items() if len(found) == 1]
    compared = {name: found for name, found in compared.items() if len(found) > 1}
    if not compared:
        return []
    above = [name for name, found in compared.items() if min(found) > 0]
    below = [name for name, found in compared.items() if max(found) < 0]
    neither = [name for name in compared if name not in (*above, *below)]
    return [
        f"- Above plain SimCSE at equal steps with every seed: {', '.join(above) or 'none'}.",
        f"- Below it with every seed: {', '.join(below) or 'none'}.",
        f"- Neither: {', '.join(neither) or 'none'}.",
        *([f"- One seed only, so nothing is said of them: {', '.join(single)}."] if single else []),
        "",
    ]


def circumstances(by_name: dict[str, dict[int, dict]]) -> list[str]:
    """Settings of each experiment, data, hardware and versions."""
    runs = [run for seeds in by_name.values() for run in seeds.values()]
    widest = max(runs, key=lambda run: run["interval"][1] - run["interval"][0])
    half = 100 * (widest["interval"][1] - widest["interval"][0]) / 2
    scored = sorted({f"{run['evaluated_on']['task']} ({run['evaluated_on']['pairs']:,} pairs)" for run in runs})
    sources = {
        f"{source['path']} ({source['rows']:,} rows, sha256 `{source['sha256'][:8]}...`)"
        for run in runs
        for source in run["sources"]
    }
    versions = {", ".join(f"{key} {value}" for key, value in run["versions"].items()) for run in runs}
    lines = [
        f"A single score here carries a 95 % bootstrap interval of up to {half:.1f} points either way, from the pairs alone;",
        "runs on the same pairs can be compared more finely than that.",
        "",
        "Settings:",
        "",
    ]
    for name, seeds in by_name.items():
        settings = next(iter(seeds.values()))["settings"]
        shown = ", ".join(f"{key} {_text(value)}" for key, value in settings.items())
        seconds = _joined([run["seconds"] for run in seeds.values()], ".0f")
        lines.append(f"- {name}: {shown}; seeds {', '.join(str(seed) for seed in sorted(seeds))}; {seconds} s a run.")
    return [
        *lines,
        "",
        f"Scored on {'; '.join(scored)}. Trained on: {'; '.join(sorted(sources))}. Hardware: "
        f"{'; '.join(sorted({run['hardware'] for run in runs}))}. Versions: {'; '.join(sorted(versions))}.",
        "",
    ]


def generator_line(generator: dict) -> str:
    """What DiffCSE's generator is and knows."""
    apart = generator["kept_apart"]
    return (
        f"DiffCSE's generator: ko-e5-mini with a masked-LM head, trained by scripts/pretraining/generator.py for "
        f"{generator['steps']:,} steps of {generator['batch_sentences']} sentences of everyday Korean "
        f"({generator['seconds'] / 60:.0f} minutes, {generator['hardware']}, {generator['threads']} thread); of the tokens "
        f"masked in {apart['sentences']:,} sentences kept apart it guesses {100 * apart['accuracy']:.1f} %."
    )


def _score(value: Decimal | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _spearman(run: dict, moment: str) -> float:
    return 100 * run[moment]["cosine_spearman"]


def _joined(values: Sequence[float], form: str) -> str:
    """One number where all are shown alike, else the lowest and the highest."""
    shown = [f"{value:{form}}" for value in sorted(values)]
    return shown[0] if shown[0] == shown[-1] else f"{shown[0]}..{shown[-1]}"


def _text(value: object) -> str:
    return " ".join(str(item) for item in value) if isinstance(value, list) else str(value)


def main() -> None:
    DOCUMENT.write_text(document(read_published(), read_runs(), read_generator()), encoding="utf-8")
    print(f"written: {DOCUMENT}")


if __name__ == "__main__":
    main()
