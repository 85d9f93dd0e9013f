"""scnet_d2.evaluation.metrics against hand-worked examples, scikit-learn, and its own invariants.

Numbers in comments are worked by hand from the definitions in the module's docstring.
"""

import math
import warnings

from scnet_d2.evaluation.metrics import (
    average_precision,
    multilabel_metrics,
    precision_recall_curve,
    top_k_decisions,
)

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

SEVEN = ["mAP", "CP", "CR", "CF1", "OP", "OR", "OF1"]
KEYS = (
    SEVEN
    + ["CF1_mean", "mAP_interp", "mAP_11pt"]
    + [f"{key}_top3" for key in SEVEN[1:]]
    + ["per_class_AP"]
)

# Four images, classes A, B, C. At 0.5 they predict AB, AC, B, A.
#        predicted  positives  TP   precision  recall  F1
#   A    3          3          2    2/3        2/3     2/3
#   B    2          2          2    1          1       1
#   C    1          2          1    1          1/2     2/3
SCORES = np.array([[0.9, 0.6, 0.2], [0.8, 0.4, 0.7], [0.3, 0.7, 0.1], [0.6, 0.1, 0.4]])
LABELS = np.array([[1, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1]], dtype=bool)


@pytest.mark.parametrize(
    ("key", "fraction"),
    [
        ("CP", 8 / 9),  # (2/3 + 1 + 1) / 3
        ("CR", 13 / 18),  # (2/3 + 1 + 1/2) / 3
        ("CF1", 208 / 261),  # 2 · 8/9 · 13/18 / (8/9 + 13/18) = 208/162 · 18/29
        ("CF1_mean", 7 / 9),  # (2/3 + 1 + 2/3) / 3
        ("OP", 5 / 6),
        ("OR", 5 / 7),
        ("OF1", 10 / 13),  # 2 · 5 / (6 + 7)
        # A in order of score is + - + +: precision 1, 2/3, 3/4 at the positives, mean 29/36.
        # B and C rank every positive first: 1.
        ("mAP", 101 / 108),  # (29/36 + 1 + 1) / 3
        ("mAP_interp", 17 / 18),  # envelope of A: 1, 3/4, 3/4, mean 5/6
        # Recall 0 to 0.3 is reached at precision 1, 0.4 to 1 at 3/4: (4 + 7 · 3/4) / 11 = 37/44.
        ("mAP_11pt", 125 / 132),  # (37/44 + 1 + 1) / 3
    ],
)
def test_hand_worked_metric(key, fraction):
    assert multilabel_metrics(SCORES, LABELS)[key] == pytest.approx(100 * fraction, abs=1e-9)


def test_hand_worked_top1():
    # Highest class of each image: A, A, B, A.
    # TP / predicted / positives: A 2/3/3, B 1/1/2, C 0/0/2.
    expected = {
        "CP_top1": 5 / 9,  # (2/3 + 1 + 0) / 3
        "CR_top1": 7 / 18,  # (2/3 + 1/2 + 0) / 3
        "CF1_top1": 70 / 153,  # 2 · 10/18 · 7/18 / (17/18)
        "OP_top1": 3 / 4,
        "OR_top1": 3 / 7,
        "OF1_top1": 6 / 11,
    }
    metrics = multilabel_metrics(SCORES, LABELS, top_k=1)
    assert {k: metrics[k] / 100 for k in expected} == pytest.approx(expected, abs=1e-12)


def test_hand_worked_top3_keeps_the_three_highest_that_reach_the_threshold():
    scores = np.array([[0.9, 0.8, 0.7, 0.6, 0.2], [0.1, 0.9, 0.3, 0.4, 0.45]])
    labels = np.array([[1, 0, 0, 1, 1], [0, 1, 1, 0, 0]], dtype=bool)
    # Image 1 predicts A B C (D is fourth). Of image 2's three highest, B E D, only B reaches 0.5.
    # TP / predicted / positives: A 1/1/1, B 1/2/1, C 0/1/1, D 0/0/1, E 0/0/1.
    expected = {
        "CP_top3": 3 / 10,  # (1 + 1/2) / 5
        "CR_top3": 2 / 5,  # (1 + 1) / 5
        "CF1_top3": 12 / 35,  # 2 · 0.3 · 0.4 / 0.7
        "OP_top3": 2 / 4,
        "OR_top3": 2 / 5,
        "OF1_top3": 4 / 9,
    }
    metrics = multilabel_metrics(scores, labels)
    assert {k: metrics[k] / 100 for k in expected} == pytest.approx(expected, abs=1e-12)
    assert metrics["OP"] == pytest.approx(100 * 3 / 5)  # D of image 1 is a fifth decision, right


