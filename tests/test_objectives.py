"""Every objective against its slow float64 twin, and what must hold whatever the input."""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import re

import oracles
import oracles_objectives as slow
import pytest
import torch
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

import simcse_hf.objectives
from simcse_hf.angle import angle_loss, paired_angle_similarities
from simcse_hf.cosent import cosent_loss, ranking_loss
from simcse_hf.cosine_regression import cosine_mse_loss, paired_cosines
from simcse_hf.distillation import similarity_distillation_loss, vector_distillation_loss
from simcse_hf.errors import ConfigError
from simcse_hf.false_negatives import false_negative_mask
from simcse_hf.losses import contrastive_logits, simcse_loss
from simcse_hf.matryoshka import matryoshka_loss
from simcse_hf.objectives import OBJECTIVES, SCORED_LOSSES
from simcse_hf.replaced_tokens import replaced_labels, replaced_token_counts, replaced_token_loss
from simcse_hf.softmax_classification import nli_features, softmax_classification_loss
from simcse_hf.symmetric import symmetric_loss

SLOW_SCORED = {"cosine_mse": slow.cosine_mse, "cosent": slow.cosent, "angle": slow.angle}
SEEDS = st.integers(0, 10**6)
some = settings(max_examples=30, deadline=None)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def few_scores(seed: int, count: int) -> torch.Tensor:
    """Of four values, so that ties occur."""
    return torch.randint(0, 4, (count,), generator=torch.Generator().manual_seed(seed)).double() / 3


# --- the registry ---------------------------------------------------------------------------------------------------


def test_the_registry_lists_every_module_with_equation_and_source() -> None:
    tree = ast.parse(inspect.getsource(simcse_hf.objectives))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level}
    assert {objective.function.__module__.rpartition(".")[2] for objective in OBJECTIVES.values()} == imported
    for name, objective in OBJECTIVES.items():
        assert name == objective.name and objective.equation
        module = importlib.import_module(objective.function.__module__)
        assert getattr(module, objective.function.__name__) is objective.function
        papers = re.findall(r"arXiv:\d{4}\.\d{5}|https://\S+", objective.source)
        assert papers
        assert all(paper in module.__doc__ for paper in papers), f"{name}: the module does not name its source"


def test_the_scored_losses_share_one_calling_convention() -> None:
    assert list(SCORED_LOSSES) == ["cosine_mse", "cosent", "angle"]
    for loss in SCORED_LOSSES.values():
        first, second, scores, *options = inspect.signature(loss).parameters.values()
        assert (first.name, second.name, scores.name) == ("first", "second", "scores")
        assert all(option.kind is option.KEYWORD_ONLY for option in options)


# --- scored pairs ---------------------------------------------------------------------------------------------------

scored = pytest.mark.parametrize("name", SCORED_LOSSES)


@scored
@some
@given(st.integers(1, 9), st.integers(1, 4), SEEDS)
def test_a_scored_loss_is_its_sum(name: str, pairs: int, half: int, seed: int) -> None:
    first, second, scores = normal(seed, pairs, 2 * half), normal(seed + 1, pairs, 2 * half), few_scores(seed, pairs)
    value = SCORED_LOSSES[name](first, second, scores)
    assert value.dtype == torch.float64 and value.shape == ()
    assert value.item() == pytest.approx(
        SLOW_SCORED[name](first.tolist(), second.tolist(), scores.tolist()), rel=1e-9, abs=1e-12
    )


@scored
@some
@given(st.integers(2, 9), SEEDS)
def test_the_order_of_the_pairs_does_not_matter(name: str, pairs: int, seed: int) -> None:
    first, second, scores = normal(seed, pairs, 4), normal(seed + 1, pairs, 4), few_scores(seed, pairs)
    order = torch.randperm(pairs, generator=torch.Generator().manual_seed(seed))
    loss = SCORED_LOSSES[name]
    torch.testing.assert_close(loss(first[order], second[order], scores[order]), loss(first, second, scores))


@pytest.mark.parametrize("name", ["cosent", "angle"])
@some
@given(st.integers(2, 9), SEEDS)
def test_only_the_order_of_the_scores_matters_to_a_ranking(name: str, pairs: int, seed: int) -> None:
    first, second, scores = normal(seed, pairs, 4), normal(seed + 1, pairs, 4), few_scores(seed, pairs)
    loss = SCORED_LOSSES[name]
    torch.testing.assert_close(loss(first, second, (3 * scores).exp() - 7), loss(first, second, scores))


