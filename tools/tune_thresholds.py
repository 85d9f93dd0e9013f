#!/usr/bin/env python
"""Find the threshold of each class that maximises its F1 on saved validation scores."""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

from evaluate_scores import FORMATS, read_scores
from tabulate import tabulate

from scnet_d2.evaluation import multilabel_metrics, save_thresholds, tune_thresholds
from scnet_d2.outputs import new_file

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
        scores, labels, ignored, class_names, _ = read_scores(args.file, args.labels)
        before = multilabel_metrics(scores, labels, ignored)  # checks them, too
        thresholds = tune_thresholds(scores, labels, ignored)
        save_thresholds(args.output, thresholds, class_names, source=str(args.file))
    except KeyError as error:
        parser.error(f"{args.file}: no {error}")
    except (EOFError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
        parser.error(f"{args.file}: {error}")
    after = multilabel_metrics(scores, labels, ignored, threshold=thresholds)
    body = [["0.5", *(before[k] for k in KEYS)], ["tuned", *(after[k] for k in KEYS)]]
    print(tabulate(body, headers=["threshold", *KEYS], floatfmt=".2f", disable_numparse=[0]))
    print(f"\nOn {args.file}, the file they were tuned on: elsewhere they gain less, or lose.")
    print(f"Thresholds of {len(class_names)} classes: {args.output}")


if __name__ == "__main__":
    main()