def test_ties_at_the_third_place_go_to_the_lower_class_index():
    scores = np.array([[0.6, 0.9, 0.6, 0.6]])
    labels = np.array([[True, False, True, False]])
    metrics = multilabel_metrics(scores, labels)  # predicts classes 1, 0, 2
    assert (metrics["OP_top3"], metrics["OR_top3"]) == pytest.approx((200 / 3, 100))


def test_ignored_class_takes_no_place_in_the_top3():
    scores = np.array([[0.9, 0.8, 0.7, 0.6]])
    labels = np.array([[True, False, False, True]])
    metrics = multilabel_metrics(scores, labels, np.array([[True, False, False, False]]))
    # Classes 1, 2, 3 are predicted, class 3 is the one positive that counts.
    assert (metrics["OP_top3"], metrics["OR_top3"]) == pytest.approx((100 / 3, 100))


def test_top_k_never_chooses_an_ignored_class():
    scores = np.array([[0.9, 0.8, 0.7, 0.6], [0.1, 0.1, 0.1, 0.1]])
    ignored = np.array([[True, True, False, True], [True, False, False, False]])
    expected = np.array([[False, False, True, False], [False, True, True, False]])
    np.testing.assert_array_equal(top_k_decisions(scores, ignored, 2), expected)


def test_class_below_its_own_threshold_leaves_its_top3_place_empty():
    scores = np.array([[0.9, 0.8, 0.7, 0.6]])
    labels = np.array([[False, False, False, True]])
    metrics = multilabel_metrics(scores, labels, threshold=np.array([0.95, 0.5, 0.5, 0.5]))
    assert metrics["OR"] == 100.0  # class 3 is predicted
    assert metrics["OR_top3"] == 0.0  # and is the fourth highest, though class 0 is not predicted


def test_ignored_entries_count_neither_as_positive_nor_as_negative():
    scores = np.array([[0.9], [0.8], [0.7], [0.6], [0.5]])
    labels = np.array([[0], [1], [1], [0], [1]], dtype=bool)
    ignored = np.array([[1], [0], [1], [0], [0]], dtype=bool)
    metrics = multilabel_metrics(scores, labels, ignored)
    # Left: 0.8 +, 0.6 -, 0.5 +. Precision at the positives 1 and 2/3. Three predicted, two right.
    assert metrics["mAP"] == pytest.approx(100 * 5 / 6)
    assert (metrics["OP"], metrics["OR"]) == pytest.approx((200 / 3, 100))


def test_tied_scores_share_one_threshold():
    # 0.8: one of two is positive. 0.4: two of four. Each positive has precision 1/2.
    scores = np.array([0.8, 0.8, 0.4, 0.4])
    for labels in ([1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 1]):
        assert average_precision(scores, np.array(labels, dtype=bool)) == (0.5, 0.5, 0.5)


def test_class_without_positives_is_left_out_of_the_means_but_not_of_the_overall_decisions():
    scores = np.hstack([SCORES, np.full((4, 1), 0.9)])
    labels = np.hstack([LABELS, np.zeros((4, 1), dtype=bool)])
    metrics, without = multilabel_metrics(scores, labels), multilabel_metrics(SCORES, LABELS)
    assert math.isnan(metrics["per_class_AP"][3])
    for key in ("mAP", "CP", "CR", "CF1", "CF1_mean", "mAP_interp", "mAP_11pt", "OR"):
        assert metrics[key] == without[key]
    assert metrics["OP"] == pytest.approx(100 * 5 / 10)  # four more predictions, all wrong


