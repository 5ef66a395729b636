"""One run, from arguments to release."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY, SENTENCES
from huggingface_hub import ModelCard

from simcse_hf import SentenceEncoder
from simcse_hf.arguments import ModelArguments
from simcse_hf.errors import ConfigError
from simcse_hf.files import sha256_of
from simcse_hf.model_card import eval_result_files
from simcse_hf.sample import SAMPLES
from simcse_hf.starting_model import load_model


def test_a_run_leaves_a_release_with_its_whole_record(run):
    outcome = run(model={"pooler_type": "cls"})
    folder = outcome.output_dir
    expected = {
        "config.json",
        "model.safetensors",
        "modules.json",
        "1_Pooling",
        "2_Dense",
        "README.md",
        "simcse_run.json",
        "eval",
    }
    assert expected <= {path.name for path in folder.iterdir()}
    assert not list(folder.glob(".*")), "something half-written was left"
    record = json.loads((folder / "simcse_run.json").read_text(encoding="utf-8"))
    source = record["data"]["sources"][0]
    assert source["sha256"] == sha256_of(SAMPLES["triplets"]) and source["rows"] == 342
    assert record["data"]["report"]["kept"] == 32 and record["data"]["statistics"]["rows"] == 32
    assert record["arguments"]["training"]["learning_rate"] == 1e-3 and record["steps"] == 4
    assert record["versions"]["transformers"] and record["dropout"]["hidden"] == 0.1
    assert max(value for value in record["release_check"].values()) <= 1e-5
    assert len([entry for entry in record["log_history"] if "eval_uniformity" in entry]) == 2
    scores = json.loads((folder / "eval/scores.json").read_text(encoding="utf-8"))["scores"][0]
    assert scores["task"] == "sample-sts" and scores["num_pairs"] == 264
    assert scores["metrics"] == outcome.results[0].metrics
    # What is released is what was scored.
    encoder = SentenceEncoder.from_pretrained(str(folder))
    trained = SentenceEncoder(outcome.model, outcome.tokenizer)
    np.testing.assert_allclose(encoder.encode(SENTENCES), trained.encode(SENTENCES), atol=1e-5)


def test_the_card_says_what_happened_and_its_numbers_are_the_runs(run):
    outcome = run()
    card = ModelCard.load(outcome.output_dir / "README.md")
    metrics = outcome.results[0].metrics
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {name: round(100 * value, 2) for name, value in metrics.items() if name != "avg"}
    assert card.data.language == "ko" and card.data.pipeline_tag == "sentence-similarity"
    text = card.text
    assert f"{100 * metrics['avg']:.2f} |" in text and "| learning_rate | 0.001 |" in text
    assert f"{100 * outcome.before.metrics['cosine_spearman']:.2f}" in text
    assert "342 rows read" in text and sha256_of(SAMPLES["triplets"])[:16] in text
    assert 'SentenceTransformer("run")' in text and "AutoModel.from_pretrained" in text and "SentenceEncoder" in text
    assert "{{" not in text and "{%" not in text
    assert str(outcome.output_dir.parent) not in text.replace(str(outcome.output_dir), ""), "a local path was published"


def test_the_cards_transformers_recipe_gives_the_vectors(run):
    for name, pooler in (("a", "avg"), ("b", "cls"), ("c", "avg_first_last"), ("d", "max"), ("e", "avg_top2")):
        outcome = run(
            name,
            model={"pooler_type": pooler, "prompt": "질문: "},
            max_steps=1,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
        )
        text = (outcome.output_dir / "README.md").read_text(encoding="utf-8")
        code = text.split("transformers only:")[1].split("```python")[1].split("```")[0]
        scope: dict = {}
        exec(code.replace(f'"{name}"', repr(str(outcome.output_dir))), scope)
        sentences = ["한 남자가 음식을 먹는다.", "한 남자가 빵 한 조각을 먹는다."]
        expected = SentenceEncoder.from_pretrained(str(outcome.output_dir)).encode(sentences)
        np.testing.assert_allclose(scope["embeddings"].detach().numpy(), expected, atol=1e-5)


def test_an_unsupervised_run_pairs_every_sentence_with_itself(run):
    outcome = run(data={"train_file": ["sample:sentences"]}, model={"pooler_type": "cls", "mlp_only_train": True})
    assert outcome.record["data"]["shape"] == "sentences" and outcome.record["data"]["statistics"]["views"] == 2
    assert outcome.record["data"]["statistics"]["distinct_sentences"] == 32
    assert not (outcome.output_dir / "2_Dense").exists(), "the head was for training only"
    assert "unsupervised SimCSE" in (outcome.output_dir / "README.md").read_text(encoding="utf-8")


def test_a_run_goes_on_from_a_release_and_from_a_checkpoint(run):
    first = run(model={"pooler_type": "cls", "temperature": 0.1, "prompt": "질문: "})
    silent = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "learning_rate": 0.0}
    best = first.output_dir / f"checkpoint-{first.record['best']['step']}"
    for name, source in (("release", first.output_dir), ("checkpoint", best)):
        second = run(
            name, model={"model_name_or_path": str(source), "pooler_type": None, "max_seq_length": None}, **silent
        )
        assert second.model.config.pooler_type == "cls" and second.model.config.prompt == "질문: "
        assert second.model.config.max_seq_length == 16
        assert second.model.backbone.config._attn_implementation == "simcse_packed", "without a kernel, padding leaks"
        for metric, value in first.results[0].metrics.items():
            assert second.before.metrics[metric] == pytest.approx(value, abs=1e-5), metric


def test_another_pooler_for_a_release_starts_anew_and_for_a_checkpoint_is_refused(run, caplog):
    first = run(model={"pooler_type": "avg"})
    load_model(ModelArguments(model_name_or_path=str(first.output_dir), pooler_type="max"))
    assert "pools with avg; starting anew from its encoder with max" in caplog.text
    checkpoint = next(first.output_dir.glob("checkpoint-*"))
    with pytest.raises(ConfigError, match="was trained with pooler_type avg"):
        load_model(ModelArguments(model_name_or_path=str(checkpoint), pooler_type="max"))
    with pytest.raises(ConfigError, match="hidden_dropout_prob can be set when starting from a plain encoder"):
        load_model(ModelArguments(model_name_or_path=str(checkpoint), hidden_dropout_prob=0.3))
    with pytest.raises(ConfigError, match="brings its own head"):
        load_model(ModelArguments(model_name_or_path=str(checkpoint), head_init="backbone"))


def test_without_an_evaluation_set_the_last_weights_are_released(run):
    outcome = run(data={"eval_task": "none"}, early_stopping_patience=3)
    assert outcome.before is None and outcome.results == []
    assert (outcome.output_dir / "model.safetensors").exists()
    assert "This run was not evaluated." in (outcome.output_dir / "README.md").read_text(encoding="utf-8")


def test_final_tasks_are_scored_too(run, data_dir):
    outcome = run(data={"final_tasks": ["korsts-dev"], "data_dir": str(data_dir)}, max_steps=1)
    assert [(result.task, result.num_pairs) for result in outcome.results] == [
        ("sample-sts", 264),
        ("korsts-dev", 1500),
    ]
    assert outcome.results[1].sources[0]["official"] == "KorSTS dev"
    # 1,500 pairs are not the Hub's copy of 1,465; a score over that copy is written under its name.
    assert not (outcome.output_dir / ".eval_results").exists()
    copy = dataclasses.replace(outcome.results[1], num_pairs=1465, sources=[{"hub": "mteb/KorSTS:valid"}])
    entry = eval_result_files([copy])["korsts-dev"][0]
    assert entry["dataset"] == {"id": "mteb/KorSTS", "task_id": "valid"}
    assert entry["value"] == round(100 * copy.metrics["cosine_spearman"], 2)
    assert "1465 pairs" in entry["notes"] and "mteb/KorSTS:valid" in entry["notes"]


@pytest.mark.parametrize(
    ("model", "data", "training", "message"),
    [
        ({}, {"train_file": None}, {}, "give exactly one of train_file"),
        ({}, {"train_dataset": "a/b"}, {}, "give exactly one of train_file"),
        ({"model_name_or_path": ""}, {}, {}, "model_name_or_path is missing"),
        ({"pooler_type": "avg", "mlp_only_train": True}, {}, {}, "mlp_only_train has no meaning"),
        ({}, {"eval_task": "none"}, {"save_strategy": "best"}, "save_strategy best needs an eval_task"),
        ({}, {}, {"fp16": True}, "fp16 needs a GPU"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(run, tmp_path, model, data, training, message):
    with pytest.raises(ConfigError, match=message):
        run(model=model, data=data, **training)
    assert not list((tmp_path / "run").glob("*"))


def test_files_that_a_run_did_not_write_are_not_replaced(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/README.md").write_text("mine", encoding="utf-8")
    for resume in (None, "auto", "false"):
        with pytest.raises(
            ConfigError, match="mine holds a README.md, of a release that was cut off or of something else"
        ):
            run("mine", resume_from_checkpoint=resume)
    assert (tmp_path / "mine/README.md").read_text(encoding="utf-8") == "mine"


def test_a_finished_run_is_not_started_over(run):
    first = run(save_strategy="no", eval_strategy="no", load_best_model_at_end=False)
    before = (first.output_dir / "simcse_run.json").read_bytes()
    for resume in (None, "auto", "false"):
        with pytest.raises(ConfigError, match="holds a finished run"):
            run(resume_from_checkpoint=resume)
    assert (first.output_dir / "simcse_run.json").read_bytes() == before


def test_the_report_counts_rows_beyond_max_train_samples(run):
    record = run(write_release=False).record["data"]["report"]
    assert record == {"read": 342, "kept": 32, "unit": "rows", "dropped": {"beyond_max_train_samples": 310}}


def test_the_attention_kernel_can_be_chosen_when_going_on(run, backbone_dir):
    first = run()
    for source in (first.output_dir, next(first.output_dir.glob("checkpoint-*"))):
        model, _ = load_model(ModelArguments(model_name_or_path=str(source), attn_implementation="eager"))
        assert model.backbone.config._attn_implementation == "eager"
    with pytest.raises(ConfigError, match="flash_attention_2 cannot be chosen"):
        load_model(ModelArguments(model_name_or_path=str(backbone_dir()), attn_implementation="flash_attention_2"))


@pytest.mark.parametrize("processes", [1, 2])
def test_the_real_door_opens_on_one_process_and_on_two(tmp_path, processes):
    """The README's command with the shipped file; and two processes, whose step compares both shares."""
    one = ["-m", "accelerate.commands.launch", "--config_file", str(REPOSITORY / "configs/accelerate/cpu.yaml")]
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *(one if processes == 1 else two), str(REPOSITORY / "run_simcse.py")]
    command += ["--config", "configs/quickstart.json", "--max_steps", "4"]
    command += ["--ddp_backend", "gloo"] if processes == 2 else []
    command += ["--per_device_train_batch_size", str(32 // processes), "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("before training") == 1 and str(tmp_path / "out") in done.stdout
    record = json.loads((tmp_path / "out/simcse_run.json").read_text(encoding="utf-8"))
    assert record["world_size"] == processes and record["steps"] == 4
    assert not list((tmp_path / "out").glob(".*"))
