"""The relation branch: each box looks at the other boxes of its image."""

import math

import torch
from detectron2.config import configurable
from torch import nn

from ..label_predictor import label_norm
from .branches import BRANCH_REGISTRY, Patches, Predictions, TightBoxHead

GEOMETRY_DIM = 64  # of the code of two boxes' places: 8 wavelengths x (sine, cosine) x 4 numbers
GT_OBJECTNESS = 20.0  # logit that ground truth among the sampled proposals exceeds, an RPN never


def relative_geometry(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Where other boxes lie from each box, whatever the place and scale of both.

    Args:
        boxes: (R, 4) XYXY.
        others: (K, 4) XYXY.

    Returns:
        (R, K, 4): log(|dx|/w), log(|dy|/h), log(w/w'), log(h/h'), of centres and sides; w', h' are
        the other box's. The first two are at least log(0.001).
    """
    (centre, side), (centre_, side_) = (
        ((b[:, :2] + b[:, 2:]) / 2, (b[:, 2:] - b[:, :2]).clamp(min=1)) for b in (boxes, others)
    )
    offset = (centre[:, None] - centre_).abs() / side[:, None]  # (R, K, 2)
    return torch.cat([offset.clamp(min=1e-3), side[:, None] / side_], dim=2).log()


class ObjectRelation(nn.Module):
    """Adds to the features of each box what it takes from the other boxes of its image.

    Source: Hu, Gu, Zhang, Dai and Wei, "Relation networks for object detection", CVPR 2018. Unlike
    there a box is none of its own keys: alone in its image it stays as it is.
    """

    def __init__(self, dim: int, *, num_heads: int = 16, key_dim: int = 64, max_keys: int = 64):
        """
        Args:
            dim: D, length of the box features, a multiple of `num_heads`.
            num_heads: H, relations learned beside each other.
            key_dim: length of queries and keys of a head.
            max_keys: boxes of an image that others look at, those with the highest objectness, so
                that the cost grows with the number of boxes and not with its square. 0: none.
        """
        super().__init__()
        if dim % num_heads or max_keys < 0:
            raise ValueError(
                f"MODEL.SCNET.RELATION.NUM_HEADS is {num_heads} and MAX_KEYS {max_keys}; the box "
                f"features have length {dim}, which NUM_HEADS must divide; MAX_KEYS must be >= 0"
            )
        self.num_heads, self.max_keys = num_heads, max_keys
        self.query = nn.Linear(dim, num_heads * key_dim)
        self.key = nn.Linear(dim, num_heads * key_dim)
        self.value = nn.Linear(dim, dim, bias=False)
        self.geometry = nn.Linear(GEOMETRY_DIM, num_heads)
        for layer in (self.query, self.key, self.value, self.geometry):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(
        self, x: torch.Tensor, boxes: torch.Tensor, objectness: torch.Tensor
    ) -> torch.Tensor:
        """Features (K, D) of the K boxes (K, 4) of one image with objectness logits (K,)."""
        attention, keys = self.attention(x, boxes, objectness)
        v = self._heads(self.value, x[keys])  # (H, M, D / H)
        return x + (attention.to(v.dtype) @ v).transpose(0, 1).flatten(1)

    def attention(
        self, x: torch.Tensor, boxes: torch.Tensor, objectness: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """How much each box looks at others, of what `forward` gets.

        Returns:
            Weights (H, K, M) float32, of sum 1 over the M keys that a box sees, 0 where it sees
            none; and the positions (M,) of the keys among the boxes.
        """
        # ground truth is no key, as in the paper: in inference there is none
        scores = objectness.masked_fill(objectness > GT_OBJECTNESS, -math.inf)
        top, keys = (t[: self.max_keys] for t in scores.sort(descending=True))  # (M,)
        rows = torch.cumsum(torch.ones_like(scores), dim=0).long() - 1  # (K,) len() is frozen
        seen = (rows[:, None] != keys) & top.isfinite()  # (K, M)
        q, k = self._heads(self.query, x), self._heads(self.key, x[keys])
        appearance = (q @ k.transpose(1, 2)) / math.sqrt(q.shape[-1])  # (H, K, M)
        code = _sine_code(relative_geometry(boxes, boxes[keys]))  # float32: angles are large
        weight = self.geometry(code).float().relu().clamp(min=1e-6)  # (K, M, H)
        logits = (appearance.float() + weight.log().permute(2, 0, 1)).masked_fill(~seen, -1e4)
        return logits.softmax(dim=2) * seen, keys  # none where nothing is seen

    def _heads(self, layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        """(H, R, D') of features (R, D)."""
        return layer(x).unflatten(1, (self.num_heads, -1)).transpose(0, 1)


def _sine_code(x: torch.Tensor) -> torch.Tensor:
    """Sines and cosines of numbers (R, K, 4) at 8 wavelengths: (R, K, GEOMETRY_DIM)."""
    frequencies = 100 * 1000 ** (-torch.arange(8, device=x.device, dtype=x.dtype) / 8)
    angles = x[..., None] * frequencies  # (R, K, 4, 8)
    return torch.cat([angles.sin(), angles.cos()], dim=3).flatten(2)


@BRANCH_REGISTRY.register()
class RelationHead(TightBoxHead):
    """On tight boxes: ROIAlign, a box head, `ObjectRelation`, a label predictor of its own."""

    name = "relation"

    @configurable
    def __init__(self, *, relation: ObjectRelation, norm: nn.Module, **kwargs):
        """
        Args:
            relation: between the boxes of an image.
            norm: of the box features before it.
            kwargs: see `TightBoxHead`.
        """
        super().__init__(**kwargs)
        self.norm = norm
        self.relation = relation

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(cfg, input_shape)
        dim, keys = ret["box_head"].output_shape.channels, cfg.MODEL.SCNET.RELATION
        relation = ObjectRelation(
            dim, num_heads=keys.NUM_HEADS, key_dim=keys.KEY_DIM, max_keys=keys.MAX_KEYS
        )
        return ret | {"relation": relation, "norm": label_norm(dim, cfg.MODEL.SCNET.LABEL.NORM)}

    def forward(self, features: dict[str, torch.Tensor], patches: Patches) -> Predictions:
        """Predictions for the boxes of all images; no box looks into another image."""
        x = self.norm(self.box_features(features, patches.tight))  # (R, D)
        counts = [len(b) for b in patches.tight]
        images = zip(x.split(counts), patches.tight, patches.objectness.split(counts))
        related = [self.relation(f, b.tensor, o) for f, b, o in images]
        return Predictions(self.label_predictor(torch.cat(related)))
