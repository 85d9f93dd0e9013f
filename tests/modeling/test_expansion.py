"""Adaptive expansion: the choice of each box, its bounds, and what the output says of it."""

import copy
import math

from scnet_d2.app.label_page import list_labels
from scnet_d2.inference import describe_labels
from scnet_d2.modeling import expand_boxes
from scnet_d2.modeling.roi_heads import AdaptiveExpansion

import pytest
import torch
from conftest import assert_contract, make_input, small_config, two_images
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

RATIOS = ("MODEL.SCNET.CONTEXT.RATIOS", [1.0, 2.0, 4.0])
BOXES = torch.tensor([[20.0, 20, 30, 40], [0, 0, 100, 60]])


def expansion_that_sees_size() -> AdaptiveExpansion:
    """Of ratios 1 and 3, with the logits 0 and ln(width)."""
    expansion = AdaptiveExpansion(2, (1.0, 3.0))
    expansion.choice.weight.data = torch.tensor([[0.0, 0, 0, 0], [0, 0, 2, 0]])  # 4 inputs: halved
    return expansion


def test_at_first_all_ratios_count_alike():
    weights, ratios = AdaptiveExpansion(2, (1.0, 2.0, 4.0))(torch.randn(2, 2), BOXES)
    torch.testing.assert_close(weights, torch.full((2, 3), 1 / 3))
    torch.testing.assert_close(ratios, torch.full((2,), 7 / 3))


def test_the_ratio_is_the_mean_of_the_ratios_by_their_weights():
    weights, ratios = expansion_that_sees_size()(torch.zeros(2, 2), BOXES)
    # widths 10 and 100: weights 1 to 10 and 1 to 100
    torch.testing.assert_close(
        weights, torch.tensor([[1, 10.0], [1, 100.0]]) / torch.tensor([[11], [101.0]])
    )
    torch.testing.assert_close(ratios, torch.tensor([31 / 11, 301 / 101]))


def test_a_step_of_the_optimizer_does_not_decide_the_choice_of_wide_features():
    expansion = AdaptiveExpansion(1024, (1.0, 2.0, 4.0), "LN")
    x, optimizer = torch.randn(2, 1024), torch.optim.AdamW(expansion.parameters(), lr=0.003)
    expansion(x, BOXES)[1].sum().backward()
    optimizer.step()
    ratios = expansion(x, BOXES)[1]
    assert ((ratios > 2.2) & (ratios < 7 / 3)).all()  # unscaled they fall to 1.5 in this step


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_ratios_lie_between_1_and_the_largest_however_sure_the_choice(size):
    expansion = AdaptiveExpansion(2, (1.0, 1.7, 3.3))
    torch.nn.init.normal_(expansion.choice.weight)
    _, ratios = expansion(torch.full((2, 2), size), BOXES)
    assert ((ratios >= 1) & (ratios <= 3.3)).all()
    assert ratios.isfinite().all()


@pytest.mark.parametrize("ratios", [[2.0, 3.0], [1.0], [1.0, 3.0, 2.0], [1.0, 2.0, 2.0]])
def test_ratios_that_do_not_ascend_from_1_are_refused(ratios):
    with pytest.raises(ValueError, match=r"CONTEXT\.RATIOS is .* ascending from 1"):
        build_model(small_config("MODEL.SCNET.CONTEXT.RATIOS", ratios))


def test_each_box_is_expanded_by_its_own_ratio_and_clipped_at_the_border():
    out = expand_boxes(BOXES, (50, 90), torch.tensor([3.0, 1.5]))
    # 10 x 20 about (25, 30): 30 x 60, cut at the top and at 50; the second is cut on every side
    assert out.tolist() == [[10, 0, 40, 50], [0, 0, 90, 50]]


