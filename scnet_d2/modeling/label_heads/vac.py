"""VAC (ACfs): class maps that flip and scale with the image."""

import math
from typing import ClassVar

import torch
from detectron2.config import configurable
from torch.nn import functional as F

from .features import ImageFeatures
from .head import LABEL_HEAD_REGISTRY, LabelHead, LabelOutput


@LABEL_HEAD_REGISTRY.register()
class VAC(LabelHead):
    """Average pooling, trained on four views of each image whose class maps should agree.

    The views are the image, its mirror image, and both made smaller. Maps of an image whose sides
    are no multiples of the map's stride agree up to a part of a cell with those of its mirror
    image.

    Source: Guo et al., "Visual attention consistency under image transforms for multi-label image
    classification", CVPR 2019 (ResNet101-ACfs in the tables).
    """

    needs: ClassVar[tuple[str, ...]] = ("counts",)

    @configurable
    def __init__(
        self,
        *,
        flip_weight: float = 0.6,
        scale_weight: float = 0.8,
        small: float = 8 / 9,
        **kwargs,
    ):
        """
        Args:
            flip_weight: of the loss between a map and that of the mirror image.
            scale_weight: of the loss between the maps of both sizes.
            small: sides of the small views / those of the image; published: 256 / 288.
            kwargs: of `LabelHead`.
        """
        super().__init__(**kwargs)
        self.flip_weight, self.scale_weight, self.small = flip_weight, scale_weight, small
        self.label_score = self.label_layer(self.channels)

    def predict(self, features: ImageFeatures) -> LabelOutput:
        """Logits and class maps."""
        logits = self.label_score(features.pooled(self.in_feature))
        return LabelOutput(logits, class_maps=self.maps(features))

    def forward(
        self,
        features: ImageFeatures,
        targets: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> LabelOutput:
        """As `LabelHead.forward`, on four views in training."""
        output = self.predict(features)
        if targets is None:
            return output
        images = [features.images[i] for i in range(len(features.images))]
        smaller = features.scaled_images(self.small)
        others = [[x.flip(-1) for x in images], smaller, [x.flip(-1) for x in smaller]]
        views = [output, *(self.predict(features.view(view)) for view in others)]
        return output._replace(losses=self._losses_of_views(views, targets, mask))

    def maps(self, features: ImageFeatures) -> list[torch.Tensor]:
        """(C, h, w) of each image; their gradient reaches the features, not the classifier."""
        tokens, _ = features.tokens(self.in_feature)
        scores = F.linear(tokens, self.label_score.weight.detach()).transpose(1, 2)
        return features.unpad(self.in_feature, scores)

    def _losses_of_views(
        self, views: list[LabelOutput], targets: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Losses of the outputs for: image, mirror image, small image, its mirror image."""
        self.context.check_filled()
        share = self.context.counts / self.context.num_images  # (C,)
        weights = mask * torch.where(targets > 0, (1 - share).exp(), share.exp())
        image, mirrored, small, small_mirrored = (view.class_maps for view in views)
        flip = map_distance(image, _flipped(mirrored)) + map_distance(
            small, _flipped(small_mirrored)
        )
        scale = map_distance(image, small)
        labels = torch.stack([self.loss(view.logits, targets, weights) for view in views])
        return {
            "loss_image_label": labels.mean(),
            "loss_flip": self.flip_weight * flip,
            "loss_scale": self.scale_weight * scale,
        }


def _flipped(maps: list[torch.Tensor]) -> list[torch.Tensor]:
    return [m.flip(-1) for m in maps]


def map_distance(a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
    """Mean squared difference of maps (C, h, w), averaged over images.

    Maps of different sizes are both enlarged, to the least common multiple of their sides.
    """
    distances = []
    for x, y in zip(a, b, strict=True):
        size = [math.lcm(*sides) for sides in zip(x.shape[1:], y.shape[1:])]
        distances.append(F.mse_loss(_enlarged(x, size), _enlarged(y, size)))
    return torch.stack(distances).mean()


def _enlarged(x: torch.Tensor, size: list[int]) -> torch.Tensor:
    if list(x.shape[1:]) == size:
        return x
    return F.interpolate(x[None], size, mode="bilinear", align_corners=False)[0]
