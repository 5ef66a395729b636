"""Where the benchmarks find their data and leave their results."""

from __future__ import annotations

import os
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
REPORT = Path(__file__).parent.parent / "docs" / "benchmarks.md"
DATA = Path(os.environ.get("SIMCSE_DATA_DIR", "../shared/data"))
MODELS = Path(os.environ.get("SIMCSE_MODELS_DIR", "../shared/models"))

NLI_FILES = [
    "KorNLUDatasets/KorNLI/xnli.test.ko.tsv",
    "KorNLUDatasets/KorNLI/xnli.dev.ko.tsv",
    "klue/klue-nli-v1.1_dev.json",
]
KORSTS_FILES = ["KorNLUDatasets/KorSTS/sts-train.tsv", "KorNLUDatasets/KorSTS/sts-dev.tsv"]
REVIEWS_FILE = "unlabeled/nsmc_reviews.txt.xz"
