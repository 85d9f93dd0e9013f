"""One self-contained HTML page about the saved scores of a run.

The page loads nothing from anywhere: style, script and pictures are inside it, and its content
security policy forbids the rest. Without a script everything but the choice of a curve is there.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path, PurePath
from typing import Any, NamedTuple

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
from ..evaluation.score_files import FILE_NAME, ScoreTable, read_scores
from ..outputs import replacing
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
from .templates import TEMPLATES, DrawnBox, jpeg_url

MATRIX_LABELS = 24  # most rows and columns of the matrix of errors
TOP_PAIRS = 12
PICTURE_SIDE = 480  # long side of a picture, in pixels and in the units of its drawing

_MARK = 'id="curve-chooser"'  # the element by which a report is known


class Curve(NamedTuple):
    """A precision-recall curve and the point of its threshold; percent, nan where undefined."""

    name: str
    points: np.ndarray  # (P, 2) recall, precision; fractions
    ap: float
    positives: int
    precision: float
    recall: float


class CardLabel(NamedTuple):
    """A label below a picture; `verdict` is right, false, missed or uncounted."""

    name: str
    score: float
    verdict: str
    box: DrawnBox | None


class Card(NamedTuple):
    """An image of a gallery; `url` is None where it cannot be read."""

    name: str
    size: tuple[int, int]  # (height, width) in pixels
    url: str | None
    labels: list[CardLabel]
    scale: float  # units of the drawing to a pixel


@dataclass(frozen=True, eq=False)
class SavedRun(ScoreTable):
    """Saved scores of one data set, with thresholds and file names, and the run's config."""

    dataset: str = ""
    config: dict[str, Any] = field(default_factory=dict)

    def boxes(self, row: int) -> dict[int, tuple[np.ndarray, np.ndarray, float]]:
        """Tight and context box (4,) and ratio or nan of an image's labels, by class id."""
        if "evidence_images" not in self.evidence:
            return {}
        places = np.flatnonzero(self.evidence["evidence_images"] == row)
        classes, tight, context = (
            self.evidence[f"evidence_{key}"][places]
            for key in ("classes", "boxes", "context_boxes")
        )
        none = np.full(len(self.evidence["evidence_images"]), np.nan)
        ratios = self.evidence.get("evidence_context_ratios", none)[places]
        return {int(c): (t, x, float(r)) for c, t, x, r in zip(classes, tight, context, ratios)}


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
    if path.exists() and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
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
        FileNotFoundError: no folder, no scores, or none of ``dataset``.
        ValueError: several data sets to choose from.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        what = "is a file" if run_dir.exists() else "does not exist"
        raise FileNotFoundError(f"{run_dir} {what}: give the folder of a run, its OUTPUT_DIR")
    config_file = run_dir / "config.yaml"
    config = read_run_config(config_file) if config_file.exists() else {}
    dataset = dataset or _choose_dataset(run_dir, config)
    path = run_dir / "inference" / dataset / FILE_NAME
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: {run_dir} has no scores of {dataset}")
    table = read_scores(path)
    run = SavedRun(**vars(table), dataset=dataset, config=config)
    ids = table.image_ids or range(len(table.scores))
    return replace(
        run,
        file_names=run.file_names or [str(image_id) for image_id in ids],
        thresholds=np.full(len(run.class_names), 0.5) if run.thresholds is None else run.thresholds,
    )


