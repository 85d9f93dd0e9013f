"""Multi-label data sets in Detectron2's format.

Importing this package registers the built-in data sets.
"""

from . import builtin  # noqa: F401 (imported for registration only)
from .coco import (
    add_register_coco_argument,
    register_coco_arguments,
    register_coco_multilabel,
)
from .dataset_mapper import MultiLabelDatasetMapper
from .errors import DatasetError, ImageError
from .images import read_image
from .labels import LabelPolicy, get_label_policy, set_label_policy
from .train_loader import TrainLoader

__all__ = [
    "DatasetError",
    "ImageError",
    "LabelPolicy",
    "MultiLabelDatasetMapper",
    "TrainLoader",
    "add_register_coco_argument",
    "get_label_policy",
    "read_image",
    "register_coco_arguments",
    "register_coco_multilabel",
    "set_label_policy",
]
