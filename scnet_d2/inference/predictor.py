"""Labels of single images, with the boxes that they come from."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

from ..checkpoint import SCNetCheckpointer
from ..evaluation.evidence import best_box
from ..evaluation.thresholds import label_thresholds


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
            ValueError: if `MODEL.WEIGHTS` is empty, or lacks any of the model's tensors, or the
                number of names is not the number of classes.
        """
        if not cfg.MODEL.WEIGHTS:
            raise ValueError("MODEL.WEIGHTS is empty: set it to a trained checkpoint")
        self.class_names = _class_names(cfg)
        # DefaultPredictor.__init__, but for the checkpointer
        self.cfg = cfg.clone()
        self.model = build_model(self.cfg).eval()
        SCNetCheckpointer(self.model, require_all=True).load(cfg.MODEL.WEIGHTS)
        if cfg.DATASETS.TEST:
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        size = cfg.INPUT.MIN_SIZE_TEST
        self.aug = ResizeShortestEdge([size, size], cfg.INPUT.MAX_SIZE_TEST)
        self.input_format = cfg.INPUT.FORMAT

    @cached_property
    def thresholds(self) -> np.ndarray:
        """(C,) score from which on a label is predicted, by the config's `TEST` keys."""
        return label_thresholds(self.cfg, self.class_names)

    @torch.no_grad()
    def __call__(self, original_image: np.ndarray | Sequence[np.ndarray]) -> dict | list[dict]:
        """Predict the labels of one image, or of a list of images in one batch.

        Args:
            original_image: (H, W, 3) uint8 BGR image, or a list of such images of any sizes.

        Returns:
            The model's output for the image (see `SCNet.forward`), or a list of outputs.

        Raises:
            ValueError: if an image is not (H, W, 3) uint8.
        """
        if isinstance(original_image, np.ndarray):
            return self.model([self._input(original_image)])[0]
        return self.model([self._input(image) for image in original_image])

    def _input(self, image: np.ndarray) -> dict:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"expected an (H, W, 3) uint8 BGR image, got {image.dtype} of shape {image.shape}"
            )
        height, width = image.shape[:2]
        if self.input_format == "RGB":
            image = image[:, :, ::-1]
        image = self.aug.get_transform(image).apply_image(image)
        tensor = torch.as_tensor(image.astype("float32").transpose(2, 0, 1))
        return {"image": tensor, "height": height, "width": width}


def _class_names(cfg) -> list[str]:
    names = list(cfg.DATASETS.CLASS_NAMES)
    if not names and cfg.DATASETS.TEST:
        names = MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("thing_classes") or []
    if len(names) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise ValueError(
            f"{len(names)} class names for {cfg.MODEL.ROI_HEADS.NUM_CLASSES} classes: use the "
            "config.yaml of the training run, or set DATASETS.CLASS_NAMES"
        )
    return names


def describe_labels(
    output: dict, class_names: Sequence[str], top_k: int | None = None
) -> list[dict]:
    """Labels of an image from the highest score down, each with the box that it comes from.

    Args:
        output: the model's output for one image.
        class_names: C names.
        top_k: how many labels at most; all C by default.

    Returns:
        Dicts with `label`, `score`, and `box` and `context_box` ([x0, y0, x1, y1] in pixels of the
        original image): of the detection in which the label scores highest, or None where nothing
        was detected, or the model predicts image scores alone.
    """
    scores = output["image_scores"].cpu()
    instances = output["instances"].to("cpu") if "instances" in output else None
    order = scores.argsort(descending=True, stable=True)[:top_k].tolist()
    return [
        {"label": class_names[c], "score": round(scores[c].item(), 4)} | _evidence(instances, c)
        for c in order
    ]


def _evidence(instances, class_id: int) -> dict:
    best = None if instances is None else best_box(instances, class_id)
    if best is None:
        return {"box": None, "context_box": None}
    return {
        "box": _rounded(instances.pred_boxes.tensor[best]),
        "context_box": _rounded(instances.context_boxes.tensor[best]),
    }


def _rounded(box: torch.Tensor) -> list[float]:
    return [round(v, 1) for v in box.tolist()]
