"""Small label heads, on feature maps and on images that are made here."""

from dataclasses import replace

from scnet_d2.modeling import LABEL_HEAD_REGISTRY, ImageFeatures, ImageLabeler, LabelContext

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.structures import Boxes, ImageList
from torch import nn
from torch.nn import functional as F

NUM_CLASSES = 5
NAMES = ["cat", "dog", "car", "bus", "person"]
CHANNELS = {"res2": 8, "res3": 8, "res4": 12, "res5": 16}
# Images with labels: `dog` and `cat` come together, `bus` is rarest, `person` most frequent.
LABELS = [[0, 1, 4], [0, 1], [2, 4], [4], [1, 4], [3], [2, 0], [4]]
# Widths for a map of few channels.
SMALL = {
    "AttendAndImagine": {"embedding_dim": 8, "attention_dim": 8, "hidden_dim": 32},
    "C2AE": {"hidden_dim": 32},
    "CNNRNN": {"embedding_dim": 16, "hidden_dim": 32, "dropout": 0.0},
    "CRL": {"dim": 8},
    "CTran": {"num_heads": 2, "ffn_dim": 32, "num_layers": 1, "dropout": 0.0},
    "DELTA": {"dim": 16},
    "DecoupleNet": {"dim": 16, "num_heads": 2},
    "FeVLV": {"dim": 8, "num_components": 2},
    "KSSNet": {"dropout": 0.0},
    "MLDecoder": {"dim": 16, "num_heads": 2, "ffn_dim": 32, "dropout": 0.0},
    "MLGCN": {"hidden_dim": 16},
    "MSCMA": {"dim": 16},
    "ProNet": {"window": 1, "size": 8},
    "Query2Label": {"dim": 16, "num_heads": 2, "ffn_dim": 32, "dropout": 0.0},
    "RNNAttention": {"map_dim": 8, "hidden_dim": 32, "crop": 4},
    "SRN": {"dim": 16, "grid": 4},
    "WSLGCN": {"hidden_dim": 16},
}
HEADS = sorted(name for name, _ in LABEL_HEAD_REGISTRY)
ON_BOXES = ("FeVLV",)  # heads of SCNet alone
OF_IMAGES = [name for name in HEADS if name not in ON_BOXES]


def head(name, *, fill=True, num_classes=NUM_CLASSES, **options):
    """A head of small widths, which has seen the labels of a training set."""
    cls = LABEL_HEAD_REGISTRY.get(name)
    context = None
    if cls.needs:
        words = 384 if "words" in cls.needs else 0
        context = LabelContext(num_classes=num_classes, class_names=NAMES, word_dim=words)
    made = cls(
        input_shape={name: ShapeSpec(channels=n) for name, n in CHANNELS.items()},
        num_classes=num_classes,
        context=context,
        **SMALL.get(name, {}) | options,
    )
    if cls.needs and fill:
        made.fill_context(NAMES, LABELS)
    return made


class PoolBackbone(Backbone):
    """Gives as its feature maps an image of as many channels as `res5`, pooled."""

    size_divisibility = 8

    def forward(self, x):
        strides = {"res2": 1, "res3": 2, "res4": 4, "res5": 8}
        return {name: F.avg_pool2d(x[:, : CHANNELS[name]], s) for name, s in strides.items()}


def features(*images):
    """Feature maps of images (16, H, W), padded to one size, and boxes of 8 x 8 px, unlabelled."""
    seen = ImageFeatures.of(ImageList.from_tensors(list(images), 8), PoolBackbone())
    sizes = [image.shape[1:] for image in images]
    corners = [torch.cartesian_prod(*(torch.arange(0, s, 8) for s in (w, h))) for h, w in sizes]
    boxes = [Boxes(torch.cat([c, c + 8], dim=1).float()) for c in corners]
    scores = [torch.zeros(len(b), NUM_CLASSES) for b in boxes]
    return replace(seen, boxes=boxes, label_scores=scores)


def noise(*sizes, seed=0):
    """Random images of these sizes (height, width), of as many channels as `res5`."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(CHANNELS["res5"], *size, generator=generator) for size in sizes]


def pictures(labels=LABELS):
    """Images in which each label has a square of its own, with noise."""
    images = noise(*[(24, 32 - 8 * (i % 2)) for i in range(len(labels))])
    places = torch.Generator().manual_seed(1)
    for image, present in zip(images, labels):
        for place, label in zip(torch.randperm(9, generator=places).tolist(), present):
            y, x = 8 * (place // 3), 8 * (place % 3)
            image[2 * label : 2 * label + 2, y : y + 8, x : x + 8] += 9
    return images


class TinyBackbone(Backbone):
    """Four convolutions, named as stages."""

    size_divisibility = 8

    def __init__(self):
        super().__init__()
        width = 3
        for name, channels in CHANNELS.items():
            layer = nn.Conv2d(width, channels, 3, stride=1 if name == "res2" else 2, padding=1)
            setattr(self, name, nn.Sequential(layer, nn.ReLU()))
            width = channels

    def forward(self, x):
        features = {}
        for name in CHANNELS:
            x = features[name] = getattr(self, name)(x)
        return features


def labeler(name, **options):
    """An `ImageLabeler` on images of a few pixels."""
    return ImageLabeler(
        backbone=TinyBackbone(),
        head=head(name, **options),
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
    )
