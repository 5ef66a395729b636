"""Korean sentences to pretrain on, none of them from an evaluation set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simcse_hf.arguments import DataArguments
from simcse_hf.sts_tasks import STS_TASKS, load_sts
from simcse_hf.train import load_training_views


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file of the data folder, or several that belong together.

    Attributes:
        name: In cards and reports.
        files: Below the data folder.
        licence: Of the text.
    """

    name: str
    files: tuple[str, ...]
    licence: str


REVIEWS = "nsmc_reviews"


def _unlabelled(licence: str, *stems: str) -> list[Source]:
    return [Source(name=stem, files=(f"unlabeled/{stem}.txt.xz",), licence=licence) for stem in stems]


# Left out: parakqc, because KLUE-STS was drawn from it, and news_comments, because it was collected for its insults.
SOURCES = [
    Source(name="KorSTS-train", files=("KorNLUDatasets/KorSTS/sts-train.tsv",), licence="CC BY-SA 4.0"),
    Source(
        name="XNLI dev and test",
        files=("KorNLUDatasets/KorNLI/xnli.dev.ko.tsv", "KorNLUDatasets/KorNLI/xnli.test.ko.tsv"),
        licence="CC BY-SA 4.0",
    ),
    Source(name="KLUE-NLI dev", files=("klue/klue-nli-v1.1_dev.json",), licence="CC BY-SA 4.0"),
    *_unlabelled("CC BY-SA 4.0", "klue_ner_dev", "klue_dp_dev", "ud_kaist", "ud_gsd", "ud_ksl"),
    *_unlabelled("CC BY-SA 3.0", "ud_pud", "park_parallel_news"),
    *_unlabelled("MIT", "songys_chatbot", "songys_question_pair"),
    *_unlabelled("CC BY-SA 4.0", "intention_3i4k", "sae4k", "news_titles"),
    *_unlabelled("PSF-2.0", "techdocs_python"),
    *_unlabelled("Apache-2.0", "techdocs_tensorflow", "techdocs_huggingface"),
    *_unlabelled("BSD-3-Clause", "techdocs_pytorch"),
    *_unlabelled("CC BY-SA 4.0", "techdocs_d2l"),
    *_unlabelled("CC BY 4.0", "techdocs_vue", "techdocs_react", "techdocs_tldr"),
    *_unlabelled("MIT", "techdocs_astro", "techdocs_nodejs", "techdocs_fastapi", "techdocs_iot"),
    *_unlabelled("MIT OR Apache-2.0", "techdocs_rust"),
    *_unlabelled("CC0 1.0", REVIEWS),
]

_SPACE = re.compile(r"\s+")
_CLOSING = " .?!…。\"'”’"


def everyday_sources() -> list[Source]:
    """All but the film reviews and the technical documentation."""
    return [source for source in SOURCES if source.name != REVIEWS and not source.name.startswith("techdocs")]


@dataclass(frozen=True)
class Corpus:
    """What the encoder reads.

    Attributes:
        sentences: Distinct, normalised.
        sources: For each source its name, licence, files, the sentences taken, and those left out because an
            evaluation set holds them.
        kept_out: The evaluation sets that were compared with, and their sentences.
    """

    sentences: list[str]
    sources: list[dict]
    kept_out: dict[str, int]


def same_wording(sentence: str) -> str:
    """What two sentences share that differ only in spacing and final punctuation.

    >>> same_wording("비가 온다.") == same_wording("비가온다 !")
    True
    """
    return _SPACE.sub("", sentence).rstrip(_CLOSING)


def collect(data_dir: Path, sources: Sequence[Source] | None = None, *, reviews: int | None = None) -> Corpus:
    """Read every source; a sentence counts for the first source that holds it.

    Sentences of all STS sets that are found are kept out: those of the data folder and the sample's. The files in
    `unlabeled` were compared with the KorSTS and KLUE-STS test sets when they were made.

    Args:
        data_dir: The data folder.
        sources: All of `SOURCES` when None.
        reviews: How many film reviews to read, evenly spread over the file; None for all.

    Raises:
        DataError: A source is missing or cannot be read.
    """
    kept_out = {task: _wordings(task, data_dir) for task in [*_found(data_dir), "sample:sts"]}
    unseen = set().union(*kept_out.values())
    seen: set[str] = set()
    kept: list[str] = []
    described = []
    for source in SOURCES if sources is None else sources:
        views = load_training_views(
            DataArguments(train_file=[str(data_dir / file) for file in source.files], train_as="sentences")
        )
        rows = range(len(views.rows))
        if source.name == REVIEWS and reviews is not None:
            rows = np.linspace(0, len(rows) - 1, min(reviews, len(rows))).astype(int)
        before, left_out = len(kept), 0
        for row in rows:
            (sentence,) = views.rows[row]
            wording = same_wording(sentence)
            left_out += wording in unseen
            if wording not in unseen and wording not in seen:
                seen.add(wording)
                kept.append(sentence)
        described.append(
            {
                "name": source.name,
                "licence": source.licence,
                "files": {Path(entry["path"]).name: entry["sha256"] for entry in views.sources},
                "sentences": len(kept) - before,
                "left_out_for_evaluation": left_out,
            }
        )
    return Corpus(kept, described, {task: len(wordings) for task, wordings in kept_out.items()})


def _found(data_dir: Path) -> list[str]:
    return [
        name
        for name, task in STS_TASKS.items()
        if any((data_dir / folder / task.filename).is_file() for folder in task.folders)
    ]


def _wordings(task: str, data_dir: Path) -> set[str]:
    pairs = load_sts(task, data_dir=str(data_dir))
    return {same_wording(sentence) for sentence in [*pairs.sentences1, *pairs.sentences2]}
