"""The speed benchmarks and the study of patches, at a tiny size."""

import json

import inference
import numpy as np
import optimized_scores
import patch_budget
import pytest
import torch
import training
from conftest import make_input, small_config
from detectron2.modeling import build_model
from tqdm import tqdm

TINY = (
    "--size", "64", "--repeats", "1", "--threads", "1", "--json", "--opts",
    "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
    "MODEL.FPN.OUT_CHANNELS", "8", "MODEL.ROI_BOX_HEAD.FC_DIM", "8",
)  # fmt: skip


def test_inference_is_measured_beside_faster_rcnn_with_as_many_boxes(capsys):
    inference.main(["--tables", "patches", "--patches", "10", *TINY])
    (row,) = json.loads(capsys.readouterr().out)["tables"]["patches"]
    assert row["patches"] == row["boxes"] == 10
    assert row["x stock"] == pytest.approx(row["SCNet, ms"] / row["stock, ms"])
    assert row["optimised, ms"] > 0
    assert 0.5 < row["peak, x stock"] < 2


def test_a_training_step_is_measured_beside_faster_rcnn(capsys, monkeypatch):
    models = training.models
    monkeypatch.setattr(training, "models", lambda base: models(base)[::2][:2])
    training.main([*TINY, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "20"])
    stock, scnet = json.loads(capsys.readouterr().out)["tables"]["training step"]
    assert (stock["model"], scnet["model"]) == ("Faster R-CNN", "SCNet")
    assert stock["boxes"] == scnet["boxes"] == 20
    assert scnet["x stock"] == pytest.approx(scnet["ms"] / stock["ms"])


def test_what_fails_in_a_process_is_told():
    setup = inference.Setup("no photograph", image="nowhere.jpg")
    with pytest.raises(RuntimeError, match=r"no photograph:[\s\S]*nowhere\.jpg is no image"):
        inference.measure([setup], inference.prepare, 1, tqdm(total=2))


def test_as_many_label_scores_reach_the_detection_threshold_as_there_are_boxes():
    setup = inference.Setup("", size=96, opts=TINY[TINY.index("--opts") + 1 :])
    inputs = [{"image": inference.load_image(setup), "height": 96, "width": 96}]
    model, seen = inference.load_model(setup, inputs), []
    inference.set_score_threshold(model, inputs)
    model.aggregator.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(inputs)
    assert (seen[0] >= model.score_thresh).sum() == pytest.approx(len(seen[0]), abs=2)


def test_scores_of_the_first_boxes_are_those_of_a_smaller_number_of_patches():
    model = build_model(small_config()).eval()
    batches = [[make_input([], [])], [make_input([], [])]]
    recorded = patch_budget.record(model, batches)
    model.proposal_generator.post_nms_topk[False] = 6
    with torch.no_grad():
        fewer = [model(batch)[0]["image_scores"] for batch in batches]
    for scores, expected in zip(recorded, fewer, strict=True):
        assert len(scores) > 6
        torch.testing.assert_close(model.aggregator(scores[:6]), expected)


def test_differences_of_optimised_scores_are_counted():
    labels = np.array([[True], [False]])
    plain, other = np.array([[0.9], [0.1]]), np.array([[0.9], [0.15]])
    row = optimized_scores.compare({"plain": plain, "x": other}, labels, ~labels & False)[1]
    assert row["mAP"] == 100
    assert row["mean difference"] == pytest.approx(0.025)
    assert row["largest"] == pytest.approx(0.05)
    assert row["above 0.02"] == "1 of 2"
