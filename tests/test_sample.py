"""The sample data: enough of it, clean, and the scored pairs unseen in training."""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from simcse_hf.corpora import ScoredPairs, TrainingViews, training_views
from simcse_hf.encoder import SentenceEncoder
from simcse_hf.errors import ConfigError
from simcse_hf.evaluation import evaluate_sts
from simcse_hf.files import read_lines
from simcse_hf.modeling_simcse import SimCSEModel
from simcse_hf.row_report import RowReport
from simcse_hf.sample import SAMPLES, resolve_sample
from simcse_hf.sts_tasks import load_sts
from simcse_hf.tables import read_table
from simcse_hf.tokenization import load_tokenizer


@pytest.fixture(scope="module")
def sentences() -> TrainingViews:
    report = RowReport()
    return training_views([read_table(SAMPLES["sentences"], report)], report)


@pytest.fixture(scope="module")
def triplets() -> TrainingViews:
    report = RowReport()
    return training_views([read_table(SAMPLES["triplets"], report)], report)


@pytest.fixture(scope="module")
def pairs() -> ScoredPairs:
    return load_sts("sample:sts")


def bare(sentence: str) -> str:
    """Letters and digits alone: copies that differ in spaces or punctuation are copies."""
    return re.sub(r"[\W_]", "", sentence)


def test_a_sample_is_named_wherever_a_path_may_be() -> None:
    assert set(SAMPLES) == {"sentences", "triplets", "sts", "encoder"}
    for name, path in SAMPLES.items():
        assert resolve_sample(f"sample:{name}") == str(path)
        assert path.exists()


@pytest.mark.parametrize("path", ["data/a.txt", "samples:sts", "/sample:sts", "", "klue/bert-base"])
def test_any_other_path_comes_back_as_it_is(path: str) -> None:
    assert resolve_sample(path) == path


@pytest.mark.parametrize("name", ["", "stss", "sts.tsv"])
def test_an_unknown_sample_is_named_with_those_there_are(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"there is no sample '{name}'; there are sentences, triplets, sts, enc"):
        resolve_sample(f"sample:{name}")


def test_there_are_enough_sentences_each_once_and_none_is_lost(sentences: TrainingViews) -> None:
    assert sentences.unsupervised
    assert sentences.report.read == len(sentences.rows) >= 1000
    assert len({bare(sentence) for (sentence,) in sentences.rows}) == len(sentences.rows)


def test_there_are_enough_triplets_of_three_different_sentences(triplets: TrainingViews) -> None:
    assert triplets.shape == "triplets"
    assert triplets.report.read == len(triplets.rows) >= 300
    for row in triplets.rows:
        assert len({bare(sentence) for sentence in row}) == 3
    assert len({row[0] for row in triplets.rows}) == len(triplets.rows)


def test_there_are_enough_scored_pairs_of_different_sentences_each_once(pairs: ScoredPairs) -> None:
    unordered = {frozenset(pair) for pair in zip(pairs.sentences1, pairs.sentences2, strict=True)}
    assert len(unordered) == len(pairs) >= 200
    assert all(len(pair) == 2 for pair in unordered)


def test_scores_are_spread_over_the_whole_scale(pairs: ScoredPairs) -> None:
    assert (min(pairs.scores), max(pairs.scores)) == (0.0, 5.0)
    nearest = Counter(round(score) for score in pairs.scores)
    assert set(nearest) == set(range(6))
    assert min(nearest.values()) >= 0.05 * len(pairs)


@pytest.mark.parametrize("name", ["sentences", "triplets", "sts"])
def test_the_files_are_normalised_as_they_are(
    name: str, sentences: TrainingViews, triplets: TrainingViews, pairs: ScoredPairs
) -> None:
    """Nothing is gained by reading them: NFC, single spaces, no byte-order mark, a newline at the end."""
    read = {
        "sentences": ["\t".join(row) for row in sentences.rows],
        "triplets": ["anchor\tpositive\tnegative", *("\t".join(row) for row in triplets.rows)],
        "sts": [
            "sentence1\tsentence2\tscore",
            *map("\t".join, zip(pairs.sentences1, pairs.sentences2, map(str, pairs.scores), strict=True)),
        ],
    }[name]
    assert SAMPLES[name].read_bytes().decode("utf-8") == "".join(line + "\n" for line in read)


