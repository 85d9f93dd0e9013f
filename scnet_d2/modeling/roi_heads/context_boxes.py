"""Patch generator 2: context boxes, which labels a box carries, and which box a label."""

import torch
from detectron2.structures import Boxes, Instances, pairwise_ioa, pairwise_iou
from torch.nn import functional as F


def expand_boxes(
    boxes: torch.Tensor, image_size: tuple[int, int], ratio: float | torch.Tensor
) -> torch.Tensor:
    """Expand boxes about their centres and clip them to the image.

    Source: slides, "expanded image patches containing both the object and additional contextual
    information"; the ratio is our own decision, see docs/method.md.

    Args:
        boxes: (K, 4) boxes in XYXY, absolute pixels.
        image_size: (height, width) of the image in pixels.
        ratio: side of the expanded box / side of the box, at least 1; or (K,), one for each.

    Returns:
        (K, 4) boxes in XYXY with the same centres and sides × ratio, clipped to the image. Each
        contains its input box clipped to the image.

    Raises:
        ValueError: if `boxes` is not (K, 4) or `ratio` is below 1.

    Example:
        >>> expand_boxes(torch.tensor([[10.0, 20, 30, 40]]), image_size=(45, 100), ratio=2)
        tensor([[ 0., 10., 40., 45.]])
    """
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"expand_boxes takes boxes of shape (K, 4), got {tuple(boxes.shape)}")
    if isinstance(ratio, torch.Tensor):
        ratio = ratio[:, None]  # (K, 1)
    if not torch.as_tensor(ratio >= 1).all():
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

    Example:
        >>> targets = Instances((100, 100), gt_boxes=Boxes([[0, 0, 10, 10]]))
        >>> targets.gt_classes = torch.tensor([1])
        >>> boxes = Boxes([[0, 0, 10, 8], [50, 50, 60, 60]])
        >>> object_label_targets(boxes, targets, num_classes=3, iou_threshold=0.5)
        tensor([[0., 1., 0.],
                [0., 0., 0.]])
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
        coverage: least IoA, the share of a ground-truth box's area inside the context box, in
            (0, 1].

    Returns:
        (K, C) float32 multi-hot targets.

    Example:
        >>> targets = Instances((100, 100), gt_boxes=Boxes([[0, 0, 10, 10]]))
        >>> targets.gt_classes = torch.tensor([1])
        >>> boxes = Boxes([[0, 0, 5, 10], [0, 0, 4, 10]])  # half of the object, and less
        >>> context_label_targets(boxes, targets, num_classes=3, coverage=0.5)
        tensor([[0., 1., 0.],
                [0., 0., 0.]])
    """
    # IoA: intersection / area of the ground-truth box
    inside = pairwise_ioa(context_boxes, targets.gt_boxes) >= coverage  # (K, G)
    return _multi_hot(inside.T, targets, num_classes)


def _multi_hot(matches: torch.Tensor, targets: Instances, num_classes: int) -> torch.Tensor:
    """Classes of the ground-truth boxes that match: (G, K) bool -> (K, C) float32."""
    # index_add_ counts in float32, where a matrix product would follow autocast to half precision
    counts = torch.zeros(num_classes, matches.shape[1], device=matches.device)  # (C, K)
    return counts.index_add_(0, targets.gt_classes, matches.float()).clamp_(max=1).T


def best_boxes(scored: Instances) -> tuple[torch.Tensor, torch.Tensor]:
    """For each label the box with its highest score, and that box's context box.

    Args:
        scored: `pred_boxes` (K), `label_scores` (K, C) and `context_boxes` (K) of one image.

    Returns:
        Two (C, 4) tensors, XYXY; nan where there is no finite box with a finite score.
    """
    best = _best_rows(scored)
    tight, context = scored.pred_boxes.tensor, scored.context_boxes.tensor
    return _rows(tight, best), _rows(context, best)


def best_ratios(scored: Instances) -> torch.Tensor:
    """Ratio (C,) of the context boxes of `best_boxes`, of `scored` with `context_ratios` (K,)."""
    return _rows(scored.context_ratios[:, None], _best_rows(scored))[:, 0]


def _best_rows(scored: Instances) -> torch.Tensor:
    """Of each label the row (C,) of its box; K, one beyond the last, where it has none."""
    scores, boxes = scored.label_scores, scored.pred_boxes.tensor
    usable = boxes.isfinite().all(dim=1, keepdim=True) & scores.isfinite()  # (K, C)
    # a last row below all scores and above what cannot be used
    return F.pad(scores.where(usable, -1), (0, 0, 0, 1), value=-0.5).argmax(dim=0)


def _rows(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows (C,) of values (K, D), and nan for row K: (C, D)."""
    return F.pad(values, (0, 0, 0, 1), value=float("nan"))[rows]


def scale_boxes(
    boxes: torch.Tensor, size: tuple[int, int], new_size: tuple[int, int]
) -> torch.Tensor:
    """Boxes (C, 4) XYXY of an image of `size` (height, width) in the same image of `new_size`.

    They are clipped to it; nan, which `Boxes` refuses, stays.

    Example:
        >>> scale_boxes(torch.tensor([[10.0, 20, 30, 40]]), size=(50, 100), new_size=(100, 200))
        tensor([[20., 40., 60., 80.]])
    """
    (height, width), (new_height, new_width) = size, new_size
    x = (boxes[:, 0::2] * (new_width / width)).clamp(min=0, max=new_width)  # (C, 2)
    y = (boxes[:, 1::2] * (new_height / height)).clamp(min=0, max=new_height)
    return torch.stack([x, y], dim=2).flatten(1)  # (C, 2, 2) -> (C, 4)


class ContextLinkedBoxes(Boxes):
    """Detected boxes that take their context boxes along when they are scaled and clipped.

    Detectron2's post-processing brings `pred_boxes` alone to the original image. What is indexed
    or moved to another device is an ordinary `Boxes` again.
    """

    def __init__(self, tensor: torch.Tensor, context_boxes: Boxes):
        """
        Args:
            tensor: (K, 4) detected boxes.
            context_boxes: K boxes, changed in place.
        """
        super().__init__(tensor)
        self.context_boxes = context_boxes

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Scale the boxes and their context boxes in place."""
        super().scale(scale_x, scale_y)
        self.context_boxes.scale(scale_x, scale_y)

    def clip(self, box_size: tuple[int, int]) -> None:
        """Clip the boxes and their context boxes to an image of (height, width) in place."""
        super().clip(box_size)
        self.context_boxes.clip(box_size)
