"""COCO-format data sets: registration, records, labels and errors."""

import copy
import json
import logging
import math
import os
from pathlib import Path

from scnet_d2.data import (
    DatasetError,
    LabelPolicy,
    get_multilabel_dicts,
    get_training_dicts,
    register_coco_multilabel,
)
from scnet_d2.data.boxes import clip_box
from scnet_d2.data.builtin import register_all
from scnet_d2.data.labels import image_labels

import numpy as np
import pytest
import torch
from conftest import REAL_ROOT, needs_coco_val, small_config
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

SIZE = {"height": 40, "width": 60}
# Ids are neither ordered nor contiguous: 3 -> 0 "cup", 7 -> 1 "dog", 20 -> 2 "cat".
SMALL = {
    "images": [
        {"id": 9, "file_name": "9.png", "height": 40, "width": 60},
        {"id": 4, "file_name": "4.png", "height": 40, "width": 60},
        {"id": 5, "file_name": "5.png", "height": 40, "width": 60},
    ],
    "annotations": [
        {"id": 1, "image_id": 9, "category_id": 20, "bbox": [5, 6, 10, 12], "area": 120},
        {"id": 2, "image_id": 9, "category_id": 3, "bbox": [0, 0, 8, 8], "area": 64},
        {"id": 3, "image_id": 9, "category_id": 20, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 1},
        {"id": 4, "image_id": 4, "category_id": 7, "bbox": [2, 2, 9, 9], "area": 81, "iscrowd": 1},
    ],
    "categories": [
        {"id": 20, "name": "cat"},
        {"id": 3, "name": "cup"},
        {"id": 7, "name": "dog"},
    ],
}


@pytest.fixture
def load(tmp_path):
    """Writes a json, registers it as "small" and loads it; the name is free again afterwards."""

    def write_and_load(content, **policy):
        json_file = tmp_path / "small.json"
        if not isinstance(content, bytes):
            text = content if isinstance(content, str) else json.dumps(content)
            content = text.encode()
        json_file.write_bytes(content)
        register_coco_multilabel("small", json_file, tmp_path)
        if policy:
            return get_multilabel_dicts("small", LabelPolicy(**policy))
        return DatasetCatalog.get("small")

    yield write_and_load
    DatasetCatalog.pop("small", None)


HUGE = 10**400  # an integer that no float holds


def edited(section, position, **values):
    content = copy.deepcopy(SMALL)
    entry = content[section][position]
    entry.update(values)
    for key in [k for k, v in entry.items() if v is KeyError]:
        del entry[key]
    return content


def test_records_and_contiguous_labels(load, tmp_path):
    records = load(SMALL)
    assert [r["image_id"] for r in records] == [4, 5, 9]
    assert [r["image_labels"] for r in records] == [[1], [], [0, 2]]
    assert [r["ignored_labels"] for r in records] == [[], [], []]
    last = records[-1]
    assert (last["file_name"], last["height"], last["width"]) == (str(tmp_path / "9.png"), 40, 60)
    assert last["annotations"][0] == {
        "bbox": [5, 6, 15, 18],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 2,
        "iscrowd": 0,
    }


def test_metadata_after_loading(load, tmp_path):
    load(SMALL)
    meta = MetadataCatalog.get("small")
    assert meta.thing_classes == ["cup", "dog", "cat"]
    assert meta.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1, 20: 2}
    assert (meta.evaluator_type, meta.json_file) == ("multilabel", str(tmp_path / "small.json"))


@pytest.mark.parametrize(
    ("crowd", "present", "ignored"),
    [("present", [1], []), ("ignored", [], [1]), ("absent", [], [])],
)
def test_crowd_policy_decides_only_for_classes_without_other_boxes(load, crowd, present, ignored):
    records = load(SMALL, crowd=crowd)
    assert (records[0]["image_labels"], records[0]["ignored_labels"]) == (present, ignored)
    assert (records[2]["image_labels"], records[2]["ignored_labels"]) == ([0, 2], [])


def test_unannotated_images_can_be_dropped(load):
    records = load(SMALL, keep_unannotated=False, crowd="absent")
    assert [r["image_id"] for r in records] == [4, 9]


