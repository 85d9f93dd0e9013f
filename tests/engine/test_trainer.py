"""What the trainer adds to Detectron2's: checks, groups of classes, checkpoints."""

import copy
import itertools
import json
import pickle

from scnet_d2 import use_available_device
from scnet_d2.data import DatasetError, register_coco_multilabel
from scnet_d2.engine import Trainer, TrainingError, check_evaluation_data
from scnet_d2.engine.hooks import BestCheckpointer
from scnet_d2.engine.launch import lost_process

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import small_config
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from PIL import Image
from tiny import tiny_trainer
from torch import nn


@pytest.fixture
def boxes_alone():
    """A data set as Detectron2's own: cat in two images, dog in one, no `image_labels`."""
    name = "boxes_alone"
    images = [[0, 0], [0, 1]]
    dicts = [
        {"image_id": i, "annotations": [{"category_id": c} for c in classes]}
        for i, classes in enumerate(images)
    ]
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).thing_classes = ["cat", "dog"]
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize(("least", "groups"), [(2, {"min2": ["cat"]}), (3, {})])
def test_classes_are_grouped_by_training_images_without_image_labels(boxes_alone, least, groups):
    cfg = small_config("DATASETS.TRAIN", (boxes_alone,), "TEST.MIN_TRAIN_IMAGES", least)
    (evaluator,) = Trainer.build_evaluator(cfg, boxes_alone)._evaluators
    assert evaluator._class_groups == groups


# Of each image, its objects and, under POLICY, labels that are present.
POLICY = ("DATASETS.DIFFICULT_LABELS", "absent", "DATASETS.CROWD_LABELS", "absent",
          "DATASETS.KEEP_UNANNOTATED", False)  # fmt: skip
IMAGES = {
    1: ([{"category_id": 0}, {"category_id": 1, "difficult": 1}], [0]),
    2: ([], None),
    3: ([{"category_id": 1, "iscrowd": 1}], []),
    4: ([{"category_id": 1, "iscrowd": 1}, {"category_id": 1}], [1]),
}


@pytest.fixture
def uncertain(tmp_path):
    """A json with difficult objects, crowds and an unannotated image."""
    images = [{"id": i, "file_name": f"{i}.png", "height": 9, "width": 9} for i in IMAGES]
    annotations = [
        {"id": 10 * i + j, "image_id": i, "bbox": [1, 1, 5, 5]} | flags
        for i, (objects, _) in IMAGES.items()
        for j, flags in enumerate(objects)
    ]
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "a.json").write_text(json.dumps(content))
    for image in images:
        Image.new("RGB", (9, 9)).save(tmp_path / image["file_name"])
    register_coco_multilabel("uncertain", tmp_path / "a.json", tmp_path)
    yield "uncertain"
    DatasetCatalog.remove("uncertain")


def policy_config(dataset, output, *opts):
    return small_config(
        "DATASETS.TRAIN", (dataset,), "DATASETS.VAL", (), "DATASETS.TEST", (dataset,),
        "OUTPUT_DIR", str(output), "MODEL.ROI_HEADS.NUM_CLASSES", 2, "DATALOADER.NUM_WORKERS", 0,
        "SOLVER.IMS_PER_BATCH", 1, "DATALOADER.ASPECT_RATIO_GROUPING", False, *opts,
    )  # fmt: skip


EXPECTED = {i: labels for i, (_, labels) in IMAGES.items() if labels is not None}


def test_the_label_policy_of_the_config_reaches_labels_and_boxes_of_the_train_loader(
    uncertain, tmp_path
):
    batches = iter(Trainer.build_train_loader(policy_config(uncertain, tmp_path, *POLICY)))
    epoch = {x["image_id"]: x for (x,) in itertools.islice(batches, 3)}
    assert {i: x["image_labels"] for i, x in epoch.items()} == EXPECTED
    assert {i: x["instances"].gt_classes.tolist() for i, x in epoch.items()} == EXPECTED


