"""Label predictor: one dense layer of C logits, trained with binary cross-entropy."""

import math

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import ImageList
from torch import nn
from torch.nn import functional as F


def image_label_targets(
    batched_inputs: list[dict], scores: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets of the image scores (N, C) and loss mask, both (N, C) float32, 1 or 0."""
    targets = torch.zeros_like(scores, dtype=torch.float32)  # whatever autocast makes of scores
    loss_mask = torch.ones_like(targets)
    for target, row, x in zip(targets, loss_mask, batched_inputs, strict=True):
        target[list(x["image_labels"])] = 1
        row[list(x.get("ignored_labels", ()))] = 0
    return targets, loss_mask


def label_layer(dim: int, num_classes: int, prior_prob: float) -> nn.Linear:
    """Dense layer (..., D) -> (..., C) whose scores all are `prior_prob` before training."""
    if not 0 < prior_prob < 1:
        raise ValueError(f"MODEL.SCNET.LABEL.PRIOR_PROB must lie in (0, 1), got {prior_prob}")
    layer = nn.Linear(dim, num_classes)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.constant_(layer.bias, -math.log((1 - prior_prob) / prior_prob))
    return layer


def label_norm(dim: int, norm: str) -> nn.Module:
    """Normalisation of features (..., D) before a label layer: "LN", or "" for none."""
    if norm not in ("", "LN"):
        raise ValueError(f"MODEL.SCNET.LABEL.NORM is '{norm}'; choose LN, or '' for none")
    return nn.LayerNorm(dim) if norm else nn.Identity()


def _ceil_div(x: int, divisor: int) -> int:
    """Without a negative number, whose division the exporter to ONNX rounds the other way."""
    return (x + divisor - 1) // divisor


def image_cells(feature: torch.Tensor, images: ImageList) -> list[tuple[int, int]]:
    """Of features (N, D, H, W) how many rows and columns of cells each image reaches into."""
    height, width = feature.shape[-2:]
    padded_height, padded_width = images.tensor.shape[-2:]
    return [
        (_ceil_div(h * height, padded_height), _ceil_div(w * width, padded_width))
        for h, w in images.image_sizes
    ]


def image_parts(feature: torch.Tensor, images: ImageList) -> list[torch.Tensor]:
    """Of features (N, D, H, W) the cells (D, h, w) that each image reaches into: no padding."""
    return [x[:, :h, :w] for x, (h, w) in zip(feature, image_cells(feature, images))]


def pool_images(feature: torch.Tensor, images: ImageList, pooling: str = "average") -> torch.Tensor:
    """Feature (N, D) of (N, D, H, W), "average" or "max" over the cells of each image."""
    parts = image_parts(feature, images)
    if pooling == "max":
        return torch.stack([part.amax(dim=(1, 2)) for part in parts])
    return torch.stack([part.mean(dim=(1, 2)) for part in parts])


class LabelPredictor(nn.Module):
    """C independent label scores for each box.

    Source: slides, "2 Label predictors ... trained by using the binary cross-entropy loss". The
    printed formula lacks its leading minus, and its σ is the sigmoid.
    """

    @configurable
    def __init__(
        self,
        input_dim: int,
        *,
        num_classes: int,
        norm: str = "",
        prior_prob: float = 0.01,
        loss_weight: float = 1.0,
    ):
        """
        Args:
            input_dim: D, length of a box's feature vector.
            num_classes: C.
            norm: "LN" for a layer normalisation of the features, which lets features of any scale
                learn at one rate; "" for none.
            prior_prob: score of every label before training, in (0, 1).
            loss_weight: weight of the loss.
        """
        super().__init__()
        self.num_classes = num_classes
        self.norm = label_norm(input_dim, norm)
        self.loss_weight = loss_weight
        self.label_score = label_layer(input_dim, num_classes, prior_prob)

    @classmethod
    def from_config(cls, cfg, input_dim):
        return {
            "input_dim": input_dim,
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "norm": cfg.MODEL.SCNET.LABEL.NORM,
            "prior_prob": cfg.MODEL.SCNET.LABEL.PRIOR_PROB,
            "loss_weight": cfg.MODEL.SCNET.LABEL.LOSS_WEIGHT,
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map box features (R, D) to label logits (R, C)."""
        return self.label_score(self.norm(x))

    def loss(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        loss_mask: torch.Tensor,
        num_boxes: float,
    ) -> torch.Tensor:
        """Binary cross-entropy, summed over classes and averaged over boxes.

        Args:
            logits: (R, C) label logits.
            targets: (R, C) multi-hot targets.
            loss_mask: (R, C) bool; False leaves an entry out (labels ignored in the box's image).
            num_boxes: what the sum over boxes is divided by: R in a single process.

        Returns:
            Scalar loss; 0 where there is no box.
        """
        loss = F.binary_cross_entropy_with_logits(
            logits.float(), targets, weight=loss_mask.float(), reduction="sum"
        )
        return loss * (self.loss_weight / num_boxes)


def check_feature(key: str, name: str, input_shape: dict[str, ShapeSpec]) -> None:
    """Refuse a config key that names a feature map which the backbone does not give."""
    if name not in input_shape:
        raise ValueError(
            f"{key} is '{name}', the backbone has {list(input_shape)} (an FPN's: see "
            "MODEL.FPN.STAGES)"
        )


def check_pooling(key: str, pooling: str) -> None:
    """Refuse a config key that names no pooling."""
    if pooling not in ("average", "max"):
        raise ValueError(f"{key} is '{pooling}'; choose average or max")
