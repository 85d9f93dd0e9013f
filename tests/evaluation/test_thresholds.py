"""Per-class thresholds: how they are tuned, kept, read, and used."""

import importlib
import json

from scnet_d2.app.label_page import list_labels
from scnet_d2.data.context_scenes import CLASSES
from scnet_d2.engine import Trainer
from scnet_d2.evaluation import (
    load_thresholds,
    multilabel_metrics,
    save_thresholds,
    tune_thresholds,
)
from scnet_d2.inference import SCNetPredictor, describe_labels, draw_labels
from scnet_d2.report.analysis import image_errors

import numpy as np
import pytest
import torch
from conftest import scnet, small_config
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

NAMES = ["cat", "dog", "cow"]


def f1(scores, labels, threshold):
    predicted = scores >= threshold
    return 2 * (predicted & labels).sum() / (predicted.sum() + labels.sum())


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.sampled_from([1, 3, 1000]))
def test_no_score_is_a_better_threshold_and_of_equal_ones_the_highest_is_taken(seed, n, steps):
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, steps + 1, (n, 3)) / steps).astype(np.float32)
    labels, ignored = rng.random((n, 3)) < 0.3, rng.random((n, 3)) < 0.2
    tuned = tune_thresholds(scores, labels, ignored)
    assert tuned.dtype == scores.dtype
    for column, threshold in enumerate(tuned):
        kept = ~ignored[:, column]
        s, y = scores[kept, column], labels[kept, column]
        if y.any():
            tried = [(f1(s, y, t), t) for t in s]
            assert max(tried) == (f1(s, y, threshold), threshold)
        else:
            assert threshold == np.float32(0.5)


def test_a_worked_example():
    scores = np.array([[0.9], [0.8], [0.7], [0.6], [0.1]])
    labels = np.array([[1], [0], [1], [1], [0]], dtype=bool)
    # F1 down the ranking: 2/4, 2/5, 4/6, 6/7, 6/8
    assert tune_thresholds(scores, labels) == [0.6]
    assert multilabel_metrics(scores, labels, threshold=[0.6])["CF1_mean"] == pytest.approx(600 / 7)


def test_saved_thresholds_come_back_exactly_in_the_order_asked_for(tmp_path):
    thresholds = np.array([0.1, 1 / 3, 0.9], dtype=np.float32)
    save_thresholds(tmp_path / "t.json", thresholds, NAMES, source="val.npz")
    loaded = load_thresholds(tmp_path / "t.json", ["cow", "cat", "dog"])
    np.testing.assert_array_equal(loaded.astype(np.float32), thresholds[[2, 0, 1]])
    content = json.loads((tmp_path / "t.json").read_text())
    assert (content["source"], content["metric"]) == ("val.npz", "F1 of each class")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "t.json: not a json file"),
        ("[1]", 't.json: no "thresholds"'),
        ('{"thresholds": {"cat": 0.5, "cow": 0.5}}', r"no threshold of class 'dog' \(1 missing, 0"),
        ('{"thresholds": {"cat": 0, "cow": 1, "dog": 0, "eel": 0}}', "class 'eel' is not a class"),
        ('{"thresholds": {"cat": 0, "cow": 2, "dog": 0}}', r"'cow' is 2, not in \[0, 1\]"),
        ('{"thresholds": {"cat": 0, "cow": NaN, "dog": 0}}', "'cow' is nan"),
        ('{"thresholds": {"cat": 0, "cow": "x", "dog": 0}}', "'cow' is 'x'"),
    ],
)
def test_an_unusable_file_is_named(tmp_path, content, message):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_thresholds(tmp_path / "t.json", NAMES)


