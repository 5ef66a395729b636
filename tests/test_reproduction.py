"""docs/reproduction.md: it is what its script writes, it names every published row once, and its audit is right."""

from __future__ import annotations

import copy
import importlib
import json
import re
from decimal import Decimal
from types import ModuleType

import pytest
from conftest import REPOSITORY

# As published; computed by hand from the eight columns of each row.
MEANS = {
    "snu-bert-unsup": "66.6825",
    "snu-bert-unsup-card": "72.84625",
    "snu-bert-sup": "82.225",
    "snu-bert-sup-card": "85.98",
    "snu-roberta-unsup": "75.7875",
    "snu-roberta-sup": "83.0575",
    "bmk-kobert-sup": "81.3275",
    "bmk-bert-sup": "83.36875",
    "bmk-roberta-sup": "83.6475",
    "bmk-bert-multitask": "85.71",
    "bmk-roberta-multitask": "85.76625",
    "bmk-bert-unsup-old": "71.97125",
    "bmk-bert-unsup": "74.0875",
    "bmk-roberta-unsup-old": "73.575",
    "bmk-roberta-unsup": "75.2725",
    "kodiffcse-roberta-readme": "75.76",
    "kodiffcse-roberta-2022-12-09": "76.09125",
    "kodiffcse-roberta": "77.1775",
    "ddb-roberta-small-unsup-old": "69.8125",
    "ddb-roberta-small-unsup": "71.88625",
    "kosbert-kobert": "77.40625",
    "kosbert-bert": "80.39125",
    "kosbert-roberta": "81.64875",
    "kosentence-bart": "77.21",
    "kosentence-t5": "77.83125",
    "baseline-kosroberta-base": None,
    "baseline-kosroberta-large": None,
    "baseline-kosroberta-small": "83.23625",
    "klue-snu-bert-unsup": "65.26875",
    "klue-snu-bert-sup": "83.96125",
    "klue-snu-roberta-unsup": "80.78125",
    "klue-snu-roberta-sup": "85.31",
}
INCONSISTENT = {"kodiffcse-roberta-readme", "kosentence-bart"}
WITHOUT_AVG = {"ddb-roberta-small-unsup-old", "ddb-roberta-small-unsup", "baseline-kosroberta-small"}


