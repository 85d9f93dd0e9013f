"""A box head without weights, for pre-trained features."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY
from torch import nn


@ROI_BOX_HEAD_REGISTRY.register()
class AveragePoolHead(nn.Module):
    """The mean of the pooled features of a box.

    On the last stage of a pre-trained network it gives each box what a classifier of the whole
    image has, where dense layers would start from random weights.
    """

    def __init__(self, cfg, input_shape: ShapeSpec):
        """
        Args:
            cfg: not used, as other box heads take one.
            input_shape: channels D, height and width of pooled features.
        """
        super().__init__()
        self.output_shape = ShapeSpec(channels=input_shape.channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map pooled features (R, D, H, W) to box features (R, D)."""
        return x.mean(dim=(2, 3))
