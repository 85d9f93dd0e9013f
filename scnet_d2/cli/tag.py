"""Tag any number of images: files, folders or a list in, JSON lines, CSV or COCO json out.

A run that was cut off goes on with the same command. An image that cannot be read gets an "error"
instead of labels and stops nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import logging
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from tqdm import tqdm

from .. import __version__
from ..data.problems import counted
from ..evaluation import label_thresholds
from ..inference import load_arguments
from ..inference.run import class_names
from ..tagging.inputs import ImageFinder, InputList, read_list
from ..tagging.local_engine import MAX_PIXELS, TagOptions, tag_locally
from ..tagging.output import FORMATS, TagOutput
from ..tagging.ray_engine import tag_with_ray


class UsageError(ValueError):
    """The command cannot be run as it stands; nothing was done."""


@dataclass
class Counts:
    """Numbers of the command's images, in earlier runs and this one, and of the output's others."""

    total: int
    done: int = 0
    failed: int = 0
    others: int = 0  # images of the output that are none of the command's
    others_failed: int = 0


def run(args: argparse.Namespace) -> int:
    """Tag images; returns the exit status that `scnet tag --help` describes.

    Raises:
        UsageError: before anything is done.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ^C
    try:
        return tag(args)
    except UsageError:
        raise
    except KeyboardInterrupt:
        return _say(f"\nInterrupted. To go on: {args.command_line}", 130)
    except Exception as error:
        remedy = _remedy(error)
        if remedy is None:
            traceback.print_exc()
        return _say(f"\nscnet tag: {error}\nTo go on{remedy or ''}: {args.command_line}", 3)
    finally:
        signal.signal(signal.SIGTERM, before)


def tag(args: argparse.Namespace) -> int:
    """Tag what is not yet done and write the output; returns 1 where images failed, else 0.

    Raises:
        UsageError: before anything is done.
    """
    start = time.perf_counter()
    with ExitStack() as stack:
        with _as_usage_errors():
            # the machines of a cluster may have what this one lacks
            local = args.engine == "local"
            cfg = load_arguments(args, device_of_this_machine=local)
            names = class_names(cfg)
            options = tag_options(args, cfg, names)
            inputs = list_inputs(args)
            file_format = args.format or _format_of(args.output)
            settings = tag_settings(cfg, options, names) | {"format": file_format}
            output = stack.enter_context(TagOutput(Path(args.output), file_format, settings))
            counts, repeated = _done(output, inputs, options.chunk_size, args.retry_failed)
            if earlier := counts.done:
                _say(f"in {output.lines} already: {earlier:,} of {counted(counts.total, 'image')}")
            if earlier < counts.total:
                files = itertools.chain(repeated, inputs.pending())
                chunks = stack.enter_context(_engine(args, cfg, files, options))
        if earlier < counts.total:
            _append(chunks, len(repeated), output, counts)
        output.write_result(names)
    seconds = time.perf_counter() - start
    new = counts.done - earlier
    failed = counts.failed + counts.others_failed
    others = f"; {counts.others:,} of other commands" if counts.others else ""
    _say(
        f"{counted(counts.done + counts.others - failed, 'image')} tagged, {failed:,} failed "
        f"({new:,} in this run, {seconds:.1f} s, {new / seconds:.1f} images/s{others}): "
        f"{args.output}"
    )
    if failed:
        _say(f'what is wrong with each of those that failed: "error" in {args.output}')
    return 1 if counts.failed else 0


def tag_options(args: argparse.Namespace, cfg: CfgNode, names: list[str]) -> TagOptions:
    """The thresholds of the command, else of the config, and the command's other options."""
    if args.threshold is None:
        thresholds = label_thresholds(cfg, names)
    else:
        thresholds = np.full(len(names), args.threshold)
    max_pixels = args.max_pixels or MAX_PIXELS
    return TagOptions(
        thresholds, args.top_k, args.batch_size, max_pixels, args.dtype, args.backend,
        args.fast_jpeg,
    )  # fmt: skip


