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
import shlex
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
from ..evaluation import label_thresholds
from ..inference import OptsParser, load_run
from ..inference.run import MODEL_HELP, class_names
from .inputs import IMAGE_SUFFIXES, ImageFinder, InputList, read_list
from .local_engine import MAX_PIXELS, TagOptions, tag_locally
from .output import FORMATS, TagOutput
from .ray_engine import tag_with_ray

HELP = f"""\
inputs:
  A file; a folder, with all below it; a pattern in quotes ('photos/**/*.jpg'); - for a list of
  files on standard input. Taken from a folder are
  {" ".join(sorted(IMAGE_SUFFIXES))},
  but no names that begin with a dot and no links to folders.

output:
  One record an image, in the order of the inputs. Beside OUT stand OUT.settings.json (model and
  settings) and, unless OUT itself is JSON lines, OUT.lines.jsonl (what is finished). The same
  command goes on where a run was cut off and adds images that are new; with another model or other
  settings it refuses. docs/tagging.md describes the formats.

exit status:
  0    every image has its labels
  1    some images of the command could not be tagged: they have an "error"; all others have their
       labels
  2    nothing was done: wrong arguments, or the output is of other settings or another program
  3    ended early by a fault (disk full, out of memory); the same command goes on
  130  interrupted (^C, SIGTERM); the same command goes on
"""


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


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit status, see `HELP`."""
    parser = get_parser()
    args = parser.parse_args(arguments)
    command = shlex.join(sys.argv if arguments is None else [parser.prog, *arguments])
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ^C
    try:
        return run(args)
    except UsageError as error:
        return _say(f"{parser.prog}: error: {error}", 2)
    except KeyboardInterrupt:
        return _say(f"\nInterrupted. To go on: {command}", 130)
    except Exception as error:
        remedy = _remedy(error)
        if remedy is None:
            traceback.print_exc()
        return _say(f"\n{parser.prog}: {error}\nTo go on{remedy or ''}: {command}", 3)
    finally:
        signal.signal(signal.SIGTERM, before)


def run(args: argparse.Namespace) -> int:
    """Tag what is not yet done and write the output; returns 1 where images failed, else 0.

    Raises:
        UsageError: before anything is done.
    """
    start = time.perf_counter()
    with ExitStack() as stack:
        with _as_usage_errors():
            cfg = setup(args)
            names = class_names(cfg)
            options = tag_options(args, cfg, names)
            inputs = list_inputs(args)
            file_format = args.format or _format_of(args.output)
            settings = tag_settings(cfg, options, names) | {"format": file_format}
            output = stack.enter_context(TagOutput(Path(args.output), file_format, settings))
            counts, repeated = _done(output, inputs, options.chunk_size, args.retry_failed)
            if earlier := counts.done:
                _say(f"{earlier:,} of {counts.total:,} images are in {output.lines} already")
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
        f"{counts.done + counts.others - failed:,} images tagged, {failed:,} failed ({new:,} in "
        f"this run, {seconds:.1f} s, {new / seconds:.1f} images/s{others}): {args.output}"
    )
    if failed:
        _say(f'what is wrong with each of those that failed: "error" in {args.output}')
    return 1 if counts.failed else 0


def setup(args: argparse.Namespace) -> CfgNode:
    """The config of the model."""
    if not (args.model or args.weights):
        raise ValueError(
            "give --model; or --weights, and --config-file unless its config.yaml is beside it"
        )
    source = args.model or Path(args.weights).parent / "config.yaml"
    local = args.engine == "local"  # the machines of a cluster may have what this one lacks
    return load_run(source, args.weights, args.opts, device_of_this_machine=local)


def tag_options(args: argparse.Namespace, cfg: CfgNode, names: list[str]) -> TagOptions:
    """The thresholds of the command, else of the config, and the command's other options."""
    if args.threshold is None:
        thresholds = label_thresholds(cfg, names)
    else:
        thresholds = np.full(len(names), args.threshold)
    return TagOptions(thresholds, args.top_k, args.batch_size, args.max_pixels, args.dtype)


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
    _say(f"{len(inputs):,} images" + (f"; other files, left out: {left_out}" if left_out else ""))
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


def _number(kind: type, least: float, most: float = float("inf")):
    """Type of an argument: a number in a range."""

    def parse(text: str):
        number = kind(text)
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text} is not from {least} to {most}")
        return number

    parse.__name__ = kind.__name__  # named where the text is no number
    return parse


def get_parser() -> argparse.ArgumentParser:
    """Arguments of the program."""
    parser = OptsParser(
        description=__doc__, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="file, folder, pattern, or - for a list")
    add("--output", required=True, metavar="OUT")
    add("--weights", metavar="FILE", help="checkpoint; default: that of --model or --config-file")
    model = parser.add_mutually_exclusive_group().add_argument
    model("--model", metavar="MODEL", help=MODEL_HELP)
    model(
        "--config-file", dest="model", metavar="FILE",
        help="default: the config.yaml beside --weights",
    )  # fmt: skip
    add("--format", choices=FORMATS.values(), help="default: by OUT's ending (.jsonl .csv .json)")
    add("--threshold", type=_number(float, 0, 1), help="least score; default: the config's")
    add("--top-k", type=_number(int, 1), metavar="K", help="most labels of an image; default: all")
    add("--batch-size", type=_number(int, 1), default=8, metavar="N", help="default: %(default)s")
    add(
        "--workers", type=_number(int, 0), default=min(os.cpu_count() or 1, 8), metavar="N",
        help="processes that read images; default: one a CPU, at most 8",
    )  # fmt: skip
    add(
        "--dtype", choices=("float32", "bfloat16"),
        help="optimise the model in this type, docs/performance.md; default: as it was trained",
    )  # fmt: skip
    add("--null", action="store_true", help="the list on standard input is of find -print0")
    add("--retry-failed", action="store_true", help="try images again that failed earlier")
    add(
        "--max-pixels", type=_number(int, 1), default=MAX_PIXELS, metavar="N",
        help="larger images fail, they are not decoded; default: %(default)s",
    )  # fmt: skip
    add("--engine", choices=("local", "ray"), default="local", help="default: %(default)s")
    add("--ray-address", metavar="ADDRESS", help="running cluster; default: one on this machine")
    add("--ray-actors", type=_number(int, 1), metavar="N", help="processes with the model")
    add(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE",
        help="config keys, at the end of the command",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
