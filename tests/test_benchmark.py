"""Several models, several sets, one table that says what it was measured on."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

from simcse_hf.benchmark import open_encoder, run_benchmark
from simcse_hf.cli import main
from simcse_hf.errors import DataError, ModelError
from simcse_hf.files import sha256_of
from simcse_hf.sample import SAMPLES
from simcse_hf.score_report import format_table, write_scores


@pytest.fixture(scope="module")
def scores(backbone_dir):
    return run_benchmark(["sample:encoder", str(backbone_dir("roberta"))], ["sample:sts"], pooler_type="avg")


def test_the_files_hold_the_scores_and_their_protocol(scores, tmp_path):
    json_path, csv_path = write_scores(scores, tmp_path)
    record = json.loads(json_path.read_text(encoding="utf-8"))
    assert [entry["model"] for entry in record["scores"]] == [score.model for score in scores]
    for entry, score in zip(record["scores"], scores, strict=True):
        assert entry["metrics"] == score.result.metrics
        assert entry["num_pairs"] == 264 and entry["sources"][0]["sha256"] == sha256_of(SAMPLES["sts"])
        assert entry["text_mode"] == "nfc" and entry["encoder"]["pooler_type"] == "avg"
        assert {"max_seq_length", "prompt", "dtype"} <= entry["encoder"].keys()
    with csv_path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["cosine_spearman"]) == scores[0].result.metrics["cosine_spearman"]
    assert rows[1]["sha256"] == sha256_of(SAMPLES["sts"])


def test_the_table_is_aligned_and_shows_hundredths_of_hundreds(scores):
    lines = format_table(scores).splitlines()
    assert len(lines) == 4 and len({line.rindex("..") for line in lines[2:]}) == 1
    assert f"{100 * scores[0].result.metrics['avg']:.2f}" in lines[2]
    assert lines[0].split()[3:12] == [
        "cosine-P", "cosine-S", "euclidean-P", "euclidean-S", "manhattan-P", "manhattan-S", "dot-P", "dot-S", "AVG",
    ]  # fmt: skip


def test_the_script_scores_a_file_of_ones_own(tmp_path, capsys):
    own = tmp_path / "own.tsv"
    own.write_text(
        "sentence1\tsentence2\tscore\n비가 온다.\t비가 내린다.\t4.5\n눈이 온다.\t배가 고프다.\t0.5\n밥을 먹었다.\t식사했다.\t5\n",
        encoding="utf-8",
    )
    assert (
        main(["eval", "sample:encoder", "--pooler_type", "avg", "--tasks", str(own), "--output", str(tmp_path / "out")])
        == 0
    )
    assert "own.tsv" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/scores.json").read_text(encoding="utf-8"))["scores"][0]["num_pairs"] == 3


def test_a_missing_set_is_found_out_before_a_model_is_loaded():
    with pytest.raises(DataError, match="neither an STS task"):
        run_benchmark(["no/such/model/at/all"], ["korsts-tset"])


def test_models_that_only_sentence_transformers_can_run_are_run_by_it(backbone_dir, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Pooling, Transformer

    modules = [Transformer(str(backbone_dir())), Pooling(32, pooling_mode="mean"), Dense(32, 8)]
    peer = SentenceTransformer(modules=modules, device="cpu")
    peer.save_pretrained(str(tmp_path))
    encode, description = open_encoder(str(tmp_path), max_seq_length=20)
    assert description["max_seq_length"] == 20
    assert description["modules"] == ["Transformer", "Pooling", "Dense"]
    np.testing.assert_allclose(encode(["비가 온다."]), peer.encode(["비가 온다."]), atol=1e-6)


def test_a_plain_encoder_in_a_folder_of_that_name_still_needs_a_pooler(backbone_dir, tmp_path):
    folder = tmp_path / "sentence_transformers"
    shutil.copytree(backbone_dir(), folder)
    with pytest.raises(ModelError, match="does not say how to pool"):
        open_encoder(str(folder))


def test_legacy_text_deletes_commas_and_quotation_marks_and_nothing_else(tmp_path):
    own = tmp_path / "own.tsv"
    own.write_text(
        'sentence1\tsentence2\tscore\n그는, "네"라고 했다.\t그는 대답했다.\t3\n비.\t눈.\t1\n밥.\t빵.\t2\n',
        encoding="utf-8",
    )
    seen = {}
    for mode in ("nfc", "legacy_strip"):
        from simcse_hf.sts_tasks import load_sts

        seen[mode] = load_sts(str(own), text_mode=mode).sentences1[0]
    assert seen == {"nfc": '그는, "네"라고 했다.', "legacy_strip": "그는 네라고 했다."}
