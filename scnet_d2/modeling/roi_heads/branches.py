"""The two RoI heads of SCNet: object branch (tight boxes) and context branch (context boxes)."""

from typing import NamedTuple

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import build_box_head
from detectron2.structures import Boxes
from fvcore.nn import smooth_l1_loss
from torch import nn
from torch.nn import functional as F

from ..label_predictor import LabelPredictor


class ObjectPredictions(NamedTuple):
    """What the object head predicts for R boxes."""

    deltas: torch.Tensor  # (R, 4) box deltas
    patch_logits: torch.Tensor  # (R,)
    label_logits: torch.Tensor  # (R, C)


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


class ContextHead(nn.Module):
    """ROIAlign, a box head of its own and label predictor 2, on context boxes."""

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
        resolution = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        canonical_size = cfg.MODEL.SCNET.CANONICAL_BOX_SIZE
        if canonical_size < 1:
            raise ValueError(f"MODEL.SCNET.CANONICAL_BOX_SIZE is {canonical_size}; it must be >= 1")
        scales = [1.0 / input_shape[f].stride for f in in_features]
        options = {
            "output_size": resolution,
            "sampling_ratio": cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO,
            "pooler_type": cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE,
            "canonical_box_size": canonical_size,
        }
        channels = [input_shape[f].channels for f in in_features]
        if cfg.MODEL.SCNET.POOL_ALL_LEVELS:
            pooler = AllLevelsPooler([ROIPooler(scales=[s], **options) for s in scales])
            channels = sum(channels)
        else:
            pooler = ROIPooler(scales=scales, **options)
            channels = channels[0]
        box_head = build_box_head(cfg, ShapeSpec(channels, height=resolution, width=resolution))
        return {
            "in_features": in_features,
            "pooler": pooler,
            "box_head": box_head,
            "label_predictor": LabelPredictor(cfg, box_head.output_shape.channels),
        }

    @classmethod
    def in_features_of(cls, cfg) -> list[str]:
        """Names of the feature maps that the config has its boxes pooled from."""
        return cfg.MODEL.SCNET.CONTEXT.IN_FEATURES or cfg.MODEL.ROI_HEADS.IN_FEATURES

    def box_features(self, features: dict[str, torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """Features (R, D) of the boxes of all images, R boxes in all."""
        return self.box_head(self.pooler([features[f] for f in self.in_features], boxes))

    def forward(self, features: dict[str, torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """Label logits (R, C) of the boxes of all images."""
        return self.label_predictor(self.box_features(features, boxes))

    def losses(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        loss_mask: torch.Tensor,
        num_boxes: float,
    ) -> dict[str, torch.Tensor]:
        """`loss_context_label`; arguments as in `LabelPredictor.loss`."""
        loss = self.label_predictor.loss(logits, targets, loss_mask, num_boxes)
        return {"loss_context_label": loss}


class ObjectHead(ContextHead):
    """On tight boxes: ROIAlign, box head, location regressor, patch classifier, label predictor 1.

    Source: slides, "4 Patch Processors".
    """

    @configurable
    def __init__(
        self,
        *,
        box2box_transform: Box2BoxTransform,
        feature_dim: int,
        smooth_l1_beta: float = 1.0,
        loc_loss_weight: float = 1.0,
        patch_loss_weight: float = 1.0,
        **kwargs,
    ):
        """
        Args:
            box2box_transform: defines the box deltas.
            feature_dim: D, length of the box features.
            smooth_l1_beta: knee of the smooth-L1 location loss (slides: 1).
            loc_loss_weight: weight of `loss_object_loc`.
            patch_loss_weight: weight of `loss_object_patch`.
            kwargs: see `ContextHead`.
        """
        super().__init__(**kwargs)
        self.box2box_transform = box2box_transform
        self.smooth_l1_beta = smooth_l1_beta
        self.loc_loss_weight = loc_loss_weight
        self.patch_loss_weight = patch_loss_weight
        self.location_regressor = nn.Linear(feature_dim, 4)
        self.patch_classifier = nn.Linear(feature_dim, 1)
        nn.init.normal_(self.location_regressor.weight, std=0.001)
        nn.init.normal_(self.patch_classifier.weight, std=0.01)
        nn.init.zeros_(self.location_regressor.bias)
        nn.init.zeros_(self.patch_classifier.bias)

    @classmethod
    def in_features_of(cls, cfg) -> list[str]:
        """See `ContextHead`."""
        return cfg.MODEL.ROI_HEADS.IN_FEATURES

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(cfg, input_shape)
        keys = cfg.MODEL.ROI_BOX_HEAD
        return ret | {
            "box2box_transform": Box2BoxTransform(weights=keys.BBOX_REG_WEIGHTS),
            "feature_dim": ret["box_head"].output_shape.channels,
            "smooth_l1_beta": keys.SMOOTH_L1_BETA,
            "loc_loss_weight": keys.BBOX_REG_LOSS_WEIGHT,
            "patch_loss_weight": cfg.MODEL.SCNET.OBJECT.PATCH_LOSS_WEIGHT,
        }

    def forward(self, features: dict[str, torch.Tensor], boxes: list[Boxes]) -> ObjectPredictions:
        """Predictions for the boxes of all images, R boxes in all."""
        x = self.box_features(features, boxes)
        return ObjectPredictions(
            deltas=self.location_regressor(x),
            patch_logits=self.patch_classifier(x)[:, 0],
            label_logits=self.label_predictor(x),
        )

    def refine(self, deltas: torch.Tensor, boxes: list[Boxes]) -> list[Boxes]:
        """Apply deltas (R, 4) to the boxes of each image, R in all."""
        refined = self.box2box_transform.apply_deltas(deltas.float(), Boxes.cat(boxes).tensor)
        return [Boxes(b) for b in refined.split([len(b) for b in boxes])]

    def losses(
        self,
        predictions: ObjectPredictions,
        boxes: torch.Tensor,
        gt_boxes: torch.Tensor,
        foreground: torch.Tensor,
        targets: torch.Tensor,
        loss_mask: torch.Tensor,
        num_boxes: float,
    ) -> dict[str, torch.Tensor]:
        """Location, patch and label losses of R sampled boxes.

        Args:
            predictions: of the R boxes.
            boxes: (R, 4) tight boxes.
            gt_boxes: (R, 4) matched ground-truth boxes, meaningful where `foreground`.
            foreground: (R,) bool, the box holds an object.
            targets: (R, C) multi-hot label targets.
            loss_mask: (R, C) bool, entries of the label loss that count.
            num_boxes: what every sum over boxes is divided by.

        Returns:
            `loss_object_loc` (of the foreground boxes), `loss_object_patch`, `loss_object_label`.
        """
        gt_deltas = self.box2box_transform.get_deltas(boxes[foreground], gt_boxes[foreground])
        loc = smooth_l1_loss(
            predictions.deltas[foreground], gt_deltas, self.smooth_l1_beta, reduction="sum"
        )
        patch = F.binary_cross_entropy_with_logits(
            predictions.patch_logits.float(), foreground.float(), reduction="sum"
        )
        label = self.label_predictor.loss(predictions.label_logits, targets, loss_mask, num_boxes)
        return {
            "loss_object_loc": loc * (self.loc_loss_weight / num_boxes),
            "loss_object_patch": patch * (self.patch_loss_weight / num_boxes),
            "loss_object_label": label,
        }
