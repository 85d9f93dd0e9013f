"""ProNet-style: the image says where to look closer, and what is seen there is labelled again."""

import torch
from detectron2.config import configurable
from torchvision.ops import nms

from ..aggregation import logsumexp
from .features import ImageFeatures, resized
from .head import LABEL_HEAD_REGISTRY, LabelHead, LabelOutput

MAX_OVERLAP = 0.5  # IoU of two boxes of an image


@LABEL_HEAD_REGISTRY.register()
class ProNet(LabelHead):
    """Class maps at two scales of the image propose boxes; crops of them are labelled, enlarged.

    The logits of an image are the mean of a smooth maximum over its cells and the maximum over its
    boxes. Boxes are learnt from labels of images alone. Those with the highest scores of any label
    are taken.

    Our reading: of the paper the abstract is at hand. There a cascade of networks decides label by
    label; here one more classifier, on the same backbone.

    Source: Sun et al., "ProNet: learning to propose object-specific boxes for cascaded neural
    networks", CVPR 2016.
    """

    @configurable
    def __init__(
        self,
        *,
        num_boxes: int = 3,
        window: int = 4,
        size: int = 192,
        small: float = 0.7,
        sharpness: float = 5.0,
        **kwargs,
    ):
        """
        Args:
            num_boxes: boxes of an image, at most.
            window: side of a box in cells of the map, at either scale.
            size: side in px that a box is enlarged to.
            small: sides of the smaller image / those of the image.
            sharpness: of the smooth maximum `logsumexp`.
            kwargs: of `LabelHead`.
        """
        super().__init__(**kwargs)
        self.num_boxes, self.window, self.size = num_boxes, window, size
        self.small, self.sharpness = small, sharpness
        self.label_score = self.label_layer(self.channels)
        self.box_score = self.label_layer(self.channels)

    def predict(self, features: ImageFeatures) -> LabelOutput:
        """Logits; parts `cells` and `boxes`; class maps."""
        images = [features.images[i] for i in range(len(features.images))]
        smaller = features.view(features.scaled_images(self.small))
        maps, small_maps = self.maps(features), self.maps(smaller)
        cells = [torch.cat([a.flatten(1), b.flatten(1)], 1) for a, b in zip(maps, small_maps)]
        cells = torch.stack([logsumexp(c.T, self.sharpness) for c in cells])
        cell = features.images.tensor.shape[-1] / features.maps[self.in_feature].shape[-1]  # px
        crops = [
            self.crops(image, [(a.detach(), cell), (b.detach(), cell / self.small)])
            for image, a, b in zip(images, maps, small_maps)
        ]
        closer = features.view([crop for of_image in crops for crop in of_image])
        scores = self.box_score(closer.pooled(self.in_feature))
        boxes = [s.amax(dim=0) for s in scores.split([len(of_image) for of_image in crops])]
        parts = {"cells": cells, "boxes": torch.stack(boxes)}
        return LabelOutput(torch.stack(list(parts.values())).mean(dim=0), parts, maps)

    def losses(
        self, output: LabelOutput, targets: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """A loss of each part."""
        return self.part_losses(output, targets, mask)

    def maps(self, features: ImageFeatures) -> list[torch.Tensor]:
        """Class maps (C, h, w) of each image."""
        tokens, _ = features.tokens(self.in_feature)
        return features.unpad(self.in_feature, self.label_score(tokens).transpose(1, 2))

    def crops(
        self, image: torch.Tensor, maps: list[tuple[torch.Tensor, float]]
    ) -> list[torch.Tensor]:
        """What lies in the proposed boxes of an image (3, H, W), enlarged: at least one.

        Args:
            image: one image.
            maps: class maps (C, h, w), each with the side of its cells in px of the image.
        """
        boxes, scores = zip(
            *(window_boxes(m, side, self.window, image.shape[1:]) for m, side in maps)
        )
        boxes, scores = torch.cat(boxes), torch.cat(scores)
        best = boxes[nms(boxes, scores, MAX_OVERLAP)[: self.num_boxes]].round().long().tolist()
        return [
            resized(image[:, y0:y1, x0:x1], self.size / max(y1 - y0, x1 - x0))
            for x0, y0, x1, y1 in best
        ]


def window_boxes(
    maps: torch.Tensor, cell: float, window: int, image_size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A square box about each cell, moved into the image, and the cell's highest class score.

    Args:
        maps: class maps (C, h, w).
        cell: side of a cell in px of the image.
        window: side of a box in cells; no longer than the image's sides.
        image_size: (height, width).

    Returns:
        `(boxes, scores)`: (h·w, 4) XYXY and (h·w,), float32.
    """
    starts, ends = [], []
    for length, number in zip(image_size, maps.shape[1:]):
        side = min(window * cell, length)
        centres = (torch.arange(number, device=maps.device) + 0.5) * cell
        starts.append((centres - side / 2).clamp(0, length - side))
        ends.append(starts[-1] + side)
    y0, x0 = torch.meshgrid(*starts, indexing="ij")
    y1, x1 = torch.meshgrid(*ends, indexing="ij")
    return torch.stack([x0, y0, x1, y1], dim=2).flatten(0, 1), maps.float().amax(dim=0).flatten()
