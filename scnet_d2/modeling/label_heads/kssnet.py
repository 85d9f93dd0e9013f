"""KSSNet: label states of a graph network go into the stages of the backbone."""

from typing import ClassVar

import torch
from detectron2.config import configurable
from torch import nn
from torch.nn import functional as F

from .features import ImageFeatures
from .graph import normalized
from .head import LABEL_HEAD_REGISTRY, LabelHead, LabelOutput


class LowRankGraphConvolution(nn.Sequential):
    """A graph convolution (C, D) -> (C, D') whose matrix has a low rank."""

    def __init__(self, dim: int, out_dim: int):
        """
        Args:
            dim: D.
            out_dim: D'.
        """
        rank = max(32, (dim + out_dim) // 8)
        super().__init__(nn.Linear(dim, rank, bias=False), nn.Linear(rank, out_dim))

    def forward(self, x: torch.Tensor, graph: torch.Tensor) -> torch.Tensor:
        """States (C, D') of the labels from those (C, D) and the graph (C, C)."""
        return F.leaky_relu(graph @ super().forward(x), 0.2)


@LABEL_HEAD_REGISTRY.register()
class KSSNet(LabelHead):
    """Four graph convolutions, one for each stage, on a graph of co-occurrence and of knowledge.

    After three stages the product of each cell and the label states is mapped back and added to the
    cell. The states of the fourth are classifiers, beside a linear one.

    The layers are those of the authors' code for videos. Our reading: how both graphs are put
    together; knowledge is the cosine of word vectors in the place of ConceptNet; what is added to a
    stage starts from 0, for the pre-trained features.

    Source: Wang et al., "Multi-label classification with label graph superimposing", AAAI 2020.
    """

    needs: ClassVar[tuple[str, ...]] = ("counts", "words")
    stages: ClassVar[tuple[str, ...]] = ("res2", "res3", "res4")

    @configurable
    def __init__(
        self,
        *,
        statistics_weight: float = 0.5,
        threshold: float = 0.03,
        neighbours: float = 0.4,
        dropout: float = 0.5,
        **kwargs,
    ):
        """
        Args:
            statistics_weight: of co-occurrence in the graph; knowledge has the rest.
            threshold: entries of the graph below it are 0.
            neighbours: share of its neighbours in what a label takes in.
            dropout: of the pooled map, in training.
            kwargs: of `LabelHead`; the map is the one after `stages`.
        """
        super().__init__(**kwargs)
        if missing := [s for s in self.stages if s not in self.input_shape]:
            raise ValueError(
                f"MODEL.IMAGE_LABELER.HEAD KSSNet changes the stages {list(self.stages)}, but the "
                f"backbone gives {list(self.input_shape)}: add {missing} to its OUT_FEATURES"
            )
        self.statistics_weight, self.threshold = statistics_weight, threshold
        self.neighbours = neighbours
        widths = [self.input_shape[s].channels for s in (*self.stages, self.in_feature)]
        dims = [self.context.word_vectors.shape[1], *widths]
        self.layers = nn.ModuleList(map(LowRankGraphConvolution, dims, widths))
        self.lateral = nn.ModuleDict()
        for name, width in zip(self.stages, widths):
            self.lateral[name] = nn.Conv2d(self.num_classes, width, 1, bias=False)
            nn.init.zeros_(self.lateral[name].weight)
        self.dropout = nn.Dropout(dropout)
        self.label_score = self.label_layer(self.channels)

    def graph(self) -> torch.Tensor:
        """(C, C) graph of the labels."""
        together = self.context.conditional()
        words = self.context.word_vectors
        knowledge = F.cosine_similarity(words[:, None], words[None], dim=-1)
        knowledge = knowledge.clamp(min=0).fill_diagonal_(0)
        statistics = normalized((together + together.T) / 2)
        graph = torch.lerp(normalized(knowledge), statistics, self.statistics_weight)
        graph = torch.where(graph < self.threshold, 0.0, graph)
        own = torch.eye(len(graph), device=graph.device)
        return normalized(torch.lerp(own, graph, self.neighbours))

    def label_states(self) -> dict[str, torch.Tensor]:
        """States (C, D) in [-1, 1] of the labels, for each stage."""
        graph, x, states = self.graph(), self.context.word_vectors, {}
        for name, layer in zip((*self.stages, self.in_feature), self.layers):
            x = layer(x, graph)
            states[name] = x.tanh()
        return states

    def change_stage(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """The output (N, D, H, W) of a stage plus what its labels add."""
        products = torch.einsum("ndhw,cd->nchw", x, self.label_states()[name])
        return x + self.lateral[name](products)

    def predict(self, features: ImageFeatures) -> LabelOutput:
        """Logits."""
        pooled = features.pooled(self.in_feature)
        classifiers = self.label_states()[self.in_feature]
        return LabelOutput(self.dropout(pooled) @ classifiers.T + self.label_score(pooled))
