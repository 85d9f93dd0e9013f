"""Baseline that SCNet is compared with: a multi-label classifier of the whole image."""

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone import Backbone
from detectron2.structures import ImageList
from torch import nn

from ..label_predictor import LabelPredictor, image_label_targets

__all__ = ["ImageLabeler"]


@META_ARCH_REGISTRY.register()
class ImageLabeler(nn.Module):
    """Backbone, global average pooling and one binary classifier for each label.

    Source: slides, the ResNet rows of the tables.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_feature: str,
        label_predictor: LabelPredictor,
        pixel_mean: list[float],
        pixel_std: list[float],
    ):
        """
        Args:
            backbone: feature extractor, gives a dict of feature maps.
            in_feature: name of the feature map that is pooled.
            label_predictor: maps the pooled features to C label logits.
            pixel_mean: mean of each channel, subtracted from images.
            pixel_std: standard deviation of each channel, divides images.
        """
        super().__init__()
        self.backbone = backbone
        self.in_feature = in_feature
        self.label_predictor = label_predictor
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

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

    @property
    def device(self) -> torch.device:
        """Where the model lives and its inputs are moved."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """Losses in training, predictions in inference; inputs as `SCNet.forward` takes them.

        Returns:
            In training `loss_image_label`. In inference a dict for each image: `image_scores`
            (C,) float32 in [0, 1].
        """
        images = self.preprocess_image(batched_inputs)
        logits = self.label_predictor(self.pool(self.backbone(images.tensor), images))
        if self.training:
            targets, counted = image_label_targets(batched_inputs, logits)
            loss = self.label_predictor.loss(logits, targets, counted, len(logits))
            return {"loss_image_label": loss}
        return [{"image_scores": scores} for scores in logits.float().sigmoid()]

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise the images, pad them to one size and batch them."""
        images = [x["image"].to(self.device) for x in batched_inputs]
        images = [(x - self.pixel_mean) / self.pixel_std for x in images]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def pool(self, features: dict[str, torch.Tensor], images: ImageList) -> torch.Tensor:
        """Mean feature (N, D) of each image, its padding left out."""
        feature = features[self.in_feature]
        height, width = (a / b for a, b in zip(feature.shape[-2:], images.tensor.shape[-2:]))
        return torch.stack(
            [
                x[:, : max(1, round(h * height)), : max(1, round(w * width))].mean(dim=(1, 2))
                for x, (h, w) in zip(feature, images.image_sizes)
            ]
        )
