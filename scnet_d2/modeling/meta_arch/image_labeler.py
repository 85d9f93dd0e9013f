"""Baseline that SCNet is compared with: a multi-label classifier of the whole image."""

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector

from ..label_predictor import ImageLabelPredictor, image_label_targets

__all__ = ["ImageLabeler"]


@META_ARCH_REGISTRY.register()
class ImageLabeler(DenseDetector):
    """Backbone, global pooling and one binary classifier for each label.

    Of Detectron2's `DenseDetector` it has backbone, head and preprocessing.

    Source: slides, the ResNet rows of the tables.
    """

    @configurable
    def __init__(self, *, label_predictor: ImageLabelPredictor, **kwargs):
        """
        Args:
            label_predictor: the head, maps features to C label logits.
            kwargs: of `DenseDetector`: `backbone`, `pixel_mean`, `pixel_std`.
        """
        super().__init__(
            head=label_predictor, head_in_features=[label_predictor.in_feature], **kwargs
        )

    @classmethod
    def from_config(cls, cfg):
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "label_predictor": ImageLabelPredictor(cfg, backbone.output_shape(), "IMAGE_LABELER"),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """Losses in training, predictions in inference; inputs as `SCNet.forward` takes them.

        Returns:
            In training `loss_image_label`. In inference a dict for each image: `image_scores`
            (C,) float32 in [0, 1].
        """
        images = self.preprocess_image(batched_inputs)
        logits = self.head(self.backbone(images.tensor), images)  # (N, C)
        if self.training:
            targets, loss_mask = image_label_targets(batched_inputs, logits)
            return {"loss_image_label": self.head.loss(logits, targets, loss_mask, len(logits))}
        return [{"image_scores": scores} for scores in logits.float().sigmoid()]
