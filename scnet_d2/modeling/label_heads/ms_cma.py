"""MS-CMA-style: attention of label embeddings that follow the co-occurrence graph."""

from typing import ClassVar

import torch
from detectron2.config import configurable
from torch import nn
from torch.nn import functional as F

from ..label_predictor import check_feature
from .features import ImageFeatures
from .head import LABEL_HEAD_REGISTRY, LabelHead, LabelOutput
from .layers import PerLabelLinear

EPS = 1e-6


@LABEL_HEAD_REGISTRY.register()
class MSCMA(LabelHead):
    """On two feature maps, each label attends where the cosine with its embedding is positive.

    The embeddings are fitted to the co-occurrence of labels in the training set before training and
    stay as they are. The logits of both maps are averaged.

    Our reading: of the paper the abstract and figures' captions are at hand. Not known are the
    layers before the attention and the constants of the fit.

    Source: You et al., "Cross-modality attention with semantic graph embedding for multi-label
    classification", AAAI 2020.
    """

    needs: ClassVar[tuple[str, ...]] = ("counts",)

    @configurable
    def __init__(self, *, dim: int = 256, fine_feature: str = "res4", **kwargs):
        """
        Args:
            dim: D', length of the embeddings.
            fine_feature: name of the second map.
            kwargs: of `LabelHead`.
        """
        super().__init__(**kwargs)
        check_feature("MODEL.IMAGE_LABELER.MSCMA.FINE_FEATURE", fine_feature, self.input_shape)
        self.maps = (self.in_feature, fine_feature)
        self.register_buffer("embedding", torch.zeros(self.num_classes, dim))
        self.project, self.label_score = nn.ModuleDict(), nn.ModuleDict()
        for name in self.maps:
            self.project[name] = nn.Sequential(
                nn.Linear(self.input_shape[name].channels, dim), nn.ReLU(), nn.Linear(dim, dim)
            )
            self.label_score[name] = PerLabelLinear(dim, self.num_classes, self.prior_prob)

    def fill_context(self, class_names: list[str], labels: list[list[int]]) -> None:
        """As `LabelHead.fill_context`; fits the embeddings."""
        super().fill_context(class_names, labels)
        graph = self.context.conditional()
        fitted = fit_embedding((graph + graph.T) / 2, self.embedding.shape[1])
        self.embedding.copy_(fitted)

    def predict(self, features: ImageFeatures) -> LabelOutput:
        """Logits, and as class maps the attention on the first map."""
        self.context.check_filled()
        logits, attention = zip(*(self._attend(features, name) for name in self.maps))
        maps = features.unpad(self.in_feature, attention[0])
        return LabelOutput(torch.stack(logits).mean(dim=0), class_maps=maps)

    def _attend(self, features: ImageFeatures, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (N, C) and attention (N, C, L) of one map."""
        tokens, valid = features.tokens(name)
        x = self.project[name](tokens)  # (N, L, D')
        attention = clipped_cosine(self.embedding, x, valid)
        return self.label_score[name](attention @ x), attention


def clipped_cosine(
    embedding: torch.Tensor, tokens: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """Attention (N, C, L) of sum 1: the cosines that are positive; where none is, all alike.

    Args:
        embedding: (C, D).
        tokens: (N, L, D).
        valid: (N, L) bool.
    """
    cosine = F.normalize(embedding, dim=-1) @ F.normalize(tokens, dim=-1).transpose(1, 2)
    attention = (cosine.clamp(min=0) + EPS) * valid[:, None]
    return attention / attention.sum(dim=-1, keepdim=True)


def fit_embedding(graph: torch.Tensor, dim: int, zero_weight: float = 0.1) -> torch.Tensor:
    """Vectors (C, dim) whose cosines are the entries of a symmetric graph (C, C) in [0, 1].

    Entries of 0 count `zero_weight`. The result is the same in every process.
    """
    graph = graph.cpu()
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(len(graph), dim, generator=generator).requires_grad_()
    weight = torch.where(graph > 0, 1.0, zero_weight).fill_diagonal_(0)
    optimizer = torch.optim.LBFGS([vectors], max_iter=100)

    def distance() -> torch.Tensor:
        optimizer.zero_grad()
        unit = F.normalize(vectors, dim=1)
        loss = (weight * (graph - unit @ unit.T).square()).sum()
        loss.backward()
        return loss

    optimizer.step(distance)
    return F.normalize(vectors.detach(), dim=1)
