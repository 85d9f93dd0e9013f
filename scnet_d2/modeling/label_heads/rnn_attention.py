"""RNN-Attention: an LSTM crops the feature map again and again."""

import torch
from detectron2.config import configurable
from torch import nn
from torch.nn import functional as F

from .features import ImageFeatures
from .head import LABEL_HEAD_REGISTRY, LabelHead, LabelOutput

# Where the crops should lie, (x, y) in [-1, 1]: the middle, and the quarters.
ANCHORS = ((0.0, 0.0), (-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5))
# Of the crops' sides as shares of the image: at most, at least, and the losses' weights.
MAX_SCALE, MIN_SCALE = 0.5, 0.1
ANCHOR_WEIGHT, MIN_SCALE_WEIGHT = 0.01, 0.1


@LABEL_HEAD_REGISTRY.register()
class RNNAttention(LabelHead):
    """Five crops of the map, each placed by what was seen before; the maximum of their logits.

    The whole image comes first and is not scored. The loss of the labels is the one of the config,
    where the port has squared errors of a softmax; the crops have the port's losses: small, near
    their anchors, not too small. One size and one view of an image.

    Source: Wang et al., "Multi-label image recognition by recurrently discovering attentional
    regions", ICCV 2017; layers and constants as in a port of it, with a 1 x 1 convolution before
    the dense layer: our reading, for maps of more channels than VGG's.
    """

    @configurable
    def __init__(
        self,
        *,
        map_dim: int = 512,
        hidden_dim: int = 4096,
        crop: int = 14,
        location_weight: float = 0.1,
        **kwargs,
    ):
        """
        Args:
            map_dim: channels that the map is reduced to.
            hidden_dim: of the dense layers and the LSTM.
            crop: side of a crop in cells, an even number; halved by maximum pooling.
            location_weight: of the losses of the crops.
            kwargs: of `LabelHead`.
        """
        super().__init__(**kwargs)
        self.crop, self.location_weight = crop, location_weight
        self.reduce = nn.Conv2d(self.channels, map_dim, 1)
        self.dense = nn.Linear(map_dim * (crop // 2) ** 2, hidden_dim)
        self.lstm = nn.LSTMCell(hidden_dim, hidden_dim)
        self.place = nn.Linear(hidden_dim, hidden_dim)
        self.location = nn.Linear(hidden_dim, 4)  # scale and shift of x and y
        nn.init.zeros_(self.location.weight)
        self.location.bias.data = torch.tensor([1.0, 1.0, 0.0, 0.0])
        self.label_score = self.label_layer(hidden_dim)
        self.register_buffer("anchors", torch.tensor(ANCHORS), persistent=False)

    def forward(
        self,
        features: ImageFeatures,
        targets: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> LabelOutput:
        """As `LabelHead.forward`."""
        feature = self.reduce(features.maps[self.in_feature])
        feature = feature * features.valid(self.in_feature).view(
            len(feature), 1, *feature.shape[2:]
        )
        place = feature.new_tensor([1.0, 1.0, 0.0, 0.0]).expand(len(feature), -1)
        memory, places, scores = None, [], []
        for step in range(len(self.anchors) + 1):
            crop = F.max_pool2d(self._cut(feature, place, features), 2)
            memory = self.lstm(self.dense(crop.flatten(1)), memory)
            hidden = F.relu(self.place(memory[0]))
            if step:
                places.append(place)
                scores.append(self.label_score(hidden))
            place = self.location(hidden)
        output = LabelOutput(torch.stack(scores).amax(dim=0))
        if targets is None:
            return output
        places = torch.stack(places, dim=1)  # (N, 5, 4)
        location = self.location_weight * location_loss(places.float(), self.anchors)
        losses = self.losses(output, targets, mask) | {"loss_location": location}
        return output._replace(losses=losses)

    def _cut(
        self, feature: torch.Tensor, place: torch.Tensor, features: ImageFeatures
    ) -> torch.Tensor:
        """Crops (N, D, crop, crop) at places (N, 4) of the images, which have padding."""
        height, width = features.images.tensor.shape[-2:]
        share = place.new_tensor([[w / width, h / height] for h, w in features.images.image_sizes])
        scale, shift = place[:, :2] * share, (place[:, 2:] + 1) * share - 1
        theta = torch.cat([scale.diag_embed(), shift[:, :, None]], dim=2)  # (N, 2, 3)
        size = (*feature.shape[:2], self.crop, self.crop)
        grid = F.affine_grid(theta.to(feature.dtype), size, align_corners=False)
        return F.grid_sample(feature, grid, align_corners=False)


def location_loss(places: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """What the crops' places cost, summed over the crops and averaged over images.

    Args:
        places: (N, K, 4), scale and shift of x and y.
        anchors: (K, 2), wanted shifts.
    """
    scale, shift = places.split(2, dim=2)
    large = (scale.abs() - MAX_SCALE).clamp(min=0).square()
    far = (shift - anchors).square() / 2
    small = (MIN_SCALE - scale).clamp(min=0)
    loss = large + ANCHOR_WEIGHT * far + MIN_SCALE_WEIGHT * small
    return loss.sum() / len(places)
