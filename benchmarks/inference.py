#!/usr/bin/env python
"""Time and memory of SCNet's inference against Detectron2's Faster R-CNN of the same backbone.

Both have random weights, see the same image and run in turn, each in a process of its own. Times
have preprocessing and postprocessing in them; reading and resizing a file are not. As many label
scores reach the detection threshold as there are boxes: a trained SCNet has one to five for each.

    python benchmarks/inference.py --backbone X-101 --tables models
"""

from __future__ import annotations

import argparse
import contextlib
from functools import partial
from importlib.util import find_spec

from scnet_d2.config import has_fast_bfloat16
from scnet_d2.inference.backends import convert_network
from scnet_d2.inference.optimize import (
    compute_in,
    fold_batch_norm,
    optimize_for_inference,
    thread_roi_align,
    use_winograd,
)

import torch
from speed import (
    Result,
    Setup,
    add_arguments,
    base_setup,
    count_boxes,
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

BOXES, SCORES_ONLY = "MODEL.RPN.POST_NMS_TOPK_TEST", "MODEL.SCNET.IMAGE_SCORES_ONLY"
TABLES = ("models", "steps", "boxes", "classes", "size", "profile")
FEW_BOXES = 100  # with them mAP is that of the config's 300, docs/performance.md
STEPS = {
    "batch norm folded": fold_batch_norm,
    "channels first": partial(compute_in, dtype=torch.float32, layout=torch.contiguous_format),
    "channels last": partial(compute_in, dtype=torch.float32, layout=torch.channels_last),
    "3 x 3 by Winograd": use_winograd,
    "network by OpenVINO": partial(convert_network, backend="openvino"),
    "bfloat16": partial(compute_in, dtype=torch.bfloat16, layout=torch.contiguous_format),
    "bfloat16, channels last": partial(
        compute_in, dtype=torch.bfloat16, layout=torch.channels_last
    ),
    "ROIAlign in threads": thread_roi_align,
}


def prepare(setup: Setup):
    """A function that predicts the image once, and the list of its numbers of proposals."""
    image = load_image(setup)
    inputs = [{"image": image, "height": setup.size, "width": setup.size}] * setup.batch
    model = load_model(setup, inputs)
    set_score_threshold(model, inputs)
    if setup.optimize:
        optimize_for_inference(model, getattr(torch, setup.optimize), backend=setup.backend)
    for step in setup.steps:
        STEPS[step](model)
    counts = count_boxes(model)

    @torch.no_grad()
    def predict() -> None:
        with torch.autocast("cuda") if setup.amp else contextlib.nullcontext():
            model(inputs)

    return predict, counts


@torch.no_grad()
def set_score_threshold(model: nn.Module, inputs: list[dict]) -> None:
    """Set the least score of a detection to one that as many label scores reach as boxes exist."""
    scores: list[torch.Tensor] = []
    stock = hasattr(model.roi_heads, "box_predictor")
    if stock:
        part = model.roi_heads.box_predictor
        hook = part.register_forward_hook(
            lambda _, inputs, outputs: scores.append(outputs[0].softmax(dim=1)[:, :-1])
        )
    else:
        part = model.aggregator
        hook = part.register_forward_pre_hook(lambda _, inputs: scores.append(inputs[0]))
    model(inputs)
    hook.remove()
    found = torch.cat(scores)
    threshold = found.flatten().topk(max(len(found), 1)).values.min().item() if len(found) else 0.0
    if stock:
        part.test_score_thresh = threshold
    else:
        model.roi_heads.score_thresh = threshold


def fastest(base: Setup) -> Setup:
    """SCNet optimised, in bfloat16 where the device has it."""
    device = torch.device(load_config(base).MODEL.DEVICE)
    return base._replace(optimize="bfloat16" if has_fast_bfloat16(device) else "float32")


def models(base: Setup, with_compiled: bool) -> list[Setup]:
    """Faster R-CNN, and SCNet as it is, optimised, and without boxes."""
    stock = base._replace(name="Faster R-CNN", stock=True)
    equal = load_config(stock).MODEL.RPN.POST_NMS_TOPK_TEST
    shipped = base._replace(name="SCNet")
    plain = [
        stock,
        base._replace(name="SCNet, equal boxes", opts=_add(base, BOXES, equal)),
        shipped,
    ]
    amp = [s._replace(name=f"{s.name}, AMP", amp=True) for s in plain]
    best = fastest(base)
    optimised = [shipped._replace(name="SCNet, optimised", optimize="float32")]
    if best.optimize != "float32":
        optimised.append(best._replace(name=f"... in {best.optimize}"))
    if with_compiled:
        optimised.append(best._replace(name="... and compiled", backend="compile"))
    scores = best._replace(name="... image scores alone", opts=_add(base, SCORES_ONLY, True))
    return [*plain, *(amp if torch.cuda.is_available() else []), *optimised, scores]


def steps(base: Setup) -> list[Setup]:
    """Faster R-CNN, SCNet, and SCNet with more and more steps of what optimises it."""
    folded, first, last, winograd, openvino, bfloat16, bfloat16_last, threads = STEPS
    taken = [(), (folded,), (folded, last), (folded, first, winograd)]
    if find_spec("openvino"):
        taken.append((folded, first, winograd, openvino))
    if fastest(base).optimize == "bfloat16":
        taken += [(folded, bfloat16), (folded, bfloat16_last), (folded, bfloat16_last, threads)]
    scnet = [base._replace(name=f"... {t[-1]}" if t else "SCNet", steps=t) for t in taken]
    if load_config(base).MODEL.RPN.POST_NMS_TOPK_TEST > FEW_BOXES:
        opts = _add(base, BOXES, FEW_BOXES)
        scnet.append(scnet[-1]._replace(name=f"... {FEW_BOXES} boxes", opts=opts))
    return [base._replace(name="Faster R-CNN", stock=True), *scnet]


def growth(base: Setup, table: str, values: list[int]) -> dict[int, list[Setup]]:
    """Faster R-CNN, SCNet and the fastest SCNet for every value of what grows."""
    groups = {}
    for value in values:
        if table == "size":
            grown = base._replace(size=value)
        else:
            key = BOXES if table == "boxes" else "MODEL.ROI_HEADS.NUM_CLASSES"
            grown = base._replace(opts=_add(base, key, value))
        groups[value] = [
            grown._replace(name="Faster R-CNN", stock=True),
            grown._replace(name="SCNet"),
            fastest(grown)._replace(name="SCNet, optimised"),
        ]
    return groups


def _add(base: Setup, *opts) -> tuple:
    return (*base.opts, *opts)


def growth_row(table: str, value: int, setups: list[Setup], results: list[Result]) -> dict:
    """A row for one value: milliseconds, and the ratios to Faster R-CNN."""
    rows = [row(s, r, results[0]) for s, r in zip(setups, results)]
    cells: dict[str, object] = {table: value}
    for i, (name, short) in enumerate((("stock", ""), ("SCNet", ""), ("optimised", " "))):
        cells[f"{name}, ms"] = rows[i]["ms"]
        if i:
            cells[f"x stock{short}"] = rows[i]["x stock"]
    return cells | {"peak, x stock": rows[1]["x stock "], "boxes": rows[1]["boxes"]}


def plan(args: argparse.Namespace) -> dict[str, dict[int, list[Setup]]]:
    """Table -> value of what grows -> what is measured in turn."""
    base = base_setup(args)
    values = {"boxes": args.boxes, "classes": args.classes, "size": args.sizes}
    fixed = {"models": models(base, args.compile), "steps": steps(base)}
    return {
        table: growth(base, table, values[table]) if table in values else {0: fixed[table]}
        for table in args.tables
        if table != "profile"
    }


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints the tables."""
    args = argument_parser().parse_args(arguments)
    tables: dict[str, list[dict]] = {}
    plans = plan(args)
    with progress_bar([s for groups in plans.values() for s in groups.values()], args) as progress:
        for table, groups in plans.items():
            tables[table] = []
            for value, setups in groups.items():
                progress.set_description(table)
                results = measure(setups, prepare, args.repeats, progress)
                if value:
                    tables[table].append(growth_row(table, value, setups, results))
                else:
                    tables[table] += [row(s, r, results[0]) for s, r in zip(setups, results)]
    if "profile" in args.tables:
        stock, equal, scnet, *others = models(base_setup(args), with_compiled=False)
        tables["profile"] = profile([stock, equal, scnet, others[-2]], prepare)
    print(to_text(tables, args))


def argument_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--boxes", type=int, nargs="+", default=[50, 100, 300, 500, 1000])
    parser.add_argument("--classes", type=int, nargs="+", default=[20, 80, 300, 1000])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 800])
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    add_arguments(parser)
    return parser


if __name__ == "__main__":
    main()