def test_difficult_key_follows_the_policy(load):
    records = load(edited("annotations", 1, difficult=1))
    assert (records[2]["image_labels"], records[2]["ignored_labels"]) == ([2], [0])
    assert [a.get("difficult") for a in records[2]["annotations"]] == [None, 1, None]


@pytest.mark.parametrize(
    "box",
    [
        [5, 5, 0, 9],
        [5, 5, 9, -2],
        [60, 0, 5, 5],
        [-9, 0, 9, 5],
        [math.nan, 0, 5, 5],
        [0, 0, math.inf, 5],
        [1e308, 0, 1e308, 5],
        [0, 0, HUGE, 5],
        [0.5, 0, -HUGE, 5],
    ],
    ids=str,
)
def test_unusable_box_is_dropped_with_one_warning_and_its_label_stays(load, caplog, box):
    with caplog.at_level(logging.WARNING):
        record = load(edited("annotations", 1, bbox=box))[2]
    assert [a["category_id"] for a in record["annotations"]] == [2, 2]
    assert record["annotations_without_box"] == [{"category_id": 0, "iscrowd": 0}]
    assert record["image_labels"] == [0, 2]
    assert [r.message for r in caplog.records if "small: left out 1 box," in r.message]


def test_box_is_clipped_to_the_image(load):
    record = load(edited("annotations", 1, bbox=[-4.5, 10, 100, 100]))[2]
    assert record["annotations"][1]["bbox"] == [0, 10, 60, 40]


numbers = st.floats(allow_nan=True, allow_infinity=True)


@given(st.tuples(numbers, numbers, numbers, numbers), st.integers(1, 999), st.integers(1, 999))
def test_clipped_box_has_an_area_inside_the_image(box, width, height):
    clipped = clip_box(box, width, height)
    if clipped is not None:
        x0, y0, x1, y1 = clipped
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height


CROWDS = [{**a, "iscrowd": 1} for a in SMALL["annotations"]]


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([], "small: no annotations in 3 images: no training boxes"),
        (CROWDS, "small: 4 of 4 annotations are crowds: no training boxes"),
        (
            [*CROWDS[:3], {**SMALL["annotations"][3], "iscrowd": 0, "bbox": [1, 1, 0, 5]}],
            "small: 3 of 4 annotations are crowds, 1 of 4 have no usable box: no training boxes",
        ),
    ],
    ids=["none", "crowds", "without a box"],
)
def test_training_without_a_box_is_refused(load, annotations, message):
    load({**SMALL, "annotations": annotations})
    cfg = small_config("DATASETS.TRAIN", ("small",), "DATALOADER.MAX_BAD_IMAGES", 1.0)
    with pytest.raises(DatasetError, match=message):
        get_training_dicts(cfg)


def test_training_names_absent_files_and_absent_boxes_together(load, tmp_path):
    load({**SMALL, "annotations": []})
    with pytest.raises(DatasetError) as error:
        get_training_dicts(small_config("DATASETS.TRAIN", ("small",)))
    files, boxes = error.value.problems
    shown = ", ".join(repr(str(tmp_path / f"{i}.png")) for i in (4, 5, 9))
    assert f"3 of its 3 image files do not exist, first {shown}; correct" in files
    assert "no annotations in 3 images: no training boxes" in boxes


def test_a_whole_image_system_needs_a_label_and_no_box(load):
    labeler = "MODEL.META_ARCHITECTURE", "ImageLabeler", "DATALOADER.MAX_BAD_IMAGES", 1.0
    cfg = small_config("DATASETS.TRAIN", ("small",), *labeler)
    load({**SMALL, "annotations": [{**a, "bbox": [1, 1, 0, 5]} for a in CROWDS]})
    assert [r["image_labels"] for r in get_training_dicts(cfg)] == [[1], [], [0, 2]]
    cfg.DATASETS.CROWD_LABELS = "ignored"
    with pytest.raises(DatasetError, match=r"small: no label in 3 images: nothing .*CROWD_"):
        get_training_dicts(cfg)


