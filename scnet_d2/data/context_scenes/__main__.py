"""Generate the Context Scenes data set and, on request, a picture of it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import cv2
import numpy as np

from ...outputs import new_file, write_image
from .generator import DIFFICULTY, SURFACE_OF, SceneConfig, generate, render_scene


def _annotated(image: np.ndarray, annotations: list[dict], side: int, scale: int) -> np.ndarray:
    """Enlarge an image, draw boxes and class names, and centre it on a white square."""
    canvas = np.full((side * scale, side * scale, 3), 255, np.uint8)
    large = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    for a in annotations:
        x, y, w, h = (scale * v for v in a["bbox"])
        colour = (40, 220, 255) if a["name"] in SURFACE_OF else (255, 255, 255)
        cv2.rectangle(large, (x - 1, y - 1), (x + w, y + h), colour, 1)
        at = (min(x, large.shape[1] - 8 * len(a["name"])), y - 4 if y > 14 else y + h + 11)
        for ink, thickness in (((0, 0, 0), 3), (colour, 1)):
            font = cv2.FONT_HERSHEY_SIMPLEX, 0.42
            cv2.putText(large, a["name"], at, *font, ink, thickness, cv2.LINE_AA)
    y, x = ((side * scale - n) // 2 for n in large.shape[:2])
    canvas[y : y + large.shape[0], x : x + large.shape[1]] = large
    return canvas


def contact_sheet(
    config: SceneConfig, split: str = "test", rows: int = 3, columns: int = 5, scale: int = 2
) -> np.ndarray:
    """The first images of a split with boxes and names (pairs in yellow): (H, W, 3) uint8 BGR."""
    side = DIFFICULTY["long_side"] + 4
    tiles = []
    for i in range(rows * columns):
        image, contents = render_scene(config, split, i)
        tiles.append(_annotated(image, contents["annotations"], side, scale))
    return np.vstack([np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)])


def main(args: Sequence[str] | None = None) -> None:
    """Command line: generate the set and, on request, a picture of it."""
    parser = argparse.ArgumentParser(description="Generate the Context Scenes data set.")
    default = os.environ.get("DETECTRON2_DATASETS", "datasets")
    parser.add_argument("--root", default=default, help="folder of the data sets (%(default)s)")
    parser.add_argument(
        "--contact-sheet", metavar="FILE", type=new_file, help="write a picture of some images"
    )
    options = parser.parse_args(args)
    print(generate(options.root))
    if options.contact_sheet:
        write_image(options.contact_sheet, contact_sheet(SceneConfig()))


if __name__ == "__main__":
    main()
