"""Faults of images, configs, weights, predictions, outputs and names: rows of docs/reliability.md.

Rows whose behaviour another file tests are not repeated here.
"""

import argparse
import importlib
import json
import logging
import os
import pickle
import re
import struct
import sys
import zlib
from pathlib import Path
from unittest import mock

from scnet_d2 import ConfigError, load_config
from scnet_d2.checkpoint import CheckpointError, SCNetCheckpointer
from scnet_d2.cli import demo, train
from scnet_d2.data import (
    DatasetError,
    ImageError,
    MultiLabelDatasetMapper,
    read_image,
    register_coco_multilabel,
)
from scnet_d2.data.images import image_size
from scnet_d2.data.voc import load_voc_multilabel
from scnet_d2.engine import Trainer, check_evaluation_data, class_names, unreadable
from scnet_d2.engine.checks import warn_of_leaks
from scnet_d2.engine.unreadable import CountUnreadable, UnreadableImage
from scnet_d2.evaluation import MultiLabelEvaluator
from scnet_d2.inference import SCNetPredictor
from scnet_d2.outputs import new_file, new_folder
from scnet_d2.report.page import write_html_report

import cv2
import numpy as np
import pytest
import torch
from conftest import REPO, scnet, small_config
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from PIL import Image
from torch import nn

CONFIG = REPO / "configs/quick_schedules/scnet_R_18_FPN_instant_test.yaml"
ODD_NAMES = ["$\\frac$ & <b>'q\"</b>", "a/../b", "ça va 猫", "a,b;c", "=1+1", "x" * 300]
NO_GLYPHS = pytest.mark.filterwarnings("ignore:Glyph .* missing from font")


# --- images --------------------------------------------------------------------------------------


def save(image, path, **options):
    image.save(path, **options)
    return str(path)


def mapped(file_name, *, is_train=False, **record):
    """What the mapper makes of an image with one box."""
    cfg = small_config("INPUT.RANDOM_FLIP", "none")
    box = {"bbox": [0, 0, 1, 1], "bbox_mode": 0, "category_id": 0, "iscrowd": 0}
    record = {"file_name": file_name, "image_id": 1, "annotations": [box]} | record
    return MultiLabelDatasetMapper(cfg, is_train=is_train)(record)


def bgr(file_name):
    """The one colour of a mapped image."""
    image = mapped(file_name)["image"]
    assert image.dtype == torch.uint8 and len(image.flatten(1).unique(dim=1).T) == 1
    return image[:, 0, 0].tolist()


def test_a_png_named_jpg_is_read_by_what_it_holds(tmp_path):
    file = save(Image.new("RGB", (30, 20), (1, 2, 3)), tmp_path / "a.jpg", format="PNG")
    assert bgr(file) == [3, 2, 1]


@pytest.mark.parametrize(
    ("mode", "color", "end", "expected"),
    [
        ("L", 100, "png", [100, 100, 100]),
        ("1", 1, "png", [255, 255, 255]),
        ("LA", (100, 50), "png", [100, 100, 100]),
        ("RGBA", (1, 2, 3, 50), "png", [3, 2, 1]),
        ("CMYK", (0, 255, 255, 0), "jpg", [0, 0, 255]),  # yellow and magenta ink give red
    ],
)
def test_every_kind_of_8_bit_image_becomes_bgr(tmp_path, mode, color, end, expected):
    assert bgr(save(Image.new(mode, (30, 20), color), tmp_path / f"a.{end}")) == expected


def test_colours_of_16_bits_keep_their_high_bytes(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((20, 30, 3), 0xAB12, np.uint16))
    assert bgr(str(tmp_path / "a.png")) == [0xAB] * 3


@pytest.mark.parametrize(
    ("kind", "end"), [("uint16", "png"), ("uint16", "tif"), ("float32", "tif")]
)
def test_grey_of_more_than_8_bits_is_refused_because_it_would_turn_white(tmp_path, kind, end):
    values = np.linspace(0, 65535, 600).reshape(20, 30).astype(kind)
    file = save(Image.fromarray(values), tmp_path / f"deep.{end}")
    with pytest.raises(
        ImageError, match=rf"deep\.{end}' has more than 8 bits .*scale it to 8 bits"
    ):
        mapped(file)


