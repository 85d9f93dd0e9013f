#!/usr/bin/env python
"""Coverage-guided fuzzing of the loaders of annotations, with atheris.

Mutates valid and broken files and loads each. A file may load, or be refused with a DatasetError;
any other exception, and records that break what training relies on, is a finding. Every finding is
saved with its traceback, once for each place that raises it. The exit code is 1 if there is one.

    python tests/fuzzing/fuzz_loaders.py coco --seconds 600 --seed 1
"""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import multiprocessing
import os
import random
import re
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType

from scnet_d2.data import boxes, coco, labels, voc
from scnet_d2.data.context_scenes import SceneConfig, generate
from scnet_d2.outputs import new_folder

from annotation_fuzzing import TARGETS
from tabulate import tabulate

try:
    import atheris
except ImportError:
    atheris = None

PACKAGE = str(Path(coco.__file__).parents[1])
MAX_BYTES = 1 << 15
LOADED, REFUSED, FOUND = range(3)
STATUS = re.compile(r"^#(\d+)\s+(\w+)\s+cov: (\d+) ft: (\d+) corp: (\d+)", re.MULTILINE)


def scene_files() -> Iterator[bytes]:
    """COCO-format json of generated scenes."""
    with tempfile.TemporaryDirectory() as root:
        folder = generate(root, SceneConfig(sizes=(3, 2, 1)), workers=1)
        for path in sorted(Path(folder, "annotations").iterdir()):
            yield path.read_bytes()


def root_files(root: Path, target: str, most: int = 200) -> Iterator[bytes]:
    """Files of the data sets under `root`; of a COCO json the first two annotated images."""
    if target == "voc":
        paths = sorted(root.glob("VOC*/Annotations/*.xml"))[:most]
    elif target == "voc-list":
        paths = sorted(root.glob("VOC*/ImageSets/Main/*.txt"))[:most]
    else:
        for path in sorted(root.glob("coco/annotations/instances_*.json")):
            yield first_images(json.loads(path.read_bytes()))
        return
    yield from (path.read_bytes() for path in paths)


def first_images(content: dict) -> bytes:
    """The first two annotated images of a COCO json, as a json of their own."""
    ids = sorted({a["image_id"] for a in content["annotations"]})[:2]
    images = [image for image in content["images"] if image["id"] in ids]
    annotations = [a for a in content["annotations"] if a["image_id"] in ids]
    return json.dumps(content | {"images": images, "annotations": annotations}).encode()


def write_seeds(folder: Path, files: Iterable[bytes], suffix: str) -> None:
    """Write the files that libFuzzer starts from."""
    folder.mkdir(parents=True)
    for number, data in enumerate(files):
        (folder / f"{number}{suffix}").write_bytes(data[:MAX_BYTES])


def instrument(*modules: ModuleType) -> None:
    """Report the branches taken in every function and method of the modules to libFuzzer."""
    for module in modules:
        classes = [c for c in vars(module).values() if inspect.isclass(c)]
        for owner in (module, *(c for c in classes if c.__module__ == module.__name__)):
            for member in vars(owner).values():
                function = inspect.unwrap(member) if callable(member) else None
                if isinstance(function, FunctionType) and function.__module__ == module.__name__:
                    atheris.instrument_func(function)


def save_finding(folder: Path, data: bytes, suffix: str, error: Exception) -> None:
    """Keep the file and its traceback, the first for each exception type and place."""
    frames = traceback.extract_tb(error.__traceback__)
    place = next((f for f in reversed(frames) if f.filename.startswith(PACKAGE)), frames[-1])
    name = f"{type(error).__name__}-{Path(place.filename).stem}-{place.lineno}"
    if not (folder / f"{name}.log").exists():
        (folder / f"{name}{suffix}").write_bytes(data)
        text = "".join(traceback.format_exception(error))
        (folder / f"{name}.log").write_text(text, errors="backslashreplace")


