"""HCP, FeV+LV and ProNet: what must hold of systems that look at boxes."""

import math
from dataclasses import replace

from scnet_d2.modeling.label_heads.fev_lv import FisherVector
from scnet_d2.modeling.label_heads.pronet import window_boxes

import pytest
import torch
from conftest import load_config, make_input
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from tiny_labeler import NUM_CLASSES, features, head, noise


def config(name, *opts):
    return load_config(f"VOC-MultiLabel/compared/{name}.yaml", *opts)


# ---- HCP: SCNet's object branch, trained through the maximum over boxes -------------------------


@pytest.fixture(scope="module")
def hcp():
    return build_model(config("hcp")).train()


def test_hcp_learns_labels_from_the_images_and_boxes_in_the_rpn_alone(hcp):
    images = [make_input([[20, 20, 90, 100]], [3], (96, 128), image_labels=[3, 5])]
    with EventStorage():
        losses = hcp(images)
    trained = {name for name, loss in losses.items() if loss > 0}
    assert trained == {"loss_rpn_cls", "loss_rpn_loc", "loss_image_label"}
    losses["loss_image_label"].backward()
    head = hcp.roi_heads.object_head
    assert head.label_predictor.label_score.weight.grad.abs().sum() > 0
    assert head.patch_classifier.weight.grad is None


def test_hcp_takes_every_proposal_and_no_ground_truth_box(hcp):
    target = make_input([[0, 0, 40, 40]], [3])["instances"]
    boxes = torch.tensor([[0.0, 0, 40, 30], [50, 50, 90, 90], [0, 0, 41, 40]])
    proposals = Instances((96, 128), proposal_boxes=Boxes(boxes), objectness_logits=torch.ones(3))
    with EventStorage():
        (sampled,) = hcp.roi_heads.label_and_sample_proposals([proposals], [target])
    assert sorted(sampled.proposal_boxes.tensor.tolist()) == sorted(boxes.tolist())


# ---- Boxes in label heads -----------------------------------------------------------------------


def test_a_box_of_one_cell_has_that_cells_feature_and_of_two_their_mean():
    seen = replace(features(*noise((24, 32))), boxes=[Boxes(torch.tensor([[8.0, 8, 16, 16]]))])
    ramp = torch.arange(12.0).view(1, 1, 3, 4)  # of which ROIAlign's samples average to the middle
    seen.maps["res5"] = ramp
    assert seen.of_boxes("res5")[0].tolist() == [[5.0]]
    seen = replace(seen, boxes=[Boxes(torch.tensor([[8.0, 8, 24, 16], [8.0, 0, 16, 24]]))])
    torch.testing.assert_close(seen.of_boxes("res5")[0][0], torch.tensor([5.5]))


def test_the_fisher_vector_of_one_gaussian_has_mean_and_excess_variance():
    model = FisherVector(1, 1)
    torch.nn.init.zeros_(model.mean)
    statistics = model.statistics(torch.tensor([[1.0], [3.0]]))
    wanted = [2.0, (0 + 8) / 2 / math.sqrt(2)]
    assert statistics.tolist() == pytest.approx(wanted)
    root = torch.tensor(wanted).sqrt()
    torch.testing.assert_close(
        model(torch.tensor([[1.0], [3.0]])), math.sqrt(2) * root / root.norm(), atol=1e-3, rtol=0
    )


def test_a_vector_counts_for_the_gaussian_that_is_near():
    model = FisherVector(1, 2)
    model.mean.data = torch.tensor([[-50.0], [50.0]])
    model.log_deviation.data[1] = math.log(2)
    # weights of 1/2: 2 is one deviation from 50, and no other statistic but "no variance" is left
    statistics = model.statistics(torch.tensor([[52.0], [-50.0]]))
    half = 0.5 / math.sqrt(0.5)
    assert statistics.tolist() == pytest.approx([0, half * 1, -0.5, 0], abs=1e-5)


