#!/usr/bin/env python
"""Which pixels decide a label: AP of trained models where parts around the objects are grey.

In every image the inside of the boxes of some classes, or a ring around them, is made grey, and the
image is scored again. Rings are in box widths and heights: 1-2 is what lies outside the box and
inside the box of twice its sides. The inside of any of these boxes is never part of a ring.

In generated scenes with companions also the object that tells the label (companion), or a part of
the same size elsewhere that no object lies in, as far from the labelled object.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from scnet_command.arguments import add_register_arguments
from scnet_d2.data import (
    LabelPolicy,
    get_multilabel_dicts,
    read_image,
    register_arguments,
)
from scnet_d2.data.context_scenes import COMPANION_OF
from scnet_d2.evaluation import multilabel_metrics
from scnet_d2.evaluation.multilabel_evaluator import ground_truth
from scnet_d2.inference import SCNetPredictor, load_run
from scnet_d2.modeling import SCNet, expand_boxes
from scnet_d2.outputs import new_file, write_json

import numpy as np
import torch
from branch_scores import Recorder
from detectron2.structures import BoxMode
from tabulate import tabulate
from tqdm import tqdm

GREY = 128
# Name -> sides of the outer and of the inner border / sides of the box; None: the image's border.
PARTS: dict[str, tuple[float | None, float]] = {
    "inside": (1.0, 0.0),
    "ring 1-1.5": (1.5, 1.0),
    "ring 1.5-2": (2.0, 1.5),
    "ring 1-2": (2.0, 1.0),
    "ring 2-3": (3.0, 2.0),
    "ring 3-4": (4.0, 3.0),
    "beyond 4": (None, 4.0),
    "all outside": (None, 1.0),
}
COMPANION, ELSEWHERE = "companion", "elsewhere"
LABEL_SCORE = "label score"  # mean over the labels that are present


def part_mask(boxes: np.ndarray, shape: tuple[int, int], outer: float | None, inner: float):
    """(H, W) bool, the pixels of a part of PARTS around boxes (R, 4) XYXY."""
    mask = _filled(boxes, shape, outer) if outer else np.ones(shape, bool)
    return mask & ~_filled(boxes, shape, inner) if inner else mask


def _filled(boxes: np.ndarray, shape: tuple[int, int], ratio: float) -> np.ndarray:
    mask = np.zeros(shape, bool)
    expanded = expand_boxes(torch.as_tensor(boxes, dtype=torch.float32), shape, ratio)
    for x0, y0, x1, y1 in expanded.round().int().tolist():
        mask[y0:y1, x0:x1] = True
    return mask


def object_boxes(dataset_dict: dict, class_ids: set[int]) -> np.ndarray:
    """(R, 4) XYXY boxes of the objects of these classes."""
    boxes = [
        BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
        for a in dataset_dict["annotations"]
        if a["category_id"] in class_ids
    ]
    return np.array(boxes, dtype=float).reshape(-1, 4)


def companion_boxes(dataset_dict: dict, names: Sequence[str]) -> np.ndarray:
    """(R, 2, 4) XYXY: each object of `COMPANION_OF`, and the companion nearest to it."""
    pairs = []
    for kept in object_boxes(dataset_dict, {names.index(n) for n in COMPANION_OF}):
        ids = {names.index(n) for n in COMPANION_OF.values()}
        others = object_boxes(dataset_dict, ids)
        pairs.append((kept, others[sides_away(kept, others).argmin()]))
    return np.array(pairs).reshape(-1, 2, 4)


def sides_away(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(R,) gaps between a box (4,) and others (R, 4), in its widths or heights."""
    gaps = np.maximum(box[:2] - others[:, 2:], others[:, :2] - box[2:])
    return (gaps / (box[2:] - box[:2])).max(axis=1)


