"""What must hold for any bytes: entry points of the package, each a function of bytes that raises when it does not.

`scripts/fuzz.py` feeds them for hours, the tests `test_fuzz_*.py` for seconds.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import family_tokenizers
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import AutoModel, BertConfig, PreTrainedTokenizerBase

from simcse_hf.arguments import DataArguments, ModelArguments, SimCSETrainingArguments
from simcse_hf.backbones import load_config
from simcse_hf.cache_folder import cached_folder
from simcse_hf.configuration_simcse import SimCSEConfig
from simcse_hf.corpora import TrainingViews, scored_pairs, training_views
from simcse_hf.encoder import SentenceEncoder
from simcse_hf.errors import SimCSEError
from simcse_hf.files import COMPRESSIONS
from simcse_hf.leakage import HeldOutSentences
from simcse_hf.nli import LABEL_IDS
from simcse_hf.parser import field_types, parse_arguments, read_config, typed_values
from simcse_hf.row_report import RowReport
from simcse_hf.search import read_corpus
from simcse_hf.sentence_stream import SentenceStream, corpus_files, count_rows
from simcse_hf.sentence_transformers_layout import read_layout, write_layout
from simcse_hf.sentencepiece_tokenizer import read_sentencepiece, tokenizer_of
from simcse_hf.stages import first_stage_arguments
from simcse_hf.streamed_sets import open_stream
from simcse_hf.tables import read_table
from simcse_hf.teacher import _open_vectors as open_vectors
from simcse_hf.text import normalize_text
from simcse_hf.tokenization import load_tokenizer, text_of_its_own
from simcse_hf.training_corpus import Reading, views_of_files
from simcse_hf.vector_shards import open_vectors as open_vector_folder
from simcse_hf.vector_shards import vector_folder

GROUPS = (ModelArguments, DataArguments, SimCSETrainingArguments)
LONGEST_MESSAGE = 3_000
FORMATS = (".txt", ".tsv", ".csv", ".json", ".jsonl", ".parquet")

Target = Callable[[bytes], bool]


class Hang(BaseException):
    """Not an Exception, so that nothing takes it for a defect of its input."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `Hang` in the block when it takes longer; only where there are alarms, and in the main thread."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_) -> None:
        raise Hang(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(function: Callable, *arguments, names: Sequence[str] = (), seconds: float = 10, **options):
    """What a function returns, or the `SimCSEError` it refuses its input with; any other exception goes on.

    A refusal must be short, be one line when the command line has folded it, and name one of `names`.
    """
    try:
        with at_most(seconds):
            return function(*arguments, **options)
    except SimCSEError as error:
        message = str(error)
        assert message.strip(), "a refusal without words"
        assert len(message) <= LONGEST_MESSAGE, f"a refusal of {len(message):,} characters: {message[:200]}"
        assert not names or any(name in message for name in names), f"{names} not in: {message}"
        return error


def refused(outcome: object) -> bool:
    return isinstance(outcome, SimCSEError)


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# --- tables -----------------------------------------------------------------------------------------------------------

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda data: gzip.compress(data, 1, mtime=0),
    ".xz": lambda data: lzma.compress(data, preset=0),
    ".bz2": lambda data: bz2.compress(data, 1),
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}
assert tuple(PACKERS)[1:] == COMPRESSIONS


def reads_table(data: bytes, name: str, *, through_cache: bool = False) -> bool:
    """Every way to read a table: as training rows, held or as a stream, as scored pairs, as a corpus to search or encode.

    Returns:
        Whether any of them took it.
    """
    with tempfile.TemporaryDirectory() as temporary:
        path = write(Path(temporary), name, data)
        taken = [
            _reads_training_rows(path, train_as, on_bad_row) and _streams_the_same_rows(path, train_as, on_bad_row)
            for train_as in ("auto", "sentences", "labels", "scores")
            for on_bad_row in ("error", "skip")
        ]
        pairs = attempt(
            lambda: scored_pairs(read_table(path, RowReport(every_row_counts=True)), "set"), names=[path.name]
        )
        if not refused(pairs):
            assert len(pairs) == len(pairs.sentences1) == len(pairs.sentences2) == len(pairs.scores) >= 2
            for sentence in (*pairs.sentences1, *pairs.sentences2):
                _check_sentence(sentence)
            assert all(pairs.scale[0] <= score <= pairs.scale[1] for score in pairs.scores)
            HeldOutSentences([pairs])
        corpus = attempt(read_corpus, str(path), names=[path.name])
        for sentence in [] if refused(corpus) else corpus:
            _check_sentence(sentence)
        by_number = attempt(_reads_by_number, path, names=[path.name])
        assert by_number == corpus or (refused(by_number) and refused(corpus)), (corpus, by_number)
        if through_cache:
            _reads_the_same_through_the_cache(path, Path(temporary) / "cache")
        return any(taken) or not refused(pairs)


