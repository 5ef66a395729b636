"""The model card: every number in it comes from the run, none is typed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from .backbones import auto_class
from .configuration_simcse import SimCSEConfig
from .evaluation import STSResult
from .method import Method, data_of, describe_method
from .metrics import METRIC_NAMES
from .sts_tasks import STS_TASKS

_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"

# task -> Hub dataset, task within it
_HUB_DATASETS = {
    "korsts-dev": ("mteb/KorSTS", "valid"),
    "korsts-test": ("mteb/KorSTS", "test"),
    "klue-sts-dev": ("klue/klue", "sts"),
}

_MEAN = "(hidden * mask).sum(dim=1) / mask.sum(dim=1)"
_POOLING_CODE = {
    "cls_before_pooler": "embeddings = output.last_hidden_state[:, 0]",
    "avg": f'hidden, mask = output.last_hidden_state, inputs["attention_mask"].unsqueeze(-1)\nembeddings = {_MEAN}',
    "avg_top2": (
        'hidden, mask = (output.last_hidden_state + output.hidden_states[-2]) / 2, inputs["attention_mask"].unsqueeze(-1)\n'
        f"embeddings = {_MEAN}"
    ),
    "avg_first_last": (
        "hidden = (output.last_hidden_state + output.hidden_states[{first}]) / 2\n"
        'mask = inputs["attention_mask"].unsqueeze(-1)\n'
        f"embeddings = {_MEAN}"
    ),
    "max": (
        'hidden, mask = output.last_hidden_state, inputs["attention_mask"].unsqueeze(-1)\n'
        'embeddings = hidden.masked_fill(mask == 0, float("-inf")).amax(dim=1)'
    ),
}
_HEAD_IN_POOLER = "embeddings = output.pooler_output"
_HEAD_IN_DENSE = """from safetensors.torch import load_file
from transformers.utils import cached_file
head = load_file(cached_file(model.name_or_path, "2_Dense/model.safetensors"))
embeddings = torch.tanh(output.last_hidden_state[:, 0] @ head["linear.weight"].T + head["linear.bias"])"""

_SHOWN = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "seed",
)


_SHOWN_IF_CHANGED = (
    "head_type",
    "head_size",
    "symmetric",
    "false_negative_margin",
    "matryoshka_dims",
    "contrastive_weight",
    "scored_loss",
)
_DEFAULTS = {name: SimCSEConfig.__dataclass_fields__[name].default for name in _SHOWN_IF_CHANGED}
_SHOWN_WITH = {
    "do_mlm": ("mlm_weight", "mlm_probability"),
    "generator_name": ("generator_name", "lambda_weight", "masking_ratio", "diffcse_variant"),
    "distillation": ("distillation", "teacher_name_or_path", "distillation_weight", "distillation_temperature"),
}


def model_card(run: dict, config: SimCSEConfig, results: Sequence[STSResult], *, has_pooler: bool) -> ModelCard:
    """The card of a finished run.

    Args:
        run: The content of `simcse_run.json`.
        config: Of the released model.
        results: Final scores of the released model.
        has_pooler: Whether AutoModel's class returns `pooler_output`.
    """
    training = run["arguments"]["training"]
    name = training.get("hub_model_id") or Path(training["output_dir"]).name or "model"
    method = describe_method(run, config)
    licences = {source["licence"] for source in _sources(run) if "licence" in source}
    data = ModelCardData(
        language="ko",
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        license="cc-by-sa-4.0" if any("BY-SA" in licence for licence in licences) else None,
        tags=["sentence-transformers", "feature-extraction", "sentence-similarity", "simcse", "korean"],
        model_name=name,
        eval_results=[entry for result in results for entry in _eval_results(result)] or None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        model_name=name,
        hidden_size=config.text_config.hidden_size,
        backbone=f"`{_public_name(_starting_model(run))}`",
        method=method.english,
        method_ko=method.korean,
        prompt=json.dumps(config.prompt, ensure_ascii=False) if config.prompt else "",
        auto_class=auto_class(config.text_config).__name__,
        pooling_code=_pooling_code(config, has_pooler),
        pooling_note=_pooling_note(config, has_pooler),
        score_table=_score_table(results) if results else "This run was not evaluated.",
        score_note=_score_note(run, results, method),
        size_table=_size_table(run.get("sizes") or []),
        data_table=_data_table(run),
        row_report=run["data"]["report_text"],
        hyper_parameters=_hyper_parameters(run, config),
        versions=", ".join(f"{package} {version}" for package, version in run["versions"].items()),
        limits=_limits(run, config),
    )


def eval_result_files(results: Sequence[STSResult]) -> dict[str, list[dict]]:
    """Content of `.eval_results/TASK.yaml` for each published set, as the Hub reads it.

    The Hub wants a dataset of its own, and its copies of KorSTS hold fewer rows than the published files: a score
    over the published file is not written under the copy's name.
    """
    return {
        result.task: eval_result_entries_to_yaml(
            [
                EvalResultEntry(
                    dataset_id=_HUB_DATASETS[result.task][0],
                    task_id=_HUB_DATASETS[result.task][1],
                    value=round(100 * result.metrics["cosine_spearman"], 2),
                    notes=f"cosine Spearman x 100 over {result.num_pairs} pairs at once; {_source_note(result)}",
                )
            ]
        )
        for result in results
        if result.task in _HUB_DATASETS and result.num_pairs == STS_TASKS[result.task].hub_rows
    }


def _source_note(result: STSResult) -> str:
    source = result.sources[0]
    return f"file with sha256 {source['sha256']}" if source.get("sha256") else f"Hub copy {source['hub']}"


def _eval_results(result: STSResult) -> list[EvalResult]:
    dataset = result.sources[0] if result.sources else {}
    return [
        EvalResult(
            task_type="STS",
            task_name="Semantic Textual Similarity",
            dataset_type=result.task,
            dataset_name=f"{result.task} ({result.num_pairs} pairs)",
            dataset_revision=dataset.get("sha256"),
            metric_type=metric,
            metric_value=round(100 * result.metrics[metric], 2),
        )
        for metric in METRIC_NAMES
    ]


def _score_table(results: Sequence[STSResult]) -> str:
    names = [name.replace("_pearson", "-P").replace("_spearman", "-S") for name in METRIC_NAMES]
    lines = [
        "| set | pairs | " + " | ".join(names) + " | AVG | 95 % interval |",
        "|---|---|" + "---|" * (len(names) + 2),
    ]
    for result in results:
        cells = [f"{100 * result.metrics[name]:.2f}" for name in (*METRIC_NAMES, "avg")]
        low, high = result.interval
        lines.append(
            f"| {result.task} | {result.num_pairs} | {' | '.join(cells)} | {100 * low:.2f} .. {100 * high:.2f} |"
        )
    return "\n".join(lines)


def _size_table(sizes: Sequence[dict]) -> str:
    """What the first so many components score, where they were trained as vectors of their own."""
    if not sizes:
        return ""
    rows = [f"| {entry['task']} | {entry['size']} | {100 * entry['cosine_spearman']:.2f} |" for entry in sizes]
    return "\n".join(["| set | first components | cosine Spearman |", "|---|---|---|", *rows])


def _score_note(run: dict, results: Sequence[STSResult], method: Method) -> str:
    notes = list(method.warnings)
    if (before := run.get("before")) and (results and before["task"] == results[0].task):
        notes.append(
            f"Before training, {before['task']} cosine Spearman was {100 * before['metrics']['cosine_spearman']:.2f}."
        )
    if run.get("selected_on"):
        notes.append(f"The checkpoint was chosen on {run['selected_on']}, so its score there is optimistic.")
    for result in results:
        for source in result.sources:
            if source.get("sha256"):
                notes.append(f"{result.task}: sha256 `{source['sha256']}`, text mode {result.text_mode}.")
    return "\n".join(f"- {note}" for note in notes)


def _data_table(run: dict) -> str:
    lines = ["| source | rows | sha256 | licence |", "|---|---|---|---|"]
    for source in _sources(run):
        name = source.get("official") or _public_name(source.get("path") or source.get("hub"))
        sha256 = (source.get("sha256") or source.get("fingerprint") or "")[:16]
        # A stream need not have been read to its end.
        rows = "not all read" if source["rows"] is None else f"{source['rows']:,}"
        lines.append(f"| {name} | {rows} | `{sha256}` | {source.get('licence', 'not stated')} |")
    return "\n".join(lines)


def _sources(run: dict) -> list[dict]:
    return [source for data in data_of(run) for source in data["sources"]]


def _starting_model(run: dict) -> str:
    """The encoder that came from elsewhere, also where a first stage went on with it."""
    return (run.get("first_stage") or run)["arguments"]["model"]["model_name_or_path"]


def _hyper_parameters(run: dict, config: SimCSEConfig) -> str:
    training = run["arguments"]["training"]
    rows = {name: training[name] for name in _SHOWN if training.get(name) not in (None, -1)} | {
        "mixed_precision": run["mixed_precision"],
        "processes": run["world_size"],
        "pooler_type": config.pooler_type,
        "mlp_only_train": config.mlp_only_train,
        "temperature": config.temperature,
        "hard_negative_weight": config.hard_negative_weight,
        "mask_duplicates": config.mask_duplicates,
        "max_seq_length": config.max_seq_length,
        "prompt": repr(config.prompt),
    }
    rows |= {name: getattr(config, name) for name in _SHOWN_IF_CHANGED if getattr(config, name) != _DEFAULTS[name]}
    model = run["arguments"]["model"]
    for switch, names in _SHOWN_WITH.items():
        if model.get(switch):
            rows |= {name: _shown(name, model[name]) for name in names if model.get(name) is not None}
    if run.get("scored_data"):
        rows |= {name: training[name] for name in ("mixing", "scored_batch_size") if training.get(name) is not None}
    if weights := run["arguments"]["data"].get("source_weights"):
        rows["source_weights"] = weights
    return "\n".join(["| setting | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _shown(name: str, value: object) -> object:
    return _public_name(value) if name in ("generator_name", "teacher_name_or_path") else value


def _pooling_code(config: SimCSEConfig, has_pooler: bool) -> str:
    if config.head_at_inference:
        return _HEAD_IN_POOLER if has_pooler else _HEAD_IN_DENSE
    kind = "cls_before_pooler" if config.pooler_type == "cls" else config.pooler_type
    return _POOLING_CODE[kind].replace("{first}", str(config.first_hidden_state))


def _pooling_note(config: SimCSEConfig, has_pooler: bool) -> str:
    if config.head_at_inference or not has_pooler:
        return "Use exactly this vector: another pooling gives other, worse similarities."
    return "Do not use `pooler_output`: in this model it is not the embedding."


def _limits(run: dict, config: SimCSEConfig) -> str:
    notes = [f"- Sentences are cut after {config.max_seq_length} tokens."]
    if _starting_model(run) == "sample:encoder":
        notes.append(
            "- Trained from the small encoder in the package on sample data: a demonstration, not a model to use."
        )
    if any("NSMC" in str(source) or "nsmc" in str(source) for source in _sources(run)):
        notes.append("- The training text holds rude or toxic language; the vectors may reflect it.")
    return "\n".join(notes)


def _public_name(path: str) -> str:
    """A Hub id as it is, a local path as its last part: cards are published, folders are not."""
    looks_like_hub_id = path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).exists()
    return path if looks_like_hub_id or path.startswith("sample:") else Path(path).name
