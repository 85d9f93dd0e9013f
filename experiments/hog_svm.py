#!/usr/bin/env python
"""HOG features and a linear SVM for each label, what there was before deep networks, as a cell.

The whole image at 128 x 128 px, 9 orientations in cells of 16 px, blocks of 2 x 2 cells (1,764
numbers); one-vs-rest, C from the held-out tenth of the training photographs (every tenth image).
Labels that are ignored are left out. A score is the sigmoid of a decision value: 0.5 is the plane.

Predicted before the run: mAP 24 over the twelve classes of the plan, 50 below average pooling.
Outcome: 24.4, 51.4 below average pooling (75.7, seed 1 of photographs.yaml).

Source: Dalal and Triggs, "Histograms of oriented gradients for human detection", CVPR 2005.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from scnet_d2 import load_config
from scnet_d2.data import LabelPolicy, get_multilabel_dicts, read_image
from scnet_d2.evaluation import ScoreTable, multilabel_metrics, write_scores
from scnet_d2.evaluation.multilabel_evaluator import GroundTruth, ground_truth

import cv2
import numpy as np
from compare import REPO, Cell, environment, read_plan, store_scores, write_result
from detectron2.data import MetadataCatalog
from skimage.feature import hog
from sklearn.svm import LinearSVC
from tqdm import tqdm

CONFIG = "configs/VOC-MultiLabel/scnet_EfficientNet_Lite0_FPN_256px.yaml"
SIDE = 128
COSTS = (0.001, 0.01, 0.1)  # C of the SVM


def hog_features(files: Sequence[str]) -> np.ndarray:
    """(N, 1764) float32 of image files."""
    return np.stack([hog_feature(read_image(file, "RGB")) for file in tqdm(files, "HOG")])


def hog_feature(image: np.ndarray) -> np.ndarray:
    """(1764,) float32 of an (H, W, 3) uint8 image; of each pixel the channel of steepest edge."""
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return hog(
        small, 9, pixels_per_cell=(16, 16), cells_per_block=(2, 2), channel_axis=-1
    ).astype(np.float32)  # fmt: skip


def decision_values(
    features: np.ndarray, truth: GroundTruth, others: np.ndarray, cost: float
) -> np.ndarray:
    """Decision values (M, C) of other images, of SVMs trained on N images.

    A class without positives has -1 everywhere.
    """
    values = np.full((len(others), truth.labels.shape[1]), -1.0)
    for c in tqdm(range(values.shape[1]), f"SVM, C = {cost}"):
        known = ~truth.ignored[:, c]
        if truth.labels[known, c].any():
            svm = LinearSVC(C=cost, random_state=0).fit(features[known], truth.labels[known, c])
            values[:, c] = svm.decision_function(others)
    return values


def choose_cost(features: np.ndarray, truth: GroundTruth, columns: Sequence[int]) -> float:
    """The C whose SVMs have the highest mAP over some classes, on the held-out tenth."""
    held_out = np.arange(len(features)) % 10 == 9
    fit = truth._replace(labels=truth.labels[~held_out], ignored=truth.ignored[~held_out])
    found = {}
    for cost in COSTS:
        values = decision_values(features[~held_out], fit, features[held_out], cost)
        labels, ignored = truth.labels[held_out], truth.ignored[held_out]
        metrics = multilabel_metrics(
            sigmoid(values)[:, columns], labels[:, columns], ignored[:, columns]
        )
        found[cost] = metrics["mAP"]
        print(f"C = {cost}: mAP {found[cost]:.2f} on the held-out tenth")
    return max(found, key=found.get)


def sigmoid(values: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-values))


def main(arguments: list[str] | None = None) -> None:
    """Train, evaluate, and keep the scores as `<results>/photographs-hog_svm-1`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", type=Path, help="plan beside which the result is kept")
    plan = read_plan(parser.parse_args(arguments).plan)
    cfg = load_config(str(REPO / CONFIG))
    policy, start = LabelPolicy.from_config(cfg), time.perf_counter()
    names = list(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes)

    def load(*datasets: str) -> tuple[np.ndarray, GroundTruth]:
        dicts = get_multilabel_dicts(datasets, policy)
        for i, d in enumerate(dicts):  # ids of two data sets may be equal
            d["image_id"] = i if len(datasets) > 1 else d["image_id"]
        truth = ground_truth(dicts, ", ".join(datasets), len(names))
        return hog_features(truth.file_names), truth

    features, truth = load(*cfg.DATASETS.TRAIN)
    columns = [names.index(name) for name in next(iter(plan.groups.values()))]
    cost = choose_cost(features, truth, columns)
    cell = Cell("photographs", "hog_svm", 1)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for dataset in sorted(cfg.DATASETS.TEST):
            others, test = load(dataset)
            scores = sigmoid(decision_values(features, truth, others, cost))
            table = ScoreTable(scores, test.labels, test.ignored, names, test.image_ids)
            paths.append(Path(folder) / f"{dataset}.npz")
            write_scores(paths[-1], table)
        result = {**cell._asdict(), "config": "experiments/hog_svm.py", "opts": {"C": str(cost)}}
        result |= store_scores(plan, cell, paths)
    result |= {"seconds": round(time.perf_counter() - start)} | environment()
    write_result(plan, cell, result)
    print(f"{cell}: {result['metrics']}, {result['seconds']} s")


if __name__ == "__main__":
    main()
