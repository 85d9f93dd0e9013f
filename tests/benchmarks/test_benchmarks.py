"""The speed benchmarks and the study of numbers of boxes, at a tiny size."""

import itertools
import json
import logging
import multiprocessing
import statistics
import threading
import time
from types import SimpleNamespace

import box_budget
import budget
import inference
import numpy as np
import optimized_scores
import processes
import pytest
import speed
import torch
import training
from conftest import make_input, needs_cuda, small_config
from detectron2.modeling import build_model
from speed import Result, Setup
from tqdm import tqdm

OPTS = (
    "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
    "MODEL.FPN.OUT_CHANNELS", "8", "MODEL.ROI_BOX_HEAD.FC_DIM", "8",
)  # fmt: skip
TINY = ("--size", "64", "--repeats", "1", "--threads", "1", "--json", "--opts", *OPTS)


def in_this_process(setups, prepare, repeats, progress) -> list[Result]:
    """Stands in for `measure`: the n-th set-up runs once and is said to take n s and 10 n MB."""
    results = []
    for n, setup in enumerate(setups, 1):
        turn, counts = prepare(setup)
        turn()
        results.append(Result([n] * repeats, 10 * n, statistics.mean(counts)))
    return results


def test_a_row_has_the_medians_of_the_turns_and_of_their_ratios():
    stock = Result([0.1, 0.2, 0.4], 100, 50)
    scnet = Result([0.3, 0.2, 0.4], 150, 20)
    row = speed.row(Setup("SCNet", batch=4), scnet, stock)
    assert (row["model"], row["boxes"], row["range"]) == ("SCNet", 20, "200-400")
    assert (row["ms"], row["images/s"]) == pytest.approx((300, 4 / 0.3))
    assert row["x stock"] == pytest.approx(1)  # of 3, 1 and 1; the ratio of the medians is 1.5
    assert (row["peak MB"], row["x stock "]) == (150, 1.5)


def test_boxes_cost_the_median_over_the_images_of_their_ratio_to_pooling():
    seconds = {budget.POOLING: [0.1, 0.2, 0.4], "5": [0.3, 0.2, 0.8]}  # ratios 3, 1 and 2
    labels = np.array([[True], [False], [True]])
    truth = SimpleNamespace(labels=labels, ignored=~labels & labels)
    scores = np.array([[0.9], [0.8], [0.7]], np.float32)  # AP (1 + 2 / 3) / 2
    pooling, boxes = budget.table(seconds, dict.fromkeys(seconds, scores), truth).splitlines()[2:]
    assert pooling.split() == ["average", "pooling", "200", "1.00"]
    assert boxes.split() == ["5", "300", "2.00", "83.33"]


def test_inference_is_measured_beside_faster_rcnn_with_as_many_boxes(capsys, monkeypatch):
    monkeypatch.setattr(inference, "measure", in_this_process)
    inference.main(["--tables", "boxes", "--boxes", "10", *TINY])
    (row,) = json.loads(capsys.readouterr().out)["tables"]["boxes"]
    assert row == {
        "boxes": 10, "stock, ms": 1000, "SCNet, ms": 2000, "x stock": 2,
        "optimised, ms": 3000, "x stock ": 3, "peak, x stock": 2,
    }  # fmt: skip


def test_a_training_step_is_measured_beside_faster_rcnn(capsys, monkeypatch):
    models = training.models
    monkeypatch.setattr(training, "models", lambda base: models(base)[::2][:2])
    monkeypatch.setattr(training, "measure", in_this_process)
    training.main([*TINY, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "20"])
    stock, scnet = json.loads(capsys.readouterr().out)["tables"]["training step"]
    assert (stock["model"], scnet["model"]) == ("Faster R-CNN", "SCNet")
    assert stock["boxes"] == scnet["boxes"] == 20
    assert (scnet["ms"], scnet["x stock"]) == (2000, 2)


def test_the_step_of_efficientnet_lite_is_measured_part_by_part(capsys, monkeypatch):
    monkeypatch.setattr(training, "measure", in_this_process)
    opts = ("MODEL.FPN.OUT_CHANNELS", "8", "MODEL.ROI_BOX_HEAD.FC_DIM", "8")
    training.main(["--parts", "--backbone", "Lite0", *TINY[: TINY.index("--opts") + 1], *opts])
    rows = json.loads(capsys.readouterr().out)["tables"]["training step"]
    assert [row["x naive"] for row in rows] == [1, 2, 3, 4, 5]
    naive, *_, shipped = training.parts_of_lite(Setup("", "Lite0"))
    assert "p2" in speed.load_config(naive).MODEL.RPN.IN_FEATURES
    assert "p2" not in speed.load_config(shipped).MODEL.RPN.IN_FEATURES
    assert speed.load_config(shipped).MODEL.BACKBONE.FREEZE_AT == 5


