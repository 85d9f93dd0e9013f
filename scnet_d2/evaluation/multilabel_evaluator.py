"""Multi-label evaluation of a model on a registered data set."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ..data import LabelPolicy, get_multilabel_dicts
from ..data.labels import DEFAULT_POLICY
from .label_boxes import evidence_arrays, evidence_rows
from .metrics import multilabel_metrics, named_metrics
from .score_files import FILE_NAME, ScoreTable, write_scores
from .table import format_table

logger = logging.getLogger(__name__)

SAME_SCORE = 0.05  # most that scores of one image differ by in another batch or half precision


class GroundTruth(NamedTuple):
    """Image labels of a data set, one row an image, in the order of the data set."""

    image_ids: list[Hashable]
    file_names: list[str]
    labels: np.ndarray  # (N, C) bool
    ignored: np.ndarray  # (N, C) bool


class Prediction(NamedTuple):
    """What is kept of one image."""

    scores: np.ndarray  # (C,) float32
    evidence: np.ndarray  # (L, 10) float32, see evidence_rows
    unreadable: str  # why the image could not be read, "" where it was


class MultiLabelEvaluator(DatasetEvaluator):
    """Compares image scores with the labels of a data set: see :func:`multilabel_metrics`.

    Takes the outputs of SCNet (``image_scores``) and of any Detectron2 detector (``instances``: the
    score of a label is the highest score of its boxes, 0 without one).

    The labels are ``image_labels`` and ``ignored_labels`` of each dataset dict, under a label
    policy: see :func:`scnet_d2.data.get_multilabel_dicts`.

    An image that could not be read (``unreadable`` in its dict) is never left out: every label of
    it scores 0, as without any box, and the number of such images stands beside the metrics.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        threshold: float | np.ndarray = 0.5,
        top_k: int = 3,
        distributed: bool = True,
        output_dir: str | None = None,
        baselines: Mapping[str, Callable[[], np.ndarray]] | None = None,
        class_groups: Mapping[str, Sequence[str]] | None = None,
        label_policy: LabelPolicy = DEFAULT_POLICY,
    ):
        """
        Args:
            dataset_name: a name in Detectron2's ``DatasetCatalog``.
            threshold: from which on a class is predicted, see :func:`predicted`; one number or
                (C,).
            top_k: number of classes an image may predict in the ``_top3`` metrics.
            distributed: collect the scores of all processes in the first one; otherwise each
                process evaluates what it has seen, which must then be the whole data set.
            output_dir: folder for ``multilabel_scores.npz``: image_ids (N,), file_names (N,),
                class_names (C,), scores (N, C) float32, labels and ignored (N, C) bool,
                thresholds (C,), unreadable (N,) bool, and the boxes of each image's predicted and
                highest-scoring labels, see :func:`evidence_arrays`.
            baselines: more rows of the logged table, beside that of the class prevalence: functions
                that return scores (N, C) in the order of the data set.
            class_groups: ``mAP_<group>`` is the mean AP over these classes.
            label_policy: the one under which the evaluated images were loaded.
        """
        self._dataset_name = dataset_name
        self._class_names = _class_names(dataset_name)
        self._threshold = threshold
        self._top_k = top_k
        self._distributed = distributed
        self._output_dir = output_dir
        self._baselines = dict(baselines or {})
        self._class_groups = dict(class_groups or {})
        self._label_policy = label_policy
        self.reset()

    def reset(self) -> None:
        """Forgets every prediction."""
        self._image_ids: list[Hashable] = []
        self._scores: list[np.ndarray] = []
        self._evidence: list[np.ndarray] = []
        self._unreadable: list[str] = []

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """Keeps the image scores of a batch, and the boxes of the highest ones.

        Args:
            inputs: dataset dicts with ``image_id`` (str or int), and ``unreadable``, the reason,
                for an image without an output.
            outputs: dicts with ``image_scores``, Tensor (C,) in [0, 1], or ``instances``.

        Raises:
            ValueError: neither key, another number of classes, or scores that are nan or outside
                [0, 1]; names the image's file.
        """
        for dataset_dict, output in zip(inputs, outputs, strict=True):
            try:
                scores = self._image_scores(dataset_dict, output)
            except ValueError as error:
                file_name = dataset_dict.get("file_name", dataset_dict["image_id"])
                raise ValueError(f"image {file_name} of {self._dataset_name}: {error}") from error
            self._image_ids.append(dataset_dict["image_id"])
            self._scores.append(scores)
            boxes = output if self._output_dir else {}  # unless nothing is going to be saved
            self._evidence.append(evidence_rows(boxes, scores, self._threshold))
            self._unreadable.append(dataset_dict.get("unreadable", ""))

    def _image_scores(self, dataset_dict: dict, output: dict) -> np.ndarray:
        if "unreadable" in dataset_dict:
            return np.zeros(len(self._class_names), dtype=np.float32)
        return image_scores(output, len(self._class_names))

    def evaluate(self) -> OrderedDict | None:
        """Computes the metrics over all processes, logs them, and saves the scores.

        Returns:
            ``{"multilabel": {metric: percent}}`` with the keys of :func:`multilabel_metrics` and
            one ``AP-<class>`` for each class, nan where it has no positive; ``unreadable_images``,
            their number, where there are any. None in all processes but the first.

        Raises:
            ValueError: no predictions, an image without one or with two that differ, or one for an
                image that is not in the data set.
        """
        predictions = self._gather()
        if predictions is None:
            return None
        if not predictions:
            raise ValueError(
                f"no predictions for {self._dataset_name}: call process() before evaluate()"
            )
        truth = load_ground_truth(self._dataset_name, len(self._class_names), self._label_policy)
        matched = self._match(predictions, truth)
        scores = np.stack([prediction.scores for prediction in matched])
        if self._output_dir:
            self._save(matched, truth)
        results = OrderedDict(multilabel=self._metrics(scores, truth))
        rows = {name: self._metrics(s, truth) for name, s in self._baseline_scores(truth).items()}
        table = format_table(results, baselines=rows)
        groups = [_group_line(group, results["multilabel"], rows) for group in self._class_groups]
        text = "\n\n".join([table, *groups])
        logger.info("Multi-label results on %s, in percent:\n%s", self._dataset_name, text)
        if reasons := [p.unreadable for p in matched if p.unreadable]:
            results["multilabel"]["unreadable_images"] = float(len(reasons))
            self._warn_of_unreadable(reasons, len(matched))
        return results

    def _warn_of_unreadable(self, reasons: list[str], num_images: int) -> None:
        logger.warning(
            "%d of the %d images of %s could not be used. They are in these results, with score 0 "
            "for every label: get them again before you publish a figure.\n%s",
            len(reasons), num_images, self._dataset_name, "\n".join(reasons),
        )  # fmt: skip

    def _baseline_scores(self, truth: GroundTruth) -> dict[str, np.ndarray]:
        """Scores (N, C) of the share of positives of each class, and of the other baselines."""
        counted = ~truth.ignored
        prevalence = (truth.labels & counted).sum(axis=0) / np.maximum(counted.sum(axis=0), 1)
        rows = {"class prevalence": np.broadcast_to(prevalence, truth.labels.shape)}
        return rows | {name: scores() for name, scores in self._baselines.items()}

    def _gather(self) -> dict[Hashable, Prediction] | None:
        """Predictions by image id; an image that pads out a process's share counts once."""
        shares = [(self._image_ids, self._scores, self._evidence, self._unreadable)]
        if self._distributed:
            comm.synchronize()
            share = (self._image_ids, _stack(self._scores), self._evidence, self._unreadable)
            shares = comm.gather(share, dst=0)
            if not comm.is_main_process():
                return None
        predictions: dict[Hashable, Prediction] = {}
        for share in shares:
            for image_id, *values in zip(*share, strict=True):
                prediction = Prediction(*values)
                first = predictions.setdefault(image_id, prediction)
                difference = np.abs(first.scores - prediction.scores).max()
                if difference > SAME_SCORE:
                    raise ValueError(
                        f"image_id {image_id!r} of {self._dataset_name} has two predictions that "
                        f"differ by {difference:.2f}: give every image an id of its own"
                    )
        return predictions

    def _match(
        self, predictions: dict[Hashable, Prediction], truth: GroundTruth
    ) -> list[Prediction]:
        """The N predictions in the order of the data set."""
        unknown = predictions.keys() - set(truth.image_ids)
        if unknown:
            raise ValueError(
                f"{len(unknown)} predictions are for images that are not in {self._dataset_name}: "
                f"image_id {_first(sorted(map(repr, unknown)))}"
            )
        missing = [
            file_name
            for image_id, file_name in zip(truth.image_ids, truth.file_names, strict=True)
            if image_id not in predictions
        ]
        if missing:
            raise ValueError(
                f"{len(missing)} of the {len(truth.image_ids)} images of {self._dataset_name} have "
                f"no prediction: {_first(missing)}"
            )
        return [predictions[image_id] for image_id in truth.image_ids]

    def _metrics(self, scores: np.ndarray, truth: GroundTruth) -> dict[str, float]:
        metrics = multilabel_metrics(
            scores, truth.labels, truth.ignored, threshold=self._threshold, top_k=self._top_k
        )
        metrics = named_metrics(metrics, self._class_names)
        return metrics | {
            f"mAP_{group}": float(np.nanmean([metrics[f"AP-{name}"] for name in names]))
            for group, names in self._class_groups.items()
        }

    def _save(self, predictions: list[Prediction], truth: GroundTruth) -> None:
        scores, evidence, unreadable = zip(*predictions, strict=True)
        PathManager.mkdirs(self._output_dir)
        path = os.path.join(self._output_dir, FILE_NAME)
        table = ScoreTable(
            np.stack(scores),
            truth.labels,
            truth.ignored,
            self._class_names,
            truth.image_ids,
            truth.file_names,
            np.broadcast_to(self._threshold, scores[0].shape),
            np.array(unreadable) != "",
            evidence_arrays(evidence),
        )
        write_scores(path, table)
        logger.info("Saved the image scores to %s", path)