@scored
def test_the_lengths_of_the_vectors_do_not_matter(name: str) -> None:
    first, second, scores = normal(0, 6, 4), normal(1, 6, 4), few_scores(2, 6)
    loss = SCORED_LOSSES[name]
    torch.testing.assert_close(loss(7 * first, 0.1 * second, scores), loss(first, second, scores))


@scored
def test_the_gradient_of_a_scored_loss_is_right(name: str) -> None:
    first, second = (normal(seed, 4, 4).requires_grad_() for seed in (0, 1))
    scores = torch.tensor([0.0, 1.0, 0.5, 0.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda u, v: SCORED_LOSSES[name](u, v, scores), (first, second))


@scored
def test_scored_losses_stay_in_float32_under_mixed_precision(name: str) -> None:
    first, second, scores = normal(0, 8, 64).bfloat16(), normal(1, 8, 64).bfloat16(), few_scores(2, 8)
    exact = SCORED_LOSSES[name](first.double(), second.double(), scores)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = SCORED_LOSSES[name](first, second, scores)
    assert value.dtype == torch.float32
    assert math.isclose(value.item(), exact.item(), rel_tol=1e-4)


@pytest.mark.parametrize("name", ["cosent", "angle"])
@pytest.mark.parametrize("pairs", [1, 5])
def test_without_any_order_a_ranking_is_zero_and_pulls_nowhere(name: str, pairs: int) -> None:
    first = torch.randn(pairs, 4, requires_grad=True)
    value = SCORED_LOSSES[name](first, torch.randn(pairs, 4), torch.full((pairs,), 0.4))
    value.backward()
    assert value.item() == 0
    assert first.grad.tolist() == torch.zeros(pairs, 4).tolist()


def test_equal_scores_demand_nothing_of_each_other() -> None:
    """Between the tied pairs nothing counts; each of them counts against the third."""
    similarities, scores = torch.tensor([0.9, 0.1, 0.4]), torch.tensor([0.5, 0.5, 1.0])
    expected = math.log(1 + math.exp(2 * 0.5) + math.exp(2 * -0.3))
    assert ranking_loss(similarities, scores, scale=2.0).item() == pytest.approx(expected, rel=1e-6)


def test_large_scales_do_not_overflow() -> None:
    first = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    second = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    value = cosent_loss(first, second, torch.tensor([0.0, 1.0]), scale=1e4)
    value.backward()
    assert value.item() == pytest.approx(2e4)
    assert first.grad.isfinite().all()


def test_a_zero_vector_gives_no_nan() -> None:
    for loss in SCORED_LOSSES.values():
        first = torch.tensor([[0.0, 0.0], [1.0, 2.0]], requires_grad=True)
        value = loss(first, torch.tensor([[1.0, 0.0], [2.0, 1.0]]), torch.tensor([0.0, 1.0]))
        value.backward()
        assert value.isfinite() and first.grad.isfinite().all()


@scored
def test_a_column_of_scores_is_refused_because_it_would_be_compared_with_all(name: str) -> None:
    with pytest.raises(ValueError, match=r"scores has the shape \(3, 1\); one score a pair means \(3,\)"):
        SCORED_LOSSES[name](torch.randn(3, 4), torch.randn(3, 4), torch.rand(3, 1))


def test_the_angle_objective_needs_an_even_size() -> None:
    with pytest.raises(ValueError, match="pairs of components, and 5 is odd. Use cosent"):
        angle_loss(torch.randn(2, 5), torch.randn(2, 5), torch.tensor([0.0, 1.0]))


def test_the_angle_similarity_is_that_of_the_complex_quotient() -> None:
    """For two components: |cos + sin| of the angle between the vectors."""
    u, v = [2.0, 1.0], [0.3, -0.7]
    angle = slow.argument_of_quotient(u, v)
    found = paired_angle_similarities(torch.tensor([u]), torch.tensor([v])).item()
    assert found == pytest.approx(abs(math.cos(angle) + math.sin(angle)), rel=1e-6)
    other_way = paired_angle_similarities(torch.tensor([v]), torch.tensor([u])).item()
    assert other_way == pytest.approx(abs(math.cos(angle) - math.sin(angle)), rel=1e-6)
    assert abs(found - other_way) > 0.05, "the sign of the sine does not matter here"


def test_ranking_losses_agree_with_sentence_transformers() -> None:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.util import pairwise_angle_sim

    first, second, scores = normal(0, 12, 8).float(), normal(1, 12, 8).float(), few_scores(2, 12).float()
    torch.testing.assert_close(paired_angle_similarities(first, second), pairwise_angle_sim(first, second))
    for theirs, ours in ((losses.CoSENTLoss, cosent_loss), (losses.AnglELoss, angle_loss)):
        peer = theirs(model=torch.nn.Module())
        expected = peer.compute_loss_from_embeddings([first, second], scores)
        torch.testing.assert_close(ours(first, second, scores), expected)


def test_a_perfect_regression_costs_nothing() -> None:
    first, second = torch.randn(5, 4), torch.randn(5, 4)
    assert cosine_mse_loss(first, second, paired_cosines(first, second)).item() == 0


# --- labels ---------------------------------------------------------------------------------------------------------


@some
@given(st.integers(1, 6), st.integers(1, 5), SEEDS)
def test_the_classification_loss_is_its_sum(pairs: int, size: int, seed: int) -> None:
    first, second = normal(seed, pairs, size), normal(seed + 1, pairs, size)
    features = nli_features(first, second)
    assert features.tolist() == [slow.nli_features(u, v) for u, v in zip(first.tolist(), second.tolist(), strict=True)]
    logits = features @ normal(seed + 2, 3 * size, 3)
    labels = torch.randint(0, 3, (pairs,), generator=torch.Generator().manual_seed(seed))
    value = softmax_classification_loss(logits, labels)
    assert value.item() == pytest.approx(slow.cross_entropy(logits.tolist(), labels.tolist()), rel=1e-9)


def test_the_gradient_through_the_features_is_right() -> None:
    first, second, weight = (normal(seed, 3, size).requires_grad_() for seed, size in ((0, 2), (1, 2), (2, 6)))
    labels = torch.tensor([0, 2, 1])
    assert torch.autograd.gradcheck(
        lambda u, v, w: softmax_classification_loss(nli_features(u, v) @ w.T, labels), (first, second, weight)
    )


def test_half_precision_logits_are_classified_in_float32() -> None:
    logits = normal(0, 5, 3).bfloat16()
    labels = torch.tensor([0, 1, 2, 0, 1])
    value = softmax_classification_loss(logits, labels)
    assert value.dtype == torch.float32 == nli_features(logits, logits).dtype
    assert value.item() == pytest.approx(softmax_classification_loss(logits.double(), labels).item(), rel=1e-6)


# --- views ----------------------------------------------------------------------------------------------------------


@some
@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 3), SEEDS)
def test_the_symmetric_loss_is_its_sum(rows: int, others: int, first_positive: int, seed: int) -> None:
    candidates = first_positive + rows + others
    forward, backward = normal(seed, rows, 2 * candidates), normal(seed + 1, rows, candidates)
    value = symmetric_loss(forward, backward, first_positive=first_positive)
    assert value.item() == pytest.approx(slow.symmetric(forward.tolist(), backward.tolist(), first_positive), rel=1e-9)


