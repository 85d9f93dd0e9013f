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


def fusion(*opts, branches=("object", "context")) -> ScoreFusion:
    return ScoreFusion(small_config(*opts), list(branches))


def named(*logits) -> dict[str, torch.Tensor]:
    return dict(zip(("object", "context", "relation"), logits))


def test_fusion_weighs_the_sigmoids_of_both_branches():
    fuse = fusion("MODEL.SCNET.AGGREGATION.OBJECT_WEIGHT", 0.25)
    # sigmoid(0) = 0.5, sigmoid(ln 3) = 0.75: 0.25 * 0.75 + 0.75 * 0.5 = 0.5625
    out = fuse(named(torch.tensor([[math.log(3)]]), torch.zeros(1, 1)), torch.zeros(1))
    torch.testing.assert_close(out, torch.tensor([[0.5625]]))


@pytest.mark.parametrize(("name", "weight"), [("object", 0.0), ("context", 1.0), ("relation", 0.2)])
def test_a_single_branch_is_not_weighed(name, weight):
    fuse = fusion("MODEL.SCNET.AGGREGATION.OBJECT_WEIGHT", weight, branches=[name])
    logits = {name: torch.tensor([[math.log(3)]])}
    assert fuse(logits, torch.zeros(1)).item() == pytest.approx(0.75)


def test_three_branches_are_weighed_by_their_shares():
    opts = ("MODEL.SCNET.AGGREGATION.OBJECT_WEIGHT", 0.25, "MODEL.SCNET.RELATION.WEIGHT", 1.0)
    fuse = fusion(*opts, branches=["object", "context", "relation"])
    logits = (torch.full((1, 1), x) for x in (math.log(3), 0.0, -math.log(3)))
    # scores 0.75, 0.5 and 0.25 with weights 0.25, 0.75 and 1 of 2: 0.40625
    assert fuse(named(*logits), torch.zeros(1)).item() == pytest.approx(0.40625)


def test_learned_weights_start_as_the_config_has_them_and_can_differ_between_classes():
    opts = (
        "MODEL.SCNET.AGGREGATION.OBJECT_WEIGHT",
        0.25,
        "MODEL.SCNET.AGGREGATION.LOSS_WEIGHT",
        1.0,
    )
    fuse = fusion(*opts, "MODEL.SCNET.AGGREGATION.LEARN_WEIGHTS", "class")
    logits = named(torch.full((1, 14), math.log(3)), torch.zeros(1, 14))
    out = fuse(logits, torch.zeros(1))
    torch.testing.assert_close(out, torch.full((1, 14), 0.5625))
    out[0, 2].backward()
    # of label 2 alone; the object branch, which is the surer one, gains
    assert fuse.log_weights.grad.nonzero()[:, 1].tolist() == [2, 2]
    assert fuse.log_weights.grad[0, 2] > 0 > fuse.log_weights.grad[1, 2]
    with torch.no_grad():
        fuse.log_weights[:, 5] += 3  # both weights of a class: their shares stay
    torch.testing.assert_close(fuse(logits, torch.zeros(1)), out)


def test_weights_that_nothing_would_train_are_refused():
    with pytest.raises(ValueError, match=r"set MODEL\.SCNET\.AGGREGATION\.LOSS_WEIGHT above 0"):
        fusion("MODEL.SCNET.AGGREGATION.LEARN_WEIGHTS", "branch")
    with pytest.raises(ValueError, match="above 0 to be learned"):
        ScoreFusion(weights={"object": 1.0, "context": 0.0}, learned="branch")


def test_patch_confidence_multiplies_the_fused_score():
    fuse = fusion("MODEL.SCNET.AGGREGATION.USE_PATCH_CONFIDENCE", True)
    # sigmoid(ln 3) = 0.75, sigmoid(0) = 0.5
    out = fuse(named(torch.zeros(2, 1), torch.zeros(2, 1)), torch.tensor([math.log(3), 0.0]))
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
    weights, branches = {"object": weight, "context": 1 - weight}, named(first, second)
    fused = ScoreFusion(weights=weights)(branches, torch.zeros(3))
    bounds = torch.stack([first.sigmoid(), second.sigmoid()])
    assert (fused >= bounds.amin(dim=0) - EPS).all()
    assert (fused <= bounds.amax(dim=0) + EPS).all()
    confident = ScoreFusion(weights=weights, use_patch_confidence=True)
    assert (confident(branches, torch.tensor(patch_logits)) <= fused).all()