def test_fev_lv_scores_a_bag_whatever_its_order_and_the_prior_where_it_is_empty():
    model, seen = head("FeVLV", prior_prob=0.2), features(*noise((24, 32)))
    scores = torch.rand(len(seen.boxes[0]), NUM_CLASSES)
    logits = model(replace(seen, label_scores=[scores])).logits
    turned = replace(
        seen, boxes=[seen.boxes[0][list(range(11, -1, -1))]], label_scores=[scores.flip(0)]
    )
    torch.testing.assert_close(model(turned).logits, logits)
    assert not torch.allclose(model(replace(seen, label_scores=[scores / 2])).logits, logits)
    none = replace(seen, boxes=[seen.boxes[0][:0]], label_scores=[scores[:0]])
    torch.testing.assert_close(model(none).logits.sigmoid(), torch.full((1, NUM_CLASSES), 0.2))


def test_in_scnet_a_label_head_reads_the_boxes_and_alone_gives_the_scores():
    model = build_model(config("fev_lv")).eval()
    seen = []
    model.image_predictor.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        (output,) = model([{"image": torch.randint(0, 256, (3, 96, 128))}])
    ((given, found),) = seen
    assert given.label_scores[0].shape == (len(given.boxes[0]), 20)
    torch.testing.assert_close(output["image_scores"], found.logits[0].sigmoid())


def test_scnet_refuses_a_label_head_that_changes_the_backbone():
    image = (
        "MODEL.SCNET.IMAGE.HEAD",
        "KSSNet",
        "MODEL.FPN.STAGES",
        ["res2", "res3", "res4", "res5"],
    )
    stages = ("MODEL.TIMM.OUT_FEATURES", ["res2", "res3", "res4", "res5"])
    with pytest.raises(ValueError, match=r"IMAGE\.HEAD is 'KSSNet', which changes the backbone"):
        build_model(config("fev_lv", *image, *stages))


# ---- ProNet -------------------------------------------------------------------------------------


def test_a_window_lies_about_its_cell_and_inside_the_image():
    maps = torch.zeros(2, 2, 3)
    maps[1, 0, 2] = 4
    boxes, scores = window_boxes(maps, 16.0, 2, (28, 48))  # 32 px wide and, as the image, 28 high
    assert boxes.tolist() == [[0, 0, 32, 28], [8, 0, 40, 28], [16, 0, 48, 28]] * 2
    assert scores.tolist() == [0, 0, 4, 0, 0, 0]


def test_pronet_looks_closer_where_a_label_scores_highest():
    model = head("ProNet", num_boxes=2, window=1, size=16)
    image, maps = noise((24, 32))[0], torch.zeros(1, 3, 4)
    maps[0, 1, 2], maps[0, 2, 0] = 5, 3
    crops = model.crops(image, [(maps, 8.0)])
    wanted = [image[:, 8:16, 16:24], image[:, 16:24, :8]]
    assert [tuple(crop.shape) for crop in crops] == [(16, 16, 16)] * 2  # twice as large
    for crop, part in zip(crops, wanted, strict=True):
        middles = crop[:, 7:9, 7:9].mean(dim=(1, 2)), part[:, 3:5, 3:5].mean(dim=(1, 2))
        torch.testing.assert_close(*middles)


def test_pronet_averages_the_cells_with_the_best_box_of_each_label():
    # boxes of 8 x 8 px that stay as they are: the 12 cells of the map, and again those of its copy
    model, seen = head("ProNet", num_boxes=12, small=1.0), features(*noise((24, 32)))
    output = model(seen)
    tokens, _ = seen.tokens("res5")
    boxes = model.box_score(tokens).amax(dim=1)
    cells = ((5 * model.label_score(tokens)).exp().mean(dim=1)).log() / 5
    torch.testing.assert_close(output.parts, {"cells": cells, "boxes": boxes})
    torch.testing.assert_close(output.logits, (cells + boxes) / 2)
