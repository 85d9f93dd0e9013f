"""compare.py and evidence.py: plans, cells that are kept or done again, statistics."""

import dataclasses
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from scnet_d2.data.context_scenes import COMPANION_OF, SceneConfig, render_scene
from scnet_d2.engine import Trainer

import compare
import cost
import evidence
import label_relations
import numpy as np
import processes
import pytest
import scene_pictures
import torch
import yaml
from conftest import REPO, load_config
from detectron2.structures import Boxes, BoxMode
from occlusion_test import PARTS, box_elsewhere, companion_boxes, part_mask, to_text
from PIL import Image
from sklearn.metrics import average_precision_score

FC16 = ("MODEL.ROI_BOX_HEAD.FC_DIM", 16)
PLAN = {
    "title": "A test",
    "config": "configs/ContextScenes/scnet_R_18_FPN_160px.yaml",
    "seeds": [1, 2],
    "reference": "b",
    "groups": {"mAP": None, "pair": ["raft", "sledge"]},
    "opts": {
        "SOLVER.MAX_ITER": 2,
        "SOLVER.IMS_PER_BATCH": 2,
        "DATALOADER.NUM_WORKERS": 0,
        "DATASETS.VAL": [],
        "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    },
    "datasets": {
        "own": {
            "scenes": {"sizes": [12, 4, 12]},
            "opts": {"DATASETS.TRAIN": ["own_train"], "DATASETS.TEST": ["own_test"]},
        }
    },
    "methods": {"a": {}, "b": {"MODEL.SCNET.CONTEXT.ENABLED": False}},
}


def write_plan(folder: Path, **changes) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({**PLAN, **changes}))
    return path


def store(plan, cell, scores, labels, names=("raft", "sledge", "car")):
    """A finished cell with these scores."""
    raw = plan.path.parent / "multilabel_scores.npz"
    np.savez(
        raw, image_ids=np.arange(len(scores)), class_names=np.array(names), scores=scores,
        labels=labels, ignored=np.zeros_like(labels),
    )  # fmt: skip
    compare.write_result(plan, cell, compare.store_scores(plan, cell, [raw]))


def made_scores(seed) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Labels (200, 3), and the scores of method a, which are better, and of method b."""
    labels = np.random.default_rng(0).random((200, 3)) < 0.3
    noise = np.random.default_rng(seed).random((200, 3))
    scores = {method: s * labels + (1 - s) * noise for method, s in (("a", 0.4), ("b", 0.2))}
    return labels, {method: x.astype(np.float32) for method, x in scores.items()}


def scikit_learn_map(method, seed) -> float:
    """Mean AP in percent of what is stored, which is float16."""
    labels, scores = made_scores(seed)
    columns = zip(labels.T, scores[method].astype(np.float16).T)
    return 100 * np.mean([average_precision_score(y, s) for y, s in columns])


@pytest.fixture
def finished(tmp_path):
    """A plan whose method a is better than b in every seed."""
    plan = compare.read_plan(write_plan(tmp_path))
    for seed in plan.seeds:
        labels, scores = made_scores(seed)
        for method in "ab":
            store(plan, compare.Cell("own", method, seed), scores[method], labels)
    return plan


def test_shipped_plans_can_be_read_and_set_known_keys():
    plans = sorted((REPO / "experiments" / "results").rglob("*.yaml"))
    assert len(plans) >= 5
    config = cache(lambda name: load_config(name.removeprefix("configs/")))
    for path in plans:
        plan = compare.read_plan(path)
        for dataset in plan.datasets.values():
            for method, opts in plan.methods.items():
                merged = {**plan.opts, **dataset.get("opts", {}), **opts}
                keys = [str(x) for item in merged.items() for x in item]
                config(plan.config_of(method)).clone().merge_from_list(keys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": {}}, r"unknown keys \['method'\]"),
        ({"reference": "c"}, "reference names 'c', not one of its methods"),
        ({"also": ["d"]}, "also names 'd', not one of its methods"),
        ({"protocols": {"e": "x"}}, "protocols names 'e', not one of its methods"),
    ],
)
def test_plan_with_a_wrong_key_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        compare.read_plan(write_plan(tmp_path, **changes))


def test_plan_without_a_key_is_refused(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("title: nothing more\n")
    with pytest.raises(ValueError, match=r"missing keys \['config', 'datasets'"):
        compare.read_plan(path)


# The programs of cells without the time that their imports take.
FORKED = SimpleNamespace(**vars(subprocess) | {"Popen": processes.Program})


def test_cells_run_once_and_a_killed_one_again(tmp_path, monkeypatch):
    """One real cell; a folder that a killed run left behind is not taken for a result."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(compare, "subprocess", FORKED)
    opts = PLAN["opts"] | {compare.DETECTION_AP: True}
    plan, work = write_plan(tmp_path, opts=opts), tmp_path / "work"
    left_behind = work / "plan" / "own-a-1"
    left_behind.mkdir(parents=True)
    (left_behind / "last_checkpoint").write_text("model_0000001.pth")
    compare.main([str(plan), "--work", str(work), "--only", "own-a-1"])
    result = json.loads((tmp_path / "plan" / "own-a-1.json").read_text())
    assert (result["dataset"], result["method"], result["seed"]) == ("own", "a", 1)
    assert set(result["metrics"]) == {"mAP", "pair"}
    assert result["versions"]["torch"]
    assert 0 <= result["boxes"]["AP75"] <= result["boxes"]["AP50"] <= 100
    bounds = json.loads((tmp_path / "plan" / "own-bounds.json").read_text())
    assert bounds["context-blind detector"]["mAP"] > bounds["class prevalence"]["mAP"]

    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(PLAN | {"trained": "plan/own"}))
    compare.main([str(again), "--work", str(work), "--only", "own-a-1"])
    evaluated = json.loads((tmp_path / "again" / "own-a-1.json").read_text())
    assert evaluated["per_class_AP"] == result["per_class_AP"]
    assert not (work / "again" / "own-a-1" / "model_final.pth").exists()

    monkeypatch.setattr(compare, "run_cell", None)  # would fail if anything ran
    compare.main([str(plan), "--work", str(work), "--only", "own-a-1"])


