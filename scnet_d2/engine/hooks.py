"""Hooks that Detectron2 has, with what is missing in them."""

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import hooks
from torch import nn


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's hook, but `last_checkpoint` keeps naming the last checkpoint.

    Detectron2's own marks the best checkpoint as the last one, and `--resume` would go on from it.
    The best checkpoint here has the weights alone.
    """

    def __init__(self, eval_period: int, model: nn.Module, output_dir: str, val_metric: str):
        """
        Args:
            eval_period: iterations between two evaluations.
            model: whose weights are saved.
            output_dir: where `model_best.pth` is written.
            val_metric: name of the scalar that is to be largest.
        """
        super().__init__(eval_period, _UntaggedCheckpointer(model, output_dir), val_metric)


class _UntaggedCheckpointer(DetectionCheckpointer):
    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Leave `last_checkpoint` as it is."""
