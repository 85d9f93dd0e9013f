"""compare.py and evidence.py: plans, cells that are kept or done again, statistics."""

import json
from pathlib import Path

import compare
import evidence
import numpy as np
import pytest
import yaml
from conftest import REPO, load_config
from occlusion_test import PARTS, part_mask, to_text

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
    compare.write_result(plan, cell, compare.store_scores(plan, cell, raw))


@pytest.fixture
def finished(tmp_path):
    """A plan whose method a is better than b by a known amount in every seed."""
    plan = compare.read_plan(write_plan(tmp_path))
    rng = np.random.default_rng(0)
    labels = rng.random((200, 3)) < 0.3
    for seed in plan.seeds:
        noise = rng.random((200, 3))
        for method, signal in (("a", 0.8), ("b", 0.2)):
            scores = np.clip(signal * labels + (1 - signal) * noise, 0, 1).astype(np.float32)
            store(plan, compare.Cell("own", method, seed), scores, labels)
    return plan


def test_shipped_plans_can_be_read_and_set_known_keys():
    plans = sorted((REPO / "docs" / "results").glob("*.yaml"))
    assert len(plans) >= 5
    for path in plans:
        plan = compare.read_plan(path)
        cfg = load_config(plan.config.removeprefix("configs/"))
        for dataset in plan.datasets.values():
            for opts in plan.methods.values():
                merged = {**plan.opts, **dataset.get("opts", {}), **opts}
                cfg.clone().merge_from_list([str(x) for item in merged.items() for x in item])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": {}}, r"unknown keys \['method'\]"),
        ({"reference": "c"}, "reference 'c' is not one of its methods"),
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


def test_cells_run_once_and_a_killed_one_again(tmp_path, monkeypatch):
    """One real cell; a folder that a killed run left behind is not taken for a result."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    plan, work = write_plan(tmp_path), tmp_path / "work"
    left_behind = work / "plan" / "own-a-1"
    left_behind.mkdir(parents=True)
    (left_behind / "last_checkpoint").write_text("model_0000001.pth")
    compare.main([str(plan), "--work", str(work), "--only", "own-a-1"])
    result = json.loads((tmp_path / "plan" / "own-a-1.json").read_text())
    assert (result["dataset"], result["method"], result["seed"]) == ("own", "a", 1)
    assert set(result["metrics"]) == {"mAP", "pair"}
    assert result["versions"]["torch"]
    bounds = json.loads((tmp_path / "plan" / "own-bounds.json").read_text())
    assert bounds["context-blind detector"]["mAP"] > bounds["class prevalence"]["mAP"]

    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(PLAN | {"trained": "plan/own"}))
    compare.main([str(again), "--work", str(work), "--only", "own-a-1"])
    evaluated = json.loads((tmp_path / "again" / "own-a-1.json").read_text())
    assert evaluated["per_class_AP"] == result["per_class_AP"]
    assert not (work / "again" / "own-a-1" / "model_final.pth").exists()
    with pytest.raises(SystemExit, match=r"own-b-1/model_final\.pth"):
        compare.main([str(again), "--work", str(work), "--only", "own-b-1"])

    monkeypatch.setattr(compare, "run_cell", None)  # would fail if anything ran
    compare.main([str(plan), "--work", str(work), "--only", "own-a-1"])


def test_a_cell_that_fails_is_named_and_leaves_no_result(tmp_path):
    plan = write_plan(tmp_path, methods={"b": {"MODEL.NO_SUCH_KEY": 1}})
    with pytest.raises(SystemExit, match=r"1 of 1 cells failed(.|\n)*own-b-1(.|\n)*NO_SUCH_KEY"):
        compare.main([str(plan), "--work", str(tmp_path / "work"), "--only", "own-b-1"])
    assert not list((tmp_path / "plan").glob("*.json"))


def test_voc_parts_share_no_image(tmp_path, monkeypatch):
    lists = tmp_path / "VOC2012" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("".join(f"{i}\n" for i in range(12)))
    dataset = {"voc": {"train": ["train", 5, [0, 1, 2, 3]], "val": ["train", 5, [4]]}}
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    data = compare.prepare("part", dataset, tmp_path / "data")
    made = Path(data.root) / "VOC2012" / "ImageSets" / "Main"
    train, val = ((made / f"{s}.txt").read_text().split() for s in ("train", "val"))
    assert val == ["4", "9"]
    assert sorted(train + val, key=int) == [str(i) for i in range(12)]


def test_difference_is_paired_by_seed_and_image(finished):
    comparison = evidence.Comparison(finished, "own")
    a, b = (comparison.values(m, "mAP") for m in "ab")
    difference = comparison.difference("a", "b", "mAP")
    assert difference.mean == pytest.approx((a - b).mean())
    assert 0 < difference.images[0] < difference.mean < difference.images[1]
    # Student's t with one degree of freedom: 12.706 standard errors
    half = 12.7062 * (a - b).std(ddof=1) / 2**0.5
    assert difference.seeds == pytest.approx((difference.mean - half, difference.mean + half), 1e-4)


def test_evidence_prints_draws_and_stores(finished, capsys):
    folder = finished.path.parent
    evidence.main(["--results", str(folder), "--images", str(folder / "images")])
    printed = capsys.readouterr().out
    assert "A test" in printed
    assert max(map(len, printed.splitlines())) <= 100
    stored = json.loads((folder / "evidence.json").read_text())
    assert len(stored["own"]["a"]["mAP"]) == 2
    assert stored["own"]["a"]["mAP"][0] > stored["own"]["b"]["mAP"][0]
    assert (folder / "images" / "plan.png").stat().st_size > 5000


@pytest.mark.parametrize(("value", "inside"), [(50.0, True), (80.0, False)])
def test_a_cell_run_again_is_held_against_the_spread(finished, monkeypatch, value, inside):
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