@pytest.fixture
def reproduction(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("reproduction")


@pytest.fixture
def published(reproduction: ModuleType) -> dict:
    return reproduction.read_published()


def run(experiment: str, seed: int, after: float, baseline: str | None = None, **changes) -> dict:
    """A run that began at 0.70 (AVG 0.60) and ended at `after` (AVG 0.10 less)."""
    return {
        "experiment": experiment,
        "shows": f"what {experiment} does",
        "group": "some group",
        "baseline": baseline,
        "seed": seed,
        "settings": {"learning_rate": 5e-5, "train_file": ["a.tsv", "b.tsv"]},
        "before": {"cosine_spearman": 0.70, "avg": 0.60},
        "after": {"cosine_spearman": after, "avg": after - 0.10},
        "interval": [after - 0.02, after + 0.03],
        "steps": 54,
        "rows": 3499,
        "sources": [{"path": "a.tsv", "rows": 5010, "sha256": "0123456789abcdef"}],
        "evaluated_on": {"task": "korsts-dev", "pairs": 1500},
        "seconds": 100.0,
        "hardware": "a CPU",
        "versions": {"torch": "2.13.0"},
    } | changes


def part_two(reproduction: ModuleType, published: dict, runs: list[dict]) -> str:
    return reproduction.document(published, runs).split("## Measured here")[1]


def row_of(text: str, name: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    assert len(lines) == 1, name
    return [cell.strip() for cell in lines[0].strip("|").split("|")]


def test_the_document_is_what_the_script_writes(reproduction: ModuleType, published: dict) -> None:
    written = reproduction.document(published, reproduction.read_runs(), reproduction.read_generator())
    assert reproduction.DOCUMENT.read_text(encoding="utf-8") == written, "run python benchmarks/reproduction.py"


def test_every_published_row_is_there_once_in_each_section(reproduction: ModuleType, published: dict) -> None:
    # 27 lines of the KorSTS table, one of which has two baselines, and four of KLUE-STS.
    tasks = [row["task"] for row in published["rows"]]
    assert tasks.count("korsts-test") == 28 and tasks.count("klue-sts-dev") == 4
    assert [row["id"] for row in published["rows"]] == list(MEANS)
    text = reproduction.document(published, [])
    tables, rest = text.split("## Row by row")
    audits = rest.split("## AVG audit")[1]
    for row in published["rows"]:
        assert row_of(tables, row["id"])[2] == f"{row['columns'][1]:.2f}"
        assert rest.count(f"- **{row['id']}**:") == 1
        assert row_of(audits, row["id"])[1] == ("-" if row["avg"] is None else f"{row['avg']:.2f}")


def test_the_audit_agrees_with_the_means_computed_by_hand(reproduction: ModuleType, published: dict) -> None:
    for row in published["rows"]:
        found = reproduction.audit(row["columns"], row["avg"])
        expected = MEANS[row["id"]]
        assert found.mean == (None if expected is None else Decimal(expected)), row["id"]
        if expected is None:
            verdict = "no columns"
        elif row["id"] in WITHOUT_AVG:
            verdict = "no AVG"
        else:
            verdict = "inconsistent" if row["id"] in INCONSISTENT else "consistent"
        assert found.verdict == verdict, row["id"]
        assert ("avg" in row["defects"]) == (row["id"] in INCONSISTENT)
        assert ("no avg" in row["defects"]) == (row["avg"] is None)


@pytest.mark.parametrize(
    "step, verdict", [("0.010", "consistent"), ("0.011", "inconsistent"), ("-0.010", "consistent")]
)
def test_the_limit_of_rounding_is_exact(reproduction: ModuleType, step: str, verdict: str) -> None:
    columns = [Decimal("0.10"), *[Decimal("83.01")] * 7]
    mean = sum(columns) / 8
    assert reproduction.audit(columns, mean + Decimal(step)).verdict == verdict


def test_the_large_numbers_of_the_model_card_stay_unverified(published: dict) -> None:
    rows = {row["id"]: row for row in published["rows"]}
    assert rows["snu-bert-sup"]["expected"] == "82.2 +-0.3"
    for name in ("snu-bert-sup-card", "snu-bert-unsup-card"):
        assert rows[name]["expected"] == "none" and "unverified" in rows[name]["because"]


def test_every_row_names_a_config_that_is_there_or_a_reason(published: dict) -> None:
    for row in published["rows"]:
        if row["config"] is None:
            assert len(row["no_config"]) > 20
        else:
            settings = json.loads((REPOSITORY / f"configs/{row['config']}.json").read_text(encoding="utf-8"))
            assert f"{row['columns'][1]:.2f}" in settings["_about"] or row["id"].endswith("-old"), row["id"]
        assert len(row["columns"]) == len(published["columns"]) == 8
        assert set(row["defects"]) <= set(published["defects"]) and row["defects"]
        expects_nothing = row["expected"] == "none"
        assert row["because"].startswith("no expectation: ") == expects_nothing, row["id"]
        assert expects_nothing or re.fullmatch(r"(about )?\d\d\.\d( \+-[\d.]+)?", row["expected"])
    assert {name for row in published["rows"] for name in row["defects"]} == set(published["defects"])


def test_without_runs_nothing_is_measured(reproduction: ModuleType, published: dict, tmp_path) -> None:
    assert reproduction.read_runs(tmp_path) == []
    text = reproduction.document(published, [])
    assert "Not measured: there is no run" in text
    cells = {row["id"]: row_of(text.split("## Row by row")[0], row["id"])[-1] for row in published["rows"]}
    assert set(cells.values()) == {"not measured", "-"}
    assert {name for name, cell in cells.items() if cell == "-"} == {name for name in MEANS if "baseline" in name}


def test_a_cell_points_to_the_runs_of_its_method_alone(reproduction: ModuleType, published: dict) -> None:
    text = reproduction.document(published, [run("family-multitask-cosent", 1, 0.72)])
    linked = {
        row["id"] for row in published["rows"] if "](#measured-here)" in row_of(text.split("## Row")[0], row["id"])[-1]
    }
    assert linked == {"bmk-bert-multitask", "bmk-roberta-multitask"}
    assert "KorSTS-test" not in text.split("## Measured here")[1]


def test_means_deviations_and_differences_are_of_the_runs(reproduction: ModuleType, published: dict) -> None:
    runs = [run("family-sup", seed, after) for seed, after in ((1, 0.71), (2, 0.73), (3, 0.75))]
    runs += [
        run("family-sup-symmetric", seed, after, "family-sup") for seed, after in ((1, 0.72), (2, 0.71), (4, 0.99))
    ]
    text = part_two(reproduction, published, runs)
    assert row_of(text, "family-sup") == [
        "family-sup", "what family-sup does", "3,499", "54", "70.00", "71.00 73.00 75.00", "73.00", "2.00", "+3.00",
        "is the baseline", "60.00", "63.00",
    ]  # fmt: skip
    # Seeds 1 and 2 alone have a partner: +1 and -2.
    assert row_of(text, "family-sup-symmetric")[9] == "-0.50 (sd 2.12)"
    assert "Neither: family-sup-symmetric." in text
    assert "up to 2.5 points" in text and "a.tsv (5,010 rows, sha256 `01234567...`)" in text
    assert "learning_rate 5e-05, train_file a.tsv b.tsv; seeds 1, 2, 3; 100 s a run." in text


def test_a_method_is_above_or_below_only_with_every_seed(reproduction: ModuleType, published: dict) -> None:
    runs = [run("family-unsup", seed, 0.72) for seed in (1, 2)]
    runs += [run("family-up", seed, 0.73, "family-unsup") for seed in (1, 2)]
    runs += [run("family-down", seed, 0.70, "family-unsup") for seed in (1, 2)]
    runs += [run("family-even", seed, 0.72, "family-unsup") for seed in (1, 2)]
    text = part_two(reproduction, published, runs)
    assert "with every seed: family-up.\n" in text
    assert "Below it with every seed: family-down.\n" in text and "Neither: family-even.\n" in text


def test_runs_that_cannot_be_compared_say_why(reproduction: ModuleType, published: dict) -> None:
    longer = run("family-sbert", 1, 0.75, "family-sup-253", steps=253)
    assert row_of(part_two(reproduction, published, [longer]), "family-sbert")[9] == "family-sup-253 not measured"
    both = [run("family-sup-253", 1, 0.72), longer]
    assert row_of(part_two(reproduction, published, both), "family-sbert")[9] == "steps differ (253 and 54)"
    both[0] = run("family-sup-253", 1, 0.72, steps=253)
    text = part_two(reproduction, published, both)
    assert row_of(text, "family-sbert")[7:10] == ["-", "+5.00", "+3.00 (one seed)"]


def test_runs_are_read_from_their_files_baselines_first(reproduction: ModuleType, tmp_path) -> None:
    for made in (run("family-a", 2, 0.7, "family-z"), run("family-a", 1, 0.7, "family-z"), run("family-z", 1, 0.7)):
        path = tmp_path / f"{made['experiment']}-seed{made['seed']}.json"
        path.write_text(json.dumps(made), encoding="utf-8")
    (tmp_path / "mini-sup-avg-seed1.json").write_text("{}", encoding="utf-8")
    found = [(made["experiment"], made["seed"]) for made in reproduction.read_runs(tmp_path)]
    assert found == [("family-z", 1), ("family-a", 1), ("family-a", 2)]


def test_a_changed_number_changes_the_document(reproduction: ModuleType, published: dict) -> None:
    spoiled = copy.deepcopy(published)
    spoiled["rows"][0]["columns"][1] = Decimal("66.72")
    before, after = reproduction.document(published, []), reproduction.document(spoiled, [])
    assert row_of(before.split("## AVG audit")[1], "snu-bert-unsup")[4] == "consistent"
    assert row_of(after.split("## AVG audit")[1], "snu-bert-unsup")[4] == "inconsistent"


def test_the_domain_document_is_what_its_script_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    domain = importlib.import_module("domain_adaptation")
    records = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(domain.RESULTS.glob("domain-*-seed*.json"))
    ]
    assert records
    assert domain.DOCUMENT.read_text(encoding="utf-8") == domain.document(records)
