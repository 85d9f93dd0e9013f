#!/usr/bin/env python
"""Time and memory of SCNet's training step against Detectron2's Faster R-CNN of the same backbone.

A step is the losses of a batch, backward, and the update by the config's optimizer. Both have
random weights, see the same image with the same objects and run in turn, each in a process of its
own.

    python benchmarks/training.py --backbone X-101

The recipe for photographs on a CPU, EfficientNet-Lite0, can be taken apart: it begins with the
whole pyramid and a network that is trained.

    python benchmarks/training.py --backbone Lite0 --size 256 --batch 8 --parts
"""

from __future__ import annotations

import argparse

from scnet_d2.config import has_fast_bfloat16
from scnet_d2.engine import Trainer

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from speed import (
    Setup,
    add_arguments,
    base_setup,
    load_config,
    load_image,
    load_model,
    measure,
    profile,
    progress_bar,
    row,
    to_text,
)
from torch import nn

SAMPLED = "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"
SMALL_STEPS = ("SOLVER.BASE_LR", 1e-6)  # random weights diverge at the recipes' rate
OBJECTS = 7  # in an image, as in COCO
PYRAMID = (
    "MODEL.TIMM.OUT_FEATURES", ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"],
    "MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"],
    "MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [128], [256]],
)  # fmt: skip
TRAINED = ("MODEL.TIMM.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0)
STEM_FROZEN = ("MODEL.TIMM.NORM", "FrozenBN", "MODEL.BACKBONE.FREEZE_AT", 2)


def prepare(setup: Setup):
    """A function that trains one step, and the list of its numbers of sampled boxes."""
    cfg = load_config(setup)
    objects = make_objects(setup.size, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    inputs = [{"image": load_image(setup), "instances": objects}] * setup.batch
    model = load_model(setup, inputs).train()
    if setup.layout:
        model.to(memory_format=setup.layout)
    optimizer = Trainer.build_optimizer(cfg, model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = setup.amp and device == "cuda"  # on a CPU the model itself runs in bfloat16
    scaler = torch.amp.GradScaler(device, enabled=on_gpu)
    counts = count_sampled(model)

    def step() -> None:
        with EventStorage(), torch.autocast("cuda", enabled=on_gpu):
            loss = sum(model(inputs).values())
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step, counts


def make_objects(size: int, num_classes: int) -> Instances:
    """Random objects with sides from 4 to 30 % of the image's."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(OBJECTS, 2, generator=generator) * 0.7
    sides = 0.04 + torch.rand(OBJECTS, 2, generator=generator) * 0.26
    objects = Instances((size, size))
    objects.gt_boxes = Boxes(torch.cat([corner, corner + sides], dim=1) * size)
    objects.gt_classes = torch.randint(num_classes, (OBJECTS,), generator=generator)
    return objects


def count_sampled(model: nn.Module) -> list[int]:
    """A list that grows by the number of boxes sampled in every image."""
    counts: list[int] = []
    sampler = model.roi_heads
    sample = sampler.label_and_sample_proposals

    def counted(*args):
        sampled = sample(*args)
        counts.extend(len(s) for s in sampled)
        return sampled

    sampler.label_and_sample_proposals = counted
    return counts


def models(base: Setup) -> list[Setup]:
    """Faster R-CNN, SCNet with as many boxes and with the config's, and mixed precision."""
    base = base._replace(opts=(*SMALL_STEPS, *base.opts))
    stock = base._replace(name="Faster R-CNN", stock=True)
    equal = load_config(stock).MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
    setups = [
        stock,
        base._replace(name="SCNet, equal boxes", opts=(*base.opts, SAMPLED, equal)),
        base._replace(name="SCNet"),
    ]
    device = torch.device(load_config(base).MODEL.DEVICE)
    if not has_fast_bfloat16(device):
        return setups
    mixed = {"amp": True, "opts": (*base.opts, "SOLVER.AMP.CPU", True)}
    return [*setups, *(s._replace(name=f"{s.name}, AMP", **mixed) for s in (stock, setups[-1]))]


def parts_of_lite(base: Setup) -> list[Setup]:
    """The training step of EfficientNet-Lite0 without what makes it fast, which then comes in."""
    opts = (*SMALL_STEPS, *base.opts)
    naive = base._replace(
        name="naive", layout=torch.contiguous_format, opts=(*opts, *PYRAMID, *TRAINED)
    )
    return [
        naive,
        naive._replace(name="... without P2", opts=(*opts, *TRAINED)),
        base._replace(name="... channels last", opts=(*opts, *TRAINED)),
        base._replace(name="... batch norm, res2 frozen", opts=(*opts, *STEM_FROZEN)),
        base._replace(name="... as shipped: all frozen", opts=opts),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", action="store_true", help="operations instead of models")
    parser.add_argument("--parts", action="store_true", help="of the recipe of Lite0")
    add_arguments(parser)
    args = parser.parse_args(arguments)
    if args.parts and args.backbone != "Lite0":
        parser.error("--parts is of --backbone Lite0")
    setups = (parts_of_lite if args.parts else models)(base_setup(args))
    if args.profile:
        print(to_text({"profile": profile(setups[:3], prepare)}, args))
        return
    with progress_bar([setups], args) as progress:
        results = measure(setups, prepare, args.repeats, progress)
    rows = [row(s, r, results[0]) for s, r in zip(setups, results)]
    if args.parts:
        rows = [{key.replace("stock", "naive"): x for key, x in r.items()} for r in rows]
    print(to_text({"training step": rows}, args))


if __name__ == "__main__":
    main()
