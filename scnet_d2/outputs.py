"""What programs write: whole files, and nothing in the place of what somebody has.

:func:`replacing` writes a file aside and renames it when it is whole; every file that is written at
once is written so, unlike lines that are appended as the work goes on. :func:`new_file` and
:func:`new_folder` are for the `type` of an argparse argument: they refuse, before a program works
for it, what would write over something.
"""

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

PARTIAL = ".partial"  # ending of a file that is being written


@contextmanager
def replacing(path: str | os.PathLike, mode: str = "wb", **options: Any) -> Iterator[IO]:
    """Open a file for writing that takes its name when it is whole.

    Whatever happens, there is the old file or all of the new one: see :func:`whole_file`.

    Args:
        path: a local path.
        mode: "wb", or "w" for text.
        options: of `open`; text is UTF-8 by default.

    Raises:
        OSError: naming the path.
    """
    if "b" not in mode:
        options = {"encoding": "utf-8"} | options
    with whole_file(path) as partial, open(partial, mode, **options) as file:
        yield file


@contextmanager
def whole_file(path: str | os.PathLike, *, keep_suffix: bool = False) -> Iterator[Path]:
    """Another name in the same folder, for a function that writes to a path.

    What is written there is on the disk before it is renamed to `path`, and removed where the
    writing fails. Two processes that write the same file have a name each; the last one stays.

    Args:
        path: a local path.
        keep_suffix: the other name ends as `path` does, for a function that goes by the ending.

    Raises:
        OSError: naming the path.
    """
    path = Path(path)
    ending = path.suffix if keep_suffix else ""
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}{ending}")
    try:
        yield partial
        _sync(partial)
        os.replace(partial, path)
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk names none
    finally:
        with suppress(OSError):
            os.remove(partial)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_json(path: str | os.PathLike, content: Any, *, indent: int = 1) -> None:
    """Write a JSON file, whole or not at all."""
    text = json.dumps(content, indent=indent) + "\n"
    with replacing(path, "w") as file:
        file.write(text)


def write_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 BGR image in the format of the path's ending, whole or not at all.

    Raises:
        ValueError: if the ending is of no known format; names the path.
    """
    try:
        _, encoded = cv2.imencode(Path(path).suffix, image)
    except cv2.error as error:
        raise ValueError(f"{path}: name it .png or .jpg") from error
    with replacing(path) as file:
        file.write(encoded.tobytes())


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