def test_a_cell_that_fails_is_named_and_leaves_no_result(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "subprocess", FORKED)
    plan = write_plan(tmp_path, trained="plan/own")  # there is no such model
    message = r"1 of 1 cells failed(.|\n)*own-b-1(.|\n)*own-b-1/model_final\.pth"
    with pytest.raises(SystemExit, match=message):
        compare.main([str(plan), "--work", str(tmp_path / "work"), "--only", "own-b-1"])
    assert not list((tmp_path / "plan").glob("own-b-1*"))


def test_voc_parts_share_no_image(tmp_path, monkeypatch):
    lists = tmp_path / "VOC2012" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("".join(f"{i}\n" for i in range(12)))
    dataset = {"voc": {2012: {"train": ["train", 5, [0, 1, 2, 3]], "val": ["train", 5, [4]]}}}
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    data = compare.prepare("part", dataset, tmp_path / "data")
    made = Path(data.root) / "VOC2012" / "ImageSets" / "Main"
    train, val = ((made / f"{s}.txt").read_text().split() for s in ("train", "val"))
    assert val == ["4", "9"]
    assert sorted(train + val, key=int) == [str(i) for i in range(12)]


VOC_IMAGE = """<annotation><size><width>9</width><height>9</height></size>
<object><name>{}</name><difficult>{}</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>"""


def test_a_part_of_voc_becomes_a_table_of_labels_with_unknown_ones_empty(tmp_path, monkeypatch):
    source = tmp_path / "VOC2012"
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (source / folder).mkdir(parents=True)
    (source / "ImageSets/Main/train.txt").write_text("1\n2\n3\n4\n")
    for image, name, difficult in ((2, "bicycle", 1), (4, "cat", 0)):
        (source / "JPEGImages" / f"{image}.jpg").touch()
        (source / "Annotations" / f"{image}.xml").write_text(VOC_IMAGE.format(name, difficult))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    dataset = {"voc": {2012: {}}, "labels": {"others": [2012, "train", 2, [1]]}}
    option, name, file, root = compare.prepare("part", dataset, tmp_path / "data").arguments
    assert (option, name) == ("--register-labels", "others")
    assert Path(file).read_text().splitlines()[1:] == [
        "2.jpg,0," + ",0" * 18,
        "4.jpg" + ",0" * 7 + ",1" + ",0" * 12,
    ]
    assert Path(root, "2.jpg").exists()


