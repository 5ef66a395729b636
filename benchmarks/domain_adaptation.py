"""What unsupervised training on a domain's text does there, and what it costs on KorSTS-dev.

    SIMCSE_DATA_DIR=../shared/data SIMCSE_MODELS_DIR=../shared/models python benchmarks/domain_adaptation.py [--seeds 1 2 3]

Two domains, and for each two runs of equal length from ko-e5-mini: on the domain's text alone, and mixed with general text
and the sentences of KorSTS-train, sentences of KorSTS-dev left out. Everyday questions have human judgements: pairs that
mean the same or not. Technical documents have none, so there a sentence has to be found again after it lost words.
Every run is one JSON in benchmarks/results; a run that is there already is not repeated. `--report` writes
docs/domain_adaptation.md from them.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from paths import DATA, MODELS, RESULTS
from sklearn.metrics import average_precision_score, roc_auc_score
from sts_training import LAST

from simcse_hf.arguments import DataArguments, ModelArguments, SimCSETrainingArguments
from simcse_hf.encoder import SentenceEncoder
from simcse_hf.files import write_json
from simcse_hf.metrics import uniformity
from simcse_hf.search import nearest, read_corpus
from simcse_hf.train import train
from simcse_hf.versions import package_versions

STEPS, BATCH = 100, 64
GENERAL = {"unlabeled/ud_gsd.txt.xz": 1600, "KorNLUDatasets/KorSTS/sts-train.tsv": 1600}  # rows in a mixed epoch
DOMAINS = {
    "questions": ["unlabeled/songys_question_pair.txt.xz", "unlabeled/songys_chatbot.txt.xz"],
    "techdocs": ["unlabeled/techdocs_python.txt.xz"],
}
TECHDOCS_HELD_OUT = "unlabeled/techdocs_pytorch.txt.xz"
POOL, DROPPED = 2000, 0.4
DOCUMENT = Path(__file__).parent.parent / "docs" / "domain_adaptation.md"
INTRODUCTION = """# Domain adaptation

