"""What every label head has, and how `ImageLabeler` finds it."""

from operator import attrgetter
from typing import ClassVar, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import nn

from ..label_predictor import check_feature, label_layer
from .context import LabelContext
from .features import ImageFeatures
from .loss import LabelLoss

LABEL_HEAD_REGISTRY = Registry("LABEL_HEAD")
LABEL_HEAD_REGISTRY.__doc__ = """
Heads that label an image from its feature maps: of `ImageLabeler`, and of SCNet's image level.

`MODEL.IMAGE_LABELER.HEAD` and `MODEL.SCNET.IMAGE.HEAD` name one. It is called with the config, the
backbone's output shapes and the key of that part of the config. It is a `LabelHead`, whose further
arguments are the keys `MODEL.IMAGE_LABELER.<HEAD>`.
"""


class LabelOutput(NamedTuple):
    """What a label head gives for N images.

    Attributes:
        logits: (N, C) label logits.
        parts: name → (N, C) logits that `logits` are made of, for the losses.
        class_maps: for each image (C, h, w), where in it each label is seen; any scale.
        losses: name → scalar, in training.
    """

    logits: torch.Tensor
    parts: dict[str, torch.Tensor] = {}  # noqa: RUF012 (never changed)
    class_maps: list[torch.Tensor] | None = None
    losses: dict[str, torch.Tensor] = {}  # noqa: RUF012


class LabelHead(nn.Module):
    """Base of the label heads: `predict` is what a head must have, `losses` what it may have.

    Attributes:
        needs: what it needs of the training set: "counts" (how often labels come, and together),
            "words" (a vector for each class name).
        stages: names of stages of the backbone whose output the head changes, see `change_stage`.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    stages: ClassVar[tuple[str, ...]] = ()

    @configurable
    def __init__(
        self,
        *,
        input_shape: dict[str, ShapeSpec],
        num_classes: int,
        in_feature: str = "res5",
        prior_prob: float = 0.01,
        loss: LabelLoss | None = None,
        context: LabelContext | None = None,
    ):
        """
        Args:
            input_shape: of the backbone's feature maps, by name.
            num_classes: C.
            in_feature: name of the map that the head reads.
            prior_prob: score of every label before training, where a head has biases for it.
            loss: of the labels; binary cross-entropy by default.
            context: what it `needs` of the training set.
        """
        super().__init__()
        self.input_shape = input_shape
        self.num_classes = num_classes
        self.in_feature = in_feature
        self.prior_prob = prior_prob
        self.loss = loss or LabelLoss()
        self.context = context

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], key: str = "IMAGE_LABELER"
    ):
        """`key` is that of the config's part with `IN_FEATURE`."""
        in_feature = attrgetter(key)(cfg.MODEL).IN_FEATURE
        check_feature(f"MODEL.{key}.IN_FEATURE", in_feature, input_shape)
        own = cfg.MODEL.IMAGE_LABELER.get(cls.__name__.upper(), {})
        return {
            "input_shape": input_shape,
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "in_feature": in_feature,
            "prior_prob": cfg.MODEL.SCNET.LABEL.PRIOR_PROB,
            "loss": LabelLoss(cfg),
            "context": LabelContext(cfg, "words" in cls.needs) if cls.needs else None,
            **{key.lower(): value for key, value in own.items()},
        }

    @property
    def channels(self) -> int:
        """D, channels of the map that the head reads."""
        return self.input_shape[self.in_feature].channels

    def label_layer(self, dim: int) -> nn.Linear:
        """A dense layer (..., dim) -> (..., C) that starts at the prior."""
        return label_layer(dim, self.num_classes, self.prior_prob)

    def label_bias(self) -> nn.Parameter:
        """A bias (C,) of logits that starts at the prior."""
        return nn.Parameter(self.label_layer(1).bias.detach())

    def forward(
        self,
        features: ImageFeatures,
        targets: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> LabelOutput:
        """Label N images.

        Args:
            features: of the images.
            targets: (N, C) float, 1 or 0; None in inference.
            mask: (N, C) float, 0 for ignored labels.

        Returns:
            With `losses` where there are targets.
        """
        output = self.predict(features)
        if targets is None:
            return output
        return output._replace(losses=self.losses(output, targets, mask))

    def predict(self, features: ImageFeatures) -> LabelOutput:
        """Label N images, without losses."""
        raise NotImplementedError

    def losses(
        self, output: LabelOutput, targets: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Losses of what `predict` gave."""
        return {"loss_image_label": self.loss(output.logits, targets, mask)}

    def part_losses(
        self, output: LabelOutput, targets: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """A loss for each of the output's parts."""
        return {
            f"loss_{name}_label": self.loss(logits, targets, mask)
            for name, logits in output.parts.items()
        }

    def fill_context(self, class_names: list[str], labels: list[list[int]]) -> None:
        """Take what the head `needs` from the training set, before training.

        Args:
            class_names: C names, in the order of the labels.
            labels: for each training image the ids of the labels that are present.
        """
        self.context.fill(class_names, labels)

    def change_stage(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """What the backbone goes on with in the place of the output (N, D, H, W) of a stage."""
        raise NotImplementedError


def build_label_head(
    cfg: CfgNode, input_shape: dict[str, ShapeSpec], key: str = "IMAGE_LABELER"
) -> LabelHead:
    """The head that `MODEL.<key>.HEAD` names.

    Raises:
        ValueError: if there is none of this name.
    """
    name = attrgetter(key)(cfg.MODEL).HEAD
    if name not in LABEL_HEAD_REGISTRY:
        known = sorted(name for name, _ in LABEL_HEAD_REGISTRY)
        raise ValueError(f"MODEL.{key}.HEAD is '{name}'; choose one of {known}")
    return LABEL_HEAD_REGISTRY.get(name)(cfg, input_shape, key)
