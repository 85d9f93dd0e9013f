#!/usr/bin/env python
"""Expansion ratios that the boxes of a run chose, by the size of the box and by class.

Of runs with `MODEL.SCNET.CONTEXT.RATIOS`: for each label that is present, the box that it scores
highest in. Several score files, such as those of three seeds, count as one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from scnet_d2.evaluation import ScoreTable, read_scores

import numpy as np
from tabulate import tabulate

SIDES = (32, 64, 128, 256)  # px of the original image, square root of the box's area


def present_boxes(table: ScoreTable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ratio, side in px and class id (E,) of the boxes of labels that are present.

    Raises:
        ValueError: the run's boxes chose no ratios.
    """
    evidence = table.evidence
    if "evidence_context_ratios" not in evidence:
        raise ValueError("no ratios in the scores: MODEL.SCNET.CONTEXT.RATIOS was empty")
    rows, classes = evidence["evidence_images"], evidence["evidence_classes"]
    present = table.labels[rows, classes] & ~table.ignored[rows, classes]
    corners = evidence["evidence_boxes"][present]
    sides = np.sqrt((corners[:, 2:] - corners[:, :2]).clip(min=0).prod(axis=1))
    return evidence["evidence_context_ratios"][present], sides, classes[present]


def rows_of(ratios: np.ndarray, groups: np.ndarray, names: list[str]) -> Iterator[list]:
    """Name, number and mean and deviation of the ratios of each group that has any."""
    for group, name in enumerate(names):
        if len(own := ratios[groups == group]):
            yield [name, len(own), f"{own.mean():.2f}", f"{own.std():.2f}"]


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scores", type=Path, nargs="+", help="multilabel_scores.npz of runs")
    args = parser.parse_args()
    try:
        tables = [read_scores(path) for path in args.scores]
        found = zip(*map(present_boxes, tables))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    ratios, sides, classes = map(np.concatenate, found)
    limits = [f"side below {SIDES[0]} px", *(f"from {side} px" for side in SIDES)]
    body = [
        *rows_of(ratios, np.digitize(sides, SIDES), limits),
        *rows_of(ratios, classes, tables[0].class_names),
    ]
    print(tabulate(body, ["boxes", "number", "mean ratio", "deviation"], disable_numparse=True))


if __name__ == "__main__":
    main()
