"""The charts of the HTML report: HTML and SVG text from arrays, every name escaped."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from PIL import Image

from .analysis import Reliability

# Okabe and Ito's palette: told apart by the colour-blind, too.
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")
LEFT, TOP, SIDE = 48, 10, 340  # plot area of a chart, a square
PICTURE_SIDE = 480  # long side of a picture, in the units of its drawing


class Curve(NamedTuple):
    """A precision-recall curve and the point of its threshold; fractions, nan where undefined."""

    name: str
    points: np.ndarray  # (P, 2) recall, precision
    ap: float
    positives: int
    precision: float
    recall: float


class DrawnBox(NamedTuple):
    """A label's boxes in a picture: XYXY in pixels of the original image."""

    number: int
    tight: np.ndarray  # (4,)
    context: np.ndarray  # (4,), nan without one


def percent(value: float | None, digits: int = 1) -> str:
    """A number of percent; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def table(
    columns: Sequence[str], rows: Iterable[tuple[str, str, Sequence[str]]], caption: str
) -> str:
    """A table that scrolls inside its own frame.

    Args:
        columns: the first one heads the names of the rows.
        rows: CSS class, name and cells of each.
        caption: what screen readers say.
    """
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr class="{style}"><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for style, name, cells in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f'<caption class="sr">{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def ap_bars(names: Sequence[str], aps: np.ndarray, positives: np.ndarray, mean: float) -> str:
    """AP of each class in percent, highest first; classes without a positive come last."""
    order = np.argsort(np.where(np.isnan(aps), np.inf, -aps), kind="stable")
    items = (
        f'<li><span class="name">{escape(names[c])}</span><span class="track" aria-hidden="true">'
        f'<span class="bar" style="width:{0 if math.isnan(aps[c]) else aps[c]:.1f}%"></span></span>'
        f'<span class="value">{percent(aps[c])}</span>'
        f'<span class="count">{positives[c]:,}</span></li>'
        for c in order
    )
    return f'<ol class="bars" style="--mean:{mean:.2f}%">{"".join(items)}</ol>'


def curve_chart(curves: Sequence[Curve]) -> str:
    """Every curve in grey; the first is chosen until a script chooses another."""
    shapes = []
    for i, curve in reversed(list(enumerate(curves))):  # the chosen one on top
        on = " on" if i == 0 else ""
        title = f"<title>{escape(curve.name)}, AP {percent(100 * curve.ap)}</title>"
        path = _path(curve.points)
        shapes.append(f'<path class="curve{on}" data-curve="{i}" d="{path}">{title}</path>')
        if not math.isnan(curve.recall):
            x, y = _place(curve.recall, curve.precision)
            at = f'cx="{x:.1f}" cy="{y:.1f}" r="6"'
            shapes.append(f'<circle class="at{on}" data-curve="{i}" {at}></circle>')
    label = "Precision against recall, one curve for each class and one for all labels together"
    return _chart("curves", label, 52, _axes("recall", "precision") + "".join(shapes))


def reliability_chart(bins: Reliability) -> str:
    """Share of present labels against score, above the number of decisions in each bin."""
    filled = np.flatnonzero(bins.counts)
    points = np.stack([bins.mean_scores, bins.frequencies], axis=1)[filled]
    (x0, y0), (x1, y1) = _place(0, 0), _place(1, 1)
    body = f'<line class="diagonal" x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}"></line>'
    for score, frequency in points:
        (x, y), (_, ideal) = _place(score, frequency), _place(score, score)
        body += f'<line class="gap" x1="{x:.1f}" y1="{y:.1f}" x2="{x:.1f}" y2="{ideal:.1f}"></line>'
    body += f'<path class="points" d="{_path(points)}"></path>'
    for b, (x, y) in zip(filled, (_place(*point) for point in points)):
        title = f"{bins.counts[b]} decisions, score {bins.mean_scores[b]:.2f}: "
        title += f"present in {bins.frequencies[b]:.2f}"
        body += f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{title}</title>'
        body += "</circle>"
    label = "Share of images that have the label, against its score; the table below has the values"
    axes = _axes("score", "share that has the label")
    return _chart("reliability-chart", label, 118, axes + body + _volumes(bins))


def heat_map(names: Sequence[str], rows: np.ndarray, columns: np.ndarray, counts: np.ndarray):
    """Counts of missed labels (rows) against falsely predicted ones (columns), as a table.

    Args:
        names: (C,) class names.
        rows: class ids.
        columns: class ids.
        counts: (C, C) int.
    """
    top = max(1, counts[np.ix_(rows, columns)].max(initial=1))
    head = "".join(f'<th scope="col"><span>{escape(names[c])}</span></th>' for c in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(names[r])}</th>'
        + "".join(_heat_cell(counts[r, c], top, own=r == c) for c in columns)
        + "</tr>"
        for r in rows
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Missed and falsely predicted '
        'labels"><table class="heat"><thead><tr><th scope="col">missed ↓ &nbsp;falsely predicted →'
        f"</th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def picture(
    image: np.ndarray | None, size: tuple[int, int], boxes: Sequence[DrawnBox], label: str
) -> str:
    """An embedded picture with numbered boxes, context boxes dashed.

    Args:
        image: (H, W, 3) uint8 RGB; None for an image that cannot be read.
        size: (height, width) of the image, of the placeholder without one.
        boxes: the first is drawn on top.
        label: what the picture shows, for those who do not see it.
    """
    scale = PICTURE_SIDE / max(size)
    height, width = (side * scale for side in size)
    if image is None:
        body = (
            f'<text class="absent" x="{width / 2:.0f}" y="{height / 2:.0f}">image not found</text>'
        )
    else:
        fill = f'width="{width:.1f}" height="{height:.1f}" preserveAspectRatio="none"'
        body = f'<image href="{jpeg_url(image, PICTURE_SIDE)}" {fill}></image>'
        body += "".join(box_lines(box, scale) for box in reversed(boxes))
        body += badges(boxes, scale, (height, width))
    return (
        f'<svg class="picture" viewBox="0 0 {width:.1f} {height:.1f}" role="img" '
        f'aria-label="{escape(label)}">{body}</svg>'
    )


def color(number: int) -> str:
    """Colour of a numbered label."""
    return COLORS[(number - 1) % len(COLORS)]


def jpeg_url(image: np.ndarray, side: int) -> str:
    """An (H, W, 3) uint8 RGB image as a data URL, its long side reduced to ``side`` pixels."""
    reduced = Image.fromarray(image)
    reduced.thumbnail((side, side))
    buffer = io.BytesIO()
    reduced.save(buffer, "JPEG", quality=82, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def box_lines(box: DrawnBox, scale: float) -> str:
    """SVG rectangles of a label's boxes, ``scale`` units of the drawing to a pixel of the image.

    Each line lies on a dark rim, which keeps it visible on any photograph.
    """
    shapes = []
    for style, corners in (("context", box.context), ("tight", box.tight)):
        if np.isnan(corners).any():
            continue
        x0, y0, x1, y1 = (corners * scale).tolist()
        place = f'x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}"'
        shapes.append(f'<rect class="{style} rim" {place}></rect>')
        shapes.append(f'<rect class="{style}" {place} stroke="{color(box.number)}"></rect>')
    return "".join(shapes)


def badges(boxes: Sequence[DrawnBox], scale: float, size: tuple[float, float]) -> str:
    """Numbers above the top left of the tight boxes, moved on where another stands already.

    Args:
        boxes: the first keeps its place.
        scale: units of the drawing to a pixel of the image.
        size: (height, width) of the drawing in its units.
    """
    side, taken, parts = 24.0, [], []
    height, width = size
    for box in boxes:
        x = min(max(box.tight[0] * scale, 0), width - side)
        y = min(max(box.tight[1] * scale - side, 0), height - side)
        while any(abs(x - tx) < side and abs(y - ty) < side for tx, ty in taken):
            x, y = (x + side, y) if x + 2 * side <= width else (0.0, y + side)
        taken.append((x, y))
        parts.append(
            f'<rect class="badge" x="{x:.1f}" y="{y:.1f}" width="{side}" height="{side}" '
            f'style="fill:{color(box.number)}"></rect>'
            f'<text x="{x + side / 2:.1f}" y="{y + 18.5:.1f}">{box.number}</text>'
        )
    return "".join(parts)


def _chart(name: str, label: str, below: int, body: str) -> str:
    width, height = LEFT + SIDE + 12, TOP + SIDE + below
    return (
        f'<svg class="chart" id="{name}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label)}">{body}</svg>'
    )


def _place(x: float, y: float) -> tuple[float, float]:
    """Where fractions lie in a chart."""
    return LEFT + SIDE * float(x), TOP + SIDE * (1 - float(y))


def _path(points: np.ndarray) -> str:
    places = (_place(x, y) for x, y in points)
    return "".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(places))


def _axes(x_name: str, y_name: str) -> str:
    bottom, right = TOP + SIDE, LEFT + SIDE
    parts = []
    for tick in (0, 0.2, 0.4, 0.6, 0.8, 1):
        x, y = _place(tick, tick)
        parts.append(
            f'<path class="grid" d="M{x} {TOP}V{bottom}M{LEFT} {y}H{right}"></path>'
            f'<text class="tick" x="{x}" y="{bottom + 17}" text-anchor="middle">{tick:g}</text>'
            f'<text class="tick" x="{LEFT - 7}" y="{y + 4}" text-anchor="end">{tick:g}</text>'
        )
    middle = TOP + SIDE / 2
    return (
        "".join(parts)
        + f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"></path>'
        + f'<text x="{LEFT + SIDE / 2}" y="{bottom + 37}" text-anchor="middle">{x_name}</text>'
        + f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">'
        + f"{y_name}</text>"
    )


def _volumes(bins: Reliability) -> str:
    """A strip of bars, logarithmic, with the number of decisions above each."""
    floor, room, slot = TOP + SIDE + 112, 42, SIDE / len(bins.counts)
    top = math.log10(max(10, bins.counts.max(initial=10)))
    parts = []
    for i, count in enumerate(bins.counts):
        height = room * math.log10(count + 1) / top if count else 0
        x = LEFT + i * slot
        parts.append(
            f'<rect class="volume" x="{x + 3:.1f}" y="{floor - height:.1f}" '
            f'width="{slot - 6:.1f}" height="{height:.1f}"></rect>'
            f'<text class="tick" x="{x + slot / 2:.1f}" y="{floor - height - 4:.1f}" '
            f'text-anchor="middle">{_short(int(count))}</text>'
        )
    return "".join(parts)


def _short(count: int) -> str:
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.{1 if count < 10 * size else 0}f}{unit}"
    return str(count)


def _heat_cell(count: int, top: int, own: bool) -> str:
    if own:
        return '<td class="own"><span class="sr">same label</span></td>'
    if not count:
        return '<td class="zero"></td>'
    share = math.sqrt(count / top)  # between white and the palette's blue
    red, green, blue = (round(255 + share * (end - 255)) for end in (0, 0x72, 0xB2))
    ink = "#fff" if share > 0.72 else "#1b1f24"
    return f'<td style="background:rgb({red},{green},{blue});color:{ink}">{count}</td>'