@some
@given(st.integers(2, 6), SEEDS)
def test_both_directions_of_a_symmetric_matrix_are_one(rows: int, seed: int) -> None:
    logits = normal(seed, rows, rows)
    logits = logits + logits.T
    torch.testing.assert_close(symmetric_loss(logits, logits.T), simcse_loss(logits))


def test_swapping_anchors_and_positives_changes_nothing_without_hard_negatives() -> None:
    anchors, positives = torch.randn(5, 4), torch.randn(5, 4)
    there, back = contrastive_logits(anchors, positives), contrastive_logits(positives, anchors)
    assert not torch.allclose(simcse_loss(there), simcse_loss(back)), "the directions do not differ"
    torch.testing.assert_close(symmetric_loss(there, back), symmetric_loss(back, there))
    torch.testing.assert_close(symmetric_loss(there, back), (simcse_loss(there) + simcse_loss(there.T)) / 2)


@some
@given(st.integers(1, 5), st.integers(0, 6), st.integers(0, 3), st.floats(-0.5, 0.5), SEEDS)
def test_the_false_negatives_are_those_a_loop_finds(
    rows: int, others: int, first_positive: int, margin: float, seed: int
) -> None:
    cosines = normal(seed, rows, first_positive + rows + others).tanh()
    masked = false_negative_mask(cosines, margin, first_positive=first_positive)
    assert masked.tolist() == slow.false_negatives(cosines.tolist(), margin, first_positive)
    own = masked[range(rows), range(first_positive, first_positive + rows)]
    assert not own.any()


