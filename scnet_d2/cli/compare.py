"""Compare two models on the same images: both mAPs, their difference, 95 % intervals and p.

Rows are matched by image id. Intervals and p are of the bootstrap over images, defined in
scnet_d2/evaluation/intervals.py.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from ..data.problems import counted
from ..evaluation import compare_map, format_rows, multilabel_metrics
from ..evaluation.intervals import Comparison, Interval
from ..evaluation.score_files import ScoreFileError, ScoreTable, read_scores
from ..evaluation.table import COLUMNS


def run(args: argparse.Namespace) -> None:
    """Print the comparison as text or JSON."""
    first, second = (read_scores(path, args.labels) for path in (args.first, args.second))
    try:
        second = align(first, second)
        comparison = compare(first, second, args.replicates, args.seed)
    except ValueError as error:
        raise ScoreFileError(f"{args.first} and {args.second}: {error}") from error
    rows = {
        name: multilabel_metrics(table.scores, table.labels, table.ignored)
        for name, table in (("A", first), ("B", second))
    }
    if args.json:
        print(to_json(rows, comparison))
    else:
        print(f"A: {args.first}\nB: {args.second}\n\n{to_text(rows, comparison)}\n")
        print(f"95 % intervals and two-sided p: {counted(args.replicates, 'bootstrap replicate')}")
        print(f"of {counted(len(first.scores), 'image')}, seed {args.seed}")


def align(first: ScoreTable, second: ScoreTable) -> ScoreTable:
    """``second`` in the row order of ``first``.

    Raises:
        ValueError: no image ids, or other classes, images, labels or ignored entries; names the
            first difference.
    """
    if first.class_names != second.class_names:
        names = zip([*first.class_names, None], [*second.class_names, None])
        index, (a, b) = next((i, pair) for i, pair in enumerate(names) if pair[0] != pair[1])
        raise ValueError(f"the classes differ: class {index} is {a!r} in A and {b!r} in B")
    for table, letter in ((first, "A"), (second, "B")):
        if table.image_ids is None or None in table.image_ids:
            raise ValueError(f"{letter} has no image ids to match the images by")
    row_of = {str(image_id): row for row, image_id in enumerate(second.image_ids)}
    ids = [str(image_id) for image_id in first.image_ids]
    alone = [i for i in ids if i not in row_of] or sorted(row_of.keys() - set(ids))
    if alone:
        raise ValueError(f"the images differ: image {alone[0]} is in only one of them")
    rows = [row_of[image_id] for image_id in ids]
    aligned = replace(
        second, scores=second.scores[rows], labels=second.labels[rows], ignored=second.ignored[rows]
    )
    for kind, a, b in (
        ("labels", first.labels, aligned.labels),
        ("ignored entries", first.ignored, aligned.ignored),
    ):
        for row, column in np.argwhere(a != b)[:1]:
            name = first.class_names[column]
            raise ValueError(f"the {kind} differ: image {ids[row]}, class {name!r}")
    return aligned


def compare(first: ScoreTable, second: ScoreTable, replicates: int, seed: int) -> Comparison:
    """The comparison, with a progress bar where it takes more than a few seconds."""
    with tqdm(total=2 * replicates, unit="replicate", delay=3, disable=None) as bar:
        return compare_map(
            first.scores, second.scores, first.labels, first.ignored,
            replicates=replicates, seed=seed, progress=bar.update,
        )  # fmt: skip


def to_text(rows: dict[str, dict], comparison: Comparison) -> str:
    """Both rows of the seven columns, then the intervals."""
    return (
        f"{format_rows(rows)}\n\n"
        f"mAP of A          {_with_interval(comparison.first)}\n"
        f"mAP of B          {_with_interval(comparison.second)}\n"
        f"difference B - A  {_with_interval(comparison.difference, '+')}   p = {comparison.p:.4f}"
    )


def to_json(rows: dict[str, dict], comparison: Comparison) -> str:
    """The seven columns of A and B, and the intervals of mAP as [value, low, high]."""
    metrics = {name: {key: row[key] for key in COLUMNS} for name, row in rows.items()}
    intervals = dict(zip(("A", "B", "difference", "p"), comparison))
    return json.dumps({"metrics": metrics, "mAP": intervals}, indent=2)


def _with_interval(interval: Interval, sign: str = "") -> str:
    value, low, high = (f"{x:{sign}.2f}" for x in interval)
    return f"{value} ({low} to {high})"
