"""Checks before hours of training: numbers of classes, and evaluation on images trained on."""

import json
import logging

from scnet_d2 import ConfigError
from scnet_d2.data import DatasetError, register_coco_multilabel
from scnet_d2.data.context_scenes import CLASSES
from scnet_d2.engine import (
    Trainer,
    all_problems,
    check_evaluation_data,
    check_num_classes,
    check_output_dir,
    class_names,
    warn_of_leaks,
)

import pytest
from conftest import small_config
from detectron2.data import DatasetCatalog, MetadataCatalog

ZOO = "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x/139173657/model_final_68b088.pkl"


def leaks(caplog, test, weights="", train=()):
    cfg = small_config("DATASETS.TRAIN", train, "DATASETS.VAL", (), "DATASETS.TEST", test)
    cfg.MODEL.WEIGHTS = str(weights)
    with caplog.at_level(logging.WARNING, logger="scnet_d2"):
        warn_of_leaks(cfg)
    return caplog.messages


@pytest.mark.parametrize(
    "weights",
    [
        f"detectron2://{ZOO}",
        f"https://dl.fbaipublicfiles.com/detectron2/{ZOO}",
        "catalog://Caffe2Detectron/COCO/35857890/e2e_faster_rcnn_R-101-FPN_1x",
    ],
)
def test_zoo_detectors_evaluated_on_val2014_warn_loudly(caplog, weights):
    (message,) = leaks(caplog, ("coco_2014_val_multilabel",), weights)
    assert "THE TEST IMAGES WERE TRAINED ON" in message
    assert "35,500" in message
    assert weights in message


def test_training_on_train2017_warns_of_val2014(caplog):
    train = ("coco_2017_train_multilabel",)
    (message,) = leaks(caplog, ("coco_2014_val_multilabel",), train=train)
    assert "DATASETS.TRAIN of this config has coco_2017_train_multilabel" in message


def test_the_config_beside_the_weights_tells_what_they_were_trained_on(caplog, tmp_path):
    (tmp_path / "config.yaml").write_text(
        f"MODEL:\n  WEIGHTS: detectron2://{ZOO}\nDATASETS:\n  TRAIN: [coco_2014_train_multilabel]\n"
    )
    (tmp_path / "model_final.pth").touch()
    (message,) = leaks(caplog, ("coco_2014_val_multilabel",), tmp_path / "model_final.pth")
    assert str(tmp_path / "config.yaml") in message


def test_the_weights_of_earlier_runs_are_followed(caplog, tmp_path):
    for name, weights in (("first", f"detectron2://{ZOO}"), ("second", "first/model_final.pth")):
        (tmp_path / name).mkdir()
        path = weights if "://" in weights else tmp_path / weights
        (tmp_path / name / "config.yaml").write_text(f"MODEL:\n  WEIGHTS: {path}\n")
        (tmp_path / name / "model_final.pth").touch()
    weights = f"{tmp_path / 'second' / 'model_final.pth'}?matching_heuristics=True"
    (message,) = leaks(caplog, ("coco_2014_val_multilabel",), weights)
    assert str(tmp_path / "first" / "config.yaml") in message


@pytest.mark.parametrize(
    ("test", "weights", "train"),
    [
        ("coco_2014_val_multilabel", "", ("coco_2014_train_multilabel",)),
        ("coco_2014_val_multilabel", "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl", ()),
        ("coco_2017_val_multilabel", f"detectron2://{ZOO}", ("coco_2017_train_multilabel",)),
        ("voc_2007_test_multilabel", f"detectron2://{ZOO}", ("voc_2007_trainval_multilabel",)),
    ],
)
def test_separate_data_do_not_warn(caplog, test, weights, train):
    assert not leaks(caplog, (test,), weights, train)


