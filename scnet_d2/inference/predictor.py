"""Labels of single images, with the boxes that they come from."""

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge, ResizeTransform
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from PIL import Image

from ..checkpoint import SCNetCheckpointer
from ..data.images import MAX_ASPECT_RATIO
from ..evaluation.label_boxes import label_boxes
from ..evaluation.metrics import predicted
from ..evaluation.multilabel_evaluator import image_scores
from ..evaluation.thresholds import label_thresholds
from .run import class_names, load_run


class ImageMapper:
    """Makes an image the model's input; holds no weights, so other processes get it cheaply."""

    @configurable
    def __init__(self, *, min_size: int, max_size: int, input_format: str):
        """
        Args:
            min_size: length in pixels that the short side is scaled to.
            max_size: the long side is not scaled beyond this.
            input_format: order of the model's channels, "BGR" or "RGB".
        """
        self.min_size = min_size
        self.aug = ResizeShortestEdge([min_size, min_size], max_size)
        self.input_format = input_format

    @classmethod
    def from_config(cls, cfg):
        return {
            "min_size": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "input_format": cfg.INPUT.FORMAT,
        }

    def __call__(self, image: np.ndarray, size: tuple[int, int] | None = None) -> dict:
        """Resize an image.

        Args:
            image: (H, W, 3) uint8 BGR.
            size: H and W of the file, where it was decoded smaller; by default those of `image`.

        Returns:
            The model's input: `image` (3, H', W') uint8, `height` H and `width` W.

        Raises:
            ValueError: if the image is not (H, W, 3) uint8, is empty or a strip.
        """
        if not isinstance(image, np.ndarray):
            raise ValueError(f"expected an (H, W, 3) uint8 BGR image, got {_no_array(image)}")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"expected an (H, W, 3) uint8 BGR image, got {image.dtype} of shape {image.shape}"
            )
        height, width = size or image.shape[:2]
        if not 0 < max(height, width) <= MAX_ASPECT_RATIO * min(height, width):
            raise ValueError(
                f"an image of {width} x {height} pixels is empty or narrower than "
                f"1:{MAX_ASPECT_RATIO}: leave it out or cut it"
            )
        if self.input_format == "RGB":
            image = image[:, :, ::-1]
        image = self._resize(image, height, width)
        tensor = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return {"image": tensor, "height": height, "width": width}

    def _resize(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        """An image (h, w, 3) at the test size that an image of H x W pixels has."""
        if self.min_size == 0:  # images keep their size
            return image
        longer = self.aug.max_size
        resized = ResizeShortestEdge.get_output_shape(height, width, self.min_size, longer)
        return ResizeTransform(*image.shape[:2], *resized).apply_image(image)


class SCNetPredictor(DefaultPredictor):
    """Detectron2's `DefaultPredictor` for one image or a list of images.

    Attributes:
        class_names: C names of the labels, from `DATASETS.CLASS_NAMES` or the test data set.
        metadata: of the first data set of `DATASETS.TEST`, where there is one.
    """

    def __init__(self, cfg):
        """
        Args:
            cfg: a config with the project's keys; `MODEL.WEIGHTS` names a checkpoint.

        Raises:
            ValueError: if `MODEL.WEIGHTS` is empty, lacks any of the model's tensors or was trained
                for other classes, or the number of names is not the number of classes.
        """
        if not cfg.MODEL.WEIGHTS:
            raise ValueError("MODEL.WEIGHTS is empty: set it to a trained checkpoint")
        self.class_names = class_names(cfg)
        # DefaultPredictor.__init__, but for the checkpointer
        self.cfg = cfg.clone()
        self.model = build_model(self.cfg).eval()
        checkpointer = SCNetCheckpointer(self.model, require_all=True, class_names=self.class_names)
        checkpointer.load(cfg.MODEL.WEIGHTS)
        if cfg.DATASETS.TEST:
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        self.mapper = ImageMapper(cfg)
        self.aug, self.input_format = self.mapper.aug, self.mapper.input_format

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike, device: str | None = None, opts: Sequence[Any] = ()
    ) -> "SCNetPredictor":
        """A predictor of a trained model.

        Args:
            source: name of a model that comes with the package (:mod:`scnet_d2.model_zoo`), folder
                of a model or of a run, or user/name on the Hugging Face hub.
            device: "cpu" or "cuda"; by default the GPU where there is one.
            opts: KEY, VALUE, KEY, VALUE, ...

        Raises:
            ConfigError: if there is no such model; names what is taken.
            CheckpointError: if its weights are damaged or do not fit.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(load_run(source, opts=["MODEL.DEVICE", device, *opts]))

    @cached_property
    def thresholds(self) -> np.ndarray:
        """(C,) score from which on a label is predicted, by the config's `TEST` keys."""
        return label_thresholds(self.cfg, self.class_names)

    def __call__(self, original_image: np.ndarray | Sequence[np.ndarray]) -> dict | list[dict]:
        """Predict the labels of one image, or of a list of images in one batch.

        Args:
            original_image: (H, W, 3) uint8 BGR image, or a list of such images of any sizes.

        Returns:
            The model's output for the image (see `SCNet.forward`), or a list of outputs.

        Raises:
            ValueError: if an image is not (H, W, 3) uint8, is empty or a strip.
        """
        alone = isinstance(original_image, (np.ndarray, str))
        if alone or not isinstance(original_image, Iterable):
            return self.predict([self.mapper(original_image)])[0]
        return self.predict([self.mapper(image) for image in original_image])

    @torch.no_grad()
    def predict(self, inputs: list[dict]) -> list[dict]:
        """The model's outputs for inputs that `mapper` made, in one batch."""
        return self.model(inputs)

    @property
    def size_divisibility(self) -> int:
        """The model pads the sides of a batch of images to a multiple of this."""
        return max(self.model.backbone.size_divisibility, 1)


