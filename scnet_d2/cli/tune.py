#!/usr/bin/env python
"""Find the threshold of each class that maximises its F1 on saved validation scores."""

from __future__ import annotations

import argparse
from pathlib import Path

from scnet_d2.evaluation import multilabel_metrics, save_thresholds, tune_thresholds
from scnet_d2.evaluation.score_files import FORMATS, read_scores
from scnet_d2.outputs import new_file

from tabulate import tabulate

KEYS = ("CF1", "CF1_mean", "OF1")


def main(arguments: list[str] | None = None) -> None:
    """Writes the thresholds and prints F1 before and after; exits with an error message."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=FORMATS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", metavar="VAL", type=Path, help="saved validation scores")
    parser.add_argument("--labels", metavar="CSV", type=Path, help="the labels of CSV scores")
    parser.add_argument("--output", metavar="JSON", type=new_file, required=True)
    args = parser.parse_args(arguments)
    try:
        table = read_scores(args.file, args.labels)
        arrays = table.scores, table.labels, table.ignored
        thresholds = tune_thresholds(*arrays)
        save_thresholds(args.output, thresholds, table.class_names, source=str(args.file))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    before = multilabel_metrics(*arrays)
    after = multilabel_metrics(*arrays, threshold=thresholds)
    body = [["0.5", *(before[k] for k in KEYS)], ["tuned", *(after[k] for k in KEYS)]]
    print(tabulate(body, headers=["threshold", *KEYS], floatfmt=".2f", disable_numparse=[0]))
    print(f"\nOn {args.file}, the file they were tuned on: elsewhere they gain less, or lose.")
    print(f"Thresholds of {len(table.class_names)} classes: {args.output}")


if __name__ == "__main__":
    main()
