"""The commands where all is well: what they print and what they leave behind."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, SENTENCES, says
from transformers import AutoModel, AutoTokenizer

from simcse_hf import SentenceEncoder, SimCSEModel
from simcse_hf.cli import main
from simcse_hf.files import sha256_of
from simcse_hf.row_report import RowReport
from simcse_hf.sample import SAMPLES
from simcse_hf.tables import read_table
from simcse_hf.vector_manifest import GREATEST

ENCODER = ["--model", "sample:encoder", "--pooler_type", "avg", "--max_seq_length", "16"]


@pytest.fixture
def succeeds(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Runs a command that must succeed; returns what it printed."""

    def run(*argv) -> str:
        capsys.readouterr()
        assert main([str(part) for part in argv]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join([*SENTENCES, SENTENCES[0]]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder.from_pretrained(str(SAMPLES["encoder"]), pooler_type="avg", max_seq_length=16)


# --- prepare --------------------------------------------------------------------------------------------------------

NLI = """premise\thypothesis\tgold_label
비가 온다.\t날씨가 궂다.\tentailment
비가 온다.\t하늘에서 물이  떨어진다.\tentailment
비가 온다.\t해가 난다.\tcontradiction
비가 온다.\t우산을 샀다.\tneutral
개가 짖는다.\t동물이 소리를 낸다.\tentailment
"""


def test_prepare_makes_the_triplets_of_its_rule_and_says_what_it_dropped(succeeds, tmp_path) -> None:
    (tmp_path / "nli.tsv").write_text(NLI, encoding="utf-8")
    target = tmp_path / "made" / "triplets.tsv"
    printed = succeeds("prepare", tmp_path / "nli.tsv", "--output", target)
    header = "anchor\tpositive\tnegative\n"
    last = "비가 온다.\t하늘에서 물이 떨어진다.\t해가 난다.\n"
    assert target.read_text(encoding="utf-8") == header + last
    assert "5 rows read, 1 triplets kept" in printed and "1 dropped: premise without contradiction" in printed
    assert printed.endswith(f"written: {target}\n")

    succeeds("prepare", tmp_path / "nli.tsv", "--rule", "all", "--output", target)
    both = header + "비가 온다.\t날씨가 궂다.\t해가 난다.\n" + last
    assert target.read_text(encoding="utf-8") == both, "an earlier file is replaced"
    assert [path.name for path in target.parent.iterdir()] == ["triplets.tsv"]


def test_prepare_takes_several_files_and_skips_bad_rows_when_told(succeeds, tmp_path) -> None:
    (tmp_path / "a.tsv").write_text(NLI, encoding="utf-8")
    (tmp_path / "b.tsv").write_text(
        "premise\thypothesis\tgold_label\n개가 짖는다.\t조용하다.\tcontradiction\nshort\n", encoding="utf-8"
    )
    target = tmp_path / "triplets.tsv"
    printed = succeeds("prepare", tmp_path / "a.tsv", tmp_path / "b.tsv", "--on_bad_row", "skip", "--output", target)
    assert target.read_text(encoding="utf-8").splitlines()[2] == "개가 짖는다.\t동물이 소리를 낸다.\t조용하다."
    assert "1 dropped: wrong number of fields" in printed and "b.tsv, line 3" in printed


# --- encode ---------------------------------------------------------------------------------------------------------


def test_encode_writes_a_vector_for_every_line_in_its_order(succeeds, corpus, encoder, tmp_path) -> None:
    target = tmp_path / "made" / "vectors.npy"
    printed = succeeds("encode", corpus, *ENCODER, "--output", target, "--batch_tokens", "30", "--device", "cpu")
    assert printed == f"written: {target}, 7 x 256 float32\n"
    vectors = np.load(target)
    assert vectors.shape == (7, 256) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[:6], encoder.encode(SENTENCES), atol=1e-5)
    assert np.array_equal(vectors[0], vectors[6]) and not np.allclose(vectors[0], vectors[1])
    assert [path.name for path in target.parent.iterdir()] == ["vectors.npy"]


def test_encode_scales_to_unit_length_only_when_asked(succeeds, corpus, tmp_path) -> None:
    plain, unit = tmp_path / "plain.npy", tmp_path / "unit.npy"
    succeeds("encode", corpus, *ENCODER, "--output", plain)
    succeeds("encode", corpus, *ENCODER, "--output", unit, "--normalize")
    lengths = np.linalg.norm(np.load(plain), axis=1)
    assert (np.abs(lengths - 1) > 0.1).all()
    np.testing.assert_allclose(np.load(unit), np.load(plain) / lengths[:, None], atol=1e-6)


def test_the_prompt_and_the_pooler_change_the_vectors(succeeds, corpus, tmp_path) -> None:
    made = {}
    for name, options in {
        "plain": [],
        "prompt": ["--prompt", "질문: "],
        "pooler": ["--pooler_type", "max"],
        "length": ["--max_seq_length", "4"],
    }.items():
        succeeds("encode", corpus, *ENCODER, *options, "--output", tmp_path / f"{name}.npy")
        made[name] = np.load(tmp_path / f"{name}.npy")
    for name in ("prompt", "pooler", "length"):
        assert not np.allclose(made[name], made["plain"], atol=1e-3), name


# --- search ---------------------------------------------------------------------------------------------------------


def test_search_prints_json_with_the_line_numbers_of_the_corpus(succeeds, corpus, encoder) -> None:
    queries = [SENTENCES[3], "고양이가 존다."]
    found = json.loads(succeeds("search", *ENCODER, "--corpus", corpus, "--top_k", "3", "--json", *queries))
    assert [entry["query"] for entry in found] == queries
    for entry in found:
        scores = [hit["score"] for hit in entry["results"]]
        assert len(scores) == 3 and scores == sorted(scores, reverse=True)
        lines = corpus.read_text(encoding="utf-8").splitlines()
        assert all(lines[hit["line"] - 1] == hit["sentence"] for hit in entry["results"])
    best = found[0]["results"][0]
    assert best["sentence"] == SENTENCES[3] and best["line"] == 4 and best["score"] == pytest.approx(1)
    cosines = encoder.similarity(queries[1], SENTENCES)[0]
    assert found[1]["results"][0]["score"] == pytest.approx(float(cosines.max()), abs=1e-5)


def test_search_prints_the_same_for_a_reader(succeeds, corpus) -> None:
    printed = succeeds("search", *ENCODER, "--corpus", corpus, "--top_k", "99", SENTENCES[3]).splitlines()
    assert printed[:2] == [SENTENCES[3], f"  1.0000  {SENTENCES[3]}"]
    assert len(printed) == 1 + len(SENTENCES) + 1, "no more than the corpus holds"


# --- eval -----------------------------------------------------------------------------------------------------------


def test_eval_prints_a_table_and_writes_the_same_scores_with_their_protocol(succeeds, tmp_path) -> None:
    printed = succeeds(
        "eval", "sample:encoder", "--pooler_type", "avg", "--tasks", "sample:sts", "--output", tmp_path / "scores"
    )
    header, _, row, *written = printed.splitlines()
    record = json.loads((tmp_path / "scores/scores.json").read_text(encoding="utf-8"))
    (score,) = record["scores"]
    assert score["model"] == "sample:encoder" and score["task"] == "sample-sts" and score["num_pairs"] == 264
    assert score["encoder"]["pooler_type"] == "avg" and score["text_mode"] == "nfc"
    assert score["sources"][0]["sha256"] == sha256_of(SAMPLES["sts"])
    assert 0 < score["interval"][0] < score["metrics"]["cosine_spearman"] < score["interval"][1] < 1
    columns = dict(zip(header.replace("95 % interval", "").split(), row.split(), strict=False))
    for name, value in score["metrics"].items():
        short = name.replace("_pearson", "-P").replace("_spearman", "-S") if name != "avg" else "AVG"
        assert columns[short] == f"{100 * value:.2f}"
    with (tmp_path / "scores/scores.csv").open(encoding="utf-8", newline="") as file:
        (line,) = csv.DictReader(file)
    assert float(line["cosine_spearman"]) == score["metrics"]["cosine_spearman"]
    assert written == [f"written: {tmp_path / 'scores' / name}" for name in ("scores.json", "scores.csv")]


def test_eval_scores_several_models_on_several_sets(succeeds, backbone_dir, tmp_path) -> None:
    own = tmp_path / "own.tsv"
    own.write_text("sentence1\tsentence2\tscore\n" + "".join(f"{s}\t문장\t{i % 6}\n" for i, s in enumerate(SENTENCES)))
    printed = succeeds("eval", "sample:encoder", backbone_dir(), "--pooler_type", "avg", "--tasks", "sample:sts", own)
    rows = [line.split()[:3] for line in printed.splitlines()[2:]]
    assert rows == [
        [str(model), task, pairs]
        for model in ("sample:encoder", backbone_dir())
        for task, pairs in (("sample-sts", "264"), ("own.tsv", "6"))
    ]


# --- train ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, int]:
    """A training from a config file with flags, through the script at the top of the repository; its output."""
    folder = tmp_path_factory.mktemp("train")
    config = {
        "_about": "test",
        "model_name_or_path": "sample:encoder",
        "train_file": "sample:triplets",
        "eval_task": "sample:sts",
        "pooler_type": "avg",
        "max_seq_length": "16",
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": 8,
        "max_steps": 400,
        "eval_steps": 2,
        "save_steps": 2,
        "learning_rate": "1e-4",
        "report_to": "none",
        "use_cpu": True,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    script, printed = REPOSITORY / "run_simcse.py", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [str(script), "--config", str(folder / "config.json"), "--max_steps", "3"])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(script), run_name="__main__")
    return folder / "run", printed.getvalue(), stopped.value.code


