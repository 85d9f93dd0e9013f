"""MultiLabelEvaluator, its table, and `scnet scores`.

The data set is the hand-worked example of test_metrics.py: mAP 101/108, CP 8/9, CR 13/18,
CF1 208/261, OP 5/6, OR 5/7, OF1 10/13.
"""

import json
import math
import re
from pathlib import Path

from scnet_d2.evaluation import MultiLabelEvaluator, format_table

import numpy as np
import processes
import pytest
import torch
from conftest import scnet
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

CLASSES = ["cat", "dog", "traffic light"]
SCORES = torch.tensor([[0.9, 0.6, 0.2], [0.8, 0.4, 0.7], [0.3, 0.7, 0.1], [0.6, 0.1, 0.4]])
LABELS = [[0, 1], [2], [0, 1], [0, 2]]
SEVEN = ["mAP", "CP", "CR", "CF1", "OP", "OR", "OF1"]
SEVEN_VALUES = [101 / 108, 8 / 9, 13 / 18, 208 / 261, 5 / 6, 5 / 7, 10 / 13]


def dataset_dicts(**changes):
    dicts = [
        {
            "image_id": i,
            "file_name": f"images/{i}.jpg",
            "image_labels": labels,
            "ignored_labels": [],
        }
        for i, labels in enumerate(LABELS)
    ]
    return [d | {key: value[i] for key, value in changes.items()} for i, d in enumerate(dicts)]


def register(name, dicts):
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(thing_classes=CLASSES)


def unregister(name):
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)


@pytest.fixture
def dataset():
    """Registers dataset dicts under one name for the length of a test."""
    name = "evaluator_test"

    def _register(dicts=None):
        unregister(name)
        register(name, dataset_dicts() if dicts is None else dicts)
        return name

    yield _register
    unregister(name)


def image_outputs(scores=SCORES):
    return [{"image_scores": row} for row in scores]


def evaluate(name, inputs=None, outputs=None, **options):
    evaluator = MultiLabelEvaluator(name, **options)
    evaluator.process(dataset_dicts() if inputs is None else inputs, outputs or image_outputs())
    return evaluator.evaluate()


def seven(results):
    return [results["multilabel"][key] / 100 for key in SEVEN]


def detections(boxes):
    """Instances from (class, score) pairs."""
    instances = Instances((10, 10))
    instances.pred_boxes = Boxes(torch.zeros(len(boxes), 4))
    instances.pred_classes = torch.tensor([c for c, _ in boxes], dtype=torch.int64)
    instances.scores = torch.tensor([s for _, s in boxes], dtype=torch.float32)
    return instances


def test_image_scores_give_the_hand_worked_metrics(dataset):
    assert seven(evaluate(dataset())) == pytest.approx(SEVEN_VALUES)


def test_results_are_python_floats_with_the_seven_columns_first(dataset):
    metrics = evaluate(dataset())["multilabel"]
    assert list(metrics)[:7] == SEVEN
    assert list(metrics)[-3:] == ["AP-cat", "AP-dog", "AP-traffic light"]
    assert [key for key in metrics if "-" in key] == list(metrics)[-3:]
    assert all(type(value) is float for value in metrics.values())
    assert metrics["AP-cat"] == pytest.approx(100 * 29 / 36)


def test_detector_scores_a_label_by_its_best_box(dataset):
    instances = [
        [(0, 0.9), (1, 0.6), (0, 0.5), (2, 0.2)],
        [(2, 0.7), (0, 0.8), (1, 0.4)],
        [(2, 0.1), (0, 0.3), (1, 0.1), (1, 0.7)],
        [(0, 0.6), (1, 0.1), (2, 0.4)],
    ]
    outputs = [{"instances": detections(boxes)} for boxes in instances]
    assert seven(evaluate(dataset(), outputs=outputs)) == pytest.approx(SEVEN_VALUES)


def test_detector_without_boxes_scores_every_label_zero(dataset, tmp_path):
    outputs = [{"instances": detections([])} for _ in LABELS]
    metrics = evaluate(dataset(), outputs=outputs, output_dir=str(tmp_path))["multilabel"]
    assert metrics["OR"] == 0.0
    assert not np.load(tmp_path / "multilabel_scores.npz")["scores"].any()


def test_image_scores_take_precedence_over_instances(dataset):
    outputs = [o | {"instances": detections([(0, 1.0)])} for o in image_outputs()]
    assert seven(evaluate(dataset(), outputs=outputs)) == pytest.approx(SEVEN_VALUES)


