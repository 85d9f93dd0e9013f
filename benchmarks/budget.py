#!/usr/bin/env python
"""What SCNet costs beyond its backbone, and its mAP, with fewer and fewer boxes.

A trained model, optimised for inference, gives the image scores of every image with each number of
boxes in turn, a level of features having six times as many before NMS.
In the same turns its network alone is timed, below the FPN, with average pooling and a linear
layer: a classifier of the whole image. Ratios are medians over the images.

    python benchmarks/budget.py --dataset voc_2007_test_multilabel --images 300
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import islice

from scnet_command.arguments import add_register_arguments
from scnet_d2.data import LabelPolicy, register_arguments
from scnet_d2.engine import Trainer
from scnet_d2.evaluation import multilabel_metrics
from scnet_d2.evaluation.multilabel_evaluator import load_ground_truth
from scnet_d2.inference import SCNetPredictor, optimize_for_inference
from scnet_d2.modeling import SCNet

import numpy as np
import torch
from speed import device_name
from tabulate import tabulate
from tqdm import tqdm

POOLING = "average pooling"
BEFORE_NMS = 6  # x the boxes after it, as the model's config has them


def average_pooling(model: SCNet) -> Callable[[list[dict]], torch.Tensor]:
    """A classifier of the whole image on a model's network: scores (N, C) of a batch."""
    network = getattr(model.backbone, "bottom_up", model.backbone)
    last, shape = list(network.output_shape().items())[-1]
    linear = torch.nn.Linear(shape.channels, model.roi_heads.num_classes)

    def predict(batch: list[dict]) -> torch.Tensor:
        features = network(model.preprocess_image(batch).tensor)[last]  # (N, D, h, w)
        return linear(features.mean(dim=(2, 3))).sigmoid()

    return predict


def with_boxes(model: SCNet, number: int) -> Callable[[list[dict]], torch.Tensor]:
    """SCNet from up to so many boxes: scores (N, C) of a batch."""

    def predict(batch: list[dict]) -> torch.Tensor:
        rpn = model.proposal_generator
        rpn.pre_nms_topk, rpn.post_nms_topk = {False: BEFORE_NMS * number}, {False: number}
        return torch.stack([output["image_scores"] for output in model(batch)])

    return predict


@torch.no_grad()
def take_turns(
    systems: dict[str, Callable], loader, images: int
) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Processor seconds of each image, and scores (N, C), by the name of the system."""
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    scores: dict[str, list] = {name: [] for name in systems}
    for batch in tqdm(islice(loader, images), total=images, unit="image", delay=5):
        for name, predict in systems.items():
            start = time.process_time()
            found = predict(batch)
            seconds[name].append(time.process_time() - start)
            scores[name].append(found.numpy())
    return seconds, {name: np.concatenate(rows) for name, rows in scores.items()}


def table(seconds: dict[str, Sequence[float]], scores: dict[str, np.ndarray], truth) -> str:
    """A row for each system."""
    rows = []
    for name, times in seconds.items():
        found = scores[name]
        labels, ignored = truth.labels[: len(found)], truth.ignored[: len(found)]
        rows.append(
            {
                "boxes": name,
                "ms": 1000 * statistics.median(times),
                "x pooling": statistics.median(a / b for a, b in zip(times, seconds[POOLING])),
                # the linear layer is not trained
                "mAP": None
                if name == POOLING
                else multilabel_metrics(found, labels, ignored)["mAP"],
            }
        )
    return tabulate(rows, headers="keys", floatfmt=("", ".0f", ".2f", ".2f"))


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="scnet_lite_voc", help="name, folder or hub id")
    parser.add_argument("--dataset", required=True, help="name of a registered data set")
    parser.add_argument("--images", type=int, default=300, help="the first ones of it")
    parser.add_argument("--boxes", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--backend", default="auto", help="of optimize_for_inference")
    add_register_arguments(parser)
    parser.add_argument("--opts", nargs="+", default=[], help="KEY VALUE ... for the config")
    args = parser.parse_args(arguments)
    register_arguments(args)
    torch.set_num_threads(1)
    opts = ["DATALOADER.NUM_WORKERS", 0, "MODEL.SCNET.IMAGE_SCORES_ONLY", True, *args.opts]
    predictor = SCNetPredictor.from_pretrained(args.model, "cpu", opts)
    model = optimize_for_inference(predictor.model, backend=args.backend)
    truth = load_ground_truth(
        args.dataset, len(predictor.class_names), LabelPolicy.from_config(predictor.cfg)
    )
    systems = {POOLING: average_pooling(model)}
    systems |= {str(number): with_boxes(model, number) for number in args.boxes}
    loader = Trainer.build_test_loader(predictor.cfg, args.dataset)
    images = min(args.images, len(truth.labels))
    text = table(*take_turns(systems, loader, images), truth)
    print(f"{args.model}, {images} images of {args.dataset}, {device_name()}, threads: 1\n{text}")


if __name__ == "__main__":
    main()
