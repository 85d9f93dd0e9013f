"""WSL-GCN-style: a graph network corrects the rows of a classifier; class maps are pooled."""

from typing import ClassVar

import torch
from detectron2.config import configurable
from torch import nn
from torch.nn import functional as F

from .features import ImageFeatures
from .graph import GraphConvolution, label_graph
from .head import LABEL_HEAD_REGISTRY, LabelHead, LabelOutput


@LABEL_HEAD_REGISTRY.register()
class WSLGCN(LabelHead):
    """Classifiers W + GCN(W) on each cell, pooled over the highest and the lowest scores.

    W are the rows of a linear classifier of the pooled map. It is trained beside the graph network,
    which does not change it, and not in a run before. The graph network starts from 0.

    Our reading: of the paper the abstract is at hand.

    Source: Liu et al., "Weakly supervised image classification and pointwise localization with
    graph convolutional networks", Pattern Recognition 2021.
    """

    needs: ClassVar[tuple[str, ...]] = ("counts",)

    @configurable
    def __init__(
        self,
        *,
        hidden_dim: int = 1024,
        threshold: float = 0.4,
        neighbours: float = 0.2,
        share: float = 0.1,
        low_weight: float = 0.2,
        **kwargs,
    ):
        """
        Args:
            hidden_dim: width between the convolutions.
            threshold: see `label_graph`.
            neighbours: see `label_graph`.
            share: of the cells, whose highest and whose lowest scores count.
            low_weight: of the mean of the lowest; that of the highest is 1.
            kwargs: of `LabelHead`.
        """
        super().__init__(**kwargs)
        self.threshold, self.neighbours = threshold, neighbours
        self.share, self.low_weight = share, low_weight
        self.label_score = self.label_layer(self.channels)
        self.graph1 = GraphConvolution(self.channels, hidden_dim)
        self.graph2 = GraphConvolution(hidden_dim, self.channels)
        nn.init.zeros_(self.graph2.weight)

    def predict(self, features: ImageFeatures) -> LabelOutput:
        """Logits; part `image`, those of the classifier alone; class maps."""
        image = self.label_score(features.pooled(self.in_feature))
        graph = label_graph(self.context, self.threshold, self.neighbours)
        rows = self.label_score.weight.detach()  # (C, D)
        rows = rows + self.graph2(F.leaky_relu(self.graph1(rows, graph), 0.2), graph)
        tokens, _ = features.tokens(self.in_feature)
        scores = F.linear(tokens, rows, self.label_score.bias).transpose(1, 2)
        maps = features.unpad(self.in_feature, scores)
        logits = torch.stack([self.pool(m.flatten(1)) for m in maps])
        return LabelOutput(logits, {"image": image}, maps)

    def pool(self, scores: torch.Tensor) -> torch.Tensor:
        """(C,) from the scores (C, L) of the cells."""
        number = max(1, round(self.share * scores.shape[1]))
        ordered = scores.sort(dim=1).values
        high, low = ordered[:, -number:].mean(dim=1), ordered[:, :number].mean(dim=1)
        return high + self.low_weight * low

    def losses(
        self, output: LabelOutput, targets: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Of the logits, and of the classifier alone."""
        classifier = {"loss_classifier_label": self.loss(output.parts["image"], targets, mask)}
        return super().losses(output, targets, mask) | classifier