def test_data_set_with_annotations_alone_has_their_classes_as_labels(dataset):
    dicts = [
        {
            "image_id": d["image_id"],
            "file_name": d["file_name"],
            "annotations": [{"category_id": c, "iscrowd": 0} for c in d["image_labels"] * 2],
        }
        for d in dataset_dicts()
    ]
    assert seven(evaluate(dataset(dicts))) == pytest.approx(SEVEN_VALUES)


def test_stock_coco_data_set_works(tmp_path):
    images = [{"id": 7, "file_name": "a.jpg", "height": 9, "width": 9}]
    box = {
        "id": 1,
        "image_id": 7,
        "category_id": 18,
        "bbox": [0, 0, 5, 5],
        "area": 25,
        "iscrowd": 1,
    }
    categories = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}]
    json_file = tmp_path / "a.json"
    json_file.write_text(
        json.dumps({"images": images, "annotations": [box], "categories": categories})
    )
    register_coco_instances("evaluator_test_coco", {}, str(json_file), str(tmp_path))
    try:
        outputs = [{"instances": detections([(1, 0.9)])}]  # contiguous ids: car 0, dog 1
        metrics = evaluate("evaluator_test_coco", [{"image_id": 7}], outputs)["multilabel"]
        assert metrics["AP-dog"] == 100.0 and math.isnan(metrics["AP-car"])
    finally:
        unregister("evaluator_test_coco")


def test_ignored_labels_are_left_out(dataset):
    # Image 1's 0.8 for cat, the only false positive, is left out: cat is then + + +.
    name = dataset(dataset_dicts(ignored_labels=[[], [0], [], []]))
    metrics = evaluate(name)["multilabel"]
    assert metrics["AP-cat"] == pytest.approx(100.0)
    assert metrics["OP"] == pytest.approx(100.0)


def test_order_of_processing_does_not_matter_and_padding_counts_once(dataset):
    order = [2, 0, 3, 1, 2, 0]
    inputs = [dataset_dicts()[i] for i in order]
    assert seven(evaluate(dataset(), inputs, image_outputs(SCORES[order]))) == pytest.approx(
        SEVEN_VALUES
    )


def test_reset_forgets_the_predictions(dataset):
    evaluator = MultiLabelEvaluator(dataset())
    evaluator.process(dataset_dicts(), image_outputs(1 - SCORES))
    evaluator.reset()
    evaluator.process(dataset_dicts(), image_outputs())
    assert seven(evaluator.evaluate()) == pytest.approx(SEVEN_VALUES)


def test_runs_in_detectron2s_inference_loop(dataset):
    class Model(torch.nn.Module):
        def forward(self, batched_inputs):
            return [{"image_scores": SCORES[x["image_id"]]} for x in batched_inputs]

    loader = [[x] for x in dataset_dicts()]
    results = inference_on_dataset(Model(), loader, MultiLabelEvaluator(dataset()))
    assert seven(results) == pytest.approx(SEVEN_VALUES)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"image_scores": torch.zeros(4)}, r"shape \(4,\).*3 classes"),
        ({"image_scores": torch.tensor([0.1, float("nan"), 0.3])}, "class 1 is nan"),
        ({"image_scores": torch.tensor([0.1, 0.2, 3.0])}, r"class 2 is 3.0, not in \[0, 1\]"),
        ({"sem_seg": torch.zeros(3)}, "neither 'image_scores' nor 'instances'.*sem_seg"),
        ({"instances": detections([(3, 0.5)])}, "box has class 3.*3 classes"),
        ({"instances": detections([(0, float("nan"))])}, "class 0 is nan"),
    ],
)
def test_unusable_output_names_the_image(dataset, output, message):
    evaluator = MultiLabelEvaluator(dataset())
    with pytest.raises(ValueError, match=r"images/0\.jpg.*evaluator_test.*" + message):
        evaluator.process(dataset_dicts()[:1], [output])


def test_missing_image_is_named_by_its_file(dataset):
    with pytest.raises(ValueError, match=r"1 of the 4 images.*images/2\.jpg"):
        rows = [0, 1, 3]
        evaluate(dataset(), [dataset_dicts()[i] for i in rows], image_outputs(SCORES[rows]))


def test_prediction_for_an_unknown_image_is_named(dataset):
    with pytest.raises(ValueError, match="not in evaluator_test: image_id 99"):
        evaluate(dataset(), dataset_dicts(image_id=[0, 1, 2, 99]))