def test_nothing_predicted_has_precision_zero():
    metrics = multilabel_metrics(SCORES, LABELS, threshold=1.0)
    assert [metrics[key] for key in SEVEN[1:]] == [0.0] * 6


def test_threshold_is_reached_by_an_equal_score_in_the_precision_of_the_scores():
    scores = np.array([[0.7, 0.3]], dtype=np.float32)  # float32(0.7) < 0.7
    labels = np.array([[True, True]])
    assert multilabel_metrics(scores, labels, threshold=0.7)["OR"] == 50.0
    assert multilabel_metrics(scores, labels, threshold=np.array([0.7, 0.3]))["OR"] == 100.0


def test_keys_are_in_the_documented_order_and_values_are_python_floats():
    metrics = multilabel_metrics(SCORES.astype(np.float32), LABELS)
    assert list(metrics) == KEYS
    assert all(type(metrics[key]) is float for key in KEYS[:-1])
    assert metrics["per_class_AP"].shape == (3,)


def _voc_average_precisions(scores, labels):
    """Area under the envelope and 11-point AP as in the VOC kit, on scikit-learn's curve."""
    precision, recall, _ = sklearn.metrics.precision_recall_curve(labels, scores)
    precision, recall = precision[:-1][::-1], recall[:-1][::-1]
    envelope = np.maximum.accumulate(np.append(precision, 0)[::-1])[::-1]
    area = np.sum(np.diff(np.concatenate([[0], recall])) * envelope[:-1])
    points = [precision[recall >= t / 10 - 1e-12].max() for t in range(11)]
    return area, np.mean(points)


def _reference_decisions(scores, top_k, threshold=0.5):
    decisions = np.zeros(scores.shape, dtype=bool)
    for image, row in enumerate(scores.tolist()):
        ranking = sorted(range(len(row)), key=lambda c: (-row[c], c))[:top_k]
        decisions[image, [c for c in ranking if row[c] >= threshold]] = True
    return decisions


def _reference_prf(labels, decisions, suffix):
    """The six columns, and the mean F1, from scikit-learn."""
    # One empty class more: scikit-learn takes a single column for a two-class problem.
    labels, decisions = (np.pad(x, ((0, 0), (0, 1))) for x in (labels, decisions))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        p, r, f1, _ = sklearn.metrics.precision_recall_fscore_support(
            labels, decisions, average=None, zero_division=0
        )
        op, or_, of1, _ = sklearn.metrics.precision_recall_fscore_support(
            labels, decisions, average="micro", zero_division=0
        )
    present = labels.any(axis=0)
    cp, cr = p[present].mean(), r[present].mean()
    cf1 = 2 * cp * cr / (cp + cr) if cp + cr else 0.0
    values = dict(zip(SEVEN[1:], (cp, cr, cf1, op, or_, of1), strict=True))
    return {key + suffix: value for key, value in values.items()}, f1[present].mean()


def _reference_metrics(scores, labels):
    present = np.flatnonzero(labels.any(axis=0))
    columns = [(scores[:, c], labels[:, c]) for c in present]
    voc = np.mean([_voc_average_precisions(s, y) for s, y in columns], axis=0)
    all_decisions = _reference_decisions(scores, scores.shape[1])
    prf, mean_f1 = _reference_prf(labels, all_decisions, "")
    top3, _ = _reference_prf(labels, _reference_decisions(scores, 3), "_top3")
    mean_ap = np.mean([sklearn.metrics.average_precision_score(y, s) for s, y in columns])
    return (
        {"mAP": mean_ap, "mAP_interp": voc[0], "mAP_11pt": voc[1], "CF1_mean": mean_f1} | prf | top3
    )


