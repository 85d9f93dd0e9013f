"""SCNet and its parts; importing this package registers the meta-architectures."""

from .aggregation import LabelAggregator
from .label_predictor import LabelPredictor
from .meta_arch import ImageLabeler, SCNet
from .roi_heads import (
    ContextHead,
    ObjectHead,
    context_label_targets,
    expand_boxes,
    object_label_targets,
)

__all__ = [
    "ContextHead",
    "ImageLabeler",
    "LabelAggregator",
    "LabelPredictor",
    "ObjectHead",
    "SCNet",
    "context_label_targets",
    "expand_boxes",
    "object_label_targets",
]
