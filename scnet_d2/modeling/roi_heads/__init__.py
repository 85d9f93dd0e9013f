"""The branches over boxes; importing this package registers `SCNetROIHeads`."""

from .box_heads import AveragePoolHead
from .branches import BRANCH_REGISTRY, BranchHead, ContextHead, ObjectHead
from .context_boxes import context_label_targets, expand_boxes, object_label_targets
from .expansion import AdaptiveExpansion
from .fusion import ScoreFusion
from .relation import ObjectRelation, RelationHead
from .scnet_roi_heads import SCNetROIHeads

__all__ = [
    "BRANCH_REGISTRY",
    "AdaptiveExpansion",
    "AveragePoolHead",
    "BranchHead",
    "ContextHead",
    "ObjectHead",
    "ObjectRelation",
    "RelationHead",
    "SCNetROIHeads",
    "ScoreFusion",
    "context_label_targets",
    "expand_boxes",
    "object_label_targets",
]
