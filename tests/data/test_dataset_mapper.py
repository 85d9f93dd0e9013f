"""The dataset mapper: labels, images without boxes and unreadable images."""

import copy
import json
import pickle
from pathlib import Path

from scnet_d2 import add_scnet_config
from scnet_d2.data import (
    DatasetError,
    LabelPolicy,
    MultiLabelDatasetMapper,
    register_coco_multilabel,
)
from scnet_d2.data.labels import label_records

import numpy as np
import pytest
import torch
from conftest import REAL_ROOT, needs_coco_train
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN = (40,)
    cfg.INPUT.MIN_SIZE_TEST = 40
    return cfg


@pytest.fixture
def record(tmp_path):
    """A 30 x 20 image with one plain, one difficult and one crowd object."""
    image_file = tmp_path / "image.png"
    Image.new("RGB", (30, 20), (200, 10, 30)).save(image_file)
    return {
        "file_name": str(image_file),
        "image_id": 1,
        "height": 20,
        "width": 30,
        "annotations": [annotation(2), annotation(4, difficult=1), annotation(0, iscrowd=1)],
        "image_labels": [0, 2],
        "ignored_labels": [4],
    }


def annotation(category_id, **flags):
    box = {"bbox": LEFT, "bbox_mode": BoxMode.XYXY_ABS}
    return {**box, "category_id": category_id, "iscrowd": 0, **flags}


def test_training_output(cfg, record):
    cfg.INPUT.RANDOM_FLIP = "none"
    before = copy.deepcopy(record)
    mapped = MultiLabelDatasetMapper(cfg, is_train=True)(record)
    assert mapped["image"].shape == (3, 40, 60)
    assert mapped["image"].dtype == torch.uint8
    # the difficult object is still an object; the crowd region is not one
    assert mapped["instances"].gt_classes.tolist() == [2, 4]
    assert mapped["instances"].gt_boxes.tensor.tolist() == [[6, 8, 18, 28]] * 2
    assert (mapped["image_labels"], mapped["ignored_labels"]) == ([0, 2], [4])
    assert record == before


def test_flip_moves_boxes_and_not_labels(cfg, record):
    mapper = MultiLabelDatasetMapper(cfg, is_train=True)
    boxes = {tuple(mapper(record)["instances"].gt_boxes.tensor[0].tolist()) for _ in range(30)}
    assert boxes == {(6, 8, 18, 28), (42, 8, 54, 28)}


def test_inference_output_keeps_labels_and_drops_annotations(cfg, record):
    mapped = MultiLabelDatasetMapper(cfg, is_train=False)(record)
    assert (mapped["image_labels"], mapped["ignored_labels"]) == ([0, 2], [4])
    assert "annotations" not in mapped
    assert (mapped["height"], mapped["width"]) == (20, 30)


def test_image_without_boxes_gives_empty_instances(cfg, record):
    record.update(annotations=[], image_labels=[], ignored_labels=[])
    instances = MultiLabelDatasetMapper(cfg, is_train=True)(record)["instances"]
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_boxes.tensor.dtype == torch.float32
    assert instances.gt_classes.shape == (0,)
    assert instances.gt_classes.dtype == torch.int64


def test_labels_are_derived_for_plain_detectron2_data_sets(cfg, record):
    del record["image_labels"], record["ignored_labels"]
    mapped = MultiLabelDatasetMapper(cfg, is_train=False)(record)
    assert (mapped["image_labels"], mapped["ignored_labels"]) == ([0, 2], [4])


def test_derived_labels_follow_the_policy_also_in_another_process(cfg, record):
    del record["image_labels"], record["ignored_labels"]
    add_scnet_config(cfg)
    cfg.merge_from_list(["DATASETS.DIFFICULT_LABELS", "present", "DATASETS.CROWD_LABELS", "absent"])
    stored = pickle.dumps(MultiLabelDatasetMapper(cfg, is_train=False))
    assert pickle.loads(stored)(record)["image_labels"] == [2, 4]


