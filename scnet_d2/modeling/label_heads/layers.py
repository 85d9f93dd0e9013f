"""Layers that several label heads have."""

import math

import torch
from torch import nn


class AttentionLayer(nn.Module):
    """A layer of a transformer: attention, then dense layers, each added and normalised."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float = 0.1):
        """
        Args:
            dim: D, length of queries and tokens.
            num_heads: of the attention.
            ffn_dim: width of the dense layers.
            dropout: of both, in training.
        """
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, num_heads, dropout, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.ffn = nn.Sequential(
            nn.Linear(dim, ffn_dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(ffn_dim, dim)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        queries: torch.Tensor,
        tokens: torch.Tensor,
        valid: torch.Tensor,
        query_pos: torch.Tensor | float = 0.0,
        token_pos: torch.Tensor | float = 0.0,
    ) -> torch.Tensor:
        """Queries after reading the tokens.

        Args:
            queries: (N, Q, D).
            tokens: (N, L, D).
            valid: (N, L) bool, False for tokens that are not read.
            query_pos: (N, Q, D), added to the queries for the attention alone.
            token_pos: (N, L, D), added to the tokens for the attention alone.

        Returns:
            (N, Q, D).
        """
        read, _ = self.attention(
            queries + query_pos,
            tokens + token_pos,
            tokens,
            key_padding_mask=~valid,
            need_weights=False,
        )
        x = self.norm1(queries + self.dropout(read))
        return self.norm2(x + self.dropout(self.ffn(x)))


class PerLabelLinear(nn.Linear):
    """A linear classifier for each label, on a feature of its own: (N, C, D) -> (N, C)."""

    def __init__(self, dim: int, num_classes: int, prior_prob: float):
        """
        Args:
            dim: D.
            num_classes: C.
            prior_prob: score of every label where the features are 0, before training.
        """
        super().__init__(dim, num_classes)
        nn.init.constant_(self.bias, math.log(prior_prob / (1 - prior_prob)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) of label features (N, C, D)."""
        return (x * self.weight).sum(dim=-1) + self.bias


def spatial_softmax(scores: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Softmax of scores (N, C, L) over the cells that are valid, (N, L) bool; 0 elsewhere."""
    return scores.masked_fill(~valid[:, None], -math.inf).softmax(dim=-1)


def spatial_mean(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean (N, C) of values (N, C, L) over the cells that are valid, (N, L) bool."""
    weight = valid[:, None].to(values.dtype)
    return (values * weight).sum(dim=-1) / weight.sum(dim=-1)


def sine_positions(valid: torch.Tensor, dim: int) -> torch.Tensor:
    """Sines and cosines of the place of each cell in its image, (N, H, W) bool -> (N, H·W, D).

    Args:
        valid: cells that the image reaches into.
        dim: D, half of it for the row and half for the column; a multiple of 4.

    Source: Carion et al., "End-to-end object detection with transformers", ECCV 2020.
    """
    waves = 10000 ** (torch.arange(0, dim // 2, 2, device=valid.device) / (dim // 2))
    codes = []
    for axis in (1, 2):
        place = valid.cumsum(axis).float()
        place = 2 * math.pi * place / place.amax(dim=axis, keepdim=True).clamp(min=1)
        angle = place[..., None] / waves  # (N, H, W, D / 4)
        codes += [angle.sin(), angle.cos()]
    return torch.cat(codes, dim=-1).flatten(1, 2)
