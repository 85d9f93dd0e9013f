"""From the logits of the branches to the label scores of a box."""

import torch
from detectron2.config import configurable
from torch import nn


class ScoreFusion(nn.Module):
    """Weighted mean of the label scores of a box over the branches.

    With weights λ and 1−λ of two branches it is λ·σ(object) + (1−λ)·σ(context).

    Source: own decision, see docs/method.md; the slides show the two branches joined and do not
    say how.
    """

    @configurable
    def __init__(
        self,
        *,
        weights: dict[str, float],
        use_patch_confidence: bool = False,
        learned: str = "",
        num_classes: int = 1,
    ):
        """
        Args:
            weights: of the branches by name, in their order; they need not sum to 1.
            use_patch_confidence: multiply fused scores by the confidence in the box.
            learned: "branch" or "class" for weights, one of a branch or C of them, that are
                trained from these on; "" for these.
            num_classes: C, of the weights for each class.
        """
        super().__init__()
        if learned not in ("", "branch", "class"):
            raise ValueError(
                f"MODEL.SCNET.AGGREGATION.LEARN_WEIGHTS is '{learned}'; choose branch, class or ''"
            )
        _check_weights(weights, learned)
        self.weights = dict(weights)
        self.use_patch_confidence = use_patch_confidence
        self.log_weights = None  # (B, 1) or (B, C)
        if learned:
            initial = torch.tensor(list(weights.values())).log()[:, None]
            columns = num_classes if learned == "class" else 1
            self.log_weights = nn.Parameter(initial.repeat(1, columns))

    @classmethod
    def from_config(cls, cfg, branches: list[str]):
        """`branches` are the names of those that are switched on."""
        agg = cfg.MODEL.SCNET.AGGREGATION
        if agg.LEARN_WEIGHTS and not agg.LOSS_WEIGHT:
            raise ValueError(
                "MODEL.SCNET.AGGREGATION.LEARN_WEIGHTS learns from loss_image_label: set "
                "MODEL.SCNET.AGGREGATION.LOSS_WEIGHT above 0"
            )
        known = {"object": agg.OBJECT_WEIGHT, "context": 1 - agg.OBJECT_WEIGHT}
        return {
            "weights": {
                b: known[b] if b in known else cfg.MODEL.SCNET[b.upper()].WEIGHT for b in branches
            },
            "use_patch_confidence": agg.USE_PATCH_CONFIDENCE,
            "learned": agg.LEARN_WEIGHTS,
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        }

    def forward(
        self, label_logits: dict[str, torch.Tensor], patch_logits: torch.Tensor
    ) -> torch.Tensor:
        """Fuse the label logits of R boxes.

        Args:
            label_logits: (R, C) of each branch, in the order of the weights.
            patch_logits: (R,) logits of the confidence that the box holds an object.

        Returns:
            (R, C) float32 scores in [0, 1].
        """
        if self.log_weights is None:
            weights = list(self.weights.values())
        else:
            weights = list(self.log_weights.exp())
        fused, total = None, 0.0
        # a running mean from the last branch on
        for logits, weight in reversed([*zip(label_logits.values(), weights, strict=True)]):
            scores, total = logits.float().sigmoid(), total + weight
            fused = scores if fused is None else torch.lerp(fused, scores, _share(weight, total))
        if self.use_patch_confidence:
            fused = fused * patch_logits.float().sigmoid()[:, None]
        return fused


def _share(weight, total):
    """Of the total; of nothing, nothing."""
    return weight / total if isinstance(total, torch.Tensor) or total else 0.0


def _check_weights(weights: dict[str, float], learned: str) -> None:
    """Raises: ValueError, naming the key."""
    keys = (
        "MODEL.SCNET.AGGREGATION.OBJECT_WEIGHT must lie in [0, 1], the WEIGHT of each other branch "
        "must be at least 0"
    )
    if any(not w >= 0 for w in weights.values()):
        raise ValueError(f"{keys}; the weights are {weights}")
    if len(weights) > 1 and sum(weights.values()) == 0:
        raise ValueError(f"{keys}, and one above 0; the weights are {weights}")
    if learned and not all(weights.values()):
        raise ValueError(f"{keys}, and above 0 to be learned; the weights are {weights}")
