"""Label heads of `ImageLabeler`, one file a system; importing this package registers them."""

from .context import LabelContext
from .features import ImageFeatures
from .global_pool import GlobalPool
from .head import LABEL_HEAD_REGISTRY, LabelHead, LabelOutput, build_label_head
from .loss import LabelLoss

__all__ = [
    "LABEL_HEAD_REGISTRY",
    "GlobalPool",
    "ImageFeatures",
    "LabelContext",
    "LabelHead",
    "LabelLoss",
    "LabelOutput",
    "build_label_head",
]
