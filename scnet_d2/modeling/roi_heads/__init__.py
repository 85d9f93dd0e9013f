"""The two branches over boxes; importing this package registers `SCNetROIHeads`."""

from .box_heads import AveragePoolHead
from .branches import ContextHead, ObjectHead
from .context_boxes import context_label_targets, expand_boxes, object_label_targets
from .fusion import ScoreFusion
from .scnet_roi_heads import SCNetROIHeads

__all__ = [
    "AveragePoolHead",
    "ContextHead",
    "ObjectHead",
    "SCNetROIHeads",
    "ScoreFusion",
    "context_label_targets",
    "expand_boxes",
    "object_label_targets",
]