def test_train_prints_the_score_before_and_after_and_where_all_is(run) -> None:
    output_dir, printed, code = run
    assert code == 0
    record = json.loads((output_dir / "simcse_run.json").read_text(encoding="utf-8"))
    score, place = printed.splitlines()[-2:]
    metrics, before = record["results"][0]["metrics"], record["before"]["metrics"]
    assert score.startswith(f"sample-sts (264 pairs) cosine Spearman {100 * metrics['cosine_spearman']:.2f} [")
    assert score.endswith(f"before training {100 * before['cosine_spearman']:.2f}")
    assert place == f"results: {output_dir}"


def test_train_records_what_was_resolved_from_file_and_flags(run) -> None:
    output_dir, _, _ = run
    record = json.loads((output_dir / "simcse_run.json").read_text(encoding="utf-8"))
    arguments = record["arguments"]
    assert arguments["training"]["max_steps"] == 3 == record["steps"], "the flag wins over the file"
    assert arguments["training"]["learning_rate"] == 1e-4 and arguments["model"]["max_seq_length"] == 16
    assert arguments["data"]["train_file"] == ["sample:triplets"] and "_about" not in str(arguments)
    (source,) = record["data"]["sources"]
    assert source["sha256"] == sha256_of(SAMPLES["triplets"]) and source["rows"] == 342
    assert record["data"]["shape"] == "triplets" and record["versions"]["transformers"]


