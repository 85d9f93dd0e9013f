import math
import pickle
from copy import deepcopy
from functools import cache, partial

from scnet_d2.modeling import AGGREGATION_REGISTRY, LabelAggregator, ScoreFusion, aggregation
from scnet_d2.modeling.aggregation import logsumexp, noisy_or, topk_mean

import numpy as np
import pytest
import scipy.special
import torch
from conftest import small_config
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

SCORES = torch.tensor([[0.2, 0.5], [0.6, 0.5], [0.4, 0.0]])  # three boxes, two labels


@cache
def aggregator(*opts) -> LabelAggregator:
    return LabelAggregator(small_config(*opts))


def aggregate(method, *opts):
    key = "MODEL.SCNET.AGGREGATION."
    return aggregator(key + "METHOD", method, *opts)(SCORES)


def test_max_by_hand():
    torch.testing.assert_close(aggregate("max"), torch.tensor([0.6, 0.5]))


def test_topk_mean_by_hand():
    out = aggregate("topk_mean", "MODEL.SCNET.AGGREGATION.TOPK", 2)
    torch.testing.assert_close(out, torch.tensor([0.5, 0.5]))  # (0.6 + 0.4) / 2, (0.5 + 0.5) / 2


def test_topk_mean_of_fewer_boxes_averages_all():
    out = aggregate("topk_mean", "MODEL.SCNET.AGGREGATION.TOPK", 10)
    torch.testing.assert_close(out, torch.tensor([0.4, 1 / 3]))


def test_noisy_or_by_hand():
    # 1 - 0.8 * 0.4 * 0.6 and 1 - 0.5 * 0.5 * 1
    torch.testing.assert_close(aggregate("noisy_or"), torch.tensor([0.808, 0.75]))


def test_logsumexp_by_hand():
    out = aggregate("logsumexp", "MODEL.SCNET.AGGREGATION.SHARPNESS", 2.0)
    first = math.log((math.exp(0.4) + math.exp(1.2) + math.exp(0.8)) / 3) / 2
    second = math.log((2 * math.exp(1.0) + 1) / 3) / 2
    torch.testing.assert_close(out, torch.tensor([first, second]))


METHODS = ["max", "topk_mean", "noisy_or", "logsumexp"]


@pytest.mark.parametrize("method", METHODS)
def test_an_image_without_boxes_scores_zero(method):
    out = aggregator("MODEL.SCNET.AGGREGATION.METHOD", method)(torch.zeros(0, 5))
    assert out.tolist() == [0.0] * 5


@pytest.mark.parametrize("method", METHODS)
@given(scores=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40))
def test_image_scores_stay_in_the_unit_interval_and_ignore_the_order_of_boxes(method, scores):
    aggregate = aggregator("MODEL.SCNET.AGGREGATION.METHOD", method)
    scores = torch.tensor(scores)[:, None]
    out = aggregate(scores)
    assert ((out >= 0) & (out <= 1)).all()
    torch.testing.assert_close(out, aggregate(scores.flip(0)))


def test_an_unknown_method_names_the_choices():
    with pytest.raises(ValueError, match=r"METHOD is 'mean'; choose one of \['logsumexp', 'max'"):
        aggregate("mean")


@pytest.fixture
def power_mean():
    """An aggregation from outside the package, with a parameter of its own."""

    @AGGREGATION_REGISTRY.register()
    def power_mean(scores, power):
        return (scores**power).mean(dim=0) ** (1 / power)

    yield
    del AGGREGATION_REGISTRY._obj_map["power_mean"]


def test_an_aggregation_from_outside_is_found_by_name_and_gets_its_key(power_mean):
    cfg = small_config()
    cfg.MODEL.SCNET.AGGREGATION.METHOD = "power_mean"
    with pytest.raises(ValueError, match=r"needs the key MODEL\.SCNET\.AGGREGATION\.POWER"):
        LabelAggregator(cfg)
    cfg.MODEL.SCNET.AGGREGATION.POWER = 2.0
    out = LabelAggregator(cfg)(SCORES)
    # sqrt((0.04 + 0.36 + 0.16) / 3), sqrt(0.5 / 3)
    torch.testing.assert_close(out, torch.tensor([(0.56 / 3) ** 0.5, (0.5 / 3) ** 0.5]))


@pytest.mark.parametrize("method", METHODS)
def test_an_aggregator_is_copied_and_pickled(method):
    original = aggregator("MODEL.SCNET.AGGREGATION.METHOD", method)
    for copy in (deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert copy is not original
        torch.testing.assert_close(copy(SCORES), original(SCORES))


def fusion(*opts) -> ScoreFusion:
    return ScoreFusion(small_config(*opts))


def test_fusion_weighs_the_sigmoids_of_both_branches():
    fuse = fusion("MODEL.SCNET.AGGREGATION.OBJECT_WEIGHT", 0.25)
    # sigmoid(0) = 0.5, sigmoid(ln 3) = 0.75: 0.25 * 0.75 + 0.75 * 0.5 = 0.5625
    out = fuse(torch.tensor([[math.log(3)]]), torch.zeros(1, 1), torch.zeros(1))
    torch.testing.assert_close(out, torch.tensor([[0.5625]]))


def test_a_single_branch_is_not_weighed():
    fuse = fusion("MODEL.SCNET.AGGREGATION.OBJECT_WEIGHT", 0.25)
    logits = torch.tensor([[math.log(3)]])
    assert fuse(logits, None, torch.zeros(1)).item() == pytest.approx(0.75)
    assert fuse(None, logits, torch.zeros(1)).item() == pytest.approx(0.75)


def test_patch_confidence_multiplies_the_fused_score():
    fuse = fusion("MODEL.SCNET.AGGREGATION.USE_PATCH_CONFIDENCE", True)
    # sigmoid(ln 3) = 0.75, sigmoid(0) = 0.5
    out = fuse(torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor([math.log(3), 0.0]))
    torch.testing.assert_close(out, torch.tensor([[0.375], [0.25]]))


def test_a_weight_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match="OBJECT_WEIGHT"):
        fusion("MODEL.SCNET.AGGREGATION.OBJECT_WEIGHT", 1.5)


