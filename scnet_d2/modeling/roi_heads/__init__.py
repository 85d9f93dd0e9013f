"""The two branches over boxes, and which labels a box carries."""

from .branches import ContextHead, ObjectHead
from .context_boxes import context_label_targets, expand_boxes, object_label_targets

__all__ = [
    "ContextHead",
    "ObjectHead",
    "context_label_targets",
    "expand_boxes",
    "object_label_targets",
]
