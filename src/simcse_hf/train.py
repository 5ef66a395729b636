"""One training run, from arguments to release: data -> model -> train -> evaluate -> release."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from pathlib import Path

import torch
from huggingface_hub.constants import EVAL_RESULTS_FOLDER
from transformers import PreTrainedTokenizerBase, set_seed
from transformers.trainer_utils import get_last_checkpoint

from .arguments import DataArguments, ModelArguments, SimCSETrainingArguments
from .backbones import one_line, without_pooler
from .cache_folder import cache_root
from .corpora import ScoredPairs, TrainingViews
from .dropout_audit import DropoutAudit, audit_dropout
from .encoder import SentenceEncoder
from .errors import ConfigError, ModelError, SimCSEError, TrainingError
from .evaluation import STSResult, evaluate_sts
from .files import STAGING, staged_folder, write_json
from .model_card import eval_result_files, model_card
from .modeling_simcse import SimCSEModel
from .release import check_release, write_release
from .sample import resolve_sample
from .score_report import Score, write_scores
from .sentence_store import ViewsDataset
from .starting_model import load_model
from .sts_tasks import load_sts
from .tables import expand_paths
from .tokenization import check_tokenizer
from .trainer import PARTIAL, SimCSETrainer, check_training_arguments, check_weights
from .training_corpus import Reading, tokenized_views, views_of_files, views_of_hub_dataset
from .versions import git_revision, package_versions

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What a run leaves in memory; the same and more lies in `simcse_run.json`."""

    output_dir: Path
    before: STSResult | None
    results: list[STSResult]
    record: dict
    model: SimCSEModel
    tokenizer: PreTrainedTokenizerBase


def train(model_args: ModelArguments, data_args: DataArguments, training_args: SimCSETrainingArguments) -> TrainingRun:
    """Train, evaluate and release.

    Raises:
        SimCSEError: Anything the user can cure; see the message.
    """
    clock = {"start": time.perf_counter()}
    _check_surroundings(training_args)
    set_seed(training_args.seed)

    # Data
    show_progress = training_args.should_log and not training_args.disable_tqdm
    views = load_training_views(data_args, show_progress=show_progress)
    logger.info("training data: %s", views.report)
    pairs = load_evaluation_pairs(data_args, training_args)
    final_sets = [load_sts(task, data_dir=data_args.data_dir) for task in data_args.final_tasks or []]
    check_training_arguments(training_args, len(views.rows))

    # Model
    model, tokenizer = load_model(model_args)
    config = model.config
    check_tokenizer(tokenizer, config.text_config, config.max_seq_length, reads_cls=config.reads_cls)
    options = {"max_length": config.max_seq_length, "prompt": config.prompt}
    train_dataset, statistics = tokenized_views(
        views, tokenizer, cache_root(data_args.data_cache_dir), **options, show_progress=show_progress
    )
    logger.info("tokenised: %s", ", ".join(f"{name} {value:,}" for name, value in statistics.items()))
    eval_dataset = None
    if pairs is not None:
        rows = list(zip(pairs.sentences1, pairs.sentences2, strict=True))
        eval_dataset = ViewsDataset.build(rows, tokenizer, **options, scores=pairs.scores)
    audit = _audit(model, train_dataset, views, training_args)

    # Train
    trainer = _build_trainer(model, training_args, train_dataset, eval_dataset, tokenizer, pairs)
    before = evaluate(model, tokenizer, [pairs])[0] if pairs is not None and trainer.is_world_process_zero() else None
    clock["trained_from"] = time.perf_counter()
    checkpoint = _checkpoint_to_resume(training_args)
    if training_args.resume_from_checkpoint is not None:
        logger.info("resuming from %s", checkpoint or "nothing: there is no checkpoint, so the run starts anew")
    try:
        outcome = trainer.train(resume_from_checkpoint=checkpoint)
    except ImportError as error:  # some options look for their package only now
        raise ConfigError(one_line(error)) from error
    clock["trained"] = time.perf_counter()

    # Evaluate and release: the model of rank 0 is the model of all
    record, results = {}, []
    trained = trainer.accelerator.unwrap_model(trainer.model)
    check_weights(trained, trainer.state.global_step, training_args.learning_rate)
    if trainer.is_world_process_zero():
        results = evaluate(trained, tokenizer, [*([pairs] if pairs else []), *final_sets])
        record = {
            **_record_of_settings(model_args, data_args, training_args, model),
            **_record_of_data(views, statistics, data_args),
            "dropout": dataclasses.asdict(audit),
            "before": before and before.as_dict(),
            "results": [result.as_dict() for result in results],
            "selected_on": pairs.name if pairs and training_args.load_best_model_at_end else None,
            "best": {
                "step": trainer.state.best_global_step,
                training_args.metric_for_best_model: trainer.state.best_metric,
            },
            "steps": trainer.state.global_step,
            "log_history": trainer.state.log_history,
            "seconds": {
                "preparation": round(clock["trained_from"] - clock["start"], 2),
                "training": round(clock["trained"] - clock["trained_from"], 2),
                "train_runtime": outcome.metrics.get("train_runtime"),
            },
        }
        output_dir = Path(training_args.output_dir)
        if training_args.write_release:
            publish(trained, tokenizer, record, results, output_dir, _probe_sentences(views, pairs))
        else:
            write_json(output_dir / "simcse_run.json", record)
    trainer.accelerator.wait_for_everyone()
    return TrainingRun(
        output_dir=Path(training_args.output_dir),
        before=before,
        results=results,
        record=record,
        model=trained,
        tokenizer=tokenizer,
    )