def test_the_label_policy_of_the_config_reaches_test_loader_and_evaluator(uncertain, tmp_path):
    class Blank(nn.Module):
        def forward(self, batched_inputs):
            assert all(x["image_labels"] == EXPECTED[x["image_id"]] for x in batched_inputs)
            return [{"image_scores": torch.zeros(2)} for _ in batched_inputs]

    Trainer.test(policy_config(uncertain, tmp_path, *POLICY), Blank())
    with np.load(tmp_path / "inference/uncertain/multilabel_scores.npz") as saved:
        assert saved["image_ids"].tolist() == list(EXPECTED)
        assert saved["labels"].tolist() == [[True, False], [False, False], [False, True]]
        assert not saved["ignored"].any()


def test_training_images_of_a_class_are_counted_under_the_label_policy_of_the_config(
    uncertain, tmp_path
):
    # dog by default: present in 3 and 4, ignored in 1; under POLICY in 4 alone
    for opts, groups in (((), {"min2": ["dog"]}), (POLICY, {})):
        cfg = policy_config(uncertain, tmp_path, "TEST.MIN_TRAIN_IMAGES", 2, *opts)
        (evaluator,) = Trainer.build_evaluator(cfg, uncertain)._evaluators
        assert evaluator._class_groups == groups


def test_evaluation_data_are_checked_under_the_label_policy_of_the_config(uncertain, tmp_path):
    check_evaluation_data(policy_config(uncertain, tmp_path, *POLICY))
    (tmp_path / "2.png").unlink()  # of the unannotated image, which POLICY leaves out
    check_evaluation_data(policy_config(uncertain, tmp_path, *POLICY))
    with pytest.raises(DatasetError, match=r"1 of its 4 image files"):
        check_evaluation_data(policy_config(uncertain, tmp_path))