def _cases():
    rng = np.random.default_rng(7)

    def labels(shape, share):
        drawn = rng.random(shape) < share
        drawn[0, 0] = True
        return drawn

    yield "random", rng.random((500, 20)), labels((500, 20), 0.1)
    yield "float32", rng.random((300, 7), dtype=np.float32), labels((300, 7), 0.3)
    yield "tied", rng.integers(0, 5, (400, 12)) / 4, labels((400, 12), 0.2)
    yield "rare, some classes without positives", rng.random((50, 30)), labels((50, 30), 0.02)
    yield "constant", np.full((40, 6), 0.5), labels((40, 6), 0.4)
    yield "zeros and ones", rng.integers(0, 2, (60, 6)).astype(float), labels((60, 6), 0.4)
    yield "all positive", rng.random((30, 4)), np.ones((30, 4), dtype=bool)
    yield "one image", rng.random((1, 9)), labels((1, 9), 0.5)
    yield "one class", rng.random((80, 1)), labels((80, 1), 0.1)
    yield "one entry", np.array([[0.4]]), np.array([[True]])
    yield "Fortran order", np.asfortranarray(rng.random((70, 5))), labels((70, 5), 0.3)


@pytest.mark.parametrize(
    ("scores", "labels"), [pytest.param(*case[1:], id=case[0]) for case in _cases()]
)
def test_equals_scikit_learn(scores, labels):
    metrics = multilabel_metrics(scores, labels)
    for key, value in _reference_metrics(scores, labels).items():
        assert metrics[key] / 100 == pytest.approx(value, abs=1e-9), key


def test_per_class_ap_with_ignored_entries_equals_scikit_learn_on_the_rest():
    rng = np.random.default_rng(3)
    scores, labels = rng.integers(0, 30, (300, 10)) / 30, rng.random((300, 10)) < 0.2
    ignored = rng.random((300, 10)) < 0.3
    expected = [
        sklearn.metrics.average_precision_score(y[~out], s[~out])
        for s, y, out in zip(scores.T, labels.T, ignored.T, strict=True)
    ]
    per_class = multilabel_metrics(scores, labels, ignored)["per_class_AP"]
    np.testing.assert_allclose(per_class / 100, expected, atol=1e-9)


def test_precision_recall_curve_equals_scikit_learn():
    rng = np.random.default_rng(5)
    scores, labels = rng.integers(0, 20, 200) / 20, rng.random(200) < 0.3
    expected = sklearn.metrics.precision_recall_curve(labels, scores)
    for ours, theirs in zip(precision_recall_curve(scores, labels), expected, strict=True):
        np.testing.assert_allclose(ours, theirs[: len(ours)][::-1], atol=1e-12)


@st.composite
def problems(draw):
    """Scores on a coarse grid, so that many tie, with at least one positive that counts."""
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 6)))
    grid = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 8)))
    labels = draw(hnp.arrays(bool, shape))
    ignored = draw(hnp.arrays(bool, shape))
    labels[0, 0], ignored[0, 0] = True, False
    return grid / 8, labels, ignored


def _assert_same(metrics, others):
    for key, value in metrics.items():
        np.testing.assert_allclose(others[key], value, atol=1e-9, err_msg=key)


@settings(max_examples=60, deadline=None)
@given(problem=problems(), seed=st.integers(0, 1000))
def test_order_of_images_does_not_matter(problem, seed):
    order = np.random.default_rng(seed).permutation(len(problem[0]))
    _assert_same(multilabel_metrics(*problem), multilabel_metrics(*(x[order] for x in problem)))