def test_faster_rcnn_of_efficientnet_lite_is_detectron2s_config_on_that_network():
    cfg = speed.load_config(Setup("", "Lite0", stock=True))
    assert (cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME) == (
        "GeneralizedRCNN", "StandardROIHeads",
    )  # fmt: skip
    assert cfg.MODEL.TIMM.NAME == "tf_efficientnet_lite0"
    assert cfg.MODEL.FPN.IN_FEATURES == cfg.MODEL.TIMM.OUT_FEATURES
    assert cfg.MODEL.RPN.POST_NMS_TOPK_TEST == 1000


def test_what_is_timed_as_a_training_step_changes_the_weights(monkeypatch):
    models, load = [], training.load_model
    monkeypatch.setattr(
        training, "load_model", lambda *args: models.append(load(*args)) or models[-1]
    )
    step, _ = training.prepare(Setup("", size=64, opts=(*OPTS, "SOLVER.BASE_LR", "0.01")))
    before = {name: p.detach().clone() for name, p in models[0].named_parameters()}
    step()
    still = {n for n, p in models[0].named_parameters() if torch.equal(p, before[n])}
    assert still == {n for n, p in models[0].named_parameters() if not p.requires_grad}


@pytest.fixture
def threads(monkeypatch):
    """Has `measure` start threads: processes take seconds to start."""
    context = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=threading.Thread)
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: context)
    monkeypatch.setattr(logging, "disable", lambda _: None)


def test_set_ups_take_turns_and_the_first_turn_is_not_counted(threads):
    done = []

    def slow_at_first(setup):
        turns, counts = itertools.count(), []

        def turn():
            time.sleep(0 if next(turns) else 0.5)
            counts.append(setup.batch)
            done.append(setup.name)

        return turn, counts

    setups = [Setup(n, batch=b, threads=torch.get_num_threads()) for n, b in (("a", 3), ("b", 5))]
    results = speed.measure(setups, slow_at_first, 2, tqdm(total=6))
    assert "".join(done) == "ababab"
    assert [len(r.seconds) for r in results] == [2, 2]
    assert max(s for r in results for s in r.seconds) < 0.5
    assert [r.boxes for r in results] == [3, 5]


def test_what_fails_in_a_process_is_told(monkeypatch):
    context = processes.context()
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: context)
    setup = Setup("no photograph", image="nowhere.jpg")
    with pytest.raises(RuntimeError, match=r"no photograph:[\s\S]*nowhere\.jpg is no image"):
        speed.measure([setup], inference.prepare, 1, tqdm(total=2))


def gpu_work(setup):
    """A turn that returns at once and keeps the GPU busy for 10**8 of its cycles."""
    return lambda: torch.cuda._sleep(100_000_000), [1]


@needs_cuda
def test_a_turn_ends_when_the_gpu_has_finished():
    (result,) = speed.measure([Setup("")], gpu_work, 2, tqdm(total=3))
    assert min(result.seconds) > 0.02  # at 5 GHz; it takes microseconds to ask for


@needs_cuda
@pytest.mark.parametrize("program", [inference, training])
def test_mixed_precision_on_a_gpu_is_measured(program):
    turn, counts = program.prepare(Setup("", size=64, opts=OPTS, amp=True))
    turn()
    assert counts[0] > 0
    assert speed.peak_megabytes() == torch.cuda.max_memory_allocated() / 1e6


def test_as_many_label_scores_reach_the_detection_threshold_as_there_are_boxes():
    setup = Setup("", size=96, opts=OPTS)
    inputs = [{"image": inference.load_image(setup), "height": 96, "width": 96}]
    model, seen = inference.load_model(setup, inputs), []
    inference.set_score_threshold(model, inputs)
    model.aggregator.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(inputs)
    assert (seen[0] >= model.roi_heads.score_thresh).sum() == pytest.approx(len(seen[0]), abs=2)


def test_scores_of_the_first_boxes_are_those_of_a_smaller_number_of_boxes(device):
    model = build_model(small_config(device=device)).eval()
    batches = [[make_input([], [])], [make_input([], [])]]
    scores, boxes = box_budget.predict(model, batches, [6])
    assert min(boxes) > 6
    model.proposal_generator.post_nms_topk[False] = 6
    with torch.no_grad():
        fewer = [model(batch)[0]["image_scores"].cpu().numpy() for batch in batches]
    np.testing.assert_allclose(scores[6], np.stack(fewer), atol=1e-5)


def test_differences_of_optimised_scores_are_counted():
    labels = np.array([[True], [False]])
    plain, other = np.array([[0.9], [0.1]]), np.array([[0.9], [0.15]])
    row = optimized_scores.compare({"plain": plain, "x": other}, labels, ~labels & False)[1]
    assert row["mAP"] == 100
    assert row["mean difference"] == pytest.approx(0.025)
    assert row["largest"] == pytest.approx(0.05)
    assert row["above 0.02"] == "1 of 2"