def build_html_report(run: SavedRun, *, gallery_size: int = 6) -> str:
    """The text of the page; see :func:`write_html_report`."""
    metrics = multilabel_metrics(run.scores, run.labels, run.ignored, threshold=run.thresholds)
    errors = image_errors(run.scores, run.labels, run.ignored, run.thresholds)
    bins, calibration_error = reliability(run.scores, run.labels, run.ignored)
    curves = _curves(run, metrics)
    script = _asset("page.js")
    return TEMPLATES.get_template("report/page.html.jinja").render(
        run=run,
        metrics=metrics,
        interval=map_interval(run.scores, run.labels, run.ignored),
        model=run.config.get("MODEL", {}),
        trained_on=run.config.get("DATASETS", {}).get("TRAIN", ()),
        published=published_results(),
        benchmark=matching_benchmark(run.dataset),
        own={**metrics, **dict(zip(run.class_names, metrics["per_class_AP"], strict=True))},
        curves=curves,
        ranked=sorted(curves[1:], key=lambda curve: -curve.ap if curve.positives else math.inf),
        bins=bins,
        calibration_error=calibration_error,
        errors=errors,
        confusion=_confusion(run, errors),
        galleries=_galleries(run, errors, gallery_size),
        style=_asset("page.css"),
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
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


def _curves(run: SavedRun, metrics: dict[str, Any]) -> list[Curve]:
    """All labels together, then each class."""
    kept = ~run.ignored
    together = run.scores[kept], run.labels[kept]
    curves = [
        Curve(
            "All labels together",
            drawn_curve(*together),
            100 * average_precision(*together).exact,
            int(together[1].sum()),
            metrics["OP"],
            metrics["OR"],
        )
    ]
    decisions = predicted(run.scores, run.thresholds) & kept
    counts = count_decisions(decisions, run.labels, run.ignored)
    for c, (tp, decided, positives) in enumerate(zip(*counts)):
        points = drawn_curve(run.scores[kept[:, c], c], run.labels[kept[:, c], c])
        recall = 100 * tp / positives if positives else math.nan
        precision = 100 * tp / decided if decided else 0.0
        ap = metrics["per_class_AP"][c]
        curves.append(Curve(run.class_names[c], points, ap, int(positives), precision, recall))
    return curves


def _confusion(run: SavedRun, errors: ImageErrors) -> dict[str, Any]:
    """The matrix of errors: (C, C) counts, and which of its rows, columns and cells are shown."""
    counts = error_cooccurrence(errors)
    order = np.argsort(-counts, axis=None, kind="stable")[:TOP_PAIRS]
    pairs = [divmod(int(place), len(counts)) for place in order]
    rows, columns = (_most_frequent(counts.sum(axis=axis)) for axis in (1, 0))
    return {
        "counts": counts,
        "images": (errors.missed.any(axis=1) & errors.false.any(axis=1)).sum(),
        "highest": counts[np.ix_(rows, columns)].max(initial=0),
        "rows": rows,
        "columns": columns,
        "pairs": [pair for pair in pairs if counts[pair]],
        "most": MATRIX_LABELS,
    }


def _most_frequent(totals: np.ndarray) -> np.ndarray:
    """Class ids with the highest totals."""
    order = np.argsort(-totals, kind="stable")
    return order[totals[order] > 0][:MATRIX_LABELS]


def _galleries(run: SavedRun, errors: ImageErrors, size: int) -> list[list[Card]]:
    """The best, the worst and the most confused images."""
    worst = worst_images(errors, size)
    confused = most_confused_images(errors, size + len(worst))
    rows = (
        best_images(errors, run.labels & ~run.ignored, size),
        worst,
        [row for row in confused if row not in worst][:size],
    )
    return [[_card(run, errors, row) for row in gallery] for gallery in rows]


def _card(run: SavedRun, errors: ImageErrors, row: int) -> Card:
    image, boxes, labels = _read(run.file_names[row]), run.boxes(row), []
    numbers = itertools.count(1)
    for class_id, verdict in _listed_labels(run, errors, row):
        box = None
        if class_id in boxes and image is not None:
            box = DrawnBox(next(numbers), *boxes[class_id])
        score = run.scores[row, class_id]
        labels.append(CardLabel(run.class_names[class_id], score, verdict, box))
    size, url = (3, 4), None
    if image is not None:
        size, url = image.shape[:2], jpeg_url(image, PICTURE_SIDE)
    return Card(PurePath(run.file_names[row]).name, size, url, labels, PICTURE_SIDE / max(size))


def _listed_labels(run: SavedRun, errors: ImageErrors, row: int) -> list[tuple[int, str]]:
    """Class id and verdict of the labels that are predicted or present, highest score first."""
    decisions = predicted(run.scores[row], run.thresholds)
    listed = np.flatnonzero(decisions | errors.missed[row])
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


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
