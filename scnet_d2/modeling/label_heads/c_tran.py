"""C-Tran: labels and cells of the image read each other, some labels being given."""

import torch
from detectron2.config import configurable
from torch import nn

from .features import ImageFeatures
from .head import LABEL_HEAD_REGISTRY, LabelHead, LabelOutput
from .layers import PerLabelLinear

UNKNOWN, ABSENT, PRESENT = 0, 1, 2  # states of a label


@LABEL_HEAD_REGISTRY.register()
class CTran(LabelHead):
    """A transformer encoder over the cells of the map and a token for each label.

    In training a random share of the labels of an image is given to it, and the loss is on the
    rest. In inference none is.

    Source: Lanchantin et al., "General multi-label image classification with transformers",
    CVPR 2021.
    """

    @configurable
    def __init__(
        self,
        *,
        dim: int = 0,
        num_heads: int = 4,
        ffn_dim: int = 2048,
        num_layers: int = 3,
        max_known: float = 0.75,
        dropout: float = 0.1,
        **kwargs,
    ):
        """
        Args:
            dim: D, width of the tokens; 0: the map's channels, as published.
            num_heads: of the attention.
            ffn_dim: width of the dense layers.
            num_layers: of the encoder.
            max_known: share of the labels that is given at most.
            dropout: in training.
            kwargs: of `LabelHead`.
        """
        super().__init__(**kwargs)
        self.max_known = max_known
        same = dim in (0, self.channels)
        dim = dim or self.channels
        self.project = nn.Identity() if same else nn.Linear(self.channels, dim)
        self.labels = nn.Embedding(self.num_classes, dim)
        self.states = nn.Embedding(3, dim, padding_idx=UNKNOWN)  # that of unknown stays 0
        for embedding in (self.labels, self.states):
            nn.init.uniform_(embedding.weight, -(dim**-0.5), dim**-0.5)
        nn.init.zeros_(self.states.weight[UNKNOWN].detach())
        self.norm = nn.LayerNorm(dim)
        layer = nn.TransformerEncoderLayer(dim, num_heads, ffn_dim, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.label_score = PerLabelLinear(dim, self.num_classes, self.prior_prob)

    def forward(
        self,
        features: ImageFeatures,
        targets: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> LabelOutput:
        """As `LabelHead.forward`; the loss is on the labels that were not given."""
        if targets is None:
            return self.predict(features)
        known = self.draw_known(mask)
        states = torch.where(known, torch.where(targets > 0, PRESENT, ABSENT), UNKNOWN)
        output = LabelOutput(self._logits(features, states))
        return output._replace(losses=self.losses(output, targets, mask * ~known))

    def predict(self, features: ImageFeatures) -> LabelOutput:
        """Logits, no label given."""
        shape = len(features.images), self.num_classes
        device = features.maps[self.in_feature].device
        unknown = torch.full(shape, UNKNOWN, device=device)
        return LabelOutput(self._logits(features, unknown))

    def draw_known(self, mask: torch.Tensor) -> torch.Tensor:
        """(N, C) bool, the labels that are given: 0 to `max_known` of them, no ignored one."""
        numbers = torch.arange(int(self.max_known * self.num_classes) + 1, device=mask.device)
        counts = numbers[torch.randint(len(numbers), (len(mask), 1), device=mask.device)]
        ranks = torch.rand_like(mask).argsort(dim=1).argsort(dim=1)
        return (ranks < counts) & (mask > 0)

    def _logits(self, features: ImageFeatures, states: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) where labels are in these states (N, C)."""
        tokens, valid = features.tokens(self.in_feature)
        labels = self.labels.weight + self.states(states)  # (N, C, D)
        x = self.norm(torch.cat([self.project(tokens), labels], dim=1))
        padding = torch.cat([~valid, torch.zeros_like(states, dtype=torch.bool)], dim=1)
        x = self.encoder(x, src_key_padding_mask=padding)
        return self.label_score(x[:, -self.num_classes :])
