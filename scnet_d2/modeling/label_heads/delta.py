"""DELTA-style: the image as a whole, and regions of it of which one is enough."""

import torch
from detectron2.config import configurable
from torch import nn

from ..aggregation import logsumexp
from .features import ImageFeatures
from .head import LABEL_HEAD_REGISTRY, LabelHead, LabelOutput

GRIDS = (1, 2, 4)


@LABEL_HEAD_REGISTRY.register()
class DELTA(LabelHead):
    """Logits of the pooled map, averaged with a smooth maximum over those of regions.

    The regions are the cells of grids of 1, 2 and 4 over the image, pooled by maximum, and of the
    map itself.

    Our reading: of the paper the highlights are at hand.

    Source: Yu et al., "DELTA: a deep dual-stream network for multi-label image classification",
    Pattern Recognition 2019.
    """

    @configurable
    def __init__(self, *, dim: int = 512, sharpness: float = 5.0, **kwargs):
        """
        Args:
            dim: width of the regions' features.
            sharpness: β of the smooth maximum `logsumexp`.
            kwargs: of `LabelHead`.
        """
        super().__init__(**kwargs)
        self.sharpness = sharpness
        self.label_score = self.label_layer(self.channels)
        self.region_score = nn.Sequential(
            nn.Linear(self.channels, dim), nn.ReLU(), self.label_layer(dim)
        )

    def predict(self, features: ImageFeatures) -> LabelOutput:
        """Logits; parts `global` and `local`; class maps, the scores of the map's cells."""
        whole = self.label_score(features.pooled(self.in_feature))
        tokens, valid = features.tokens(self.in_feature)
        grids = [features.grid(self.in_feature, size, "max").flatten(2) for size in GRIDS]
        regions = torch.cat([tokens, *(grid.transpose(1, 2) for grid in grids)], dim=1)
        scores = self.region_score(regions).transpose(1, 2)  # (N, C, L + 21)
        maps = features.unpad(self.in_feature, scores[..., : valid.shape[1]])
        added = valid.new_ones(len(valid), scores.shape[2] - valid.shape[1])
        local = self.smooth_maximum(scores, torch.cat([valid, added], dim=1))
        return LabelOutput((whole + local) / 2, {"global": whole, "local": local}, maps)

    def smooth_maximum(self, scores: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """(N, C) of scores (N, C, R) over the regions that are valid, (N, R) bool."""
        parts = (image[:, regions].T for image, regions in zip(scores, valid, strict=True))
        return torch.stack([logsumexp(part, self.sharpness) for part in parts])

    def losses(
        self, output: LabelOutput, targets: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The loss of the logits, and half of that of each part."""
        parts = self.part_losses(output, targets, mask)
        return super().losses(output, targets, mask) | {k: v / 2 for k, v in parts.items()}
