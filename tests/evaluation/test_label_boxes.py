"""The box of a label: SCNet's own among all scored boxes, or a detector's best detection."""

from scnet_d2.evaluation.label_boxes import evidence_arrays, evidence_rows, label_boxes
from scnet_d2.inference import describe_labels, draw_labels, rounded_scores
from scnet_d2.tagging.output import _coco_boxes

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

NAN = [float("nan")] * 4


def made_instances(boxes, scores, classes, **fields):
    instances = Instances((100, 200), pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)))
    instances.scores, instances.pred_classes = torch.tensor(scores), torch.tensor(classes)
    for name, value in fields.items():
        instances.set(name, value)
    return instances


@pytest.fixture
def scnet_output():
    """Label 1's best box was suppressed: its one detection is of another box; label 2 has none."""
    return {
        "image_scores": torch.tensor([0.9, 0.6, 0.0]),
        "label_boxes": torch.tensor([[0.0, 0, 9, 9], [50.04, 0, 60, 9], NAN]),
        "label_context_boxes": torch.tensor([[0.0, 0, 14, 14], [45.0, 0, 65, 14], NAN]),
        "instances": made_instances(
            [[0, 0, 9, 9], [0, 0, 9, 9]], [0.9, 0.4], [0, 1],
            label_scores=torch.tensor([[0.9, 0.4, 0.0]] * 2),
            context_boxes=Boxes(torch.tensor([[0.0, 0, 14, 14]] * 2)),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("with_instances", [True, False])
def test_labels_have_the_boxes_that_the_model_names_not_those_of_its_detections(
    scnet_output, with_instances
):
    if not with_instances:  # MODEL.SCNET.IMAGE_SCORES_ONLY
        del scnet_output["instances"]
    labels = rounded_scores(describe_labels(scnet_output, ["cat", "dog", "cow"]))
    assert labels == [
        {"label": "cat", "score": 0.9, "box": [0, 0, 9, 9], "context_box": [0, 0, 14, 14]},
        {"label": "dog", "score": 0.6, "box": [50, 0, 60, 9], "context_box": [45, 0, 65, 14]},
        {"label": "cow", "score": 0.0, "box": None, "context_box": None},
    ]


def test_a_detector_s_label_has_its_best_detection():
    instances = made_instances(
        [[0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3], [0, 0, 4, 4]], [0.5, 0.7, 0.7, 0.9], [1, 1, 1, 0]
    )
    boxes, context_boxes = label_boxes({"instances": instances}, 3)
    np.testing.assert_array_equal(boxes, [[0, 0, 4, 4], [0, 0, 2, 2], NAN])
    assert boxes.dtype == np.float32
    assert np.isnan(context_boxes).all() and context_boxes.shape == (3, 4)


def test_detections_with_context_boxes_name_theirs():
    context = Boxes(torch.tensor([[0.0, 0, 5, 5], [0.0, 0, 6, 6]]))
    instances = made_instances([[0, 0, 1, 1]] * 2, [0.5, 0.7], [0, 0], context_boxes=context)
    _, context_boxes = label_boxes({"instances": instances}, 1)
    np.testing.assert_array_equal(context_boxes, [[0, 0, 6, 6]])


def test_scores_alone_have_no_boxes():
    for boxes in label_boxes({"image_scores": torch.tensor([0.5, 0.5])}, 2):
        assert boxes.shape == (2, 4) and np.isnan(boxes).all()


def test_boxes_are_kept_of_the_eight_highest_and_of_every_predicted_label():
    scores = np.linspace(0.9, 0.1, 20, dtype=np.float32)
    boxes = torch.arange(80.0).reshape(20, 4)
    boxes[3] = torch.nan
    output = {"label_boxes": boxes, "label_context_boxes": boxes + 0.04}
    of_highest = evidence_rows(output, scores, 0.88)  # the first label alone is predicted
    np.testing.assert_array_equal(of_highest[:, 0], [0, 1, 2, 4, 5, 6, 7])
    np.testing.assert_array_equal(of_highest[-1, 1:9], [28, 29, 30, 31] * 2)
    of_predicted = evidence_rows(output, scores, 0.43)
    np.testing.assert_array_equal(of_predicted[:, 0], [0, 1, 2, *range(4, 12)])
    arrays = evidence_arrays([of_highest, np.zeros((0, 10), np.float32), of_predicted])
    assert arrays["evidence_images"].tolist() == [0] * 7 + [2] * 11
    assert "evidence_context_ratios" not in arrays


def test_ratios_that_boxes_chose_are_kept_and_drawn():
    box = torch.tensor([[10.0, 10, 50, 50]])
    output = {"label_boxes": box, "label_context_boxes": box, "image_scores": torch.tensor([0.7])}
    plain = draw_labels(np.zeros((60, 80, 3), np.uint8), describe_labels(output, ["cat"]))
    output["label_context_ratios"] = torch.tensor([2.345])
    arrays = evidence_arrays([evidence_rows(output, np.array([0.7]), 0.5)])
    np.testing.assert_allclose(arrays["evidence_context_ratios"], [2.3], atol=1e-6)
    labels = describe_labels(output, ["cat"])
    assert labels[0]["context_ratio"] == 2.35  # float32 of 2.345 lies above it
    assert (draw_labels(np.zeros((60, 80, 3), np.uint8), labels) != plain).any()
    (annotation,) = _coco_boxes(1, {"labels": labels}, {"cat": 1})
    assert annotation["context_ratio"] == 2.35


def test_a_detector_s_labels_are_drawn_without_context_boxes():
    instances = made_instances([[10, 10, 50, 50]], [0.7], [0])
    labels = describe_labels({"instances": instances}, ["cat"])
    picture = draw_labels(np.zeros((60, 80, 3), np.uint8), labels)
    assert (picture == [0xE6, 0x9F, 0x00]).all(axis=2).any()
