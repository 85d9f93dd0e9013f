"""PASCAL VOC data sets: boxes, difficult objects, labels and errors."""

import itertools
import logging
import os
from pathlib import Path

from scnet_d2.data import DatasetError, LabelPolicy, get_multilabel_dicts
from scnet_d2.data.catalog import get_training_dicts

import pytest
import torch
from conftest import REAL_ROOT, needs_voc, small_config
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_voc_instances
from detectron2.data.datasets.pascal_voc import CLASS_NAMES
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from PIL import Image

NAME = "voc_2007_train_multilabel"
COW, DOG, PERSON = (CLASS_NAMES.index(name) for name in ("cow", "dog", "person"))
SIZE = "<size><width>60</width><height>40</height><depth>3</depth></size>"


@pytest.fixture
def voc(tmp_path, monkeypatch):
    """An empty VOC2007 folder under the data sets root."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / "VOC2007" / folder).mkdir(parents=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path / "VOC2007"


def obj(name, box=(1, 1, 20, 20), difficult=0, extra=""):
    corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    bndbox = "".join(f"<{tag}>{value}</{tag}>" for tag, value in corners)
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        f"<bndbox>{bndbox}</bndbox>{extra}</object>"
    )


def write_bytes(folder, content, listed=b"a\n"):
    """Write the annotation of image "a" and the list as they are."""
    (folder / "Annotations/a.xml").write_bytes(content)
    (folder / "ImageSets/Main/train.txt").write_bytes(listed)


def write(folder, **images):
    """Write one xml per image, given as its content, and the list of them."""
    for image_id, content in images.items():
        text = f"<annotation>{content}</annotation>"
        (folder / "Annotations" / f"{image_id}.xml").write_text(text)
    (folder / "ImageSets/Main/train.txt").write_text("\n".join(images) + "\n")


def test_record_has_zero_based_boxes_and_labels(voc):
    write(voc, i139=SIZE + obj("dog", (2, 3, 60, 40)) + obj("cow", (1, 1, 5, 5)))
    (record,) = DatasetCatalog.get(NAME)
    assert record["file_name"] == str(voc / "JPEGImages/i139.jpg")
    assert (record["image_id"], record["height"], record["width"]) == ("i139", 40, 60)
    assert [a["bbox"] for a in record["annotations"]] == [[1, 2, 60, 40], [0, 0, 5, 5]]
    assert record["image_labels"] == [COW, DOG]
    assert record["ignored_labels"] == []


# Three images and what the official lists say of "dog" there: 1, 0 and -1.
THREE = {
    "a": SIZE + obj("dog") + obj("dog", difficult=1),
    "b": SIZE + obj("dog", difficult=1) + obj("cow"),
    "c": SIZE + obj("cow"),
}


@pytest.mark.parametrize(
    ("policy", "state_of_b", "boxes"),
    [
        ("ignored", 0, [[0, 1], [1, 0], [0]]),
        ("present", 1, [[0, 1], [1, 0], [0]]),
        ("absent", -1, [[0], [0], [0]]),
    ],
)
def test_difficult_objects_follow_the_policy_in_labels_and_boxes(voc, policy, state_of_b, boxes):
    write(voc, **THREE)
    records = get_multilabel_dicts(NAME, LabelPolicy(difficult=policy))
    assert [official_state(r, DOG) for r in records] == [1, state_of_b, -1]
    assert [[a["difficult"] for a in r["annotations"]] for r in records] == boxes


def official_state(record, class_id):
    if class_id in record["image_labels"]:
        return 1
    return 0 if class_id in record["ignored_labels"] else -1


def test_parts_of_a_person_are_not_objects(voc):
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    write(voc, a=SIZE + obj("person", extra=part))
    (record,) = DatasetCatalog.get(NAME)
    assert [a["category_id"] for a in record["annotations"]] == [PERSON]


def test_unusable_boxes_are_dropped_and_their_labels_stay(voc, caplog):
    boxes = (
        (9, 9, 5, 20),
        (9, 9, 20, 8),  # of no height: 9 to 9 is one pixel
        (70, 1, 80, 9),
        ("nan", 1, 9, 9),
        (1, 1, "inf", 9),
        (1, 1, "9" * 5000, 9),
    )
    write(voc, a=SIZE + "".join(obj("dog", box) for box in boxes) + obj("cow", (-5, 1, 99, 9)))
    with caplog.at_level(logging.WARNING):
        (record,) = DatasetCatalog.get(NAME)
    assert [a["bbox"] for a in record["annotations"]] == [[0, 0, 60, 9]]
    assert record["image_labels"] == [COW, DOG]
    assert [r.message for r in caplog.records if f"{NAME}: left out 6 boxes," in r.message]


def test_box_from_a_pixel_to_itself_is_one_pixel(voc):
    write(voc, a=SIZE + obj("dog", (20, 30, 20, 30)))
    (record,) = DatasetCatalog.get(NAME)
    assert record["annotations"][0]["bbox"] == [19, 29, 20, 30]


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_absent_size_is_read_from_the_image(voc, size):
    write(voc, a=size + obj("dog"))
    Image.new("RGB", (33, 22)).save(voc / "JPEGImages/a.jpg")
    (record,) = DatasetCatalog.get(NAME)
    assert (record["height"], record["width"]) == (22, 33)


def test_changed_file_is_read_again(voc):
    write(voc, a=SIZE + obj("dog"))
    assert DatasetCatalog.get(NAME)[0]["image_labels"] == [DOG]
    write(voc, a=SIZE + obj("cow"))
    os.utime(voc / "Annotations/a.xml", ns=(1, 1))
    assert DatasetCatalog.get(NAME)[0]["image_labels"] == [COW]


def test_callers_may_change_what_they_loaded(voc):
    write(voc, a=SIZE + obj("dog"))
    DatasetCatalog.get(NAME)[0]["annotations"][0]["bbox"][0] = 99
    assert DatasetCatalog.get(NAME)[0]["annotations"][0]["bbox"] == [0, 0, 20, 20]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (obj("cows"), "class 'cows' is not one of the 20 VOC classes"),
        (obj("dog", (1, 2, "x", 4)), "box of a 'dog' is .*not four numbers"),
        ("<object><name>dog</name></object>", "box of a 'dog' is .*not four numbers"),
        ("<object>", "mismatched tag"),
        (obj("dog", difficult="perhaps"), "difficult is 'perhaps', not 0, 1, false or true"),
        (obj("dog", difficult=2), "difficult is '2', not 0, 1, false or true"),
        (obj("dog", difficult="Unspecified"), "difficult is 'Unspecified', not 0, 1, false or"),
        (obj("dog", extra="<Difficult>1</Difficult>"), "not 0, 1, false or true, once in each"),
        (obj("kitten"), "class 'kitten' is not one .* classes of your own, .* --register-coco"),
        (obj("Dog"), "class 'Dog' is not one of the 20 VOC classes"),
        ("<object><bndbox/></object>", "class '' is not one of the 20 VOC classes"),
        (obj("x" * 5000), r"class 'x+\.\.\.x+' is not one"),
        ("<folder>&undeclared;</folder>", "undefined entity"),
    ],
    ids=lambda value: value if len(value) < 99 else "",
)
def test_broken_annotation_is_named_with_its_fault(voc, content, message):
    write(voc, i139=SIZE + content)
    with pytest.raises(DatasetError, match=message) as error:
        DatasetCatalog.get(NAME)
    assert f"{NAME}: image i139.jpg" in str(error.value)
    assert str(voc / "Annotations/i139.xml") in str(error.value)


def test_all_problems_are_counted_by_kind_and_the_first_three_shown(voc):
    kittens = obj("kitten") * 2 + obj("dog", difficult=2)
    write(voc, a=SIZE + kittens, b=SIZE + kittens, c="<object>")
    (voc / "ImageSets/Main/train.txt").write_text("a\nb\nx.jpg\nc\nb\n")
    with pytest.raises(DatasetError) as error:
        DatasetCatalog.get(NAME)
    title, *lines = str(error.value).splitlines()
    assert title == f"{NAME}: 9 problems of 5 kinds:"
    assert "train.txt: line 3 is 'x.jpg', the name of a file; write the image id" in lines[0]
    assert "train.txt: image b occurs twice; keep one line of it" in lines[1]
    a, b = (f"image {i}.jpg ('{voc}/Annotations/{i}.xml'): class 'kitten' is not" for i in "ab")
    assert lines[2].startswith(f"- 4 times: {a}")
    assert [lines[2].count(a), lines[2].count(b)] == [2, 1]
    assert " | …; correct the name; for classes of your own" in lines[2]
    assert lines[3].startswith("- 2 times: image a.jpg")
    assert "image c.jpg" in lines[4] and "correct or restore the file" in lines[4]


@pytest.mark.parametrize("width", ["-60", "60.0", "nan", "wide", "9" * 400, "9" * 5000], ids=len)
def test_size_that_is_no_whole_number_is_refused(voc, width):
    size = SIZE.replace("<width>60</width>", f"<width>{width}</width>")
    write(voc, a=size + obj("dog"))
    with pytest.raises(DatasetError, match=r"image a\.jpg .*size/width is .* not a whole number"):
        DatasetCatalog.get(NAME)


def test_absent_size_of_an_unreadable_image_is_an_error(voc, monkeypatch):
    write(voc, a=obj("dog"))
    with pytest.raises(DatasetError, match=r"image a\.jpg .*a\.jpg' cannot be read"):
        DatasetCatalog.get(NAME)
    Image.new("RGB", (33, 22)).save(voc / "JPEGImages/a.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DatasetError, match=r"a\.jpg.*exceeds limit of 200 pixels"):
        DatasetCatalog.get(NAME)


WHOLE = f"<annotation><folder>Bäume</folder>{SIZE}{obj('dog')}</annotation>"


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [("", "utf-8-sig"), ("", "utf-16"), ("iso-8859-1", "latin-1"), ("windows-1252", "cp1252")],
)
def test_declared_encodings_and_byte_order_marks_are_read(voc, declared, encoding):
    declaration = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""
    write_bytes(voc, (declaration + WHOLE).encode(encoding))
    (record,) = DatasetCatalog.get(NAME)
    assert record["image_labels"] == [DOG]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no element found"),
        (WHOLE.encode()[:120], "line 1, column"),
        (WHOLE.encode() * 2, "junk after document element"),
        (WHOLE.encode("latin-1"), "not well-formed"),
        (b"<?xml version='1.0' encoding='klingon'?>" + WHOLE.encode(), "unknown encoding: klingon"),
        (b"<?xml version='1.0' encoding='hex'?>" + WHOLE.encode(), "'hex' is not a text encoding"),
        (b"<?xml version='1.0' encoding='utf-7'?>" + WHOLE.encode(), "multi-byte encodings"),
        (b"<html><p>404</p></html>", "its annotation is a <html>, not an <annotation>"),
        (b'{"annotations": []}', "not well-formed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_file_that_is_no_annotation_is_named_with_its_fault(voc, content, message):
    write_bytes(voc, content)
    with pytest.raises(DatasetError, match=rf"{NAME}: image a\.jpg .*: .*{message}"):
        DatasetCatalog.get(NAME)


@pytest.mark.parametrize(("text", "expected"), [("True", 1), ("false", 0), ("1", 1), (" 0 ", 0)])
@pytest.mark.parametrize("tag", ["difficult", "Difficult"])
def test_difficult_is_read_as_it_is_meant(voc, tag, text, expected):
    content = obj("dog", difficult=text).replace("difficult", tag)
    write(voc, a=SIZE + content)
    (record,) = DatasetCatalog.get(NAME)
    assert record["annotations"][0]["difficult"] == expected
    assert (record["image_labels"], record["ignored_labels"]) == (
        ([], [DOG]) if expected else ([DOG], [])
    )


def test_objects_with_a_capital_are_read(voc):
    write(voc, a=SIZE + obj("dog").replace("object", "Object"))
    assert DatasetCatalog.get(NAME)[0]["image_labels"] == [DOG]


def test_object_of_four_zeros_is_named_and_no_label(voc, caplog):
    write(voc, a=SIZE + obj("dog") + obj("cow", (0, 0, 0, 0)))
    (record,) = DatasetCatalog.get(NAME)
    assert record["image_labels"] == [DOG]
    assert record["empty_annotations"] == [2]
    assert "1 object with a box of four zeros, which marks nothing" in caplog.text
    assert "first object 2 of image a;" in caplog.text


@pytest.mark.parametrize("ending", ["jpg", "JPG", "jpeg", "JPEG", "png", "PNG"])
def test_every_ending_of_an_image_is_found(voc, ending):
    write(voc, a=obj("dog"))
    Image.new("RGB", (33, 22)).save(voc / f"JPEGImages/a.{ending}")
    (record,) = DatasetCatalog.get(NAME)
    assert record["file_name"] == str(voc / f"JPEGImages/a.{ending}")
    assert (record["height"], record["width"]) == (22, 33)


@pytest.mark.parametrize("listed", ["photo 1", "photo 1 -1", "a b c"])
def test_image_id_with_spaces_is_read(voc, listed):
    image_id = listed.removesuffix(" -1")
    write(voc, **{image_id: SIZE + obj("dog")})
    (voc / "ImageSets/Main/train.txt").write_text(listed)
    (record,) = DatasetCatalog.get(NAME)
    assert (record["image_id"], record["image_labels"]) == (image_id, [DOG])


def test_line_that_may_be_an_id_or_an_id_with_a_state_is_refused(voc):
    write(voc, **{"photo": SIZE + obj("dog"), "photo 1": SIZE + obj("cow")})
    with pytest.raises(DatasetError, match=r"line 2 is 'photo 1', which may mean 'photo 1\.xml'"):
        DatasetCatalog.get(NAME)


def test_deeply_nested_elements_are_read(voc):
    write(voc, a=SIZE + "<part>" * 20_000 + "</part>" * 20_000 + obj("dog"))
    assert DatasetCatalog.get(NAME)[0]["image_labels"] == [DOG]


@pytest.mark.parametrize(
    "listed",
    [b"\n\n  \na\n\n", b"a\r\n", b"a", b"\xef\xbb\xbfa\n", b"a -1\n", b"a  1\n"],
    ids=repr,
)
def test_list_with_blank_lines_byte_order_mark_or_states_is_read(voc, listed):
    write_bytes(voc, WHOLE.encode(), listed)
    assert [r["image_id"] for r in DatasetCatalog.get(NAME)] == ["a"]


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (b"a b c\n", r"line 1 is 'a b c', and '.*/a b c\.xml' does not exist; add .* one image id"),
        (b"a\na 2\n", r"train\.txt: line 2 is 'a 2', and '.*Annotations/a 2\.xml' does not exist"),
        (b"a\nb -1\n", r"line 2 is 'b -1', and '.*Annotations/b\.xml' does not exist"),
        (b"a\nb\n", r"line 2 is 'b', and '.*Annotations/b\.xml' does not exist; add the xml file"),
        (b"a\n# comment\n", r"line 2 is '# comment', and '.*/# comment\.xml' does not exist"),
        ("a\n".encode("utf-16"), "not UTF-8"),
        (b"a\n\xe4\n", "not UTF-8"),
        (b"a\0\n", r"line 1 is 'a\\x00', and"),
        (b"a\nx.jpg\n", "line 2 is 'x.jpg', the name of a file; write .* without '.jpg'"),
        (b"x.JPEG\n", "line 1 is 'x.JPEG', the name of a file; write .* without '.JPEG'"),
    ],
    ids=repr,
)
def test_list_with_other_content_is_refused(voc, listed, message):
    write_bytes(voc, WHOLE.encode(), listed)
    with pytest.raises(DatasetError, match=message):
        DatasetCatalog.get(NAME)


def test_objects_that_mark_nothing_are_listed_beside_other_problems(voc):
    write(voc, a=SIZE + obj("cow", (0, 0, 0, 0)) + obj("kitten"))
    with pytest.raises(DatasetError) as error:
        DatasetCatalog.get(NAME)
    assert "class 'kitten' is not one of the 20" in error.value.problems[0]
    assert "object 1 of image a marks nothing (four zeros in <bndbox>)" in error.value.problems[1]


def test_training_without_a_box_is_refused_in_the_words_of_voc(voc):
    write(voc, a=SIZE + obj("dog", (9, 9, 5, 20)) + obj("cow", (0, 0, 0, 0)))
    Image.new("RGB", (60, 40)).save(voc / "JPEGImages/a.jpg")
    message = "2 of 2 objects without a usable box: no training boxes; correct <bndbox> in the xml"
    with pytest.raises(DatasetError, match=message):
        get_training_dicts(small_config("DATASETS.TRAIN", (NAME,)))
    write(voc, a=SIZE + obj("dog", difficult=1))
    absent = "DATASETS.DIFFICULT_LABELS", "absent"
    with pytest.raises(DatasetError, match="DIFFICULT_LABELS absent leaves difficult ones out"):
        get_training_dicts(small_config("DATASETS.TRAIN", (NAME,), *absent))


# &c; of ten times &l8;, of ten times &l7;, ...: 10^10 characters
NAMES = [f"l{i}" for i in range(9)] + ["c"]
LAUGHS = '<!ENTITY l0 "hahahahaha">' + "".join(
    f'<!ENTITY {name} "{f"&{inner};" * 10}">' for inner, name in itertools.pairwise(NAMES)
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    "declaration",
    [
        '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;&b;">]>',
        f"<!DOCTYPE a [{LAUGHS}]>",
        '<!DOCTYPE a SYSTEM "file:///etc/hostname">',
        '<!DOCTYPE a [<!ENTITY c SYSTEM "file:///etc/hostname">]>',
    ],
)
def test_xml_entities_are_refused(voc, declaration, encoding):
    write(voc, a="")
    text = f"{declaration}<annotation>{SIZE}<folder>&c;</folder></annotation>"
    (voc / "Annotations/a.xml").write_bytes(text.encode(encoding))
    with pytest.raises(DatasetError, match="declares a document type"):
        DatasetCatalog.get(NAME)


@pytest.mark.parametrize(
    ("listed", "message"), [("", "names no image"), ("a\nb\na\n", "image a occurs twice")]
)
def test_empty_and_repeated_lists_are_refused(voc, listed, message):
    write(voc, a=SIZE, b=SIZE)
    (voc / "ImageSets/Main/train.txt").write_text(listed)
    with pytest.raises(DatasetError, match=message):
        DatasetCatalog.get(NAME)


@pytest.mark.parametrize("missing", ["ImageSets/Main/train.txt", "Annotations", "JPEGImages"])
def test_absent_part_of_the_folder_is_named(voc, missing):
    write(voc, a=SIZE)
    (voc / missing).rename(voc / "elsewhere")
    with pytest.raises(DatasetError, match=f"{missing}' does not exist.*DETECTRON2_DATASETS"):
        DatasetCatalog.get(NAME)


def test_metadata_is_that_of_detectron2(voc):
    write(voc, a=SIZE)
    DatasetCatalog.get(NAME)
    meta = MetadataCatalog.get(NAME)
    assert (meta.dirname, meta.split, meta.year) == (str(voc), "train", 2007)
    assert meta.thing_classes == list(CLASS_NAMES)


def test_coco_evaluator_converts_voc_and_gives_100_ap_to_the_ground_truth(voc, tmp_path):
    write(voc, **THREE)
    evaluator = COCOEvaluator(NAME, ("bbox",), False, str(tmp_path / "out"), use_fast_impl=False)
    try:
        evaluator.reset()
        for record in DatasetCatalog.get(NAME):
            boxes = torch.tensor([a["bbox"] for a in record["annotations"]])
            instances = Instances((40, 60))
            instances.pred_boxes = Boxes(boxes)
            instances.scores = torch.ones(len(boxes))
            classes = [a["category_id"] for a in record["annotations"]]
            instances.pred_classes = torch.tensor(classes)
            evaluator.process([record], [{"instances": instances}])
        assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
    finally:
        vars(MetadataCatalog.get(NAME)).pop("json_file", None)


@needs_voc
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_records_equal_those_of_detectron2(monkeypatch, split):
    monkeypatch.setenv("DETECTRON2_DATASETS", REAL_ROOT)
    records = DatasetCatalog.get(f"voc_2012_{split}_multilabel")
    dirname = str(Path(REAL_ROOT).expanduser() / "VOC2012")
    expected = load_voc_instances(dirname, split, CLASS_NAMES)
    for ours, theirs in zip(records, expected, strict=True):
        for key in ("image_id", "height", "width", "file_name"):
            assert ours[key] == theirs[key]
        for a, b in zip(ours["annotations"], theirs["annotations"], strict=True):
            assert (a["bbox"], a["category_id"]) == (b["bbox"], b["category_id"])


@needs_voc
def test_real_labels_equal_the_official_lists(monkeypatch):
    lists = Path(REAL_ROOT).expanduser() / "VOC2012/ImageSets/Main"
    if not (lists / "dog_train.txt").exists():
        pytest.skip("no lists per class in ImageSets/Main")
    monkeypatch.setenv("DETECTRON2_DATASETS", REAL_ROOT)
    records = DatasetCatalog.get("voc_2012_train_multilabel")
    for class_id, name in enumerate(CLASS_NAMES):
        rows = (lists / f"{name}_train.txt").read_text().splitlines()
        states = {image_id: int(state) for image_id, state in map(str.split, rows)}
        assert {r["image_id"]: official_state(r, class_id) for r in records} == states
