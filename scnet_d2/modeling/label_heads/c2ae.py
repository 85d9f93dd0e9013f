"""C2AE: images and label sets as vectors of one space, which are decoded to labels."""

import itertools

import torch
from detectron2.config import configurable
from torch import nn

from .features import ImageFeatures
from .head import LABEL_HEAD_REGISTRY, LabelHead, LabelOutput

SHARPNESS = 5.0  # of the ranking loss
MOMENTUM = 0.9  # of the running products


@LABEL_HEAD_REGISTRY.register()
class C2AE(LabelHead):
    """An encoder of images and one of labels that agree, and a decoder that ranks labels.

    Our adaptation to training from end to end, where the published system has fixed features: the
    encoders' outputs have no sigmoid, their products are running ones over batches (a batch is
    smaller than the vectors), and the loss of the labels that the image decodes to is added, so
    that scores are probabilities.

    Source: Yeh et al., "Learning deep latent spaces for multi-label classification", AAAI 2017.
    """

    @configurable
    def __init__(
        self,
        *,
        latent_share: float = 0.8,
        hidden_dim: int = 512,
        correlation_weight: float = 1.0,
        rank_weight: float = 2.0,
        **kwargs,
    ):
        """
        Args:
            latent_share: K, length of the vectors, / C.
            hidden_dim: width of the networks.
            correlation_weight: of the loss between both vectors.
            rank_weight: of the loss of the decoded labels.
            kwargs: of `LabelHead`.
        """
        super().__init__(**kwargs)
        self.correlation_weight, self.rank_weight = correlation_weight, rank_weight
        latent = max(1, int(latent_share * self.num_classes))
        self.encode_image = _dense(self.channels, hidden_dim, hidden_dim, latent)
        self.encode_labels = _dense(self.num_classes, hidden_dim, latent)
        self.decode = _dense(latent, hidden_dim)
        self.decode.append(nn.LeakyReLU(0.1)).append(self.label_layer(hidden_dim))
        self.register_buffer("image_products", torch.eye(latent))
        self.register_buffer("label_products", torch.eye(latent))

    def forward(
        self,
        features: ImageFeatures,
        targets: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> LabelOutput:
        """As `LabelHead.forward`."""
        image = self.encode_image(features.pooled(self.in_feature))  # (N, K)
        output = LabelOutput(self.decode(image))
        if targets is None:
            return output
        labels = self.encode_labels(targets * mask)  # (N, K)
        decoded = self.decode(labels).float().sigmoid()
        correlation = self._correlation(image.float(), labels.float())
        return output._replace(
            losses=self.losses(output, targets, mask)
            | {
                "loss_correlation": self.correlation_weight * correlation,
                "loss_rank": self.rank_weight * rank_loss(decoded, targets, mask),
            }
        )

    def _correlation(self, image: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Distance of both vectors, and of each one's products from the identity."""
        loss = (image - labels).square().sum() / len(image)
        for x, running in ((image, self.image_products), (labels, self.label_products)):
            products = (x[:, :, None] * x[:, None]).mean(dim=0)  # (K, K)
            products = torch.lerp(products, running.clone(), MOMENTUM)
            running.copy_(products.detach())
            loss = loss + 0.5 * (products - torch.eye(len(products)).to(x)).square().sum()
        return loss


def rank_loss(scores: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of exp(-5 (p_i - p_j)) over the present labels i and the absent ones j of each image.

    Args:
        scores: (N, C) in [0, 1].
        targets: (N, C), 1 or 0.
        mask: (N, C), 0 for ignored labels.

    Returns:
        The average over images; one without such a pair counts 0.
    """
    pairs = (mask * targets)[:, :, None] * (mask * (1 - targets))[:, None]  # (N, C, C)
    differences = scores[:, :, None] - scores[:, None]
    costs = (pairs * torch.exp(-SHARPNESS * differences)).sum(dim=(1, 2))
    return (costs / pairs.sum(dim=(1, 2)).clamp(min=1)).mean()


def _dense(*widths: int) -> nn.Sequential:
    """Linear layers of these widths with leaky ReLUs between them."""
    layers = [nn.Linear(*pair) for pair in itertools.pairwise(widths)]
    return nn.Sequential(*(x for layer in layers for x in (layer, nn.LeakyReLU(0.1))))[:-1]
