"""Chosen expansion ratios by size and class."""

from scnet_d2.evaluation import ScoreTable

import context_ratios
import numpy as np
import pytest


def test_ratios_are_those_of_present_labels_by_the_side_of_their_box():
    table = ScoreTable(
        np.full((2, 2), 0.5),
        np.array([[True, False], [True, True]]),
        np.array([[False, False], [False, True]]),
        ["cat", "dog"],
        evidence={
            "evidence_images": np.array([0, 0, 1, 1]),
            "evidence_classes": np.array(
                [0, 1, 0, 1]
            ),  # absent in the first, ignored in the second
            "evidence_boxes": np.array(
                [[0, 0, 20, 45], [0, 0, 9, 9], [5, 5, 105, 69], [0, 0, 9, 9.0]]
            ),
            "evidence_context_ratios": np.array([3.0, 9, 2.0, 9]),
        },
    )
    ratios, sides, classes = context_ratios.present_boxes(table)
    assert ratios.tolist() == [3, 2]
    assert sides.tolist() == [30, 80]  # roots of 900 and 6400
    assert classes.tolist() == [0, 0]
    rows = context_ratios.rows_of(ratios, classes, ["cat", "dog"])
    assert list(rows) == [["cat", 2, "2.50", "0.50"]]
    table.evidence.pop("evidence_context_ratios")
    with pytest.raises(ValueError, match=r"CONTEXT\.RATIOS was empty"):
        context_ratios.present_boxes(table)
