"""DecoupleNet-style: what is a label's own, and what it shares with others."""

import torch
from detectron2.config import configurable
from torch import nn

from .features import ImageFeatures
from .head import LABEL_HEAD_REGISTRY, LabelHead, LabelOutput
from .layers import PerLabelLinear, spatial_softmax


@LABEL_HEAD_REGISTRY.register()
class DecoupleNet(LabelHead):
    """A feature for each label by attention; logits of it, and of it after labels read each other.

    Our reading: of the paper the title and figures in others' tables are at hand.

    Source: Liu et al., "Decoupling category-wise independence and relevance with self-attention for
    multi-label image classification", ICASSP 2019.
    """

    @configurable
    def __init__(self, *, dim: int = 512, num_heads: int = 8, **kwargs):
        """
        Args:
            dim: D', width of the label features.
            num_heads: of the attention between labels.
            kwargs: of `LabelHead`.
        """
        super().__init__(**kwargs)
        self.attention = nn.Linear(self.channels, self.num_classes)
        self.project = nn.Linear(self.channels, dim)
        self.relevance = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)
        self.independent_score = PerLabelLinear(dim, self.num_classes, self.prior_prob)
        self.relevant_score = PerLabelLinear(dim, self.num_classes, self.prior_prob)

    def predict(self, features: ImageFeatures) -> LabelOutput:
        """Logits, the mean of the parts `independent` and `relevant`; attention as class maps."""
        tokens, valid = features.tokens(self.in_feature)
        attention = spatial_softmax(self.attention(tokens).transpose(1, 2), valid)  # (N, C, L)
        x = attention @ self.project(tokens)  # (N, C, D')
        read, _ = self.relevance(x, x, x, need_weights=False)
        parts = {
            "independent": self.independent_score(x),
            "relevant": self.relevant_score(self.norm(x + read)),
        }
        logits = torch.stack(list(parts.values())).mean(dim=0)
        return LabelOutput(logits, parts, features.unpad(self.in_feature, attention))

    def losses(
        self, output: LabelOutput, targets: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """A loss of each part."""
        return self.part_losses(output, targets, mask)
