"""A trained model: its config, weights, device and class names."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..config import ConfigError, load_config, use_available_device
from .predictor import class_names

CONFIG, WEIGHTS = "config.yaml", "model_final.pth"  # what train_net.py leaves in a run's folder


def load_run(
    source: str | os.PathLike,
    weights: str | os.PathLike | None = None,
    opts: Sequence[Any] = (),
    *,
    device_of_this_machine: bool = True,
) -> CfgNode:
    """The config of a trained model, ready to predict with.

    Args:
        source: folder of a run, with `config.yaml` and `model_final.pth`; or a config file.
        weights: a checkpoint; by default `MODEL.WEIGHTS` of `opts`, the folder's final weights, or
            `MODEL.WEIGHTS` of the config file.
        opts: KEY, VALUE, KEY, VALUE, ...
        device_of_this_machine: the CPU takes the place of a GPU that is not there.

    Returns:
        A config whose `MODEL.WEIGHTS` is set, and whose class names are as many as its classes.

    Raises:
        ConfigError: naming the file or the key, and the remedy.
        ValueError: if the class names do not fit, see `class_names`.
    """
    source = Path(source)
    folder = source if source.is_dir() else None
    cfg = load_config(folder / CONFIG if folder else source, opts)
    if weights is None and folder and "MODEL.WEIGHTS" not in opts[::2]:
        weights = folder / WEIGHTS
    cfg.MODEL.WEIGHTS = os.fspath(weights or cfg.MODEL.WEIGHTS)
    _check_weights(cfg.MODEL.WEIGHTS, source)
    if device_of_this_machine:
        use_available_device(cfg)
    class_names(cfg)
    return cfg


def _check_weights(weights: str, source: Path) -> None:
    if not weights:
        raise ConfigError(f"{source}: MODEL.WEIGHTS is empty: set it to a trained checkpoint")
    path = weights.partition("?")[0]  # Detectron2's "?matching_heuristics=True"
    if "://" not in path and not os.path.isfile(path):
        raise ConfigError(f"weights '{path}' do not exist: set MODEL.WEIGHTS to a checkpoint")
