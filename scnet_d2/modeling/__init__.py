"""SCNet and its parts; importing this package registers them with Detectron2."""

from .aggregation import AGGREGATION_REGISTRY, LabelAggregator
from .label_predictor import LabelPredictor
from .meta_arch import ImageLabeler, SCNet
from .roi_heads import (
    ContextHead,
    ObjectHead,
    SCNetROIHeads,
    ScoreFusion,
    context_label_targets,
    expand_boxes,
    object_label_targets,
)

__all__ = [
    "AGGREGATION_REGISTRY",
    "ContextHead",
    "ImageLabeler",
    "LabelAggregator",
    "LabelPredictor",
    "ObjectHead",
    "SCNet",
    "SCNetROIHeads",
    "ScoreFusion",
    "context_label_targets",
    "expand_boxes",
    "object_label_targets",
]
