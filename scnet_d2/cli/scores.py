#!/usr/bin/env python
"""Evaluate saved image scores, of this project or of another program."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from scnet_d2.evaluation import format_table, load_thresholds, multilabel_metrics
from scnet_d2.evaluation.metrics import named_metrics
from scnet_d2.evaluation.score_files import FORMATS, ScoreTable, read_scores

import numpy as np


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
        except (OSError, ValueError) as error:
            parser.error(str(error))
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
    return named_metrics(metrics, table.class_names)


def to_json(results: dict[str, dict[str, float]]) -> str:
    """JSON has no nan: null stands for the AP of a class without positives."""
    nullable = {
        path: {key: None if math.isnan(value) else value for key, value in metrics.items()}
        for path, metrics in results.items()
    }
    return json.dumps(nullable, indent=2)


if __name__ == "__main__":
    main()
