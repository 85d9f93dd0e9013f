"""What a detector that is blind to the surroundings can reach at best on Context Scenes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .generator import CLASSES, COMPANION_OF, CONTEXT_PAIRS


def _counts(dicts: Sequence[dict], num_classes: int) -> np.ndarray:
    """(N, C) number of objects of each class, from Detectron2 dataset dicts."""
    rows = [[a["category_id"] for a in d["annotations"]] for d in dicts]
    return np.array([np.bincount(row, minlength=num_classes) for row in rows]).reshape(
        len(rows), -1
    )


def context_blind_scores(
    train_dicts: Sequence[dict],
    test_dicts: Sequence[dict],
    max_count: int = 3,
    classes: Sequence[str] = CLASSES,
) -> np.ndarray:
    """Scores of a perfect detector that is blind to the surroundings.

    It finds every object and knows its appearance, so it is certain of the classes outside
    `CONTEXT_PAIRS` and `COMPANION_OF`. Of a pair it knows the number of objects with that
    appearance, and gives each member the share of the training images with as many such objects
    that hold that member.

    Args:
        train_dicts: N Detectron2 dataset dicts; category ids are indices of `classes`.
        test_dicts: M such dicts.
        max_count: larger numbers of objects are taken for this one.
        classes: C names, `SceneConfig.classes` of the set.

    Returns:
        (M, C) float scores in [0, 1] for the M test images.
    """
    train, test = (_counts(dicts, len(classes)) for dicts in (train_dicts, test_dicts))
    scores = (test > 0).astype(float)
    for pair in (*CONTEXT_PAIRS, tuple(COMPANION_OF)):
        ids = [classes.index(name) for name in pair if name in classes]
        seen, asked = (c[:, ids].sum(axis=1).clip(max=max_count) for c in (train, test))
        for count in np.unique(asked):
            known = train[seen == count][:, ids] > 0
            share = known.mean(axis=0) if len(known) else np.full(len(ids), 0.5)
            scores[np.ix_(asked == count, ids)] = share
    return scores