def _open_views(path: Path, train_as: str, on_bad_row: str) -> TrainingViews:
    report = RowReport(on_bad_row=on_bad_row)
    return training_views([read_table(path, report)], report, train_as=train_as, deduplicate=True)


def _reads_training_rows(path: Path, train_as: str, on_bad_row: str) -> bool:
    views = attempt(_open_views, path, train_as, on_bad_row, names=[path.name])
    if refused(views):
        return False
    assert views.rows and len({len(row) for row in views.rows}) == 1
    assert len(set(zip(views.rows, views.values or [None] * len(views.rows), strict=True))) == len(views.rows)
    for row in views.rows:
        for sentence in row:
            _check_sentence(sentence)
    if views.shape == "labelled":
        assert set(views.values) <= set(LABEL_IDS.values())
    elif views.shape == "scored":
        assert all(0 <= value <= 1 for value in views.values)
    report = views.report
    assert report.kept == len(views.rows)
    if views.shape not in ("nli", "sentences"):  # whose rows become triplets; or one sentence of every column
        assert report.read == report.kept + report.dropped.total(), report
    assert set(report.examples) == set(report.dropped)
    return True


def _streams_the_same_rows(path: Path, train_as: str, on_bad_row: str) -> bool:
    report = RowReport(on_bad_row=on_bad_row)
    held = training_views([read_table(path, report)], report, train_as=train_as, deduplicate=False)
    reading = Reading(train_as=train_as, on_bad_row=on_bad_row)
    views = attempt(open_stream, [str(path)], reading, [], on_leakage="report", shuffle_buffer=1, names=[path.name])
    if held.shape == "nli":
        assert refused(views) and "streaming cannot match premises" in str(views)
        return True
    rows = list(views.stream.one_pass(seed=0))
    assert rows == list(zip(held.rows, held.values or [None] * len(held.rows), strict=True))
    assert views.stream.report.as_dict() == report.as_dict() and views.shape == held.shape
    return True


def _reads_by_number(path: Path) -> list[str]:
    files = corpus_files([str(path)])
    rows = count_rows(files)
    stream = SentenceStream(files, rows)
    half = rows[0] // 2
    return stream.read(0, half) + stream.read(half, rows[0])


def _check_sentence(sentence: str) -> None:
    assert type(sentence) is str and sentence
    assert sentence == normalize_text(sentence)
    assert sentence.encode("utf-8").decode("utf-8") == sentence


def _reads_the_same_through_the_cache(path: Path, cache_root: Path) -> None:
    direct = attempt(_open_views, path, "auto", "skip")
    cached = attempt(views_of_files, [path], Reading(on_bad_row="skip"), cache_root, names=[path.name])
    assert refused(direct) == refused(cached), (direct, cached)
    if not refused(direct):
        assert list(cached.rows) == direct.rows and cached.shape == direct.shape
        assert cached.report.as_dict() == direct.report.as_dict()


def parquet_file(table: pa.Table, **options) -> bytes:
    stream = io.BytesIO()
    pa.parquet.write_table(table, stream, **options)
    return stream.getvalue()


_TSV = {
    "nli": "premise\thypothesis\tlabel\n비가 온다.\t젖는다.\tentailment\n비가 온다.\t맑다.\tcontradiction\n",
    "scored": "genre\tsentence1\tsentence2\tscore\nnews\t비가 온다.\t비가 내린다.\t4.5\nnews\t개\t고양이\t1\n",
    "triplets": "anchor\tpositive\tnegative\tnegative_2\n가\t나\t다\t라\n마\t바\t사\t아\n",
    "pairs": "sent0\tsent1\n오늘\t금일\n책\t도서\n",
    "sentences": "text\n할머니가 고추를 말린다.\n\u1112\u1161\u11ab글\u200b\n",
}


