"""Detectron2's ``DatasetMapper`` with image-level labels and errors that name the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode

from .errors import DatasetError, ImageError
from .images import check_header, read_image
from .labels import DEFAULT_POLICY, LabelPolicy, image_labels, label_record

SUBPIXEL = 1e-3  # px, by which the border of a whole image may miss that of its resized one
EMPTY = 1e-5  # px, side up to which Detectron2's filter_empty_instances drops a box


class MultiLabelDatasetMapper(DatasetMapper):
    """Maps a dataset dict to the model's input, in training and in testing.

    Everything about the image and its boxes is Detectron2's: resizing, flipping, crowd boxes
    dropped, an image without boxes giving ``instances`` with ``gt_boxes`` (0, 4) and
    ``gt_classes`` (0,). ``image_labels`` and ``ignored_labels`` are checked and passed on; where a
    data set lacks them they are derived from its annotations.

    Where an augmentation cuts a part of the image off (``INPUT.CROP``), the labels of the training
    image are those of the objects with an area in it. A class that is known from an annotation
    without a usable box, or without any, is ignored there: nobody knows where it is. A data set
    without ``annotations`` keeps its labels in every crop.
    """

    @configurable
    def __init__(
        self, is_train: bool, *, label_policy: LabelPolicy = DEFAULT_POLICY, **kwargs: Any
    ) -> None:
        """
        Args:
            is_train: whether the output is for training.
            label_policy: of data sets without image-level labels, and of what is left in a crop.
            kwargs: those of Detectron2's ``DatasetMapper``.
        """
        super().__init__(is_train, **kwargs)
        self.label_policy = label_policy

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Arguments from Detectron2's keys and those of the label policy."""
        policy = LabelPolicy.from_config(cfg)
        return super().from_config(cfg, is_train) | {"label_policy": policy}

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict, which is left as it is.

        Returns:
            Detectron2's model input: ``image`` (3, H, W) uint8, in training ``instances``, and
            ``image_labels`` and ``ignored_labels`` unless the data set has no annotations.

        Raises:
            ImageError: for an image that cannot be read or has another size than annotated.
            DatasetError: for labels that are not valid.
        """
        dataset_dict = self._labelled(dataset_dict)
        check_header(dataset_dict["file_name"])
        try:
            mapped = super().__call__(dataset_dict)
        except utils.SizeMismatchError as e:
            raise ImageError(
                f"{e} If the file is rotated by its EXIF data, annotate the rotated size."
            ) from e
        except Exception:
            read_image(dataset_dict["file_name"], self.image_format)  # says it if it is the image
            raise
        mapped.pop("annotations_without_box", None)
        return mapped

    def _labelled(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        if "image_labels" not in dataset_dict:
            dataset_dict = label_record(dataset_dict, self.label_policy)
        if "image_labels" not in dataset_dict:
            return dataset_dict
        present, ignored = dataset_dict["image_labels"], dataset_dict.get("ignored_labels", ())
        _check_labels(present, ignored, dataset_dict["file_name"])
        return {**dataset_dict, "image_labels": list(present), "ignored_labels": list(ignored)}

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: T.TransformList, image_shape: tuple
    ) -> None:
        whole = [0.0, 0.0, dataset_dict["width"], dataset_dict["height"]]
        moved, clipped = _transformed([whole], transforms, image_shape)
        if np.abs(moved - clipped).max() > SUBPIXEL:
            left = _objects_left(dataset_dict["annotations"], transforms, image_shape)
            dataset_dict.update(self._labels_of_part(dataset_dict, left))
        super()._transform_annotations(dataset_dict, transforms, image_shape)

    def _labels_of_part(self, dataset_dict: dict[str, Any], left: list[dict]) -> dict[str, list]:
        """Labels of a part of an image, given the annotations of which something is left in it."""
        known = {*dataset_dict["image_labels"], *dataset_dict["ignored_labels"]}
        somewhere = known - {a["category_id"] for a in dataset_dict["annotations"]}
        for labels in image_labels(
            dataset_dict.get("annotations_without_box", ()), self.label_policy
        ):
            somewhere.update(labels)
        seen, unsure = image_labels(left, self.label_policy)
        present = set(seen) & set(dataset_dict["image_labels"])
        ignored = known & {*seen, *unsure, *somewhere} - present
        return {"image_labels": sorted(present), "ignored_labels": sorted(ignored)}


def _objects_left(
    annotations: list[dict], transforms: T.TransformList, image_shape: tuple[int, int]
) -> list[dict]:
    """The annotations whose box has an area in the new image, as Detectron2 decides it."""
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    _, clipped = _transformed(boxes, transforms, image_shape)
    kept = Boxes(torch.as_tensor(clipped)).nonempty(threshold=EMPTY)
    return [a for a, keep in zip(annotations, kept, strict=True) if keep]


def _transformed(
    boxes: list[list[float]], transforms: T.TransformList, image_shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """XYXY boxes (K, 4) after transforms, and these clipped to the new image (height, width)."""
    moved = transforms.apply_box(np.array(boxes).reshape(-1, 4))
    return moved, moved.clip(0, [*image_shape[::-1], *image_shape[::-1]])


def _check_labels(present: list[int], ignored: list[int], file_name: str) -> None:
    for key, labels in (("image_labels", present), ("ignored_labels", ignored)):
        if list(labels) != sorted(set(labels)) or any(label < 0 for label in labels):
            raise DatasetError(
                f"image '{file_name}': {key} {labels} must be sorted class ids from 0, each once."
            )
    if not set(present).isdisjoint(ignored):
        raise DatasetError(
            f"image '{file_name}': labels {sorted(set(present) & set(ignored))} are both present "
            "and ignored; keep them in one list."
        )
