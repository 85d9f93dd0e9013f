"""Data sets of one's own that the command line names, the same in every program."""

from __future__ import annotations

import argparse

from .coco import register_coco_multilabel
from .label_table import register_label_table


def register_arguments(args: argparse.Namespace) -> list[str]:
    """Register what the options named, in this process; returns the names."""
    for values in args.register_coco:
        register_coco_multilabel(*values)
    for values in args.register_labels:
        register_label_table(*values)
    return [name for name, *_ in args.register_coco + args.register_labels]