@cache
def table_seeds() -> dict[str, list[bytes]]:
    """Valid files of every format."""
    seeds = {suffix: [] for suffix in FORMATS}
    for text in _TSV.values():
        lines = [line.split("\t") for line in text.splitlines()]
        records = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
        seeds[".tsv"].append(text.encode())
        seeds[".csv"].append("\r\n".join(",".join(f'"{part}"' for part in line) for line in lines).encode())
        seeds[".json"].append(json.dumps(records, ensure_ascii=False).encode())
        seeds[".jsonl"].append("\n".join(json.dumps(record) for record in records).encode())
        seeds[".parquet"].append(parquet_file(pa.Table.from_pylist(records)))
    seeds[".txt"] = [_TSV["sentences"].encode(), "\ufeff문장\r\n또 한 문장".encode(), b"a\0b\rc\n\n"]
    nested = [{"sentence1": "가", "sentence2": "나", "labels": {"label": 3.5, "real-label": 3}}] * 2
    seeds[".json"] += [json.dumps({"data": nested}).encode(), b'[{"text": NaN}, {"text": 1e999}, {"text": "\\ud800"}]']
    seeds[".jsonl"] += ['[]\n{"text": "가"}\n{\n{"txt": "나"}\n{"text": "다"}'.encode()]
    seeds[".json"] += ['["", {}, {"text": "가"}, {"text": "나"}]'.encode()]
    seeds[".csv"] += ["text\n가\n\n나".encode(), "id,text\n1,가\n\n2,나".encode()]
    seeds[".jsonl"] += [b'{"text": true}\n{"text": 12}\n[]\n{"text": {"a": {"b": 1}}}\n{"text": null}']
    for column in (
        pa.array([b"\xea\xb0\x80", b"\xff"]),
        pa.array([1, None], pa.timestamp("ns")),
        pa.array([2**50, 5], pa.timestamp("s", tz="Asia/Seoul")),
        pa.array([[1], None]),
        pa.array(["가", "나"]).dictionary_encode(),
        pa.array([{"a": "b"}, None]),
        pa.array([None, None]),
        pa.array([1.5, float("nan")]),
        pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
        pa.array([b"1234", b"5678"], pa.binary(4)),
    ):
        seeds[".parquet"].append(parquet_file(pa.table({"text": column}), compression="none"))
    seeds[".parquet"] += [parquet_file(pa.table({})), parquet_file(pa.table({"text": pa.array([], pa.string())}))]
    return seeds


# --- configurations ---------------------------------------------------------------------------------------------------

CONFIG_SEEDS: dict[str, list[bytes]] = {
    ".json": [
        json.dumps(
            {
                "_comment": "주석",
                "model_name_or_path": "sample:encoder",
                "train_file": ["a.txt", "~/b.tsv", "${HOME}/c.csv"],
                "pooler_type": "cls",
                "temperature": 0.05,
                "learning_rate": "3e-5",
                "max_steps": 10,
                "bf16": False,
                "matryoshka_dims": [8, 16],
                "score_scale": [0, 5],
                "lr_scheduler_kwargs": {"num_cycles": 2},
                "accelerator_config": {"even_batches": True},
                "eval_task": None,
                "seed": 42,
                "warmup_steps": 0.1,
                "report_to": "none",
            }
        ).encode(),
        b'{"temperature": NaN, "max_steps": 1e999, "prompt": "\\ud800", "data_dir": "a\\u0000b"}',
    ],
    ".yaml": [
        b"model_name_or_path: sample:encoder\ntrain_file: [a.txt, ~/b.tsv]\npooler_type: avg\nlearning_rate: 3e-5\n"
        b"defaults: &base {max_steps: 10, seed: 1}\n<<: *base\nbf16: no\neval_task:\nprompt: |\n  text\n",
        b"seed: &a 1\nmax_steps: *a\nsave_steps: 0x10\neval_steps: 1:30\nrun_name: 2001-01-01\n_x: !!binary aGk=\n"
        b"logging_steps: !!float 3\nmatryoshka_dims: !!set {8, 16}\n? [a, b]\n: c\n--- \n",
    ],
}