def _no_array(image: Any) -> str:
    """What was given in the place of an array, and how to get one."""
    if image is None:
        return "None, as cv2.imread gives for a file that it cannot read: check its path"
    if isinstance(image, (str, os.PathLike)):
        return f"the path {os.fspath(image)!r}: read the file with cv2.imread first"
    if isinstance(image, Image.Image):
        return "a PIL image: convert it with np.asarray(image.convert('RGB'))[:, :, ::-1]"
    return f"{type(image).__name__}: convert it to a NumPy array"


def describe_labels(
    output: dict,
    class_names: Sequence[str],
    top_k: int | None = None,
    thresholds: np.ndarray | None = None,
) -> list[dict]:
    """Labels of an image from the highest score down, each with the box that it comes from.

    Args:
        output: the model's output for one image.
        class_names: C names.
        top_k: how many labels at most; all C by default.
        thresholds: (C,); only the labels that are predicted from them on, see
            :func:`scnet_d2.evaluation.predicted`; all labels by default.

    Returns:
        Dicts with `label`, `score`, not rounded (see `rounded_scores`), and `box` and
        `context_box` ([x0, y0, x1, y1] in pixels of the original image), see
        :func:`scnet_d2.evaluation.label_boxes.label_boxes`; None where the label has no box. Where
        boxes choose their context, also `context_ratio`, its sides / those of the box.

    Raises:
        ValueError: if a score is nan or outside [0, 1].
    """
    scores = image_scores(output, len(class_names))
    boxes, context_boxes = label_boxes(output, len(class_names))
    ratios = output.get("label_context_ratios")
    order = np.argsort(-scores, kind="stable")
    if thresholds is not None:
        order = order[predicted(scores[order], thresholds[order])]
    return [
        {
            "label": class_names[c],
            "score": scores[c].item(),
            "box": _rounded(boxes[c]),
            "context_box": _rounded(context_boxes[c]),
        }
        | ({} if ratios is None else {"context_ratio": _ratio(ratios[c].item())})
        for c in order[:top_k].tolist()
    ]


def rounded_scores(labels: Sequence[dict]) -> list[dict]:
    """Labels as they are written: scores of `describe_labels` with four digits."""
    return [label | {"score": round(label["score"], 4)} for label in labels]


def _ratio(ratio: float) -> float | None:
    """An expansion ratio in hundredths, or None for nan."""
    return None if np.isnan(ratio) else round(ratio, 2)


def _rounded(box: np.ndarray) -> list[float] | None:
    """A box (4,) in tenths of a pixel, or None for one of nan."""
    return None if np.isnan(box).any() else [round(v, 1) for v in box.tolist()]
