"""Every shipped config is valid, says what it stands for, and runs on a tiny model of its family."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path

import family_tokenizers
import pytest
import torch
import transformers.integrations.deepspeed as transformers_deepspeed
import yaml
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from conftest import REPOSITORY
from transformers import (
    AutoModelForMaskedLM,
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.modeling_utils import PreTrainedModel

from simcse_hf import SimCSEModel
from simcse_hf.arguments import DataArguments, ModelArguments, SimCSETrainingArguments
from simcse_hf.parser import parse_arguments
from simcse_hf.release import write_release
from simcse_hf.sts_tasks import load_sts
from simcse_hf.tokenization import load_tokenizer
from simcse_hf.train import TrainingRun, train

CONFIGS = sorted((REPOSITORY / "configs").glob("*.json"))
STAGES = sorted((REPOSITORY / "configs/stages").glob("*.json"))
PUBLISHED = {
    "sup_bert", "sup_roberta", "unsup_bert", "unsup_roberta", "kosimcse_kobert", "kosimcse_bert", "kosimcse_roberta",
    "kosimcse_unsup_bert", "kosimcse_unsup_roberta", "ddobokki_roberta_small", "princeton_sup", "princeton_unsup",
    "quickstart", "kodiffcse_roberta", "diffcse", "multitask_bert", "multitask_roberta", "kosbert_bert",
    "kosbert_roberta", "kosentence_t5", "kosentence_bart", "domain_adaptation", "matryoshka_bert", "distillation",
}  # fmt: skip
SENTENCES = {"kodiffcse_roberta", "diffcse", "domain_adaptation", "distillation", "ddobokki_roberta_small"}
AUXILIARIES = {
    "kodiffcse_roberta": ["replaced_tokens"],
    "diffcse": ["replaced_tokens"],
    "distillation": ["distillation"],
}
# What the tests change, for size, speed and machine.
CHANGED = {"_about", "model_name_or_path", "output_dir", "per_device_train_batch_size", "fp16", "matryoshka_dims"}
CHANGED |= {
    "generator_name",
    "teacher_name_or_path",
    "final_tasks",
    "train_file",
    "scored_file",
    "eval_task",
    "use_cpu",
}


def settings_of(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_there_is_one_for_every_recipe() -> None:
    assert {path.stem for path in CONFIGS} == PUBLISHED


def test_every_stage_is_a_stage_of_a_config() -> None:
    used = [settings["first_stage"] for path in CONFIGS if "first_stage" in (settings := settings_of(path))]
    assert {str(path.relative_to(REPOSITORY)) for path in STAGES} == set(used)
    assert all(len(settings_of(path)["_about"]) > 150 for path in STAGES)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_says_what_it_stands_for_and_runs_two_steps(path: Path, run: Callable[[Path], TrainingRun]) -> None:
    """The same arguments, on a tiny model of the same family and on a few rows in the same formats."""
    settings = settings_of(path)
    assert len(settings["_about"]) > 150
    assert "No number here is ours" in settings["_about"] or path.stem == "quickstart"
    outcome = run(path)
    record, config = outcome.record, outcome.model.config
    assert record["steps"] == 2
    assert record["data"]["shape"] == shape_of(path.stem, settings)
    assert (record["scored_data"] or {}).get("shape") == ("scored" if "scored_file" in settings else None)
    given = {key: value for part in record["arguments"].values() for key, value in part.items()}
    for key in settings.keys() - CHANGED:
        assert given[key] == settings[key], key
    if "pooler_type" in settings:
        assert config.pooler_type == settings["pooler_type"]
    kind = {"kosentence_t5": "t5"}.get(path.stem, "roberta" if "roberta" in settings["model_name_or_path"] else "bert")
    assert config.text_config.model_type == kind
    assert list(outcome.model.auxiliaries) == AUXILIARIES.get(path.stem, [])
    if path.stem in CHECKS:
        CHECKS[path.stem](outcome)


def shape_of(name: str, settings: dict) -> str:
    if "first_stage" in settings:
        return "scored"
    if name == "quickstart":
        return "triplets"
    return "sentences" if "unsup" in name or name in SENTENCES else "nli"


def check_two_stages(outcome: TrainingRun) -> None:
    first = outcome.record["first_stage"]
    assert first["steps"] == 2 and first["data"]["shape"] == "labelled"
    assert [Path(source["path"]).name for source in first["data"]["sources"]] == ["snli_1.0_train.ko.tsv"]
    given = {key: value for part in first["arguments"].values() for key, value in part.items()}
    for key, value in settings_of(REPOSITORY / "configs/stages/nli_softmax.json").items():
        assert key in CHANGED or given[key] == value, key
    # The second begins where the first ended.
    assert first["output_dir"] == str(outcome.output_dir / "first_stage")
    assert outcome.before.metrics == pytest.approx(first["results"][0]["metrics"], abs=1e-6)


def check_domain_adaptation(outcome: TrainingRun) -> None:
    """The domain's own text weighs most, sentences of the evaluation set are left out, and the last weights ship."""
    data, settings = outcome.record["data"], outcome.record["arguments"]["data"]
    weights = settings["source_weights"]
    assert len(weights) == len(data["sources"]) == 4
    assert Path(data["sources"][weights.index(max(weights))]["path"]).name == "domain.txt"
    assert data["report"]["dropped"]["in_evaluation_set"] == 1
    assert outcome.record["selected_on"] is None