def test_an_absent_difficult_object_of_a_plain_data_set_is_neither_label_nor_box(cfg, record):
    del record["image_labels"], record["ignored_labels"]
    add_scnet_config(cfg)
    cfg.DATASETS.DIFFICULT_LABELS = "absent"
    mapped = MultiLabelDatasetMapper(cfg, is_train=True)(record)
    assert mapped["instances"].gt_classes.tolist() == [2]
    assert (mapped["image_labels"], mapped["ignored_labels"]) == ([0, 2], [])


# A crop of the left 10 px of the 30 x 20 image. Of each class: where its objects are.
LEFT, RIGHT = [3, 4, 9, 14], [12, 4, 28, 14]
AT_THE_BORDER, TOUCHING = [9.5, 4, 28, 14], [10, 4, 28, 14]


def cropped(record, objects, without_box=(), **policy):
    """What the mapper gives of the crop; `objects` are (class, box, flags)."""
    record["annotations"] = [annotation(c, bbox=box, **flags) for c, box, flags in objects]
    record["annotations_without_box"] = [{"category_id": c} for c in without_box]
    (record,) = label_records([record], LabelPolicy(**policy))
    mapper = MultiLabelDatasetMapper(
        is_train=True,
        augmentations=[T.CropTransform(0, 0, 10, 20), T.ResizeTransform(20, 10, 40, 20)],
        image_format="BGR",
        label_policy=LabelPolicy(**policy),
    )
    mapped = mapper(record)
    assert mapped["image"].shape == (3, 40, 20)
    assert "annotations_without_box" not in mapped
    boxes = mapped["instances"].gt_classes.tolist()
    return mapped["image_labels"], mapped["ignored_labels"], boxes


def test_a_crop_keeps_the_labels_of_which_an_object_is_left(record):
    objects = [(0, LEFT, {}), (0, RIGHT, {}), (1, RIGHT, {}), (2, AT_THE_BORDER, {})]
    assert cropped(record, [*objects, (3, TOUCHING, {})]) == ([0, 2], [], [0, 2])


@pytest.mark.parametrize(
    ("flags", "policy", "labels"),
    [
        ({"iscrowd": 1}, {"crowd": "present"}, ([0], [], [])),
        ({"iscrowd": 1}, {"crowd": "ignored"}, ([], [0], [])),
        ({"iscrowd": 1}, {"crowd": "absent"}, ([], [], [])),
        ({"difficult": 1}, {"difficult": "present"}, ([0], [], [0])),
        ({"difficult": 1}, {"difficult": "ignored"}, ([], [0], [0])),
        ({"difficult": 1}, {"difficult": "absent"}, ([], [], [])),
    ],
)
def test_in_a_crop_crowds_and_difficult_objects_follow_the_policy(record, flags, policy, labels):
    # the ordinary object of class 0 is cut away, and so is all of class 1
    objects = [(0, LEFT, flags), (0, RIGHT, {}), (1, RIGHT, flags)]
    assert cropped(record, objects, **policy) == labels


def test_in_a_crop_a_class_that_is_known_without_a_usable_box_is_ignored(record):
    # 0: an object is left; 1: nobody knows whether one is; 2: the one with a box is cut away
    objects = [(0, LEFT, {}), (2, RIGHT, {})]
    assert cropped(record, objects, without_box=[0, 1, 2]) == ([0], [1, 2], [0])


def test_in_a_crop_labels_that_somebody_gave_without_boxes_are_ignored(cfg, record):
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = "absolute", [20, 20]
    record.update(annotations=[], image_labels=[0, 2], ignored_labels=[4])
    mapped = MultiLabelDatasetMapper(cfg, is_train=True)(record)
    assert (mapped["image_labels"], mapped["ignored_labels"]) == ([], [0, 2, 4])


def test_in_a_crop_image_labels_of_a_data_set_without_boxes_stay(cfg, record):
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = "absolute", [20, 20]
    del record["annotations"]
    mapped = MultiLabelDatasetMapper(cfg, is_train=True)(record)
    assert (mapped["image_labels"], mapped["ignored_labels"]) == ([0, 2], [4])


