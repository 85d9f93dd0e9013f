from fractions import Fraction

from scnet_d2.modeling import context_label_targets, expand_boxes, object_label_targets

import pytest
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given
from hypothesis import strategies as st

coordinate = st.floats(-50, 300, allow_nan=False, width=32)


def test_expansion_keeps_the_centre_and_doubles_the_sides(device):
    boxes = torch.tensor([[40.0, 30.0, 60.0, 40.0]], device=device)
    out = expand_boxes(boxes, (100, 200), 2.0)
    assert out.tolist() == [[30.0, 25.0, 70.0, 45.0]]
    assert out.device == boxes.device


def test_expansion_is_clipped_to_height_and_width(device):
    boxes = torch.tensor([[0.0, 0.0, 180.0, 90.0]], device=device)
    out = expand_boxes(boxes, (100, 200), 2.0)
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


def ground_truth(device="cpu"):
    """Class 2 at (0,0)-(10,10), class 0 at (20,0)-(30,10), class 1 at (12,0)-(20,10)."""
    targets = Instances((50, 50))
    targets.gt_boxes = Boxes(torch.tensor([[0.0, 0, 10, 10], [20.0, 0, 30, 10], [12.0, 0, 20, 10]]))
    targets.gt_classes = torch.tensor([2, 0, 1])
    return targets.to(device)


def test_object_targets_need_half_the_iou(device):
    # IoU with the first object: 100 / 100, 100 / 200 and 100 / 210; the last box is background.
    boxes = Boxes(
        torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 20], [0.0, 0, 10, 21], [40.0, 40, 50, 50]])
    )
    targets = object_label_targets(boxes.to(device), ground_truth(device), 4, 0.5)
    assert targets.tolist() == [[0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_context_targets_hold_every_object_at_least_half_inside(device):
    # The context box covers all of object 2, half of object 0 and all of object 1; the second
    # covers 4/10 of object 2 and nothing else.
    boxes = Boxes(torch.tensor([[0.0, 0, 25, 10], [0.0, 0, 4, 10]]))
    targets = context_label_targets(boxes.to(device), ground_truth(device), 4, 0.5)
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


@given(
    st.tuples(st.floats(400, 600), st.floats(400, 600), st.floats(0, 100), st.floats(0, 100)),
    st.floats(1, 4),
)
def test_expansion_away_from_the_border_multiplies_the_sides_about_the_centre(box, ratio):
    x, y, width, height = box  # of the centre
    corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    out = expand_boxes(torch.tensor([corners]), (1000, 1000), ratio)[0].tolist()
    assert [out[0] + out[2], out[1] + out[3]] == pytest.approx([2 * x, 2 * y], abs=1e-3)
    assert [out[2] - out[0], out[3] - out[1]] == pytest.approx(
        [ratio * width, ratio * height], abs=1e-3
    )


side = st.integers(1, 12)
position = st.integers(0, 20)
box_lists = st.lists(st.tuples(position, position, side, side), min_size=1, max_size=6)


def xyxy(boxes):
    return torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes], dtype=torch.float32)


@given(box_lists, st.floats(1, 4), st.floats(1, 4))
def test_a_larger_ratio_contains_a_smaller_one(boxes, one, other):
    inner, outer = (expand_boxes(xyxy(boxes), (24, 30), r) for r in sorted((one, other)))
    assert (outer[:, :2] <= inner[:, :2]).all()
    assert (outer[:, 2:] >= inner[:, 2:]).all()


@given(box_lists, st.floats(1, 4))
def test_a_mirrored_image_has_mirrored_context_boxes(boxes, ratio):
    width = 30
    mirror = torch.tensor([2, 1, 0, 3])
    sign, offset = torch.tensor([-1, 1, -1, 1]), torch.tensor([width, 0, width, 0])
    mirrored = expand_boxes(xyxy(boxes)[:, mirror] * sign + offset, (24, width), ratio)
    expected = expand_boxes(xyxy(boxes), (24, width), ratio)[:, mirror] * sign + offset
    torch.testing.assert_close(mirrored, expected, atol=1e-4, rtol=0)


def share(box, gt, *, of_union):
    """Intersection over union, or over the area of the ground-truth box, as a fraction."""
    (x, y, w, h), (gx, gy, gw, gh) = box, gt
    across = min(x + w, gx + gw) - max(x, gx)
    down = min(y + h, gy + gh) - max(y, gy)
    inter = max(across, 0) * max(down, 0)
    return Fraction(inter, w * h + gw * gh - inter if of_union else gw * gh)


objects = st.lists(
    st.tuples(position, position, side, side, st.integers(0, 3)), min_size=0, max_size=6
)
shares = st.sampled_from([0.25, 0.5, 0.75, 1.0])  # held exactly in binary
TARGETS = [(object_label_targets, True), (context_label_targets, False)]


def instances(objects):
    made = Instances((40, 40))
    made.gt_boxes = Boxes(xyxy([o[:4] for o in objects]).reshape(-1, 4))
    made.gt_classes = torch.tensor([o[4] for o in objects], dtype=torch.int64)
    return made


@pytest.mark.parametrize(("label_targets", "of_union"), TARGETS)
@given(boxes=box_lists, objects=objects, least=shares)
def test_targets_equal_their_definition(label_targets, of_union, boxes, objects, least):
    expected = [
        [
            any(o[4] == c and share(box, o[:4], of_union=of_union) >= least for o in objects)
            for c in range(4)
        ]
        for box in boxes
    ]
    assert label_targets(Boxes(xyxy(boxes)), instances(objects), 4, least).tolist() == expected


@pytest.mark.parametrize("label_targets", [f for f, _ in TARGETS])
@given(boxes=box_lists, objects=objects, one=st.floats(0.01, 1), other=st.floats(0.01, 1))
def test_a_lower_threshold_keeps_every_label(label_targets, boxes, objects, one, other):
    low, high = (
        label_targets(Boxes(xyxy(boxes)), instances(objects), 4, t) for t in sorted((one, other))
    )
    assert (low >= high).all()


@pytest.mark.parametrize("label_targets", [f for f, _ in TARGETS])
@given(boxes=box_lists, objects=objects, random=st.randoms(use_true_random=False))
def test_order_of_boxes_and_objects_does_not_matter(label_targets, boxes, objects, random):
    order = random.sample(range(len(boxes)), len(boxes))
    shuffled = random.sample(objects, len(objects))
    targets = label_targets(Boxes(xyxy(boxes)), instances(objects), 4, 0.5)
    others = label_targets(Boxes(xyxy(boxes)[order]), instances(shuffled), 4, 0.5)
    assert torch.equal(others, targets[order])


@given(box_lists, objects, st.floats(1, 4))
def test_expansion_never_loses_a_label(boxes, objects, ratio):
    wide = Boxes(expand_boxes(xyxy(boxes), (40, 40), ratio))
    tight = context_label_targets(Boxes(xyxy(boxes)), instances(objects), 4, 0.5)
    assert (context_label_targets(wide, instances(objects), 4, 0.5) >= tight).all()


def test_objects_without_an_area_label_no_box():
    flat = instances([(5, 5, 0, 8, 1), (5, 5, 0, 0, 2)])
    boxes = Boxes(torch.tensor([[0.0, 0, 40, 40], [5.0, 5, 5, 13]]))
    for label_targets, _ in TARGETS:
        assert label_targets(boxes, flat, 4, 0.5).sum() == 0
