"""Label scores of both branches for every box of an image, recorded while SCNet predicts."""

from __future__ import annotations

from typing import NamedTuple

import torch

from scnet_d2.modeling import SCNet


class BranchScores(NamedTuple):
    """What the aggregator of SCNet gets for the K boxes of one image; one branch may be None.

    The tensors are on the CPU.
    """

    object: torch.Tensor | None  # (K, C) in [0, 1]
    context: torch.Tensor | None  # (K, C) in [0, 1]
    patch_confidence: torch.Tensor  # (K,) in [0, 1]


class Recorder:
    """Keeps the branch scores of a model's predictions, image by image."""

    def __init__(self, model: SCNet):
        """
        Args:
            model: predicts one image at a time.
        """
        self.images: list[BranchScores] = []
        self._aggregator = model.aggregator
        self._fuse = model.aggregator.fuse
        model.aggregator.fuse = self._record

    def _record(self, object_logits, context_logits, patch_confidence):
        branches = (
            None if x is None else x.float().sigmoid().cpu()
            for x in (object_logits, context_logits)
        )
        self.images.append(BranchScores(*branches, patch_confidence.float().cpu()))
        return self._fuse(object_logits, context_logits, patch_confidence)

    def stop(self) -> None:
        """Leave the model as it was."""
        del self._aggregator.fuse
