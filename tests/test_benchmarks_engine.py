"""The benchmark's report: ratios, tables and sections from results alone. Nothing is timed here."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import REPOSITORY


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("report")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("engine")


def run(side: str, number: int, variant: str | None = None, **figures: float) -> dict:
    return {"side": side, "variant": variant, "round": number, "figures": figures}


def result(name: str, runs: list[dict]) -> dict:
    return {
        "name": name,
        "data": {"description": "3,499 triplets", "sources": [{"path": "a.tsv", "rows": 5010, "sha256": "0123456789"}]},
        "settings": {"encoder": "ko-e5-small", "batch": 256, "steps": None},
        "notes": ["How it was computed."],
        "runs": runs,
        "hardware": {
            "cpu": "a CPU",
            "machine": "x86_64",
            "cpu_capability": "AVX512",
            "cpu_flags": ["avx512f"],
            "threads": 2,
            "gpu": None,
        },
        "versions": {"torch": "2.13.0"},
        "git_revision": None,
    }


def test_a_ratio_is_of_medians_and_its_range_of_the_runs_of_one_round(report: ModuleType):
    ours, peer = {1: 10.0, 2: 30.0, 3: 20.0}, {1: 5.0, 2: 10.0, 3: 8.0}
    assert report.ratios(ours, peer, higher_is_better=True) == (2.5, 2.0, 3.0)
    assert report.ratios(ours, peer, higher_is_better=False) == (0.4, pytest.approx(1 / 3), 0.5)


def test_rounds_that_one_side_failed_do_not_enter_the_range(report: ModuleType):
    assert report.ratios({1: 4.0, 2: 6.0}, {2: 2.0}, higher_is_better=True) == (2.5, 3.0, 3.0)
    assert report.ratios({1: 4.0}, {2: 2.0}, higher_is_better=True) == (2.0, None, None)


def test_a_table_has_median_range_and_ratio_of_every_side(report: ModuleType):
    runs = [
        run("ours", 1, sentences_per_second=10.0, peak_mib=1000.0, loss=1.5),
        run("peer", 1, sentences_per_second=4.0, peak_mib=2000.0, loss=1.25),
        run("ours", 2, sentences_per_second=12.0, peak_mib=1000.0, loss=1.5),
        run("peer", 2, sentences_per_second=4.0, peak_mib=3000.0, loss=1.25),
    ]
    assert report.table(runs) == [
        ["sentences/s", "ours", "11.0", "10.0..12.0", "2.75 (2.50..3.00)"],
        ["sentences/s", "sentence-transformers", "4.0", "4.0..4.0", ""],
        ["peak memory, MiB", "ours", "1,000", "1,000..1,000", "2.50 (2.00..3.00)"],
        ["peak memory, MiB", "sentence-transformers", "2,500", "2,000..3,000", ""],
        ["mean loss", "ours", "1.500", "1.500..1.500", ""],
        ["mean loss", "sentence-transformers", "1.250", "1.250..1.250", ""],
    ]


def test_variants_are_compared_each_by_itself(report: ModuleType):
    runs = [
        run(side, 1, variant, fill=fill)
        for variant, fills in (("batch 64", (0.9, 0.45)), ("batch 256", (0.8, 0.2)))
        for side, fill in zip(("ours", "peer"), fills, strict=True)
    ]
    assert [(row[0].split(":")[0], row[4]) for row in report.table(runs)] == [
        ("batch 64", "2.00 (2.00..2.00)"),
        ("batch 64", ""),
        ("batch 256", "4.00 (4.00..4.00)"),
        ("batch 256", ""),
    ]


def test_a_run_that_failed_is_shown_with_its_reason(report: ModuleType):
    runs = [run("ours", 1, loss=1.0), {"side": "peer", "variant": None, "round": 1, "error": "ValueError: a | b"}]
    rows = report.table(runs)
    assert rows[0] == ["", "sentence-transformers", "failed", "", "ValueError: a \\| b"]
    assert rows[1][1:3] == ["ours", "1.000"]


def test_what_is_not_measured_is_not_mentioned(report: ModuleType, tmp_path: Path):
    assert report.engine_report(tmp_path) == ""
    measured = result("encode", [run("ours", 1, sentences_per_second=2.0), run("peer", 1, sentences_per_second=1.0)])
    (tmp_path / "engine-encode.json").write_text(json.dumps(measured), encoding="utf-8")
    text = report.engine_report(tmp_path)
    assert [line for line in text.splitlines() if line.startswith("### ")] == ["### Encoding"]
    assert "| sentences/s | ours | 2.0 | 2.0..2.0 | 2.00 (2.00..2.00) |" in text
    assert "How it was computed." in text
    assert (
        "Measured on: 3,499 triplets from a.tsv (5,010 rows, sha256 `01234567...`); encoder ko-e5-small, batch 256; "
        "a CPU (x86_64, AVX512, avx512f), 2 threads; torch 2.13.0." in text
    )
    assert text.startswith("\n## ") and text.endswith(".\n")


def test_every_measurement_and_side_has_a_name_in_the_report(engine: ModuleType, report: ModuleType):
    names = {*engine.MEASUREMENTS, "fill"}
    names |= {f"{name}-bf16" for name, measurement in engine.MEASUREMENTS.items() if measurement.has_bf16}
    assert names == report.TITLES.keys()
    assert {side for measurement in engine.MEASUREMENTS.values() for side in measurement.sides} <= report.SIDES.keys()
    assert engine.fill_ratios(np.ones((4, 2), dtype=np.int64), 2).keys() <= report.SIDES.keys()


def test_the_report_is_the_committed_one(report: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(report, "REPORT", tmp_path / "benchmarks.md")
    report.write_report()
    committed = REPOSITORY / "docs" / "benchmarks.md"
    assert (tmp_path / "benchmarks.md").read_text(encoding="utf-8") == committed.read_text(encoding="utf-8")


def test_fill_ratios_count_what_each_way_of_batching_computes(engine: ModuleType):
    lengths = np.array([[4, 2, 2], [2, 1, 1], [6, 3, 2], [6, 1, 2], [9, 9, 9]])  # the last is no whole batch
    real = 12 + 20
    found = engine.fill_ratios(lengths, 2)
    assert found["flat"] == pytest.approx(real / (2 * 3 * 4 + 2 * 3 * 6))
    assert found["peer"] == pytest.approx(real / (2 * 4 + 4 * 2 + 2 * 6 + 4 * 3))
    assert 0 < found["ours"] <= 1 and 0 < found["ours-gpu"] <= 1


def test_rows_that_fill_up_a_batch_differ_and_are_as_long(engine: ModuleType):
    rows = [("하나 둘 셋", "넷 다섯"), ("여섯 일곱", "여덟 아홉")]
    filled = engine.fill_up(rows, 4)
    assert filled[:2] == rows
    assert filled[2:] == [("둘 셋 하나", "다섯 넷"), ("일곱 여섯", "아홉 여덟")]


def test_drawn_lengths_are_the_same_every_time_and_about_those_of_kornli(engine: ModuleType):
    lengths = engine.draw_lengths(20_000, seed=1)
    np.testing.assert_array_equal(lengths, engine.draw_lengths(20_000, seed=1))
    assert 3 <= lengths.min() and lengths.max() == engine.MAX_LENGTH
    assert lengths[:, 0].mean() == pytest.approx(16 * 1.7 + 2, rel=0.05)  # a few are cut
    assert lengths[:, 1:].mean() == pytest.approx(8 * 1.7 + 2, rel=0.05)
