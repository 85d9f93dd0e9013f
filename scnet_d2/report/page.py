"""One self-contained HTML page about the saved scores of a run.

The page loads nothing from anywhere: style, script and pictures are inside it, and its content
security policy forbids the rest. Without a script everything but the choice of a curve is there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ..config import read_run_config
from ..data.errors import ImageError
from ..data.images import read_image
from ..evaluation.intervals import map_interval
from ..evaluation.metrics import (
    average_precision,
    count_decisions,
    multilabel_metrics,
    predicted,
)
from ..evaluation.score_files import FILE_NAME, read_scores
from ..evaluation.table import COLUMNS
from ..outputs import replacing
from . import charts
from .analysis import (
    ImageErrors,
    best_images,
    drawn_curve,
    error_cooccurrence,
    image_errors,
    most_confused_images,
    reliability,
    worst_images,
)
from .charts import Curve, DrawnBox, percent

MATRIX_LABELS = 24  # most rows and columns of the matrix of errors
TOP_PAIRS = 12

_DATA = 'type="application/json" id="report-data"'  # of the element by which a report is known

COLUMN_MEANINGS = {
    "mAP": "mean average precision",
    "CP": "precision, mean over classes",
    "CR": "recall, mean over classes",
    "CF1": "harmonic mean of CP and CR",
    "OP": "precision of all decisions",
    "OR": "recall of all decisions",
    "OF1": "harmonic mean of OP and OR",
}
VERDICTS = {"right": "✓ right", "false": "✗ false", "missed": "○ missed", "uncounted": "– ignored"}


@dataclass
class SavedRun:
    """Saved scores of one data set: arrays as :class:`MultiLabelEvaluator` describes them."""

    dataset: str
    file_names: list[str]
    class_names: list[str]
    scores: np.ndarray  # (N, C)
    labels: np.ndarray  # (N, C) bool
    ignored: np.ndarray  # (N, C) bool
    thresholds: np.ndarray  # (C,)
    unreadable: int = 0  # images that could not be read and score 0
    evidence: dict[str, np.ndarray] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    def boxes(self, row: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Tight and context box (4,) of the labels of an image, by class id."""
        if "evidence_images" not in self.evidence:
            return {}
        places = np.flatnonzero(self.evidence["evidence_images"] == row)
        classes, tight, context = (
            self.evidence[f"evidence_{key}"][places]
            for key in ("classes", "boxes", "context_boxes")
        )
        return {int(c): (t, x) for c, t, x in zip(classes, tight, context)}


def write_html_report(
    run_dir: str | Path,
    output: str | Path | None = None,
    *,
    dataset: str | None = None,
    gallery_size: int = 6,
) -> Path:
    """Write the page of a run.

    Args:
        run_dir: an ``OUTPUT_DIR`` with ``inference/<dataset>/multilabel_scores.npz``.
        output: the page; ``report.html`` in ``run_dir`` by default.
        dataset: which data set; see :func:`load_run`.
        gallery_size: most images in each of the three galleries.

    Returns:
        Where the page is. A report that was there before is replaced.

    Raises:
        FileExistsError: another file is there, or there are no scores: see :func:`load_run`.
    """
    path = Path(output) if output else Path(run_dir) / "report.html"
    if path.exists() and _DATA not in path.read_text(encoding="utf-8", errors="replace"):
        raise FileExistsError(f"{path} is there already and is no report: name another file")
    page = build_html_report(load_run(run_dir, dataset), gallery_size=gallery_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, "w", errors="replace") as file:  # file names need not be Unicode
        file.write(page)
    return path


def load_run(run_dir: str | Path, dataset: str | None = None) -> SavedRun:
    """Read saved scores and, where there is one, ``config.yaml``.

    Args:
        run_dir: see :func:`write_html_report`.
        dataset: by default the first of the config's ``DATASETS.TEST`` that has scores, or the only
            one that has.

    Raises:
        FileNotFoundError: no scores, or none of ``dataset``.
        ValueError: several data sets to choose from.
    """
    run_dir = Path(run_dir)
    config_file = run_dir / "config.yaml"
    config = read_run_config(config_file) if config_file.exists() else {}
    dataset = dataset or _choose_dataset(run_dir, config)
    path = run_dir / "inference" / dataset / FILE_NAME
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: {run_dir} has no scores of {dataset}")
    table = read_scores(path)
    unknown = table.image_ids or range(len(table.scores))
    return SavedRun(
        dataset,
        table.file_names or [str(image_id) for image_id in unknown],
        table.class_names,
        table.scores,
        table.labels,
        table.ignored,
        np.full(len(table.class_names), 0.5) if table.thresholds is None else table.thresholds,
        unreadable=0 if table.unreadable is None else int(table.unreadable.sum()),
        evidence=table.evidence,
        config=config,
    )


