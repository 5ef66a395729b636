"""Further objectives through a whole run: mixed sets, stages, teachers, auxiliaries, and going on from a checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, says, training
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from simcse_hf import SentenceEncoder, SimCSEModel, evaluate_sts, load_sts
from simcse_hf.arguments import DataArguments, ModelArguments
from simcse_hf.errors import ConfigError, DataError, TrainingError
from simcse_hf.objective_setup import add_objectives, settings_without_effect
from simcse_hf.tables import read_table
from simcse_hf.train import TrainingRun


@pytest.fixture
def scored_file(tmp_path: Path) -> Path:
    path = tmp_path / "scored.tsv"
    rows = [f"{number}번 버스가 왔다.\t{number}번 버스를 탔다.\t{number % 6}" for number in range(40)]
    path.write_text("sentence1\tsentence2\tscore\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def nli_file(tmp_path: Path) -> Path:
    path = tmp_path / "nli.tsv"
    labels = ("entailment", "neutral", "contradiction")
    rows = [
        f"책이 {number}권 있다.\t책이 {number + turn}권 있다.\t{label}"
        for number in range(12)
        for turn, label in enumerate(labels)
    ]
    path.write_text("sentence1\tsentence2\tgold_label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def generator_dir(tmp_path_factory, text_config, tokenizer) -> Path:
    """A tiny masked language model with the tokenizer of the other tiny models."""
    folder = tmp_path_factory.mktemp("generator")
    torch.manual_seed(2)
    AutoModelForMaskedLM.from_config(text_config("bert")).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def logged(outcome: TrainingRun, name: str) -> list[float]:
    return [entry[name] for entry in outcome.record["log_history"] if name in entry]


def test_multitask_takes_turns_and_says_so_in_the_card(run, scored_file) -> None:
    outcome = run(data={"scored_file": [str(scored_file)]}, scored_batch_size=4)
    contrastive, scored = logged(outcome, "contrastive_loss"), logged(outcome, "scored_loss")
    assert len(contrastive) == len(scored) == 2
    # A logged interval is one batch of each, so their mean is the loss of the interval.
    for both in zip(contrastive, scored, logged(outcome, "loss"), strict=True):
        assert (both[0] + both[1]) / 2 == pytest.approx(both[2], rel=1e-3)
    assert outcome.record["scored_data"]["statistics"]["rows"] == 32
    card = (outcome.output_dir / "README.md").read_text(encoding="utf-8")
    says(card, "multitask learning: supervised SimCSE, and regression on scored pairs (cosine_mse)", "scored.tsv")
    says(card, "Trained on human scores of similarity")


def test_too_few_scored_pairs_are_named(run, scored_file) -> None:
    with pytest.raises(TrainingError, match="scored_file has 32 rows, fewer than one batch of 33"):
        run(data={"scored_file": [str(scored_file)]}, scored_batch_size=33)


def test_a_batch_size_for_pairs_that_are_not_there_is_refused(run) -> None:
    with pytest.raises(ConfigError, match="scored_batch_size is for batches of scored_file"):
        run(scored_batch_size=4)


def test_a_multitask_run_on_korsts_train_names_it(run, data_dir) -> None:
    korsts = str(data_dir / "KorNLUDatasets/KorSTS/sts-train.tsv")
    outcome = run(data={"scored_file": [korsts]}, scored_batch_size=4)
    says((outcome.output_dir / "README.md").read_text(encoding="utf-8"), "Trained on the human scores of KorSTS-train")


@pytest.mark.parametrize("mixing", ["alternate", "proportional"])
def test_a_resumed_multitask_run_ends_where_an_uninterrupted_one_does(run, scored_file, mixing, tmp_path) -> None:
    """Eight steps are more than an epoch, and the run breaks off within the second."""
    settings = {"data": {"scored_file": [str(scored_file)]}, "mixing": mixing, "scored_batch_size": 16, "max_steps": 8}
    whole = run("whole", **settings, save_steps=6, eval_steps=6)
    for name in ("config.json", "model.safetensors", "modules.json", "README.md", "simcse_run.json"):
        (whole.output_dir / name).unlink()
    expected = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    resumed = run(
        "whole", **settings, save_steps=6, eval_steps=6, resume_from_checkpoint=str(tmp_path / "whole/checkpoint-6")
    )
    assert resumed.record["steps"] == 8
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_two_stages_are_one_run(run, scored_file, nli_file, tmp_path) -> None:
    stage = tmp_path / "stage.json"
    stage.write_text(
        json.dumps({"train_file": [str(nli_file)], "train_as": "labels", "max_steps": 2, "learning_rate": "2e-3"})
    )
    data = {"train_file": [str(scored_file)], "train_as": "scores"}
    outcome = run(data=data, first_stage=str(stage))
    first = outcome.record["first_stage"]
    assert (first["data"]["shape"], first["steps"], outcome.record["data"]["shape"]) == ("labelled", 2, "scored")
    assert first["arguments"]["training"]["learning_rate"] == 2e-3
    # The second stage starts from what the first one released.
    assert outcome.before.metrics == first["results"][0]["metrics"]
    says(
        (outcome.output_dir / "README.md").read_text(encoding="utf-8"),
        "classification of NLI pairs (Sentence-BERT), then regression on scored pairs",
    )


def test_a_finished_first_stage_is_not_trained_again(run, scored_file, nli_file, tmp_path, monkeypatch) -> None:
    stage = tmp_path / "stage.json"
    stage.write_text(json.dumps({"train_file": [str(nli_file)], "train_as": "labels", "max_steps": 2}))
    settings = {"data": {"train_file": [str(scored_file)], "train_as": "scores"}, "first_stage": str(stage)}
    with monkeypatch.context() as patched:
        patched.setattr("simcse_hf.train.add_objectives", stop_at_scores)
        with pytest.raises(KeyboardInterrupt):
            run(**settings)
    with pytest.raises(ConfigError, match="first_stage is there already"):
        run(**settings)
    weights = tmp_path / "run/first_stage/model.safetensors"
    written = weights.stat().st_mtime_ns
    assert run(**settings, resume_from_checkpoint="auto").record["steps"] == 4
    assert weights.stat().st_mtime_ns == written
    stage.write_text(json.dumps({"train_file": [str(nli_file)], "train_as": "labels", "max_train_samples": 8}))
    (tmp_path / "run/simcse_run.json").unlink()
    with pytest.raises(ConfigError, match="first stage with other settings"):
        run(**settings, resume_from_checkpoint="auto")


def stop_at_scores(model, tokenizer, model_args, views, **options) -> None:
    if views.shape == "scored":
        raise KeyboardInterrupt
    add_objectives(model, tokenizer, model_args, views, **options)


def test_a_stage_file_cannot_set_what_belongs_to_the_run(run, tmp_path) -> None:
    stage = tmp_path / "stage.json"
    stage.write_text(json.dumps({"output_dir": "elsewhere"}))
    with pytest.raises(ConfigError, match="output_dir belongs to the run as a whole"):
        run(first_stage=str(stage))


def test_a_first_stage_is_described_by_its_own_settings(run, scored_file, nli_file, tmp_path) -> None:
    """Which encoder it began with, which loss it had, and what of its text was in the evaluation sets."""
    stage = tmp_path / "stage.json"
    settings = {
        "train_file": "sample:triplets",
        "scored_file": str(scored_file),
        "scored_loss": "cosent",
        "scored_batch_size": 4,
        "max_steps": 2,
    }
    stage.write_text(json.dumps(settings))
    outcome = run(data={"train_file": [str(nli_file)]}, first_stage=str(stage))
    card = (outcome.output_dir / "README.md").read_text(encoding="utf-8")
    says(card, "multitask learning: supervised SimCSE, and regression on scored pairs (cosent), then supervised SimCSE")
    says(card, "Trained on human scores of similarity", "scored.tsv")
    assert "`first_stage`" not in card
    assert (
        outcome.record["first_stage"]["arguments"]["data"]["final_tasks"]
        == outcome.record["arguments"]["data"]["final_tasks"]
    )


def test_a_head_for_training_only_is_there_in_both_stages(run, nli_file, tmp_path) -> None:
    """The pooler is the default, and the release of the first stage does not tell of a head that it dropped."""
    stage = tmp_path / "stage.json"
    stage.write_text(json.dumps({"train_file": [str(nli_file)], "train_as": "labels", "max_steps": 2}))
    outcome = run(model={"pooler_type": None, "mlp_only_train": True}, first_stage=str(stage))
    assert (outcome.model.config.pooler_type, outcome.model.config.mlp_only_train) == ("cls", True)


@pytest.fixture
def finished_first_stage(run, nli_file, tmp_path, monkeypatch) -> tuple[Path, dict]:
    """Its config, and what that says; the second stage has not begun."""
    stage, settings = tmp_path / "stage.json", {"train_file": [str(nli_file)], "train_as": "labels", "max_steps": 2}
    stage.write_text(json.dumps(settings))
    with monkeypatch.context() as patched:
        patched.setattr("simcse_hf.train.set_seed", stop_at_the_second_call())
        with pytest.raises(KeyboardInterrupt):
            run(first_stage=str(stage))
    return stage, settings


@pytest.mark.parametrize("setting", [{"learning_rate": 5e-4}, {"max_steps": 3}, {"lr_scheduler_type": "constant"}])
def test_a_finished_first_stage_with_another_training_is_not_taken(run, finished_first_stage, setting) -> None:
    stage, settings = finished_first_stage
    stage.write_text(json.dumps(settings | setting))
    with pytest.raises(ConfigError, match=f"first stage with other settings or data: {next(iter(setting))}: "):
        run(first_stage=str(stage), resume_from_checkpoint="auto")


def test_a_finished_first_stage_of_other_data_is_not_taken(run, finished_first_stage, nli_file) -> None:
    with nli_file.open("a", encoding="utf-8") as file:
        file.write("비가 온다.\t땅이 젖는다.\tentailment\n")
    with pytest.raises(ConfigError, match=f"other settings or data: {nli_file} has another content"):
        run(first_stage=str(finished_first_stage[0]), resume_from_checkpoint="auto")


def test_how_rows_are_fetched_makes_no_other_first_stage(run, finished_first_stage, monkeypatch) -> None:
    monkeypatch.setattr("simcse_hf.train.set_seed", stop_at_the_second_call())
    outcome = run(first_stage=str(finished_first_stage[0]), resume_from_checkpoint="auto", dataloader_num_workers=1)
    assert outcome.record["steps"] == 4


def stop_at_the_second_call():
    calls = iter([None])

    def stop(seed: int) -> None:
        if next(calls, KeyboardInterrupt) is KeyboardInterrupt:
            raise KeyboardInterrupt

    return stop


def test_what_a_release_was_trained_on_is_said_of_what_goes_on_from_it(run, scored_file) -> None:
    first = run("first", data={"train_file": [str(scored_file)], "train_as": "scores"})
    second = run("second", model={"model_name_or_path": str(first.output_dir)})
    says((second.output_dir / "README.md").read_text(encoding="utf-8"), "Trained on human scores of similarity")


def test_scores_of_another_scale_are_questioned_and_read_where_it_is_named(run, tmp_path, caplog) -> None:
    path = tmp_path / "unit.tsv"
    rows = [f"{number}번 버스가 왔다.\t{number}번 버스를 탔다.\t{number % 5 / 4}" for number in range(20)]
    path.write_text("sentence1\tsentence2\tscore\n" + "\n".join(rows) + "\n", encoding="utf-8")
    data = {"train_file": [str(path)], "train_as": "scores"}
    run("doubtful", data=data, write_release=False)
    assert "Set score_scale to 0 1" in caplog.text
    caplog.clear()
    outcome = run("named", data=data | {"score_scale": [0, 1]}, write_release=False)
    assert "score_scale" not in caplog.text and outcome.record["steps"] == 4
    with pytest.raises(ConfigError, match="score_scale is"):
        DataArguments(score_scale=[5.0, 0.0])


@pytest.mark.parametrize(
    ("settings", "kinds", "without_effect"),
    [
        ({}, (True, False), {}),
        ({"symmetric": True, "scored_loss": "angle"}, (True, True), {}),
        ({"symmetric": True, "scored_loss": "angle"}, (True, False), {"scored_loss": "no rows are scored pairs"}),
        ({"symmetric": True}, (False, True), {"symmetric": "no rows are trained with the contrastive loss"}),
        ({"mlm_weight": 0.2}, (True, False), {"mlm_weight": "do_mlm is not set"}),
        ({"mlm_weight": 0.2, "do_mlm": True}, (True, False), {}),
    ],
)
def test_a_setting_that_takes_no_part_is_named(settings, kinds, without_effect) -> None:
    contrastive, scored = kinds
    found = settings_without_effect(ModelArguments(**settings), contrastive=contrastive, scored=scored)
    assert found == without_effect


def test_the_run_says_what_takes_no_part(run, caplog) -> None:
    caplog.set_level("INFO", logger="simcse_hf")
    run(model={"scored_loss": "cosent"}, max_steps=1, write_release=False)
    says(caplog.text, "scored_loss has no effect: no rows are scored pairs.")


def test_a_teacher_of_another_size_is_refused_before_training(run, backbone_dir) -> None:
    teacher = str(backbone_dir("bert", hidden_size=16))
    model = {"distillation": "vectors", "teacher_name_or_path": teacher, "teacher_pooler_type": "avg"}
    with pytest.raises(ConfigError, match="16 components and the student's 32"):
        run(model=model)


def test_the_head_of_a_checkpoint_is_not_renamed(run) -> None:
    first = run("first", model={"pooler_type": "cls", "mlp_only_train": True})
    model = {"model_name_or_path": str(first.output_dir / "checkpoint-4"), "pooler_type": "cls"}
    for change in ({"head_type": "batchnorm"}, {"head_size": 8}):
        with pytest.raises(ConfigError, match="another head"):
            run("second", model=model | {"mlp_only_train": True} | change)


@pytest.mark.parametrize("kind", ["similarities", "vectors"])
def test_distillation_alone_brings_the_student_to_the_teacher(run, backbone_dir, kind) -> None:
    teacher = str(backbone_dir("bert", initializer_range=0.2))
    settings = {
        "distillation": kind,
        "teacher_name_or_path": teacher,
        "teacher_pooler_type": "avg",
        "contrastive_weight": 0.0,
    }
    outcome = run(model=settings, data={"train_file": ["sample:sentences"]}, max_steps=40, save_steps=40, eval_steps=40)
    losses = logged(outcome, "distillation_loss")
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert logged(outcome, "loss") == pytest.approx(losses, rel=1e-3)


def test_offline_vectors_teach_as_their_model_does(run, backbone_dir, tmp_path) -> None:
    import numpy as np

    teacher = backbone_dir("bert", initializer_range=0.2)
    lines = tmp_path / "lines.txt"
    sentences = [row[0] for _, row in zip(range(32), read_rows(), strict=False)]
    lines.write_text("\n".join(reversed(sentences)) + "\n", encoding="utf-8")
    encoder = SentenceEncoder.from_pretrained(str(teacher), pooler_type="avg")
    np.save(tmp_path / "vectors.npy", encoder.encode(list(reversed(sentences))))
    data = {"train_file": [str(lines)], "max_train_samples": None}
    common = {"distillation": "similarities"}
    model = run("model", model=common | {"teacher_name_or_path": str(teacher), "teacher_pooler_type": "avg"}, data=data)
    of_file = common | {"teacher_vectors": str(tmp_path / "vectors.npy"), "teacher_sentences": str(lines)}
    file = run("file", model=of_file, data=data)
    assert logged(model, "distillation_loss") == pytest.approx(logged(file, "distillation_loss"), rel=1e-4)
    np.save(tmp_path / "vectors.npy", -np.load(tmp_path / "vectors.npy"))
    with pytest.raises(DataError, match="the teacher is not what the teacher was when checkpoint-4 was saved"):
        run("file", model=of_file, data=data, max_steps=5, resume_from_checkpoint="auto")


def read_rows():
    from simcse_hf.row_report import RowReport
    from simcse_hf.sample import SAMPLES

    return [fields for _, fields in read_table(SAMPLES["sentences"], RowReport()).rows]


def test_diffcse_and_the_masked_lm_train_resume_and_release(run, generator_dir, tmp_path) -> None:
    model = {"do_mlm": True, "generator_name": str(generator_dir), "lambda_weight": 0.5}
    settings = {
        "model": model,
        "data": {"train_file": ["sample:sentences"]},
        "max_steps": 5,
        "save_steps": 4,
        "eval_steps": 4,
    }
    whole = run("whole", **settings)
    for name in ("contrastive_loss", "mlm_loss", "mlm_accuracy", "rtd_loss", "rtd_accuracy"):
        assert logged(whole, name), name
    says(
        (whole.output_dir / "README.md").read_text(encoding="utf-8"), "DiffCSE (unsupervised SimCSE and replaced-token"
    )
    stored = load_file(tmp_path / "whole/checkpoint-4/model.safetensors")
    assert any(name.startswith("auxiliaries.replaced_tokens.") for name in stored)
    assert not any("generator" in name for name in stored)
    released = load_file(whole.output_dir / "model.safetensors")
    assert not any("auxiliar" in name or "discriminator" in name for name in released)
    # A checkpoint is an encoder like any other.
    SimCSEModel.from_pretrained(str(tmp_path / "whole/checkpoint-4"))
    for name in ("config.json", "model.safetensors", "modules.json", "README.md", "simcse_run.json"):
        (whole.output_dir / name).unlink()
    resumed = run("whole", **settings, resume_from_checkpoint=str(tmp_path / "whole/checkpoint-4"))
    expected = whole.model.state_dict()
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ({"do_mlm": True}, {"train_as": "scores"}, "do_mlm adds to a contrastive loss"),
        ({"contrastive_weight": 0.0}, {}, "nothing would be trained"),
        ({}, {"source_weights": [1.0, 2.0]}, "source_weights has 2"),
    ],
)
def test_objectives_that_do_not_go_with_the_data_are_refused(run, scored_file, model, data, message) -> None:
    if data.get("train_as") == "scores":
        data = data | {"train_file": [str(scored_file)]}
    with pytest.raises(ConfigError, match=message):
        run(model=model, data=data)


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({"distillation": "vectors"}, "needs one teacher"),
        ({"teacher_name_or_path": "x"}, "needs one teacher"),
        ({"teacher_vectors": "x.npy", "distillation": "vectors"}, "go together"),
        ({"distillation_temperature": 0.0}, "above 0"),
        ({"masking_ratio": 1.0}, "masking_ratio is 1.0"),
        ({"lambda_weight": -1.0}, "lambda_weight is -1.0"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(settings, fragment) -> None:
    with pytest.raises(ConfigError, match=fragment):
        ModelArguments(**settings)


def test_leaked_sentences_are_counted_dropped_or_refused(run, tmp_path) -> None:
    sts = [fields for _, fields in read_table_of("sts")]
    text = tmp_path / "text.txt"
    own = [f"{number}층에서 내립니다." for number in range(30)]
    text.write_text("\n".join([*own, sts[0][0] + " ", sts[3][1]]) + "\n", encoding="utf-8")
    data = {"train_file": [str(text)]}
    kept = run("kept", data=data)
    assert kept.record["data"]["leakage"]["sample-sts"]["exact"] == 2
    says((kept.output_dir / "README.md").read_text(encoding="utf-8"), "2 of the 528 sentences of sample-sts")
    dropped = run("dropped", data=data | {"on_leakage": "drop"})
    assert dropped.record["data"]["statistics"]["rows"] == 30
    assert dropped.record["data"]["report"]["dropped"] == {"in_evaluation_set": 2}
    with pytest.raises(DataError, match="on_leakage is error"):
        run("refused", data=data | {"on_leakage": "error"})


def read_table_of(sample: str):
    from simcse_hf.row_report import RowReport
    from simcse_hf.sample import SAMPLES

    table = read_table(SAMPLES[sample], RowReport())
    columns = [table.columns.index(name) for name in ("sentence1", "sentence2")]
    return [(place, [fields[column] for column in columns]) for place, fields in table.rows]


def test_each_matryoshka_size_is_scored_and_shown(run) -> None:
    outcome = run(model={"matryoshka_dims": [8]})
    smaller, whole = outcome.record["sizes"]
    assert (smaller["task"], smaller["size"], whole["size"]) == ("sample-sts", 8, 32)
    assert whole["cosine_spearman"] == pytest.approx(outcome.results[0].metrics["cosine_spearman"], abs=1e-12)
    encoder = SentenceEncoder.from_pretrained(str(outcome.output_dir))
    cut = evaluate_sts(lambda texts: encoder.encode(texts)[:, :8], load_sts("sample:sts"))
    assert smaller["cosine_spearman"] == pytest.approx(cut.metrics["cosine_spearman"], abs=1e-6)
    card = (outcome.output_dir / "README.md").read_text(encoding="utf-8")
    says(card, f"| sample-sts | 8 | {100 * smaller['cosine_spearman']:.2f} |")


def test_weights_set_how_many_rows_an_epoch_takes(run, tmp_path) -> None:
    files = []
    for name, count in (("일반", 40), ("분야", 8)):
        files.append(tmp_path / f"{name}.txt")
        files[-1].write_text("\n".join(f"{name} 문장 {number}" for number in range(count)) + "\n", encoding="utf-8")
    data = {"train_file": [str(file) for file in files], "max_train_samples": None, "source_weights": [0.4, 2]}
    outcome = run(data=data, max_steps=-1, num_train_epochs=1)
    assert outcome.record["steps"] == (16 + 16) // 8
    with pytest.raises(TrainingError, match="2 training rows are fewer than one batch"):
        run("few", data=data | {"source_weights": [0.02, 0.01]})
    with pytest.raises(ConfigError, match="no row is left of .*분야.txt"):
        run("cut", data=data | {"max_train_samples": 40})


def test_two_processes_train_on_the_same_set_at_every_step(tmp_path, backbone_dir, scored_file) -> None:
    """Through the real door: a step whose processes had different sets would hang or fail in gathering.

    The masked-LM head has nothing to do in batches of scored pairs, and DDP is told to expect every gradient.
    """
    settings = {
        "model_name_or_path": backbone_dir(),
        "pooler_type": "avg",
        "max_seq_length": 16,
        "train_file": "sample:triplets",
        "scored_file": scored_file,
        "scored_loss": "cosent",
        "scored_batch_size": 4,
        "per_device_train_batch_size": 8,
        "max_steps": 6,
        "logging_steps": 2,
        "eval_task": "none",
        "write_release": False,
        "use_cpu": True,
        "do_mlm": True,
        "ddp_find_unused_parameters": False,
        "ddp_backend": "gloo",
        "output_dir": tmp_path / "out",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(REPOSITORY / "run_simcse.py"), *training(settings)[1:]]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    history = json.loads((tmp_path / "out/simcse_run.json").read_text(encoding="utf-8"))["log_history"]
    assert sum("scored_loss" in entry and "contrastive_loss" in entry for entry in history) == 3


def test_a_typo_in_a_stage_file_is_one_sentence(good, refused, tmp_path) -> None:
    stage = tmp_path / "stage.json"
    stage.write_text(json.dumps({"trian_as": "labels"}))
    says(refused(training(good | {"first_stage": stage})), "stage.json", "unknown key 'trian_as'", "'train_as'")
    says(refused(training(good | {"first_stage": tmp_path / "none.json"})), "cannot read the config file")
