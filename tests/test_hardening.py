"""No pickle is loaded, no foreign code run unless asked, no path leads out of a folder, no network is used unless named."""

from __future__ import annotations

import builtins
import json
import pickle
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import reconfigure, training
from fuzzing import attempt, model_folders, write
from safetensors.torch import load_file, save_file

from simcse_hf import SentenceEncoder, SimCSEModel
from simcse_hf.backbones import load_config
from simcse_hf.benchmark import open_encoder
from simcse_hf.cache_folder import cached_folder
from simcse_hf.cli import main
from simcse_hf.errors import ModelError, SimCSEError
from simcse_hf.generator import Generator
from simcse_hf.masked_lm import MaskedLanguageModel
from simcse_hf.sentence_transformers_layout import read_layout
from simcse_hf.teacher import _open_vectors
from simcse_hf.tokenization import load_tokenizer

PACKAGE = Path(__file__).parent.parent / "src/simcse_hf"


class Payload:
    """Unpickled, it leaves a file behind."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """The file that no test may leave; but each payload is shown to work first."""
    path = tmp_path / "code-was-run"
    pickle.loads(pickle.dumps(Payload(path)))
    assert path.exists(), "the payload does nothing, so its absence would prove nothing"
    path.unlink()
    return path


@pytest.fixture(autouse=True)
def nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question on the terminal would keep a job waiting."""

    def asked(*_) -> None:
        raise AssertionError("a question was asked on the terminal")

    monkeypatch.setattr(builtins, "input", asked)


def folder_of(parent: Path, kind: str, **changes: bytes) -> Path:
    for name, data in (model_folders()[kind] | changes).items():
        write(parent / "model", name, data)
    return parent / "model"


DOORS: dict[str, Callable[[str], object]] = {
    "SentenceEncoder": lambda name: SentenceEncoder.from_pretrained(name, pooler_type="avg", device="cpu"),
    "SimCSEModel": SimCSEModel.from_pretrained,
    "from_backbone": lambda name: SimCSEModel.from_backbone(name, pooler_type="avg"),
    "eval": lambda name: open_encoder(name, pooler_type="avg", device="cpu"),
}


# --- pickles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_weights_that_are_a_pickle_are_not_loaded(door: str, name: str, tmp_path: Path, trace: Path) -> None:
    folder = folder_of(tmp_path, "layers")
    (folder / "model.safetensors").unlink()
    torch.save(Payload(trace), folder / name)
    with pytest.raises(ModelError, match=re.escape(str(folder))):
        DOORS[door](str(folder))
    assert not trace.exists()


def test_an_index_that_names_a_pickle_is_refused(tmp_path: Path, trace: Path) -> None:
    folder = folder_of(tmp_path, "shards")
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    index["weight_map"] = dict.fromkeys(index["weight_map"], "weights.bin")
    write(folder, "model.safetensors.index.json", json.dumps(index).encode())
    torch.save(Payload(trace), folder / "weights.bin")
    with pytest.raises(ModelError, match=r"looks for weights in 'weights\.bin'; only \.safetensors files"):
        SimCSEModel.from_backbone(str(folder), pooler_type="avg")
    assert not trace.exists()


@pytest.mark.parametrize("module", ["2_Dense", "1_Pooling"])
def test_a_module_with_pickled_weights_is_refused(module: str, tmp_path: Path, trace: Path) -> None:
    """Also where sentence-transformers itself would have to load it."""
    folder = folder_of(tmp_path, "head")
    (folder / "2_Dense/model.safetensors").unlink()
    torch.save(Payload(trace), folder / "2_Dense/pytorch_model.bin")
    if module == "1_Pooling":  # a chain of modules that is none of ours
        write(folder, "1_Pooling/config.json", b'{"word_embedding_dimension": 8, "pooling_mode_lasttoken": true}')
    with pytest.raises(ModelError):
        open_encoder(str(folder), device="cpu")
    assert not trace.exists()


