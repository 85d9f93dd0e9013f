#!/usr/bin/env python
"""Evaluate saved image scores, of this project or of another program."""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scnet_d2.evaluation import format_table, load_thresholds, multilabel_metrics

FORMATS = """\
formats, by the end of the file's name:

  .npz   what MultiLabelEvaluator saves: scores (N, C) float, labels (N, C) bool and, if they are
         there, ignored (N, C) bool and class_names (C,).

  .csv   scores, one row an image, with the true labels in a second file given by --labels. Both
         have the same header and the same images, in any order:
             image_id,cat,dog               image_id,cat,dog
             a.jpg,0.93,0.02                a.jpg,1,0
             b.jpg,0.10,0.75                b.jpg,-1,1
         A score is in [0, 1]; a label is 1 (present), 0 (absent) or -1 (left out).

  .json  a list with one object an image. Classes are names:
             [{"image_id": "a.jpg", "scores": {"cat": 0.93, "dog": 0.02},
               "labels": ["cat"], "ignored": ["dog"]}, ...]
         or positions in a list of scores:
             [{"image_id": "a.jpg", "scores": [0.93, 0.02], "labels": [0]}, ...]
         "ignored" may be absent.
"""


class ScoreTable(NamedTuple):
    """Scores and labels of N images and C classes."""

    scores: np.ndarray  # (N, C) float
    labels: np.ndarray  # (N, C) bool
    ignored: np.ndarray | None  # (N, C) bool
    class_names: list[str]
    image_ids: list[Any] | None = None  # N


def read_npz(path: Path) -> ScoreTable:
    """Reads the file that MultiLabelEvaluator saves."""
    with np.load(path) as arrays:
        for key in ("scores", "labels"):
            if key not in arrays:
                raise ValueError(f"has no array '{key}', only {sorted(arrays)}")
        scores = arrays["scores"]
        names = arrays["class_names"].tolist() if "class_names" in arrays else None
        ignored = arrays.get("ignored")
        names = names or _numbered(scores.shape[-1])
        image_ids = arrays["image_ids"].tolist() if "image_ids" in arrays else None
        unreadable = int(arrays["unreadable"].sum()) if "unreadable" in arrays else 0
        if unreadable:
            note = f"{path}: {unreadable} images could not be read when it was made; they score 0"
            print(note, file=sys.stderr)
        return ScoreTable(scores, arrays["labels"], ignored, names, image_ids)


def read_csv(path: Path, labels_path: Path | None) -> ScoreTable:
    """Reads scores and labels from two CSV files with the same classes and images."""
    if labels_path is None:
        raise ValueError("a CSV of scores needs --labels, a CSV of 1, 0 and -1")
    header, scores = _read_csv_rows(path)
    labels_header, labels = _read_csv_rows(labels_path)
    if header != labels_header:
        raise ValueError(f"the header {header} differs from {labels_path}'s {labels_header}")
    different = sorted(scores.keys() ^ labels.keys())
    if different:
        raise ValueError(f"image {different[0]} is in only one of it and {labels_path}")
    label_array = np.array([labels[image_id] for image_id in scores])
    if not np.isin(label_array, (-1, 0, 1)).all():
        raise ValueError(f"{labels_path} has labels other than 1, 0 and -1")
    score_array, image_ids = np.array(list(scores.values())), list(scores)
    return ScoreTable(score_array, label_array == 1, label_array == -1, header, image_ids)


def read_json(path: Path) -> ScoreTable:
    """Reads a list of images with their scores and labels."""
    images = json.loads(path.read_text())
    if not isinstance(images, list) or not images:
        raise ValueError("is not a list of images")
    first = images[0]["scores"]
    classes = list(first) if isinstance(first, dict) else list(range(len(first)))
    scores, labels, ignored = zip(
        *(_read_json_image(image, classes) for image in images), strict=True
    )
    names = [str(name) for name in classes]
    image_ids = [image.get("image_id") for image in images]
    named = [image_id for image_id in image_ids if image_id is not None]
    if len(set(named)) < len(named):
        repeated = next(image_id for image_id in named if named.count(image_id) > 1)
        raise ValueError(f"image {repeated} comes twice")
    return ScoreTable(
        np.array(scores, dtype=float), np.array(labels), np.array(ignored), names, image_ids
    )