@pytest.mark.parametrize(
    "augmentation",
    [
        T.ResizeShortestEdge(7, 333),
        T.Resize((801, 37)),
        T.RandomFlip(1.0),
        T.RandomFlip(1.0, horizontal=False, vertical=True),
        T.RandomContrast(0.5, 2),
        T.RandomRotation([90, 90]),
        T.FixedSizeCrop((99, 99)),  # larger than the image: pads it
    ],
    ids=lambda augmentation: type(augmentation).__name__,
)
def test_labels_are_those_of_the_data_set_where_nothing_is_cut_off(record, augmentation):
    record["annotations_without_box"] = [{"category_id": 1}]
    record["image_labels"] = [0, 1, 2]
    mapper = MultiLabelDatasetMapper(True, augmentations=[augmentation], image_format="BGR")
    mapped = mapper(record)
    assert (mapped["image_labels"], mapped["ignored_labels"]) == ([0, 1, 2], [4])


def test_image_without_annotations_has_no_labels(cfg, record):
    plain = {"file_name": record["file_name"]}
    assert "image_labels" not in MultiLabelDatasetMapper(cfg, is_train=False)(plain)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"image_labels": [2, 0]}, "must be sorted"),
        ({"image_labels": [2, 2]}, "each once"),
        ({"ignored_labels": [-1]}, "from 0"),
        ({"ignored_labels": [2]}, r"labels \[2\] are both present and ignored"),
    ],
)
def test_invalid_labels_are_refused(cfg, record, labels, message):
    with pytest.raises(DatasetError, match=message) as error:
        MultiLabelDatasetMapper(cfg, is_train=True)({**record, **labels})
    assert record["file_name"] in str(error.value)


def truncated(path):
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:900])


@pytest.mark.parametrize(
    "damage",
    [truncated, lambda p: p.write_text("not an image"), lambda p: p.write_bytes(b""), Path.unlink],
    ids=["truncated", "text", "empty", "absent"],
)
def test_unreadable_image_is_named(cfg, record, damage):
    damage(Path(record["file_name"]))
    with pytest.raises(DatasetError, match=r"cannot be read .*get the file again") as error:
        MultiLabelDatasetMapper(cfg, is_train=True)(record)
    assert record["file_name"] in str(error.value)


def test_other_size_than_annotated_is_named(cfg, record):
    with pytest.raises(DatasetError, match=r"got \(30, 20\), expect \(31, 20\)") as error:
        MultiLabelDatasetMapper(cfg, is_train=True)({**record, "width": 31})
    assert record["file_name"] in str(error.value)


def test_fault_outside_the_image_is_not_blamed_on_it(cfg, record):
    record["annotations"] = [{"bbox": [1, 2], "bbox_mode": 0, "category_id": 0}]
    with pytest.raises(Exception) as error:
        MultiLabelDatasetMapper(cfg, is_train=True)(record)
    assert not isinstance(error.value, DatasetError)


def test_error_reaches_the_caller_of_a_loader_with_workers(cfg, tmp_path):
    content = {
        "images": [{"id": 1, "file_name": "no.png", "height": 9, "width": 9}],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    register_coco_multilabel("mapper_test", tmp_path / "a.json", tmp_path)
    try:
        dicts = DatasetCatalog.get("mapper_test")
        mapper = MultiLabelDatasetMapper(cfg, is_train=False)
        loader = build_detection_test_loader(dicts, mapper=mapper, num_workers=1)
        with pytest.raises(DatasetError, match=r"no\.png' cannot be read"):
            next(iter(loader))
    finally:
        DatasetCatalog.remove("mapper_test")


@needs_coco_train
def test_every_real_image_is_mapped(cfg, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", REAL_ROOT)
    mapper = MultiLabelDatasetMapper(cfg, is_train=True)
    for record in DatasetCatalog.get("coco_2017_val_multilabel"):
        mapped = mapper(record)
        objects = sum(not a["iscrowd"] for a in record["annotations"])
        assert len(mapped["instances"]) == objects
        assert set(mapped["instances"].gt_classes.tolist()) <= set(mapped["image_labels"])
