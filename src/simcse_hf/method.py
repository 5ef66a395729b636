"""What a run did, in words, for its card and for whoever compares its scores."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .configuration_simcse import SimCSEConfig

_OF_SHAPE = {
    "sentences": ("unsupervised SimCSE", "비지도 SimCSE"),
    "labelled": ("classification of NLI pairs (Sentence-BERT)", "NLI 분류(Sentence-BERT)"),
    "scored": ("regression on scored pairs ({scored_loss})", "점수 회귀({scored_loss})"),
}
_SUPERVISED = ("supervised SimCSE", "지도 SimCSE")


@dataclass(frozen=True)
class Method:
    """How the vectors came about.

    Attributes:
        english: For "trained with ...".
        korean: For "... 방식으로 학습했습니다".
        warnings: What a reader of the scores has to know, whole sentences.
    """

    english: str
    korean: str
    warnings: list[str]


def describe_method(run: dict, config: SimCSEConfig) -> Method:
    """Name the method of a run.

    Args:
        run: The content of `simcse_run.json`.
        config: Of the released model.
    """
    english, korean = _names(run, config.scored_loss)
    if first := run.get("first_stage"):
        before = _names(first, (first.get("model_config") or {}).get("scored_loss", config.scored_loss))
        english, korean = f"{before[0]}, then {english}", f"{before[1]} 다음 {korean}"
    return Method(english, korean, warnings_about(run))


def _names(run: dict, scored_loss: str) -> tuple[str, str]:
    """English and Korean, of one stage."""
    model = run["arguments"]["model"]
    names = _OF_SHAPE.get(run["data"]["shape"], _SUPERVISED)
    english, korean = (name.format(scored_loss=scored_loss) for name in names)
    if model.get("generator_name"):
        english, korean = f"DiffCSE ({english} and replaced-token detection)", f"DiffCSE({korean} + 바뀐 토큰 찾기)"
    if model.get("do_mlm"):
        english, korean = f"{english} with a masked-LM loss", f"{korean} + MLM"
    if (kind := model.get("distillation")) and model.get("contrastive_weight") == 0:
        english, korean = f"distillation of a teacher's {kind}", "지식 증류"
    elif kind:
        english, korean = f"{english} with distillation of a teacher's {kind}", f"{korean} + 지식 증류"
    if run.get("scored_data"):
        english = f"multitask learning: {english}, and regression on scored pairs ({scored_loss})"
        korean = f"멀티태스크({korean} + 점수 회귀 {scored_loss})"
    return english, korean


def data_of(run: dict) -> list[dict]:
    """Every set a run trained on, those of its first stage included, as `simcse_run.json` records them."""
    first = run.get("first_stage") or {}
    sets = (run["data"], run.get("scored_data"), first.get("data"), first.get("scored_data"))
    return [data for data in sets if data]


def warnings_of_folder(folder: str) -> list[str]:
    """`warnings_about` the run that wrote a release; none for any other folder or a Hub id."""
    path = Path(folder) / "simcse_run.json"
    try:
        return warnings_about(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not a release of ours, or of an older version
        return []


def warnings_about(run: dict) -> list[str]:
    """What a reader of a run's scores has to know: human scores it was trained on, sentences it had seen.

    What there was to say of the release it started from is said of it too.

    Args:
        run: The content of `simcse_run.json`.
    """
    found = list(run.get("started_from") or [])
    for data in data_of(run):
        names = {source.get("official") or "" for source in data["sources"]}
        if data["shape"] == "scored":
            trained = "the human scores of KorSTS-train" if "KorSTS train" in names else "human scores of similarity"
            found.append(
                f"Trained on {trained}: a score on an STS set of the same kind is not comparable with that of a model that "
                "has seen no such scores."
            )
        for name, leak in (data.get("leakage") or {}).items():
            if leak["loose"]:
                found.append(
                    f"{leak['loose']:,} of the {leak['sentences']:,} sentences of {name} are in the training data "
                    f"({leak['exact']:,} exactly)."
                )
    return list(dict.fromkeys(found))