def rotated(path):
    """An image stored as 30 x 20 that its EXIF data turn by 90 degrees."""
    exif = Image.Exif()
    exif[274] = 6
    return save(Image.new("RGB", (30, 20)), path, exif=exif)


def test_an_image_turned_by_exif_data_is_used_as_it_is_shown(tmp_path):
    file = rotated(tmp_path / "a.jpg")
    assert image_size(file) == (30, 20)
    image = mapped(file, height=30, width=20)["image"]
    assert image.shape[1] > image.shape[2]


def test_an_image_annotated_before_it_is_turned_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"turned\.jpg.*rotated by its EXIF data, annotate"):
        mapped(rotated(tmp_path / "turned.jpg"), height=20, width=30)


@pytest.mark.parametrize("size", [(1, 1), (20_000, 200)])
def test_a_pixel_and_a_panorama_train_and_predict(tmp_path, size):
    file = save(Image.new("RGB", size, (9, 8, 7)), tmp_path / "a.png")
    model = build_model(small_config("MODEL.RPN.POST_NMS_TOPK_TEST", 5))
    inputs = [mapped(file, is_train=True, width=size[0], height=size[1])]
    with EventStorage():
        losses = model.train()(inputs)
    assert all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        output = model.eval()(inputs)[0]
    assert output["image_scores"].isfinite().all()
    assert output["instances"].image_size == size[::-1]


def test_a_strip_that_resizing_would_leave_nothing_of_is_named(tmp_path):
    file = save(Image.new("RGB", (3000, 1)), tmp_path / "strip.png")
    with pytest.raises(ImageError, match=r"strip\.png' is a strip of 3000 x 1.*cut it"):
        mapped(file)


