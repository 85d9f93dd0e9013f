#!/usr/bin/env python
"""Time and memory of all multi-label metrics against scikit-learn's AP alone.

The two are run in turn on the same arrays, as many images and classes as COCO val2014, and the
medians are compared. Memory is the peak of the arrays that the call adds to its inputs
(tracemalloc, in a run of its own).

    python benchmarks/metrics.py [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import tracemalloc
from collections.abc import Callable

from scnet_d2.evaluation.metrics import multilabel_metrics

import numpy as np
from sklearn.metrics import average_precision_score
from tabulate import tabulate


def make_inputs(images: int, classes: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N, C) of a moderately good model and labels (N, C), 2.9 per image as in COCO."""
    rng = np.random.default_rng(0)
    labels = rng.random((images, classes)) < 2.9 / classes
    logits = rng.normal(-4.0, 1.5, labels.shape) + 4.0 * labels
    return (1.0 / (1.0 + np.exp(-logits))).astype(dtype), labels


def scikit_learn_ap(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """AP of each class in percent, (C,)."""
    return np.array(
        [100.0 * average_precision_score(y, s) for y, s in zip(labels.T, scores.T, strict=True)]
    )


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak_megabytes(function: Callable[[], object]) -> float:
    """Most memory that one call holds beyond what exists already, 1 MB = 10**6 bytes."""
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def measure(images: int, classes: int, dtype: str, repeats: int) -> dict[str, object]:
    """One row of the table."""
    scores, labels = make_inputs(images, classes, dtype)
    ignored = np.random.default_rng(1).random(labels.shape) < 0.01

    def ours() -> dict:
        return multilabel_metrics(scores, labels)

    def reference() -> np.ndarray:
        return scikit_learn_ap(scores, labels)

    difference = np.abs(ours()["per_class_AP"] - reference()).max()  # also the warm-up
    pairs = [(seconds(ours), seconds(reference)) for _ in range(repeats)]
    ours_s, reference_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "scores": dtype,
        "all metrics, s": ours_s,
        "scikit-learn AP, s": reference_s,
        "ratio": reference_s / ours_s,
        "peak, MB": peak_megabytes(ours),
        "peak with ignored, MB": peak_megabytes(
            lambda: multilabel_metrics(scores, labels, ignored)
        ),
        "AP difference, %": difference,
    }


def main() -> None:
    """Prints one row for each type of scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=40504)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    rows = [
        measure(args.images, args.classes, dtype, args.repeats) for dtype in ("float32", "float64")
    ]
    print(
        json.dumps(rows, indent=2) if args.json else tabulate(rows, headers="keys", floatfmt=".3g")
    )


if __name__ == "__main__":
    main()
