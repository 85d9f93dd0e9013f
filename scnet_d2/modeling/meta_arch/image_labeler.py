"""Multi-label classifiers of the whole image, the systems that SCNet is compared with."""

from functools import partial

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import nn

from ..label_heads import ImageFeatures, LabelHead, build_label_head
from ..label_predictor import image_label_targets

__all__ = ["ImageLabeler"]


@META_ARCH_REGISTRY.register()
class ImageLabeler(DenseDetector):
    """Backbone and a label head, which `MODEL.IMAGE_LABELER.HEAD` names.

    Of Detectron2's `DenseDetector` it has backbone, head and preprocessing.
    """

    @configurable
    def __init__(self, *, head: LabelHead, **kwargs):
        """
        Args:
            head: labels images from the backbone's feature maps.
            kwargs: of `DenseDetector`: `backbone`, `pixel_mean`, `pixel_std`.
        """
        super().__init__(head=head, head_in_features=[head.in_feature], **kwargs)
        for name in head.stages:
            _stage(self.backbone, name).register_forward_hook(partial(_change, head, name))

    @classmethod
    def from_config(cls, cfg):
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "head": build_label_head(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """Losses in training, predictions in inference; inputs as `SCNet.forward` takes them.

        Returns:
            In training the head's losses. In inference a dict for each image: `image_scores` (C,)
            float32 in [0, 1], and where the head has them `class_maps` (C, h, w), where in the
            image each label is seen; their borders are those of the image, without padding.
        """
        features = ImageFeatures.of(self.preprocess_image(batched_inputs), self.backbone)
        if self.training:
            zeros = torch.zeros(len(batched_inputs), self.head.num_classes, device=self.device)
            return self.head(features, *image_label_targets(batched_inputs, zeros)).losses
        output = self.head(features)
        scores = [{"image_scores": s} for s in output.logits.float().sigmoid()]
        if output.class_maps is None:
            return scores
        maps = features.on_images(self.head.in_feature, output.class_maps)
        return [x | {"class_maps": m} for x, m in zip(scores, maps, strict=True)]


def _stage(backbone: nn.Module, name: str) -> nn.Module:
    """Module of a stage: of a timm network, or of Detectron2's ResNet."""
    return backbone.stage(name) if hasattr(backbone, "stage") else getattr(backbone, name)


def _change(head: LabelHead, name: str, stage, inputs, x: torch.Tensor) -> torch.Tensor:
    """Forward hook of a stage: the backbone goes on with what the head makes of its output."""
    return head.change_stage(name, x)
