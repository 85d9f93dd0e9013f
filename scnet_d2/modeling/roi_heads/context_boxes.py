"""Patch generator 2: context boxes, and which labels a box carries."""

import torch
from detectron2.structures import Boxes, Instances, pairwise_ioa, pairwise_iou


def expand_boxes(boxes: torch.Tensor, image_size: tuple[int, int], ratio: float) -> torch.Tensor:
    """Expand boxes about their centres and clip them to the image.

    Source: slides, "expanded image patches containing both the object and additional contextual
    information"; the ratio is our own decision, see docs/method.md.

    Args:
        boxes: (K, 4) boxes in XYXY, absolute pixels.
        image_size: (height, width) of the image in pixels.
        ratio: side of the expanded box / side of the box, at least 1.

    Returns:
        (K, 4) boxes in XYXY with the same centres and sides × ratio, clipped to the image. Each
        contains its input box clipped to the image.

    Raises:
        ValueError: if `boxes` is not (K, 4) or `ratio` is below 1.
    """
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"expand_boxes takes boxes of shape (K, 4), got {tuple(boxes.shape)}")
    if not ratio >= 1:
        raise ValueError(f"expansion ratio must be at least 1, got {ratio}")
    margin = (boxes[:, 2:] - boxes[:, :2]) * ((ratio - 1) / 2)  # (K, 2)
    expanded = Boxes(torch.cat([boxes[:, :2] - margin, boxes[:, 2:] + margin], dim=1))
    expanded.clip(image_size)
    return expanded.tensor  # (K, 4)


def object_label_targets(
    boxes: Boxes, targets: Instances, num_classes: int, iou_threshold: float
) -> torch.Tensor:
    """Labels of tight boxes: the classes of the ground-truth boxes with enough IoU.

    Args:
        boxes: K tight boxes of one image.
        targets: ground truth of that image with `gt_boxes` (G) and `gt_classes` (G,).
        num_classes: C.
        iou_threshold: least intersection over union, in (0, 1].

    Returns:
        (K, C) float32 multi-hot targets; a background box is all zero.
    """
    return _multi_hot(pairwise_iou(targets.gt_boxes, boxes) >= iou_threshold, targets, num_classes)


def context_label_targets(
    context_boxes: Boxes, targets: Instances, num_classes: int, coverage: float
) -> torch.Tensor:
    """Labels of context boxes: the classes of the ground-truth boxes that lie inside far enough.

    Args:
        context_boxes: K context boxes of one image.
        targets: ground truth of that image with `gt_boxes` (G) and `gt_classes` (G,).
        num_classes: C.
        coverage: least share of a ground-truth box's area inside the context box, in (0, 1].

    Returns:
        (K, C) float32 multi-hot targets.
    """
    # (K, G) intersection / area of the ground-truth box
    inside = pairwise_ioa(context_boxes, targets.gt_boxes) >= coverage
    return _multi_hot(inside.T, targets, num_classes)


def _multi_hot(matches: torch.Tensor, targets: Instances, num_classes: int) -> torch.Tensor:
    classes = torch.nn.functional.one_hot(targets.gt_classes, num_classes)  # (G, C)
    return (matches.T.float() @ classes.float()).clamp(max=1)  # (G, K) -> (K, C)
