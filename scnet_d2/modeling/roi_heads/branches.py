"""The branches of SCNet over boxes: RoI heads that give each box label scores of their own."""

from typing import NamedTuple

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, build_box_head
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from detectron2.utils.registry import Registry
from fvcore.nn import smooth_l1_loss
from torch import nn
from torch.nn import functional as F

from ..label_predictor import LabelPredictor
from .context_boxes import context_label_targets, expand_boxes, object_label_targets
from .expansion import AdaptiveExpansion, build_expansion

BRANCH_REGISTRY = Registry("BRANCH")
BRANCH_REGISTRY.__doc__ = """
Subclasses of `BranchHead`. That of `name` "x" is part of the model where `MODEL.SCNET.X.ENABLED`;
its weights are those of `roi_heads.x_head`, and its loss is `loss_x_label`.
"""


class Patches(NamedTuple):
    """What the patch generators give for N images: R proposals in all."""

    tight: list[Boxes]
    context: list[Boxes]
    objectness: torch.Tensor  # (R,) logits
    image_sizes: list[tuple[int, int]]  # (height, width)


class Predictions(NamedTuple):
    """What a branch predicts for R boxes; None is what it does not predict."""

    label_logits: torch.Tensor  # (R, C)
    deltas: torch.Tensor | None = None  # (R, 4) box deltas
    patch_logits: torch.Tensor | None = None  # (R,)
    context_ratios: torch.Tensor | None = None  # (R,) chosen, in the place of the config's