def build_html_report(run: SavedRun, *, gallery_size: int = 6) -> str:
    """The text of the page; see :func:`write_html_report`."""
    metrics = multilabel_metrics(run.scores, run.labels, run.ignored, threshold=run.thresholds)
    curves = _curves(run, metrics)
    errors = image_errors(run.scores, run.labels, run.ignored, run.thresholds)
    sections = [
        _published_section(run, metrics),
        _class_section(run, metrics),
        f'<div class="pair">{_curve_section(curves)}{_reliability_section(run)}</div>',
        _error_section(run, errors),
        _gallery_section(run, errors, gallery_size),
    ]
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(run.dataset)}: evaluation report</title><link rel="icon" href="data:,">'
        f"<style>{_asset('page.css')}</style></head><body>"
        f"{_header(run, metrics)}<main>{''.join(sections)}</main>{_footer()}"
        f"<script {_DATA}>{_json(_data(curves))}</script>"
        f"<script>{script}</script></body></html>\n"
    )


def published_results() -> dict[str, Any]:
    """The slides' tables, in percent: see ``published.json``."""
    return json.loads(_asset("published.json"))


def matching_benchmark(dataset: str) -> str | None:
    """Which of the published tables is about this data set's benchmark."""
    prefixes = {"coco_": "coco", "voc_2007": "voc"}
    return next((name for prefix, name in prefixes.items() if dataset.startswith(prefix)), None)


def _choose_dataset(run_dir: Path, config: dict[str, Any]) -> str:
    found = sorted(p.parent.name for p in run_dir.glob("inference/*/multilabel_scores.npz"))
    if not found:
        raise FileNotFoundError(
            f"{run_dir} has no inference/<dataset>/multilabel_scores.npz: evaluate the run first"
        )
    tested = [name for name in config.get("DATASETS", {}).get("TEST", ()) if name in found]
    if not tested and len(found) > 1:
        raise ValueError(f"{run_dir} has scores of several data sets, choose one: {found}")
    return (tested or found)[0]


def _header(run: SavedRun, metrics: dict[str, Any]) -> str:
    interval = map_interval(run.scores, run.labels, run.ignored)
    tiles = "".join(
        f'<div class="tile"><dt>{column}</dt><dd>{metrics[column]:.2f}</dd>'
        f'<dd class="what">{COLUMN_MEANINGS[column]}'
        + (f"<br>95 % interval {interval.low:.1f} to {interval.high:.1f}" if i == 0 else "")
        + "</dd></div>"
        for i, column in enumerate(COLUMNS)
    )
    facts = "".join(f"<span>{escape(fact)}</span>" for fact in _facts(run))
    links = {
        "published": "Published results",
        "classes": "Classes",
        "curves-section": "Precision and recall",
        "reliability": "Reliability",
        "errors": "Errors",
        "images": "Images",
    }
    nav = "".join(f'<a href="#{key}">{text}</a>' for key, text in links.items())
    return (
        '<header><p class="over">Multi-label evaluation, in percent</p>'
        f'<h1>{escape(run.dataset)}</h1><p class="facts">{facts}</p>'
        f'<dl class="tiles">{tiles}</dl><nav aria-label="Sections">{nav}</nav></header>'
    )


def _facts(run: SavedRun) -> Iterator[str]:
    images, classes = run.scores.shape
    yield f"{images:,} images"
    yield f"{classes} classes"
    low, high = run.thresholds.min(), run.thresholds.max()
    same = "threshold" if low == high else "thresholds of each class"
    yield f"{same} {low:.2f}" + ("" if low == high else f" to {high:.2f}")
    model = run.config.get("MODEL", {})
    if model:
        yield f"model {model.get('META_ARCHITECTURE')}"
    if weights := model.get("WEIGHTS"):
        yield f"MODEL.WEIGHTS {PurePath(weights).name}"
    if trained := _training_sets(run):
        yield f"trained on {', '.join(trained)}"


