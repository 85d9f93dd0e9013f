#!/usr/bin/env python
"""Ways to fuse the branches and to aggregate over boxes, on the same trained models.

Every run, a folder of train_net.py, predicts the data set once; fusions and aggregations are then
computed from the recorded scores of all its boxes: of the object and the context branch alone. Give
it validation data: it is what the defaults are settled on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from scnet_command.arguments import add_register_arguments
from scnet_d2.data import register_arguments
from scnet_d2.evaluation import multilabel_metrics
from scnet_d2.inference import load_run
from scnet_d2.modeling import LabelAggregator
from scnet_d2.modeling.aggregation import logsumexp, noisy_or, topk_mean
from scnet_d2.modeling.aggregation import max as max_score
from scnet_d2.outputs import new_file, write_json

import numpy as np
import torch
from branch_scores import BranchScores, record
from tabulate import tabulate

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
DEFAULT = "mean, λ = 0.5"


def mean(x: BranchScores, weight: float) -> torch.Tensor:
    """λ·object + (1−λ)·context."""
    return torch.lerp(x.branches["context"], x.branches["object"], weight)


def product(x: BranchScores) -> torch.Tensor:
    """object·context."""
    return x.branches["object"] * x.branches["context"]


FUSIONS: dict[str, Callable[[BranchScores], torch.Tensor]] = {
    **{f"mean, λ = {w:g}": partial(mean, weight=w) for w in WEIGHTS},
    "geometric mean": lambda x: product(x).sqrt(),
    "product": product,
    "maximum": lambda x: torch.maximum(x.branches["object"], x.branches["context"]),
    "mean x patch confidence": lambda x: mean(x, 0.5) * x.patch_confidence[:, None],
    "mean x sqrt(patch confidence)": lambda x: mean(x, 0.5) * x.patch_confidence[:, None].sqrt(),
}
AGGREGATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "max": max_score,
    "topk_mean, k = 2": partial(topk_mean, topk=2),
    "topk_mean, k = 3": partial(topk_mean, topk=3),
    "topk_mean, k = 5": partial(topk_mean, topk=5),
    "logsumexp, r = 10": partial(logsumexp, sharpness=10.0),
    "logsumexp, r = 30": partial(logsumexp, sharpness=30.0),
    "noisy_or": noisy_or,
}


def image_scores(images: list[BranchScores], fuse: Callable, aggregate: Callable) -> np.ndarray:
    """(N, C) scores of the images; an image without boxes scores 0."""
    aggregator = LabelAggregator(aggregate=aggregate)
    return torch.stack([aggregator(fuse(x)) for x in images]).numpy()


def per_class_weights(images: list[BranchScores], labels, ignored) -> np.ndarray:
    """(N, C) scores with the best λ of each class: fitted on one half, used on the other."""
    every = np.stack([image_scores(images, partial(mean, weight=w), max_score) for w in WEIGHTS])
    half = np.arange(len(images)) % 2
    scores = np.empty_like(every[0])
    for part in (0, 1):
        fit, use = half == part, half != part
        aps = [multilabel_metrics(s[fit], labels[fit], ignored[fit])["per_class_AP"] for s in every]
        best = np.nan_to_num(aps).argmax(axis=0)  # (C,)
        scores[use] = np.take_along_axis(every, best[None, None], axis=0)[0][use]
    return scores


def variants(images: list[BranchScores], labels, ignored) -> Iterator[tuple[str, np.ndarray]]:
    """Name and image scores (N, C) of everything that is compared."""
    for name, fuse in FUSIONS.items():
        yield name, image_scores(images, fuse, max_score)
    yield "mean, λ per class", per_class_weights(images, labels, ignored)
    for name, aggregate in AGGREGATIONS.items():
        if aggregate is not max_score:
            yield name, image_scores(images, FUSIONS[DEFAULT], aggregate)


def study(run: Path, dataset: str, classes: list[str]) -> dict[str, float]:
    """Mean AP in percent of every variant for one run."""
    images, labels, ignored = record(load_run(run), [dataset], classes)[1:]
    return {
        name: round(multilabel_metrics(scores.astype(np.float32), labels, ignored)["mAP"], 4)
        for name, scores in variants(images, labels, ignored)
    }


def to_text(
    results: dict[str, list[float]],
    default: str = DEFAULT,
    title: str = "fusion or aggregation",
) -> str:
    """Mean over the runs, and the paired difference to the default with its range."""
    reference = np.array(results[default])
    rows = []
    for name, values in results.items():
        difference = np.array(values) - reference
        spread = f"{difference.min():+.2f} to {difference.max():+.2f}"
        rows.append([name, np.mean(values), difference.mean(), spread])
    headers = [title, "mAP", f"- '{default}'", "over the runs"]
    return tabulate(rows, headers, floatfmt=("", ".2f", "+.2f"))


def main(arguments: list[str] | None = None) -> None:
    """Prints the table; --output also keeps the values."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of trained runs")
    parser.add_argument("--dataset", required=True, help="name of a registered data set")
    parser.add_argument("--classes", nargs="+", default=[], help="default: all")
    parser.add_argument("--output", type=new_file, help="new JSON file: the mAP of every run")
    add_register_arguments(parser)
    args = parser.parse_args(arguments)
    register_arguments(args)
    studies = [study(run, args.dataset, args.classes) for run in args.runs]
    results = {name: [s[name] for s in studies] for name in studies[0]}
    print(to_text(results))
    if args.output:
        contents = {"dataset": args.dataset, "runs": [r.name for r in args.runs], "mAP": results}
        write_json(args.output, contents)


if __name__ == "__main__":
    main()
