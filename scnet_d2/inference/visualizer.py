"""Pictures of the labels of an image and the boxes, or the places, that they come from."""

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..evaluation.metrics import predicted

# Okabe and Ito's palette: told apart by the colour-blind, too.
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")
GREY = "#9A9A9A"
PANEL_INCHES = 3.2  # width of the panel of score bars
IMAGE_INCHES = 6.4  # long side of the image
LEAST_INCHES = 2.6  # height of a picture
DPI = 110
HEAT = "inferno"
LEAST_OPAQUE, MOST_OPAQUE = 0.45, 0.6  # of the colours of a class map


def draw_labels(
    image: np.ndarray,
    labels: Sequence[dict],
    *,
    threshold: float | Mapping[str, float] = 0.5,
    class_maps: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """Draw an image with its labels: tight boxes solid, context boxes dashed, scores as bars.

    Where there are class maps, the image is drawn once for each predicted label, with its map.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: as `describe_labels` returns them, from the highest score down.
        threshold: labels that it does not have predicted are listed in grey, without their boxes;
            one number, or one for each label name.
        class_maps: label name → (h, w), where in the image it is seen, see `label_maps`.

    Returns:
        (H', W', 3) uint8 RGB picture, about 1000 pixels wide whatever the size of the image.
    """
    thresholds = [_threshold(threshold, x["label"]) for x in labels]
    height, width = image.shape[:2]
    scale = IMAGE_INCHES / max(height, width)
    shown = _shown(labels, thresholds) if class_maps else []
    columns = math.ceil(math.sqrt(len(shown))) or 1
    rows = math.ceil(len(shown) / columns) or 1
    image_w, image_h = width * scale, max(height * scale * rows / columns, LEAST_INCHES)
    figure = Figure(figsize=(image_w + PANEL_INCHES, image_h), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    share = image_w / (image_w + PANEL_INCHES)
    if shown:
        cells = figure.add_gridspec(
            rows, columns, left=0, right=share, bottom=0, top=1, wspace=0.015, hspace=0.015
        )
        for cell, (rank, label) in zip(cells, shown):
            _draw_map(figure.add_subplot(cell), image, rank, label, class_maps[label["label"]])
    else:
        _draw_boxes(figure.add_axes((0, 0, share, 1)), image, labels, thresholds)
    left, bottom = share + 0.14 * (1 - share), 0.43 / image_h  # below it the axis has its name
    panel = figure.add_axes((left, bottom, 0.78 * (1 - share), 0.96 - bottom))
    _draw_bars(panel, labels, thresholds, "" if class_maps else "    — box   - - context box")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def label_maps(output: dict, class_names: Sequence[str]) -> dict[str, np.ndarray]:
    """Class maps (h, w) of a model's output for one image by label name; none where it has none."""
    if "class_maps" not in output:
        return {}
    maps = output["class_maps"].detach().float().cpu().numpy()
    return dict(zip(class_names, maps, strict=True))


def heat(class_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A class map (h, w) as colours over an image, from its lowest to its highest value.

    Args:
        class_map: (h, w) of any scale.
        size: (height, width) of the picture.

    Returns:
        (height, width, 4) uint8 RGBA; what is highest is bright and most opaque.
    """
    enlarged = cv2.resize(class_map.astype(np.float32), size[::-1], interpolation=cv2.INTER_CUBIC)
    enlarged -= enlarged.min()
    enlarged /= max(enlarged.max(), 1e-12)
    rgba = colormaps[HEAT](enlarged)
    rgba[..., 3] = LEAST_OPAQUE + (MOST_OPAQUE - LEAST_OPAQUE) * enlarged
    return (255 * rgba).round().astype(np.uint8)


def label_color(rank: int, score: float, threshold: float) -> str:
    """Colour of the label at a rank; grey below the threshold."""
    return COLORS[rank % len(COLORS)] if predicted(score, threshold) else GREY


def _threshold(threshold: float | Mapping[str, float], name: str) -> float:
    return threshold[name] if isinstance(threshold, Mapping) else threshold


def _shown(labels, thresholds) -> list[tuple[int, dict]]:
    """The predicted labels, each with its rank."""
    ranked = zip(enumerate(labels), thresholds)
    return [(i, x) for (i, x), least in ranked if predicted(x["score"], least)]


def _draw_boxes(axes, image, labels, thresholds) -> None:
    axes.imshow(image, interpolation="lanczos" if max(image.shape) < 600 else "antialiased")
    axes.set_axis_off()
    height, width = image.shape[:2]
    edge = 0.012 * max(height, width)  # boxes that end at the border stay visible
    axes.set(xlim=(-edge, width + edge), ylim=(height + edge, -edge))
    shown = [(i, x) for i, x in _shown(labels, thresholds) if x["box"]]
    for rank, label in reversed(shown):  # the highest score on top
        color = label_color(rank, label["score"], thresholds[rank])
        if label["context_box"]:  # a detector has none
            _draw_rectangle(axes, label["context_box"], color, linestyle=(0, (4, 3)), linewidth=1.6)
        _draw_rectangle(axes, label["box"], color, linestyle="-", linewidth=2.6)
    places: list[tuple[float, float]] = []
    for rank, label in shown:
        color = label_color(rank, label["score"], thresholds[rank])
        _draw_name(axes, label, color, places, image.shape)


def _draw_map(axes, image, rank, label, class_map) -> None:
    """The image with the class map of a label, and its name."""
    axes.set_axis_off()
    axes.imshow(image, interpolation="antialiased")
    axes.imshow(heat(class_map, image.shape[:2]))
    style = {"boxstyle": "square,pad=0.2", "facecolor": COLORS[rank % len(COLORS)]}
    axes.text(
        0.02, 0.98, f"{label['label']} {label['score']:.2f}", transform=axes.transAxes,
        fontsize=10, va="top", bbox=style | {"edgecolor": "none"}, parse_math=False,
    )  # fmt: skip


def _draw_rectangle(axes, box, color, **line) -> None:
    x0, y0, x1, y1 = box
    for edge, extra in (("black", 1.6), (color, 0)):  # a dark rim keeps lines visible anywhere
        style = line | {"linewidth": line["linewidth"] + extra, "alpha": 0.5 if extra else 1}
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=edge, **style))


def _draw_name(axes, label, color, places, shape) -> None:
    """Write a label above its box (in it at the top edge), lower where a name stands already."""
    line = 0.055 * max(shape[:2])
    x, y = max(label["box"][0], 0), max(label["box"][1] - line, 0)
    while any(abs(y - py) < line and abs(x - px) < 7 * line for px, py in places):
        y += line
    places.append((x, y))
    style = {"boxstyle": "square,pad=0.15", "facecolor": color, "edgecolor": "none", "alpha": 0.9}
    text = f"{label['label']} {label['score']:.2f}"
    if label.get("context_ratio"):
        text += f" (context x {label['context_ratio']:.1f})"
    right = x > 0.75 * shape[1]
    axes.text(
        label["box"][2] if right else x, y, text, fontsize=10, color="black", bbox=style,
        clip_on=True, va="top", ha="right" if right else "left", parse_math=False,
    )  # fmt: skip


def _draw_bars(axes, labels, thresholds, legend: str) -> None:
    names = [x["label"] for x in labels]
    scores = [x["score"] for x in labels]
    colors = [label_color(i, *pair) for i, pair in enumerate(zip(scores, thresholds))]
    rows = np.arange(len(labels))
    axes.barh(rows, scores, color=colors, height=0.34)
    for row, name, score in zip(rows, names, scores):
        axes.text(0, row - 0.24, name, fontsize=10, va="bottom", parse_math=False)
        axes.text(1, row - 0.24, f"{score:.2f}", fontsize=10, va="bottom", ha="right")
    axes.vlines(thresholds, rows - 0.24, rows + 0.24, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlim=(0, 1), ylim=(max(len(labels), 5) - 0.5, -0.8), yticks=[], xticks=[0, 0.5, 1])
    axes.set_xlabel(f"score{legend}", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
