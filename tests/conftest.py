"""The tests' world: tiny models with live dropout, no network, real data where it is there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import settings
from transformers import (
    AutoModel,
    BertConfig,
    DebertaConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    PreTrainedTokenizerBase,
    RobertaConfig,
    XLMRobertaConfig,
)
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging as transformers_logging

from simcse_hf.arguments import DataArguments, ModelArguments, SimCSETrainingArguments
from simcse_hf.cli import main
from simcse_hf.sample import SAMPLES
from simcse_hf.tokenization import load_tokenizer
from simcse_hf.train import TrainingRun, train

# The same inputs every time, so that a change is judged by what it does; SIMCSE_FUZZ_EXAMPLES looks for new ones.
settings.register_profile("repeatable", derandomize=not os.environ.get("SIMCSE_FUZZ_EXAMPLES"))
settings.load_profile("repeatable")
transformers_logging.disable_progress_bar()
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored from birth where the tests run in the background
torch.set_num_threads(1)  # tiny models: threads cost more than they give

REPOSITORY = Path(__file__).parent.parent

_SIZE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
_DISTILBERT_SIZE = {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64}

BACKBONES: dict[str, tuple[type[PreTrainedConfig], dict]] = {
    "bert": (BertConfig, _SIZE),
    "roberta": (RobertaConfig, _SIZE | {"max_position_embeddings": 130}),
    "xlm-roberta": (XLMRobertaConfig, _SIZE | {"max_position_embeddings": 130}),
    "electra": (ElectraConfig, _SIZE | {"embedding_size": 16}),
    "distilbert": (DistilBertConfig, _DISTILBERT_SIZE),
    "deberta": (DebertaConfig, _SIZE),
    "deberta-v2": (DebertaV2Config, _SIZE),
    "modernbert": (
        ModernBertConfig,
        _SIZE | {"cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3, "mlp_dropout": 0.1},
    ),
}
POOLERS = ["cls", "cls_before_pooler", "avg", "avg_top2", "avg_first_last", "max"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback only (two-process tests need it): any other connection is a failure."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address, *arguments):
        host = address[0] if isinstance(address, tuple) else address
        if self.family != socket.AF_UNIX and host not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address}")
        return connect(self, address, *arguments)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session", autouse=True)
def no_data_cache_at_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Fixtures that train for many tests are made before `own_data_cache`."""
    os.environ["SIMCSE_CACHE_DIR"] = str(tmp_path_factory.mktemp("data-cache"))


@pytest.fixture(autouse=True)
def own_data_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts with an empty data cache."""
    monkeypatch.setenv("SIMCSE_CACHE_DIR", str(tmp_path_factory.mktemp("data-cache")))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real Korean data; see the README."""
    return _folder("SIMCSE_DATA_DIR", "../shared/data")


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """Real Korean encoders; see the README."""
    return _folder("SIMCSE_MODELS_DIR", "../shared/models")


def _folder(variable: str, default: str) -> Path:
    folder = Path(os.environ.get(variable, REPOSITORY / default)).resolve()
    if not folder.is_dir():
        pytest.skip(f"{variable} is not set to a folder that exists")
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """The sample tokenizer: Korean, 8,000 tokens, nothing unknown to it."""
    return load_tokenizer(str(SAMPLES["encoder"]))


@pytest.fixture(scope="session")
def text_config(tokenizer: PreTrainedTokenizerBase) -> Callable[..., PreTrainedConfig]:
    """`text_config("bert", **overrides)`: a 3-layer configuration that fits the sample tokenizer."""

    def build(kind: str = "bert", **overrides) -> PreTrainedConfig:
        config_class, size = BACKBONES[kind]
        settings = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **size, **overrides}
        return config_class(**settings)

    return build


@pytest.fixture(scope="session")
def backbone_dir(
    tmp_path_factory: pytest.TempPathFactory, text_config: Callable, tokenizer: PreTrainedTokenizerBase
) -> Callable[..., Path]:
    """`backbone_dir("roberta", **overrides)`: a saved tiny encoder with its tokenizer, random weights, fixed seed."""
    made: dict[str, Path] = {}

    def build(kind: str = "bert", **overrides) -> Path:
        key = f"{kind}-{sorted(overrides.items())}"
        if key not in made:
            folder = tmp_path_factory.mktemp(kind)
            torch.manual_seed(1)
            model = AutoModel.from_config(text_config(kind, **overrides))
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[key] = folder
        return made[key]

    return build


