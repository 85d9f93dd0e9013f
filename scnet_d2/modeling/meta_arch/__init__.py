"""Meta-architectures; importing this package registers them."""

from .image_labeler import ImageLabeler
from .scnet import SCNet

__all__ = ["ImageLabeler", "SCNet"]
