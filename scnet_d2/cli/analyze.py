"""Parameters, multiply-adds and activations of SCNet by part, and what training it costs.

SCNet stands beside Detectron2's Faster R-CNN on the same backbone. Counted by fvcore on an image of
4:3, padded as in training, with a fixed number of boxes.
"""

from __future__ import annotations

import argparse
import logging
import textwrap
import warnings
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.export import TracingAdapter
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.analysis import FlopCountAnalysis
from fvcore.nn import ActivationCountAnalysis, parameter_count
from tabulate import tabulate
from torch import nn

from ..config import load_config
from ..data.problems import counted
from ..modeling import BRANCH_REGISTRY

BRANCHES = {f"{head.name} head": f"roi_heads.{head.name}_head" for _, head in BRANCH_REGISTRY}
BOX_HEAD = {"box head (Faster R-CNN)": "roi_heads"}
HEADS = BRANCHES | BOX_HEAD
FASTER_RCNN = (
    "MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
    "MODEL.MASK_ON", False, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False,
    # as many boxes as in its own configs
    "MODEL.RPN.POST_NMS_TOPK_TEST", 1000, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 512,
)  # fmt: skip


class Cost(NamedTuple):
    """Of a part of a network, for one image."""

    parameters: float
    macs: float  # multiply-adds of the forward pass
    activations: float  # numbers that convolutions and dense layers give