def box_elsewhere(
    box: np.ndarray, companion: np.ndarray, taken: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """(0 or 1, 4): the place of a companion's size, clear of all boxes (R, 4), that is as far."""
    size, (height, width) = companion[2:] - companion[:2], shape
    y, x = np.mgrid[0 : height - size[1] + 1 : 2, 0 : width - size[0] + 1 : 2]
    corners = np.stack([x, y], axis=-1).reshape(-1, 2)
    places = np.concatenate([corners, corners + size], axis=1)  # (K, 4)
    apart = (places[:, None, :2] >= taken[:, 2:]) | (places[:, None, 2:] <= taken[:, :2])
    places = places[apart.any(axis=2).all(axis=1)]
    wanted = sides_away(box, companion[None])
    return places[np.abs(sides_away(box, places) - wanted).argsort(kind="stable")[:1]]


def grey_mask(
    dataset_dict: dict, part: str, class_ids: set[int], names: Sequence[str], shape: tuple[int, int]
) -> np.ndarray:
    """(H, W) bool, the pixels of an image that are made grey."""
    if part not in (COMPANION, ELSEWHERE):
        boxes = object_boxes(dataset_dict, class_ids)
        return part_mask(boxes, shape, *PARTS[part]) if len(boxes) else np.zeros(shape, bool)
    boxes = companion_boxes(dataset_dict, names)
    if part == ELSEWHERE:
        taken = object_boxes(dataset_dict, set(range(len(names))))
        places = [box_elsewhere(*pair, taken, shape) for pair in boxes]
        return _filled(np.concatenate([np.zeros((0, 4)), *places]), shape, 1.0)
    return _filled(boxes[:, 1], shape, 1.0)


def branch_scores(
    predictor: SCNetPredictor, dicts: list[dict], part: str | None, class_ids: set[int]
) -> Iterator[dict[str, np.ndarray]]:
    """(C,) scores of each image, with a part made grey: of the model, and of each branch in it."""
    recorder = Recorder(predictor.model) if isinstance(predictor.model, SCNet) else None
    for d in tqdm(dicts, desc=part or "untouched", delay=5, leave=False):
        image = read_image(d["file_name"], "BGR").copy()
        if part:
            image[grey_mask(d, part, class_ids, predictor.class_names, image.shape[:2])] = GREY
        scores = {"both": predictor(image)["image_scores"].cpu()}
        branches = recorder.images.pop().branches if recorder else {}
        if len(branches) > 1:
            scores |= {name: x.amax(dim=0) for name, x in branches.items()}
        yield {name: s.numpy() for name, s in scores.items()}
    if recorder:
        recorder.stop()


def study(
    run: Path, datasets: list[str], classes: list[str], parts: list[str]
) -> dict[str, dict[str, float]]:
    """Mean AP in percent over the classes: part -> scores of the model or a branch -> mAP.

    With companions also the mean score of their labels in percent, and nothing of the branches. The
    images of several data sets are one set here.
    """
    cfg = load_run(run)
    predictor = SCNetPredictor(cfg)
    columns = [predictor.class_names.index(name) for name in classes]
    dicts = get_multilabel_dicts(datasets, LabelPolicy.from_config(cfg))
    truth = ground_truth(dicts, " + ".join(datasets), len(predictor.class_names))
    labels, ignored = truth.labels[:, columns], truth.ignored[:, columns]
    results = {}
    for part in (None, *parts):
        images = list(branch_scores(predictor, dicts, part, set(columns)))
        scores = {name: np.stack([x[name] for x in images])[:, columns] for name in images[0]}
        if COMPANION in parts:
            scores = {"both": scores["both"]}
        found = {name: _map(s, labels, ignored) for name, s in scores.items()}
        if COMPANION in parts:
            found[LABEL_SCORE] = round(100 * float(scores["both"][labels].mean()), 4)
        results[part or "untouched"] = found
    return results


def _map(scores: np.ndarray, labels: np.ndarray, ignored: np.ndarray) -> float:
    return round(multilabel_metrics(scores, labels, ignored)["mAP"], 4)


def changes(runs: dict[str, dict]) -> dict[tuple[str, str], dict[str, list[float]]]:
    """(Model, scores) -> part -> mAP of every run untouched, or its change in points.

    Runs that differ in a last "-<seed>" alone are one model.
    """
    table: dict = {}
    for run, parts in runs.items():
        for name, untouched in parts["untouched"].items():
            column = table.setdefault((run.rsplit("-", 1)[0].rsplit("-", 1)[-1], name), {})
            for part, values in parts.items():
                change = values[name] - (untouched if part != "untouched" else 0)
                column.setdefault(part, []).append(change)
    return table


def to_text(runs: dict[str, dict]) -> str:
    """A row for each part: mAP untouched, then the change in points; mean ± sd of several runs."""
    columns = changes(runs)
    rows = []
    for part in next(iter(runs.values())):
        sign = "" if part == "untouched" else "+"
        rows.append([part, *(mean_sd(column[part], f"{sign}.1f") for column in columns.values())])
    headers = [model if name == "both" else f"{model}:\n{name}" for model, name in columns]
    return tabulate(rows, ["grey", *headers], disable_numparse=True)


def mean_sd(values: Sequence[float], spec: str) -> str:
    """Mean in a format as "+.1f", and ± the sample's standard deviation of several values."""
    mean = f"{np.mean(values):{spec}}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):{spec.lstrip('+')}}"


def main(arguments: list[str] | None = None) -> None:
    """Prints the table; --output also keeps the values."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of trained runs")
    parser.add_argument("--dataset", required=True, nargs="+", help="names of registered data sets")
    parser.add_argument("--classes", nargs="+", required=True, help="whose boxes are looked at")
    parser.add_argument(
        "--parts",
        nargs="*",
        choices=[*PARTS, COMPANION, ELSEWHERE],
        default=list(PARTS),
        help="one or more of %(choices)s; by default all but the last two",
    )
    parser.add_argument("--output", type=new_file, help="new JSON file for the values")
    add_register_arguments(parser)
    args = parser.parse_args(arguments)
    register_arguments(args)
    runs = {run.name: study(run, args.dataset, args.classes, args.parts) for run in args.runs}
    print(to_text(runs))
    if args.output:
        contents = {"dataset": " + ".join(args.dataset), "classes": args.classes, "runs": runs}
        write_json(args.output, contents)


if __name__ == "__main__":
    main()
