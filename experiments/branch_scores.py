"""Label scores of both branches for every box of an image, recorded while SCNet predicts."""

from __future__ import annotations

from typing import NamedTuple

from scnet_d2.modeling import SCNet

import torch


class BranchScores(NamedTuple):
    """What the fusion of SCNet gets for the K boxes of one image; one branch may be None.

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
        self._hook = model.roi_heads.fusion.register_forward_pre_hook(self._record)

    def _record(self, fusion, inputs: tuple[dict[str, torch.Tensor], torch.Tensor]) -> None:
        label_logits, patch_logits = inputs
        logits = (label_logits.get("object"), label_logits.get("context"), patch_logits)
        scores = (None if x is None else x.float().sigmoid().cpu() for x in logits)
        self.images.append(BranchScores(*scores))

    def stop(self) -> None:
        """Leave the model as it was."""
        self._hook.remove()
