#!/usr/bin/env python
"""What each method of a plan costs: parameters, and processor time to label an image on this CPU.

The models have random weights. They are timed in turn, several rounds of one image each, and the
median is stored beside the plan's results; evidence.py prints it. Times of one run compare with
each other alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from scnet_d2 import load_config
from scnet_d2.engine import Trainer
from scnet_d2.outputs import write_json

import torch
import yaml
from compare import REPO, Plan, environment, read_plan
from tabulate import tabulate
from tqdm import tqdm

FILE = "cost.json"


def build(plan: Plan, method: str) -> torch.nn.Module:
    """The model of a method, which computes no detections where its labels need none."""
    keys = {**plan.opts, **plan.methods[method], "MODEL.DEVICE": "cpu"}
    cfg = load_config(str(REPO / plan.config), [str(x) for item in keys.items() for x in item])
    cfg.MODEL.SCNET.IMAGE_SCORES_ONLY = True
    return Trainer.build_model(cfg).eval()


@torch.inference_mode()
def measure(plan: Plan, size: tuple[int, int], rounds: int) -> dict:
    """Cost of every method: numbers of parameters, and CPU ms for an image of a size (H, W)."""
    models = {method: build(plan, method) for method in plan.methods}
    height, width = size
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    times = {method: [] for method in models}
    for _ in tqdm(range(rounds + 1), unit="round"):  # the first one warms up
        for method, model in models.items():
            start = time.process_time()
            model([{"image": image, "height": height, "width": width}])
            times[method].append(1000 * (time.process_time() - start))
    costs = {}
    for method, model in models.items():
        parameters = list(model.parameters())
        costs[method] = {
            "parameters": sum(p.numel() for p in parameters),
            "trained": sum(p.numel() for p in parameters if p.requires_grad),
            "ms": round(statistics.median(times[method][1:]), 2),
        }
    return {"size": list(size), "methods": costs}


def table(plan: Plan, cost: dict) -> str:
    """What is stored of a plan, for people."""
    methods = cost["methods"]
    reference = methods[plan.reference]["ms"]
    rows = [
        [name, f"{x['parameters'] / 1e6:.2f}", f"{x['trained'] / 1e6:.2f}", f"{x['ms']:.0f}",
         f"{x['ms'] / reference:.2f}"]
        for name, x in methods.items()
    ]  # fmt: skip
    headers = ["", "million parameters", "trained", "CPU ms an image", f"/ {plan.reference}"]
    height, width = cost["size"]
    text = tabulate(rows, headers, disable_numparse=True)
    return f"cost, {width} x {height} px, threads: {cost['threads']}\n{text}"


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
    try:
        plan = read_plan(args.plan)
    except (OSError, ValueError, yaml.YAMLError) as error:
        parser.error(str(error))
    cost = measure(plan, tuple(args.size), args.rounds) | environment()
    plan.results.mkdir(parents=True, exist_ok=True)
    write_json(plan.results / FILE, cost)
    print(table(plan, cost))


if __name__ == "__main__":
    main()
