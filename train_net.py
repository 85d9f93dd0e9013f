#!/usr/bin/env python
"""Train and evaluate SCNet, or any Detectron2 model, on image-level labels."""

import os
from pathlib import Path

from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from scnet_d2 import add_scnet_config, use_available_device
from scnet_d2.checkpoint import SCNetCheckpointer
from scnet_d2.data import LabelPolicy, register_coco_multilabel, set_label_policy
from scnet_d2.engine import Trainer, check_num_classes, class_names, launch, warn_of_leaks


def setup(args) -> CfgNode:
    """Read the config, register data sets given on the command line, set up logging."""
    cfg = get_cfg()
    add_scnet_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    use_available_device(cfg)
    holds_run = os.path.exists(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))
    if holds_run and not (args.resume or args.eval_only):
        raise FileExistsError(
            f"{cfg.OUTPUT_DIR} holds another run; continue it with --resume, or choose a new "
            "folder with: OUTPUT_DIR <folder>"
        )
    set_label_policy(LabelPolicy.from_config(cfg))
    for name, json_file, image_root in args.register_coco:
        register_coco_multilabel(name, json_file, image_root)
    datasets = cfg.DATASETS.TEST if args.eval_only else cfg.DATASETS.TRAIN
    if not cfg.DATASETS.CLASS_NAMES and datasets:
        cfg.DATASETS.CLASS_NAMES = class_names(datasets[0])
    cfg.freeze()
    trained_with = Path(cfg.OUTPUT_DIR, "config.yaml")
    keep = trained_with.read_bytes() if args.eval_only and holds_run else None
    default_setup(cfg, args)
    if keep is not None and comm.is_main_process():
        trained_with.write_bytes(keep)  # how a run was trained, which warn_of_leaks reads, too
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="scnet_d2")
    warn_of_leaks(cfg)
    return cfg


def main(args):
    """Train, or evaluate with --eval-only."""
    cfg = setup(args)
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()

    if not (cfg.MODEL.WEIGHTS or args.resume):
        raise ValueError("--eval-only needs weights: add MODEL.WEIGHTS <checkpoint>, or --resume")
    check_num_classes(cfg, eval_only=True)
    model = Trainer.build_model(cfg)
    checkpointer = SCNetCheckpointer(model, cfg.OUTPUT_DIR, require_all=True)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    return Trainer.test(cfg, model)


def argument_parser():
    """Detectron2's arguments and --register-coco."""
    parser = default_argument_parser()
    parser.add_argument(
        "--register-coco",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "JSON", "IMAGE_ROOT"),
        help="register a COCO-format json as a multi-label data set (repeatable)",
    )
    return parser


if __name__ == "__main__":
    launch(main, argument_parser().parse_args())