Written by `python benchmarks/domain_adaptation.py --report` from the JSON files in `benchmarks/results`, one for each run; do not
edit. Unsupervised SimCSE from ko-e5-mini (mean pooling) on the text of a domain alone, and mixed with general text and the
sentences of KorSTS-train; sentences of KorSTS-dev are left out (`on_leakage: drop`). Last weights of the run. Figures are
*before -> after*, the mean over seeds; all but uniformity are x 100. KorSTS-dev is cosine Spearman."""
TITLES = {
    "questions": (
        "Everyday questions, with human judgements",
        "Do two questions mean the same (songys/Question_pair, both files)? How well the cosine tells. The unlabelled sentences of "
        "these pairs are among the training text.",
    ),
    "techdocs": (
        "Technical documents, without judgements",
        f"With {DROPPED:.0%} of its words dropped, is a sentence of the PyTorch tutorials found again among {POOL:,} of them? "
        "Trained on the Python documentation. This says that a sentence stays recognisable, not that similar ones lie together.",
    ),
}
MEASURES = {
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
    "accuracy_at_1": "found first",
    "mrr_at_10": "MRR@10",
    "uniformity": "uniformity",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", nargs="+", choices=DOMAINS, default=list(DOMAINS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--report", action="store_true", help="only write docs/domain_adaptation.md")
    arguments = parser.parse_args()
    if not arguments.report:
        for mixed in (True, False):
            for seed in arguments.seeds:
                for domain in arguments.domains:
                    run(domain, mixed, seed)
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("domain-*-seed*.json"))]
    DOCUMENT.write_text(document(records), encoding="utf-8")


def run(domain: str, mixed: bool, seed: int) -> None:
    name = f"domain-{domain}-{'mixed' if mixed else 'alone'}"
    path = RESULTS / f"{name}-seed{seed}.json"
    if path.exists():
        return
    files = [*DOMAINS[domain], *(GENERAL if mixed else [])]
    rows = [_rows(file) for file in files]
    share = STEPS * BATCH - (sum(GENERAL.values()) if mixed else 0)
    own = sum(rows[: len(DOMAINS[domain])])
    weights = [share / own] * len(DOMAINS[domain])
    weights += [wanted / rows[files.index(file)] for file, wanted in GENERAL.items()] if mixed else []
    folder = Path(tempfile.mkdtemp(prefix="domain-"))
    start = time.perf_counter()
    try:
        outcome = train(
            ModelArguments(model_name_or_path=str(MODELS / "ko-e5-mini"), pooler_type="avg", max_seq_length=64),
            DataArguments(
                train_file=[str(DATA / file) for file in files],
                train_as="sentences",
                source_weights=weights,
                on_leakage="drop",
                data_dir=str(DATA),
            ),
            SimCSETrainingArguments(
                output_dir=str(folder / "run"),
                max_steps=STEPS,
                per_device_train_batch_size=BATCH,
                learning_rate=3e-5,
                seed=seed,
                use_cpu=True,
                disable_tqdm=True,
                write_release=False,
                **LAST,
            ),
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = time.perf_counter() - start
    before = SentenceEncoder.from_pretrained(str(MODELS / "ko-e5-mini"), pooler_type="avg", max_seq_length=64)
    after = SentenceEncoder(outcome.model, outcome.tokenizer, device="cpu")
    record = {
        "experiment": name,
        "seed": seed,
        "files": dict(zip(files, [round(weight, 4) for weight in weights], strict=True)),
        "steps": outcome.record["steps"],
        "batch": BATCH,
        "learning_rate": 3e-5,
        "dropped": outcome.record["data"]["report"],
        "korsts_dev": {
            "pairs": outcome.results[0].num_pairs,
            "before": outcome.before.metrics["cosine_spearman"],
            "after": outcome.results[0].metrics["cosine_spearman"],
        },
        "domain": {"before": in_domain(domain, before), "after": in_domain(domain, after)},
        "seconds": round(seconds, 1),
        "hardware": f"CPU ({platform.machine()}), {torch.get_num_threads()} threads",
        "versions": package_versions(),
    }
    write_json(path, record)
    print(f"{name} seed {seed}: {json.dumps(record['domain'])} {json.dumps(record['korsts_dev'])}", flush=True)


def in_domain(domain: str, encoder: SentenceEncoder) -> dict[str, float]:
    """Scores on the domain; `rows` says over how many."""
    return _question_pairs(encoder) if domain == "questions" else _found_again(encoder)


def _question_pairs(encoder: SentenceEncoder) -> dict[str, float]:
    """How well the cosine tells pairs of questions that mean the same (songys/Question_pair, both files)."""
    pairs = []
    for file in ("kor_pair_train.csv", "kor_Pair_test.csv"):
        with (DATA / "question_pair" / file).open(encoding="utf-8-sig", newline="") as stream:
            # Despite its name, `is_duplicate` is 0 where two questions mean the same, as reading them shows.
            pairs += [
                (row["question1"], row["question2"], 1 - int(row["is_duplicate"])) for row in csv.DictReader(stream)
            ]
    first, second = (encoder.encode([pair[side] for pair in pairs], normalize=True) for side in (0, 1))
    cosines, labels = (first * second).sum(axis=1), [pair[2] for pair in pairs]
    return {
        "rows": len(pairs),
        "roc_auc": float(roc_auc_score(labels, cosines)),
        "average_precision": float(average_precision_score(labels, cosines)),
        "uniformity": uniformity(torch.from_numpy(first)),
    }


def _found_again(encoder: SentenceEncoder) -> dict[str, float]:
    """How often the nearest of 2,000 sentences of another project's documents is the one that words were dropped from."""
    sentences = [sentence for sentence in read_corpus(str(DATA / TECHDOCS_HELD_OUT)) if len(sentence.split()) >= 8]
    random.Random(0).shuffle(sentences)
    sentences = sentences[:POOL]
    drop = random.Random(1)
    queries = []
    for sentence in sentences:
        words = sentence.split()
        kept = sorted(drop.sample(range(len(words)), round(len(words) * (1 - DROPPED))))
        queries.append(" ".join(words[index] for index in kept))
    corpus, asked = encoder.encode(sentences, normalize=True), encoder.encode(queries, normalize=True)
    _, found = nearest(asked, corpus, 10)
    hits = found == np.arange(len(sentences))[:, None]  # (Q, 10)
    ranks = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, np.inf)
    return {
        "rows": len(sentences),
        "accuracy_at_1": float((ranks == 1).mean()),
        "mrr_at_10": float((1 / ranks).mean()),
        "uniformity": uniformity(torch.from_numpy(corpus)),
    }


