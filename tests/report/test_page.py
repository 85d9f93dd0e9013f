"""The HTML report: its numbers, its escaping, its pictures, and the boxes that evaluation saves.

The scores are the hand-worked example of test_metrics.py: mAP 101/108, CP 8/9, CR 13/18,
CF1 208/261, OP 5/6, OR 5/7, OF1 10/13.
"""

import json
import pickle
import re
from html.parser import HTMLParser

from scnet_d2.evaluation import MultiLabelEvaluator
from scnet_d2.report import analysis
from scnet_d2.report.page import build_html_report, load_run, write_html_report

import numpy as np
import pytest
import torch
from conftest import scnet
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from PIL import Image

SCORES = np.array([[0.9, 0.6, 0.2], [0.8, 0.4, 0.7], [0.3, 0.7, 0.1], [0.6, 0.1, 0.4]], np.float32)
LABELS = np.array([[1, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1]], dtype=bool)
NOTHING = np.zeros_like(LABELS)
HALF = np.full(3, 0.5)
HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    """$\\frac$ & <b>'q"</b>{{ 7 * 7 }}""",
]
HOSTILE_FILE = """"><svg onload=alert(3)>$\\frac$ & <b>'q"<>.jpg"""


class Page(HTMLParser):
    """Elements and texts of a page, as a browser would find them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data):
        self.texts.append((self._open, data))

    def all(self, tag, style=""):
        return [a for t, a in self.elements if t == tag and style in a.get("class", "").split(" ")]

    def text_of(self, tag):
        return [text for open_tag, text in self.texts if open_tag == tag and text.strip()]


def save_run(folder, *, dataset="scenes_val", names=("cat", "dog", "boat"), config=None, **arrays):
    saved = {
        "image_ids": np.arange(len(arrays.get("scores", SCORES))),
        "file_names": np.array(
            [f"nowhere/{i}.jpg" for i in range(len(arrays.get("scores", SCORES)))]
        ),
        "class_names": np.array(names),
        "scores": SCORES,
        "labels": LABELS,
        "ignored": np.zeros_like(arrays.get("labels", LABELS)),
    }
    path = folder / "inference" / dataset
    path.mkdir(parents=True)
    np.savez(path / "multilabel_scores.npz", **(saved | arrays))
    if config:
        (folder / "config.yaml").write_text(json.dumps(config))
    return folder


def page_of(folder, **options):
    text = build_html_report(load_run(save_run(folder, **options)))
    return text, Page(text)


def test_reliability_of_a_hand_worked_example():
    scores = np.array([[0.1, 0.3], [0.9, 0.4], [1.0, 0.2]])
    labels = np.array([[False, True], [True, False], [True, True]])
    ignored = np.array([[False, False], [False, False], [False, True]])
    bins, error = analysis.reliability(scores, labels, ignored, bins=2)
    assert bins[0] == pytest.approx((0, 0.5, 3, 0.8 / 3, 1 / 3))
    assert bins[1] == pytest.approx((0.5, 1, 2, 0.95, 1))
    assert error == pytest.approx((abs(0.8 - 1) + abs(1.9 - 2)) / 5)


def test_empty_bin_has_no_frequency():
    true, false = np.array([[True]]), np.array([[False]])
    bins, error = analysis.reliability(np.array([[0.1]]), true, false, bins=2)
    assert [x.decisions for x in bins] == [1, 0]
    assert np.isnan(bins[1].frequency)
    assert error == pytest.approx(0.9)


def test_cooccurrence_counts_images_with_a_miss_and_a_false_label():
    # Image 1 misses nothing and predicts cat falsely; 2 misses cat; 3 misses boat.
    errors = analysis.image_errors(SCORES, LABELS, NOTHING, HALF)
    assert np.argwhere(errors.missed).tolist() == [[2, 0], [3, 2]]
    assert np.argwhere(errors.false).tolist() == [[1, 0]]
    assert not analysis.error_cooccurrence(errors).any()
    # At cat >= 0.85 and dog >= 0.05 image 3 misses cat and boat while dog is false.
    errors = analysis.image_errors(SCORES, LABELS, NOTHING, np.array([0.85, 0.05, 0.5]))
    assert analysis.error_cooccurrence(errors).tolist() == [[0, 1, 0], [0, 0, 0], [0, 1, 0]]


def test_ignored_entries_are_no_errors():
    ignored = np.zeros_like(LABELS)
    ignored[1, 0] = ignored[2, 0] = True
    errors = analysis.image_errors(SCORES, LABELS, ignored, HALF)
    assert np.argwhere(errors.missed).tolist() == [[3, 2]]
    assert not errors.false.any()


def test_images_are_ranked_by_labels_and_margin():
    errors = analysis.image_errors(SCORES, LABELS, NOTHING, HALF)
    np.testing.assert_allclose(errors.margins, [0.4, -0.1, 0.2, 0.3], atol=1e-6)
    assert analysis.best_images(errors, LABELS, 5) == [0]
    assert analysis.worst_images(errors, 2) == [1, 2]
    assert analysis.most_confused_images(errors, 5) == []


def test_drawn_curve_keeps_points_of_the_curve():
    # Scores 0.9 0.8 0.6 0.3, labels 1 0 1 1: precision 1, 1/2, 2/3, 3/4 at recall 1/3 1/3 2/3 1.
    points = analysis.drawn_curve(SCORES[:, 0], LABELS[:, 0])
    np.testing.assert_allclose(points, [[1 / 3, 1], [2 / 3, 2 / 3], [1, 3 / 4]])
    many = analysis.drawn_curve(np.linspace(0, 1, 5000), np.arange(5000) % 2 == 0)
    assert len(many) <= 101
    assert many[-1, 0] == 1
    assert analysis.drawn_curve(SCORES[:, 0], NOTHING[:, 0]).shape == (0, 2)


def test_page_has_the_hand_worked_numbers(tmp_path):
    _, page = page_of(tmp_path)
    tiles = [x for t, x in page.texts if t == "dd" and re.fullmatch(r"\d+\.\d\d", x)]
    fractions = [101 / 108, 8 / 9, 13 / 18, 208 / 261, 5 / 6, 5 / 7, 10 / 13]
    assert tiles == [f"{100 * value:.2f}" for value in fractions]
    keys = ("data-ap", "data-positives", "data-precision", "data-recall")
    assert [[x[key] for key in keys] for x in page.all("option")[1:]] == [
        ["80.6", "3", "66.7", "66.7"],  # cat: AP 29/36
        ["100.0", "2", "100.0", "100.0"],
        ["100.0", "2", "100.0", "50.0"],
    ]
    assert [page.all("option")[0][key] for key in keys[1:]] == ["7", "83.3", "71.4"]


def markup_of(page):
    """Tags with the names of their attributes, without the values."""
    return [(tag, sorted(attributes)) for tag, attributes in page.elements]


@pytest.mark.parametrize("prefix", ["", "coco_"])
def test_names_are_escaped_and_nothing_is_loaded(tmp_path, prefix):
    file, dataset, weights = HOSTILE_FILE, f"{prefix}<img src=x onerror=alert(4)>", "<b>&'.pth"
    thresholds = np.array([0.85, 0.05, 0.5])  # misses and false labels come together

    def made(folder, dataset, names, file, architecture, weights):
        model = {"META_ARCHITECTURE": architecture, "WEIGHTS": f"a/{weights}"}
        return page_of(
            tmp_path / folder, dataset=dataset, names=names, file_names=np.array([f"x/{file}"] * 4),
            thresholds=thresholds, config={"MODEL": model, "DATASETS": {"TRAIN": [dataset]}},
        )  # fmt: skip

    text, page = made("hostile", dataset, HOSTILE, file, "<i>SCNet", weights)
    _, harmless = made("harmless", f"{prefix}set", ("cat", "dog", "boat"), "a", "SCNet", "b")
    assert page.all("table", "heat") and page.all("figure")
    assert markup_of(page) == markup_of(harmless)
    assert page.text_of("option")[1:] == HOSTILE
    assert page.text_of("h1") == [dataset]
    assert page.all("svg", "picture")[0]["aria-label"].startswith(f"{file}: ")
    words = "".join(text for _, text in page.texts)
    assert "model <i>SCNet" in words and f"MODEL.WEIGHTS {weights}" in words
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "srcset"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "data:")), (tag, target)
    assert "http://" not in text and "https://" not in text and "@import" not in text


@pytest.mark.parametrize("dataset", ["coco_2014_val_multilabel", "other"])
def test_80_classes_fit_and_the_matrix_shows_the_most_frequent(tmp_path, dataset):
    rng = np.random.default_rng(0)
    scores, labels = rng.random((200, 80), dtype=np.float32), rng.random((200, 80)) < 0.04
    labels[:, 7] = False
    names = [f"class {i}" for i in range(80)]
    _, page = page_of(tmp_path, dataset=dataset, names=names, scores=scores, labels=labels)
    assert len(page.all("option")) == 81
    assert len(page.all("span", "bar")) == 80
    assert page.all("option")[8]["data-ap"] == "–"
    assert "24 most frequent labels" in " ".join(page.text_of("p"))
    heat = page.all("table", "heat")
    assert len(heat) == 1
    cells = [t for t, _ in page.elements[page.elements.index(("table", heat[0])) :]]
    assert (cells.count("tr"), cells.count("td")) == (25, 24 * 24)


@pytest.mark.parametrize(
    ("dataset", "open_tables", "words"),
    [
        ("coco_2014_val_multilabel", 1, "Other images:"),
        ("voc_2007_test_multilabel", 1, "Other images:"),
        ("voc_2012_val_multilabel", 0, "No published row is about"),
    ],
)
def test_published_rows_are_honest_about_their_data_set(tmp_path, dataset, open_tables, words):
    text, page = page_of(tmp_path, dataset=dataset)
    assert words in text
    assert len(page.all("tr", "run")) == open_tables
    assert text.count("Published rows of another data set") == 2 - open_tables
    assert text.count("The Proposed") == 2


def test_run_on_its_training_images_says_so(tmp_path):
    config = {"DATASETS": {"TRAIN": ["scenes_val"], "TEST": ["scenes_val"]}}
    assert "Trained on these images" in page_of(tmp_path / "a", config=config)[0]
    assert "Trained on these images" not in page_of(tmp_path / "b")[0]


def test_run_stands_beside_the_rows_of_the_same_test_set(tmp_path):
    count = 4952
    labels = np.zeros((count, 3), dtype=bool)
    labels[::2] = True
    text, _ = page_of(
        tmp_path, dataset="voc_2007_test_multilabel", names=("cat", "dog", "boat"),
        scores=labels.astype(np.float32), labels=labels,
    )  # fmt: skip
    assert "Other images:" not in text
    run = text[text.index('<tr class="run">') :]
    cells = re.findall(r"<td>(.*?)</td>", run[: run.index("</tr>")])
    assert cells[0] == "100.0"  # mAP
    assert [cells[i] for i in (4, 8, 12)] == ["100.0"] * 3  # boat, cat, dog of 20 classes
    assert cells.count("–") == 17


def evidence_of(boxes, contexts):
    """Arrays as evaluation saves them: image 0, classes 0, 1, ..."""
    return {
        "evidence_images": np.zeros(len(boxes), np.int32),
        "evidence_classes": np.arange(len(boxes), dtype=np.int32),
        "evidence_boxes": np.array(boxes, np.float32),
        "evidence_context_boxes": np.array(contexts, np.float32),
    }


def test_labels_carry_the_ratio_that_their_box_chose(tmp_path):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (240, 120), "green").save(photo)
    evidence = evidence_of([[60, 30, 120, 60], [0, 0, 10, 10]], [[30, 15, 150, 75], [0, 0, 9, 9]])
    evidence["evidence_context_ratios"] = np.array([2.3, np.nan], np.float32)
    text, _ = page_of(tmp_path / "run", file_names=np.array([str(photo)] * 4), **evidence)
    assert text.count("context × ") == text.count("context × 2.3") > 0


def test_pictures_carry_numbered_boxes_and_lost_images_are_counted(tmp_path):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (240, 120), "green").save(photo)
    files = np.array([str(photo), "lost/1.jpg", "lost/2.jpg", "lost/3.jpg"])
    evidence = evidence_of([[60, 30, 120, 60], [0, 0, 10, 10]], [[30, 15, 150, 75], [np.nan] * 4])
    text, page = page_of(tmp_path / "run", file_names=files, **evidence)
    assert "3 of the 4 images below were not found" in text
    assert text.count("image not found") == 3
    assert [a["href"][:23] for a in page.all("image")] == ["data:image/jpeg;base64,"]
    tight = [a for a in page.all("rect", "tight") if "rim" not in a["class"]]
    assert len(tight) == 2  # cat and dog, the labels of image 0
    assert [tight[1][k] for k in ("x", "y", "width", "height")] == [
        "120.0",
        "60.0",
        "120.0",
        "60.0",
    ]
    context = [a for a in page.all("rect", "context") if "rim" not in a["class"]]
    assert [a["x"] for a in context] == ["60.0"]  # the other label has no context box
    assert str(tmp_path) not in text


def test_verdicts_are_words(tmp_path):
    ignored = np.zeros_like(LABELS)
    ignored[3, 0] = True  # image 3: cat does not count, boat is missed
    text, _ = page_of(tmp_path, ignored=ignored)
    for word in ("✓ right", "✗ false", "○ missed", "– ignored"):
        assert f'<span class="verdict">{word}</span>' in text


def test_page_without_any_prediction(tmp_path):
    text, page = page_of(tmp_path, scores=SCORES / 10)
    assert "7 labels are missed and 0 are predicted falsely" in text
    assert not page.all("table", "heat")


def test_tool_writes_the_tested_data_set_of_the_config(tmp_path, capsys):
    save_run(tmp_path, dataset="a_val")
    save_run(tmp_path, dataset="b_test", config={"DATASETS": {"TEST": ["b_test"], "TRAIN": ["t"]}})
    assert scnet("report", tmp_path) == 0
    assert "report.html" in capsys.readouterr().out
    text = (tmp_path / "report.html").read_text()
    assert "<h1>b_test</h1>" in text and "trained on t" in text
    path = write_html_report(tmp_path, tmp_path / "new" / "a.html", dataset="a_val")
    assert "<h1>a_val</h1>" in path.read_text()


@pytest.mark.parametrize(("datasets", "words"), [((), "evaluate the run"), ("ab", "choose one")])
def test_tool_says_what_is_missing(tmp_path, capsys, datasets, words):
    for name in datasets:
        save_run(tmp_path, dataset=name)
    assert scnet("report", tmp_path) == 2
    assert words in capsys.readouterr().err


@pytest.fixture
def dataset():
    name = "report_test"
    dicts = [{"image_id": i, "file_name": f"{i}.jpg", "image_labels": [i % 3]} for i in range(3)]
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(thing_classes=["cat", "dog", "boat"])
    yield name, dicts
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def scnet_output(image_id):
    boxes = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4]]) + 10 * image_id
    context_boxes = boxes + torch.tensor([-1, -1, 1, 1])
    scores = torch.tensor([0.9, 0.8, 0.2])
    return {"image_scores": scores, "label_boxes": boxes, "label_context_boxes": context_boxes}


def detector_output(_):
    instances = Instances((100, 100))
    instances.pred_boxes = Boxes(torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8], [9, 9, 9, 9]]))
    instances.scores = torch.tensor([0.3, 0.6, 0.4])
    instances.pred_classes = torch.tensor([1, 1, 0])
    return {"instances": instances}


def saved_evidence(folder):
    with np.load(folder / "multilabel_scores.npz") as file:
        return [
            file[f"evidence_{key}"].tolist()
            for key in ("images", "classes", "boxes", "context_boxes")
        ]


def test_evaluation_saves_the_boxes_of_the_labels(dataset, tmp_path):
    name, dicts = dataset
    evaluator = MultiLabelEvaluator(name, output_dir=str(tmp_path))
    evaluator.process(dicts[::-1], [scnet_output(i) for i in (2, 1, 0)])
    evaluator.evaluate()
    images, classes, tight, context = saved_evidence(tmp_path)
    assert images == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert classes == [0, 1, 2] * 3
    assert tight[:3] == [[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4]]
    assert context[3:5] == [[10, 11, 14, 15], [14, 15, 18, 19]]


def test_detector_without_context_boxes_has_the_best_box_of_each_class(dataset, tmp_path):
    name, dicts = dataset
    evaluator = MultiLabelEvaluator(name, output_dir=str(tmp_path))
    evaluator.process(dicts, [detector_output(d) for d in dicts])
    evaluator.evaluate()
    images, classes, tight, context = saved_evidence(tmp_path)
    assert (images, classes) == ([0, 0, 1, 1, 2, 2], [1, 0] * 3)
    assert tight[:2] == [[5, 6, 7, 8], [9, 9, 9, 9]]
    assert np.isnan(context).all()


def test_two_shares_give_the_evidence_of_one(dataset, tmp_path, monkeypatch):
    name, dicts = dataset
    sent = []

    def evaluate(folder, rows):
        evaluator = MultiLabelEvaluator(name, output_dir=str(folder))
        evaluator.process([dicts[i] for i in rows], [scnet_output(i) for i in rows])
        return evaluator.evaluate()

    evaluate(tmp_path / "one", [0, 1, 2])
    monkeypatch.setattr(comm, "gather", lambda share, dst: sent.append(pickle.dumps(share)) or [])
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert evaluate(tmp_path / "rank1", [1, 0]) is None  # image 0 pads out the share
    monkeypatch.setattr(comm, "gather", lambda share, dst: [share, pickle.loads(sent[0])])
    monkeypatch.setattr(comm, "is_main_process", lambda: True)
    evaluate(tmp_path / "two", [0, 2])
    assert saved_evidence(tmp_path / "two") == saved_evidence(tmp_path / "one")


def test_what_is_no_folder_of_a_run_is_named(tmp_path, capsys):
    (tmp_path / "model_final.pth").touch()
    assert scnet("report", tmp_path / "model_final.pth") == 2
    assert "model_final.pth is a file: give the folder of a run" in capsys.readouterr().err
    assert scnet("report", tmp_path / "none") == 2
    assert "none does not exist: give the folder of a run" in capsys.readouterr().err


def test_a_page_that_browsers_would_not_open_is_refused(tmp_path, capsys):
    assert scnet("report", tmp_path, "--output", tmp_path / "report") == 2
    assert "name a file that ends in .html" in capsys.readouterr().err
