import pytest
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given
from hypothesis import strategies as st

from scnet_d2.modeling import context_label_targets, expand_boxes, object_label_targets

coordinate = st.floats(-50, 300, allow_nan=False, width=32)


def test_expansion_keeps_the_centre_and_doubles_the_sides():
    out = expand_boxes(torch.tensor([[40.0, 30.0, 60.0, 40.0]]), (100, 200), 2.0)
    assert out.tolist() == [[30.0, 25.0, 70.0, 45.0]]


def test_expansion_is_clipped_to_height_and_width():
    out = expand_boxes(torch.tensor([[0.0, 0.0, 180.0, 90.0]]), (100, 200), 2.0)
    assert out.tolist() == [[0.0, 0.0, 200.0, 100.0]]


def test_ratio_one_changes_nothing_inside_the_image():
    boxes = torch.tensor([[3.3, 4.4, 50.5, 60.6]])
    assert torch.equal(expand_boxes(boxes, (100, 100), 1.0), boxes)


def test_no_boxes_give_no_boxes():
    assert expand_boxes(torch.zeros(0, 4), (10, 10), 2.0).shape == (0, 4)


@given(
    st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), min_size=1, max_size=8),
    st.floats(1, 8),
)
def test_context_box_contains_its_clipped_box_and_lies_in_the_image(corners, ratio):
    corners = torch.tensor(corners, dtype=torch.float32)
    boxes = torch.cat(
        [
            torch.minimum(corners[:, :2], corners[:, 2:]),
            torch.maximum(corners[:, :2], corners[:, 2:]),
        ],
        dim=1,
    )
    out = expand_boxes(boxes, (120, 160), ratio)
    clipped = Boxes(boxes.clone())
    clipped.clip((120, 160))
    assert (out[:, :2] <= clipped.tensor[:, :2]).all()
    assert (out[:, 2:] >= clipped.tensor[:, 2:]).all()
    assert (out >= 0).all()
    assert (out[:, [0, 2]] <= 160).all()
    assert (out[:, [1, 3]] <= 120).all()


@pytest.mark.parametrize("ratio", [0.5, 0.0, -1.0, float("nan")])
def test_a_ratio_below_one_is_refused(ratio):
    with pytest.raises(ValueError, match="at least 1"):
        expand_boxes(torch.zeros(1, 4), (10, 10), ratio)


def test_boxes_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(K, 4\)"):
        expand_boxes(torch.zeros(4), (10, 10), 2.0)


def ground_truth():
    """Class 2 at (0,0)-(10,10), class 0 at (20,0)-(30,10), class 1 at (12,0)-(20,10)."""
    targets = Instances((50, 50))
    targets.gt_boxes = Boxes(torch.tensor([[0.0, 0, 10, 10], [20.0, 0, 30, 10], [12.0, 0, 20, 10]]))
    targets.gt_classes = torch.tensor([2, 0, 1])
    return targets


def test_object_targets_need_half_the_iou():
    # IoU with the first object: 100 / 100, 100 / 200 and 100 / 210; the last box is background.
    boxes = Boxes(
        torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 20], [0.0, 0, 10, 21], [40.0, 40, 50, 50]])
    )
    targets = object_label_targets(boxes, ground_truth(), 4, 0.5)
    assert targets.tolist() == [[0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_context_targets_hold_every_object_at_least_half_inside():
    # The context box covers all of object 2, half of object 0 and all of object 1; the second
    # covers 4/10 of object 2 and nothing else.
    boxes = Boxes(torch.tensor([[0.0, 0, 25, 10], [0.0, 0, 4, 10]]))
    targets = context_label_targets(boxes, ground_truth(), 4, 0.5)
    assert targets.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]


def test_two_objects_of_a_class_count_once():
    targets = ground_truth()
    targets.gt_classes = torch.tensor([1, 1, 1])
    out = context_label_targets(Boxes(torch.tensor([[0.0, 0, 50, 50]])), targets, 3, 0.5)
    assert out.tolist() == [[0, 1, 0]]


def test_targets_of_an_image_without_objects_are_zero():
    empty = ground_truth()[torch.zeros(0, dtype=torch.int64)]
    boxes = Boxes(torch.tensor([[0.0, 0, 5, 5]]))
    assert object_label_targets(boxes, empty, 3, 0.5).tolist() == [[0, 0, 0]]
    assert context_label_targets(boxes, empty, 3, 0.5).tolist() == [[0, 0, 0]]
