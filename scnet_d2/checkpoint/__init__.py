"""Saving and loading of weights: file formats, names, what is refused (docs/weights.md)."""

from .checkpointer import SCNetCheckpointer
from .files import (
    METADATA_KEY,
    BrokenCheckpointError,
    CheckpointError,
    UnsafeCheckpointError,
    read_checkpoint,
    replace_file,
)
from .load_report import LoadReport

__all__ = [
    "METADATA_KEY",
    "BrokenCheckpointError",
    "CheckpointError",
    "LoadReport",
    "SCNetCheckpointer",
    "UnsafeCheckpointError",
    "read_checkpoint",
    "replace_file",
]