def _training_sets(run: SavedRun) -> list[str]:
    return list(run.config.get("DATASETS", {}).get("TRAIN", ()))


def _published_section(run: SavedRun, metrics: dict[str, Any]) -> str:
    published = published_results()
    match = matching_benchmark(run.dataset)
    own = {**metrics, **dict(zip(run.class_names, metrics["per_class_AP"], strict=True))}
    parts = []
    if run.unreadable:
        parts.append(
            f'<p class="caution"><b>{run.unreadable} images could not be read</b> when they were '
            "evaluated. They count, with score 0 for every label.</p>"
        )
    if run.dataset in _training_sets(run):
        parts.append(
            '<p class="caution"><b>Trained on these images:</b> the numbers of this run say how '
            "well it remembers them.</p>"
        )
    if match:
        parts += [
            _comparability(run, published[match]),
            _published_table(published[match], f"This run, {run.dataset}", own),
        ]
    else:
        parts.append(
            f'<p class="caution">No published row is about <b>{escape(run.dataset)}</b>. The rows '
            "below were measured on other images and classes: they are no yardstick for this run."
            "</p>"
        )
    for key in ("coco", "voc"):
        if key != match:
            parts.append(
                f"<details><summary>Published rows of another data set: {published[key]['title']}"
                f'</summary><p class="note">{escape(published[key]["note"])}</p>'
                f"{_published_table(published[key])}</details>"
            )
    parts.append(f'<p class="note">Source: {escape(published["source"])}.</p>')
    return _section("published", "Beside the published results", "".join(parts))


def _comparability(run: SavedRun, table: dict[str, Any]) -> str:
    wanted = [f"{count:,}" for count in table["test_images"]]
    note = escape(table["note"])
    if len(run.scores) in table["test_images"]:
        return f'<p class="note">{note}</p>'
    return (
        f'<p class="caution"><b>Other images:</b> this run evaluated {len(run.scores):,}, the '
        f"published rows {' or '.join(wanted)}. They show the range of the benchmark and are not "
        f'comparable number by number.</p><p class="note">{note}</p>'
    )


def _published_table(
    table: dict[str, Any], run_name: str | None = None, own: dict[str, float] | None = None
) -> str:
    rows = []
    if run_name is not None:
        cells = [percent(own.get(column)) for column in table["columns"]]
        rows.append(("run", run_name, cells))
    for name, *values in table["rows"]:
        style = "paper" if name == "The Proposed" else ""
        rows.append((style, name, [percent(value) for value in values]))
    caption = f"Published results on {table['title']}"
    return charts.table(["Method", *table["columns"]], rows, caption)


def _class_section(run: SavedRun, metrics: dict[str, Any]) -> str:
    positives = (run.labels & ~run.ignored).sum(axis=0)
    bars = charts.ap_bars(run.class_names, metrics["per_class_AP"], positives, metrics["mAP"])
    text = (
        f'<p class="note">Highest first; the dark line is the mean, {metrics["mAP"]:.1f}. '
        "Last column: images that have the label; without any there is no AP.</p>"
    )
    return _section("classes", "Average precision of each class", text + bars)


def _curves(run: SavedRun, metrics: dict[str, Any]) -> list[Curve]:
    """All labels together, then each class."""
    kept = ~run.ignored
    together = run.scores[kept], run.labels[kept]
    curves = [
        Curve(
            "All labels together",
            drawn_curve(*together),
            average_precision(*together).exact,
            int(together[1].sum()),
            metrics["OP"] / 100,
            metrics["OR"] / 100,
        )
    ]
    decisions = predicted(run.scores, run.thresholds) & kept
    counts = count_decisions(decisions, run.labels, run.ignored)
    for c, (tp, decided, positives) in enumerate(zip(*counts)):
        points = drawn_curve(run.scores[kept[:, c], c], run.labels[kept[:, c], c])
        recall = tp / positives if positives else math.nan
        precision = tp / decided if decided else 0.0
        ap = metrics["per_class_AP"][c] / 100
        curves.append(Curve(run.class_names[c], points, ap, int(positives), precision, recall))
    return curves


