"""What SCNet fuses and aggregates for every image, recorded while it predicts."""

from __future__ import annotations

from typing import NamedTuple

from scnet_d2.checkpoint import SCNetCheckpointer
from scnet_d2.data import LabelPolicy, get_multilabel_dicts
from scnet_d2.engine import Trainer
from scnet_d2.evaluation.multilabel_evaluator import ground_truth
from scnet_d2.modeling import SCNet

import numpy as np
import torch
from detectron2.config import CfgNode
from tqdm import tqdm


class BranchScores(NamedTuple):
    """Scores of the K boxes of one image, on the CPU."""

    branches: dict[str, torch.Tensor]  # (K, C) in [0, 1] of each branch that is switched on
    patch_confidence: torch.Tensor  # (K,) in [0, 1]
    image_logits: torch.Tensor | None  # (C,) of the predictor of the whole image

    def of_classes(self, columns: list[int]) -> BranchScores:
        """The scores of some classes."""
        branches = {name: x[:, columns] for name, x in self.branches.items()}
        logits = None if self.image_logits is None else self.image_logits[columns]
        return BranchScores(branches, self.patch_confidence, logits)

    def image_scores(self, model: SCNet, label_scores: torch.Tensor) -> torch.Tensor:
        """(C,) scores of the image, as the model has them, from fused scores (K, C) of its boxes.

        A label head of the whole image that looks at boxes has seen all of them.
        """
        logits = None if self.image_logits is None else self.image_logits[None]
        return model.image_scores([label_scores], logits)[0]


class Recorder:
    """Keeps the branch scores of a model's predictions, image by image."""

    def __init__(self, model: SCNet):
        """
        Args:
            model: predicts one image at a time.
        """
        self.images: list[BranchScores] = []
        self._hooks = [model.roi_heads.fusion.register_forward_pre_hook(self._record_boxes)]
        if model.image_predictor is not None:
            self._hooks.append(model.image_predictor.register_forward_hook(self._record_image))

    def _record_boxes(self, fusion, inputs: tuple[dict[str, torch.Tensor], torch.Tensor]) -> None:
        label_logits, patch_logits = inputs
        branches = {name: x.float().sigmoid().cpu() for name, x in label_logits.items()}
        self.images.append(BranchScores(branches, patch_logits.float().sigmoid().cpu(), None))

    def _record_image(self, predictor, inputs, output) -> None:
        logits = output.logits[0].float().cpu()
        self.images[-1] = self.images[-1]._replace(image_logits=logits)

    def stop(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()


def load_model(cfg: CfgNode) -> SCNet:
    """The model of a run, as its evaluation builds it."""
    model = Trainer.build_model(cfg).eval()
    checkpointer = SCNetCheckpointer(model, require_all=True, class_names=cfg.DATASETS.CLASS_NAMES)
    checkpointer.load(cfg.MODEL.WEIGHTS)
    return model


@torch.no_grad()
def record(
    cfg: CfgNode, datasets: list[str], classes: list[str]
) -> tuple[SCNet, list[BranchScores], np.ndarray, np.ndarray]:
    """The model of a run, and for the images of data sets, in their order, what it gives.

    Args:
        cfg: of the run.
        datasets: names of registered data sets, one set here.
        classes: that are kept; none: all.

    Returns:
        `(model, images, labels, ignored)`; the last two are (N, C) bool.
    """
    model = load_model(cfg)
    recorder = Recorder(model)
    for dataset in datasets:
        for batch in tqdm(Trainer.build_test_loader(cfg, dataset), desc=dataset, delay=5):
            model(batch)
    names = list(cfg.DATASETS.CLASS_NAMES)
    columns = [names.index(name) for name in classes or names]
    dicts = get_multilabel_dicts(datasets, LabelPolicy.from_config(cfg))
    truth = ground_truth(dicts, " + ".join(datasets), len(names))
    images = [x.of_classes(columns) for x in recorder.images]
    return model, images, truth.labels[:, columns], truth.ignored[:, columns]
