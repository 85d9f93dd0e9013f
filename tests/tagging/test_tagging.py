"""scnet tag: inputs, formats, bad images, runs that are cut off, refusals, Ray."""

import csv
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from scnet_d2.data import read_reduced
from scnet_d2.data.context_scenes import CLASSES, SceneConfig, generate
from scnet_d2.inference import SCNetPredictor, describe_labels, rounded_scores
from scnet_d2.inference.predictor import ImageMapper
from scnet_d2.tagging import local_engine, ray_engine
from scnet_d2.tagging import output as tag_output
from scnet_d2.tagging.inputs import ImageFinder, InputList, read_list
from scnet_d2.tagging.local_engine import ImageReader, TagOptions
from scnet_d2.tagging.output import FORMATS

import cv2
import numpy as np
import processes
import pytest
import torch
from conftest import scnet, small_config
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.coco import COCO

BATCH = 2  # a chunk has eight batches


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Random weights, with their config.yaml beside them."""
    return save_model(tmp_path_factory.mktemp("model"), seed=0)


def save_model(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    cfg = small_config(
        "DATASETS.CLASS_NAMES", list(CLASSES), "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
        "MODEL.RPN.POST_NMS_TOPK_TEST", 10, "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96,
    )  # fmt: skip
    torch.save(build_model(cfg).state_dict(), folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "model.pth"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """28 scenes in two folders, cropped to three shapes."""
    root = tmp_path_factory.mktemp("photos")
    generate(str(root), SceneConfig(sizes=(28, 1, 1)))
    scenes = sorted((root / "context_scenes" / "images" / "train").iterdir())
    for i, scene in enumerate(scenes):
        target = root / "photos" / ("first" if i < 18 else "second") / scene.name
        target.parent.mkdir(parents=True, exist_ok=True)
        height, width = ((100, 140), (110, 80), (100, 100))[i % 3]
        cv2.imwrite(str(target), cv2.imread(str(scene))[:height, :width])
    return root / "photos"


@pytest.fixture
def tag(weights):
    """The program in this process; returns its exit status."""

    def run(*arguments, output, weights=weights, workers=0):
        options = ["--weights", weights, "--output", output, "--workers", workers]
        options += ["--threshold", 0, "--top-k", 3, "--batch-size", BATCH]
        return scnet("tag", *options, *arguments)

    return run


@pytest.fixture(scope="module")
def whole(weights, photos, tmp_path_factory) -> bytes:
    """JSON lines of an uninterrupted run."""
    output = tmp_path_factory.mktemp("whole") / "labels.jsonl"
    options = f"--weights {weights} --output {output} --threshold 0 --top-k 3 --workers 1"
    assert scnet("tag", *options.split(), "--batch-size", BATCH, photos) == 0
    return output.read_bytes()


def records(lines: bytes) -> list[dict]:
    return [json.loads(line) for line in lines.splitlines()]


# ---- What is written ----------------------------------------------------------------------------


def test_an_image_gets_the_labels_and_boxes_that_it_gets_alone(whole, photos, weights):
    files = sorted(photos.rglob("*.png"))
    assert [r["file"] for r in records(whole)] == list(map(str, files))
    cfg = small_config()
    cfg.merge_from_file(str(weights.parent / "config.yaml"))
    cfg.MODEL.WEIGHTS = str(weights)
    predictor = SCNetPredictor(cfg)
    for record in records(whole)[::5]:
        image = read_image(record["file"], format="BGR")
        assert (record["height"], record["width"]) == image.shape[:2]
        expected = describe_labels(predictor(image), CLASSES, top_k=3)
        assert [x["label"] for x in record["labels"]] == [x["label"] for x in expected]
        for found, alone in zip(record["labels"], expected, strict=True):
            assert found["score"] == pytest.approx(alone["score"], abs=2e-4)
            assert found["box"] == pytest.approx(alone["box"], abs=0.2)
            assert found["context_box"] == pytest.approx(alone["context_box"], abs=0.2)


def write_as(path: Path, file_format: str, lines: list[dict]) -> Path:
    """Write these records in a format, as a run does when its last image is finished."""
    settings = {"version": "1", "weights": "a", "thresholds": {}, "top_k": 3}
    with tag_output.TagOutput(path, file_format, settings) as output:
        assert list(output.finished()) == []
        output.append(lines)
        output.write_result(list(CLASSES))
    return path


def read_csv(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_a_row_for_each_label_with_both_boxes(whole, tmp_path):
    rows = read_csv(write_as(tmp_path / "labels.csv", "csv", records(whole)))
    expected = [(r, x) for r in records(whole) for x in r["labels"]]
    for row, (record, label) in zip(rows, expected, strict=True):
        assert (row["file"], row["label"]) == (record["file"], label["label"])
        numbers = [float(row[k]) for k in ("score", "x0", "y0", "x1", "y1")]
        assert numbers == [label["score"], *label["box"]]
        context = [float(row[f"context_{k}"]) for k in ("x0", "y0", "x1", "y1")]
        assert context == label["context_box"]


def test_csv_keeps_images_without_labels_and_images_that_failed(tmp_path):
    label = {"label": "a", "score": 1, "box": None, "context_box": None}
    lines = [
        {"file": "none.png", "width": 4, "height": 3, "labels": []},
        {"file": "boxless.png", "width": 4, "height": 3, "labels": [label]},
        {"file": "bad,\n.png", "error": "ValueError: broken"},
    ]
    rows = read_csv(write_as(tmp_path / "a.csv", "csv", lines))
    assert [[v for v in row.values() if v] for row in rows] == [
        ["none.png", "4", "3"],
        ["boxless.png", "4", "3", "a", "1"],
        ["bad,\n.png", "ValueError: broken"],
    ]


@pytest.mark.parametrize("file_format", ["csv", "coco", "jsonl"])
def test_a_file_name_that_is_not_utf8_is_written_in_utf8_and_can_be_had_back(tmp_path, file_format):
    names = [os.fsdecode(b"\xe4\xff.png"), "ä.png"]
    lines = [{"file": name, "width": 4, "height": 3, "labels": []} for name in names]
    text = write_as(tmp_path / "a", file_format, lines).read_bytes().decode()
    assert r"\udce4\udcff.png" in text
    assert os.fsencode(json.loads(r'"\udce4\udcff.png"')) == b"\xe4\xff.png"
    assert file_format != "csv" or "ä.png" in text


def test_coco_json_is_read_by_pycocotools(whole, tmp_path):
    failed = {"file": "bad.png", "error": "ValueError: broken"}
    path = write_as(tmp_path / "labels.json", "coco", [failed, *records(whole)])
    coco = COCO(str(path))
    assert coco.dataset["failed"] == [{"file_name": "bad.png", "error": "ValueError: broken"}]
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    for image_id, record in enumerate(records(whole), 1):
        image, first = coco.imgs[image_id], record["labels"][0]
        assert (image["file_name"], image["width"]) == (record["file"], record["width"])
        assert image["labels"][0]["score"] == first["score"]
        annotation = coco.imgToAnns[image_id][0]
        assert CLASSES[annotation["category_id"] - 1] == first["label"]
        x0, y0, x1, y1 = first["box"]
        assert annotation["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0])


def test_labels_below_their_threshold_are_left_out():
    output = {"image_scores": torch.tensor([0.2, 0.9, 0.5])}
    labels = describe_labels(output, "abc", thresholds=np.array([0.2, 0.95, 0.5]))
    assert [(x["label"], x["box"]) for x in labels] == [("c", None), ("a", None)]
    assert [x["score"] for x in rounded_scores(labels)] == [0.5, 0.2]


def test_a_detector_s_boxes_are_described_without_context_boxes():
    instances = Instances((10, 10), pred_boxes=Boxes(torch.tensor([[0.0, 1, 2, 3]])))
    instances.scores, instances.pred_classes = torch.tensor([0.7]), torch.tensor([1])
    first, second = rounded_scores(describe_labels({"instances": instances}, "ab"))
    assert first == {"label": "b", "score": 0.7, "box": [0, 1, 2, 3], "context_box": None}
    assert second == {"label": "a", "score": 0.0, "box": None, "context_box": None}


# ---- Inputs -------------------------------------------------------------------------------------


def test_folders_are_searched_in_order_and_what_is_left_out_is_counted(tmp_path):
    for name in ("b/2.JPG", "b/1.png", "a.webp", "notes.txt", "x.heic", ".hidden.png", ".d/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    finder = ImageFinder()
    found = list(finder.find([f"{tmp_path}/", f"{tmp_path}/b/*.png", "-"], ["./missing.jpg"]))
    expected = [f"{tmp_path}/{n}" for n in ("a.webp", "b/1.png", "b/2.JPG", "b/1.png")]
    assert found == [*expected, "missing.jpg"]
    assert finder.left_out == {".txt": 1, ".heic": 1, "hidden": 1}
    inputs = InputList(found)
    assert list(inputs.pending()) == [*expected[:3], "missing.jpg"]  # each once


def test_a_name_with_pattern_characters_is_a_name_where_it_exists(tmp_path):
    (tmp_path / "a[1].jpg").touch()
    assert list(ImageFinder().find([f"{tmp_path}/a[1].jpg"], [])) == [f"{tmp_path}/a[1].jpg"]
    with pytest.raises(ValueError, match="no file matches this pattern"):
        list(ImageFinder().find([f"{tmp_path}/b*.jpg"], []))


def test_lists_have_lines_or_zero_bytes_and_any_names():
    assert list(read_list(io.BytesIO(b"a b.jpg\r\n\nc.jpg"))) == ["a b.jpg", "c.jpg"]
    assert list(read_list(io.BytesIO(b"a\nb.jpg\0\xff.jpg\0"), b"\0")) == ["a\nb.jpg", "\udcff.jpg"]
    long = b"".join(b"%06d.jpg\n" % i for i in range(20_000))  # longer than a block
    assert len(list(read_list(io.BytesIO(long)))) == 20_000


def test_what_windows_puts_around_the_lines_of_a_list_is_taken_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / '"b.jpg"').touch()  # a name with quotes
    lines = '\ufeffa.jpg\r\n"C d.jpg"\r\n"b.jpg"'.encode()
    assert list(read_list(io.BytesIO(lines))) == ["a.jpg", "C d.jpg", '"b.jpg"']
    with pytest.raises(ValueError, match="the list is UTF-16: save it in UTF-8"):
        list(read_list(io.BytesIO("a.jpg\n".encode("utf-16"))))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("list.txt", "is no image, but a list: scnet tag takes its lines with - < "),
        ("clip.MP4", "is no image, but a video: take frames from it, as with ffmpeg -i "),
        ("https://a.org/b.jpg", "https://a.org/b.jpg is an address: download the image"),
    ],
)
def test_a_list_a_video_and_an_address_are_refused_and_leave_no_line(
    name, message, tag, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    if "/" not in name:
        (tmp_path / name).touch()
        others = list(ImageFinder().find([name, "a.jpg"], []))  # as a shell gives for *
        assert others == [name, "a.jpg"]
    assert tag(name, output=tmp_path / "labels.jsonl") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "labels.jsonl").exists()


def test_a_list_on_standard_input_is_tagged(tag, whole, photos, tmp_path, monkeypatch):
    (photos / os.fsdecode(b"\xff.png")).unlink(missing_ok=True)
    odd = tmp_path / os.fsdecode(b"\xff\n.png")  # not UTF-8
    shutil.copy(next(photos.rglob("*.png")), odd)
    listed = b"\0".join(map(os.fsencode, (odd, *sorted(photos.rglob("*.png"))[:2])))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed)))
    assert tag("--null", "-", output=tmp_path / "labels.jsonl") == 0
    first, *others = records((tmp_path / "labels.jsonl").read_bytes())
    assert first["file"] == str(odd)
    assert [r["file"] for r in others] == [r["file"] for r in records(whole)[:2]]


def test_inputs_without_an_image_are_a_usage_error(tag, tmp_path, capsys):
    assert tag(tmp_path, output=tmp_path / "labels.jsonl") == 2
    assert "no images in" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_mistyped_folder_is_refused_and_leaves_no_line(tag, tmp_path, capsys):
    assert tag("nothere", output=tmp_path / "labels.csv") == 2
    assert "nothere does not exist, and its name is not that of an image" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_list_with_commas_is_refused_and_leaves_no_line(tag, photos, tmp_path, capsys):
    assert tag(f"{photos}/first,{photos}/second", output=tmp_path / "a.jsonl") == 2
    assert "second: separate files with spaces, not commas" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_image_by_another_path_is_one_image(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "folder").symlink_to("photos")
    monkeypatch.chdir(tmp_path / "photos")
    paths = ["a.jpg", "./a.jpg", "../photos/a.jpg", f"{tmp_path}/folder/a.jpg", "../a.jpg"]
    inputs = InputList(paths)
    assert list(inputs.pending()) == ["a.jpg", "../a.jpg"]
    assert inputs.mark_done(f"{tmp_path}/photos/a.jpg")
    assert list(inputs.pending()) == ["../a.jpg"]


def test_an_image_from_inside_its_folder_and_from_outside_is_one_image(
    tag, photos, tmp_path, monkeypatch
):
    project, files = tmp_path / "project", sorted(photos.rglob("*.png"))
    (project / "photos").mkdir(parents=True)
    (project / "elsewhere").mkdir()

    def tagged_from(folder, *inputs):
        monkeypatch.chdir(folder)
        assert tag(*inputs, output=folder.parent / "labels.csv") == 0
        rows = read_csv(folder.parent / "labels.csv")
        return list(dict.fromkeys(row["file"] for row in rows))

    shutil.copy(files[0], project / "photos/a.png")
    assert tagged_from(project / "photos", ".") == ["a.png"]
    shutil.copy(files[1], project / "photos/b.png")
    assert tagged_from(project / "elsewhere", "../photos") == ["a.png", "b.png"]
    assert tagged_from(project / "elsewhere", project / "photos") == ["a.png", "b.png"]
    moved = project.rename(tmp_path / "moved")
    assert tagged_from(moved / "photos", ".") == ["a.png", "b.png"]


def test_the_summary_counts_all_rows_of_the_file(tag, photos, tmp_path, capsys):
    output, images = tmp_path / "labels.jsonl", sorted(photos.rglob("*.png"))[:2]
    assert tag("missing.png", images[0], output=output) == 1
    assert tag(images[1], output=output) == 0  # all images of this command have their labels
    err = capsys.readouterr().err
    assert "2 images tagged, 1 failed (1 in this run" in err
    assert "images/s; 2 of other commands): " in err


# ---- Bad images ---------------------------------------------------------------------------------


@pytest.fixture
def bad_images(photos, tmp_path) -> list[Path]:
    """A missing, a truncated, a large and an extremely thin image, a text, a folder and a pipe."""
    good = next(photos.rglob("*.png"))
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    paths[1].write_bytes(good.read_bytes()[:5000])
    cv2.imwrite(str(paths[2]), np.zeros((200, 200), np.uint8))
    cv2.imwrite(str(paths[3]), np.zeros((1, 20_000), np.uint8))
    paths[4].write_text("no image")
    paths[5].symlink_to(tmp_path / "folder")
    os.mkfifo(paths[6])
    return paths


def test_bad_images_are_recorded_and_passed_over(tag, photos, bad_images, tmp_path, capsys):
    good = sorted(photos.rglob("*.png"))[:3]
    output = tmp_path / "labels.jsonl"
    given = [good[0], *bad_images, *good[1:]]
    assert tag(*given, "--max-pixels", 20_000, output=output, workers=2) == 1
    found = records(output.read_bytes())
    assert [r["file"] for r in found] == list(map(str, given))
    assert [len(r["labels"]) for r in found if "error" not in r] == [3, 3, 3]
    errors = [r["error"] for r in found if "error" in r]
    reasons = (
        "No such file",
        "truncated",
        "--max-pixels",
        "",
        "cannot identify image",
        "",
        "regular",
    )
    for error, reason in zip(errors, reasons, strict=True):
        assert reason in error
    assert "3 images tagged, 7 failed" in capsys.readouterr().err


def test_failed_images_are_tried_again_on_request(tag, photos, tmp_path):
    first, second = sorted(photos.rglob("*.png"))[:2]
    late, output = tmp_path / "late.png", tmp_path / "labels.jsonl"
    assert tag(first, late, second, output=output) == 1
    shutil.copy(second, late)
    assert tag(first, late, second, output=output) == 1  # it is finished
    assert tag(first, late, second, "--retry-failed", output=output) == 0
    assert [r["file"] for r in records(output.read_bytes())] == [str(first), str(second), str(late)]


def test_scores_that_are_not_numbers_make_an_image_fail(tag, photos, tmp_path, monkeypatch):
    nan = {"image_scores": torch.full((len(CLASSES),), torch.nan)}
    monkeypatch.setattr(SCNetPredictor, "predict", lambda self, inputs: [nan] * len(inputs))
    assert tag(photos / "first", output=tmp_path / "labels.jsonl") == 1
    assert "nan" in records((tmp_path / "labels.jsonl").read_bytes())[0]["error"]


# ---- Runs that are cut off ----------------------------------------------------------------------


def stop_in_the_second_chunk(stop: int) -> None:
    """Have this process send itself a signal in the midst of a line."""
    append = tag_output.TagOutput.append

    def stopped(self, new):
        if self.lines.stat().st_size:
            os.write(self._file.fileno(), b'{"file": "')
            signal.raise_signal(stop)
        append(self, new)

    tag_output.TagOutput.append = stopped


def run_and_be_killed(arguments):
    stop_in_the_second_chunk(signal.SIGKILL)
    scnet("tag", *arguments)


def test_a_killed_run_goes_on_to_the_same_file(tag, whole, photos, weights, tmp_path, capsys):
    output = tmp_path / "labels.jsonl"
    options = ["--threshold", 0, "--top-k", 3, "--batch-size", BATCH, "--workers", 2]
    arguments = ["--weights", weights, *options, "--output", output, photos]
    process = processes.start(run_and_be_killed, [str(a) for a in arguments])
    process.join(200)
    assert process.exitcode == -signal.SIGKILL
    assert output.read_bytes().count(b"\n") == 8 * BATCH
    assert output.read_bytes().endswith(b'\n{"file": "')
    assert tag(photos, output=output, workers=1) == 0
    assert output.read_bytes() == whole
    assert f"already: {8 * BATCH} of 28 " in capsys.readouterr().err


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(stop, tag, photos, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tag_output.TagOutput, "append", tag_output.TagOutput.append)
    stop_in_the_second_chunk(stop)
    output = tmp_path / "labels.jsonl"
    # a test run in the background of a shell ignores ^C, and so would the program
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    assert tag(photos, output=output, workers=2) == 130
    signal.signal(signal.SIGINT, before)
    text = capfd.readouterr().err
    assert "Interrupted. To go on:" in text
    assert str(output) in text.splitlines()[-1]
    assert "Traceback" not in text


@pytest.mark.parametrize(("line", "more"), [(0, 5), (17, 0), (17, 5)])
def test_lines_cut_anywhere_are_written_anew(line, more, tag, whole, photos, tmp_path):
    output = tmp_path / "labels.jsonl"
    first, *_ = whole_lines = whole.splitlines(keepends=True)
    assert tag(json.loads(first)["file"], output=output) == 0  # writes the settings
    output.write_bytes(b"".join(whole_lines[:line]) + whole_lines[line][:more])
    assert tag(photos, output=output) == 0
    assert output.read_bytes() == whole


@pytest.mark.parametrize("ending", [".csv", ".json"])
def test_other_formats_are_made_when_all_lines_are_there(ending, tag, whole, photos, tmp_path):
    output, lines = tmp_path / f"labels{ending}", tmp_path / f"labels{ending}.lines.jsonl"
    assert tag(photos / "first", output=output) == 0
    part = output.read_bytes()
    lines.write_bytes(whole)
    assert tag(photos, output=output) == 0
    expected = write_as(tmp_path / f"expected{ending}", FORMATS[ending], records(whole))
    assert len(part) < len(output.read_bytes())
    if ending == ".csv":
        assert output.read_bytes() == expected.read_bytes()
    else:
        assert (
            json.loads(output.read_text())["images"] == json.loads(expected.read_text())["images"]
        )


def test_a_finished_run_takes_new_images_and_does_not_load_the_model_for_none(
    tag, whole, photos, tmp_path, monkeypatch
):
    output = tmp_path / "labels.jsonl"
    assert tag(photos / "first", output=output) == 0
    assert tag(photos, output=output) == 0
    assert output.read_bytes() == whole
    monkeypatch.setattr(local_engine, "build_predictor", None)
    assert tag(photos, output=output) == 0
    assert output.read_bytes() == whole


def test_a_full_disk_ends_the_run_and_the_same_command_goes_on(
    tag, whole, photos, tmp_path, monkeypatch, capsys
):
    calls, fsync = itertools.count(), os.fsync

    def full(descriptor):
        if next(calls) == 2:  # after the settings and a chunk of 16
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert tag(photos, output=tmp_path / "labels.jsonl") == 3
    assert "No space left on device\nTo go on when this is settled:" in capsys.readouterr().err
    assert tag(photos, output=tmp_path / "labels.jsonl") == 0
    assert (tmp_path / "labels.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "smaller --batch-size"),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed."), "fewer --workers"),
        (RuntimeError("a bug"), "Traceback"),
    ],
)
def test_a_fault_in_prediction_ends_the_run_with_its_remedy(
    error, remedy, tag, photos, tmp_path, monkeypatch, capsys
):
    def fail(self, inputs):
        raise error

    monkeypatch.setattr(SCNetPredictor, "predict", fail)
    assert tag(photos, output=tmp_path / "labels.jsonl") == 3
    text = capsys.readouterr().err
    assert str(error) in text
    assert "To go on" in text
    assert remedy in text


# ---- Refusals -----------------------------------------------------------------------------------


def test_other_settings_are_refused_and_named(tag, photos, weights, tmp_path, capsys):
    output, image = tmp_path / "labels.jsonl", next(photos.rglob("*.png"))
    assert tag(image, output=output) == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert tag(image, "--top-k", 4, output=output) == 2
    assert "top_k was 3 and is 4. Use the former ones" in capsys.readouterr().err
    assert tag(image, "--fast-jpeg", output=output) == 2
    assert "fast_jpeg was false and is true" in capsys.readouterr().err
    key = "MODEL.SCNET.AGGREGATION.METHOD"
    assert tag(image, "--opts", key, "noisy_or", output=output) == 2
    assert f'{key} was "max" and is "noisy_or"' in capsys.readouterr().err
    (tmp_path / "model").mkdir()
    other = save_model(tmp_path / "model", seed=1)
    assert tag(image, output=output, weights=other) == 2
    assert "weights was" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "model")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".json"])
def test_a_file_of_another_program_is_refused(ending, tag, photos, tmp_path, capsys):
    output, image = tmp_path / f"labels{ending}", next(photos.rglob("*.png"))
    output.write_text("of another program")
    assert tag(image, output=output) == 2
    assert "was not written by this program" in capsys.readouterr().err
    assert [p.read_text() for p in tmp_path.iterdir()] == ["of another program"]
    output.unlink()
    assert tag(image, output=output) == 0
    output.write_text("of another program")  # beside settings and lines of ours
    assert tag(image, output=output) == 2
    assert output.read_text() == "of another program"


def test_an_output_that_another_process_writes_is_refused(tag, photos, tmp_path, capsys):
    output = tmp_path / "labels.jsonl"
    code = """if True:
        import fcntl, sys
        with open(sys.argv[1], "a+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            print("locked", flush=True)
            input()"""
    command = [sys.executable, "-c", code, f"{output}.settings.json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"locked\n"
        assert tag(photos, output=output) == 2
        process.communicate(b"\n")
    assert "is being written by another process" in capsys.readouterr().err
    assert tag("missing.png", output=output) == 1  # now it is free


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--opts", "MODEL.NO_SUCH_KEY", "1"], "MODEL.NO_SUCH_KEY"),
        (["--config-file", "missing.yaml"], "missing.yaml"),
        (["--weights", "missing.pth"], "config.yaml"),
        (
            ["--format", "coco", "--opts", "MODEL.ROI_HEADS.NUM_CLASSES", "3"],
            "14 class names for a model of 3",
        ),
    ],
)
def test_wrong_arguments_are_explained_in_one_line(arguments, message, tag, tmp_path, capsys):
    assert tag("x.png", *arguments, output=tmp_path / "labels.jsonl") == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["labels.jsonl", "labels.csv"])
def test_a_run_refused_by_its_weights_leaves_nothing(tag, photos, weights, tmp_path, capsys, name):
    (tmp_path / "config.yaml").write_bytes((weights.parent / "config.yaml").read_bytes())
    torch.save({}, tmp_path / "model.pth")
    before = sorted(tmp_path.iterdir())
    assert tag(photos, output=tmp_path / name, weights=tmp_path / "model.pth") == 2
    assert "model.pth" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("option", [("--dtype", "float32"), ("--backend", "torch")])
def test_an_optimised_model_gives_the_same_labels_and_is_a_setting(
    option, tag, whole, photos, tmp_path, capfd
):
    output = tmp_path / "labels.jsonl"
    assert tag(photos, *option, output=output) == 0
    for record, plain in zip(map(json.loads, output.open()), map(json.loads, whole.splitlines())):
        assert record["file"] == plain["file"]
        scores, expected = ([x["score"] for x in r["labels"]] for r in (record, plain))
        assert scores == pytest.approx(expected, abs=1e-3)
    assert tag(photos, output=output) == 2
    assert option[0].removeprefix("--") in capfd.readouterr().err


# ---- JPEG files that are decoded smaller ---------------------------------------------------------


@pytest.fixture(scope="module")
def large_jpeg(tmp_path_factory) -> str:
    """A smooth scene of 403 x 301 pixels that EXIF turns: 301 wide and 403 high as it is shown."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    picture, exif = Image.fromarray(pixels).resize((403, 301), Image.BICUBIC), Image.Exif()
    exif[274] = 6
    file = str(tmp_path_factory.mktemp("large") / "a.jpg")
    picture.save(file, quality=95, exif=exif)
    return file


def test_a_large_jpeg_is_decoded_smaller_and_keeps_at_least_the_sides_asked_for(large_jpeg):
    for least, shape in ((302, (403, 301)), (151, (403, 301)), (150, (202, 151)), (37, (51, 38))):
        image, size = read_reduced(large_jpeg, "BGR", least)
        assert (image.shape[:2], size) == (shape, (403, 301))


def test_a_fast_decoded_jpeg_gives_nearly_the_same_input_of_the_same_size(large_jpeg):
    mapper = ImageMapper(small_config("INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96))
    plain, fast = (ImageReader(mapper, fast_jpeg=fast)[large_jpeg] for fast in (False, True))
    assert (fast["height"], fast["width"]) == (plain["height"], plain["width"]) == (403, 301)
    assert fast["image"].shape == plain["image"].shape == (3, 86, 64)
    difference = np.abs(fast["image"].astype(int) - plain["image"])
    assert difference.sum() > 0 and difference.mean() < 2


# ---- Ray ----------------------------------------------------------------------------------------


def test_ray_gives_the_same_file(tag, whole, photos, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'scnet_d2[ray]'")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # other tests run beside it
    output = tmp_path / "labels.jsonl"
    assert tag(photos, "--engine", "ray", "--ray-actors", 2, output=output) == 0
    assert output.read_bytes() == whole


@pytest.mark.parametrize("batch_size", [1, 8, 64, 1024])
@pytest.mark.parametrize("sizes", [(64, 96), (800, 1333), (1200, 4000)])
def test_images_read_ahead_for_a_ray_actor_keep_to_a_size_at_any_batch_size(
    batch_size, sizes, tmp_path
):
    keys = "INPUT.MIN_SIZE_TEST", sizes[0], "INPUT.MAX_SIZE_TEST", sizes[1]
    cfg, options = small_config(*keys), TagOptions(np.zeros(1), batch_size=batch_size)
    count, reader = ray_engine.images_in_flight(cfg, options), ImageReader(ImageMapper(cfg))
    for side in (100, 300):  # of the model's input, the long side is at its limit
        cv2.imwrite(str(tmp_path / "a.png"), np.zeros((100, side, 3), np.uint8))
        image = reader[str(tmp_path / "a.png")]["image"]
        assert 1 <= count <= 2 * batch_size
        assert count * image.nbytes <= 128 * 2**20


def test_an_image_that_is_not_resized_is_read_ahead_alone():
    cfg = small_config("INPUT.MIN_SIZE_TEST", 0)
    options = TagOptions(np.zeros(1), batch_size=64, max_pixels=40_000_000)  # 120 MB
    assert ray_engine.images_in_flight(cfg, options) == 1


def test_reading_ahead_keeps_the_order_and_the_number():
    begun, most = [], []

    def finish(number):
        most.append(len(begun) - len(most))
        return -number

    def start(number):
        begun.append(number)
        return number

    assert list(ray_engine.read_ahead(start, finish, range(7), 3)) == [-n for n in range(7)]
    assert begun == list(range(7))
    assert most == [3, 3, 3, 3, 3, 2, 1]


def test_without_ray_its_engine_names_the_extra(tag, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert tag(photos, "--engine", "ray", output=tmp_path / "labels.jsonl") == 2
    assert "pip install 'scnet_d2[ray]'" in capsys.readouterr().err
