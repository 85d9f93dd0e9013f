#!/usr/bin/env python
"""What each method of a plan costs: parameters, and processor time on this CPU.

The models have random weights. They are timed in turn, several rounds of labelling one image and
of a training step on a batch, and the medians are stored beside the plan's results; evidence.py
prints them. Times of one run compare with each other alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from scnet_d2 import load_config
from scnet_d2.engine import Trainer
from scnet_d2.outputs import write_json

import torch
from compare import REPO, Plan, environment, plan_or_error
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from tqdm import tqdm

FILE = "cost.json"
BATCH, STEP_ROUNDS = 8, 3


def build(plan: Plan, method: str) -> torch.nn.Module:
    """The model of a method, which computes no detections where its labels need none."""
    keys = {**plan.opts, **plan.methods[method], "MODEL.DEVICE": "cpu"}
    config = str(REPO / plan.config_of(method))
    cfg = load_config(config, [str(x) for item in keys.items() for x in item])
    cfg.MODEL.SCNET.IMAGE_SCORES_ONLY = True
    model = Trainer.build_model(cfg)
    head = getattr(model, "head", None)
    if getattr(head, "needs", ()):
        names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes
        head.fill_context(names, [[i, (i + 1) % len(names)] for i in range(len(names))])
    return model.eval()


def measure(plan: Plan, size: tuple[int, int], rounds: int) -> dict:
    """Cost of every method: numbers of parameters, and CPU ms for images of a size (H, W)."""
    models = {method: build(plan, method) for method in plan.methods}
    images, steps = ({method: [] for method in models} for _ in range(2))
    image, batch = [random_image(*size)], [random_image(*size) for _ in range(BATCH)]
    for i in tqdm(range(rounds + 1), unit="round"):  # the first one warms up
        for method, model in models.items():
            images[method].append(timed(torch.inference_mode()(model.eval()), image))
            if i <= STEP_ROUNDS:
                steps[method].append(timed(partial(step, model.train()), batch))
    costs = {}
    for method, model in models.items():
        parameters = list(model.parameters())
        costs[method] = {
            "parameters": sum(p.numel() for p in parameters),
            "trained": sum(p.numel() for p in parameters if p.requires_grad),
            "ms": round(statistics.median(images[method][1:]), 2),
            "step_ms": round(statistics.median(steps[method][1:]), 2),
        }
    return {"size": list(size), "batch": BATCH, "methods": costs}


def random_image(height: int, width: int) -> dict:
    """An input of a model, with two objects."""
    instances = Instances((height, width), gt_classes=torch.tensor([0, 1]))
    boxes = [[0, 0, width / 2, height / 2], [width / 4, height / 4, width, height]]
    instances.gt_boxes = Boxes(torch.tensor(boxes))
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    labels = {"image_labels": [0, 1], "ignored_labels": []}
    return {"image": image, "height": height, "width": width, "instances": instances} | labels


def step(model: torch.nn.Module, batch: list[dict]) -> None:
    """Losses of a batch and their gradients."""
    with EventStorage(1):
        sum(model(batch).values()).backward()


def timed(call: Callable[[list[dict]], object], inputs: list[dict]) -> float:
    """CPU milliseconds of a call."""
    start = time.process_time()
    call(inputs)
    return 1000 * (time.process_time() - start)


def table(plan: Plan, cost: dict) -> str:
    """What is stored of a plan, for people."""
    methods = cost["methods"]
    reference = methods[plan.reference]["ms"]
    rows = [
        [name, f"{x['parameters'] / 1e6:.2f}", f"{x['trained'] / 1e6:.2f}", f"{x['ms']:.0f}",
         f"{x['ms'] / reference:.2f}", f"{x['step_ms'] / 1000:.2f}"]
        for name, x in methods.items()
    ]  # fmt: skip
    headers = [
        "",
        "million parameters",
        "trained",
        "ms an image",
        f"/ {plan.reference}",
        "s a step",
    ]
    height, width = cost["size"]
    text = tabulate(rows, headers, disable_numparse=True)
    return (
        f"CPU cost, {width} x {height} px, steps of {cost['batch']} images without the optimizer, "
        f"threads: {cost['threads']}\n{text}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure, store and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", type=Path, help="YAML file, see experiments/results/")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(192, 256), metavar=("H", "W"), help="%(default)s"
    )
    parser.add_argument("--rounds", type=int, default=20, help="%(default)s")
    args = parser.parse_args(arguments)
    plan = plan_or_error(args.plan, parser.error)
    cost = measure(plan, tuple(args.size), args.rounds) | environment()
    plan.results.mkdir(parents=True, exist_ok=True)
    write_json(plan.results / FILE, cost)
    print(table(plan, cost))


if __name__ == "__main__":
    main()
