import math

from scnet_d2 import add_scnet_config
from scnet_d2.modeling import LabelPredictor

import numpy as np
import pytest
import torch
from conftest import (
    TWO_IMAGES,
    assert_contract,
    load_config,
    make_input,
    small_config,
    two_images,
)
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.events import EventStorage
from detectron2.utils.visualizer import Visualizer
from torch import nn

LOSSES = {
    "loss_rpn_cls",
    "loss_rpn_loc",
    "loss_object_loc",
    "loss_object_patch",
    "loss_object_label",
    "loss_context_label",
}


def train_step(cfg, inputs):
    """Losses of one forward and backward pass, the model, and what was logged."""
    model = build_model(cfg).train()
    with EventStorage() as storage:
        losses = model(inputs)
        sum(losses.values()).backward()
    return losses, model, {k: v for k, (v, _) in storage.latest().items()}


def predict(cfg, inputs):
    with torch.no_grad():
        return build_model(cfg).eval()(inputs)


def test_it_is_registered_as_a_meta_architecture():
    assert "SCNet" in META_ARCH_REGISTRY


def test_adding_the_config_twice_is_harmless():
    cfg = small_config("MODEL.SCNET.CONTEXT.EXPANSION_RATIO", 3.0)
    add_scnet_config(cfg)
    assert cfg.MODEL.SCNET.CONTEXT.EXPANSION_RATIO == 3.0


def test_training_on_mixed_sizes_gives_the_six_losses_by_name():
    losses, _, _ = train_step(small_config(), two_images())
    assert set(losses) == LOSSES
    assert all(torch.isfinite(v) and v.dim() == 0 for v in losses.values())


def test_every_trained_parameter_gets_a_gradient_from_its_own_loss():
    model = build_model(small_config()).train()
    heads = {
        "loss_object_loc": model.roi_heads.object_head.location_regressor,
        "loss_object_patch": model.roi_heads.object_head.patch_classifier,
        "loss_object_label": model.roi_heads.object_head.label_predictor.label_score,
        "loss_context_label": model.roi_heads.context_head.label_predictor.label_score,
    }
    with EventStorage():
        losses = model(two_images())
    for name, head in heads.items():
        model.zero_grad()
        losses[name].backward(retain_graph=True)
        moved = {n for n, m in heads.items() if m.weight.grad is not None and m.weight.grad.any()}
        assert moved == {name}
        heads_ = model.roi_heads
        own, other = heads_.object_head.box_head, heads_.context_head.box_head
        if name == "loss_context_label":
            own, other = other, own
        assert own.fc1.weight.grad.any()
        assert other.fc1.weight.grad is None or not other.fc1.weight.grad.any()
        assert model.backbone.bottom_up.stem.conv1.weight.grad.any()
        assert head.weight.grad.isfinite().all()


