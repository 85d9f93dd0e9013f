"""What the speed benchmarks share: models, an input, and processes that are timed in turn."""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from scnet_d2 import add_scnet_config
from scnet_d2.engine import Trainer

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.model_zoo import get_config_file
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "COCO-MultiLabel"
LITE = str(CONFIGS.parent / "VOC-MultiLabel" / "scnet_EfficientNet_Lite0_FPN_256px.yaml")
STOCK_R_50 = get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml")
# What the zoo's R-50 needs for networks of which the zoo has no Faster R-CNN.
STOCK_OPTS = {
    "R-18": ("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    "Lite0": (
        "MODEL.BACKBONE.NAME", "build_timm_fpn_backbone",
        "MODEL.TIMM.NAME", "tf_efficientnet_lite0",
        "MODEL.TIMM.OUT_FEATURES", ["res2", "res3", "res4", "res5"],
    ),
}  # fmt: skip
# Backbone -> SCNet's config, and that of Detectron2's Faster R-CNN.
BACKBONES = {
    "R-50": (
        str(CONFIGS / "scnet_R_50_FPN.yaml"),
        STOCK_R_50,
    ),
    "X-101": (
        str(CONFIGS / "scnet_X_101_32x8d_FPN_paper.yaml"),
        get_config_file("COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml"),
    ),
    "R-18": (str(CONFIGS.parent / "VOC-MultiLabel" / "scnet_R_18_FPN_256px.yaml"), STOCK_R_50),
    "Lite0": (LITE, STOCK_R_50),
}


class Setup(NamedTuple):
    """What one process runs."""

    name: str
    backbone: str = "R-50"
    stock: bool = False  # Detectron2's Faster R-CNN
    opts: tuple = ()  # KEY, VALUE, ... for the config
    size: int = 512  # side of the square image
    batch: int = 1
    image: str = ""  # a photograph; otherwise noise and shapes
    optimize: str = ""  # "float32" or "bfloat16": optimize_for_inference
    backend: str = "auto"  # of it
    steps: tuple[str, ...] = ()  # single steps of it
    amp: bool = False  # mixed precision: on a GPU, and in training
    layout: torch.memory_format | None = None  # of a training step; None: as `Trainer` has it
    threads: int = 2
    clock: str = "wall"


class Result(NamedTuple):
    """What it took."""

    seconds: list[float]  # one for each turn
    megabytes: float  # peak memory of the process, on a GPU of PyTorch on it; 1 MB = 10**6 bytes
    boxes: float  # proposals in an image that the heads got


def load_config(setup: Setup) -> CfgNode:
    """The config of a set-up, with random weights."""
    cfg = get_cfg()
    add_scnet_config(cfg)
    cfg.merge_from_file(BACKBONES[setup.backbone][setup.stock])
    if setup.stock:
        cfg.merge_from_list(list(STOCK_OPTS.get(setup.backbone, ())))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cfg.merge_from_list(["MODEL.WEIGHTS", "", "MODEL.DEVICE", device, *setup.opts])
    return cfg


def load_model(setup: Setup, inputs: list[dict]) -> nn.Module:
    """A model with random weights whose features are as large as trained ones.

    Every frozen batch norm gets the statistics of the input: without them the features of random
    weights grow from block to block, and the RPN's boxes with them.
    """
    torch.manual_seed(0)
    model = Trainer.build_model(load_config(setup)).eval()
    norms = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    hooks = [m.register_forward_pre_hook(_take_statistics) for m in norms]
    with torch.no_grad():
        model.backbone(model.preprocess_image(inputs).tensor)
    for hook in hooks:
        hook.remove()
    return model


