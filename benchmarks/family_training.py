"""Every method of the family on the same small encoder, next to plain SimCSE at equal steps. KorSTS-dev, several seeds.

    SIMCSE_DATA_DIR=../shared/data SIMCSE_MODELS_DIR=../shared/models \
        python benchmarks/family_training.py --generator runs/generator [--experiments NAME ...] [--seeds 1 2 3]

The generator, for DiffCSE, is made by scripts/pretraining/generator.py. Every run is one JSON in benchmarks/results; a
run that is there already is not repeated. `python benchmarks/reproduction.py` writes docs/reproduction.md from them.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from paths import DATA, MODELS, NLI_FILES
from sts_training import LAST, run_once

KORSTS_TRAIN = ["KorNLUDatasets/KorSTS/sts-train.tsv"]
MINI = {
    "model_name_or_path": "ko-e5-mini",
    "pooler_type": "avg",
    "max_seq_length": 64,
    "temperature": 0.05,
    "per_device_train_batch_size": 64,
    **LAST,
}
UNSUPERVISED = MINI | {"train_file": KORSTS_TRAIN, "train_as": "sentences", "learning_rate": 3e-5}
SUPERVISED = MINI | {"train_file": NLI_FILES, "learning_rate": 5e-5, "warmup_steps": 0.1}
MULTITASK = SUPERVISED | {"scored_file": KORSTS_TRAIN}
SCORES = SUPERVISED | {"train_file": KORSTS_TRAIN, "train_as": "scores"}
GENERATOR = "GENERATOR"  # what --generator names


@dataclass(frozen=True)
class Experiment:
    """A method and its settings.

    Attributes:
        group: What it is compared within.
        shows: In a table.
        settings: Of the run.
        baseline: Plain SimCSE with as many steps; None for that itself.
    """

    group: str
    shows: str
    settings: dict
    baseline: str | None = None


UNSUP, SUP = "unsupervised, sentences of KorSTS-train", "supervised, 3,499 triplets"
MULTI, SBERT = "triplets and scores of KorSTS-train", "Sentence-BERT's two stages"

EXPERIMENTS = {
    "family-unsup": Experiment(UNSUP, "SimCSE", UNSUPERVISED),
    "family-unsup-mlm": Experiment(
        UNSUP, "with masked LM, weight 0.1", UNSUPERVISED | {"do_mlm": True}, "family-unsup"
    ),
    "family-diffcse": Experiment(
        UNSUP, "DiffCSE, lambda 0.005, masks 30 %", UNSUPERVISED | {"generator_name": GENERATOR}, "family-unsup"
    ),
    "family-sup": Experiment(SUP, "SimCSE", SUPERVISED),
    "family-sup-symmetric": Experiment(SUP, "symmetric InfoNCE", SUPERVISED | {"symmetric": True}, "family-sup"),
    "family-sup-margin": Experiment(
        SUP, "false negatives masked, margin 0.1", SUPERVISED | {"false_negative_margin": 0.1}, "family-sup"
    ),
    "family-sup-matryoshka": Experiment(
        SUP, "Matryoshka 64, 128, 384", SUPERVISED | {"matryoshka_dims": [64, 128]}, "family-sup"
    ),
    "family-sup-distil": Experiment(
        SUP,
        "with ko-e5-small's similarities, weight 1",
        SUPERVISED
        | {
            "distillation": "similarities",
            "teacher_name_or_path": "ko-e5-small",
            "teacher_pooler_type": "avg",
            "teacher_prompt": "query: ",
        },
        "family-sup",
    ),
    "family-sup-108": Experiment(MULTI, "SimCSE on the triplets alone", SUPERVISED | {"max_steps": 108}),
    "family-scores-108": Experiment(
        MULTI, "scores alone, cosine regression", SCORES | {"max_steps": 108}, "family-sup-108"
    ),
    "family-multitask-mse": Experiment(
        MULTI, "multitask, cosine regression", MULTITASK | {"scored_loss": "cosine_mse"}, "family-sup-108"
    ),
    "family-multitask-cosent": Experiment(
        MULTI, "multitask, CoSENT", MULTITASK | {"scored_loss": "cosent"}, "family-sup-108"
    ),
    "family-multitask-angle": Experiment(
        MULTI, "multitask, AnglE", MULTITASK | {"scored_loss": "angle"}, "family-sup-108"
    ),
    "family-sup-253": Experiment(SBERT, "SimCSE on the triplets alone", SUPERVISED | {"max_steps": 253}),
    "family-sbert": Experiment(
        SBERT,
        "NLI softmax (164 steps), then cosine regression on KorSTS-train (89)",
        SCORES | {"learning_rate": 2e-5, "first_stage": "benchmarks/stages/nli_softmax.json"},
        "family-sup-253",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", help="masked language model with the encoder's vocabulary, for DiffCSE")
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    arguments = parser.parse_args()
    os.environ["SIMCSE_DATA_DIR"] = str(DATA)  # the file of the first stage names its data by it
    for seed in arguments.seeds:
        for name in arguments.experiments:
            experiment = EXPERIMENTS[name]
            notes = {"shows": experiment.shows, "group": experiment.group, "baseline": experiment.baseline}
            run_once(name, seed, experiment.settings, notes, places(experiment.settings, arguments.generator))


def places(settings: dict, generator: str | None) -> dict:
    """The settings with real paths in the place of names."""
    found = dict(settings)
    for key in ("train_file", "scored_file"):
        if key in found:
            found[key] = [str(DATA / file) for file in found[key]]
    for key in ("model_name_or_path", "teacher_name_or_path"):
        if key in found:
            found[key] = str(MODELS / found[key])
    if "generator_name" in found:
        if generator is None:
            raise SystemExit("this experiment needs --generator; scripts/pretraining/generator.py makes one.")
        found["generator_name"] = generator
    if "first_stage" in found:
        found["first_stage"] = str(Path(__file__).parent.parent / found["first_stage"])
    return found


if __name__ == "__main__":
    main()
