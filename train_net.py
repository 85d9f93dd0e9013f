#!/usr/bin/env python
"""Train and evaluate SCNet, or any Detectron2 model, on image-level labels."""

import os
import re

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from scnet_d2 import load_config, use_available_device
from scnet_d2.checkpoint import SCNetCheckpointer, replace_file
from scnet_d2.data import add_register_coco_argument, register_coco_arguments
from scnet_d2.engine import (
    Trainer,
    check_evaluation_data,
    check_num_classes,
    check_output_dir,
    class_names,
    launch,
    warn_of_leaks,
)

_OF_A_RUN = ("last_checkpoint", "metrics.json")
_CHECKPOINT = re.compile(r"(model_(final|best|\d+)|before_non_finite_\d+)\.pth")


def setup(args) -> CfgNode:
    """Read the config, register data sets given on the command line, set up logging."""
    cfg = load_config(args.config_file, args.opts)
    use_available_device(cfg)
    if _holds_run(cfg.OUTPUT_DIR) and not (args.resume or args.eval_only):
        raise FileExistsError(
            f"{cfg.OUTPUT_DIR} holds another run; continue it with --resume, or choose a new "
            "folder with: OUTPUT_DIR <folder>"
        )
    check_output_dir(cfg.OUTPUT_DIR)
    register_coco_arguments(args)
    datasets = cfg.DATASETS.TEST if args.eval_only else cfg.DATASETS.TRAIN
    if not cfg.DATASETS.CLASS_NAMES and datasets:
        cfg.DATASETS.CLASS_NAMES = class_names(datasets[0])
    cfg.freeze()
    log_dir = _log_dir(cfg, args.eval_only)
    log_cfg = cfg.clone()
    log_cfg.defrost()
    log_cfg.OUTPUT_DIR = log_dir
    earlier = _earlier_config(log_dir) if args.resume and not args.eval_only else ""
    default_setup(log_cfg, args)
    if earlier and comm.is_main_process():  # until the run is known to go on: see `main`
        _write_config(log_dir, earlier)
    setup_logger(log_dir, distributed_rank=comm.get_rank(), name="scnet_d2")
    warn_of_leaks(cfg)
    return cfg


def _log_dir(cfg: CfgNode, eval_only: bool) -> str:
    """Where log and config.yaml go: an evaluation leaves those of the training run as they are.

    The config.yaml of a run tells what its weights were trained on (`warn_of_leaks`).
    """
    of_a_run = eval_only and _holds_run(cfg.OUTPUT_DIR)
    return os.path.join(cfg.OUTPUT_DIR, "inference") if of_a_run else cfg.OUTPUT_DIR


def _earlier_config(folder: str) -> str:
    """config.yaml of the run there; "" where there is none."""
    path = os.path.join(folder, "config.yaml")
    if not os.path.isfile(path):
        return ""
    with open(path, encoding="utf-8") as file:
        return file.read()


def _write_config(folder: str, text: str) -> None:
    replace_file(os.path.join(folder, "config.yaml"), lambda file: file.write(text.encode()))


def _holds_run(folder: str) -> bool:
    """Whether a run has left anything there that another one would write over or mix with its own.

    The first thing that training writes after its log is metrics.json.
    """
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return any(name in _OF_A_RUN or _CHECKPOINT.fullmatch(name) for name in names)


def main(args):
    """Train, or evaluate with --eval-only."""
    cfg = setup(args)
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        if args.resume and comm.is_main_process():
            _write_config(cfg.OUTPUT_DIR, cfg.dump())
        return trainer.train()

    if not (cfg.MODEL.WEIGHTS or args.resume):
        raise ValueError("--eval-only needs weights: add MODEL.WEIGHTS <checkpoint>, or --resume")
    check_num_classes(cfg, eval_only=True)
    check_evaluation_data(cfg, eval_only=True)
    model = Trainer.build_model(cfg)
    names = cfg.DATASETS.CLASS_NAMES
    checkpointer = SCNetCheckpointer(model, cfg.OUTPUT_DIR, require_all=True, class_names=names)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    return Trainer.test(cfg, model)


def argument_parser():
    """Detectron2's arguments and --register-coco."""
    parser = default_argument_parser()
    add_register_coco_argument(parser)
    return parser


if __name__ == "__main__":
    launch(main, argument_parser().parse_args())