class AllLevelsPooler(nn.Module):
    """A box pooled from every feature map, their channels one after the other.

    Source: Bell et al., "Inside-Outside Net: Detecting objects in context with skip pooling and
    recurrent neural networks", CVPR 2016.
    """

    def __init__(self, poolers: list[ROIPooler]):
        """
        Args:
            poolers: one for each feature map.
        """
        super().__init__()
        self.poolers = nn.ModuleList(poolers)

    def forward(self, features: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """Pool maps (N, D_i, H_i, W_i) for R boxes of N images to (R, sum of D_i, P, P)."""
        return torch.cat([p([f], boxes) for p, f in zip(self.poolers, features)], dim=1)


class BranchHead(nn.Module):
    """ROIAlign, a box head and a label predictor of its own, on the boxes that `boxes` names."""

    name: str

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        pooler: nn.Module,
        box_head: nn.Module,
        label_predictor: LabelPredictor,
    ):
        """
        Args:
            in_features: names of the feature maps to pool from.
            pooler: ROIAlign over these maps, `ROIPooler` or `AllLevelsPooler`.
            box_head: maps pooled features to box features (R, D).
            label_predictor: maps box features to C label logits.
        """
        super().__init__()
        self.in_features = in_features
        self.pooler = pooler
        self.box_head = box_head
        self.label_predictor = label_predictor

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        in_features = cls.in_features_of(cfg)
        canonical_size = cfg.MODEL.SCNET.CANONICAL_BOX_SIZE
        if canonical_size < 1:
            raise ValueError(f"MODEL.SCNET.CANONICAL_BOX_SIZE is {canonical_size}; it must be >= 1")
        scales = [1.0 / input_shape[f].stride for f in in_features]
        options = {
            "output_size": cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION,
            "sampling_ratio": cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO,
            "pooler_type": cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE,
            "canonical_box_size": canonical_size,
        }
        if cfg.MODEL.SCNET.POOL_ALL_LEVELS:
            pooler = AllLevelsPooler([ROIPooler(scales=[s], **options) for s in scales])
        else:
            pooler = ROIPooler(scales=scales, **options)
        box_head = build_box_head(cfg, cls.pooled_shape(cfg, input_shape))
        return {
            "in_features": in_features,
            "pooler": pooler,
            "box_head": box_head,
            "label_predictor": LabelPredictor(cfg, box_head.output_shape.channels),
        }

    @classmethod
    def in_features_of(cls, cfg) -> list[str]:
        """Names of the feature maps that the config has its boxes pooled from."""
        return cfg.MODEL.ROI_HEADS.IN_FEATURES

    @classmethod
    def pooled_shape(cls, cfg, input_shape: dict[str, ShapeSpec]) -> ShapeSpec:
        """Channels, height and width of what `pool` gives for a box."""
        channels = [input_shape[f].channels for f in cls.in_features_of(cfg)]
        size = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        total = sum(channels) if cfg.MODEL.SCNET.POOL_ALL_LEVELS else channels[0]
        return ShapeSpec(total, height=size, width=size)

    def boxes(self, patches: Patches) -> list[Boxes]:
        """The boxes of each image whose labels the branch predicts: the tight ones."""
        return patches.tight

    def pool(self, features: dict[str, torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """Pooled features (R, D, P, P) of the boxes of all images, R boxes in all."""
        return self.pooler([features[f] for f in self.in_features], boxes)

    def box_features(self, features: dict[str, torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """Features (R, D) of the boxes of all images, R boxes in all."""
        return self.box_head(self.pool(features, boxes))

    def forward(self, features: dict[str, torch.Tensor], patches: Patches) -> Predictions:
        """Predictions for the boxes of all images, R in all."""
        return Predictions(self.label_predictor(self.box_features(features, self.boxes(patches))))

    def refine(self, predictions: Predictions, boxes: list[Boxes]) -> list[Boxes]:
        """The tight boxes of each image after location regression: here as they were."""
        return boxes

    def label_targets(self, boxes: Boxes, targets: Instances) -> torch.Tensor:
        """Labels (K, C) float32 multi-hot of K boxes of an image with these objects."""
        raise NotImplementedError

    def losses(
        self,
        predictions: Predictions,
        patches: Patches,
        proposals: list[Instances],
        targets: list[Instances],
        loss_mask: torch.Tensor,
        num_boxes: float,
    ) -> dict[str, torch.Tensor]:
        """Losses of R sampled boxes of N images.

        Args:
            predictions: of the R boxes.
            patches: the boxes.
            proposals: the N images' sampled proposals, with `gt_classes` and `gt_boxes`.
            targets: ground truth of the N images, `gt_boxes` and `gt_classes`.
            loss_mask: (R, C) bool, entries of the label loss that count.
            num_boxes: what every sum over boxes is divided by.

        Returns:
            `loss_<name>_label`.
        """
        labels = cat([self.label_targets(b, t) for b, t in zip(self.boxes(patches), targets)])
        _log_label_targets(self.name, labels, len(targets))
        loss = self.label_predictor.loss(predictions.label_logits, labels, loss_mask, num_boxes)
        return {f"loss_{self.name}_label": loss}


class TightBoxHead(BranchHead):
    """A branch on tight boxes, which carry the classes of the objects that they fit."""

    @configurable
    def __init__(self, *, label_iou: float = 0.5, **kwargs):
        """
        Args:
            label_iou: least IoU of a tight box with an object whose label it carries, in (0, 1].
            kwargs: see `BranchHead`.
        """
        super().__init__(**kwargs)
        if not 0 < label_iou <= 1:
            raise ValueError(f"MODEL.SCNET.OBJECT.LABEL_IOU is {label_iou}; it must be in (0, 1]")
        self.label_iou = label_iou

    @classmethod
    def from_config(cls, cfg, input_shape):
        return super().from_config(cfg, input_shape) | {
            "label_iou": cfg.MODEL.SCNET.OBJECT.LABEL_IOU
        }

    def label_targets(self, boxes: Boxes, targets: Instances) -> torch.Tensor:
        """See `BranchHead`."""
        num_classes = self.label_predictor.num_classes
        return object_label_targets(boxes, targets, num_classes, self.label_iou)


@BRANCH_REGISTRY.register()
class ObjectHead(TightBoxHead):
    """On tight boxes: ROIAlign, box head, location regressor, patch classifier, label predictor 1.

    Source: slides, "4 Patch Processors".
    """

    name = "object"

    @configurable
    def __init__(
        self,
        *,
        box2box_transform: Box2BoxTransform,
        feature_dim: int,
        smooth_l1_beta: float = 1.0,
        loc_loss_weight: float = 1.0,
        patch_loss_weight: float = 1.0,
        location_head: nn.Module | None = None,
        **kwargs,
    ):
        """
        Args:
            box2box_transform: defines the box deltas.
            feature_dim: D, length of what location regressor and patch classifier read.
            smooth_l1_beta: knee of the smooth-L1 location loss (slides: 1).
            loc_loss_weight: weight of `loss_object_loc`.
            patch_loss_weight: weight of `loss_object_patch`.
            location_head: maps pooled features to what these two read; by default they read the box
                features.
            kwargs: see `TightBoxHead`.
        """
        super().__init__(**kwargs)
        self.box2box_transform = box2box_transform
        self.smooth_l1_beta = smooth_l1_beta
        self.loc_loss_weight = loc_loss_weight
        self.patch_loss_weight = patch_loss_weight
        self.location_head = location_head
        self.location_regressor = nn.Linear(feature_dim, 4)
        self.patch_classifier = nn.Linear(feature_dim, 1)
        nn.init.normal_(self.location_regressor.weight, std=0.001)
        nn.init.normal_(self.patch_classifier.weight, std=0.01)
        nn.init.zeros_(self.location_regressor.bias)
        nn.init.zeros_(self.patch_classifier.bias)

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(cfg, input_shape)
        keys = cfg.MODEL.ROI_BOX_HEAD
        location_head, feature_dim = None, ret["box_head"].output_shape.channels
        if conv_dim := cfg.MODEL.SCNET.OBJECT.LOCATION_CONV_DIM:
            if conv_dim < 0 or conv_dim % 32:  # Detectron2's group norm has 32 groups
                raise ValueError(
                    f"MODEL.SCNET.OBJECT.LOCATION_CONV_DIM is {conv_dim}; it must be 0 or a "
                    "multiple of 32"
                )
            location_head = FastRCNNConvFCHead(
                cls.pooled_shape(cfg, input_shape), conv_dims=[conv_dim], fc_dims=[], conv_norm="GN"
            )
            feature_dim = conv_dim * keys.POOLER_RESOLUTION**2
        return ret | {
            "box2box_transform": Box2BoxTransform(weights=keys.BBOX_REG_WEIGHTS),
            "location_head": location_head,
            "feature_dim": feature_dim,
            "smooth_l1_beta": keys.SMOOTH_L1_BETA,
            "loc_loss_weight": keys.BBOX_REG_LOSS_WEIGHT,
            "patch_loss_weight": cfg.MODEL.SCNET.OBJECT.PATCH_LOSS_WEIGHT,
        }

    def forward(self, features: dict[str, torch.Tensor], patches: Patches) -> Predictions:
        """Predictions for the boxes of all images, R boxes in all."""
        pooled = self.pool(features, patches.tight)
        x = located = self.box_head(pooled)
        if self.location_head is not None:
            located = self.location_head(pooled).flatten(1)
        return Predictions(
            deltas=self.location_regressor(located),
            patch_logits=self.patch_classifier(located)[:, 0],
            label_logits=self.label_predictor(x),
        )

    def refine(self, predictions: Predictions, boxes: list[Boxes]) -> list[Boxes]:
        """Apply the deltas (R, 4) to the boxes of each image, R in all."""
        deltas = predictions.deltas.float()
        refined = self.box2box_transform.apply_deltas(deltas, Boxes.cat(boxes).tensor)
        return [Boxes(b) for b in refined.split([len(b) for b in boxes])]

    def losses(
        self, predictions, patches, proposals, targets, loss_mask, num_boxes
    ) -> dict[str, torch.Tensor]:
        """See `BranchHead`.

        Returns:
            `loss_object_loc` (of the foreground boxes), `loss_object_patch`, `loss_object_label`.
        """
        boxes = Boxes.cat(patches.tight).tensor
        # Proposals of an image without ground truth carry no gt_boxes; none of them is foreground.
        gt_boxes = Boxes.cat(
            [p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes for p in proposals]
        ).tensor
        classes = cat([p.gt_classes for p in proposals])
        foreground = (classes >= 0) & (classes < self.label_predictor.num_classes)
        gt_deltas = self.box2box_transform.get_deltas(boxes[foreground], gt_boxes[foreground])
        loc = smooth_l1_loss(
            predictions.deltas[foreground], gt_deltas, self.smooth_l1_beta, reduction="sum"
        )
        patch = F.binary_cross_entropy_with_logits(
            predictions.patch_logits.float(), foreground.float(), reduction="sum"
        )
        return {
            "loss_object_loc": loc * (self.loc_loss_weight / num_boxes),
            "loss_object_patch": patch * (self.patch_loss_weight / num_boxes),
        } | super().losses(predictions, patches, proposals, targets, loss_mask, num_boxes)


@BRANCH_REGISTRY.register()
class ContextHead(BranchHead):
    """ROIAlign, a box head of its own and label predictor 2, on context boxes."""

    name = "context"

    @configurable
    def __init__(
        self,
        *,
        label_coverage: float = 0.5,
        expansion: AdaptiveExpansion | None = None,
        **kwargs,
    ):
        """
        Args:
            label_coverage: least IoA of an object, the share of its area inside a context box, for
                the context box to carry its label, in (0, 1].
            expansion: has each box choose among ratios; None: one ratio for all.
            kwargs: see `BranchHead`.
        """
        super().__init__(**kwargs)
        if not 0 < label_coverage <= 1:
            raise ValueError(
                f"MODEL.SCNET.CONTEXT.LABEL_COVERAGE is {label_coverage}; it must be in (0, 1]"
            )
        self.label_coverage = label_coverage
        self.expansion = expansion

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(cfg, input_shape)
        return ret | {
            "label_coverage": cfg.MODEL.SCNET.CONTEXT.LABEL_COVERAGE,
            "expansion": build_expansion(cfg, ret["box_head"].output_shape.channels),
        }

    @classmethod
    def in_features_of(cls, cfg) -> list[str]:
        """See `BranchHead`."""
        return cfg.MODEL.SCNET.CONTEXT.IN_FEATURES or cfg.MODEL.ROI_HEADS.IN_FEATURES

    def boxes(self, patches: Patches) -> list[Boxes]:
        """The context boxes of each image."""
        return patches.context

    def forward(self, features: dict[str, torch.Tensor], patches: Patches) -> Predictions:
        """Predictions for the boxes of all images; where they choose, with their ratios."""
        if self.expansion is None:
            return super().forward(features, patches)
        sizes = patches.image_sizes
        pooled = torch.stack(
            [
                self.box_features(
                    features,
                    [Boxes(expand_boxes(b.tensor, s, r)) for b, s in zip(patches.tight, sizes)],
                )
                for r in self.expansion.ratios
            ],
            dim=1,
        )  # (R, M, D)
        weights, ratios = self.expansion(pooled[:, 0], Boxes.cat(patches.tight).tensor)
        x = (weights[:, :, None] * pooled).sum(dim=1)  # (R, D)
        return Predictions(self.label_predictor(x), context_ratios=ratios)

    def label_targets(self, boxes: Boxes, targets: Instances) -> torch.Tensor:
        """See `BranchHead`."""
        num_classes = self.label_predictor.num_classes
        return context_label_targets(boxes, targets, num_classes, self.label_coverage)


def build_branches(cfg, input_shape: dict[str, ShapeSpec]) -> list[BranchHead]:
    """The branches that the config has switched on, in the order of the registry."""
    return [
        head(cfg, input_shape)
        for _, head in BRANCH_REGISTRY
        if cfg.MODEL.SCNET[head.name.upper()].ENABLED
    ]


def _log_label_targets(branch: str, labels: torch.Tensor, num_images: int) -> None:
    """Log how many boxes of an image carry a label, and how many labels a box, of (R, C)."""
    # one transfer: each makes a GPU wait
    positives, present = torch.stack([labels.amax(dim=1).sum(), labels.sum()]).tolist()
    storage = get_event_storage()
    storage.put_scalar(f"{branch}_head/positives_per_image", positives / num_images)
    storage.put_scalar(f"{branch}_head/labels_per_box", present / max(len(labels), 1))