def test_a_candidate_as_near_as_the_positive_stays_at_margin_zero() -> None:
    assert false_negative_mask(torch.tensor([[0.5, 0.5, 0.51]]), 0.0).tolist() == [[False, False, True]]


def test_masking_asks_for_no_gradient_and_serves_as_mask_of_the_loss() -> None:
    anchors, positives = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    cosines = contrastive_logits(anchors, positives, temperature=1.0)
    masked = false_negative_mask(cosines, -0.2)
    assert masked.any() and not masked.requires_grad
    logits = contrastive_logits(anchors, positives, masked=masked)
    assert logits.isinf().equal(masked)
    simcse_loss(logits).backward()
    assert anchors.grad.isfinite().all()


def test_the_mask_is_wrong_where_logits_are_given_instead_of_cosines() -> None:
    """Why the docstring insists: divided by the temperature, the margin shrinks to a twentieth."""
    cosines = torch.tensor([[0.5, 0.55]])
    assert false_negative_mask(cosines, 0.1).tolist() != false_negative_mask(cosines / 0.05, 0.1).tolist()


@some
@given(st.integers(2, 5), st.integers(1, 6), st.data(), SEEDS)
def test_the_matryoshka_loss_is_its_sum(rows: int, size: int, data: st.DataObject, seed: int) -> None:
    sizes = data.draw(st.lists(st.integers(1, size), min_size=1, unique=True))
    weights = data.draw(
        st.none() | st.lists(st.floats(0.1, 3.0), min_size=len(sizes), max_size=len(sizes)), label="weights"
    )
    views = normal(seed, rows, 2, size)

    def fast(embeddings: torch.Tensor) -> torch.Tensor:
        return simcse_loss(contrastive_logits(embeddings[:, 0], embeddings[:, 1], temperature=0.5))

    def twin(rows_of_views) -> float:
        return oracles.simcse_loss(
            [row[0] for row in rows_of_views], [row[1] for row in rows_of_views], temperature=0.5
        )

    expected = slow.matryoshka(twin, views.tolist(), sizes, weights)
    assert matryoshka_loss(fast, views, sizes, weights).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_full_size_alone_is_the_plain_loss_and_weights_are_relative() -> None:
    embeddings = torch.randn(3, 6)
    assert matryoshka_loss(torch.var, embeddings, [6]).item() == torch.var(embeddings).item()
    torch.testing.assert_close(
        matryoshka_loss(torch.var, embeddings, [6, 2], [2, 1]), matryoshka_loss(torch.var, embeddings, [6, 2], [20, 10])
    )


