#!/usr/bin/env python
"""How often the box of a label lies on an object of that label.

CorLoc: of the labels that an image has, the share whose box (`label_boxes`) overlaps an object of
the label by an IoU of at least 0.5, or 0.7; whether the label is predicted makes no difference.

Source of the measure: Deselaers, Alexe and Ferrari, "Localizing objects while learning their
appearance", ECCV 2010.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from scnet_command.arguments import add_register_arguments
from scnet_d2.data import get_multilabel_dicts, register_arguments
from scnet_d2.evaluation.label_boxes import label_boxes
from scnet_d2.inference import SCNetPredictor
from scnet_d2.outputs import new_file, write_json

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from tabulate import tabulate
from tqdm import tqdm
from voc_objects import SIZES

IOUS = (0.5, 0.7)


def overlaps(record: dict, boxes: np.ndarray) -> list[tuple[float, float]]:
    """For each label of an image that has objects with boxes, how its box lies.

    Args:
        record: of the data set.
        boxes: (C, 4) XYXY, the box of every label; nan where it has none.

    Returns:
        `(share of the image that the largest object takes, highest IoU with an object)`.
    """
    objects: dict[int, list] = {}
    for a in record["annotations"]:
        if a.get("iscrowd"):
            continue
        box = BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
        objects.setdefault(a["category_id"], []).append(box)
    found = []
    for label in sorted(objects.keys() & set(record["image_labels"])):
        truth = Boxes(torch.tensor(objects[label], dtype=torch.float32))
        iou = pairwise_iou(truth, Boxes(torch.from_numpy(boxes[None, label]))).nan_to_num()
        size = truth.area().max() / (record["height"] * record["width"])
        found.append((float(size), float(iou.max())))
    return found


def study(predictor: SCNetPredictor, records: Iterable[dict]) -> list[tuple[float, float]]:
    """`overlaps` of all labels of all images."""
    found = []
    for record in tqdm(records, desc="predicting", delay=5):
        image = read_image(record["file_name"], format="BGR")
        boxes, _ = label_boxes(predictor(image), len(predictor.class_names))
        found += overlaps(record, boxes)
    return found


def to_text(found: list[tuple[float, float]]) -> str:
    """CorLoc in percent of labels of each size, and of all."""
    size, iou = np.array(found).T
    rows = [
        [name, keep.sum(), *(100 * (iou[keep] >= least).mean() for least in IOUS), iou[keep].mean()]
        for name, keep in [
            *((f"{a:.0%} to {min(b, 1):.0%}", (size >= a) & (size < b)) for a, b in SIZES),
            ("all", size >= 0),
        ]
        if keep.any()
    ]
    headers = ["largest object / image", "labels", *(f"IoU ≥ {x}" for x in IOUS), "mean IoU"]
    return tabulate(rows, headers, floatfmt=("", "", ".1f", ".1f", ".2f"))


def main(arguments: list[str] | None = None) -> None:
    """Prints the table; --output also keeps the values."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="name or folder of a model, or folder of a run")
    parser.add_argument("--dataset", nargs="+", required=True, help="registered data sets")
    parser.add_argument("--images", type=int, help="the first ones alone; default: all")
    parser.add_argument("--output", type=new_file, help="new JSON file for size and IoU of each")
    add_register_arguments(parser)
    args = parser.parse_args(arguments)
    register_arguments(args)
    predictor = SCNetPredictor.from_pretrained(args.model)
    records = get_multilabel_dicts(args.dataset)[: args.images]
    if MetadataCatalog.get(args.dataset[0]).thing_classes != list(predictor.class_names):
        parser.error(f"{args.dataset[0]} has other classes than {args.model}")
    found = study(predictor, records)
    print(to_text(found))
    if args.output:
        write_json(args.output, {"dataset": args.dataset, "labels": found})


if __name__ == "__main__":
    main()
