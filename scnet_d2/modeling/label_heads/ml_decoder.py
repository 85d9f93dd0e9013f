"""ML-Decoder: few fixed queries read the image, and each serves a group of labels."""

import torch
from detectron2.config import configurable
from torch import nn

from .features import ImageFeatures
from .head import LABEL_HEAD_REGISTRY, LabelHead, LabelOutput
from .layers import AttentionLayer


@LABEL_HEAD_REGISTRY.register()
class MLDecoder(LabelHead):
    """One decoder layer without self-attention, on random queries that are not trained.

    Source: Ridnik et al., "ML-Decoder: scalable and versatile classification head", WACV 2023.
    """

    @configurable
    def __init__(
        self,
        *,
        dim: int = 768,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        num_queries: int = 100,
        dropout: float = 0.1,
        **kwargs,
    ):
        """
        Args:
            dim: D, width of queries and tokens.
            num_heads: of the attention.
            ffn_dim: width of the dense layers.
            num_queries: K at most; with fewer classes there is a query for each.
            dropout: in training.
            kwargs: of `LabelHead`.
        """
        super().__init__(**kwargs)
        num_queries = min(num_queries, self.num_classes)
        group = -(-self.num_classes // num_queries)
        self.project = nn.Sequential(nn.Linear(self.channels, dim), nn.ReLU())
        self.register_buffer("queries", torch.randn(num_queries, dim))
        self.norm, self.dropout = nn.LayerNorm(dim), nn.Dropout(dropout)
        self.layer = AttentionLayer(dim, num_heads, ffn_dim, dropout)
        self.group_weight = nn.Parameter(torch.empty(num_queries, dim, group))
        nn.init.xavier_normal_(self.group_weight)
        self.group_bias = self.label_bias()

    def predict(self, features: ImageFeatures) -> LabelOutput:
        """Logits."""
        tokens, valid = features.tokens(self.in_feature)
        queries = self.queries.expand(len(tokens), -1, -1)  # (N, K, D)
        queries = self.norm(queries + self.dropout(queries))  # in the place of self-attention
        x = self.layer(queries, self.project(tokens), valid)
        logits = torch.einsum("nkd,kdg->nkg", x, self.group_weight).flatten(1)
        return LabelOutput(logits[:, : self.num_classes] + self.group_bias)
