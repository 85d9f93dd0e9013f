"""Multi-label classification metrics as pure functions on NumPy arrays.

Conventions, the same for every metric here:

* ``scores`` are probabilities, ``labels`` say which classes an image has, and ``ignored`` says
  which (image, class) decisions are left out. An ignored entry is neither positive nor negative,
  is never a prediction, and takes no place in the top-k ranking.
* Images with equal scores share one threshold, so the order of the images never matters.
* A class without positives has no recall and no AP: its AP is nan and it is left out of every mean
  over classes. Predictions made for it are still wrong decisions, which OP and OF1 count.
* A class (for OP: a model) that predicts nothing has precision 0.

References:
    [1] Chen et al., "Multi-Label Image Recognition with Graph Convolutional Networks" (ML-GCN),
        CVPR 2019: CP, CR, CF1, OP, OR, OF1, and the same for the top 3.
    [2] Zhu et al., "Learning Spatial Regularization with Image-level Supervisions for Multi-label
        Image Classification" (SRN), CVPR 2017: F1-C as the mean of the per-class F1.
    [3] Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010, and the
        VOC2010 development kit: 11-point AP, and the area under the precision envelope.
    [4] scikit-learn, ``average_precision_score``: AP without interpolation, ties included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class AveragePrecision(NamedTuple):
    """Three summaries of one precision-recall curve, as fractions; nan without positives."""

    exact: float  # mean of the precision at each positive [4]
    interpolated: float  # area under the precision envelope, VOC2010 and later [3]
    eleven_point: float  # mean of the envelope at recall 0, 0.1, ..., 1, VOC2007 [3]


class DecisionCounts(NamedTuple):
    """Counts per class, each (C,) int."""

    true_positives: np.ndarray
    predicted: np.ndarray
    positives: np.ndarray


def predicted(scores: float | np.ndarray, thresholds: float | np.ndarray) -> bool | np.ndarray:
    """Which labels are predicted: those whose score reaches the threshold, both as float32.

    Every program decides with this function. Models score in float32, and a threshold that is
    written down is a float64: 0.7 as float32 is less than 0.7, and must reach it all the same.

    Args:
        scores: in [0, 1], not rounded; of any shape.
        thresholds: one number, or an array that broadcasts to the scores, such as (C,).

    Example:
        >>> bool(predicted(np.float32(0.7), 0.7))
        True
    """
    return np.asarray(scores, np.float32) >= np.asarray(thresholds, np.float32)


def multilabel_metrics(
    scores: np.ndarray,
    labels: np.ndarray,
    ignored: np.ndarray | None = None,
    *,
    threshold: float | np.ndarray = 0.5,
    top_k: int = 3,
) -> dict[str, float | np.ndarray]:
    """Every metric of the published multi-label tables.

    Args:
        scores: (N, C) float in [0, 1].
        labels: (N, C) bool.
        ignored: (N, C) bool, entries to leave out; none by default.
        threshold: a class is predicted where its score reaches it, see :func:`predicted`; one
            number or (C,), in [0, 1].
        top_k: number of classes an image may predict in the ``_top3`` metrics (whose suffix follows
            ``top_k``): its highest scores, see :func:`top_k_decisions`, that also reach the
            threshold.

    Returns:
        Python floats in percent: ``mAP``; ``CP CR CF1`` (per class) and ``OP OR OF1`` (overall)
        [1]; ``CF1_mean`` [2]; ``mAP_interp`` and ``mAP_11pt`` [3]; ``CP_top3`` ... ``OF1_top3``
        [1]. Then ``per_class_AP``, (C,) float64 in percent, nan where a class has no positive.

    Raises:
        ValueError: wrong shape or type, scores that are nan or outside [0, 1], no images, or
            nothing to evaluate (every entry ignored, or no positive in any class).

    Example:
        >>> scores = np.array([[0.9, 0.2], [0.8, 0.7], [0.6, 0.3]])
        >>> labels = np.array([[1, 0], [0, 1], [1, 0]], dtype=bool)
        >>> metrics = multilabel_metrics(scores, labels)
        >>> metrics["per_class_AP"].round(2).tolist()
        [83.33, 100.0]
        >>> [round(metrics[key], 2) for key in ("mAP", "CP", "CR", "OF1")]
        [91.67, 83.33, 100.0, 85.71]
    """
    scores, labels, ignored = check_inputs(scores, labels, ignored)
    _check_threshold(threshold, scores)
    average_precisions = per_class_average_precision(scores, labels, ignored)
    decisions = predicted(scores, threshold) & ~ignored
    counts = count_decisions(decisions, labels, ignored)
    decisions &= top_k_decisions(scores, ignored, top_k)
    top_counts = count_decisions(decisions, labels, ignored)

    mean_ap, mean_interpolated, mean_eleven_point = np.nanmean(average_precisions, axis=0)
    fractions = {
        "mAP": mean_ap,
        **precision_recall_f1(counts),
        "CF1_mean": mean_class_f1(counts),
        "mAP_interp": mean_interpolated,
        "mAP_11pt": mean_eleven_point,
        **{f"{key}_top{top_k}": v for key, v in precision_recall_f1(top_counts).items()},
    }
    percent: dict[str, float | np.ndarray] = {k: 100.0 * float(v) for k, v in fractions.items()}
    percent["per_class_AP"] = 100.0 * average_precisions[:, 0]
    return percent


def named_metrics(
    metrics: dict[str, float | np.ndarray], class_names: Sequence[str]
) -> dict[str, float]:
    """The metrics with one ``AP-<class>`` for each of C classes in the place of the array.

    Example:
        >>> named_metrics({"mAP": 75.0, "per_class_AP": np.array([50.0, 100.0])}, ["cat", "dog"])
        {'mAP': 75.0, 'AP-cat': 50.0, 'AP-dog': 100.0}
    """
    per_class = zip(class_names, metrics["per_class_AP"], strict=True)
    named = {key: value for key, value in metrics.items() if key != "per_class_AP"}
    return named | {f"AP-{name}": float(ap) for name, ap in per_class}


def precision_recall_curve(
    scores: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision and recall of one class at each distinct score.

    Args:
        scores: (N,) float without nan.
        labels: (N,) bool.

    Returns:
        precision, recall, thresholds: (T,) each, highest threshold first, for the rule
        ``score >= threshold``. Recall is nan without positives.

    Example:
        >>> scores, labels = np.array([0.9, 0.8, 0.6]), np.array([True, False, True])
        >>> precision, recall, thresholds = precision_recall_curve(scores, labels)
        >>> precision.round(2).tolist(), recall.tolist(), thresholds.tolist()
        ([1.0, 0.5, 0.67], [0.5, 0.5, 1.0], [0.9, 0.8, 0.6])
    """
    thresholds, group = np.unique(-scores, return_inverse=True)  # ascending in -score
    predicted = np.cumsum(np.bincount(group, minlength=len(thresholds)))
    true_positives = np.cumsum(np.bincount(group[labels], minlength=len(thresholds)))
    positives = np.count_nonzero(labels)
    recall = true_positives / positives if positives else np.full(len(thresholds), np.nan)
    return true_positives / predicted, recall, -thresholds