@pytest.fixture
def dataset():
    name = "thresholds_test"
    dicts = [{"image_id": i, "file_name": f"{i}.jpg", "image_labels": [0]} for i in range(4)]
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).thing_classes = NAMES
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_the_evaluator_takes_the_thresholds_of_the_config(dataset, tmp_path):
    save_thresholds(tmp_path / "t.json", np.array([0.25, 0.5, 0.5]), NAMES, source="")
    recalls = []
    for path in ("", str(tmp_path / "t.json")):
        cfg = small_config("TEST.LABEL_THRESHOLDS", path, "OUTPUT_DIR", str(tmp_path))
        evaluator = Trainer.build_evaluator(cfg, dataset)
        scores = torch.tensor([[0.2, 0, 0], [0.25, 0, 0], [0.4, 0, 0], [0.5, 0, 0]])
        evaluator.reset()
        evaluator.process(DatasetCatalog.get(dataset), [{"image_scores": s} for s in scores])
        recalls.append(evaluator.evaluate()["multilabel"]["OR"])
    assert recalls == [25, 75]


def test_predictor_and_demo_take_the_thresholds_of_the_config(tmp_path):
    tuned = np.linspace(0, 1, len(CLASSES))
    save_thresholds(tmp_path / "t.json", tuned, CLASSES, source="")
    cfg = small_config("MODEL.WEIGHTS", str(tmp_path / "model.pth"))
    torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    predictor = SCNetPredictor(cfg)
    np.testing.assert_array_equal(predictor.thresholds, np.full(len(CLASSES), 0.5))
    cfg.TEST.LABEL_THRESHOLDS = str(tmp_path / "t.json")
    predictor = SCNetPredictor(cfg)
    np.testing.assert_array_equal(predictor.thresholds, tuned)

    demo = importlib.import_module("scnet_d2.cli.demo")
    assert demo.choose_thresholds(predictor, None) == dict(zip(CLASSES, tuned))
    assert demo.choose_thresholds(predictor, 0.3) == dict.fromkeys(CLASSES, 0.3)


def test_a_label_below_its_own_threshold_is_drawn_without_its_boxes():
    image = np.zeros((60, 80, 3), dtype=np.uint8)
    boxes = {"box": [10, 10, 50, 50], "context_box": [0, 0, 60, 60]}
    labels = [{"label": "cat", "score": 0.8} | boxes, {"label": "dog", "score": 0.6} | boxes]
    both = draw_labels(image, labels, threshold=0.5)
    np.testing.assert_array_equal(
        draw_labels(image, labels, threshold={"cat": 0.5, "dog": 0.5}), both
    )
    only_dog = draw_labels(image, labels, threshold={"cat": 0.9, "dog": 0.5})
    orange, blue = [0xE6, 0x9F, 0x00], [0x56, 0xB4, 0xE9]  # colours of the first and second rank
    assert not (only_dog == orange).all(axis=2).any()
    assert (only_dog == blue).all(axis=2).any()
    assert (both == orange).all(axis=2).any()


def decided_by_metrics(score, threshold):
    scores, labels = np.array([[score, 0], [0, 1]], np.float32), np.eye(2, dtype=bool)
    return multilabel_metrics(scores, labels, threshold=[threshold, 0.5])["OR"] == 100


def decided_by_report(score, threshold):
    scores, present = np.array([[score]], np.float32), np.ones((1, 1), bool)
    return not image_errors(scores, present, ~present, np.array([threshold])).missed.any()


