"""`scnet analyze` against numbers worked by hand."""

from argparse import Namespace

from scnet_d2.cli import analyze
from scnet_d2.cli.analyze import FASTER_RCNN, Cost

import pytest
from conftest import scnet, small_config

BOXES = 10
TRUNK = 64 * 7 * 7 * 32 + 32 * 32  # 64 channels pooled to 7 x 7, two dense layers of 32


@pytest.fixture(scope="module")
def parts():
    return analyze.count(small_config(), 96, BOXES)


@pytest.mark.parametrize(
    # object: 4 deltas, 14 labels, and 1 patch logit that the scores do not use; context: 14 labels
    ("part", "outputs", "unused"),
    [("object head", 18, 1), ("context head", 14, 0)],
)
def test_heads_cost_what_their_dense_layers_do(parts, part, outputs, unused):
    weights, numbers = TRUNK + 32 * outputs, 32 + 32 + outputs
    parameters = weights + numbers + unused * (32 + 1)
    assert parts[part] == Cost(parameters, BOXES * weights, BOXES * numbers)


def test_the_rpn_costs_a_convolution_and_its_two_predictors(parts):
    # 96 x 128 padded: strides 4 to 64 give 24 x 32 + 12 x 16 + 6 x 8 + 3 x 4 + 2 x 2 places
    places, weights = 768 + 192 + 48 + 12 + 4, 64 * 9 * 64 + 64 * 3 + 64 * 12
    assert parts["RPN"] == Cost(weights + 64 + 3 + 12, places * weights, places * (64 + 3 + 12))


def test_faster_rcnn_has_the_same_backbone_and_one_head(parts):
    detector = analyze.count(small_config(*FASTER_RCNN), 96, BOXES)
    assert detector.keys() == {"backbone", "FPN", "RPN", "box head (Faster R-CNN)"}
    for part in ("backbone", "FPN", "RPN"):
        assert detector[part] == parts[part]
    weights = TRUNK + 32 * (15 + 4 * 14)  # 14 classes and the background, deltas for each class
    assert detector["box head (Faster R-CNN)"].macs == BOXES * weights


def test_memory_and_hours_follow_from_the_shown_arithmetic():
    cfg = small_config(
        "SOLVER.IMS_PER_BATCH", 16, "SOLVER.REFERENCE_WORLD_SIZE", 8, "SOLVER.MAX_ITER", 3600
    )
    args = Namespace(gpu_tflops=10, utilisation=0.6, bytes=4, copies=2)
    text = " ".join(analyze.recipe(cfg, Cost(2**30 / 12, 1e12, 2**30 / 16), args).split())
    assert "= 1.0 + 1.0 GiB = 2.0 GiB" in text
    assert "= 12.00 TFLOP; / (10 TFLOP/s x 0.6) = 2.00 s" in text
    assert "3,600 iterations x 2.00 s = 2.0 h on 8 GPUs" in text


def test_training_counts_the_sampled_boxes_in_the_heads_alone():
    cfg = small_config(
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 5, "MODEL.RPN.POST_NMS_TOPK_TEST", 10
    )
    cost = Cost(1, 8, 6)
    found = analyze.training({"FPN": cost, "object head": cost}, cfg)
    assert found == {"FPN": cost, "object head": Cost(1, 4, 3)}


def test_a_model_without_the_counted_parts_is_refused(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("MODEL: {META_ARCHITECTURE: ImageLabeler}\nVERSION: 2\n")
    assert scnet("analyze", "--config-file", tmp_path / "c.yaml") == 2
    assert "c.yaml: MODEL.META_ARCHITECTURE is ImageLabeler; the p" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--sizes", "--gpu-tflops", "--utilisation"])
def test_numbers_that_are_no_sizes_or_speeds_are_refused(option, capsys):
    assert scnet("analyze", "--config-file", "c", option, "0") == 2
    assert f"argument {option}: 0 is not from" in capsys.readouterr().err
