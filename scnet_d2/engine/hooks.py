"""Hooks that Detectron2 has, with what is missing in them."""

import logging
import os
from collections.abc import Sequence

from detectron2.engine import hooks
from detectron2.utils.events import get_event_storage
from torch import nn

from ..checkpoint import BrokenCheckpointError, SCNetCheckpointer, read_checkpoint

logger = logging.getLogger(__name__)


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's hook, but `last_checkpoint` keeps naming the last checkpoint.

    Detectron2's own marks the best checkpoint as the last one, and `--resume` would go on from it.
    The best checkpoint here has the weights and their metric: a resumed run replaces it only with a
    better one, while Detectron2's own forgets the metric.
    """

    def __init__(
        self,
        eval_period: int,
        model: nn.Module,
        output_dir: str,
        val_metric: str,
        class_names: Sequence[str] = (),
    ):
        """
        Args:
            eval_period: iterations between two evaluations.
            model: whose weights are saved.
            output_dir: where `model_best.pth` is written.
            val_metric: name of the scalar that is to be largest.
            class_names: C names, saved with the weights.
        """
        checkpointer = _UntaggedCheckpointer(model, output_dir, class_names=class_names)
        checkpointer.val_metric = val_metric
        super().__init__(eval_period, checkpointer, val_metric)

    def before_train(self) -> None:
        """Take over the best metric of the run that is resumed."""
        path = os.path.join(self._checkpointer.save_dir, f"{self._file_prefix}.pth")
        if self.trainer.start_iter > 0 and os.path.isfile(path):
            try:
                saved = read_checkpoint(path)
            except BrokenCheckpointError as error:
                logger.warning("%s. The next best checkpoint will replace it.", error)
                return
            self.best_metric, self.best_iter = saved.get(self._val_metric), saved.get("iteration")


class _UntaggedCheckpointer(SCNetCheckpointer):
    def save(self, name: str, **kwargs) -> None:
        """Save the weights and the metric that they were chosen by."""
        value, _ = get_event_storage().latest()[self.val_metric]
        self.save_unmarked(name, **kwargs, **{self.val_metric: value})
