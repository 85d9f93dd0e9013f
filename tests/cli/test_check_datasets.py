"""`scnet check` on small data sets with each fault it knows."""

import json

from scnet_d2.cli import check

import pytest
from conftest import scnet
from PIL import Image


@pytest.fixture
def data(tmp_path):
    """Writes three images of two classes; returns the arguments that register them."""
    images = [{"id": i, "file_name": f"{i}.png", "width": 8, "height": 6} for i in range(3)]
    boxes = [{"id": i, "image_id": i, "category_id": i % 2, "bbox": [0, 0, 4, 4]} for i in range(3)]
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (tmp_path / "json").write_text(json.dumps(content))
    for image in images:
        Image.new("RGB", (8, 6)).save(tmp_path / image["file_name"])
    return [
        "--workers",
        "1",
        "--register-coco",
        tmp_path.name,
        str(tmp_path / "json"),
        str(tmp_path),
    ]


def problems(capsys, arguments):
    code = scnet("check", *arguments)
    printed = capsys.readouterr().out
    found = [line for line in printed.splitlines() if line.startswith("problem:")]
    assert code == bool(found)
    return found, printed


@pytest.mark.parametrize("how", [[], ["--images", "header"], ["--images", "full"]])
def test_whole_data_pass_with_a_histogram(capsys, data, how):
    found, printed = problems(capsys, data + how)
    assert not found
    assert "3 images, 3 with a label, 2 classes" in printed
    assert "1 data set, 0 problems" in printed
    assert "cat 2 ####" in printed


def test_labels_are_counted_under_the_policy_of_a_config_file(capsys, data, tmp_path):
    content = json.loads((tmp_path / "json").read_text())
    for annotation in content["annotations"]:  # cat in 0 and 2, dog in 1
        annotation["iscrowd"] = int(annotation["id"] > 0)
    (tmp_path / "json").write_text(json.dumps(content))
    (tmp_path / "c.yaml").write_text("DATASETS: {CROWD_LABELS: absent}\nVERSION: 2\n")
    assert not problems(capsys, data)[0]
    (found,), printed = problems(capsys, [*data, "--config-file", str(tmp_path / "c.yaml")])
    assert "3 images, 1 with a label" in printed
    assert "no image has 1 of the 2 classes, dog: these" in found


def test_a_file_of_several_entries_is_named(capsys, data, tmp_path):
    content = json.loads((tmp_path / "json").read_text())
    content["images"][2]["file_name"] = "0.png"
    (tmp_path / "json").write_text(json.dumps(content))
    (found,), _ = problems(capsys, data)
    assert f"image file '{tmp_path}/0.png' is listed 2 times; merge its entries" in found


def test_a_file_that_is_not_there_is_named(capsys, data, tmp_path):
    (tmp_path / "1.png").unlink()
    (found,), _ = problems(capsys, data)
    assert "1.png' does not exist; correct the name" in found
    assert "archive" not in found  # nobody has one of their own images


def test_images_of_ones_own_in_the_place_of_published_ones_have_no_archive(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    folders = [tmp_path / "VOC2007" / f for f in ("Annotations", "ImageSets/Main", "JPEGImages")]
    for folder in folders:
        folder.mkdir(parents=True)
    for image, expected in (("000012", True), ("kitchen", False)):
        size = "<size><width>8</width><height>6</height></size>"
        (folders[0] / f"{image}.xml").write_text(f"<annotation>{size}</annotation>")
        (folders[1] / "train.txt").write_text(image)
        found, printed = problems(capsys, ["voc_2007_train_multilabel"])
        assert any(f"{image}.jpg' does not exist; correct the name, or" in line for line in found)
        assert ("get the archive again" in "".join(found)) == expected
        assert ("get the archive again" in printed.partition("problem:")[0]) == expected


def test_a_whole_image_system_has_no_use_for_boxes(capsys, data, annotate, tmp_path):
    annotate({"iscrowd": 1})
    labeler = "MODEL: {META_ARCHITECTURE: ImageLabeler}\nVERSION: 2\n"
    (tmp_path / "c.yaml").write_text(labeler)
    assert not problems(capsys, [*data, "--config-file", str(tmp_path / "c.yaml")])[0]


def test_a_truncated_image_is_found_by_decoding_it(capsys, data, tmp_path):
    Image.effect_noise((8, 6), 50).save(tmp_path / "2.png")
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[:60])  # header and part of the pixels
    assert not problems(capsys, data)[0]
    (found,), _ = problems(capsys, [*data, "--images", "full"])
    assert "2.png' cannot be read" in found