def reads_config(data: bytes, suffix: str) -> bool:
    """A file as a configuration: read and typed."""
    with tempfile.TemporaryDirectory() as temporary:
        path = write(Path(temporary), f"config{suffix}", data)
        values = attempt(read_config, path, names=[path.name])
        if refused(values):
            return False
        assert isinstance(values, dict) and not any(str(key).startswith("_") for key in values)
        typed = attempt(typed_values, values, field_types(GROUPS), str(path), names=[path.name])
        return not refused(typed)


def parses_arguments(data: bytes, suffix: str, flags: Sequence[str] = ()) -> bool:
    """A file as a configuration, all the way to arguments, and as a first stage."""
    with tempfile.TemporaryDirectory() as temporary:
        path = write(Path(temporary), f"config{suffix}", data)
        argv = ["--config", str(path), "--output_dir", str(Path(temporary) / "run"), *flags]
        parsed = attempt(parse_arguments, GROUPS, argv)
        plain = _plain_arguments()
        plain[2].first_stage = str(path)
        stage = attempt(first_stage_arguments, *plain)
        for arguments in [] if refused(parsed) else parsed:
            numbers = [value for value in vars(arguments).values() if isinstance(value, float)]
            assert not any(np.isnan(number) for number in numbers)
        return not refused(parsed) or not refused(stage)


@cache
def _plain_arguments() -> tuple:
    folder = Path(tempfile.gettempdir()) / "never-written"
    return parse_arguments(GROUPS, ["--output_dir", str(folder), "--report_to", "none", "--use_cpu", "true"])


# --- folders of models ------------------------------------------------------------------------------------------------


@cache
def model_folders() -> dict[str, dict[str, bytes]]:
    """Files of tiny models as others make them: a release with a head, one that mixes layers, KoBERT's kind."""
    made = {}
    with tempfile.TemporaryDirectory() as temporary:
        for kind, pooler_type in (
            ("head", "cls"),
            ("layers", "avg_first_last"),
            ("kobert", "avg"),
            ("fast", "max"),
            ("shards", "avg_top2"),
        ):
            folder = Path(temporary) / kind
            folder.mkdir()
            pieces = family_tokenizers.kobert(folder) if kind == "kobert" else family_tokenizers.wordpiece(folder)
            if kind == "fast":
                (folder / "vocab.txt").unlink()
                tokenizer = fast_tokenizer()
                tokenizer.save_pretrained(folder)
                pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
            text_config = BertConfig(
                vocab_size=len(pieces),
                hidden_size=8,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=8,
                max_position_embeddings=24,
                pad_token_id=pieces.index("<pad>" if kind == "fast" else "[PAD]"),
            )
            torch.manual_seed(0)
            backbone = AutoModel.from_config(text_config, add_pooling_layer=False)
            backbone.save_pretrained(folder, max_shard_size="4KB" if kind == "shards" else "1GB")
            config = SimCSEConfig(text_config=text_config, pooler_type=pooler_type, max_seq_length=16, prompt="문장: ")
            head = {"weight": torch.eye(8), "bias": torch.zeros(8)} if kind == "head" else None
            write_layout(folder, config, head, {"transformers": "5"})
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            made[kind] = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return made


def fast_tokenizer() -> PreTrainedTokenizerBase:
    """Of a `tokenizer.json` with compiled normalisation rules, as XLM-R's."""
    tokenizer = family_tokenizers.xlm_roberta()
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(family_tokenizers.character_map({"Ａ": "A", "①": "1", "㈀": "(ᄀ)"})),
            normalizers.NFC(),
        ]
    )
    return tokenizer


