#!/usr/bin/env python
"""Draws docs/images/network.svg, the figure of docs/method.md: `python docs/draw_network.py`."""

from pathlib import Path

from scnet_d2.outputs import replacing

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

PATH = Path(__file__).parent / "images" / "network.svg"
OBJECT, CONTEXT, IMAGE, GREY = "#c05621", "#2b6cb0", "#6b46c1", "#4a5568"
WIDTH, HEIGHT = 1.7, 0.95

# Text, colour and place (x, y of the middle) of each part.
PARTS = {
    "image": ("image", GREY, 0.9, 3),
    "backbone": ("backbone\nResNeXt and FPN", GREY, 3.2, 3),
    "rpn": ("RPN\npatch generator 1", OBJECT, 5.6, 4.2),
    "expand": ("expand, clip\npatch generator 2", CONTEXT, 5.6, 1.8),
    "object": ("RoIAlign,\nobject head", OBJECT, 8.1, 4.2),
    "context": ("RoIAlign,\ncontext head", CONTEXT, 8.1, 1.8),
    "boxes": ("location regressor,\npatch classifier", OBJECT, 10.6, 5.2),
    "label1": ("label predictor 1", OBJECT, 10.6, 4.0),
    "label2": ("label predictor 2", CONTEXT, 10.6, 1.8),
    "fuse": ("fuse\nfor each box", GREY, 13.0, 3),
    "aggregate": ("aggregate\nover the boxes", GREY, 15.3, 3),
    "labels": ("labels of the image,\na box for each", GREY, 17.7, 3),
    "whole": ("whole image\n(not in the slides)", IMAGE, 10.6, 0.4),
}
# From, to, label.
ARROWS = [
    ("image", "backbone", ""),
    ("backbone", "rpn", ""),
    ("rpn", "object", "object\nboxes"),
    ("rpn", "expand", ""),
    ("expand", "context", "context\nboxes"),
    ("object", "boxes", ""),
    ("object", "label1", ""),
    ("context", "label2", ""),
    ("label1", "fuse", ""),
    ("label2", "fuse", ""),
    ("fuse", "aggregate", "(K, C)"),
    ("aggregate", "labels", "(C,)"),
    ("backbone", "whole", ""),
    ("whole", "aggregate", ""),
]


def draw_part(axes: Axes, text: str, colour: str, x: float, y: float) -> None:
    """A rounded box with a text in it."""
    corner = x - WIDTH / 2, y - HEIGHT / 2
    axes.add_patch(
        FancyBboxPatch(
            corner, WIDTH, HEIGHT, "round,pad=0.05,rounding_size=0.12",
            facecolor=colour + "1a", edgecolor=colour, linewidth=1.4,
        )
    )  # fmt: skip
    axes.text(x, y, text, ha="center", va="center", fontsize=9.5)


def draw_arrow(axes: Axes, start: str, end: str, label: str) -> None:
    """An arrow between two parts, dashed where the slides have none."""
    (*_, x0, y0), (*_, x1, y1) = PARTS[start], PARTS[end]
    side, upright = WIDTH / 2 + 0.06, HEIGHT / 2 + 0.06
    style = {"arrowstyle": "-|>", "color": GREY, "linewidth": 1.2}
    if x0 == x1:
        ends = (x0, y0 - upright), (x1, y1 + upright)
    else:
        ends = (x0 + side, y0), (x1 - side, y1)
    if "whole" in (start, end):
        style |= {"linestyle": "--", "color": IMAGE}
    if end == "whole":  # down, then to the right
        ends = (x0, y0 - upright), ends[1]
        style["connectionstyle"] = "angle,angleA=-90,angleB=180,rad=8"
    if start == "whole":  # to the right, then up
        ends = ends[0], (x1, y1 - upright)
        style["connectionstyle"] = "angle,angleA=0,angleB=90,rad=8"
    axes.annotate("", xy=ends[1], xytext=ends[0], arrowprops=style)
    middle = [sum(values) / 2 for values in zip(*ends)]
    axes.text(middle[0], middle[1] + 0.08, label, ha="center", va="bottom", fontsize=8, color=GREY)


def main() -> None:
    """Draw and write the figure."""
    matplotlib.rcParams |= {"svg.hashsalt": "network", "font.family": "DejaVu Sans"}
    figure = Figure((15, 5))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.2, 18.8), ylim=(-0.4, 6))
    axes.axis("off")
    for part in PARTS.values():
        draw_part(axes, *part)
    for arrow in ARROWS:
        draw_arrow(axes, *arrow)
    with replacing(PATH) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