def _record_of_settings(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: SimCSETrainingArguments,
    model: SimCSEModel,
) -> dict:
    return {
        "arguments": {
            "model": dataclasses.asdict(model_args),
            "data": dataclasses.asdict(data_args),
            "training": training_args.to_dict(),
        },
        "model_config": model.config.to_dict(),
        "world_size": training_args.world_size,
        "mixed_precision": training_args.mixed_precision,
        "device": _device(training_args),
        "versions": package_versions(),
        "git_revision": git_revision(),
    }


def _record_of_data(views: TrainingViews, statistics: dict, data_args: DataArguments) -> dict:
    return {
        "data": {
            "shape": views.shape,
            "sources": views.sources,
            "report": views.report.as_dict(),
            "report_text": str(views.report),
            "statistics": statistics,
            "triplet_rule": data_args.triplet_rule if views.shape == "nli" else None,
        }
    }


def _build_trainer(
    model: SimCSEModel,
    training_args: SimCSETrainingArguments,
    train_dataset: ViewsDataset,
    eval_dataset: ViewsDataset | None,
    tokenizer: PreTrainedTokenizerBase,
    pairs: ScoredPairs | None,
) -> SimCSETrainer:
    try:
        trainer = SimCSETrainer(
            model,
            training_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            score_scale=pairs.scale if pairs else (0.0, 5.0),
        )
        if not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
            # Builds what reads the optimiser's and the scheduler's settings, so that a wrong one is found now.
            trainer.create_optimizer_and_scheduler(num_training_steps=1)
    except SimCSEError:
        raise
    except (ImportError, RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"the trainer cannot be set up with these arguments: {one_line(error)}") from error
    trainer.optimizer = trainer.lr_scheduler = None
    return trainer


def load_training_views(data_args: DataArguments, *, show_progress: bool = False) -> TrainingViews:
    """Read `train_file` or `train_dataset`, or find what was read of the same before.

    Raises:
        ConfigError: Neither or both are given, or the cache cannot be written.
        DataError: See `corpora.training_views`.
    """
    if bool(data_args.train_file) == bool(data_args.train_dataset):
        raise ConfigError("give exactly one of train_file (local files) and train_dataset (a Hub id).")
    reading = Reading(
        column_names=data_args.column_names,
        triplet_rule=data_args.triplet_rule,
        as_sentences=data_args.train_as == "sentences",
        deduplicate=data_args.deduplicate,
        max_rows=data_args.max_train_samples,
        on_bad_row=data_args.on_bad_row,
    )
    root = cache_root(data_args.data_cache_dir)
    if data_args.train_dataset:
        return views_of_hub_dataset(data_args.train_dataset, reading, root, show_progress=show_progress)
    paths = expand_paths([resolve_sample(path) for path in data_args.train_file])
    return views_of_files(paths, reading, root, show_progress=show_progress)


def load_evaluation_pairs(data_args: DataArguments, training_args: SimCSETrainingArguments) -> ScoredPairs | None:
    """The set that is scored while training; None with `eval_task: none`.

    Without one there is nothing to choose a checkpoint by, and the last is released.
    """
    if data_args.eval_task in (None, "none"):
        training_args.eval_strategy = "no"
        training_args.load_best_model_at_end = False
        training_args.early_stopping_patience = None
        if training_args.save_strategy == "best":
            raise ConfigError("save_strategy best needs an eval_task to judge by.")
        return None
    return load_sts(data_args.eval_task, data_dir=data_args.data_dir)


def evaluate(model: SimCSEModel, tokenizer: PreTrainedTokenizerBase, sets: list[ScoredPairs]) -> list[STSResult]:
    """Score a model in memory; its mode is restored."""
    training = model.training
    encoder = SentenceEncoder(model, tokenizer, device=model.device)
    results = [evaluate_sts(encoder.encode, pairs, encoder=encoder.describe()) for pairs in sets]
    model.train(training)
    return results


