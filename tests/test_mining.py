"""Hard negatives: near to the anchor, never the same text, never nearer than the positive allows."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from conftest import training
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse_hf import SentenceEncoder, mining, search
from simcse_hf.cli import main
from simcse_hf.corpora import training_views
from simcse_hf.errors import ConfigError, DataError, ModelError
from simcse_hf.mining import MiningRule, mine_negatives, mine_triplets
from simcse_hf.row_report import RowReport
from simcse_hf.sample import SAMPLES
from simcse_hf.search import nearest
from simcse_hf.tables import read_table

SEEDS = st.integers(0, 10**6)
ENCODER = ["--model", "sample:encoder", "--pooler_type", "avg"]


def on_circle(*degrees: float) -> np.ndarray:
    """Vectors of two components, whose cosines with the first axis are those of the angles."""
    angles = np.radians(np.array(degrees, dtype=np.float64))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


# --- the nearest, in blocks -----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 15), st.integers(1, 17), st.integers(1, 5), st.integers(0, 3), SEEDS)
def test_blocks_give_what_one_matrix_gives(
    queries: int, sentences: int, k: int, block: int, excluded: int, seed: int
) -> None:
    """Components are small whole numbers, so equal scores abound and sums are exact in any order."""
    generator = np.random.default_rng(seed)
    left = generator.integers(-1, 2, size=(queries, 3)).astype(np.float32)
    right = generator.integers(-1, 2, size=(sentences, 3)).astype(np.float32)
    barred = generator.integers(-1, sentences, size=(queries, excluded))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_SENTENCES_AT_ONCE", block)
        patch.setattr(search, "_QUERIES_AT_ONCE", 2)
        scores, indices = nearest(left, right, k, excluded=barred)
    k = min(k, sentences)
    assert scores.shape == indices.shape == (queries, k)
    unit = [rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (left, right)]
    for query, barred_rows, found_scores, found in zip(unit[0], barred, scores, indices, strict=True):
        cosines = [round(float(query @ sentence), 5) for sentence in unit[1]]
        order = sorted(set(range(sentences)) - set(barred_rows.tolist()), key=lambda index: (-cosines[index], index))
        expected = (order + [-1] * k)[:k]
        assert found.tolist() == expected
        np.testing.assert_allclose(found_scores, [cosines[n] if n >= 0 else -math.inf for n in expected], atol=1e-5)


def test_keys_order_scores_of_either_sign_and_both_zeros_by_index() -> None:
    scores = torch.tensor([[-0.5, -0.0, 0.0, 1.0, -1.0, -0.0, -math.inf, 1.0]])
    keys, indices = search._keys(scores, 3).sort(descending=True)
    assert indices.tolist() == [[3, 7, 1, 2, 5, 0, 4, 6]]
    found_scores, found = search._score_and_index(keys)
    assert found_scores.tolist() == [[1, 1, 0, 0, 0, -0.5, -1, -math.inf]]
    assert found.tolist() == [[6, 10, 4, 5, 8, 3, 7, -1]]


def test_a_corpus_may_be_mapped_from_disk_and_is_not_written_to(tmp_path: Path) -> None:
    np.save(tmp_path / "corpus.npy", on_circle(50, 10, 30))
    mapped = np.load(tmp_path / "corpus.npy", mmap_mode="r")
    assert nearest(on_circle(0), mapped, 2)[1].tolist() == [[1, 2]]


def test_a_nearest_with_nothing_in_it_is_empty() -> None:
    scores, indices = nearest(on_circle(0, 1), on_circle()[:0].reshape(0, 2), 3)
    assert scores.shape == indices.shape == (2, 0)


# --- the rule -------------------------------------------------------------------------------------------------------

CORPUS = on_circle(5, 20, 25, 40, 60, 90)  # cosines with the anchor: 0.996 0.940 0.906 0.766 0.5 0
NO_GUARD = {"relative_margin": None}


def mined(positive: float = 10, forbidden: list | None = None, **options) -> list[int]:
    barred = None if forbidden is None else np.array([forbidden])
    found = mine_negatives(on_circle(0), on_circle(positive), CORPUS, MiningRule(**options), forbidden=barred)
    return found.indices[0].tolist()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"negatives": 2, **NO_GUARD}, [0, 1]),
        ({"negatives": 2, "skip_first": 1, **NO_GUARD}, [1, 2]),
        ({"negatives": 2, "skip_first": 4, **NO_GUARD}, [4, 5]),
        ({"negatives": 2, "max_score": 0.95, **NO_GUARD}, [1, 2]),
        ({"negatives": 2, "max_score": 0.8, "min_score": 0.6, **NO_GUARD}, [3, -1]),
        # The positive's cosine is 0.985: 95 % are 0.936, and less 0.2 it is 0.785.
        ({"negatives": 2}, [2, 3]),
        ({"negatives": 2, "relative_margin": 1.0}, [1, 2]),
        ({"negatives": 2, "margin": 0.2, **NO_GUARD}, [3, 4]),
        ({"negatives": 2, "margin": 0.0, **NO_GUARD}, [1, 2]),
        ({"negatives": 2, "margin": 0.01, "relative_margin": 0.5}, [5, -1]),  # the stricter of two guards
        ({"negatives": 2, "margin": 0.4, "relative_margin": 1.0}, [4, 5]),
        ({"negatives": 2, "forbidden": [-1, 0, 2], **NO_GUARD}, [1, 3]),
        # Forbidden sentences are no ranks; those a guard refuses are.
        ({"negatives": 1, "skip_first": 1, "forbidden": [0], **NO_GUARD}, [2]),
        ({"negatives": 1, "top_k": 2}, [-1]),
        ({"negatives": 1, "top_k": 3}, [2]),
        ({"negatives": 3, "forbidden": [0, 1, 2, 3], **NO_GUARD}, [4, 5, -1]),
        ({"negatives": 1, "positive": 120, "min_score": -1.0}, [-1]),
    ],
)
def test_each_bound_keeps_out_what_it_says(options: dict, expected: list[int]) -> None:
    assert mined(**options) == expected


def test_a_positive_whose_vector_is_not_finite_is_refused() -> None:
    """No bound would hold beside it: every comparison with NaN is false."""
    positives = on_circle(10, 20)
    positives[1, 0] = np.nan
    with pytest.raises(ModelError, match="the positive of row 8 has values that are not finite, so no bound"):
        mine_negatives(on_circle(0, 0), positives, on_circle(30, 40), MiningRule(top_k=2), first_row=6)


def test_the_guard_tightens_below_a_positive_of_negative_score() -> None:
    """95 % of a negative score would be above it."""
    anchor, positive = on_circle(0), on_circle(100)
    corpus = on_circle(98, 99.6, 101)  # -0.139, -0.167, -0.191 beside the positive's -0.174; the limit is -0.182
    assert mine_negatives(anchor, positive, corpus, MiningRule()).indices.tolist() == [[2]]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, None),
        ({"min_score": 0.95}, "candidates_too_near_beside_the_positive"),
        ({"min_score": 0.93, "max_score": 0.935, **NO_GUARD}, "candidates_below_min_score"),
        ({"max_score": -0.5, **NO_GUARD}, "candidates_above_max_score"),
        ({"top_k": 1}, "candidates_too_near_beside_the_positive"),
        ({"skip_first": 6, "top_k": 9, **NO_GUARD}, "corpus_too_small"),
        ({"negatives": 7, **NO_GUARD}, "corpus_too_small"),
    ],
)
def test_a_row_with_too_few_says_what_stood_in_the_way(options: dict, reason: str | None) -> None:
    if options.get("min_score") == 0.95:
        options = options | {"top_k": 1}
    assert mine_negatives(on_circle(0), on_circle(10), CORPUS, MiningRule(**options)).reasons == [reason]


@settings(max_examples=60, deadline=None)
@given(st.data(), SEEDS)
def test_the_negatives_are_those_a_loop_finds(data: st.DataObject, seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows, sentences, negatives = (
        data.draw(st.integers(1, 4)),
        data.draw(st.integers(1, 12)),
        data.draw(st.integers(1, 3)),
    )
    skip = data.draw(st.integers(0, 3))
    bound = st.none() | st.floats(-0.9, 0.9)
    low, high = data.draw(bound), data.draw(bound)
    if low is not None and high is not None:
        low, high = min(low, high), max(low, high)
    rule = MiningRule(
        negatives=negatives,
        skip_first=skip,
        top_k=skip + negatives + data.draw(st.integers(0, 6)),
        min_score=low,
        max_score=high,
        margin=data.draw(st.none() | st.floats(0, 0.5)),
        relative_margin=data.draw(st.none() | st.floats(0.1, 1.0)),
    )
    queries, positives, corpus = (generator.normal(size=(n, 4)).astype(np.float32) for n in (rows, rows, sentences))
    forbidden = generator.integers(-1, sentences, size=(rows, 2))
    found = mine_negatives(queries, positives, corpus, rule, forbidden=forbidden)
    for row in range(rows):
        own = oracles.cosine(queries[row], positives[row])
        scored = [(oracles.cosine(queries[row], corpus[n]), n) for n in range(sentences) if n not in forbidden[row]]
        kept = []
        for score, index in sorted(scored, key=lambda pair: -pair[0])[rule.skip_first : rule.top_k]:
            fine = rule.min_score is None or score >= rule.min_score
            fine &= rule.max_score is None or score <= rule.max_score
            fine &= rule.margin is None or score <= own - rule.margin
            fine &= rule.relative_margin is None or score <= own - (1 - rule.relative_margin) * abs(own)
            if fine:
                kept.append((score, index))
        kept = kept[:negatives]
        assert found.indices[row].tolist() == [index for _, index in kept] + [-1] * (negatives - len(kept))
        np.testing.assert_allclose(found.scores[row][: len(kept)], [score for score, _ in kept], atol=1e-5)
        assert (found.reasons[row] is None) == (len(kept) == negatives)


def test_random_negatives_are_allowed_ones_and_do_not_depend_on_the_blocks() -> None:
    generator = np.random.default_rng(0)
    queries, positives, corpus = (generator.normal(size=(n, 4)).astype(np.float32) for n in (30, 30, 50))
    rule = {"negatives": 3, "top_k": 20, "relative_margin": None, "max_score": 0.9}
    random = MiningRule(**rule, pick="random", seed=1)
    whole = mine_negatives(queries, positives, corpus, random)
    assert not np.array_equal(whole.indices, mine_negatives(queries, positives, corpus, MiningRule(**rule)).indices)
    other = mine_negatives(queries, positives, corpus, MiningRule(**rule, pick="random", seed=2))
    assert not np.array_equal(whole.indices, other.indices)
    parts = [
        mine_negatives(queries[start : start + 7], positives[start : start + 7], corpus, random, first_row=start)
        for start in range(0, 30, 7)
    ]
    assert np.array_equal(np.concatenate([part.indices for part in parts]), whole.indices)
    wide = mine_negatives(queries, positives, corpus, MiningRule(**rule | {"negatives": 20}))
    for row in range(30):
        allowed = wide.indices[row][wide.indices[row] >= 0].tolist()
        taken = whole.indices[row].tolist()
        assert len(set(taken)) == 3 and set(taken) <= set(allowed)
        assert sorted(whole.scores[row], reverse=True) == whole.scores[row].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": 0}, "negatives is 0; a row needs at least 1"),
        ({"skip_first": -1}, "skip_first is -1; it must be 0 or more"),
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
        ({"top_k": 4, "skip_first": 3, "negatives": 2}, "top_k is 4; after skip_first 3 .* Raise top_k to 5 or more"),
        ({"min_score": 0.7, "max_score": 0.3}, r"min_score 0\.7 is above max_score 0\.3"),
        ({"min_score": math.nan}, "min_score is nan; give a number"),
        ({"margin": -0.1}, r"margin is -0\.1; below 0"),
        ({"relative_margin": 0.0}, r"relative_margin is 0\.0; it is a part of 1"),
        ({"relative_margin": 1.2}, r"relative_margin is 1\.2"),
        ({"pick": "best"}, "pick is 'best'; there are top and random"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MiningRule(**options)


# --- the command ----------------------------------------------------------------------------------------------------

PAIRS = """anchor\tpositive
우산을 챙겨야 하는 비 오는 날이다.\t비가 오니 우산을 가져가자.
고양이가 소파에서 잔다.\t소파 위에서 고양이가 자고 있다.
고양이가 소파에서 잔다.\t고양이 한 마리가 소파에 누워 잔다.
버스가 십 분 늦게 도착했다.\t버스는 예정보다 늦게 왔다.
고양이가  소파에서 잔다.\t소파 위에서 고양이가 자고 있다.
"""
SENTENCES = [
    "비가 오니 우산을 가져가자.",  # positives of the rows, and anchors, again
    "고양이가 소파에서  잔다.",
    "소파 위에서 고양이가 자고 있다.",
    "고양이 한 마리가 소파에 누워 잔다.",
    "강아지가 소파에서 잔다.",
    "고양이가 소파에서 뛰어내렸다.",
    "버스가 일찍 도착했다.",
    "버스를 타려고 십 분을 걸었다.",
    "비 오는 날에는 택시를 탄다.",
    "오늘은 눈이 내린다.",
    "주말에 바다를 보러 갔다.",
    "강아지가 소파에서 잔다.",
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.tsv"
    path.write_text(PAIRS, encoding="utf-8")
    return path


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def mine(pairs: Path, sentences: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., tuple]:
    """Runs the command; the rows written, and what was printed."""

    def run(*flags) -> tuple[list[tuple[str, ...]], str]:
        target = tmp_path / "made" / "triplets.tsv"
        command = ["mine", pairs, "--corpus", sentences, *ENCODER, "--output", target, *flags]
        capsys.readouterr()
        assert main([str(part) for part in command]) == 0, capsys.readouterr().err
        views = training_views([read_table(target, RowReport())], RowReport(), deduplicate=False)
        assert views.shape == "triplets"
        assert [path.name for path in target.parent.iterdir()] == ["triplets.tsv"]
        return views.rows, capsys.readouterr().out

    return run


def test_what_is_mined_is_near_and_never_the_anchor_or_one_of_its_positives(mine) -> None:
    rows, printed = mine("--relative_margin", "none")
    assert [row[:2] for row in rows] == [tuple(line.split("\t")) for line in PAIRS.splitlines()[1:5]]
    encoder = SentenceEncoder.from_pretrained(str(SAMPLES["encoder"]), pooler_type="avg")
    for anchor, _, negative in rows:
        positives = {row[1] for row in rows if row[0] == anchor}
        others = [text for text in dict.fromkeys(SENTENCES) if " ".join(text.split()) not in positives | {anchor}]
        assert negative == others[int(encoder.similarity(anchor, others).argmax())]
    assert "corpus: 12 rows read, 11 sentences kept\n  1 dropped: duplicate" in printed
    assert "5 rows read, 4 triplets kept\n  1 dropped: duplicate" in printed
    assert "negatives of the file" not in printed


def test_rows_without_enough_negatives_are_dropped_and_counted_with_their_reason(mine) -> None:
    all_rows, _ = mine("--relative_margin", "none", "--negatives", "3")
    assert {len(row) for row in all_rows} == {5} and all(len(set(row)) == 5 for row in all_rows)
    strict, printed = mine("--relative_margin", "none", "--negatives", "3", "--margin", "0.65")
    assert 0 < len(strict) < 4
    assert f"5 rows read, {len(strict)} triplets kept" in printed
    assert f"{4 - len(strict)} dropped: candidates too near beside the positive (first: row" in printed


def test_the_guard_is_on_unless_it_is_switched_off(mine) -> None:
    encoder = SentenceEncoder.from_pretrained(str(SAMPLES["encoder"]), pooler_type="avg")

    def beyond(rows) -> int:
        return sum(
            encoder.similarity(anchor, negative) > 0.95 * encoder.similarity(anchor, positive)
            for anchor, positive, negative in rows
        )

    assert beyond(mine("--relative_margin", "none")[0]), "no row needs the guard: the test would be vacuous"
    assert not beyond(mine()[0])


def test_blocks_of_rows_and_sentences_change_nothing(mine, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--relative_margin", "none", "--pick", "random", "--seed", "5", "--top_k", "6")
    whole, printed = mine(*flags)
    assert whole != mine(*flags[:-3], "6", *flags[-2:])[0]
    monkeypatch.setattr(mining, "_ROWS_AT_ONCE", 3)
    monkeypatch.setattr(mining, "_SENTENCES_AT_ONCE", 4)
    monkeypatch.setattr(search, "_SENTENCES_AT_ONCE", 5)
    assert mine(*flags) == (whole, printed)


def test_the_table_that_was_mined_trains(good: dict, mine, tmp_path: Path) -> None:
    mine("--relative_margin", "none", "--negatives", "2")
    settings = good | {"train_file": tmp_path / "made" / "triplets.tsv"}
    assert main(training(settings)) == 0


def test_negatives_of_the_file_itself_are_replaced_and_that_is_said(mine, pairs: Path) -> None:
    pairs.write_text("anchor\tpositive\tnegative\n눈이 온다.\t눈이 내린다.\t해가 났다.\n", encoding="utf-8")
    rows, printed = mine("--relative_margin", "none")
    assert [row[:2] for row in rows] == [("눈이 온다.", "눈이 내린다.")]
    assert rows[0][2] in SENTENCES
    assert "the negatives of the file itself are not written" in printed


def test_a_file_of_pairs_may_be_its_own_corpus(mine, pairs: Path) -> None:
    rows, _ = mine("--relative_margin", "none", "--corpus", pairs)
    texts = {text for line in PAIRS.splitlines()[1:5] for text in line.split("\t")}
    assert len(rows) == 4
    assert all(row[2] in texts - set(row[:2]) for row in rows)


def test_nothing_is_written_where_no_row_has_negatives(pairs, sentences, tmp_path, refused) -> None:
    target = tmp_path / "made" / "triplets.tsv"
    target.parent.mkdir()
    target.write_text("old", encoding="utf-8")
    message = refused(["mine", pairs, "--corpus", sentences, *ENCODER, "--output", target, "--max_score", "-1"])
    assert "no row found 1 negatives among 11 sentences. Loosen the bounds, or take a larger corpus." in message
    assert "4 dropped: candidates" in message
    assert [path.read_text(encoding="utf-8") for path in target.parent.iterdir()] == ["old"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--top_k", "0"], "top_k is 0"),
        (["--relative_margin", "much"], "'much' is neither a number nor none"),
        (["--output", "triplets.csv"], "--output is triplets.csv; triplets are written separated by tabs"),
        (["--corpus", "none.txt"], "there is no data file none.txt"),
        (["--pick", "best"], "invalid choice: 'best'"),
    ],
)
def test_command_lines_that_cannot_be_run_are_refused(flags, message: str, pairs, sentences, tmp_path, refused) -> None:
    command = ["mine", pairs, "--corpus", sentences, *ENCODER, "--output", tmp_path / "triplets.tsv", *flags]
    assert message in refused(command)
    assert not (tmp_path / "triplets.tsv").exists()


def test_sentences_are_no_pairs(sentences: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"corpus\.txt holds sentences; mining needs pairs"):
        mine_triplets([str(sentences)], [str(sentences)], None, tmp_path / "a.tsv", MiningRule())