def test_training_with_one_box_is_not_refused(load):
    load({**SMALL, "annotations": [*CROWDS[:3], {**CROWDS[3], "iscrowd": 0}]})
    cfg = small_config("DATASETS.TRAIN", ("small",), "DATALOADER.MAX_BAD_IMAGES", 1.0)
    assert [r["image_id"] for r in get_training_dicts(cfg)][:1] == [4]


def test_annotation_with_a_bad_polygon_is_kept(load):
    record = load(edited("annotations", 1, segmentation=[[1, 2]]))[2]
    assert len(record["annotations"]) == 3
    assert "segmentation" not in record["annotations"][1]


def without(section):
    return {key: value for key, value in SMALL.items() if key != section}


def nested(depth):
    box = []
    for _ in range(depth):
        box = [box]
    return box


def with_first_id(section, value):
    return {**SMALL, "annotations": [], section: [{**SMALL[section][0], "id": value}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a complete json file"),
        (json.dumps(SMALL)[:-30], "not a complete json file"),
        (json.dumps(SMALL) + "}", "not a complete json file"),
        (json.dumps(SMALL).replace("120", "1" * 5000), "not a complete json file"),
        (json.dumps(SMALL).encode("utf-16"), "not UTF-8"),
        (json.dumps(SMALL).replace("cat", "chät").encode("latin-1"), "not UTF-8"),
        ("[" * 100_000, "nested too deeply"),
        ('{"info": ' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ("[1, 2]", "a json list, not a COCO-format dict.*export"),
        (without("images"), "'images' is missing"),
        (without("annotations"), "'annotations' is missing"),
        (without("categories"), "'categories' is missing"),
        ({**SMALL, "images": []}, "'images' is empty"),
        ({**SMALL, "categories": []}, "'categories' is empty"),
        (edited("images", 1, file_name=KeyError), r"images\[1\] lacks a valid file_name"),
        (edited("images", 1, file_name=None), r"images\[1\] lacks a valid file_name"),
        (edited("images", 1, id=[9], height="40"), r"images\[1\] lacks a valid id, height"),
        ({**SMALL, "images": [7]}, r"images\[0\] lacks a valid id, file_name, height, width"),
        (with_first_id("images", True), r"images\[0\] lacks a valid id"),
        (with_first_id("categories", True), r"categories\[0\] lacks a valid id"),
        (edited("images", 1, width=True), r"images\[1\] lacks a valid width"),
        (edited("images", 1, id="four"), r"image ids \[5, 'four'\] are of two types"),
        (edited("images", 1, file_name=" "), r"image 4 \(' '\) has no valid file_name"),
        (edited("images", 1, file_name="a\0.png"), "image 4 .* has no valid file_name"),
        (edited("images", 1, file_name="\ud800.png"), "image 4 .* has no valid file_name"),
        (edited("images", 1, width=-60), r"image 4 \('4.png'\) has height and width \(40, -60\)"),
        (edited("images", 1, width=60.5), "image 4 .* has height and width"),
        (edited("images", 1, width=math.nan), "image 4 .* has height and width"),
        (edited("images", 1, width=math.inf), "image 4 .* has height and width"),
        (edited("images", 1, width=HUGE), "image 4 .* has height and width"),
        (edited("images", 1, id=9), "id 9 occurs twice in 'images'"),
        (edited("images", 1, height=0), r"image 4 \('4.png'\) has height and width \(0, 60\)"),
        (edited("annotations", 2, bbox=KeyError), r"annotations\[2\] lacks a valid bbox"),
        (edited("annotations", 2, id=1), "id 1 occurs twice in 'annotations'"),
        (edited("annotations", 2, category_id=8), "annotation 3: category_id 8 is not in"),
        (edited("annotations", 2, image_id=77), "annotation 3: image_id 77 is not in"),
        (edited("annotations", 2, bbox=[1, 2, 3]), "annotation 3: bbox"),
        (edited("annotations", 2, bbox=[1, 2, 3, None]), "annotation 3: bbox"),
        (edited("annotations", 2, id="\ud800", bbox=[]), r"annotation '\\ud800': bbox"),
        (edited("annotations", 2, image_id="\ud800"), r"image_id is '\\ud800', a text, and the"),
        (edited("annotations", 2, bbox=[True, True, True, True]), "annotation 3: bbox"),
        (edited("annotations", 2, bbox=["1", "1", "9", "9"]), "annotation 3: bbox"),
        (edited("annotations", 2, bbox=nested(500)), r"bbox \[\[\[\[\[\[\[\.\.\.\]"),
        (
            edited("annotations", 2, category_id="03"),
            "annotation 3: category_id is '03', a text, and the ids in 'categories' are each a who",
        ),
        (
            edited("annotations", 2, image_id=9.5),
            "annotation 3: image_id is 9.5, a number, and the ids in 'images' are each a whole num",
        ),
        (edited("categories", 1, id="cup"), "category 'cup' has the id 'cup', a text; write a who"),
        (
            edited("annotations", 2, bbox=None),
            r"annotations\[2\] lacks a valid bbox \(its id is 3; bbox is None, null, .* or mask",
        ),
        (
            edited("images", 1, width=None),
            r"image 4 has no width and height, and they .*4.png' cannot be read",
        ),
        (edited("annotations", 2, category_id=True), r"annotations\[2\] lacks a valid category_id"),
        (edited("annotations", 2, image_id=True), r"annotations\[2\] lacks a valid image_id"),
        (edited("annotations", 2, iscrowd="0"), "annotation 3: 'iscrowd' and 'difficult' are 0 or"),
        (edited("annotations", 2, difficult=[1]), "annotation 3: 'iscrowd' and 'difficult' are 0"),
        (edited("annotations", 2, iscrowd=math.nan), "annotation 3: 'iscrowd' and 'difficult' are"),
        (edited("annotations", 2, ignore=1), "annotation 3: Detectron2 does not take 'ignore'"),
        (edited("categories", 1, id=7), "id 7 occurs twice in 'categories'"),
        (edited("categories", 1, name="dog"), "'dog' is the name of the categories 3 and 7"),
        (edited("categories", 1, name=""), "the class name '' is empty"),
        (edited("categories", 1, name="\ud800"), "cannot be printed; rename it"),
        ({"images": [], "annotations": [], "categories": []}, "'images' is empty"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 99 else "",
)
def test_broken_file_is_named_with_its_fault(load, tmp_path, content, message):
    with pytest.raises(DatasetError, match=message) as error:
        load(content)
    assert str(tmp_path / "small.json") in str(error.value)
    str(error.value).encode()  # it can be printed


def test_all_problems_are_counted_by_kind_and_the_first_three_shown(load, tmp_path):
    content = copy.deepcopy(SMALL)
    content["images"] += [{"id": 6, "file_name": 7}, {"id": 7, "file_name": "../a", **SIZE}]
    content["categories"].append({"id": "x", "name": "eel"})
    bad = [{"id": i, "image_id": 6, "category_id": 8, "bbox": [1, 2]} for i in range(10, 14)]
    content["annotations"] += [*bad, {"id": 1, "image_id": 5, "category_id": 3, "bbox": [0] * 4}]
    with pytest.raises(DatasetError) as error:
        load(content)
    title, *lines = str(error.value).splitlines()
    assert title == f"{tmp_path / 'small.json'}: 13 problems of 7 kinds:"
    assert lines[0].startswith("- images[3] lacks a valid file_name (its id is 6; file_name is 7,")
    assert lines[1] == "- id 1 occurs twice in 'annotations'; make the ids in 'annotations' unique"
    assert lines[2].startswith("- category 'eel' has the id 'x', a text; write a whole number")
    assert lines[3:5] == [
        "- 4 times: annotation 10: category_id 8 is not in 'categories' | annotation 11: "
        "category_id 8 is not in 'categories' | annotation 12: category_id 8 is not in "
        "'categories' | …; add it to 'categories' or delete the annotation",
        "- 4 times: annotation 10: bbox [1, 2] is not [x, y, width, height] in pixels | annotation "
        "11: bbox [1, 2] is not [x, y, width, height] in pixels | annotation 12: bbox [1, 2] is "
        "not [x, y, width, height] in pixels | …; correct the boxes",
    ]
    assert lines[5].startswith("- image 7: '../a' leads out of")
    assert lines[6].startswith("- annotation 1 of image 5 marks nothing (bbox [0, 0, 0, 0] or")
    assert error.value.problems == [f"{tmp_path / 'small.json'}: {line[2:]}" for line in lines]


def test_utf8_with_a_byte_order_mark_is_read(load):
    assert len(load(json.dumps(SMALL).encode("utf-8-sig"))) == 3


@pytest.mark.parametrize(("value", "expected"), [(True, 1), (1.0, 1), (0, 0), (None, 0)])
def test_flags_of_other_writers_are_read(load, value, expected):
    assert load(edited("annotations", 1, iscrowd=value))[2]["annotations"][1]["iscrowd"] == expected


TRIANGLES = [[5, 6, 15, 6, 5, 18], [7, 8, 21.5, 8, 7, 9]]  # 5 to 21.5 and 6 to 18


@pytest.mark.parametrize("bbox", [KeyError, None, [], [0, 0, 0, 0]], ids=repr)
def test_annotation_without_a_bbox_has_the_box_of_its_polygons(load, caplog, bbox):
    record = load(edited("annotations", 1, bbox=bbox, segmentation=TRIANGLES))[2]
    assert record["annotations"][1]["bbox"] == [5, 6, 21.5, 18]
    assert "1 annotation without bbox; the boxes of polygons and masks are used" in caplog.text


MASK = np.zeros((40, 60), np.uint8)
MASK[6:18, 5:20] = 1  # rows 6 to 17, columns 5 to 19
COLUMN = [12, 28]  # of 40 pixels, 12 marked
COUNTS = [5 * 40 + 6, *(COLUMN * 15)[:-1], 40 * 60 - 20 * 40 + 22]
COMPRESSED = coco_mask.encode(np.asfortranarray(MASK))["counts"].decode()


@pytest.mark.parametrize("counts", [COUNTS, COMPRESSED], ids=["list", "compressed"])
def test_annotation_without_a_bbox_has_the_box_of_its_mask(load, caplog, counts):
    mask = {"counts": counts, "size": [40, 60]}
    record = load(edited("annotations", 1, bbox=KeyError, segmentation=mask))[2]
    assert record["annotations"][1]["bbox"] == [5, 6, 20, 18]
    assert "1 annotation without bbox; the boxes of polygons and masks are used" in caplog.text


@pytest.mark.parametrize(
    "mask",
    [
        {"counts": [1, 2], "size": [40, 60]},
        {"counts": "o", "size": [40, 60]},
        {"counts": "\xe4", "size": [40, 60]},
        {"counts": COUNTS, "size": [0, 60]},
        {"counts": COMPRESSED, "size": [20, 20]},
        {"counts": COUNTS},
        {},
    ],
    ids=str,
)
def test_broken_mask_gives_no_box(load, mask):
    with pytest.raises(DatasetError, match=r"annotations\[1\] lacks a valid bbox .* polygon or"):
        load(edited("annotations", 1, bbox=KeyError, segmentation=mask))


def test_annotations_that_mark_nothing_are_listed_beside_other_problems(load):
    content = edited("annotations", 1, bbox=[0, 0, 0, 0])
    content["annotations"][2]["category_id"] = 99
    with pytest.raises(DatasetError) as error:
        load(content)
    assert "category_id 99 is not in 'categories'" in error.value.problems[0]
    assert "annotation 2 of image 9 marks nothing" in error.value.problems[1]


@pytest.mark.parametrize(
    "values", [{"bbox": [0, 0, 0, 0]}, {"bbox": KeyError, "segmentation": [[]]}], ids=str
)
def test_annotation_that_marks_nothing_is_named_and_no_label(load, caplog, values):
    record = load(edited("annotations", 1, **values))[2]
    assert record["image_labels"] == [2]
    assert record["empty_annotations"] == [2]
    assert not record["annotations_without_box"]
    assert "1 annotation marks nothing" in caplog.text
    assert "first annotation 2 of image 9 ('" in caplog.text


@pytest.mark.parametrize("segmentation", [[], [[]], {"counts": [1], "size": [4, 6]}])
def test_segmentation_beside_a_bbox_changes_nothing(load, segmentation):
    assert load(edited("annotations", 1, segmentation=segmentation))[2]["image_labels"] == [0, 2]


def test_size_that_the_json_does_not_give_is_read_from_the_image(load, tmp_path, caplog):
    Image.new("RGB", (33, 22)).save(tmp_path / "4.png")
    record = load(edited("images", 1, width=KeyError, height=KeyError))[0]
    assert (record["width"], record["height"]) == (33, 22)
    assert "1 image without width and height" in caplog.text


@pytest.mark.parametrize(
    "name", [r"sub\a.png", r".\sub\a.png", "IMAGES/sub/a.png", r"IMAGES\sub\a.png"]
)
def test_file_name_is_corrected_where_that_finds_the_file(load, tmp_path, caplog, name):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.png").touch()
    name = name.replace("IMAGES", tmp_path.name)
    assert load(edited("images", 1, file_name=name))[0]["file_name"] == str(tmp_path / "sub/a.png")
    assert f"first {name!r}, read as 'sub/a.png'" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        r"..\..\label-studio\media\upload\4\a.png",
        "../label/sub/a.png",
        "/data/upload/sub/a.png",
        r"C:\Users\me\sub\a.png",
    ],
)
def test_file_name_of_the_place_where_it_was_labelled_is_corrected(load, tmp_path, caplog, name):
    for file in ("a.png", "sub/a.png"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    expected = "sub/a.png" if "sub" in name else "a.png"
    record = load(edited("images", 1, file_name=name))[0]
    assert record["file_name"] == str(tmp_path / expected)
    assert f"first {name!r}, read as {expected!r}" in caplog.text


def test_two_places_of_which_one_file_is_left_are_refused(load, tmp_path):
    (tmp_path / "a.png").touch()
    content = edited("images", 1, file_name="../cats/a.png")
    content["images"][2]["file_name"] = "../dogs/a.png"
    with pytest.raises(DatasetError, match=r"2 times: .*cats/a\.png' leads out of .*dogs/a\.png'"):
        load(content)
    content["images"][2]["file_name"] = "a.png"
    with pytest.raises(DatasetError, match=r"cats/a\.png' leads out of") as error:
        load(content)
    assert [Path(r["file_name"]).name for r in error.value.records] == ["9.png", "a.png"]


def test_file_name_that_names_a_file_is_not_corrected(load, tmp_path, caplog):
    for name in (r"sub\a.png", "sub/a.png"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        (tmp_path / name).touch()
    record = load(edited("images", 1, file_name=r"sub\a.png"))[0]
    assert record["file_name"] == str(tmp_path / r"sub\a.png")
    assert "corrected" not in caplog.text


@pytest.mark.parametrize("image_id", ["9", 9.0])
@pytest.mark.parametrize("category_id", ["3", 3.0])
def test_ids_of_another_type_than_in_their_table_are_taken(load, image_id, category_id):
    record = load(edited("annotations", 1, image_id=image_id, category_id=category_id))[2]
    assert (record["image_id"], record["image_labels"]) == (9, [0, 2])


def test_numbers_for_image_ids_that_are_texts_are_taken(load):
    images = [{**image, "id": str(image["id"])} for image in SMALL["images"]]
    categories = [{**c, "id": str(c["id"])} for c in SMALL["categories"]]  # 3 is before "20"
    records = load({**SMALL, "images": images, "categories": categories})
    assert [(r["image_id"], r["image_labels"]) for r in records] == [
        ("4", [1]),
        ("5", []),
        ("9", [0, 2]),
    ]


def test_category_without_annotations_that_has_the_name_of_another_is_left_out(load, caplog):
    dummy = {"id": 0, "name": "cup", "supercategory": "none"}
    records = load({**SMALL, "categories": [dummy, *SMALL["categories"]]})
    assert MetadataCatalog.get("small").thing_classes == ["cup", "dog", "cat"]
    assert records[2]["image_labels"] == [0, 2]
    assert "category 0 ('cup') has the name of another one and no annotations" in caplog.text


def test_file_name_in_the_encoding_of_the_file_system_is_kept(load, tmp_path):
    name = os.fsdecode(b"\xe4.png")  # Latin-1, as it comes out of os.listdir
    assert load(edited("images", 1, file_name=name))[0]["file_name"] == str(tmp_path / name)


def test_dropping_every_image_is_an_error(load):
    with pytest.raises(DatasetError, match=r"small: no image is .*DATASETS\.KEEP_UNANNOTATED True"):
        load({**SMALL, "annotations": []}, keep_unannotated=False)


def test_registering_again_is_harmless_and_another_data_set_is_refused(load, tmp_path):
    load(SMALL)
    register_coco_multilabel("small", str(tmp_path / "small.json"), str(tmp_path))
    with pytest.raises(DatasetError, match="'small' is already registered with"):
        register_coco_multilabel("small", "other.json", tmp_path)
    with pytest.raises(DatasetError, match="already registered"):
        register_coco_multilabel("coco_2017_train", "other.json", tmp_path)


def test_registering_reads_nothing_and_loading_names_the_absent_path(tmp_path):
    register_coco_multilabel("absent", tmp_path / "no.json", tmp_path)
    try:
        with pytest.raises(DatasetError, match=r"no\.json' does not exist\. Check the paths"):
            DatasetCatalog.get("absent")
    finally:
        DatasetCatalog.remove("absent")


@pytest.mark.parametrize("key", ["DATASETS.CROWD_LABELS", "DATASETS.DIFFICULT_LABELS"])
def test_an_unknown_policy_is_refused_by_the_key_that_a_user_sets(key):
    cfg = small_config(key, "maybe")
    with pytest.raises(ValueError, match=f"{key} is 'maybe'; choose one of present, ignored, "):
        LabelPolicy.from_config(cfg)


def test_difficult_and_crowd_together():
    objects = [
        {"category_id": 5, "difficult": 1},
        {"category_id": 5, "iscrowd": 1},
        {"category_id": 2, "difficult": 1},
    ]
    assert image_labels(objects, LabelPolicy()) == ([5], [2])
    assert image_labels(objects, LabelPolicy(crowd="absent")) == ([], [2, 5])


BUILTIN = [
    *(f"coco_{y}_{s}_multilabel" for y in (2014, 2017) for s in ("train", "val")),
    *(f"voc_2007_{s}_multilabel" for s in ("train", "val", "trainval", "test")),
    *(f"voc_2012_{s}_multilabel" for s in ("train", "val", "trainval")),
    *(f"context_scenes_{s}" for s in ("train", "val", "test")),
]


@pytest.mark.parametrize("name", BUILTIN)
def test_builtin_names_have_their_classes_before_loading(name):
    meta = MetadataCatalog.get(name)
    assert name in DatasetCatalog
    assert meta.evaluator_type == "multilabel"
    expected = {"coco": 80, "voc_": 20}.get(name[:4])
    assert expected is None or len(meta.thing_classes) == expected


def test_registering_the_builtin_data_sets_twice_is_harmless():
    before = dict(DatasetCatalog)
    register_all()
    assert dict(DatasetCatalog) == before


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        ([], "root"),
        (["root"], "root/coco/annotations/instances_val2014.json"),
        (["root/coco/annotations/instances_val2014.json"], "root/coco/val2014"),
    ],
)
def test_absent_builtin_data_names_path_and_remedy(tmp_path, monkeypatch, present, missing):
    for path in present:
        target = tmp_path / path
        (target.parent if target.suffix else target).mkdir(parents=True)
        if target.suffix:
            target.write_text("{}")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))
    with pytest.raises(DatasetError, match="DETECTRON2_DATASETS sets it") as error:
        DatasetCatalog.get("coco_2014_val_multilabel")
    assert f"'{tmp_path / missing}' does not exist" in str(error.value)


