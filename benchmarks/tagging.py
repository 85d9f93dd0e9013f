#!/usr/bin/env python
"""Images per second of scnet tag beside the model's own rate and two plain loops.

One photograph, scaled to the size given, is tagged under many names: a worker process decodes and
shrinks while the model computes, in one thread. The model's own rate is that for inputs that lie in
memory. The plain loops read, scale and predict one image after the other, as one writes them with
torchvision: ResNet-50 as a classifier at 224 px, and its Faster R-CNN, both with random weights.
"ms" is processor time of the process that has the model, and of the worker with its start;
"images/s" is by the wall clock, which other work on the machine slows.

    python benchmarks/tagging.py --image PHOTO
    python benchmarks/tagging.py --image PHOTO --images 128 --ray
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from scnet_d2.inference import load_run
from scnet_d2.inference.run import class_names
from scnet_d2.tagging.local_engine import TagOptions, build_predictor, tag_locally
from scnet_d2.tagging.output import TagOutput
from scnet_d2.tagging.ray_engine import tag_with_ray

import cv2
import numpy as np
import torch
from speed import device_name
from tabulate import tabulate
from torchvision.models import resnet50
from torchvision.models.detection import fasterrcnn_resnet50_fpn

LOOPED = 2  # images of a plain loop


class Cost(NamedTuple):
    """What an image took, in seconds."""

    wall: float
    own: float  # processor time of this process
    workers: float = 0.0  # and of those that read


def make_files(folder: Path, image: str, width: int, count: int) -> list[str]:
    """So many names for a photograph of this width."""
    photo = cv2.imread(image)
    if photo is None:
        raise FileNotFoundError(f"{image} is no image that can be read")
    size = (width, round(width * photo.shape[0] / photo.shape[1]))
    cv2.imwrite(str(folder / "0.jpg"), cv2.resize(photo, size, interpolation=cv2.INTER_CUBIC))
    for i in range(1, count):
        os.link(folder / "0.jpg", folder / f"{i}.jpg")
    return [str(folder / f"{i}.jpg") for i in range(count)]


def cost_of(work: Callable[[], int]) -> Cost:
    """Cost of an image; `work` returns their number and has ended its workers by then."""
    wall, own, workers = time.perf_counter(), time.process_time(), _of_children()
    count = work()
    spent = time.perf_counter() - wall, time.process_time() - own, _of_children() - workers
    return Cost(*(seconds / count for seconds in spent))


def _of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def model_alone(cfg, files: list[str], options: TagOptions) -> Cost:
    """The model's own rate, in batches as the tagger's."""
    predictor = build_predictor(cfg, options)
    batch = [predictor.mapper(cv2.imread(files[0]))] * options.batch_size
    predictor.predict(batch)
    turns = len(files) // options.batch_size

    def work() -> int:
        for _ in range(turns):
            predictor.predict(batch)
        return turns * options.batch_size

    return cost_of(work)


def tagger(engine: Callable, files: list[str], options: TagOptions, output: Path) -> Cost:
    """`scnet tag` after its first chunk, in which the model is loaded; lines are written.

    Args:
        engine: from an iterator of files, the context that yields their records.
        files: the first chunk, and those that are timed.
        options: that the engine has.
        output: new file.
    """
    settings = {"version": "", "weights": "", "thresholds": {}, "top_k": None}
    with TagOutput(output, "jsonl", settings) as out:
        list(out.finished())

        def work() -> int:
            with engine(iter(files)) as chunks:
                return _after_the_first(chunks, out, started)

        started: list[float] = []
        total = cost_of(work)
        wall, own = (end - begin for end, begin in zip(_clocks(), started))
        count = len(files) - options.chunk_size
        return Cost(wall / count, own / count, total.workers)


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _after_the_first(chunks: Iterator[list[dict]], out: TagOutput, started: list[float]) -> int:
    count = 0
    for records in chunks:
        out.append(records)
        count += len(records)
        started[:] = started or _clocks()
    return count


@torch.no_grad()
def plain_loop(model: torch.nn.Module, files: list[str], side: int | None, listed: bool) -> Cost:
    """Read, scale to `side` and predict one by one."""

    def work(files: list[str]) -> int:
        for file in files:
            image = cv2.imread(file)[:, :, ::-1]
            image = cv2.resize(image, (side, side)) if side else np.ascontiguousarray(image)
            x = torch.from_numpy(image).permute(2, 0, 1) / 255
            model([x] if listed else x[None])
        return len(files)

    work(files[:1])
    return cost_of(lambda: work(files[:LOOPED]))


def measure(cfg, args: argparse.Namespace, folder: Path) -> dict[str, Cost]:
    """Cost of an image in every way."""
    names = class_names(cfg)
    plain = TagOptions(np.zeros(len(names)), batch_size=args.batch, backend=args.backend)
    fast = TagOptions(
        np.zeros(len(names)), batch_size=args.batch, backend=args.backend, fast_jpeg=True
    )
    files = make_files(folder, args.image, args.width, plain.chunk_size + args.images)

    def tag(name: str, options: TagOptions, engine: Callable, **of_engine) -> Cost:
        start = partial(engine, cfg, options=options, **of_engine)
        return tagger(start, files, options, folder / f"{name}.jsonl")

    if args.ray:
        actors = (1, 2)
        return {f"Ray, actors: {n}": tag(f"{n}", plain, tag_with_ray, actors=n) for n in actors}
    return {
        "model alone": model_alone(cfg, files, plain),
        "scnet tag": tag("plain", plain, tag_locally, workers=1),
        "scnet tag --fast-jpeg": tag("fast", fast, tag_locally, workers=1),
        "loop, ResNet-50 at 224 px": plain_loop(resnet50().eval(), files, 224, False),
        "loop, Faster R-CNN": plain_loop(
            fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval(), files, None, True
        ),
    }


def to_text(costs: dict[str, Cost]) -> str:
    """A row for each way; the ratio is of processor time, that of the model alone over it."""
    if "model alone" not in costs:  # Ray: its processes are not this one's
        rates = {name: 1 / cost.wall for name, cost in costs.items()}
        first = next(iter(rates.values()))
        rows = [{"way": n, "images/s": r, "x the first": r / first} for n, r in rates.items()]
        return tabulate(rows, headers="keys", floatfmt=".2f")
    alone = costs["model alone"].own
    rows = [
        {
            "way": name,
            "ms": 1000 * cost.own,
            "ms, workers": 1000 * cost.workers,
            "model / way": alone / cost.own,
            "images/s": 1 / cost.wall,
        }
        for name, cost in costs.items()
    ]
    return tabulate(rows, headers="keys", floatfmt=("", ".0f", ".0f", ".2f", ".2f"))


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", required=True, help="a photograph")
    parser.add_argument("--model", default="scnet_lite_voc", help="name, folder or hub id")
    parser.add_argument("--width", type=int, default=640, help="of the photograph, in pixels")
    parser.add_argument("--images", type=int, default=64, help="that are timed")
    parser.add_argument("--batch", type=int, default=4, help="images that go together")
    parser.add_argument("--backend", default="auto", help="of optimize_for_inference")
    parser.add_argument(
        "--ray", action="store_true", help="one actor and two; needs as many cores without work"
    )
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cfg = load_run(args.model, opts=["MODEL.DEVICE", "cpu"])
    with tempfile.TemporaryDirectory() as folder:
        costs = measure(cfg, args, Path(folder))
    load = os.getloadavg()[0]
    print(f"{args.model}, {args.width} px wide, {device_name()}, threads: 1, load {load:.1f}")
    print(to_text(costs))


if __name__ == "__main__":
    main()
