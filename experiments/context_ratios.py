#!/usr/bin/env python
"""Expansion ratios that the boxes of a run chose, by size, occlusion and class.

Of runs with `MODEL.SCNET.CONTEXT.RATIOS`: for each label that is present, the box that it scores
highest in. Several score files, such as those of three seeds, count as one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scnet_d2.evaluation import ScoreTable, read_scores
from scnet_d2.outputs import new_file, write_json

import numpy as np
from tabulate import tabulate
from voc_objects import read_objects

SIDES = (32, 64, 128, 256)  # px of the original image, square root of the box's area
PERCENTILES = (5, 25, 50, 75, 95)


def present_boxes(table: ScoreTable) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ratio, side in px, image and class id (E,) of the boxes of labels that are present.

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
    return evidence["evidence_context_ratios"][present], sides, rows[present], classes[present]


def grouped_ratios(table: ScoreTable, objects: Path | None) -> tuple[np.ndarray, dict[str, dict]]:
    """The ratios (E,), and breakdown -> group -> (E,) bool, those in it."""
    ratios, sides, images, classes = present_boxes(table)
    limits = [f"below {SIDES[0]} px", *(f"from {side} px" for side in SIDES)]
    groups = {"side": {name: np.digitize(sides, SIDES) == i for i, name in enumerate(limits)}}
    if objects:
        stored = read_objects(objects, table.class_names)
        rows = [stored.image_ids.index(str(i)) for i in table.image_ids]
        for name, outs in stored.groups().items():
            groups[name] = {group: ~out[rows][images, classes] for group, out in outs.items()}
    groups["label"] = {name: classes == i for i, name in enumerate(table.class_names)}
    return ratios, groups


def summary(tables: list[ScoreTable], objects: Path | None) -> dict[str, dict[str, dict]]:
    """Breakdown -> group -> number, mean, deviation and quantiles of its ratios."""
    found = [grouped_ratios(table, objects) for table in tables]
    return {
        breakdown: {
            name: _statistics(own)
            for name in groups
            if len(own := np.concatenate([ratios[g[breakdown][name]] for ratios, g in found]))
        }
        for breakdown, groups in found[0][1].items()
    }


def _statistics(ratios: np.ndarray) -> dict[str, float]:
    values = {"mean": ratios.mean(), "deviation": ratios.std()}
    values |= {f"{p} %": np.percentile(ratios, p) for p in PERCENTILES}
    return {"number": len(ratios)} | {name: round(float(x), 3) for name, x in values.items()}


def to_text(groups: dict[str, dict[str, dict]]) -> str:
    """A row for each group: breakdown -> group -> statistics."""
    rows = [
        [f"{breakdown}: {name}", x["number"], f"{x['mean']:.2f}", f"{x['deviation']:.2f}"]
        for breakdown, own in groups.items()
        for name, x in own.items()
    ]
    return tabulate(rows, ["boxes", "number", "mean ratio", "deviation"], disable_numparse=True)


def main(arguments: list[str] | None = None) -> None:
    """Prints one table; --output also keeps the values."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scores", type=Path, nargs="+", help="multilabel_scores.npz of runs")
    parser.add_argument(
        "--objects", type=Path, help="of the photographs, stored by evidence.py --objects"
    )
    parser.add_argument("--output", type=new_file, help="new JSON file for the values")
    args = parser.parse_args(arguments)
    try:
        groups = summary([read_scores(path) for path in args.scores], args.objects)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(to_text(groups))
    if args.output:
        dataset = " + ".join(dict.fromkeys(path.parent.name for path in args.scores))
        write_json(args.output, {"dataset": dataset, "groups": groups})


if __name__ == "__main__":
    main()
