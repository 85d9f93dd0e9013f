"""The errors of the data package and the checks of paths that its loaders share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from detectron2.utils.file_io import PathManager


class DatasetError(ValueError):
    """A data set is absent, broken or inconsistent; the message names the file and the remedy."""


class ImageError(DatasetError):
    """One image cannot be used: its file cannot be read, or has another size than annotated."""


def require_path(path: str, dataset_name: str, remedy: str, *, folder: bool = False) -> None:
    """Check that a file, or with ``folder`` a directory, exists.

    Raises:
        DatasetError: naming the data set, the expected path and ``remedy``.
    """
    exists = PathManager.isdir(path) if folder else PathManager.isfile(path)
    if not exists:
        kind = "folder" if folder else "file"
        raise DatasetError(f"{dataset_name}: {kind} '{path}' does not exist. {remedy}")


def require_inside(folder: str, path: str, source: str) -> str:
    """Join a folder and a path from a file of annotations, which must not lead out of the folder.

    Links in the folder are the user's own and are followed.

    Raises:
        DatasetError: naming ``source``, the file of annotations, and the path.
    """
    joined = os.path.join(folder, path)
    if os.path.isabs(path) or ".." in path:
        root = os.path.join(os.path.abspath(folder), "")
        if not os.path.abspath(joined).startswith(root):
            raise DatasetError(
                f"{source}: '{path}' leads out of '{folder}'; correct it, or choose a folder that "
                "holds all images."
            )
    return joined


def check_class_names(names: Sequence[str], source: str) -> None:
    """Refuse class names that would break the lines and columns they are printed in.

    Raises:
        DatasetError: naming ``source`` and the first name that is empty or has control characters.
    """
    for name in names:
        if not (name.strip() and name.isprintable()):
            raise DatasetError(
                f"{source}: the class name {name!r} is empty or has characters that cannot be "
                "printed; rename it."
            )


def check_files_exist(
    dataset_dicts: Sequence[dict[str, Any]], dataset_name: str, max_missing: float
) -> None:
    """Look for the image files of a data set, without opening them.

    Args:
        dataset_dicts: those without a ``file_name`` are not looked for.
        dataset_name: for the message.
        max_missing: share of them that may be absent.

    Raises:
        DatasetError: with the number of absent files and the first one.
    """
    files = [d["file_name"] for d in dataset_dicts if "file_name" in d]
    missing = [f for f in files if not PathManager.isfile(f)]
    if exceeds_share(len(missing), len(files), max_missing):
        raise DatasetError(
            f"{dataset_name}: {len(missing)} of its {len(files)} image files do not exist, the "
            f"first is '{missing[0]}'. Correct the image folder or the file names; "
            "tools/check_datasets.py checks the whole data set. DATALOADER.MAX_BAD_IMAGES "
            f"({max_missing}) is the share that may be absent."
        )


def exceeds_share(bad_images: int, images: int, max_share: float) -> bool:
    """Whether more images are bad than a share of all of them; the share is not rounded."""
    # a quotient, because 0.29 * 100 is less than 29
    return bad_images > 0 and bad_images / images > max_share
