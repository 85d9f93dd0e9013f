"""Query2Label: a query for each label reads the image."""

import torch
from detectron2.config import configurable
from torch import nn

from .features import ImageFeatures
from .head import LABEL_HEAD_REGISTRY, LabelHead, LabelOutput
from .layers import AttentionLayer, PerLabelLinear, sine_positions


@LABEL_HEAD_REGISTRY.register()
class Query2Label(LabelHead):
    """A transformer of one encoder and two decoder layers, these without self-attention.

    Source: Liu et al., "Query2Label: a simple transformer way to multi-label classification",
    arXiv 2107.10834.
    """

    @configurable
    def __init__(
        self,
        *,
        dim: int = 2048,
        num_heads: int = 4,
        ffn_dim: int = 8192,
        num_encoder_layers: int = 1,
        num_decoder_layers: int = 2,
        dropout: float = 0.1,
        **kwargs,
    ):
        """
        Args:
            dim: D, width of queries and tokens; where it is the map's, the map is not projected.
            num_heads: of the attention.
            ffn_dim: width of the dense layers.
            num_encoder_layers: in which the cells of the map read each other.
            num_decoder_layers: in which the queries read the cells.
            dropout: in training.
            kwargs: of `LabelHead`.
        """
        super().__init__(**kwargs)
        same = dim == self.channels
        self.project = nn.Identity() if same else nn.Linear(self.channels, dim)
        self.encoder, self.decoder = (
            nn.ModuleList(AttentionLayer(dim, num_heads, ffn_dim, dropout) for _ in range(n))
            for n in (num_encoder_layers, num_decoder_layers)
        )
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.queries = nn.Parameter(torch.randn(self.num_classes, dim))
        self.norm = nn.LayerNorm(dim)
        self.label_score = PerLabelLinear(dim, self.num_classes, self.prior_prob)

    def predict(self, features: ImageFeatures) -> LabelOutput:
        """Logits."""
        tokens, valid = features.tokens(self.in_feature)
        tokens = self.project(tokens)  # (N, L, D)
        size = features.maps[self.in_feature].shape[-2:]
        pos = sine_positions(valid.unflatten(1, size), tokens.shape[-1])
        for layer in self.encoder:
            tokens = layer(tokens, tokens, valid, pos, pos)
        queries = self.queries.expand(len(tokens), -1, -1)  # (N, C, D)
        x = torch.zeros_like(queries)
        for layer in self.decoder:
            x = layer(x, tokens, valid, queries, pos)
        return LabelOutput(self.label_score(self.norm(x)))
