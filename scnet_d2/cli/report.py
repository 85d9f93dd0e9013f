"""Write one self-contained HTML page about an evaluated run."""

import argparse

from ..report.page import write_html_report


def run(args: argparse.Namespace) -> None:
    """Write the page and print where it is.

    Raises:
        ValueError: also for a report that is there already.
    """
    path = args.output or args.run_dir / "report.html"
    if path.exists() and not args.overwrite:
        raise ValueError(f"{path} is there already: name another --output or add --overwrite")
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--output {path}: name a file that ends in .html, as browsers open it")
    path = write_html_report(
        args.run_dir, args.output, dataset=args.dataset, gallery_size=args.gallery
    )
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MB")
