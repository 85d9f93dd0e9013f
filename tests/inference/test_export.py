"""Exported files against SCNet itself, on images of other sizes than the traced one."""

import functools
import math
import re
import sys
from argparse import Namespace
from pathlib import Path

from scnet_d2.cli import export as program
from scnet_d2.data.context_scenes import CLASSES, SceneConfig, render_scene
from scnet_d2.inference import SCNetPredictor, describe_labels
from scnet_d2.inference import export as formats
from scnet_d2.inference.export import Difference, Outputs, output_difference, pytorch_run
from scnet_d2.modeling import LabelAggregator

import cv2
import numpy as np
import pytest
import torch
from conftest import REPO, scnet, small_config
from detectron2.modeling import build_model

TRACED = ("torchscript", "onnx")
PACKAGES = {"onnx": ("onnx", "onnxruntime"), "safetensors": (), "torchscript": ()}
BRANCHES = {
    "both": (),
    "object": (
        "MODEL.SCNET.CONTEXT.ENABLED", False, "MODEL.SCNET.AGGREGATION.METHOD", "topk_mean",
        "MODEL.PROPOSAL_GENERATOR.MIN_SIZE", 5,
    ),
    "image": (
        "MODEL.SCNET.IMAGE.ENABLED", True, "MODEL.SCNET.IMAGE.HEAD", "DELTA",
        "MODEL.SCNET.IMAGE.IN_FEATURE", "p5",
    ),
    "three": (
        "MODEL.SCNET.RELATION.ENABLED", True, "MODEL.SCNET.CONTEXT.RATIOS", [1.0, 2.5],
        "MODEL.SCNET.RELATION.MAX_KEYS", 20, "MODEL.SCNET.AGGREGATION.USE_PATCH_CONFIDENCE", True,
        "MODEL.SCNET.OBJECT.LOCATION_CONV_DIM", 32,
    ),
}  # fmt: skip
SIZES = ((96, 128), (161, 97), (40, 300), (12, 8))  # height, width; 224 x 320 is traced


def scene(size=None) -> np.ndarray:
    image, _ = render_scene(SceneConfig(), "test", 0)
    return image if size is None else cv2.resize(image, size[::-1])


def randomize(model) -> None:
    """Random heads with scores all over [0, 1], and batch norm with statistics of an image."""
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.momentum = None  # take the statistics as they are
        torch.nn.init.uniform_(norm.weight, 0.5, 1.0)
        torch.nn.init.normal_(norm.bias, std=0.1)
    image = torch.from_numpy(scene().transpose(2, 0, 1).copy())
    with torch.no_grad():
        model.backbone.train()(model.preprocess_image([{"image": image}]).tensor)
    for name, parameter in model.eval().named_parameters():
        if name.endswith(("label_score.bias", "patch_classifier.bias")):
            torch.nn.init.normal_(parameter)
        elif name.endswith(("label_score.weight", "patch_classifier.weight")):
            torch.nn.init.normal_(parameter, std=0.5)
        elif re.search(r"\.relation\.|\.expansion\.|location_regressor\.weight$", name):
            torch.nn.init.normal_(parameter, std=0.1)


def make_predictor(folder: Path, *opts) -> SCNetPredictor:
    # so many boxes may remain that their number depends on the image
    many = ("MODEL.RPN.POST_NMS_TOPK_TEST", 300)
    cfg = small_config("DATASETS.CLASS_NAMES", CLASSES, *many, *opts)
    torch.manual_seed(0)
    model = build_model(cfg)
    randomize(model)
    cfg.MODEL.WEIGHTS = str(folder / "weights.pth")
    torch.save(model.state_dict(), cfg.MODEL.WEIGHTS)
    return SCNetPredictor(cfg)


