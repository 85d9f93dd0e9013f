"""Labels of images outside a data set, with the boxes that they come from."""

from .optimize import optimize_for_inference
from .predictor import SCNetPredictor, describe_labels, rounded_scores
from .run import load_arguments, load_run
from .visualizer import draw_labels, label_maps

__all__ = [
    "SCNetPredictor",
    "describe_labels",
    "draw_labels",
    "label_maps",
    "load_arguments",
    "load_run",
    "optimize_for_inference",
    "rounded_scores",
]
