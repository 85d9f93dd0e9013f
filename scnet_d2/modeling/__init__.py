"""SCNet and its parts; importing this package registers them with Detectron2."""

from .aggregation import AGGREGATION_REGISTRY, LabelAggregator
from .backbone import (
    StageFPN,
    TimmBackbone,
    build_resnet_stage_fpn_backbone,
    build_timm_backbone,
    build_timm_fpn_backbone,
)
from .label_heads import (
    LABEL_HEAD_REGISTRY,
    ImageFeatures,
    LabelContext,
    LabelHead,
    LabelLoss,
    LabelOutput,
)
from .label_predictor import LabelPredictor
from .meta_arch import ImageLabeler, SCNet
from .roi_heads import (
    BRANCH_REGISTRY,
    BranchHead,
    ContextHead,
    ObjectHead,
    RelationHead,
    SCNetROIHeads,
    ScoreFusion,
    context_label_targets,
    expand_boxes,
    object_label_targets,
)

__all__ = [
    "AGGREGATION_REGISTRY",
    "BRANCH_REGISTRY",
    "LABEL_HEAD_REGISTRY",
    "BranchHead",
    "ContextHead",
    "ImageFeatures",
    "ImageLabeler",
    "LabelAggregator",
    "LabelContext",
    "LabelHead",
    "LabelLoss",
    "LabelOutput",
    "LabelPredictor",
    "ObjectHead",
    "RelationHead",
    "SCNet",
    "SCNetROIHeads",
    "ScoreFusion",
    "StageFPN",
    "TimmBackbone",
    "build_resnet_stage_fpn_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
    "context_label_targets",
    "expand_boxes",
    "object_label_targets",
]
