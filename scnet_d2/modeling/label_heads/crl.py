"""CRL-style: labels and images as vectors of one space."""

import torch
from detectron2.config import configurable
from torch import nn
from torch.nn import functional as F

from .features import ImageFeatures
from .head import LABEL_HEAD_REGISTRY, LabelHead, LabelOutput


@LABEL_HEAD_REGISTRY.register()
class CRL(LabelHead):
    """A linear classifier, corrected by the cosine between the image's vector and each label's.

    The vectors of an image and of its labels attract, the others repel within a margin.

    Our reading: of the paper the abstract is at hand.

    Source: Wen et al., "Multilabel image classification via feature/label co-projection", IEEE
    Transactions on Systems, Man, and Cybernetics 2020.
    """

    @configurable
    def __init__(
        self, *, dim: int = 512, margin: float = 0.2, projection_weight: float = 0.5, **kwargs
    ):
        """
        Args:
            dim: length of the vectors.
            margin: cosine from which on a label that is absent is repelled.
            projection_weight: of the loss on cosines.
            kwargs: of `LabelHead`.
        """
        super().__init__(**kwargs)
        self.margin, self.projection_weight = margin, projection_weight
        self.label_score = self.label_layer(self.channels)
        self.project = nn.Linear(self.channels, dim, bias=False)
        self.labels = nn.Parameter(torch.randn(self.num_classes, dim))
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.bias = nn.Parameter(torch.zeros(self.num_classes))

    def predict(self, features: ImageFeatures) -> LabelOutput:
        """Logits; parts: `image`, the classifier's, and `cosine` in [-1, 1]."""
        x = features.pooled(self.in_feature)
        image = self.label_score(x)
        cosine = F.normalize(self.project(x), dim=1) @ F.normalize(self.labels, dim=1).T
        logits = image + self.scale * cosine + self.bias
        return LabelOutput(logits, {"image": image, "cosine": cosine})

    def losses(
        self, output: LabelOutput, targets: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Of the logits, of the classifier alone, and of the cosines."""
        cosine = output.parts["cosine"].float()
        return super().losses(output, targets, mask) | {
            "loss_classifier_label": self.loss(output.parts["image"], targets, mask),
            "loss_projection": self.projection_weight * self.projection_loss(cosine, targets, mask),
        }

    def projection_loss(
        self, cosine: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Mean of 1 - cosine over present labels, plus of what exceeds the margin over absent."""
        present, absent = mask * targets, mask * (1 - targets)
        pull = (present * (1 - cosine)).sum() / present.sum().clamp(min=1)
        push = (absent * (cosine - self.margin).clamp(min=0)).sum() / absent.sum().clamp(min=1)
        return pull + push
