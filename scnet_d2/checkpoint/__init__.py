"""Loading of weights: which file formats, which names, and what is refused (docs/weights.md)."""

from .checkpointer import SCNetCheckpointer
from .files import CheckpointError, UnsafeCheckpointError, read_checkpoint
from .report import LoadReport

__all__ = [
    "CheckpointError",
    "LoadReport",
    "SCNetCheckpointer",
    "UnsafeCheckpointError",
    "read_checkpoint",
]
