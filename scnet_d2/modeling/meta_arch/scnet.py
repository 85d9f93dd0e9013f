"""SCNet, the spatial-context-aware network, as a Detectron2 meta-architecture."""

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, GeneralizedRCNN
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch.nn import functional as F

from ..aggregation import LabelAggregator
from ..label_heads import ImageFeatures, LabelHead, build_label_head
from ..label_predictor import image_label_targets
from ..roi_heads import SCNetROIHeads
from ..roi_heads.context_boxes import best_boxes, best_ratios, scale_boxes
from ..roi_heads.scnet_roi_heads import mean_over_processes

__all__ = ["SCNet"]

LOGIT_EPS = 1e-4  # aggregated scores count as no nearer to 0 or 1 beside the image's own logit


@META_ARCH_REGISTRY.register()
class SCNet(GeneralizedRCNN):
    """Multi-label image classification from tight boxes and their surroundings.

    A `GeneralizedRCNN` whose RoI heads are `SCNetROIHeads`, and the labels of the image.

    Source: slides of "Spatial-context-aware deep neural network for multi-label image
    classification"; what they leave open is decided in docs/method.md.
    """

    @configurable
    def __init__(
        self,
        *,
        roi_heads: SCNetROIHeads,
        aggregator: LabelAggregator,
        image_predictor: LabelHead | None = None,
        image_predictor_weight: float = 0.5,
        image_loss_weight: float = 0.0,
        image_scores_only: bool = False,
        **kwargs,
    ):
        """
        Args:
            roi_heads: the branches.
            aggregator: aggregates label scores over boxes.
            image_predictor: label head of the image as a whole, which may see the boxes too; or
                None.
            image_predictor_weight: of its logit in the image's, in [0, 1]; that of the aggregated
                boxes has the rest.
            image_loss_weight: weight of `loss_image_label`, on the aggregated scores of the boxes
                of an image; 0: none.
            image_scores_only: leave `instances`, and the work for them, out of predictions.
            kwargs: of `GeneralizedRCNN`: `backbone`, `proposal_generator` (patch generator 1),
                `pixel_mean`, `pixel_std`, ...
        """
        super().__init__(roi_heads=roi_heads, **kwargs)
        if not 0 <= image_predictor_weight <= 1:
            raise ValueError(
                f"MODEL.SCNET.IMAGE.WEIGHT is {image_predictor_weight}; it must be in [0, 1]"
            )
        if image_predictor is not None and image_predictor.stages:
            raise ValueError(
                f"MODEL.SCNET.IMAGE.HEAD is '{type(image_predictor).__name__}', which changes the "
                "backbone; use it with MODEL.META_ARCHITECTURE ImageLabeler"
            )
        self.aggregator = aggregator
        self.image_predictor = image_predictor
        self.image_predictor_weight = image_predictor_weight
        self.image_loss_weight = image_loss_weight
        self.image_scores_only = image_scores_only

    @classmethod
    def from_config(cls, cfg):
        name = cfg.MODEL.ROI_HEADS.NAME
        if not issubclass(ROI_HEADS_REGISTRY.get(name), SCNetROIHeads):
            raise ValueError(
                f"MODEL.ROI_HEADS.NAME is '{name}': MODEL.META_ARCHITECTURE SCNet needs "
                "SCNetROIHeads, or a registered subclass"
            )
        parts = super().from_config(cfg)
        image_predictor = None
        if cfg.MODEL.SCNET.IMAGE.ENABLED:
            shapes = parts["backbone"].output_shape()
            image_predictor = build_label_head(cfg, shapes, "SCNET.IMAGE")
        return parts | {
            "aggregator": LabelAggregator(cfg),
            "image_predictor": image_predictor,
            "image_predictor_weight": cfg.MODEL.SCNET.IMAGE.WEIGHT,
            "image_loss_weight": cfg.MODEL.SCNET.AGGREGATION.LOSS_WEIGHT,
            "image_scores_only": cfg.MODEL.SCNET.IMAGE_SCORES_ONLY,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """Losses in training, predictions in inference.

        Args:
            batched_inputs: for each image what Detectron2's `DatasetMapper` gives: `image`
                (3, H, W); `height` and `width` of the original image; in training `instances`
                with `gt_boxes` and `gt_classes`, and optionally `image_labels` and
                `ignored_labels`, the class ids present in the image and left out of its losses.
                An image without `instances` has labels alone: these train the predictor of the
                whole image, and no other loss counts it.

        Returns:
            In training a dict of scalar losses. In inference a dict for each image, in original
            coordinates: `image_scores` (C,) float32 in [0, 1]; `label_boxes` and
            `label_context_boxes` (C, 4) XYXY, for each label the box with its highest fused score
            among all scored boxes, and that box's context box (nan where no box was scored); and
            `instances` with `pred_boxes`, `scores`, `pred_classes`, `label_scores` (K, C) and
            `context_boxes`. With `image_scores_only` there are no `instances`. Where boxes choose
            the expansion ratio of their context box, `instances` also have `context_ratios` (K,),
            and `label_context_ratios` (C,) are those of `label_context_boxes`.
        """
        if not self.training:
            return self.inference(batched_inputs)

        self._check_boxes(batched_inputs)
        boxed = [i for i, x in enumerate(batched_inputs) if _has_boxes(x)]
        num_boxed = self._mean_num_boxed(len(boxed))
        images = self.preprocess_image(batched_inputs)
        targets = self._targets(batched_inputs)
        features = self.backbone(images.tensor)
        proposals, losses = self._train_rpn(images, features, batched_inputs, targets, boxed)
        losses = {name: loss * (len(boxed) / num_boxed) for name, loss in losses.items()}
        loss_mask = self._loss_mask(batched_inputs)
        sampled, label_losses = self.roi_heads(images, features, proposals, targets, loss_mask)
        losses = losses | label_losses
        box_scores = torch.stack([self.aggregator(p.label_scores) for p in sampled])  # (N, C)
        if self.image_loss_weight:
            loss = self._image_loss(box_scores, batched_inputs, boxed)
            losses["loss_image_label"] = loss * (self.image_loss_weight / num_boxed)
        image_scores = box_scores
        if self.image_predictor is not None:
            seen = self._image_features(images, features, sampled, sampled)
            output = self.image_predictor(seen, *image_label_targets(batched_inputs, box_scores))
            for name, loss in output.losses.items():
                losses[f"loss_whole_{name.removeprefix('loss_')}"] = loss
            image_scores = self._fuse_image(
                box_scores, output.logits, [p.label_scores for p in sampled]
            )
        _log_image_scores(image_scores.detach())
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            drawn = [(x, p) for x, p in zip(batched_inputs, proposals) if _has_boxes(x)]
            if drawn:
                self.visualize_training(*zip(*drawn))
        return losses

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict] | list[Instances]:
        """Predictions for each image, see `forward`; other arguments as in `GeneralizedRCNN`."""
        if detected_instances is not None or not do_postprocess:
            return super().inference(batched_inputs, detected_instances, do_postprocess)
        images = self.preprocess_image(batched_inputs)
        image_scores, scored = self.label_images(images, batched_inputs)
        outputs = [
            {"image_scores": scores} | _label_boxes(s, x)
            for scores, s, x in zip(image_scores, scored, batched_inputs)
        ]
        if self.image_scores_only:
            return outputs
        detections = self.roi_heads.detect(scored)
        detections = self._postprocess(detections, batched_inputs, images.image_sizes)
        return [output | d for output, d in zip(outputs, detections)]

    def label_images(
        self, images: ImageList, batched_inputs: list[dict] | None = None
    ) -> tuple[torch.Tensor, list[Instances]]:
        """Label scores of images, and of all boxes that the RPN keeps in them.

        Args:
            images: N, of `preprocess_image`.
            batched_inputs: needed where there is no proposal generator, for their `proposals`.

        Returns:
            `(image_scores, scored)`: (N, C) float32 in [0, 1], and the boxes of each image, see
            `SCNetROIHeads.score_boxes`.
        """
        features = self.backbone(images.tensor)
        proposals, _ = self._propose(images, features, batched_inputs, None)
        scored = self.roi_heads.score_boxes(images, features, proposals)
        image_logits = None
        if self.image_predictor is not None:
            seen = self._image_features(images, features, proposals, scored)
            image_logits = self.image_predictor(seen).logits
        return self.image_scores([s.label_scores for s in scored], image_logits), scored

    def image_scores(
        self, label_scores: list[torch.Tensor], image_logits: torch.Tensor | None
    ) -> torch.Tensor:
        """(N, C) from fused scores (K, C) of the boxes of N images, and (N, C) of these as a whole.

        Args:
            label_scores: in [0, 1].
            image_logits: of the image predictor; None where there is none.
        """
        scores = torch.stack([self.aggregator(s) for s in label_scores])
        return (
            scores if image_logits is None else self._fuse_image(scores, image_logits, label_scores)
        )

    def _image_features(self, images, features, proposals, scored) -> ImageFeatures:
        """What the image predictor sees: also the proposals of each image, and their scores."""
        boxes = [p.proposal_boxes for p in proposals]
        label_scores = [s.label_scores.detach() for s in scored]
        return ImageFeatures(features, images, self.backbone, boxes, label_scores)

    def _fuse_image(
        self, scores: torch.Tensor, image_logits: torch.Tensor, label_scores: list[torch.Tensor]
    ) -> torch.Tensor:
        """(N, C) scores from the aggregated ones of the boxes and the logits of the whole image."""
        image_logits = image_logits.float()
        weight = torch.full_like(image_logits, self.image_predictor_weight)
        # of an image without boxes the whole alone; without a branch, which tracing would freeze
        counts = torch.stack([s.new_ones(s[:, :1].shape).sum() for s in label_scores])
        weight = torch.where(counts[:, None] > 0, weight, 1.0)
        return torch.lerp(scores.logit(eps=LOGIT_EPS), image_logits, weight).sigmoid()

    def _propose(self, images, features, batched_inputs, targets):
        """Proposals and losses of the RPN, or the proposals that come with the images."""
        if self.proposal_generator is not None:
            return self.proposal_generator(images, features, targets)
        return [x["proposals"].to(self.device) for x in batched_inputs], {}

    def _mean_num_boxed(self, count: int) -> float:
        """Images with boxes of a process, averaged over the processes."""
        if self.image_predictor is None:  # all have boxes: nothing to ask the others
            return count
        return mean_over_processes(count, self.device)

    def _train_rpn(self, images, features, batched_inputs, targets, boxed: list[int]):
        """Proposals and losses of the images with boxes; of the others no proposals, no losses.

        Where no image of the batch has boxes, the RPN runs on the first one all the same, so that
        every process has every loss and every gradient; they are multiplied with 0.
        """
        if len(boxed) == len(batched_inputs):
            return self._propose(images, features, batched_inputs, targets)
        chosen = boxed or [0]
        found, losses = self._propose(
            ImageList(images.tensor[chosen], [images.image_sizes[i] for i in chosen]),
            {name: feature[chosen] for name, feature in features.items()},
            [batched_inputs[i] for i in chosen],
            [targets[i] for i in chosen],
        )
        proposals = [_no_proposals(size, self.device) for size in images.image_sizes]
        for i, p in zip(boxed, found):
            proposals[i] = p
        return proposals, losses

    def _check_boxes(self, batched_inputs: list[dict]) -> None:
        """Refuse images that nothing can be learned from.

        Raises:
            KeyError: naming the image and the remedy.
        """
        for x in batched_inputs:
            name = x.get("file_name", x.get("image_id"))
            if not _has_boxes(x) and self.image_predictor is None:
                raise KeyError(
                    f"image {name} has no 'instances': SCNet is trained on boxes. Set "
                    "MODEL.SCNET.IMAGE.ENABLED True, whose predictor learns from labels alone, or "
                    "give it boxes (with a dataset mapper made with is_train=True)"
                )
            if not _has_boxes(x) and "image_labels" not in x:
                raise KeyError(f"image {name} has neither 'instances' nor 'image_labels'")

    def _targets(self, batched_inputs: list[dict]) -> list[Instances]:
        """Ground truth of each image; without any box where the image has labels alone."""
        return [
            (x["instances"] if _has_boxes(x) else _no_objects(x)).to(self.device)
            for x in batched_inputs
        ]

    def _loss_mask(self, batched_inputs: list[dict]) -> torch.Tensor:
        """(N, C) bool, False where the boxes of an image tell nothing of a label.

        It is ignored there, or present without a box: of a crowd, or one that could not be used.
        """
        mask = torch.ones(len(batched_inputs), self.roi_heads.num_classes, dtype=torch.bool)
        for row, x in zip(mask, batched_inputs):
            row[list(x.get("image_labels", ()))] = False
            if _has_boxes(x):
                row[x["instances"].gt_classes.cpu()] = True
            row[list(x.get("ignored_labels", ()))] = False
        return mask.to(self.device)

    def _image_loss(
        self, scores: torch.Tensor, batched_inputs: list[dict], boxed: list[int]
    ) -> torch.Tensor:
        """Binary cross-entropy of (N, C) scores, summed over classes and images with boxes."""
        targets, loss_mask = image_label_targets(batched_inputs, scores)
        with torch.autocast(scores.device.type, enabled=False):  # it refuses half precision
            return F.binary_cross_entropy(
                scores[boxed], targets[boxed], weight=loss_mask[boxed], reduction="sum"
            )


