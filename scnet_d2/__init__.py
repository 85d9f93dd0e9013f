"""scnet_d2: multi-label image classification with spatial context, on Detectron2."""

try:
    import cv2 as _cv2  # noqa: F401  (imported for the error alone)
except ImportError as error:
    if "shared object" not in str(error):
        raise
    raise ImportError(
        f"{error}: opencv-python needs X and GL libraries, which this machine lacks. Remedy: `pip "
        "uninstall -y opencv-python opencv-python-headless; pip install opencv-python-headless`"
    ) from error

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
