#!/usr/bin/env python
"""Copy photographs that may be passed on into a new folder, with LICENSES.txt; label them then.

They are those of an installed scikit-image whose licence it states.
"""

import argparse
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from scnet_d2.outputs import new_folder, replacing


class Photograph(NamedTuple):
    """A file of skimage/data, and what skimage/data/_fetchers.py says of it."""

    file: str
    shows: str
    author: str
    licence: str
    source: str


PHOTOGRAPHS = (
    Photograph("chelsea.png", "a cat", "Stefan van der Walt", "CC0", "scikit-image"),
    Photograph("astronaut.png", "a person", "NASA", "public domain", "https://flic.kr/p/r9qvLn"),
    # None of the labels of VOC fits the next two.
    Photograph("coffee.png", "a cup of coffee", "Rachel Michetti", "CC0", "scikit-image"),
    Photograph(
        "rocket.jpg", "a rocket", "SpaceX", "public domain",
        "https://www.flickr.com/photos/spacexphotos/16511594820/",
    ),
)  # fmt: skip


def copy_photographs(folder: Path) -> None:
    """Copy the photographs and write LICENSES.txt.

    Raises:
        FileNotFoundError: without scikit-image, or one whose package lacks a file; the remedy.
    """
    package = find_spec("skimage")
    if package is None:
        raise FileNotFoundError("scikit-image is not installed: pip install scikit-image")
    folder.mkdir(parents=True, exist_ok=True)
    for photograph in PHOTOGRAPHS:
        shutil.copyfile(
            Path(package.origin).parent / "data" / photograph.file, folder / photograph.file
        )
    with replacing(folder / "LICENSES.txt", "w") as file:
        for x in PHOTOGRAPHS:
            print(f"{x.file}: {x.shows}, by {x.author}; {x.licence}; {x.source}", file=file)


def main(arguments: list[str] | None = None) -> int:
    """Copy; returns 1 where there is nothing to copy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=new_folder, help="a new or empty folder")
    args = parser.parse_args(arguments)
    try:
        copy_photographs(args.folder)
    except FileNotFoundError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(f"{len(PHOTOGRAPHS)} photographs and LICENSES.txt are in {args.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