def test_components_beyond_the_largest_size_get_no_gradient() -> None:
    embeddings = torch.randn(3, 6, requires_grad=True)
    matryoshka_loss(lambda kept: kept.square().sum(), embeddings, [2, 4]).backward()
    assert embeddings.grad[:, 4:].abs().sum() == 0
    torch.testing.assert_close(embeddings.grad[:, :2], 2 * embeddings[:, :2])
    torch.testing.assert_close(embeddings.grad[:, 2:4], embeddings[:, 2:4])


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ([], None, "no Matryoshka sizes are given; list sizes from 1 to 6"),
        ([4, 7], None, "size 7 is not a whole number from 1 to 6"),
        ([0], None, "size 0 is not a whole number"),
        ([-1], None, "size -1 is not a whole number"),
        ([2.5], None, r"size 2\.5 is not a whole number"),
        ([True], None, "size True is not a whole number"),
        ([2, 4, 2], None, "size 2 is listed twice"),
        ([2, 4], [1.0], "1 Matryoshka weights for 2 sizes"),
        ([2, 4], [1.0, 0.0], r"weight 0\.0 is not above 0"),
        ([2], [-1.0], r"weight -1\.0 is not above 0"),
        ([2], [math.nan], "weight nan is not above 0"),
        ([2], [math.inf], "weight inf is not above 0"),
    ],
)
def test_matryoshka_sizes_and_weights_that_cannot_be_used_are_named(sizes, weights, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        matryoshka_loss(torch.sum, torch.randn(2, 6), sizes, weights)


# --- teacher and student --------------------------------------------------------------------------------------------


@some
@given(st.integers(1, 5), st.integers(1, 6), st.floats(0.05, 2.0), st.floats(0.05, 2.0), st.booleans(), SEEDS)
def test_the_similarity_distillation_is_its_sum(
    rows: int, candidates: int, student_temperature: float, teacher_temperature: float, mask: bool, seed: int
) -> None:
    student, teacher = normal(seed, rows, candidates).tanh(), normal(seed + 1, rows, candidates).tanh()
    masked = normal(seed + 2, rows, candidates) > 0.3 if mask else None
    value = similarity_distillation_loss(
        student,
        teacher,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        masked=masked,
    )
    expected = slow.similarity_distillation(
        student.tolist(),
        teacher.tolist(),
        student_temperature,
        teacher_temperature,
        masked.tolist() if mask else None,
    )
    assert value.item() == pytest.approx(expected, rel=1e-7, abs=1e-12)
    assert value.item() >= -1e-12


def test_a_student_that_agrees_costs_nothing_and_the_gradient_is_the_cross_entropys() -> None:
    cosines = normal(0, 4, 5)
    same = similarity_distillation_loss(cosines, cosines, student_temperature=0.1, teacher_temperature=0.1)
    assert same.item() == pytest.approx(0, abs=1e-12)
    student, teacher = normal(1, 4, 5).requires_grad_(), normal(2, 4, 5)
    similarity_distillation_loss(student, teacher, student_temperature=0.5, teacher_temperature=0.2).backward()
    by_hand = student.detach().clone().requires_grad_()
    torch.nn.functional.cross_entropy(by_hand / 0.5, (teacher / 0.2).softmax(dim=1)).backward()
    torch.testing.assert_close(student.grad, by_hand.grad)


def test_the_gradient_of_the_distillation_is_right_and_stays_out_of_the_teacher() -> None:
    student, teacher = normal(0, 3, 3).requires_grad_(), normal(1, 3, 3).requires_grad_()
    masked = torch.eye(3, dtype=torch.bool)
    masked[1] = True  # nothing is left of this row
    assert torch.autograd.gradcheck(
        lambda cosines: similarity_distillation_loss(
            cosines, teacher.detach(), student_temperature=0.5, teacher_temperature=0.3, masked=masked
        ),
        student,
    )
    similarity_distillation_loss(student, teacher, masked=masked).backward()
    assert teacher.grad is None
    assert student.grad.isfinite().all()
    assert student.grad[masked].abs().sum() == 0 < student.grad[~masked].abs().sum()


def test_without_masking_a_sentences_cosine_with_itself_drowns_the_others() -> None:
    """Why a sentence's cosine with itself is masked: two teachers that disagree look alike as long as the diagonal takes part."""
    student, teacher = torch.eye(3), torch.eye(3)
    student[0, 1], teacher[0, 2] = 0.5, 0.5
    temperatures = {"student_temperature": 0.05, "teacher_temperature": 0.05}
    with_own = similarity_distillation_loss(student, teacher, **temperatures)
    without = similarity_distillation_loss(student, teacher, **temperatures, masked=torch.eye(3, dtype=torch.bool))
    assert with_own.item() < 1e-2 < 1 < without.item()


@pytest.mark.parametrize("name", ["student_temperature", "teacher_temperature"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_temperatures_that_cannot_be_used_are_named(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"the {name.partition('_')[0]}'s temperature is {value}; it must be above"):
        similarity_distillation_loss(torch.zeros(1, 2), torch.zeros(1, 2), **{name: value})


@some
@given(st.integers(1, 5), st.integers(1, 6), SEEDS)
def test_the_vector_distillation_is_its_sum(rows: int, size: int, seed: int) -> None:
    student, teacher = normal(seed, rows, size), normal(seed + 1, rows, size)
    value = vector_distillation_loss(student, teacher)
    assert value.item() == pytest.approx(slow.vector_distillation(student.tolist(), teacher.tolist()), rel=1e-9)


def test_vectors_are_distilled_in_float32_and_not_into_the_teacher() -> None:
    student, teacher = torch.randn(2, 3).bfloat16().requires_grad_(), torch.randn(2, 3).half().requires_grad_()
    value = vector_distillation_loss(student, teacher)
    value.backward()
    assert value.dtype == torch.float32
    assert teacher.grad is None and student.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(vector_distillation_loss, (normal(0, 2, 3).requires_grad_(), normal(1, 2, 3)))


def test_vectors_of_different_sizes_are_refused_with_a_cure() -> None:
    with pytest.raises(
        ConfigError, match="student's vectors have 3 components and the teacher's 5.*similarities instead"
    ):
        vector_distillation_loss(torch.randn(2, 3), torch.randn(2, 5))


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_only_real_tokens_that_differ_are_replaced() -> None:
    original = torch.tensor([[2, 8, 9, 3, 0]])
    corrupted = torch.tensor([[2, 8, 7, 4, 5]])
    real = torch.tensor([[True, True, True, True, False]])
    labels = replaced_labels(original, corrupted, real)
    assert labels.tolist() == [[0, 0, 1, 1, 0]] and labels.dtype == torch.int64


@some
@given(st.integers(1, 12), SEEDS)
def test_the_replaced_token_loss_and_its_counts_are_those_of_a_loop(tokens: int, seed: int) -> None:
    logits = 3 * normal(seed, tokens, 2)
    labels, counted = (normal(seed + 1, tokens) > 0).long(), normal(seed + 2, tokens) > -0.5
    total, number = replaced_token_loss(logits, labels, counted)
    expected, expected_number = slow.replaced_tokens(logits.tolist(), labels.tolist(), counted.tolist())
    assert total.item() == pytest.approx(expected, rel=1e-9, abs=1e-12) and number.item() == expected_number
    counts = [[0, 0], [0, 0]]
    for row, label, counts_here in zip(logits.tolist(), labels.tolist(), counted.tolist(), strict=True):
        if counts_here:
            counts[label][0] += (row[1] > row[0]) == bool(label)
            counts[label][1] += 1
    assert replaced_token_counts(logits, labels, counted).tolist() == counts


def test_tokens_that_do_not_count_have_no_say_whatever_their_logits() -> None:
    logits = torch.tensor([[0.0, 0.0], [1e38, -1e38], [0.0, 0.0]], requires_grad=True)
    labels, counted = torch.tensor([0, 1, 1]), torch.tensor([True, False, True])
    total, number = replaced_token_loss(logits, labels, counted)
    total.backward()
    assert (total / number).item() == pytest.approx(math.log(2))
    assert logits.grad.isfinite().all() and logits.grad[1].abs().sum() == 0


def test_sums_and_counts_of_parts_add_up_to_the_whole() -> None:
    logits, labels, counted = normal(0, 9, 2), (normal(1, 9) > 0).long(), normal(2, 9) > -0.5
    parts = [slice(0, 4), slice(4, 9)]
    whole = replaced_token_loss(logits, labels, counted)
    pieces = [replaced_token_loss(logits[part], labels[part], counted[part]) for part in parts]
    torch.testing.assert_close(sum(piece[0] for piece in pieces), whole[0])
    assert sum(piece[1] for piece in pieces) == whole[1]
    counts = sum(replaced_token_counts(logits[part], labels[part], counted[part]) for part in parts)
    assert counts.equal(replaced_token_counts(logits, labels, counted))


def test_no_counted_token_gives_zero_and_zero() -> None:
    logits = torch.randn(3, 2, requires_grad=True)
    total, number = replaced_token_loss(logits, torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.bool))
    total.backward()
    assert (total.item(), number.item()) == (0.0, 0)
    assert logits.grad.abs().sum() == 0


def test_the_gradient_of_the_replaced_token_loss_is_right() -> None:
    labels, counted = torch.tensor([0, 1, 1]), torch.tensor([True, False, True])
    logits = normal(0, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: replaced_token_loss(values, labels, counted)[0], logits)


def test_the_objectives_need_no_transformers() -> None:
    for objective in OBJECTIVES.values():
        source = inspect.getsource(importlib.import_module(objective.function.__module__))
        assert "transformers" not in source.replace("sentence-transformers", "")


def test_the_document_has_every_objective_with_its_equation_and_source() -> None:
    page = (REPOSITORY / "docs/objectives.md").read_text(encoding="utf-8")
    for objective in OBJECTIVES.values():
        assert f"| `{objective.name}` |" in page
        assert objective.equation in page and objective.source in page, objective.name