def _curve_section(curves: list[Curve]) -> str:
    options = "".join(
        f'<option value="{i}">{escape(curve.name)}</option>' for i, curve in enumerate(curves)
    )
    first = curves[0]
    numbers = ", ".join(
        f'{name} <b id="curve-{key}">{value}</b>'
        for key, name, value in (
            ("ap", "AP", percent(100 * first.ap)),
            ("positives", "positives", first.positives),
            ("precision", "at the threshold (dot) precision", percent(100 * first.precision)),
            ("recall", "recall", percent(100 * first.recall)),
        )
    )
    body = (
        '<p id="curve-control" hidden><label for="curve-chooser">Curve</label> '
        f'<select id="curve-chooser">{options}</select></p>'
        "<noscript><p>Bold: all labels together. Without a script no other can be chosen.</p>"
        f"</noscript>{charts.curve_chart(curves)}"
        f'<p class="note" aria-live="polite">{numbers}. Grey: the other classes.</p>'
    )
    return _section("curves-section", "Precision and recall", body)


def _reliability_section(run: SavedRun) -> str:
    bins = reliability(run.scores, run.labels, run.ignored)
    rows = [
        ("", f"{low:.1f} to {high:.1f}", (f"{count:,}", _fraction(score), _fraction(frequency)))
        for low, high, count, score, frequency in zip(bins.edges, bins.edges[1:], *bins[1:4])
    ]
    columns = ["Score", "Decisions", "Mean score", "Share that has the label"]
    body = (
        '<p class="note">On the dashed line a score is a probability; below it the model claims '
        "more than is there. Bars: decisions in each bin, on a logarithmic scale.</p>"
        f"{charts.reliability_chart(bins)}"
        f'<p class="note">Expected calibration error <b>{bins.calibration_error:.3f}</b></p>'
        "<details><summary>The values of this chart</summary>"
        f"{charts.table(columns, rows, 'Reliability')}</details>"
    )
    return _section("reliability", "Are the scores probabilities?", body)


def _error_section(run: SavedRun, errors: ImageErrors) -> str:
    counts = error_cooccurrence(errors)
    missed, false = errors.missed, errors.false
    both = (missed.any(axis=1) & false.any(axis=1)).sum()
    text = (
        f"<p>{missed.sum():,} labels are missed and {false.sum():,} are predicted falsely; "
        f"{both:,} of {len(missed):,} images have errors of both kinds. A cell counts the images "
        "in which the label of its row is missed while the label of its column is predicted "
        "falsely.</p>"
    )
    if not counts.any():
        return _section("errors", "Which errors come together", text)
    rows, columns = (_most_frequent(counts.sum(axis=axis)) for axis in (1, 0))
    if len(counts) > MATRIX_LABELS:
        text += f'<p class="note">At most the {MATRIX_LABELS} most frequent labels are shown.</p>'
    body = (
        f'{text}<div class="confusion">{charts.heat_map(run.class_names, rows, columns, counts)}'
        '<div><h3>Most frequent pairs</h3><p class="note">of all misses of the first</p>'
        f"{_top_pairs(run, counts, missed.sum(axis=0))}</div></div>"
    )
    return _section("errors", "Which errors come together", body)


def _most_frequent(totals: np.ndarray) -> np.ndarray:
    """Class ids with the highest totals."""
    order = np.argsort(-totals, kind="stable")
    return order[totals[order] > 0][:MATRIX_LABELS]


def _top_pairs(run: SavedRun, counts: np.ndarray, missed: np.ndarray) -> str:
    order = np.argsort(-counts, axis=None, kind="stable")[:TOP_PAIRS]
    pairs = [divmod(int(place), counts.shape[1]) for place in order]
    items = (
        f"<li><b>{escape(run.class_names[i])}</b> missed, <b>{escape(run.class_names[j])}</b> "
        f'predicted: {counts[i, j]} <span class="muted">of {missed[i]}</span></li>'
        for i, j in pairs
        if counts[i, j]
    )
    return f'<ol class="pairs">{"".join(items)}</ol>'


def _gallery_section(run: SavedRun, errors: ImageErrors, size: int) -> str:
    best = best_images(errors, run.labels & ~run.ignored, size)
    worst = worst_images(errors, size)
    confused = [row for row in most_confused_images(errors, size + len(worst)) if row not in worst][
        :size
    ]
    galleries = (
        ("Best", "every decision right, most labels first", best),
        ("Worst", "an absent label scores furthest above a present one", worst),
        ("Most confused", "most labels missed while others are predicted falsely", confused),
    )
    images = {row: _read(run.file_names[row]) for row in {*best, *worst, *confused}}
    body = _legend()
    if lost := sum(image is None for image in images.values()):
        body += (
            f'<p class="caution">{lost} of the {len(images)} images below were not found where '
            "they were evaluated, or cannot be read.</p>"
        )
    for title, meaning, rows in galleries:
        cards = "".join(_card(run, errors, row, images[row]) for row in rows)
        body += f'<h3>{title}</h3><p class="note">{meaning if rows else "No such image."}</p>'
        body += f'<div class="gallery">{cards}</div>'
    return _section("images", "Images and the boxes that their labels come from", body)


