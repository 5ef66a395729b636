"""Scores as an aligned table, as JSON with the whole protocol, and as CSV."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .evaluation import STSResult
from .files import write_json, write_text
from .metrics import METRIC_NAMES
from .versions import package_versions

_COLUMNS = {name: name.replace("_pearson", "-P").replace("_spearman", "-S") for name in METRIC_NAMES} | {"avg": "AVG"}


@dataclass(frozen=True, kw_only=True)
class Score:
    """One model on one set."""

    model: str
    result: STSResult


def format_table(scores: Sequence[Score]) -> str:
    """An aligned table, correlations multiplied by 100; the interval belongs to cosine-S."""
    header = ["model", "task", "pairs", *_COLUMNS.values(), "95 % interval"]
    rows = [header]
    for score in scores:
        metrics, (low, high) = score.result.metrics, score.result.interval
        rows.append(
            [score.model, score.result.task, str(score.result.num_pairs)]
            + [f"{100 * metrics[name]:.2f}" for name in _COLUMNS]
            + [f"{100 * low:.2f} .. {100 * high:.2f}"]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def write_scores(scores: Sequence[Score], folder: Path) -> list[Path]:
    """Write `scores.json` (with the whole protocol) and `scores.csv`; returns their paths."""
    record = {
        "protocol": (
            "whole set encoded once in float32, one float64 correlation, vectors as the model gives them; text mode nfc: NFC, "
            "invisible characters removed, white space folded"
        ),
        "versions": package_versions(),
        "machine": f"{platform.system()} {platform.machine()}",
        "scores": [{"model": score.model, **score.result.as_dict()} for score in scores],
    }
    write_json(folder / "scores.json", record)
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["model", "task", "pairs", *METRIC_NAMES, "avg", "interval_low", "interval_high", "sha256"])
    for score in scores:
        result = score.result
        writer.writerow(
            [score.model, result.task, result.num_pairs]
            + [result.metrics[name] for name in (*METRIC_NAMES, "avg")]
            + [*result.interval, " ".join(source.get("sha256") or "" for source in result.sources)]
        )
    write_text(folder / "scores.csv", buffer.getvalue())
    return [folder / "scores.json", folder / "scores.csv"]
