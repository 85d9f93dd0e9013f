"""CNN-RNN: labels one after the other, in one space with the image."""

import torch
from detectron2.config import configurable
from torch import nn
from torch.nn import functional as F

from .features import ImageFeatures
from .head import LABEL_HEAD_REGISTRY
from .sequence import SequenceHead


@LABEL_HEAD_REGISTRY.register()
class CNNRNN(SequenceHead):
    """An LSTM over the labels before; its output and the image are projected to label vectors.

    The next label's logit is the product of the sum of both with the label's own vector.

    Our reading: greedy search in the place of beam search, and all is trained at once.

    Source: Wang et al., "CNN-RNN: a unified framework for multi-label image classification",
    CVPR 2016, from memory.
    """

    @configurable
    def __init__(
        self,
        *,
        embedding_dim: int = 64,
        hidden_dim: int = 512,
        dropout: float = 0.5,
        max_steps: int = 10,
        **kwargs,
    ):
        """
        Args:
            embedding_dim: E, length of the label vectors.
            hidden_dim: of the LSTM.
            dropout: of the projections, in training.
            max_steps: of inference.
            kwargs: of `LabelHead`.
        """
        super().__init__(max_steps=max_steps, **kwargs)
        self.labels = nn.Embedding(self.num_classes + 1, embedding_dim)
        nn.init.normal_(self.labels.weight, std=embedding_dim**-0.5)  # they give the logits too
        self.lstm = nn.LSTMCell(embedding_dim, hidden_dim)
        self.project_image = nn.Linear(self.channels, embedding_dim)
        self.project_output = nn.Linear(hidden_dim, embedding_dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def start(self, features: ImageFeatures) -> tuple[torch.Tensor, None]:
        """The image's projection (N, E); the LSTM starts from 0."""
        return self.project_image(features.pooled(self.in_feature)), None

    def step(self, previous: torch.Tensor, state: tuple) -> tuple[torch.Tensor, tuple]:
        """See `SequenceHead.step`."""
        image, memory = state
        memory = self.lstm(self.labels(previous), memory)
        x = self.dropout(F.relu(self.project_output(memory[0]) + image))  # (N, E)
        return x @ self.labels.weight.T, (image, memory)