def test_train_leaves_a_release_that_any_command_and_plain_transformers_take(run, succeeds, corpus, tmp_path) -> None:
    output_dir, _, _ = run
    assert {"README.md", "config.json", "model.safetensors", "modules.json", "1_Pooling", "eval"} <= {
        path.name for path in output_dir.iterdir()
    }
    assert not [path for path in output_dir.parent.rglob("*") if path.name.startswith(".")]
    succeeds("encode", corpus, "--model", output_dir, "--output", tmp_path / "vectors.npy")
    tokenizer, model = AutoTokenizer.from_pretrained(output_dir), AutoModel.from_pretrained(output_dir).eval()
    inputs = tokenizer(SENTENCES[0], return_tensors="pt", truncation=True)
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy")[0], expected.numpy(), atol=1e-5)
    trained = SimCSEModel.from_pretrained(output_dir).backbone.state_dict()
    start = AutoModel.from_pretrained(SAMPLES["encoder"], dtype=torch.float32).state_dict()
    assert any(not torch.equal(trained[name], start[name]) for name in trained), "nothing was trained"


def test_the_release_scores_what_training_said(run, succeeds, tmp_path, monkeypatch) -> None:
    """Through the second script at the top of the repository."""
    output_dir, _, _ = run
    script = REPOSITORY / "run_sts_eval.py"
    arguments = [str(output_dir), "--tasks", "sample:sts", "--output", str(tmp_path / "scores")]
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert stopped.value.code == 0
    (score,) = json.loads((tmp_path / "scores/scores.json").read_text(encoding="utf-8"))["scores"]
    record = json.loads((output_dir / "simcse_run.json").read_text(encoding="utf-8"))
    assert score["metrics"] == pytest.approx(record["results"][0]["metrics"], abs=1e-4)
    (within,) = json.loads((output_dir / "eval/scores.json").read_text(encoding="utf-8"))["scores"]
    assert within["metrics"] == record["results"][0]["metrics"]


