#!/usr/bin/env python
"""Write one self-contained HTML page about an evaluated run."""

import argparse
from pathlib import Path

from scnet_d2.report.page import write_html_report


def main(arguments: list[str] | None = None) -> None:
    """Writes the page and prints where it is; exits with an error message."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="OUTPUT_DIR of the run")
    parser.add_argument(
        "--output", metavar="FILE.html", type=Path, help="default: RUN_DIR/report.html"
    )
    parser.add_argument("--overwrite", action="store_true", help="a report that is there already")
    parser.add_argument(
        "--dataset", help="default: the first of the run's DATASETS.TEST that has been evaluated"
    )
    parser.add_argument(
        "--images", metavar="N", type=int, default=6, help="images in a gallery, default: 6"
    )
    args = parser.parse_args(arguments)
    if args.images < 0:
        parser.error(f"--images must be at least 0, got {args.images}")
    path = args.output or args.run_dir / "report.html"
    if path.exists() and not args.overwrite:
        parser.error(f"{path} is there already: name another --output or add --overwrite")
    try:
        path = write_html_report(
            args.run_dir, args.output, dataset=args.dataset, gallery_size=args.images
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MB")


if __name__ == "__main__":
    main()