def image_scores(output: dict[str, Any], num_classes: int) -> np.ndarray:
    """Image scores of one model output.

    Args:
        output: has ``image_scores``, Tensor (C,), or a detector's ``instances``.
        num_classes: C.

    Returns:
        (C,) float32 in [0, 1].

    Raises:
        ValueError: neither key, another number of classes, nan, or a score outside [0, 1].
    """
    if "image_scores" in output:
        scores = output["image_scores"].detach().float().cpu().numpy()
    elif "instances" in output:
        scores = detection_scores(output["instances"], num_classes)
    else:
        raise ValueError(
            f"the model's output has neither 'image_scores' nor 'instances', only {sorted(output)}"
        )
    if scores.shape != (num_classes,):
        raise ValueError(
            f"image scores have shape {scores.shape}, but the data set has {num_classes} classes"
        )
    wrong = np.flatnonzero(~((scores >= 0) & (scores <= 1)))
    if len(wrong):
        raise ValueError(f"the score of class {wrong[0]} is {scores[wrong[0]]}, not in [0, 1]")
    return scores


def detection_scores(instances: Instances, num_classes: int) -> np.ndarray:
    """Highest score of the boxes of each class, 0 without one: (C,) float32.

    Raises:
        ValueError: a predicted class that is not one of the ``num_classes``.
    """
    classes = instances.pred_classes.detach().cpu().numpy()
    wrong = classes[(classes < 0) | (classes >= num_classes)]
    if len(wrong):
        raise ValueError(f"a box has class {wrong[0]}, but the data set has {num_classes} classes")
    scores = np.zeros(num_classes, dtype=np.float32)
    with np.errstate(invalid="ignore"):  # nan is kept, and reported by image_scores
        np.maximum.at(scores, classes, instances.scores.detach().float().cpu().numpy())
    return scores


