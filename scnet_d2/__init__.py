"""scnet_d2: multi-label image classification with spatial context, on Detectron2."""

from . import data, modeling  # registers the data sets and the meta-architecture
from .config import ConfigError, add_scnet_config, load_config, use_available_device

__all__ = [
    "ConfigError",
    "add_scnet_config",
    "data",
    "load_config",
    "modeling",
    "use_available_device",
]
__version__ = "0.1.0"