def fuzz(args: argparse.Namespace, folder: str, counts: list[int]) -> None:
    """Run libFuzzer, which ends the process.

    Args:
        args: of the command line.
        folder: where the files are written that the loader reads.
        counts: shared; files loaded, refused and found to fail.
    """
    logging.disable(logging.WARNING)  # the loaders warn of every box that they drop
    sys.stderr.flush()
    os.dup2(os.open(args.output / "libfuzzer.log", os.O_CREAT | os.O_WRONLY), 2)
    target = TARGETS[args.target](folder)
    instrument(coco, voc, boxes, labels)

    def load(data: bytes) -> None:
        try:
            counts[LOADED if target.load(data) else REFUSED] += 1
        except Exception as error:
            counts[FOUND] += 1
            save_finding(args.output, data, target.suffix, error)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.2:  # libFuzzer's own knows the values that were compared
            return atheris.Mutate(data, max_size)
        if rng.random() < 0.4:  # most that libFuzzer keeps is broken already
            data = target.valid
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            data = target.mutate(data, rng)
        return data[:max_size]

    flags = {
        "runs": args.runs,
        "max_total_time": args.seconds,
        "seed": args.seed,
        "max_len": MAX_BYTES,
        "timeout": 30,  # seconds for a file: longer is a finding, which libFuzzer saves
        "rss_limit_mb": 4096,
        "artifact_prefix": f"{args.output}/",
    }
    folders = [str(args.output / "corpus"), str(args.output / "seeds")]
    atheris.Setup(
        [sys.argv[0], *(f"-{k}={v}" for k, v in flags.items()), *folders],
        load,
        custom_mutator=mutate,
    )
    atheris.Fuzz()


def growth(log: str) -> str:
    """Table of the coverage at the seeds, at each power of ten of files, and at the end."""
    lines = [(int(n), event, *map(int, rest)) for n, event, *rest in STATUS.findall(log)]
    last = {len(str(line[0])): line for line in lines if line[1] != "READ"}
    chosen = {line for line in lines if line[1] in ("INITED", "DONE")} | set(last.values())
    headers = ["files", "event", "edges", "features", "files kept"]
    return tabulate(sorted(chosen), headers, intfmt=",")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; the output folder is a new one by default."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=TARGETS, help="COCO json, VOC xml, or list of VOC images")
    parser.add_argument("--seconds", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=-1, help="most files, default: no limit")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--root", type=Path, help="data sets root whose files are seeds too")
    parser.add_argument("--output", type=new_folder, help="new folder, default: under output/fuzz")
    args = parser.parse_args(arguments)
    args.output = args.output or Path(
        "output/fuzz", f"{args.target}-{time.strftime('%Y%m%d-%H%M%S')}"
    )
    return args


def main(arguments: list[str] | None = None) -> int:
    """Fuzz in a process of its own, then print what was done and found."""
    if atheris is None:
        raise ImportError("fuzz_loaders.py needs atheris: pip install 'scnet_d2[fuzz]'")
    args = parse_arguments(arguments)
    target, context = TARGETS[args.target], multiprocessing.get_context("fork")
    counts = context.RawArray("Q", 3)
    with tempfile.TemporaryDirectory() as folder:
        files = list(target(folder).seeds())
        files += scene_files() if args.target == "coco" else []
        files += root_files(args.root, args.target) if args.root else []
        write_seeds(args.output / "seeds", files, target.suffix)
        (args.output / "corpus").mkdir()
        process = context.Process(target=fuzz, args=(args, folder, counts))
        start = time.monotonic()
        process.start()
        process.join()
    print(growth((args.output / "libfuzzer.log").read_text(errors="replace")))
    findings = sorted(p for p in args.output.iterdir() if p.is_file() and p.suffix != ".log")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{args.target}, seed {args.seed}: {sum(counts):,} files in "
        f"{time.monotonic() - start:.0f} s ({used.ru_utime + used.ru_stime:.0f} s of CPU) from "
        f"{len(files)} seeds\n{counts[LOADED]:,} loaded, {counts[REFUSED]:,} refused with a "
        f"DatasetError, {counts[FOUND]:,} failed in {len(findings)} ways"
    )
    for path in findings:
        print(f"finding: {path}")
    if process.exitcode:
        print(f"libFuzzer stopped with exit code {process.exitcode}: {args.output}/libfuzzer.log")
    return int(bool(findings) or process.exitcode != 0)


if __name__ == "__main__":
    sys.exit(main())
