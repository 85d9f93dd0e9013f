"""Graphs of labels and convolutions over them."""

import torch
from torch import nn

from .context import LabelContext


def label_graph(context: LabelContext, threshold: float, neighbours: float) -> torch.Tensor:
    """Which label listens to which, (C, C), normalised.

    Label i listens to j where at least `threshold` of the images with j have i too. Of what a label
    takes in, its neighbours share `neighbours` and it has the rest itself.

    Args:
        context: of the training set.
        threshold: share of images.
        neighbours: in [0, 1); 0 is no graph, the identity.

    Source: ML-GCN.
    """
    heard = (context.conditional() >= threshold).float()
    heard.fill_diagonal_(0)
    weight = neighbours / (1 - neighbours)
    graph = weight * heard / (heard.sum(dim=0, keepdim=True) + 1e-6)
    graph = graph + torch.eye(len(graph), device=graph.device)
    scale = graph.sum(dim=1).rsqrt()
    return scale[:, None] * graph.T * scale


def normalized(graph: torch.Tensor) -> torch.Tensor:
    """A symmetric graph (C, C) divided by the root of the degree of both of its ends."""
    scale = graph.sum(dim=1).clamp(min=1e-6).rsqrt()
    return scale[:, None] * graph * scale


class GraphConvolution(nn.Linear):
    """A linear layer of labels, (C, D) -> (C, D'), then a weighted sum over the neighbours."""

    def __init__(self, dim: int, out_dim: int):
        """
        Args:
            dim: D.
            out_dim: D'.
        """
        super().__init__(dim, out_dim, bias=False)
        nn.init.uniform_(self.weight, -(out_dim**-0.5), out_dim**-0.5)

    def forward(self, x: torch.Tensor, graph: torch.Tensor) -> torch.Tensor:
        """States (C, D') of the labels from those (C, D) and the graph (C, C)."""
        return graph @ super().forward(x)