def _legend() -> str:
    lines = (("", "tight box"), (' stroke-dasharray="7 5"', "its context box"))
    items = "".join(
        '<li><svg viewBox="0 0 34 14" aria-hidden="true"><path d="M0 7H34" stroke="#0072B2" '
        f'stroke-width="3"{dash}></path></svg>{text}</li>'
        for dash, text in lines
    )
    meanings = (
        "✓ right: present and predicted",
        "✗ false: predicted, not present",
        "○ missed: present, not predicted; its box is where it scores highest",
    )
    return f'<ul class="legend">{items}{"".join(f"<li>{m}</li>" for m in meanings)}</ul>'


def _card(run: SavedRun, errors: ImageErrors, row: int, image: np.ndarray | None) -> str:
    boxes = run.boxes(row)
    drawn, items, spoken = [], [], []
    for class_id, verdict in _listed_labels(run, errors, row):
        name, score, number = run.class_names[class_id], run.scores[row, class_id], ""
        if class_id in boxes and image is not None:
            drawn.append(DrawnBox(len(drawn) + 1, *boxes[class_id]))
            number = drawn[-1].number
        style = f' style="background:{charts.color(number)}"' if number else ""
        items.append(
            f'<li class="{verdict}"><span class="number"{style}>{number}</span>'
            f'<span class="name">{escape(name)}</span><span class="score">{score:.2f}</span>'
            f'<span class="verdict">{VERDICTS[verdict]}</span></li>'
        )
        spoken.append(f"{name} ({verdict})")
    file_name = PurePath(run.file_names[row]).name
    label = f"{file_name}: {', '.join(spoken) or 'no labels'}"
    size = (3, 4) if image is None else image.shape[:2]
    return (
        f"<figure>{charts.picture(image, size, drawn, label)}<figcaption>"
        f'<p class="file">{escape(file_name)}</p><ul class="labels">'
        f"{''.join(items) or '<li>no labels, none predicted</li>'}</ul></figcaption></figure>"
    )


def _listed_labels(run: SavedRun, errors: ImageErrors, row: int) -> list[tuple[int, str]]:
    """Class id and verdict of the labels that are predicted or present, highest score first."""
    chosen = predicted(run.scores[row], run.thresholds)
    listed = np.flatnonzero(chosen | errors.missed[row])
    listed = listed[np.argsort(-run.scores[row, listed], kind="stable")]

    def verdict(class_id: int) -> str:
        if run.ignored[row, class_id]:
            return "uncounted"
        if errors.missed[row, class_id]:
            return "missed"
        return "false" if errors.false[row, class_id] else "right"

    return [(int(class_id), verdict(class_id)) for class_id in listed]


def _read(file_name: str) -> np.ndarray | None:
    """(H, W, 3) uint8 RGB as the model saw it, turned as its EXIF tag says; None where lost."""
    try:
        return read_image(file_name, "RGB")
    except ImageError:
        return None


def _data(curves: list[Curve]) -> dict[str, Any]:
    """What the script reads."""
    rows = [
        {
            "name": curve.name,
            "ap": _percent_or_none(curve.ap),
            "positives": curve.positives,
            "precision": _percent_or_none(curve.precision),
            "recall": _percent_or_none(curve.recall),
        }
        for curve in curves
    ]
    return {"curves": rows}


def _percent_or_none(fraction: float) -> float | None:
    return None if math.isnan(fraction) else round(100 * float(fraction), 4)


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, allow_nan=False)  # ASCII: no line separators either
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _fraction(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2>{body}</section>'


def _footer() -> str:
    return (
        "<footer><p>Written by scnet_d2. AP is not interpolated, equal scores share one threshold, "
        "and a class without positives is left out of the means. The interval is a bootstrap over "
        "images. Photographs belong to their authors.</p></footer>"
    )


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
