"""Train and evaluate SCNet, or any Detectron2 model, on image-level labels."""

import argparse
import logging
import os

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ..checkpoint import SCNetCheckpointer, replace_file
from ..config import load_config, use_available_device
from ..data import register_arguments
from ..engine import (
    Trainer,
    all_problems,
    check_evaluation_data,
    check_num_classes,
    check_output_dir,
    class_names,
    launch,
    warn_of_leaks,
)
from ..inference.run import read_arguments

_OF_A_RUN = ("last_checkpoint", "metrics.json")
_WEIGHTS = (".pth", ".pkl", ".safetensors")

logger = logging.getLogger("scnet_d2")


def run(args: argparse.Namespace) -> None:
    """Train or evaluate, in as many processes as `args` asks for."""
    launch(main, args)


def setup(args: argparse.Namespace) -> CfgNode:
    """Read the config, register data sets given on the command line, set up logging."""
    trained = "model" in args
    cfg = read_arguments(args) if trained else load_config(args.config_file, args.opts)
    if trained and os.path.isdir(args.model or "") and "OUTPUT_DIR" not in args.opts[::2]:
        cfg.OUTPUT_DIR = args.model  # wherever it was trained
    use_available_device(cfg)
    if _holds_run(cfg.OUTPUT_DIR) and not (args.resume or args.eval_only):
        raise FileExistsError(
            f"{cfg.OUTPUT_DIR} holds another run, or weights; continue a run with --resume, or "
            "choose a new folder with --output"
        )
    check_output_dir(cfg.OUTPUT_DIR)
    _check_used(cfg, register_arguments(args))
    datasets = cfg.DATASETS.TEST if args.eval_only else cfg.DATASETS.TRAIN
    if not cfg.DATASETS.CLASS_NAMES and datasets:
        with all_problems(cfg, eval_only=args.eval_only):
            cfg.DATASETS.CLASS_NAMES = class_names(datasets[0])
    cfg.freeze()
    _start_log(cfg, args)
    seed_all_rng(cfg.SEED + comm.get_rank() if cfg.SEED >= 0 else None)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not args.eval_only
    warn_of_leaks(cfg)
    return cfg


def _check_used(cfg: CfgNode, registered: list[str]) -> None:
    """Refuse to leave all data of the command line aside for the config's own."""
    used = {*cfg.DATASETS.TRAIN, *cfg.DATASETS.VAL, *cfg.DATASETS.TEST}
    if registered and used.isdisjoint(registered):
        raise ValueError(
            f"{', '.join(registered)}: registered, but neither trained nor evaluated on; set "
            f"DATASETS.TRAIN and DATASETS.TEST, as \"('{registered[0]}',)\""
        )


def _start_log(cfg: CfgNode, args) -> None:
    """What Detectron2's `default_setup` logs; it also writes config.yaml, too early: see `main`."""
    rank = comm.get_rank()
    for name in ("fvcore", "detectron2", "scnet_d2"):
        setup_logger(_log_dir(cfg, args.eval_only), distributed_rank=rank, name=name)
    logger.info("Rank of current process: %d. World size: %d", rank, comm.get_world_size())
    logger.info("Environment info:\n%s", collect_env_info())
    logger.info("Command line arguments: %s", args)
    logger.info("Running with full config:\n%s", cfg.dump())


def _log_dir(cfg: CfgNode, eval_only: bool) -> str:
    """Where log and config.yaml go: an evaluation leaves those of the weights' run as they are.

    The config.yaml of a run tells what its weights were trained on (`warn_of_leaks`).
    """
    of_a_run = eval_only and _holds_run(cfg.OUTPUT_DIR)
    return os.path.join(cfg.OUTPUT_DIR, "inference") if of_a_run else cfg.OUTPUT_DIR


def _write_config(cfg: CfgNode, args) -> None:
    if comm.is_main_process():
        path = os.path.join(_log_dir(cfg, args.eval_only), "config.yaml")
        replace_file(path, lambda file: file.write(cfg.dump().encode()))


def _holds_run(folder: str) -> bool:
    """Whether a run has left anything there that another one would write over or mix with its own.

    The first thing that training writes after its log and config is metrics.json. A config.yaml
    tells of all weights beside it what they were trained on, of whatever name they are.
    """
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return any(name in _OF_A_RUN or name.endswith(_WEIGHTS) for name in names)


def main(args, trainer_class: type[Trainer] = Trainer):
    """Train, or evaluate with --eval-only; config.yaml is written when all checks have passed."""
    cfg = setup(args)
    if not args.eval_only:
        trainer = trainer_class(cfg)
        trainer.resume_or_load(resume=args.resume)
        _write_config(cfg, args)
        return trainer.train()

    if not (cfg.MODEL.WEIGHTS or args.resume):
        raise ValueError("--eval-only needs weights: add MODEL.WEIGHTS <checkpoint>, or --resume")
    if not cfg.DATASETS.TEST:
        raise ValueError("there is nothing to evaluate: set DATASETS.TEST to names of data sets")
    with all_problems(cfg, eval_only=True):
        check_num_classes(cfg, eval_only=True)
        check_evaluation_data(cfg, eval_only=True)
    model = trainer_class.build_model(cfg)
    names = cfg.DATASETS.CLASS_NAMES
    checkpointer = SCNetCheckpointer(model, cfg.OUTPUT_DIR, require_all=True, class_names=names)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    _write_config(cfg, args)
    return trainer_class.test(cfg, model)
