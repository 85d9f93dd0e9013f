"""SCNet as TorchScript, ONNX or safetensors, and how far a file's outputs are from PyTorch's."""

import importlib
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from os import PathLike
from typing import NamedTuple

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.export import TracingAdapter
from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.modeling import build_model
from safetensors import safe_open
from safetensors.torch import save

from .. import __version__
from ..checkpoint import METADATA_KEY, SCNetCheckpointer
from ..config import add_scnet_config
from ..modeling import SCNet
from ..modeling.roi_heads.context_boxes import best_boxes
from ..outputs import replacing, whole_file
from .predictor import SCNetPredictor
from .run import prediction_config

INPUT_NAME = "image"
METADATA_FILE = "scnet_d2.json"  # in a TorchScript archive
ONNX_OPSET = 17  # RoiAlign is Detectron2's from 16 on
PAIRED_PX = 1.0  # two boxes are the same one if no coordinate differs by more
_EXAMPLE_SIZE = (224, 320)  # of the traced image; the graph holds for any size
_MODULES_WITH_LEN = (
    "scnet_d2.modeling.roi_heads.branches",
    "scnet_d2.modeling.roi_heads.relation",
    "scnet_d2.modeling.roi_heads.scnet_roi_heads",
)


class Outputs(NamedTuple):
    """What an exported model gives for one image, in pixels of the image that it gets."""

    image_scores: torch.Tensor  # (C,) float32 in [0, 1]
    boxes: torch.Tensor  # (K, 4) XYXY of all boxes that the RPN keeps, refined and clipped
    label_scores: torch.Tensor  # (K, C) fused scores in [0, 1]
    context_boxes: torch.Tensor  # (K, 4) XYXY
    label_boxes: torch.Tensor  # (C, 4) XYXY, the box in which a label scores highest, or nan
    label_context_boxes: torch.Tensor  # (C, 4) XYXY, the context box of that box


class Difference(NamedTuple):
    """Largest absolute differences of the outputs for one image."""

    image_scores: float
    num_boxes: int  # K of PyTorch or of the file, the greater
    num_paired: int  # PyTorch's that the file has within PAIRED_PX; the next three are over these
    boxes: float  # px
    label_scores: float
    context_boxes: float  # px


_OF_BOXES = ("boxes", "label_scores", "context_boxes")  # outputs with a row for each of K boxes

Run = Callable[[np.ndarray], Outputs]


def predict_image(model: SCNet, image: torch.Tensor) -> Outputs:
    """What is exported: SCNet for one image, before detections are selected.

    Args:
        model: in evaluation mode.
        image: (H, W, 3) uint8, resized, in the model's `INPUT.FORMAT`.
    """
    images = model.preprocess_image([{"image": image.permute(2, 0, 1)}])
    (image_scores,), (scored,) = model.label_images(images)
    scored.pred_boxes.clip(scored.image_size)
    return Outputs(
        image_scores,
        scored.pred_boxes.tensor,
        scored.label_scores,
        scored.context_boxes.tensor,
        *best_boxes(scored),
    )


def export_metadata(predictor: SCNetPredictor) -> dict:
    """What a program needs to know beside the model; written to every exported file as JSON.

    Returns:
        `class_names` (C), `thresholds` (C) from which on a label is predicted, `input_format` BGR
        or RGB, `min_size` and `max_size`: images are resized to this shorter side in px, or so
        far that the longer side keeps to the second; `version` of scnet_d2.
    """
    return {
        "class_names": list(predictor.class_names),
        "thresholds": predictor.thresholds.tolist(),
        "input_format": predictor.input_format,
        "min_size": predictor.cfg.INPUT.MIN_SIZE_TEST,
        "max_size": predictor.cfg.INPUT.MAX_SIZE_TEST,
        "version": __version__,
    }


def export_torchscript(predictor: SCNetPredictor, file: str | PathLike) -> None:
    """Trace the model, on its own device, and save it with the metadata in `METADATA_FILE`.

    Raises:
        TypeError: if the model is no SCNet.
    """
    adapter = _traceable(predictor.model)
    with _tracing():
        # check_trace would compare the traced size alone; `output_difference` is for any.
        traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
        extra = {METADATA_FILE: json.dumps(export_metadata(predictor))}
        with whole_file(file, keep_suffix=True) as partial:
            torch.jit.save(traced, str(partial), _extra_files=extra)


def export_onnx(predictor: SCNetPredictor, file: str | PathLike) -> None:
    """Save the model as ONNX with the metadata under `METADATA_KEY`.

    Raises:
        ImportError: without onnx.
        TypeError: if the model is no SCNet.
    """
    onnx = _require("onnx")
    adapter = _traceable(predictor.model)
    with whole_file(file, keep_suffix=True) as partial, _tracing():
        torch.onnx.export(
            adapter,
            adapter.flattened_inputs,
            str(partial),
            dynamo=False,  # torch.export stops at the branches in Detectron2's layers
            opset_version=ONNX_OPSET,
            input_names=[INPUT_NAME],
            output_names=list(Outputs._fields),
            dynamic_axes={INPUT_NAME: {0: "height", 1: "width"}}
            | {name: {0: "num_boxes"} for name in _OF_BOXES},
        )
        model = onnx.load(str(partial))
        onnx.checker.check_model(model)
        metadata = {METADATA_KEY: json.dumps(export_metadata(predictor))}
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, str(partial))


