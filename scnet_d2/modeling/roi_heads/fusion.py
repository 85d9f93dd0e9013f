"""From the logits of both branches to the label scores of a box."""

import torch
from detectron2.config import configurable
from torch import nn


class ScoreFusion(nn.Module):
    """Fused label scores λ·σ(object) + (1−λ)·σ(context) of boxes.

    Source: own decision, see docs/method.md; the slides show the two branches joined and do not
    say how.
    """

    @configurable
    def __init__(self, *, object_weight: float = 0.5, use_patch_confidence: bool = False):
        """
        Args:
            object_weight: λ, weight of the object branch in the fused score, in [0, 1].
            use_patch_confidence: multiply fused scores by the confidence in the box.
        """
        super().__init__()
        if not 0 <= object_weight <= 1:
            raise ValueError(
                f"MODEL.SCNET.AGGREGATION.OBJECT_WEIGHT must lie in [0, 1], got {object_weight}"
            )
        self.object_weight = object_weight
        self.use_patch_confidence = use_patch_confidence

    @classmethod
    def from_config(cls, cfg):
        return {
            "object_weight": cfg.MODEL.SCNET.AGGREGATION.OBJECT_WEIGHT,
            "use_patch_confidence": cfg.MODEL.SCNET.AGGREGATION.USE_PATCH_CONFIDENCE,
        }

    def forward(
        self,
        object_logits: torch.Tensor | None,
        context_logits: torch.Tensor | None,
        patch_logits: torch.Tensor,
    ) -> torch.Tensor:
        """Fuse the label logits of R boxes.

        Args:
            object_logits: (R, C), or None where the object branch is switched off.
            context_logits: (R, C), or None where the context branch is switched off.
            patch_logits: (R,) logits of the confidence that the box holds an object.

        Returns:
            (R, C) float32 scores in [0, 1].
        """
        if context_logits is None:
            scores = object_logits.float().sigmoid()
        elif object_logits is None:
            scores = context_logits.float().sigmoid()
        else:
            scores = torch.lerp(
                context_logits.float().sigmoid(),
                object_logits.float().sigmoid(),
                self.object_weight,
            )
        if self.use_patch_confidence:
            scores = scores * patch_logits.float().sigmoid()[:, None]
        return scores