def _has_boxes(inputs: dict) -> bool:
    """Whether an image's boxes are annotated, be they none; otherwise it has labels alone."""
    return "instances" in inputs


def _no_objects(inputs: dict) -> Instances:
    """Ground truth without any box."""
    no_boxes = Boxes(torch.zeros(0, 4))
    classes = torch.zeros(0, dtype=torch.int64)
    return Instances(inputs["image"].shape[-2:], gt_boxes=no_boxes, gt_classes=classes)


def _no_proposals(size: tuple[int, int], device: torch.device) -> Instances:
    """Proposals of an image, of which there are none."""
    no_boxes = Boxes(torch.zeros(0, 4, device=device))
    logits = torch.zeros(0, device=device)
    return Instances(size, proposal_boxes=no_boxes, objectness_logits=logits)


def _label_boxes(scored: Instances, inputs: dict) -> dict[str, torch.Tensor]:
    """The best boxes of every label, in original coordinates."""
    height, width = scored.image_size
    size = inputs.get("height", height), inputs.get("width", width)
    boxes, context_boxes = best_boxes(scored)
    ratios = {"label_context_ratios": best_ratios(scored)} if scored.has("context_ratios") else {}
    return {
        "label_boxes": scale_boxes(boxes, scored.image_size, size),
        "label_context_boxes": scale_boxes(context_boxes, scored.image_size, size),
    } | ratios


def _log_image_scores(images: torch.Tensor) -> None:
    """Log what the image scores (N, C) are like."""
    labels = (images >= 0.5).sum(dim=1).float()
    means = torch.stack([images.mean(), images.amax(dim=1).mean(), labels.mean()]).tolist()
    names = ("image_scores/mean", "image_scores/max", "image_scores/labels")
    get_event_storage().put_scalars(**dict(zip(names, means)))
