"""The release: a plain encoder that anyone can load, and the proof that all loaders agree.

Axes: N sentences, T tokens, D vector size.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from .backbones import auto_class
from .encoder import SentenceEncoder
from .errors import ModelError
from .modeling_simcse import SimCSEModel
from .quiet import quiet_transformers
from .sentence_transformers_layout import write_layout
from .text import normalize_text
from .versions import package_versions

logger = logging.getLogger(__name__)

TOLERANCE = 1e-5  # largest absolute difference of any vector component, float32

_TOKENISED = [
    "네.",
    "오늘은 3시, 2층에서  만나요! (서울)",
    "BERT와 SentencePiece: ㅋㅋ 꿿 Ａ１ café 漢字 😀",
    "[CLS] </s> ▁",
]


def write_release(model: SimCSEModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the backbone, its tokenizer and the sentence-transformers layout.

    The head, where it belongs to the shipped vector, is stored twice: as the backbone's own
    `pooler` where it has one, so that `pooler_output` of AutoModel is the embedding, and as a
    Dense module for sentence-transformers. Where the shipped vector has no head, that pooler is
    the identity, so that nothing in the folder is random.

    Args:
        model: Trained; written in float32.
        tokenizer: Written with `max_seq_length` as its maximum.
        folder: Exists.

    Raises:
        ModelError: The folder would lack weights, or its tokenizer would cut text in another way.
    """
    config = model.config
    text_config = copy.deepcopy(config.text_config)
    text_config.output_hidden_states = config.needs_all_hidden_states
    plain = type(model.backbone)(text_config).float()
    state = {name: tensor.detach().float().cpu() for name, tensor in model.backbone.state_dict().items()}
    outcome = plain.load_state_dict(state, strict=False)
    head = dict(model.head.dense.state_dict()) if config.head_at_inference else None
    if has_pooler := any(name.startswith("pooler.") for name in outcome.missing_keys):
        size = text_config.hidden_size
        plain.pooler.dense.load_state_dict(head or {"weight": torch.eye(size), "bias": torch.zeros(size)})
    if unexpected := [name for name in outcome.missing_keys if not (has_pooler and name.startswith("pooler."))]:
        raise ModelError(f"the release would lack trained weights ({unexpected[0]}); nothing was written.")
    with quiet_transformers():
        plain.save_pretrained(folder)
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.model_max_length = config.max_seq_length
        tokenizer.save_pretrained(folder)
        _check_saved_tokenizer(tokenizer, folder)
    versions = package_versions()
    write_layout(
        folder,
        config,
        head,
        {
            "transformers": versions["transformers"],
            "pytorch": versions["torch"],
            "simcse-hf": versions["simcse-hf"],
        },
    )


