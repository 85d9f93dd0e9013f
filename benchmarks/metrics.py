#!/usr/bin/env python
"""Time and memory of evaluation: all metrics, and bootstrap intervals with a paired comparison.

As many images and classes as COCO val2014, one thread, seconds of the processor. Beside the
metrics stands scikit-learn's AP alone, beside the comparison a loop over scikit-learn that draws
the images of every replicate, timed on a few of them.

    python benchmarks/metrics.py [--json]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable

from scnet_d2.evaluation.intervals import compare_map
from scnet_d2.evaluation.metrics import multilabel_metrics

import numpy as np
import torch
from tabulate import tabulate


def make_inputs(images: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N, C) of a moderately good model and labels (N, C), 2.9 per image as in COCO."""
    rng = np.random.default_rng(0)
    labels = rng.random((images, classes), np.float32) < 2.9 / classes
    logits = 1.5 * rng.standard_normal(labels.shape, np.float32) - 4
    logits[labels] += 4
    return 1 / (1 + np.exp(-logits)), labels


def scikit_learn_ap(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """AP of each class in percent, (C,)."""
    from sklearn.metrics import average_precision_score  # noqa: PLC0415 (it takes memory)

    return np.array(
        [100.0 * average_precision_score(y, s) for y, s in zip(labels.T, scores.T, strict=True)]
    )


def compare_by_scikit_learn(
    first: np.ndarray, second: np.ndarray, labels: np.ndarray, replicates: int
) -> np.ndarray:
    """Difference of mAP in each replicate, (replicates,) in percent, by the plain loop."""
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(replicates):
        rows = rng.integers(len(labels), size=len(labels))
        drawn = [scikit_learn_ap(scores[rows], labels[rows]).mean() for scores in (first, second)]
        differences.append(drawn[1] - drawn[0])
    return np.array(differences)


def seconds(function: Callable[[], object], repeats: int = 1) -> float:
    """Processor time of a call, median."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return statistics.median(times)


def peak_megabytes() -> float:
    """Most memory that this process has held, with Python and PyTorch; 1 MB = 10**6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(images: int, classes: int, replicates: int, repeats: int) -> list[dict[str, object]]:
    """The rows of the table."""
    scores, labels = make_inputs(images, classes)
    noise = np.random.default_rng(1).standard_normal(scores.shape, np.float32)
    second = np.clip(scores + 0.02 * noise, 0, 1)
    metrics_s = seconds(lambda: multilabel_metrics(scores, labels), repeats)
    compare_s = seconds(lambda: compare_map(scores, second, labels, replicates=replicates))
    peak = peak_megabytes()  # before scikit-learn is there
    ap_s = seconds(lambda: scikit_learn_ap(scores, labels), repeats)
    few = min(replicates, 2)
    loop_s = seconds(lambda: compare_by_scikit_learn(scores, second, labels, few))
    return [
        _row("all metrics", metrics_s, ap_s, peak),
        _row(f"comparison, {replicates} replicates", compare_s, loop_s * replicates / few, peak),
    ]


def _row(name: str, ours: float, reference: float, peak: float) -> dict[str, object]:
    return {
        "what": name,
        "s": ours,
        "scikit-learn loop, s": reference,
        "ratio": reference / ours,
        "peak, MB": peak,
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=40504)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(args.images, args.classes, args.replicates, args.repeats)
    print(json.dumps(rows, indent=2) if args.json else tabulate(rows, "keys", floatfmt=".3g"))


if __name__ == "__main__":
    main()
