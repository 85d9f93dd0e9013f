"""Class names belong to the weights: what a checkpoint was trained for, and a comparison."""

import os
from collections.abc import Sequence
from typing import Any

from ..config import read_run_config
from ..data.problems import counted
from .files import CLASS_NAMES, CheckpointError


def trained_class_names(checkpoint: dict[str, Any], file: str) -> list[str]:
    """Names of the classes that weights were trained for.

    Args:
        checkpoint: what the file holds.
        file: its local path. A config.yaml beside it, as a run leaves, has the names of
            checkpoints without them.

    Returns:
        C names; none where neither tells them.

    Raises:
        ConfigError: if the config.yaml cannot be read.
    """
    names = checkpoint.get(CLASS_NAMES)
    beside = os.path.join(os.path.dirname(file), "config.yaml")
    if names is None and os.path.isfile(beside):
        names = read_run_config(beside)["DATASETS"].get("CLASS_NAMES")
    return [str(name) for name in names or ()]


def check_trained_classes(file: str, trained: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuse weights that were trained for other classes, or for the same in another order.

    Args:
        file: the checkpoint, for the message.
        trained: C names of the checkpoint; none where they are not known.
        wanted: names of the config or the data set; none where nothing is asked for.

    Raises:
        CheckpointError: naming the file and the first class that differs.
    """
    if not (trained and wanted) or list(trained) == list(wanted):
        return
    shorter = min(len(trained), len(wanted))
    i = next((i for i in range(shorter) if trained[i] != wanted[i]), shorter)
    counts = ""
    if len(trained) != len(wanted):
        counts = f"{file} holds {counted(len(trained), 'class')}, the config has {len(wanted)}: "
    raise CheckpointError(
        f"{counts}class {i} is {_name(trained, i)} in {file} and {_name(wanted, i)} in the config "
        "or the data set. Labels would get wrong names: use the config.yaml of the training run "
        "and data with its classes in its order. For other classes, start a new training from "
        f"these weights in a new folder: MODEL.WEIGHTS {file} OUTPUT_DIR <folder>"
    )


def _name(names: Sequence[str], i: int) -> str:
    return f"'{names[i]}'" if i < len(names) else "absent"