def output_of(score):
    instances = Instances((8, 8), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
    instances.pred_classes = torch.zeros(0, dtype=torch.int64)
    instances.context_boxes, instances.label_scores = Boxes(torch.zeros(0, 4)), torch.zeros(0, 1)
    return {"image_scores": torch.tensor([score]), "instances": instances}


def decided_by_tagger(score, threshold):
    return bool(describe_labels(output_of(score), ["cat"], thresholds=np.array([threshold])))


def decided_by_demo(score, threshold):
    demo, image = importlib.import_module("scnet_d2.cli.demo"), np.zeros((8, 8, 3), np.uint8)
    labels = describe_labels(output_of(score), ["cat"])
    return bool(demo.make_record("a.jpg", image, labels, {"cat": threshold})["labels"])


def decided_by_picture(score, threshold):
    image, labels = np.zeros((8, 8, 3), np.uint8), describe_labels(output_of(score), ["cat"])
    bar = np.array([0xE6, 0x9F, 0x00])  # the first label's colour; grey where not predicted
    return (draw_labels(image, labels, threshold=threshold) == bar).all(axis=2).any()


def decided_by_page(score, threshold):
    (label,) = list_labels(output_of(score), ["cat"], [threshold])
    return label.predicted


@pytest.mark.parametrize(
    "decided",
    [
        decided_by_metrics, decided_by_report, decided_by_tagger, decided_by_demo,
        decided_by_picture, decided_by_page,
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("score", "threshold", "expected"),
    [
        (0.49996, 0.5, False),  # with four digits it would reach the threshold
        (0.7, 0.7, True),  # float32(0.7) < 0.7
        (0.7, float(np.nextafter(np.float32(0.7), np.float32(1))), False),
    ],
)
def test_every_program_decides_alike_which_labels_are_predicted(
    decided, score, threshold, expected
):
    assert decided(score, threshold) == expected


def test_the_demo_writes_and_draws_every_predicted_label():
    demo, names = importlib.import_module("scnet_d2.cli.demo"), [f"class {i}" for i in range(20)]
    output = {"image_scores": torch.linspace(0.9, 0.1, 20)}  # 12 of them from 0.43 on
    labels, image = describe_labels(output, names), np.zeros((8, 8, 3), np.uint8)
    thresholds = dict.fromkeys(names, 0.43) | {"class 19": 0.1}
    chosen = [*names[:12], "class 19"]
    record = demo.make_record("a.jpg", image, labels, thresholds)
    assert [x["label"] for x in record["labels"]] == chosen
    assert [x["label"] for x in demo.labels_to_draw(labels, thresholds)] == chosen
    few = dict.fromkeys(names, 0.85)  # two reach it; the next ones are drawn in grey
    assert [x["label"] for x in demo.labels_to_draw(labels, few)] == names[:8]


def test_thresholds_are_tuned_on_scores_that_differ_as_float32():
    scores = np.array([[0.6], [0.6 - 1e-12], [0.1]])  # the first two are one float32
    labels = np.array([[1], [0], [1]], dtype=bool)
    (threshold,) = tune_thresholds(scores, labels)
    assert threshold == 0.1  # F1: 2/4 from 0.6 on, 4/5 from 0.1 on


def test_tools_tune_on_one_file_and_evaluate_another(tmp_path, capsys):
    rng = np.random.default_rng(0)
    labels = rng.random((80, 3)) < 0.3
    scores = (0.4 * labels + 0.3 * rng.random(labels.shape)).astype(np.float32)
    file, output = str(tmp_path / "val.npz"), str(tmp_path / "t.json")
    np.savez(file, scores=scores, labels=labels, class_names=NAMES)
    assert scnet("tune", file, "--output", output) == 0
    before, after = capsys.readouterr().out.splitlines()[2:4]
    assert before.split() == ["0.5", *values(multilabel_metrics(scores, labels))]
    assert after.split() == ["tuned", "100.00", "100.00", "100.00"]  # 0.3 and 0.4 tell them apart
    assert scnet("scores", file, "--thresholds", output, "--json") == 0
    assert json.loads(capsys.readouterr().out)[file]["OF1"] == 100


def test_the_threshold_of_a_class_that_no_image_has_is_named(tmp_path, capsys):
    labels = np.array([[1, 0], [0, 0]], dtype=bool)
    np.savez(tmp_path / "a.npz", scores=0.3 + 0.4 * labels, labels=labels, class_names=["a", "b"])
    assert scnet("tune", tmp_path / "a.npz", "--output", tmp_path / "t.json") == 0
    assert "1 class of no image, b: nothing to tune on, 0.5 is kept" in capsys.readouterr().out


def values(metrics):
    return [f"{metrics[key]:.2f}" for key in ("CF1", "CF1_mean", "OF1")]