def test_what_prepare_makes_train_takes(succeeds, backbone_dir, tmp_path) -> None:
    rows = [
        f"전제 {n}\t{text} {n}\t{label}"
        for n in range(8)
        for text, label in (("맞는 말", "entailment"), ("틀린 말", "contradiction"))
    ]
    (tmp_path / "nli.tsv").write_text("premise\thypothesis\tlabel\n" + "\n".join(rows) + "\n", encoding="utf-8")
    succeeds("prepare", tmp_path / "nli.tsv", "--output", tmp_path / "triplets.tsv")
    assert read_table(tmp_path / "triplets.tsv", RowReport()).columns == ["anchor", "positive", "negative"]
    training = ["train", "--model_name_or_path", backbone_dir(), "--eval_task", "none", "--max_seq_length", "16"]
    training += ["--per_device_train_batch_size", "4", "--max_steps", "2", "--report_to", "none", "--use_cpu", "true"]
    succeeds(
        *training,
        "--write_release",
        "false",
        "--train_file",
        tmp_path / "triplets.tsv",
        "--output_dir",
        tmp_path / "run",
    )
    record = json.loads((tmp_path / "run/simcse_run.json").read_text(encoding="utf-8"))
    assert record["data"]["shape"] == "triplets" and record["data"]["report"]["kept"] == 8
    assert not (tmp_path / "run/model.safetensors").exists()


# --- the command line -----------------------------------------------------------------------------------------------

# As Python reads the bytes of a terminal that is set to EUC-KR.
HALF = "질문".encode("cp949").decode("utf-8", "surrogateescape")


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["search", *ENCODER, "--corpus", "sample:sentences", HALF], "queries"),
        (["search", *ENCODER, "--vectors", "v", "질문", HALF], "queries"),
        (["encode", "sample:sentences", *ENCODER, "--output", "v", "--prompt", HALF], "prompt"),
        (["encode", "sample:sentences", *ENCODER, "--output", HALF], "output"),
        (["encode", "sample:sentences", "--model", HALF, "--output", "v"], "model"),
        (["eval", HALF], "models"),
        (["eval", "m", "--tasks", "klue-sts", HALF], "tasks"),
    ],
)
def test_what_is_not_utf8_is_refused_before_anything_is_read(argv, name, refused, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    says(refused(argv), f"command line: {name} is '\\udcc1", "not UTF-8", "Set the terminal to UTF-8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "fragments"),
    [
        (["encode", "a.txt", "--modle", "m", "--output", "v"], ["--modle", "did you mean --model?"]),
        (["search", "질문", "--modle=m"], ["--modle", "did you mean --model?"]),
        (["encode", "a.txt", "--model", "m", "--output", "v", "--qqqq"], ["unrecognized arguments: --qqqq. See"]),
        (["eval", "m", "--task", "t"], ["did you mean --tasks?"]),
    ],
)
def test_a_mistyped_flag_is_named_rather_than_what_is_missing_for_it(argv, fragments, refused) -> None:
    says(refused(argv), *fragments)


def test_what_follows_two_dashes_is_no_flag(refused) -> None:
    assert "unrecognized" not in refused(["search", *ENCODER, "--top_k", "3", "--", "--modle"])


@pytest.mark.parametrize("number", ["0", "-3", "x", "٠", "9" * 5000, str(GREATEST + 1)])
@pytest.mark.parametrize("flag", ["--batch_tokens", "--shard_rows"])
def test_numbers_beyond_what_a_manifest_can_hold_are_refused(flag, number, refused, tmp_path) -> None:
    """They were recorded, and no command could read the folder again."""
    argv = ["encode", "sample:sentences", *ENCODER, "--output", tmp_path / "v", f"{flag}={number}"]
    says(refused(argv), flag, f"not a whole number of at least 1 and at most {GREATEST}")
    assert not (tmp_path / "v").exists()


def test_the_greatest_numbers_make_a_folder_that_goes_on(succeeds, corpus, tmp_path) -> None:
    argv = [
        "encode",
        corpus,
        *ENCODER,
        "--output",
        tmp_path / "v",
        "--shard_rows",
        GREATEST,
        "--batch_tokens",
        GREATEST,
    ]
    assert succeeds(*argv).startswith("written:")
    assert succeeds(*argv).startswith("finished before")


def test_a_tilde_is_the_home_folder_in_every_path(succeeds, corpus, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    succeeds("encode", "~/corpus.txt", *ENCODER, "--output=~/v")
    assert (tmp_path / "v/manifest.json").exists() and not (tmp_path / "~").exists()
    assert SENTENCES[3] in succeeds("search", SENTENCES[3], *ENCODER, "--vectors=~/v", "--top_k", "1")


# --- help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], ["train"], ["eval"], ["prepare"], ["encode"], ["search"]], ids=" ".join)
def test_help_says_what_can_be_given(command, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    printed = capsys.readouterr().out
    assert stopped.value.code == 0
    assert printed.startswith("usage: " + " ".join(["simcse-hf", *command]))
    if command == ["train"]:
        assert all(f"--{name}" in printed for name in ("config", "pooler_type", "train_file", "learning_rate"))
