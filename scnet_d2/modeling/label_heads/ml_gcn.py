"""ML-GCN: classifiers that a graph network makes of the words for the labels."""

from typing import ClassVar

from detectron2.config import configurable
from torch.nn import functional as F

from .features import ImageFeatures
from .graph import GraphConvolution, label_graph
from .head import LABEL_HEAD_REGISTRY, LabelHead, LabelOutput


@LABEL_HEAD_REGISTRY.register()
class MLGCN(LabelHead):
    """Two graph convolutions turn word vectors (C, W) into classifiers (C, D).

    They are applied to the map's maximum over the image. The graph is that of the
    labels' co-occurrence in the training set. Without a graph it is a linear classifier.

    Source: Chen et al., "Multi-label image recognition with graph convolutional networks",
    CVPR 2019; there the words are GloVe's.
    """

    needs: ClassVar[tuple[str, ...]] = ("counts", "words")

    @configurable
    def __init__(
        self,
        *,
        hidden_dim: int = 1024,
        threshold: float = 0.4,
        neighbours: float = 0.2,
        bias: bool = False,
        **kwargs,
    ):
        """
        Args:
            hidden_dim: width between the convolutions.
            threshold: see `label_graph`.
            neighbours: see `label_graph`.
            bias: add a bias to the logits, for features that are no ReLU's; published: none.
            kwargs: of `LabelHead`.
        """
        super().__init__(**kwargs)
        self.threshold, self.neighbours = threshold, neighbours
        self.graph1 = GraphConvolution(self.context.word_vectors.shape[1], hidden_dim)
        self.graph2 = GraphConvolution(hidden_dim, self.channels)
        self.bias = self.label_bias() if bias else 0.0

    def predict(self, features: ImageFeatures) -> LabelOutput:
        """Logits."""
        graph = label_graph(self.context, self.threshold, self.neighbours)
        x = F.leaky_relu(self.graph1(self.context.word_vectors, graph), 0.2)  # (C, hidden)
        classifiers = self.graph2(x, graph)  # (C, D)
        return LabelOutput(features.pooled(self.in_feature, "max") @ classifiers.T + self.bias)
