"""Does training help, and do we get what sentence-transformers gets? KorSTS-dev, several seeds.

    SIMCSE_DATA_DIR=../shared/data SIMCSE_MODELS_DIR=../shared/models \
        python benchmarks/sts_training.py [--experiments NAME ...] [--seeds 1 2 3]
    python benchmarks/sts_training.py --report     # docs/benchmarks.md from the committed results

Every run is one JSON in benchmarks/results; a run that is there already is not repeated. Ours and
the peer train on the same rows from the same weights and are scored by the same function.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from paths import DATA, MODELS, NLI_FILES, RESULTS

from simcse_hf.arguments import DataArguments, ModelArguments, SimCSETrainingArguments
from simcse_hf.evaluation import evaluate_sts
from simcse_hf.files import write_json
from simcse_hf.losses import duplicate_mask
from simcse_hf.sentence_store import index_rows
from simcse_hf.sts_tasks import load_sts
from simcse_hf.train import train
from simcse_hf.training_sets import load_training_views
from simcse_hf.versions import package_versions

LAST = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
SUPERVISED = {
    "train_file": NLI_FILES,
    "per_device_train_batch_size": 64,
    "learning_rate": 5e-5,
    "warmup_steps": 0.1,
    "max_seq_length": 64,
    "temperature": 0.05,
    **LAST,
}
EQUAL = SUPERVISED | {
    "model_name_or_path": "ko-e5-small",
    "pooler_type": "cls_before_pooler",
    "mask_duplicates": False,
}
UNSUPERVISED = {
    "model_name_or_path": "ko-e5-mini",
    "pooler_type": "avg",
    "per_device_train_batch_size": 64,
    "learning_rate": 3e-5,
    "max_seq_length": 64,
    "temperature": 0.05,
    **LAST,
}

# name -> (what it shows, settings); `peer` runs sentence-transformers with the same settings.
EXPERIMENTS: dict[str, tuple[str, dict]] = {
    "small-sup-peer": ("sentence-transformers, MultipleNegativesRankingLoss(scale=20)", EQUAL | {"peer": True}),
    "small-sup-equal": ("ours, everything set equal", EQUAL),
    "small-sup-avg": ("ours, mean pooling", EQUAL | {"pooler_type": "avg"}),
    "small-sup-no-warmup": ("ours, no warm-up (Princeton)", EQUAL | {"warmup_steps": 0}),
    "small-sup-mlp": ("ours, fresh MLP head, kept at inference (the paper)", EQUAL | {"pooler_type": "cls"}),
    "mini-sup-avg": (
        "supervised, 3,499 triplets",
        SUPERVISED | {"model_name_or_path": "ko-e5-mini", "pooler_type": "avg"},
    ),
    "mini-unsup-korsts": (
        "unsupervised, sentences of KorSTS-train",
        UNSUPERVISED | {"train_file": ["KorNLUDatasets/KorSTS/sts-train.tsv"], "train_as": "sentences"},
    ),
    "mini-unsup-gsd": (
        "unsupervised, ud_gsd (blogs and news)",
        UNSUPERVISED | {"train_file": ["unlabeled/ud_gsd.txt.xz"]},
    ),
}


NOTES = [
    "## Triplet rules and duplicate masking",
    "",
    "The two XNLI files and KLUE-NLI dev hold one entailed and one contradicting hypothesis for almost every premise, so the",
    "two triplet rules give nearly the same rows. Where nothing is masked, a run with duplicate masking is the same run.",
]


def main() -> None:
    from report import write_report  # which imports this module

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--report", action="store_true", help="only write docs/benchmarks.md")
    arguments = parser.parse_args()
    if not arguments.report:
        # Seeds outside, experiments inside: ours and the peer alternate.
        for seed in arguments.seeds:
            for name in arguments.experiments:
                run(name, seed)
        write_json(RESULTS / "triplet_rules.json", compare_triplet_rules())
    write_report()


def run(name: str, seed: int) -> None:
    shows, settings = EXPERIMENTS[name]
    placed = settings | {
        "model_name_or_path": str(MODELS / settings["model_name_or_path"]),
        "train_file": [str(DATA / file) for file in settings["train_file"]],
    }
    run_once(name, seed, settings, {"shows": shows}, placed)


def run_once(name: str, seed: int, settings: dict, notes: dict, placed: dict) -> None:
    """Train and write `NAME-seedN.json`, unless it is there with the same settings.

    Args:
        name: Of the experiment.
        seed: Of the run.
        settings: As they are recorded.
        notes: Recorded as well.
        placed: The settings with real paths.
    """
    path = RESULTS / f"{name}-seed{seed}.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8"))["settings"] == settings:
        return
    placed = dict(placed)
    peer = placed.pop("peer", False)
    folder = Path(tempfile.mkdtemp(prefix="sts-training-"))
    try:
        start = time.perf_counter()
        outcome = (run_peer if peer else run_ours)(placed, seed, folder)
        seconds = time.perf_counter() - start
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for source in outcome["sources"]:
        source["path"] = Path(source["path"]).name
    record = {
        "experiment": name,
        **notes,
        "seed": seed,
        "settings": settings,
        **outcome,
        "seconds": round(seconds, 1),
        "hardware": f"CPU ({platform.machine()}), {torch.get_num_threads()} threads",
        "versions": package_versions(),
    }
    write_json(path, record)
    print(f"{name} seed {seed}: {100 * outcome['after']['cosine_spearman']:.2f} in {seconds:.0f} s", flush=True)


def _arguments(
    settings: dict, seed: int, folder: Path
) -> tuple[ModelArguments, DataArguments, SimCSETrainingArguments]:
    groups = []
    for group in (ModelArguments, DataArguments):
        known = {key: value for key, value in settings.items() if key in group.__dataclass_fields__}
        groups.append(known)
        settings = {key: value for key, value in settings.items() if key not in known}
    training = SimCSETrainingArguments(
        output_dir=str(folder / "run"), seed=seed, use_cpu=True, write_release=False, disable_tqdm=True, **settings
    )
    return ModelArguments(**groups[0]), DataArguments(**groups[1], data_dir=str(DATA)), training


def run_ours(settings: dict, seed: int, folder: Path) -> dict:
    outcome = train(*_arguments(settings, seed, folder))
    record = outcome.record
    sets = [record["data"], record["scored_data"], (record["first_stage"] or {}).get("data")]
    return {
        # Of two stages, before the first.
        "before": record["first_stage"]["before"]["metrics"] if record["first_stage"] else outcome.before.metrics,
        "after": outcome.results[0].metrics,
        "interval": outcome.results[0].interval,
        "steps": record["steps"] + (record["first_stage"] or {}).get("steps", 0),
        "rows": record["data"]["statistics"]["rows"],
        "sources": [source for data in sets if data for source in data["sources"]],
        "evaluated_on": {"task": outcome.results[0].task, "pairs": outcome.results[0].num_pairs},
    }


def run_peer(settings: dict, seed: int, folder: Path) -> dict:
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from sentence_transformers.models import Pooling, Transformer

    model_args, data_args, _ = _arguments(settings, seed, folder)
    views = load_training_views(data_args)
    transformer = Transformer(model_args.model_name_or_path, max_seq_length=model_args.max_seq_length)
    mode = {"cls_before_pooler": "cls", "avg": "mean"}[model_args.pooler_type]
    model = SentenceTransformer(
        modules=[transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode=mode)], device="cpu"
    )
    pairs = load_sts("korsts-dev", data_dir=str(DATA))
    before = evaluate_sts(model.encode, pairs)
    columns = ["anchor", "positive", "negative"]
    dataset = Dataset.from_dict({column: [row[view] for row in views.rows] for view, column in enumerate(columns)})
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(folder / "peer"),
            num_train_epochs=1,
            per_device_train_batch_size=settings["per_device_train_batch_size"],
            learning_rate=settings["learning_rate"],
            warmup_steps=settings["warmup_steps"],
            dataloader_drop_last=True,
            save_strategy="no",
            report_to="none",
            seed=seed,
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=dataset,
        loss=MultipleNegativesRankingLoss(model, scale=1 / settings["temperature"]),
    )
    trainer.train()
    after = evaluate_sts(model.encode, pairs)
    return {
        "before": before.metrics,
        "after": after.metrics,
        "interval": after.interval,
        "steps": trainer.state.global_step,
        "rows": len(dataset),
        "sources": views.sources,
        "evaluated_on": {"task": after.task, "pairs": after.num_pairs},
    }


def compare_triplet_rules() -> list[dict]:
    """Rows of either rule, and how many candidates duplicate masking leaves out of batches of 64."""
    found = []
    for rule in ("last_wins", "all"):
        views = load_training_views(
            DataArguments(train_file=[str(DATA / file) for file in NLI_FILES], triplet_rule=rule)
        )
        rows = torch.from_numpy(index_rows(views.rows)[1])
        masked = candidates = 0
        for seed in (1, 2, 3):
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
            for batch in order.split(64):
                mask = duplicate_mask(rows[batch, 0], rows[batch, 1:])
                masked, candidates = masked + int(mask.sum()), candidates + mask.numel()
        found.append({"rule": rule, "triplets": len(rows), "masked": masked, "candidates": candidates, "epochs": 3})
    return found


def report() -> str:
    """The first part of docs/benchmarks.md, every number from benchmarks/results."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*-seed*.json"))]
    records = [record for record in records if record["experiment"] in EXPERIMENTS]
    lines = [
        "# Benchmarks",
        "",
        "Written by `python benchmarks/sts_training.py --report` from the JSON files in `benchmarks/results`, one for each",
        "run; do not edit. KorSTS-dev (1,500 pairs, sha256 `d835b65b...`), cosine Spearman x 100, the last weights of the run",
        "(no choice of checkpoint), mean and standard deviation over seeds.",
        "",
    ]
    groups = {
        "ko-e5-small, supervised": "small-",
        "ko-e5-mini, where training should help": "mini-",
    }
    for title, prefix in groups.items():
        chosen = [name for name in EXPERIMENTS if name.startswith(prefix)]
        lines += [
            f"## {title}",
            "",
            "| run | rows | steps | before | after, each seed | mean | sd | change | AVG before | AVG after |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for name in chosen:
            runs = sorted(
                (record for record in records if record["experiment"] == name), key=lambda record: record["seed"]
            )
            if not runs:
                continue
            after = [100 * record["after"]["cosine_spearman"] for record in runs]
            before = 100 * runs[0]["before"]["cosine_spearman"]
            deviation = f"{statistics.stdev(after):.2f}" if len(after) > 1 else "-"
            mean, change = statistics.mean(after), statistics.mean(after) - before
            average = statistics.mean(100 * record["after"]["avg"] for record in runs)
            cells = [EXPERIMENTS[name][0], f"{runs[0]['rows']:,}", runs[0]["steps"], f"{before:.2f}"]
            cells += [" ".join(f"{value:.2f}" for value in after), f"{mean:.2f}", deviation, f"{change:+.2f}"]
            cells += [f"{100 * runs[0]['before']['avg']:.2f}", f"{average:.2f}"]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        lines.append("")
    lines += NOTES
    if (rules := RESULTS / "triplet_rules.json").exists():
        lines += [
            "",
            "| triplet rule | triplets | candidates masked as duplicates, 3 epochs of batches of 64 |",
            "|---|---|---|",
        ]
        lines += [
            f"| {entry['rule']} | {entry['triplets']:,} | {entry['masked']} of {entry['candidates']:,} |"
            for entry in json.loads(rules.read_text(encoding="utf-8"))
        ]
        lines.append("")
    if records:
        low, high = (100 * value for value in records[0]["interval"])
        versions = {", ".join(f"{key} {value}" for key, value in record["versions"].items()) for record in records}
        lines += [
            f"A single score here carries a 95 % bootstrap interval of about {(high - low) / 2:.1f} points either way, from the",
            "1,500 pairs alone; runs on the same pairs can be compared more finely than that.",
            "",
            f"Hardware: {'; '.join(sorted({record['hardware'] for record in records}))}. Versions: {'; '.join(sorted(versions))}.",
            "",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
