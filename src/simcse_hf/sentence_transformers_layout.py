"""The folder layout of sentence-transformers, read and written as data.

Written in the verbose schema of sentence-transformers 2 to 5: version 6 reads it unchanged,
while vLLM and llama.cpp misread the compact schema that 5.4 introduced (see ecosystem notes in
docs/differences.md). Both schemas are read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .configuration_simcse import SimCSEConfig
from .errors import ForeignModulesError, ModelError, shortened
from .hub_files import find_file, read_json, read_mapping

# Ours -> the key of 1_Pooling/config.json. avg_top2 and avg_first_last become a mean behind a
# WeightedLayerPooling module.
_POOLING_KEY = {
    "cls": "pooling_mode_cls_token",
    "cls_before_pooler": "pooling_mode_cls_token",
    "avg": "pooling_mode_mean_tokens",
    "avg_top2": "pooling_mode_mean_tokens",
    "avg_first_last": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
}
_ALL_POOLING_KEYS = (
    "pooling_mode_cls_token",
    "pooling_mode_mean_tokens",
    "pooling_mode_max_tokens",
    "pooling_mode_mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens",
    "pooling_mode_lasttoken",
)
_COMPACT_NAMES = {"cls": "cls_before_pooler", "mean": "avg", "max": "max"}


@dataclass(frozen=True, kw_only=True)
class SentenceTransformersLayout:
    """What a sentence-transformers folder says about its vectors, in our words."""

    pooler_type: str
    first_hidden_state: int = 1
    head: dict[str, Tensor] | None = None  # `weight` (D, D) and `bias` (D,) of a tanh Dense module
    prompt: str = ""
    max_seq_length: int | None = None
    normalize: bool = False


def read_layout(name_or_path: str, **hub_kwargs) -> SentenceTransformersLayout | None:
    """Pooling, head, prompt and length of a sentence-transformers folder or Hub repository.

    Args:
        name_or_path: Local folder or Hub id.
        hub_kwargs: `revision`, `cache_dir`, `token`, `local_files_only`.

    Returns:
        None when there is no `modules.json`.

    Raises:
        ForeignModulesError: The module chain is one that `SimCSEModel` cannot express (for example an
            LSTM, a router or two Dense layers).
        ModelError: A file is damaged, or a module lies outside of the folder.
    """
    modules = read_json(name_or_path, "modules.json", **hub_kwargs)
    if modules is None:
        return None
    try:
        kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
        paths = {kind: module["path"] for kind, module in zip(kinds, modules, strict=True)}
    except (TypeError, KeyError, AttributeError):
        kinds = []
    if not kinds or not all(isinstance(path, str) for path in paths.values()):
        raise ModelError(f"modules.json in {name_or_path} is no list of modules with a type and a path. It is damaged.")
    for kind, path in paths.items():
        if not _is_inside(path):
            raise ModelError(
                f"modules.json in {name_or_path} looks for its {shortened(kind)} in {shortened(path)!r}, outside of that folder. "
                "A module lies in a folder below it."
            )
    chain = [kind for kind in kinds if kind not in ("Transformer", "Normalize")]
    if kinds[:1] != ["Transformer"] or chain not in (
        ["Pooling"],
        ["Pooling", "Dense"],
        ["WeightedLayerPooling", "Pooling"],
    ):
        raise ForeignModulesError(
            f"{name_or_path} is a sentence-transformers model with the modules {shortened(' -> '.join(kinds))}; only "
            "Transformer -> Pooling [-> Dense] [-> Normalize] can be loaded here. Load it with "
            "sentence_transformers.SentenceTransformer."
        )
    pooling = read_mapping(name_or_path, f"{paths['Pooling']}/config.json", **hub_kwargs)
    pooler_type, first_hidden_state = _pooler_type(name_or_path, pooling), 1
    if "WeightedLayerPooling" in paths:
        path = paths["WeightedLayerPooling"]
        (weights,) = _read_tensors(name_or_path, f"{path}/model.safetensors", {"layer_weights": 1}, **hub_kwargs)
        start = read_mapping(name_or_path, f"{path}/config.json", **hub_kwargs).get("layer_start")
        pooler_type, first_hidden_state = _layer_mixture(name_or_path, start, weights.tolist())
    head = None
    if "Dense" in paths:
        activation = read_mapping(name_or_path, f"{paths['Dense']}/config.json", **hub_kwargs).get(
            "activation_function"
        )
        if pooler_type != "cls_before_pooler" or not str(activation).endswith(".Tanh"):
            raise ForeignModulesError(
                f"{name_or_path} puts a Dense module ({shortened(activation)}) behind '{pooler_type}' pooling; "
                "only the tanh head behind cls pooling can be loaded here. Load it with sentence_transformers."
            )
        tensors = {"linear.weight": 2, "linear.bias": 1}
        weight, bias = _read_tensors(
            name_or_path, f"{paths['Dense']}/model.safetensors", tensors, may_lack=("linear.bias",), **hub_kwargs
        )
        if bias is None:
            raise ForeignModulesError(
                f"{name_or_path} has a Dense module without a bias; only one with a bias can be loaded here. Load it with "
                "sentence_transformers."
            )
        if not weight.shape == (len(bias), len(bias)):
            raise ForeignModulesError(
                f"{name_or_path} has a Dense module of the shape {list(weight.shape)} with {len(bias)} biases; only one that "
                "keeps the size of the vectors can be loaded here. Load it with sentence_transformers."
            )
        head = {"weight": weight, "bias": bias}
        pooler_type = "cls"
    sentence_bert = read_mapping(name_or_path, "sentence_bert_config.json", **hub_kwargs)
    # Version 6 keeps the length with the tokenizer; a tokenizer without one says a huge number.
    tokenizer = read_mapping(name_or_path, "tokenizer_config.json", **hub_kwargs)
    max_seq_length = sentence_bert.get("max_seq_length") or tokenizer.get("model_max_length")
    if max_seq_length and not (isinstance(max_seq_length, (int, float)) and max_seq_length >= 1):
        raise ModelError(
            f"{name_or_path} has the length {shortened(repr(max_seq_length))} in sentence_bert_config.json or "
            "tokenizer_config.json; it is a number of tokens."
        )
    return SentenceTransformersLayout(
        pooler_type=pooler_type,
        first_hidden_state=first_hidden_state,
        head=head,
        prompt=_prompt(name_or_path, **hub_kwargs),
        max_seq_length=int(max_seq_length) if max_seq_length and max_seq_length < 1_000_000 else None,
        normalize="Normalize" in kinds,
    )


def write_layout(folder: Path, config: SimCSEConfig, head: dict[str, Tensor] | None, versions: dict[str, str]) -> None:
    """Write `modules.json` and its module folders beside a plain backbone.

    Args:
        folder: Holds, or will hold, the backbone's `config.json` and weights.
        config: Decides the pooling, the prompt and the length.
        head: `weight` and `bias` of the tanh head where the shipped vector passes through it.
        versions: Written to `config_sentence_transformers.json` as `__version__`.
    """
    hidden_size = config.text_config.hidden_size
    modules = [("", "Transformer")]
    if config.needs_all_hidden_states:
        layers = config.text_config.num_hidden_layers
        start = layers - 1 if config.pooler_type == "avg_top2" else config.first_hidden_state
        weights = torch.zeros(layers + 1 - start)
        weights[0] = weights[-1] = 1.0
        name = f"{len(modules)}_WeightedLayerPooling"
        _write_json(
            folder / name / "config.json",
            {"word_embedding_dimension": hidden_size, "layer_start": start, "num_hidden_layers": layers},
        )
        save_file({"layer_weights": weights}, folder / name / "model.safetensors")
        modules.append((name, "WeightedLayerPooling"))
    name = f"{len(modules)}_Pooling"
    active = _POOLING_KEY[config.pooler_type]
    _write_json(
        folder / name / "config.json",
        {"word_embedding_dimension": hidden_size}
        | {key: key == active for key in _ALL_POOLING_KEYS}
        | {"include_prompt": True},
    )
    modules.append((name, "Pooling"))
    if head is not None:
        name = f"{len(modules)}_Dense"
        _write_json(
            folder / name / "config.json",
            {
                "in_features": head["weight"].shape[1],
                "out_features": head["weight"].shape[0],
                "bias": True,
                "activation_function": "torch.nn.modules.activation.Tanh",
            },
        )
        tensors = {f"linear.{key}": value.detach().cpu().contiguous() for key, value in head.items()}
        save_file(tensors, folder / name / "model.safetensors")
        modules.append((name, "Dense"))
    _write_json(
        folder / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (path, kind) in enumerate(modules)
        ],
    )
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": config.max_seq_length, "do_lower_case": False})
    _write_json(
        folder / "config_sentence_transformers.json",
        {
            "__version__": versions,
            "prompts": {"default": config.prompt} if config.prompt else {},
            "default_prompt_name": "default" if config.prompt else None,
            "similarity_fn_name": "cosine",
        },
    )


def _is_inside(path: str) -> bool:
    """Whether a path leads to below the folder it starts in, on any system."""
    return "\0" not in path and not any(
        kind(path).is_absolute() or kind(path).drive or ".." in kind(path).parts
        for kind in (PurePosixPath, PureWindowsPath)
    )


def _prompt(name_or_path: str, **hub_kwargs) -> str:
    settings = read_mapping(name_or_path, "config_sentence_transformers.json", **hub_kwargs)
    prompts, name = settings.get("prompts") or {}, settings.get("default_prompt_name") or ""
    prompt = prompts.get(name, "") if isinstance(prompts, dict) and isinstance(name, str) else None
    if not isinstance(prompt, str):
        raise ModelError(
            f"config_sentence_transformers.json in {name_or_path} names no prompts by text ({shortened(settings)}). It is damaged."
        )
    return prompt


def _pooler_type(name_or_path: str, pooling: dict) -> str:
    compact = pooling.get("pooling_mode")
    if compact is not None:
        active = [str(mode) for mode in compact] if isinstance(compact, list) else [str(compact)]
    else:
        active = [key.split("_")[2] for key in _ALL_POOLING_KEYS if pooling.get(key)]
    if len(active) != 1 or active[0] not in _COMPACT_NAMES:
        raise ForeignModulesError(
            f"{name_or_path} pools with {shortened(active or 'nothing')}; only cls, mean or max alone can be loaded here. "
            "Load it with sentence_transformers.SentenceTransformer."
        )
    return _COMPACT_NAMES[active[0]]


def _layer_mixture(name_or_path: str, start: object, weights: list[float]) -> tuple[str, int]:
    if weights == [1.0, 1.0]:
        return "avg_top2", 1
    if (
        type(start) is int
        and start in (0, 1)
        and len(weights) > 1
        and weights[0] == weights[-1] == 1.0
        and not any(weights[1:-1])
    ):
        return "avg_first_last", start
    raise ForeignModulesError(
        f"{name_or_path} mixes its layers with the weights {shortened(weights)}; only the average of the last two, or of the "
        "first and the last, can be loaded here. Load it with sentence_transformers.SentenceTransformer."
    )


def _read_tensors(
    name_or_path: str, filename: str, dimensions: dict[str, int], *, may_lack: Sequence[str] = (), **hub_kwargs
) -> list[Tensor | None]:
    """The tensors of a file by name, each with so many dimensions; None for one that it may lack, and does."""
    path = find_file(name_or_path, filename, **hub_kwargs)
    if path is None:
        raise ModelError(
            f"{name_or_path} has no {filename}; only safetensors weights are read (a pickle can run code). "
            "Convert it with sentence_transformers: SentenceTransformer(path).save_pretrained(new_path)."
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{filename} in {name_or_path} cannot be read ({shortened(error)}). It is damaged.") from None
    for name, number in dimensions.items():
        if name in may_lack and name not in tensors:
            continue
        if name not in tensors or tensors[name].dim() != number or not tensors[name].is_floating_point():
            found = f"{tensors[name].dtype} {list(tensors[name].shape)}" if name in tensors else "nothing"
            raise ModelError(
                f"{filename} in {name_or_path} holds {found} as {name}, not numbers of {number} dimensions. It is damaged."
            )
    return [tensors.get(name) for name in dimensions]


def _write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
