"""The examples in the docstrings of boxes, aggregation, metrics and thresholds."""

import doctest

from scnet_d2.data import boxes
from scnet_d2.evaluation import metrics, thresholds
from scnet_d2.modeling import aggregation
from scnet_d2.modeling.roi_heads import context_boxes

import pytest

MODULES = (boxes, metrics, thresholds, aggregation, context_boxes)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples_print_what_they_say(module):
    failed, attempted = doctest.testmod(module)
    assert attempted
    assert not failed