def _take_statistics(norm: FrozenBatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
    norm.running_mean.copy_(inputs[0].mean(dim=(0, 2, 3)))
    norm.running_var.copy_(inputs[0].var(dim=(0, 2, 3)).clamp(min=1e-5))


def count_boxes(model: nn.Module) -> list[int]:
    """A list that grows by the number of proposals of every image that the model predicts."""
    counts: list[int] = []
    model.proposal_generator.register_forward_hook(
        lambda _, inputs, output: counts.extend(len(p) for p in output[0])
    )
    return counts


def load_image(setup: Setup) -> torch.Tensor:
    """(3, H, W) uint8 image: the photograph, or noise and shapes."""
    image = cv2.imread(setup.image) if setup.image else _shapes()
    if image is None:
        raise FileNotFoundError(f"{setup.image} is no image that can be read")
    image = cv2.resize(image, (setup.size, setup.size))
    return torch.as_tensor(image.transpose(2, 0, 1).copy())


def _shapes() -> np.ndarray:
    """(640, 640, 3) uint8: 40 rectangles and discs on noise."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (640, 640, 3)).astype(np.uint8)
    for i in range(40):
        x, y, radius = (int(v) for v in rng.integers((0, 0, 8), (640, 640, 120)))
        color = [int(v) for v in rng.integers(0, 256, 3)]
        if i % 2:
            cv2.circle(image, (x, y), radius, color, -1)
        else:
            cv2.rectangle(image, (x, y), (x + radius, y + 2 * radius), color, -1)
    return image


def measure(
    setups: Sequence[Setup], prepare: Callable, repeats: int, progress: tqdm
) -> list[Result]:
    """Run set-ups in turn (A B A B ...), each in a process of its own.

    Args:
        setups: what to run.
        prepare: makes, in the process, a function that does one turn, and a list that grows by
            the number of boxes in every image.
        repeats: timed turns, after one to warm up.
        progress: goes on by one for every turn.

    Raises:
        RuntimeError: if a process fails; has its traceback.
    """
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in setups]
    processes = [
        context.Process(target=_serve, args=(end, setup, prepare), daemon=True)
        for (_, end), setup in zip(pairs, setups)
    ]
    for process in processes:
        process.start()
    connections = [ours for ours, _ in pairs]
    for connection in connections:
        _receive(connection)  # ready
    turns = [[_turn(c, progress) for c in connections] for _ in range(repeats + 1)]
    ends = [_ask(connection, "stop") for connection in connections]
    for process in processes:
        process.join()
    return [Result(list(s), *end) for s, end in zip(zip(*turns[1:]), ends)]


def _turn(connection, progress: tqdm) -> float:
    seconds = _ask(connection, "turn")
    progress.update()
    return seconds


def _ask(connection, question: str):
    connection.send(question)
    return _receive(connection)


def _receive(connection):
    try:
        answer = connection.recv()
    except EOFError as error:
        raise RuntimeError("a process ended by itself: there may be too little memory") from error
    if isinstance(answer, str):
        raise RuntimeError(answer)
    return answer


def _serve(connection, setup: Setup, prepare: Callable) -> None:
    """In the process of a set-up: one turn whenever it is asked for."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(setup.threads)
    clock = time.process_time if setup.clock == "cpu" else time.perf_counter
    try:
        turn, counts = prepare(setup)
        connection.send(True)
        while connection.recv() == "turn":
            start = clock()
            turn()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            connection.send(clock() - start)
        connection.send((peak_megabytes(), statistics.mean(counts)))
    except Exception:
        connection.send(f"{setup.name}:\n{traceback.format_exc()}")


def peak_megabytes() -> float:
    """Most memory that this process has held; on a GPU, that PyTorch has held on it."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status").read_text()
    kilobytes = status.split("VmHWM:")[1].split()[0]
    return int(kilobytes) * 1024 / 1e6


def row(setup: Setup, result: Result, reference: Result) -> dict[str, object]:
    """A row of a table; ratios are to the reference, in time the median over the turns."""
    seconds = statistics.median(result.seconds)
    ratios = [a / b for a, b in zip(result.seconds, reference.seconds)]
    return {
        "model": setup.name,
        "boxes": result.boxes,
        "ms": 1000 * seconds,
        "range": "{:.0f}-{:.0f}".format(*(1000 * f(result.seconds) for f in (min, max))),
        "x stock": statistics.median(ratios),
        "images/s": setup.batch / seconds,
        "peak MB": result.megabytes,
        "x stock ": result.megabytes / reference.megabytes,
    }


def profile(setups: Sequence[Setup], prepare: Callable, top: int = 8) -> list[dict[str, object]]:
    """Milliseconds that one turn spends in each operation, the largest ones first.

    It is PyTorch's profiler that measures, in this process; on a GPU, the time on it.
    """
    columns: dict[str, dict[str, float]] = {}
    for setup in setups:
        torch.set_num_threads(setup.threads)
        turn, _ = prepare(setup)
        turn()
        with torch.profiler.profile() as profiler:
            turn()
        time_of = attrgetter(f"self_{'device' if torch.cuda.is_available() else 'cpu'}_time_total")
        columns[setup.name] = {e.key: time_of(e) / 1000 for e in profiler.key_averages()}
    spent = Counter()
    for column in columns.values():
        spent.update(column)
    names = [name for name, _ in spent.most_common(top)]
    rows = [{"operation": k} | {n: c.get(k, 0.0) for n, c in columns.items()} for k in names]
    return [*rows, {"operation": "all"} | {n: sum(c.values()) for n, c in columns.items()}]


def to_text(tables: dict[str, list[dict]], args: argparse.Namespace) -> str:
    """The tables, each under a line that says what was measured; or JSON with all arguments."""
    device = device_name()
    if args.json:
        return json.dumps(vars(args) | {"device": device, "tables": tables}, indent=1)
    head = (
        f"{args.backbone}-FPN, {args.size} px, images at once: {args.batch}, {device}, "
        f"threads: {args.threads}, {args.clock} clock, medians of {args.repeats} turns"
    )
    return "\n\n".join(f"{head}\n{_table(rows)}" for rows in tables.values())


def _table(rows: list[dict]) -> str:
    digits = {"x": ".2f", "peak,": ".2f", "images/s": ".2f"}  # by the first word of the column
    formats = [digits.get(column.split()[0], ".0f") for column in rows[0]]
    return tabulate(rows, headers="keys", floatfmt=formats)


def device_name() -> str:
    """Name of the GPU; or of the processor, and the instructions that PyTorch uses on it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", "CPU")
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def progress_bar(groups: Sequence[Sequence[Setup]], args: argparse.Namespace) -> tqdm:
    """Goes on by one for every turn of every set-up; tells the time that is left."""
    turns = sum(len(setups) for setups in groups) * (args.repeats + 1)
    return tqdm(total=turns, unit="turn", mininterval=1)


def base_setup(args: argparse.Namespace) -> Setup:
    """What the arguments say about every set-up."""
    return Setup(
        "", args.backbone, opts=tuple(args.opts), size=args.size, batch=args.batch,
        image=args.image, threads=args.threads, clock=args.clock,
    )  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that both benchmarks have."""
    parser.add_argument("--backbone", choices=BACKBONES, default="R-50")
    parser.add_argument("--size", type=int, default=512, help="side of the square image in pixels")
    parser.add_argument("--batch", type=int, default=1, help="images at once")
    parser.add_argument("--image", default="", help="a photograph (default: noise and shapes)")
    parser.add_argument("--repeats", type=int, default=7, help="timed turns of every model")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall",
        help="cpu: seconds of the processor, for a busy machine and --threads 1",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE ... for all models"
    )