def test_no_scored_sentence_occurs_in_the_training_samples(
    sentences: TrainingViews, triplets: TrainingViews, pairs: ScoredPairs
) -> None:
    trained = {bare(sentence) for row in [*sentences.rows, *triplets.rows] for sentence in row}
    scored = {bare(sentence) for sentence in [*pairs.sentences1, *pairs.sentences2]}
    assert len(trained) > 2000 and len(scored) > 400
    assert not trained & scored


def test_the_samples_are_korean(sentences: TrainingViews, triplets: TrainingViews, pairs: ScoredPairs) -> None:
    for sentence in [
        *(s for row in [*sentences.rows, *triplets.rows] for s in row),
        *pairs.sentences1,
        *pairs.sentences2,
    ]:
        assert sum("가" <= character <= "힣" for character in sentence) > len(bare(sentence)) / 2, sentence


def test_no_token_of_the_samples_is_unknown_to_the_sample_encoder_and_few_are_bytes(
    tokenizer: PreTrainedTokenizerBase, sentences: TrainingViews, triplets: TrainingViews, pairs: ScoredPairs
) -> None:
    assert tokenizer("[UNK]")["input_ids"].count(tokenizer.unk_token_id) == 1
    assert any(token.startswith("<0x") for token in tokenizer.tokenize("ꥠ"))
    assert tokenizer.decode(tokenizer("ꥠ 멓")["input_ids"], skip_special_tokens=True).strip() == "ꥠ 멓"
    texts = [sentence for row in [*sentences.rows, *triplets.rows] for sentence in row]
    pieces = [
        piece for sentence in [*texts, *pairs.sentences1, *pairs.sentences2] for piece in tokenizer.tokenize(sentence)
    ]
    assert "[UNK]" not in pieces
    assert sum(piece.startswith("<0x") for piece in pieces) < 0.005 * len(pieces)


def test_no_token_of_real_korean_is_unknown_to_the_sample_encoder(
    tokenizer: PreTrainedTokenizerBase, data_dir: Path
) -> None:
    scored = load_sts("korsts-dev", data_dir=str(data_dir))
    texts = {"korsts-dev": [*scored.sentences1, *scored.sentences2]}
    for path in sorted((data_dir / "unlabeled").glob("*.txt.xz")):
        texts[path.name] = [line for _, line in islice(read_lines(path), 2000)]
    assert len(texts) > 20
    for name, lines in texts.items():
        ids = tokenizer(lines, add_special_tokens=False)["input_ids"]
        assert not any(tokenizer.unk_token_id in sentence for sentence in ids), name


def test_the_sample_encoder_is_small() -> None:
    folder = SAMPLES["encoder"]
    assert (folder / "model.safetensors").stat().st_size <= 8_000_000
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 8_500_000
    assert {file.suffix for file in folder.iterdir()} == {".json", ".md", ".safetensors"}


def test_the_sample_encoder_scores_what_its_card_says(data_dir: Path) -> None:
    card = (SAMPLES["encoder"] / "README.md").read_text(encoding="utf-8")
    (stated,) = re.findall(r"^KorSTS-dev \(1,500 pairs\), cosine Spearman x 100: ([\d.]+) as it is", card, re.MULTILINE)
    encoder = SentenceEncoder.from_pretrained(str(SAMPLES["encoder"]), pooler_type="avg")
    result = evaluate_sts(encoder.encode, load_sts("korsts-dev", data_dir=str(data_dir)))
    assert 100 * result.metrics["cosine_spearman"] == pytest.approx(float(stated), abs=0.02)


def test_the_sample_encoder_knows_meaning_beyond_shared_pieces(pairs: ScoredPairs) -> None:
    """A pretrained encoder must do better on the sample pairs than one of its shape with random weights."""

    def score(model: SimCSEModel) -> float:
        encoder = SentenceEncoder(model.eval(), load_tokenizer(str(SAMPLES["encoder"])))
        return evaluate_sts(encoder.encode, pairs).metrics["cosine_spearman"]

    pretrained = SimCSEModel.from_backbone(str(SAMPLES["encoder"]), pooler_type="avg")
    random = SimCSEModel(pretrained.config)
    assert score(pretrained) > score(random) + 0.1


def test_the_readme_of_the_samples_states_their_row_counts(
    sentences: TrainingViews, triplets: TrainingViews, pairs: ScoredPairs
) -> None:
    readme = (Path(SAMPLES["sts"]).parent / "README.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| `(\S+)` \|.*\| ([\d,]+) \|$", readme, flags=re.MULTILINE))
    expected = {"sentences.txt": len(sentences.rows), "triplets.tsv": len(triplets.rows), "sts.tsv": len(pairs)}
    assert stated == {name: f"{rows:,}" for name, rows in expected.items()}