def write_coco(root, split, categories):
    folder = root / "coco"
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir()
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 9, "width": 9}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 90, "bbox": [0, 0, 5, 5]}],
        "categories": categories,
    }
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def test_root_is_read_when_loading(tmp_path, monkeypatch):
    categories = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    for root in (tmp_path / "a", tmp_path / "b"):
        write_coco(root, "train2014", categories)
        monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
        (record,) = DatasetCatalog.get("coco_2014_train_multilabel")
        assert record["file_name"] == str(root / "coco/train2014/1.jpg")
        assert record["image_labels"] == [79]  # category 90, toothbrush, is the last of the 80
        assert str(root) in MetadataCatalog.get("coco_2014_train_multilabel").json_file


def test_other_categories_under_a_coco_name_are_refused(tmp_path, monkeypatch):
    write_coco(tmp_path, "train2014", [{"id": 90, "name": "shelf"}])
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(DatasetError, match=r"it has 1 category and data set '.*' has 80") as error:
        DatasetCatalog.get("coco_2014_train_multilabel")
    assert "class 0 is 'shelf' here and 'person' there" in str(error.value)
    assert "write the same categories into all files" in str(error.value)


def test_context_scenes_are_generated_before_they_are_read(tmp_path, monkeypatch):
    classes = MetadataCatalog.get("context_scenes_val").thing_classes

    def generate(root):
        folder = Path(root, "context_scenes")
        (folder / "images/val").mkdir(parents=True)
        (folder / "annotations").mkdir()
        content = {
            "images": [{"id": 1, "file_name": "1.png", "height": 9, "width": 9}],
            "annotations": [],
            "categories": [{"id": i, "name": n} for i, n in enumerate(classes, 1)],
        }
        (folder / "annotations/val.json").write_text(json.dumps(content))

    monkeypatch.setattr("scnet_d2.data.context_scenes.ensure_generated", generate)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (record,) = DatasetCatalog.get("context_scenes_val")
    assert record["file_name"] == str(tmp_path / "context_scenes/images/val/1.png")


