"""From label scores of boxes to label scores of an image."""

import math
from collections.abc import Callable

import torch
from detectron2.config import configurable
from torch import nn
from torch.nn import functional as F


def max_score(scores: torch.Tensor) -> torch.Tensor:
    """Highest score over the boxes, (K, C) -> (C,)."""
    return scores.amax(dim=0)


def topk_mean(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Mean of the k highest scores over the boxes (of all, where there are fewer)."""
    return scores.sort(dim=0, descending=True).values[:k].mean(dim=0)


def noisy_or(scores: torch.Tensor) -> torch.Tensor:
    """Probability that at least one box has the label if boxes were independent."""
    return 1 - (1 - scores).prod(dim=0)


def logsumexp(scores: torch.Tensor, sharpness: float) -> torch.Tensor:
    """Smooth maximum log(mean(exp(r·s)))/r, between the mean and the maximum over the boxes.

    Source: Pinheiro and Collobert, "From image-level to pixel-level labeling with convolutional
    networks", CVPR 2015.
    """
    log_num_boxes = torch.logsumexp(torch.zeros_like(scores), dim=0)  # len() is frozen in tracing
    return (torch.logsumexp(scores * sharpness, dim=0) - log_num_boxes) / sharpness


class LabelAggregator(nn.Module):
    """Fuses the label scores of both branches and aggregates them over the boxes of an image.

    Source: own decision, see docs/method.md; the slides show the two branches joined and do not
    say how.
    """

    @configurable
    def __init__(
        self,
        *,
        aggregate: Callable[[torch.Tensor], torch.Tensor] = max_score,
        object_weight: float = 0.5,
        use_patch_confidence: bool = False,
    ):
        """
        Args:
            aggregate: maps the scores of the boxes (K, C), K at least 1, to the image's (C,).
            object_weight: λ, weight of the object branch in the fused score, in [0, 1].
            use_patch_confidence: multiply fused scores by the confidence in the box.
        """
        super().__init__()
        if not 0 <= object_weight <= 1:
            raise ValueError(
                f"MODEL.SCNET.AGGREGATION.OBJECT_WEIGHT must lie in [0, 1], got {object_weight}"
            )
        self.aggregate = aggregate
        self.object_weight = object_weight
        self.use_patch_confidence = use_patch_confidence

    @classmethod
    def from_config(cls, cfg):
        agg = cfg.MODEL.SCNET.AGGREGATION
        methods = {
            "max": max_score,
            "topk_mean": lambda scores: topk_mean(scores, agg.TOPK),
            "noisy_or": noisy_or,
            "logsumexp": lambda scores: logsumexp(scores, agg.SHARPNESS),
        }
        if agg.METHOD not in methods:
            raise ValueError(
                f"MODEL.SCNET.AGGREGATION.METHOD is '{agg.METHOD}'; choose one of {list(methods)}"
            )
        for key in ("TOPK", "SHARPNESS"):
            if not 0 < agg[key] < math.inf:
                raise ValueError(f"MODEL.SCNET.AGGREGATION.{key} is {agg[key]}; it must be > 0")
        return {
            "aggregate": methods[agg.METHOD],
            "object_weight": agg.OBJECT_WEIGHT,
            "use_patch_confidence": agg.USE_PATCH_CONFIDENCE,
        }

    def fuse(
        self,
        object_logits: torch.Tensor | None,
        context_logits: torch.Tensor | None,
        patch_confidence: torch.Tensor,
    ) -> torch.Tensor:
        """Fused label scores λ·σ(object) + (1−λ)·σ(context) of boxes.

        Args:
            object_logits: (R, C), or None where the object branch is switched off.
            context_logits: (R, C), or None where the context branch is switched off.
            patch_confidence: (R,) confidence in [0, 1] that the box holds an object.

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
            scores = scores * patch_confidence.float()[:, None]
        return scores

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        """Aggregate the label scores (K, C) of an image's boxes to (C,); no box gives all zero."""
        # All the boxes or else a row of zeros, without a branch, which tracing would freeze.
        padded = F.pad(scores, (0, 0, 0, 1))
        scores = torch.cat([padded[:1], padded[1:-1]])
        return self.aggregate(scores).clamp(0, 1)
