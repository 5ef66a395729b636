"""Short pretrainings that differ in one thing, each scored on KorSTS-dev: how `recipe.json` was found.

    OMP_NUM_THREADS=1 SIMCSE_DATA_DIR=../shared/data python scripts/pretraining/search.py --output runs/search [NAME ...]

Every variation is one JSON in `results/`; one that is there already is not repeated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pretrain import HERE, Recipe, pretrain
from score import RESULTS, TRAINING, after_training, evaluation_sentences, raw_scores
from tokenizer import fertility
from transformers import AutoTokenizer

from simcse_hf.files import write_json

_SHORT = {"steps": 250}

# What differs from recipe.json.
VARIATIONS: dict[str, dict] = {
    "bpe": _SHORT,
    "unigram": _SHORT | {"tokenizer": "unigram"},
    "wordpiece": _SHORT | {"tokenizer": "wordpiece"},
    "byte_bpe": _SHORT | {"tokenizer": "byte_bpe"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs")
    parser.add_argument("variations", nargs="*", metavar="NAME", help=f"of {', '.join(VARIATIONS)}; default: all")
    arguments = parser.parse_args()
    for name in arguments.variations or VARIATIONS:
        try_variation(name, arguments.output / name)


def try_variation(name: str, folder: Path) -> None:
    """Pretrain, score raw and after SimCSE with one seed, write `results/search-NAME.json`."""
    path = RESULTS / f"search-{name}.json"
    if path.exists():
        return
    shipped = json.loads((HERE / "recipe.json").read_text(encoding="utf-8"))
    pretrain(Recipe(**shipped | VARIATIONS[name]), folder, save_steps=200)
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    corpus = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    encoder = folder / "encoder"
    record = {
        "differs": VARIATIONS[name],
        "parameters": training["parameters"],
        "seconds": training["seconds"],
        "threads": training["threads"],
        "loss": training["loss_curve"][-1]["loss"],
        "tokenizer": {
            "corpus": {key: corpus[key] for key in ("pieces_per_word", "unknown_share", "byte_share")},
            "korsts-dev": fertility(AutoTokenizer.from_pretrained(encoder), evaluation_sentences()),
        },
        "raw": raw_scores(encoder),
        **{kind: after_training(encoder, kind, seed=1) for kind in TRAINING},
    }
    write_json(path, record)


if __name__ == "__main__":
    main()
