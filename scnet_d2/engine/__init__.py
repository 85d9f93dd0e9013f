"""Training and evaluation of SCNet."""

from .checks import (
    all_problems,
    check_evaluation_data,
    check_num_classes,
    check_output_dir,
    class_names,
    warn_of_leaks,
)
from .launch import launch
from .trainer import Trainer, TrainingError

__all__ = [
    "Trainer",
    "TrainingError",
    "all_problems",
    "check_evaluation_data",
    "check_num_classes",
    "check_output_dir",
    "class_names",
    "launch",
    "warn_of_leaks",
]