def tag_settings(cfg: CfgNode, options: TagOptions, names: list[str]) -> dict[str, Any]:
    """All that the labels depend on: weights by their SHA-256, config, thresholds, version."""
    model = {k: v for k, v in cfg.MODEL.items() if k not in ("WEIGHTS", "DEVICE")}
    return {
        "version": __version__,
        "weights_file": cfg.MODEL.WEIGHTS,
        "folder": os.getcwd(),
        "weights": _sha256(PathManager.get_local_path(cfg.MODEL.WEIGHTS.partition("?")[0])),
        "thresholds": dict(zip(names, options.thresholds.tolist())),
        "top_k": options.top_k,
        "dtype": options.dtype,
        "backend": options.backend,
        "fast_jpeg": options.fast_jpeg,
        "MODEL": model,
        "INPUT": cfg.INPUT,
        "TEST.DETECTIONS_PER_IMAGE": cfg.TEST.DETECTIONS_PER_IMAGE,
    }


def list_inputs(args: argparse.Namespace) -> InputList:
    """The images of the command line."""
    finder = ImageFinder()
    listed = read_list(sys.stdin.buffer, b"\0" if args.null else b"\n")
    inputs = InputList(finder.find(args.inputs, listed))
    if not len(inputs):
        raise ValueError(f"no images in {' '.join(args.inputs)}")
    left_out = ", ".join(f"{n:,} {ending}" for ending, n in finder.left_out.most_common())
    others = f"; other files, left out: {left_out}" if left_out else ""
    _say(counted(len(inputs), "image") + others)
    return inputs


def _done(
    output: TagOutput, inputs: InputList, chunk_size: int, retry_failed: bool
) -> tuple[Counts, list[str]]:
    """Mark what is done; returns the counts and the files of an incomplete last chunk.

    These go through the model again: scores depend, in their last digits, on the images of a
    batch, and so the lines are those of a run that was not cut off.
    """
    counts, last, lines = Counts(len(inputs)), deque(maxlen=chunk_size), 0
    for record in output.finished(without_failed=retry_failed):
        file = os.path.join(output.folder, record["file"])
        own = inputs.mark_done(file)
        counts.done += own
        counts.failed += own and "error" in record
        counts.others += not own
        counts.others_failed += not own and "error" in record
        last.append(file if own else None)
        lines += 1
    incomplete = lines % chunk_size
    repeated = list(last)[-incomplete:] if incomplete else []
    return counts, [] if None in repeated else repeated


def _engine(args: argparse.Namespace, cfg: CfgNode, files: Iterator[str], options: TagOptions):
    if args.engine == "local":
        return tag_locally(cfg, files, options, workers=args.workers)
    return tag_with_ray(cfg, files, options, address=args.ray_address, actors=args.ray_actors)


def _append(chunks: Iterable[list[dict]], repeated: int, output: TagOutput, counts: Counts) -> None:
    """Append the records of the chunks, but for the repeated ones, and show how far it is."""
    bar = tqdm(
        total=counts.total,
        initial=counts.done,
        bar_format="{percentage:3.0f}% {n_fmt}/{total_fmt} images, {rate_noinv_fmt}, "
        "ETA {remaining}{postfix}",
        unit=" images",
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )
    with bar:
        for records in chunks:
            new, repeated = records[repeated:], 0
            output.append(new)
            counts.done += len(new)
            counts.failed += sum("error" in record for record in new)
            bar.set_postfix_str(f"{counts.failed:,} failed", refresh=False)
            bar.update(len(new))


def _remedy(error: Exception) -> str | None:
    """What a fault asks for; None for one that is not known."""
    if isinstance(error, OSError):
        return " when this is settled"
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return ", with a smaller --batch-size"
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return " (the system may be out of memory: fewer --workers, a smaller --max-pixels)"
    return None


@contextmanager
def _as_usage_errors() -> Iterator[None]:
    try:
        yield
    except KeyError as error:  # whose text is a quoted one
        raise UsageError(error.args[0]) from error
    except (AssertionError, ImportError, OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise UsageError(str(error)) from error


def _format_of(output: str) -> str:
    suffix = os.path.splitext(output)[1].lower()
    if suffix not in FORMATS:
        raise ValueError(f"--output {output} ends in none of {', '.join(FORMATS)}: give --format")
    return FORMATS[suffix]


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say(text: str, status: int = 0) -> int:
    print(text, file=sys.stderr, flush=True)
    return status
