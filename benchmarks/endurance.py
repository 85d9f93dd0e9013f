#!/usr/bin/env python
"""Does memory stay flat in long work, and does a run that is killed again and again lose nothing?

    python benchmarks/endurance.py memory [--iterations 2000] [--images 5000]
    python benchmarks/endurance.py kill [--rounds 20] [--seed 0]

Both work on generated scenes with the smallest shipped model, made smaller, in a folder of their
own. "memory" prints the resident memory (VmRSS) of a training and of an evaluation. "kill" trains
once undisturbed, then sends SIGKILL to train_net.py at random moments, saving included, resumes it
each time, and compares the final weights, optimizer and best score bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from scnet_d2 import load_config, use_available_device
from scnet_d2.checkpoint import read_checkpoint
from scnet_d2.data import register_coco_multilabel
from scnet_d2.data.context_scenes import SPLITS, SceneConfig, generate
from scnet_d2.engine import Trainer
from scnet_d2.evaluation import MultiLabelEvaluator

import torch
from detectron2.engine import HookBase, default_setup
from detectron2.evaluation import inference_on_dataset
from tabulate import tabulate
from tqdm import tqdm

REPO = Path(__file__).resolve().parent.parent
CONFIG = REPO / "configs" / "ContextScenes" / "scnet_R_18_FPN_160px.yaml"
OPTS = {
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "INPUT.MIN_SIZE_TRAIN": "(48, 64)",
    "INPUT.MIN_SIZE_TEST": 64,
    "SOLVER.IMS_PER_BATCH": 2,
    "DATALOADER.NUM_WORKERS": 0,
    "DATASETS.TRAIN": "('own_train',)",
    "DATASETS.VAL": "('own_val',)",
    "DATASETS.TEST": "()",
}


def data(scenes: Path) -> Iterator[tuple[str, str, str]]:
    """Name, json and images of each split."""
    for split in SPLITS:
        yield f"own_{split}", f"{scenes}/annotations/{split}.json", f"{scenes}/images/{split}"


def keys(output: Path, **opts: object) -> list[str]:
    """Config keys and values of a tiny training."""
    opts = OPTS | {"OUTPUT_DIR": output} | {k.replace("__", "."): v for k, v in opts.items()}
    return [str(x) for item in opts.items() for x in item]


def resident_megabytes() -> float:
    """Resident memory of this process, 1 MB = 10**6 bytes."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) * 1024 / 1e6


# ---- Memory -------------------------------------------------------------------------------------


class MemoryHook(HookBase):
    """Records the resident memory every `period` iterations."""

    def __init__(self, period: int):
        self.period = period
        self.rows: list[tuple[int, float]] = []

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0:
            self.rows.append((done, resident_megabytes()))


class MemoryEvaluator(MultiLabelEvaluator):
    """Records the resident memory every `period` images."""

    def __init__(self, dataset_name: str, period: int):
        super().__init__(dataset_name)
        self.period = period
        self.images = 0
        self.rows: list[tuple[int, float]] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        super().process(inputs, outputs)
        self.images += len(inputs)
        if self.images % self.period == 0:
            self.rows.append((self.images, resident_megabytes()))


