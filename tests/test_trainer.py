"""The trainer: a loss nobody rescales, corpus-level evaluation, whole checkpoints."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, TrainerCallback

from simcse_hf import SimCSEConfig, SimCSEModel, SimCSETrainer, SimCSETrainingArguments, ViewsDataset, load_sts
from simcse_hf.corpora import training_views
from simcse_hf.errors import TrainingError
from simcse_hf.evaluation import evaluate_sts
from simcse_hf.packing import RowLayout
from simcse_hf.row_report import RowReport
from simcse_hf.sample import SAMPLES
from simcse_hf.tables import read_table
from simcse_hf.train import evaluate
from simcse_hf.training_guards import check_training_arguments, explain_accumulation

OPTIONS = {"max_length": 24}


@pytest.fixture(scope="module")
def triplets(tokenizer) -> ViewsDataset:
    report = RowReport()
    rows = training_views([read_table(SAMPLES["triplets"], report)], report).rows
    return ViewsDataset.build(rows[:48], tokenizer, **OPTIONS)


@pytest.fixture(scope="module")
def pairs():
    pairs = load_sts("sample:sts")
    return dataclasses.replace(
        pairs, sentences1=pairs.sentences1[:40], sentences2=pairs.sentences2[:40], scores=pairs.scores[:40]
    )


@pytest.fixture
def make_trainer(tmp_path, text_config, tokenizer, triplets, pairs):
    def build(
        folder: str = "run", *, callbacks=(), dataset=triplets, seed: int = 0, model=None, **arguments
    ) -> SimCSETrainer:
        torch.manual_seed(0)
        model = model or SimCSEModel(SimCSEConfig(text_config=text_config(), pooler_type="avg", max_seq_length=24))
        settings = {"per_device_train_batch_size": 8, "learning_rate": 1e-3, "eval_steps": 2, "save_steps": 2}
        rows = list(zip(pairs.sentences1, pairs.sentences2, strict=True))
        args = SimCSETrainingArguments(
            output_dir=str(tmp_path / folder), use_cpu=True, disable_tqdm=True, seed=seed, **(settings | arguments)
        )
        return SimCSETrainer(
            model,
            args,
            train_dataset=dataset,
            eval_dataset=ViewsDataset.build(rows, tokenizer, **OPTIONS, scores=pairs.scores),
            processing_class=tokenizer,
            callbacks=callbacks,
        )

    return build


class LossOfBackward(TrainerCallback):
    """Remembers the first step's gradient norm, which any rescaling of the loss would multiply."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self.norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item()


def test_accumulation_averages_gradients_and_does_not_multiply_them(make_trainer, text_config):
    """transformers would multiply by the number of accumulated batches."""
    quiet = text_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    gradients = {}
    for steps in (1, 4):
        torch.manual_seed(0)
        model = SimCSEModel(SimCSEConfig(text_config=quiet, pooler_type="avg"))
        seen = LossOfBackward()
        # The same batch again and again: the mean of its gradients is its gradient.
        trainer = make_trainer(
            f"run{steps}",
            model=model,
            callbacks=[seen],
            dataset=RepeatedBatch(make_trainer("unused").train_dataset, 8),
            gradient_accumulation_steps=steps,
            train_sampling_strategy="sequential",
            max_steps=1,
            max_grad_norm=0,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
        )
        assert not trainer.model_accepts_loss_kwargs
        trainer.train()
        gradients[steps] = seen.norm
    assert gradients[1] > 0.1
    assert gradients[4] == pytest.approx(gradients[1], rel=1e-4)


class RepeatedBatch(torch.utils.data.Dataset):
    def __init__(self, dataset: ViewsDataset, size: int):
        self.dataset, self.size = dataset, size

    def __len__(self) -> int:
        return 4 * self.size

    def __getitem__(self, index: int) -> dict:
        return self.dataset[index % self.size]


def test_evaluation_in_the_trainer_is_the_corpus_level_protocol(make_trainer, pairs, tokenizer):
    """Two roads: batches of the trainer, and the encoder on plain text."""
    trainer = make_trainer(per_device_eval_batch_size=7)  # 40 pairs: the last batch is short and must count
    metrics = trainer.evaluate()
    direct = evaluate(trainer.model, tokenizer, [pairs])[0]
    for name, value in direct.metrics.items():
        assert metrics[f"eval_{name}"] == pytest.approx(value, abs=1e-5), name
    assert metrics["eval_alignment"] == pytest.approx(direct.alignment, abs=1e-5)
    assert metrics["eval_uniformity"] == pytest.approx(direct.uniformity, abs=1e-5)
    assert 0 < abs(metrics["eval_cosine_spearman"] - metrics["eval_cosine_pearson"])


