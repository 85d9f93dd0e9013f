"""Context Scenes, the generated data set: see `generator`."""

from .bounds import context_blind_scores
from .generator import (
    CLASSES,
    COMPANION_OF,
    CONTEXT_PAIRS,
    FOLDER,
    SPLITS,
    SURFACE_OF,
    SceneConfig,
    ensure_generated,
    generate,
    render_scene,
)

__all__ = [
    "CLASSES",
    "COMPANION_OF",
    "CONTEXT_PAIRS",
    "FOLDER",
    "SPLITS",
    "SURFACE_OF",
    "SceneConfig",
    "context_blind_scores",
    "ensure_generated",
    "generate",
    "render_scene",
]