def test_difference_is_the_mean_over_the_seeds_with_students_interval(finished):
    difference = evidence.Comparison(finished, "own").difference("a", "b", "mAP")
    first, second = (scikit_learn_map("a", s) - scikit_learn_map("b", s) for s in (1, 2))
    assert difference.mean == pytest.approx((first + second) / 2)
    assert difference.images[0] < difference.mean < difference.images[1]
    # Student's t with one degree of freedom: 12.706 standard errors, |first - second| / 2
    half = 12.7062 * abs(first - second) / 2
    assert difference.seeds == pytest.approx((difference.mean - half, difference.mean + half), 1e-4)


def test_difference_is_taken_over_the_seeds_that_both_have(finished):
    (finished.results / "own-b-2.json").unlink()
    difference = evidence.Comparison(finished, "own").difference("a", "b", "mAP")
    assert difference.mean == pytest.approx(scikit_learn_map("a", 1) - scikit_learn_map("b", 1))
    assert difference.seeds is None


def test_bootstrap_draws_the_same_images_for_both(finished):
    """Otherwise two methods with equal scores would differ in nearly every replicate."""
    for seed in finished.seeds:
        labels, scores = made_scores(seed)
        store(finished, compare.Cell("own", "b", seed), scores["a"], labels)
    difference = evidence.Comparison(finished, "own").difference("a", "b", "mAP")
    assert (difference.mean, *difference.images) == (0, 0, 0)


def test_difference_of_a_part_leaves_out_labels_of_other_objects(finished):
    """The part has half of the labels; b is given a's scores for the other half."""
    out = np.zeros((200, 3), bool)
    out[::2] = made_scores(1)[0][::2]  # present labels alone
    for seed in finished.seeds:
        labels, scores = made_scores(seed)
        b = np.where(out, scores["b"], scores["a"])
        store(finished, compare.Cell("own", "b", seed), b, labels)
    comparison = evidence.Comparison(finished, "own")
    assert comparison.difference("a", "b", "mAP").mean > 1
    part = comparison.difference("a", "b", "mAP", evidence.Part("odd", out))
    assert (part.mean, *part.images) == (0, 0, 0)


def test_metrics_are_counted_as_the_authors_count_them(finished):
    three, mean = evidence.PROTOCOLS
    plan = dataclasses.replace(
        finished, protocols={"a": mean, "b": three}, seeds=[1], groups={"mAP": None}
    )
    labels = np.array([[True, True, True, True], [True, False, False, False]])
    scores = np.array([[0.9, 0.8, 0.7, 0.6], [0.9, 0.1, 0.1, 0.1]], np.float32)
    for method in "ab":
        store(plan, compare.Cell("own", method, 1), scores, labels, names=tuple("wxyz"))
    rows = evidence.metrics_as_published(evidence.Comparison(plan, "own")).splitlines()[2:]
    # all found, so all F1 are 1; of the three highest the fourth class is not, so 4 of 5 labels
    assert rows[0].split()[:7] == ["a", *["100.0"] * 6]
    assert rows[1].split()[:7] == ["b", "75.0", "75.0", "75.0", "100.0", "80.0", "88.9"]


def test_ap_of_boxes_is_the_mean_over_test_sets_and_has_a_table(finished, tmp_path):
    last = {"iteration": 2, "x/bbox/AP50": 20.0, "y/bbox/AP50": 30.0, "y/bbox/AP50-car": 90.0}
    last |= {"x/bbox/AP75": 1.0, "y/bbox/AP75": 4.0, "x/multilabel/mAP": 70.0}
    (tmp_path / "metrics.json").write_text('{"iteration": 1}\n' + json.dumps(last) + "\n")
    found = compare.detection_ap(tmp_path / "metrics.json")
    assert found == {"AP50": 25.0, "AP75": 2.5}
    plan = dataclasses.replace(finished, opts={compare.DETECTION_AP: True})
    for cell in plan.cells():
        better = {"boxes": {k: v + 2 * (cell.seed - 1) for k, v in found.items()}}
        compare.write_result(plan, cell, plan.result(cell) | better)
    rows = evidence.boxes(evidence.Comparison(plan, "own")).splitlines()
    assert rows[0].split() == ["boxes", "AP50", "AP75"]
    assert re.split(r"  +", rows[2].strip()) == ["a", "26.0 ± 1.4", "3.5 ± 1.4"]


