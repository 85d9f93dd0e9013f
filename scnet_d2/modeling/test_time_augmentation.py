"""Test-time augmentation: image scores averaged over sizes and flips of an image."""

from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.modeling.test_time_augmentation import DatasetMapperTTA
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .meta_arch import SCNet


class SCNetWithTTA(nn.Module):
    """Predicts every view of an image and averages the image scores; called as SCNet is.

    `instances` are those of the first view: SCNet already gives them in original coordinates, and
    merging boxes would add nothing to the labels. Own decision.
    """

    def __init__(self, model: nn.Module, tta_mapper: Callable[[dict], list[dict]]):
        """
        Args:
            model: SCNet, or what predicts in its format.
            tta_mapper: gives the views of an image, the first one neither flipped nor cropped.
        """
        super().__init__()
        self.model = model
        self.tta_mapper = tta_mapper

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Predictions in SCNet's inference format, one for each image.

        Raises:
            ValueError: if the model's output has no `image_scores`.
        """
        return [self._predict(x) for x in batched_inputs]

    def _predict(self, x: dict) -> dict:
        outputs = [self.model([view])[0] for view in self.tta_mapper(x)]  # sizes differ: one by one
        if "image_scores" not in outputs[0]:
            raise ValueError(
                f"{type(self.model).__name__} gives no image_scores to average over the views: set "
                "TEST.AUG.ENABLED False"
            )
        scores = torch.stack([o["image_scores"] for o in outputs])  # (V, C)
        return outputs[0] | {"image_scores": scores.mean(dim=0)}


def build_tta(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Wrap a model as `TEST.AUG` says; a Detectron2 R-CNN gets Detectron2's own wrapper."""
    if isinstance(model, DistributedDataParallel):
        model = model.module
    if isinstance(model, GeneralizedRCNN) and not isinstance(model, SCNet):
        tta = GeneralizedRCNNWithTTA(cfg, model)
    else:
        tta = SCNetWithTTA(model, DatasetMapperTTA(cfg))
    tta.training = model.training  # what an evaluation finds is what it restores, in the model too
    return tta
