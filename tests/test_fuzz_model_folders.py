"""Folders of models with any content: loaded whole, or refused in a short message. SIMCSE_FUZZ_EXAMPLES tries more."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import family_tokenizers
import numpy as np
import pytest
import torch
from fuzzing import (
    TARGETS,
    attempt,
    binary_seeds,
    examples,
    loads_model,
    model_folders,
    npy,
    reads_sentencepiece,
    reads_vector_manifest,
    reads_vectors,
    spoilt,
    write,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from tokenizers import normalizers
from torch import ones, tensor

from simcse_hf.backbones import load_config
from simcse_hf.benchmark import open_encoder
from simcse_hf.encoder import SentenceEncoder
from simcse_hf.errors import ForeignModulesError, ModelError
from simcse_hf.sentence_transformers_layout import read_layout
from simcse_hf.sentencepiece_tokenizer import is_character_map, read_sentencepiece, tokenizer_of
from simcse_hf.tokenization import load_tokenizer

usual = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

CONFIGURATIONS = [
    name for name in TARGETS if "/" in name and name.endswith((".json", ".txt")) and "/config" not in name
]


@settings(usual, max_examples=examples(300))
@given(st.sampled_from(CONFIGURATIONS).flatmap(lambda name: st.tuples(st.just(name), spoilt(TARGETS[name][1]()))))
@example(("head/tokenizer_config.json", b'{"model_max_length": []}'))
@example(("head/sentence_bert_config.json", b"1.5"))
@example(("kobert/tokenizer_config.json", b'{"tokenizer_class": "XLNetTokenizer", "cls_token": {}}'))
@example(("kobert/tokenizer_config.json", b'{"tokenizer_class": "XLNetTokenizer", "cls_token": "\\ud800"}'))
def test_any_file_beside_the_weights_is_read_or_refused(case: tuple[str, bytes]) -> None:
    TARGETS[case[0]][0](case[1])


WHOLE = [
    "head/config.json",
    "head/model.safetensors",
    "head/2_Dense/model.safetensors",
    "shards/model.safetensors.index.json",
]


@settings(usual, max_examples=examples(80))
@given(st.sampled_from(WHOLE).flatmap(lambda name: st.tuples(st.just(name), spoilt(TARGETS[name][1]()))))
def test_any_model_is_loaded_whole_or_refused(case: tuple[str, bytes]) -> None:
    TARGETS[case[0]][0](case[1])


@settings(usual, max_examples=examples(150))
@given(spoilt(binary_seeds()["sentencepiece"]))
def test_any_sentencepiece_model_cuts_text_or_is_refused(data: bytes) -> None:
    reads_sentencepiece(data)


@settings(usual, max_examples=examples(150))
@given(spoilt(binary_seeds()["vectors"]))
@example(b"PK\x03\x04" + bytes(40))
@example(b"\x93NUMPY\x01\x00\x10\x00{'descr': '''<f4\n")
def test_any_vectors_are_read_or_refused(data: bytes) -> None:
    reads_vectors(data)


@settings(usual, max_examples=examples(200))
@given(spoilt(binary_seeds()["vector_manifest"]))
@example(b"[" * 3000)
@example(binary_seeds()["vector_manifest"][0].replace(b'"vectors-00000.npy"', b'"../x"'))
@example(binary_seeds()["vector_manifest"][0].replace(b'"rows": 3', b'"rows": "3"'))
@example(binary_seeds()["vector_manifest"][0].replace(b'"shard_rows": 2', b'"shard_rows": 0'))
def test_any_manifest_of_vectors_is_read_or_refused(data: bytes) -> None:
    reads_vector_manifest(data)


RULES = {"Ａ": "A", "①": "1", "㈀": "(ᄀ)", "㉮": "가"}


@settings(usual, max_examples=examples(150))
@given(
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=4), st.integers(0, 1 << 20), st.text()
)
def test_normalisation_rules_taken_for_sound_never_abort(changes: list[tuple[int, int]], cut: int, text: str) -> None:
    content = bytearray(family_tokenizers.character_map(RULES))
    used = [place for place, byte in enumerate(content) if byte]  # most of it is zeros, which nothing leads to
    for place, byte in changes:
        content[used[place % len(used)]] = byte
    content = bytes(content[: cut if cut % 4 == 0 else None])
    if content and is_character_map(content):
        rules = normalizers.Precompiled(content)
        for sample in [text, *RULES, "".join(map(chr, range(1, 0x2500)))]:
            rules.normalize_str(sample)


def test_sound_normalisation_rules_are_taken_for_sound() -> None:
    content = family_tokenizers.character_map(RULES)
    assert is_character_map(content) and is_character_map(b"")
    assert normalizers.Precompiled(content).normalize_str("xＡ①㈀㉮힣") == "xA1(ᄀ)가힣"


# --- what was found by it, and by reading the code --------------------------------------------------------------------


def test_the_folders_are_loaded_as_they_are() -> None:
    assert reads_vector_manifest(binary_seeds()["vector_manifest"][0])
    for kind in model_folders():
        assert loads_model(kind, {}, whole=True), kind


def spoiled(folder: Path, kind: str, changes: dict[str, bytes]) -> str:
    for name, data in (model_folders()[kind] | changes).items():
        write(folder / "model", name, data)
    return str(folder / "model")


MODULES = "sentence_transformers.models."
BAD_LAYOUTS: dict[str, tuple[str, dict, list[str]]] = {
    "JSON of 5,000 brackets": (
        "1_Pooling/config.json",
        "[" * 5000,
        ["1_Pooling/config.json", "is not JSON", "damaged"],
    ),
    "a number for a mapping": (
        "sentence_bert_config.json",
        1.5,
        ["sentence_bert_config.json", "no mapping but a float"],
    ),
    "a length that is text": ("sentence_bert_config.json", {"max_seq_length": "64"}, ["'64'", "number of tokens"]),
    "a length below one": ("sentence_bert_config.json", {"max_seq_length": -3}, ["-3", "number of tokens"]),
    "prompts in a list": ("config_sentence_transformers.json", {"prompts": ["문장"]}, ["names no prompts by text"]),
    "a prompt that is none": (
        "config_sentence_transformers.json",
        {"prompts": {"default": 5}, "default_prompt_name": "default"},
        ["names no prompts by text"],
    ),
    "an activation that is none": ("2_Dense/config.json", {"activation_function": [1]}, ["Dense module ([1])"]),
    "poolings in mappings": ("1_Pooling/config.json", {"pooling_mode": [{}]}, ["pools with ['{}']"]),
    "no path": ("modules.json", [{"type": MODULES + "Transformer", "path": 0}], ["no list of modules"]),
    "weights cut off": (
        "2_Dense/model.safetensors",
        b"\x10",
        ["2_Dense/model.safetensors", "cannot be read", "damaged"],
    ),
    "weights by other names": ("2_Dense/model.safetensors", save({"a": ones(2)}), ["nothing as linear.weight"]),
    "weights of another rank": (
        "2_Dense/model.safetensors",
        save({"linear.weight": ones(8), "linear.bias": ones(8)}),
        ["[8] as linear.weight, not numbers of 2 dimensions"],
    ),
    "a head that is not square": (
        "2_Dense/model.safetensors",
        save({"linear.weight": ones(4, 8), "linear.bias": ones(4)}),
        ["shape [4, 8]", "keeps the size"],
    ),
}


@pytest.mark.parametrize("case", BAD_LAYOUTS)
def test_a_layout_that_says_nonsense_is_refused(case: str, tmp_path: Path) -> None:
    name, content, fragments = BAD_LAYOUTS[case]
    data = (
        content
        if isinstance(content, bytes)
        else (content if isinstance(content, str) else json.dumps(content)).encode()
    )
    folder = spoiled(tmp_path, "head", {name: data})
    refusal = attempt(read_layout, folder, names=[folder])
    assert isinstance(refusal, ModelError), refusal
    assert [fragment for fragment in fragments if fragment not in str(refusal)] == [], str(refusal)


def test_a_head_without_a_bias_is_a_chain_of_others_and_not_damaged(tmp_path: Path) -> None:
    weights = save({"linear.weight": torch.eye(8)})
    settings_of_head = {"in_features": 8, "out_features": 8, "bias": False}
    settings_of_head["activation_function"] = "torch.nn.modules.activation.Tanh"
    changes = {"2_Dense/model.safetensors": weights, "2_Dense/config.json": json.dumps(settings_of_head).encode()}
    folder = spoiled(tmp_path, "head", changes)
    with pytest.raises(ForeignModulesError, match="a Dense module without a bias"):
        read_layout(folder)
    encode, description = open_encoder(folder, device="cpu")
    assert description["loader"] == "sentence-transformers"
    assert encode(["할머니가 마당에서"]).shape == (1, 8)


def test_a_chain_of_others_with_pickled_weights_is_refused_with_the_cure(tmp_path: Path) -> None:
    folder = spoiled(
        tmp_path,
        "head",
        {"1_Pooling/config.json": b'{"word_embedding_dimension": 8, "pooling_mode_lasttoken": true}'},
    )
    weights = Path(folder, "model.safetensors")
    torch.save(load_file(weights), Path(folder, "pytorch_model.bin"))
    assert open_encoder(folder, device="cpu")[1]["loader"] == "sentence-transformers"
    weights.unlink()
    with pytest.raises(ModelError, match=r"pytorch_model\.bin only, a pickle.*save_pretrained.*safetensors") as caught:
        open_encoder(folder, device="cpu")
    assert folder in str(caught.value)


def test_a_head_that_does_not_fit_the_encoder_is_refused(tmp_path: Path) -> None:
    head = save({"linear.weight": ones(4, 4), "linear.bias": ones(4)})
    folder = spoiled(tmp_path, "head", {"2_Dense/model.safetensors": head})
    with pytest.raises(ModelError, match=r"has the shape \[4, 4\], but its encoder needs \[8, 8\]"):
        SentenceEncoder.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize(
    ("weights", "start"),
    [([], 0), ([1.0], 0), ([1.0, 0.0, 1.0], None), ([1.0, 0.0, 1.0], True), ([1.0, 0.0, 1.0], [0])],
)
def test_a_mixture_of_layers_that_is_none_is_refused(weights: list[float], start: object, tmp_path: Path) -> None:
    folder = spoiled(
        tmp_path,
        "layers",
        {
            "1_WeightedLayerPooling/config.json": json.dumps({"layer_start": start}).encode(),
            "1_WeightedLayerPooling/model.safetensors": save({"layer_weights": tensor(weights)}),
        },
    )
    assert isinstance(attempt(read_layout, folder, names=[folder]), ModelError)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", 0),
        ("num_attention_heads", -1),
        ("intermediate_size", -8),
        ("vocab_size", 10**12),
        ("max_position_embeddings", 1 << 40),
        ("num_hidden_layers", 10**9),
        ("dtype", 5),
        ("pad_token_id", 10**9),
    ],
)
def test_a_configuration_of_impossible_sizes_is_refused_before_memory_is_taken(
    name: str, value: object, tmp_path: Path
) -> None:
    config = json.loads(model_folders()["head"]["config.json"]) | {name: value}
    folder = spoiled(tmp_path, "head", {"config.json": json.dumps(config).encode()})
    refusal = attempt(load_config, folder, names=[folder])
    assert isinstance(refusal, ModelError) and name in str(refusal), refusal


PIECES = [
    ("[UNK]", 0.0, 2),
    *((token, 0.0, 3) for token in family_tokenizers.KOBERT_TOKENS[1:]),
    ("▁", -1.0, 1),
    ("가", -2.0, 1),
]
BAD_SENTENCEPIECE: dict[str, tuple[dict, str]] = {
    "a score that is no number": ({"pieces": [*PIECES, ("나", float("nan"), 1)]}, "score of a piece is not finite"),
    "an endless score": ({"pieces": [*PIECES, ("나", float("inf"), 1)]}, "score of a piece is not finite"),
    "an empty piece": ({"pieces": [*PIECES, ("", -1.0, 1)]}, "a piece is empty"),
    "a piece twice": ({"pieces": [*PIECES, ("가", -3.0, 1)]}, "a piece occurs twice"),
    "no unknown piece": ({"pieces": PIECES, "unknown_id": 99}, "its unknown piece is none of its pieces"),
    "a kind that there is not": ({"pieces": [*PIECES, ("나", -1.0, 9)]}, "of a kind that there is not"),
    "rules that end early": ({"pieces": PIECES, "character_map": b"\x04\0\0"}, "its character map is damaged"),
    "rules that lead outside": (
        {"pieces": PIECES, "character_map": b"\x04\0\0\0\1\2\3\4abc\0"},
        "character map is damaged",
    ),
}


@pytest.mark.parametrize("algorithm", [1, 2])
@pytest.mark.parametrize("case", BAD_SENTENCEPIECE)
def test_a_sentencepiece_model_that_would_fail_at_a_text_is_refused(case: str, algorithm: int, tmp_path: Path) -> None:
    settings_of_model, expected = BAD_SENTENCEPIECE[case]
    content = family_tokenizers.sentencepiece_file(**settings_of_model, algorithm=algorithm)
    path = write(tmp_path, "spiece.model", content)
    with pytest.raises(ModelError, match=rf"spiece\.model cannot be used: .*{expected}\. It is damaged"):
        tokenizer_of(read_sentencepiece(path), {}, str(path))


def test_a_number_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = write(tmp_path, "spiece.model", b"\x08" + b"\xff" * 2_000_000)
    refusal = attempt(read_sentencepiece, path, names=[path.name], seconds=2)
    assert "more than 64 bits" in str(refusal)


def test_a_tokenizer_whose_rules_would_abort_the_process_is_refused(tmp_path: Path) -> None:
    content = json.loads(model_folders()["fast"]["tokenizer.json"])
    rules = next(part for part in content["normalizer"]["normalizers"] if part["type"] == "Precompiled")
    for spoilt_rules, expected in (
        ("AAAA", "cannot load a tokenizer"),
        ("====", "cannot load a tokenizer"),
        ("BAAAAAECAwRhYmMA", "character map"),
    ):
        rules["precompiled_charsmap"] = spoilt_rules
        folder = spoiled(tmp_path, "fast", {"tokenizer.json": json.dumps(content).encode()})
        refusal = attempt(load_tokenizer, folder, names=[folder])
        assert isinstance(refusal, ModelError) and expected in str(refusal), refusal


def test_vectors_of_impossible_headers(tmp_path: Path) -> None:
    good = npy(np.eye(3, dtype=np.float32))
    for case in (
        good.replace(b"(3, 3)", b"(3,-3)"),
        good.replace(b"(3, 3)", b"(9,99)"),
        good.replace(b"'<f4'", b"'|O' "),
        good.replace(b"'<f4'", b"'V99'"),
        good[:6] + b"\x02\x00" + struct.pack("<I", 1 << 31) + good[10:],
        b"PK\x03\x04" + bytes(30),
        b"PK\x05\x06" + bytes(18),
        b"\x80\x04N.",
        b"",
    ):
        assert not reads_vectors(case)
    assert reads_vectors(good)
