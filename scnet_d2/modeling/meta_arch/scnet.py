"""SCNet, the spatial-context-aware network, as a Detectron2 meta-architecture."""

import math

import torch
import torch.distributed as dist
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_proposal_generator
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.roi_heads import ROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn import functional as F

from ..aggregation import LabelAggregator
from ..label_predictor import image_label_targets
from ..roi_heads.branches import ContextHead, ObjectHead
from ..roi_heads.context_boxes import context_label_targets, expand_boxes, object_label_targets

__all__ = ["SCNet"]


@META_ARCH_REGISTRY.register()
class SCNet(nn.Module):
    """Multi-label image classification from tight boxes and their surroundings.

    Source: slides of "Spatial-context-aware deep neural network for multi-label image
    classification"; what they leave open is decided in docs/method.md.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module,
        proposal_sampler: ROIHeads,
        object_head: ObjectHead | None,
        context_head: ContextHead | None,
        aggregator: LabelAggregator,
        expansion_ratio: float,
        label_iou: float,
        label_coverage: float,
        image_loss_weight: float = 0.0,
        image_scores_only: bool = False,
        score_thresh: float,
        nms_thresh: float,
        detections_per_image: int,
        pixel_mean: list[float],
        pixel_std: list[float],
    ):
        """
        Args:
            backbone: feature extractor, gives a dict of feature maps.
            proposal_generator: RPN, patch generator 1.
            proposal_sampler: samples proposals for training; its `num_classes` is C.
            object_head: object branch, or None to switch it off.
            context_head: context branch, or None to switch it off.
            aggregator: fuses the branches and aggregates over boxes.
            expansion_ratio: side of a context box / side of its tight box.
            label_iou: least IoU of a tight box with an object whose label it carries.
            label_coverage: least share of an object inside a context box that carries its label.
            image_loss_weight: weight of `loss_image_label`, on the scores of the image; 0: none.
            image_scores_only: leave `instances`, and the work for them, out of predictions.
            score_thresh: least label score of a detection.
            nms_thresh: IoU above which a detection suppresses weaker ones of the same class.
            detections_per_image: most detections of an image.
            pixel_mean: mean of each channel, subtracted from images.
            pixel_std: standard deviation of each channel, divides images.
        """
        super().__init__()
        if object_head is None and context_head is None:
            raise ValueError(
                "MODEL.SCNET.OBJECT.ENABLED and MODEL.SCNET.CONTEXT.ENABLED are both False: "
                "no branch is left to predict labels; enable at least one"
            )
        for key, value, valid, wanted in (
            ("CONTEXT.EXPANSION_RATIO", expansion_ratio, 1 <= expansion_ratio < math.inf, ">= 1"),
            ("CONTEXT.LABEL_COVERAGE", label_coverage, 0 < label_coverage <= 1, "in (0, 1]"),
            ("OBJECT.LABEL_IOU", label_iou, 0 < label_iou <= 1, "in (0, 1]"),
        ):
            if not valid:
                raise ValueError(f"MODEL.SCNET.{key} is {value}; it must be {wanted}")
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.proposal_sampler = proposal_sampler
        self.object_head = object_head
        self.context_head = context_head
        self.aggregator = aggregator
        self.num_classes = proposal_sampler.num_classes
        self.expansion_ratio = expansion_ratio
        self.label_iou = label_iou
        self.label_coverage = label_coverage
        self.image_loss_weight = image_loss_weight
        self.image_scores_only = image_scores_only
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_image = detections_per_image
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg):
        backbone = build_backbone(cfg)
        shape = backbone.output_shape()
        scnet = cfg.MODEL.SCNET
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, shape),
            "proposal_sampler": ROIHeads(cfg),
            "object_head": ObjectHead(cfg, shape) if scnet.OBJECT.ENABLED else None,
            "context_head": ContextHead(cfg, shape) if scnet.CONTEXT.ENABLED else None,
            "aggregator": LabelAggregator(cfg),
            "expansion_ratio": scnet.CONTEXT.EXPANSION_RATIO,
            "label_iou": scnet.OBJECT.LABEL_IOU,
            "label_coverage": scnet.CONTEXT.LABEL_COVERAGE,
            "image_loss_weight": scnet.AGGREGATION.LOSS_WEIGHT,
            "image_scores_only": scnet.IMAGE_SCORES_ONLY,
            "score_thresh": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "nms_thresh": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        """Where the model lives and its inputs are moved."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """Losses in training, predictions in inference.

        Args:
            batched_inputs: for each image what Detectron2's `DatasetMapper` gives: `image`
                (3, H, W); `height` and `width` of the original image; in training `instances`
                with `gt_boxes` and `gt_classes`, and optionally `ignored_labels`, the class ids
                left out of this image's label losses.

        Returns:
            In training a dict of scalar losses. In inference a dict for each image, in original
            coordinates: `image_scores` (C,) float32 in [0, 1], and `instances` with `pred_boxes`,
            `scores`, `pred_classes`, `label_scores` (K, C) and `context_boxes`. With
            `image_scores_only` there are no `instances`.
        """
        if not self.training:
            return self.inference(batched_inputs)

        images = self.preprocess_image(batched_inputs)
        targets = self._targets(batched_inputs)
        features = self.backbone(images.tensor)
        proposals, losses = self.proposal_generator(images, features, targets)
        proposals = self.proposal_sampler.label_and_sample_proposals(proposals, targets)
        tight = [p.proposal_boxes for p in proposals]
        counted = self._counted_labels(batched_inputs, tight)  # (R, C)
        num_boxes = _mean_num_boxes(counted)
        object_logits = context_logits = None
        if self.object_head is not None:
            object_predictions = self.object_head(features, tight)
            object_logits = object_predictions.label_logits
            losses |= self._object_losses(
                object_predictions, proposals, targets, counted, num_boxes
            )
        if self.context_head is not None:
            context = self.expand(tight, images.image_sizes)
            context_logits = self.context_head(features, context)
            losses |= self._context_losses(context_logits, context, targets, counted, num_boxes)
        image_scores = self._image_scores(object_logits, context_logits, proposals)
        if self.image_loss_weight:
            losses["loss_image_label"] = self._image_loss(image_scores, batched_inputs)
        self._log_image_scores(image_scores.detach())
        return losses

    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Predictions for each image, in original coordinates; see `forward`."""
        images = self.preprocess_image(batched_inputs)
        boxes, scores, context = self.score_boxes(images)
        outputs = [{"image_scores": self.aggregator(s)} for s in scores]
        if self.image_scores_only:
            return outputs
        detections = self._detect(boxes, scores, context, images.image_sizes)
        return [
            output | {"instances": _to_original_size(d, x)}
            for output, d, x in zip(outputs, detections, batched_inputs)
        ]

    def score_boxes(
        self, images: ImageList
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[Boxes]]:
        """Label scores of all boxes that the RPN keeps, in network coordinates.

        Returns:
            For each image the boxes (K, 4) XYXY, refined where there is an object branch, their
            fused label scores (K, C) in [0, 1], and their K context boxes.
        """
        features = self.backbone(images.tensor)
        proposals, _ = self.proposal_generator(images, features, None)
        tight = [p.proposal_boxes for p in proposals]
        context = self.expand(tight, images.image_sizes)
        boxes = [b.tensor for b in tight]
        patch_logits = cat([p.objectness_logits for p in proposals])
        object_logits = context_logits = None
        if self.object_head is not None:
            deltas, patch_logits, object_logits = self.object_head(features, tight)
            boxes = self.object_head.refine(deltas, tight)
        if self.context_head is not None:
            context_logits = self.context_head(features, context)
        scores = self.aggregator.fuse(object_logits, context_logits, patch_logits.sigmoid())
        return boxes, list(scores.split([len(b) for b in tight])), context

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise the images, pad them to one size and batch them."""
        images = [x["image"].to(self.device) for x in batched_inputs]
        images = [(x - self.pixel_mean) / self.pixel_std for x in images]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def expand(self, tight: list[Boxes], image_sizes: list[tuple[int, int]]) -> list[Boxes]:
        """Patch generator 2: the context boxes of the tight boxes of each image."""
        return [
            Boxes(expand_boxes(b.tensor, size, self.expansion_ratio))
            for b, size in zip(tight, image_sizes)
        ]

    def _targets(self, batched_inputs: list[dict]) -> list[Instances]:
        for x in batched_inputs:
            if "instances" not in x:
                raise KeyError(
                    f"image {x.get('file_name', x.get('image_id'))} has no 'instances': SCNet is "
                    "trained on boxes; use a dataset mapper made with is_train=True"
                )
        return [x["instances"].to(self.device) for x in batched_inputs]

    def _counted_labels(self, batched_inputs: list[dict], boxes: list[Boxes]) -> torch.Tensor:
        """(R, C) bool, False where a label is ignored in the image of a box."""
        counted = torch.ones(len(boxes), self.num_classes, dtype=torch.bool)
        for row, x in zip(counted, batched_inputs):
            row[list(x.get("ignored_labels", ()))] = False
        repeats = torch.tensor([len(b) for b in boxes])
        return counted.repeat_interleave(repeats, dim=0).to(self.device)

    def _object_losses(
        self, predictions, proposals, targets, counted, num_boxes
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
        )
        self._log_label_targets("object", labels, len(targets))
        return self.object_head.losses(
            predictions,
            boxes=Boxes.cat(tight).tensor,
            gt_boxes=Boxes.cat(gt_boxes).tensor,
            foreground=(classes >= 0) & (classes < self.num_classes),
            targets=labels,
            counted=counted,
            num_boxes=num_boxes,
        )

    def _context_losses(
        self, logits, context, targets, counted, num_boxes
    ) -> dict[str, torch.Tensor]:
        labels = cat(
            [
                context_label_targets(b, t, self.num_classes, self.label_coverage)
                for b, t in zip(context, targets)
            ]
        )
        self._log_label_targets("context", labels, len(targets))
        return self.context_head.losses(logits, labels, counted, num_boxes)

    def _detect(self, boxes, scores, context, image_sizes) -> list[Instances]:
        """Detections above the threshold after NMS within each class, in network coordinates."""
        # fast_rcnn_inference expects a last column for the background and drops it.
        padded = [torch.cat([s, s.new_zeros(len(s), 1)], dim=1) for s in scores]
        detections, kept = fast_rcnn_inference(
            boxes,
            padded,
            image_sizes,
            self.score_thresh,
            self.nms_thresh,
            self.detections_per_image,
        )
        for d, k, s, c in zip(detections, kept, scores, context):
            d.label_scores = s[k]
            d.context_boxes = c[k]
        return detections

    @staticmethod
    def _log_label_targets(branch: str, labels: torch.Tensor, num_images: int) -> None:
        # one transfer: each makes a GPU wait
        positives, present = torch.stack([labels.amax(dim=1).sum(), labels.sum()]).tolist()
        storage = get_event_storage()
        storage.put_scalar(f"{branch}_head/positives_per_image", positives / num_images)
        storage.put_scalar(f"{branch}_head/labels_per_box", present / max(len(labels), 1))

    def _image_scores(self, object_logits, context_logits, proposals) -> torch.Tensor:
        """(N, C) scores of the images from their sampled proposals."""
        patch_confidence = cat([p.objectness_logits for p in proposals]).sigmoid()
        scores = self.aggregator.fuse(object_logits, context_logits, patch_confidence)
        return torch.stack([self.aggregator(s) for s in scores.split([len(p) for p in proposals])])

    def _image_loss(self, scores: torch.Tensor, batched_inputs: list[dict]) -> torch.Tensor:
        """Binary cross-entropy, summed over classes and averaged over images."""
        targets, counted = image_label_targets(batched_inputs, scores)
        with torch.autocast(scores.device.type, enabled=False):  # it refuses half precision
            loss = F.binary_cross_entropy(scores, targets, weight=counted, reduction="sum")
        return loss * (self.image_loss_weight / len(scores))

    @staticmethod
    def _log_image_scores(images: torch.Tensor) -> None:
        labels = (images >= 0.5).sum(dim=1).float()
        means = torch.stack([images.mean(), images.amax(dim=1).mean(), labels.mean()]).tolist()
        names = ("image_scores/mean", "image_scores/max", "image_scores/labels")
        get_event_storage().put_scalars(**dict(zip(names, means)))


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


def _to_original_size(detections: Instances, inputs: dict) -> Instances:
    """Scale detections from network to original coordinates, context boxes included."""
    height, width = detections.image_size
    out_height, out_width = inputs.get("height", height), inputs.get("width", width)
    results = detector_postprocess(detections, out_height, out_width)
    results.context_boxes.scale(out_width / width, out_height / height)
    results.context_boxes.clip(results.image_size)
    return results
