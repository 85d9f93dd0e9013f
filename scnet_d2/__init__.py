"""scnet_d2: multi-label image classification with spatial context, on Detectron2."""

try:
    import cv2 as _cv2  # noqa: F401  (imported for the error alone)
except ImportError as error:
    text = str(error)
    if error.name == "cv2":
        reason, remedy = "OpenCV is not installed", "pip install opencv-python-headless"
    elif "numpy" in text:
        reason = "OpenCV was built for another NumPy"
        remedy = "pip install --upgrade opencv-python-headless"
    elif "shared object" in text:
        reason = "opencv-python needs X and GL libraries, which this machine lacks"
        remedy = (
            "pip uninstall -y opencv-python opencv-python-headless; pip install "
            "opencv-python-headless"
        )
    else:
        raise
    raise ImportError(f"{text}: {reason}. Remedy: `{remedy}`") from error

# registers the data sets, the weights that come with the package and the meta-architecture
from . import data, model_zoo, modeling
from .config import ConfigError, add_scnet_config, load_config, use_available_device

__all__ = [
    "ConfigError",
    "add_scnet_config",
    "data",
    "load_config",
    "model_zoo",
    "modeling",
    "use_available_device",
]
__version__ = "0.1.0"
