"""Tables of labels without boxes: both formats, both forms, and what is wrong with one."""

import json

from scnet_d2.data import (
    DatasetError,
    get_multilabel_dicts,
    get_training_dicts,
    register_coco_multilabel,
    register_label_table,
)
from scnet_d2.data.labels import LabelPolicy

import pytest
from conftest import small_config
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

# cat in a and unknown in b, dog in a and b, neither in c.
PRESENT, IGNORED = [[0, 1], [1], []], [[], [0], []]
MARKED = "file,cat,dog\na.jpg,1,1\nb.jpg,,1\nc.jpg,0,0\n"
LISTED = "file,labels,ignored\na.jpg,cat;dog,\nb.jpg,dog,cat\nc.jpg,,\n"
TABLES = {
    "marked.csv": MARKED,
    "semicolons.csv": MARKED.replace(",", ";"),
    "tabs.tsv": MARKED.replace(",", "\t"),
    "booleans.csv": "image,cat,dog\na.jpg,True,TRUE\nb.jpg,-1,true\nc.jpg,False,0.0\n",
    "bom.csv": "\ufeff" + MARKED.replace("\n", "\r\n"),
    "pandas.csv": ",path,cat,dog\n0,a.jpg,1.0,1.0\n1,b.jpg,,1.0\n2,c.jpg,0.0,0.0\n",
    "listed.csv": LISTED,
    "quoted.csv": LISTED.replace("cat;dog", '"cat, dog"'),
    "bars.csv": LISTED.replace(",", "\t").replace("cat;dog", "cat|dog"),
    "listed.jsonl": (
        '{"file": "a.jpg", "labels": ["dog", "cat"]}\n\n'
        '{"file": "b.jpg", "labels": "dog", "ignored": ["cat"]}\n'
        '{"file": "c.jpg", "labels": []}\n'
    ),
    "marked.jsonl": (
        '{"file": "a.jpg", "cat": 1, "dog": true}\n'
        '{"file": "b.jpg", "dog": 1, "cat": null}\n'
        '{"file": "c.jpg", "cat": 0, "dog": false}\n'
    ),
}  # fmt: skip


@pytest.fixture
def load(tmp_path):
    """Writes a table, registers it as "table" and loads it; the name is free again afterwards."""

    def write_and_load(name, text, encoding="utf-8"):
        (tmp_path / name).write_text(text, encoding=encoding, newline="")
        register_label_table("table", tmp_path / name, tmp_path)
        return DatasetCatalog.get("table")

    yield write_and_load
    DatasetCatalog.pop("table", None)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_any_form_gives_labels_and_leaves_unknown_ones_out(load, tmp_path, name):
    records = load(name, TABLES[name])
    assert [r["file_name"] for r in records] == [str(tmp_path / f"{x}.jpg") for x in "abc"]
    assert [r["image_id"] for r in records] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [r["image_labels"] for r in records] == PRESENT
    assert [r["ignored_labels"] for r in records] == IGNORED
    assert not any("annotations" in r for r in records)
    assert MetadataCatalog.get("table").thing_classes == ["cat", "dog"]


def test_classes_of_a_list_are_those_of_classes_txt_in_its_order(load, tmp_path):
    (tmp_path / "classes.txt").write_text("dog\ncow\n\ncat\n")
    records = load("a.csv", LISTED)
    assert MetadataCatalog.get("table").thing_classes == ["dog", "cow", "cat"]
    assert [r["image_labels"] for r in records] == [[0, 2], [0], []]