def bomb(path, side=60_000):
    """A PNG of a few bytes that says it has `side` x `side` pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return str(path)


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match=r"bomb\.png' is too large .*3600000000 pixels.* scale it"):
        mapped(bomb(tmp_path / "bomb.png"))


def test_a_file_for_which_pil_would_start_a_program_is_refused(tmp_path):
    (tmp_path / "eps.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    assert Image.open(tmp_path / "eps.jpg").format == "EPS"
    with pytest.raises(ImageError, match=r"eps\.jpg' cannot be read"):
        mapped(str(tmp_path / "eps.jpg"))


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_a_heif_photograph_named_jpg_is_called_so(tmp_path, brand):
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(60))
    with pytest.raises(ImageError, match=r"a\.jpg' cannot be read: it is a HEIF .*to JPEG\.$"):
        mapped(str(tmp_path / "a.jpg"))


@pytest.mark.parametrize("shape", [(0, 0, 3), (1, 3000, 3)])
def test_the_predictor_names_the_size_of_an_unusable_array(random_model, shape):
    with pytest.raises(ValueError, match=f"{shape[1]} x {shape[0]} pixels is empty or narrower"):
        SCNetPredictor(random_model)(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, r"got None, as cv2\.imread gives for a file that it cannot read"),
        ("a.jpg", r"got the path 'a\.jpg': read the file with cv2\.imread first"),
        (Path("a.jpg"), r"got the path 'a\.jpg': read the file with cv2\.imread first"),
        (["a.jpg"], r"got the path 'a\.jpg': read the file with cv2\.imread first"),
        (Image.new("RGB", (8, 8)), r"a PIL image: .*np\.asarray\(image\.convert\('RGB'\)\)"),
        ([torch.zeros(3, 8, 8)], r"got Tensor: convert it to a NumPy array"),
    ],
)
def test_the_predictor_says_how_to_make_an_array_of_what_is_none(random_model, image, message):
    with pytest.raises(ValueError, match=rf"expected an \(H, W, 3\) uint8 BGR image, .*{message}"):
        SCNetPredictor(random_model)(image)


# --- evaluation ----------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path):
    """Four images, of which the last is truncated: cat, dog, cat, cat."""
    json_file = write_coco(tmp_path, [f"{i}.png" for i in range(4)], [0, 1, 0, 0])
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    for i in range(4):
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
    truncated = tmp_path / "3.png"
    truncated.write_bytes(truncated.read_bytes()[:2000])
    register_coco_multilabel("faulty", json_file, tmp_path)
    yield "faulty"
    DatasetCatalog.remove("faulty")
    MetadataCatalog.remove("faulty")


def write_coco(folder, file_names, labels=(), classes=("cat", "dog")):
    images = [
        {"id": i, "file_name": name, "height": 40, "width": 60} for i, name in enumerate(file_names)
    ]
    annotations = [
        {"image_id": i, "category_id": c, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
        for i, c in enumerate(labels)
    ]
    for i, annotation in enumerate(annotations):
        annotation["id"] = i + 1  # pycocotools takes 0 for no object
    categories = [{"id": i, "name": name} for i, name in enumerate(classes)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "a.json").write_text(json.dumps(content))
    return str(folder / "a.json")


class Oracle(nn.Module):
    """Scores the labels of an image 0.9 and others 0.1."""

    def forward(self, batched_inputs):
        for x in batched_inputs:
            assert x["image"].dtype == torch.uint8
        scores = [[0.9 if c in x["image_labels"] else 0.1 for c in (0, 1)] for x in batched_inputs]
        return [{"image_scores": torch.tensor(s)} for s in scores]


def evaluation_config(dataset, output, *opts):
    return small_config(
        "DATASETS.TEST", (dataset,), "DATASETS.VAL", (), "OUTPUT_DIR", str(output),
        "MODEL.ROI_HEADS.NUM_CLASSES", 2, "DATALOADER.NUM_WORKERS", 0,
        "DATALOADER.MAX_BAD_IMAGES", 0.25, *opts,
    )  # fmt: skip


def test_an_unreadable_image_scores_zero_and_is_counted_with_the_metrics(dataset, tmp_path, caplog):
    # cat: 0.9 0.1 0.9 0 for + - + +, AP (1 + 1 + 3/4) / 3; dog: 1. Of 4 labels 3 are found.
    with caplog.at_level(logging.WARNING):
        results = Trainer.test(evaluation_config(dataset, tmp_path / "run"), Oracle())["multilabel"]
    assert results["mAP"] == pytest.approx(100 * (2.75 / 3 + 1) / 2)
    assert (results["OP"], results["OR"]) == pytest.approx((100, 75))
    assert results["unreadable_images"] == 1
    assert "1 of the 4 images of faulty could not be used" in caplog.text
    assert f"image '{tmp_path}/3.png' cannot be read" in caplog.text
    with np.load(tmp_path / "run/inference/faulty/multilabel_scores.npz") as saved:
        assert saved["unreadable"].tolist() == [False, False, False, True]
        np.testing.assert_allclose(saved["scores"][2:], [[0.9, 0.1], [0, 0]])


def test_tools_and_report_say_that_images_were_unreadable(dataset, tmp_path, caplog):
    Trainer.test(evaluation_config(dataset, tmp_path / "run"), Oracle())
    scores = tmp_path / "run/inference/faulty/multilabel_scores.npz"
    assert scnet("scores", scores) == 0
    assert f"{scores}: 1 image could not be read" in caplog.text
    assert "1 image could not be read" in write_html_report(tmp_path / "run").read_text()


def test_detection_ap_counts_an_unreadable_image_as_without_detections(dataset, tmp_path):
    class Detector(Oracle):
        def forward(self, batched_inputs):
            outputs = super().forward(batched_inputs)
            for x, output in zip(batched_inputs, outputs):
                output["instances"] = Instances(
                    (40, 60), pred_boxes=Boxes(torch.tensor([[1.0, 1, 10, 10]])),
                    scores=torch.ones(1), pred_classes=torch.tensor(x["image_labels"]),
                )  # fmt: skip
            return outputs

    cfg = evaluation_config(dataset, tmp_path / "run", "TEST.DETECTION_AP", True)
    # dog 100; cat: two of three objects are found, the precision is 1 up to recall 2/3: of
    # COCO's 101 recall points 67 (0 to 0.66) are reached
    assert Trainer.test(cfg, Detector())["bbox"]["AP"] == pytest.approx((100 + 100 * 67 / 101) / 2)


@pytest.mark.parametrize("key", ["bbox", "category_id"])
def test_detection_ap_refuses_a_json_that_its_evaluator_would_pass_over(dataset, tmp_path, key):
    json_file = MetadataCatalog.get(dataset).json_file
    content = json.loads(Path(json_file).read_text())
    annotation = content["annotations"][0]
    annotation["segmentation"] = [[1, 1, 9, 1, 9, 9]]
    annotation[key] = {"bbox": [], "category_id": str(annotation["category_id"])}[key]
    Path(json_file).write_text(json.dumps(content))
    cfg = evaluation_config(dataset, tmp_path / "run", "TEST.DETECTION_AP", True)
    with pytest.raises(DatasetError, match=r"has no bbox, or an id of another .*DETECTION_AP"):
        Trainer.test(cfg, Oracle())


def test_too_many_unreadable_images_stop_the_evaluation(dataset, tmp_path):
    (tmp_path / "0.png").write_bytes(b"")
    cfg = evaluation_config(dataset, tmp_path / "run")
    with pytest.raises(DatasetError, match=r"2 of 4 images .*MAX_BAD_IMAGES 0\.25: .*3\.png"):
        Trainer.test(cfg, Oracle())


def test_bad_images_of_several_processes_are_added_up(monkeypatch):
    bad = UnreadableImage({"image_id": 1}, unreadable="a.png is bad")
    loader = CountUnreadable([[bad], [{"image_id": 2}]], num_images=4, max_bad_images=0.25)
    assert len(list(loader)) == 2
    monkeypatch.setattr(unreadable.comm, "all_gather", lambda found: [found, ["b.png is bad"]])
    with pytest.raises(DatasetError, match=r"2 of 4 images .* 0\.25: b\.png is bad"):
        list(loader)


def test_the_share_of_bad_images_is_not_rounded_up(dataset, tmp_path):
    cfg = evaluation_config(dataset, tmp_path / "run", "DATALOADER.MAX_BAD_IMAGES", 0.24)
    check_evaluation_data(cfg)
    with pytest.raises(DatasetError, match=r"1 of 4 images cannot be used .*3\.png"):
        Trainer.test(cfg, Oracle())
    (tmp_path / "0.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of its 4 image files does not exist"):
        check_evaluation_data(cfg)


def test_absent_images_stop_before_training_or_evaluation(dataset, tmp_path):
    for i in (0, 1):
        (tmp_path / f"{i}.png").unlink()
    cfg = evaluation_config(dataset, tmp_path / "run")
    absent = r"faulty: 2 of its 4 image files .*first '.*0\.png'"
    with pytest.raises(DatasetError, match=absent):
        check_evaluation_data(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = cfg.DATASETS.TEST, ()
    with pytest.raises(DatasetError, match=absent):
        Trainer(cfg)


def test_other_programs_that_ask_for_an_unreadable_image_get_the_error():
    image = pickle.loads(pickle.dumps(UnreadableImage({"image_id": 1}, unreadable="a.png is bad")))
    with pytest.raises(ImageError, match=r"a\.png is bad"):
        image["image"]
    with pytest.raises(KeyError, match="instances"):
        image["instances"]


def test_two_different_predictions_of_an_image_are_refused(dataset):
    evaluator = MultiLabelEvaluator(dataset)
    dicts = DatasetCatalog.get(dataset)
    for score in (0.5, 0.52, 0.9):
        output = {"image_scores": torch.tensor([score, 0.1])}
        evaluator.process(dicts[1:2], [output])
    with pytest.raises(ValueError, match=r"image_id 1 of faulty has two .* differ by 0\.40"):
        evaluator.evaluate()


# --- config --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("SOLVER.MAX_ITERS", 3), r"no key SOLVER\.MAX_ITERS; did you mean SOLVER\.MAX_ITER\?"),
        (("NO.SUCH", 3), r"no key NO\.SUCH; Detectron2's defaults\.py and scnet_d2/config\.py"),
        (("SOLVER.MAX_ITER",), r"key SOLVER\.MAX_ITER has no value"),
        (("SOLVER.MAX_ITER", "many"), r"SOLVER\.MAX_ITER takes a value of type int, not str"),
        (("SOLVER.BASE_LR", 1), r"SOLVER\.BASE_LR takes a value of type float.*with a point"),
        (("MODEL.SCNET", 1), r"MODEL\.SCNET takes a value of type CfgNode"),
        (("SOLVER.MAX_ITER", "1e4"), r"type int, not float; write a whole number"),
        (("DATASETS.TRAIN", "mine"), r"type tuple, not str; write \('mine',\)"),
        (("SOLVER.STEPS", "(30000)"), r"type tuple, not int; write \(30000,\)"),
        (("SOLVER.MAX_ITER=9",), r"write a space for the = of SOLVER\.MAX_ITER=9: KEY VALUE"),
        (("datasets.train", "x"), r"no key datasets\.train; did you mean DATASETS\.TRAIN\?"),
        (("OUTPUT_DIR", "x", "--resume"), r"--resume .* options stand before config keys"),
        (("OUTPUT_DIR", "x", "--num-gpus", "2"), r"--num-gpus stands after OUTPUT_DIR; options"),
    ],
)
def test_a_wrong_key_or_value_on_the_command_line_is_named(opts, message):
    with pytest.raises(ConfigError, match=f"^command line: .*{message}"):
        load_config(CONFIG, opts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "MODEL: {SCNET: {CONTEXT: {EXPANSION: 2.0}}}",
            r"no key MODEL\.SCNET\.CONTEXT\.EXPANSION; did you mean .*EXPANSION_RATIO",
        ),
        ("SOLVER: {MAX_ITER: many}", "SOLVER.MAX_ITER takes a value of type int"),
        ("MODEL: [a", "line 1, column 8"),
        ("MODEL:", "not a config"),
        ("[1, 2]", "not a config"),
        ("", "not a config"),
        ("_BASE_: none.yaml", r"No such file .*none\.yaml"),
        ("_BASE_: a.yaml", "not a config .*recursion"),
    ],
)
def test_a_faulty_config_file_is_named_with_its_fault(tmp_path, content, message):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(ConfigError, match=rf"config file '{tmp_path}/a\.yaml': .*{message}"):
        load_config(tmp_path / "a.yaml")


def test_the_home_folder_in_a_config_file_is_the_user_s(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/mine")
    keys = "OUTPUT_DIR: ~/runs\nMODEL: {WEIGHTS: ~/w.pth}\nTEST: {LABEL_THRESHOLDS: ~/t.json}"
    (tmp_path / "a.yaml").write_text(keys)
    cfg = load_config(tmp_path / "a.yaml")
    paths = cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS, cfg.TEST.LABEL_THRESHOLDS
    assert paths == ("/home/mine/runs", "/home/mine/w.pth", "/home/mine/t.json")


@pytest.mark.parametrize("name", ["", "none.yaml"])
def test_an_absent_config_file_is_named(name):
    with pytest.raises(ConfigError, match=f"config file '{name}': .*does not exist"):
        load_config(name)


def test_code_in_a_config_file_does_not_run(tmp_path):
    touched, file = tmp_path / "touched", tmp_path / "config.yaml"
    file.write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{touched}']")
    with pytest.raises(ConfigError, match=r"config\.yaml': refused, .*os\.mkdir"):
        load_config(file)
    assert not touched.exists()
    small_config().merge_from_file(str(file))
    assert touched.exists()  # Detectron2's own way of reading it does run it


# An aggregation's key is looked at where the aggregation is chosen.
METHODS = {
    "AGGREGATION.TOPK": ("MODEL.SCNET.AGGREGATION.METHOD", "topk_mean"),
    "AGGREGATION.SHARPNESS": ("MODEL.SCNET.AGGREGATION.METHOD", "logsumexp"),
}


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("CONTEXT.EXPANSION_RATIO", (0.5, 0.0, -1.0, float("nan"), float("inf"))),
        ("CONTEXT.LABEL_COVERAGE", (0.0, 1.5)),
        ("OBJECT.LABEL_IOU", (-1.0, 1.5)),
        ("OBJECT.LOCATION_CONV_DIM", (-32, 20)),
        ("AGGREGATION.TOPK", (0,)),
        ("AGGREGATION.SHARPNESS", (0.0,)),
        ("CANONICAL_BOX_SIZE", (0,)),
    ],
)
def test_a_value_out_of_range_is_named_when_the_model_is_built(key, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"^MODEL\.SCNET\.{key} is {value}; it must be "):
            build_model(small_config(f"MODEL.SCNET.{key}", value, *METHODS.get(key, ())))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("TEST.LABEL_THRESHOLD", 50.0), r"TEST\.LABEL_THRESHOLD is 50\.0, not in \[0, 1\]"),
        (("TEST.LABEL_THRESHOLDS", "none.json"), r"none\.json"),
        (("TEST.LABEL_TOP_K", 0), r"TEST\.LABEL_TOP_K is 0; set it to at least 1"),
    ],
)
def test_metrics_that_cannot_be_computed_stop_before_training(dataset, opts, message):
    with pytest.raises((ValueError, OSError), match=message):
        check_evaluation_data(evaluation_config(dataset, "none", *opts))


def test_evaluation_data_without_any_label_stop_before_training(dataset, tmp_path):
    write_coco(tmp_path, [f"{i}.png" for i in range(4)])
    with pytest.raises(ValueError, match="faulty: no image has a label; there is nothing to eval"):
        check_evaluation_data(evaluation_config(dataset, "none"))


def test_an_unknown_data_set_is_named_with_the_nearest_known_one():
    with pytest.raises(DatasetError, match=r"'voc_2007_tset'\. Did you mean voc_2007_test\?"):
        class_names("voc_2007_tset")
    with pytest.raises(DatasetError, match=r"'mine'.*--register-coco NAME JSON IMAGE_ROOT"):
        class_names("mine")


@pytest.mark.parametrize("content", ["[1]", "MODEL: 3", "a: [", "\0"])
def test_a_broken_config_beside_the_weights_is_named(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    (tmp_path / "w.pth").touch()
    cfg = small_config("MODEL.WEIGHTS", str(tmp_path / "w.pth"))
    with pytest.raises(ConfigError, match=r"config\.yaml' is no config of a run .*remove it"):
        warn_of_leaks(cfg)


# --- weights -------------------------------------------------------------------------------------


def test_weights_of_another_class_count_start_training_and_are_refused_in_evaluation(tmp_path):
    weights = str(tmp_path / "14_classes.pth")
    torch.save({"model": build_model(small_config()).state_dict()}, weights)
    model = build_model(small_config("MODEL.ROI_HEADS.NUM_CLASSES", 5))
    start = SCNetCheckpointer(model)
    start.load(weights)
    assert {name.split(".")[2] for name in start.report.wrong_shape} == {"label_predictor"}
    with pytest.raises(
        CheckpointError, match=r"14_classes\.pth holds 14 classes, the config has 5"
    ):
        SCNetCheckpointer(model, require_all=True).load(weights)


def test_a_score_file_with_pickled_objects_is_refused(tmp_path, capsys):
    file = tmp_path / "scores.npz"
    np.savez(file, scores=np.array([{"an": "object"}]), labels=np.zeros((1, 1), bool))
    assert scnet("scores", file) == 2
    assert "allow_pickle=False" in capsys.readouterr().err


# --- outputs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["last_checkpoint", "metrics.json", "model_final.pth", "w.pkl"])
def test_training_refuses_a_folder_in_which_a_run_left_anything(tmp_path, left):
    (tmp_path / left).write_text("of another run")
    args = argparse.Namespace(
        config_file=str(CONFIG), opts=["OUTPUT_DIR", str(tmp_path)], resume=False, eval_only=False
    )
    with pytest.raises(FileExistsError, match="holds another run, or weights; continue a run with"):
        train.setup(args)
    assert [p.name for p in tmp_path.iterdir()] == [left]
    assert (tmp_path / left).read_text() == "of another run"


def test_a_new_file_is_one_that_is_not_there_in_a_folder_that_is(tmp_path):
    (tmp_path / "old").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    assert new_file(str(tmp_path / "new.json")) == tmp_path / "new.json"
    for name in ("old", "link", "."):
        with pytest.raises(argparse.ArgumentTypeError, match="there already: name another"):
            new_file(str(tmp_path / name))
    with pytest.raises(argparse.ArgumentTypeError, match="no folder that can be written to"):
        new_file(str(tmp_path / "absent" / "new.json"))


def test_a_new_folder_is_absent_or_empty(tmp_path):
    (tmp_path / "full" / "empty").mkdir(parents=True)
    for name in ("new", "new/deep", "full/empty"):
        assert new_folder(str(tmp_path / name)) == tmp_path / name
    with pytest.raises(argparse.ArgumentTypeError, match="full is not empty"):
        new_folder(str(tmp_path / "full"))


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("scnet", "tune val.npz --output mine.json"),
        ("compare_fusion", "run --dataset d --output mine.json"),
        ("occlusion_test", "run --dataset d --classes cat --output mine.json"),
        ("box_budget", "run --dataset d --output mine.json"),
        ("label_relations", "run --dataset d --output mine.json"),
        ("correct_localization", "run --dataset d --output mine.json"),
        ("context_ratios", "scores.npz --output mine.json"),
        ("scene_pictures", "results/plan.yaml a b mine.png"),
        ("evidence", "--results . --images plots"),
        ("evidence", "--results results --images ."),
        ("evidence", "--results . --objects d"),
        ("scnet", "report run --output mine.json"),
        ("scnet", "report ."),
        ("scnet", "export --config-file c --format onnx --output mine.json"),
        ("scnet", "convert in.pth --output mine.pth"),
        ("scnet_d2.data.context_scenes.__main__", "--root data --contact-sheet mine.png"),
        ("scnet", "demo --config-file c a.jpg --output mine.json"),
    ],
)
def test_programs_refuse_to_write_over_a_file_before_they_work(
    tmp_path, monkeypatch, capsys, program, command
):
    names = ("mine.json", "mine.pth", "mine.png", "evidence.json", "d-objects.npz", "plan.png")
    for name in (*names, "report.html"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "results").mkdir()
    for plan in ("plan.yaml", "results/plan.yaml"):
        (tmp_path / plan).touch()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [program, *command.split()])
    module = importlib.import_module("scnet_command" if program == "scnet" else program)
    with pytest.raises(SystemExit):
        module.main()
    assert re.search(r" is (there already|not empty)", capsys.readouterr().err)
    assert sorted(tmp_path.rglob("*")) == before
    assert all((tmp_path / name).read_text() == "mine" for name in (*names, "report.html"))


def test_a_report_replaces_a_report_and_nothing_else(tmp_path):
    folder = tmp_path / "inference" / "made_val"
    folder.mkdir(parents=True)
    np.savez(
        folder / "multilabel_scores.npz", file_names=["a.png"], class_names=["cat"],
        scores=np.ones((1, 1), np.float32), labels=[[True]], ignored=[[False]],
    )  # fmt: skip
    path = write_html_report(tmp_path)
    assert write_html_report(tmp_path) == path
    path.write_text("my thesis")
    with pytest.raises(FileExistsError, match=r"report\.html .*is no report: name another file"):
        write_html_report(tmp_path)
    assert path.read_text() == "my thesis"


# --- names ---------------------------------------------------------------------------------------


@pytest.fixture
def load_named(tmp_path):
    """Loads a COCO json whose one image, or whose classes, have these names."""

    def load(file_name="a.png", classes=("cat",)):
        root = tmp_path / "images"
        root.mkdir(exist_ok=True)
        json_file = write_coco(tmp_path, [file_name], [0], classes)
        register_coco_multilabel("named", json_file, root)
        return DatasetCatalog.get("named")

    yield load
    DatasetCatalog.pop("named", None)
    MetadataCatalog.pop("named", None)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a/../../b.png", "..", "../images_b/x.png"]
)
def test_a_file_name_that_leads_out_of_the_image_folder_is_refused(load_named, name):
    with pytest.raises(DatasetError, match=rf"a\.json: image 0: '{name}' leads out of .*images'"):
        load_named(name)


@pytest.mark.parametrize("name", ["a/b.png", "a/../b.png", "a..b.png", "{}/images/b.png"])
def test_a_file_name_inside_the_image_folder_is_taken(load_named, tmp_path, name):
    (record,) = load_named(name.format(tmp_path))
    path = os.path.normpath(record["file_name"])
    assert os.path.dirname(path).startswith(str(tmp_path / "images"))


@pytest.mark.parametrize("image_id", ["../../../etc/passwd", "/etc/passwd"])
def test_an_image_id_that_leads_out_of_a_voc_folder_is_refused(tmp_path, image_id):
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text(f"{image_id}\n")
    with pytest.raises(DatasetError, match=rf"mine: image list: '{image_id}\.jpg' leads out of"):
        load_voc_multilabel(str(tmp_path), "train", "mine")


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\x1b[2Jcat", "a\0"])
def test_a_class_name_that_cannot_be_printed_is_refused(load_named, name):
    with pytest.raises(DatasetError, match=r"a\.json: the class name .*rename it"):
        load_named(classes=("cat", name))


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", ".."])
def test_a_data_set_name_that_is_a_path_is_refused(name):
    with pytest.raises(DatasetError, match="is a path; name the data set without"):
        register_coco_multilabel(name, "a.json", "images")
    assert name not in DatasetCatalog


@pytest.fixture
def random_model(tmp_path):
    """Config of a model with random weights whose classes have odd names."""
    classes = ("MODEL.ROI_HEADS.NUM_CLASSES", len(ODD_NAMES), "DATASETS.CLASS_NAMES", ODD_NAMES)
    cfg = small_config(*classes, "MODEL.RPN.POST_NMS_TOPK_TEST", 5, "DATASETS.TEST", ())
    cfg.MODEL.WEIGHTS = str(tmp_path / "w.pth")
    torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    return cfg


def label(cfg, folder, files, *options):
    """Exit status of the demo and the lines that it wrote."""
    (folder / "config.yaml").write_text(cfg.dump())
    out = folder / "out"
    options += ("--config-file", folder / "config.yaml", "--output", out, "--threshold", 0)
    status = scnet("demo", *files, *options)
    lines = (out / "labels.jsonl").read_text() if status < 2 else ""
    return status, [json.loads(s) for s in lines.splitlines()]


@NO_GLYPHS
def test_odd_class_and_file_names_are_drawn_and_written(random_model, tmp_path):
    names = ["a[1].png", "a1.png", "x" * 250 + ".png", "b\udcff c.png", "猫.png"]
    files = [os.fsdecode(os.fsencode(tmp_path / name)) for name in names]
    for file in files:
        with open(file, "wb") as f:
            Image.new("RGB", (60, 40)).save(f, "png")
    with mock.patch.object(demo, "optimize_for_inference") as optimize:
        status, lines = label(random_model, tmp_path, files, "--backend", "torch")
    assert status == 0 and optimize.call_args.kwargs == {"backend": "torch"}
    assert [line["file"] for line in lines] == files
    assert {x["label"] for line in lines for x in line["labels"]} == set(ODD_NAMES)
    pictures = sorted(p.name for p in (tmp_path / "out").glob("*.png"))
    assert pictures == [
        "0000_a_1_.png", "0001_a1.png", f"0002_{'x' * 60}.png", "0003_b__c.png", "0004_猫.png"
    ]  # fmt: skip


@NO_GLYPHS
def test_the_demo_labels_the_images_of_a_folder(tmp_path):
    for name in ("b/2.JPG", "a.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = demo.find_files([str(tmp_path), "missing.png"])
    assert list(found) == [f"{tmp_path}/a.png", f"{tmp_path}/b/2.JPG", "missing.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--output a.jpg", "a.jpg is named as a picture: give a folder"),
        ("--output a MODEL.DEVICE cpu", "MODEL.DEVICE cpu; config keys stand after --opts, at the"),
        (
            "--opts MODEL.DEVICE cpu --output a",
            "required: --output; config keys stand after",
        ),
    ],
)
def test_the_demo_says_how_its_arguments_are_written(arguments, message, capsys):
    assert scnet("demo", "--model", "m", "a.jpg", *arguments.split()) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clip.mp4", "is no image, but a video: take frames from it"),
        ("nothere", "does not exist, and its name is not that of an image"),
        ("*.bmp", "no file matches this pattern"),
    ],
)
def test_the_demo_refuses_what_is_no_image_before_it_writes(
    random_model, tmp_path, capsys, name, message
):
    (tmp_path / "clip.mp4").touch()
    assert label(random_model, tmp_path, [str(tmp_path / name)])[0] == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_demo_survives_unusable_images_and_counts_them(random_model, tmp_path):
    good = save(Image.new("RGB", (60, 40)), tmp_path / "good.png")
    strip = save(Image.new("RGB", (3000, 1)), tmp_path / "strip.png")
    absent, folder = str(tmp_path / "absent.png"), str(tmp_path / "empty")
    os.mkdir(folder)
    unusable = [bomb(tmp_path / "bomb.png"), strip, absent, folder]
    status, lines = label(random_model, tmp_path, [*unusable, good])
    assert status == 1
    for file, line in zip(unusable, lines):
        assert f"image '{file}'" in line["error"]
    assert len(lines[4]["labels"]) == len(ODD_NAMES)


def test_the_report_tolerates_a_bomb_among_its_images(tmp_path):
    folder = tmp_path / "inference" / "made_val"
    folder.mkdir(parents=True)
    np.savez(
        folder / "multilabel_scores.npz", file_names=[bomb(tmp_path / "bomb.png")],
        class_names=["cat"], scores=np.ones((1, 1), np.float32), labels=[[True]],
        ignored=[[False]],
    )  # fmt: skip
    assert "1 of the 1 images below were not found" in write_html_report(tmp_path).read_text()
    with pytest.raises(ImageError):
        read_image(str(tmp_path / "bomb.png"))
