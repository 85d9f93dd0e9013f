#!/usr/bin/env python
"""train_net.py with a frozen backbone whose feature maps are computed once and kept in a folder.

    python -m experiments.frozen_features --keep-features FOLDER (and the arguments of train_net.py)

Trainings of one seed see the same augmented images, so that from the second method on a training
costs its heads alone. What is kept is found by weights and images: the losses are those of
train_net.py to the last digit. A backbone that is trained, or that a head changes, keeps nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from scnet_command.arguments import train_net_parser
from scnet_d2.checkpoint import replace_file
from scnet_d2.cli.train import main
from scnet_d2.engine import Trainer, launch

import torch
from torch import nn


def keep_features(model: nn.Module, folder: Path) -> bool:
    """Let a model's frozen backbone (below its FPN) take its features from a folder.

    Returns:
        Whether it does: not where the backbone is trained, or where a head changes its stages.
    """
    network = getattr(model.backbone, "bottom_up", model.backbone)
    modules = list(network.modules())
    trained = any(p.requires_grad for p in network.parameters())
    statistics = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules)
    if trained or statistics or any(m._forward_hooks for m in modules):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    network.forward = _KeptFeatures(network, network.forward, folder)
    return True


class _KeptFeatures:
    def __init__(self, network: nn.Module, forward: Callable, folder: Path):
        self.network = network
        self.compute = forward
        self.folder = folder
        self.weights = b""

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features by name of images (N, 3, H, W)."""
        names = self.network.output_shape()
        path = self.folder / f"{self._key(images)}.pt"
        kept = torch.load(path, weights_only=True) if path.exists() else {}
        if not names.keys() <= kept.keys():
            with torch.no_grad():
                kept = kept | self.compute(images)
            replace_file(path, lambda file: torch.save(kept, file))
        return {name: kept[name] for name in names}

    def _key(self, images: torch.Tensor) -> str:
        if not self.weights:  # they are loaded when the model has been built
            self.weights = _digest(*self.network.state_dict().values())
        return hashlib.sha1(self.weights + _digest(images)).hexdigest()


def _digest(*tensors: torch.Tensor) -> bytes:
    """Of shapes and values."""
    digest = hashlib.sha1()
    for t in tensors:
        digest.update(str(tuple(t.shape)).encode())
        digest.update(t.detach().cpu().contiguous().numpy().data)
    return digest.digest()


def _trainer(folder: Path) -> type[Trainer]:
    class FrozenFeaturesTrainer(Trainer):
        """Keeps the features of a frozen backbone."""

        @classmethod
        def build_model(cls, cfg):
            model = super().build_model(cfg)
            keep_features(model, folder)
            return model

    return FrozenFeaturesTrainer


if __name__ == "__main__":
    parser = train_net_parser()
    parser.add_argument("--keep-features", type=Path, metavar="FOLDER", required=True)
    arguments = parser.parse_args()
    launch(partial(main, trainer_class=_trainer(arguments.keep_features)), arguments)
