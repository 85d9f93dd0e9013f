"""A trained model: where it is, its config, weights, device and class names."""

import argparse
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog

from .. import model_zoo
from ..config import (
    ConfigError,
    add_scnet_config,
    check_dataset_names,
    find_config,
    load_config,
    use_available_device,
)
from ..data.problems import check_class_names, counted

CONFIG, CARD, THRESHOLDS = "config.yaml", "README.md", "thresholds.json"
# What train_net.py leaves in a run's folder, and what a model folder has.
WEIGHTS = RUN_WEIGHTS, MODEL_WEIGHTS = "model_final.pth", "model.safetensors"
# Keys beside those of MODEL; the thresholds of classes are a file.
_PREDICTION_KEYS = {
    "INPUT": ("MIN_SIZE_TEST", "MAX_SIZE_TEST", "FORMAT"),
    "TEST": ("DETECTIONS_PER_IMAGE", "LABEL_THRESHOLD"),
}
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


def load_arguments(args: argparse.Namespace, *, device_of_this_machine: bool = True) -> CfgNode:
    """The config of `--model`, `--config-file` or `--weights` with `--opts`: see :func:`load_run`.

    Raises:
        ConfigError: also where none of them is given.
    """
    cfg = read_arguments(args)
    return _ready(cfg, device_of_this_machine)


def read_arguments(args: argparse.Namespace) -> CfgNode:
    """As :func:`load_arguments`, without a look at the device and the class names."""
    if not (args.model or args.weights):
        raise ConfigError(
            "give --model; or --weights, and --config-file unless its config.yaml is beside it"
        )
    return _read(args.model or Path(args.weights).parent / CONFIG, args.weights, args.opts)


def load_run(
    source: str | os.PathLike,
    weights: str | os.PathLike | None = None,
    opts: Sequence[Any] = (),
    *,
    device_of_this_machine: bool = True,
) -> CfgNode:
    """The config of a trained model, ready to predict with.

    Args:
        source: a model, see :func:`find_model`; or a config file.
        weights: a checkpoint; by default `MODEL.WEIGHTS` of `opts`, the folder's weights, or
            `MODEL.WEIGHTS` of the config file.
        opts: KEY, VALUE, KEY, VALUE, ...
        device_of_this_machine: the CPU takes the place of a GPU that is not there.

    Returns:
        A config whose `MODEL.WEIGHTS` is set, and whose class names are as many as its classes.

    Raises:
        ConfigError: naming the file or the key, and the remedy.
        ValueError: if the class names do not fit, see `class_names`.
    """
    return _ready(_read(source, weights, opts), device_of_this_machine)


def _read(
    source: str | os.PathLike, weights: str | os.PathLike | None, opts: Sequence[Any]
) -> CfgNode:
    source = find_model(source)
    folder = source if source.is_dir() else None
    cfg = load_config(folder / CONFIG if folder else source, opts)
    if weights is None and folder and "MODEL.WEIGHTS" not in opts[::2]:
        weights = _weights_of(folder)
    cfg.MODEL.WEIGHTS = os.fspath(weights or cfg.MODEL.WEIGHTS)
    _check_weights(cfg.MODEL.WEIGHTS, source)
    thresholds = (folder or source.parent) / cfg.TEST.LABEL_THRESHOLDS
    if "TEST.LABEL_THRESHOLDS" not in opts[::2] and thresholds.is_file():
        cfg.TEST.LABEL_THRESHOLDS = os.fspath(thresholds)
    return cfg


def _ready(cfg: CfgNode, device_of_this_machine: bool) -> CfgNode:
    if device_of_this_machine:
        use_available_device(cfg)
    class_names(cfg)
    return cfg


