"""SCNetROIHeads in a stock GeneralizedRCNN, and the boxes that they give."""

import copy
import math
import pickle

from scnet_d2.modeling import SCNetROIHeads, object_label_targets
from scnet_d2.modeling.roi_heads.branches import Patches
from scnet_d2.modeling.roi_heads.context_boxes import best_boxes

import pytest
import torch
from conftest import make_input, small_config
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

STOCK = ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN")
SIZE = (100, 200)  # height, width


def roi_heads(*opts) -> SCNetROIHeads:
    cfg = small_config("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.05, *opts)
    shapes = {f"p{i}": ShapeSpec(channels=64, stride=2**i) for i in range(2, 6)}
    return SCNetROIHeads(cfg, shapes)


def scored(boxes, label_scores, context_boxes=None) -> Instances:
    """What `score_boxes` gives for one image."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    context = boxes if context_boxes is None else torch.tensor(context_boxes, dtype=torch.float32)
    return Instances(
        SIZE,
        pred_boxes=Boxes(boxes),
        label_scores=torch.as_tensor(label_scores, dtype=torch.float32),
        context_boxes=Boxes(context),
    )


def grid(count: int) -> list[list[float]]:
    """Boxes of 4 px that do not touch."""
    return [
        [6.0 * (i % 30), 6.0 * (i // 30), 6.0 * (i % 30) + 4, 6.0 * (i // 30) + 4]
        for i in range(count)
    ]


def test_a_stock_rcnn_detects_with_label_scores_and_context_boxes_in_original_coordinates():
    model = build_model(small_config(*STOCK, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)).eval()
    assert type(model) is GeneralizedRCNN
    x = make_input([], [], (96, 128), height=192, width=384)
    kept = []
    select = model.roi_heads._detect
    model.roi_heads._detect = lambda s: kept.append(copy.deepcopy(found := select(s))) or found
    with torch.no_grad():
        (output,) = model([x])
    instances, (network,) = output["instances"], kept
    assert instances.label_scores.shape == (len(instances), 14)
    nonempty = network.pred_boxes.nonempty()
    for name in ("pred_boxes", "context_boxes"):
        expected = network.get(name).tensor[nonempty] * torch.tensor([3.0, 2.0, 3.0, 2.0])
        torch.testing.assert_close(instances.get(name).tensor, expected)


def test_a_stock_rcnn_trains_on_the_losses_of_both_branches():
    model = build_model(small_config(*STOCK))
    inputs = [make_input([[10, 10, 50, 60]], [3]), make_input([], [])]
    with EventStorage():
        losses = model(inputs)
        sum(losses.values()).backward()
    assert {k for k in losses if "rpn" not in k} == {
        "loss_object_loc", "loss_object_patch", "loss_object_label", "loss_context_label",
    }  # fmt: skip
    assert all(p.grad is not None for p in model.roi_heads.parameters())


def test_another_kind_of_roi_heads_is_refused_by_scnet():
    with pytest.raises(ValueError, match=r"NAME is 'StandardROIHeads': .* SCNetROIHeads"):
        build_model(small_config("MODEL.ROI_HEADS.NAME", "StandardROIHeads"))


def test_a_label_comes_from_its_best_box_although_others_fill_the_detections():
    boxes = [*grid(150), [100, 80, 120, 100]]
    scores = [[0.9, 0.1]] * 150 + [[0.0, 0.6]]
    context = [*grid(150), [90, 70, 130, 100]]
    image = scored(boxes, scores, context)
    (detections,) = roi_heads().detect([image])
    assert len(detections) == 100
    assert set(detections.pred_classes.tolist()) == {0}
    tight, around = best_boxes(image)
    assert tight[1].tolist() == [100, 80, 120, 100]
    assert around[1].tolist() == [90, 70, 130, 100]


def test_a_label_below_the_detection_threshold_has_its_box():
    image = scored([[0, 0, 9, 9], [10, 10, 30, 30]], [[0.01, 0.5], [0.02, 0.5]])
    assert best_boxes(image)[0][0].tolist() == [10, 10, 30, 30]


def test_no_scored_box_gives_nan():
    for boxes in best_boxes(scored([], torch.zeros(0, 3))):
        assert boxes.shape == (3, 4)
        assert boxes.isnan().all()


@pytest.mark.parametrize("fault", [math.nan, math.inf])
def test_a_box_that_is_not_finite_shifts_no_rows(fault):
    boxes = [[0, 0, fault, 9], [20, 20, 60, 60], [100, 20, 160, 60]]
    scores = [[0.9, 0.9, 0.9], [0.8, 0.1, 0.0], [0.0, 0.2, 0.7]]
    context = [[0, 0, 1, 1], [10, 10, 70, 70], [80, 0, 180, 80]]
    image = scored(boxes, scores, context)
    (detections,) = roi_heads().detect([image])
    found = {
        tuple(b.pred_boxes.tensor[0].tolist()): b
        for b in (detections[i] for i in range(len(detections)))
    }
    assert set(found) == {(20, 20, 60, 60), (100, 20, 160, 60)}
    for row in (1, 2):
        detection = found[tuple(map(float, boxes[row]))]
        torch.testing.assert_close(detection.label_scores[0], torch.tensor(scores[row]))
        assert detection.context_boxes.tensor[0].tolist() == context[row]
    assert best_boxes(image)[0].tolist() == [boxes[1], boxes[2], boxes[2]]


def training_scores(*opts):
    """Fused scores of sampled boxes, with heads whose logits are constant, and the heads."""
    heads = roi_heads(*opts).train()
    for head, patch_logit in ((heads.object_head, math.log(3)), (heads.context_head, None)):
        for layer in (head.label_predictor.label_score, getattr(head, "patch_classifier", None)):
            if layer is not None:
                torch.nn.init.zeros_(layer.weight)
                torch.nn.init.zeros_(layer.bias)
        if patch_logit is not None:
            torch.nn.init.constant_(head.patch_classifier.bias, patch_logit)
    target = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[8.0, 8, 40, 40]])))
    target.gt_classes = torch.tensor([2])
    proposal = Instances((64, 64), proposal_boxes=Boxes(torch.tensor([[0.0, 0, 30, 30]])))
    proposal.objectness_logits = torch.tensor([-9.0])
    features = {f"p{i}": torch.zeros(1, 64, 64 // 2**i, 64 // 2**i) for i in range(2, 6)}
    images = ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)])
    with EventStorage():
        (sampled,), _ = heads(images, features, [proposal], [target])
    return sampled.label_scores, heads


def test_the_patch_confidence_of_training_is_that_of_the_patch_classifier_with_its_gradient():
    scores, heads = training_scores("MODEL.SCNET.AGGREGATION.USE_PATCH_CONFIDENCE", True)
    # sigmoid(0) = 0.5 of both branches, times sigmoid(ln 3) = 0.75; the objectness is sigmoid(-9)
    torch.testing.assert_close(scores, torch.full_like(scores, 0.375))
    scores.sum().backward()
    assert heads.object_head.patch_classifier.bias.grad.item() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_label_targets_stay_float32_under_autocast(dtype):
    targets = Instances(SIZE, gt_boxes=Boxes(torch.tensor([[0.0, 0, 10, 10]] * 3)))
    targets.gt_classes = torch.tensor([1, 1, 0])
    with torch.autocast("cpu", dtype=dtype):
        labels = object_label_targets(Boxes(torch.tensor([[0.0, 0, 10, 10]])), targets, 4, 0.5)
    assert labels.dtype == torch.float32
    assert labels.tolist() == [[1, 1, 0, 0]]


def test_the_label_losses_are_computed_in_float32_under_autocast():
    _, heads = training_scores()
    logits = torch.tensor([[4.0, -4.0]], dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = heads.context_head.label_predictor.loss(
            logits, torch.tensor([[0.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool), 1
        )
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(2 * math.log1p(math.exp(4)))


def test_the_heads_are_copied_and_pickled():
    heads = roi_heads()
    for twin in (copy.deepcopy(heads), pickle.loads(pickle.dumps(heads))):
        torch.nn.init.zeros_(twin.object_head.patch_classifier.bias)
        assert twin.state_dict().keys() == heads.state_dict().keys()


def test_given_boxes_come_back_as_they_are():
    instances = [Instances(SIZE, pred_boxes=Boxes(torch.zeros(1, 4)))]
    assert roi_heads().forward_with_given_boxes({}, instances) is instances


def test_the_average_head_gives_each_box_the_mean_of_its_part_of_the_image():
    cfg = small_config("MODEL.ROI_BOX_HEAD.NAME", "AveragePoolHead")
    heads = build_model(cfg).roi_heads
    assert heads.object_head.box_head.output_shape.channels == cfg.MODEL.FPN.OUT_CHANNELS
    assert not list(heads.context_head.box_head.parameters())
    features = {f: torch.zeros(1, 64, 32, 32) for f in cfg.MODEL.ROI_HEADS.IN_FEATURES}
    features["p2"][0, :, :, 16:] = 4  # the right half; a box of 40 px is pooled from p2
    boxes = [Boxes(torch.tensor([[80.0, 20, 120, 60], [10, 20, 50, 60]]))]
    found = heads.context_head.box_features(features, boxes)
    torch.testing.assert_close(found, torch.tensor([[4.0], [0]]).expand(2, 64))


@pytest.mark.parametrize("conv_dim", [0, 64])
def test_a_location_head_knows_where_in_its_box_an_object_lies(conv_dim):
    cfg = small_config(
        "MODEL.ROI_BOX_HEAD.NAME", "AveragePoolHead",
        "MODEL.SCNET.OBJECT.LOCATION_CONV_DIM", conv_dim,
    )  # fmt: skip
    head = build_model(cfg).roi_heads.object_head
    torch.nn.init.normal_(head.location_regressor.weight)
    torch.manual_seed(0)
    left = {f: torch.zeros(1, 64, 32, 32) for f in cfg.MODEL.ROI_HEADS.IN_FEATURES}
    left["p2"][0, :, :, :16] = torch.rand(64)[:, None, None]
    right = {f: x.flip(3) for f, x in left.items()}
    boxes = [Boxes(torch.tensor([[40.0, 40, 88, 88]]))]  # half of it is left of the middle
    patches = Patches(boxes, boxes, torch.zeros(1), [(128, 128)])
    with torch.no_grad():
        found, mirrored = head(left, patches), head(right, patches)
    torch.testing.assert_close(found.label_logits, mirrored.label_logits)
    for a, b in ((found.deltas, mirrored.deltas), (found.patch_logits, mirrored.patch_logits)):
        assert torch.allclose(a, b, atol=1e-5) == (not conv_dim)


def test_all_levels_are_pooled_for_every_box():
    cfg = small_config(
        "MODEL.SCNET.POOL_ALL_LEVELS", True, "MODEL.ROI_BOX_HEAD.NAME", "AveragePoolHead"
    )
    head = build_model(cfg).roi_heads.context_head
    features = {
        f: torch.full((1, 64, 2 ** (7 - i), 2 ** (7 - i)), float(i))
        for i, f in enumerate(cfg.MODEL.ROI_HEADS.IN_FEATURES)
    }
    boxes = [Boxes(torch.tensor([[80.0, 20, 90, 30], [0, 0, 400, 400]]))]  # a small and a large one
    found = head.box_features(features, boxes)
    torch.testing.assert_close(found[0], torch.arange(4.0).repeat_interleave(64))
    torch.testing.assert_close(found[1], found[0])


def test_normalised_features_give_the_same_labels_at_any_scale():
    predictor = roi_heads("MODEL.SCNET.LABEL.NORM", "LN").context_head.label_predictor
    x = torch.randn(5, predictor.label_score.in_features)
    torch.testing.assert_close(predictor(1000 * x), predictor(x), rtol=1e-3, atol=1e-4)
    assert "label_score.bias" in roi_heads().context_head.label_predictor.state_dict()
    with pytest.raises(ValueError, match=r"LABEL\.NORM is 'BN'; choose LN"):
        roi_heads("MODEL.SCNET.LABEL.NORM", "BN")
