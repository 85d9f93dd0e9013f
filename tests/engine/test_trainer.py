"""What the trainer adds to Detectron2's: checks, groups of classes, checkpoints."""

import pytest
import torch
from conftest import small_config
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage
from torch import nn

from scnet_d2 import use_available_device
from scnet_d2.data import DatasetError, register_coco_multilabel
from scnet_d2.engine import Trainer
from scnet_d2.engine.hooks import BestCheckpointer


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