@pytest.mark.parametrize("how", ["header", "full"])
def test_an_image_of_another_size_is_found(capsys, data, tmp_path, how):
    Image.new("RGB", (6, 8)).save(tmp_path / "0.png")
    (found,), _ = problems(capsys, [*data, "--images", how])
    assert "(6, 8) and annotated as (8, 6)" in found


def test_an_image_turned_by_its_exif_data_has_the_size_it_is_shown_in(capsys, data, tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (6, 8)).save(tmp_path / "0.png", exif=exif)
    for how in ("header", "full"):
        assert not problems(capsys, [*data, "--images", how])[0]


@pytest.mark.parametrize("how", ["header", "full"])
def test_exif_data_are_named_where_an_image_is_annotated_as_stored(capsys, data, tmp_path, how):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "0.png", exif=exif)
    (found,), _ = problems(capsys, [*data, "--images", how])
    assert "is (6, 8) as its EXIF data turn it and annotated as it is stored, (8, 6)" in found


@pytest.fixture
def annotate(tmp_path):
    """Changes the values of all annotations, or replaces them by a list."""

    def change(values):
        content = json.loads((tmp_path / "json").read_text())
        if isinstance(values, list):
            content["annotations"] = values
        for annotation in content["annotations"]:
            annotation.update(values)
        (tmp_path / "json").write_text(json.dumps(content))

    return change


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"bbox": [0.1, 0.2, 0.5, 0.6]}, "all 3 boxes are smaller than a pixel; are they relative"),
        (
            {"bbox": [4, 2, 8, 6]},
            "3 of 3 boxes end past the right or lower edge of their image; ar",
        ),
        ({"iscrowd": 1}, "3 of 3 annotations are crowds: no training boxes"),
    ],
    ids=str,
)
def test_boxes_that_cannot_be_meant_so_are_a_question(capsys, data, annotate, values, expected):
    annotate(values)
    (found,), _ = problems(capsys, data)
    assert expected in found


@pytest.mark.parametrize("bbox", [[4, 2, 4.5, 4.5], [0, 0, 8, 6], [0, 0, 0.5, 2]], ids=str)
def test_boxes_at_the_edge_and_narrow_ones_are_no_question(capsys, data, annotate, bbox):
    annotate({"bbox": bbox})
    assert not problems(capsys, data)[0]


def test_data_without_annotations_are_a_problem(capsys, data, annotate):
    annotate([])
    found, _ = problems(capsys, data)
    assert "no annotations in 3 images: no training boxes" in found[0]


def test_annotations_that_mark_nothing_are_a_problem_and_no_labels(capsys, data, tmp_path):
    content = json.loads((tmp_path / "json").read_text())
    content["annotations"][2]["bbox"] = [0, 0, 0, 0]
    (tmp_path / "json").write_text(json.dumps(content))
    (found,), printed = problems(capsys, data)
    assert "annotation 2 of image 2 marks nothing" in found
    assert "3 images, 2 with a label" in printed


