"""What vectors on disk are made from, and with: the model, the files of the corpus, the programs and the machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from .cache_folder import fingerprint
from .encoder import SentenceEncoder
from .files import sha256_of
from .sample import resolve_sample
from .sentence_stream import CorpusFile
from .tables import expand_paths
from .versions import package_versions

# Of a configuration: where it lay, and what wrote it.
_NO_MATTER = ("_name_or_path", "transformers_version", "architectures", "dtype")
# Of the versions: those that may change the last bits of a vector.
_OF_THE_ARITHMETIC = ("simcse-hf", "torch", "transformers", "tokenizers", "numpy")


def named_files(paths: Sequence[str]) -> list[Path]:
    """Files meant by paths, globs and samples, in the order given.

    Raises:
        DataError: A path that does not exist, a glob that matches nothing, or a name that no manifest can hold.
    """
    return expand_paths([resolve_sample(str(path)) for path in paths])


def corpus_of(paths: Iterable[Path], known: Sequence[dict]) -> Iterator[tuple[CorpusFile, dict]]:
    """Data files, each with what a manifest says of it.

    Args:
        paths: Of the files.
        known: What a manifest says of files. One that is of the same size, was written at the same time and begins and
            ends alike is taken for the same, wherever it lies; others are read through.
    """
    by_ends = {entry["sha256_of_ends"]: entry for entry in known if isinstance(entry.get("sha256_of_ends"), str)}
    for path in paths:
        found = fingerprint(path)
        entry = by_ends.get(found["sha256_of_ends"], {})
        same = all(entry.get(name) == value for name, value in found.items())
        digest = entry["sha256"] if same else sha256_of(path)
        yield (
            CorpusFile(path, digest, (found["bytes"], found["written_ns"])),
            {"path": str(path), "sha256": digest} | found,
        )


def makers_of(encoder: SentenceEncoder) -> dict:
    """Versions and device: what may change the last bits of a vector, and does not change what it means."""
    device = encoder.model.device
    name = f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
    return {"versions": package_versions(), "device": name}


def other_makers(manifest: dict, now: dict) -> list[str]:
    """What of a run is not as it was for the shards that are there, in words.

    Args:
        manifest: Of their folder. What it says of all of them holds where a shard says nothing else.
        now: `makers_of` an encoder, and `batch_tokens`.
    """
    of_all = {name: manifest[name] for name in ("versions", "device") if name in manifest}
    current, before = _as_words(now), {}
    for entry in manifest["shards"]:
        for name, value in _as_words(of_all | entry).items():
            if value not in (None, current[name]):
                before.setdefault(name, {})[str(value)] = None
    return [f"{name} {', '.join(values)} (now {current[name]})" for name, values in before.items()]


def _as_words(makers: dict) -> dict[str, object]:
    versions = {name: makers.get("versions", {}).get(name) for name in _OF_THE_ARITHMETIC}
    return {"batch_tokens": makers.get("batch_tokens"), "device": makers.get("device")} | versions


def identity_of(encoder: SentenceEncoder) -> dict:
    """What decides the vectors of an encoder besides the sentences, with digests of what is long.

    Two folders with the same weights, tokenizer and settings have the same identity, wherever they lie.
    """
    weights = hashlib.sha256()
    for name, tensor in sorted(encoder.model.state_dict().items()):
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    described, config = encoder.describe(), encoder.model.config
    without = {*described, *_NO_MATTER, "text_config"}
    configuration = [
        {name: value for name, value in each.to_diff_dict().items() if name not in without}
        for each in (config, config.text_config)
    ]
    return described | {
        "weights_sha256": weights.hexdigest(),
        "configuration_sha256": _digest(configuration),
        "tokenizer_sha256": _digest(_content_of(encoder.tokenizer)),
    }


def _content_of(tokenizer) -> object:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    content = json.loads(backend.to_str())
    return {name: part for name, part in content.items() if name not in ("truncation", "padding")}  # set by every call


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
