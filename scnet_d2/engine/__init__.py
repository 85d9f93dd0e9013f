"""Training and evaluation of SCNet."""

from .guards import check_num_classes, class_names, warn_of_leaks
from .trainer import Trainer

__all__ = ["Trainer", "check_num_classes", "class_names", "warn_of_leaks"]
