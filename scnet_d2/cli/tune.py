"""Find the threshold of each class that maximises its F1 on saved validation scores."""

from __future__ import annotations

import argparse

from tabulate import tabulate

from ..data.problems import counted, first_ones
from ..evaluation import multilabel_metrics, save_thresholds, tune_thresholds
from ..evaluation.score_files import read_scores
from ..evaluation.thresholds import DEFAULT_THRESHOLD

KEYS = ("CF1", "CF1_mean", "OF1")


def run(args: argparse.Namespace) -> None:
    """Write the thresholds and print F1 before and after."""
    table = read_scores(args.file, args.labels)
    arrays = table.scores, table.labels, table.ignored
    thresholds = tune_thresholds(*arrays)
    save_thresholds(args.output, thresholds, table.class_names, source=str(args.file))
    before = multilabel_metrics(*arrays)
    after = multilabel_metrics(*arrays, threshold=thresholds)
    body = [["0.5", *(before[k] for k in KEYS)], ["tuned", *(after[k] for k in KEYS)]]
    print(tabulate(body, headers=["threshold", *KEYS], floatfmt=".2f", disable_numparse=[0]))
    known = (table.labels & ~table.ignored).any(axis=0)
    if missing := [name for name, seen in zip(table.class_names, known) if not seen]:
        classes = f"{counted(len(missing), 'class')} of no image, {first_ones(missing)}"
        print(f"\n{classes}: nothing to tune on, {DEFAULT_THRESHOLD} is kept.")
    print(f"\nOn {args.file}, the file they were tuned on: elsewhere they gain less, or lose.")
    print(f"Thresholds of {counted(len(table.class_names), 'class')}: {args.output}")