def test_differences_over_the_parts_of_a_cross_validation(tmp_path):
    parts = {f"part_{i}": PLAN["datasets"]["own"] for i in range(4)}
    plan = compare.read_plan(write_plan(tmp_path, datasets=parts, seeds=[1], cross_validation=True))
    values = {"a": [60.0, 64.0, 62.0, 50.0], "b": [58.0, 60.0, 60.0, 50.0]}
    comparisons = [evidence.Comparison(plan, name) for name in parts]
    for i, comparison in enumerate(comparisons):
        comparison.seeds = {m: [1] for m in ("ab" if i < 3 else "b")}  # a has not run on the last
        comparison.values = lambda method, group, i=i: np.array([values[method][i]])
    rows = evidence.over_datasets(plan, comparisons).splitlines()[2:]
    # 2, 4 and 2: mean 8/3, standard error 2/3, Student's t with two degrees of freedom 4.303
    assert re.split(r"  +", rows[0]) == ["a", "3", "62.00 ± 2.00", "+2.67", "-0.2 to +5.5"]
    assert re.split(r"  +", rows[1].strip()) == ["b", "4", "57.00 ± 4.76"]


def test_evidence_prints_draws_and_stores(finished, capsys):
    folder = finished.path.parent
    document = f"a\n\n<!-- {folder}/plan.txt 1 -->\n```\nTABLE\n```\n\nb\n"
    (folder / "a.md").write_text(document)
    evidence.main(
        ["--results", str(folder), "--images", str(folder / "images"), "--docs", str(folder)]
    )
    printed = capsys.readouterr().out
    title, first = (folder / "plan.txt").read_text().rstrip().split("\n\n")[:2]
    assert title.startswith("A test") and first.startswith("own\n") and title in printed
    assert first in printed
    assert (folder / "a.md").read_text() == document.replace("TABLE", first)
    assert max(map(len, printed.splitlines())) <= 100
    stored = json.loads((folder / "evidence.json").read_text())["plan"]
    for method in "ab":
        expected = [scikit_learn_map(method, seed) for seed in (1, 2)]
        assert stored[method]["mAP"] == pytest.approx(expected, abs=1e-4)
        mean_sd = rf"{np.mean(expected):.2f} ± {np.std(expected, ddof=1):.2f}"
        assert re.search(rf"^{method} +2 +{mean_sd} ", printed, re.MULTILINE)
    with Image.open(folder / "images" / "plan.png") as image:
        assert image.size == (660, 224)  # 6 x 2.04 inches of 110 dots


def test_evidence_of_folders_of_plans(finished, tmp_path_factory, capsys):
    folder = tmp_path_factory.mktemp("results")
    arguments = ["--results", str(folder), "--images", str(folder / "images"), "--docs"]
    with pytest.raises(SystemExit):
        evidence.main([*arguments, str(folder)])
    assert f"{folder} has no plan" in capsys.readouterr().err
    shutil.copytree(finished.path.parent, folder / "more")
    broken = folder / "more" / "broken.yaml"
    broken.write_text("title: A\n")
    with pytest.raises(SystemExit):
        evidence.main([*arguments, str(folder)])
    assert re.search(r"more/broken\.yaml: missing keys \['config'", capsys.readouterr().err)
    broken.unlink()
    evidence.main([*arguments, str(folder)])
    assert "plan" in json.loads((folder / "more" / "evidence.json").read_text())
    assert (folder / "images" / "more" / "plan.png").exists()
    with pytest.raises(SystemExit):
        evidence.main([*arguments, str(folder)])
    assert "is there already" in capsys.readouterr().err