# Odd lengths on purpose: one word, a long one that max_seq_length cuts, and everyday sentences.
SENTENCES = [
    "네.",
    "오늘은 아침부터 비가 내려서 우산을 챙겼어요.",
    "지하철이 늦게 와서 회의에 지각했다.",
    "고양이가 창가에서 졸고 있습니다.",
    "이번 주말에 같이 등산 갈래?",
    "아주 긴 문장을 하나 만들기 위해서 " * 12 + "계속 적었습니다.",
]


@pytest.fixture
def batch(tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """Padded ids and mask (6, T) of `SENTENCES`."""
    encoded = tokenizer(SENTENCES, padding=True, truncation=True, max_length=40, return_tensors="pt")
    assert (encoded["attention_mask"] == 0).any(), "no padding in the fixture: tests of it would be vacuous"
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}


TRIPLETS = "anchor\tpositive\tnegative\n" + "".join(f"문장 {n}\t같은 문장 {n}\t다른 문장 {n}\n" for n in range(12))


@pytest.fixture
def good(tmp_path: Path, backbone_dir: Callable[..., Path]) -> dict:
    """A small training that works; each test spoils one thing of it."""
    train_file = tmp_path / "train.tsv"
    train_file.write_text(TRIPLETS, encoding="utf-8")
    return {
        "model_name_or_path": backbone_dir(),
        "train_file": train_file,
        "eval_task": "none",
        "output_dir": tmp_path / "run",
        "max_seq_length": 16,
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "eval_steps": 1,
        "save_steps": 1,
        "save_total_limit": 5,
        "write_release": False,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }


@pytest.fixture
def run(tmp_path: Path, backbone_dir: Callable[..., Path]) -> Callable[..., TrainingRun]:
    """Starts a small training from arguments; `model`, `data` and the rest change some of them, None leaves one out."""

    def start(folder: str = "run", *, model=None, data=None, **training_settings) -> TrainingRun:
        model_args = {"model_name_or_path": str(backbone_dir()), "pooler_type": "avg", "max_seq_length": 16}
        data_args = {"train_file": ["sample:triplets"], "eval_task": "sample:sts", "max_train_samples": 32}
        settings = {
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-3,
            "max_steps": 4,
            "eval_steps": 2,
            "save_steps": 2,
            "logging_steps": 2,
        }
        model_args |= model or {}
        return train(
            ModelArguments(**{key: value for key, value in model_args.items() if value is not None}),
            DataArguments(**data_args | (data or {})),
            SimCSETrainingArguments(
                output_dir=str(tmp_path / folder), use_cpu=True, disable_tqdm=True, **(settings | training_settings)
            ),
        )

    return start


def training(settings: dict, *flags: str) -> list[str]:
    return ["train", *(str(part) for key, value in settings.items() for part in (f"--{key}", value)), *flags]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Runs a command that must fail as promised; returns its one line."""

    def run(argv: list, *, code: int = 2) -> str:
        capsys.readouterr()
        found = main([str(part) for part in argv])
        output = capsys.readouterr()
        lines = output.err.splitlines()
        assert found == code, f"exit code {found}\n{output.err}"
        assert sum(line.startswith("error: ") for line in lines) == 1, output.err
        assert lines[-1].startswith("error: "), "something follows the error"
        assert "Traceback" not in output.err and "usage:" not in output.err
        assert "written:" not in output.out and "results:" not in output.out
        return lines[-1].removeprefix("error: ")

    return run


def says(message: str, *fragments: str) -> None:
    missing = [fragment for fragment in fragments if fragment not in message]
    assert not missing, f"{missing} not in: {message}"


def wait_for_words(words: str, log: Path, process: subprocess.Popen, seconds: float = 120) -> None:
    """Until a process has written them."""
    deadline = time.monotonic() + seconds
    while words not in (text := log.read_text(encoding="utf-8")):
        assert process.poll() is None and time.monotonic() < deadline, text
        time.sleep(0.05)


@pytest.fixture
def model_dir(tmp_path: Path, backbone_dir: Callable[..., Path]) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(backbone_dir(), tmp_path / "model"))


def reconfigure(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
