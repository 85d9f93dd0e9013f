"""Detectron2's checkpointer with safe reading, SCNet's names, a loading table and checks."""

import logging
import os
import re
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from fvcore.common.checkpoint import _strip_prefix_if_present

from .classes import check_trained_classes, trained_class_names
from .files import (
    CLASS_NAMES,
    BrokenCheckpointError,
    CheckpointError,
    read_checkpoint,
    replace_file,
)
from .load_report import LoadReport
from .names import convert_detector, match_suffixes, rename_former, why_left_out
from .timm_weights import convert_timm

logger = logging.getLogger(__name__)
_MATCHING = "?matching_heuristics=True"
_NUMBERED = re.compile(r"model_\d{7,}\.pth")


class SCNetCheckpointer(DetectionCheckpointer):
    """Loads weights into SCNet, or into any model of Detectron2's; see docs/weights.md.

    Attributes:
        report: what the last `load` did.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        save_dir: str = "",
        *,
        init_trunk: bool = True,
        require_all: bool = False,
        class_names: Sequence[str] = (),
        kept: int = 0,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ):
        """
        Args:
            model: the model.
            save_dir: folder to save checkpoints in and to resume from.
            init_trunk: put a detector's box head into those of both branches.
            require_all: refuse files that lack any of the model's tensors (evaluation, prediction).
            class_names: C names, which are saved with the weights. Where `require_all` holds, and
                to resume, files of other names are refused; none: nothing is compared.
            kept: number of `model_<iteration>.pth` that stay, the newest ones; 0: all.
            save_to_disk: by default on the main process alone.
            checkpointables: further objects with `state_dict` and `load_state_dict`.
        """
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.init_trunk = init_trunk
        self.require_all = require_all
        self.class_names = list(class_names)
        self.kept = kept
        self.report: LoadReport | None = None

    def load(self, path: str | None, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a file, URL or catalogue name; an empty path loads nothing.

        A path that ends in `?matching_heuristics=True` has its names matched as suffixes.

        Returns:
            What the checkpoint holds beyond the model and `checkpointables`.

        Raises:
            CheckpointError: if the file is absent, broken, unsafe or does not fit.
        """
        path = path or ""
        self._match_suffixes = path.endswith(_MATCHING)
        path = path.removesuffix(_MATCHING)
        self.report = LoadReport(path)
        if path:
            path = _local_file(path)
        return super().load(path, checkpointables)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume from the last checkpoint of `save_dir` that can be read, or load `path`.

        Raises:
            CheckpointError: if a checkpoint does not fit the model, or none can be read.
        """
        files = self.resumable() if resume else []
        if not files:
            if resume:
                start = path or "random weights"
                logger.warning("%s holds no checkpoint: starting from %s", self.save_dir, start)
            return self.load(path, checkpointables=[])
        self.require_all = True
        for file in files:
            try:
                return self.load(file)
            except BrokenCheckpointError as error:
                logger.warning("%s. Looking for the checkpoint before it.", error)
        raise CheckpointError(
            f"{self.save_dir}: none of its checkpoints can be read; start anew in another folder"
        )

    def has_checkpoint(self) -> bool:
        """Whether `save_dir` holds a checkpoint to resume from."""
        return bool(self.resumable())

    def resumable(self) -> list[str]:
        """Checkpoints of the run, the last one first."""
        marked = self.get_checkpoint_file() if super().has_checkpoint() else ""
        final = os.path.join(self.save_dir, "model_final.pth")
        ordered = dict.fromkeys([marked, final, *sorted(self._numbered(), reverse=True)])
        return [file for file in ordered if os.path.isfile(file)]

    def _numbered(self) -> list[str]:
        """Checkpoints `model_<iteration>.pth`."""
        if not os.path.isdir(self.save_dir):
            return []
        names = filter(_NUMBERED.fullmatch, os.listdir(self.save_dir))
        return [os.path.join(self.save_dir, name) for name in names]

    def save(self, name: str, **kwargs: Any) -> None:
        """Save a checkpoint as `<name>.pth` and mark it as the last one.

        A run that is killed meanwhile leaves the checkpoints before it, and the mark, as they were.

        Raises:
            CheckpointError: if it cannot be written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        self.save_unmarked(name, **kwargs)
        self.tag_last_checkpoint(f"{name}.pth")
        if self.kept:
            # By age: of a run that went back to an earlier checkpoint, later numbers may be older.
            for old in sorted(self._numbered(), key=os.path.getmtime)[: -self.kept]:
                os.remove(old)

    def save_unmarked(self, name: str, **kwargs: Any) -> None:
        """Save as `save` does, but leave the mark and all other checkpoints as they are.

        Raises:
            CheckpointError: if it cannot be written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: x.state_dict() for key, x in self.checkpointables.items()}
        contents = {"model": self.model.state_dict(), **states, **kwargs}
        if self.class_names:
            contents[CLASS_NAMES] = self.class_names
        path = os.path.join(self.save_dir, f"{name}.pth")
        logger.info("Saving checkpoint to %s", path)
        replace_file(path, lambda file: torch.save(contents, file))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name of the last checkpoint to the file `last_checkpoint`."""
        path = os.path.join(self.save_dir, "last_checkpoint")
        replace_file(path, lambda file: file.write(last_filename_basename.encode()))

    def _load_file(self, filename: str) -> dict[str, Any]:
        checkpoint = read_checkpoint(filename)
        if self.require_all:
            trained = trained_class_names(checkpoint, filename)
            check_trained_classes(self.report.file, trained, self.class_names)
        if self._match_suffixes:
            checkpoint["matching_heuristics"] = True
        return checkpoint

    def _load_model(self, checkpoint: dict[str, Any]):
        report, model_state = self.report, self.model.state_dict()
        state = self._rename(checkpoint, model_state)
        rename_former(state, model_state)
        convert_timm(state, self.model)
        conversion = convert_detector(state, model_state, self.init_trunk)
        checkpoint["model"] = state
        incompatible = super()._load_model(checkpoint)  # takes tensors of wrong shape out of state

        report.loaded = [n for n in model_state if n in state and _counts(n)]
        report.wrong_shape = {n: shapes for n, *shapes in incompatible.incorrect_shapes}
        absent = _without_aliases(model_state, state.keys() | report.wrong_shape)
        missing = {*incompatible.missing_keys, *_without_weight(absent, report.loaded)}
        report.missing = [n for n in absent if n in missing]
        report.filled = [n for n in absent if n not in missing]
        report.sources = conversion.sources
        unused = [n for n in state if n not in model_state and _counts(n)]
        report.left_out = conversion.left_out | {n: why_left_out(n) for n in unused}
        self._check()
        return incompatible

    def _rename(self, checkpoint: dict[str, Any], model_state) -> dict[str, torch.Tensor]:
        state = checkpoint["model"]
        self._convert_ndarray_to_tensor(state)
        _strip_prefix_if_present(state, "module.")
        if not checkpoint.pop("matching_heuristics", False):
            return state
        try:
            return match_suffixes(state, model_state, checkpoint.get("__author__") == "Caffe2")
        except ValueError as error:
            raise CheckpointError(
                f"{self.report.file}: a name in it ends several names of the model; name its "
                "tensors as the model does (`scnet convert` for torchvision's)"
            ) from error

    def _check(self) -> None:
        logger.info("%s", self.report)
        self.report.check_fits()
        if self.require_all:
            self.report.check_complete()
        for part in self.report.partly_loaded():
            logger.warning(
                "%s is loaded in part and random in part: is %s the network that MODEL.RESNETS and "
                "MODEL.FPN describe?", part, self.report.file,
            )  # fmt: skip

    def _log_incompatible_keys(self, incompatible) -> None:
        """Nothing: the loading table has said it."""