def export_safetensors(predictor: SCNetPredictor, file: str | PathLike) -> None:
    """Save the weights, with the metadata under `METADATA_KEY` and the config under `config`.

    Raises:
        TypeError: if the model is no SCNet.
    """
    _check_is_scnet(predictor.model)
    write_safetensors(predictor, file)


def write_safetensors(predictor: SCNetPredictor, file: str | PathLike, *, half=False) -> None:
    """As `export_safetensors`, of any model; with `half` in float16.

    Norms and biases, which are small and count most, and what float16 cannot hold, stay as they
    are.
    """
    config = yaml.safe_dump(prediction_config(predictor.cfg))
    metadata = {METADATA_KEY: json.dumps(export_metadata(predictor)), "config": config}
    state = predictor.model.state_dict()
    tensors = {k: (_half(v) if half else v).contiguous() for k, v in state.items()}
    with replacing(file) as output:
        output.write(save(tensors, metadata))


def _half(tensor: torch.Tensor) -> torch.Tensor:
    half = tensor.half()
    matrix = tensor.is_floating_point() and tensor.ndim > 1
    return half if matrix and torch.equal(half.isfinite(), tensor.isfinite()) else tensor


def load_torchscript(file: str | PathLike) -> tuple[Run, dict]:
    """The exported model, as a function of an (H, W, 3) uint8 image, and its metadata."""
    extra = {METADATA_FILE: ""}
    with _tracing():
        model = torch.jit.load(str(file), map_location="cpu", _extra_files=extra)

    def run(image: np.ndarray) -> Outputs:
        return Outputs(*model(_tensor(image)))

    return run, json.loads(extra[METADATA_FILE])


def load_onnx(file: str | PathLike) -> tuple[Run, dict]:
    """The exported model in onnxruntime on the CPU, as `load_torchscript` returns it.

    Raises:
        ImportError: without onnxruntime.
    """
    onnxruntime = _require("onnxruntime")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def run(image: np.ndarray) -> Outputs:
        return Outputs(*map(torch.from_numpy, session.run(None, {INPUT_NAME: image})))

    return run, json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])


def load_safetensors(file: str | PathLike) -> tuple[Run, dict]:
    """The model of a file of `export_safetensors`, built from the file alone, on the CPU."""
    with safe_open(str(file), "pt") as f:
        metadata = f.metadata()
    cfg = get_cfg()
    add_scnet_config(cfg)
    cfg.merge_from_other_cfg(CfgNode.load_cfg(metadata["config"]))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    SCNetCheckpointer(model, require_all=True).load(str(file))
    return pytorch_run(model), json.loads(metadata[METADATA_KEY])


def pytorch_run(model: SCNet) -> Run:
    """The model itself as a function of an (H, W, 3) uint8 image."""

    @torch.no_grad()
    def run(image: np.ndarray) -> Outputs:
        return Outputs(*(x.cpu() for x in predict_image(model, _tensor(image))))

    return run


def output_difference(expected: Outputs, actual: Outputs) -> Difference:
    """Compare two outputs for the same image; each box with the nearest one of the other.

    Boxes of nearly equal objectness may change places, and NMS may keep another one, where two
    programs round differently.

    Args:
        expected: PyTorch's, with K boxes.
        actual: the exported file's, of any number of boxes.
    """
    image_scores = _largest(expected.image_scores, actual.image_scores)
    rows, others = (
        torch.cat([x.boxes, x.context_boxes, x.label_scores], 1) for x in (expected, actual)
    )
    num_boxes = max(len(rows), len(others))
    if not len(rows) or not len(others):
        return Difference(image_scores, num_boxes, 0, 0.0, 0.0, 0.0)
    distance, nearest = torch.cdist(rows, others, p=torch.inf).min(dim=1)  # (K,)
    paired = distance <= PAIRED_PX
    pairs = [(getattr(expected, f), getattr(actual, f)) for f in _OF_BOXES]
    differences = [_largest(x[paired], y[nearest[paired]]) for x, y in pairs]
    return Difference(image_scores, num_boxes, int(paired.sum()), *differences)


def _tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy())  # which PyTorch may write to, whatever the strides


def _largest(x: torch.Tensor, y: torch.Tensor) -> float:
    return (x - y).abs().max().item() if x.numel() else 0.0


def _traceable(model: torch.nn.Module) -> TracingAdapter:
    _check_is_scnet(model)
    model = deepcopy(model).requires_grad_(False)  # or the traced model would record gradients
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (*_EXAMPLE_SIZE, 3), dtype=torch.uint8, generator=generator)
    return TracingAdapter(model, image, predict_image).eval()


def _check_is_scnet(model: torch.nn.Module) -> None:
    if not isinstance(model, SCNet):
        name = type(model).__name__
        raise TypeError(f"MODEL.META_ARCHITECTURE is {name}: SCNet alone can be exported")


@contextmanager
def _tracing() -> Iterator[None]:
    """Numbers of boxes stay variables while SCNet is traced; no warnings of what is meant.

    Tracing warns of every assertion and check of an error in Detectron2, whose outcome it freezes,
    of negative indices, which SCNet has none of, and that TorchScript is deprecated.
    """
    with warnings.catch_warnings(), patch_builtin_len(_MODULES_WITH_LEN):
        for category in (torch.jit.TracerWarning, FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", category)
        for message in ("Exporting aten::index operator", "Constant folding"):
            warnings.filterwarnings("ignore", message, UserWarning)
        yield


def _require(package: str):
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{package} is not installed: pip install 'scnet_d2[export]'") from error