def test_many_classes_without_examples_are_counted_and_ten_named(capsys, data, tmp_path):
    content = json.loads((tmp_path / "json").read_text())
    content["categories"] += [{"id": i, "name": f"class {i}"} for i in range(2, 1205)]
    (tmp_path / "json").write_text(json.dumps(content))
    (found,), _ = problems(capsys, data)
    assert "no image has 1,203 of the 1,205 classes, class 2, class 3," in found
    assert "class 11 and 1,193 more: these cannot" in found


def test_a_part_of_a_published_data_set_is_a_problem_where_all_of_it_is_asked_for(
    capsys, data, monkeypatch
):
    monkeypatch.setitem(check.IMAGES, data[3], 5)
    found, printed = problems(capsys, data)
    assert not found
    assert "has 3 images, published are 5" in printed
    (found,), _ = problems(capsys, [*data, "--complete"])
    assert "has 3 images, published are 5" in found


def test_a_class_without_examples_is_named(capsys, data, tmp_path):
    content = json.loads((tmp_path / "json").read_text())
    content["categories"].append({"id": 2, "name": "cow"})
    (tmp_path / "json").write_text(json.dumps(content))
    (found,), _ = problems(capsys, data)
    assert "no image has 1 of the 3 classes, cow: these" in found


def test_all_problems_are_found_counted_by_kind_and_the_first_three_shown(capsys, data, tmp_path):
    content = json.loads((tmp_path / "json").read_text())
    sizes = [(8, 6)] * 5 + [(6, 8)]
    for i, size in enumerate(sizes, 3):
        content["images"].append({"id": i, "file_name": f"{i}.png", "width": 8, "height": 6})
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
    for i in range(3, 7):
        (tmp_path / f"{i}.png").write_bytes(b"")
    (tmp_path / "0.png").unlink()
    (tmp_path / "1.png").unlink()
    (tmp_path / "json").write_text(json.dumps(content))
    kinds = [
        "2 times: image file '{}/0.png' does not exist | image file '{}/1.png' does not exist; co",
        "4 times: image '{}/3.png' cannot be read",
        "image '{}/8.png' is (6, 8) and annotated as (8, 6)",
    ]
    found, _ = problems(capsys, [*data, "--images"])
    for line, kind in zip(found, kinds, strict=True):
        assert line.startswith(f"problem: {tmp_path.name}: {kind.format(tmp_path, tmp_path)}")
    assert "5.png" in found[1]
    assert "6.png" not in found[1]
    content["annotations"][0]["category_id"] = 7  # the images are looked at all the same
    (tmp_path / "json").write_text(json.dumps(content))
    first, *others = problems(capsys, [*data, "--images"])[0]
    assert first.endswith("add it to 'categories' or delete the annotation")
    assert others == found


def test_absent_data_are_a_problem_with_a_remedy(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (found,), _ = problems(capsys, ["coco_2014_val_multilabel"])
    assert "datasets/README.md" in found


def test_an_unknown_name_is_a_problem(capsys):
    (found,), _ = problems(capsys, ["coco_2041_val"])
    assert "'coco_2041_val' is not a multi-label data set" in found


@pytest.mark.parametrize(("labelled", "expected"), [(2, 0), (1, 1)])
def test_counts_are_compared_with_the_published_ones(monkeypatch, labelled, expected):
    monkeypatch.setattr(check, "IMAGES", {"toys": 3})
    monkeypatch.setattr(check, "ANNOTATED", {"toys": 2})
    record = {"file_name": "a.jpg", "ignored_labels": []}
    records = [record | {"image_labels": [0] * (i < labelled)} for i in range(3)]
    assert len(list(check.wrong_counts("toys", records))) == expected
    assert len(list(check.wrong_counts("toys", records[:2]))) == 1 + expected


@pytest.mark.parametrize("width", [20, 80, 200])
def test_the_histogram_fits_the_terminal(width):
    lines = check.histogram(["dining table"] * 80, list(range(80)), width).splitlines()
    assert max(map(len, lines)) <= max(width, 25)
    assert sum(line.count("dining table") for line in lines) == 80
