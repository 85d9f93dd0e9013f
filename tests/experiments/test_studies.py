"""The studies of trained runs, on each device: each starts from the mAP that evaluation gives."""

from scnet_d2.checkpoint import SCNetCheckpointer
from scnet_d2.data import get_multilabel_dicts, register_coco_multilabel
from scnet_d2.data.context_scenes import CLASSES, SceneConfig, generate
from scnet_d2.engine import Trainer
from scnet_d2.modeling import LabelPredictor

import box_budget
import compare_fusion
import correct_localization
import fusion_weights
import label_relations
import numpy as np
import occlusion_test
import optimized_scores
import pytest
import torch
from conftest import small_config
from detectron2.modeling import build_model
from detectron2.structures import BoxMode

WHOLE_IMAGE = ("MODEL.SCNET.IMAGE.ENABLED", True, "MODEL.SCNET.IMAGE.IN_FEATURE", "p5")
DATASET, BOXES = "scenes_of_studies", 20


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Registers six scenes."""
    folder = tmp_path_factory.mktemp("datasets")
    generate(str(folder), SceneConfig(sizes=(1, 1, 6)))
    root = folder / "context_scenes"
    register_coco_multilabel(DATASET, root / "annotations/test.json", root / "images/test")


@pytest.fixture(scope="module")
def run(scenes, tmp_path_factory, device):
    """Folder of a run on a device, with random weights."""
    return make_run(tmp_path_factory.mktemp("run"), device)


@pytest.fixture(scope="module")
def run_of_three(scenes, tmp_path_factory, device):
    """A run with three branches, the patch confidence and a predictor of the whole image."""
    return make_run(
        tmp_path_factory.mktemp("three"), device,
        "MODEL.SCNET.RELATION.ENABLED", True, *WHOLE_IMAGE,
        "MODEL.SCNET.AGGREGATION.USE_PATCH_CONFIDENCE", True,
    )  # fmt: skip


def make_run(folder, device, *opts):
    """Write config and random weights of a run."""
    cfg = small_config(
        "DATASETS.TEST", (DATASET,), "DATASETS.CLASS_NAMES", list(CLASSES),
        "DATALOADER.NUM_WORKERS", 0, "MODEL.RPN.POST_NMS_TOPK_TEST", BOXES,
        "OUTPUT_DIR", str(folder), *opts, device=device,
    )  # fmt: skip
    (folder / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    model = build_model(cfg)
    for module in model.modules():  # scores that differ from image to image
        if isinstance(module, LabelPredictor):
            torch.nn.init.normal_(module.label_score.weight, std=0.5)
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    return folder


def evaluate(run, boxes=BOXES) -> float:
    """Mean AP of the run in an evaluation with so many boxes."""
    cfg = box_budget.load_run(run)
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = boxes
    model = build_model(cfg)
    SCNetCheckpointer(model, require_all=True).load(cfg.MODEL.WEIGHTS)
    return Trainer.test(cfg, model)["multilabel"]["mAP"]


@pytest.fixture(scope="module")
def evaluated(run) -> float:
    """Mean AP that the evaluation of the run gives."""
    return evaluate(run)


def test_fusion_starts_from_the_evaluated_map(run, evaluated):
    found = compare_fusion.study(run, DATASET, [])
    assert found[compare_fusion.DEFAULT] == pytest.approx(evaluated, abs=1e-3)
    assert len(set(found.values())) > 5


def test_a_number_of_boxes_has_the_map_of_an_evaluation_with_so_many(run, evaluated):
    found = box_budget.study(run, DATASET, [1, BOXES], [])
    assert found["boxes"] == BOXES
    assert found["mAP"] == pytest.approx({1: evaluate(run, 1), BOXES: evaluated}, abs=1e-3)
    assert found["mAP"][1] != found["mAP"][BOXES]


def test_learned_weights_start_from_the_evaluated_map(run_of_three):
    found = fusion_weights.study(run_of_three, [DATASET], [])
    scores = found["mAP"]
    assert scores["even weights"] == pytest.approx(evaluate(run_of_three), abs=1e-3)
    assert found["branches"] == ["object", "context", "relation"]
    assert sum(found["weights"]) == pytest.approx(1)
    alone = [scores[f"{name} alone"] for name in found["branches"]]
    assert scores["learned by class"] >= scores["learned"] >= max(*alone, scores["even weights"])
    assert len(set(scores.values())) > 3


def test_learned_weights_are_those_of_the_branch_that_knows():
    labels = np.array([[True, False], [False, True], [True, True], [False, False]])
    knows = np.stack([labels, ~labels]).astype(float)  # what two branches say, (B, N, C)
    knows[:, :, 1] = knows[::-1, :, 1]  # the first of the first class, the second of the other
    weights = fusion_weights.grid(2)
    assert weights[0].tolist() == [0.5, 0.5]
    every = np.einsum("gb,bnc->gnc", weights, knows)
    ignored = np.zeros_like(labels)
    _, each = fusion_weights.best(every, labels, ignored)
    assert weights[each].tolist() == [[0.625, 0.375], [0.375, 0.625]]  # as near to even as it goes
    assert len(fusion_weights.grid(3)) == 1 + 45


def test_a_number_of_boxes_counts_the_whole_image_too(scenes, tmp_path, device):
    run = make_run(tmp_path, device, *WHOLE_IMAGE)
    found = box_budget.study(run, DATASET, [1, BOXES], [])
    expected = {n: evaluate(run, n) for n in (1, BOXES)}
    assert found["mAP"] == pytest.approx(expected, abs=1e-3)


def test_occlusion_starts_from_the_evaluated_map(run, evaluated):
    found = occlusion_test.study(run, [DATASET], list(CLASSES), ["inside"])
    assert found["untouched"]["both"] == pytest.approx(evaluated, abs=1e-3)
    assert found["untouched"] != found["inside"]


def test_optimised_scores_are_held_against_the_evaluated_ones(run, evaluated):
    models = {"plain": optimized_scores.load_model(run, None)}
    models["float32"] = optimized_scores.load_model(run, torch.float32)
    cfg = optimized_scores.load_run(run)
    scores = optimized_scores.predict(models, Trainer.build_test_loader(cfg, DATASET))
    truth = optimized_scores.load_ground_truth(DATASET, len(CLASSES))
    plain, fast = optimized_scores.compare(scores, truth.labels, truth.ignored)
    assert plain["mAP"] == pytest.approx(evaluated, abs=1e-3)
    assert fast["largest"] < 1e-3


def test_occlusion_of_an_rgb_model_is_that_of_its_bgr_twin(run, tmp_path):
    """The twin has its input channels in the other order: in the config, and in its weights."""
    cfg = occlusion_test.load_run(run)
    state = torch.load(cfg.MODEL.WEIGHTS)["model"]
    state["backbone.bottom_up.stem.conv1.weight"] = state[
        "backbone.bottom_up.stem.conv1.weight"
    ].flip(1)
    torch.save({"model": state}, tmp_path / "model_final.pth")
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = (
        x[::-1] for x in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    )
    (tmp_path / "config.yaml").write_text(cfg.dump())
    bgr, rgb = (
        occlusion_test.study(folder, [DATASET], list(CLASSES), ["inside"])
        for folder in (run, tmp_path)
    )
    assert rgb["untouched"] == pytest.approx(bgr["untouched"], abs=1e-3)
    assert rgb["inside"] == pytest.approx(bgr["inside"], abs=1e-3)


def test_attention_that_is_uniform_prefers_no_label(scenes, tmp_path, device, monkeypatch):
    cfg = small_config(
        "DATASETS.TRAIN", (DATASET,), "DATASETS.CLASS_NAMES", list(CLASSES),
        "MODEL.SCNET.RELATION.ENABLED", True, "OUTPUT_DIR", str(tmp_path), device=device,
    )  # fmt: skip
    (tmp_path / "config.yaml").write_text(cfg.dump())
    model = build_model(cfg)
    relation = model.roi_heads.relation_head.relation
    for layer in (relation.key, relation.geometry):
        torch.nn.init.zeros_(layer.weight)
    torch.save({"model": model.state_dict()}, tmp_path / "model_final.pth")
    monkeypatch.setattr(label_relations, "FEWEST", 1)
    monkeypatch.setattr(label_relations, "IOU", 0.01)  # the boxes of random weights fit nothing
    found = label_relations.study([tmp_path], [DATASET], [])
    known = [x for row in found["attention"] for x in row if x is not None]
    assert len(known) > 5
    assert known == pytest.approx([1] * len(known), abs=2e-3)


def test_a_label_is_where_its_box_meets_an_object_of_it():
    box = {"bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    objects = [{"bbox": [0, 0, 10, 10]}, {"bbox": [50, 50, 20, 20]}, {"bbox": [0, 0, 99, 99]}]
    objects = [box | x for x in objects]
    objects[2]["iscrowd"] = 1
    objects += [box | {"bbox": [0, 0, 10, 10], "category_id": 2}]
    record = {"height": 100, "width": 100, "annotations": objects, "image_labels": [0, 1]}
    boxes = np.full((3, 4), np.nan, np.float32)
    boxes[0] = 50, 50, 60, 70  # half of the second object
    assert correct_localization.overlaps(record, boxes) == [(pytest.approx(0.04), 0.5)]
    boxes[0] = np.nan
    assert correct_localization.overlaps(record, boxes)[0][1] == 0
    rows = correct_localization.to_text([(0.04, 0.5), (0.5, 0.8), (0.6, 0.6)]).splitlines()[2:]
    assert [row.split()[-4:] for row in rows] == [
        ["1", "100.0", "0.0", "0.50"],
        ["2", "100.0", "50.0", "0.70"],
        ["3", "100.0", "33.3", "0.63"],
    ]


def test_correct_localization_counts_every_label_of_a_data_set(run, capsys):
    correct_localization.main([str(run), "--dataset", DATASET, "--images", "4"])
    labels = sum(len(r["image_labels"]) for r in get_multilabel_dicts(DATASET)[:4])
    assert int(capsys.readouterr().out.splitlines()[-1].split()[1]) == labels
