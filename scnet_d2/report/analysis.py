"""What a report shows beside the metrics, as pure functions on NumPy arrays.

Scores, labels and ignored entries are (N, C) as in :func:`multilabel_metrics`. The definitions of
the ranking of images are this project's own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..evaluation.metrics import precision_recall_curve, predicted


class Bin(NamedTuple):
    """The decisions whose score is in [low, high); nan for what an empty bin lacks."""

    low: float
    high: float
    decisions: int
    score: float  # mean
    frequency: float  # share whose label is present


class ImageErrors(NamedTuple):
    """Right and wrong decisions of each image."""

    missed: np.ndarray  # (N, C) bool, present and not predicted
    false: np.ndarray  # (N, C) bool, predicted and absent
    margins: np.ndarray  # (N,) lowest score of a present label - highest of an absent one


def reliability(
    scores: np.ndarray, labels: np.ndarray, ignored: np.ndarray, bins: int = 10
) -> tuple[list[Bin], float]:
    """How often a label is present where its score says so, over all images and classes.

    Args:
        scores: (N, C) float in [0, 1].
        labels: (N, C) bool.
        ignored: (N, C) bool, entries to leave out.
        bins: number of bins of equal width; the last one contains 1, too.

    Returns:
        The bins, and the mean of |score - frequency| over them weighted by their counts: the
        expected calibration error of Guo et al., "On Calibration of Modern Neural Networks", ICML
        2017, of binary decisions.
    """
    scores, labels = scores[~ignored].astype(float), labels[~ignored]
    edges = np.linspace(0, 1, bins + 1)
    index = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    sums = np.bincount(index, scores, bins), np.bincount(index, labels, bins)
    means, frequencies = (
        np.divide(s, counts, out=np.full(bins, np.nan), where=counts > 0) for s in sums
    )
    error = np.nansum(np.abs(means - frequencies) * counts) / max(counts.sum(), 1)
    columns = edges, edges[1:], counts, means, frequencies
    return [Bin(*row) for row in zip(*(column.tolist() for column in columns))], float(error)


def drawn_curve(scores: np.ndarray, labels: np.ndarray, points: int = 101) -> np.ndarray:
    """Points of a precision-recall curve, few enough to draw.

    Args:
        scores: (N,) float.
        labels: (N,) bool.
        points: the most there may be.

    Returns:
        (P, 2) recall and precision: for equally spaced recalls the first point of
        :func:`precision_recall_curve` that reaches it; (0, 2) without positives.
    """
    if not labels.any():
        return np.zeros((0, 2))
    precision, recall, _ = precision_recall_curve(scores, labels)
    reached = np.unique(np.searchsorted(recall, np.linspace(recall[0], 1, points)))
    return np.stack([recall[reached], precision[reached]], axis=1)


def image_errors(
    scores: np.ndarray, labels: np.ndarray, ignored: np.ndarray, thresholds: np.ndarray
) -> ImageErrors:
    """Decisions of each image at the thresholds.

    In the margin an image without a present label has 1 for its lowest score, one without an
    absent label 0 for its highest. A margin above 0 means that some threshold decides all right.

    Args:
        scores: (N, C) float in [0, 1].
        labels: (N, C) bool.
        ignored: (N, C) bool, entries to leave out.
        thresholds: (C,) from which on a label is predicted.
    """
    chosen = predicted(scores, thresholds)
    present, absent = labels & ~ignored, ~labels & ~ignored
    lowest = scores.min(axis=1, initial=1, where=present)
    highest = scores.max(axis=1, initial=0, where=absent)
    return ImageErrors(present & ~chosen, absent & chosen, lowest - highest)


def error_cooccurrence(errors: ImageErrors) -> np.ndarray:
    """(C, C) int: images in which label i is missed while label j is predicted falsely."""
    missed, false = errors.missed.astype(np.float32), errors.false.astype(np.float32)
    return (missed.T @ false).round().astype(int)  # float32 holds whole numbers up to 2**24


def best_images(errors: ImageErrors, labels: np.ndarray, count: int) -> list[int]:
    """Rows of images without a wrong decision: most labels first, then the widest margin."""
    right = ~(errors.missed | errors.false).any(axis=1)
    order = np.lexsort((-errors.margins, -labels.sum(axis=1)))
    return [int(row) for row in order if right[row]][:count]


def worst_images(errors: ImageErrors, count: int) -> list[int]:
    """Rows of images with a wrong decision, the most negative margin first."""
    wrong = (errors.missed | errors.false).any(axis=1)
    order = np.argsort(errors.margins, kind="stable")
    return [int(row) for row in order if wrong[row]][:count]


def most_confused_images(errors: ImageErrors, count: int) -> list[int]:
    """Rows of images with most pairs of a missed and a falsely predicted label, then by margin."""
    pairs = errors.missed.sum(axis=1) * errors.false.sum(axis=1)
    order = np.lexsort((errors.margins, -pairs))
    return [int(row) for row in order if pairs[row]][:count]