FUNCTIONS = {
    "max": aggregation.max,
    "topk_mean": partial(topk_mean, topk=3),
    "noisy_or": noisy_or,
    "logsumexp": partial(logsumexp, sharpness=5.0),
}
each_function = pytest.mark.parametrize("aggregated", FUNCTIONS.values(), ids=FUNCTIONS)
shapes = st.tuples(st.integers(1, 12), st.integers(1, 4))
box_scores = hnp.arrays(np.float32, shapes, elements=st.floats(0, 1, width=32)).map(torch.tensor)
EPS = 1e-5  # float32


@each_function
@given(scores=box_scores, random=st.randoms(use_true_random=False))
def test_order_of_boxes_does_not_matter(aggregated, scores, random):
    order = random.sample(range(len(scores)), len(scores))
    torch.testing.assert_close(aggregated(scores[order]), aggregated(scores))


@each_function
@given(scores=box_scores, raised=st.integers(0, 11), to=st.floats(0, 1, width=32))
def test_a_higher_score_of_a_box_never_lowers_the_image_score(aggregated, scores, raised, to):
    higher = scores.clone()
    higher[raised % len(scores)].clamp_(min=to)
    assert (aggregated(higher) >= aggregated(scores) - EPS).all()


@each_function
@given(scores=box_scores)
def test_labels_do_not_influence_each_other(aggregated, scores):
    alone = [aggregated(column[:, None]) for column in scores.T]
    torch.testing.assert_close(aggregated(scores), torch.cat(alone))


@each_function
@given(scores=hnp.arrays(np.float32, (1, 4), elements=st.floats(0, 1, width=32)).map(torch.tensor))
def test_the_score_of_a_single_box_is_that_of_the_image(aggregated, scores):
    torch.testing.assert_close(aggregated(scores), scores[0], atol=EPS, rtol=0)


@given(scores=box_scores, sharpness=st.floats(0.01, 100), k=st.integers(1, 15))
def test_aggregations_lie_between_the_mean_and_noisy_or(scores, sharpness, k):
    mean, top = scores.mean(dim=0), scores.amax(dim=0)
    for between in (logsumexp(scores, sharpness), topk_mean(scores, k)):
        tolerance = EPS + EPS / sharpness  # logsumexp divides its rounding by the sharpness
        assert (mean - tolerance <= between).all()
        assert (between <= top + tolerance).all()
    assert (noisy_or(scores) >= top - EPS).all()


@given(scores=box_scores)
def test_topk_mean_falls_with_k_from_the_maximum_to_the_mean(scores):
    means = torch.stack([topk_mean(scores, k) for k in range(1, len(scores) + 2)])
    assert (means[1:] <= means[:-1] + EPS).all()
    torch.testing.assert_close(means[0], aggregation.max(scores))
    torch.testing.assert_close(means[-1], scores.mean(dim=0))


@pytest.mark.parametrize("aggregated", [aggregation.max, noisy_or])
@given(scores=box_scores)
def test_a_box_without_labels_changes_nothing(aggregated, scores):
    more = torch.cat([scores, torch.zeros(1, scores.shape[1])])
    torch.testing.assert_close(aggregated(more), aggregated(scores))


@given(scores=box_scores, sharpness=st.floats(0.1, 1e4))
def test_logsumexp_equals_that_of_scipy(scores, sharpness):
    weights = np.full(scores.shape, 1 / len(scores))
    expected = scipy.special.logsumexp(sharpness * scores.double().numpy(), axis=0, b=weights)
    np.testing.assert_allclose(logsumexp(scores, sharpness), expected / sharpness, atol=1e-4)


@given(
    logits=hnp.arrays(np.float32, (2, 3, 2), elements=st.floats(-1e4, 1e4, width=32)),
    weight=st.floats(0, 1),
    patch_logits=hnp.arrays(np.float32, 3, elements=st.floats(-1e4, 1e4, width=32)),
)
def test_fused_scores_lie_between_the_branches_and_confidence_only_lowers(
    logits, weight, patch_logits
):
    first, second = torch.tensor(logits)
    fused = ScoreFusion(object_weight=weight)(first, second, torch.zeros(3))
    bounds = torch.stack([first.sigmoid(), second.sigmoid()])
    assert (fused >= bounds.amin(dim=0) - EPS).all()
    assert (fused <= bounds.amax(dim=0) + EPS).all()
    confident = ScoreFusion(object_weight=weight, use_patch_confidence=True)
    assert (confident(first, second, torch.tensor(patch_logits)) <= fused).all()
