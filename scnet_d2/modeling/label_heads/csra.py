"""CSRA: class-specific residual attention."""

import torch
from detectron2.config import configurable
from torch import nn
from torch.nn import functional as F

from .features import ImageFeatures
from .head import LABEL_HEAD_REGISTRY, LabelHead, LabelOutput
from .layers import spatial_mean, spatial_softmax

MAXIMUM = 99  # temperature that stands for the maximum
# Number of heads → their temperatures.
TEMPERATURES = {
    1: (1,),
    2: (1, MAXIMUM),
    4: (1, 2, 4, MAXIMUM),
    6: (1, 2, 3, 4, 5, MAXIMUM),
    8: (1, 2, 3, 4, 5, 6, 7, MAXIMUM),
}


@LABEL_HEAD_REGISTRY.register()
class CSRA(LabelHead):
    """Class scores of each cell: their mean, and λ times their mean weighted by softmax.

    The scores of a cell are those of a linear layer whose rows have length 1. Several heads, each
    with a temperature of the softmax, are summed. λ = 0 is average pooling.

    Source: Zhu and Wu, "Residual attention: a simple but effective method for multi-label
    recognition", ICCV 2021.
    """

    @configurable
    def __init__(self, *, num_heads: int = 1, weight: float = 0.1, bias: bool = False, **kwargs):
        """
        Args:
            num_heads: 1, 2, 4, 6 or 8.
            weight: λ; published: VOC 0.1 with 1 head, COCO 0.5 with 6.
            bias: add a bias to the logits, for features that are no ReLU's; published: none.
            kwargs: of `LabelHead`.
        """
        super().__init__(**kwargs)
        if num_heads not in TEMPERATURES:
            raise ValueError(
                f"MODEL.IMAGE_LABELER.CSRA.NUM_HEADS is {num_heads}; choose one of "
                f"{list(TEMPERATURES)}"
            )
        self.temperatures = TEMPERATURES[num_heads]
        self.weight = weight
        self.label_score = nn.Linear(self.channels, num_heads * self.num_classes, bias=False)
        self.bias = self.label_bias() if bias else 0.0

    def predict(self, features: ImageFeatures) -> LabelOutput:
        """Logits, and as class maps the scores of the cells, summed over the heads."""
        tokens, valid = features.tokens(self.in_feature)
        weight = F.normalize(self.label_score.weight, dim=1)
        scores = F.linear(tokens, weight).transpose(1, 2)  # (N, heads·C, L)
        heads = scores.chunk(len(self.temperatures), dim=1)  # each (N, C, L)
        logits = sum(self._pool(s, valid, t) for s, t in zip(heads, self.temperatures))
        logits = logits + self.bias
        return LabelOutput(logits, class_maps=features.unpad(self.in_feature, sum(heads)))

    def _pool(self, scores: torch.Tensor, valid: torch.Tensor, temperature: float) -> torch.Tensor:
        """Logits (N, C) of one head from its scores (N, C, L)."""
        if temperature == MAXIMUM:
            attended = scores.masked_fill(~valid[:, None], -torch.inf).amax(dim=-1)
        else:
            attended = (spatial_softmax(temperature * scores, valid) * scores).sum(dim=-1)
        return spatial_mean(scores, valid) + self.weight * attended