def loads_model(folder_kind: str, changed: dict[str, bytes], *, whole: bool = False) -> bool:
    """A folder of a model, some of its files with other content: configuration, layout, tokenizer; or all, and a vector."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        for name, data in (model_folders()[folder_kind] | changed).items():
            write(folder, name, data)
        names = [str(folder)]
        parts = [
            attempt(load_config, str(folder), names=names),
            attempt(read_layout, str(folder), names=names),
            attempt(load_tokenizer, str(folder), names=names),
        ]
        if not refused(parts[2]):
            attempt(parts[2], text_of_its_own(parts[2]))
            _cuts_or_lacks_a_piece(parts[2], "고추를 말리고 3, 4")
        if whole:
            encoder = attempt(SentenceEncoder.from_pretrained, str(folder), pooler_type="avg", device="cpu")
            if not refused(encoder):
                vectors = attempt(encoder.encode, ["할머니가 마당에서", "네."])
                assert refused(vectors) or vectors.shape[0] == 2
                return not refused(vectors)
        return not any(refused(part) for part in parts)


def _cuts_or_lacks_a_piece(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """One without an unknown token fails at any text with a character that it lacks."""
    try:
        attempt(tokenizer, text)
    except Exception as error:
        if type(error) is not Exception or ("unk" not in str(error).lower()):
            raise


def reads_sentencepiece(data: bytes) -> bool:
    """A SentencePiece model, made into a tokenizer that cuts a sentence."""
    with tempfile.TemporaryDirectory() as temporary:
        path = write(Path(temporary), "spiece.model", data)
        model = attempt(read_sentencepiece, path, names=[path.name])
        if refused(model):
            return False
        tokenizer = attempt(tokenizer_of, model, {})
        if not refused(tokenizer):
            ids = tokenizer(["할머니가 마당에서 3, 4 Ａ①", "\u1112\u1161\u11ab"])["input_ids"]
            assert all(0 <= token < len(tokenizer) for sentence in ids for token in sentence)
        return not refused(tokenizer)


def reads_vectors(data: bytes) -> bool:
    """A `.npy` file of a teacher's vectors."""
    with tempfile.TemporaryDirectory() as temporary:
        path = write(Path(temporary), "teacher.npy", data)
        vectors = attempt(open_vectors, path, names=[path.name])
        if not refused(vectors):
            assert vectors.ndim == 2 and vectors.dtype.kind == "f" and np.asarray(vectors[:2]).ndim == 2
        return not refused(vectors)


def reads_manifest(data: bytes) -> bool:
    """A folder of the data cache whose manifest is anything: it is taken for what it is, or made again."""
    with tempfile.TemporaryDirectory() as temporary:

        def build(folder: Path) -> dict:
            (folder / "file").write_bytes(b"content")
            return {"made": True}

        root = Path(temporary)
        folder, _ = cached_folder(root, "kind", {}, build)
        (folder / "manifest.json").write_bytes(data)
        again, record = attempt(cached_folder, root, "kind", {}, build)
        assert again == folder and (folder / "file").read_bytes() == b"content"
        return record == {"made": True}


VECTOR_FOLDER = {
    "model": {"name": "모델"},
    "options": {"format": "npy", "output_dtype": "float32", "shard_rows": 2, "with_text": False, "normalize": False},
    "data": [{"path": "말뭉치.txt", "sha256": "0"}],
}


@cache
def vector_folder_files() -> dict[str, bytes]:
    """A finished folder of three vectors."""
    with tempfile.TemporaryDirectory() as temporary:
        with vector_folder(Path(temporary)) as output:
            output.begin(VECTOR_FOLDER, lambda: [3], 3)
            for shard in output.missing():
                start, stop = output.span(shard)
                output.write(
                    shard, [(["글"] * (stop - start), np.eye(3, dtype=np.float32)[start:stop])], batch_tokens=9
                )
        return {path.name: path.read_bytes() for path in Path(temporary).iterdir() if path.name[0] != "."}


