#!/usr/bin/env python
"""What a relation branch learned about pairs of labels, beside their co-occurrence in training.

Of runs with `MODEL.SCNET.RELATION.ENABLED`. A box belongs to the object that it fits best (IoU of
at least 0.5). Attention of label i to label j: the mean weight that boxes of an object of label i
give to a box of another object, of label j, / the mean weight of all boxes that they see; 1 is no
preference. Co-occurrence: share of the training images with label i that have label j, / the share
of all of them that have it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from scnet_command.arguments import add_register_arguments
from scnet_d2.data import (
    LabelPolicy,
    get_multilabel_dicts,
    get_training_dicts,
    read_image,
    register_arguments,
)
from scnet_d2.evaluation.multilabel_evaluator import ground_truth
from scnet_d2.inference import SCNetPredictor, load_run
from scnet_d2.modeling.roi_heads.relation import ObjectRelation
from scnet_d2.outputs import new_file, write_json

import numpy as np
import torch
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from scipy.stats import spearmanr
from tabulate import tabulate
from torch.nn import functional as F
from tqdm import tqdm

IOU = 0.5
FEWEST = 10  # images of a pair of labels, that its numbers are shown


class Objects(NamedTuple):
    """Ground truth of an image, in the coordinates of the boxes."""

    boxes: Boxes  # G
    labels: torch.Tensor  # (G,)


def attended(
    relation: ObjectRelation, args: tuple[torch.Tensor, ...], objects: Objects, num_classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of the labels of an image to each other.

    Args:
        relation: of the branch.
        args: what it gets for the K boxes of the image.
        objects: of the image.
        num_classes: C.

    Returns:
        (C, C) sums over the boxes of label i of the attention to label j; how many boxes of label i
        see label j.
    """
    attention, keys = (t.cpu() for t in relation.attention(*args))  # (H, K, M), (M,)
    weight = attention.mean(dim=0)  # (K, M)
    best, item = pairwise_iou(Boxes(args[1].cpu()), objects.boxes).max(dim=1)  # (K,)
    labels = F.one_hot(objects.labels[item], num_classes) * (best >= IOU)[:, None].float()  # (K, C)
    seen = weight > 0
    mean = weight.sum(dim=1) / seen.sum(dim=1).clamp(min=1)  # (K,)
    others = (seen & (item[:, None] != item[keys])).float()  # (K, M)
    number = others @ labels[keys]  # (K, C) boxes of each label that a box sees
    given = (weight * others) @ labels[keys] / number.clamp(min=1)  # (K, C)
    relative = given / mean.clamp(min=1e-12)[:, None]
    return labels.T @ relative, labels.T @ (number > 0).float()


def objects_of(dataset_dict: dict, size: tuple[int, int]) -> Objects:
    """Ground truth of an image, in an image of a size (H, W)."""
    scale = np.array([size[1] / dataset_dict["width"], size[0] / dataset_dict["height"]] * 2)
    boxes = [
        BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
        for a in dataset_dict["annotations"]
    ]
    labels = [a["category_id"] for a in dataset_dict["annotations"]]
    return Objects(Boxes(np.array(boxes).reshape(-1, 4) * scale), torch.tensor(labels).long())


@torch.inference_mode()
def attention_of(run: Path, datasets: list[str]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`attended` of each image: the mean over its boxes, and whether there are any."""
    cfg = load_run(run)
    predictor = SCNetPredictor(cfg)
    if "relation" not in predictor.model.roi_heads.branches:
        raise ValueError(f"{run}: MODEL.SCNET.RELATION.ENABLED is False")
    head, sizes, calls = predictor.model.roi_heads.branches["relation"], [], []
    head.register_forward_pre_hook(lambda _, args: sizes.append(args[1].image_sizes[0]))
    head.relation.register_forward_pre_hook(lambda _, args: calls.append(args))
    dicts = get_multilabel_dicts(datasets, LabelPolicy.from_config(cfg))
    for d in tqdm(dicts, desc=run.name, delay=5):
        predictor(read_image(d["file_name"], "BGR"))
        objects = objects_of(d, sizes.pop())
        sums, counts = attended(head.relation, calls.pop(), objects, len(predictor.class_names))
        yield sums / counts.clamp(min=1), counts > 0


def cooccurrence(labels: np.ndarray) -> np.ndarray:
    """(C, C) P(j | i) / P(j) of labels (N, C) bool; nan where there are none."""
    x = labels.astype(float)
    together, alone = x.T @ x, x.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return together * len(x) / np.outer(alone, alone)


def study(runs: list[Path], datasets: list[str], classes: list[str]) -> dict:
    """Attention between labels, mean over the images and runs, and what is beside it."""
    cfg = load_run(runs[0])
    names = list(cfg.DATASETS.CLASS_NAMES)
    columns = np.array([names.index(name) for name in classes or names])
    sums, counts = (
        torch.stack(x).double().sum(dim=0).numpy()[np.ix_(columns, columns)]
        for x in zip(*(pair for run in runs for pair in attention_of(run, datasets)))
    )
    with np.errstate(invalid="ignore"):
        attention = np.where(counts >= FEWEST * len(runs), sums / counts, np.nan)
    truth = ground_truth(get_training_dicts(cfg), "training set", len(names))
    beside = cooccurrence(truth.labels[:, columns])
    np.fill_diagonal(beside, np.nan)  # 1 / the frequency of the label
    pairs = np.isfinite(attention) & ~np.eye(len(columns), dtype=bool)
    correlation = spearmanr(attention[pairs], beside[pairs])
    return {
        "dataset": " + ".join(datasets),
        "classes": [names[i] for i in columns],
        "attention": _json(attention),
        "cooccurrence": _json(beside),
        "pairs": int(pairs.sum()),
        "spearman": [round(float(correlation.statistic), 3), round(float(correlation.pvalue), 3)],
    }


def _json(matrix: np.ndarray) -> list[list[float | None]]:
    return [[round(float(x), 3) if np.isfinite(x) else None for x in row] for row in matrix]


def to_text(found: dict) -> str:
    """Both tables, and how far they agree."""
    texts = []
    short = [name[:6] for name in found["classes"]]
    for title in ("attention", "cooccurrence"):
        rows = [
            [name, *("-" if x is None else f"{x:.2f}" for x in row)]
            for name, row in zip(found["classes"], found[title])
        ]
        texts.append(tabulate(rows, [title, *short], disable_numparse=True))
    value, p = found["spearman"]
    texts.append(f"Spearman's correlation over {found['pairs']} pairs: {value:.2f} (p = {p:.2f})")
    return "\n\n".join(texts)


def main(arguments: list[str] | None = None) -> None:
    """Prints the tables; --output also keeps the values."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of trained runs")
    parser.add_argument("--dataset", required=True, nargs="+", help="names of registered data sets")
    parser.add_argument("--classes", nargs="+", default=[], help="default: all")
    parser.add_argument("--output", type=new_file, help="new JSON file for the values")
    add_register_arguments(parser)
    args = parser.parse_args(arguments)
    register_arguments(args)
    found = study(args.runs, args.dataset, args.classes)
    print(to_text(found))
    if args.output:
        write_json(args.output, found)


if __name__ == "__main__":
    main()
