"""SRN: relations between labels from their attention maps."""

import torch
from detectron2.config import configurable
from torch import nn

from ..label_predictor import check_feature
from .features import ImageFeatures
from .head import LABEL_HEAD_REGISTRY, LabelHead, LabelOutput


@LABEL_HEAD_REGISTRY.register()
class SRN(LabelHead):
    """A classifier of the image, averaged with one that convolves maps of all labels.

    An attention map and a confidence map for each label, multiplied, go through convolutions that
    see the whole grid. The published training has four stages; here the three outputs (whole image,
    attention, relations) are trained at once, none through the other: our reading. A port has batch
    norms in the convolutions of the maps; here the maps are scaled to a mean near 1.

    Source: Zhu et al., "Learning spatial regularization with image-level supervisions for
    multi-label image classification", CVPR 2017; layers as in a port of it.
    """

    @configurable
    def __init__(
        self,
        *,
        fine_feature: str = "res4",
        dim: int = 512,
        filters: int = 4,
        grid: int = 14,
        weight: float = 0.5,
        **kwargs,
    ):
        """
        Args:
            fine_feature: name of the map that attention is computed on.
            dim: D', width of the convolutions.
            filters: of the last convolution for each of its channels.
            grid: side that the maps are pooled to.
            weight: of the whole image's logits; the relations' have the rest.
            kwargs: of `LabelHead`.
        """
        super().__init__(**kwargs)
        check_feature("MODEL.IMAGE_LABELER.SRN.FINE_FEATURE", fine_feature, self.input_shape)
        self.fine_feature, self.grid, self.weight = fine_feature, grid, weight
        fine, num_classes = self.input_shape[fine_feature].channels, self.num_classes
        self.label_score = self.label_layer(self.channels)
        self.attention = nn.Sequential(
            nn.Conv2d(fine, dim, 1), nn.ReLU(),
            nn.Conv2d(dim, dim, 3, padding=1), nn.ReLU(),
            nn.Conv2d(dim, num_classes, 1),
        )  # fmt: skip
        self.confidence = nn.Conv2d(fine, num_classes, 1)
        self.relations = nn.Sequential(
            nn.Conv2d(num_classes, dim, 1), nn.ReLU(),
            nn.Conv2d(dim, dim, 1), nn.ReLU(),
            nn.Conv2d(dim, filters * dim, grid, groups=dim), nn.ReLU(),
            nn.Flatten(), self.label_layer(filters * dim),
        )  # fmt: skip

    def predict(self, features: ImageFeatures) -> LabelOutput:
        """Logits; parts `image`, `attention` and `relation`; class maps on the grid."""
        image = self.label_score(features.pooled(self.in_feature))
        fine = features.grid(self.fine_feature, self.grid).detach()  # (N, D, grid, grid)
        attention = self.attend(fine)
        confidence = self.confidence(fine)  # (N, C, grid, grid)
        attended = (confidence * attention).sum(dim=(2, 3))
        maps = confidence.sigmoid() * attention
        # Attention sums to 1: its cells are lost beside the biases unless their mean is 1.
        relation = self.relations(maps.detach() * self.grid**2)
        logits = torch.lerp(relation, image, self.weight)
        parts = {"image": image, "attention": attended, "relation": relation}
        return LabelOutput(logits, parts, list(maps))

    def attend(self, fine: torch.Tensor) -> torch.Tensor:
        """Attention maps (N, C, grid, grid), of sum 1, from features (N, D, grid, grid)."""
        return self.attention(fine).flatten(2).softmax(dim=-1).unflatten(2, fine.shape[2:])

    def losses(
        self, output: LabelOutput, targets: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """A loss of each part."""
        return self.part_losses(output, targets, mask)
