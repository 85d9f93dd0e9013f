"""Labels of many image files: reading in worker processes, prediction in batches."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import stat
import threading
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ..data import ImageError, read_image, read_reduced
from ..inference.optimize import optimize_for_inference
from ..inference.predictor import ImageMapper, SCNetPredictor, describe_labels, rounded_scores

MAX_PIXELS = 178_956_970  # from here on Pillow itself refuses an image as a decompression bomb
_BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)
_BATCHES = 8  # of a chunk


@dataclass(frozen=True)
class TagOptions:
    """What is said about each image.

    Attributes:
        thresholds: (C,) least score of each label.
        top_k: most labels of an image; None for no limit.
        batch_size: most images that go through the model together.
        max_pixels: a larger image is not decoded.
        dtype: "float32" or "bfloat16" to have the model optimised, see `optimize_for_inference`.
        backend: of the optimised model; None for "auto". With one, `dtype` is "float32" by default.
        fast_jpeg: decode large JPEG files smaller, see :class:`ImageReader`.
    """

    thresholds: np.ndarray
    top_k: int | None = None
    batch_size: int = 8
    max_pixels: int = MAX_PIXELS
    dtype: str | None = None
    backend: str | None = None
    fast_jpeg: bool = False

    @property
    def chunk_size(self) -> int:
        """Number of images that are finished together."""
        return _BATCHES * self.batch_size


def build_predictor(cfg: CfgNode, options: TagOptions) -> SCNetPredictor:
    """The model of every engine."""
    predictor = SCNetPredictor(cfg)
    if options.dtype or options.backend:
        dtype = getattr(torch, options.dtype or "float32")
        optimize_for_inference(predictor.model, dtype, backend=options.backend or "auto")
    return predictor


class ImageReader(Dataset):
    """Reads image files; what is wrong with one becomes its `error` and stops nothing."""

    def __init__(
        self, mapper: ImageMapper, max_pixels: int = MAX_PIXELS, *, fast_jpeg: bool = False
    ):
        """
        Args:
            mapper: makes the model's input of an image.
            max_pixels: a larger image is not decoded.
            fast_jpeg: decode a JPEG file at a half, a quarter or an eighth, where that leaves at
                least twice the sides of the model's input.
        """
        self.mapper = mapper
        self.max_pixels = max_pixels
        self.fast_jpeg = fast_jpeg

    def __getitem__(self, file: str) -> dict:
        """`file`, `image` (3, H', W') uint8, `height` and `width`; or `file` and `error`."""
        try:
            model_input = self.mapper(*self._read(file))
        except Exception as error:  # decoders raise nearly anything on damaged files
            return {"file": file, "error": f"{type(error).__name__}: {error}"}
        # An array goes through a pipe. A tensor would take shared memory and an open file, both
        # of which are few on many machines.
        return {"file": file, **model_input, "image": model_input["image"].numpy()}

    def _read(self, file: str) -> tuple[np.ndarray, ...]:
        """Arguments for the mapper."""
        if not stat.S_ISREG(os.stat(file).st_mode):  # a pipe or a device might never end
            raise ValueError("not a regular file")
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, self.max_pixels
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                if self.fast_jpeg and self.mapper.min_size:
                    return read_reduced(file, "BGR", 2 * self.mapper.min_size)
                return (read_image(file, "BGR"),)
        except ImageError as error:
            if isinstance(error.__cause__, _BOMBS):
                raise ImageError(f"more than {self.max_pixels} pixels, see --max-pixels") from error
            raise
        finally:
            Image.MAX_IMAGE_PIXELS = before


class BatchTagger:
    """Tags images in batches of one padded size.

    The images of a batch are padded to the largest, and padding changes scores. With images that
    are padded to the same size anyway, an image's labels do not depend on its neighbours.
    """

    def __init__(self, predictor: SCNetPredictor, options: TagOptions):
        """
        Args:
            predictor: the model.
            options: what is said about each image.
        """
        self.predictor = predictor
        self.options = options

    def __call__(self, samples: Iterable[dict]) -> list[dict]:
        """Records of one chunk of images.

        Args:
            samples: as `ImageReader` gives them; drawn one by one.

        Returns:
            For each sample, in the same order, `file`, `width`, `height` and `labels` as
            `describe_labels` gives them, or `file` and `error`.
        """
        records = []
        batches = defaultdict(list)
        for sample in samples:
            records.append({"file": sample["file"]})
            if "error" in sample:
                records[-1]["error"] = sample["error"]
                continue
            batch = batches[self._padded_size(sample["image"])]
            batch.append((records[-1], sample))
            if len(batch) == self.options.batch_size:
                self._tag(batch)
                batch.clear()
        for batch in filter(None, batches.values()):
            self._tag(batch)
        _return_free_memory()
        return records

    def _padded_size(self, image: np.ndarray) -> tuple[int, ...]:
        return tuple(-(-side // self.predictor.size_divisibility) for side in image.shape[1:])

    def _tag(self, batch: list[tuple[dict, dict]]) -> None:
        """Predict, and complete the records."""
        inputs = [sample | {"image": torch.as_tensor(sample["image"])} for _, sample in batch]
        names, options = self.predictor.class_names, self.options
        for (record, sample), output in zip(batch, self.predictor.predict(inputs), strict=True):
            try:
                labels = describe_labels(output, names, options.top_k, options.thresholds)
            except ValueError as error:  # scores that are not numbers
                record["error"] = f"{type(error).__name__}: {error}"
                continue
            record |= {"width": sample["width"], "height": sample["height"]}
            record["labels"] = rounded_scores(labels)


@contextmanager
def tag_locally(
    cfg: CfgNode, files: Iterable[str], options: TagOptions, *, workers: int
) -> Iterator[Iterator[list[dict]]]:
    """Tag image files on this machine.

    Args:
        cfg: a config with `MODEL.WEIGHTS`.
        files: paths, drawn as they are needed.
        options: what is said about each image.
        workers: processes that read images; 0 reads them in this one.

    Yields:
        An iterator of the records of one chunk of files after the other, see `BatchTagger`.
    """
    tag = BatchTagger(build_predictor(cfg, options), options)
    loader = DataLoader(
        ImageReader(ImageMapper(cfg), options.max_pixels, fast_jpeg=options.fast_jpeg),
        batch_size=None,
        sampler=files,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=_start_worker,
        prefetch_factor=max(2, -(-2 * options.batch_size // workers)) if workers else None,
    )
    yield _chunks(tag, iter(loader), options.chunk_size)


def _return_free_memory() -> None:
    """Have glibc give free memory back: among tensors of many sizes its heap grows for ever."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _chunks(tag: BatchTagger, samples: Iterator[dict], size: int) -> Iterator[list[dict]]:
    while records := tag(islice(samples, size)):
        yield records


def _unchanged(sample: dict) -> dict:
    return sample


def _start_worker(worker: int) -> None:
    """Leave ^C, which reaches all processes of a terminal, to the main process; end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # a killed process cannot end its workers, and they would wait for ever to hand over images
    multiprocessing.parent_process().join()
    os._exit(1)