def test_a_ratio_below_1_of_any_box_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        expand_boxes(BOXES, (50, 90), torch.tensor([2.0, 0.5]))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    cfg = small_config(*RATIOS, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    model = build_model(cfg)
    torch.nn.init.normal_(model.roi_heads.context_head.expansion.choice.weight, std=0.3)
    return model


def test_the_gradient_of_the_context_loss_reaches_the_choice_and_the_ratio(model):
    head, seen = model.roi_heads.context_head, []
    hook = head.expansion.register_forward_hook(
        lambda _, x, y: seen.extend(y) or y[0].retain_grad()
    )
    with EventStorage():
        losses = model.train()(two_images())
    hook.remove()
    losses["loss_context_label"].backward()
    weights, ratios = seen
    assert weights.grad.any()
    assert head.expansion.choice.weight.grad.any()
    head.expansion.choice.weight.grad = None
    assert ratios.sum().requires_grad
    model.zero_grad()


def test_the_output_names_the_ratios_and_context_boxes_follow_them(model):
    inputs = [make_input([], [], (96, 128), height=192, width=512)]  # scaled by 2 and by 4
    with torch.no_grad():
        _, (scored,) = model.eval().label_images(model.preprocess_image(inputs))
        (output,) = model(inputs)
    instances, ratios = output["instances"], scored.context_ratios
    assert_contract([output], inputs, 14)
    assert instances.context_ratios.shape == (len(instances),)
    assert ratios.max() - ratios.min() > 0.1  # boxes differ
    assert ((ratios >= 1) & (ratios <= 4)).all()
    best = scored.label_scores.argmax(dim=0)
    torch.testing.assert_close(output["label_context_ratios"], ratios[best])
    label = describe_labels(output, list(range(14)))[0]
    assert label["context_ratio"] == pytest.approx(ratios[best][label["label"]].item(), abs=0.006)
    (best_label, *_) = list_labels(output, list(map(str, range(14))), [0.0] * 14)
    assert best_label.boxes[0].ratio == pytest.approx(label["context_ratio"], abs=0.006)


def test_context_boxes_have_the_sides_that_the_ratio_says(model):
    tight = torch.tensor([[60.0, 40, 70, 48], [64, 44, 70, 56]])  # far from the border
    sizes, heads = [(96, 128)], model.eval().roi_heads
    proposals = Instances((96, 128), proposal_boxes=Boxes(tight), objectness_logits=torch.zeros(2))
    images = ImageList(torch.zeros(1, 3, 96, 128), sizes)
    features = {f: torch.randn(1, 64, 96 // s, 128 // s) for f, s in zip(
        ("p2", "p3", "p4", "p5"), (4, 8, 16, 32))}  # fmt: skip
    with torch.no_grad():
        (scored,) = heads.score_boxes(images, features, [proposals])
    around = scored.context_boxes.tensor
    sides = (around[:, 2:] - around[:, :2]) / (tight[:, 2:] - tight[:, :2])
    torch.testing.assert_close(sides, scored.context_ratios[:, None].expand(2, 2))
    centres = (around[:, 2:] + around[:, :2]) / 2
    torch.testing.assert_close(centres, (tight[:, 2:] + tight[:, :2]) / 2)


def test_without_ratios_there_is_no_choice_in_model_or_output():
    model = build_model(small_config("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)).eval()
    assert model.roi_heads.context_head.expansion is None
    with torch.no_grad():
        (output,) = model([make_input([], [], height=96, width=128)])
    assert not output["instances"].has("context_ratios")
    assert "label_context_ratios" not in output


def test_one_ratio_far_ahead_pools_from_its_expansion(model):
    head = model.eval().roi_heads.context_head
    twin = build_model(small_config("MODEL.SCNET.CONTEXT.EXPANSION_RATIO", 4.0)).eval().roi_heads
    twin.context_head.load_state_dict(head.state_dict(), strict=False)
    saved = copy.deepcopy(head.expansion.state_dict())
    head.expansion.load_state_dict(
        {"choice.weight": torch.zeros(3, 34), "choice.bias": torch.tensor([0.0, 0, 99])}
    )
    x = make_input([], [], height=96, width=128)
    with torch.no_grad():
        images = model.preprocess_image([x])
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features, None)
        ours, fixed = (h._predict(images, features, proposals) for h in (model.roi_heads, twin))
    head.expansion.load_state_dict(saved)
    torch.testing.assert_close(
        ours.branches["context"].label_logits, fixed.branches["context"].label_logits
    )
    for a, b in zip(ours.patches.context, fixed.patches.context):
        torch.testing.assert_close(a.tensor, b.tensor)
    assert math.isclose(ours.context_ratios.max().item(), 4.0, rel_tol=1e-6)
