"""How far the mAP of a model, or the difference between two, depends on the choice of test images.

The bootstrap over images: a replicate is a test set of N images drawn from the N at hand with
replacement, so all labels of an image stay together, and its mAP is computed from the scores at
hand; no model runs again. What a second training run would change is not in it.

A replicate's mAP is what :func:`multilabel_metrics` gives for the drawn rows: equal scores share
one threshold, ignored entries are left out, and a class none of whose positives was drawn is left
out of that replicate's mean (own decision; two models on the same images lose the same classes). A
replicate without a positive of any class has no mAP, nan, and is left out of intervals and p.

With few positives AP comes out too high, and on a replicate once more by about as much: the
interval of a mAP is therefore the percentile interval of the replicates moved down by twice their
mean excess over the mAP of all images (own decision, see tests/evaluation/test_intervals.py). In a
difference of two models the excess cancels: its interval is the percentile interval itself, which p
belongs to.

References:
    [1] Efron and Tibshirani, "An Introduction to the Bootstrap", 1993: estimate of bias (chapter
        10), percentile interval (chapter 13), and a significance level from it (chapter 15).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from .metrics import multilabel_metrics

CHUNK_ENTRIES = 5_000_000  # replicates x images held at a time


class Interval(NamedTuple):
    """A value in percent, and its bootstrap interval."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """Two models on the same images."""

    first: Interval
    second: Interval
    difference: Interval  # second - first
    p: float


class _RankedClass(NamedTuple):
    """The images that one class's AP needs, highest score first, in groups.

    A group holds the images from one positive's score up to the next higher positive score,
    positives with equal scores together: between them lies no threshold that AP reads.
    """

    images: torch.Tensor  # (n,) int32 indices into the N images
    starts: torch.Tensor  # (T,) int32, first of each group in images
    positives: torch.Tensor  # (P,) int32 indices into the N images
    positive_starts: torch.Tensor  # (T,) int32, first of each group in positives


def map_interval(
    scores: np.ndarray,
    labels: np.ndarray,
    ignored: np.ndarray | None = None,
    *,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    progress: Callable[[int], object] | None = None,
) -> Interval:
    """MAP in percent with its bootstrap interval over images.

    Args:
        scores: (N, C) float in [0, 1].
        labels: (N, C) bool.
        ignored: (N, C) bool, entries to leave out; none by default.
        replicates: B, number of resampled test sets.
        seed: of the draws.
        confidence: share of replicates inside the interval.
        progress: called with the number of replicates done since its last call.

    Raises:
        ValueError: as :func:`multilabel_metrics`; no replicate; or none of them has a positive.
    """
    value = multilabel_metrics(scores, labels, ignored)["mAP"]
    samples = bootstrap_map(
        scores, labels, ignored, replicates=replicates, seed=seed, progress=progress
    )
    return _interval(value, _without_bias(samples, value), confidence)


def compare_map(
    first: np.ndarray,
    second: np.ndarray,
    labels: np.ndarray,
    ignored: np.ndarray | None = None,
    *,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    progress: Callable[[int], object] | None = None,
) -> Comparison:
    """Paired comparison: each replicate draws the same images for both models.

    With d the difference of mAP (second - first) of a replicate, the two-sided
    p = 2 (1 + min(#{d <= 0}, #{d >= 0})) / (1 + B), at most 1: about the smallest level at which
    the percentile interval of the difference leaves out 0 [1]. It is never below 2 / (1 + B), and 1
    for equal scores.

    Args:
        first: (N, C) float in [0, 1], scores of one model.
        second: (N, C) float in [0, 1], scores of the other, rows and columns in the same order.
        labels: (N, C) bool.
        ignored: (N, C) bool, entries to leave out; none by default.
        replicates: B, number of resampled test sets.
        seed: of the draws.
        confidence: share of replicates inside the intervals.
        progress: called with the number of replicates done since its last call; each is done twice.

    Raises:
        ValueError: as :func:`map_interval`.
    """
    values = [multilabel_metrics(scores, labels, ignored)["mAP"] for scores in (first, second)]
    samples = [
        bootstrap_map(scores, labels, ignored, replicates=replicates, seed=seed, progress=progress)
        for scores in (first, second)
    ]
    difference = samples[1] - samples[0]
    return Comparison(
        *(
            _interval(value, _without_bias(sample, value), confidence)
            for value, sample in zip(values, samples)
        ),
        _interval(values[1] - values[0], difference, confidence),
        _two_sided_p(difference),
    )


def bootstrap_map(
    scores: np.ndarray,
    labels: np.ndarray,
    ignored: np.ndarray | None = None,
    *,
    replicates: int = 1000,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> np.ndarray:
    """MAP of each replicate: (B,) in percent, nan where no positive was drawn.

    Replicate b draws the rows of the b-th call of ``default_rng(seed).integers(N, size=N)``, so two
    score arrays with one seed are resampled alike. The images are sorted once for each class; a
    replicate then only changes how often each of them counts.

    Args:
        scores: (N, C) float without nan.
        labels: (N, C) bool.
        ignored: (N, C) bool, entries to leave out; none by default.
        replicates: B, number of resampled test sets.
        seed: of the draws.
        progress: called with the number of replicates done since its last call.
    """
    if replicates < 1:
        raise ValueError(f"replicates must be at least 1, got {replicates}")
    kept = np.ones_like(labels) if ignored is None else ~ignored
    classes = [
        _rank_class(s, y, k)
        for s, y, k in zip(scores.T, labels.T, kept.T, strict=True)
        if (y & k).any()
    ]
    means = []
    for counts in _draw_counts(len(scores), replicates, seed):
        means.append(_nanmean(np.stack([_resampled_ap(c, counts) for c in classes])))
        if progress:
            progress(counts.shape[1])
    return 100.0 * np.concatenate(means)


def _rank_class(scores: np.ndarray, labels: np.ndarray, kept: np.ndarray) -> _RankedClass:
    images = np.flatnonzero(kept)
    images = images[np.argsort(-scores[images], kind="stable")]
    thresholds = np.unique(-scores[labels & kept])
    group = np.searchsorted(thresholds, -scores[images])  # the first threshold reached
    images = images[group < len(thresholds)]  # an image below every positive changes no AP
    group = group[: len(images)]
    positive = labels[images]
    fields = (
        images,
        np.flatnonzero(np.diff(group, prepend=-1)),
        images[positive],
        np.flatnonzero(np.diff(group[positive], prepend=-1)),
    )
    return _RankedClass(*(torch.from_numpy(field).int() for field in fields))


def _draw_counts(num_images: int, replicates: int, seed: int) -> Iterator[torch.Tensor]:
    """How often each image is drawn: (N, b) float32 in chunks of replicates."""
    rng = np.random.default_rng(seed)
    size = max(1, CHUNK_ENTRIES // num_images)
    for start in range(0, replicates, size):
        chunk = min(size, replicates - start)
        # a whole chunk at once: the numbers are those of a call for each replicate
        drawn = rng.integers(num_images, size=(chunk, num_images))
        drawn += np.arange(chunk)[:, None] * num_images
        counts = np.bincount(drawn.ravel(), minlength=chunk * num_images)
        yield torch.from_numpy(counts).view(chunk, num_images).T.float().contiguous()


def _resampled_ap(ranked: _RankedClass, counts: torch.Tensor) -> np.ndarray:
    """AP of one class, (b,) fractions, where image i counts `counts[i]` (b,) times."""
    hits = _group_sums(counts, ranked.positives, ranked.positive_starts)  # (T, b)
    true_positives = hits.cumsum(0)
    predicted = _group_sums(counts, ranked.images, ranked.starts).cumsum(0)
    precision = true_positives / predicted.clamp(min=1)
    # NumPy adds row by row: a replicate does not depend on the others of its chunk. 0 / 0 is nan.
    return (torch.from_numpy((hits * precision).numpy().sum(0)) / true_positives[-1]).numpy()


def _group_sums(counts: torch.Tensor, images: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    # whole numbers of at most N: exact in float32; several times as fast as np.add.reduceat
    return embedding_bag(images, counts, starts, mode="sum").double()  # (T, b)


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not nan; nan where nothing is left."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(axis=0)
    count = known.sum(axis=0)
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


def _without_bias(samples: np.ndarray, value: float) -> np.ndarray:
    """Replicates of a mAP moved by twice their mean distance from the mAP of all images."""
    known = samples[~np.isnan(samples)]
    return np.clip(known - 2 * (known.mean() - value), 0, 100) if len(known) else known


def _interval(value: float, samples: np.ndarray, confidence: float) -> Interval:
    samples = samples[~np.isnan(samples)]
    if not len(samples):
        raise ValueError("no replicate has a positive label: too few images for an interval")
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))


def _two_sided_p(differences: np.ndarray) -> float:
    differences = differences[~np.isnan(differences)]
    fewer = min(np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0))
    return min(1.0, 2 * (1 + fewer) / (1 + len(differences)))