def export_file(predictor: SCNetPredictor, name: str, folder: Path) -> Path:
    for package in PACKAGES[name]:
        pytest.importorskip(package)
    file = folder / f"model.{name}"
    program.EXPORT[name](predictor, file)
    return file


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A function: branches and format to the predictor and its exported file."""

    @functools.cache
    def predictor(branches):
        return make_predictor(tmp_path_factory.mktemp(branches), *BRANCHES[branches])

    @functools.cache
    def export(branches, name):
        folder = tmp_path_factory.mktemp("export")
        return predictor(branches), export_file(predictor(branches), name, folder)

    return export


CASES = [(b, name) for b in ("object", "three", "image") for name in TRACED] + [("both", "onnx")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def exported(request, exports):
    """A predictor and its exported model as a function, of all branches and ways of tracing."""
    branches, name = request.param
    predictor, file = exports(branches, name)
    return predictor, program.LOAD[name](file)[0]


def test_a_traced_model_gives_pytorchs_outputs_at_other_sizes(exported):
    predictor, run = exported
    numbers = set()
    for size in SIZES:
        expected = pytorch_run(predictor.model)(scene(size))
        assert expected.image_scores.max() - expected.image_scores.min() > 0.1
        actual = run(scene(size))
        difference = output_difference(expected, actual)
        best = actual.label_scores.argmax(dim=0)  # (C,)
        torch.testing.assert_close(actual.label_boxes, actual.boxes[best])
        torch.testing.assert_close(actual.label_context_boxes, actual.context_boxes[best])
        numbers.add(difference.num_boxes)
        assert difference.num_paired == difference.num_boxes == len(expected.boxes) > 5
        assert difference.image_scores <= 1e-4
        # relation sees 100 times the logarithm of a distance, and so its rounding where it is small
        related = "relation" in predictor.model.roi_heads.branches
        assert difference.label_scores <= (2e-3 if related else 1e-4)
        assert max(difference.boxes, difference.context_boxes) <= 1e-2
    assert len(numbers) > 1


def test_the_model_that_comes_with_the_package_is_exported(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    file = tmp_path / "model.onnx"
    options = ("--format", "onnx", "--output", file)
    assert scnet("export", "--model", "scnet_lite_voc", *options) == 0, capsys.readouterr()
    assert file.exists()


def test_outputs_lead_to_the_predictors_labels_and_boxes(exported, monkeypatch):
    predictor, run = exported
    heads = predictor.model.roi_heads
    monkeypatch.setattr(heads, "score_thresh", -1)  # every label of every box
    monkeypatch.setattr(heads, "detections_per_image", -1)
    image = scene()
    labels = describe_labels(predictor(image), range(len(CLASSES)))
    resized = predictor.aug.get_transform(image).apply_image(image)
    outputs = run(resized)
    scale = torch.tensor([a / b for a, b in zip(image.shape[1::-1], resized.shape[1::-1])] * 2)
    for label in labels:
        best = outputs.label_scores[:, label["label"]].argmax()
        assert outputs.image_scores[label["label"]] == pytest.approx(label["score"], abs=2e-4)
        for box, key in ((outputs.boxes, "box"), (outputs.context_boxes, "context_box")):
            assert (scale * box[best]).tolist() == pytest.approx(label[key], abs=0.11)


def test_boxes_lie_in_the_image_and_nothing_records_gradients(exported):
    outputs = exported[1](scene((90, 120)))
    for boxes in (outputs.boxes, outputs.context_boxes):
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([120, 90, 120, 90])).all()
    assert not any(x.requires_grad for x in outputs)


@pytest.mark.parametrize("name", TRACED)
def test_real_photographs_score_as_in_pytorch(name, exports, real_data_root):
    predictor, file = exports("both", name)
    run, _ = program.LOAD[name](file)
    photographs = sorted((Path(real_data_root) / "coco" / "val2017").glob("*.jpg"))
    for photograph, scale in zip(photographs, (0.3, 0.45, 0.6)):
        image = cv2.resize(cv2.imread(str(photograph)), None, fx=scale, fy=scale)
        difference = output_difference(pytorch_run(predictor.model)(image), run(image))
        assert difference.image_scores <= 1e-4
        assert difference.num_paired == difference.num_boxes > 10


@pytest.mark.parametrize("name", TRACED)
def test_an_image_without_boxes_scores_zero(name, exports):
    run, _ = program.LOAD[name](exports("object", name)[1])
    outputs = run(scene((4, 5)))  # no box in it has sides above 5
    assert outputs.image_scores.tolist() == [0] * 14
    assert [tuple(x.shape) for x in outputs[1:4]] == [(0, 4), (0, 14), (0, 4)]
    assert all(x.shape == (14, 4) and x.isnan().all() for x in outputs[4:])


@pytest.mark.parametrize("method", ["max", "topk_mean", "noisy_or", "logsumexp"])
def test_aggregation_does_not_freeze_the_number_of_boxes(method):
    aggregator = LabelAggregator(small_config("MODEL.SCNET.AGGREGATION.METHOD", method))
    with formats._tracing():
        traced = torch.jit.trace(aggregator, torch.rand(5, 3), check_trace=False)
    for num_boxes in (0, 1, 2, 40):
        scores = torch.rand(num_boxes, 3)
        torch.testing.assert_close(traced(scores), aggregator(scores))


@pytest.mark.parametrize("name", PACKAGES)
def test_every_file_says_what_goes_in_and_comes_out(name, exports):
    metadata = program.LOAD[name](exports("object", name)[1])[1]
    assert metadata.pop("version")
    assert metadata == {
        "class_names": list(CLASSES), "thresholds": [0.5] * 14, "input_format": "BGR",
        "min_size": 120, "max_size": 160,
    }  # fmt: skip


def test_a_safetensors_file_is_a_model_and_a_checkpoint(exports):
    predictor, file = exports("both", "safetensors")
    cfg = predictor.cfg.clone()
    cfg.MODEL.WEIGHTS = str(file)
    expected = pytorch_run(predictor.model)(scene())
    for run in (program.LOAD["safetensors"](file)[0], pytorch_run(SCNetPredictor(cfg).model)):
        assert all(torch.equal(a, b) for a, b in zip(expected, run(scene()), strict=True))


def test_boxes_that_change_places_are_no_difference_and_a_missing_one_is_counted():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20.0, 0, 30, 10], [50.0, 50, 60, 60]])
    scores = torch.tensor([[0.1], [0.2], [0.3]])
    expected = Outputs(torch.tensor([0.3]), boxes, scores, boxes, boxes[2:], boxes[2:])
    other = torch.tensor([[20.5, 0, 30, 10], [0.0, 0, 10, 10], [50.0, 55, 60, 60]])
    actual = Outputs(torch.tensor([0.2]), other, scores[[1, 0, 2]], other, other[2:], other[2:])
    difference = output_difference(expected, actual)
    assert difference.image_scores == pytest.approx(0.1)
    assert (difference.num_boxes, difference.num_paired) == (3, 2)
    assert (difference.boxes, difference.label_scores, difference.context_boxes) == (0.5, 0, 0.5)


def test_outputs_without_boxes_are_compared():
    box, nan = torch.zeros(1, 4), torch.full((1, 4), torch.nan)
    none = Outputs(torch.zeros(1), box[:0], torch.zeros(0, 1), box[:0], nan, nan)
    one = Outputs(torch.ones(1), box, torch.zeros(1, 1), box, box, box)
    assert output_difference(none, none) == (0, 0, 0, 0, 0, 0)
    assert output_difference(one, none)[:3] == output_difference(none, one)[:3] == (1, 1, 0)


@pytest.mark.parametrize("name", PACKAGES)
def test_other_models_are_refused(name):
    stranger = Namespace(model=torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match="META_ARCHITECTURE is Linear: SCNet alone"):
        export_file(stranger, name, Path("nowhere"))


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'scnet_d2\[export\]'"):
        program.EXPORT["onnx"](None, "nowhere")


def test_the_program_prints_differences_and_keeps_a_file_from_being_lost(tmp_path, capsys):
    predictor = make_predictor(tmp_path, "MODEL.RPN.POST_NMS_TOPK_TEST", 50)
    config, photograph, output = (tmp_path / x for x in ("config.yaml", "photo.png", "model.pt"))
    config.write_text(predictor.cfg.dump())
    cv2.imwrite(str(photograph), scene((90, 120)))
    weights = ("--weights", predictor.cfg.MODEL.WEIGHTS)
    command = ["--config-file", config, *weights, "--format", "torchscript", "--output", output]
    command = ["export", *command, "--check", photograph]

    assert scnet(*command) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"photo\.png +(\d+ x \d+) +0\.0e\+00 +(\d+) of \2 ", printed) == [
        ("90 x 120", "50"), ("120 x 160", "50"), ("150 x 200", "50"),
    ]  # fmt: skip

    before, files = output.stat(), set(tmp_path.iterdir())
    assert scnet(*command) == 2
    assert "there already" in capsys.readouterr().err
    assert scnet(*command, "--overwrite", "--tolerance", -1) == 1
    assert "Not kept: image scores differ" in capsys.readouterr().err
    assert output.stat() == before
    assert set(tmp_path.iterdir()) == files


def test_scores_that_are_no_numbers_are_called_so():
    row = ("a.jpg", "8 x 8", Difference(math.nan, 1, 1, 0, 0, 0))
    with pytest.raises(program.NotEqualError, match=r"scores are nan: the weights may .* diverged"):
        program.require_equal([row], 1e-4)


def test_a_folder_stands_for_the_photographs_in_it(tmp_path):
    for name in ("b.png", "a.png"):
        cv2.imwrite(str(tmp_path / name), scene((30, 40)))
    (tmp_path / "notes.txt").touch()
    assert [n for n, _ in program.check_images([str(tmp_path)], "BGR")] == ["a.png", "b.png"]


def test_safetensors_under_another_name_is_refused(capsys):
    command = ["export", "--config-file", "c", "--format", "safetensors", "--output", "model.st"]
    assert scnet(*command) == 2
    assert "the checkpointer knows the format by .safetensors" in capsys.readouterr().err


def test_the_example_of_the_documentation_prints_the_predictors_labels(
    exports, tmp_path, monkeypatch, capsys
):
    predictor, file = exports("both", "onnx")
    (tmp_path / "scnet.onnx").symlink_to(file)
    cv2.imwrite(str(tmp_path / "photo.jpg"), scene((300, 400)))
    labels = describe_labels(predictor(cv2.imread(str(tmp_path / "photo.jpg"))), CLASSES)
    expected = {x["label"]: x["score"] for x in labels if x["score"] >= 0.5}
    assert 0 < len(expected) < 14

    page = (REPO / "docs" / "deploy.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "deploy.md", "exec"), {})
    printed = re.findall(r"^(.+) (\d\.\d{4}) \[", capsys.readouterr().out, flags=re.MULTILINE)
    assert {k: float(v) for k, v in printed} == pytest.approx(expected, abs=2e-4)