def flat(rows: list[tuple[int, float]]) -> str:
    """Table of a record, and its growth over the second half."""
    growth = rows[-1][1] - rows[len(rows) // 2 - 1][1]
    table = tabulate(rows, ["done", "VmRSS, MB"], floatfmt=".1f")
    return f"{table}\nsecond half: {growth:+.1f} MB"


def memory(args: argparse.Namespace, folder: Path) -> None:
    """Prints the memory of a training and of an evaluation."""
    scenes = Path(generate(str(folder), SceneConfig(sizes=(200, 8, 1))))
    opts = {"SOLVER__CHECKPOINT_PERIOD": 500, "SOLVER__CHECKPOINTS_KEPT": 2, "DATASETS__VAL": "()"}
    cfg = load_config(CONFIG, keys(folder / "run", SOLVER__MAX_ITER=args.iterations, **opts))
    use_available_device(cfg)
    for names in data(scenes):
        register_coco_multilabel(*names)
    default_setup(cfg, None)
    trainer, hook = Trainer(cfg), MemoryHook(args.iterations // 10)
    trainer.register_hooks([hook])
    trainer.train()
    print(f"\ntraining, {args.iterations} iterations\n{flat(hook.rows)}\n")

    name = f"own_{args.images}"
    repeat_images(scenes, args.images, folder / "many.json")
    register_coco_multilabel(name, folder / "many.json", scenes / "images" / "train")
    evaluator = MemoryEvaluator(name, args.images // 10)
    inference_on_dataset(trainer.model, Trainer.build_test_loader(cfg, name), evaluator)
    print(f"\nevaluation, {args.images} images\n{flat(evaluator.rows)}")


def repeat_images(scenes: Path, count: int, json_file: Path) -> None:
    """Annotations of `count` images that share the files of the training images."""
    content = json.loads((scenes / "annotations" / "train.json").read_text())
    content["images"] = [
        content["images"][i % len(content["images"])] | {"id": i} for i in range(count)
    ]
    for annotation in content["annotations"]:  # ids begin at 1
        annotation["image_id"] -= 1
    json_file.write_text(json.dumps(content))


# ---- Kill and resume ----------------------------------------------------------------------------


def kill(args: argparse.Namespace, folder: Path) -> None:
    """Prints the rounds; exits with 1 where the killed run differs from the undisturbed one."""
    scenes = Path(generate(str(folder), SceneConfig(sizes=(40, 6, 1))))
    opts = {
        "SOLVER__MAX_ITER": args.iterations, "SOLVER__CHECKPOINT_PERIOD": 7,
        "SOLVER__CHECKPOINTS_KEPT": 3, "TEST__EVAL_PERIOD": 20,
    }  # fmt: skip
    whole, killed = folder / "whole", folder / "killed"
    program = ["--config-file", str(CONFIG), "--resume"]
    for names in data(scenes):
        program += ["--register-coco", *names]
    train([*program, *keys(whole, **opts)], folder / "whole.log").wait()
    command = [*program, *keys(killed, **opts)]
    rounds = list(kill_rounds(args, command, killed, folder))
    print(tabulate(rounds, ["round", "started at", "killed after s", "last checkpoint"]))
    final = train(command, folder / "killed.log").wait()
    files = ("model_final.pth", "model_best.pth")
    equal = final == 0 and all(
        same(read_checkpoint(str(whole / f)), read_checkpoint(str(killed / f))) for f in files
    )
    verdict = "equal bit by bit" if equal else "DIFFERENT"
    print(f"{args.rounds} rounds; {' and '.join(files)}: {verdict}")
    if not equal:
        sys.exit(1)


def kill_rounds(
    args: argparse.Namespace, command: list[str], run: Path, folder: Path
) -> Iterator[tuple]:
    """Start or resume, kill at a random moment of the training; what each round left."""
    rng = random.Random(args.seed)
    for number in tqdm(range(1, args.rounds + 1), desc="killing"):
        log = folder / f"killed-{number}.log"
        process = train(command, log)
        while process.poll() is None and "Starting training" not in log.read_text():
            time.sleep(0.05)
        delay = rng.uniform(0, args.longest)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        mark = run / "last_checkpoint"
        start = re.search(r"Starting training from iteration (\d+)", log.read_text())
        yield number, start.group(1), f"{delay:.2f}", mark.read_text() if mark.exists() else "-"


def train(command: list[str], log: Path) -> subprocess.Popen:
    """A process of train_net.py."""
    with open(log, "w") as f:
        return subprocess.Popen(
            [sys.executable, "train_net.py", *command], cwd=REPO, stdout=f,
            stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def same(a: object, b: object) -> bool:
    """Whether two checkpoints are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def main() -> None:
    """Runs one of the two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    sub = commands.add_parser("memory")
    sub.set_defaults(function=memory)
    sub.add_argument("--iterations", type=int, default=2000)
    sub.add_argument("--images", type=int, default=5000)
    sub = commands.add_parser("kill")
    sub.set_defaults(function=kill)
    sub.add_argument("--iterations", type=int, default=150)
    sub.add_argument("--rounds", type=int, default=20)
    sub.add_argument("--longest", type=float, default=3.0, help="seconds of training in a round")
    sub.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        args.function(args, Path(folder))


if __name__ == "__main__":
    main()
