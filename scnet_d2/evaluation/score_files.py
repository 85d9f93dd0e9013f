"""Files of image scores and labels: what the evaluator saves, and the CSV and JSON of others."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data import DatasetError
from ..data.label_table import PRESENT, UNKNOWN, label_state, read_csv
from ..data.problems import Problems, counted, first_ones
from ..outputs import replacing
from .metrics import check_inputs, score_fault

logger = logging.getLogger(__name__)

FILE_NAME = "multilabel_scores.npz"  # of what the evaluator saves
_ENDING = re.compile(r"\.(bmp|gif|jpe?g|png|tiff?|webp)$", re.IGNORECASE)
# what NumPy, csv and json raise, or what reading a value of another type does
_DAMAGED = (AttributeError, OSError, TypeError, ValueError, csv.Error)


class ScoreFileError(ValueError):
    """A score file is absent, damaged or contradicts itself; the message begins with its path."""


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores and labels of N images and C classes.

    What a file does not have is None; `evidence` holds arrays as `label_boxes.evidence_arrays`
    gives them, or nothing.
    """

    scores: np.ndarray  # (N, C) float
    labels: np.ndarray  # (N, C) bool
    ignored: np.ndarray  # (N, C) bool
    class_names: list[str]  # C
    image_ids: list[Any] | None = None  # N
    file_names: list[str] | None = None  # N
    thresholds: np.ndarray | None = None  # (C,)
    unreadable: np.ndarray | None = None  # (N,) bool, images that could not be read and score 0
    evidence: dict[str, np.ndarray] = field(default_factory=dict)

    def of_classes(self, names: Sequence[str] | None) -> ScoreTable:
        """The same images with these classes alone, without boxes; None for all classes.

        Raises:
            ValueError: naming a class that is not in the table.
        """
        columns = [self.class_names.index(name) for name in names or self.class_names]
        return replace(
            self,
            scores=self.scores[:, columns],
            labels=self.labels[:, columns],
            ignored=self.ignored[:, columns],
            class_names=[self.class_names[c] for c in columns],
            thresholds=None if self.thresholds is None else self.thresholds[columns],
            evidence={},
        )


def read_scores(
    path: str | os.PathLike, labels_path: str | os.PathLike | None = None
) -> ScoreTable:
    """Read a score file, by the end of its name: .npz, .csv, .json; see `scnet scores --help`.

    Scores of 16 bits come as float32. Images that could not be read when the file was made are
    named in a warning.

    Args:
        path: of the scores.
        labels_path: the labels of a CSV of scores.

    Raises:
        ScoreFileError: unknown format, contents that do not follow it, arrays that no metrics can
            be computed from (see :func:`multilabel_metrics`), or an image that comes twice.
    """
    path = Path(path)
    readers = {".npz": _read_npz, ".csv": _read_csv, ".json": _read_json}
    try:
        if path.suffix.lower() not in readers:
            raise ValueError("is neither .npz, .csv nor .json")
        table = readers[path.suffix.lower()](path, labels_path)
        _check(table)
    except ScoreFileError:
        raise  # which names its file and line
    except KeyError as error:
        raise ScoreFileError(f"{path}: no {error}") from error
    except (EOFError, zipfile.BadZipFile) as error:
        raise ScoreFileError(
            f"{path}: not a whole file ({error}): copy it again, or evaluate again"
        ) from error
    except _DAMAGED as error:
        raise ScoreFileError(f"{path}: {error}") from error
    count = 0 if table.unreadable is None else np.count_nonzero(table.unreadable)
    if count:
        logger.warning(
            "%s: %s could not be read when it was made; the score is 0",
            path,
            counted(count, "image"),
        )
    return table


def write_scores(path: str | os.PathLike, table: ScoreTable, dtype: type = np.float32) -> None:
    """Write a table as compressed .npz without pickled objects, whole or not at all.

    Args:
        path: the file.
        table: what it holds; what is None is left out.
        dtype: of the scores.
    """
    arrays = {
        "image_ids": None if table.image_ids is None else _id_array(table.image_ids),
        "file_names": None if table.file_names is None else np.array(table.file_names, dtype=str),
        "class_names": np.array(table.class_names, dtype=str),
        "scores": table.scores.astype(dtype),
        "labels": table.labels,
        "ignored": table.ignored,
        "thresholds": table.thresholds,
        "unreadable": table.unreadable,
        **table.evidence,
    }
    with replacing(path) as file:
        np.savez_compressed(file, **{k: v for k, v in arrays.items() if v is not None})


def _id_array(image_ids: list[Any]) -> np.ndarray:
    """(N,) integers, or text where not all ids are 64-bit integers; never objects."""
    array = np.array(image_ids)
    return array if array.dtype.kind in "iuU" else array.astype(str)


def _check(table: ScoreTable) -> None:
    shape = table.scores.shape
    if len(shape) == 2 and shape == table.labels.shape:
        ids = shape[:1] if table.image_ids is None else (len(table.image_ids),)
        if (*ids, len(table.class_names)) != shape:
            raise ValueError(
                f"has {counted(ids[0], 'image id')} and {len(table.class_names)} class "
                f"names for scores of shape {shape}"
            )
        _check_scores(table)
    check_inputs(table.scores, table.labels, table.ignored)
    named = Counter(str(i) for i in table.image_ids or () if i is not None)
    if named and named.most_common(1)[0][1] > 1:
        raise ValueError(f"image {named.most_common(1)[0][0]} comes twice")


