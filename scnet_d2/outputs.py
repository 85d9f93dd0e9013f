"""What programs are told to write: refused, before they work for it, where something would be lost.

The functions are for the `type` of an argparse argument.
"""

import argparse
import os
from pathlib import Path


def new_file(path: str) -> Path:
    """A file that is not there yet, in a folder that can be written to.

    Raises:
        argparse.ArgumentTypeError: naming the path and the remedy.
    """
    file = Path(path)
    if os.path.lexists(file):
        raise argparse.ArgumentTypeError(f"{file} is there already: name another file or remove it")
    _require_writable(file.parent)
    return file


def new_folder(path: str) -> Path:
    """A folder that is not there yet, or is empty.

    Raises:
        argparse.ArgumentTypeError: naming the path and the remedy.
    """
    folder = Path(path)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise argparse.ArgumentTypeError(f"{folder} is not empty: choose another folder")
    _require_writable(next(p for p in (folder, *folder.absolute().parents) if p.exists()))
    return folder


def _require_writable(folder: Path) -> None:
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise argparse.ArgumentTypeError(f"{folder} is no folder that can be written to")