def test_evaluate_without_predictions_says_so(dataset):
    with pytest.raises(ValueError, match="no predictions for evaluator_test"):
        MultiLabelEvaluator(dataset()).evaluate()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_labels": [[0], [3], [1], [2]]}, r"images/1\.jpg: label 3"),
        ({"ignored_labels": [[], [], [-1], []]}, r"images/2\.jpg: label -1"),
        ({"image_id": [0, 1, 2, 2]}, "more than one image with image_id 2"),
    ],
)
def test_unusable_ground_truth_is_named(dataset, changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate(dataset(dataset_dicts(**changes)))


def test_data_set_without_labels_says_so(dataset):
    dicts = [{"image_id": i, "file_name": f"{i}.jpg"} for i in range(4)]
    with pytest.raises(ValueError, match=r"0\.jpg has neither 'image_labels' nor 'annotations'"):
        evaluate(dataset(dicts))


@pytest.mark.parametrize("ids", [[0, 1, 2, 3], ["a", "b", "000c", "d"], [0, 1, 2, 2**70]])
def test_saved_scores_hold_everything_without_pickle(dataset, tmp_path, ids):
    dicts = dataset_dicts(image_id=ids, ignored_labels=[[2], [], [], []])
    reordered = [dicts[i] for i in (3, 1, 0, 2)]
    evaluate(dataset(dicts), reordered, image_outputs(SCORES[[3, 1, 0, 2]]), output_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["multilabel_scores.npz"]
    saved = np.load(tmp_path / "multilabel_scores.npz", allow_pickle=False)
    assert [str(i) for i in saved["image_ids"]] == [str(i) for i in ids]
    assert saved["file_names"].tolist() == [d["file_name"] for d in dicts]
    assert saved["class_names"].tolist() == CLASSES
    assert saved["scores"].dtype == np.float32
    np.testing.assert_array_equal(saved["scores"], SCORES.numpy())
    assert [np.flatnonzero(row).tolist() for row in saved["labels"]] == LABELS
    assert np.argwhere(saved["ignored"]).tolist() == [[0, 2]]


def _evaluate_share(rank, folder):
    """One of two processes: even images and one to pad with, or odd images."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", world_size=2, rank=rank
    )
    register("evaluator_test", dataset_dicts())
    evaluator = MultiLabelEvaluator("evaluator_test", output_dir=folder)
    rows = [[0, 2, 1], [1, 3]][rank]
    evaluator.process([dataset_dicts()[i] for i in rows], image_outputs(SCORES[rows]))
    results = evaluator.evaluate()
    Path(folder, f"results{rank}.json").write_text(json.dumps(results))
    comm.synchronize()
    torch.distributed.destroy_process_group()


def test_two_processes_give_what_one_gives(dataset, tmp_path):
    expected = evaluate(dataset())
    processes.spawn(_evaluate_share, args=(str(tmp_path),), nprocs=2)
    assert json.loads((tmp_path / "results0.json").read_text()) == expected
    assert json.loads((tmp_path / "results1.json").read_text()) is None
    scores = np.load(tmp_path / "multilabel_scores.npz")["scores"]
    np.testing.assert_array_equal(scores, SCORES.numpy())


def table_results(names):
    metrics = {key: float(10 * i) for i, key in enumerate(SEVEN)}
    return {"multilabel": metrics | {f"AP-{name}": 12.345 for name in names}}


@pytest.mark.parametrize("length", [3, 14, 60])
@pytest.mark.parametrize("width", [64, 80, 200])
def test_table_of_80_classes_fits_the_terminal(length, width):
    names = [f"{i:02d}" + "n" * (length - 2) for i in range(80)]
    baselines = {"context-blind detector": table_results([]), "b" * 300: table_results([])}
    table = format_table(table_results(names), width=width, baselines=baselines)
    assert max(map(len, table.splitlines())) <= width
    assert all(name[:20] in table for name in names)


def test_table_has_the_model_and_its_baselines_then_the_classes():
    results = table_results(["cat"])
    results["multilabel"]["AP-dog"] = math.nan
    baselines = {"class prevalence": dict.fromkeys(SEVEN, 1.0)}
    lines = [
        line.split() for line in format_table(results, width=80, baselines=baselines).splitlines()
    ]
    assert lines[0] == SEVEN
    assert lines[2] == ["model", "0.00", "10.00", "20.00", "30.00", "40.00", "50.00", "60.00"]
    assert lines[3] == ["class", "prevalence"] + ["1.00"] * 7
    assert lines[5:] == [["class", "AP"] * 2, lines[6], ["cat", "12.35", "dog", "-"]]


def test_table_takes_the_metrics_with_class_names():
    metrics = dict.fromkeys(SEVEN, 50.0) | {"per_class_AP": np.array([25.0, 75.0])}
    lines = format_table(metrics, class_names=["cat", "dog"], width=80).splitlines()
    assert lines[-1].split() == ["cat", "25.00", "dog", "75.00"]


CSV_SCORES = "image_id,cat,dog\na.jpg,0.9,0.2\nb.jpg,0.8,0.75\n"
CSV_LABELS = "image_id,cat,dog\nb.jpg,-1,1\na.jpg,1,0\n"
JSON_NAMES = [
    {"image_id": "a.jpg", "scores": {"cat": 0.9, "dog": 0.2}, "labels": ["cat"]},
    {"image_id": 2, "scores": {"dog": 0.75, "cat": 0.8}, "labels": ["dog"], "ignored": ["cat"]},
]
JSON_POSITIONS = [
    {"image_id": "a.jpg", "scores": [0.9, 0.2], "labels": [0]},
    {"image_id": 2, "scores": [0.8, 0.75], "labels": [1], "ignored": [0]},
]


def run_tool(capsys, *arguments):
    assert scnet("scores", *arguments, "--json") == 0
    (metrics,) = json.loads(capsys.readouterr().out).values()
    return metrics


def test_tool_gives_the_evaluators_numbers_for_its_file(dataset, tmp_path, capsys):
    dicts = dataset_dicts(image_labels=[[0], [1], [0], [0]])  # no traffic light
    metrics = evaluate(dataset(dicts), dicts, output_dir=str(tmp_path))["multilabel"]
    printed = run_tool(capsys, tmp_path / "multilabel_scores.npz")
    assert printed.pop("AP-traffic light") is None  # nan is no JSON
    assert printed == {key: metrics[key] for key in printed} and len(printed) == len(metrics) - 1


def test_tool_reads_csv_and_both_kinds_of_json_alike(tmp_path, capsys):
    (tmp_path / "scores.csv").write_text(CSV_SCORES, encoding="utf-8-sig")  # as Excel writes it
    (tmp_path / "labels.csv").write_text(CSV_LABELS)
    names = [JSON_NAMES[0] | {"labels": "cat"}, JSON_NAMES[1]]  # a text for a list of one
    (tmp_path / "text.json").write_text(json.dumps(names))
    (tmp_path / "names.json").write_text(json.dumps(JSON_NAMES), encoding="utf-8-sig")
    (tmp_path / "positions.json").write_text(json.dumps(JSON_POSITIONS))
    from_csv = run_tool(capsys, tmp_path / "scores.csv", "--labels", tmp_path / "labels.csv")
    assert [from_csv[key] for key in SEVEN] == [100.0] * 7  # cat's 0.8 in b.jpg is left out
    assert run_tool(capsys, tmp_path / "names.json") == from_csv
    assert run_tool(capsys, tmp_path / "text.json") == from_csv
    positions = run_tool(capsys, tmp_path / "positions.json")
    assert list(positions.values()) == list(from_csv.values())


@pytest.mark.parametrize(
    "labels",
    [
        "image_id,cat,dog\nb.jpg,-1,True\na.jpg,True,False\n",
        "image_id;cat;dog\nb.jpg;-1;1\na.jpg;1;0\n",
        "image_id,dog,cat\nb.jpg,1,-1\na.jpg,0,1\n",
        ",image_id,cat,dog\n0,b.jpg,-1,1\n1,a.jpg,1,0\n",
        ";image_id;cat;dog\n0;b.jpg;-1;1\n1;a.jpg;1;0\n",
        "image_id\tcat\tdog\nb.jpg\t-1\t1\na.jpg\t1\t0\n",
        "image_id, cat, dog\nb.jpg, -1, 1\na.jpg, 1, 0\n",
        "image_id,cat,dog\nb.jpg,-1,1\na.jpg,1,0\n,,\n",
        "image_id,cat,dog\nb,-1,1\na,1,0\n",
        "file,cat,dog\nb.jpg,,1\na.jpg,1,0\n",
    ],
    ids=[
        "booleans",
        "semicolons",
        "another-order",
        "an-index",
        "an-index-and-semicolons",
        "tabs",
        "spaces",
        "empty-rows",
        "ids-without-endings",
        "an-empty-cell",
    ],
)
def test_tool_takes_labels_whose_meaning_is_plain(tmp_path, capsys, labels):
    (tmp_path / "scores.csv").write_text(CSV_SCORES)
    (tmp_path / "labels.csv").write_text(labels)
    printed = run_tool(capsys, tmp_path / "scores.csv", "--labels", tmp_path / "labels.csv")
    assert [printed[key] for key in SEVEN] == [100.0] * 7  # as with 1, 0 and commas


@pytest.mark.parametrize("separator", [";", "\t"])
def test_tool_takes_decimal_commas_where_others_separate(tmp_path, capsys, separator):
    scores = CSV_SCORES.replace(",", separator).replace(".2", ",2").replace(".75", ",75")
    assert "0,75\n" in scores
    (tmp_path / "scores.CSV").write_text(scores)
    (tmp_path / "labels.csv").write_text(CSV_LABELS)
    printed = run_tool(capsys, tmp_path / "scores.CSV", "--labels", tmp_path / "labels.csv")
    assert [printed[key] for key in SEVEN] == [100.0] * 7


def test_tool_names_a_labels_file_in_utf_16(tmp_path, capsys):
    (tmp_path / "scores.csv").write_text(CSV_SCORES)
    (tmp_path / "labels.csv").write_text(CSV_LABELS, encoding="utf-16")  # Excel's "Unicode text"
    assert scnet("scores", tmp_path / "scores.csv", "--labels", tmp_path / "labels.csv") == 2
    assert f"error: {tmp_path}/labels.csv: not UTF-8" in capsys.readouterr().err


def test_tool_prints_a_table_for_each_file(tmp_path, capsys):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(JSON_NAMES))
    assert scnet("scores", path, path) == 0
    out = capsys.readouterr().out
    assert out.count(f"{path}: 2 images, 2 classes") == out.count("mAP") == 2


@pytest.mark.parametrize(
    ("name", "content", "labels", "message"),
    [
        ("a.csv", CSV_SCORES, None, "needs --labels"),
        ("a.csv", "cat,dog\n", CSV_LABELS, "line 1: must be image_id"),
        ("a.csv", CSV_SCORES + "c.jpg,0.5\n", CSV_LABELS, "line 4: image c.jpg"),
        (
            "a.csv",
            CSV_SCORES + "".join(f"{i}.jpg,0.5,0.5\n" for i in range(5)),
            CSV_LABELS,
            r"5 images in only one .*: 0\.jpg, 1\.jpg, 2\.jpg and 2 more",
        ),
        ("a.csv", CSV_SCORES.replace("cat", "cow"), CSV_LABELS, "header.*differs"),
        (
            "a.csv",
            CSV_SCORES,
            CSV_LABELS.replace("-1", "2"),
            r"error: \S+labels\.csv, line 2: image b\.jpg, class cat: '2' is none of the labels",
        ),
        (
            "a.csv",
            CSV_SCORES.replace("0.9", ""),
            CSV_LABELS,
            r"error: \S+a\.csv, line 2: image a\.jpg, class cat: '' is not a number",
        ),
        (
            "a.csv",
            CSV_SCORES.replace("0.9", "nan"),
            CSV_LABELS,
            r"a\.csv: image a\.jpg, class cat: the score is nan, not a number",
        ),
        (
            "a.csv",
            CSV_SCORES.replace("0.9", "90"),
            CSV_LABELS,
            r"image a\.jpg, class cat: the score is 90\.0, not in \[0, 1\]: divide percent by 100",
        ),
        (
            "a.json",
            json.dumps([JSON_NAMES[0], {**JSON_NAMES[1], "scores": {"cat": 0, "dog": math.nan}}]),
            None,
            r"a\.json: image 2, class dog: the score is nan",
        ),
        ("a.json", "[]", None, "not a list of images"),
        ("a.json", '[{"image_id": 1, "scores": [0.5]}]', None, "no 'labels'"),
        ("a.json", json.dumps([*JSON_NAMES, JSON_POSITIONS[0]]), None, "image a.jpg: class"),
        ("a.json", json.dumps([JSON_NAMES[0]] * 2), None, "image a.jpg comes twice"),
        (
            "a.json",
            json.dumps([{"image_id": "a.jpg", "scores": [0.9, 0.1, 0.8], "labels": [1, 0, 1]}]),
            None,
            r"image a\.jpg: labels \[1, 0, 1\] name a class twice; write the names or positions",
        ),
        ("a.csv", CSV_SCORES.replace("dog", "cat"), CSV_LABELS, "more than one column of a name"),
        ("a.npz", "not a zip", None, "a.npz"),
        ("a.npz", "", None, "a.npz"),
        ("a.txt", "", None, "neither .npz, .csv nor .json"),
    ],
)
def test_tool_names_what_is_wrong(tmp_path, capsys, *, name, content, labels, message):
    (tmp_path / name).write_text(content)
    (tmp_path / "labels.csv").write_text(labels or "")
    arguments = [str(tmp_path / name)] + (
        ["--labels", str(tmp_path / "labels.csv")] if labels else []
    )
    assert scnet("scores", *arguments) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