@pytest.mark.parametrize("name", ["coco_2014_val_multilabel", "voc_2007_test_multilabel"])
def test_absent_evaluation_data_stop_before_training(name, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(DatasetError, match=f"{tmp_path}.*does not exist"):
        check_evaluation_data(small_config("DATASETS.VAL", (), "DATASETS.TEST", (name,)))


def test_the_problems_of_all_data_sets_are_told_before_training_or_evaluation(tmp_path):
    image = {"id": 1, "file_name": "1.png", "width": 8, "height": 6}
    box = {"id": 1, "image_id": 1, "category_id": 5, "bbox": [0, 0, 4, 4]}
    content = {"images": [image], "categories": [{"id": 1, "name": "cat"}]}
    names = [f"{tmp_path.name}_{part}" for part in ("train", "val", "test")]
    for name, boxes in zip(names, ([], [{**box, "category_id": 1}], [box]), strict=True):
        (tmp_path / name).write_text(json.dumps(content | {"annotations": boxes}))
        register_coco_multilabel(name, tmp_path / name, tmp_path)
    cfg = small_config("DATASETS.TRAIN", names[:1], "MODEL.ROI_HEADS.NUM_CLASSES", 1)
    cfg.DATASETS.VAL = names[1:2]
    cfg.DATASETS.TEST = names[2:]
    with pytest.raises(DatasetError, match=r"^3 data sets with problems:") as error:
        Trainer(cfg)
    train, boxes, val, test = error.value.problems
    assert f"{names[0]}: 1 of its 1 image file does not exist" in train
    assert f"{names[0]}: no annotations in 1 image: no training boxes" in boxes
    assert f"{names[1]}: 1 of its 1 image file does not exist" in val
    assert "annotation 1: category_id 5 is not in 'categories'" in test
    assert all(line in str(error.value) for line in (val, test))
    with (
        pytest.raises(DatasetError, match=r"^\S*test: annotation 1: category_id 5"),
        all_problems(cfg, eval_only=True),
    ):
        check_num_classes(cfg, eval_only=True)


def test_an_unknown_data_set_is_told_beside_the_problems_of_others(cats):
    cfg = small_config("DATASETS.TRAIN", (cats, "nowhere"), "DATASETS.VAL", (), "DATASETS.TEST", ())
    with pytest.raises(DatasetError, match="there is no data set 'nowhere'"), all_problems(cfg):
        class_names("nowhere")


def test_three_disagreeing_numbers_of_classes_are_named():
    cfg = small_config("MODEL.ROI_HEADS.NUM_CLASSES", 5, "DATASETS.CLASS_NAMES", ["cat", "dog"])
    with pytest.raises(ValueError, match=r"context_scenes_train has 14 .* model 5; .* has 2\."):
        check_num_classes(cfg)


@pytest.fixture
def cats():
    """A data set of one class."""
    DatasetCatalog.register("checked_cats", list)
    MetadataCatalog.get("checked_cats").thing_classes = ["cat"]
    yield "checked_cats"
    DatasetCatalog.remove("checked_cats")
    MetadataCatalog.remove("checked_cats")


@pytest.mark.parametrize(
    ("eval_only", "names"), [(False, []), (False, list(CLASSES)), (True, list(CLASSES))]
)
def test_a_second_data_set_with_fewer_categories_is_the_one_to_correct(cats, names, eval_only):
    cfg = small_config("DATASETS.TEST", (cats,), "DATASETS.VAL", (), "DATASETS.CLASS_NAMES", names)
    remedy = "a model is evaluated on the classes" if eval_only else "write the same categories"
    message = f"{cats} has 1 class, .* and the model have 14: {remedy}"
    with pytest.raises(ValueError, match=message):
        check_num_classes(cfg, eval_only=eval_only)


def test_class_names_alone_that_disagree_are_an_error():
    with pytest.raises(ValueError, match=r"the model 14; DATASETS\.CLASS_NAMES has 1"):
        check_num_classes(small_config("DATASETS.CLASS_NAMES", ["cat"]))


@pytest.mark.parametrize("key", ["TRAIN", "VAL", "TEST", "CLASS_NAMES"])
def test_a_text_in_the_place_of_names_is_shown_as_it_should_be_written(key):
    cfg = small_config()
    cfg.DATASETS[key] = "mine"
    with pytest.raises(ConfigError, match=rf'^DATASETS\.{key} is a text; write \("mine",\)$'):
        check_num_classes(cfg)


def test_the_same_classes_in_another_order_are_an_error():
    names = [CLASSES[1], CLASSES[0], *CLASSES[2:]]
    with pytest.raises(ValueError, match=f"class 0 is '{CLASSES[0]}' in data set context_scenes"):
        check_num_classes(small_config("DATASETS.CLASS_NAMES", names))


def test_training_sets_of_other_classes_than_each_other_are_an_error():
    for name, classes in (("checked_pets", ["cat", "dog"]), ("checked_dogs", ["dog", "cat"])):
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, list)
            MetadataCatalog.get(name).thing_classes = classes
    both = ("checked_pets", "checked_dogs")
    cfg = small_config("MODEL.ROI_HEADS.NUM_CLASSES", 2, "DATASETS.TRAIN", both)
    message = "class 0 is 'dog' in data set checked_dogs and 'cat' in data set checked_pets"
    with pytest.raises(ValueError, match=message):
        check_num_classes(cfg)


@pytest.mark.parametrize("names", [[], list(CLASSES)])
def test_agreeing_classes_pass(names):
    assert list(MetadataCatalog.get("context_scenes_test").thing_classes) == list(CLASSES)
    check_num_classes(small_config("DATASETS.CLASS_NAMES", names))


def test_an_output_folder_that_cannot_be_written_to_stops_before_training(tmp_path):
    check_output_dir(str(tmp_path / "new"))
    assert list(tmp_path.rglob("*")) == [tmp_path / "new"]
    with pytest.raises(ValueError, match="OUTPUT_DIR /proc/new cannot be written to"):
        check_output_dir("/proc/new")