def load_ground_truth(
    dataset_name: str, num_classes: int, label_policy: LabelPolicy = DEFAULT_POLICY
) -> GroundTruth:
    """Image labels of a registered data set under a label policy; see :func:`ground_truth`."""
    dicts = get_multilabel_dicts(dataset_name, label_policy)
    return ground_truth(dicts, dataset_name, num_classes)


def ground_truth(
    dataset_dicts: Sequence[dict[str, Any]], dataset_name: str, num_classes: int
) -> GroundTruth:
    """``image_labels`` and ``ignored_labels`` of dataset dicts.

    Raises:
        ValueError: a label that is not a contiguous class id, naming the image's file; two images
            with one id; no label at all.
    """
    shape = (len(dataset_dicts), num_classes)
    labels, ignored = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for row, dataset_dict in enumerate(dataset_dicts):
        if "image_labels" not in dataset_dict:
            raise ValueError(
                f"image {dataset_dict.get('file_name')} has neither 'image_labels' nor "
                "'annotations': the data set has no labels to evaluate against"
            )
        labels[row, _checked("image_labels", dataset_dict, num_classes)] = True
        ignored[row, _checked("ignored_labels", dataset_dict, num_classes)] = True
    image_ids = [d["image_id"] for d in dataset_dicts]
    if len(set(image_ids)) < len(image_ids):
        repeated = next(i for i in image_ids if image_ids.count(i) > 1)
        raise ValueError(f"{dataset_name} has more than one image with image_id {repeated!r}")
    if not (labels & ~ignored).any():
        raise ValueError(f"{dataset_name}: no image has a label; there is nothing to evaluate")
    file_names = [str(d.get("file_name", d["image_id"])) for d in dataset_dicts]
    return GroundTruth(image_ids, file_names, labels, ignored)


def _checked(key: str, dataset_dict: dict[str, Any], num_classes: int) -> list[int]:
    classes = list(dataset_dict.get(key, ()))
    for class_id in classes:
        if not 0 <= class_id < num_classes:
            raise ValueError(
                f"image {dataset_dict.get('file_name')}: label {class_id} is not a contiguous "
                f"class id in [0, {num_classes})"
            )
    return classes


def _class_names(dataset_name: str) -> list[str]:
    metadata = MetadataCatalog.get(dataset_name)
    if not metadata.get("thing_classes"):
        DatasetCatalog.get(dataset_name)  # Detectron2's COCO reader sets the class names
    names = metadata.get("thing_classes")
    if not names:
        raise ValueError(f"the metadata of {dataset_name} has no thing_classes")
    return list(names)


def _stack(scores: list[np.ndarray]) -> np.ndarray:
    """One array to send rather than one per image; (0,) when this process saw no image."""
    return np.stack(scores) if scores else np.zeros(0, dtype=np.float32)


def _group_line(group: str, metrics: dict[str, float], baselines: dict[str, dict]) -> str:
    key = f"mAP_{group}"
    others = "".join(f", {name} {row[key]:.2f}" for name, row in baselines.items())
    return f"{key}: model {metrics[key]:.2f}{others}"


def _first(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