def find_model(source: str | os.PathLike) -> Path:
    """The folder of a model, or a config file as it is.

    Args:
        source: a folder, of a model or of a run; else the name of a config or of a model that comes
            with the package; else user/name on the Hugging Face hub, from where it is downloaded
            unless it has been before.

    Raises:
        ConfigError: naming what was looked for, and what else is taken.
    """
    path, name = Path(source).expanduser(), os.fspath(source)
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise ConfigError(f"folder '{name}' has no {CONFIG}: {_what_is_taken()}")
        return path
    if path.is_file() and path.suffix in (".pth", ".pkl", ".safetensors"):
        raise ConfigError(
            f"'{name}' are weights: give their folder, or a config file and MODEL.WEIGHTS {name}"
        )
    if (config := find_config(path)).is_file() or path.suffix == ".yaml":
        return config
    if name in model_zoo.list_models():
        return model_zoo.model_folder(name)
    if _HUB_ID.fullmatch(name):
        return _from_hub(name)
    raise ConfigError(f"there is no model '{name}': {_what_is_taken()}")


def class_names(cfg: CfgNode) -> list[str]:
    """C names of the labels, from `DATASETS.CLASS_NAMES` or the test data set.

    Raises:
        ValueError: if their number is not the number of classes.
    """
    check_dataset_names(cfg)
    names = list(cfg.DATASETS.CLASS_NAMES)
    if not names and cfg.DATASETS.TEST:
        names = MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("thing_classes") or []
    if len(names) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise ValueError(
            f"{counted(len(names), 'class name')} for a model of "
            f"{counted(cfg.MODEL.ROI_HEADS.NUM_CLASSES, 'class')}: use the "
            "config.yaml of the training run, or set DATASETS.CLASS_NAMES"
        )
    check_class_names(names, "DATASETS.CLASS_NAMES")
    return names


def prediction_config(cfg: CfgNode) -> dict[str, Any]:
    """The keys of a config that prediction needs, where they differ from the defaults.

    They hold no path of this machine, and no name of a data set.
    """
    defaults = get_cfg()
    add_scnet_config(defaults)
    model = _changed(cfg.MODEL, defaults.MODEL)
    kept = {"MODEL": {key: x for key, x in model.items() if key not in ("WEIGHTS", "DEVICE")}}
    for part, keys in _PREDICTION_KEYS.items():
        changed = _changed(cfg[part], defaults[part])
        kept[part] = {key: changed[key] for key in keys if key in changed}
    kept["DATASETS"] = {"CLASS_NAMES": class_names(cfg)}
    return {"VERSION": cfg.VERSION} | {part: keys for part, keys in kept.items() if keys}


def _changed(cfg: CfgNode, defaults: CfgNode) -> dict[str, Any]:
    """What differs; a tuple is a list, as yaml has it."""
    pairs = {key: (x, defaults[key]) for key, x in cfg.items()}
    pairs = {k: (x, d) for k, (x, d) in pairs.items() if json.dumps(x) != json.dumps(d)}
    return {k: _changed(x, d) if isinstance(x, CfgNode) else x for k, (x, d) in pairs.items()}


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (slow, and seldom needed)

    try:
        files = [CONFIG, MODEL_WEIGHTS, CARD, THRESHOLDS]
        folder = Path(snapshot_download(name, allow_patterns=files))
    except Exception as error:  # of the network, the hub or the disk
        why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise ConfigError(
            f"there is no folder '{name}', and the Hugging Face hub does not give it ({why}): "
            f"{_what_is_taken()}"
        ) from error
    return find_model(folder)


def _what_is_taken() -> str:
    shipped = ", ".join(model_zoo.list_models()) or "none so far"
    return (
        f"give the name of a model that comes with scnet_d2 ({shipped}), the folder of a model "
        f"({CONFIG} and {MODEL_WEIGHTS}) or of a run ({CONFIG} and {RUN_WEIGHTS}), or user/name "
        "on the Hugging Face hub"
    )


def _weights_of(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(
        f"folder '{folder}' has neither {' nor '.join(WEIGHTS)}: copy it there, or set "
        "MODEL.WEIGHTS to a checkpoint"
    )


def _check_weights(weights: str, source: Path) -> None:
    if not weights:
        raise ConfigError(f"{source}: MODEL.WEIGHTS is empty: set it to a trained checkpoint")
    path = weights.partition("?")[0]  # Detectron2's "?matching_heuristics=True"
    if "://" not in path and not os.path.isfile(path):
        raise ConfigError(f"weights '{path}' do not exist: set MODEL.WEIGHTS to a checkpoint")
