"""Write SCNet as TorchScript, ONNX or safetensors, and check the file against PyTorch."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from tabulate import tabulate

from ..data import read_image
from ..data.context_scenes import SceneConfig, render_scene
from ..inference import SCNetPredictor, load_arguments
from ..inference import export as formats
from ..inference.export import Difference, output_difference, pytorch_run
from ..outputs import whole_file
from ..tagging.inputs import ImageFinder

EXPORT = {
    "torchscript": formats.export_torchscript,
    "onnx": formats.export_onnx,
    "safetensors": formats.export_safetensors,
}
LOAD = {
    "torchscript": formats.load_torchscript,
    "onnx": formats.load_onnx,
    "safetensors": formats.load_safetensors,
}
SCALES = (0.75, 1.0, 1.25)  # of the test size
LEAST_PAIRED = 0.95


def run(args: argparse.Namespace) -> int:
    """Export and check; returns 1 where the file differs too much and was not kept."""
    output = args.output
    if output.exists() and not args.overwrite:
        raise ValueError(f"{output} is there already: choose another --output or add --overwrite")
    if args.format == "safetensors" and output.suffix != ".safetensors":
        raise ValueError(f"--output {output}: the checkpointer knows the format by .safetensors")
    predictor = SCNetPredictor(setup(args))
    images = list(check_images(args.check, predictor.input_format))
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with whole_file(output, keep_suffix=True) as partial:
            start = time.perf_counter()
            EXPORT[args.format](predictor, partial)
            seconds = time.perf_counter() - start
            rows = list(check(predictor, args.format, partial, images))
            print(table(rows))
            require_equal(rows, args.tolerance)
    except NotEqualError as error:
        print(f"\nNot kept: {error}", file=sys.stderr)
        return 1
    print(f"\n{output}: {output.stat().st_size / 1e6:.1f} MB, exported in {seconds:.1f} s")
    return 0


def setup(args) -> CfgNode:
    """Read the config and the key overrides; the model is on the CPU."""
    args.opts = [*args.opts, "MODEL.DEVICE", "cpu"]
    return load_arguments(args)


def check(
    predictor: SCNetPredictor, file_format: str, file: Path, images: list[tuple[str, np.ndarray]]
) -> Iterator[tuple[str, str, Difference]]:
    """Name, size and difference of each image, see `check_images`, at each scale."""
    expected, (actual, _) = pytorch_run(predictor.model), LOAD[file_format](file)
    for name, image in images:
        for scale in SCALES:
            resized = resize(image, predictor.cfg.INPUT, scale)
            size = "{} x {}".format(*resized.shape[:2])
            yield name, size, output_difference(expected(resized), actual(resized))


def check_images(files: list[str], input_format: str) -> Iterator[tuple[str, np.ndarray]]:
    """The given photographs, or one generated scene; (H, W, 3) uint8 in the model's format.

    A folder stands for the photographs in it.
    """
    if not files:
        image, _ = render_scene(SceneConfig(), "test", 0)
        yield "generated scene", image if input_format == "BGR" else image[:, :, ::-1]
    for file in ImageFinder().find(files, []):
        yield Path(file).name, read_image(file, format=input_format)


def resize(image: np.ndarray, sizes: CfgNode, scale: float) -> np.ndarray:
    """The image at the test size times `scale`."""
    shorter, longer = (round(scale * x) for x in (sizes.MIN_SIZE_TEST, sizes.MAX_SIZE_TEST))
    return ResizeShortestEdge([shorter, shorter], longer).get_transform(image).apply_image(image)


def table(rows: list[tuple[str, str, Difference]]) -> str:
    """Largest absolute differences as text."""
    headers = ["image", "size", "image scores", "boxes found"]
    headers += ["boxes, px", "label scores", "context boxes, px"]
    body = []
    for name, size, d in rows:
        found = f"{d.num_paired} of {d.num_boxes}"
        differences = (f"{x:.1e}" for x in (d.boxes, d.label_scores, d.context_boxes))
        body.append([name, size, f"{d.image_scores:.1e}", found, *differences])
    return tabulate(body, headers, disable_numparse=True)


class NotEqualError(ValueError):
    """The file gives other outputs than PyTorch."""


def require_equal(rows: list[tuple[str, str, Difference]], tolerance: float) -> None:
    """
    Raises:
        NotEqualError: if not all images agree.
    """
    worst = max(d.image_scores for _, _, d in rows)
    found = min(d.num_paired / max(d.num_boxes, 1) for _, _, d in rows)
    agree = all(d.image_scores <= tolerance for _, _, d in rows) and found >= LEAST_PAIRED
    if not np.isfinite(worst):
        raise NotEqualError(
            f"image scores are {worst}: the weights may be of a training that diverged"
        )
    if not agree:
        raise NotEqualError(
            f"image scores differ by up to {worst:.1e} (--tolerance {tolerance:g}), "
            f"and {found:.0%} of the boxes were found again (at least {LEAST_PAIRED:.0%})"
        )