def test_inference_follows_the_output_contract():
    inputs = two_images()
    cfg = small_config("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    outputs = predict(cfg, inputs)
    assert_contract(outputs, inputs, 14)
    assert all(len(o["instances"]) > 0 for o in outputs)


def test_context_boxes_are_the_expanded_boxes_in_original_coordinates():
    cfg = small_config(
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.SCNET.OBJECT.ENABLED", False,
        "MODEL.SCNET.CONTEXT.EXPANSION_RATIO", 1.5,
    )  # fmt: skip
    x = make_input([], [], (96, 128), height=192, width=512)  # scaled by 2 and by 4
    instances = predict(cfg, [x])[0]["instances"]
    boxes, context = instances.pred_boxes.tensor, instances.context_boxes.tensor
    margin = (boxes[:, 2:] - boxes[:, :2]) * 0.25
    limit = torch.tensor([512.0, 192.0])
    expected = torch.cat(
        [(boxes[:, :2] - margin).clamp(min=0), torch.minimum(boxes[:, 2:] + margin, limit)], dim=1
    )
    torch.testing.assert_close(context, expected, atol=1e-2, rtol=0)


def test_image_scores_are_the_highest_label_scores_of_the_boxes():
    cfg = small_config("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 5000)
    output = predict(cfg, two_images())[0]
    best = output["instances"].label_scores.amax(dim=0)
    torch.testing.assert_close(best, output["image_scores"])


def test_scores_of_a_detection_are_its_label_score():
    output = predict(small_config("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0), two_images())[0]
    i = output["instances"]
    assert torch.equal(i.scores, i.label_scores[torch.arange(len(i)), i.pred_classes])


def test_an_image_is_predicted_alike_alone_and_in_a_batch_of_its_size():
    model = build_model(small_config()).eval()
    inputs = [make_input([], [], height=96, width=128) for _ in range(2)]
    with torch.no_grad():
        together = model(inputs)
        alone = [model([x])[0] for x in inputs]
    for a, b in zip(together, alone):
        torch.testing.assert_close(a["image_scores"], b["image_scores"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("images", [1, 2])
def test_images_without_boxes_train(images):
    inputs = [make_input([], []) for _ in range(images)]
    losses, _, _ = train_step(small_config(), inputs)
    assert set(losses) == LOSSES
    assert all(torch.isfinite(v) for v in losses.values())
    assert losses["loss_object_loc"] == 0


def no_proposals(images, features, targets=None):
    """Stands in for an RPN that finds nothing."""
    empty = [Instances(size) for size in images.image_sizes]
    for instances in empty:
        instances.proposal_boxes = Boxes(torch.zeros(0, 4))
        instances.objectness_logits = torch.zeros(0)
    return empty, {}


def test_zero_proposals_predict_zero_scores_and_no_boxes():
    model = build_model(small_config()).eval()
    model.proposal_generator.forward = no_proposals
    inputs = two_images()
    with torch.no_grad():
        outputs = model(inputs)
    for output in outputs:
        assert len(output["instances"]) == 0
        assert output["image_scores"].tolist() == [0] * 14
        assert output["label_boxes"].isnan().all()
        assert output["label_context_boxes"].isnan().all()


@pytest.mark.parametrize("with_boxes", [True, False])
def test_zero_proposals_train_with_finite_losses_and_gradients(with_boxes):
    model = build_model(small_config()).train()
    model.proposal_generator.forward = no_proposals
    inputs = two_images() if with_boxes else [make_input([], [])]
    with EventStorage():
        losses = model(inputs)
        sum(losses.values()).backward()
    assert all(torch.isfinite(v) for v in losses.values())
    # every parameter of the heads takes part, as distributed training requires
    for head in (model.roi_heads.object_head, model.roi_heads.context_head):
        assert all(p.grad is not None for p in head.parameters())


@pytest.mark.parametrize(
    ("off", "losses_left"),
    [
        ("OBJECT", {"loss_rpn_cls", "loss_rpn_loc", "loss_context_label"}),
        ("CONTEXT", LOSSES - {"loss_context_label"}),
    ],
)
def test_either_branch_can_be_switched_off(off, losses_left):
    cfg = small_config(f"MODEL.SCNET.{off}.ENABLED", False)
    losses, model, _ = train_step(cfg, two_images())
    assert set(losses) == losses_left
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    inputs = two_images()
    assert_contract(predict(cfg, inputs), inputs, 14)


def test_both_branches_off_is_refused():
    cfg = small_config("MODEL.SCNET.OBJECT.ENABLED", False, "MODEL.SCNET.CONTEXT.ENABLED", False)
    with pytest.raises(ValueError, match="no branch is left"):
        build_model(cfg)


def test_the_label_loss_is_summed_over_classes_and_averaged_over_boxes():
    logits, targets = torch.zeros(2, 3), torch.tensor([[1.0, 0, 0], [0, 0, 0]])
    counted = torch.ones(2, 3, dtype=torch.bool)
    predictor = LabelPredictor(8, num_classes=3)
    # every entry costs ln 2: 6 entries over 2 boxes, then 5 entries
    assert predictor.loss(logits, targets, counted, 2).item() == pytest.approx(3 * math.log(2))
    counted[0, 1] = False
    assert predictor.loss(logits, targets, counted, 2).item() == pytest.approx(2.5 * math.log(2))


def test_ignored_labels_are_left_out_for_the_boxes_of_their_image_alone():
    first, second = two_images()  # objects of classes 3 and 7, and of class 0
    first["ignored_labels"] = [3]
    # so small a score that a box without the label hardly pulls its bias down
    cfg = small_config("MODEL.SCNET.LABEL.PRIOR_PROB", 1e-4)
    _, model, _ = train_step(cfg, [first, second])
    for head in (model.roi_heads.object_head, model.roi_heads.context_head):
        gradient = head.label_predictor.label_score.bias.grad
        assert gradient[7] < 0 and gradient[0] < 0  # boxes with the label pull their bias up
        assert gradient[3] > 0  # boxes of the second image alone: they are without it


def test_a_label_without_a_box_is_left_out_of_the_losses_of_boxes_in_its_image_alone():
    model = build_model(small_config())
    inputs = [
        make_input([[4, 4, 30, 40]], [2], image_labels=[2, 5], ignored_labels=[7]),  # 5: a crowd
        make_input([[4, 4, 30, 40]], [5], image_labels=[5]),
        make_input([], []),
    ]
    mask = model._loss_mask(inputs)
    assert [(~row).nonzero().flatten().tolist() for row in mask] == [[5, 7], [], []]


def test_the_box_of_a_label_is_in_original_coordinates():
    model = build_model(small_config()).eval()
    x = make_input([], [], (96, 128), height=192, width=384)
    with torch.no_grad():
        _, (scored,) = model.label_images(model.preprocess_image([x]))
        (output,) = model([x])
    best = scored.label_scores.argmax(dim=0)
    scale = torch.tensor([3.0, 2.0, 3.0, 2.0])
    for key, boxes in (
        ("label_boxes", scored.pred_boxes), ("label_context_boxes", scored.context_boxes),
    ):  # fmt: skip
        boxes.clip((96, 128))
        torch.testing.assert_close(output[key], boxes.tensor[best] * scale)


def test_proposals_that_come_with_the_images_are_taken_without_an_rpn():
    model = build_model(
        small_config("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals")
    ).eval()
    assert model.proposal_generator is None
    x = make_input([], [], height=96, width=128)
    x["proposals"] = Instances((96, 128), proposal_boxes=Boxes(torch.tensor([[8.0, 8, 60, 60]])))
    x["proposals"].objectness_logits = torch.zeros(1)
    with torch.no_grad():
        (output,) = model([x])
    assert len(output["label_boxes"].unique(dim=0)) == 1
    with EventStorage():
        assert "loss_object_label" in model.train()([x])


@pytest.mark.parametrize("vis_period", [0, 1])
def test_training_is_visualised_as_detectron2_does(vis_period):
    model = build_model(small_config("VIS_PERIOD", vis_period))
    with EventStorage() as storage:
        model(two_images())
    assert len(storage._vis_data) == vis_period


def test_training_without_instances_names_the_image():
    model = build_model(small_config()).train()
    x = make_input([], [])
    del x["instances"]
    with pytest.raises(KeyError, match=r"made\.png"), EventStorage():
        model([x])


def test_a_frozen_backbone_trains_the_rest():
    cfg = small_config("MODEL.BACKBONE.FREEZE_AT", 5, "MODEL.RESNETS.NORM", "FrozenBN")
    _, model, _ = train_step(cfg, two_images())
    assert not any(p.requires_grad for p in model.backbone.bottom_up.parameters())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("num_classes", [1, 2, 300])
def test_any_number_of_classes(num_classes):
    cfg = small_config("MODEL.ROI_HEADS.NUM_CLASSES", num_classes)
    inputs = [make_input([[10, 10, 60, 60]], [num_classes - 1], height=96, width=128)]
    losses, _, _ = train_step(cfg, inputs)
    assert set(losses) == LOSSES
    assert_contract(predict(cfg, inputs), inputs, num_classes)


def test_what_one_watches_is_logged():
    _, _, logged = train_step(small_config(), two_images())
    assert logged["object_head/positives_per_image"] >= 1  # ground truth is among the proposals
    assert logged["context_head/positives_per_image"] >= logged["object_head/positives_per_image"]
    assert logged["context_head/labels_per_box"] > 0
    assert {"image_scores/mean", "image_scores/max", "image_scores/labels"} <= set(logged)


def test_untrained_label_scores_equal_the_prior():
    predictor = LabelPredictor(8, num_classes=3, prior_prob=0.2)
    torch.testing.assert_close(predictor(torch.zeros(2, 8)).sigmoid(), torch.full((2, 3), 0.2))


def test_detectron2s_visualizer_draws_the_output():
    output = predict(small_config("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0), two_images())[0]
    image = np.zeros((*output["instances"].image_size, 3), dtype=np.uint8)
    metadata = MetadataCatalog.get("context_scenes_test")
    drawn = Visualizer(image, metadata).draw_instance_predictions(output["instances"])
    assert drawn.get_image().any()


def test_full_size_resnext_trains_a_step_predicts_and_is_scored_by_coco_evaluator(tmp_path):
    cfg = load_config(
        "COCO-MultiLabel/scnet_X_101_32x8d_FPN_paper.yaml", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0
    )
    inputs = [make_input([[20, 20, 100, 100]], [17], (160, 160), height=160, width=160, image_id=1)]
    model = build_model(cfg).train()
    with EventStorage():
        losses = model(inputs)
        sum(losses.values()).backward()
    assert set(losses) == LOSSES
    assert all(torch.isfinite(v) for v in losses.values())
    model.eval()
    with torch.no_grad():
        outputs = model(inputs)
    assert_contract(outputs, inputs, 80)
    found = outputs[0]["instances"]
    assert (found.scores < 0.5).all()
    outputs[0]["instances"] = Instances.cat([found, wrong_and_exact_detection()])
    # the one object comes second: its precision, at every IoU, is 1/2
    assert coco_ap(tmp_path, inputs, outputs) == pytest.approx(50)


def wrong_and_exact_detection() -> Instances:
    """A box beside the one object with the highest score, and the object itself with the next."""
    instances = Instances((160, 160))
    instances.pred_boxes = Boxes(torch.tensor([[120.0, 120, 150, 150], [20, 20, 100, 100]]))
    instances.context_boxes = Boxes(torch.tensor([[100.0, 100, 160, 160], [0, 0, 140, 140]]))
    instances.scores, instances.pred_classes = torch.tensor([0.9, 0.6]), torch.tensor([17, 17])
    instances.label_scores = torch.zeros(2, 80)
    return instances


def coco_ap(folder, inputs, outputs) -> float:
    """Box AP of outputs on a data set of the one image, from Detectron2's COCOEvaluator."""
    name = f"one_image_{folder}"
    annotation = {"bbox": [20, 20, 100, 100], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 17}
    record = {"file_name": "made.png", "image_id": 1, "height": 160, "width": 160}
    DatasetCatalog.register(name, lambda: [record | {"annotations": [annotation]}])
    classes = MetadataCatalog.get("coco_2017_val_multilabel").thing_classes
    MetadataCatalog.get(name).set(thing_classes=classes)
    evaluator = COCOEvaluator(name, ("bbox",), output_dir=str(folder))
    evaluator.reset()
    evaluator.process(inputs, outputs)
    return evaluator.evaluate()["bbox"]["AP"]


def test_the_whole_image_is_fused_by_logits_and_alone_where_there_is_no_box():
    stages = (
        "MODEL.BACKBONE.NAME",
        "build_resnet_stage_fpn_backbone",
        "MODEL.FPN.STAGES",
        ["res5"],
    )
    image = ("MODEL.SCNET.IMAGE.ENABLED", True, "MODEL.SCNET.IMAGE.WEIGHT", 0.25)
    model = build_model(small_config(*stages, *image)).eval()
    boxes = [torch.tensor([[0.5, 0.9], [0.1, 0.0]]), torch.zeros(0, 2)]
    found = model.image_scores(boxes, torch.tensor([[4.0, 0], [1, -1]]))
    nine = torch.tensor(9.0).log()  # the logit of 0.9
    wanted = torch.tensor([[1.0, 0.75 * nine], [1, -1]]).sigmoid()
    torch.testing.assert_close(found, wanted)
    (output,) = model([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}])
    assert output["image_scores"].shape == (14,)


WHOLE = (
    "MODEL.SCNET.IMAGE.ENABLED", True, "MODEL.SCNET.IMAGE.IN_FEATURE", "p5",
    "MODEL.SCNET.AGGREGATION.LOSS_WEIGHT", 1.0,
)  # fmt: skip
OF_BOXES = LOSSES | {"loss_image_label"}


def labels_alone(**extra) -> dict:
    """An image with two labels of 14, a third unknown, and no boxes."""
    x = make_input([], [], image_labels=[2, 5], ignored_labels=[7], **extra)
    del x["instances"]
    return x


@pytest.fixture(scope="module")
def whole():
    """A model with a predictor of the whole image, whose every score is 0.01 yet."""
    model = build_model(small_config(*WHOLE)).train()
    nn.init.zeros_(model.image_predictor.label_score.weight)
    model.backbone.eval()  # its batch normalisation mixes the images of a batch
    return model


def losses_of(model, inputs):
    """Losses of a forward pass whose boxes are sampled alike each time."""
    torch.manual_seed(0)
    model.zero_grad()
    with EventStorage():
        return model(inputs)


def test_an_image_with_labels_alone_trains_the_whole_image_predictor_and_nothing_else(whole):
    losses = losses_of(whole, [labels_alone()])
    assert {k: v.item() for k, v in losses.items() if k in OF_BOXES} == dict.fromkeys(OF_BOXES, 0)
    # 2 labels present, 11 absent, 1 left out
    expected = -2 * math.log(0.01) - 11 * math.log(0.99)
    assert losses["loss_whole_image_label"].item() == pytest.approx(expected, rel=1e-5)
    sum(losses.values()).backward()
    # every parameter takes part, as distributed training requires
    assert all(p.grad is not None for p in whole.parameters() if p.requires_grad)
    parts = (whole.proposal_generator, whole.roi_heads)
    assert not any(p.grad.any() for part in parts for p in part.parameters())
    assert whole.image_predictor.label_score.bias.grad.any()


@pytest.mark.parametrize("order", [1, -1])
def test_losses_of_a_batch_of_both_kinds_are_those_of_its_parts(whole, order):
    boxed = make_input(*TWO_IMAGES[0], image_labels=[3, 7])
    label = labels_alone()
    both = losses_of(whole, [boxed, label][::order])
    alone, labels = losses_of(whole, [boxed]), losses_of(whole, [label])
    assert both.keys() == alone.keys() == OF_BOXES | {"loss_whole_image_label"}
    for name in OF_BOXES:
        assert both[name].item() == pytest.approx(alone[name].item(), rel=1e-4) != 0
    mean = (alone["loss_whole_image_label"] + labels["loss_whole_image_label"]) / 2
    torch.testing.assert_close(both["loss_whole_image_label"], mean)


def test_labels_alone_without_a_whole_image_predictor_are_refused_by_name():
    model = build_model(small_config()).train()
    with pytest.raises(KeyError, match=r"made\.png has no 'instances'.*MODEL\.SCNET\.IMAGE\.EN"):
        model([labels_alone()])
