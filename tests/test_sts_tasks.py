"""Named evaluation sets: found in the usual places, or the places are listed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simcse_hf import sts_tasks
from simcse_hf.corpora import ScoredPairs
from simcse_hf.errors import ConfigError, DataError
from simcse_hf.official_files import OFFICIAL_FILES
from simcse_hf.sample import SAMPLES
from simcse_hf.sts_tasks import STS_TASKS, find_sts_file, load_sts
from simcse_hf.tables import Table

HEADER = "genre\tfilename\tyear\tid\tscore\tsentence1\tsentence2\n"
KORSTS = HEADER + '영화\tf\t2012\t1\t5.000\t그는 "네라고 했다.\t가, 나\n뉴스\tf\t2012\t2\t0.5\t다\t라'
KLUE = [
    {"sentence1": "가", "sentence2": "나", "labels": {"label": 3.7, "real-label": 3.714, "binary-label": 1}},
    {"sentence1": "다", "sentence2": "라", "labels": {"label": 0.0, "real-label": 0.0, "binary-label": 0}},
]


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIMCSE_DATA_DIR", raising=False)


def put(folder: Path, task: str, place: str) -> Path:
    path = folder / place / STS_TASKS[task].filename
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(KLUE) if path.suffix == ".json" else KORSTS, encoding="utf-8")
    return path


def test_the_tasks_are_the_published_files_and_their_row_counts() -> None:
    assert set(STS_TASKS) == {"korsts-dev", "korsts-test", "klue-sts-dev"}
    published = {official.filename: official.rows for official in OFFICIAL_FILES.values()}
    assert {task.filename: task.rows for task in STS_TASKS.values()}.items() <= published.items()


@pytest.mark.parametrize(("task", "place"), [(task, place) for task in STS_TASKS for place in STS_TASKS[task].folders])
def test_a_task_is_found_in_each_of_its_usual_places(tmp_path: Path, caplog, task: str, place: str) -> None:
    path = put(tmp_path, task, place)
    assert find_sts_file(task, str(tmp_path)) == path
    pairs = load_sts(task, data_dir=str(tmp_path))
    expected = [3.7, 0.0] if task == "klue-sts-dev" else [5.0, 0.5]
    assert (pairs.name, pairs.scores) == (task, expected)
    assert pairs.sources[0]["path"] == str(path)
    assert "differs" in pairs.sources[0]["note"]
    assert f"holds 2 pairs, the published {task} {STS_TASKS[task].rows}: this is another benchmark" in caplog.text


def test_the_first_of_the_usual_places_counts(tmp_path: Path) -> None:
    put(tmp_path, "korsts-dev", "")
    first = put(tmp_path, "korsts-dev", "KorNLUDatasets/KorSTS")
    assert find_sts_file("korsts-dev", str(tmp_path)) == first


def test_the_data_folder_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "env", "korsts-dev", "")
    monkeypatch.setenv("SIMCSE_DATA_DIR", str(tmp_path / "env"))
    assert find_sts_file("korsts-dev") == path
    other = put(tmp_path / "argument", "korsts-dev", "")
    assert find_sts_file("korsts-dev", str(tmp_path / "argument")) == other


def test_without_a_data_folder_the_message_says_how_to_name_one() -> None:
    with pytest.raises(
        DataError, match=r"'korsts-test' needs the file sts-test\.tsv\. .*SIMCSE_DATA_DIR.*hub:mteb/KorSTS:test"
    ):
        load_sts("korsts-test")


def test_a_missing_file_is_reported_with_every_place_that_was_searched(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'korsts-dev' was not found; looked for ") as caught:
        load_sts("korsts-dev", data_dir=str(tmp_path))
    for place in STS_TASKS["korsts-dev"].folders:
        assert str(tmp_path / place / "sts-dev.tsv") in str(caught.value)


def test_any_file_of_scored_pairs_can_be_named_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.tsv"
    path.write_text(KORSTS, encoding="utf-8")
    pairs = load_sts(str(path))
    assert (pairs.name, pairs.scores, pairs.sentences1[0]) == ("mine.tsv", [5.0, 0.5], '그는 "네라고 했다.')
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_sts("~/mine.tsv").scores == [5.0, 0.5]


def test_the_text_mode_reaches_the_sentences(tmp_path: Path) -> None:
    path = put(tmp_path, "korsts-dev", "")
    for name in ("korsts-dev", str(path)):
        pairs = load_sts(name, data_dir=str(tmp_path), text_mode="legacy_strip")
        assert (pairs.sentences1[0], pairs.sentences2[0]) == ("그는 네라고 했다.", "가 나")


def test_what_is_neither_task_nor_file_is_reported_with_the_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = rf"'korsts-tset' is neither an STS task \(korsts-dev, .*sample:sts\) nor a file\. .* start at {tmp_path}"
    with pytest.raises(DataError, match=expected):
        load_sts("korsts-tset")


def test_the_sample_is_a_task() -> None:
    pairs = load_sts("sample:sts")
    assert (pairs.name, pairs.sources[0]["path"]) == ("sample-sts", str(SAMPLES["sts"]))
    with pytest.raises(ConfigError, match="there is no sample 'stss'"):
        load_sts("sample:stss")


def test_a_sample_without_scores_is_refused() -> None:
    with pytest.raises(DataError, match="has the columns anchor, positive, negative; scored pairs need sentence1"):
        load_sts("sample:triplets")


@pytest.mark.parametrize(
    ("task", "from_hub", "asked"),
    [
        ("korsts-dev", True, "mteb/KorSTS:valid"),
        ("korsts-test", True, "mteb/KorSTS:test"),
        ("klue-sts-dev", True, "klue/klue:sts:validation@349481ec73fff722f88e0453ca05c77a447d967c"),
        ("hub:owner/name:config:split", False, "owner/name:config:split"),
    ],
)
def test_the_hub_is_asked_only_when_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, from_hub: bool, asked: str
) -> None:
    specs = []

    def read_hub_table(spec: str, report) -> Table:
        specs.append(spec)
        rows = [("row 0", ("가", "나", 1.0)), ("row 1", ("다", "라", 2.0))]
        return Table(name=spec, columns=["sentence1", "sentence2", "score"], rows=iter(rows), source={"hub": spec})

    monkeypatch.setattr(sts_tasks, "read_hub_table", read_hub_table)
    pairs = load_sts(task, from_hub=from_hub)
    assert isinstance(pairs, ScoredPairs)
    assert (pairs.name, pairs.scores, pairs.sources, specs) == (task, [1.0, 2.0], [{"hub": asked}], [asked])
    if from_hub:
        put(tmp_path, task, "")
        load_sts(task, data_dir=str(tmp_path))
        assert specs == [asked]


def test_real_korsts_dev_is_the_published_benchmark(data_dir: Path) -> None:
    pairs = load_sts("korsts-dev", data_dir=str(data_dir))
    assert len(pairs) == STS_TASKS["korsts-dev"].rows == 1500
    assert (pairs.sources[0]["official"], pairs.sources[0]["rows"]) == ("KorSTS dev", 1500)
    assert (min(pairs.scores), max(pairs.scores)) == (0.0, 5.0)