def test_vectors_that_are_a_pickle_are_refused(tmp_path: Path, trace: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([Payload(trace)], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "archive.npz", a=np.array([Payload(trace)], dtype=object), allow_pickle=True)
    write(tmp_path, "bare.npy", pickle.dumps(Payload(trace)))
    for name in ("objects.npy", "archive.npz", "bare.npy"):
        assert isinstance(attempt(_open_vectors, tmp_path / name, names=[name]), SimCSEError)
    assert not trace.exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, backbone_dir: Callable[..., Path]) -> tuple[dict, Path]:
    """Arguments of a small training, and its first checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    rows = "".join(f"문장 {n}\t같은 문장 {n}\n" for n in range(12))
    (folder / "pairs.tsv").write_text("anchor\tpositive\n" + rows, encoding="utf-8")
    good = {
        "model_name_or_path": backbone_dir(),
        "train_file": folder / "pairs.tsv",
        "eval_task": "none",
        "output_dir": folder / "run",
        "max_seq_length": 16,
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "save_steps": 1,
        "eval_steps": 1,
        "write_release": False,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    assert main(training(good)) == 0
    return good, folder / "run/checkpoint-1"


@pytest.mark.parametrize(
    ("name", "is_read"),
    [("optimizer.pt", True), ("rng_state.pth", True), ("scheduler.pt", True), ("training_args.bin", False)],
)
def test_a_pickle_in_a_checkpoint_is_not_run(
    name: str, is_read: bool, trained: tuple[dict, Path], tmp_path: Path, trace: Path
) -> None:
    """With the checksums taken away, as whoever spoilt the file would: it is torch's own check that is tested here."""
    good, checkpoint = trained
    spoilt = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint-1"))
    assert (spoilt / name).exists()
    torch.save(Payload(trace), spoilt / name)
    (spoilt / "checksums.json").unlink(missing_ok=True)
    argv = training(good | {"output_dir": tmp_path / "run", "resume_from_checkpoint": spoilt})
    if is_read:
        with pytest.raises(ModelError, match="checkpoint-1 cannot be resumed: .*holds more than tensors"):
            main([*argv, "--debug"])
    else:
        assert main(argv) == 0
    assert not trace.exists()


def test_weights_of_a_checkpoint_that_are_a_pickle_are_not_run(
    trained: tuple[dict, Path], tmp_path: Path, trace: Path
) -> None:
    good, checkpoint = trained
    spoilt = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint-1"))
    (spoilt / "model.safetensors").unlink()
    (spoilt / "checksums.json").unlink(missing_ok=True)
    torch.save(Payload(trace), spoilt / "pytorch_model.bin")
    with pytest.raises(ModelError, match="checkpoint-1 cannot be resumed|no file called model"):
        main([*training(good | {"output_dir": tmp_path / "run", "resume_from_checkpoint": spoilt}), "--debug"])
    assert not trace.exists()


def test_the_package_unpickles_nothing_and_unpacks_no_archive() -> None:
    forbidden = re.compile(
        r"\b(pickle\.loads?|torch\.load|joblib|marshal|shelve|eval\(|exec\(|tarfile|unpack_archive|extractall|ZipFile\b)"
        r"|allow_pickle=True|yaml\.(unsafe_load|full_load|load\()"
    )
    found = []
    for path in PACKAGE.rglob("*.py"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if (match := forbidden.search(line)) and not re.search(r"\.eval\(|def \w*eval\(|_eval\(", line):
                found.append(f"{path.name}:{number}: {match[0]}")
    assert not found


# --- code of others ---------------------------------------------------------------------------------------------------

EVIL = "from pathlib import Path\nPath({trace!r}).touch()\nfrom transformers import {base}\nclass {name}({base}):\n    pass\n"


def with_code(folder: Path, trace: Path, model_type: str = "bert") -> Path:
    """A folder whose configuration, model and tokenizer are classes of files beside them."""
    for name, base in (("EvilConfig", "BertConfig"), ("EvilModel", "BertModel"), ("EvilTokenizer", "BertTokenizer")):
        write(folder, f"{name.lower()}.py", EVIL.format(trace=str(trace), base=base, name=name).encode())
    classes = {
        "AutoConfig": "evilconfig.EvilConfig",
        "AutoModel": "evilmodel.EvilModel",
        "AutoModelForMaskedLM": "evilmodel.EvilModel",
    }
    reconfigure(folder, auto_map=classes, model_type=model_type)
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text(encoding="utf-8"))
    content |= {
        "auto_map": {"AutoTokenizer": ["eviltokenizer.EvilTokenizer", None]},
        "tokenizer_class": "EvilTokenizer",
    }
    settings.write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize("model_type", ["bert", "evil"])