def test_images_without_a_label_are_dropped_where_the_policy_says_so(load):
    load("a.csv", MARKED)
    kept = get_multilabel_dicts("table", LabelPolicy(keep_unannotated=False))
    assert [r["image_id"] for r in kept] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", MARKED.replace(",,", ",2,"), r"a\.csv: line 3: image 'b\.jpg', class 'cat': '2'"),
        ("a.csv", MARKED + "d.jpg,1\n", r"line 5: image d\.jpg has 1 cell, not 2, of cat, dog"),
        ("a.csv", MARKED + "a.jpg,1,0\n", r"line 5: image a\.jpg comes twice, first in line 2"),
        ("a.csv", MARKED.replace("dog", "cat"), "more than one column of a name"),
        ("a.csv", MARKED.replace("dog", " "), "class name '' is empty"),
        ("a.csv", MARKED.replace("file", "id"), r"line 1: must be .* file,labels, got \['id'"),
        ("a.csv", MARKED.replace("b.jpg", "../b.jpg"), r"'\.\./b\.jpg' leads out of"),
        ("a.csv", MARKED.replace("b.jpg", " "), "line 3: '' names no file"),
        ("a.csv", "file,labels\n", "no image is listed"),
        ("a.csv", "file,labels\na.jpg,\n", "no image has a label"),
        ("a.csv", LISTED.replace("b.jpg,dog", "b.jpg,cat"), "line 3: .* 'cat' is in labels and in"),
        ("a.csv", LISTED.replace("ignored", "split"), "column 'split' stands beside 'labels'"),
        ("a.csv", MARKED + '"d.jpg,1,1\n' + "x" * 140_000, r"a\.csv, line \d: field larger"),
        ("a.jsonl", '{"file": "a.jpg"}\n', "line 1: .* is no object with the name of a file"),
        ("a.jsonl", "[1]\n{]\n", "line 2: no JSON"),
        ("a.jsonl", '{"file": "a.jpg", "labels": [1]}\n', r"line 1: .* labels is \[1\], no list"),
        ("a.jsonl", '{"file": "a.jpg", "labels": [1, 0]}\n', r"\[1, 0\], no .* a key\) for each"),
        ("a.csv", 'file,labels\na.jpg,"[1, 0]"\n', r"line 2: .*'\[1, 0\]', no .* a column \(in J"),
        ("a.csv", "file,labels\na.jpg,1;0\n", r"only 0 and 1, which .* \(in JSON"),
        (
            "a.jsonl",
            '{"file": "a.jpg", "cat": 1}\n{"file": "b.jpg", "dog": 1}\n',
            r"line 2: image b\.jpg has not the keys of the first line: 'cat'",
        ),
    ],
)  # fmt: skip
def test_a_faulty_table_is_named_with_line_and_value(load, name, text, message):
    with pytest.raises(DatasetError, match=message):
        load(name, text)


def test_a_list_that_python_wrote_into_a_cell_is_read_as_one(load):
    records = load("a.csv", """file,labels\na.jpg,"['cat', 'dog']"\nb.jpg,"['dog']"\n""")
    assert [r["image_labels"] for r in records] == [[0, 1], [1]]
    assert MetadataCatalog.get("table").thing_classes == ["cat", "dog"]


def test_all_problems_of_a_table_are_collected_and_counted(load):
    text = MARKED + "".join(f"{i}.jpg,yes,no\n" for i in range(4)) + "a.jpg,1,1\n"
    with pytest.raises(DatasetError) as caught:
        load("a.csv", text)
    assert "9 problems of 2 kinds" in str(caught.value)
    assert "8 times: line 5: image '0.jpg', class 'cat': 'yes'" in str(caught.value)


def test_labels_that_classes_txt_lacks_are_named(load, tmp_path):
    (tmp_path / "classes.txt").write_text("dog\n")
    with pytest.raises(DatasetError, match=r"label 'cat' is not in .*classes\.txt; add it there"):
        load("a.csv", LISTED)


def test_a_table_in_utf_16_is_named(load):
    with pytest.raises(DatasetError, match=r"a\.csv: not UTF-8"):
        load("a.csv", MARKED, encoding="utf-16")


def test_a_name_of_other_data_is_refused(load, tmp_path):
    load("a.csv", MARKED)
    register_label_table("table", tmp_path / "a.csv", tmp_path)  # the same again
    with pytest.raises(DatasetError, match=r"already registered with label_file '.*a\.csv' and"):
        register_coco_multilabel("table", tmp_path / "a.json", tmp_path)


@pytest.fixture
def both(load, tmp_path):
    """One image with a box, "boxed", and the three of the table; b is a portrait, c is broken."""
    for name, size in (("a.jpg", (9, 6)), ("b.jpg", (6, 9)), ("d.jpg", (9, 6))):
        Image.new("RGB", size).save(tmp_path / name)
    (tmp_path / "c.jpg").write_bytes(b"no image")
    content = {
        "images": [{"id": 1, "file_name": "d.jpg", "height": 6, "width": 9}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4]}],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    load("a.csv", MARKED)
    register_coco_multilabel("boxed", tmp_path / "a.json", tmp_path)
    yield ("table", "boxed")
    DatasetCatalog.pop("boxed")


def test_images_with_boxes_and_images_with_labels_alone_train_together(both):
    cfg = small_config("DATASETS.TRAIN", both, "MODEL.SCNET.IMAGE.ENABLED", True)
    records = get_training_dicts(cfg)
    assert [r["image_id"] for r in records] == [1, "a.jpg", "b.jpg", "c.jpg"]
    assert [(r.get("height"), r.get("width")) for r in records] == [
        (6, 9), (6, 9), (9, 6), (None, None)
    ]  # fmt: skip
    cfg.DATASETS.TRAIN = ("table",)
    assert len(get_training_dicts(cfg)) == 3  # boxes are not missed where there are none


def test_labels_alone_are_refused_where_the_model_learns_from_boxes_alone(both):
    cfg = small_config("DATASETS.TRAIN", both)
    with pytest.raises(DatasetError, match=r"table, boxed: 3 training images with labels and no b"):
        get_training_dicts(cfg)