def perfect_predictions(records):
    for record in records:
        boxes = [a for a in record["annotations"] if not a["iscrowd"]]
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(torch.tensor([a["bbox"] for a in boxes]).reshape(-1, 4))
        instances.scores = torch.ones(len(boxes))
        instances.pred_classes = torch.tensor([a["category_id"] for a in boxes], dtype=torch.int64)
        yield record, {"instances": instances}


@needs_coco_val
def test_coco_evaluator_gives_100_ap_to_the_ground_truth(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", REAL_ROOT)
    records = DatasetCatalog.get("coco_2017_val_multilabel")
    evaluator = COCOEvaluator(
        "coco_2017_val_multilabel", ("bbox",), False, str(tmp_path), use_fast_impl=False
    )
    evaluator.reset()
    for record, output in perfect_predictions(records):
        evaluator.process([record], [output])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


@needs_coco_val
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_records_equal_those_of_detectron2(monkeypatch, split):
    monkeypatch.setenv("DETECTRON2_DATASETS", REAL_ROOT)
    records = DatasetCatalog.get(f"coco_2017_{split}_multilabel")
    folder = Path(REAL_ROOT).expanduser() / "coco"
    expected = load_coco_json(
        str(folder / f"annotations/instances_{split}2017.json"), str(folder / f"{split}2017")
    )
    ids = MetadataCatalog.get(f"coco_2017_{split}_multilabel").thing_dataset_id_to_contiguous_id
    for ours, theirs in zip(records, expected, strict=True):
        for key in ("file_name", "image_id", "height", "width"):
            assert ours[key] == theirs[key]
        annotations = theirs["annotations"]
        assert ours["image_labels"] == sorted({ids[a["category_id"]] for a in annotations})
        boxes = np.array([a["bbox"] for a in ours["annotations"]]).reshape(-1, 4)
        boxes[:, 2:] -= boxes[:, :2]
        assert boxes == pytest.approx(
            np.array([a["bbox"] for a in annotations]).reshape(-1, 4), abs=0.011
        )


@needs_coco_val
def test_every_real_image_exists_with_the_annotated_size(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", REAL_ROOT)
    for record in DatasetCatalog.get("coco_2017_val_multilabel"):
        with Image.open(record["file_name"]) as image:
            assert image.size == (record["width"], record["height"])
