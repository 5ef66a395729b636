"""What a run did, in words."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import says
from transformers import BertConfig

from simcse_hf import SimCSEConfig
from simcse_hf.cli import main
from simcse_hf.method import describe_method, warnings_of_folder

CONFIG = SimCSEConfig(text_config=BertConfig(), pooler_type="avg", scored_loss="cosent")


def a_run(shape: str, *, model=(), **parts) -> dict:
    return {"arguments": {"model": dict(model)}, "data": {"shape": shape, "sources": []}, **parts}


@pytest.mark.parametrize(
    ("run", "english"),
    [
        (a_run("sentences"), "unsupervised SimCSE"),
        (a_run("nli"), "supervised SimCSE"),
        (a_run("scored"), "regression on scored pairs (cosent)"),
        (
            a_run("sentences", model={"generator_name": "g"}),
            "DiffCSE (unsupervised SimCSE and replaced-token detection)",
        ),
        (a_run("triplets", model={"do_mlm": True}), "supervised SimCSE with a masked-LM loss"),
        (
            a_run("pairs", model={"distillation": "vectors"}),
            "supervised SimCSE with distillation of a teacher's vectors",
        ),
        (
            a_run("nli", scored_data={"shape": "scored", "sources": []}),
            "multitask learning: supervised SimCSE, and regression on scored pairs (cosent)",
        ),
        (
            a_run("scored", first_stage=a_run("labelled")),
            "classification of NLI pairs (Sentence-BERT), then regression on scored pairs (cosent)",
        ),
    ],
)
def test_a_method_has_its_usual_name(run, english) -> None:
    assert describe_method(run, CONFIG).english == english


def test_scores_that_were_trained_on_are_named_wherever_they_came_in() -> None:
    korsts = {"shape": "scored", "sources": [{"official": "KorSTS train"}]}
    for run in (
        {"arguments": {"model": {}}, "data": korsts},
        a_run("nli", scored_data=korsts),
        a_run("sentences", first_stage=a_run("scored") | {"data": korsts}),
    ):
        (warning,) = describe_method(run, CONFIG).warnings
        says(warning, "the human scores of KorSTS-train", "not comparable")
    assert describe_method(a_run("nli"), CONFIG).warnings == []


def test_scoring_a_release_says_what_it_has_seen(tmp_path, backbone_dir, capsys) -> None:
    folder = tmp_path / "release"
    shutil.copytree(backbone_dir(), folder)
    run = a_run("nli", scored_data={"shape": "scored", "sources": [{"official": "KorSTS train"}]})
    (folder / "simcse_run.json").write_text(json.dumps(run), encoding="utf-8")
    assert main(["eval", str(folder), "--pooler_type", "avg", "--tasks", "sample:sts"]) == 0
    says(capsys.readouterr().out, f"{folder}: Trained on the human scores of KorSTS-train")


@pytest.mark.parametrize("content", [None, "no JSON", "{}", "[]"])
def test_a_folder_without_a_record_of_ours_warns_of_nothing(tmp_path, content) -> None:
    if content is not None:
        (tmp_path / "simcse_run.json").write_text(content)
    assert warnings_of_folder(str(tmp_path)) == []
