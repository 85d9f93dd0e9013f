"""Per-class thresholds, tuned on a validation set and kept in a json file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from ..outputs import write_json

DEFAULT_THRESHOLD = 0.5  # of a class without positives, which has nothing to tune on


def tune_thresholds(
    scores: np.ndarray, labels: np.ndarray, ignored: np.ndarray | None = None
) -> np.ndarray:
    """The threshold of each class that maximises its F1 = 2 TP / (predicted + positives).

    Exact: every score that :func:`predicted` tells apart is tried. Of thresholds with equal F1 the
    highest is taken, which predicts the fewest images.

    Args:
        scores: (N, C) float in [0, 1].
        labels: (N, C) bool.
        ignored: (N, C) bool, entries to leave out; none by default.

    Returns:
        (C,) in the type of ``scores``; 0.5 for a class without positives.

    Example:
        >>> scores = np.array([[0.9, 0.2], [0.8, 0.7], [0.6, 0.3]])
        >>> labels = np.array([[1, 0], [0, 1], [1, 0]], dtype=bool)
        >>> tune_thresholds(scores, labels).tolist()  # of the first, F1 is 2/3, 2/4 and 4/5
        [0.6, 0.7]
    """
    ignored = np.zeros_like(labels) if ignored is None else ignored
    columns = zip(scores.T, labels.T, ~ignored.T, strict=True)
    tuned = [_best_threshold(s[kept], y[kept]) for s, y, kept in columns]
    return np.array(tuned, dtype=scores.dtype)


def save_thresholds(
    path: str | PathLike, thresholds: np.ndarray, class_names: Sequence[str], source: str
) -> None:
    """Writes what :func:`load_thresholds` reads, with the score file that they were tuned on."""
    named = {name: float(value) for name, value in zip(class_names, thresholds, strict=True)}
    content = {"source": source, "metric": "F1 of each class", "thresholds": named}
    write_json(path, content, indent=2)


def load_thresholds(path: str | PathLike, class_names: Sequence[str]) -> np.ndarray:
    """Thresholds in the order of ``class_names``.

    Args:
        path: json file with the key "thresholds": {class name: threshold}.
        class_names: C names.

    Returns:
        (C,) float.

    Raises:
        ValueError: not such a file, a class without a threshold, a threshold of an unknown class,
            or one outside [0, 1]; names the file and the class.
    """
    named = _read(path)
    missing = [name for name in class_names if name not in named]
    unknown = sorted(named.keys() - set(class_names))
    if missing or unknown:
        problem = f"no threshold of class {missing[0]!r}" if missing else ""
        problem = problem or f"class {unknown[0]!r} is not a class of the data set"
        raise ValueError(
            f"{path}: {problem} ({len(missing)} missing, {len(unknown)} unknown): tune the "
            "thresholds on scores of the same classes"
        )
    for name, value in named.items():
        if not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise ValueError(f"{path}: the threshold of {name!r} is {value!r}, not in [0, 1]")
    return np.array([named[name] for name in class_names], dtype=float)


def label_thresholds(cfg: CfgNode, class_names: Sequence[str]) -> np.ndarray:
    """(C,) float: those of ``TEST.LABEL_THRESHOLDS``, or ``TEST.LABEL_THRESHOLD`` for all.

    Raises:
        ValueError: a threshold outside [0, 1], or an unusable file: see :func:`load_thresholds`.
    """
    if cfg.TEST.LABEL_THRESHOLDS:
        return load_thresholds(cfg.TEST.LABEL_THRESHOLDS, class_names)
    if not 0 <= cfg.TEST.LABEL_THRESHOLD <= 1:
        raise ValueError(f"TEST.LABEL_THRESHOLD is {cfg.TEST.LABEL_THRESHOLD}, not in [0, 1]")
    return np.full(len(class_names), cfg.TEST.LABEL_THRESHOLD, dtype=float)


def _read(path: str | PathLike) -> dict[str, float]:
    with PathManager.open(str(path), encoding="utf-8-sig") as file:
        try:
            content = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path}: not a json file: {error}") from error
    named = content.get("thresholds") if isinstance(content, dict) else None
    if not isinstance(named, dict):
        raise ValueError(f'{path}: no "thresholds": {{class name: threshold}} in it')
    return named


def _best_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    positives = np.count_nonzero(labels)
    if not positives:
        return DEFAULT_THRESHOLD
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    true_positives = np.cumsum(labels[order])
    # the last image of each distinct score, distinct as float32
    last = np.flatnonzero(np.diff(ranked.astype(np.float32), append=-1))
    f1 = 2 * true_positives[last] / (last + 1 + positives)
    return ranked[last[f1.argmax()]]  # the first of equal maxima
