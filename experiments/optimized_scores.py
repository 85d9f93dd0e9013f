#!/usr/bin/env python
"""What optimising a trained model for inference does to its scores and its mean AP.

Every image of a data set is predicted by the run's model as it is and optimised in each type.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scnet_command.arguments import add_register_arguments
from scnet_d2.data import LabelPolicy, register_arguments
from scnet_d2.engine import Trainer
from scnet_d2.evaluation import multilabel_metrics
from scnet_d2.evaluation.multilabel_evaluator import load_ground_truth
from scnet_d2.inference import load_run, optimize_for_inference

import branch_scores
import numpy as np
import torch
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

TYPES = {"plain": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = 0.02


def load_model(run: Path, dtype: torch.dtype | None) -> nn.Module:
    """The model of a run in float32; optimised where `dtype` is given."""
    model = branch_scores.load_model(load_run(run, opts=["SOLVER.AMP.CPU", False]))
    return model if dtype is None else optimize_for_inference(model, dtype)


@torch.no_grad()
def predict(models: dict[str, nn.Module], loader) -> dict[str, np.ndarray]:
    """(N, C) image scores by the name of the model."""
    scores: dict[str, list] = {name: [] for name in models}
    for batch in tqdm(loader, desc="predicting", delay=5):
        for name, model in models.items():
            scores[name] += [output["image_scores"].cpu().numpy() for output in model(batch)]
    return {name: np.stack(rows) for name, rows in scores.items()}


def compare(scores: dict[str, np.ndarray], labels, ignored) -> list[dict[str, object]]:
    """A row for each model: mean AP in percent, and differences to the plain scores."""
    rows = []
    for name, found in scores.items():
        difference = np.abs(found - scores["plain"])
        rows.append(
            {
                "model": name,
                "mAP": multilabel_metrics(found, labels, ignored)["mAP"],
                "mean difference": difference.mean(),
                "largest": difference.max(),
                f"above {TOLERANCE}": f"{(difference > TOLERANCE).sum()} of {difference.size}",
            }
        )
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("run", type=Path, help="folder of a trained run")
    parser.add_argument("--dataset", required=True, help="name of a registered data set")
    add_register_arguments(parser)
    args = parser.parse_args(arguments)
    register_arguments(args)
    cfg = load_run(args.run)
    models = {name: load_model(args.run, dtype) for name, dtype in TYPES.items()}
    policy = LabelPolicy.from_config(cfg)
    truth = load_ground_truth(args.dataset, cfg.MODEL.ROI_HEADS.NUM_CLASSES, policy)
    scores = predict(models, Trainer.build_test_loader(cfg, args.dataset))
    rows = compare(scores, truth.labels, truth.ignored)
    print(tabulate(rows, headers="keys", floatfmt=("", ".2f", ".5f", ".5f", "")))


if __name__ == "__main__":
    main()
