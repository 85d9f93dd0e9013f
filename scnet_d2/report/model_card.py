"""The model card of a model folder, from the config and the evaluations of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import PurePath

import numpy as np
from detectron2.config import CfgNode
from tabulate import tabulate

from .. import __version__
from ..evaluation.metrics import multilabel_metrics
from ..evaluation.score_files import ScoreTable
from .templates import TEMPLATES, number

FEW = 20  # images of a class, below which the card says that they are few
METRICS = ("mAP", "CF1", "OF1")
# By the beginning of a data set's name.
LICENCES = {
    "coco_": "COCO: annotations under CC BY 4.0; the photographs are of Flickr, under its terms of "
    "use (https://cocodataset.org/#termsofuse).",
    "voc_": "PASCAL VOC: the photographs are of Flickr, under its terms of use "
    "(http://host.robots.ox.ac.uk/pascal/VOC).",
    "context_scenes_": "Context scenes: drawn by scnet_d2, Apache-2.0.",
}


def model_card(
    name: str,
    cfg: CfgNode,
    class_names: Sequence[str],
    evaluated: Mapping[str, ScoreTable],
    train_images: Sequence[int] | None = None,
    licence: str = "",
) -> str:
    """A model card in Markdown.

    Args:
        name: of the model.
        cfg: of the training.
        class_names: C names.
        evaluated: test scores by data set; the metrics are those of all their images together.
        train_images: (C,) number of training images with each label, where known.
        licence: of the training data; by default what is known of published data sets.

    Raises:
        ValueError: if scores are of other classes.
    """
    columns = {"label": [escape(c).replace("|", r"\|") for c in class_names]}
    results, images = "", 0
    if evaluated:
        metrics, positives, images = _evaluate(evaluated, class_names)
        results = ", ".join(f"{key} {number(metrics[key], 1)}" for key in METRICS)
        aps, enough = metrics["per_class_AP"], positives >= FEW
        if enough.any() and not enough.all():
            mean = number(aps[enough].mean().item(), 1)
            results += f"; mAP of the {enough.sum()} labels with at least {FEW} images {mean}"
        columns["AP"] = [number(ap, 1) for ap in aps.tolist()]
        columns["test images with it"] = [number(n) for n in positives.tolist()]
    if train_images is not None:
        columns["training images with it"] = [number(n) for n in train_images]
    return TEMPLATES.get_template("report/model_card.md.jinja").render(
        name=name,
        cfg=cfg,
        version=__version__,
        class_names=class_names,
        backbone=_backbone(cfg),
        initial_weights=_initial_weights(cfg.MODEL.WEIGHTS),
        licences=[licence] if licence else _licences(cfg.DATASETS.TRAIN),
        results=results,
        num_images=images,
        tested_on=list(evaluated),
        few=FEW,
        table=tabulate(
            columns, "keys", "pipe", disable_numparse=True, colalign=["left"] + ["right"] * 3
        ),
        rare=[escape(c) for c, n in zip(class_names, train_images or ()) if n < FEW],
    )


def _evaluate(
    evaluated: Mapping[str, ScoreTable], class_names: Sequence[str]
) -> tuple[dict, np.ndarray, int]:
    """Metrics, images with each label (C,), and number of images, of all tables together."""
    for name, table in evaluated.items():
        if table.class_names != list(class_names):
            raise ValueError(f"scores of {name}: their classes are not the model's; leave them out")
    tables = evaluated.values()
    scores, labels, ignored = (
        np.concatenate([getattr(t, key) for t in tables]) for key in ("scores", "labels", "ignored")
    )
    thresholds = next(iter(tables)).thresholds
    metrics = multilabel_metrics(
        scores, labels, ignored, threshold=0.5 if thresholds is None else thresholds
    )
    return metrics, (labels & ~ignored).sum(axis=0), len(scores)


def _backbone(cfg: CfgNode) -> str:
    if "timm" in cfg.MODEL.BACKBONE.NAME:
        return f"the backbone {cfg.MODEL.TIMM.NAME}"
    return f"{cfg.MODEL.BACKBONE.NAME} of depth {cfg.MODEL.RESNETS.DEPTH}"


def _initial_weights(weights: str) -> str:
    """The weights that training began with; of a path, which is this machine's, the file's name."""
    return (weights if "://" in weights else PurePath(weights).name) or "random weights"


def _licences(names: Sequence[str]) -> list[str]:
    """What is known of the licences of data sets, and of which nothing is."""
    known = {name: "".join(x for k, x in LICENCES.items() if name.startswith(k)) for name in names}
    unknown = ", ".join(name for name, text in known.items() if not text)
    texts = [*known.values(), f"The licence of {unknown} is not stated." if unknown else ""]
    return [text for text in dict.fromkeys(texts) if text]