def document(records: Sequence[dict]) -> str:
    """The whole of docs/domain_adaptation.md."""
    lines = [INTRODUCTION]
    for domain, (title, explanation) in TITLES.items():
        measures = [
            name for name in MEASURES if any(name in record["domain"]["after"] for record in _of(records, domain))
        ]
        lines += ["", f"## {title}", "", explanation, ""]
        lines.append("| trained on | seeds | " + " | ".join(MEASURES[name] for name in measures) + " | KorSTS-dev |")
        lines.append("|---|---|" + "---|" * (len(measures) + 1))
        for variant, words in (("alone", "the domain alone"), ("mixed", "the domain, general text, STS sentences")):
            runs = [record for record in _of(records, domain) if record["experiment"].endswith(variant)]
            if not runs:
                continue
            cells = [words, " ".join(str(record["seed"]) for record in runs)]
            cells += [
                _change(
                    [record["domain"]["before"][name] for record in runs],
                    [record["domain"]["after"][name] for record in runs],
                    1 if name == "uniformity" else 100,
                )
                for name in measures
            ]
            sts = [record["korsts_dev"] for record in runs]
            cells.append(_change([found["before"] for found in sts], [found["after"] for found in sts], 100))
            lines.append(f"| {' | '.join(cells)} |")
    if records:
        lines += ["", "## On what", ""]
        for record in sorted({run["experiment"]: run for run in records}.values(), key=lambda run: run["experiment"]):
            files = ", ".join(f"{Path(file).name} x {weight:g}" for file, weight in record["files"].items())
            left_out = record["dropped"]["dropped"].items()
            dropped = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in left_out) or "nothing"
            lines.append(
                f"- {record['experiment']}: {files}; left out: {dropped}. {record['steps']} steps of {record['batch']}, learning "
                f"rate {record['learning_rate']:g}, {record['seconds']:.0f} s."
            )
        rows = {record["experiment"].split("-")[1]: record["domain"]["after"]["rows"] for record in records}
        lines += [
            "",
            "Scored over "
            + ", ".join(f"{count:,} rows ({domain})" for domain, count in rows.items())
            + f" and {records[0]['korsts_dev']['pairs']:,} pairs of KorSTS-dev. Hardware: {records[0]['hardware']}.",
        ]
    return "\n".join(lines) + "\n"


def _of(records: Sequence[dict], domain: str) -> list[dict]:
    return [record for record in records if record["experiment"].split("-")[1] == domain]


def _change(before: list[float], after: list[float], factor: int) -> str:
    """`before -> mean after (standard deviation)`"""
    deviation = f" (sd {statistics.stdev(factor * value for value in after):.2f})" if len(after) > 1 else ""
    return f"{factor * before[0]:.2f} -> {factor * statistics.mean(after):.2f}{deviation}"


def _rows(file: str) -> int:
    from simcse_hf.training_sets import load_training_views

    return len(load_training_views(DataArguments(train_file=[str(DATA / file)], train_as="sentences")).rows)


if __name__ == "__main__":
    main()
