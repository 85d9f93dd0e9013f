"""SCNetROIHeads: the branches of SCNet as RoI heads of any Detectron2 R-CNN."""

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

from .branches import BranchHead, Patches, Predictions, build_branches
from .context_boxes import ContextLinkedBoxes, expand_boxes
from .fusion import ScoreFusion


class _BoxPredictions(NamedTuple):
    """Of the R proposals of N images."""

    branches: dict[str, Predictions]
    patches: Patches  # with the context boxes that were chosen, where they are
    context_ratios: torch.Tensor | None  # (R,) where they are chosen
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
        branches: list[BranchHead],
        fusion: ScoreFusion,
        expansion_ratio: float,
        score_thresh: float,
        nms_thresh: float,
        detections_per_image: int,
        **kwargs,
    ):
        """
        Args:
            branches: any number of them; the modules are called `<name>_head`.
            fusion: of the label logits of the branches.
            expansion_ratio: side of a context box / side of its tight box.
            score_thresh: least label score of a detection.
            nms_thresh: IoU above which a detection suppresses weaker ones of the same class.
            detections_per_image: most detections of an image.
            kwargs: of Detectron2's `ROIHeads`, which samples the boxes; `num_classes` is C.
        """
        super().__init__(**kwargs)
        if not branches:
            raise ValueError(
                "MODEL.SCNET.OBJECT.ENABLED, CONTEXT.ENABLED and RELATION.ENABLED are all False: "
                "no branch is left to predict labels; enable at least one"
            )
        if not 1 <= expansion_ratio < math.inf:
            raise ValueError(
                f"MODEL.SCNET.CONTEXT.EXPANSION_RATIO is {expansion_ratio}; it must be >= 1"
            )
        self._branch_names = tuple(head.name for head in branches)
        for head in branches:
            self.add_module(f"{head.name}_head", head)
        self.fusion = fusion
        self.expansion_ratio = expansion_ratio
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_image = detections_per_image

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        branches = build_branches(cfg, input_shape)
        return super().from_config(cfg) | {
            "branches": branches,
            "fusion": ScoreFusion(cfg, [head.name for head in branches]),
            "expansion_ratio": cfg.MODEL.SCNET.CONTEXT.EXPANSION_RATIO,
            "score_thresh": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "nms_thresh": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    @property
    def branches(self) -> dict[str, BranchHead]:
        """The heads of the branches that are switched on, by name."""
        return {name: getattr(self, f"{name}_head") for name in self._branch_names}

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
        num_boxes = mean_over_processes(len(mask), mask.device)
        losses = {}
        for name, head in self.branches.items():
            losses |= head.losses(
                predictions.branches[name], predictions.patches, proposals, targets, mask, num_boxes
            )
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
            `context_boxes` (K), and `context_ratios` (K,) where the boxes choose them.
        """
        predictions = self._predict(images, features, proposals)
        boxes = [p.proposal_boxes for p in proposals]
        for name, head in self.branches.items():
            boxes = head.refine(predictions.branches[name], boxes)
        scored = [
            Instances(size, pred_boxes=b, label_scores=s, context_boxes=c)
            for size, b, s, c in zip(
                images.image_sizes, boxes, predictions.scores, predictions.patches.context
            )
        ]
        if predictions.context_ratios is not None:
            ratios = predictions.context_ratios.split([len(b) for b in boxes])
            for instances, chosen in zip(scored, ratios):
                instances.context_ratios = chosen
        return scored

    def _predict(
        self, images: ImageList, features: dict[str, torch.Tensor], proposals: list[Instances]
    ) -> _BoxPredictions:
        """What the branches say of the proposals, R in all."""
        tight, sizes = [p.proposal_boxes for p in proposals], images.image_sizes
        objectness = cat([p.objectness_logits for p in proposals])  # (R,)
        patches = Patches(tight, self.expand(tight, sizes), objectness, sizes)
        branches = {name: head(features, patches) for name, head in self.branches.items()}
        patch_logits = _predicted(branches, "patch_logits")
        ratios = _predicted(branches, "context_ratios")
        if ratios is not None:
            patches = patches._replace(context=self.expand(tight, sizes, ratios.detach()))
        scores = self.fusion(
            {name: p.label_logits for name, p in branches.items()},
            objectness if patch_logits is None else patch_logits,
        )  # (R, C)
        return _BoxPredictions(branches, patches, ratios, scores.split([len(b) for b in tight]))

    def detect(self, scored: list[Instances]) -> list[Instances]:
        """Detections: boxes with a label above the threshold, after NMS within each class.

        Args:
            scored: of `score_boxes`.

        Returns:
            For each image Detectron2's `pred_boxes`, `scores` and `pred_classes`, with
            `label_scores` (K, C) and `context_boxes` (K), and `context_ratios` (K,) where the boxes
            choose them, in network coordinates.
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
        if scored.has("context_ratios"):
            detections.context_ratios = scored.context_ratios[kept]
        detections.pred_boxes = ContextLinkedBoxes(
            detections.pred_boxes.tensor, detections.context_boxes
        )
        return detections

    def expand(
        self,
        tight: list[Boxes],
        image_sizes: list[tuple[int, int]],
        ratios: torch.Tensor | None = None,
    ) -> list[Boxes]:
        """Patch generator 2: the context boxes of the tight boxes of each image.

        `ratios` (R,) of the R boxes of all images stand in the place of `expansion_ratio`.
        """
        if ratios is None:
            each = [self.expansion_ratio] * len(image_sizes)
        else:
            each = ratios.split([len(b) for b in tight])
        return [
            Boxes(expand_boxes(b.tensor, size, r)) for b, size, r in zip(tight, image_sizes, each)
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


def _predicted(branches: dict[str, Predictions], field: str) -> torch.Tensor | None:
    """What the branch that predicts it says, or None."""
    return next((x for p in branches.values() if (x := getattr(p, field)) is not None), None)


def mean_over_processes(count: int, device: torch.device) -> float:
    """A number of boxes or images of a process, averaged over the processes; at least 1 in all.

    Divided by it, the mean of the processes' losses is the loss of one process with the whole
    batch.
    """
    world_size = comm.get_world_size()
    if world_size == 1:
        return max(count, 1)
    total = torch.tensor(float(count), device=device)
    dist.all_reduce(total)
    return max(total.item(), 1) / world_size
