"""Detectron2's `DefaultTrainer` with the project's data, optimizer, evaluation and table."""

import os
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import DefaultTrainer, hooks
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm

from ..data import MultiLabelDatasetMapper, context_scenes
from ..evaluation import MultiLabelEvaluator


class Trainer(DefaultTrainer):
    """Trains and evaluates what a config describes; the meta-architecture may be any."""

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: a config with the project's keys.

        Raises:
            ValueError: if the number of classes of the model and of a data set differ.
        """
        check_num_classes(cfg)
        super().__init__(cfg)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """Loader of `DATASETS.TRAIN`."""
        return build_detection_train_loader(cfg, mapper=MultiLabelDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """Loader of one data set for evaluation."""
        mapper = MultiLabelDatasetMapper(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """The optimizer that `SOLVER.OPTIMIZER` names."""
        if cfg.SOLVER.OPTIMIZER == "SGD":
            return super().build_optimizer(cfg, model)
        if cfg.SOLVER.OPTIMIZER != "AdamW":
            raise ValueError(
                f"SOLVER.OPTIMIZER is '{cfg.SOLVER.OPTIMIZER}'; choose 'SGD' or 'AdamW'"
            )
        params = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        adamw = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
        return adamw(params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluators:
        """Image-level labels, and detection AP where `TEST.DETECTION_AP` asks for it."""
        output_dir = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        evaluators = [
            MultiLabelEvaluator(
                dataset_name,
                threshold=cfg.TEST.LABEL_THRESHOLD,
                top_k=cfg.TEST.LABEL_TOP_K,
                output_dir=output_dir,
                baselines=_baselines(cfg, dataset_name),
                class_groups=_class_groups(cfg, dataset_name),
            )
        ]
        if cfg.TEST.DETECTION_AP:
            evaluators.append(COCOEvaluator(dataset_name, ("bbox",), output_dir=output_dir))
        return DatasetEvaluators(evaluators)

    def validate(self) -> dict:
        """Evaluate on the first of `DATASETS.VAL`; metrics under the key "val"."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATASETS.TEST = self.cfg.DATASETS.VAL[:1]
        results = self.test(cfg, self.model)
        return {"val": results["multilabel"]} if results else {}

    def build_hooks(self) -> list[hooks.HookBase]:
        """Detectron2's hooks; with `DATASETS.VAL`, periodic validation and the best checkpoint."""
        ret = super().build_hooks()
        if not self.cfg.DATASETS.VAL:
            return ret
        period = self.cfg.TEST.EVAL_PERIOD
        i = next(i for i, hook in enumerate(ret) if isinstance(hook, hooks.EvalHook))
        ret[i]._period = 0  # DATASETS.TEST is evaluated once, at the end
        validation = [hooks.EvalHook(period, self.validate)]
        if comm.is_main_process():
            validation.append(hooks.BestCheckpointer(period, self.checkpointer, "val/mAP"))
        return ret[:i] + validation + ret[i:]


def _baselines(cfg: CfgNode, dataset_name: str) -> dict[str, Callable[[], np.ndarray]]:
    """On generated scenes: the best that a detector blind to the surroundings could do."""
    if not dataset_name.startswith("context_scenes") or not cfg.DATASETS.TRAIN:
        return {}
    train, test = cfg.DATASETS.TRAIN[0], dataset_name
    return {
        "context-blind detector": lambda: context_scenes.context_blind_scores(
            DatasetCatalog.get(train), DatasetCatalog.get(test)
        )
    }


def _class_groups(cfg: CfgNode, dataset_name: str) -> dict[str, list[str]]:
    """Classes over which a mean AP of their own is reported."""
    groups = {}
    if dataset_name.startswith("context_scenes"):
        groups["ambiguous"] = [name for pair in context_scenes.CONTEXT_PAIRS for name in pair]
    if cfg.TEST.MIN_TRAIN_IMAGES:
        images = Counter(c for n in cfg.DATASETS.TRAIN for c in _image_labels(n))
        groups[f"min{cfg.TEST.MIN_TRAIN_IMAGES}"] = [
            name
            for i, name in enumerate(MetadataCatalog.get(dataset_name).thing_classes)
            if images[i] >= cfg.TEST.MIN_TRAIN_IMAGES
        ]
    return groups


def _image_labels(dataset_name: str) -> Iterator[int]:
    for dataset_dict in DatasetCatalog.get(dataset_name):
        yield from dataset_dict["image_labels"]


def check_num_classes(cfg: CfgNode) -> None:
    """Stop where the model and a data set do not have the same number of classes.

    Raises:
        ValueError: naming the data set, its number of classes and the model's.
    """
    for name in cfg.DATASETS.TRAIN + cfg.DATASETS.VAL + cfg.DATASETS.TEST:
        metadata = MetadataCatalog.get(name)
        if not metadata.get("thing_classes"):
            DatasetCatalog.get(name)  # a json's classes are known once it is read
        found, wanted = len(metadata.thing_classes), cfg.MODEL.ROI_HEADS.NUM_CLASSES
        if found != wanted:
            raise ValueError(
                f"data set {name} has {found} classes and the model {wanted}: "
                f"set MODEL.ROI_HEADS.NUM_CLASSES to {found}"
            )
