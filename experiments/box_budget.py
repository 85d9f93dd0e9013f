#!/usr/bin/env python
"""Mean AP against the number of boxes, on the same trained models.

Every run, a folder of train_net.py, predicts the data set once with the largest number. Scores for
fewer boxes are aggregated from the boxes with the highest objectness: those that are left with
MODEL.RPN.POST_NMS_TOPK_TEST set to that number (but a relation branch, or a label head of the whole
image that looks at boxes, has seen all of them). Give it validation data: it is what the number of
boxes in a config is chosen on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scnet_command.arguments import add_register_arguments
from scnet_d2.data import LabelPolicy, register_arguments
from scnet_d2.engine import Trainer
from scnet_d2.evaluation import multilabel_metrics
from scnet_d2.evaluation.multilabel_evaluator import load_ground_truth
from scnet_d2.inference import load_run
from scnet_d2.modeling import SCNet
from scnet_d2.outputs import new_file, write_json

import numpy as np
import torch
from branch_scores import Recorder, load_model
from tabulate import tabulate
from tqdm import tqdm

NUMBERS = (1, 2, 5, 10, 20, 50, 100, 200, 300, 500, 1000)


@torch.no_grad()
def predict(model: SCNet, loader, numbers: list[int]) -> tuple[dict[int, np.ndarray], list[int]]:
    """(N, C) image scores for each number of boxes, and how many boxes each image has."""
    recorder, label_scores = Recorder(model), []
    hook = model.roi_heads.fusion.register_forward_hook(
        lambda fusion, inputs, fused: label_scores.append(fused.cpu())
    )
    for batch in tqdm(loader, desc="predicting", delay=5):
        model(batch)
    hook.remove()
    recorder.stop()
    images = [*zip(recorder.images, label_scores, strict=True)]  # the highest objectness first
    scores = {
        n: torch.stack([x.image_scores(model, fused[:n]) for x, fused in images]).numpy()
        for n in numbers
    }
    return scores, [len(fused) for fused in label_scores]


def study(run: Path, dataset: str, numbers: list[int], classes: list[str]) -> dict[str, object]:
    """Mean AP in percent for each number of boxes, and the boxes per image, for one run."""
    cfg = load_run(run)
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = max(numbers)
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = max(*numbers, cfg.MODEL.RPN.PRE_NMS_TOPK_TEST)
    model, loader = load_model(cfg), Trainer.build_test_loader(cfg, dataset)
    names = list(cfg.DATASETS.CLASS_NAMES)
    columns = [names.index(name) for name in classes or names]
    truth = load_ground_truth(dataset, len(names), LabelPolicy.from_config(cfg))
    labels, ignored = truth.labels[:, columns], truth.ignored[:, columns]
    scores, boxes = predict(model, loader, numbers)
    return {
        "boxes": float(np.mean(boxes)),
        "mAP": {
            n: round(multilabel_metrics(s[:, columns], labels, ignored)["mAP"], 4)
            for n, s in scores.items()
        },
    }


def to_text(runs: dict[str, dict]) -> str:
    """Mean over the runs, and the paired difference to the largest number with its range."""
    table = np.array([list(run["mAP"].values()) for run in runs.values()])  # (runs, numbers)
    difference = table - table[:, -1:]
    rows = [
        [n, table[:, i].mean(), d.mean(), f"{d.min():+.2f} to {d.max():+.2f}"]
        for i, (n, d) in enumerate(zip(next(iter(runs.values()))["mAP"], difference.T))
    ]
    headers = ["boxes", "mAP", f"- {rows[-1][0]} boxes", "over the runs"]
    found = np.mean([run["boxes"] for run in runs.values()])
    text = tabulate(rows, headers, floatfmt=("", ".2f", "+.2f"))
    return f"{text}\n{len(runs)} runs; the RPN gives {found:.0f} boxes per image at most"


def main(arguments: list[str] | None = None) -> None:
    """Prints the table; --output also keeps the values."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of trained runs")
    parser.add_argument("--dataset", required=True, help="name of a registered data set")
    parser.add_argument("--boxes", type=int, nargs="+", default=NUMBERS, help="numbers to try")
    parser.add_argument("--classes", nargs="+", default=[], help="default: all")
    parser.add_argument("--output", type=new_file, help="new JSON file for the mAP of every run")
    add_register_arguments(parser)
    args = parser.parse_args(arguments)
    register_arguments(args)
    numbers = sorted(args.boxes)
    runs = {r.name: study(r, args.dataset, numbers, args.classes) for r in args.runs}
    print(to_text(runs))
    if args.output:
        write_json(args.output, {"dataset": args.dataset, "runs": runs})


if __name__ == "__main__":
    main()
