#!/usr/bin/env python
"""Memory of scnet tag along a run over many small images.

Generated scenes, hard-linked under as many names as needed, go through a small SCNet with random
weights. Printed is the peak (VmHWM of /proc) of the main process and of the largest worker when so
many lines are written.

    python benchmarks/tag_memory.py --images 10000
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from scnet_d2 import add_scnet_config
from scnet_d2.data.context_scenes import CLASSES, SceneConfig, generate

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

REPO = Path(__file__).resolve().parent.parent
SCENES = 200


def link_images(folder: Path, count: int) -> Path:
    """A folder of `count` names for generated scenes."""
    generate(str(folder), SceneConfig(sizes=(SCENES, 1, 1)))
    scenes = sorted((folder / "context_scenes" / "images" / "train").iterdir())
    images = folder / "images"
    images.mkdir()
    for i in range(count):
        os.link(scenes[i % SCENES], images / f"{i:07d}.png")
    return images


def save_model(folder: Path) -> Path:
    """Random weights of a small model, and its config.yaml beside them."""
    cfg = get_cfg()
    add_scnet_config(cfg)
    cfg.merge_from_file(str(REPO / "configs/ContextScenes/scnet_R_18_FPN_160px.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.ROI_BOX_HEAD.FC_DIM", 32])
    cfg.merge_from_list(["MODEL.RPN.POST_NMS_TOPK_TEST", 20, "DATASETS.CLASS_NAMES", list(CLASSES)])
    torch.save(build_model(cfg).state_dict(), folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "model.pth"


def peak(pid: int) -> float:
    """Most memory that a process ever had resident, in MiB; 0 for one that has ended."""
    try:
        return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024
    except (OSError, TypeError):
        return 0.0


def peaks(pid: int) -> tuple[float, float]:
    """Peaks of a process and of the largest of its children, in MiB."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return peak(pid), max((peak(int(child)) for child in children), default=0.0)


def watch(command: list, output: Path, marks: list[int]) -> Iterator[tuple[int, float, float]]:
    """Run a command; yields number of lines and peaks when its output passes each mark."""
    lines, read, latest = 0, 0, (0.0, 0.0)
    with subprocess.Popen(list(map(str, command))) as process:
        while process.poll() is None and marks:
            time.sleep(0.1)
            latest = tuple(map(max, latest, peaks(process.pid)))
            if output.exists():
                with output.open("rb") as file:
                    file.seek(read)
                    new = file.read()
                lines, read = lines + new.count(b"\n"), read + len(new)
            while marks and lines >= marks[0]:
                yield (marks.pop(0), *latest)
    if process.returncode or marks:
        sys.exit(f"the run ended with {process.returncode} before {marks} lines were seen")


def main() -> None:
    """Make images and model in a temporary folder, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    marks = [n for n in (1_000, 2_000, 5_000) if n < args.images] + [args.images]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        output = folder / "labels.jsonl"
        command = [sys.executable, "-m", "scnet_command", "tag", link_images(folder, args.images)]
        command += ["--weights", save_model(folder), "--output", output, "--threshold", 0]
        for lines, own, worker in watch([*command, "--workers", args.workers], output, marks):
            print(f"{lines:7,d} images: main {own:.0f} MiB, worker {worker:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
