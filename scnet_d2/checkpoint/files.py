"""Checkpoint files: written whole or not at all, read without running what they contain."""

import json
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ..outputs import PARTIAL, replacing

CLASS_NAMES = "class_names"  # key of a checkpoint
METADATA_KEY = "scnet_d2"  # of the JSON in the metadata of safetensors and ONNX
# What a run writes to its folder, while it is being written.
_PARTIAL_OF_A_RUN = re.compile(
    rf"(.+\.pth|last_checkpoint|metrics\.json|config\.yaml)(\.\d+)?{re.escape(PARTIAL)}"
)


class CheckpointError(ValueError):
    """A checkpoint is absent, broken or does not fit; the message names the file and the remedy."""


class BrokenCheckpointError(CheckpointError):
    """A checkpoint file is truncated, damaged or no checkpoint."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint asks for more than arrays and plain containers; nothing of it was run."""


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a `.pkl`, `.pyth` (pycls), `.safetensors` or else torch (`.pth`) checkpoint.

    Args:
        path: a local file.

    Returns:
        `model`, name → array or tensor; `matching_heuristics` True where the names are suffixes of
        the model's; `__author__` in `.pkl` files; `class_names` where the file tells them; what
        else a trainer saved.

    Raises:
        UnsafeCheckpointError: naming the global that is not allowed.
        BrokenCheckpointError: if the file is truncated or no checkpoint.
        CheckpointError: if it holds no tensors.
    """
    readers = {".pkl": _read_pkl, ".pyth": _read_pycls, ".safetensors": _read_safetensors}
    read = readers.get(os.path.splitext(path)[1], _read_pth)
    try:
        checkpoint = read(path)
    except (CheckpointError, MemoryError, OSError):
        raise
    except Exception as error:  # unpicklers raise nearly anything on damaged files
        first_line = str(error).split("\n")[0]
        raise BrokenCheckpointError(
            f"{path} cannot be read ({type(error).__name__}: {first_line}): the file is truncated "
            "or no checkpoint; copy or download it again"
        ) from error
    _check_tensors(path, checkpoint["model"])
    return checkpoint


def replace_file(path: str, write: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all, as `scnet_d2.outputs.replacing` does.

    Args:
        path: a local path.
        write: writes the contents to an open file.

    Raises:
        CheckpointError: the file cannot be written; what was there before is left as it is.
    """
    try:
        with replacing(path) as file:
            write(file)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
        first_line = str(error).split("\n")[0]
        raise CheckpointError(
            f"{path} cannot be written ({type(error).__name__}: {first_line}); earlier checkpoints "
            "are intact. Make room or choose a folder that can be written to, then go on with "
            "--resume"
        ) from error


def remove_partial_files(folder: str) -> None:
    """Remove what `replace_file` left of a run's files in its folder when the run was killed."""
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        if _PARTIAL_OF_A_RUN.fullmatch(name):
            os.remove(os.path.join(folder, name))


def _encode_latin1(text: str, encoding: str) -> bytes:
    """How numpy arrays write their bytes under pickle protocols 0 to 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"_codecs.encode to {encoding}")
    return text.encode("latin1")


class _NumericDtype:
    """Stands for a numpy dtype: numpy's own takes flags that have bytes read as pointers."""

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "biufc":
            raise pickle.UnpicklingError(f"array or scalar of {self.dtype}, which is no number")

    def __setstate__(self, state: tuple):
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _NumericArray(np.ndarray):
    """A numpy array while it is unpickled."""

    def __setstate__(self, state: tuple):
        *_, shape, dtype, fortran, data = state
        super().__setstate__((1, shape, dtype.dtype, fortran, data))


def _new_array(subtype: type, shape: tuple, code: bytes) -> _NumericArray:
    return _NumericArray(0, "b")


def _new_scalar(dtype: _NumericDtype, data: bytes | str) -> np.generic:
    data = data.encode("latin1") if isinstance(data, str) else data  # Python 2's
    return np.frombuffer(data, dtype.dtype)[0]


def _array_from_buffer(data, dtype: _NumericDtype, shape: tuple, order: str) -> np.ndarray:
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("_codecs", "encode"): _encode_latin1,
    ("numpy", "ndarray"): _NumericArray,
    ("numpy", "dtype"): _NumericDtype,
    # numpy 1 writes "core", numpy 2 "_core"
    ("numpy.core.multiarray", "_reconstruct"): _new_array,
    ("numpy._core.multiarray", "_reconstruct"): _new_array,
    ("numpy.core.multiarray", "scalar"): _new_scalar,
    ("numpy._core.multiarray", "scalar"): _new_scalar,
    ("numpy.core.numeric", "_frombuffer"): _array_from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _array_from_buffer,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and plain containers alone."""

    def find_class(self, module: str, name: str) -> Any:
        """Look a global up in the allow-list; nothing is imported."""
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _unsafe(self.path, f"{module}.{name}") from None


def _unsafe(path: str, name: str) -> UnsafeCheckpointError:
    return UnsafeCheckpointError(
        f"{path} refused: its pickle asks for '{name}', and only arrays and plain containers are "
        "loaded, so that no checkpoint can run code. If you trust the file, save its tensors anew "
        "as .pth or .safetensors in a program of your own"
    )


def _unpickle(path: str) -> Any:
    with open(path, "rb") as f:
        unpickler = _ArrayUnpickler(f, encoding="latin1")  # Caffe2's files are Python 2's
        unpickler.path = path
        return unpickler.load()


def _torch_load(path: str) -> Any:
    """`torch.load` of weights alone; Detectron2's trainer states need no further globals."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        if forbidden:
            raise _unsafe(path, forbidden[1]) from None
        return _unpickle(path)  # a plain pickle with torch's file ending


def _read_pkl(path: str) -> dict[str, Any]:
    """Detectron2's zoo has `model`; Caffe2's files have `blobs` or the bare arrays."""
    data = _unpickle(path)
    if isinstance(data.get("model"), dict):
        return data
    blobs = data.get("blobs", data)
    model = {k: v for k, v in blobs.items() if not k.endswith("_momentum")}
    return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}


def _read_pycls(path: str) -> dict[str, Any]:
    model = _torch_load(path)["model_state"]
    return {"model": model, "__author__": "pycls", "matching_heuristics": True}


def _read_safetensors(path: str) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        metadata = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
    return {"model": load_file(path), CLASS_NAMES: metadata.get(CLASS_NAMES)}


def _read_pth(path: str) -> dict[str, Any]:
    data = _torch_load(path)
    if "model" not in data and isinstance(data.get("state_dict"), dict):
        return {"model": data["state_dict"]}  # of the many programs that name it so
    return data if "model" in data else {"model": data}


def _check_tensors(path: str, model: Any) -> None:
    if not isinstance(model, dict) or not model:
        raise CheckpointError(f"{path} holds no tensors by name: give a checkpoint of weights")
    for name, value in model.items():
        numeric = isinstance(value, np.ndarray) and value.dtype.kind in "biufc"
        if not (numeric or isinstance(value, torch.Tensor)):
            raise CheckpointError(
                f"{path}: '{name}' is no tensor but {type(value).__name__}; save the state dict "
                "alone, or under the key 'model'"
            )