def _check_saved_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Some classes build their tokenizer anew, by rules of their own, when they are loaded."""
    saved = AutoTokenizer.from_pretrained(folder)
    for text in _TOKENISED:
        expected, found = tokenizer(text)["input_ids"], saved(text)["input_ids"]
        if found != expected:
            raise ModelError(
                f"the tokenizer does not survive saving: {text!r} was {expected} and is {found} when it is loaded as "
                f"{type(saved).__name__}. Use the tokenizer class that its tokenizer_config.json names, or a tokenizer.json."
            )


@torch.inference_mode()
def check_release(folder: Path, model: SimCSEModel, sentences: Sequence[str]) -> dict[str, float | None]:
    """Load the folder in four ways and compare each with the model in memory.

    Args:
        folder: What `write_release` wrote.
        model: What it was written from.
        sentences: A few, of different lengths.

    Returns:
        Largest absolute difference for each loader; None for sentence-transformers where it is
        not installed.

    Raises:
        ModelError: A loader differs by more than `TOLERANCE`, or the vectors are not finite.
    """
    name = str(folder)
    sentences = [normalize_text(sentence) for sentence in sentences]
    tokenizer = AutoTokenizer.from_pretrained(name)
    device, training = model.device, model.training
    with quiet_transformers():
        # On the CPU like the loaders: another device sums in another order, which is no defect of the release.
        expected = SentenceEncoder(model, tokenizer, device="cpu").encode(sentences, normalize=False)
        model.to(device).train(training)
        if not np.isfinite(expected).all():
            raise ModelError(
                "the trained model gives vectors that are not finite: training diverged. Lower the learning_rate."
            )
        found: dict[str, np.ndarray | None] = {
            auto_class(model.config.text_config).__name__: encode_with_auto_model(folder, sentences),
            "SimCSEModel": _encode_with_simcse_model(name, tokenizer, sentences),
            "SentenceEncoder": SentenceEncoder.from_pretrained(name, device="cpu").encode(sentences),
            "SentenceTransformer": _encode_with_sentence_transformers(name, sentences),
        }
    differences = {
        loader: None if vectors is None else float(np.abs(vectors - expected).max())
        for loader, vectors in found.items()
    }
    for loader, difference in differences.items():
        if difference is not None and not difference <= TOLERANCE:
            raise ModelError(
                f"the release does not give the vectors of the trained model through {loader}: they differ by "
                f"{difference:.1e}, more than {TOLERANCE:.0e}. It was not published; the checkpoints are untouched."
            )
    return differences


@torch.inference_mode()
def encode_with_auto_model(folder: Path, sentences: Sequence[str]) -> np.ndarray:
    """The recipe of the model card: transformers alone, nothing of this package.

    Returns:
        (N, D) float32.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = auto_class(AutoConfig.from_pretrained(folder)).from_pretrained(folder).eval()
    settings = json.loads((Path(folder) / "config_sentence_transformers.json").read_text(encoding="utf-8"))
    prompt = settings["prompts"].get("default", "")
    pooling = json.loads(next(Path(folder).glob("*_Pooling/config.json")).read_text(encoding="utf-8"))
    inputs = tokenizer(
        [prompt + sentence for sentence in sentences], padding=True, truncation=True, return_tensors="pt"
    )
    inputs.pop("token_type_ids", None)
    output = model(**inputs)
    hidden, mask = output.last_hidden_state, inputs["attention_mask"].unsqueeze(-1)
    if mixture := list(Path(folder).glob("*_WeightedLayerPooling/model.safetensors")):
        weights = load_file(mixture[0])["layer_weights"]
        layers = (*output.hidden_states[:-1], hidden)[-len(weights) :]
        hidden = sum(weight * layer for weight, layer in zip(weights, layers, strict=True)) / weights.sum()
    if pooling["pooling_mode_cls_token"]:
        vectors = hidden[:, 0]
        if dense := list(Path(folder).glob("*_Dense/model.safetensors")):
            linear = load_file(dense[0])
            vectors = torch.tanh(vectors @ linear["linear.weight"].T + linear["linear.bias"])
            if getattr(output, "pooler_output", None) is not None:
                vectors = output.pooler_output
    elif pooling["pooling_mode_max_tokens"]:
        vectors = hidden.masked_fill(mask == 0, -torch.inf).amax(dim=1)
    else:
        vectors = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    return vectors.numpy()


def _encode_with_simcse_model(name: str, tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> np.ndarray:
    model = SimCSEModel.from_pretrained(name).eval()
    inputs = tokenizer(
        [model.config.prompt + sentence for sentence in sentences],
        padding=True,
        truncation=True,
        max_length=model.config.max_seq_length,
        return_tensors="pt",
    )
    return model(inputs["input_ids"], inputs["attention_mask"]).pooler_output.numpy()


def _encode_with_sentence_transformers(name: str, sentences: Sequence[str]) -> np.ndarray | None:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        logger.warning("sentence-transformers is not installed, so the release was not checked with it.")
        return None
    return SentenceTransformer(name, device="cpu").encode(list(sentences), show_progress_bar=False)