CHECKS = {
    "kosbert_bert": check_two_stages,
    "kosbert_roberta": check_two_stages,
    "domain_adaptation": check_domain_adaptation,
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[[str], Path]) -> Callable:
    def start(path: Path) -> TrainingRun:
        settings = settings_of(path)
        write_data(tmp_path / "data")
        monkeypatch.setenv("SIMCSE_DATA_DIR", str(tmp_path / "data"))
        monkeypatch.setenv("DOMAIN_TEXT", str(tmp_path / "data/domain.txt"))
        monkeypatch.chdir(REPOSITORY)  # where relative paths start
        flags = {
            "output_dir": tmp_path / "out",
            "model_name_or_path": tiny_model(settings["model_name_or_path"]),
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "fp16": "false",
            "use_cpu": "true",
            "eval_task": "sample:sts",
            "disable_tqdm": "true",
        }
        if "generator_name" in settings:
            flags["generator_name"] = tiny_model(f"generator {settings['generator_name']}")
        if "teacher_name_or_path" in settings:
            flags["teacher_name_or_path"] = tiny_model("teacher")
        command = [
            "--config",
            str(path),
            *(str(part) for name, value in flags.items() for part in (f"--{name}", value)),
        ]
        if "matryoshka_dims" in settings:
            command += ["--matryoshka_dims", "8", "16"]
        arguments = parse_arguments((ModelArguments, DataArguments, SimCSETrainingArguments), command)
        arguments[1].final_tasks = None
        return train(*arguments)

    return start


@pytest.fixture(scope="session")
def tiny_model(
    tmp_path_factory: pytest.TempPathFactory,
    backbone_dir: Callable[..., Path],
    text_config: Callable,
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[[str], Path]:
    """A tiny stand-in for a published model, of the same architecture and with the same kind of tokenizer."""
    made: dict[str, Path] = {}
    size = {"d_model": 16, "vocab_size": 400}

    def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    def released(kind: str, pooler_type: str) -> Path:
        model = SimCSEModel.from_backbone(str(backbone_dir(kind)), pooler_type=pooler_type)
        folder = tmp_path_factory.mktemp("released")
        write_release(model, tokenizer, folder)
        return folder

    def build(name: str) -> Path:
        torch.manual_seed(2)
        if "t5" in name:
            words = family_tokenizers.t5()
            config = T5Config(**size, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=words.pad_token_id)
            return save(T5ForConditionalGeneration(config), words, "t5")
        if "kobart" in name:
            words = family_tokenizers.kobart()
            layers = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
            width = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 128}
            return save(
                BartModel(BartConfig(**size, **layers, **width, pad_token_id=words.pad_token_id)), words, "bart"
            )
        if "kobert" in name:
            folder = tmp_path_factory.mktemp("kobert")
            vocabulary = len(family_tokenizers.kobert(folder))
            width = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
            config = BertConfig(vocab_size=vocabulary, **width, pad_token_id=load_tokenizer(str(folder)).pad_token_id)
            BertModel(config).save_pretrained(folder)
            return folder
        kind = "roberta" if "roberta" in name else "bert"
        if name.startswith("generator"):
            return save(
                AutoModelForMaskedLM.from_config(text_config(kind, num_hidden_layers=1)), tokenizer, "generator"
            )
        if name == "teacher":
            return released("xlm-roberta", "cls_before_pooler")
        return released(kind, "avg") if name.startswith("runs/") else backbone_dir(kind)

    def find(name: str) -> Path:
        if name not in made:
            made[name] = build(name)
        return made[name]

    return find


