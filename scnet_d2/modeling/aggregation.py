"""From label scores of boxes to label scores of an image."""

import inspect
import math
from collections.abc import Callable
from functools import partial

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from torch import nn
from torch.nn import functional as F

AGGREGATION_REGISTRY = Registry("AGGREGATION")
AGGREGATION_REGISTRY.__doc__ = """
Functions from the label scores of an image's boxes (K, C), K >= 1, to those of the image (C,).

`MODEL.SCNET.AGGREGATION.METHOD` names one of them. A further parameter of the function, such as
`sharpness`, gets the value of the key of its name, `MODEL.SCNET.AGGREGATION.SHARPNESS`.
"""

Aggregation = Callable[[torch.Tensor], torch.Tensor]  # (K, C) -> (C,)


@AGGREGATION_REGISTRY.register()
def max(scores: torch.Tensor) -> torch.Tensor:
    """Highest score over the boxes, (K, C) -> (C,).

    Example:
        >>> max(torch.tensor([[0.2, 0.5], [0.6, 0.5]]))
        tensor([0.6000, 0.5000])
    """
    return scores.amax(dim=0)


@AGGREGATION_REGISTRY.register()
def topk_mean(scores: torch.Tensor, topk: int) -> torch.Tensor:
    """Mean of the `topk` highest scores over the boxes (of all, where there are fewer).

    Example:
        >>> topk_mean(torch.tensor([[0.2, 0.5], [0.6, 0.5], [0.1, 0.0]]), topk=2)
        tensor([0.4000, 0.5000])
    """
    return scores.sort(dim=0, descending=True).values[:topk].mean(dim=0)


@AGGREGATION_REGISTRY.register()
def noisy_or(scores: torch.Tensor) -> torch.Tensor:
    """Probability that at least one box has the label if boxes were independent.

    Example:
        >>> noisy_or(torch.tensor([[0.2, 0.5], [0.6, 0.5]]))  # 1 - 0.8 * 0.4, 1 - 0.5 * 0.5
        tensor([0.6800, 0.7500])
    """
    return 1 - (1 - scores).prod(dim=0)


@AGGREGATION_REGISTRY.register()
def logsumexp(scores: torch.Tensor, sharpness: float) -> torch.Tensor:
    """Smooth maximum log(mean(exp(r·s)))/r, between the mean and the maximum over the boxes.

    Source: Pinheiro and Collobert, "From image-level to pixel-level labeling with convolutional
    networks", CVPR 2015.

    Example:
        >>> logsumexp(torch.tensor([[0.2, 0.5], [0.6, 0.5]]), sharpness=10)  # log((e²+e⁶)/2)/10
        tensor([0.5325, 0.5000])
    """
    log_num_boxes = torch.logsumexp(torch.zeros_like(scores), dim=0)  # len() is frozen in tracing
    return (torch.logsumexp(scores * sharpness, dim=0) - log_num_boxes) / sharpness


class LabelAggregator(nn.Module):
    """Aggregates the label scores of an image's boxes to those of the image.

    Source: own decision, see docs/method.md; the slides do not say how.
    """

    @configurable
    def __init__(self, *, aggregate: Aggregation = max):
        """
        Args:
            aggregate: maps the scores of the boxes (K, C), K at least 1, to the image's (C,).
        """
        super().__init__()
        self.aggregate = aggregate

    @classmethod
    def from_config(cls, cfg):
        return {"aggregate": build_aggregation(cfg)}

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        """Aggregate the label scores (K, C) of an image's boxes to (C,); no box gives all zero."""
        # All the boxes or else a row of zeros, without a branch, which tracing would freeze.
        padded = F.pad(scores, (0, 0, 0, 1))
        scores = torch.cat([padded[:1], padded[1:-1]])
        return self.aggregate(scores).clamp(0, 1)


def build_aggregation(cfg: CfgNode) -> Aggregation:
    """The function that `MODEL.SCNET.AGGREGATION.METHOD` names, with its parameters.

    Raises:
        ValueError: naming the key: no such function, or a parameter without a key or not above 0.
    """
    agg = cfg.MODEL.SCNET.AGGREGATION
    key = "MODEL.SCNET.AGGREGATION"
    if agg.METHOD not in AGGREGATION_REGISTRY:
        names = sorted(name for name, _ in AGGREGATION_REGISTRY)
        raise ValueError(f"{key}.METHOD is '{agg.METHOD}'; choose one of {names}")
    function = AGGREGATION_REGISTRY.get(agg.METHOD)
    names = list(inspect.signature(function).parameters)[1:]
    for name in names:
        if name.upper() not in agg:
            raise ValueError(
                f"{key}.METHOD {agg.METHOD} needs the key {key}.{name.upper()}; add it"
            )
        if not 0 < agg[name.upper()] < math.inf:
            raise ValueError(f"{key}.{name.upper()} is {agg[name.upper()]}; it must be > 0")
    options = {name: agg[name.upper()] for name in names}
    return partial(function, **options) if options else function
