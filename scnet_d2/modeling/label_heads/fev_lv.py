"""FeV+LV-style: an image as a bag of boxes, each with a view of features and one of labels."""

import torch
from detectron2.config import configurable
from torch import nn
from torch.nn import functional as F

from .features import ImageFeatures
from .head import LABEL_HEAD_REGISTRY, LabelHead, LabelOutput

EPS = 1e-6


class FisherVector(nn.Module):
    """What the vectors of a bag say of a mixture of Gaussians: gradients of its log-likelihood.

    Those of the means and of the deviations, after a signed square root. The length is such that
    squares are 1 in the mean, in the place of 1 in the sum: such as other heads' features, so that
    both learn at one rate.

    Source: Perronnin et al., "Improving the Fisher kernel for large-scale image classification",
    ECCV 2010.
    """

    def __init__(self, dim: int, num_components: int):
        """
        Args:
            dim: D, length of the vectors.
            num_components: G, Gaussians with diagonal covariances.
        """
        super().__init__()
        self.log_weight = nn.Parameter(torch.zeros(num_components))
        self.mean = nn.Parameter(torch.randn(num_components, dim))
        self.log_deviation = nn.Parameter(torch.zeros(num_components, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Vector (2·G·D,) of a bag (K, D); all 0 for an empty one."""
        x = self.statistics(x.float())
        x = x.sign() * ((x.abs() + EPS).sqrt() - EPS**0.5)
        return F.normalize(x, dim=0) * len(x) ** 0.5

    def statistics(self, x: torch.Tensor) -> torch.Tensor:
        """The gradients (2·G·D,) themselves."""
        z = (x[:, None] - self.mean) * (-self.log_deviation).exp()  # (K, G, D)
        log_weight = self.log_weight.log_softmax(dim=0)
        likelihood = log_weight - (z.square() / 2 + self.log_deviation).sum(dim=2)  # (K, G)
        share = likelihood.softmax(dim=1)[..., None] / max(len(x), 1)
        weight = log_weight.exp()[:, None]
        mean = (share * z).sum(dim=0) / weight.sqrt()
        deviation = (share * (z.square() - 1)).sum(dim=0) / (2 * weight).sqrt()
        return torch.cat([mean.flatten(), deviation.flatten()])


@LABEL_HEAD_REGISTRY.register()
class FeVLV(LabelHead):
    """Fisher vectors of the boxes' features and of their label scores, and a linear layer.

    Our adaptation, of the abstract: the boxes are SCNet's proposals; the label view is what its
    object branch, trained on ground-truth boxes, says of them, in the place of their nearest
    ground-truth boxes; the mixtures are trained from end to end with the linear layer, in the place
    of fits and a support vector machine. The image's loss does not reach the label view.

    Source: Yang et al., "Exploit bounding box annotations for multi-label object recognition",
    CVPR 2016.
    """

    @configurable
    def __init__(self, *, dim: int = 64, num_components: int = 8, **kwargs):
        """
        Args:
            dim: D', length that the boxes' features are reduced to.
            num_components: of each view's mixture.
            kwargs: of `LabelHead`.
        """
        super().__init__(**kwargs)
        self.reduce = nn.Sequential(nn.LayerNorm(self.channels), nn.Linear(self.channels, dim))
        self.feature_view = FisherVector(dim, num_components)
        self.label_view = FisherVector(self.num_classes, num_components)
        width = 2 * num_components * (dim + self.num_classes)
        self.label_score = self.label_layer(width)

    def predict(self, features: ImageFeatures) -> LabelOutput:
        """Logits."""
        boxes = features.of_boxes(self.in_feature)
        views = [
            torch.cat([self.feature_view(self.reduce(x)), self.label_view(scores)])
            for x, scores in zip(boxes, features.label_scores, strict=True)
        ]
        return LabelOutput(self.label_score(torch.stack(views)))
