"""Multi-label data sets in Detectron2's format.

Importing this package registers the built-in data sets.
"""

from . import builtin  # noqa: F401 (imported for registration only)
from .arguments import register_arguments
from .catalog import get_multilabel_dicts, get_training_dicts
from .coco import register_coco_multilabel
from .dataset_mapper import MultiLabelDatasetMapper
from .errors import DatasetError, ImageError
from .images import read_image, read_reduced
from .label_table import register_label_table
from .labels import LabelPolicy
from .train_loader import TrainLoader

__all__ = [
    "DatasetError",
    "ImageError",
    "LabelPolicy",
    "MultiLabelDatasetMapper",
    "TrainLoader",
    "get_multilabel_dicts",
    "get_training_dicts",
    "read_image",
    "read_reduced",
    "register_arguments",
    "register_coco_multilabel",
    "register_label_table",
]