def publish(
    model: SimCSEModel,
    tokenizer: PreTrainedTokenizerBase,
    record: dict,
    results: list[STSResult],
    output_dir: Path,
    probe: list[str],
) -> None:
    """Write the release beside its place, check it with every loader, and only then move it there."""
    with staged_folder(output_dir, last="simcse_run.json") as staging:
        write_release(model, tokenizer, staging)
        record["release_check"] = check_release(staging, model, probe)
        has_pooler = bool(without_pooler(model.config.text_config))
        card = model_card(record, model.config, results, has_pooler=has_pooler)
        (staging / "README.md").write_text(str(card), encoding="utf-8")
        for task, entries in eval_result_files(results).items():
            write_json(staging / EVAL_RESULTS_FOLDER / f"{task}.yaml", entries)  # JSON is YAML
        if results:
            write_scores([Score(model=output_dir.name, result=result) for result in results], staging / "eval")
        write_json(staging / "simcse_run.json", record)
    checked = ", ".join(
        f"{loader} {'not installed' if difference is None else f'{difference:.0e}'}"
        for loader, difference in record["release_check"].items()
    )
    logger.info("release written to %s; largest difference from the trained model: %s", output_dir, checked)


def _audit(
    model: SimCSEModel, dataset: ViewsDataset, views: TrainingViews, training_args: SimCSETrainingArguments
) -> DropoutAudit:
    longest = max(range(min(len(dataset.store), 1000)), key=lambda sentence: len(dataset.store[sentence]))
    audit = audit_dropout(model, torch.from_numpy(dataset.store[longest].astype("int64")))
    logger.info("%s", audit)
    if views.unsupervised and not audit.views_differ and not training_args.allow_no_dropout:
        raise TrainingError(
            "no dropout is alive, so both views of a sentence would be identical and unsupervised SimCSE would learn nothing. "
            "Set hidden_dropout_prob and attention_probs_dropout_prob to 0.1, or allow_no_dropout to go on regardless."
        )
    return audit


def _check_surroundings(training_args: SimCSETrainingArguments) -> None:
    if training_args.mixed_precision == "fp16" and training_args.device.type == "cpu":
        raise ConfigError(
            "fp16 needs a GPU, and this run is on the CPU, where it would silently be float32. Add --fp16 false (or --bf16)."
        )
    output_dir = Path(training_args.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise ConfigError(f"output_dir {output_dir} is a file; name a folder.")
    resuming = _checkpoint_to_resume(training_args) is not None
    if (output_dir / "simcse_run.json").exists() and not resuming:
        raise ConfigError(
            f"{output_dir} already holds a finished run. Choose another output_dir, or remove that folder first."
        )
    if not resuming and output_dir.is_dir() and (last := get_last_checkpoint(str(output_dir))):
        raise ConfigError(
            f"{output_dir} holds {Path(last).name} of an unfinished run. Go on with --resume_from_checkpoint auto, or remove "
            "that folder first."
        )
    taken = [
        name
        for name in ("config.json", "model.safetensors", "modules.json", "README.md")
        if (output_dir / name).exists()
    ]
    if taken and not resuming:
        raise ConfigError(
            f"output_dir {output_dir} holds a {taken[0]} that this run did not write and would replace. Name a new folder."
        )
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot create output_dir {output_dir}: {error.strerror}.") from None
    if training_args.should_save:
        # A run was killed while it wrote these.
        unfinished = [
            *output_dir.glob(f".checkpoint-*{PARTIAL}"),
            *output_dir.glob(f"{STAGING}*"),
        ]
        for folder in unfinished:
            shutil.rmtree(folder, ignore_errors=True)


def _checkpoint_to_resume(training_args: SimCSETrainingArguments) -> str | None:
    wanted = training_args.resume_from_checkpoint
    if wanted in (None, "", "false", "False"):
        return None
    if wanted in ("auto", "true", "True"):
        return get_last_checkpoint(training_args.output_dir) if Path(training_args.output_dir).is_dir() else None
    if not (Path(wanted) / "trainer_state.json").is_file():
        raise ModelError(f"{wanted} is not a checkpoint: it has no trainer_state.json. Use auto to take the last one.")
    return wanted


def _probe_sentences(views: TrainingViews, pairs: ScoredPairs | None) -> list[str]:
    sentences = [sentence for row in views.rows[:16] for sentence in row]
    if pairs is not None:
        sentences += pairs.sentences1[:16]
    # One word, and one far beyond any max_seq_length: padding and truncation must agree too.
    return [*dict.fromkeys(sentences), "네", "아주 긴 문장 " * 200]


def _device(training_args: SimCSETrainingArguments) -> str:
    if training_args.device.type == "cuda":
        return f"{training_args.world_size} x {torch.cuda.get_device_name()}"
    return f"{training_args.device.type}, {torch.get_num_threads()} threads"
