"""What a label head sees of a batch: feature maps without the padding of its images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling import Backbone
from detectron2.structures import Boxes, ImageList
from torch.nn import functional as F

from ..label_predictor import image_cells, image_parts, pool_images


@dataclass(frozen=True)
class ImageFeatures:
    """Feature maps of N images of any sizes, padded to one size.

    Attributes:
        maps: (N, D, H, W) by name, as the backbone gives them.
        images: the images, as the backbone got them.
        backbone: the backbone, for heads that look at an image more than once.
        boxes: proposals (K) of each image, in SCNet.
        label_scores: (K, C) of them, in [0, 1].
    """

    maps: dict[str, torch.Tensor]
    images: ImageList
    backbone: Backbone | None = None
    boxes: Sequence[Boxes] | None = None
    label_scores: Sequence[torch.Tensor] | None = None

    @classmethod
    def of(cls, images: ImageList, backbone: Backbone) -> "ImageFeatures":
        """Features that a backbone gives for images."""
        return cls(backbone(images.tensor), images, backbone)

    def view(self, images: Sequence[torch.Tensor]) -> "ImageFeatures":
        """Features of other views (3, h, w) of the images: flipped, scaled, cut out."""
        padded = ImageList.from_tensors(list(images), self.backbone.size_divisibility)
        return self.of(padded, self.backbone)

    def scaled_images(self, scale: float) -> list[torch.Tensor]:
        """The images (3, H, W) without padding, their sides times `scale`."""
        return [resized(self.images[i], scale) for i in range(len(self.images))]

    def valid(self, name: str) -> torch.Tensor:
        """(N, H·W) bool, True for the cells of a map that its image reaches into."""
        feature = self.maps[name]
        rows, columns = (torch.arange(n, device=feature.device) for n in feature.shape[-2:])
        sizes = image_cells(feature, self.images)
        return torch.stack([((rows < h)[:, None] & (columns < w)).flatten() for h, w in sizes])

    def tokens(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Cells of a map (N, H·W, D) and which of them are valid, (N, H·W) bool."""
        return self.maps[name].flatten(2).transpose(1, 2), self.valid(name)

    def pooled(self, name: str, pooling: str = "average") -> torch.Tensor:
        """A map (N, D), "average" or "max" over the cells of each image."""
        return pool_images(self.maps[name], self.images, pooling)

    def grid(self, name: str, size: int, pooling: str = "average") -> torch.Tensor:
        """A map (N, D, size, size): each image's cells pooled to a grid over the image."""
        pool = _max_grid if pooling == "max" else _average_grid
        return torch.stack([pool(part, size) for part in image_parts(self.maps[name], self.images)])

    def of_boxes(self, name: str, size: int = 3) -> list[torch.Tensor]:
        """A map (K, D) at the boxes of each image: the mean of ROIAlign's size x size cells.

        Raises:
            ValueError: if there are no boxes: of a meta-architecture without proposals.
        """
        if self.boxes is None:
            raise ValueError(
                "this label head reads boxes: use MODEL.META_ARCHITECTURE SCNet and name it in "
                "MODEL.SCNET.IMAGE.HEAD"
            )
        scale = self.maps[name].shape[-1] / self.images.tensor.shape[-1]
        align = ROIAlign(size, scale, sampling_ratio=2)
        parts = image_parts(self.maps[name], self.images)
        return [
            align(part[None], F.pad(boxes.tensor, (1, 0))).mean(dim=(2, 3))  # of image 0, itself
            for part, boxes in zip(parts, self.boxes, strict=True)
        ]

    def unpad(self, name: str, values: torch.Tensor) -> list[torch.Tensor]:
        """Values (N, C, H·W) of the cells of a map as one (C, h, w) for each image."""
        maps = values.unflatten(-1, self.maps[name].shape[-2:])
        return image_parts(maps, self.images)

    def on_images(self, name: str, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Maps (C, h, w) over the cells of each image, as maps over the image itself.

        The last cells reach past the image, into padding: the maps are sampled where the image is.
        """
        padded = torch.tensor(self.images.tensor.shape[-2:])
        grid = torch.tensor(self.maps[name].shape[-2:])
        sizes = torch.tensor([tuple(size) for size in self.images.image_sizes])  # (N, 2)
        cells = torch.tensor(image_cells(self.maps[name], self.images))
        shares = (sizes * grid / (cells * padded)).tolist()  # of the cells that is image
        return [_sampled(m, share) for m, share in zip(maps, shares, strict=True)]


def resized(image: torch.Tensor, scale: float) -> torch.Tensor:
    """An image (3, H, W), its sides times `scale`."""
    size = [max(1, round(scale * side)) for side in image.shape[-2:]]
    return F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]


def _grid_cells(length: int, size: int, like: torch.Tensor) -> torch.Tensor:
    """(size, length) bool: which of a side's cells lie in each part of a grid, as adaptive pooling.

    Written out, since an exported adaptive pooling holds for maps of one size alone.
    """
    part = torch.arange(size, device=like.device)[:, None]
    first, end = part * length, (part + 1) * length  # of the part, times size
    cell = torch.arange(length, device=like.device) * size
    return (cell < end) & (cell + size > first)


def _max_grid(x: torch.Tensor, size: int) -> torch.Tensor:
    """(D, size, size) of (D, h, w)."""
    rows, columns = (_grid_cells(n, size, x) for n in x.shape[-2:])
    x = x[:, None].masked_fill(~rows[:, :, None], -torch.inf).amax(dim=2)  # (D, size, w)
    return x[:, :, None].masked_fill(~columns, -torch.inf).amax(dim=3)


def _average_grid(x: torch.Tensor, size: int) -> torch.Tensor:
    """(D, size, size) of (D, h, w)."""
    rows, columns = (_grid_cells(n, size, x).to(x.dtype) for n in x.shape[-2:])
    sums = torch.einsum("dhw,ih,jw->dij", x, rows, columns)
    return sums / (rows.sum(dim=1)[:, None] * columns.sum(dim=1))


def _sampled(values: torch.Tensor, share: Sequence[float]) -> torch.Tensor:
    """The upper left part of a map (C, h, w), this share of height and width, as (C, h, w)."""
    y, x = (
        (torch.arange(n, device=values.device) + 0.5) * (2 * part / n) - 1
        for n, part in zip(values.shape[-2:], share)
    )
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (h, w, 2)
    return F.grid_sample(
        values[None].float(), places[None], padding_mode="border", align_corners=False
    )[0]
