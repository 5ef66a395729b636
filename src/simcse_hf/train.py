"""One training run, from arguments to release: data -> model -> train -> evaluate -> release."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, set_seed

from .arguments import DataArguments, ModelArguments, SimCSETrainingArguments
from .backbones import one_line
from .checkpoints import RECORD, facts_of
from .continuation import changed_settings, check_may_go_on, differences_of_stage, read_record
from .corpora import ScoredPairs, TrainingViews
from .distributed import close_at_exit
from .dropout_audit import DropoutAudit, audit_dropout
from .encoder import SentenceEncoder
from .errors import ConfigError, SimCSEError, TrainingError
from .evaluation import STSResult, evaluate_sts
from .failures import explain_failure
from .files import write_json
from .method import warnings_of_folder
from .metrics import sts_correlations
from .modeling_simcse import SimCSEModel
from .objective_setup import add_objectives, settings_without_effect
from .publication import probe_sentences, publish
from .run_folder import claimed_output_dir
from .sentence_store import ViewsDataset
from .sharded_weights import whole_model
from .shuffled_rows import WeightedRows
from .stages import Arguments, first_stage_arguments
from .starting_model import load_model
from .streamed_sets import FollowStream, check_streaming
from .sts_tasks import load_sts
from .tokenization import check_tokenizer
from .trainer import SimCSETrainer
from .training_guards import check_training_arguments, check_weights
from .training_sets import load_scored_views, load_training_views, tokenize_set
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
    """Train, evaluate and release; with `first_stage` after another training.

    Raises:
        RunFinished: With `resume_from_checkpoint` auto, where this very run has ended before.
        SimCSEError: Anything the user can cure; see the message.
    """
    _check_precision(training_args)
    if data_args.streaming:
        check_streaming(model_args, data_args, training_args)
    stage = first_stage_arguments(model_args, data_args, training_args) if training_args.first_stage else None
    for _, data, training in filter(None, (stage, (model_args, data_args, training_args))):
        if data.eval_task in (None, "none"):
            _switch_off_evaluation(training)
    arguments = _arguments(model_args, data_args, training_args)
    close_at_exit()
    with claimed_output_dir(training_args, arguments, stage and _arguments(*stage)) as checkpoint:
        return _train(model_args, data_args, training_args, stage, checkpoint)


def _train(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: SimCSETrainingArguments,
    stage: Arguments | None,
    checkpoint: Path | None,
) -> TrainingRun:
    clock = {"start": time.perf_counter()}
    started_from = warnings_of_folder(model_args.model_name_or_path or "")

    # Data
    show_progress = training_args.should_log and not training_args.disable_tqdm
    pairs = load_evaluation_pairs(data_args)
    final_sets = [load_sts(task, data_dir=data_args.data_dir) for task in data_args.final_tasks or []]
    evaluation = [*([pairs] if pairs else []), *final_sets]
    views = load_training_views(data_args, evaluation=evaluation, show_progress=show_progress)
    if not data_args.streaming:  # nothing was read of it yet
        logger.info("training data: %s", views.report)
    scored_views = load_scored_views(data_args, evaluation=evaluation, show_progress=show_progress)
    if scored_views is not None:
        logger.info("scored pairs: %s", scored_views.report)
    elif training_args.scored_batch_size is not None:
        raise ConfigError(
            "scored_batch_size is for batches of scored_file, and there is none. Name one, or leave it out."
        )
    weights = None if data_args.source_weights is None else (views.source_rows, data_args.source_weights)
    rows = len(WeightedRows(*weights, seed=0)) if weights else len(views.rows)
    check_training_arguments(training_args, None if data_args.streaming else rows)

    # Model
    first_stage = None
    if stage is not None:
        training_args.distributed_state.wait_for_everyone()  # until all have looked at output_dir
        first_stage = _first_stage(stage, training_args.first_stage)
        model_args = dataclasses.replace(
            model_args,
            model_name_or_path=first_stage["output_dir"],
            pooler_type=first_stage["model_config"]["pooler_type"],
            # What the first stage made of its encoder is what there is now.
            head_init="fresh",
            hidden_dropout_prob=None,
            attention_probs_dropout_prob=None,
        )
    set_seed(training_args.seed)
    model, tokenizer = load_model(model_args)
    config = model.config
    check_tokenizer(tokenizer, config.text_config, config.max_seq_length, reads_cls=config.reads_cls)
    tokenize = functools.partial(
        tokenize_set,
        tokenizer=tokenizer,
        config=config,
        data_args=data_args,
        model_args=model_args,
        evaluation=evaluation,
        show_progress=show_progress,
    )
    main_set = tokenize(views)
    scored_set = None if scored_views is None else tokenize(scored_views)
    eval_dataset = None
    if pairs is not None:
        rows = list(zip(pairs.sentences1, pairs.sentences2, strict=True))
        options = {"max_length": config.max_seq_length, "prompt": config.prompt}
        eval_dataset = ViewsDataset.build(rows, tokenizer, **options, scores=pairs.scores)
    audit = _audit(model, main_set.dataset, views, training_args)
    teacher = main_set.dataset.teacher
    add_objectives(model, tokenizer, model_args, views, teacher_size=None if teacher is None else teacher.shape[1])
    scored = scored_views is not None or views.shape == "scored"
    for name, reason in settings_without_effect(model_args, contrastive=views.values is None, scored=scored).items():
        logger.info("%s has no effect: %s.", name, reason)  # the other of two stages may be what it is for

    # Train
    trainer = _build_trainer(
        model,
        training_args,
        train_dataset=main_set.dataset,
        scored_dataset=None if scored_set is None else scored_set.dataset,
        row_weights=weights,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        score_scale=pairs.scale if pairs else (0.0, 5.0),
        callbacks=[FollowStream(main_set.dataset)] if data_args.streaming else [],
        facts={
            "data": [
                *views.sources,
                *(scored_views.sources if scored_views else []),
                *([] if teacher is None else [teacher.source]),
            ],
            "kept_out": [source for each in evaluation if data_args.on_leakage == "drop" for source in each.sources],
            "evaluated_on": [] if pairs is None else pairs.sources,
            **_record_of_settings(model_args, data_args, training_args, model),
        },
    )
    if training_args.resume_from_checkpoint is not None:
        logger.info("resuming from %s", checkpoint or "nothing: there is no checkpoint, so the run starts anew")
    changes = []
    if checkpoint is not None:
        check_may_go_on(checkpoint, trainer.facts)
        changes = changed_settings(checkpoint, trainer.facts)
        for setting in changes:
            logger.warning("not as it was when %s was saved: %s", checkpoint.name, setting)
        changes = trainer.facts["changed"] = [*facts_of(checkpoint).get("changed", []), *changes]
    before = evaluate(model, tokenizer, [pairs])[0] if pairs is not None else None
    clock["trained_from"] = time.perf_counter()
    try:
        outcome = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except ImportError as error:  # some options look for their package only now
        raise ConfigError(one_line(error)) from error
    clock["trained"] = time.perf_counter()

    # Evaluate, all processes together, and release
    record = {}
    trained = whole_model(trainer.accelerator.unwrap_model(trainer.model))
    check_weights(trained, trainer.state.global_step, training_args.learning_rate)
    results, sizes = evaluate(trained, tokenizer, evaluation), evaluate_sizes(trained, tokenizer, evaluation)
    if trainer.is_world_process_zero():
        record = {
            **_record_of_settings(model_args, data_args, training_args, model),
            "data": main_set.record() | {"triplet_rule": data_args.triplet_rule if views.shape == "nli" else None},
            "scored_data": scored_set and scored_set.record(),
            "first_stage": first_stage,
            "started_from": started_from,
            "resumed": checkpoint and {"checkpoint": checkpoint.name, "changed": changes},
            "dropout": dataclasses.asdict(audit),
            "before": before and before.as_dict(),
            "results": [result.as_dict() for result in results],
            "sizes": sizes,
            "selected_on": pairs.name if pairs and trainer.released_best else None,
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
            publish(trained, tokenizer, record, results, output_dir, probe_sentences(views, pairs))
        else:
            write_json(output_dir / RECORD, record)
    trainer.accelerator.wait_for_everyone()
    return TrainingRun(
        output_dir=Path(training_args.output_dir),
        before=before,
        results=results,
        record=record,
        model=trained,
        tokenizer=tokenizer,
    )


def _first_stage(stage: Arguments, named: str) -> dict:
    """Train the first of two stages, or find it finished; what the record of the second says of it."""
    output_dir = Path(stage[2].output_dir)
    if (output_dir / RECORD).exists():
        if differing := differences_of_stage(read_record(output_dir / RECORD), _arguments(*stage)):
            raise ConfigError(
                f"{output_dir} holds a first stage with other settings or data: {'; '.join(differing.values())}. Put them back "
                f"(settings that are the first stage's own stand in {named}), or name another output_dir, or remove that folder."
            )
        logger.info("the first stage is finished: %s", output_dir)
    else:
        logger.info("first stage, into %s", output_dir)
        train(*stage)
    record = read_record(output_dir / RECORD)  # as every process finds it
    kept = ("data", "scored_data", "before", "results", "steps", "arguments", "model_config")
    return {"output_dir": str(output_dir), **{key: record.get(key) for key in kept}}


def _arguments(model_args: ModelArguments, data_args: DataArguments, training_args: SimCSETrainingArguments) -> dict:
    return {
        "model": dataclasses.asdict(model_args),
        "data": dataclasses.asdict(data_args),
        "training": training_args.to_dict(),
    }


def _record_of_settings(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: SimCSETrainingArguments,
    model: SimCSEModel,
) -> dict:
    return {
        "arguments": _arguments(model_args, data_args, training_args),
        "model_config": model.config.to_dict(),
        "world_size": training_args.world_size,
        "mixed_precision": training_args.mixed_precision,
        "device": _device(training_args),
        "versions": package_versions(),
        "git_revision": git_revision(),
    }


def _build_trainer(model: SimCSEModel, training_args: SimCSETrainingArguments, **parts) -> SimCSETrainer:
    try:
        trainer = SimCSETrainer(model, training_args, **parts)
        if not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
            # Builds what reads the optimiser's and the scheduler's settings, so that a wrong one is found now.
            trainer.create_optimizer_and_scheduler(num_training_steps=1)
    except SimCSEError:
        raise
    except (ImportError, RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        if explain_failure(error):
            raise
        raise ConfigError(f"the trainer cannot be set up with these arguments: {one_line(error)}") from error
    trainer.optimizer = trainer.lr_scheduler = None
    return trainer


def load_evaluation_pairs(data_args: DataArguments) -> ScoredPairs | None:
    """The set that is scored while training; None with `eval_task: none`.

    Without one there is nothing to choose a checkpoint by, and the last is released.
    """
    if data_args.eval_task in (None, "none"):
        return None
    return load_sts(data_args.eval_task, data_dir=data_args.data_dir)


def _switch_off_evaluation(training_args: SimCSETrainingArguments) -> None:
    training_args.eval_strategy = "no"
    training_args.load_best_model_at_end = False
    training_args.early_stopping_patience = None
    if training_args.save_strategy == "best":
        raise ConfigError("save_strategy best needs an eval_task to judge by.")


def evaluate(model: SimCSEModel, tokenizer: PreTrainedTokenizerBase, sets: list[ScoredPairs]) -> list[STSResult]:
    """Score a model in memory; its mode is restored. Several processes share the work, and each gets the results."""
    training = model.training
    encoder = SentenceEncoder(model, tokenizer, device=model.device)
    encode = functools.partial(encoder.encode, across_processes=True)
    results = [evaluate_sts(encode, pairs, encoder=encoder.describe()) for pairs in sets]
    model.train(training)
    return results


def evaluate_sizes(model: SimCSEModel, tokenizer: PreTrainedTokenizerBase, sets: list[ScoredPairs]) -> list[dict]:
    """What the first so many components of the vectors score, where they were trained for it (matryoshka_dims)."""
    sizes, found = model.config.matryoshka_dims or [], []
    encoder = SentenceEncoder(model, tokenizer, device=model.device)
    for pairs in sets if sizes else []:
        vectors = torch.from_numpy(encoder.encode([*pairs.sentences1, *pairs.sentences2], across_processes=True))
        left, right = vectors[: len(pairs)], vectors[len(pairs) :]
        for size in sizes:
            scores = sts_correlations(left[:, :size], right[:, :size], pairs.scores)
            found.append({"task": pairs.name, "size": size, "cosine_spearman": scores["cosine_spearman"]})
    return found


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


def _check_precision(training_args: SimCSETrainingArguments) -> None:
    if training_args.mixed_precision == "fp16" and training_args.device.type == "cpu":
        raise ConfigError(
            "fp16 needs a GPU, and this run is on the CPU, where it would silently be float32. Add --fp16 false (or --bf16)."
        )


def _device(training_args: SimCSETrainingArguments) -> str:
    if training_args.device.type == "cuda":
        return f"{training_args.world_size} x {torch.cuda.get_device_name()}"
    return f"{training_args.device.type}, {torch.get_num_threads()} threads"
