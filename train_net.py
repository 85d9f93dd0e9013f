#!/usr/bin/env python
"""Train and evaluate SCNet, or any Detectron2 model, on image-level labels: `scnet train`.

The program that Detectron2's users know: `--eval-only` evaluates, KEY VALUE stand at the end.
"""

from scnet_command import user_errors
from scnet_command.arguments import train_net_parser

if __name__ == "__main__":
    args = train_net_parser().parse_args()
    with user_errors("train_net.py", show_traceback=args.traceback):
        from scnet_d2.cli.train import run

        run(args)
