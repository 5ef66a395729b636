"""The folder listing is the architecture: text enters at the top and leaves at the bottom."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import simcse_hf
from simcse_hf.objectives import OBJECTIVES
from simcse_hf.versions import package_versions

REPOSITORY = Path(__file__).parent.parent
PACKAGE = Path(simcse_hf.__file__).parent

# A module may import only from the layers above its own.
LAYERS = [
    {
        "errors",
        "text",
        "distributed",
        "failures",
        "file_locks",
        "quiet",
        "versions",
        "official_files",
        "configuration_simcse",
        "cpu_kernels",
        "bart",
    },
    {
        "files",
        "strict_json",
        "interruption",
        "row_report",
        "sample",
        "packing",
        "masking",
        "numbering",
        "arrow_column",
        "shuffled_rows",
        "pooling",
        "similarity",
        "hub_files",
        "backbones",
        "running_means",
        "heads",
        "false_negatives",
        "matryoshka",
        "prediction_head",
        "sentencepiece_tokenizer",
        "method",
        "arguments",
        "parser",
    },
    {
        "sentence_transformers_layout",
        "tokenization",
        "tables",
        "nli",
        "leakage",
        "losses",
        "cosine_regression",
        "distillation",
        "replaced_tokens",
        "softmax_classification",
        "metrics",
        "sentence_store",
        "cache_folder",
        "collators",
        "attention",
        "passes",
        "mixing",
        "checkpoints",
        "process_guards",
        "vector_files",
    },
    {
        "table_shapes",
        "embedding",
        "sts_metric",
        "cosent",
        "symmetric",
        "training_guards",
        "vector_manifest",
        "continuation",
    },
    {"corpora", "auxiliary", "token_passes", "angle", "shared_folder", "command_line", "stages"},
    {
        "objectives",
        "corpus_folder",
        "corruption",
        "masked_lm",
        "generator",
        "distillation_auxiliary",
        "sts_tasks",
        "evaluation",
        "sentence_stream",
        "vector_shards",
    },
    {"batch_losses", "replaced_token_detection", "training_corpus", "model_card", "score_report"},
    {"modeling_simcse", "streamed_rows"},
    {"encoder", "dropout_audit", "starting_model", "objective_setup", "sharded_weights", "streamed_sets"},
    {"resumable_trainer", "release", "vector_origin", "benchmark"},
    {"trainer", "bulk_encoding", "search", "publication"},
    {"teacher", "mining", "run_folder"},
    {"training_sets"},
    {"train"},
    {"cli"},
]
LAYER_OF = {name: depth for depth, layer in enumerate(LAYERS) for name in layer}
MODULES = [path for path in [*PACKAGE.glob("*.py"), PACKAGE / "sample/__init__.py"] if path != PACKAGE / "__init__.py"]


def name_of(path: Path) -> str:
    return path.parent.name if path.name == "__init__.py" else path.stem


def package_imports(path: Path) -> set[str]:
    return {
        node.module.split(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level and node.module
    }


def outside_imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    return found | {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}


def test_every_module_has_a_layer_and_every_layer_names_modules() -> None:
    assert {name_of(path) for path in MODULES} == set(LAYER_OF)


def test_modules_import_only_from_the_layers_above() -> None:
    checked = 0
    for path in MODULES:
        for target in package_imports(path):
            assert LAYER_OF[target] < LAYER_OF[name_of(path)], f"{name_of(path)} must not import {target}"
            checked += 1
    assert checked > 50


def test_delicate_dependencies_have_one_door_each() -> None:
    doors = {
        "torch.distributed": {"distributed"},
        "yaml": {"parser"},
        "argparse": {"command_line"},
        "evaluate": {"sts_metric"},
    }
    for dependency, allowed in doors.items():
        users = {
            name_of(path) for path in MODULES if any(name.startswith(dependency) for name in outside_imports(path))
        }
        assert users == allowed, dependency


def test_the_trainer_of_transformers_has_one_door() -> None:
    def mentions(path: Path) -> bool:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        return any(isinstance(node, ast.Name) and node.id == "Trainer" for node in ast.walk(tree))

    assert {name_of(path) for path in MODULES if mentions(path)} == {"resumable_trainer"}


def test_the_core_maths_needs_no_transformers() -> None:
    names = [
        "pooling",
        "similarity",
        "losses",
        "metrics",
        "collators",
        "distributed",
        "packing",
        "passes",
        "masking",
        "heads",
    ]
    names += [objective.function.__module__.rpartition(".")[2] for objective in OBJECTIVES.values()]
    for name in names:
        assert not any(module.startswith("transformers") for module in outside_imports(PACKAGE / f"{name}.py")), name


def test_files_hold_one_concept() -> None:
    sizes = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {name: lines for name, lines in sizes.items() if lines > 400} == {}
    assert not {"utils", "helpers", "common", "misc", "base"} & set(LAYER_OF)


def test_a_reader_of_the_paper_needs_three_files_of_600_lines() -> None:
    files = ("pooling.py", "losses.py", "modeling_simcse.py")
    assert sum(len((PACKAGE / name).read_text(encoding="utf-8").splitlines()) for name in files) <= 600


def test_the_public_names_are_exactly_the_promised_ones() -> None:
    assert simcse_hf.__all__ == sorted(simcse_hf.__all__)
    for name in simcse_hf.__all__:
        assert getattr(simcse_hf, name).__module__.startswith("simcse_hf"), name
    modules = set(LAYER_OF)
    public = {name for name in dir(simcse_hf) if not name.startswith("_")} - modules - {"annotations"}
    assert public == set(simcse_hf.__all__)


def test_the_version_is_the_newest_in_the_changelog() -> None:
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\d+\.\d+\.\d+)", changelog, re.MULTILINE).group(1) == simcse_hf.__version__


def test_a_record_names_the_version_that_ran_and_not_the_one_once_installed(monkeypatch) -> None:
    monkeypatch.setattr(simcse_hf, "__version__", "9.9.9")
    assert package_versions()["simcse-hf"] == "9.9.9"


def test_the_readme_shows_the_real_tree() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^  ([a-z_]+)(?:\.py|/) ", readme, re.MULTILINE))
    assert listed == set(LAYER_OF) | {"templates"}


def test_every_python_file_parses_on_python_3_11() -> None:
    files = [*PACKAGE.rglob("*.py"), *REPOSITORY.glob("*.py"), *REPOSITORY.glob("benchmarks/*.py")]
    assert len(files) > 30
    for path in files:
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 11))
