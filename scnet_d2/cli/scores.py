"""Evaluate saved image scores, of this project or of another program."""

from __future__ import annotations

import argparse
import json
import math

import numpy as np

from ..data.problems import counted
from ..evaluation import format_table, load_thresholds, multilabel_metrics
from ..evaluation.metrics import named_metrics
from ..evaluation.score_files import ScoreTable, read_scores


def run(args: argparse.Namespace) -> None:
    """Print a table for each file, or all metrics as JSON."""
    results = {}
    for path in args.files:
        table, threshold = read_scores(path, args.labels), args.threshold
        if args.thresholds:
            threshold = load_thresholds(args.thresholds, table.class_names)
        results[str(path)] = evaluate(table, threshold, args.top_k)
        if not args.json:
            classes = counted(len(table.class_names), "class")
            print(f"{path}: {counted(len(table.scores), 'image')}, {classes}\n")
            print(format_table(results[str(path)]), end="\n\n")
    if args.json:
        print(to_json(results))


def evaluate(table: ScoreTable, threshold: float | np.ndarray, top_k: int) -> dict[str, float]:
    """Every metric in percent, with one ``AP-<class>`` for each class."""
    metrics = multilabel_metrics(
        table.scores, table.labels, table.ignored, threshold=threshold, top_k=top_k
    )
    return named_metrics(metrics, table.class_names)


def to_json(results: dict[str, dict[str, float]]) -> str:
    """JSON has no nan: null stands for the AP of a class without positives."""
    nullable = {
        path: {key: None if math.isnan(value) else value for key, value in metrics.items()}
        for path, metrics in results.items()
    }
    return json.dumps(nullable, indent=2)