def reads_vector_manifest(data: bytes) -> bool:
    """A folder of vectors whose manifest is anything: nothing outside it is read, and it is filled or refused."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "vectors"
        for name, content in (vector_folder_files() | {"manifest.json": data}).items():
            write(folder, name, content)
        write(folder.parent, "x", vector_folder_files()["vectors-00000.npy"])
        vectors = attempt(open_vector_folder, folder, verify=True, names=[str(folder)])
        if not refused(vectors):
            taken = attempt(np.asarray, vectors, names=[str(folder)])
            assert refused(taken) or np.array_equal(taken, np.eye(3)[: len(vectors)])
        attempt(_goes_on, folder, names=[str(folder)])
        return not refused(vectors)


def _goes_on(folder: Path) -> None:
    with vector_folder(folder) as output:
        output.begin(VECTOR_FOLDER, lambda: [3], 3)
        output.missing()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


@cache
def binary_seeds() -> dict[str, list[bytes]]:
    """Valid files of the binary formats."""
    folders = model_folders()
    pieces = [("[UNK]", 0.0, 2), *((token, 0.0, 3) for token in family_tokenizers.KOBERT_TOKENS[1:])]
    pieces += [("▁", -1.0, 1), ("가", -2.0, 1), ("나", -2.0, 4), ("가나", -3.0, 1)]
    return {
        "sentencepiece": [
            folders["kobert"]["spiece.model"],
            family_tokenizers.sentencepiece_file(pieces),
            family_tokenizers.sentencepiece_file(pieces, algorithm=2),
            family_tokenizers.sentencepiece_file(
                pieces, character_map=family_tokenizers.character_map({"Ａ": "A", "①": "1", "가": "나"})
            ),
        ],
        "vectors": [
            npy(np.eye(3, dtype=np.float32)),
            npy(np.eye(3, dtype=np.float16, order="F")),
            npy(np.array([{"a": 1}], dtype=object)),
            b"PK\x03\x04" + bytes(40),
        ],
        "manifest": [b'{"key": {}, "record": {}, "files": {"file": {"bytes": 7, "sha256_of_ends": "0"}}}'],
        "vector_manifest": [vector_folder_files()["manifest.json"]],
    }


# Files that only the whole model reads.
WHOLE = ("config.json", "model.safetensors", "model.safetensors.index.json", "2_Dense/model.safetensors")

TARGETS: dict[str, tuple[Target, Callable[[], Sequence[bytes]]]] = {
    **{
        f"table{suffix}{packing}": (
            lambda data, name=f"데이터{suffix}{packing}": reads_table(data, name),
            lambda suffix=suffix, pack=pack: [pack(seed) for seed in table_seeds()[suffix]],
        )
        for suffix in FORMATS
        for packing, pack in PACKERS.items()
    },
    # The content is spoilt and then packed, else nearly every input ends at a checksum.
    **{
        f"inside{suffix}{packing}": (
            lambda data, name=f"데이터{suffix}{packing}", pack=pack: reads_table(pack(data), name),
            lambda suffix=suffix: table_seeds()[suffix],
        )
        for suffix in (".tsv", ".jsonl", ".parquet")
        for packing, pack in PACKERS.items()
        if packing
    },
    **{
        f"cached{suffix}": (
            lambda data, suffix=suffix: reads_table(data, f"데이터{suffix}", through_cache=True),
            lambda suffix=suffix: table_seeds()[suffix],
        )
        for suffix in (".tsv", ".jsonl")
    },
    **{
        f"config{suffix}": (
            lambda data, suffix=suffix: reads_config(data, suffix),
            lambda suffix=suffix: CONFIG_SEEDS[suffix],
        )
        for suffix in CONFIG_SEEDS
    },
    **{
        f"arguments{suffix}": (
            lambda data, suffix=suffix: parses_arguments(data, suffix),
            lambda suffix=suffix: CONFIG_SEEDS[suffix],
        )
        for suffix in CONFIG_SEEDS
    },
    **{
        f"{kind}/{name}": (
            lambda data, kind=kind, name=name: loads_model(kind, {name: data}, whole=name in WHOLE),
            lambda kind=kind, name=name: [model_folders()[kind][name]],
        )
        for kind, names in (
            (
                "head",
                (
                    "config.json",
                    "model.safetensors",
                    "modules.json",
                    "1_Pooling/config.json",
                    "2_Dense/config.json",
                    "2_Dense/model.safetensors",
                    "sentence_bert_config.json",
                    "config_sentence_transformers.json",
                    "tokenizer_config.json",
                    "vocab.txt",
                ),
            ),
            ("layers", ("1_WeightedLayerPooling/config.json", "1_WeightedLayerPooling/model.safetensors")),
            ("kobert", ("tokenizer_config.json",)),
            ("fast", ("tokenizer.json",)),
            ("shards", ("model.safetensors.index.json",)),
        )
        for name in names
    },
    "sentencepiece": (reads_sentencepiece, lambda: binary_seeds()["sentencepiece"]),
    "vectors": (reads_vectors, lambda: binary_seeds()["vectors"]),
    "manifest": (reads_manifest, lambda: binary_seeds()["manifest"]),
    "vector_manifest": (reads_vector_manifest, lambda: binary_seeds()["vector_manifest"]),
}

# Pieces that change what a file means: put in at any place.
WORDS: list[bytes] = [
    *(bytes([byte]) for byte in b"\t\n\r\0\",'{}[]:&*!#|>-.~%\\"),
    *(b"\r\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"PAR1", b"\xed\xa0\x80", b"\xc0\x80", b'""', b"\\ud800"),
    *("가", "\u1112\u1161\u11ab", "\u200b", "\u2028", "\x85", "\x1c", "n/a", "'", "１").__iter__(),
    *(b"NaN", b"Infinity", b"-0", b"1e999", b"null", b"true", b"9" * 5000, b"1_0", b"0x", b"1:1:1"),
    *(b"[" * 3000, b'{"a":' * 3000, b"- " * 2000, b"? " * 500),
    *(b"!!int ''", b"!!bool x", b"!!float ''", b"!!timestamp x", b"!!binary =", b"!!python/name:os.system", b"!!set"),
    *(b"&a ", b"*a", b"<<: *a", b"&a [*a]", b"a: &b [*a,*a,*a,*a,*a,*a,*a,*a]\n", b"---\n", b"%YAML 9.9\n"),
    *(b"${HOME}", b"${NOT_SET}", b"${${A}}", b"~nobody/", b"../../", b"/etc/passwd", b"\\u0000"),
    *(b'"text"', b'"label"', b'"score"', b'"auto_map"', b'"type"', b'"path"', b"sentence1", b"premise", b"negative_2"),
    *(b"\xff\xff\xff\xff", b"\xff" * 12, b"\x80" * 50, bytes(8), b"\x7f\xff\xff\xff", b"\x00\x00\x00\x80"),
]
WORDS = [word.encode() if isinstance(word, str) else word for word in WORDS]


@st.composite
def spoilt(draw, seeds: Sequence[bytes]) -> bytes:
    """A valid file with a few changes, or raw bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(
            st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
        )
    data = bytearray(draw(st.sampled_from(list(seeds))))
    for _ in range(draw(st.integers(0, 4))):
        spoil(data, lambda least, most: draw(st.integers(least, most)), lambda: draw(st.binary(min_size=1, max_size=8)))
    return bytes(data)


