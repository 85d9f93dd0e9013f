"""Backbones beside Detectron2's; importing this package registers them."""

from .stage_fpn import StageFPN, build_resnet_stage_fpn_backbone, build_timm_fpn_backbone
from .timm_backbone import TimmBackbone, build_timm_backbone

__all__ = [
    "StageFPN",
    "TimmBackbone",
    "build_resnet_stage_fpn_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
]
