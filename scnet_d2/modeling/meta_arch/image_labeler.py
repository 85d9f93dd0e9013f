"""Baseline that SCNet is compared with: a multi-label classifier of the whole image."""

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import ImageList

from ..label_predictor import LabelPredictor, image_label_targets

__all__ = ["ImageLabeler"]


@META_ARCH_REGISTRY.register()
class ImageLabeler(DenseDetector):
    """Backbone, global average pooling and one binary classifier for each label.

    Of Detectron2's `DenseDetector` it has backbone, head and preprocessing.

    Source: slides, the ResNet rows of the tables.
    """

    @configurable
    def __init__(self, *, in_feature: str, label_predictor: LabelPredictor, **kwargs):
        """
        Args:
            in_feature: name of the feature map that is pooled.
            label_predictor: the head, maps the pooled features to C label logits.
            kwargs: of `DenseDetector`: `backbone`, `pixel_mean`, `pixel_std`.
        """
        super().__init__(head=label_predictor, head_in_features=[in_feature], **kwargs)

    @classmethod
    def from_config(cls, cfg):
        backbone = build_backbone(cfg)
        shape, in_feature = backbone.output_shape(), cfg.MODEL.IMAGE_LABELER.IN_FEATURE
        if in_feature not in shape:
            raise ValueError(
                f"MODEL.IMAGE_LABELER.IN_FEATURE is '{in_feature}', the backbone has {list(shape)}"
            )
        return {
            "backbone": backbone,
            "in_feature": in_feature,
            "label_predictor": LabelPredictor(cfg, shape[in_feature].channels),
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
        logits = self.head(self.pool(self.backbone(images.tensor), images))  # (N, C)
        if self.training:
            targets, loss_mask = image_label_targets(batched_inputs, logits)
            return {"loss_image_label": self.head.loss(logits, targets, loss_mask, len(logits))}
        return [{"image_scores": scores} for scores in logits.float().sigmoid()]

    def pool(self, features: dict[str, torch.Tensor], images: ImageList) -> torch.Tensor:
        """Mean feature (N, D) of each image, its padding left out."""
        feature = features[self.head_in_features[0]]  # (N, D, H, W)
        height, width = (a / b for a, b in zip(feature.shape[-2:], images.tensor.shape[-2:]))
        return torch.stack(
            [
                x[:, : max(1, round(h * height)), : max(1, round(w * width))].mean(dim=(1, 2))
                for x, (h, w) in zip(feature, images.image_sizes)
            ]
        )