def test_code_in_a_model_folder_is_not_run_unless_asked(model_type: str, tmp_path: Path, trace: Path) -> None:
    folder = with_code(folder_of(tmp_path, "layers"), trace, model_type)
    for door in (*DOORS.values(), load_config, load_tokenizer):
        outcome = attempt(door, str(folder), names=[str(folder)])
        assert not trace.exists(), door
        # A type that transformers knows is loaded by its own class; any other needs the code, and is refused.
        assert model_type == "bert" or door is load_tokenizer or isinstance(outcome, ModelError)
    ours = SimCSEModel.from_pretrained(str(folder_of(tmp_path / "ours", "head")))
    tokenizer = load_tokenizer(str(tmp_path / "ours/model"))
    attempt(MaskedLanguageModel.from_pretrained, str(folder), ours, tokenizer)
    attempt(Generator.from_pretrained, str(folder), tokenizer, max_seq_length=16)
    assert not trace.exists()


def test_code_in_a_model_folder_is_run_when_asked(tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above might pass because the payload is never found."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = with_code(folder_of(tmp_path, "layers"), trace, "evil")
    attempt(load_config, str(folder), trust_remote_code=True)
    assert trace.exists()


@pytest.mark.parametrize("command", ["eval", "encode", "train"])
def test_the_commands_refuse_code_in_one_line(command: str, refused, good, tmp_path: Path, trace: Path) -> None:
    folder = with_code(folder_of(tmp_path, "layers"), trace, "evil")
    argv = {
        "eval": ["eval", folder, "--tasks", "sample:sts", "--device", "cpu"],
        "encode": ["encode", "sample:sentences", "--model", folder, "--output", tmp_path / "a.npy", "--device", "cpu"],
        "train": training(good | {"model_name_or_path": folder}),
    }[command]
    message = refused(argv)
    assert str(folder) in message and "trust_remote_code" in message
    assert not trace.exists()


@pytest.mark.parametrize("module", ["evil.Evil", "os.system", "subprocess.Popen"])
def test_a_module_of_sentence_transformers_that_is_code_of_its_own_is_not_run(
    module: str, tmp_path: Path, trace: Path
) -> None:
    folder = folder_of(tmp_path, "head")
    write(folder, "evil.py", f"from pathlib import Path\nPath({str(trace)!r}).touch()\nclass Evil: pass\n".encode())
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    modules[-1]["type"] = module
    write(folder, "modules.json", json.dumps(modules).encode())
    with pytest.raises(ModelError, match=rf"has the module {module}, .* add --trust_remote_code"):
        open_encoder(str(folder), device="cpu")
    assert not trace.exists()


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["../outside", "/outside", "a/../../outside", "..\\outside", "C:\\outside", "\\\\host\\outside"]
)
def test_a_module_outside_of_its_folder_is_not_read(path: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "head")
    shutil.copytree(folder / "1_Pooling", tmp_path / "outside")
    if path == "/outside":
        path = str(tmp_path / "outside")
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    modules[1]["path"] = path
    write(folder, "modules.json", json.dumps(modules).encode())
    for door in (read_layout, DOORS["SentenceEncoder"], DOORS["eval"]):
        with pytest.raises(ModelError, match="looks for its Pooling in .* outside of that folder"):
            door(str(folder))


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "{absolute}", "sub/../../outside.safetensors", "..\\outside.safetensors"]
)
def test_an_index_that_names_weights_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "shards")
    weights = {}
    for shard in folder.glob("model-*.safetensors"):
        weights |= load_file(shard)
    save_file(weights, tmp_path / "outside.safetensors", metadata={"format": "pt"})
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    name = name.format(absolute=tmp_path / "outside.safetensors")
    index["weight_map"] = dict.fromkeys(index["weight_map"], name)
    write(folder, "model.safetensors.index.json", json.dumps(index).encode())
    with pytest.raises(ModelError, match="only .safetensors files beside it are read"):
        SimCSEModel.from_backbone(str(folder), pooler_type="avg")