def spoil(data: bytearray, number: Callable[[int, int], int], some_bytes: Callable[[], bytes]) -> None:
    """One change: cut off, cut out, repeat, overwrite, put in a word, or put an odd value into JSON."""
    start = number(0, len(data))
    end = min(len(data), start + number(1, 64))
    match number(0, 8):
        case 7 | 8:
            _replace_a_value(data, number)
        case 0:
            del data[start:]
        case 1:
            del data[start:end]
        case 2:
            data[start:start] = data[start:end] * number(1, 3)
        case 3:
            content = some_bytes()
            data[start : start + len(content)] = content
        case 4:
            data[start:start] = some_bytes()
        case 5:
            data[start:start] = WORDS[number(0, len(WORDS) - 1)]
        case _:
            data[start:end] = WORDS[number(0, len(WORDS) - 1)]


ODD_VALUES = [
    None,
    True,
    -1,
    0,
    1.5,
    1e300,
    10**30,
    "",
    "가",
    "../x",
    "a\0b",
    [],
    [[]],
    {},
    {"a": []},
    ["cls", "mean"],
    [1, {}],
]


def _replace_a_value(data: bytearray, number: Callable[[int, int], int]) -> None:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return
    places: list[tuple] = []
    open_values = [content]
    while open_values:
        value = open_values.pop()
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        places += [(value, key) for key in keys]
        open_values += [value[key] for key in keys]
    if not places:
        return
    holder, key = places[number(0, len(places) - 1)]
    if number(0, 9) == 0:
        del holder[key]
    else:
        holder[key] = ODD_VALUES[number(0, len(ODD_VALUES) - 1)]
    data[:] = json.dumps(content).encode()


def examples(usual: int) -> int:
    """How many inputs a test tries: `usual`, or what SIMCSE_FUZZ_EXAMPLES says."""
    return int(os.environ.get("SIMCSE_FUZZ_EXAMPLES") or usual)
