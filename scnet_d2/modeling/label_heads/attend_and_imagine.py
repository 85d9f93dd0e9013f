"""Attend-and-Imagine-style: the image is read again before each label."""

import torch
from detectron2.config import configurable
from torch import nn
from torch.nn import functional as F

from .features import ImageFeatures
from .head import LABEL_HEAD_REGISTRY
from .layers import spatial_softmax
from .sequence import SequenceHead


@LABEL_HEAD_REGISTRY.register()
class AttendAndImagine(SequenceHead):
    """An LSTM that attends to the map by its state, and then predicts the next label.

    Our reading: of the paper the abstract is at hand; the layers are those of a relative of it
    (orderless recurrent models), trained here with the true labels before.

    Source: Lyu et al., "Attend and imagine: multi-label image classification with visual attention
    and recurrent neural networks", IEEE Transactions on Multimedia 2019.
    """

    @configurable
    def __init__(
        self,
        *,
        embedding_dim: int = 256,
        attention_dim: int = 512,
        hidden_dim: int = 512,
        max_steps: int = 10,
        **kwargs,
    ):
        """
        Args:
            embedding_dim: length of the label vectors.
            attention_dim: width of the attention.
            hidden_dim: of the LSTM.
            max_steps: of inference.
            kwargs: of `LabelHead`.
        """
        super().__init__(max_steps=max_steps, **kwargs)
        self.labels = nn.Embedding(self.num_classes + 1, embedding_dim)
        self.start_memory = nn.Linear(self.channels, 2 * hidden_dim)
        self.attend_tokens = nn.Linear(self.channels, attention_dim)
        self.attend_state = nn.Linear(hidden_dim, attention_dim)
        self.attention = nn.Linear(attention_dim, 1)
        self.gate = nn.Linear(hidden_dim, self.channels)
        self.lstm = nn.LSTMCell(embedding_dim + self.channels, hidden_dim)
        self.label_score = nn.Linear(hidden_dim, self.num_classes + 1)

    def start(self, features: ImageFeatures) -> tuple:
        """The map's cells, and an LSTM that starts from their mean."""
        tokens, valid = features.tokens(self.in_feature)  # (N, L, D), (N, L)
        memory = self.start_memory(features.pooled(self.in_feature)).chunk(2, dim=1)
        return (tokens, self.attend_tokens(tokens), valid), memory

    def step(self, previous: torch.Tensor, state: tuple) -> tuple[torch.Tensor, tuple]:
        """See `SequenceHead.step`."""
        (tokens, projected, valid), (hidden, cell) = state
        energy = self.attention(F.relu(projected + self.attend_state(hidden)[:, None]))
        attention = spatial_softmax(energy.transpose(1, 2), valid)  # (N, 1, L)
        seen = self.gate(hidden).sigmoid() * (attention @ tokens)[:, 0]  # (N, D)
        memory = self.lstm(torch.cat([self.labels(previous), seen], dim=1), (hidden, cell))
        return self.label_score(memory[0]), (state[0], memory)