@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_increasing_function_of_the_scores_keeps_every_ap(problem):
    scores, labels, ignored = problem
    metrics, squared = (multilabel_metrics(s, labels, ignored) for s in (scores, scores**2))
    for key in ("mAP", "mAP_interp", "mAP_11pt", "per_class_AP"):
        np.testing.assert_allclose(squared[key], metrics[key], atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(problem=problems(), seed=st.integers(0, 1000))
def test_scores_and_labels_of_ignored_entries_do_not_matter(problem, seed):
    scores, labels, ignored = problem
    rng = np.random.default_rng(seed)
    others = np.where(ignored, rng.random(scores.shape), scores)
    other_labels = np.where(ignored, rng.random(scores.shape) < 0.5, labels)
    _assert_same(
        multilabel_metrics(scores, labels, ignored),
        multilabel_metrics(others, other_labels, ignored),
    )


@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_interpolation_never_lowers_ap(problem):
    metrics = multilabel_metrics(*problem)
    assert metrics["mAP_interp"] >= metrics["mAP"] - 1e-9


@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_top_k_of_all_classes_changes_nothing(problem):
    metrics = multilabel_metrics(*problem, top_k=100)
    assert [metrics[key] for key in SEVEN[1:]] == [metrics[f"{key}_top100"] for key in SEVEN[1:]]


@st.composite
def untied(draw):
    """Scores that are all different, with at least one positive."""
    shape = draw(st.tuples(st.integers(1, 10), st.integers(1, 5)))
    order = draw(st.permutations(range(shape[0] * shape[1])))
    labels = draw(hnp.arrays(bool, shape))
    labels[0, 0] = True
    return (np.array(order).reshape(shape) + 1) / (len(order) + 1), labels


@settings(max_examples=60, deadline=None)
@given(problem=untied(), seed=st.integers(0, 1000))
def test_order_of_classes_does_not_matter_where_no_scores_tie(problem, seed):
    scores, labels = problem
    order = np.random.default_rng(seed).permutation(scores.shape[1])
    metrics = multilabel_metrics(scores, labels)
    others = multilabel_metrics(scores[:, order], labels[:, order])
    per_class = metrics.pop("per_class_AP")
    np.testing.assert_allclose(others["per_class_AP"], per_class[order])
    _assert_same(metrics, others)


@settings(max_examples=60, deadline=None)
@given(problem=problems(), seed=st.integers(0, 1000))
def test_order_of_classes_matters_at_most_to_the_top3_where_scores_tie(problem, seed):
    order = np.random.default_rng(seed).permutation(problem[0].shape[1])
    metrics = multilabel_metrics(*problem)
    others = multilabel_metrics(*(x[:, order] for x in problem))
    np.testing.assert_allclose(others["per_class_AP"], metrics["per_class_AP"][order])
    _assert_same({key: metrics[key] for key in KEYS[:10]}, others)


@settings(max_examples=40, deadline=None)
@given(problem=problems())
def test_drawn_scores_equal_scikit_learn(problem):
    scores, labels, _ = problem
    metrics = multilabel_metrics(scores, labels)
    for key, value in _reference_metrics(scores, labels).items():
        assert metrics[key] / 100 == pytest.approx(value, abs=1e-9), key


@settings(max_examples=40, deadline=None)
@given(problem=problems())
def test_drawn_ap_without_the_ignored_entries_equals_scikit_learn(problem):
    scores, labels, ignored = problem
    per_class = multilabel_metrics(scores, labels, ignored)["per_class_AP"] / 100
    for s, y, out, ap in zip(scores.T, labels.T, ignored.T, per_class, strict=True):
        if y[~out].any():
            assert ap == pytest.approx(sklearn.metrics.average_precision_score(y[~out], s[~out]))
        else:
            assert math.isnan(ap)


@settings(max_examples=40, deadline=None)
@given(problem=problems())
def test_drawn_decisions_without_the_ignored_entries_equal_scikit_learn(problem):
    scores, labels, ignored = problem
    metrics = multilabel_metrics(*problem)

    def values(chosen) -> list[float]:
        """Precision, recall and F1 in percent over the chosen entries that are not ignored."""
        y, predicted = labels[chosen & ~ignored], scores[chosen & ~ignored] >= 0.5
        found = sklearn.metrics.precision_recall_fscore_support(
            y, predicted, average="binary", zero_division=0
        )
        return [100 * x for x in found[:3]]

    everything = np.ones_like(labels)
    assert [metrics[key] for key in ("OP", "OR", "OF1")] == pytest.approx(values(everything))
    present = np.flatnonzero((labels & ~ignored).any(axis=0))
    per_class = [values(everything & (np.arange(labels.shape[1]) == c)) for c in present]
    expected = np.mean(per_class, axis=0)
    assert [metrics[key] for key in ("CP", "CR", "CF1_mean")] == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(problem=problems(), times=st.integers(2, 4))
def test_every_image_several_times_changes_nothing(problem, times):
    repeated = (np.tile(x, (times, 1)) for x in problem)
    _assert_same(multilabel_metrics(*problem), multilabel_metrics(*repeated))


@settings(max_examples=60, deadline=None)
@given(problem=untied(), seed=st.integers(0, 1000))
def test_ranking_a_positive_first_never_lowers_ap_where_no_scores_tie(problem, seed):
    scores, labels = problem
    image, label = np.random.default_rng(seed).choice(np.argwhere(labels))
    raised = scores.copy()
    raised[image, label] = 1.0
    metrics, others = multilabel_metrics(scores, labels), multilabel_metrics(raised, labels)
    for key in ("mAP", "mAP_interp", "mAP_11pt"):
        assert others[key] >= metrics[key] - 1e-9


@settings(max_examples=60, deadline=None)
@given(problem=problems(), thresholds=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_lower_threshold_never_lowers_recall(problem, thresholds):
    low, high = (multilabel_metrics(*problem, threshold=t) for t in sorted(thresholds))
    assert all(low[key] >= high[key] - 1e-9 for key in ("CR", "OR", "CR_top3", "OR_top3"))
    assert multilabel_metrics(*problem, threshold=0.0)["OR"] == pytest.approx(100)


@settings(max_examples=60, deadline=None)
@given(problem=problems(), top_k=st.integers(1, 6))
def test_top_k_holds_at_most_k_and_the_smaller_ones(problem, top_k):
    scores, _, ignored = problem
    chosen = top_k_decisions(scores, ignored, top_k)
    np.testing.assert_array_equal(chosen.sum(axis=1), np.minimum(top_k, (~ignored).sum(axis=1)))
    assert not (chosen & ignored).any()
    assert (top_k_decisions(scores, ignored, top_k + 1) >= chosen).all()


@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_perfect_scores_give_100(problem):
    _, labels, ignored = problem
    metrics = multilabel_metrics(labels.astype(float), labels, ignored)
    assert [metrics[key] for key in KEYS[:10]] == pytest.approx([100.0] * 10)


def test_inputs_are_not_modified():
    ignored = np.zeros_like(LABELS)
    ignored[0, 0] = True
    inputs = SCORES.copy(), LABELS.copy(), ignored.copy()
    multilabel_metrics(*inputs)
    for after, before in zip(inputs, (SCORES, LABELS, ignored), strict=True):
        np.testing.assert_array_equal(after, before)


def _with(array, value):
    changed = array.copy()
    changed[2, 1] = value
    return changed


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((SCORES[0], LABELS[0]), {}, r"shape \(N, C\)"),
        ((SCORES, LABELS[:3]), {}, r"labels has shape \(3, 3\)"),
        ((SCORES, LABELS, LABELS[:, :2]), {}, "ignored has shape"),
        ((SCORES, LABELS.astype(int)), {}, "labels must be bool, got int"),
        ((LABELS.astype(int), LABELS), {}, "scores must be floating point"),
        ((_with(SCORES, np.nan), LABELS), {}, "row 2, class 1.*nan"),
        ((_with(SCORES, -0.1), LABELS), {}, "row 2, class 1.*-0.1"),
        ((_with(SCORES, 1.5), LABELS), {}, "row 2, class 1.*sigmoid"),
        ((SCORES[:0], LABELS[:0]), {}, "no images"),
        ((SCORES[:, :0], LABELS[:, :0]), {}, "no classes"),
        ((SCORES, LABELS, np.ones_like(LABELS)), {}, "every entry is ignored"),
        ((SCORES, np.zeros_like(LABELS)), {}, "no class has a positive"),
        ((SCORES, LABELS, LABELS), {}, "no class has a positive"),
        ((SCORES, LABELS), {"threshold": [0.5, 0.5]}, r"of shape \(3,\)"),
        ((SCORES, LABELS), {"threshold": 50}, r"threshold must be in \[0, 1\]"),
        ((SCORES, LABELS), {"top_k": 0}, "top_k"),
        ((SCORES, LABELS), {"top_k": 2.5}, "top_k"),
    ],
)
def test_wrong_input_is_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        multilabel_metrics(*arguments, **options)