def test_a_link_is_the_users_own_business(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "shards")
    for shard in folder.glob("model-*.safetensors"):
        shard.rename(tmp_path / shard.name)
        shard.symlink_to(tmp_path / shard.name)
    assert SimCSEModel.from_backbone(str(folder), pooler_type="avg")


def test_a_tokenizer_reads_no_file_elsewhere(tmp_path: Path) -> None:
    """`vocab_file` and the like in tokenizer_config.json are where it lay when it was saved."""
    folder = folder_of(tmp_path, "head")
    other = [f"밖{n}" for n in range(50)]
    write(tmp_path, "secret.txt", "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *other]).encode())
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings |= {"vocab_file": str(tmp_path / "secret.txt"), "tokenizer_file": "../secret.txt"}
    write(folder, "tokenizer_config.json", json.dumps(settings).encode())
    tokenizer = attempt(load_tokenizer, str(folder))
    assert isinstance(tokenizer, ModelError) or not set(other) & set(tokenizer.get_vocab())
    (folder / "vocab.txt").unlink()
    tokenizer = attempt(load_tokenizer, str(folder))
    assert isinstance(tokenizer, ModelError) or not set(other) & set(tokenizer.get_vocab())


def test_a_manifest_of_the_cache_takes_no_file_from_elsewhere(tmp_path: Path) -> None:
    """Whatever it names, what is read are the files of the folder that the key leads to."""

    def build(folder: Path) -> dict:
        (folder / "rows").write_bytes(b"rows")
        return {"made": 1}

    folder, _ = cached_folder(tmp_path / "cache", "kind", {}, build)
    assert (folder / "rows").read_bytes() == b"rows"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    write(tmp_path, "outside", b"rows")
    manifest["files"]["../../outside"] = manifest["files"].pop("rows")
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (folder / "rows").write_bytes(b"changed")
    again, _ = cached_folder(tmp_path / "cache", "kind", {}, build)
    assert again == folder
    assert (folder / "rows").read_bytes() == b"rows"


# --- network ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def sockets_are_counted(monkeypatch: pytest.MonkeyPatch) -> list:
    """Online as far as the libraries know, and every name looked up or connection made is remembered, and refused."""
    tried: list = []

    def refuse(*arguments, **_):
        tried.append(arguments)
        raise OSError("no network here")

    for module in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: False, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tried


def test_local_names_need_no_network(sockets_are_counted: list, tmp_path: Path, good) -> None:
    for kind in ("head", "layers", "kobert"):
        folder = folder_of(tmp_path / kind, kind)
        assert main(["eval", str(folder), "--tasks", "sample:sts", "--device", "cpu", "--max_seq_length", "16"]) == 0
    assert main(training(good | {"write_release": True})) == 0
    assert (
        main(["search", "--model", str(good["output_dir"]), "--corpus", "sample:sentences", "--device", "cpu", "질문"])
        == 0
    )
    assert not sockets_are_counted


@pytest.mark.parametrize("name", ["./missing", "runs/2024/missing", "/missing/model", "~/missing", "../missing", "."])
def test_a_missing_folder_is_not_looked_for_on_the_hub(
    name: str, sockets_are_counted: list, refused, tmp_path: Path, good
) -> None:
    encode = ["encode", "sample:sentences", "--model", name, "--output", tmp_path / "a.npy", "--device", "cpu"]
    for argv in (encode, ["eval", name, "--tasks", "sample:sts", "--device", "cpu"]):
        assert name in refused(argv)
    with_tokenizer = training(good | {"tokenizer_name": name})
    assert name in refused(with_tokenizer)
    assert not sockets_are_counted


def test_a_name_that_may_be_a_hub_id_says_what_it_was_taken_for(
    sockets_are_counted: list, refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # before each of many further attempts
    message = refused(["eval", "runs/missing", "--tasks", "sample:sts", "--device", "cpu"])
    assert "'runs/missing'" in message and "no such local folder, so it was taken for a Hub id" in message
    assert sockets_are_counted, "the only name here that may be one of the Hub"
