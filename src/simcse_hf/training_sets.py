"""The sets a run trains on: read, compared with the evaluation sets, tokenised.

Usually there is one; multitask training has a second, of scored pairs.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from .arguments import DataArguments, ModelArguments
from .cache_folder import cache_root
from .configuration_simcse import SimCSEConfig
from .corpora import ScoredPairs, TrainingViews
from .errors import ConfigError, DataError
from .leakage import HeldOutSentences, Leakage, leakage_report
from .sample import resolve_sample
from .sentence_store import ViewsDataset
from .shuffled_rows import WeightedRows
from .streamed_sets import StreamedSet, StreamedViews, open_stream, streamed_set
from .tables import expand_paths
from .teacher import teacher_vectors
from .training_corpus import Reading, tokenized_views, views_of_files, views_of_hub_dataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Rows to train on, as text and as tokens.

    Attributes:
        statistics: Of the tokens; see `sentence_store.TokenCounts`.
        leakage: What of the evaluation sets is in the rows.
    """

    views: TrainingViews
    dataset: ViewsDataset
    statistics: dict[str, float]
    leakage: Leakage

    def record(self) -> dict:
        """What `simcse_run.json` keeps of it."""
        return {
            "shape": self.views.shape,
            "sources": self.views.sources,
            "report": self.views.report.as_dict(),
            "report_text": str(self.views.report),
            "statistics": self.statistics,
            "leakage": self.leakage.as_dict(),
        }


def load_training_views(
    data_args: DataArguments, *, evaluation: Sequence[ScoredPairs] = (), show_progress: bool = False
) -> TrainingViews:
    """Read `train_file` or `train_dataset`, or find what was read of the same before; with `streaming` its first rows.

    Args:
        data_args: What to read, and how.
        evaluation: Sets whose sentences are kept out with `on_leakage: drop`.
        show_progress: Draw a progress bar while reading.

    Raises:
        ConfigError: Neither or both are given, weights that do not fit, or the cache cannot be written.
        DataError: See `corpora.training_views`.
    """
    if bool(data_args.train_file) == bool(data_args.train_dataset):
        raise ConfigError("give exactly one of train_file (local files) and train_dataset (a Hub id).")
    root = cache_root(data_args.data_cache_dir)
    reading = _reading(data_args, data_args.train_as, evaluation)
    if data_args.train_dataset:
        views = views_of_hub_dataset(data_args.train_dataset, reading, root, show_progress=show_progress)
    else:
        names = [resolve_sample(path) for path in data_args.train_file]
        if data_args.streaming:
            options = {"on_leakage": data_args.on_leakage, "shuffle_buffer": data_args.shuffle_buffer}
            views = open_stream(names, reading, evaluation, **options, show_progress=show_progress)
        else:
            views = views_of_files(expand_paths(names), reading, root, show_progress=show_progress)
    if data_args.source_weights is not None:
        _check_weights(data_args.source_weights, views)
    _question_scale(views, data_args.score_scale)
    return views


def load_scored_views(
    data_args: DataArguments, *, evaluation: Sequence[ScoredPairs] = (), show_progress: bool = False
) -> TrainingViews | None:
    """Read `scored_file`, the second set of multitask training; None without one."""
    if not data_args.scored_file:
        return None
    paths = expand_paths([resolve_sample(path) for path in data_args.scored_file])
    reading = dataclasses.replace(
        _reading(data_args, "scores", evaluation), column_names=None
    )  # those are train_file's
    views = views_of_files(paths, reading, cache_root(data_args.data_cache_dir), show_progress=show_progress)
    _question_scale(views, data_args.score_scale)
    return views


def tokenize_set(
    views: TrainingViews,
    tokenizer: PreTrainedTokenizerBase,
    config: SimCSEConfig,
    data_args: DataArguments,
    model_args: ModelArguments,
    evaluation: Sequence[ScoredPairs],
    *,
    show_progress: bool = False,
) -> TrainingSet | StreamedSet:
    """Tokenise the rows, look for leakage, and fetch a teacher's vectors where one is asked for.

    Raises:
        ConfigError: The cache cannot be written, or a teacher that cannot be used.
        DataError: Evaluation sentences among the rows with `on_leakage: error`, or sentences without a vector.
    """
    if isinstance(views, StreamedViews):
        return streamed_set(views, tokenizer, config)
    root = cache_root(data_args.data_cache_dir)
    leakage = leakage_report(views.rows.sentences, evaluation)
    for line in str(leakage).splitlines():
        logger.info("leakage: %s", line)
    if leakage and data_args.on_leakage == "error":
        raise DataError(
            f"evaluation sentences are in the training data, and on_leakage is error. {leakage} Set on_leakage to drop to leave "
            "those rows out, or to report to train on them."
        )
    teacher = None
    if model_args.distillation and views.values is None:
        teacher = teacher_vectors(views, model_args, root, show_progress=show_progress)
    dataset, statistics = tokenized_views(
        views,
        tokenizer,
        root,
        max_length=config.max_seq_length,
        prompt=config.prompt,
        teacher=teacher,
        show_progress=show_progress,
    )
    logger.info("tokenised: %s", ", ".join(f"{name} {value:,}" for name, value in statistics.items()))
    return TrainingSet(views=views, dataset=dataset, statistics=statistics, leakage=leakage)


def _reading(data_args: DataArguments, train_as: str, evaluation: Sequence[ScoredPairs]) -> Reading:
    return Reading(
        column_names=data_args.column_names,
        triplet_rule=data_args.triplet_rule,
        train_as=train_as,
        score_scale=tuple(data_args.score_scale),
        held_out=HeldOutSentences(evaluation) if data_args.on_leakage == "drop" else None,
        deduplicate=data_args.deduplicate,
        max_rows=data_args.max_train_samples,
        on_bad_row=data_args.on_bad_row,
    )


def _question_scale(views: TrainingViews, scale: list[float]) -> None:
    if views.shape != "scored" or scale[1] <= 1:
        return
    highest = scale[0] + (scale[1] - scale[0]) * max(views.values)
    if highest <= 1:
        logger.warning(
            "no score of %s is above %g, and they are read on a scale from %g to %g. Set score_scale to 0 1 if that is theirs.",
            ", ".join(str(source.get("path") or source.get("hub")) for source in views.sources),
            highest,
            *scale,
        )


def _check_weights(weights: list[float], views: TrainingViews) -> None:
    if views.source_rows is None:
        raise ConfigError(
            "source_weights weighs files, and NLI rows are matched into triplets across them. Leave it out, or prepare the "
            "triplets of each file first (simcse-hf prepare)."
        )
    WeightedRows(views.source_rows, weights, seed=0)  # raises what is wrong with them
    for source, rows, weight in zip(views.sources, views.source_rows, weights, strict=True):
        if weight and not rows:
            name = source.get("path") or source.get("hub")
            raise ConfigError(
                f"no row is left of {name}, which has the source_weight {weight:g}: all were dropped (see on_leakage, "
                "deduplicate), or cut off by max_train_samples. Set its weight to 0, or mend that."
            )
