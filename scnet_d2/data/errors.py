"""The errors of the data package and the checks of paths that its loaders share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from detectron2.utils.file_io import PathManager


class DatasetError(ValueError):
    """A data set is absent, broken or inconsistent; the message names the file and the remedy.

    Attributes:
        problems: a line for each kind of problem, with the remedy.
        records: ``file_name``, ``width`` and ``height`` of the images that could be listed.
    """

    def __init__(
        self, message: str, problems: Sequence[str] = (), records: Sequence[dict[str, Any]] = ()
    ):
        super().__init__(message)
        self.problems = list(problems) or [" ".join(message.split())]
        self.records = list(records)


class ImageError(DatasetError):
    """One image cannot be used: its file cannot be read, or has another size than annotated.

    Attributes:
        fault: what is wrong.
        remedy: what to do, "" where the message is all there is to say.
    """

    def __init__(self, fault: str, remedy: str = ""):
        super().__init__(f"{fault}; {remedy}." if remedy else fault)
        self.fault, self.remedy = fault, remedy


def require_path(path: str, dataset_name: str, remedy: str, *, folder: bool = False) -> None:
    """Check that a file, or with ``folder`` a directory, exists.

    Raises:
        DatasetError: naming the data set, the expected path and ``remedy``.
    """
    exists = PathManager.isdir(path) if folder else PathManager.isfile(path)
    if not exists:
        kind = "folder" if folder else "file"
        raise DatasetError(f"{dataset_name}: {kind} '{path}' does not exist. {remedy}")


def is_inside(folder: str, path: str) -> bool:
    """Whether a path from a file of annotations, relative to a folder, stays in the folder.

    Links in the folder are the user's own and are followed.
    """
    if not (os.path.isabs(path) or ".." in path):
        return True
    root = os.path.join(os.path.abspath(folder), "")
    return os.path.abspath(os.path.join(folder, path)).startswith(root)


def exceeds_share(bad_images: int, images: int, max_share: float) -> bool:
    """Whether more images are bad than a share of all of them; the share is not rounded."""
    # a quotient, because 0.29 * 100 is less than 29
    return bad_images > 0 and bad_images / images > max_share
