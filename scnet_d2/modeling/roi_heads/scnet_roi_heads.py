"""SCNetROIHeads: the two branches of SCNet as RoI heads of any Detectron2 R-CNN."""

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, ROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from .branches import ContextHead, ObjectHead, ObjectPredictions
from .context_boxes import (
    ContextLinkedBoxes,
    context_label_targets,
    expand_boxes,
    object_label_targets,
)
from .fusion import ScoreFusion


class _Predictions(NamedTuple):
    """Of the R proposals of N images; None where a branch is switched off."""

    object: ObjectPredictions | None
    context_logits: torch.Tensor | None  # (R, C)
    context_boxes: list[Boxes]  # N
    scores: tuple[torch.Tensor, ...]  # N fused label scores (K, C)


@ROI_HEADS_REGISTRY.register()
class SCNetROIHeads(ROIHeads):
    """Label scores of tight boxes and of their context boxes, fused.

    In a `GeneralizedRCNN` they give a detector whose `instances` carry `label_scores` and
    `context_boxes` beside Detectron2's own fields; `SCNet` adds the labels of the image.

    Source: slides, "4 Patch Processors"; what they leave open is decided in docs/method.md.
    """

    @configurable
    def __init__(
        self,
        *,
        object_head: ObjectHead | None,
        context_head: ContextHead | None,
        fusion: ScoreFusion,
        expansion_ratio: float,
        label_iou: float,
        label_coverage: float,
        score_thresh: float,
        nms_thresh: float,
        detections_per_image: int,
        **kwargs,
    ):
        """
        Args:
            object_head: object branch, or None to switch it off.
            context_head: context branch, or None to switch it off.
            fusion: of the label logits of both branches.
            expansion_ratio: side of a context box / side of its tight box.
            label_iou: least IoU of a tight box with an object whose label it carries.
            label_coverage: least IoA of an object, the share of its area inside a context box, for
                the context box to carry its label.
            score_thresh: least label score of a detection.
            nms_thresh: IoU above which a detection suppresses weaker ones of the same class.
            detections_per_image: most detections of an image.
            kwargs: of Detectron2's `ROIHeads`, which samples the boxes; `num_classes` is C.
        """
        super().__init__(**kwargs)
        if object_head is None and context_head is None:
            raise ValueError(
                "MODEL.SCNET.OBJECT.ENABLED and MODEL.SCNET.CONTEXT.ENABLED are both False: "
                "no branch is left to predict labels; enable at least one"
            )
        _check_ranges(expansion_ratio, label_iou, label_coverage)
        self.object_head = object_head
        self.context_head = context_head
        self.fusion = fusion
        self.expansion_ratio = expansion_ratio
        self.label_iou = label_iou
        self.label_coverage = label_coverage
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_image = detections_per_image

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        scnet = cfg.MODEL.SCNET
        return super().from_config(cfg) | {
            "object_head": ObjectHead(cfg, input_shape) if scnet.OBJECT.ENABLED else None,
            "context_head": ContextHead(cfg, input_shape) if scnet.CONTEXT.ENABLED else None,
            "fusion": ScoreFusion(cfg),
            "expansion_ratio": scnet.CONTEXT.EXPANSION_RATIO,
            "label_iou": scnet.OBJECT.LABEL_IOU,
            "label_coverage": scnet.CONTEXT.LABEL_COVERAGE,
            "score_thresh": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "nms_thresh": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
        loss_mask: torch.Tensor | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """Sampled proposals and losses in training, detections in inference.

        Args:
            images: of N images.
            features: feature maps by name.
            proposals: for each image, with `proposal_boxes` and `objectness_logits`.
            targets: ground truth of each image, `gt_boxes` and `gt_classes`, in training.
            loss_mask: (N, C) bool, False where a label is left out of the label losses of an
                image; by default all count.

        Returns:
            In training the sampled proposals, with `label_scores` (K, C), and the losses. In
            inference the detections, see `detect`, and no losses.
        """
        if not self.training:
            return self.detect(self.score_boxes(images, features, proposals)), {}

        proposals = self.label_and_sample_proposals(proposals, targets)
        predictions = self._predict(images, features, proposals)
        mask = self._box_loss_mask(loss_mask, proposals)  # (R, C)
        num_boxes = _mean_num_boxes(mask)
        losses = {}
        if self.object_head is not None:
            losses |= self._object_losses(predictions, proposals, targets, mask, num_boxes)
        if self.context_head is not None:
            losses |= self._context_losses(predictions, targets, mask, num_boxes)
        for p, s in zip(proposals, predictions.scores):
            p.label_scores = s
        return proposals, losses

    def forward_with_given_boxes(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """The instances as they are: there is nothing else to predict for a known detection."""
        return instances

    def score_boxes(
        self, images: ImageList, features: dict[str, torch.Tensor], proposals: list[Instances]
    ) -> list[Instances]:
        """Label scores of all proposals, before detections are selected.

        Returns:
            For each image, in network coordinates: `pred_boxes` (K), refined where there is an
            object branch and not yet clipped to the image; `label_scores` (K, C), fused, in [0, 1];
            `context_boxes` (K).
        """
        predictions = self._predict(images, features, proposals)
        boxes = [p.proposal_boxes for p in proposals]
        if self.object_head is not None:
            boxes = self.object_head.refine(predictions.object.deltas, boxes)
        return [
            Instances(size, pred_boxes=b, label_scores=s, context_boxes=c)
            for size, b, s, c in zip(
                images.image_sizes, boxes, predictions.scores, predictions.context_boxes
            )
        ]

    def _predict(
        self, images: ImageList, features: dict[str, torch.Tensor], proposals: list[Instances]
    ) -> _Predictions:
        """What both branches say of the proposals, R in all."""
        tight = [p.proposal_boxes for p in proposals]
        context = self.expand(tight, images.image_sizes)
        patch_logits = cat([p.objectness_logits for p in proposals])  # (R,)
        object_predictions = object_logits = context_logits = None
        if self.object_head is not None:
            object_predictions = self.object_head(features, tight)
            _, patch_logits, object_logits = object_predictions
        if self.context_head is not None:
            context_logits = self.context_head(features, context)
        scores = self.fusion(object_logits, context_logits, patch_logits)  # (R, C)
        scores = scores.split([len(b) for b in tight])
        return _Predictions(object_predictions, context_logits, context, scores)

    def detect(self, scored: list[Instances]) -> list[Instances]:
        """Detections: boxes with a label above the threshold, after NMS within each class.

        Args:
            scored: of `score_boxes`.

        Returns:
            For each image Detectron2's `pred_boxes`, `scores` and `pred_classes`, with
            `label_scores` (K, C) and `context_boxes` (K), in network coordinates.
        """
        return [self._detect(s) for s in scored]

    def _detect(self, scored: Instances) -> Instances:
        # fast_rcnn_inference drops boxes that are not finite, and its indices count without them.
        finite = scored.pred_boxes.tensor.isfinite().all(dim=1)
        scored = scored[finite & scored.label_scores.isfinite().all(dim=1)]
        scores = scored.label_scores  # (K, C)
        (detections,), (kept,) = fast_rcnn_inference(
            [scored.pred_boxes.tensor],
            [torch.cat([scores, scores.new_zeros(len(scores), 1)], dim=1)],  # background comes last
            [scored.image_size],
            self.score_thresh,
            self.nms_thresh,
            self.detections_per_image,
        )
        detections.label_scores = scores[kept]
        detections.context_boxes = scored.context_boxes[kept]
        detections.pred_boxes = ContextLinkedBoxes(
            detections.pred_boxes.tensor, detections.context_boxes
        )
        return detections

    def expand(self, tight: list[Boxes], image_sizes: list[tuple[int, int]]) -> list[Boxes]:
        """Patch generator 2: the context boxes of the tight boxes of each image."""
        return [
            Boxes(expand_boxes(b.tensor, size, self.expansion_ratio))
            for b, size in zip(tight, image_sizes)
        ]

    def _box_loss_mask(
        self, loss_mask: torch.Tensor | None, proposals: list[Instances]
    ) -> torch.Tensor:
        """The mask (N, C) of the images, repeated for each of their boxes: (R, C) bool."""
        repeats = torch.tensor([len(p) for p in proposals])
        device = proposals[0].objectness_logits.device
        if loss_mask is None:
            loss_mask = torch.ones(len(proposals), self.num_classes, dtype=torch.bool)
        return loss_mask.repeat_interleave(repeats.to(loss_mask.device), dim=0).to(device)

    def _object_losses(
        self,
        predictions: _Predictions,
        proposals: list[Instances],
        targets: list[Instances],
        loss_mask: torch.Tensor,  # (R, C)
        num_boxes: float,
    ) -> dict[str, torch.Tensor]:
        tight = [p.proposal_boxes for p in proposals]
        # Proposals of an image without ground truth carry no gt_boxes; none of them is foreground.
        gt_boxes = [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes) for p in proposals]
        classes = cat([p.gt_classes for p in proposals])
        labels = cat(
            [
                object_label_targets(b, t, self.num_classes, self.label_iou)
                for b, t in zip(tight, targets)
            ]
        )  # (R, C)
        _log_label_targets("object", labels, len(targets))
        return self.object_head.losses(
            predictions.object,
            boxes=Boxes.cat(tight).tensor,
            gt_boxes=Boxes.cat(gt_boxes).tensor,
            foreground=(classes >= 0) & (classes < self.num_classes),
            targets=labels,
            loss_mask=loss_mask,
            num_boxes=num_boxes,
        )

    def _context_losses(
        self,
        predictions: _Predictions,
        targets: list[Instances],
        loss_mask: torch.Tensor,  # (R, C)
        num_boxes: float,
    ) -> dict[str, torch.Tensor]:
        labels = cat(
            [
                context_label_targets(b, t, self.num_classes, self.label_coverage)
                for b, t in zip(predictions.context_boxes, targets)
            ]
        )  # (R, C)
        _log_label_targets("context", labels, len(targets))
        logits = predictions.context_logits
        return self.context_head.losses(logits, labels, loss_mask, num_boxes)


def _check_ranges(expansion_ratio: float, label_iou: float, label_coverage: float) -> None:
    """Raises: ValueError, naming the key."""
    for key, value, valid, wanted in (
        ("CONTEXT.EXPANSION_RATIO", expansion_ratio, 1 <= expansion_ratio < math.inf, ">= 1"),
        ("CONTEXT.LABEL_COVERAGE", label_coverage, 0 < label_coverage <= 1, "in (0, 1]"),
        ("OBJECT.LABEL_IOU", label_iou, 0 < label_iou <= 1, "in (0, 1]"),
    ):
        if not valid:
            raise ValueError(f"MODEL.SCNET.{key} is {value}; it must be {wanted}")


def _log_label_targets(branch: str, labels: torch.Tensor, num_images: int) -> None:
    """Log how many boxes of an image carry a label, and how many labels a box, of (R, C)."""
    # one transfer: each makes a GPU wait
    positives, present = torch.stack([labels.amax(dim=1).sum(), labels.sum()]).tolist()
    storage = get_event_storage()
    storage.put_scalar(f"{branch}_head/positives_per_image", positives / num_images)
    storage.put_scalar(f"{branch}_head/labels_per_box", present / max(len(labels), 1))


def _mean_num_boxes(boxes: torch.Tensor) -> float:
    """Sampled boxes (R, ...) of a process, averaged over the processes; at least 1 in all.

    With it the mean of the processes' losses is the loss of one process with the whole batch.
    """
    world_size = comm.get_world_size()
    if world_size == 1:
        return max(len(boxes), 1)
    total = torch.tensor(float(len(boxes)), device=boxes.device)
    dist.all_reduce(total)
    return max(total.item(), 1) / world_size
