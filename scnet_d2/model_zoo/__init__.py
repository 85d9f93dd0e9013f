"""Trained models that come with the package, a folder each (docs/weights.md)."""

from pathlib import Path

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

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