def test_documents_quote_the_tables_as_they_were_printed_last():
    documents = [*evidence.DOCS.glob("*.md")]
    assert sum(len(evidence.QUOTED.findall(path.read_text())) for path in documents) > 10
    for path in documents:
        assert evidence.fill(path.read_text()) == path.read_text(), path


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures that are saved."""
    saved = []
    monkeypatch.setattr(evidence, "save_figure", lambda figure, path: saved.append(figure))
    return saved


def test_a_dot_is_drawn_for_each_seed_and_a_line_at_their_mean(finished, figures):
    evidence.dot_plot([evidence.Comparison(finished, "own")], Path("plan.png"))
    (axis,) = figures[0].axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]
    for y, method in enumerate("ab"):
        dots, mean = axis.lines[2 * y : 2 * y + 2]
        expected = [scikit_learn_map(method, seed) for seed in (1, 2)]
        np.testing.assert_allclose(dots.get_xydata(), [[x, y] for x in expected])
        np.testing.assert_allclose(mean.get_xdata(), [np.mean(expected)] * 2)


def test_a_curve_has_the_mean_of_each_method_and_the_gain_over_the_reference(finished, figures):
    finished.datasets["own"]["x"] = 1.5
    evidence.curve_plot([evidence.Comparison(finished, "own")], Path("plan.png"), "x")
    left, right = figures[0].axes
    a, b = (np.mean([scikit_learn_map(method, seed) for seed in (1, 2)]) for method in "ab")
    points = [container.lines[0].get_xydata()[0] for container in left.containers]
    np.testing.assert_allclose(points, [[1.5, a], [1.5, b]])
    (gain,) = right.containers  # of a alone: b is the reference
    np.testing.assert_allclose(gain.lines[0].get_xydata(), [[1.5, a - b]])


@pytest.mark.parametrize(
    ("value", "inside"), [(44.9, False), (45.1, True), (55.2, True), (55.4, False)]
)
def test_a_cell_run_again_is_held_against_the_spread(finished, monkeypatch, value, inside):
    # mean 50.17, sd 1.041; Student's t with two degrees of freedom: 4.303 sd sqrt(1 + 1/3) = 5.17
    monkeypatch.setattr(evidence, "run_cell", lambda *_: {"metrics": {"mAP": value}})
    monkeypatch.setattr(evidence.Comparison, "values", lambda *_: np.array([49.0, 51.0, 50.5]))
    cell = compare.Cell("own", "a", 1)
    assert evidence.run_again(finished, cell, finished.path.parent) == inside


def test_causal_test_reports_changes_and_a_spread_only_over_several_runs():
    runs = {
        f"d-scnet-{seed}": {"untouched": {"both": untouched}, "inside": {"both": 40.0}}
        for seed, untouched in ((1, 70.0), (2, 72.0))
    }
    _, _, untouched, inside = to_text(runs).splitlines()
    assert "71.0 ± 1.4" in untouched and "-31.0 ± 1.4" in inside
    del runs["d-scnet-2"]
    assert to_text(runs).splitlines()[-1].split() == ["inside", "-30.0"]


def test_parts_around_a_box_are_disjoint_and_cover_the_image():
    boxes = np.array([[30.0, 40.0, 50.0, 60.0]])
    masks = {name: part_mask(boxes, (100, 120), *part) for name, part in PARTS.items()}
    assert masks["inside"].sum() == 400
    assert masks["ring 1-2"].sum() == 40 * 40 - 400
    assert (masks["ring 1-1.5"] | masks["ring 1.5-2"]).sum() == masks["ring 1-2"].sum()
    apart = ("inside", "ring 1-2", "ring 2-3", "ring 3-4", "beyond 4")
    assert (sum(masks[name].astype(int) for name in apart) == 1).all()


def test_a_frozen_backbone_and_one_branch_less_cost_less_and_evidence_prints_it(finished, capsys):
    frozen = {"MODEL.SCNET.CONTEXT.ENABLED": False, "MODEL.BACKBONE.FREEZE_AT": 5}
    path = write_plan(finished.path.parent, methods={"a": {}, "b": frozen})
    cost.main([str(path), "--size", "64", "96", "--rounds", "1"])
    printed = capsys.readouterr().out
    stored = json.loads((finished.results / cost.FILE).read_text())
    a, b = stored["methods"]["a"], stored["methods"]["b"]
    model = Trainer.build_model(load_config("ContextScenes/scnet_R_18_FPN_160px.yaml", *FC16))
    assert a["parameters"] == a["trained"] == sum(p.numel() for p in model.parameters())
    assert b["trained"] < b["parameters"] < a["parameters"]
    assert "cost, 96 x 64 px" in printed
    assert "1.00" in printed.splitlines()[-1]
    assert b["step_ms"] < a["step_ms"]
    folder = finished.path.parent
    evidence.main(
        ["--results", str(folder), "--images", str(folder / "images"), "--docs", str(folder)]
    )
    assert printed.strip() in capsys.readouterr().out


COMPANIONS = SceneConfig(companions=1.0)


def test_the_nearest_companion_is_the_one_that_tells_the_label():
    found = 0
    for i in range(12):
        _, scene = render_scene(COMPANIONS, "test", i)
        annotations = [
            {
                "bbox": a["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": COMPANIONS.classes.index(a["name"]),
            }
            for a in scene["annotations"]
        ]
        names = {tuple(a["bbox"][:2]): a["name"] for a in scene["annotations"]}  # by its corner
        for pair in companion_boxes({"annotations": annotations}, COMPANIONS.classes):
            name, companion = (names[tuple(corner)] for corner in pair[:, :2])
            assert COMPANION_OF[name] == companion
            found += 1
    assert found > 5


def test_an_area_elsewhere_has_the_companions_size_and_distance_and_touches_nothing():
    box, companion = np.array([40, 40, 60, 60]), np.array([80, 40, 96, 56])  # a side away
    taken = np.array([box, companion, [0, 0, 100, 20]])
    (place,) = box_elsewhere(box, companion, taken, (100, 100))
    assert (place[2:] - place[:2]).tolist() == [16, 16]
    gaps = np.maximum(box[:2] - place[2:], place[:2] - box[2:])
    assert gaps.max() == 20
    for other in taken:
        assert (np.maximum(other[:2] - place[2:], place[:2] - other[2:]) >= 0).any()
    assert not len(box_elsewhere(box, companion, np.array([[0, 0, 100, 100]]), (100, 100)))


def test_attention_between_labels_is_that_to_boxes_of_other_objects():
    weights = torch.tensor([[[0, 0.6, 0.4], [0.5, 0, 0.5], [0.5, 0.5, 0]]])
    relation = SimpleNamespace(attention=lambda *_: (weights, torch.arange(3)))
    boxes = torch.tensor([[0, 0, 9, 9], [20, 0, 29, 9], [0, 50, 9, 59.0]])
    objects = label_relations.Objects(Boxes(boxes[:2]), torch.tensor([0, 1]))  # the last has none
    sums, counts = label_relations.attended(relation, (None, boxes, None), objects, 2)
    # 0.6 and 0.5 of a mean weight of 1 / 2
    torch.testing.assert_close(sums, torch.tensor([[0, 1.2], [1.0, 0]]))
    assert counts.tolist() == [[0, 1], [1, 0]]


def test_cooccurrence_is_relative_to_the_frequency_of_the_label():
    labels = np.array([[1, 1], [1, 1], [1, 0], [0, 0]], bool)
    # P(1 | 0) / P(1) = (2 / 3) / (2 / 4); P(0 | 0) / P(0) = 1 / (3 / 4)
    found = label_relations.cooccurrence(labels)
    np.testing.assert_allclose(found, [[4 / 3, 4 / 3], [4 / 3, 2]])


def test_a_picture_shows_the_scenes_that_one_method_alone_names_right(tmp_path, capsys):
    datasets = {"own": {"scenes": {"companions": 1.0}}}
    plan = compare.read_plan(write_plan(tmp_path, datasets=datasets, groups={"mAP": None}))
    labels = np.array([[1, 0], [1, 0], [0, 1]], bool)
    right = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]], np.float32)
    wrong = np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9]], np.float32)
    for method, scores in (("a", wrong), ("b", right)):
        store(plan, compare.Cell("own", method, 1), scores, labels, ("trough", "charger"))
    scene_pictures.main([str(plan.path), "a", "b", str(tmp_path / "scenes.png")])
    expected = "3 scenes; a wrong and b right in 1, the other way round in 1"
    assert expected in capsys.readouterr().out
    with Image.open(tmp_path / "scenes.png") as image:
        assert image.size == (3 * 328, 362)  # one of three columns; 2 x 160 px and two lines
