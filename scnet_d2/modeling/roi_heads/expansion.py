"""Adaptive expansion: each box chooses how much of its surroundings its context box takes in."""

import torch
from torch import nn

from ..label_predictor import label_norm


class AdaptiveExpansion(nn.Module):
    """A soft choice of each box among a few expansion ratios, by its own features and size.

    The choice weighs the pooled features of the expansions, so that the label loss reaches it;
    through the corners of a box ROIAlign passes no gradient. Source: own decision, after the idea
    of adaptive expansion in the sequel to the slides (IEEE TIP 2023), whose code is not public.
    """

    def __init__(self, dim: int, ratios: tuple[float, ...], norm: str = ""):
        """
        Args:
            dim: D, length of the box features.
            ratios: M ratios, ascending from 1.
            norm: of the features, see `LabelPredictor`.
        """
        super().__init__()
        if len(ratios) < 2 or ratios[0] != 1 or list(ratios) != sorted(set(ratios)):
            raise ValueError(
                f"MODEL.SCNET.CONTEXT.RATIOS is {list(ratios)}; give two or more, ascending from "
                "1.0, or [] for EXPANSION_RATIO alone"
            )
        self.ratios = tuple(ratios)
        self.norm = label_norm(dim, norm)
        self.choice = nn.Linear(dim + 2, len(ratios))
        nn.init.zeros_(self.choice.weight)  # at first all ratios alike
        nn.init.zeros_(self.choice.bias)

    def forward(self, x: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose for R boxes.

        Args:
            x: (R, D) features of the tight boxes.
            boxes: (R, 4) tight boxes, XYXY.

        Returns:
            The weight of each ratio (R, M), float32 of sum 1, and their mean ratio (R,), between 1
            and the largest.
        """
        sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1).log()  # (R, 2)
        x = torch.cat([self.norm(x), sides.to(x.dtype)], dim=1)
        # A step of Adam moves a logit by the sum of its inputs: unscaled, the softmax is at a
        # corner before the label loss can tell the ratios apart.
        logits = self.choice(x * x.shape[1] ** -0.5)
        weights = logits.float().softmax(dim=1)
        ratios = (weights * weights.new_tensor(self.ratios)).sum(dim=1)
        return weights, ratios.clamp(1, self.ratios[-1])


def build_expansion(cfg, dim: int) -> AdaptiveExpansion | None:
    """As the config has it for box features of length `dim`; None: no choice."""
    ratios = cfg.MODEL.SCNET.CONTEXT.RATIOS
    return AdaptiveExpansion(dim, tuple(ratios), cfg.MODEL.SCNET.LABEL.NORM) if ratios else None
