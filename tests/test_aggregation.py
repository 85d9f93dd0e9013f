import math

import pytest
import torch
from conftest import small_config
from hypothesis import given
from hypothesis import strategies as st

from scnet_d2.modeling import LabelAggregator

SCORES = torch.tensor([[0.2, 0.5], [0.6, 0.5], [0.4, 0.0]])  # three boxes, two labels


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
    with pytest.raises(ValueError, match=r"METHOD is 'mean'; choose one of \['max'"):
        aggregate("mean")


def test_fusion_weighs_the_sigmoids_of_both_branches():
    agg = aggregator("MODEL.SCNET.AGGREGATION.OBJECT_WEIGHT", 0.25)
    # sigmoid(0) = 0.5, sigmoid(ln 3) = 0.75: 0.25 * 0.75 + 0.75 * 0.5 = 0.5625
    out = agg.fuse(torch.tensor([[math.log(3)]]), torch.zeros(1, 1), torch.ones(1))
    torch.testing.assert_close(out, torch.tensor([[0.5625]]))


def test_a_single_branch_is_not_weighed():
    agg = aggregator("MODEL.SCNET.AGGREGATION.OBJECT_WEIGHT", 0.25)
    logits = torch.tensor([[math.log(3)]])
    assert agg.fuse(logits, None, torch.ones(1)).item() == pytest.approx(0.75)
    assert agg.fuse(None, logits, torch.ones(1)).item() == pytest.approx(0.75)


def test_patch_confidence_multiplies_the_fused_score():
    agg = aggregator("MODEL.SCNET.AGGREGATION.USE_PATCH_CONFIDENCE", True)
    out = agg.fuse(torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(out, torch.tensor([[0.5], [0.25]]))


def test_a_weight_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match="OBJECT_WEIGHT"):
        aggregator("MODEL.SCNET.AGGREGATION.OBJECT_WEIGHT", 1.5)
