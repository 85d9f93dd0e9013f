"""SCNet and its parts; importing this package registers the meta-architectures."""

from .aggregation import LabelAggregator
from .baselines import ImageLabeler
from .context_boxes import context_label_targets, expand_boxes, object_label_targets
from .label_predictor import LabelPredictor
from .roi_heads import ContextHead, ObjectHead
from .scnet import SCNet

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
