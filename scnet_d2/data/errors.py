"""The errors of the data package and the path check that its loaders share."""

from __future__ import annotations

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