def count(cfg: CfgNode, short_side: int, num_boxes: int) -> dict[str, Cost]:
    """Cost of each part of the config's model in inference.

    Args:
        cfg: the config.
        short_side: of an image of 4:3, in pixels; both sides are padded to multiples of 32.
        num_boxes: that the heads are given.

    Returns:
        Costs by the name of the part.
    """
    model = build_model(cfg).eval()
    fix_proposals(model, num_boxes)
    size = [-(-side // 32) * 32 for side in (short_side, short_side * 4 // 3)]
    inputs = [{"image": torch.zeros(3, *size, dtype=torch.uint8)}]
    wrapper = TracingAdapter(model, inputs, allow_non_tensor=True)
    activations = ActivationCountAnalysis(wrapper, wrapper.flattened_inputs)
    counts = (
        parameter_count(model),
        by_module(FlopCountAnalysis(model, inputs)),
        by_module(activations),
    )
    whole = {name: Cost(*(c.get(path, 0) for c in counts)) for name, path in _paths(model).items()}
    pyramid = zip(whole["FPN"], whole["backbone"], strict=True)
    return whole | {"FPN": Cost(*(a - b for a, b in pyramid))}


def _paths(model: nn.Module) -> dict[str, str]:
    modules = dict(model.named_modules())
    heads = {name: path for name, path in BRANCHES.items() if path in modules} or BOX_HEAD
    backbone = {"backbone": "backbone.bottom_up", "FPN": "backbone"}
    return backbone | {"RPN": "proposal_generator"} | heads


def by_module(analysis) -> dict[str, float]:
    """Counts by the name of the module."""
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return {k.removeprefix("model."): v for k, v in analysis.by_module().items()}


def fix_proposals(model: nn.Module, num_boxes: int) -> None:
    """Have the RPN run and then give `num_boxes` random boxes; random weights find hardly any."""
    run = model.proposal_generator.forward

    def forward(images, features, targets=None):
        unused, losses = run(images, features, targets)
        proposals = []
        for (height, width), found in zip(images.image_sizes, unused, strict=True):
            corners = torch.rand(num_boxes, 2, 2).sort(dim=1).values * torch.tensor([width, height])
            boxes = Boxes(corners.flatten(1) + found.objectness_logits.sum().nan_to_num() * 0)
            logits = torch.zeros(num_boxes)
            proposals.append(
                Instances((height, width), proposal_boxes=boxes, objectness_logits=logits)
            )
        return proposals, losses

    model.proposal_generator.forward = forward


def training(parts: dict[str, Cost], cfg: CfgNode) -> dict[str, Cost]:
    """The parts with the boxes that training samples instead of those of inference."""
    share = cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE / cfg.MODEL.RPN.POST_NMS_TOPK_TEST
    return {
        name: Cost(c.parameters, c.macs * share, c.activations * share) if name in HEADS else c
        for name, c in parts.items()
    }


def total(parts: dict[str, Cost]) -> Cost:
    """Sum over the parts."""
    return Cost(*map(sum, zip(*parts.values(), strict=True)))


def table(models: dict[str, dict[str, Cost]]) -> str:
    """One row for each part of each model."""
    rows = []
    for name, parts in models.items():
        for part, cost in (parts | {"total": total(parts)}).items():
            rows.append([name, part, *(f"{c / u:,.1f}" for c, u in zip(cost, (1e6, 1e9, 1e6)))])
            name = ""  # noqa: PLW2901 (a model is named once)
    headers = ["model", "part", "parameters (M)", "multiply-adds (G)", "activations (M)"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=_RIGHT)


_RIGHT = ("left", "left", "right", "right", "right")


def recipe(cfg: CfgNode, cost: Cost, args: argparse.Namespace) -> str:
    """Memory and hours of training, with the arithmetic.

    Args:
        cfg: the config of the recipe.
        cost: of the model for one training image.
        args: of the command line.
    """
    gpus = cfg.SOLVER.REFERENCE_WORLD_SIZE or 1
    images = cfg.SOLVER.IMS_PER_BATCH / gpus
    flop = 2 * 3 * images * cost.macs
    seconds = flop / (args.gpu_tflops * 1e12 * args.utilisation)
    weights = cost.parameters * (4 + 4 + 4) / 2**30
    kept = images * cost.activations * args.bytes * args.copies / 2**30
    lines = [
        f"memory of a GPU = {cost.parameters / 1e6:.1f} M parameters x (4 weight + 4 gradient "
        f"+ 4 momentum) B + {images:g} images x {cost.activations / 1e6:.0f} M activations x "
        f"{args.bytes} B x {args.copies:g} copies = {weights:.1f} + {kept:.1f} GiB = "
        f"{weights + kept:.1f} GiB, and what CUDA itself takes",
        f"iteration = {images:g} images x {cost.macs / 1e9:.0f} G multiply-adds x 2 FLOP x 3 "
        f"(forward, and twice as much backward) = {flop / 1e12:.2f} TFLOP; / "
        f"({args.gpu_tflops:g} TFLOP/s x {args.utilisation:g}) = {seconds:.2f} s",
        f"training = {counted(cfg.SOLVER.MAX_ITER, 'iteration')} x {seconds:.2f} s = "
        f"{cfg.SOLVER.MAX_ITER * seconds / 3600:.1f} h on {gpus} GPU{'s' * (gpus > 1)}",
    ]
    return "\n".join(textwrap.fill(x, 96, subsequent_indent="    ") for x in lines)


def run(args: argparse.Namespace) -> None:
    """Print the tables and the estimates; what others warn of does not come between them."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            _print_costs(args)
    finally:
        logging.disable(logging.NOTSET)


def _print_costs(args: argparse.Namespace) -> None:
    if (kind := load(args).MODEL.META_ARCHITECTURE) not in ("SCNet", "GeneralizedRCNN"):
        raise ValueError(
            f"{args.config_file}: MODEL.META_ARCHITECTURE is {kind}; the parts of SCNet and of "
            "Detectron2's GeneralizedRCNN are counted, give a config of theirs"
        )
    for size in args.sizes:
        cfgs = {"SCNet": load(args), "Faster R-CNN": load(args, *FASTER_RCNN)}
        boxes = {name: cfg.MODEL.RPN.POST_NMS_TOPK_TEST for name, cfg in cfgs.items()}
        models = {name: count(cfg, size, boxes[name]) for name, cfg in cfgs.items()}
        numbers = ", ".join(f"{name} {number}" for name, number in boxes.items())
        print(f"\n{args.config_file}, shorter side {size}, boxes: {numbers}\n\n{table(models)}")
        for name, parts in models.items():
            cost = total(training(parts, cfgs[name]))
            print(f"\nTraining {name} at this size:\n{recipe(cfgs[name], cost, args)}")


def load(args: argparse.Namespace, *opts) -> CfgNode:
    """The config on the CPU with random weights and these keys."""
    return load_config(args.config_file, [*args.opts, *opts, "MODEL.DEVICE", "cpu"])
