"""Global pooling and a linear classifier."""

from operator import attrgetter

from detectron2.config import configurable

from ..label_predictor import check_pooling, label_norm
from .features import ImageFeatures
from .head import LABEL_HEAD_REGISTRY, LabelHead, LabelOutput


@LABEL_HEAD_REGISTRY.register()
class GlobalPool(LabelHead):
    """Average or maximum of the feature map over the image, and one linear layer.

    The same layer on each cell gives the class maps ("class activation maps"); without a
    normalisation their mean over the image are the logits of average pooling.

    Source: slides, the ResNet rows of the tables; maximum pooling is ML-GCN's baseline.
    """

    @configurable
    def __init__(self, *, pooling: str = "average", norm: str = "", **kwargs):
        """
        Args:
            pooling: "average" or "max".
            norm: of the pooled feature, see `LabelPredictor`.
            kwargs: of `LabelHead`.
        """
        super().__init__(**kwargs)
        self.pooling = pooling
        self.norm = label_norm(self.channels, norm)
        self.label_score = self.label_layer(self.channels)

    @classmethod
    def from_config(cls, cfg, input_shape, key="IMAGE_LABELER"):
        """`key` is that of the config's part with `IN_FEATURE` and `POOLING`."""
        pooling = attrgetter(key)(cfg.MODEL).POOLING
        check_pooling(f"MODEL.{key}.POOLING", pooling)
        return super().from_config(cfg, input_shape, key) | {
            "pooling": pooling,
            "norm": cfg.MODEL.SCNET.LABEL.NORM,
        }

    def predict(self, features: ImageFeatures) -> LabelOutput:
        """Logits, and in inference class maps."""
        logits = self.label_score(self.norm(features.pooled(self.in_feature, self.pooling)))
        if self.training:
            return LabelOutput(logits)
        tokens = features.maps[self.in_feature].flatten(2).transpose(1, 2)  # (N, L, D)
        maps = features.unpad(self.in_feature, self.label_score(self.norm(tokens)).transpose(1, 2))
        return LabelOutput(logits, class_maps=maps)
