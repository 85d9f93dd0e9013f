"""Chosen expansion ratios by size, occlusion and class; what is stored of the objects."""

from xml.etree import ElementTree

from scnet_d2.evaluation import ScoreTable

import context_ratios
import numpy as np
import pytest
import voc_objects


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
    ratios, sides, images, classes = context_ratios.present_boxes(table)
    assert ratios.tolist() == [3, 2]
    assert sides.tolist() == [30, 80]  # roots of 900 and 6400
    assert (images.tolist(), classes.tolist()) == ([0, 1], [0, 0])
    found = context_ratios.summary([table], None)
    assert found["side"].keys() == {"below 32 px", "from 64 px"}
    cat = found["label"]["cat"]
    assert (cat["number"], cat["mean"], cat["deviation"], cat["50 %"]) == (2, 2.5, 0.5, 2.5)
    assert "dog" not in found["label"]
    table.evidence.pop("evidence_context_ratios")
    with pytest.raises(ValueError, match=r"CONTEXT\.RATIOS was empty"):
        context_ratios.present_boxes(table)


OBJECTS = voc_objects.Objects(
    share=np.array([[0.04, 0], [0.3, 0.1]]),
    occluded=np.array([[1, -1], [0, -1]]),
    truncated=np.array([[0, -1], [0, 1]]),
    count=np.array([1, 5]),
    image_ids=["a", "b"],
)


@pytest.mark.parametrize(
    ("breakdown", "group", "left_out"),
    [
        ("largest object / image", "0% to 5%", [[0, 0], [1, 1]]),
        ("largest object / image", "5% to 25%", [[1, 0], [1, 0]]),
        ("occluded", "yes", [[0, 0], [1, 1]]),  # of the last label nobody knows it
        ("occluded", "no", [[1, 0], [0, 1]]),
        ("truncated", "yes", [[1, 0], [1, 0]]),
        ("objects in the image", "1", [[0, 0], [1, 1]]),
        ("objects in the image", "4 or more", [[1, 1], [0, 0]]),
    ],
)
def test_a_breakdown_leaves_out_present_labels_or_images_of_other_groups(
    breakdown, group, left_out
):
    assert OBJECTS.groups()[breakdown][group].astype(int).tolist() == left_out


def test_a_label_is_occluded_where_all_its_objects_are_and_unknown_where_the_file_says_nothing():
    objects = "".join(
        f"<object><name>{name}</name>{flag}<part><name>head</name></part></object>"
        for name, flag in (
            ("cat", "<occluded>1</occluded>"),
            ("cat", "<occluded>0</occluded>"),
            ("dog", "<occluded>1</occluded>"),
            ("cow", ""),
        )
    )
    tree = ElementTree.ElementTree(ElementTree.fromstring(f"<annotation>{objects}</annotation>"))
    row = voc_objects._all_are(tree, "occluded", ["cat", "dog", "cow", "car"])
    assert row.tolist() == [0, 1, -1, -1]