def average_precision(scores: np.ndarray, labels: np.ndarray) -> AveragePrecision:
    """AP of one class, in three definitions.

    ``exact`` is scikit-learn's sum over thresholds of (R_n - R_{n-1}) P_n [4], which is the mean
    over the positives of the precision at their score. The other two read the precision envelope,
    the highest precision at any recall at least as high [3].

    Args:
        scores: (N,) float without nan.
        labels: (N,) bool.

    Returns:
        Fractions; nan without positives.

    Example:
        >>> ap = average_precision(np.array([0.9, 0.8, 0.6]), np.array([True, False, True]))
        >>> round(ap.exact, 4), round(ap.eleven_point, 4)  # (1 + 2/3) / 2, (6 + 5 * 2/3) / 11
        (0.8333, 0.8485)
    """
    precision = _precision_at_positives(scores, labels)
    if not len(precision):
        return AveragePrecision(np.nan, np.nan, np.nan)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    # Index of the first positive whose recall, (index + 1) / P, reaches t / 10: in whole numbers,
    # because in floating point 3 / 10 does not reach 3 * 0.1.
    reached = -(-np.arange(11) * len(precision) // 10) - 1
    eleven_points = envelope[np.maximum(reached, 0)]
    return AveragePrecision(
        float(precision.mean()), float(envelope.mean()), float(eleven_points.mean())
    )


def per_class_average_precision(
    scores: np.ndarray, labels: np.ndarray, ignored: np.ndarray
) -> np.ndarray:
    """:func:`average_precision` of each class over its entries that are not ignored.

    Args:
        scores: (N, C) float.
        labels: (N, C) bool.
        ignored: (N, C) bool.

    Returns:
        (C, 3) fractions: exact, interpolated, eleven-point.
    """
    by_class = np.ascontiguousarray(scores.T)  # (C, N): one class is read many times
    labels_by_class, kept_by_class = np.ascontiguousarray(labels.T), ~ignored.T
    rows = []
    for s, y, kept in zip(by_class, labels_by_class, kept_by_class, strict=True):
        everything = kept.all()  # the usual case, which needs no copy
        rows.append(average_precision(*((s, y) if everything else (s[kept], y[kept]))))
    return np.array(rows)


def top_k_decisions(scores: np.ndarray, ignored: np.ndarray, top_k: int) -> np.ndarray:
    """The ``top_k`` highest-scoring classes of each image.

    Of classes with equal scores the one with the lower index comes first (own decision: [1] leaves
    it to ``torch.topk``), so an image's prediction depends on nothing but its own scores. Ignored
    classes are taken out before ranking.

    Args:
        scores: (N, C) float in [0, 1].
        ignored: (N, C) bool.
        top_k: at least 1; more than C means all.

    Returns:
        (N, C) bool, at most ``top_k`` true in a row.

    Example:
        >>> scores = np.array([[0.9, 0.2, 0.5], [0.4, 0.4, 0.4]])
        >>> top_k_decisions(scores, np.zeros((2, 3), dtype=bool), top_k=2).astype(int).tolist()
        [[1, 0, 1], [1, 1, 0]]
    """
    if isinstance(top_k, bool) or not isinstance(top_k, (int, np.integer)) or top_k < 1:
        raise ValueError(f"top_k must be a whole number of at least 1, got {top_k!r}")
    remaining = np.where(ignored, scores.dtype.type(-1), scores)
    chosen = np.zeros(scores.shape, dtype=bool)
    rows = np.arange(len(scores))
    for _ in range(min(top_k, scores.shape[1])):
        best = remaining.argmax(axis=1)  # (N,): the first of equal maxima
        chosen[rows, best] = True
        remaining[rows, best] = -1
    chosen &= ~ignored  # a row with fewer than top_k classes left
    return chosen


def count_decisions(
    decisions: np.ndarray, labels: np.ndarray, ignored: np.ndarray
) -> DecisionCounts:
    """True positives, predictions and positives of each class among the entries not ignored.

    Args:
        decisions: (N, C) bool, already false where ignored.
        labels: (N, C) bool.
        ignored: (N, C) bool.
    """
    return DecisionCounts(
        np.count_nonzero(decisions & labels, axis=0),
        np.count_nonzero(decisions, axis=0),
        np.count_nonzero(labels & ~ignored, axis=0),
    )


def precision_recall_f1(counts: DecisionCounts) -> dict[str, float]:
    """``CP CR CF1 OP OR OF1`` of [1], as fractions.

    CP is the mean over classes of TP / predicted, CR of TP / positives, both over the classes that
    have positives; CF1 is the harmonic mean of CP and CR. OP, OR, OF1 add the counts of all classes
    up first. ([1]'s code adds one to OP's denominator for each class that is never predicted; this
    does not.)

    Example:
        >>> counts = DecisionCounts(*(np.array(x) for x in ([2, 1], [4, 1], [2, 2])))
        >>> {key: round(float(x), 4) for key, x in precision_recall_f1(counts).items()}
        {'CP': 0.75, 'CR': 0.75, 'CF1': 0.75, 'OP': 0.6, 'OR': 0.75, 'OF1': 0.6667}
    """
    tp, predicted, positives = counts
    present = positives > 0
    cp = _ratio(tp, predicted)[present].mean()
    cr = _ratio(tp, positives)[present].mean()
    op = _ratio(tp.sum(), predicted.sum())
    or_ = _ratio(tp.sum(), positives.sum())
    return {
        "CP": cp,
        "CR": cr,
        "CF1": _ratio(2 * cp * cr, cp + cr),
        "OP": op,
        "OR": or_,
        "OF1": _ratio(2 * tp.sum(), predicted.sum() + positives.sum()),
    }


def mean_class_f1(counts: DecisionCounts) -> float:
    """Mean over the classes that have positives of 2 TP / (predicted + positives) [2].

    Example:
        >>> counts = DecisionCounts(*(np.array(x) for x in ([2, 1], [4, 1], [2, 2])))
        >>> round(float(mean_class_f1(counts)), 4)  # 4 / 6 and 2 / 3
        0.6667
    """
    tp, predicted, positives = counts
    return _ratio(2 * tp, predicted + positives)[positives > 0].mean()


def _precision_at_positives(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Precision at the score of each positive, (P,), highest score first.

    AP needs the curve at these scores alone: between two positives recall stands still and
    precision falls. Two value sorts are several times faster than the index sort of all scores.
    """
    positives = np.sort(scores[labels])
    negatives = np.sort(scores[~labels])
    hits = len(positives) - np.searchsorted(positives, positives, side="left")
    false_alarms = len(negatives) - np.searchsorted(negatives, positives, side="left")
    return (hits / (hits + false_alarms))[::-1]


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Element-wise quotient, 0 where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def check_inputs(
    scores: np.ndarray, labels: np.ndarray, ignored: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (N, C), labels (N, C) and ignored entries (N, C) that metrics can be computed from.

    Raises:
        ValueError: as :func:`multilabel_metrics`.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    ignored = np.zeros(labels.shape, dtype=bool) if ignored is None else np.asarray(ignored)
    _check_arrays(scores, labels, ignored)
    _check_scores(scores)
    if ignored.all():
        raise ValueError("every entry is ignored: ignored is true where an entry does not count")
    if not (labels & ~ignored).any():
        raise ValueError("no class has a positive label that is not ignored: nothing to evaluate")
    return scores, labels, ignored


def _check_arrays(scores: np.ndarray, labels: np.ndarray, ignored: np.ndarray) -> None:
    if scores.ndim != 2:
        raise ValueError(f"scores must have shape (N, C), got {scores.shape}")
    if 0 in scores.shape:
        raise ValueError(f"scores of shape {scores.shape} (N, C): no images or no classes")
    if not np.issubdtype(scores.dtype, np.floating):
        raise ValueError(f"scores must be floating point, got {scores.dtype}")
    for name, array in (("labels", labels), ("ignored", ignored)):
        if array.shape != scores.shape:
            raise ValueError(f"{name} has shape {array.shape}, scores have {scores.shape}")
        if array.dtype != bool:
            raise ValueError(f"{name} must be bool, got {array.dtype}: compare first, e.g. x == 1")


def _check_scores(scores: np.ndarray) -> None:
    if scores.min() >= 0 and scores.max() <= 1:  # false for nan
        return
    row, column = np.argwhere(~((scores >= 0) & (scores <= 1)))[0]
    fault = score_fault(scores[row, column])
    raise ValueError(f"scores[{row}, {column}] (row {row}, class {column}) is {fault}")


def score_fault(score: float) -> str:
    """A score that is not in [0, 1], what is wrong with it and what to do."""
    if np.isnan(score):
        return f"{score}, not a number"
    return f"{score}, not in [0, 1]: divide percent by 100, put a sigmoid after logits"


def _check_threshold(threshold: float | np.ndarray, scores: np.ndarray) -> None:
    array = np.asarray(threshold, dtype=float)
    if array.shape not in ((), scores.shape[1:]):
        raise ValueError(
            f"threshold must be one number or of shape {scores.shape[1:]} (C,), got {array.shape}"
        )
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")