def read_scores(path: Path, labels_path: Path | None) -> ScoreTable:
    """Reads ``path`` by the end of its name.

    Raises:
        ValueError: unknown format, or contents that do not follow it.
    """
    if path.suffix == ".npz":
        return read_npz(path)
    if path.suffix == ".csv":
        return read_csv(path, labels_path)
    if path.suffix == ".json":
        return read_json(path)
    raise ValueError("is neither .npz, .csv nor .json")


def main(arguments: list[str] | None = None) -> None:
    """Prints a table for each file, or all metrics as JSON; exits with an error message."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=FORMATS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", metavar="FILE", type=Path, nargs="+", help="saved image scores")
    parser.add_argument("--labels", metavar="CSV", type=Path, help="the labels of CSV scores")
    parser.add_argument("--threshold", type=float, default=0.5, help="default: %(default)s")
    parser.add_argument(
        "--thresholds", metavar="JSON", type=Path, help="one for each class, see tune_thresholds.py"
    )
    parser.add_argument("--top-k", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print every metric as JSON instead")
    args = parser.parse_args(arguments)
    results = {}
    for path in args.files:
        try:
            table = read_scores(path, args.labels)
            threshold = args.threshold
            if args.thresholds:
                threshold = load_thresholds(args.thresholds, table.class_names)
            results[str(path)] = evaluate(table, threshold, args.top_k)
        except KeyError as error:
            parser.error(f"{path}: no {error}")
        except (EOFError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
            parser.error(f"{path}: {error}")
        if not args.json:
            print(f"{path}: {len(table.scores)} images, {len(table.class_names)} classes\n")
            print(format_table(results[str(path)]), end="\n\n")
    if args.json:
        print(to_json(results))


def evaluate(table: ScoreTable, threshold: float | np.ndarray, top_k: int) -> dict[str, float]:
    """Every metric in percent, with one ``AP-<class>`` for each class."""
    metrics = multilabel_metrics(
        table.scores, table.labels, table.ignored, threshold=threshold, top_k=top_k
    )
    per_class = metrics.pop("per_class_AP")
    return metrics | {
        f"AP-{name}": float(ap) for name, ap in zip(table.class_names, per_class, strict=True)
    }


def to_json(results: dict[str, dict[str, float]]) -> str:
    """JSON has no nan: null stands for the AP of a class without positives."""
    nullable = {
        path: {key: None if math.isnan(value) else value for key, value in metrics.items()}
        for path, metrics in results.items()
    }
    return json.dumps(nullable, indent=2)


def _read_csv_rows(path: Path) -> tuple[list[str], dict[str, list[float]]]:
    """Class names, and the values of each image by its id."""
    with path.open(newline="", encoding="utf-8-sig") as file:  # Excel begins with a BOM
        reader = csv.reader(file)
        header = next(reader, [])
        if header[:1] != ["image_id"] or len(header) < 2:
            raise ValueError(f"{path}'s first line must be image_id,<class>,..., got {header}")
        if len(set(header)) < len(header):
            raise ValueError(f"{path} has more than one column of a name: {header}")
        rows: dict[str, list[float]] = {}
        for image_id, *values in filter(None, reader):
            if len(values) != len(header) - 1 or image_id in rows:
                raise ValueError(
                    f"{path}, line {reader.line_num}: image {image_id} comes twice or has "
                    f"{len(values)} values for {len(header) - 1} classes"
                )
            rows[image_id] = [float(value) for value in values]
    return header[1:], rows


def _read_json_image(
    image: dict[str, Any], classes: list[Any]
) -> tuple[list[float], list[bool], list[bool]]:
    """Scores, labels and ignored labels of one image, in the order of ``classes``."""
    scores = (
        image["scores"] if isinstance(image["scores"], dict) else dict(enumerate(image["scores"]))
    )
    labels, ignored = set(image["labels"]), set(image.get("ignored", ()))
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


def _numbered(count: int) -> list[str]:
    return [str(i) for i in range(count)]


if __name__ == "__main__":
    main()