def test_dropout_is_on_again_after_an_evaluation(make_trainer):
    """KoSimCSE trained without dropout after its first validation."""
    modes = []

    class Mode(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            modes.append((state.global_step, model.training))

        def on_substep_end(self, args, state, control, model=None, **kwargs):
            modes.append((state.global_step, model.training))

        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            modes.append((state.global_step, model.training))

    make_trainer(callbacks=[Mode()]).train()
    assert len(modes) == 12 and all(training for _, training in modes)


def test_the_best_checkpoint_by_cosine_spearman_is_loaded_and_the_last_step_is_evaluated(make_trainer, tmp_path):
    trainer = make_trainer(eval_steps=4, save_steps=4, learning_rate=5e-3)
    trainer.train()
    scores = {
        entry["step"]: entry["eval_cosine_spearman"]
        for entry in trainer.state.log_history
        if "eval_cosine_spearman" in entry
    }
    assert set(scores) == {4, 6}, "6 steps, evaluated every 4 and at the end"
    assert trainer.state.best_metric == max(scores.values())
    best = tmp_path / "run" / f"checkpoint-{max(scores, key=scores.get)}"
    assert trainer.state.best_model_checkpoint == str(best)
    for name, parameter in AutoModel.from_pretrained(best).state_dict().items():
        assert torch.equal(parameter, trainer.model.state_dict()[name]), name
    assert trainer.evaluate()["eval_cosine_spearman"] == pytest.approx(max(scores.values()), abs=1e-9)


def test_checkpoints_are_whole_limited_and_keep_the_best(make_trainer, tmp_path):
    trainer = make_trainer(num_train_epochs=2, save_total_limit=2)
    trainer.train()
    folders = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert not [name for name in folders if name.startswith(".")], "a partial checkpoint was left"
    kept = [name for name in folders if name.startswith("checkpoint-")]
    best = Path(trainer.state.best_model_checkpoint)
    assert "checkpoint-12" in kept and best.name in kept and len(kept) <= 3
    for name in kept:
        state = json.loads((tmp_path / "run" / name / "trainer_state.json").read_text(encoding="utf-8"))
        assert ".partial" not in json.dumps(state)
        assert {"model.safetensors", "optimizer.pt", "tokenizer.json"} <= {
            path.name for path in (tmp_path / "run" / name).iterdir()
        }


def test_a_failing_save_leaves_no_partial_checkpoint(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer()

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", fail)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert [path.name for path in (tmp_path / "run").iterdir()] == []


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(make_trainer, tmp_path):
    whole = make_trainer("whole", max_steps=6)
    whole.train()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop |= state.global_step == 4

    make_trainer("broken", max_steps=6, callbacks=[Stop()], load_best_model_at_end=False).train()
    resumed = make_trainer("broken", max_steps=6)
    resumed.train(resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-4"))
    last = [AutoModel.from_pretrained(tmp_path / name / "checkpoint-6").state_dict() for name in ("whole", "broken")]
    for name, parameter in last[0].items():
        assert torch.equal(parameter, last[1][name]), name
    assert resumed.state.best_metric == whole.state.best_metric


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(make_trainer):
    runs = []
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        trainer = make_trainer(folder, seed=seed, load_best_model_at_end=False, eval_strategy="no", save_strategy="no")
        trainer.train()
        runs.append(torch.cat([parameter.flatten() for parameter in trainer.model.parameters()]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_early_stopping_counts_evaluations_without_a_better_score(make_trainer):
    trainer = make_trainer(num_train_epochs=10, early_stopping_patience=2, learning_rate=0.0)
    trainer.train()
    assert trainer.state.global_step == 6, "evaluations at 2 (best), 4 and 6 (none better)"


@pytest.mark.parametrize("kind", ["bert", "deberta"])
def test_caching_gradients_trains_the_same_weights(kind, make_trainer, text_config, monkeypatch):
    """SGD, because Adam would make steps of the rounding errors of gradients near 0."""
    monkeypatch.setattr("simcse_hf.passes._CPU_PASS_TOKENS", 64)
    config = text_config(kind, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    weights, passes = [], []
    for tokens in (None, 128):
        torch.manual_seed(0)
        model = SimCSEModel(SimCSEConfig(text_config=config, pooler_type="avg", max_seq_length=24))
        count = []
        model.backbone.register_forward_hook(lambda *_, count=count: count.append(1))
        settings = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 3, "eval_strategy": "no", "save_strategy": "no"}
        trainer = make_trainer(model=model, gradient_cache_tokens=tokens, load_best_model_at_end=False, **settings)
        start = {name: parameter.clone() for name, parameter in model.state_dict().items()}
        trainer.train()
        weights.append(model.state_dict())
        passes.append(sum(count))
    assert passes[1] >= 3 * 2 * 2, "several passes a step, each computed twice"
    moved = max((weights[0][name] - tensor).abs().max().item() for name, tensor in start.items())
    assert moved > 1e-3
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize(("kind", "attention"), [("deberta", None), ("deberta-v2", None), ("bert", "eager")])
def test_an_encoder_that_does_not_pack_is_padded_trains_and_is_named(
    kind, attention, make_trainer, backbone_dir, caplog
):
    model = SimCSEModel.from_backbone(
        str(backbone_dir(kind)), pooler_type="avg", max_seq_length=24, attn_implementation=attention
    )
    start = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    with caplog.at_level(logging.INFO, logger="simcse_hf"):
        trainer = make_trainer(model=model, max_steps=2)
    assert f"a '{kind}' encoder with {attention or 'eager'} attention does not take packed rows" in caplog.text
    assert trainer.data_collator.layout is None
    trainer.train()
    assert all(not torch.equal(parameter, start[name]) for name, parameter in model.named_parameters())


def test_an_encoder_that_packs_is_packed(make_trainer, caplog):
    with caplog.at_level(logging.INFO, logger="simcse_hf"):
        trainer = make_trainer()
    assert trainer.data_collator.layout == trainer.model.row_layout() == RowLayout(1024)
    assert "not packed" not in caplog.text
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape == (1, 1024) and batch["sentence_starts"].shape == (8, 3)
    assert "attention_mask" not in batch


def test_training_pulls_positives_together(make_trainer):
    trainer = make_trainer(num_train_epochs=10, eval_strategy="no", save_strategy="no", load_best_model_at_end=False)
    inputs = trainer.data_collator([trainer.train_dataset[index] for index in range(16)])
    with torch.no_grad():
        before = trainer.model.eval()(**inputs).loss.item()
    trainer.train()
    with torch.no_grad():
        after = trainer.model.eval()(**inputs).loss.item()
    assert after < 0.6 * before


def test_bf16_trains_with_a_float32_loss(make_trainer, monkeypatch):
    losses = []
    forward = SimCSEModel.forward

    def remember(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        losses.append(output.loss)
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16 and torch.is_autocast_enabled("cpu")
        return output

    monkeypatch.setattr(SimCSEModel, "forward", remember)
    trainer = make_trainer(bf16=True, max_steps=3, gradient_cache_tokens=64, eval_strategy="no", save_strategy="no")
    start = {name: parameter.clone() for name, parameter in trainer.model.state_dict().items()}
    trainer.train()
    assert len(losses) == 3 and all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses)
    for name, parameter in trainer.model.named_parameters():
        assert parameter.dtype == torch.float32 and not torch.equal(parameter, start[name]), name


def test_bf16_evaluation_is_computed_in_float32(make_trainer, pairs, tokenizer):
    trainer = make_trainer(bf16=True, max_steps=2)
    trainer.train()
    metrics = trainer.evaluate()
    direct = evaluate(trainer.accelerator.unwrap_model(trainer.model), tokenizer, [pairs])[0]
    assert metrics["eval_cosine_spearman"] == pytest.approx(direct.metrics["cosine_spearman"], abs=1e-6)


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio"])
def test_scores_reach_the_tracker(make_trainer, tmp_path, monkeypatch, tracker):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    logged = {}
    if tracker == "trackio":
        import trackio

        monkeypatch.setattr(
            trackio, "init", lambda *a, **k: type("Run", (), {"finish": lambda self: None, "config": {}})()
        )
        monkeypatch.setattr(trackio, "log", lambda metrics, **k: logged.update(metrics))
        monkeypatch.setattr(trackio, "finish", lambda: None)
    trainer = make_trainer(report_to=[tracker], max_steps=2)
    trainer.train()
    if tracker == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(next((tmp_path / "board").rglob("events*")).parent))
        events.Reload()
        logged = dict.fromkeys(events.Tags()["scalars"])
    for name in ("cosine_spearman", "alignment", "uniformity"):
        assert any(key.endswith(name) for key in logged), (name, list(logged))


@pytest.mark.parametrize(
    ("arguments", "rows", "message"),
    [
        ({"per_device_train_batch_size": 1}, 48, "a sentence alone has no negatives"),
        ({"per_device_train_batch_size": 64}, 48, "48 training rows are fewer than one batch of 64"),
        ({"dataloader_drop_last": False}, 48, "dataloader_drop_last is false"),
        ({"train_sampling_strategy": "group_by_length"}, 48, "negatives of a batch alike in length"),
        ({"train_sampling_strategy": "batch_rebalance"}, 48, "batches of the processes unequal"),
        ({"accelerator_config": {"dispatch_batches": True}}, 48, "would cut a packed batch between processes"),
        ({"accelerator_config": {"even_batches": False}}, 48, "unequal parts of the evaluation set"),
        ({"metric_for_best_model": "spearman"}, 48, "'spearman', which no evaluation finds.*cosine_spearman"),
        ({"accelerator_config": {"split_batches": True}}, 48, "would cut a packed batch between processes"),
        ({"auto_find_batch_size": True}, 48, "would halve the batch, and so the negatives"),
        ({"save_only_model": True}, 48, "save_only_model would make resumed runs end in other weights"),
        ({"ignore_data_skip": True}, 48, "ignore_data_skip would make resumed runs end in other weights"),
        ({"enable_jit_checkpoint": True}, 48, "saves in the middle of a step"),
        ({"push_to_hub": True}, 48, "would upload checkpoints, optimiser included"),
        (
            {"early_stopping_patience": 3, "eval_strategy": "no", "load_best_model_at_end": False},
            48,
            "eval_strategy is no",
        ),
        ({"remove_unused_columns": True}, 48, "remove_unused_columns must stay false"),
    ],
)
def test_what_would_silently_change_the_loss_is_refused(tmp_path, arguments, rows, message):
    args = SimCSETrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, **({"per_device_train_batch_size": 8} | arguments)
    )
    with pytest.raises(TrainingError, match=message):
        check_training_arguments(args, rows)


def test_several_gpus_in_one_process_are_refused(tmp_path, monkeypatch):
    args = SimCSETrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    monkeypatch.setattr(type(args), "n_gpu", property(lambda self: 2))
    with pytest.raises(TrainingError, match="DataParallel would give every replica only its own negatives"):
        check_training_arguments(args, 100)


def test_accumulation_says_that_it_does_not_enlarge_the_negatives(tmp_path, caplog):
    args = SimCSETrainingArguments(output_dir=str(tmp_path), use_cpu=True, gradient_accumulation_steps=4)
    with caplog.at_level(logging.WARNING, logger="simcse_hf"):
        explain_accumulation(args)
    assert "does not enlarge the negatives: each step still compares 64 rows" in caplog.text


def test_an_evaluator_sees_only_a_function(pairs):
    """Any encoder can be scored; this one knows the answers."""
    angle = dict.fromkeys(pairs.sentences1, 0.0) | {
        sentence: np.arccos(score / 5) for sentence, score in zip(pairs.sentences2, pairs.scores, strict=True)
    }
    result = evaluate_sts(lambda s: np.array([[np.cos(angle[x]), np.sin(angle[x])] for x in s]), pairs)
    assert result.metrics["cosine_spearman"] == pytest.approx(1.0, abs=1e-3)
    assert result.num_pairs == 40 and result.interval[0] > 0.99


def test_torch_compile_compiles_the_encoder_once_and_trains_the_same(make_trainer, text_config):
    def trained(**arguments) -> SimCSETrainer:
        torch.manual_seed(0)
        config = text_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        model = SimCSEModel(SimCSEConfig(text_config=config, pooler_type="avg", max_seq_length=24))
        # Not Adam, which makes steps of the rounding errors of gradients near 0.
        settings = {"optim": "sgd", "max_steps": 4, "eval_strategy": "no", "load_best_model_at_end": False}
        trainer = make_trainer(str(len(arguments)), model=model, save_strategy="no", **settings, **arguments)
        trainer.train()
        return trainer

    plain = trained()
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = trained(torch_compile=True, torch_compile_backend="eager")
    assert compiled.model_wrapped is compiled.model, "accelerate compiled the whole model"
    assert 1 <= counters["stats"]["unique_graphs"] <= 2
    for name, parameter in plain.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[name], parameter, atol=1e-5, rtol=1e-4, msg=name)
