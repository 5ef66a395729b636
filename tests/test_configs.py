"""Every shipped config is valid, says what it stands for, and runs on a tiny model of its family."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

from simcse_hf.arguments import DataArguments, ModelArguments, SimCSETrainingArguments
from simcse_hf.parser import parse_arguments
from simcse_hf.train import train

CONFIGS = sorted((REPOSITORY / "configs").glob("*.json"))
PUBLISHED = {
    "sup_bert", "sup_roberta", "unsup_bert", "unsup_roberta", "kosimcse_kobert", "kosimcse_bert", "kosimcse_roberta",
    "kosimcse_unsup_bert", "kosimcse_unsup_roberta", "ddobokki_roberta_small", "princeton_sup", "princeton_unsup",
    "quickstart",
}  # fmt: skip


def test_there_is_one_for_every_recipe() -> None:
    assert {path.stem for path in CONFIGS} == PUBLISHED


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_says_what_it_stands_for_and_runs_two_steps(path: Path, tmp_path, monkeypatch, backbone_dir) -> None:
    """The same arguments, on a tiny model of the same family and on a few rows in the same formats."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    assert len(settings["_about"]) > 150
    write_data(tmp_path / "data")
    monkeypatch.setenv("SIMCSE_DATA_DIR", str(tmp_path / "data"))
    family = "roberta" if "roberta" in settings["model_name_or_path"] else "bert"
    command = [
        "--config",
        str(path),
        "--output_dir",
        str(tmp_path / "out"),
        "--model_name_or_path",
        str(backbone_dir(family)),
    ]
    command += ["--max_steps", "2", "--per_device_train_batch_size", "4", "--fp16", "false", "--use_cpu", "true"]
    command += ["--eval_task", "sample:sts", "--max_train_samples", "16", "--disable_tqdm", "true"]
    model_args, data_args, training_args = parse_arguments(
        (ModelArguments, DataArguments, SimCSETrainingArguments), command
    )
    data_args.final_tasks = None
    run = train(model_args, data_args, training_args)
    assert run.record["steps"] == 2
    assert run.model.config.pooler_type == settings["pooler_type"]
    unsupervised = "unsup" in path.stem or path.stem.startswith("ddobokki")
    assert run.record["data"]["shape"] == (
        "sentences" if unsupervised else "triplets" if path.stem == "quickstart" else "nli"
    )
    assert run.record["arguments"]["training"]["learning_rate"] == settings["learning_rate"]


def write_data(folder: Path) -> None:
    nli = folder / "KorNLUDatasets/KorNLI"
    nli.mkdir(parents=True)
    for name, word in (("multinli.train.ko.tsv", "책"), ("snli_1.0_train.ko.tsv", "밥")):
        lines = ["sentence1\tsentence2\tgold_label"]
        for index in range(10):
            lines.append(f"{word} {index}권이 있다.\t{word}이 있다.\tentailment")
            lines.append(f'{word} {index}권이 있다.\t"{word}이 없다.\tcontradiction')
        (nli / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name in ("korean_wiki_1m.txt", "korean_wikipedia.txt"):
        (folder / name).write_text(
            "\n".join(f"{index}번째 문장입니다." for index in range(20)) + "\n", encoding="utf-8"
        )


def test_the_accelerate_files_load_and_name_their_machine() -> None:
    files = sorted((REPOSITORY / "configs/accelerate").glob("*.yaml"))
    assert [path.stem for path in files] == ["cpu", "multi_gpu", "single_bf16", "single_fp16"]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert text.startswith("# ") and "accelerate launch" in text
        content = yaml.safe_load(text)
        assert content["compute_environment"] == "LOCAL_MACHINE"
        assert content["mixed_precision"] == {"single_fp16": "fp16", "single_bf16": "bf16"}.get(
            path.stem, content["mixed_precision"]
        )


def test_the_recipes_page_lists_every_config_with_its_own_numbers() -> None:
    page = (REPOSITORY / "docs/recipes.md").read_text(encoding="utf-8")
    for path in CONFIGS:
        settings = json.loads(path.read_text(encoding="utf-8"))
        row = next((line for line in page.splitlines() if f"`{path.name}`" in line), "")
        cells = [cell.strip() for cell in row.split("|")]
        assert len(cells) > 5, f"docs/recipes.md has no row for {path.name}"
        assert settings["model_name_or_path"] in row and f"{settings['learning_rate']:g}" in row
        assert re.search(rf"\b{settings['per_device_train_batch_size']}\b", row)
