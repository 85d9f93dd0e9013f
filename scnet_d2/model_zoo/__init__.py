"""Trained models that come with the package, a folder each (docs/weights.md)."""

from pathlib import Path

FOLDER = Path(__file__).parent


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
