"""Detectron2's FPN that also gives out stages of the network below it."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool

from .timm_backbone import build_timm_backbone


class StageFPN(FPN):
    """An `FPN` whose output has, beside the pyramid's levels, stages of its bottom-up network.

    A head on `res5` so reads pre-trained features, where the pyramid's start random.
    """

    def __init__(self, bottom_up: Backbone, *, stages: Sequence[str] = (), **kwargs):
        """
        Args:
            bottom_up: the network below.
            stages: names of its features that are given out, such as "res5".
            kwargs: of `FPN`.

        Raises:
            ValueError: naming a stage that the network does not have.
        """
        super().__init__(bottom_up, **kwargs)
        self.stages = list(stages)
        shapes = bottom_up.output_shape()
        if unknown := [stage for stage in stages if stage not in shapes]:
            raise ValueError(f"MODEL.FPN.STAGES has {unknown}; the network has {list(shapes)}")

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features (N, D, H / stride, W / stride) of images (N, 3, H, W), by name."""
        features = {}
        hook = self.bottom_up.register_forward_hook(lambda *args: features.update(args[-1]))
        try:
            pyramid = super().forward(x)
        finally:
            hook.remove()
        return pyramid | {stage: features[stage] for stage in self.stages}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every feature."""
        shapes = self.bottom_up.output_shape()
        return super().output_shape() | {stage: shapes[stage] for stage in self.stages}


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> StageFPN:
    """The network of `MODEL.TIMM` below an FPN of the keys `MODEL.FPN`."""
    return _build_fpn(cfg, build_timm_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_resnet_stage_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> StageFPN:
    """Detectron2's `build_resnet_fpn_backbone`, with `MODEL.FPN.STAGES`."""
    return _build_fpn(cfg, build_resnet_backbone(cfg, input_shape))


def _build_fpn(cfg: CfgNode, bottom_up: Backbone) -> StageFPN:
    return StageFPN(
        bottom_up,
        stages=cfg.MODEL.FPN.STAGES,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
