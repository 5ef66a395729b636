"""What the small encoder is worth on KorSTS-dev: raw, after SimCSE, and next to what costs nothing.

    SIMCSE_DATA_DIR=../shared/data python scripts/pretraining/score.py \
        --encoder masked-lm=runs/pretraining/encoder --encoder distilled=runs/distillation/encoder

Writes one JSON for each encoder to `results/`; an encoder whose weights were scored already is not scored again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from corpus import collect
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from tokenizer import fertility
from transformers import AutoConfig, AutoModel, set_seed

from simcse_hf.arguments import DataArguments, ModelArguments, SimCSETrainingArguments
from simcse_hf.encoder import SentenceEncoder
from simcse_hf.evaluation import evaluate_sts
from simcse_hf.files import sha256_of, write_json
from simcse_hf.sts_tasks import load_sts
from simcse_hf.tokenization import load_tokenizer
from simcse_hf.train import train
from simcse_hf.versions import package_versions

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("SIMCSE_DATA_DIR", "../shared/data"))
MODELS = Path(os.environ.get("SIMCSE_MODELS_DIR", "../shared/models"))
TEACHER = "ko-e5-small"
TASK = "korsts-dev"

# One epoch each, no choice of checkpoint; the learning rates and the batch size were chosen on KorSTS-dev.
TRAINING = {
    "unsupervised": {
        "train_file": ["KorNLUDatasets/KorSTS/sts-train.tsv"],
        "train_as": "sentences",
        "learning_rate": 3e-4,
    },
    "supervised": {
        "train_file": [
            "KorNLUDatasets/KorNLI/xnli.test.ko.tsv",
            "KorNLUDatasets/KorNLI/xnli.dev.ko.tsv",
            "klue/klue-nli-v1.1_dev.json",
        ],
        "learning_rate": 3e-4,
    },
}
SHARED = {"per_device_train_batch_size": 64, "num_train_epochs": 1, "warmup_steps": 0.1}
MODEL = {"pooler_type": "avg", "max_seq_length": 64, "temperature": 0.05}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    arguments = parser.parse_args()
    for named in arguments.encoder:
        name, _, folder = named.partition("=")
        score_encoder(name, Path(folder), arguments.seeds)
    first = Path(arguments.encoder[0].partition("=")[2])
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            score_encoder(f"random-seed{seed}", random_encoder(first, Path(scratch), seed), [seed])
    if not (path := RESULTS / "baselines.json").exists():
        teacher = load_tokenizer(str(MODELS / TEACHER))
        write_json(
            path,
            {"tf_idf": tf_idf_scores(), "tokenizer": {TEACHER: fertility(teacher, evaluation_sentences())}},
        )


def score_encoder(name: str, folder: Path, seeds: list[int]) -> None:
    """Raw scores of an encoder, and those after each kind of training with each seed."""
    path = RESULTS / f"{name}.json"
    weights = sha256_of(folder / "model.safetensors")
    if path.exists() and json.loads(path.read_text(encoding="utf-8"))["weights_sha256"] == weights:
        return
    record = {
        "encoder": name,
        "weights_sha256": weights,
        "raw": raw_scores(folder),
        "tokenizer": fertility(load_tokenizer(str(folder)), evaluation_sentences()),
        "input_embeddings": cosine_spearman(lambda sentences: mean_input_embeddings(folder, sentences)),
        "settings": {"model": MODEL, "training": SHARED, **TRAINING},
        "pairs": len(load_sts(TASK, data_dir=str(DATA))),
    }
    for kind in TRAINING:
        record[kind] = {str(seed): after_training(folder, kind, seed) for seed in seeds}
    record["hardware"] = f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"
    record["versions"] = package_versions()
    write_json(path, record)
    print(f"{name}: {record['raw']} {record['unsupervised']} {record['supervised']}", flush=True)


def after_training(folder: Path, kind: str, seed: int) -> float:
    """Cosine Spearman of the last weights."""
    settings = dict(TRAINING[kind])
    rate = settings.pop("learning_rate")
    settings["train_file"] = [str(DATA / file) for file in settings["train_file"]]
    scratch = tempfile.mkdtemp(prefix="embedded-")
    try:
        run = train(
            ModelArguments(model_name_or_path=str(folder), **MODEL),
            DataArguments(**settings, data_dir=str(DATA), eval_task=TASK),
            SimCSETrainingArguments(
                output_dir=scratch,
                learning_rate=rate,
                seed=seed,
                eval_strategy="no",
                save_strategy="no",
                load_best_model_at_end=False,
                write_release=False,
                use_cpu=True,
                disable_tqdm=True,
                **SHARED,
            ),
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return run.results[0].metrics["cosine_spearman"]


def random_encoder(like: Path, folder: Path, seed: int) -> Path:
    """An encoder of the same shape and tokenizer whose weights are random."""
    set_seed(seed)
    AutoModel.from_config(AutoConfig.from_pretrained(like)).save_pretrained(folder)
    load_tokenizer(str(like)).save_pretrained(folder)
    return folder


def cosine_spearman(encode: Callable[[list[str]], np.ndarray]) -> float:
    return evaluate_sts(encode, load_sts(TASK, data_dir=str(DATA))).metrics["cosine_spearman"]


def raw_scores(folder: Path) -> dict[str, float]:
    """Of the encoder as it is, with two ways to pool."""
    return {
        pooler: cosine_spearman(
            SentenceEncoder.from_pretrained(str(folder), pooler_type=pooler, max_seq_length=128).encode
        )
        for pooler in ("avg", "avg_first_last")
    }


def evaluation_sentences() -> list[str]:
    """All sentences of the scored pairs, repeated ones included."""
    pairs = load_sts(TASK, data_dir=str(DATA))
    return [*pairs.sentences1, *pairs.sentences2]


def mean_input_embeddings(folder: Path, sentences: list[str]) -> np.ndarray:
    """(N, D): mean of the word embeddings of each sentence's pieces, no layer above them; specials left out."""
    table = AutoModel.from_pretrained(folder, dtype=torch.float32).get_input_embeddings().weight.detach().numpy()
    encoded = load_tokenizer(str(folder))(sentences, add_special_tokens=False)["input_ids"]
    return np.stack([table[ids].mean(axis=0) for ids in encoded])


def tf_idf_scores() -> dict:
    """Character n-grams within words, weights from the pretraining corpus without the film reviews."""
    sentences = collect(DATA, reviews=0).sentences
    pairs = load_sts(TASK, data_dir=str(DATA))
    scores = {}
    for shortest, longest in ((1, 2), (1, 3), (2, 3), (2, 4)):
        vectorizer = TfidfVectorizer(
            analyzer="char_wb", ngram_range=(shortest, longest), sublinear_tf=True, min_df=2, dtype=np.float32
        ).fit(sentences)
        left, right = vectorizer.transform(pairs.sentences1), vectorizer.transform(pairs.sentences2)
        cosines = np.asarray(left.multiply(right).sum(axis=1)).ravel()
        scores[f"{shortest}-{longest}"] = float(spearmanr(cosines, pairs.scores).statistic)
    return {"sentences": len(sentences), "cosine_spearman": scores}


if __name__ == "__main__":
    main()
