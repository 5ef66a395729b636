"""Several models on several STS sets, each by the same protocol."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch

from .backbones import one_line
from .encoder import SentenceEncoder
from .errors import ForeignModulesError, ModelError, shortened
from .evaluation import evaluate_sts
from .hub_files import read_json
from .sample import resolve_sample
from .score_report import Score
from .sts_tasks import load_sts

logger = logging.getLogger(__name__)


def open_encoder(
    name_or_path: str, *, batch_tokens: int = 16_384, show_progress: bool = False, **options
) -> tuple[Callable[[list[str]], np.ndarray], dict]:
    """A function from sentences to vectors, and what to say about it.

    Folders of sentence-transformers whose modules `SimCSEModel` cannot express are run by
    sentence-transformers itself, where it is installed.

    Args:
        name_or_path: Anything `SentenceEncoder.from_pretrained` or SentenceTransformer loads.
        batch_tokens: Tokens in one batch.
        show_progress: Draw a progress bar.
        options: Passed to `SentenceEncoder.from_pretrained`.
    """
    try:
        encoder = SentenceEncoder.from_pretrained(resolve_sample(name_or_path), **options)
    except ForeignModulesError as error:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise ModelError(f"{error} It is not installed: pip install 'simcse-hf[st]'") from None
        trusts = options.get("trust_remote_code", False)
        if not trusts:
            _check_modules(name_or_path)
        logger.warning("%s Doing that.", error)
        try:
            peer = SentenceTransformer(
                name_or_path,
                device=options.get("device"),
                trust_remote_code=trusts,
                model_kwargs={"dtype": torch.float32, "use_safetensors": True},
            )
        except UnpicklingError:  # torch refuses a pickle that would run code, and some that would not
            raise ModelError(
                f"'{name_or_path}' has pickled weights that torch does not load, because a pickle can run code. Use safetensors."
            ) from None
        except (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, ImportError) as failure:
            if isinstance(failure, OSError) and _has_only_pickled_weights(name_or_path):
                raise ModelError(
                    f"'{name_or_path}' has weights in pytorch_model.bin only, a pickle, which is not loaded because it can run "
                    "code. If you trust it, convert it once: SentenceTransformer(folder).save_pretrained(other_folder) writes "
                    "safetensors."
                ) from None
            raise ModelError(f"sentence-transformers cannot load '{name_or_path}': {one_line(failure)}") from failure
        if options.get("max_seq_length") is not None:
            peer.max_seq_length = options["max_seq_length"]
        prompt = options.get("prompt")
        batch_size = max(1, batch_tokens // (peer.max_seq_length or 512))
        return (
            lambda sentences: peer.encode(sentences, batch_size=batch_size, prompt=prompt),
            {
                "loader": "sentence-transformers",
                "modules": [type(module).__name__ for module in peer],
                "prompt": prompt,
                "max_seq_length": peer.max_seq_length,
                "dtype": "float32",
            },
        )
    return (
        lambda sentences: encoder.encode(sentences, batch_tokens=batch_tokens, show_progress=show_progress),
        encoder.describe(),
    )


def _check_modules(name_or_path: str) -> None:
    """Refuse modules whose code lies in the folder: some versions of sentence-transformers run it without being told to."""
    for module in read_json(name_or_path, "modules.json"):
        if not module["type"].startswith("sentence_transformers."):
            raise ModelError(
                f"{name_or_path} has the module {shortened(module['type'])}, which is code of its own, or of another package. "
                "Read it, and if you trust it, add --trust_remote_code."
            )


def _has_only_pickled_weights(name_or_path: str) -> bool:
    """Whether the backbone of a local folder has weights as a pickle, and none as safetensors."""
    backbone = Path(name_or_path, read_json(name_or_path, "modules.json")[0]["path"])

    def has(name: str) -> bool:
        return any((backbone / f"{name}{ending}").is_file() for ending in ("", ".index.json"))

    return has("pytorch_model.bin") and not has("model.safetensors")


def run_benchmark(
    models: Sequence[str],
    tasks: Sequence[str],
    *,
    data_dir: str | None = None,
    from_hub: bool = False,
    text_mode: str = "nfc",
    batch_tokens: int = 16_384,
    show_progress: bool = False,
    **encoder_options,
) -> list[Score]:
    """Score every model on every task.

    All data is read before the first model is loaded, so a missing file costs no time.

    Args:
        models: See `open_encoder`.
        tasks: See `sts_tasks.load_sts`.
        data_dir, from_hub, text_mode: See `sts_tasks.load_sts`.
        batch_tokens: Tokens in one batch; does not change the scores.
        show_progress: Draw progress bars.
        encoder_options: `pooler_type`, `prompt`, `max_seq_length`, `device`, `trust_remote_code`.
    """
    sets = [load_sts(task, data_dir=data_dir, from_hub=from_hub, text_mode=text_mode) for task in tasks]
    scores = []
    for model in models:
        encode, description = open_encoder(
            model, batch_tokens=batch_tokens, show_progress=show_progress, **encoder_options
        )
        scores += [
            Score(model=model, result=evaluate_sts(encode, pairs, encoder=description, text_mode=text_mode))
            for pairs in sets
        ]
    return scores
