#!/usr/bin/env python
"""Weights of the branches learned on held-out images, for models of any number of branches.

Every run, a folder of train_net.py, predicts the data sets once. Of all weights in steps of 1/8
those with the highest mAP are learned, and for each class those with its highest AP; of equal ones
those nearest to even weights. "crossed" scores each half of the images with the weights that the
other half gave. Give it images that the runs were not trained on.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from scnet_command.arguments import add_register_arguments
from scnet_d2.data import register_arguments
from scnet_d2.evaluation import multilabel_metrics
from scnet_d2.inference import load_run
from scnet_d2.modeling import SCNet, ScoreFusion
from scnet_d2.outputs import new_file, write_json

import compare_fusion
import numpy as np
import torch
from branch_scores import BranchScores, record
from tabulate import tabulate

STEPS = 8
EVEN = "even weights"


def grid(branches: int) -> np.ndarray:
    """(G, B) weights of sum 1: even ones, then all in steps of 1/8, the nearest to even first."""
    points = itertools.product(range(STEPS + 1), repeat=branches)
    weights = np.array([p for p in points if sum(p) == STEPS]) / STEPS
    weights = np.concatenate([np.full((1, branches), 1 / branches), weights])
    distance = np.abs(weights - 1 / branches).sum(axis=1)
    return weights[distance.argsort(kind="stable")]


def weighted_scores(model: SCNet, images: list[BranchScores], weights: np.ndarray) -> np.ndarray:
    """(N, C) image scores of a model whose branches have these weights (B,)."""
    fusion = ScoreFusion(
        weights=dict(zip(images[0].branches, weights.tolist(), strict=True)),
        use_patch_confidence=model.roi_heads.fusion.use_patch_confidence,
    )
    scores = []
    for x in images:
        logits = {name: s.logit() for name, s in x.branches.items()}
        scores.append(x.image_scores(model, fusion(logits, x.patch_confidence.logit())))
    return torch.stack(scores).numpy()


def best(every: np.ndarray, labels: np.ndarray, ignored: np.ndarray) -> tuple[int, np.ndarray]:
    """Which of the scores (G, N, C) have the highest mAP, and the highest AP of each class (C,)."""
    found = [multilabel_metrics(scores, labels, ignored) for scores in every]
    aps = np.nan_to_num([x["per_class_AP"] for x in found])
    return int(np.argmax([x["mAP"] for x in found])), aps.argmax(axis=0)


def study(run: Path, datasets: list[str], classes: list[str]) -> dict:
    """Names of the branches, the weights that are learned, and the mAP of all, for one run."""
    cfg = load_run(run)
    model, images, labels, ignored = record(cfg, datasets, classes)
    names = list(images[0].branches)
    weights = grid(len(names))
    with torch.no_grad():
        every = np.stack([weighted_scores(model, images, w) for w in weights])
    branch, each = best(every, labels, ignored)
    alone = {
        f"{name} alone": every[np.flatnonzero(weights[:, b] == 1)[0]]
        for b, name in enumerate(names)
    }
    scores = {
        EVEN: every[0],
        **alone,
        "learned": every[branch],
        "learned by class": _pick(every, each),
    }
    half = np.arange(len(images)) % 2
    crossed = {name: np.empty_like(every[0]) for name in ("crossed", "crossed by class")}
    for fit in (half == 0, half == 1):
        chosen = best(every[:, fit], labels[fit], ignored[fit])
        for name, index in zip(crossed, chosen):
            crossed[name][~fit] = _pick(every, np.broadcast_to(index, every.shape[2:]))[~fit]
    return {
        "branches": names,
        "weights": weights[branch].tolist(),
        "weights by class": dict(
            zip(classes or list(cfg.DATASETS.CLASS_NAMES), weights[each].tolist())
        ),
        "mAP": {
            name: round(multilabel_metrics(s, labels, ignored)["mAP"], 4)
            for name, s in (scores | crossed).items()
        },
    }


def _pick(every: np.ndarray, each: np.ndarray) -> np.ndarray:
    """(N, C), of each class the scores (G, N, C) of its index (C,)."""
    return np.take_along_axis(every, each[None, None], axis=0)[0]


def map_of_runs(runs: dict[str, dict]) -> dict[str, list[float]]:
    """Name of the weights -> mAP of each run."""
    names = next(iter(runs.values()))["mAP"]
    return {name: [run["mAP"][name] for run in runs.values()] for name in names}


def to_text(runs: dict[str, dict]) -> str:
    """The mAP of all weights, and those that are learned."""
    learned = [[name, *run["weights"]] for name, run in runs.items()]
    branches = next(iter(runs.values()))["branches"]
    return "\n\n".join(
        [
            compare_fusion.to_text(map_of_runs(runs), EVEN, "weights"),
            tabulate(learned, ["learned", *branches], floatfmt=".3f"),
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    """Prints the tables; --output also keeps the values."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of trained runs")
    parser.add_argument("--dataset", required=True, nargs="+", help="names of registered data sets")
    parser.add_argument("--title", help="of the table (default: the data sets)")
    parser.add_argument("--classes", nargs="+", default=[], help="default: all")
    parser.add_argument("--output", type=new_file, help="new JSON file for the values")
    add_register_arguments(parser)
    args = parser.parse_args(arguments)
    register_arguments(args)
    runs = {run.name: study(run, args.dataset, args.classes) for run in args.runs}
    print(to_text(runs))
    if args.output:
        title = args.title or " + ".join(args.dataset)
        write_json(args.output, {"dataset": title, "runs": runs})


if __name__ == "__main__":
    main()
