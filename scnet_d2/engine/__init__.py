"""Training and evaluation of SCNet."""

from .trainer import Trainer, check_num_classes

__all__ = ["Trainer", "check_num_classes"]