def _check_scores(table: ScoreTable) -> None:
    """Name image and class of what `check_inputs` can only number."""
    wrong = np.argwhere(~((table.scores >= 0) & (table.scores <= 1)))
    if not len(wrong):
        return
    row, column = wrong[0]
    image_id = None if table.image_ids is None else table.image_ids[row]
    image = f"row {row}" if image_id is None else f"image {image_id}"
    more = f" (and {len(wrong) - 1:,} more)" if len(wrong) > 1 else ""
    fault = score_fault(table.scores[row, column])
    raise ValueError(f"{image}, class {table.class_names[column]}: the score is {fault}{more}")


def _read_npz(path: Path, labels_path: object) -> ScoreTable:
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    for key in ("scores", "labels"):
        if key not in arrays:
            raise ValueError(f"has no array '{key}', only {sorted(arrays)}")
    scores, labels = arrays["scores"], arrays["labels"]
    if scores.dtype == np.float16:
        scores = scores.astype(np.float32)
    numbered = range(scores.shape[-1] if scores.ndim else 0)
    lists = {k: arrays[k].tolist() for k in ("image_ids", "file_names") if k in arrays}
    return ScoreTable(
        scores,
        labels,
        arrays.get("ignored", np.zeros(labels.shape, dtype=bool)),
        [str(name) for name in arrays.get("class_names", numbered)],
        thresholds=arrays.get("thresholds"),
        unreadable=arrays.get("unreadable"),
        evidence={k: v for k, v in arrays.items() if k.startswith("evidence_")},
        **lists,
    )


def _read_csv(path: Path, labels_path: str | os.PathLike | None) -> ScoreTable:
    """Scores and labels from two CSV files with the same classes and images."""
    if labels_path is None:
        raise ValueError("a CSV of scores needs --labels, a CSV of 1, 0 and -1")
    header, scores = _read_csv_rows(path, _score)
    labels_header, labels = _read_csv_rows(Path(labels_path), label_state)
    if set(header) != set(labels_header):
        raise ValueError(f"the header {header} differs from {labels_path}'s {labels_header}")
    if scores.keys() != labels.keys():
        scores, labels = _by_stem(scores, labels), _by_stem(labels, scores)
    if different := sorted(scores.keys() ^ labels.keys()):
        raise ValueError(
            f"{counted(len(different), 'image')} in only one of it and {labels_path}: "
            f"{first_ones(different)}"
        )
    columns = [labels_header.index(name) for name in header]
    label_array = np.array([labels[image_id] for image_id in scores])[:, columns]
    score_array, image_ids = np.array(list(scores.values())), list(scores)
    return ScoreTable(
        score_array, label_array == PRESENT, label_array == UNKNOWN, header, image_ids
    )


def _score(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError("is not a number") from error


def _by_stem(rows: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Rows by their ids without the ending of an image file, where the other ids have none."""
    stems = {_ENDING.sub("", image_id): row for image_id, row in rows.items()}
    return stems if len(stems) == len(rows) and others.keys() == stems.keys() else rows


def _read_csv_rows(
    path: Path, read: Callable[[str], float]
) -> tuple[list[str], dict[str, list[float]]]:
    """Class names, and the values of each image by its id, as `read` takes them from a cell."""
    problems = Problems(str(path))
    try:
        table = read_csv(path, problems)
        problems.raise_any()
    except DatasetError as error:
        raise ScoreFileError(str(error)) from error
    rows: dict[str, list[float]] = {}
    for line, image_id, cells in table.rows:
        for name, value in cells.items():
            number = value if table.separator == "," else value.replace(",", ".")
            try:
                rows.setdefault(image_id, []).append(read(number))
            except ValueError as error:
                raise ScoreFileError(
                    f"{path}, line {line}: image {image_id}, class {name}: {value!r} {error}"
                ) from error
    return table.columns, rows


def _read_json(path: Path, labels_path: object) -> ScoreTable:
    """A list of images with their scores and labels."""
    images = json.loads(path.read_text(encoding="utf-8-sig"))  # with or without BOM
    if not isinstance(images, list) or not images:
        raise ValueError("is not a list of images")
    first = images[0]["scores"]
    classes = list(first) if isinstance(first, dict) else list(range(len(first)))
    scores, labels, ignored = zip(
        *(_read_json_image(image, classes) for image in images), strict=True
    )
    return ScoreTable(
        np.array(scores, dtype=float),
        np.array(labels),
        np.array(ignored),
        [str(name) for name in classes],
        [image.get("image_id") for image in images],
    )


def _label_set(image: dict[str, Any], key: str) -> set[Any]:
    labels = image["labels"] if key == "labels" else image.get(key, ())
    labels = [labels] if isinstance(labels, str) else labels
    if len(set(labels)) < len(labels):  # as 0 or 1 for each class
        raise ValueError(
            f"image {image.get('image_id')}: {key} {labels} name a class twice; write the names or "
            "positions of the classes that it has"
        )
    return set(labels)


def _read_json_image(
    image: dict[str, Any], classes: list[Any]
) -> tuple[list[float], list[bool], list[bool]]:
    """Scores, labels and ignored labels of one image, in the order of ``classes``."""
    scores = (
        image["scores"] if isinstance(image["scores"], dict) else dict(enumerate(image["scores"]))
    )
    labels, ignored = (_label_set(image, key) for key in ("labels", "ignored"))
    different = (scores.keys() ^ set(classes)) | ((labels | ignored) - set(classes))
    if different:
        raise ValueError(
            f"image {image.get('image_id')}: class {min(map(str, different))!r} is not a class of "
            "the first image, or has no score"
        )
    return (
        [scores[name] for name in classes],
        [name in labels for name in classes],
        [name in ignored for name in classes],
    )
