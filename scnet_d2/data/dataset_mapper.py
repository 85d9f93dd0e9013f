"""Detectron2's ``DatasetMapper`` with image-level labels and errors that name the image."""

from __future__ import annotations

from typing import Any

from detectron2.config import configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils

from .errors import DatasetError, ImageError
from .images import check_header, read_image
from .labels import LabelPolicy, get_label_policy, image_labels


class MultiLabelDatasetMapper(DatasetMapper):
    """Maps a dataset dict to the model's input, in training and in testing.

    Everything about the image and its boxes is Detectron2's: resizing, flipping, crowd boxes
    dropped, an image without boxes giving ``instances`` with ``gt_boxes`` (0, 4) and
    ``gt_classes`` (0,). ``image_labels`` and ``ignored_labels`` are checked and passed on; where a
    data set lacks them they are derived from its annotations. Difficult objects stay in
    ``instances``: there is an object, and the label is left out through ``ignored_labels``.
    """

    @configurable
    def __init__(
        self, is_train: bool, *, label_policy: LabelPolicy | None = None, **kwargs: Any
    ) -> None:
        """
        Args:
            is_train: whether the output is for training.
            label_policy: for data sets without image-level labels; default: the current policy.
            kwargs: those of Detectron2's ``DatasetMapper``.
        """
        super().__init__(is_train, **kwargs)
        # kept here because the mapper goes to worker processes, the global policy may not
        self.label_policy = label_policy or get_label_policy()

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict, which is left as it is.

        Returns:
            Detectron2's model input: ``image`` (3, H, W) uint8, in training ``instances``, and
            ``image_labels`` and ``ignored_labels`` unless the data set has no annotations.

        Raises:
            ImageError: for an image that cannot be read or has another size than annotated.
            DatasetError: for labels that are not valid.
        """
        dataset_dict = {**dataset_dict, **self._labels(dataset_dict)}
        check_header(dataset_dict["file_name"])
        try:
            return super().__call__(dataset_dict)
        except utils.SizeMismatchError as e:
            raise ImageError(
                f"{e} If the file is rotated by its EXIF data, annotate the rotated size."
            ) from e
        except Exception:
            read_image(dataset_dict["file_name"], self.image_format)  # says it if it is the image
            raise

    def _labels(self, dataset_dict: dict[str, Any]) -> dict[str, list[int]]:
        if "image_labels" in dataset_dict:
            present = dataset_dict["image_labels"]
            ignored = dataset_dict.get("ignored_labels", [])
        elif "annotations" in dataset_dict:
            present, ignored = image_labels(dataset_dict["annotations"], self.label_policy)
        else:
            return {}
        _check_labels(present, ignored, dataset_dict["file_name"])
        return {"image_labels": list(present), "ignored_labels": list(ignored)}


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