def test_a_data_set_named_as_the_generated_scenes_is_evaluated_as_any_other(boxes_alone):
    name = "context_scenes_of_mine"
    DatasetCatalog.register(name, lambda: DatasetCatalog.get(boxes_alone))
    MetadataCatalog.get(name).thing_classes = ["cat", "dog"]
    try:
        cfg = small_config("DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,))
        evaluators = Trainer.build_evaluator(cfg, name)
        evaluators.reset()
        for image_id in (0, 1):
            scores = {"image_scores": torch.tensor([0.9, 0.1])}
            evaluators.process([{"image_id": image_id}], [scores])
        results = evaluators.evaluate()["multilabel"]
        assert "mAP_ambiguous" not in results
        assert results["AP-cat"] == 100
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_the_built_in_scenes_have_a_group_of_classes_and_a_baseline_of_their_own():
    (evaluator,) = Trainer.build_evaluator(small_config(), "context_scenes_val")._evaluators
    pairs = {"raft", "sledge", "blanket", "towel", "container", "shelter", "cage", "greenhouse"}
    assert set(evaluator._class_groups["ambiguous"]) == pairs
    assert list(evaluator._baselines) == ["context-blind detector"]
    cfg = small_config("DATASETS.TRAIN", ("voc_2007_train_multilabel",))
    (evaluator,) = Trainer.build_evaluator(cfg, "context_scenes_val")._evaluators
    assert not evaluator._baselines  # it is computed from training scenes


def test_absent_test_data_stop_before_training(boxes_alone, tmp_path):
    register_coco_multilabel("absent_test", tmp_path / "none.json", tmp_path)
    MetadataCatalog.get("absent_test").thing_classes = ["cat", "dog"]
    cfg = small_config(
        "DATASETS.TRAIN", (boxes_alone,), "DATASETS.VAL", (), "DATASETS.TEST", ("absent_test",),
        "MODEL.ROI_HEADS.NUM_CLASSES", 2,
    )  # fmt: skip
    with pytest.raises(DatasetError, match=r"none\.json' does not exist"):
        Trainer(cfg)


class Run:
    """Of a trainer, what the hook looks at."""

    def __init__(self, start_iter):
        self.iter = self.start_iter = start_iter
        self.max_iter = 10


def validate(hook, run, value):
    """One iteration whose validation gives `value`."""
    hook.trainer = run
    with EventStorage(run.iter) as run.storage:
        run.storage.put_scalar("val/mAP", value)
        hook.after_step()


def test_a_resumed_run_keeps_a_better_best_checkpoint(tmp_path):
    model = nn.Linear(1, 1)
    first = BestCheckpointer(1, model, str(tmp_path), "val/mAP")
    validate(first, Run(1), 80.0)
    with torch.no_grad():
        model.weight += 1
    second = BestCheckpointer(1, model, str(tmp_path), "val/mAP")
    second.trainer = Run(2)
    second.before_train()
    for value, best in ((70.0, 80.0), (90.0, 90.0)):
        validate(second, Run(3), value)
        saved = torch.load(tmp_path / "model_best.pth", weights_only=True)
        assert saved["val/mAP"] == best
        assert torch.equal(saved["model"]["weight"], model.weight) == (value == best)
    assert not (tmp_path / "last_checkpoint").exists()


def test_mixed_precision_is_switched_off_on_the_cpu_of_a_machine_with_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cfg = small_config("MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", True)
    use_available_device(cfg)
    assert not cfg.SOLVER.AMP.ENABLED


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_mixed_precision_of_a_cpu_is_copied_and_pickled_with_the_model(copied):
    model, seen = Trainer.build_model(small_config("SOLVER.AMP.CPU", True)).eval(), []
    image = {"image": torch.zeros(3, 64, 96)}
    scores = model([image])[0]["image_scores"]
    other = copied(model)
    other.backbone.register_forward_hook(lambda m, i, out: seen.append(out["p2"].dtype))
    assert torch.equal(other([image])[0]["image_scores"], scores)
    assert seen == [torch.bfloat16]
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert other([image])[0]["image_scores"].ne(scores).all()


def test_mixed_precision_of_a_cpu_ends_with_a_forward_pass_that_raises():
    model = Trainer.build_model(small_config("SOLVER.AMP.CPU", True)).eval()
    with pytest.raises(KeyError):
        model([{}])
    assert not torch.is_autocast_enabled("cpu")


LOST = [
    dist.DistBackendError("NCCL error in: NCCLUtils.cpp:1, unhandled system error"),
    dist.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed."),
    dist.DistStoreError("wait timeout after 1800000ms, keys: /default_pg/0//cuda//1"),
    RuntimeError("NCCL communicator was aborted on rank 0."),
    RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:1"),
]


@pytest.mark.parametrize("error", LOST)
def test_a_lost_process_is_named_with_any_of_the_errors_that_torch_raises(
    tmp_path, monkeypatch, error
):
    def lose():
        raise error

    trainer = tiny_trainer(tmp_path)
    trainer.run_step = lose
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(TrainingError, match="iteration 0: process 0 has lost another process"):
        trainer.train()


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), ValueError("NCCL")])
def test_other_errors_are_not_taken_for_a_lost_process(error):
    assert not lost_process(error)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_the_pretrained_network_has_a_learning_rate_of_its_own(optimizer):
    key, opts = "SOLVER.BACKBONE_MULTIPLIER", ("SOLVER.OPTIMIZER", optimizer, "SOLVER.BASE_LR", 0.1)
    model = Trainer.build_model(small_config(*opts))
    plain = Trainer.build_optimizer(small_config(*opts), model)
    slower = Trainer.build_optimizer(small_config(*opts, key, 0.25), model)
    rates = {id(p): g["lr"] for g in slower.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        inside = name.startswith("backbone.bottom_up.")
        assert rates[id(parameter)] == pytest.approx(0.025 if inside else 0.1), name
    before = {id(p): g["weight_decay"] for g in plain.param_groups for p in g["params"]}
    assert before == {id(p): g["weight_decay"] for g in slower.param_groups for p in g["params"]}
    assert type(slower).__bases__ == type(plain).__bases__


def test_a_label_head_has_a_learning_rate_of_its_own():
    opts = (
        "MODEL.META_ARCHITECTURE", "ImageLabeler", "MODEL.IMAGE_LABELER.IN_FEATURE", "p5",
        "SOLVER.BASE_LR", 0.1, "SOLVER.LABEL_HEAD_MULTIPLIER", 10.0,
        "SOLVER.BACKBONE_MULTIPLIER", 0.5,
    )  # fmt: skip
    cfg = small_config(*opts)
    model = Trainer.build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    wanted = {"head": 1.0, "backbone.bottom_up": 0.05, "backbone": 0.1}
    for name, parameter in model.named_parameters():
        part = next(part for part in wanted if name.startswith(part + "."))
        assert rates[id(parameter)] == pytest.approx(wanted[part]), name
