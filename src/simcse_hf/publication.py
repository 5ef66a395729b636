"""The release of a finished run: model, card, scores and record, in place all at once."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub.constants import EVAL_RESULTS_FOLDER
from transformers import PreTrainedTokenizerBase

from .backbones import without_pooler
from .checkpoints import RECORD
from .corpora import ScoredPairs, TrainingViews
from .evaluation import STSResult
from .files import staged_folder, write_json
from .model_card import eval_result_files, model_card
from .modeling_simcse import SimCSEModel
from .release import check_release, write_release
from .score_report import Score, write_scores

logger = logging.getLogger(__name__)


def publish(
    model: SimCSEModel,
    tokenizer: PreTrainedTokenizerBase,
    record: dict,
    results: list[STSResult],
    output_dir: Path,
    probe: list[str],
) -> None:
    """Write the release beside its place, check it with every loader, and only then move it there."""
    with staged_folder(output_dir, last=RECORD) as staging:
        write_release(model, tokenizer, staging)
        record["release_check"] = check_release(staging, model, probe)
        has_pooler = bool(without_pooler(model.config.text_config))
        card = model_card(record, model.config, results, has_pooler=has_pooler)
        (staging / "README.md").write_text(str(card), encoding="utf-8")
        for task, entries in eval_result_files(results).items():
            write_json(staging / EVAL_RESULTS_FOLDER / f"{task}.yaml", entries)  # JSON is YAML
        if results:
            write_scores([Score(model=output_dir.name, result=result) for result in results], staging / "eval")
        write_json(staging / RECORD, record)
    checked = ", ".join(
        f"{loader} {'not installed' if difference is None else f'{difference:.0e}'}"
        for loader, difference in record["release_check"].items()
    )
    logger.info("release written to %s; largest difference from the trained model: %s", output_dir, checked)


def probe_sentences(views: TrainingViews, pairs: ScoredPairs | None) -> list[str]:
    """Sentences that a release is checked with: of the training rows and of the evaluation set."""
    sentences = [sentence for row in views.rows[:16] for sentence in row]
    if pairs is not None:
        sentences += pairs.sentences1[:16]
    # One word, and one far beyond any max_seq_length: padding and truncation must agree too.
    return [*dict.fromkeys(sentences), "네", "아주 긴 문장 " * 200]
