"""Trained models that come with the package, a folder each (docs/weights.md), and its configs."""

from pathlib import Path

from detectron2.config import CfgNode, LazyConfig
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler
from omegaconf import DictConfig

from ..config import load_config, no_config, shipped_config

FOLDER = Path(__file__).parent
PREFIX = "scnet://"


def list_models() -> list[str]:
    """Names of the models."""
    return sorted(config.parent.name for config in FOLDER.glob("*/config.yaml"))


def model_folder(name: str) -> Path:
    """The folder of a model: config.yaml, model.safetensors and README.md, its model card.

    Raises:
        KeyError: naming the models that there are.
    """
    if name not in list_models():
        raise KeyError(f"no model '{name}' comes with scnet_d2; {', '.join(list_models())} do")
    return FOLDER / name


def get_config_file(name: str) -> str:
    """The file of a config that comes with the package, as Detectron2's `get_config_file`.

    Args:
        name: such as VOC-MultiLabel/scnet_R_50_FPN, with or without .yaml; or with .py.

    Raises:
        ConfigError: naming the nearest configs.
    """
    file = shipped_config(name)
    if file is None:
        raise no_config(name)
    return str(file)


def get_config(name: str) -> CfgNode | DictConfig:
    """A config that comes with the package, as Detectron2's `get_config`.

    Args:
        name: see :func:`get_config_file`.

    Returns:
        Detectron2's keys and the project's; of a .py file what `LazyConfig` loads.
    """
    file = get_config_file(name)
    return LazyConfig.load(file) if file.endswith(".py") else load_config(file)


class ModelWeights(PathHandler):
    """Finds `scnet://<name>`, the weights of a model that comes with the package."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        name = path.removeprefix(PREFIX)
        try:
            return str(model_folder(name) / "model.safetensors")
        except KeyError as error:
            raise FileNotFoundError(error.args[0]) from None


PathManager.register_handler(ModelWeights(), allow_override=True)
