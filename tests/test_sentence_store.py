"""Each distinct sentence tokenised once, and rows of them padded to a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import SENTENCES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from simcse_hf import sentence_store
from simcse_hf.collators import ViewsCollator, pad
from simcse_hf.errors import DataError
from simcse_hf.sample import SAMPLES
from simcse_hf.sentence_store import SentenceStore, ViewsDataset, index_rows
from simcse_hf.tokenization import load_tokenizer

TOKENIZER = load_tokenizer(str(SAMPLES["encoder"]))

ROWS = [
    ("비가 온다.", "날씨가 궂다.", "맑다."),
    ("고양이가 창가에서 졸고 있습니다.", "맑다.", "비가 온다."),
    ("네.", "비가 온다.", "네."),
]


def one_by_one(sentences: list[str], max_length: int, prompt: str = "") -> list[list[int]]:
    return [TOKENIZER(prompt + sentence, truncation=True, max_length=max_length)["input_ids"] for sentence in sentences]


def contents(store: SentenceStore) -> list[list[int]]:
    return [store[index].tolist() for index in range(len(store))]


@pytest.mark.parametrize("max_length", [3, 16, 64])
@pytest.mark.parametrize("prompt", ["", "질문: "])
def test_the_store_holds_what_tokenising_one_by_one_gives(max_length: int, prompt: str) -> None:
    expected = one_by_one(SENTENCES, max_length, prompt)
    assert max(map(len, expected)) == max_length, "nothing is cut: the test would be vacuous"
    store = SentenceStore.build(SENTENCES, TOKENIZER, max_length=max_length, prompt=prompt)
    assert contents(store) == expected
    assert store.lengths.tolist() == list(map(len, expected))
    assert (store.tokens.dtype, store.offsets.dtype) == (np.int32, np.int64)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=6), st.integers(2, 12))
def test_any_text_is_stored_as_tokenised_one_by_one(sentences: list[str], max_length: int) -> None:
    store = SentenceStore.build(sentences, TOKENIZER, max_length=max_length)
    assert contents(store) == one_by_one(sentences, max_length)


def test_a_prompt_is_part_of_the_sentence() -> None:
    plain = SentenceStore.build(["비가 온다."], TOKENIZER, max_length=32)
    prompted = SentenceStore.build(["비가 온다."], TOKENIZER, max_length=32, prompt="query: ")
    assert TOKENIZER.decode(prompted[0], skip_special_tokens=True).startswith("query")
    assert len(prompted[0]) > len(plain[0])


@pytest.mark.parametrize("chunk", [1, 2, 4, 6, 7])
def test_the_size_of_a_tokenizer_call_does_not_show(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    whole = SentenceStore.build(SENTENCES, TOKENIZER, max_length=16)
    monkeypatch.setattr(sentence_store, "_SENTENCES_PER_CALL", chunk)
    store = SentenceStore.build(SENTENCES, TOKENIZER, max_length=16)
    assert np.array_equal(store.tokens, whole.tokens) and np.array_equal(store.offsets, whole.offsets)


@pytest.mark.parametrize("max_length", [3, 16])
@pytest.mark.parametrize("prompt", ["", "질문: "])
@pytest.mark.parametrize("split_special_tokens", [False, True])
def test_many_sentences_are_tokenised_as_one_by_one(max_length: int, prompt: str, split_special_tokens: bool) -> None:
    """More than the few that are always tokenised by the ordinary call."""
    tokenizer = load_tokenizer(str(SAMPLES["encoder"]), split_special_tokens=split_special_tokens)
    sentences = [f"{number} {sentence} [SEP] {number * 7}" for number in range(40) for sentence in SENTENCES]
    store = SentenceStore.build(sentences, tokenizer, max_length=max_length, prompt=prompt)
    assert contents(store) == [
        tokenizer(prompt + sentence, truncation=True, max_length=max_length)["input_ids"] for sentence in sentences
    ]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=60, max_size=80))
def test_many_of_any_text_are_tokenised_as_one_by_one(sentences: list[str]) -> None:
    assert contents(SentenceStore.build(sentences, TOKENIZER, max_length=8)) == one_by_one(sentences, 8)


def test_many_sentences_do_not_go_through_the_ordinary_call(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, asked = load_tokenizer(str(SAMPLES["encoder"])), []
    ordinary = type(tokenizer).__call__
    monkeypatch.setattr(
        type(tokenizer),
        "__call__",
        lambda self, text, **kwargs: asked.append(len(text)) or ordinary(self, text, **kwargs),
    )
    SentenceStore.build(SENTENCES * 50, tokenizer, max_length=16)
    assert max(asked) < 300, "the fast way is not taken: the tests of it would be vacuous"


def test_a_tokenizer_with_ways_of_its_own_keeps_them() -> None:
    class Polite(type(TOKENIZER)):
        def __call__(self, texts, **kwargs):
            return super().__call__([f"네 {text}" for text in texts], **kwargs)

    tokenizer = Polite.from_pretrained(str(SAMPLES["encoder"]))
    store = SentenceStore.build(SENTENCES * 50, tokenizer, max_length=16)
    assert contents(store) == one_by_one([f"네 {sentence}" for sentence in SENTENCES * 50], 16)


def test_an_empty_store_has_no_sentences() -> None:
    store = SentenceStore.build([], TOKENIZER, max_length=16)
    assert (len(store), store.lengths.tolist(), store.tokens.dtype) == (0, [], np.int32)


def test_sentences_are_numbered_in_order_of_first_use() -> None:
    sentences, indices = index_rows([("나", "가"), ("가", "다"), ("나", "나")])
    assert sentences == ["나", "가", "다"]
    assert indices.tolist() == [[0, 1], [1, 2], [0, 0]]
    assert indices.dtype == np.int64


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 4).flatmap(lambda views: st.lists(st.tuples(*[st.sampled_from("가나다라마")] * views), min_size=1))
)
def test_indices_lead_back_to_the_rows_and_no_sentence_is_stored_twice(rows: list[tuple[str, ...]]) -> None:
    sentences, indices = index_rows(rows)
    assert len(sentences) == len(set(sentences))
    assert [tuple(sentences[index] for index in row) for row in indices] == rows
    firsts = list(dict.fromkeys(indices.ravel().tolist()))
    assert firsts == list(range(len(sentences)))


def test_an_item_holds_the_token_ids_and_the_identities_of_its_views(tokenizer: PreTrainedTokenizerBase) -> None:
    dataset = ViewsDataset.build(ROWS, tokenizer, max_length=16)
    assert (len(dataset), len(dataset.store)) == (3, 5)
    for row, item in zip(ROWS, dataset, strict=True):
        assert [view.tolist() for view in item["views"]] == one_by_one(list(row), 16)
        assert set(item) == {"views", "sentence_ids"}
    assert dataset[0]["sentence_ids"][0] == dataset[1]["sentence_ids"][2] == dataset[2]["sentence_ids"][1]
    assert dataset[2]["sentence_ids"].tolist() == [4, 0, 4]


def test_a_row_of_one_sentence_becomes_two_views_of_it(tokenizer: PreTrainedTokenizerBase) -> None:
    dataset = ViewsDataset.build([("비가 온다.",), ("맑다.",), ("비가 온다.",)], tokenizer, max_length=16)
    assert dataset.rows.tolist() == [[0, 0], [1, 1], [0, 0]]
    first, second = dataset[1]["views"]
    assert first.tolist() == second.tolist() == one_by_one(["맑다."], 16)[0]


def test_scores_go_with_their_rows(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [(SENTENCES[5], "네."), ("네.", "네."), ("비가 온다.", "맑다.")]
    dataset = ViewsDataset.build(rows, tokenizer, max_length=64, scores=[4.5, 0.0, 2.5])
    assert [item["score"] for item in dataset] == [4.5, 0.0, 2.5]
    assert [item["score"] for item in dataset.sorted_by_length()] == [0.0, 2.5, 4.5]


def test_sorting_by_length_reorders_rows_and_loses_none(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [(SENTENCES[5], "네."), ("네.", "네."), ("맑다.", SENTENCES[1]), ("네.", "네."), (SENTENCES[2], "맑다.")]
    dataset = ViewsDataset.build(rows, tokenizer, max_length=64, scores=range(5))
    by_length = dataset.sorted_by_length()
    longest = [max(map(len, item["views"])) for item in by_length]
    assert longest == sorted(longest) != [max(map(len, item["views"])) for item in dataset]
    for item in by_length:
        assert item["sentence_ids"].tolist() == dataset[item["score"]]["sentence_ids"].tolist()
    assert [item["score"] for item in dataset] == list(range(5)), "the original is not touched"


def test_rows_of_equal_length_keep_their_order(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [(SENTENCES[1],) if index % 3 == 0 else ("네.",) for index in range(60)]
    by_length = ViewsDataset.build(rows, tokenizer, max_length=16, scores=range(60)).sorted_by_length()
    order = [item["score"] for item in by_length]
    assert order == [index for index in range(60) if index % 3] + [index for index in range(60) if index % 3 == 0]


def test_sorting_without_scores_has_none(tokenizer: PreTrainedTokenizerBase) -> None:
    by_length = ViewsDataset.build([(SENTENCES[5],), ("네.",)], tokenizer, max_length=16).sorted_by_length()
    assert by_length.rows.tolist() == [[1, 1], [0, 0]]
    assert "score" not in by_length[0]


def test_statistics_count_what_reveals_a_wrong_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [("네.", "[UNK] 네."), (SENTENCES[5], "네.")]
    dataset = ViewsDataset.build(rows, tokenizer, max_length=12)
    lengths = [len(ids) for ids in one_by_one(["네.", "[UNK] 네.", SENTENCES[5]], 12)]
    assert lengths[2] == 12 > max(lengths[:2])
    unknown = sum(ids.count(tokenizer.unk_token_id) for ids in one_by_one(["[UNK] 네."], 12))
    assert unknown > 0
    assert dataset.statistics(tokenizer, 12) == {
        "rows": 2,
        "views": 2,
        "distinct_sentences": 3,
        "mean_tokens": round(sum(lengths) / 3, 2),
        "at_max_length": 1,
        "unknown_tokens": unknown,
    }


def test_a_tokenizer_without_an_unknown_token_has_none(tokenizer: PreTrainedTokenizerBase) -> None:
    dataset = ViewsDataset.build([("[UNK]",)], tokenizer, max_length=12)
    assert dataset.statistics(tokenizer, 12)["unknown_tokens"] > 0

    class BytePairs:
        unk_token_id = None

    assert dataset.statistics(BytePairs(), 12)["unknown_tokens"] == 0


arrays = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=7).map(np.array), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(arrays, st.integers(0, 9))
def test_padding_puts_every_sentence_first_in_its_row_and_the_pad_behind(sentences: list, pad_token_id: int) -> None:
    """The pad id may also occur within a sentence, so the mask must come from lengths."""
    input_ids, attention_mask = pad(sentences, pad_token_id)
    longest = max(map(len, sentences))
    assert input_ids.shape == attention_mask.shape == (len(sentences), longest)
    assert input_ids.dtype == attention_mask.dtype == torch.int64
    for sentence, ids, mask in zip(sentences, input_ids.tolist(), attention_mask.tolist(), strict=True):
        missing = longest - len(sentence)
        assert ids == [*sentence.tolist(), *[pad_token_id] * missing]
        assert mask == [1] * len(sentence) + [0] * missing


def test_a_batch_holds_each_view_of_each_item_in_its_place(tokenizer: PreTrainedTokenizerBase) -> None:
    dataset = ViewsDataset.build(ROWS, tokenizer, max_length=16)
    items = [dataset[2], dataset[0]]
    batch = ViewsCollator(tokenizer.pad_token_id)(items)
    longest = max(len(view) for item in items for view in item["views"])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 3, longest)
    assert (batch["attention_mask"] == 0).any(), "no padding: the test would be vacuous"
    for item, ids, mask, identities in zip(
        items, batch["input_ids"], batch["attention_mask"], batch["sentence_ids"], strict=True
    ):
        assert [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)] == [
            view.tolist() for view in item["views"]
        ]
        assert identities.tolist() == item["sentence_ids"].tolist()
    assert batch["input_ids"][batch["attention_mask"] == 0].unique().tolist() == [tokenizer.pad_token_id]
    assert batch["sentence_ids"].dtype == torch.int64
    assert "scores" not in batch


def test_a_batch_of_scored_pairs_holds_the_scores(tokenizer: PreTrainedTokenizerBase) -> None:
    dataset = ViewsDataset.build([("네.", "맑다."), ("비가 온다.", "네.")], tokenizer, max_length=16, scores=[4.2, 0])
    scores = ViewsCollator(tokenizer.pad_token_id)([dataset[0], dataset[1]])["scores"]
    assert torch.equal(scores, torch.tensor([4.2, 0.0], dtype=torch.float32))


def test_the_pad_id_is_the_one_given(tokenizer: PreTrainedTokenizerBase) -> None:
    dataset = ViewsDataset.build(ROWS, tokenizer, max_length=16)
    batch = ViewsCollator(777)([dataset[0], dataset[1]])
    assert set(batch["input_ids"][batch["attention_mask"] == 0].tolist()) == {777}


def test_a_data_loader_gives_the_whole_set_in_order(tokenizer: PreTrainedTokenizerBase) -> None:
    dataset = ViewsDataset.build([(sentence,) for sentence in SENTENCES], tokenizer, max_length=16)
    batches = list(DataLoader(dataset, batch_size=4, collate_fn=ViewsCollator(tokenizer.pad_token_id)))
    assert [batch["input_ids"].shape[0] for batch in batches] == [4, 2]
    assert torch.cat([batch["sentence_ids"][:, 0] for batch in batches]).tolist() == list(range(6))


@pytest.mark.parametrize("show", [True, False])
def test_progress_is_drawn_only_when_asked(
    tokenizer: PreTrainedTokenizerBase, capfd: pytest.CaptureFixture, show: bool
) -> None:
    ViewsDataset.build(ROWS, tokenizer, max_length=16, show_progress=show)
    assert ("Tokenising" in capfd.readouterr().err) == show


def test_labels_go_with_their_rows_and_stay_integers(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [(SENTENCES[5], "네."), ("네.", "네."), ("비가 온다.", "맑다.")]
    dataset = ViewsDataset.build(rows, tokenizer, max_length=64, labels=[2, 0, 1])
    assert [item["label"] for item in dataset] == [2, 0, 1]
    assert [item["label"] for item in dataset.sorted_by_length()] == [0, 1, 2]
    batch = ViewsCollator(tokenizer.pad_token_id)([dataset[0], dataset[2]])
    assert batch["labels"].equal(torch.tensor([2, 1])) and batch["labels"].dtype == torch.int64
    assert "scores" not in batch and "teacher" not in batch


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_each_view_has_the_teachers_vector_of_its_sentence(tokenizer: PreTrainedTokenizerBase, dtype: type) -> None:
    sentences, _ = index_rows(ROWS)
    vector_of = {sentence: [float(number), -0.5 * number] for number, sentence in enumerate(sentences)}
    teacher = np.array(list(vector_of.values()), dtype=dtype)
    dataset = ViewsDataset.build(ROWS, tokenizer, max_length=16, teacher=teacher, scores=[0.5, 0.25, 1])
    for views in (dataset, dataset.sorted_by_length()):
        named = {views.store[number].tobytes(): vector_of[sentence] for number, sentence in enumerate(sentences)}
        for item in views:
            assert item["teacher"].dtype == np.float32
            assert item["teacher"].tolist() == [named[view.tobytes()] for view in item["views"]]
    batch = ViewsCollator(tokenizer.pad_token_id)([dataset[2], dataset[0]])
    assert batch["teacher"].shape == (2, 3, 2) and batch["teacher"].dtype == torch.float32
    assert batch["teacher"].tolist() == [[vector_of[sentence] for sentence in ROWS[row]] for row in (2, 0)]
    assert batch["scores"].tolist() == [1, 0.5]


def test_both_views_of_an_unlabelled_sentence_have_its_vector(tokenizer: PreTrainedTokenizerBase) -> None:
    dataset = ViewsDataset.build([("네.",), ("맑다.",)], tokenizer, max_length=16, teacher=np.array([[1.0], [2.0]]))
    assert [item["teacher"].tolist() for item in dataset] == [[[1], [1]], [[2], [2]]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scores": [1.0]}, "scores holds 1 entries for 3 rows; give one for each"),
        ({"labels": [1, 2, 0, 1]}, "labels holds 4 entries for 3 rows"),
        ({"teacher": np.zeros((3, 2))}, "teacher holds 3 entries for 5 sentences"),
    ],
)
def test_values_that_do_not_belong_to_the_rows_are_refused(
    tokenizer: PreTrainedTokenizerBase, values: dict, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ViewsDataset.build(ROWS, tokenizer, max_length=16, **values)
