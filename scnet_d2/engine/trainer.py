"""Detectron2's `DefaultTrainer` with the project's data, optimizer, evaluation and table."""

import os
import weakref
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

from ..checkpoint import SCNetCheckpointer
from ..data import MultiLabelDatasetMapper, context_scenes, get_label_policy
from ..data.labels import image_labels
from ..evaluation import MultiLabelEvaluator, label_thresholds
from ..modeling.test_time_augmentation import build_tta
from .guards import check_evaluation_data, check_num_classes, class_names
from .hooks import BestCheckpointer


class Trainer(DefaultTrainer):
    """Trains and evaluates what a config describes; the meta-architecture may be any."""

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: a config with the project's keys.

        Raises:
            ValueError: if the number of classes of the model and of a data set differ, or the
                evaluation data cannot be loaded.
        """
        check_num_classes(cfg)
        check_evaluation_data(cfg)
        super().__init__(cfg)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        """The model; with `SOLVER.AMP.CPU` it runs in bfloat16 where that is safe."""
        model = super().build_model(cfg)
        if cfg.SOLVER.AMP.CPU and cfg.MODEL.DEVICE == "cpu":
            model = model.to(memory_format=torch.channels_last)
            model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)
        return model

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
                threshold=label_thresholds(cfg, class_names(dataset_name)),
                top_k=cfg.TEST.LABEL_TOP_K,
                output_dir=output_dir,
                baselines=_baselines(cfg, dataset_name),
                class_groups=_class_groups(cfg, dataset_name),
            )
        ]
        if cfg.TEST.DETECTION_AP:
            evaluators.append(COCOEvaluator(dataset_name, ("bbox",), output_dir=output_dir))
        return DatasetEvaluators(evaluators)

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module, evaluators=None) -> dict:
        """Evaluate on `DATASETS.TEST`; with `TEST.AUG.ENABLED`, over its sizes and flips."""
        if cfg.TEST.AUG.ENABLED:
            model = build_tta(cfg, model)
            cfg = cfg.clone()
            cfg.defrost()
            cfg.INPUT.MIN_SIZE_TEST = 0  # views are made from the photograph as it is
        return super().test(cfg, model, evaluators)

    def validate(self) -> dict:
        """Evaluate on the first of `DATASETS.VAL`; metrics under the key "val"."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATASETS.TEST = self.cfg.DATASETS.VAL[:1]
        results = self.test(cfg, self.model)
        return {"val": results["multilabel"]} if results else {}

    def build_hooks(self) -> list[hooks.HookBase]:
        """Detectron2's hooks; with `DATASETS.VAL`, periodic validation and the best checkpoint."""
        self.checkpointer = self._build_checkpointer()  # before hooks keep Detectron2's own
        ret = super().build_hooks()
        if not self.cfg.DATASETS.VAL:
            return ret
        period = self.cfg.TEST.EVAL_PERIOD
        i = next(i for i, hook in enumerate(ret) if isinstance(hook, hooks.EvalHook))
        ret[i]._period = 0  # DATASETS.TEST is evaluated once, at the end
        validation = [hooks.EvalHook(period, self.validate)]
        if comm.is_main_process():
            best = BestCheckpointer(period, self.model, self.cfg.OUTPUT_DIR, "val/mAP")
            validation.append(best)
        return ret[:i] + validation + ret[i:]

    def _build_checkpointer(self) -> SCNetCheckpointer:
        return SCNetCheckpointer(
            self.model,
            self.cfg.OUTPUT_DIR,
            init_trunk=self.cfg.MODEL.SCNET.INIT_TRUNK_FROM_DETECTOR,
            trainer=weakref.proxy(self),
        )


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
    return {group: names for group, names in groups.items() if names}


def _image_labels(dataset_name: str) -> Iterator[int]:
    for dataset_dict in DatasetCatalog.get(dataset_name):
        if "image_labels" in dataset_dict:
            yield from dataset_dict["image_labels"]
        else:  # Detectron2's own data sets have boxes alone
            yield from image_labels(dataset_dict["annotations"], get_label_policy())[0]