def write_data(folder: Path) -> None:
    """A few rows in the formats and under the names of the published files."""
    nli, sts, klue = (folder / name for name in ("KorNLUDatasets/KorNLI", "KorNLUDatasets/KorSTS", "klue"))
    for each in (nli, sts, klue):
        each.mkdir(parents=True)
    for name, word in (("multinli.train.ko.tsv", "책"), ("snli_1.0_train.ko.tsv", "밥")):
        lines = ["sentence1\tsentence2\tgold_label"]
        for index in range(10):
            lines.append(f"{word} {index}권이 있다.\t{word}이 있다.\tentailment")
            lines.append(f'{word} {index}권이 있다.\t"{word}이 없다.\tcontradiction')
            lines.append(f"{word} {index}권이 있다.\t{word}이 무겁다.\tneutral")
        (nli / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    pairs = [(f"{index}층에 산다.", f"집이 {index}층에 있다.", index % 6) for index in range(12)]
    lines = ["genre\tfilename\tyear\tid\tscore\tsentence1\tsentence2"]
    lines += [f"news\tfile\t2012\t{index}\t{score:.3f}\t{a}\t{b}" for index, (a, b, score) in enumerate(pairs)]
    (sts / "sts-train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = [
        {"sentence1": f"방이 {index}개다.", "sentence2": f"침대가 {index}개다.", "labels": {"label": index / 2}}
        for index in range(8)
    ]
    (klue / "klue-sts-v1.1_train.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    for name in ("korean_wiki_1m", "korean_wikipedia"):
        (folder / f"{name}.txt").write_text("".join(f"{n}번째 문장입니다.\n" for n in range(20)), encoding="utf-8")
    in_evaluation_set = load_sts("sample:sts").sentences1[0]
    domain = [*(f"{n}점짜리 영화다." for n in range(20)), in_evaluation_set]
    (folder / "domain.txt").write_text("\n".join(domain) + "\n", encoding="utf-8")


def test_the_accelerate_files_load_and_name_their_machine() -> None:
    files = sorted((REPOSITORY / "configs/accelerate").glob("*.yaml"))
    names = ["cpu", "cpu_2_processes", "deepspeed_zero2", "fsdp2", "multi_gpu", "single_bf16", "single_fp16"]
    assert [path.stem for path in files] == names
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert text.startswith("# ") and "accelerate launch" in text
        content = yaml.safe_load(text)
        assert content["compute_environment"] == "LOCAL_MACHINE"
        precision = {"single_fp16": "fp16", "single_bf16": "bf16", "multi_gpu": "fp16", "deepspeed_zero2": None}
        assert content.get("mixed_precision") == precision.get(path.stem, "no")
        assert content["use_cpu"] == path.stem.startswith("cpu")
        assert content["num_processes"] == {"cpu_2_processes": 2}.get(
            path.stem, 4 if content["distributed_type"] != "NO" else 1
        )


def test_the_fsdp_file_asks_for_what_is_checked() -> None:
    """`check_sharding` refuses other values; accelerate passes these on as FSDP_VERSION and so forth."""
    content = yaml.safe_load((REPOSITORY / "configs/accelerate/fsdp2.yaml").read_text(encoding="utf-8"))
    settings = content["fsdp_config"]
    assert content["distributed_type"] == "FSDP" and settings["fsdp_version"] == 2
    assert settings["fsdp_state_dict_type"] == "FULL_STATE_DICT"
    assert settings["fsdp_cpu_ram_efficient_loading"] is False


@pytest.mark.parametrize("precision", ["fp16", "bf16", "no"])
def test_transformers_fills_in_every_auto_of_the_deepspeed_file(precision: str, tmp_path: Path, monkeypatch) -> None:
    """And DeepSpeed's own parser takes the result, where it is installed."""
    yaml_file = yaml.safe_load((REPOSITORY / "configs/accelerate/deepspeed_zero2.yaml").read_text(encoding="utf-8"))
    path = REPOSITORY / yaml_file["deepspeed_config"]["deepspeed_config_file"]
    args = SimCSETrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=24, gradient_accumulation_steps=3
    )
    args.fp16, args.bf16 = precision == "fp16", precision == "bf16"
    monkeypatch.setattr(transformers_deepspeed, "dep_version_check", lambda *_: None)

    class Filled(transformers_deepspeed.HfTrainerDeepSpeedConfig, HfDeepSpeedConfig):
        """Where deepspeed is not installed, transformers leaves accelerate's class out."""

    filled = Filled(str(path))
    filled.trainer_config_process(args)
    config = filled.config
    assert "auto" in path.read_text(encoding="utf-8") and "auto" not in json.dumps(config)
    assert config["zero_optimization"]["stage"] == 2
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (24, 3)
    assert config["gradient_clipping"] == args.max_grad_norm == 1.0
    assert (config["fp16"]["enabled"], config["bf16"]["enabled"]) == (precision == "fp16", precision == "bf16")
    if importlib.util.find_spec("deepspeed") is None:
        return
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.config import DeepSpeedConfig

    parsed = DeepSpeedConfig(config)
    assert parsed.zero_optimization_stage == 2 and parsed.train_micro_batch_size_per_gpu == 24
    assert parsed.bfloat16_config.enabled == (precision == "bf16") and parsed.gradient_clipping == 1.0


def test_the_recipes_page_lists_every_config_with_its_own_numbers() -> None:
    page = (REPOSITORY / "docs/recipes.md").read_text(encoding="utf-8")
    for path in CONFIGS:
        settings = settings_of(path)
        row = next((line for line in page.splitlines() if line.startswith(f"| `{path.name}`")), "")
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 8, f"docs/recipes.md has no row for {path.name}"
        assert cells[2] == f"`{settings['model_name_or_path']}`" and cells[5] == f"{settings['learning_rate']:g}"
        assert cells[3] == settings.get("pooler_type", "of the model")
        assert re.match(rf"{settings['per_device_train_batch_size']}\b", cells[4])
        trains_on_scores = "KorSTS/sts-train" in json.dumps(settings) and "sentences" not in settings.values()
        assert ("**K**" in cells[1]) == trains_on_scores
        assert ("TRAINS ON KorSTS-train" in settings["_about"]) == trains_on_scores