def _local_file(path: str) -> str:
    """Local copy of a file, URL or catalogue name."""
    remedy = "check MODEL.WEIGHTS, or download the file and set MODEL.WEIGHTS to its path"
    try:
        local = PathManager.get_local_path(path)
    except Exception as error:  # whatever a download or a catalogue raises
        raise CheckpointError(
            f"weights {path} cannot be had ({type(error).__name__}: {error}); {remedy}"
        ) from error
    if not os.path.isfile(local):
        raise CheckpointError(f"weights {path}: there is no such file; {remedy}")
    return local


def _counts(name: str) -> bool:
    """False for what tells nothing about weights: batch counts, and pixel statistics (config)."""
    return name.rsplit(".", 1)[-1] not in ("num_batches_tracked", "pixel_mean", "pixel_std")


def _without_weight(names: list[str], loaded: list[str]) -> list[str]:
    """The biases and statistics of layers that got no weight from the file."""
    return [n for n in names if n.rsplit(".", 1)[0] + ".weight" not in loaded]


def _without_aliases(model_state, found) -> list[str]:
    """The model's tensors that were not found, under no name of a shared tensor."""
    shared = {model_state[n].data_ptr() for n in found if n in model_state}
    return [
        n
        for n, tensor in model_state.items()
        if n not in found and _counts(n) and tensor.data_ptr() not in shared
    ]
